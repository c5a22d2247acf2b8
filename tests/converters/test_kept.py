"""Encoded tensors that are kept for the next file: the same bytes, made once, never a part of them, and never too many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from converters.checkpoint import open_checkpoint
from converters.families import plan_model
from converters.gguf import write_model
from converters.kept import Kept
from converters.quantmap import plan_types
from converters.tokenizer import read_vocabulary

TINY = Path(__file__).parents[2] / "models" / "tiny"
PARTS = [b"abc", b"", b"defgh"]
SIZE = 8


class Maker:
    """Counts how often it is asked; breaks off after `until` parts."""

    def __init__(self, until: int = len(PARTS)) -> None:
        self.asked, self.until = 0, until

    def __call__(self) -> Iterator[memoryview]:
        self.asked += 1
        for part in PARTS[: self.until]:
            yield memoryview(part)
        if self.until < len(PARTS):
            raise OSError


def text(kept: Kept, make: Maker, name: str = "a.weight", kind: str = "Q4_K") -> bytes:
    return b"".join(kept.slabs(name, kind, SIZE, make))


def test_the_second_time_the_same_bytes_come_without_being_made(tmp_path: Path) -> None:
    kept, make = Kept(tmp_path, 100), Maker()
    assert [text(kept, make), text(kept, make)] == [b"abcdefgh"] * 2
    assert make.asked == 1


@pytest.mark.parametrize("other", [{"name": "b.weight"}, {"kind": "Q5_K"}])
def test_another_tensor_or_type_is_made(tmp_path: Path, other: dict[str, str]) -> None:
    kept, make = Kept(tmp_path, 100), Maker()
    text(kept, make)
    text(kept, make, **other)
    assert make.asked == 2


def test_what_was_broken_off_is_made_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 100)
    with pytest.raises(OSError):
        text(kept, Maker(until=1))
    assert text(kept, Maker()) == b"abcdefgh"


def test_no_more_is_kept_than_allowed(tmp_path: Path) -> None:
    kept, make = Kept(tmp_path, SIZE + SIZE // 2), Maker()
    for _ in range(2):
        text(kept, make), text(kept, make, kind="Q5_K")
    assert make.asked == 3
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == SIZE


def test_a_file_of_kept_tensors_is_the_one_that_was_encoded(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(TINY)
    plan = plan_model(checkpoint)
    vocabulary = read_vocabulary(checkpoint, plan.vocab_size)
    (tmp_path / "kept").mkdir()
    kept = Kept(tmp_path / "kept", 1 << 30)
    for number, quant in enumerate(("Q4_K_M", "Q5_K_M", "Q4_K_M")):
        write_model(tmp_path / f"{number}.gguf", plan, vocabulary, plan_types(plan, quant), {}, kept=kept)
    write_model(tmp_path / "plain.gguf", plan, vocabulary, plan_types(plan, "Q4_K_M"), {})
    assert (tmp_path / "2.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()
    assert (tmp_path / "0.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()
