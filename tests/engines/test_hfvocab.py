"""Token ids are those of transformers' tokenizer of the same folder; text is never a control token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from converters.stress import PROSE, STRESS
from edgeai.chat import Segment
from edgeai.engines.hfvocab import HFVocab, read_tokenizer
from edgeai.errors import InvalidModel, UsageError
from tests.checkpoints import make, tokenizer_json

ROOT = Path(__file__).parents[2]
TEXTS = [text for text in [*STRESS, *PROSE] if text]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("vocab") / "source", hidden_size=16, num_hidden_layers=1)


@pytest.fixture(scope="module")
def vocab(folder: Path) -> HFVocab:
    return HFVocab.of_folder(folder, ends=[2], size=json.loads((folder / "config.json").read_text())["vocab_size"])


def test_ids_are_transformers(folder: Path, vocab: HFVocab) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert vocab.tokenize(text, parse_special=True) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_ids_of_the_tiny_model_are_transformers() -> None:
    tokenizer, vocab = (
        AutoTokenizer.from_pretrained(ROOT / "models" / "tiny"),
        HFVocab.of_folder(ROOT / "models" / "tiny"),
    )
    for text in TEXTS:
        assert vocab.tokenize(text, add_special=True) == tokenizer(text)["input_ids"]


def test_text_never_becomes_a_control_token(vocab: HFVocab) -> None:
    ids = vocab.tokenize("a<|im_end|>b")
    assert 2 not in ids
    assert vocab.detokenize(ids) == "a<|im_end|>b"


def test_control_tokens_are_read_where_they_are_asked_for(vocab: HFVocab) -> None:
    assert 2 in vocab.tokenize("a<|im_end|>b", parse_special=True)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_bytes_of_the_text(vocab: HFVocab, text: str) -> None:
    assert b"".join(vocab.piece(token) for token in vocab.tokenize(text)) == text.encode()


def test_control_tokens_and_ids_without_a_token_show_nothing(vocab: HFVocab) -> None:
    assert [vocab.piece(token) for token in (0, 1, 2, vocab.size - 1, vocab.size + 100)] == [b""] * 5


def test_a_token_far_beyond_the_vocabulary_takes_no_memory() -> None:
    spec = json.loads(tokenizer_json())
    spec["model"]["vocab"]["zzz"] = 4_000_000_000
    vocab = HFVocab(spec, size=508)
    assert vocab.piece(3_999_999_999) == b""
    assert vocab.piece(vocab.tokenize("a")[0]) == b"a"


def test_segments_without_control_text_are_read_as_transformers_reads_them(folder: Path, vocab: HFVocab) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Ünï 模型"}]
    parts = [
        Segment(text="<|im_start|>", control=True),
        Segment(text="user\nÜnï 模型", control=False),
        Segment(text="<|im_end|>", control=True),
        Segment(text="\n", control=False),
    ]
    assert vocab.tokenize_segments(parts) == tokenizer.apply_chat_template(messages, return_dict=False)


def test_a_message_with_the_text_of_a_control_token_stays_text(vocab: HFVocab) -> None:
    parts = [Segment(text="<|im_start|>", control=True), Segment(text="<|im_end|>", control=False)]
    ids = vocab.tokenize_segments(parts)
    assert ids[0] == 1
    assert not {0, 1, 2} & set(ids[1:])


def test_a_batch_is_its_texts(vocab: HFVocab) -> None:
    assert vocab.tokenize_batch(TEXTS[:5]) == [vocab.tokenize(text, add_special=True) for text in TEXTS[:5]]


@pytest.mark.parametrize("ids", [[-1], [508], [1.0], ["a"], [True], 7, None])
def test_what_is_no_list_of_ids_is_a_usage_error(vocab: HFVocab, ids: Any) -> None:
    with pytest.raises(UsageError):
        vocab.check(ids)


def test_half_a_surrogate_pair_is_a_usage_error(vocab: HFVocab) -> None:
    with pytest.raises(UsageError, match="not valid Unicode"):
        vocab.tokenize("a\ud800")


@pytest.mark.parametrize(
    "spec",
    [{}, {"model": None}, {"model": {"type": "BPE", "vocab": 5, "merges": []}}, {"model": {"type": "Unknown"}},
     {"model": {"type": "Unigram", "vocab": "x"}},
     {"model": {"type": "Unigram", "vocab": [[1]]}},
     {"added_tokens": 7, "model": {"type": "BPE", "vocab": {}, "merges": []}}, {"model": []}],
)  # fmt: skip
def test_a_broken_tokenizer_is_an_invalid_model(spec: dict[str, Any]) -> None:
    with pytest.raises(InvalidModel, match=r"tokenizer"):
        HFVocab(spec, size=10)


@pytest.mark.parametrize(
    "mutation", ["added_tokens", "decoder", "pre_tokenizer", "normalizer", "post_processor", "model"]
)
@pytest.mark.parametrize(
    "value", [7, "x", {"type": "Nothing"}, [1], {"type": "Sequence", "pretokenizers": 7, "decoders": "x"}]
)
def test_a_part_of_the_wrong_kind_is_an_invalid_model(mutation: str, value: Any) -> None:
    spec = {**json.loads(tokenizer_json()), mutation: value}
    with pytest.raises(InvalidModel):
        HFVocab(spec, size=508)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000])
def test_a_tokenizer_that_is_no_json_object_is_an_invalid_model(text: str) -> None:
    with pytest.raises(InvalidModel, match="tokenizer of there"):
        read_tokenizer(text, "there")
