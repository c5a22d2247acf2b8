from __future__ import annotations

import functools

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from edgeai.training import tokenizer as bpe
from edgeai.training.settings import PRE_TOKENIZERS

TEXT = ["The model reads the tokens; the tokens are read.\n\n    def read(model): return 12345\n"] * 3
STRESS = "I'm We'LL  3 12345 x²  \t\n\n  \r\n नमस्ते 模型 don't — «é» 🦙👩‍🚀  end   "

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
REFERENCE = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [LLAMA3],
    "qwen2": [LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")],
}


@functools.cache
def trained(pre: str = "gpt-2", vocab_size: int = 300) -> Tokenizer:
    return bpe.train(TEXT, pre=pre, vocab_size=vocab_size)


def reference_split(pre: str, text: str) -> list[str]:
    """Split as llama.cpp does: each regex cuts the pieces of the one before, and what it does not match stays whole."""
    pieces = [text]
    for pattern in REFERENCE[pre]:
        pieces = [part for piece in pieces for part in regex.split(f"({pattern})", piece) if part]
    return pieces


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_split_is_that_of_the_named_regex(pre: str) -> None:
    pre_tokenizer = trained(pre).pre_tokenizer
    assert pre_tokenizer is not None
    pieces = [decoders.ByteLevel().decode([piece]) for piece, _ in pre_tokenizer.pre_tokenize_str(STRESS)]
    assert pieces == reference_split(pre, STRESS)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
@given(text=st.text())
def test_any_text_comes_back(pre: str, text: str) -> None:
    ids = bpe.encode(trained(pre), text)
    assert trained(pre).decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("token", [bpe.BOS, bpe.EOS, bpe.PAD])
def test_special_token_written_in_the_text_is_text(token: str) -> None:
    ids = bpe.encode(trained(), f"a {token} b")
    assert trained().token_to_id(token) not in ids[1:-1]


def test_special_tokens_are_three_different_ids() -> None:
    assert [trained().token_to_id(token) for token in (bpe.BOS, bpe.EOS, bpe.PAD)] == [0, 1, 2]


@pytest.mark.parametrize("size", [259, 300, 2000])
def test_vocabulary_has_the_size_asked_for_even_where_the_text_is_too_small(size: int) -> None:
    tokenizer = trained(vocab_size=size)
    assert tokenizer.get_vocab_size() == size
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))


def test_training_twice_gives_the_same_tokenizer() -> None:
    assert bpe.dump(bpe.train(TEXT, pre="gpt-2", vocab_size=300)) == bpe.dump(trained())


def test_dumped_tokenizer_gives_the_same_ids() -> None:
    again = Tokenizer.from_str(bpe.dump(trained()))
    assert again.encode(STRESS).ids == [0, *bpe.encode(trained(), STRESS)[1:-1]]
