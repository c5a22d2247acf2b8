"""Persons and places by a model: a token classifier of fixed rules in ONNX, made here."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from edgeai.config import PrivacySettings
from edgeai.errors import InvalidModel, UsageError
from edgeai.routing.privacy.conversation import parts_of
from edgeai.routing.privacy.detector import Detector
from edgeai.routing.privacy.redact import Redactor

LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "B-MISC"}
WORDS = {
    "[UNK]": 0,
    "Ada": 1,
    "Lovelace": 2,
    "Winston": 1,
    "Paris": 3,
    "Linux": 4,
    "lives": 0,
    "in": 0,
    "with": 0,
    ".": 0,
}
"""Each word, and the label that the model gives it."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the folder of a model whose logits are a row of a table for each token."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    table = np.full((len(WORDS), len(LABELS)), -4.0, dtype=np.float32)
    for row, label in enumerate(WORDS.values()):
        table[row, label] = 4.0
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "tokens"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", len(LABELS)])
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["logits"], axis=0)]
    graph = helper.make_graph(nodes, "tagger", [ids, mask], [logits], [numpy_helper.from_array(table, "table")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, str(tmp_path / "model.onnx"))
    config = {"id2label": {str(key): value for key, value in LABELS.items()}, "max_position_embeddings": 66}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def detector(model: Path) -> Detector:
    return Detector(PrivacySettings(tier="names", names_model=str(model)))


def test_persons_and_places_are_found_with_their_words_together(model: Path) -> None:
    text = "Ada Lovelace lives in Paris with Linux ."
    for given in (model, model / "model.onnx"):
        verdict = detector(given).examine(parts_of(text))
        assert [(finding.id, text[finding.start : finding.end]) for finding in verdict.findings] == [
            ("privacy.person", "Ada Lovelace"), ("privacy.address", "Paris"),
        ]  # fmt: skip
        assert (verdict.placement, verdict.tier) == ("local_only", "names")


def test_names_are_redacted_beside_what_has_a_form(model: Path) -> None:
    redactor = Redactor(detector(model))
    assert redactor.redact("Ada Lovelace, ada@example.com, in Paris") == "<PERSON_1>, <EMAIL_1>, in <ADDRESS_1>"


def test_text_longer_than_the_model_is_read_in_pieces(model: Path) -> None:
    text = "lives in " * 300 + "Paris " + "with " * 700 + "Winston"
    found = [
        (finding.kind, text[finding.start : finding.end])
        for finding in detector(model).examine(parts_of(text)).findings
    ]
    assert set(found) == {("address", "Paris"), ("person", "Winston")}


def test_model_that_fails_while_it_runs_keeps_the_text_here(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = detector(model)
    monkeypatch.setattr(made._names, "_labels", None)
    verdict = made.examine(parts_of("nothing here"))
    assert verdict.placement == "local_only"
    assert verdict.failed is not None


def test_model_without_its_labels_or_its_file_is_refused(model: Path) -> None:
    (model / "config.json").write_text("{}")
    with pytest.raises(InvalidModel, match="id2label"):
        detector(model)
    (model / "config.json").write_text(json.dumps({"id2label": {"0": "O", "1": "B-MISC"}}))
    with pytest.raises(InvalidModel, match="no label"):
        detector(model)
    (model / "model.onnx").unlink()
    with pytest.raises(UsageError, match="no ONNX file"):
        detector(model)
