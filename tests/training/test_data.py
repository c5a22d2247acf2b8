from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgeai.errors import RecipeError
from edgeai.training import data
from edgeai.training import tokenizer as bpe
from edgeai.training.data import Document, Windows
from edgeai.training.recipe import DataSettings, Recipe

SENTENCE = "This paragraph is long enough to count as a copy wherever else it turns up."


def windows(tokens: int = 403, context: int = 8, batch_size: int = 4, seed: int = 1) -> Windows:
    return Windows(np.arange(tokens, dtype=np.uint16), context, batch_size, seed)


def paragraphs(documents: list[Document]) -> set[str]:
    found = {" ".join(part.split()) for document in documents for part in document.text.split("\n\n")}
    return {part for part in found if len(part) >= data.SHARED_TEXT_CHARS}


def test_python_documentation_is_split_without_shared_paragraphs() -> None:
    training, held = data.split(data.read(DataSettings(), Path()), 0.1, seed=1)
    assert not paragraphs(training) & paragraphs(held)
    assert not {document.name for document in training} & {document.name for document in held}


def test_split_by_name_alone_would_leak() -> None:
    """The reason for the rule: some of Python's topics are pieces of others."""
    documents = data.read(DataSettings(), Path())
    assert paragraphs([d for d in documents if d.name == "try"]) & paragraphs(
        [d for d in documents if d.name == "compound"]
    )


def test_held_out_share_is_close_to_what_was_asked_for() -> None:
    documents = [Document(f"{number}", f"{number} " * 100) for number in range(100)]
    training, held = data.split(documents, 0.2, seed=1)
    assert len(training) + len(held) == 100
    assert 18 <= len(held) <= 20


def test_documents_with_a_common_paragraph_stay_together() -> None:
    copies = [Document("a", f"x\n\n{SENTENCE}"), Document("b", f"    {SENTENCE}\n\ny")]
    documents = [*copies, *(Document(f"{number}", f"{number} " * 40) for number in range(8))]
    for seed in range(20):
        training, held = data.split(documents, 0.5, seed)
        assert set(copies) <= set(training) or set(copies) <= set(held)


def test_split_depends_on_the_seed_and_on_nothing_else() -> None:
    documents = [Document(f"{number}", f"{number} " * 40) for number in range(30)]
    assert data.split(documents, 0.3, 1) == data.split(documents, 0.3, 1)
    assert data.split(documents, 0.3, 1) != data.split(documents, 0.3, 2)


def test_text_that_cannot_be_split_is_an_error() -> None:
    with pytest.raises(RecipeError, match="no document can be held out"):
        data.split([Document("a", SENTENCE), Document("b", SENTENCE)], 0.5, 1)


def test_each_pass_takes_each_window_once() -> None:
    order = windows(batch_size=1)
    for epoch in range(3):
        starts = [int(order.sample(epoch * order.per_epoch + step)[0, 0]) for step in range(order.per_epoch)]
        assert len(set(starts)) == order.per_epoch
        assert {start % order.context for start in starts} == {starts[0] % order.context}


def test_order_does_not_depend_on_the_batch_size() -> None:
    small = np.concatenate([windows(batch_size=3).sample(step) for step in range(40)])
    large = np.concatenate([windows(batch_size=12).sample(step) for step in range(10)])
    assert np.array_equal(small, large)


def test_batch_larger_than_a_pass_goes_on_into_the_next() -> None:
    order = windows(tokens=30, batch_size=16)
    assert order.sample(0).shape == (16, 9)
    assert max(Counter(int(row[0]) for row in order.sample(0)).values()) > 1


def test_seeds_give_different_orders() -> None:
    assert not np.array_equal(windows(seed=1).sample(0), windows(seed=2).sample(0))


def test_text_shorter_than_the_context_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"too few for model\.context 16"):
        windows(tokens=20, context=16)


def test_tokens_on_disk_are_the_documents_between_bos_and_eos(mini: Recipe, tmp_path: Path) -> None:
    documents = data.read(mini.data, mini.folder)[:3]
    tokenizer = bpe.train([d.text for d in documents], pre="gpt-2", vocab_size=280)
    ids = data.encode(tokenizer, documents, tmp_path / "tokens.bin")
    assert ids.dtype == np.uint16
    assert ids.tolist() == [token for d in documents for token in bpe.encode(tokenizer, d.text)]
    assert [tokenizer.id_to_token(int(ids[index])) for index in (0, -1)] == [bpe.BOS, bpe.EOS]


def test_folder_of_text_files_is_read_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.md", "a 模型.txt", "skipped.py"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    documents = data.read(DataSettings(source="."), tmp_path)
    assert [document.name for document in documents] == ["a 模型.txt", "b/2.md"]


@pytest.mark.parametrize("line", ["[1]", '{"txt": "a"}', "not json", '{"text": 3}'])
def test_json_line_without_text_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(RecipeError, match="line 2"):
        data.read(DataSettings(source="text.jsonl"), tmp_path)


def test_source_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no text"):
        data.read(DataSettings(source="."), tmp_path)
    with pytest.raises(RecipeError, match="neither a folder"):
        data.read(DataSettings(source="missing"), tmp_path)
