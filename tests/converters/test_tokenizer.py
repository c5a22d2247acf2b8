from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converters import pretokenizer
from converters.checkpoint import open_checkpoint
from converters.errors import BrokenCheckpoint, ConvertError, TokenizerMismatch, UnsupportedModel
from converters.families import plan_model
from converters.gguf import write_vocabulary
from converters.tokenizer import CONTROL, UNUSED, USER_DEFINED, Vocabulary, merges_reach_every_token, read_vocabulary
from converters.tokenproof import prove_splits, prove_vocabulary
from tests.checkpoints import edit_json, make, tokenizer_json


def vocabulary_of(folder: Path) -> Vocabulary:
    checkpoint = open_checkpoint(folder)
    return read_vocabulary(checkpoint, plan_model(checkpoint).vocab_size)


def inexact_of(folder: Path) -> Vocabulary:
    checkpoint = open_checkpoint(folder)
    return read_vocabulary(checkpoint, plan_model(checkpoint).vocab_size, allow_inexact=True)


@pytest.fixture
def few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try few pre-tokenizers where any of them would do."""
    monkeypatch.setattr("converters.tokenizer.bytelevel.NAMES", ("gpt-2", "llama-bpe", "dbrx", "qwen2"))


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy é"))


@pytest.fixture(scope="session")
def vocabulary(llama: Path) -> Vocabulary:
    return vocabulary_of(llama)


@pytest.mark.parametrize(
    ("split", "pre"),
    [("gpt2", "gpt-2"), ("smollm", "smollm"), ("llama3", "llama-bpe"), ("qwen2", "qwen2"), ("qwen35", "qwen35")],
)
def test_each_known_splitting_has_a_name_that_the_runtime_proves(
    llama: Path, tmp_path: Path, split: str, pre: str
) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / split))
    (folder / "tokenizer.json").write_text(tokenizer_json(split), encoding="utf-8")
    edit_json(folder / "config.json", lambda config: config.update(vocab_size=508))
    vocabulary = read_vocabulary(open_checkpoint(folder), 508)
    assert vocabulary.pre == pre
    assert prove_vocabulary(vocabulary).splits > 100


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "smollm", "gpt-4o", "default"])
def test_a_wrong_name_is_found_by_its_cuts_even_where_ids_agree(
    vocabulary: Vocabulary, tmp_path: Path, pre: str
) -> None:
    with pytest.raises(TokenizerMismatch, match="places of the cuts"):
        prove_splits(tmp_path, replace(vocabulary, pre=pre), "llama")


def test_a_name_that_the_runtime_does_not_have_is_a_mismatch(vocabulary: Vocabulary) -> None:
    with pytest.raises(TokenizerMismatch, match="does not load"):
        prove_vocabulary(replace(vocabulary, pre="no-such-name"))


@pytest.mark.parametrize(
    "change",
    [
        lambda v: replace(v, tokens=(*v.tokens[1:], v.tokens[0])),
        lambda v: replace(v, merges=v.merges[::-1]),
        lambda v: replace(v, add_bos=True, spec=v.spec, bos=5) if not v.add_bos else v,
        lambda v: replace(v, types=(1,) * len(v.types)),
        lambda v: replace(v, stop_ids=(300,)),
    ],
    ids=["shifted", "merges reversed", "other bos", "no special tokens", "no stop"],
)
def test_a_vocabulary_that_was_damaged_is_not_proved(
    vocabulary: Vocabulary, change: Callable[[Vocabulary], Vocabulary], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The proof knows what BOS should be from the vocabulary itself, so the file is written from the damaged one only.
    damaged = change(vocabulary)
    if damaged.stop_ids == vocabulary.stop_ids:
        monkeypatch.setattr(
            "converters.tokenproof.write_vocabulary",
            lambda path, arch, _v, keys: write_vocabulary(path, arch, damaged, keys),
        )
        damaged = vocabulary
    with pytest.raises(TokenizerMismatch):
        prove_vocabulary(damaged)


def test_the_vocabulary_is_padded_to_the_embedding(vocabulary: Vocabulary) -> None:
    assert len(vocabulary.tokens) == vocabulary.real_size + 8
    assert set(vocabulary.types[vocabulary.real_size :]) == {UNUSED}
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens)


def test_added_tokens_keep_their_kind(copy: Path) -> None:
    plain = {"id": 500, "content": "<tool>", "special": False}
    secret = {"id": 501, "content": "<|secret|>", "special": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    edit_json(copy / "tokenizer.json", lambda spec: spec["added_tokens"].extend([flags | plain, flags | secret]))
    found = vocabulary_of(copy)
    assert (found.types[500], found.types[501]) == (USER_DEFINED, CONTROL)
    assert prove_vocabulary(found).texts > 100


def test_added_tokens_of_the_other_file_are_known(copy: Path) -> None:
    token = {"content": "<|extra|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    edit_json(copy / "tokenizer_config.json", lambda config: config.update(added_tokens_decoder={"500": token}))
    assert vocabulary_of(copy).tokens[500] == "<|extra|>"


def test_a_gap_before_an_added_token_is_refused_because_the_library_closes_it(copy: Path) -> None:
    token = {"content": "<|extra|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    edit_json(copy / "tokenizer_config.json", lambda config: config.update(added_tokens_decoder={"503": token}))
    with pytest.raises(BrokenCheckpoint, match="503"):
        vocabulary_of(copy)


def test_a_tokenizer_larger_than_the_embedding_is_refused(copy: Path) -> None:
    token = {"id": 600, "content": "<x>", "special": True, "lstrip": False, "rstrip": False, "single_word": False}
    edit_json(copy / "tokenizer.json", lambda spec: spec["added_tokens"].append(token | {"normalized": False}))
    with pytest.raises(BrokenCheckpoint, match="vocab_size 508"):
        vocabulary_of(copy)


REFUSED: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("WordLevel", lambda spec: spec["model"].update(type="WordLevel")),
    ("Metaspace", lambda spec: spec.update(pre_tokenizer={"type": "Metaspace", "replacement": "_"})),
    ("continuing_subword_prefix", lambda spec: spec["model"].update(continuing_subword_prefix="##")),
    ("Whitespace", lambda spec: spec.update(pre_tokenizer={"type": "Whitespace"})),
]


@pytest.mark.parametrize(("named", "change"), REFUSED, ids=[named for named, _ in REFUSED])
def test_what_no_file_can_hold_is_refused_by_name(
    copy: Path, named: str, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_json(copy / "tokenizer.json", change)
    with pytest.raises((UnsupportedModel, TokenizerMismatch), match=named):
        vocabulary_of(copy)


INEXACT: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("add_prefix_space", lambda spec: spec["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True)),
    ("Lowercase", lambda spec: spec.update(normalizer={"type": "Lowercase"})),
    (
        r"\{1,4\}",
        lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\p{N}{1,4}|\s+|\S"}),
    ),
]


@pytest.mark.parametrize(("named", "change"), INEXACT, ids=[named for named, _ in INEXACT])
def test_what_the_runtime_does_nearly_stops_with_the_rate_and_the_nearest_name(
    copy: Path, few_names: None, named: str, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_json(copy / "tokenizer.json", change)
    with pytest.raises(
        TokenizerMismatch, match=rf"{named}.*pre '(llama-bpe|dbrx|gpt-2|qwen2)'.* stress texts"
    ) as caught:
        vocabulary_of(copy)
    assert "--allow-inexact-tokenizer" in str(caught.value.hint)
    assert caught.value.exit_code == 9


@pytest.mark.parametrize(("named", "change"), INEXACT, ids=[named for named, _ in INEXACT])
def test_an_inexact_tokenizer_is_proved_with_just_the_measured_rate(
    copy: Path, few_names: None, named: str, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_json(copy / "tokenizer.json", change)
    found = inexact_of(copy)
    assert found.inexact is not None
    assert found.inexact.wrong > 0
    assert [code for code, _ in found.warnings] == ["tokenizer-inexact"]
    assert prove_vocabulary(found).texts > 100


def test_a_proof_allows_no_more_than_was_measured(copy: Path, few_names: None) -> None:
    edit_json(copy / "tokenizer.json", INEXACT[0][1])
    found = inexact_of(copy)
    assert found.inexact is not None
    fewer = {reading: dict(list(texts.items())[1:]) for reading, texts in found.inexact.found.items()}
    with pytest.raises(TokenizerMismatch, match="1 of"):
        prove_vocabulary(replace(found, inexact=replace(found.inexact, found=fewer)))


def test_an_unknown_expression_that_cuts_as_a_known_one_is_said_and_taken(copy: Path, few_names: None) -> None:
    text = "(?:" + pretokenizer.LLAMA3 + ")"
    edit_json(
        copy / "tokenizer.json",
        lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": text}),
    )
    found = vocabulary_of(copy)
    assert found.pre in ("llama-bpe", "dbrx")
    assert [code for code, _ in found.warnings] == ["tokenizer-measured"]


def test_a_token_that_swallows_spaces_is_measured_and_said(copy: Path) -> None:
    edit_json(copy / "tokenizer.json", lambda spec: spec["added_tokens"][1].update(lstrip=True))
    found = vocabulary_of(copy)
    assert [code for code, _ in found.warnings] == ["tokenizer-inexact"]
    assert found.inexact is not None
    assert all("<|im_start|>" in text for texts in found.inexact.found.values() for text in texts)


@pytest.mark.parametrize("text", ["", "{}", '{"model": 3}', '{"model": {"type": "BPE", "merges": []}}', "[" * 100_000])
def test_a_broken_tokenizer_is_refused(copy: Path, text: str) -> None:
    (copy / "tokenizer.json").write_text(text)
    with pytest.raises(ConvertError):
        vocabulary_of(copy)


def test_a_normalizer_is_said(copy: Path) -> None:
    edit_json(copy / "tokenizer.json", lambda spec: spec.update(normalizer={"type": "NFC"}))
    found = vocabulary_of(copy)
    assert [code for code, _ in found.warnings] == ["tokenizer-normalizer"]
    assert prove_vocabulary(found).texts > 100


def test_a_default_eos_id_that_is_ordinary_text_is_left_out(copy: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        edit_json(copy / name, lambda config: config.update(eos_token_id=[2, 40]))
    found = vocabulary_of(copy)
    assert (found.eos, found.stop_ids) == (2, (2,))
    assert [code for code, _ in found.warnings] == ["eos-ignored"]


def test_every_end_token_of_the_source_ends_a_generation(copy: Path) -> None:
    edit_json(copy / "generation_config.json", lambda config: config.update(eos_token_id=[2, 0, 1]))
    found = vocabulary_of(copy)
    assert set(prove_vocabulary(found).end_tokens) >= {0, 1, 2}


def test_bos_is_added_when_the_tokenizer_adds_it(copy: Path) -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    edit_json(copy / "tokenizer.json", lambda spec: spec.update(post_processor=template))
    found = vocabulary_of(copy)
    assert (found.add_bos, found.add_eos) == (True, False)
    assert prove_vocabulary(found).texts > 100


def test_a_flag_that_tokenizer_json_does_not_follow_is_said(copy: Path) -> None:
    edit_json(copy / "tokenizer_config.json", lambda config: config.update(add_bos_token=True))
    found = vocabulary_of(copy)
    assert not found.add_bos
    assert [code for code, _ in found.warnings] == ["tokenizer-ends"]


def test_merges_that_do_not_reach_a_token_are_noticed(llama: Path) -> None:
    spec = json.loads(tokenizer_json())
    assert merges_reach_every_token(spec)
    spec["model"]["merges"].pop()
    assert not merges_reach_every_token(spec)


def test_whole_words_decide_between_two_names_for_one_splitting(copy: Path) -> None:
    edit_json(copy / "tokenizer.json", lambda spec: spec["model"]["merges"].pop())
    found = vocabulary_of(copy)
    assert found.pre == "dbrx"  # llama-bpe would take the unreachable token whole
    assert prove_vocabulary(found).texts > 100


def test_chat_template_file_comes_first(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("file")
    assert vocabulary_of(copy).chat_template == "file"


def test_named_chat_templates_are_kept(copy: Path) -> None:
    both = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    edit_json(copy / "tokenizer_config.json", lambda config: config.update(chat_template=both))
    found = vocabulary_of(copy)
    assert (found.chat_template, dict(found.named_templates)) == ("one", {"tool_use": "two"})


def test_a_model_without_an_end_token_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", eos_token_id=None)
    edit_json(folder / "tokenizer_config.json", lambda config: config.pop("eos_token"))
    with pytest.raises(UnsupportedModel, match="ends a text"):
        vocabulary_of(folder)
