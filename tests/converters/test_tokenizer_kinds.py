"""SentencePiece, WordPiece and Unigram vocabularies, freshly trained, and what a damaged one is found by."""

from __future__ import annotations

import copy
import io
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converters.checkpoint import Checkpoint
from converters.errors import BrokenCheckpoint, TokenizerMismatch, UnsupportedModel
from converters.gguf import write_vocabulary
from converters.pretokenizer import BLOOM, COVERING, PRE_TOKENIZERS, PreTokenizer, node_of, splits_of
from converters.stress import PROSE, STRESS
from converters.tokenizer import CONTROL, USER_DEFINED, Vocabulary, plain_name, read_vocabulary
from converters.tokenizer.proto import parse
from converters.tokenizer.special import chat_templates
from converters.tokenproof import prove_vocabulary
from tests.checkpoints import tokenizer_json

ASCII = {"[UNK]": "unk_token", "[CLS]": "cls_token", "[SEP]": "sep_token", "[PAD]": "pad_token", "[MASK]": "mask_token"}
Spec = dict[str, Any]


def vocabulary_of(
    spec: Spec, config: dict[str, str], *, allow_inexact: bool = False, size: int | None = None
) -> Vocabulary:
    checkpoint = Checkpoint(
        path=Path("/nonexistent"), config={}, tensors={}, tokenizer_config=config, tokenizer_json=json.dumps(spec)
    )
    return read_vocabulary(checkpoint, size or 2048, allow_inexact=allow_inexact)


def around(first: str | None, last: str | None, ids: dict[str, int]) -> Spec:
    ends = [text for text in (first, last) if text]
    single: list[Spec] = [{"Sequence": {"id": "A", "type_id": 0}}]
    single = [*([{"SpecialToken": {"id": first, "type_id": 0}}] if first else []), *single]
    single += [{"SpecialToken": {"id": last, "type_id": 0}}] if last else []
    special = {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in ends}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def trained(kind: str) -> Spec:
    """Return the tokenizer.json of a small tokenizer of KIND, trained here."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    texts = [*STRESS, *PROSE]
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=list(ASCII), show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        spec: Spec = json.loads(tokenizer.to_str())
        return spec | {"post_processor": around("[CLS]", "[SEP]", spec["model"]["vocab"])}
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if kind == "Unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Precompiled(charsmap())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=names, unk_token="<unk>", show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        spec = json.loads(tokenizer.to_str())
        spec["added_tokens"][4]["lstrip"] = True  # as XLM-R's <mask>
        vocab = spec["model"]["vocab"]  # of SentencePiece, which has 32 bits too: of equal sums the first wins in both
        spec["model"]["vocab"] = [[text, struct.unpack("f", struct.pack("f", score))[0]] for text, score in vocab]
        return spec | {"post_processor": around("<s>", "</s>", {"<s>": 0, "</s>": 2})}
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.ByteFallback()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text.replace(" ", "▁") for text in texts], trainer)
    spec = complete(json.loads(tokenizer.to_str()))
    return spec | {"post_processor": around("<s>", None, {"<s>": 1})}


def charsmap() -> bytes:
    """Return the table of replacements that XLM-R has, from a SentencePiece model that is trained with it."""
    import sentencepiece

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE[0].splitlines()),
        model_writer=file,
        vocab_size=64,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    return parse(file.getvalue()).charsmap


def complete(spec: Spec) -> Spec:
    """Give SPEC every merge that makes one of its pieces, as a tokenizer from SentencePiece has, and no special bytes."""
    from converters.tokenizer.extract import merges_by_score

    spec["added_tokens"] = spec["added_tokens"][:3]
    vocab, ranks = spec["model"]["vocab"], {"".join(pair): at for at, pair in enumerate(spec["model"]["merges"])}
    pieces = {text: token for text, token in vocab.items() if token >= 259}
    scores = {token: -float(ranks.get(text, len(ranks))) for text, token in pieces.items()}
    spec["model"]["merges"] = [list(pair) for pair in merges_by_score(pieces, scores)]
    return spec


@pytest.fixture(scope="module")
def specs() -> dict[str, Spec]:
    return {kind: trained(kind) for kind in ("BPE", "WordPiece", "Unigram")}


NAMES = {
    "BPE": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "WordPiece": {name: text for text, name in ASCII.items()},
    "Unigram": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "cls_token": "<s>",
    },
}


@pytest.fixture(scope="module")
def known(specs: dict[str, Spec]) -> dict[str, Vocabulary]:
    return {kind: vocabulary_of(spec, NAMES[kind]) for kind, spec in specs.items()}


@pytest.mark.parametrize(("kind", "model"), [("BPE", "llama"), ("WordPiece", "bert"), ("Unigram", "t5")])
def test_each_kind_is_proved(known: dict[str, Vocabulary], kind: str, model: str) -> None:
    found = known[kind]
    assert found.model == model
    assert prove_vocabulary(found).texts > 100
    assert {code for code, _ in found.warnings} <= {"tokenizer-inexact"}


DAMAGE: list[tuple[str, str, Callable[[Vocabulary], Vocabulary]]] = [
    ("BPE", "scores negated", lambda v: replace(v, scores=tuple(-score for score in v.scores or ()))),
    ("BPE", "two scores swapped", lambda v: replace(v, scores=swapped(v.scores or (), v))),
    ("BPE", "no space before a text", lambda v: replace(v, add_space_prefix=not v.add_space_prefix)),
    ("BPE", "special tokens dropped", lambda v: replace(v, types=tuple(1 if t == CONTROL else t for t in v.types))),
    ("WordPiece", "phantom space missing", lambda v: replace(v, tokens=tuple(phantomless(v.tokens)))),
    ("WordPiece", "cased", lambda v: replace(v, lowercase=False)),
    ("WordPiece", "two tokens swapped", lambda v: replace(v, tokens=swap(v.tokens, v.tokens.index("▁the")))),
    ("WordPiece", "other sep", lambda v: replace(v, sep=4)),
    ("Unigram", "scores negated", lambda v: replace(v, scores=tuple(-score for score in v.scores or ()))),
    ("Unigram", "shifted", lambda v: replace(v, tokens=(*v.tokens[1:], v.tokens[0]))),
    ("Unigram", "no space before a text", lambda v: replace(v, add_space_prefix=False, remove_extra_whitespaces=False)),
    ("Unigram", "no eos", lambda v: replace(v, add_eos=False)),
]


def swapped(scores: tuple[float, ...], vocabulary: Vocabulary) -> tuple[float, ...]:
    """Exchange the first and the last place in the order of merging."""
    order = sorted(range(259, vocabulary.real_size), key=lambda token: -scores[token])
    changed = list(scores)
    changed[order[0]], changed[order[-1]] = scores[order[-1]], scores[order[0]]
    return tuple(changed)


def swap(tokens: tuple[str, ...], at: int) -> tuple[str, ...]:
    return (*tokens[:at], tokens[at + 1], tokens[at], *tokens[at + 2 :])


def phantomless(tokens: tuple[str, ...]) -> list[str]:
    return [f"##{text}" if not text.startswith("▁") else text[1:] for text in tokens]


@pytest.mark.parametrize(
    ("kind", "change"), [(kind, change) for kind, _, change in DAMAGE], ids=[f"{k} {n}" for k, n, _ in DAMAGE]
)
def test_a_damaged_vocabulary_is_not_proved(
    known: dict[str, Vocabulary], kind: str, change: Callable[[Vocabulary], Vocabulary], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = known[kind]
    damaged = change(whole)
    assert damaged != whole
    monkeypatch.setattr(
        "converters.tokenproof.write_vocabulary",
        lambda path, arch, _v, keys: write_vocabulary(path, arch, damaged, keys),
    )
    with pytest.raises(TokenizerMismatch):
        prove_vocabulary(whole)


@pytest.mark.parametrize("item", PRE_TOKENIZERS, ids=[item.name for item in PRE_TOKENIZERS])
def test_each_splitting_of_the_table_is_proved_with_a_bpe_trained_on_it(item: PreTokenizer) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    node = node_of(item.splits)
    assert splits_of(node) == item.splits
    tokenizer = Tokenizer(models.BPE(ignore_merges=item.ignore_merges))
    tokenizer = Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"pre_tokenizer": node}))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*STRESS, *PROSE], trainer)
    found = vocabulary_of(json.loads(tokenizer.to_str()), {"eos_token": "<|endoftext|>"}, size=508)
    alike = {other.name for other in PRE_TOKENIZERS if other.splits == item.splits}
    assert found.pre in alike
    assert (found.inexact is None) == (item.near is None)
    assert prove_vocabulary(found).splits > 100


def test_what_covers_all_text_may_remove_what_is_between_its_matches() -> None:
    from tokenizers import Regex, pre_tokenizers

    def split(expression: str, behavior: str, *, invert: bool) -> tuple[str, ...]:
        step = {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": invert}
        letters = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        return splits_of({"type": "Sequence", "pretokenizers": [step, letters]})

    for expression in COVERING:
        assert split(expression, "Removed", invert=True) == split(expression, "Isolated", invert=False) == (expression,)
        assert split(expression, "Removed", invert=False) != (expression,)
        remove = pre_tokenizers.Split(Regex(expression), "removed")
        assert not any(remove.pre_tokenize_str(text) for text in (*STRESS, *PROSE))
    assert split(BLOOM, "Removed", invert=True) != (BLOOM,)


@pytest.mark.parametrize(("scheme", "name"), [("first", "space-first"), ("always", "space-always"), ("never", None)])
def test_the_space_of_metaspace_is_put_there_by_the_runtime_here(
    specs: dict[str, Spec], scheme: str, name: str | None
) -> None:
    step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    spec = specs["BPE"] | {"normalizer": None, "pre_tokenizer": step}
    found = vocabulary_of(spec, NAMES["BPE"])
    assert found.normalizer == name
    assert found.inexact is None or scheme == "always"  # a space by itself cannot be said to libllama
    assert prove_vocabulary(found).texts > 100


def test_the_space_of_llama_2_is_put_there_by_any_runtime(specs: dict[str, Spec]) -> None:
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    found = vocabulary_of(specs["BPE"] | {"normalizer": {"type": "Sequence", "normalizers": steps}}, NAMES["BPE"])
    assert (found.add_space_prefix, found.normalizer) == (True, None)
    assert prove_vocabulary(found).texts > 100


def test_pieces_without_bytes_would_abort_the_runtime_and_are_refused(specs: dict[str, Spec]) -> None:
    spec = json.loads(json.dumps(specs["BPE"]))
    spec["model"]["vocab"]["<zero>"] = spec["model"]["vocab"].pop("<0x00>")
    with pytest.raises(UnsupportedModel, match="1 of the 256 bytes"):
        vocabulary_of(spec, NAMES["BPE"])


def test_a_cased_wordpiece_is_written_as_cased(specs: dict[str, Spec]) -> None:
    spec = specs["WordPiece"] | {"normalizer": specs["WordPiece"]["normalizer"] | {"lowercase": False}}
    found = vocabulary_of(spec, NAMES["WordPiece"])
    assert (found.lowercase, found.strip_accents) == (False, False)
    assert prove_vocabulary(found).texts > 100


def test_a_wordpiece_that_makes_letters_small_and_keeps_accents_is_known(specs: dict[str, Spec]) -> None:
    spec = specs["WordPiece"] | {"normalizer": specs["WordPiece"]["normalizer"] | {"strip_accents": False}}
    found = vocabulary_of(spec, NAMES["WordPiece"])
    assert (found.lowercase, found.strip_accents) == (True, False)
    assert found.inexact
    assert "\u0130" in found.inexact.reason
    prove_vocabulary(found)


def test_a_wordpiece_that_keeps_ideographs_together_is_inexact(specs: dict[str, Spec]) -> None:
    normalizer = specs["WordPiece"]["normalizer"] | {"handle_chinese_chars": False}
    with pytest.raises(TokenizerMismatch, match="stress texts"):
        vocabulary_of(specs["WordPiece"] | {"normalizer": normalizer}, NAMES["WordPiece"])


def added(token: int, text: str, **flags: bool) -> Spec:
    usual = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, **usual, "special": True, **flags}


def test_tokens_that_are_found_behind_a_space_only_are_inexact(specs: dict[str, Spec]) -> None:
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    spec = copy.deepcopy(specs["BPE"]) | {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
    }
    spec["added_tokens"].append(added(len(spec["model"]["vocab"]), "<|im_start|>", normalized=True))
    with pytest.raises(TokenizerMismatch, match=r"'<\|im_start\|>' only behind a space"):
        vocabulary_of(spec, NAMES["BPE"])
    found = vocabulary_of(spec, NAMES["BPE"], allow_inexact=True)
    assert found.inexact
    prove_vocabulary(found)


def test_what_only_the_proof_finds_is_measured_where_that_is_allowed() -> None:
    spec = json.loads(tokenizer_json())
    size = len(spec["model"]["vocab"])
    spec["added_tokens"] += [
        added(size, "hello world", normalized=True, special=False),
        added(size + 1, " ", special=False),
    ]
    names = {"eos_token": "<|im_end|>"}
    with pytest.raises(TokenizerMismatch):
        prove_vocabulary(vocabulary_of(spec, names))
    found = vocabulary_of(spec, names, allow_inexact=True)
    assert found.inexact
    prove_vocabulary(found)


def test_a_sequence_of_one_step_is_that_step(specs: dict[str, Spec]) -> None:
    spec = copy.deepcopy(specs["WordPiece"])
    spec["normalizer"] = {"type": "Sequence", "normalizers": [spec["normalizer"]]}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [spec["pre_tokenizer"]]}
    assert vocabulary_of(spec, NAMES["WordPiece"]).lowercase


def test_tokens_for_pictures_behind_the_model_are_left_out(specs: dict[str, Spec]) -> None:
    size = len(specs["BPE"]["model"]["vocab"])
    picture = added(size, "<image_soft_token>")
    spec = specs["BPE"] | {"added_tokens": [*specs["BPE"]["added_tokens"], picture]}
    found = vocabulary_of(spec, NAMES["BPE"], size=size)
    assert len(found.tokens) == size
    assert "tokenizer-modality" in [code for code, _ in found.warnings]
    other = specs["BPE"] | {"added_tokens": [*specs["BPE"]["added_tokens"], added(size, "<|mine|>")]}
    with pytest.raises(BrokenCheckpoint, match=r"<\|mine\|>"):
        vocabulary_of(other, NAMES["BPE"], size=size)


def test_phi_3s_tokens_swallow_spaces_by_the_name_of_the_model(specs: dict[str, Spec]) -> None:
    size = len(specs["BPE"]["model"]["vocab"])
    items = [*specs["BPE"]["added_tokens"], added(size, "<|endoftext|>"), added(size + 1, "<|end|>", rstrip=True)]
    items[2] = added(2, "</s>", rstrip=True, special=False)
    found = vocabulary_of(specs["BPE"] | {"added_tokens": items}, NAMES["BPE"])
    assert found.needs_name == "phi-3"
    assert prove_vocabulary(found).texts > 100
    with pytest.raises(TokenizerMismatch):
        prove_vocabulary(replace(found, needs_name=None))


@pytest.mark.parametrize(
    ("name", "needs", "written"),
    [
        ("Tiny", "phi-3", "phi-3 Tiny"),
        ("Phi-3.5 mini", "phi-3", "Phi-3.5 mini"),
        ("phi3 3.8B", None, "phi 3 3.8B"),
        ("my Phi-3 clone", None, "my phi 3 clone"),
        ("SmolLM2", None, "SmolLM2"),
    ],
)
def test_names_that_change_what_the_runtime_does_are_written_only_where_they_should(
    name: str, needs: str | None, written: str
) -> None:
    assert plain_name(name, needs) == written


def test_a_token_that_the_runtime_makes_control_is_control_here_too(specs: dict[str, Spec]) -> None:
    size = len(specs["BPE"]["model"]["vocab"])
    items = [added(size, "<|fim_prefix|>", special=False), added(size + 1, "<think>", special=False)]
    found = vocabulary_of(specs["BPE"] | {"added_tokens": [*specs["BPE"]["added_tokens"], *items]}, NAMES["BPE"])
    assert (found.types[size], found.types[size + 1]) == (CONTROL, USER_DEFINED)
    assert "tokenizer-control" in [code for code, _ in found.warnings]
    assert prove_vocabulary(found).texts > 100


def test_templates_come_from_every_place_where_they_are_kept(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "inside"}))
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    checkpoint = Checkpoint(path=tmp_path, config={}, tensors={}, tokenizer_config={"chat_template": "older"})
    assert chat_templates(checkpoint) == ("inside", {"tool_use": "tools"})
    assert chat_templates(replace(checkpoint, chat_template_file="file"))[0] == "file"
