"""Plans are decided before loading, never swap what was asked for, and refuse what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeai.artifact import Artifact
from edgeai.device import CPU, GPU, Device, Memory, NativeLibrary
from edgeai.errors import DeviceUnavailable, DoesNotFit, UsageError
from edgeai.native import BackendDevice
from edgeai.plan import DeviceChoice, LoadOptions, Plan, estimate_memory, make_plan
from edgeai.selftest import Verdict

CPU_DEVICE = BackendDevice(name="CPU", description="x", kind="cpu", memory_free=0, memory_total=0)
CUDA_DEVICE = BackendDevice(name="CUDA0", description="RTX", kind="gpu", memory_free=8 << 30, memory_total=8 << 30)
RTX = GPU(name="RTX", memory_total=8 << 30, memory_free=8 << 30, driver="580.1", compute_capability="8.9")

LLAMA = Artifact(
    path=Path("m.gguf"), name="m", format="gguf", arch="llama", params=135_000_000, context=8192, quant="Q4_0", bpw=4.5, vocab=49152, bos=1,
    eos=2, template=None, size_bytes=100_000_000,
    metadata={"llama.block_count": 30, "llama.attention.head_count": 9, "llama.attention.head_count_kv": 3, "llama.embedding_length": 576},
)  # fmt: skip


def machine(
    *, gpus: tuple[GPU, ...] = (), offload: bool = False, cuda: bool = False, free: int = 8 << 30, bufts: bool = True
) -> Device:
    return Device(
        system="test",
        cpu=CPU(name="x", physical=4, logical=8, usable=8, quota=None, isa=()),
        memory=Memory(total=16 << 30, available=free, limit=None),
        gpus=gpus,
        gpu_problem=None if gpus else "no NVIDIA driver answers",
        library=NativeLibrary(
            path="", version="", features="", gpu_offload=offload, devices=(CPU_DEVICE, CUDA_DEVICE) if cuda else (CPU_DEVICE,),
            verdict=Verdict(extra_bufts=bufts, reason=None if bufts else "died with SIGSEGV"),
        ),
    )  # fmt: skip


def plan(device: Device, choice: DeviceChoice = "auto", **options: Any) -> Plan:
    return make_plan(LLAMA, device, LoadOptions(device=choice, **options))


def codes(made: Plan) -> list[str]:
    return [notice.code for notice in made.notices]


def test_a_machine_without_a_gpu_loses_nothing_on_the_cpu() -> None:
    made = plan(machine())
    assert (made.device, made.gpu_layers, made.threads, made.context, codes(made)) == ("cpu", 0, 4, 8192, [])


def test_an_unused_gpu_is_said() -> None:
    made = plan(machine(gpus=(RTX,)))
    assert made.device == "cpu"
    assert codes(made) == ["cpu-fallback"]
    assert "without CUDA" in made.notices[0].message


def test_a_working_gpu_gets_every_layer_and_the_output() -> None:
    made = plan(machine(gpus=(RTX,), offload=True, cuda=True))
    assert (made.device, made.gpu_layers) == ("cuda", 31)


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (machine(), "no usable NVIDIA GPU"),
        (machine(gpus=(RTX,)), "built without CUDA"),
        (machine(gpus=(RTX,), offload=True), "finds no GPU"),
    ],
)
def test_cuda_that_cannot_run_is_an_error_with_the_reason(device: Device, reason: str) -> None:
    with pytest.raises(DeviceUnavailable, match=reason) as caught:
        plan(device, "cuda")
    assert caught.value.exit_code == 6
    assert caught.value.hint


def test_a_gpu_that_is_too_small_is_left_to_the_cpu_and_said() -> None:
    small = replace(
        machine(gpus=(RTX,), offload=True),
        library=replace(machine(offload=True).library, devices=(replace(CUDA_DEVICE, memory_free=64_000_000),)),
    )
    made = plan(small)
    assert (made.device, made.gpu_layers, codes(made)) == ("cpu", 0, ["cpu-fallback"])
    with pytest.raises(DoesNotFit):
        plan(small, "cuda")


def test_cpu_stays_cpu_beside_a_working_gpu() -> None:
    made = plan(machine(gpus=(RTX,), offload=True, cuda=True), "cpu")
    assert (made.device, made.gpu_layers, codes(made)) == ("cpu", 0, [])


def test_a_library_that_crashes_with_extra_buffers_runs_without_and_says_so() -> None:
    made = plan(machine(bufts=False))
    assert not made.extra_bufts
    assert codes(made) == ["no-extra-buffer-types"]


def test_kv_cache_is_counted_by_hand_arithmetic() -> None:
    grown = estimate_memory(LLAMA, 8192) - estimate_memory(LLAMA, 4096)
    assert grown == 30 * 4096 * 3 * (64 + 64) * 2


def test_what_does_not_fit_is_refused_with_a_context_that_does() -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan(machine(free=200_000_000))
    assert caught.value.exit_code == 5
    assert caught.value.hint == "use --ctx 2048"
    assert plan(machine(free=200_000_000), ctx=2048).fits


def test_what_never_fits_names_no_context() -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan(machine(free=1_000_000))
    assert "--ctx" not in (caught.value.hint or "")


def test_a_context_beyond_training_is_said() -> None:
    assert codes(plan(machine(), ctx=10_000)) == ["context-beyond-training"]


def test_the_trained_context_is_the_default_when_it_is_small() -> None:
    assert make_plan(replace(LLAMA, context=256), machine(), LoadOptions()).context == 256


def test_a_context_is_no_larger_than_what_can_be_needed() -> None:
    assert [plan(machine(), needed=needed).context for needed in (10, 1100, 100_000)] == [512, 1280, 8192]
    assert plan(machine(), needed=10, ctx=4096).context == 4096


@pytest.mark.parametrize("options", [{"ctx": 0}, {"ctx": -5}, {"threads": 0}, {"threads": 100_000}])
def test_impossible_values_are_usage_errors(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        plan(machine(), **options)
