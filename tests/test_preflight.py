"""The verdict before a conversion."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from converters.checkpoint import open_checkpoint
from converters.families import ModelPlan, plan_model
from converters.quantmap import QUANTS, plan_types
from converters.tokenizer import Vocabulary, read_vocabulary
from edgeai import preflight
from edgeai.errors import DoesNotFit
from edgeai.preflight import GRID, Need, duration, encode_seconds, examine, seconds_per_item
from tests.checkpoints import make

Model = tuple[ModelPlan, Vocabulary]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    checkpoint = open_checkpoint(make(tmp_path_factory.mktemp("preflight") / "m é", dtype="bfloat16"))
    plan = plan_model(checkpoint)
    return plan, read_vocabulary(checkpoint, plan.vocab_size)


def verdict(model: Model, quant: str = "Q8_0") -> preflight.Preflight:
    plan, vocabulary = model
    disk = Need(needed=1, free=2)
    return examine(plan, vocabulary, plan_types(plan, quant), disk=disk, proof_positions=100, export_bytes=1 << 20)


def test_the_verdict_counts_what_is_stored_and_what_will_be(model: Model) -> None:
    plan, _ = model
    found = verdict(model)
    assert found.source_bytes == 2 * plan.parameters == 2 * found.parameters
    assert found.source_types == {"BF16": len(plan.tensors)}
    assert found.file_bytes == plan_types(plan, "Q8_0").nbytes


def test_the_verdict_fits_in_two_lines(model: Model) -> None:
    first, second = verdict(model).lines(lambda count: f"<{count:.0f}>")
    assert "llama" in first
    assert "Q8_0" in second
    assert "about" in second


def test_a_search_for_types_takes_its_time_and_its_file_has_at_most_the_size(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, vocabulary = model
    quantmap, disk = replace(plan_types(plan, "F16"), mixed=True), Need(needed=1, free=2)
    monkeypatch.setattr(preflight, "product_flops", lambda: 1e11)
    found = examine(plan, vocabulary, quantmap, disk=disk, proof_positions=9, export_bytes=0, search_positions=100_000)
    assert found.seconds["search"] == pytest.approx(2 * plan.parameters * 100_000 / (1e11 * preflight.USED_PART))
    assert "at most" in found.lines(str)[1]
    assert "at most" not in verdict(model).lines(str)[1]


def test_too_little_memory_is_refused_before_the_work(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "memory_facts", lambda: SimpleNamespace(available=1000))
    with pytest.raises(DoesNotFit, match="memory"):
        verdict(model)


def test_a_search_that_takes_more_memory_than_is_free_is_refused_before_the_work(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, vocabulary = model
    quantmap, disk = replace(plan_types(plan, "F16"), mixed=True), Need(needed=1, free=2)
    monkeypatch.setattr(preflight, "memory_facts", lambda: SimpleNamespace(available=2 << 30))
    found = examine(
        plan, vocabulary, quantmap, disk=disk, proof_positions=9, export_bytes=0, search_memory=(2 << 30) - 1
    )
    assert found.memory.needed == (2 << 30) - 1
    with pytest.raises(DoesNotFit, match=r"needs 2\.15 GB of memory, and 2\.15 GB are free"):
        examine(plan, vocabulary, quantmap, disk=disk, proof_positions=9, export_bytes=0, search_memory=(2 << 30) + 1)


def test_types_with_slow_tables_are_estimated_without_building_them(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(preflight, "seconds_per_item", lambda kind: asked.append(kind) or 1e-6)
    plan, _ = model
    base = plan_types(plan, "Q8_0")
    assert encode_seconds(plan, base) > 0
    assert set(asked) <= set(base.counts())
    monkeypatch.undo()
    for kind, (_start, factor) in GRID.items():
        assert seconds_per_item(kind) > 0, kind
        assert factor >= 1


def test_every_type_that_can_be_asked_for_has_an_estimate() -> None:
    for base in set(QUANTS.values()):
        assert 0 < seconds_per_item(base) < 1e-3, base


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "about 1 s"), (61, "about 61 s"), (600, "about 10 min"), (7200, "about 2.0 h")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
