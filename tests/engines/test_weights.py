"""What runs where is read back from the buffers that were allocated, and never taken from the plan."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from converters.header import read_header
from edgeai import native
from edgeai.artifact import Artifact, open_artifact
from edgeai.engines.llamacpp.failures import decode_error
from edgeai.engines.llamacpp.weights import Weights, read_placement
from edgeai.errors import DeviceUnavailable, DoesNotFit, EdgeAIError, EngineCrashed, InvalidModel, UsageError
from edgeai.native import LogLine
from edgeai.placement import Placement, Share
from edgeai.plan import Plan
from tests.engines.native_stub import CPU_DEVICE, gpu, install

MIB = 1 << 20


def lines(*texts: str, level: int = native.INFO) -> list[LogLine]:
    return [LogLine(level, text) for text in texts]


def layers(*devices: str) -> list[LogLine]:
    """What load_tensors says of the layers, the output layer last (llama-model.cpp)."""
    texts = (f"load_tensors: layer {n:3d} assigned to device {name}, is_swa = 0" for n, name in enumerate(devices))
    return lines(*texts, level=native.DEBUG)


OFFLOADED = lines("load_tensors: offloaded 3/3 layers to GPU")  # the library says so with and without a GPU
FULL = [*layers("CUDA0", "CUDA0", "CUDA0"), *OFFLOADED, *lines(
    "load_tensors:   CPU_Mapped model buffer size =    28.69 MiB",
    "load_tensors:        CUDA0 model buffer size =    64.00 MiB",
)]  # fmt: skip
CONTEXT = lines(
    "llama_context:  CUDA_Host  output buffer size =     0.50 MiB",
    "llama_kv_cache:      CUDA0 KV buffer size =    45.00 MiB",
    "llama_kv_cache: size =   45.00 MiB (  2048 cells,  30 layers,  1/1 seqs), K (f16):   22.50 MiB, V (f16):   22.50 MiB",
    "sched_reserve:      CUDA0 compute buffer size =   100.00 MiB",
    "sched_reserve:  CUDA_Host compute buffer size =     4.00 MiB",
)


def plan(**changes: Any) -> Plan:
    made = Plan(
        engine="llama.cpp", device="cuda", gpu_layers=3, context=512, batch=512, threads=1, kv_type="f16", extra_bufts=True,
        memory_bytes=0, fits=True,
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture(scope="module")
def artifact(tiny_gguf: Path) -> Artifact:
    return open_artifact(tiny_gguf)


def context_params() -> Any:
    return SimpleNamespace(offload_kqv=True, op_offload=True)


def test_every_buffer_is_counted_on_its_device() -> None:
    placement = read_placement([*FULL, *CONTEXT])
    assert placement.shares == (
        Share(device="CUDA0", layers=3, weights_bytes=64 * MIB, kv_bytes=45 * MIB, compute_bytes=100 * MIB),
        Share(device="CPU", mapped_bytes=round(28.69 * MIB), compute_bytes=round(4.5 * MIB)),
    )
    assert (placement.backend, placement.device) == ("cuda", "CUDA0")


def test_several_gpus_and_the_cpu_each_have_their_share() -> None:
    log = [*layers("CPU", "CUDA0", "CUDA1", "CUDA1"), *lines(
        "load_tensors:        CUDA0 model buffer size =    10.00 MiB",
        "load_tensors:        CUDA1 model buffer size =    20.00 MiB",
        "load_tensors:   CPU_REPACK model buffer size =     5.00 MiB",
        "llama_memory_recurrent:      CUDA1 RS buffer size =     2.00 MiB",
    )]  # fmt: skip
    placement = read_placement(log)
    assert [(share.device, share.layers, share.weights_bytes) for share in placement.shares] == [
        ("CUDA0", 1, 10 * MIB), ("CUDA1", 2, 20 * MIB), ("CPU", 1, 5 * MIB),
    ]  # fmt: skip
    assert placement.gpus[1].kv_bytes == 2 * MIB
    assert placement.device == "CUDA0 + CUDA1 + CPU (3 of 4 layers)"


def test_the_library_naming_layers_that_no_gpu_has_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, artifact: Artifact
) -> None:
    stub = install(monkeypatch, loading=[*layers("CPU", "CPU", "CPU"), *OFFLOADED])
    with pytest.raises(DeviceUnavailable, match="put none there"):
        Weights(artifact, plan())
    assert stub.freed == ["model"]


def test_fewer_layers_than_planned_are_said(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    install(monkeypatch, loading=[*layers("CPU", "CUDA0", "CUDA0"), *FULL[3:]])
    notices = Weights(artifact, plan()).notices
    assert [notice.code for notice in notices] == ["fewer-gpu-layers"]
    assert "2 of the 3 layers" in notices[0].message


def test_weights_that_the_gpu_has_no_kernel_for_are_said(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    weights = sum(tensor.nbytes for tensor in read_header(artifact.path).tensors) / MIB
    assert weights > 2
    loaded = "load_tensors:        CUDA0 model buffer size = {:8.2f} MiB"
    everything = layers(*["CUDA0"] * 9)
    install(monkeypatch, loading=[*everything, *lines(loaded.format(weights))])
    assert Weights(artifact, plan(gpu_layers=9)).notices == ()
    install(monkeypatch, loading=[*everything, *lines(loaded.format(0.1))])
    assert [notice.code for notice in Weights(artifact, plan(gpu_layers=9)).notices] == ["weights-on-cpu"]


def test_a_fused_kernel_that_the_gpu_does_not_have_is_said_once(
    monkeypatch: pytest.MonkeyPatch, artifact: Artifact
) -> None:
    # As a CUDA build logs it for heads of 32 (llama-context.cpp, resolve_fused_ops); its attention then is not fused, on the GPU
    texts = (
        "resolve_fused_ops: layer 0 is assigned to device CUDA0 but Flash Attention is assigned to device CPU (usually due to ...)",
        "resolve_fused_ops: Flash Attention not supported, set to disabled",
    )
    install(monkeypatch, loading=FULL, opening=[*CONTEXT, *lines(*texts, level=native.WARN)])
    weights = Weights(artifact, plan())
    weights.open_context(context_params())
    assert [notice.code for notice in weights.notices] == ["kernel-missing"]
    assert weights.notices[0].message.startswith("Flash Attention is off")


@pytest.mark.parametrize(
    ("splits", "said"),
    [("splits = 2", False), ("splits = 178 / 3", False), ("splits = 62", True), ("splits = 4 / 62", True)],
)
def test_attention_that_leaves_the_gpu_for_each_layer_is_said(
    monkeypatch: pytest.MonkeyPatch, artifact: Artifact, splits: str, said: bool
) -> None:
    # Read from a CUDA build: a KV cache of type iq4_nl, which its flash attention does not know, makes 62 splits of 31 layers
    graph = f"sched_reserve: graph: nodes = 1296, {splits}, input objects = 4, input tensors = 8"
    install(monkeypatch, loading=FULL, opening=[*CONTEXT, *lines(graph)])
    weights = Weights(artifact, plan(kv_type="iq4_nl"))
    weights.open_context(context_params())
    assert [notice.code for notice in weights.notices] == (["operation-on-cpu"] if said else [])


def test_layers_in_main_memory_may_have_many_splits(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    graph = "sched_reserve: graph: nodes = 1296, splits = 62, input objects = 4, input tensors = 8"
    install(monkeypatch, loading=[*layers("CPU", "CUDA0", "CUDA0"), *FULL[3:]], opening=[*CONTEXT, *lines(graph)])
    weights = Weights(artifact, plan(gpu_layers=2))
    weights.open_context(context_params())
    assert weights.notices == ()


def test_the_context_adds_its_buffers(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    install(monkeypatch, loading=FULL, opening=CONTEXT)
    weights = Weights(artifact, plan())
    before = weights.placement.gpus[0].total_bytes
    weights.open_context(context_params())
    assert weights.placement.gpus[0].total_bytes - before == 145 * MIB
    assert weights.placement.layers == 3


def test_the_cpu_gets_no_gpu_at_all_on_a_cuda_build(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    stub = install(monkeypatch, loading=layers("CPU", "CPU"))
    params = context_params()
    Weights(artifact, plan(device="cpu", gpu_layers=0)).open_context(params)
    assert (stub.devices, stub.model_params.n_gpu_layers) == ([], 0)
    assert (params.offload_kqv, params.op_offload) == (False, False)


def test_the_planned_gpus_get_the_planned_proportions(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    stub = install(monkeypatch, devices=(gpu(0), gpu(1), gpu(2), CPU_DEVICE), loading=layers("CUDA2", "CUDA0", "CUDA0"))
    Weights(artifact, plan(devices=("CUDA2", "CUDA0"), tensor_split=(1.0, 2.0)))
    assert (stub.devices, stub.split[:3], len(stub.split)) == ([3, 1], [1.0, 2.0, 0.0], 16)
    assert stub.model_params.split_mode == stub.LLAMA_SPLIT_MODE_LAYER


def test_all_cuda_devices_are_taken_when_the_plan_names_none(
    monkeypatch: pytest.MonkeyPatch, artifact: Artifact
) -> None:
    stub = install(monkeypatch, devices=(gpu(0), gpu(1), CPU_DEVICE), loading=layers("CUDA0", "CUDA1", "CUDA1"))
    Weights(artifact, plan())
    assert (stub.devices, stub.split) == ([1, 2], [])


def test_a_plan_for_cuda_without_a_device_fails_before_loading(
    monkeypatch: pytest.MonkeyPatch, artifact: Artifact
) -> None:
    stub = install(monkeypatch, devices=(CPU_DEVICE,))
    with pytest.raises(DeviceUnavailable):
        Weights(artifact, plan())
    assert stub.model_params is None


OOM = lines(
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9000.00 MiB on device 0: cudaMalloc failed: out of memory",
    level=native.ERROR,
)


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ([*OOM, *lines("llama_model_load: error loading model: unable to allocate CUDA0 buffer", level=4)], DoesNotFit),
        (lines("llama_model_load: error loading model: missing tensor 'blk.0.ffn_up.weight'", level=4), InvalidModel),
        ([], InvalidModel),
    ],
)
def test_a_load_that_fails_has_the_librarys_reason(
    monkeypatch: pytest.MonkeyPatch, artifact: Artifact, log: Sequence[LogLine], error: type[EdgeAIError]
) -> None:
    install(monkeypatch, loading=log, loads=False)
    with pytest.raises(error) as caught:
        Weights(artifact, plan())
    assert all(line.text in caught.value.message for line in log)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ([*OOM, *lines("llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache", level=4)],
         DoesNotFit),
        (lines("llama_init_from_model: K cache type q8_0 with block size 32 does not divide n_embd_head_k=20", level=4), UsageError),
        (lines("llama_init_from_model: failed to initialize the context: quantized V cache was requested, but this needs Flash Attention",
               level=4), UsageError),
        (lines("llama_init_from_model: failed to initialize the context: failed to initialize CUDA0 backend", level=4), EngineCrashed),
    ],
)  # fmt: skip
def test_a_context_that_fails_is_typed_by_its_reason(
    monkeypatch: pytest.MonkeyPatch, artifact: Artifact, log: Sequence[LogLine], error: type[EdgeAIError]
) -> None:
    stub = install(monkeypatch, loading=FULL, opening=log, opens=False)
    weights = Weights(artifact, plan())
    with pytest.raises(error):
        weights.open_context(context_params())
    weights.free()
    weights.free()
    assert stub.freed == ["model"]


# ---- the real library


def test_a_real_load_is_read_back(artifact: Artifact) -> None:
    weights = Weights(artifact, plan(device="cpu", gpu_layers=0))
    try:
        params = weights.lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 256
        context = weights.open_context(params)
        weights.lib.llama_free(context)
        placement = weights.placement
    finally:
        weights.free()
    tensors = read_header(artifact.path).tensors
    meta = artifact.metadata
    blocks = meta[f"{artifact.arch}.block_count"]
    head = meta[f"{artifact.arch}.embedding_length"] // meta[f"{artifact.arch}.attention.head_count"]
    kv = blocks * 256 * meta[f"{artifact.arch}.attention.head_count_kv"] * head * 2 * 2  # K and V, two bytes each
    assert (placement.backend, placement.layers, placement.gpus) == ("cpu", blocks + 1, ())
    assert placement.cpu.kv_bytes == pytest.approx(kv, abs=6000)
    assert placement.cpu.mapped_bytes + placement.cpu.weights_bytes == pytest.approx(
        sum(tensor.nbytes for tensor in tensors), rel=0.02
    )
    assert placement.cpu.compute_bytes > 0


def test_two_models_loaded_at_once_do_not_mix_their_logs(artifact: Artifact) -> None:
    found: list[Placement] = []
    start = threading.Barrier(4)

    def load() -> None:
        start.wait(10)
        weights = Weights(artifact, plan(device="cpu", gpu_layers=0))
        found.append(weights.placement)
        weights.free()

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({placement.shares for placement in found}) == 1


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(DeviceUnavailable, match=r"no device 'CUDA9', only .*CPU"):
        native.device_list(["CUDA9"])


def test_no_devices_are_an_empty_list_and_not_no_list() -> None:
    assert list(native.device_list([])) == [None]


@pytest.mark.parametrize(
    ("code", "error"),
    [(-2, DoesNotFit), (1, EngineCrashed), (-1, EngineCrashed), (-3, EngineCrashed), (-9, EngineCrashed)],
)
def test_codes_of_a_decode_are_typed_and_have_the_librarys_words(code: int, error: type[EdgeAIError]) -> None:
    native._keep_log(native.ERROR, b"process_ubatch: failed to allocate graph\n", None)
    found = decode_error(code)
    assert type(found) is error
    assert "failed to allocate graph" in found.message
    assert found.hint
