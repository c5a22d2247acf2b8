"""Every family: what transformers computes is what libllama computes from the converted file."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.checkpoint import open_checkpoint
from converters.families import plan_model
from tests.families import PROMPT, VARIANTS, libllama_logits, make_variant, nmse, some_ids, torch_logits, write_f32

CAUSAL = sorted(VARIANTS)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the checkpoints go; each is made by the first test that needs it."""
    root = tmp_path_factory.mktemp("families é")
    return {name: root / name for name in VARIANTS}


def checkpoint_of(folders: dict[str, Path], name: str) -> Path:
    folder = folders[name]
    return folder if folder.exists() else make_variant(folder, VARIANTS[name])


@pytest.mark.parametrize("name", CAUSAL)
def test_prompt_and_cached_decode_give_the_logits_of_torch(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = checkpoint_of(folders, name)
    ids = some_ids(plan_model(open_checkpoint(folder)).vocab_size)
    expected = torch_logits(folder, ids)
    found = libllama_logits(write_f32(folder, tmp_path / "model é.gguf"), ids)
    assert nmse(expected[:PROMPT], found[:PROMPT]) < 1e-6
    assert nmse(expected[PROMPT:], found[PROMPT:]) < 1e-6
    assert (expected.argmax(-1) == found.argmax(-1)).all()
