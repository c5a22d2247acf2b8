"""Folders without tokenizer.json; the reference is the package that made the files, or transformers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from converters.checkpoint import Checkpoint
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.stress import PROSE, STRESS
from converters.tokenizer import BYTE, CONTROL, UNKNOWN, Vocabulary, read_vocabulary, source_tokenizer
from converters.tokenizer.proto import parse
from converters.tokenproof import prove_vocabulary
from tests.checkpoints import tokenizer_json

CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}


def folder_checkpoint(folder: Path, tokenizer_config: dict[str, Any] | None = None, **config: Any) -> Checkpoint:
    return Checkpoint(path=folder, config=config, tensors={}, tokenizer_config=tokenizer_config or {})


@pytest.fixture(scope="module")
def pieces() -> bytes:
    """A SentencePiece BPE with bytes, as Llama 2 has it."""
    import sentencepiece

    file = io.BytesIO()
    lines = [line for text in [*STRESS, *PROSE] for line in text.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=file,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<tool>"],
        minloglevel=2,
    )
    return file.getvalue()


def spm_vocabulary(folder: Path, pieces: bytes, **config: Any) -> Vocabulary:
    (folder / "tokenizer.model").write_bytes(pieces)
    return read_vocabulary(folder_checkpoint(folder, CONFIG | config), 704)


def test_tokenizer_model_alone_gives_the_ids_of_sentencepiece(tmp_path: Path, pieces: bytes) -> None:
    import sentencepiece

    vocabulary = spm_vocabulary(tmp_path, pieces)
    reference = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    tokenizer = source_tokenizer(vocabulary.spec)
    texts = [text for text in [*STRESS, *PROSE] if "<" not in text and text]
    assert [tokenizer.encode(text, add_special_tokens=False).ids for text in texts] == reference.encode(texts)
    assert prove_vocabulary(vocabulary).texts > 100
    assert (vocabulary.model, vocabulary.add_bos, vocabulary.add_eos) == ("llama", True, False)
    assert vocabulary.add_space_prefix is True
    assert {vocabulary.types[0], vocabulary.types[1], vocabulary.types[5]} == {
        UNKNOWN,
        CONTROL,
        BYTE,
    } or vocabulary.types[4] == BYTE


def test_flags_of_the_tokenizer_config_decide_about_bos_and_eos(tmp_path: Path, pieces: bytes) -> None:
    vocabulary = spm_vocabulary(tmp_path, pieces, add_bos_token=False, add_eos_token=True)
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.after) == (False, True, (2,))


def test_the_reader_of_tokenizer_model_reads_what_the_package_does(pieces: bytes) -> None:
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    found = parse(pieces)
    assert [piece.text for piece in found.pieces] == [
        reference.id_to_piece(token) for token in range(len(found.pieces))
    ]
    assert [piece.score for piece in found.pieces] == [reference.get_score(token) for token in range(len(found.pieces))]
    assert (found.kind, found.charsmap, found.add_dummy_prefix, found.remove_extra_whitespaces) == (2, b"", True, False)


@pytest.mark.parametrize("cut", [0, 1, 5, 100, -1, -7])
def test_a_damaged_tokenizer_model_is_refused(tmp_path: Path, pieces: bytes, cut: int) -> None:
    with pytest.raises((BrokenCheckpoint, UnsupportedModel)):
        spm_vocabulary(tmp_path, pieces[:cut] + b"\x0a\xff\xff\xff\xff\x7f")


def test_vocab_json_and_merges_txt_are_a_byte_level_bpe(tmp_path: Path) -> None:
    spec = json.loads(tokenizer_json("gpt2"))
    (tmp_path / "vocab.json").write_text(json.dumps(spec["model"]["vocab"]))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in spec["model"]["merges"])]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {"eos_token": "<|endoftext|>", "tokenizer_class": "GPT2Tokenizer"}
    found = read_vocabulary(folder_checkpoint(tmp_path, config), 508)
    assert (found.pre, found.eos) == ("gpt-2", 0)
    ids = source_tokenizer(found.spec).encode("Hello  world 123").ids
    assert ids == source_tokenizer(spec).encode("Hello  world 123").ids
    with pytest.raises(UnsupportedModel, match="strangetokenizer"):
        read_vocabulary(folder_checkpoint(tmp_path, config | {"tokenizer_class": "StrangeTokenizer"}), 508)


def test_vocab_txt_is_a_wordpiece(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sea", "##s", "was", "calm", "!", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    names = {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    found = read_vocabulary(folder_checkpoint(tmp_path, names | {"do_lower_case": True}), 12)
    text = "The SEAS, was cálm!  xyz"
    reference = BertTokenizer(str(tmp_path / "vocab.txt"))(text)["input_ids"]
    assert source_tokenizer(found.spec).encode(text).ids == reference
    assert (found.model, found.before, found.after, found.unk) == ("bert", (2,), (3,), 1)


@pytest.mark.parametrize("name", ["vocab.json", "tekken.json"])
def test_a_tokenizer_in_another_file_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UnsupportedModel, match=name) as caught:
        read_vocabulary(folder_checkpoint(tmp_path), 10)
    assert "save_pretrained" in str(caught.value.hint)


def test_no_tokenizer_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match=r"no tokenizer\.json"):
        read_vocabulary(folder_checkpoint(tmp_path), 10)
