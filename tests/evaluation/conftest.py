"""One small checkpoint, and torch imported once instead of once for each test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converters import tokenproof
from converters.tokenizer import Vocabulary
from converters.tokenproof import TokenProof
from tests.checkpoints import InProcessTorch, make


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped heads and untied embeddings, in a folder with a difficult name."""
    return make(tmp_path_factory.mktemp("source") / "a model é 模型")


@pytest.fixture(autouse=True)
def torch_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the torch reference in this process; tests/cli runs it as users do."""
    monkeypatch.setattr("edgeai.evaluation.passport.Child", InProcessTorch)


@pytest.fixture(autouse=True)
def vocabulary_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove a vocabulary that has been proved before at once; a changed one is proved again."""
    monkeypatch.setattr("converters.tokenproof.prove_vocabulary", remembered_proof)


PROVED: dict[object, TokenProof] = {}
PROVE = tokenproof.prove_vocabulary


def remembered_proof(vocabulary: Vocabulary, architecture: str) -> TokenProof:
    """Return the proof of an equal vocabulary, or make it."""
    key = (vocabulary.pre, vocabulary.tokens, vocabulary.types, vocabulary.merges, json.dumps(dict(vocabulary.spec)))
    if key not in PROVED:
        PROVED[key] = PROVE(vocabulary, architecture)
    return PROVED[key]
