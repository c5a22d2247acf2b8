"""Texts become the tokens of the model's own tokenizer: nothing is cut in silence, and what looks like a special token is text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeai
from edgeai.engines.onnx.schema import Text
from edgeai.engines.onnx.texts import Texts
from edgeai.errors import InvalidModel, UsageError
from tests.engines.onnx.models import WORDS, softmax, text_model, tokenizer, weights

TEXT = Text(name="text", max_tokens=6, graph=("input_ids", "attention_mask"))
CLS, SEP, GOOD, BAD, FILM, VERY = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "good", "bad", "film", "very"))


def reader(**changes: Any) -> Texts:
    return Texts(
        Text(**{"name": "text", "max_tokens": 6, "graph": TEXT.graph, **changes}), tokenizer().to_str(), where="t"
    )


def read(items: list[Any], rows: int = 8) -> list[Any]:
    return list(reader().batches(items, rows))


def test_short_texts_are_padded_to_the_longest_of_their_batch() -> None:
    (batch,) = read(["good film", "bad"])
    assert batch.feed["input_ids"].tolist() == [[CLS, GOOD, FILM, SEP], [CLS, BAD, SEP, 0]]
    assert batch.feed["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.feed["input_ids"].dtype == np.int64
    assert batch.notices == ((), ())


def test_batches_have_a_bounded_size() -> None:
    assert [batch.count for batch in read(["good"] * 5, rows=2)] == [2, 2, 1]


def test_a_special_token_in_a_text_is_text() -> None:
    (batch,) = read(["good [SEP]"])
    assert batch.feed["input_ids"].tolist() == [
        [CLS, GOOD, WORDS.index("["), WORDS.index("SEP"), WORDS.index("]"), SEP]
    ]


def test_what_is_cut_is_said_with_its_length_and_the_end_is_kept() -> None:
    (batch,) = read(["good film", "very " * 10])
    assert batch.feed["input_ids"][1].tolist() == [CLS, *[VERY] * 4, SEP]
    ((), (notice,)) = batch.notices
    assert notice.code == "truncated"
    assert notice.message == "text 2 of 2 has 12 tokens and the model reads 6: the last 6 were left out"


def test_texts_without_a_token_to_pad_with_go_alone() -> None:
    plain = tokenizer().to_str().replace("[PAD]", "[NONE]")
    batches = list(Texts(TEXT, plain, where="t").batches(["good film", "bad"], 8))
    assert [batch.feed["input_ids"].tolist() for batch in batches] == [[[CLS, GOOD, FILM, SEP]], [[CLS, BAD, SEP]]]


def test_the_padding_of_the_tokenizer_itself_wins() -> None:
    padded = tokenizer()
    padded.enable_padding(pad_id=5, pad_token="bad", length=20)
    (batch,) = Texts(TEXT, padded.to_str(), where="t").batches(["good film", "bad"], 8)
    assert batch.feed["input_ids"].tolist()[1] == [CLS, BAD, SEP, 5]


@pytest.mark.parametrize("item", [3, None, b"text", ["a"]])
def test_what_is_no_text_is_refused(item: Any) -> None:
    with pytest.raises(UsageError, match="text 2 of 2 is"):
        read(["good", item])


def test_half_a_character_is_refused() -> None:
    with pytest.raises(UsageError, match="not valid Unicode"):
        read(["a\ud800"])


def test_files_have_one_text_or_a_column_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffgood\nfilm\n")
    (tmp_path / "b.csv").write_text("id,text\n1,bad film\n2,good\n")
    (tmp_path / "c.jsonl").write_text('{"text": "bad"}\n')
    (batch,) = read([tmp_path / "a.txt", tmp_path / "b.csv", tmp_path / "c.jsonl"])
    lengths = batch.feed["attention_mask"].sum(axis=1).tolist()
    assert lengths == [4, 4, 3, 3]
    (tmp_path / "d.csv").write_text("words\nbad\n")
    with pytest.raises(UsageError, match="row 1, column 'text' is not there"):
        read([tmp_path / "d.csv"])
    with pytest.raises(UsageError, match="cannot be read"):
        read([tmp_path / "no.txt"])


def test_a_model_of_texts_gives_the_mean_of_its_tokens_whatever_is_beside(tmp_path: Path) -> None:
    matrix, _ = weights(len(WORDS))
    wanted = matrix[[CLS, GOOD, FILM, SEP]].mean(axis=0)
    with edgeai.load(text_model(tmp_path / "t.onnx")) as model:
        for texts in (["good film"], ["good film", "very very good film"]):
            found = model.classify(texts)[0]
            assert found.logits == pytest.approx(wanted.tolist(), abs=1e-6)
            assert found.score == pytest.approx(softmax(wanted).max(), rel=1e-5)
        assert [notice.code for notice in model.classify(["very " * 9])[0].warnings] == ["truncated"]
        assert model.tokenize("good [SEP]", add_special=True)[-1] == SEP
        assert model.detokenize([CLS, GOOD, FILM, SEP]) == "good film"
    with edgeai.load(tmp_path / "t.onnx", isolated=True) as apart:
        assert apart.classify(["good film"])[0].logits == pytest.approx(wanted.tolist(), abs=1e-6)


def test_the_short_way_gives_the_same_and_leaves_what_needs_a_word() -> None:
    found = reader()
    (batch,) = found.batches(["good film"], 8)
    alone = found.alone("good film")
    assert alone is not None
    assert {name: array.tolist() for name, array in alone.items()} == {
        name: array.tolist() for name, array in batch.feed.items()
    }
    assert list(reader(graph=("ids",)).alone("good") or {}) == ["ids"]
    for other in ("very " * 9, "a\ud800", Path("a.txt"), 3):
        assert found.alone(other) is None


def test_a_broken_tokenizer_is_an_invalid_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="tokenizer"):
        edgeai.load(text_model(tmp_path / "t.onnx", edgeai__tokenizer="{}"))


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_text_is_an_error_with_its_place_and_the_model_goes_on(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_text(f'text\ngood film\n"{text}"\n')
    (tmp_path / "empty.txt").write_text(text)
    with edgeai.load(text_model(tmp_path / "texts.onnx")) as model:
        before = model.classify(["good film"])[0].logits
        with pytest.raises(UsageError, match="the text is empty"):
            model.classify([text])
        with pytest.raises(UsageError, match="text 2 of 2 is empty"):
            model.classify(["good", text])
        with pytest.raises(UsageError, match=r"empty\.txt' is empty"):
            model.classify([tmp_path / "empty.txt"])
        if text:
            with pytest.raises(UsageError, match=r"rows\.csv'.* row 2.* is empty"):
                model.classify([tmp_path / "rows.csv"])
        assert model.classify(["good film"])[0].logits == before
