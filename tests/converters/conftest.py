"""The small checkpoint that most of these tests read and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import make


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped heads and untied embeddings, in a folder with a difficult name."""
    return make(tmp_path_factory.mktemp("source") / "a model é 模型")
