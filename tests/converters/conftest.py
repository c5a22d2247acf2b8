"""The small checkpoint that most of these tests read and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import make
from tests.families import VARIANTS, Variants, make_variant


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped heads and untied embeddings, in a folder with a difficult name."""
    return make(tmp_path_factory.mktemp("source") / "a model é 模型")


@pytest.fixture(scope="session")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Variants:
    """Return the checkpoint of a row of VARIANTS, made by the first test that needs it; none is changed."""
    root = tmp_path_factory.mktemp("families é")

    def folder_of(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else make_variant(folder, VARIANTS[name])

    return folder_of
