"""Plans are decided before loading, never swap what was asked for, step down only what was left open, and refuse what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeai import memory
from edgeai.alternatives import smaller_file
from edgeai.artifact import Artifact
from edgeai.correction import read_correction, remember_correction
from edgeai.device import CPU, GPU, Device, Memory, NativeLibrary
from edgeai.errors import DeviceUnavailable, DoesNotFit, UsageError
from edgeai.native import BackendDevice
from edgeai.plan import DeviceChoice, LoadOptions, Plan, make_plan, other_plans
from edgeai.selftest import Verdict
from tests.sparse import decoder, imagine

GB = 10**9
CPU_DEVICE = BackendDevice(name="CPU", description="x", kind="cpu", memory_free=0, memory_total=0)
RTX = GPU(name="RTX", memory_total=8 << 30, memory_free=8 << 30, driver="580.1", compute_capability="8.9")


LLAMA = imagine(
    "m", *decoder("llama", layers=30, width=576, heads=9, kv_heads=3, inner=1536, vocab=49152, kind="Q4_0", tied=True)
)
"""The shape of SmolLM2-135M in Q4_0: 76 MB, and 23 kB of KV cache a token."""
BIG = imagine(
    "big",
    *decoder(
        "llama", layers=32, width=4096, heads=32, kv_heads=8, inner=14336, vocab=128256, kind="F16", context=131072
    ),
)
"""The shape of Llama-3.1-8B in F16: 16 GB in 33 layers, and 131 kB of KV cache a token."""
GEMMA: dict[str, Any] = {"layers": 26, "width": 1152, "heads": 4, "kv_heads": 1, "inner": 6912, "head_dim": 256}
WINDOWS = imagine(
    "windows", *decoder("gemma3", **GEMMA, vocab=262144, tied=True, kind="Q8_0", attention__sliding_window=512)
)
"""The shape of Gemma 3 1B."""
HEADS = [0, 0, 8, 0, 0, 8, 0, 0, 8, 0, 8, 0, 8, 0, 8, 0]
RECURRENT = imagine(
    "recurrent",
    *decoder("lfm2", layers=16, width=2048, heads=32, kv_heads=HEADS, inner=8192, conv=3, vocab=65536, tied=True),
)
"""The shape of LFM2: ten of its sixteen layers keep a state for each sequence."""


def machine(
    *vram: float,
    gpus: tuple[GPU, ...] | None = None,
    offload: bool | None = None,
    free: float = 8 * GB,
    bufts: bool = True,
) -> Device:
    """A machine with so many bytes free in its GPUs and in main memory."""
    cuda = tuple(
        BackendDevice(
            name=f"CUDA{at}", description=f"RTX {at}", kind="gpu", memory_free=round(size), memory_total=round(size)
        )
        for at, size in enumerate(vram)
    )
    found = gpus if gpus is not None else (RTX,) * len(vram)
    return Device(
        system="test",
        cpu=CPU(name="x", physical=4, logical=8, usable=8, quota=None, isa=()),
        memory=Memory(total=1 << 40, available=round(free), limit=None),
        gpus=found,
        gpu_problem=None if found else "no NVIDIA driver answers",
        library=NativeLibrary(
            path="", version="", features="", gpu_offload=bool(vram) if offload is None else offload, devices=(*cuda, CPU_DEVICE),
            verdict=Verdict(extra_bufts=bufts, reason=None if bufts else "died with SIGSEGV"),
        ),
    )  # fmt: skip


def plan(artifact: Artifact, device: Device, choice: DeviceChoice = "auto", **options: Any) -> Plan:
    return make_plan(artifact, device, LoadOptions(device=choice, **options))


def codes(made: Plan) -> list[str]:
    return [notice.code for notice in made.notices]


# ---- which device


def test_a_machine_without_a_gpu_loses_nothing_on_the_cpu() -> None:
    made = plan(LLAMA, machine())
    assert (made.device, made.gpu_layers, made.threads, made.context, codes(made)) == ("cpu", 0, 4, 8192, [])


def test_an_unused_gpu_is_said() -> None:
    made = plan(LLAMA, machine(gpus=(RTX,)))
    assert made.device == "cpu"
    assert codes(made) == ["cpu-fallback"]
    assert "without CUDA" in made.notices[0].message


def test_cuda_that_cannot_run_is_an_error_with_the_reason() -> None:
    for options in ({"device": "cuda"}, {"gpu_layers": 3}):
        with pytest.raises(DeviceUnavailable, match="no usable NVIDIA GPU") as caught:
            make_plan(LLAMA, machine(), LoadOptions(**options))  # type: ignore[arg-type]
        assert caught.value.exit_code == 6
        assert caught.value.hint


def test_cpu_stays_cpu_beside_a_working_gpu() -> None:
    for made in (plan(LLAMA, machine(8 * GB), "cpu"), plan(LLAMA, machine(8 * GB), gpu_layers=0)):
        assert (made.device, made.gpu_layers, codes(made)) == ("cpu", 0, [])


@pytest.mark.parametrize(("device", "layers"), [("cpu", 3), ("cuda", 0)])
def test_a_device_and_layers_that_exclude_each_other_are_refused(device: DeviceChoice, layers: int) -> None:
    with pytest.raises(UsageError, match="exclude"):
        LoadOptions(device=device, gpu_layers=layers)


# ---- how many layers


@pytest.mark.parametrize(
    ("vram", "layers", "split"),
    [
        ((24 * GB,), 33, ()),
        ((12 * GB,), 23, ()),
        ((4 * GB,), 6, ()),
        ((12 * GB, 12 * GB), 33, (24.0, 9.0)),
        ((4 * GB, 24 * GB), 33, ()),  # the second alone holds it all
        ((4 * GB, 8 * GB), 21, (7.0, 14.0)),
        ((12 * GB, 1 * GB), 23, ()),  # the output layer is too large for the second
        ((6 * GB, 6 * GB, 6 * GB), 32, (11.0, 11.0, 10.0)),
    ],
)
def test_as_many_layers_as_fit_go_on_the_gpus(vram: tuple[float, ...], layers: int, split: tuple[float, ...]) -> None:
    # By hand, in GB: a layer 0.436 and 0.034 of KV cache, the output layer 1.05, buffers 0.13; a GPU gives 96 % or all but 0.27.
    made = plan(BIG, machine(*vram, free=64 * GB))
    assert made.gpu_layers == layers
    assert made.tensor_split == split
    assert made.context == 8192
    assert codes(made) == ([] if layers == 33 else ["partial-offload"])


def test_no_gpu_gets_more_than_it_has_free() -> None:
    free = {"CUDA0": 5 * GB, "CUDA1": 9 * GB}
    for share in plan(BIG, machine(*free.values(), free=64 * GB)).placement.gpus:
        assert 0.8 * free[share.device] < share.total_bytes < free[share.device]


def test_one_layer_more_would_not_fit() -> None:
    device = machine(12 * GB, free=64 * GB)
    most = plan(BIG, device, ctx=8192, streams=1).gpu_layers
    assert plan(BIG, device, ctx=8192, streams=1, gpu_layers=most).gpu_layers == most
    with pytest.raises(DoesNotFit, match=r"RTX 0 has 12\.0 GB free"):
        plan(BIG, device, ctx=8192, streams=1, gpu_layers=most + 1)


def test_layers_that_were_asked_for_come_before_a_context_that_was_not() -> None:
    device = machine(12 * GB, free=64 * GB)
    made = plan(BIG, device, gpu_layers=plan(BIG, device).gpu_layers + 1)
    assert made.context < 8192
    assert "smaller-context" in codes(made)


def test_layers_that_were_asked_for_are_what_the_gpu_gets() -> None:
    assert plan(BIG, machine(24 * GB, free=64 * GB), gpu_layers=7).gpu_layers == 7
    assert plan(BIG, machine(24 * GB, free=64 * GB), gpu_layers=99).gpu_layers == 33


def test_a_forgotten_kv_cache_would_put_more_layers_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = machine(12 * GB, free=64 * GB)
    right = plan(BIG, device, ctx=32768).gpu_layers
    monkeypatch.setattr(memory, "_cache_bytes", lambda *_: 0)
    assert plan(BIG, device, ctx=32768).gpu_layers > right


def test_a_gpu_that_is_too_small_is_left_to_the_cpu_and_said() -> None:
    made = plan(LLAMA, machine(64_000_000))
    assert (made.device, made.gpu_layers, codes(made)) == ("cpu", 0, ["cpu-fallback"])
    with pytest.raises(DoesNotFit):
        plan(LLAMA, machine(64_000_000), "cuda")


def test_what_the_gpu_takes_is_not_needed_in_main_memory() -> None:
    assert plan(BIG, machine(24 * GB, free=3 * GB)).gpu_layers == 33
    with pytest.raises(DoesNotFit):
        plan(BIG, machine(12 * GB, free=3 * GB), ctx=8192)


# ---- how much room


def test_a_single_answer_takes_one_stream_and_no_kept_prompts() -> None:
    one, many = plan(LLAMA, machine(), needed=100), plan(LLAMA, machine())
    assert (one.streams, one.sequences, one.prefix_bytes, one.context) == (1, 2, 0, 512)
    assert (many.streams, many.kv_cells, many.context) == (8, 8192, 8192)
    assert many.sequences > many.streams + 1
    assert one.memory_bytes < many.memory_bytes


def test_streams_that_were_asked_for_get_contexts_of_their_own_where_memory_is_plentiful() -> None:
    plans = [plan(LLAMA, machine(free=free), streams=8) for free in (100 * GB, 20 * GB, 1 * GB)]
    assert (plans[0].unified, plans[0].kv_cells, plans[0].sequences) == (False, 9 * 8192, 9)
    assert (plans[1].unified, 8192 < plans[1].kv_cells < 8 * 8192) == (True, True)
    assert (plans[2].unified, plans[2].kv_cells) == (True, 8192)


def test_streams_and_a_context_that_were_both_asked_for_may_take_more() -> None:
    free = 40 * GB
    assert plan(LLAMA, machine(free=free), streams=8).unified
    assert not plan(LLAMA, machine(free=free), streams=8, ctx=8192).unified


def test_streams_share_their_cells_where_that_is_asked_for_or_there_is_a_state_instead() -> None:
    made = plan(LLAMA, machine(free=100 * GB), streams=8, kv_unified=True)
    assert (made.unified, made.kv_cells) == (True, 8 * 8192)
    assert plan(RECURRENT, machine(free=100 * GB), streams=4).unified


def test_windows_are_kept_whole_only_for_a_server_with_memory_to_spare() -> None:
    assert not plan(WINDOWS, machine()).swa_full
    assert plan(WINDOWS, machine(free=64 * GB), streams=4).swa_full
    assert not plan(WINDOWS, machine(free=64 * GB), streams=4, prefix_bytes=0).swa_full
    assert not plan(WINDOWS, machine(free=1.6 * GB), streams=4).swa_full


def test_a_recurrent_model_keeps_few_states() -> None:
    assert plan(RECURRENT, machine()).sequences < plan(LLAMA, machine()).sequences


@pytest.mark.parametrize("streams", [1, 8, 128])
def test_every_stream_has_a_sequence_and_every_sequence_an_output(streams: int) -> None:
    made = plan(LLAMA, machine(free=64 * GB), streams=streams)
    assert streams < made.sequences <= 256
    assert made.sequences <= made.outputs <= max(made.batch, made.sequences)


def test_a_budget_for_kept_prompts_must_be_free_too() -> None:
    made, without = (plan(LLAMA, machine(), streams=1, prefix_bytes=size) for size in (5_000_000, 0))
    assert (made.kv_cells, made.prefix_bytes) == (8192, 5_000_000)
    assert made.needed_bytes == pytest.approx(without.needed_bytes + 5_000_000, abs=1e6)  # and a row of logits


def test_nothing_is_kept_where_answers_must_not_depend_on_others() -> None:
    assert plan(LLAMA, machine(), deterministic=True).prefix_bytes == 0


def test_answers_that_must_not_depend_on_others_have_cells_of_their_own() -> None:
    for free, streams in ((100 * GB, 8), (40 * GB, 4), (1 * GB, 1)):
        made = plan(LLAMA, machine(free=free), deterministic=True)
        assert (made.streams, made.kv_cells) == (streams, (streams + 1) * 8192)
    assert plan(LLAMA, machine(), deterministic=True, streams=8).kv_cells == 9 * 8192


def test_a_context_beyond_training_is_said() -> None:
    assert codes(plan(LLAMA, machine(), ctx=10_000)) == ["context-beyond-training"]


def test_the_trained_context_is_the_default_when_it_is_small() -> None:
    assert make_plan(replace(LLAMA, context=256), machine(), LoadOptions()).context == 256


def test_a_context_is_no_larger_than_what_can_be_needed() -> None:
    assert [plan(LLAMA, machine(), needed=needed).context for needed in (10, 1100, 100_000)] == [512, 1280, 8192]
    assert plan(LLAMA, machine(), needed=10, ctx=4096).context == 4096


def test_a_library_that_crashes_with_extra_buffers_runs_without_and_says_so() -> None:
    made = plan(LLAMA, machine(bufts=False))
    assert not made.extra_bufts
    assert codes(made) == ["no-extra-buffer-types"]


# ---- what does not fit


@pytest.mark.parametrize(("free", "context"), [(0.5, 8192), (0.3, 8192), (0.25, 4096), (0.2, 2048), (0.16, 1024)])
def test_the_default_context_steps_down_before_it_is_refused(free: float, context: int) -> None:
    made = plan(LLAMA, machine(free=free * GB))
    assert abs(made.context.bit_length() - context.bit_length()) <= 1
    assert made.memory_bytes <= free * GB
    assert ("smaller-context" in codes(made)) == (made.context < 8192)


def test_a_context_that_was_asked_for_is_never_made_smaller() -> None:
    with pytest.raises(DoesNotFit, match=r"at context 8192 needs 0\.3"):
        plan(LLAMA, machine(free=0.2 * GB), ctx=8192)


def test_what_does_not_fit_is_refused_with_three_things_that_do() -> None:
    device, options = machine(free=0.2 * GB), LoadOptions(ctx=8192, kv_type="f16")
    with pytest.raises(DoesNotFit) as caught:
        make_plan(LLAMA, device, options)
    assert caught.value.exit_code == 5
    others = other_plans(LLAMA, device, options, 8192)
    assert len(others) == 3
    for other in others:
        assert other.text in (caught.value.hint or "")
        file = smaller_file(LLAMA, other.quant) if other.quant else LLAMA
        assert file
        assert make_plan(file, device, replace(options, **other.change)).needed_bytes == other.needs_bytes < 0.2 * GB


def test_no_context_beyond_training_is_proposed() -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan(LLAMA, machine(), ctx=1_000_000)
    assert (caught.value.hint or "").startswith("these fit: `ctx=8192` ")


def test_a_gpu_that_was_asked_for_and_is_too_small_leads_to_the_cpu() -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan(BIG, machine(0.3 * GB, free=64 * GB), "cuda")
    assert "`device=cpu`" in (caught.value.hint or "")


def test_fewer_streams_are_proposed_where_they_are_what_is_too_much() -> None:
    need = plan(RECURRENT, machine(), streams=1, ctx=512).memory_bytes
    with pytest.raises(DoesNotFit) as caught:
        plan(RECURRENT, machine(free=need + 2_000_000), streams=128, ctx=512)
    assert "`streams=1`" in (caught.value.hint or "")


def test_what_never_fits_names_no_option() -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan(BIG, machine(free=1_000_000))
    assert "--" not in (caught.value.hint or "")


def test_a_smaller_quant_is_smaller_or_not_proposed() -> None:
    q4 = smaller_file(BIG, "q4_k_m")
    assert q4
    assert q4.size_bytes == pytest.approx(BIG.params * 4.85 / 8, rel=0.02)
    assert smaller_file(q4, "q8_0") is None


def test_automatic_streams_become_one_before_the_context_shrinks() -> None:
    need = plan(RECURRENT, machine(), ctx=8192).memory_bytes
    made = plan(RECURRENT, machine(free=need - 2_000_000))
    assert (made.streams, made.context, codes(made)) == (1, 8192, ["fewer-streams"])


def test_heads_that_are_no_whole_blocks_refuse_a_quantized_cache(tmp_path: Path) -> None:
    model = decoder("llama", layers=1, width=240, heads=10, kv_heads=10, inner=256, kind="F16")
    artifact = imagine("m", *model)
    with pytest.raises(UsageError, match="'q8_0'"):
        plan(artifact, machine(), kv_type="q8_0")


@pytest.mark.parametrize(
    "options", [{"ctx": 0}, {"ctx": -5}, {"threads": 0}, {"threads": 100_000}, {"needed": 0}, {"isolated": 1}]
)
def test_impossible_values_are_usage_errors(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        plan(LLAMA, machine(), **options)


# ---- what was measured


def test_a_measurement_is_remembered_for_this_model_on_this_machine(tmp_path: Path) -> None:
    remember_correction(tmp_path, LLAMA, machine(), {"CPU": 1.2})
    assert read_correction(tmp_path, LLAMA, machine()) == {"CPU": 1.2}
    assert read_correction(tmp_path, BIG, machine()) == {}
    assert read_correction(tmp_path, LLAMA, machine(8 * GB)) == {}


@pytest.mark.parametrize(("ratio", "kept"), [(40.0, 1.0), (0.001, 1.0), (1.1, 1.1), (0.9, 0.9)])
def test_a_measurement_changes_a_prediction_within_bounds(tmp_path: Path, ratio: float, kept: float) -> None:
    remember_correction(tmp_path, LLAMA, machine(), {"CPU": ratio})
    correction = read_correction(tmp_path, LLAMA, machine())
    plain, corrected = (make_plan(LLAMA, machine(), LoadOptions(), correction=given) for given in ({}, correction))
    assert corrected.memory_bytes == pytest.approx(plain.memory_bytes * kept, rel=1e-6)
    assert any("as measured here before" in why for why in corrected.why) == (kept != 1)


@pytest.mark.parametrize(("written", "read"), [(99, 1.5), (0.01, 0.8), (1.2, 1.2)])
def test_a_memory_that_was_tampered_with_is_held_within_bounds(tmp_path: Path, written: float, read: float) -> None:
    remember_correction(tmp_path, LLAMA, machine(), {"CPU": 1.1})
    file = tmp_path / "memory.json"
    file.write_text(file.read_text().replace("1.1", str(written)))
    assert read_correction(tmp_path, LLAMA, machine()) == {"CPU": read}


@pytest.mark.parametrize("text", ["", "[]", '{"x": 3}', "nonsense"])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.json").write_text(text)
    assert read_correction(tmp_path, LLAMA, machine()) == {}


def test_what_is_loaded_beside_the_model_counts() -> None:
    plain = plan(LLAMA, machine())
    beside = make_plan(LLAMA, machine(), LoadOptions(), beside_bytes=10**8)
    assert beside.memory_bytes - plain.memory_bytes == 10**8


def test_a_model_of_a_short_context_is_offered_its_own_and_nothing_twice() -> None:
    short = imagine("s", *decoder("llama", layers=4, width=256, heads=4, kv_heads=4, inner=512, context=256))
    with pytest.raises(DoesNotFit) as caught:
        make_plan(short, machine(), LoadOptions(ctx=10**8))
    offers = (caught.value.hint or "").removeprefix("these fit: ").split("; ")
    assert offers[0].startswith("`ctx=256` ")
    assert len({frozenset(offer.split()) for offer in offers}) == len(offers) == 3
    assert "ctx=512" not in (caught.value.hint or "")


def test_what_fits_only_without_kept_prompts_and_with_a_smaller_context_is_proposed() -> None:
    least = plan(LLAMA, machine(), ctx=512, streams=1, prefix_bytes=0).needed_bytes
    with pytest.raises(DoesNotFit) as refused:
        plan(LLAMA, machine(free=round(least * 1.02)), ctx=4096, streams=1, prefix_bytes=500_000_000)
    assert "`prefix_bytes=0` `ctx=512`" in str(refused.value.hint)


@pytest.mark.parametrize("name", ["draft", "kv_type"])
def test_options_that_do_nothing_for_an_embedding_model_are_refused(name: str) -> None:
    given: dict[str, Any] = {"draft": Path("x.gguf"), "kv_type": "q8_0"}
    embedder = imagine("e", *decoder("llama", layers=4, width=256, heads=4, kv_heads=4, inner=512, pooling_type=3))
    with pytest.raises(UsageError, match=f"{name} .* is not possible: .* is an embedding model"):
        plan(embedder, machine(), **{name: given[name]})
