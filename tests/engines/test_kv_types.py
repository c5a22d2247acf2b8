"""The KV cache in fewer bits: really smaller, refused where heads have no whole blocks, and answers that stay close."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeai.errors import UsageError
from edgeai.model import Model, open_engine
from tests.families import VARIANTS, make_variant, write_f32

TEXT = (
    "A Python list is an ordered collection of items, and it can be changed in place: items are appended, removed, sorted and "
    "sliced. A tuple is ordered too, and cannot be changed once it has been made. A dictionary maps keys to values."
)
BITS = {
    "f32": 32.0,
    "f16": 16.0,
    "bf16": 16.0,
    "q8_0": 8.5,
    "q5_1": 6.0,
    "q5_0": 5.5,
    "q4_1": 5.0,
    "q4_0": 4.5,
    "iq4_nl": 4.5,
}
"""Bits of a number in each type, its scales included (ggml-common.h)."""


def scored(path: Path, kind: str | None) -> tuple[int, list[float]]:
    """Return the bytes of the KV cache, as libllama says them, and the log-probabilities of TEXT."""
    with Model(open_engine(path, threads=2, ctx=256, streams=1, kv_type=kind)) as model:
        placement = model.engine.placement  # type: ignore[attr-defined]
        return sum(share.kv_bytes for share in placement.shares), model.score(TEXT)


@pytest.mark.real
def test_a_cache_of_fewer_bits_is_smaller_by_as_much_and_answers_stay_close(smollm2_path: Path) -> None:
    whole, reference = scored(smollm2_path, "f16")
    worst = {"q8_0": 0.12, "q4_0": 0.6}  # measured 0.07 and about four times that
    for kind, limit in worst.items():
        size, found = scored(smollm2_path, kind)
        assert size == pytest.approx(whole * BITS[kind] / 16, rel=0.01)
        difference = np.abs(np.array(found) - reference)
        assert 0 < difference.mean() < limit, kind


def test_heads_without_whole_blocks_are_refused_before_loading(tmp_path: Path) -> None:
    path = write_f32(make_variant(tmp_path / "m", VARIANTS["llama"]), tmp_path / "m.gguf")  # heads of 16
    with pytest.raises(UsageError, match=r"kv_type 'q8_0' is not possible.*16 numbers"):
        open_engine(path, kv_type="q8_0")
    with Model(open_engine(path, kv_type="bf16", threads=1)) as model:
        assert model.complete("a", max_tokens=2).text is not None
