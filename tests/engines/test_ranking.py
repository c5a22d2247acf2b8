"""Rerankers: converted, proved, and ranking pairs of texts as torch does, second segments included."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.errors import UnsupportedModel
from edgeai.artifact import open_artifact
from edgeai.errors import ContextExceeded, InvalidModel, ProofFailed, UsageError
from edgeai.model import Model, open_engine
from edgeai.pipeline import convert
from tests.checkpoints import tokenizer_json
from tests.families import BERT, ROBERTA, write_f32

QUERY = "How do I iterate over a list?"
DOCUMENTS = [
    "The for statement is used to iterate over the elements of a sequence.",
    "Bananas are yellow.",
    "",
    "A while loop runs as long as its condition holds",
]


def classifier(kind: str, folder: Path, tokenizer: Path, labels: int = 1) -> Path:
    """Make a random sequence classifier in FOLDER with the tokenizer of the folder TOKENIZER."""
    import torch
    import transformers

    torch.manual_seed(1)
    base = BERT if kind == "Bert" else ROBERTA
    vocab = len(transformers.AutoTokenizer.from_pretrained(tokenizer))
    config = getattr(transformers, f"{kind}Config")(**base, vocab_size=vocab, num_labels=labels)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at first, so that scores differ
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)
    return folder


def torch_scores(folder: Path, query: str, documents: list[str]) -> list[float]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [float(model(**tokenizer([[query, text]], return_tensors="pt")).logits[0, 0]) for text in documents]


@pytest.fixture(scope="module")
def roberta_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with RoBERTa's separators: <s> one </s></s> two </s>."""
    folder = tmp_path_factory.mktemp("tokenizer")
    spec = json.loads(tokenizer_json(split="gpt2"))
    ids = {item["content"]: item["id"] for item in spec["added_tokens"]}
    first, last = (next(item for item in ids.items() if item[1] == number) for number in (0, 2))
    spec["post_processor"] = {
        "type": "RobertaProcessing", "sep": list(last), "cls": list(first), "trim_offsets": True, "add_prefix_space": False,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": first[0],
        "eos_token": last[0],
        "sep_token": last[0],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["Bert", "Roberta"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, minilm_path: Path, roberta_tokenizer: Path
) -> Path:
    tokenizer = minilm_path if request.param == "Bert" else roberta_tokenizer
    return classifier(request.param, tmp_path_factory.mktemp("ranker") / "m", tokenizer)


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    """The classifier converted and proved."""
    output = folder.parent / "ranker.gguf"
    convert(folder, output, "f32")
    return output


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model(open_engine(path, threads=1)) as found:
        yield found


def test_a_reranker_scores_pairs_as_torch_does(model: Model, folder: Path) -> None:
    expected = torch_scores(folder, QUERY, DOCUMENTS)
    assert np.std(expected) > 1e-2
    assert model.rank(QUERY, DOCUMENTS) == pytest.approx(expected, abs=5e-3)  # keys and values are kept in halves


def test_scores_do_not_depend_on_the_other_documents(model: Model) -> None:
    together = model.rank(QUERY, DOCUMENTS)
    assert [model.rank(QUERY, [text])[0] for text in DOCUMENTS] == pytest.approx(together, abs=3e-3)


def test_no_documents_have_no_scores(model: Model) -> None:
    assert model.rank(QUERY, []) == []


def test_a_document_that_is_too_long_is_named(model: Model) -> None:
    with pytest.raises(ContextExceeded, match="query and document 2 of 2"):
        model.rank(QUERY, ["short", "long " * 300])


def test_a_reranker_gives_no_vectors(model: Model) -> None:
    with pytest.raises(UsageError, match="is a reranker"):
        model.embed(["a"])


def test_the_file_says_that_it_ranks(path: Path) -> None:
    artifact = open_artifact(path)
    assert artifact.embedding
    assert artifact.reranker


def test_a_language_model_and_an_embedding_model_rank_nothing(tiny: Model, minilm_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a reranker"):
        tiny.rank("a", ["b"])
    with (
        Model(open_engine(write_f32(minilm_path, tmp_path / "m.gguf"), threads=1)) as model,
        pytest.raises(UsageError, match="no classifier"),
    ):
        model.rank("a", ["b"])


def test_a_classifier_with_several_labels_is_refused(tmp_path: Path, roberta_tokenizer: Path) -> None:
    folder = classifier("Roberta", tmp_path / "m", roberta_tokenizer, labels=3)
    with pytest.raises(UnsupportedModel, match="3 labels"):
        convert(folder, tmp_path / "out.gguf", "f32")


def test_the_proof_finds_a_spoiled_classifier(
    roberta_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converters import gguf

    usual: Any = gguf.write_model

    def swapped(path: Path, *arguments: Any, **named: Any) -> None:
        usual(path, *arguments, **named)
        from converters.header import read_header

        place = next(item for item in read_header(path).tensors if item.name == "cls.output.weight")
        with path.open("r+b") as file:
            file.seek(place.offset)
            file.write(np.ones(place.elements, np.float32).tobytes())

    monkeypatch.setattr(gguf, "write_model", swapped)
    folder = classifier("Roberta", tmp_path / "m", roberta_tokenizer)
    with pytest.raises(ProofFailed):
        convert(folder, tmp_path / "out.gguf", "f32")


def test_a_file_that_says_it_ranks_and_cannot_is_refused(minilm_path: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    path = write_f32(
        minilm_path, tmp_path / "m.gguf", lambda plan: replace(plan, keys={**plan.keys, "pooling_type": 4})
    )
    with pytest.raises(InvalidModel, match=r"neither 'cls.weight' nor 'cls.output.weight'"):
        open_engine(path)
