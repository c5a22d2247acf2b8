"""What proves too large when it is loaded becomes smaller, where that was left open; what was really taken is remembered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeai.correction import ratios
from edgeai.engines import opening
from edgeai.engines.opening import beside_bytes, load_engine, open_engine, step_down
from edgeai.errors import DoesNotFit
from edgeai.paths import home
from edgeai.plan import LoadOptions, Plan, make_plan
from edgeai.shape import shape_of
from tests.sparse import decoder, imagine
from tests.test_plan import BIG, GB, LLAMA, machine

TOO_MUCH = DoesNotFit("unable to allocate CPU buffer", hint="use a smaller `ctx`")


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Have contexts of more than 1000 tokens fail to load; return the plans that were tried."""
    tried: list[Plan] = []

    def load(_artifact: object, plan: Plan, _wanted: LoadOptions, *, vetted: bool) -> Any:
        tried.append(plan)
        if plan.context > 1000:
            raise TOO_MUCH
        return SimpleNamespace(plan=plan, placement=plan.placement)

    monkeypatch.setattr(opening, "_load", load)
    return tried


def test_automatic_values_step_down_until_loading_works(tight: list[Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "open_model", lambda _path: LLAMA)
    engine = load_engine(LLAMA.path, LoadOptions(), vetted=True)
    assert [plan.context for plan in tight] == sorted({plan.context for plan in tight}, reverse=True)
    assert engine.plan.context <= 1000
    assert [notice.code for notice in engine.plan.notices][-1] == "smaller-plan"
    assert "unable to allocate" in engine.plan.notices[-1].message


def test_explicit_values_fail_as_they_are(tiny_gguf: Path, tight: list[Plan]) -> None:
    with pytest.raises(DoesNotFit, match="unable to allocate"):
        load_engine(tiny_gguf, LoadOptions(ctx=2048, streams=1), vetted=True)
    assert {plan.context for plan in tight} == {2048}


def test_layers_leave_the_gpu_where_it_proves_too_small() -> None:
    device, options = machine(24 * GB, free=64 * GB), LoadOptions()
    first = make_plan(BIG, device, options)
    second = step_down(BIG, device, options, first, TOO_MUCH)
    assert second
    assert (first.gpu_layers, second.context) == (33, 8192)
    assert 10 < second.gpu_layers < 33
    assert step_down(BIG, device, LoadOptions(ctx=8192, streams=1, gpu_layers=33), first, TOO_MUCH) is None


def test_what_was_taken_is_remembered_for_the_next_plan(
    tiny_gguf: Path, tight: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LoadOptions(ctx=512)
    monkeypatch.setattr(opening, "ratios", lambda *_: {"CPU": 1.25})
    load_engine(tiny_gguf, options, vetted=True)
    assert "1.25" in (home() / "cache" / "memory.json").read_text()
    load_engine(tiny_gguf, options, vetted=True)
    assert tight[-1].memory_bytes == pytest.approx(tight[0].memory_bytes * 1.25)


def test_a_ratio_is_of_buffers_and_of_what_is_none_of_them() -> None:
    plan = make_plan(BIG, machine(free=64 * GB), LoadOptions(ctx=512))
    share = plan.placement.shares[0]
    more = replace(share, kv_bytes=share.kv_bytes + 10**9)
    assert ratios(plan, plan.placement) == {"CPU": 1.0}
    expected = 1 + 10**9 / (share.total_bytes + plan.overhead_bytes)
    assert ratios(plan, replace(plan.placement, shares=(more,))) == {"CPU": pytest.approx(expected)}


def test_adapters_and_a_draft_model_count(tiny_gguf: Path, tmp_path: Path, tight: list[Plan]) -> None:
    adapter = tmp_path / "lora.gguf"
    adapter.write_bytes(bytes(5_000_000))
    load_engine(tiny_gguf, LoadOptions(ctx=512), vetted=True)
    load_engine(tiny_gguf, LoadOptions(ctx=512, adapters={"a": adapter}), vetted=True)
    load_engine(tiny_gguf, LoadOptions(ctx=512, draft=tiny_gguf), vetted=True)
    plain, adapted, drafted = (plan.memory_bytes for plan in tight)
    assert adapted - plain == 5_000_000
    assert drafted - plain > tiny_gguf.stat().st_size * 0.8


def test_a_model_without_layers_is_planned_without_an_error() -> None:
    keys, tensors = decoder("llama", layers=1, width=256, heads=4, kv_heads=4, inner=512)
    artifact = imagine("odd", keys | {"llama.block_count": 0}, tensors)
    assert shape_of(artifact).layers == ()
    assert make_plan(artifact, machine(), LoadOptions()).memory_bytes > 0


@pytest.mark.parametrize("beside", [0, 500_000_000])
def test_a_smaller_plan_counts_what_is_beside_it_and_what_was_measured(
    beside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "beside_bytes", lambda _wanted: beside)
    device, correction = machine(free=8 * GB), {"CPU": 1.3}
    first = make_plan(LLAMA, device, LoadOptions(), correction=correction, beside_bytes=beside)
    second = step_down(LLAMA, device, LoadOptions(), first, TOO_MUCH)
    assert second
    assert second.correction == correction
    assert second.context < first.context
    assert second.memory_bytes < first.memory_bytes


def test_a_draft_model_is_planned_as_it_was_counted(tiny_gguf: Path) -> None:
    wanted = LoadOptions(ctx=512, streams=4, draft=tiny_gguf)
    engine = open_engine(tiny_gguf, ctx=512, streams=4, draft=tiny_gguf)
    try:
        drafting = engine._draft.handle  # type: ignore[attr-defined]
        assert (drafting.plan.unified, drafting.plan.kv_cells) == (True, 256)  # trained on no more
        planned = drafting.plan.needed_bytes
    finally:
        engine.close()
    assert planned == pytest.approx(beside_bytes(wanted), rel=0.1)
