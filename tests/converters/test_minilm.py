"""A real embedding model: what sentence-transformers computes from MiniLM's folder is what libllama computes from the converted file."""

from __future__ import annotations

import ctypes
import re
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from converters.checkpoint import open_checkpoint
from converters.families import plan_model
from converters.gguf import write_model
from converters.quantmap import plan_types
from converters.tokenizer import read_vocabulary
from tests.conftest import Record
from tests.families import fill, libllama_vectors, load, nmse, torch_vectors

F32 = npt.NDArray[np.float32]
SENTENCES, LENGTHS = 200, range(40, 160)
"""How many sentences, and how many characters they have. sentence-transformers cuts this model's texts after 256 tokens."""


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """Real prose, which every Python brings along, and some texts that are no English."""
    from pydoc_data.topics import topics

    text = re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics)))
    found = [part for part in re.split(r"(?<=[.!?]) (?=[A-Z])", text) if len(part) in LENGTHS]
    other = [
        "Ein ganzer Satz über Herrn Müller & seine Söhne in Zürich.",
        "A naïve café charged 123,456.78 € for HELLO World!!!",
        "日本語の文は、空白なしで書かれます。",
        "Энергия равна массе, умноженной на квадрат скорости света.",
    ]
    return [*other, *found[:: len(found) // SENTENCES]][:SENTENCES]


@pytest.fixture(scope="module")
def expected(minilm_path: Path, sentences: list[str]) -> F32:
    """Return sentence-transformers' vectors of the sentences, (sentences, 384), each of length 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(minilm_path), device="cpu", local_files_only=True)
        vectors: F32 = model.encode(sentences, batch_size=16, normalize_embeddings=True)
    return vectors


def convert(folder: Path, path: Path, quant: str) -> Path:
    checkpoint = open_checkpoint(folder)
    plan = plan_model(checkpoint)
    write_model(path, plan, read_vocabulary(checkpoint, plan.vocab_size), plan_types(plan, quant), {})
    return path


def embed(path: Path, texts: list[str]) -> F32:
    """Tokenize and embed each text in libllama, with the pooling of the file; (texts, hidden), each of length 1."""
    from llama_cpp import llama_cpp as lib

    model = load(path)
    vocabulary = lib.llama_model_get_vocab(model)
    settings = lib.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = 2
    settings.embeddings = True
    context = lib.llama_init_from_model(model, settings)
    batch, room = lib.llama_batch_init(512, 0, 1), (lib.llama_token * 512)()
    rows = []
    for text in texts:
        raw = text.encode()
        count = lib.llama_tokenize(vocabulary, raw, len(raw), room, 512, True, False)
        fill(batch, list(room[:count]), 0)
        assert lib.llama_encode(context, batch) == 0
        found = ctypes.cast(lib.llama_get_embeddings_seq(context, 0), ctypes.POINTER(ctypes.c_float))
        rows.append(np.ctypeslib.as_array(found, (lib.llama_model_n_embd(model),)).copy())
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    vectors: F32 = np.stack(rows)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.real
@pytest.mark.parametrize(("quant", "mean", "worst"), [("F32", 0.9999, 0.9999), ("Q8_0", 0.999, 0.998)])
def test_every_sentence_gets_the_vector_of_sentence_transformers(
    minilm_path: Path,
    sentences: list[str],
    expected: F32,
    tmp_path: Path,
    quant: str,
    mean: float,
    worst: float,
    record_proof: Record,
) -> None:
    assert len(sentences) == SENTENCES
    cosines = (embed(convert(minilm_path, tmp_path / "minilm.gguf", quant), sentences) * expected).sum(axis=1)
    assert cosines.mean() >= mean
    assert cosines.min() >= worst  # Q8_0: the runtime rounds activations to 8 bits too; the weights alone give 0.9996
    record_proof(
        model="BertModel",
        source="safetensors",
        variant="all-MiniLM-L6-v2",
        proof=f"{quant} 1 - cosine of 200 sentences",
        error=1 - float(cosines.mean()),
    )


@pytest.mark.real
def test_every_token_gets_the_vector_of_torch_but_for_the_runtime_s_gelu(minilm_path: Path, tmp_path: Path) -> None:
    plan = plan_model(open_checkpoint(minilm_path))
    assert plan.pooling == "mean"
    ids = [101, *np.random.default_rng(5).integers(1000, plan.vocab_size, 60).tolist(), 102]
    found = libllama_vectors(convert(minilm_path, tmp_path / "minilm.gguf", "F32"), ids)
    assert nmse(torch_vectors(minilm_path, ids), found) < plan.activation_nmse
