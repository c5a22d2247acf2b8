"""The tokenizer.json of a GGUF file: its vocabulary read backwards, with the runtime itself as the witness of what it does.

Byte-level BPE is cut as the name in `tokenizer.ggml.pre` says; SentencePiece becomes BPE with byte fallback, whose merges follow from
the scores, as in transformers' convert_slow_tokenizer.py. That both give the same ids is proved afterwards, by execution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converters.child import ChildFailed, run_native
from converters.errors import InvalidModel, UnsupportedModel
from converters.header import GGUFHeader
from converters.pretokenizer import DIGITS, GPT2, PRE_TOKENIZERS, PreTokenizer
from converters.tokenizer import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

__all__ = ["tokenizer_config", "vocabulary_of"]

SPACE = "▁"
SAMPLE = "a b"
ALIASES: Mapping[str, str] = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "falcon-h1": "llama-bpe",
    "pixtral": "llama-bpe",
    "midm-2.0": "llama-bpe",
    "lfm2": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
    "kormo": "qwen2",
    "phi-2": "gpt-2",
    "exaone4": "gpt-2",
}
"""Names with the splitting and the flags of another (llama-vocab.cpp, `tokenizer_pre`)."""
NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "eot": "eot", "eom": "eom"}
"""Field of Vocabulary → name in `tokenizer.ggml.…_token_id`, with the format's own spelling."""
ADDED = (CONTROL, USER_DEFINED, UNKNOWN)


def vocabulary_of(header: GGUFHeader) -> Vocabulary:
    """Return the vocabulary of the file, with the tokenizer.json that it is read back as.

    Raises UnsupportedModel for a tokenizer that is not known here, InvalidModel where the runtime does not load it.
    """
    kv = header.kv
    model = kv.get("tokenizer.ggml.model")
    tokens: list[str] = header.array("tokenizer.ggml.tokens")
    if model not in ("gpt2", "llama") or not tokens:
        raise UnsupportedModel(
            f"the tokenizer {model!r} of {str(header.path)!r} cannot be read back",
            hint="known: gpt2 (byte-level BPE), llama (SentencePiece)",
        )
    types = header.array("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    named = {field: named_id(header, name, len(tokens)) for field, name in NAMES.items()}
    answer = ask(header)
    ends = frozenset(
        answer["eog"]
    )  # the runtime makes control tokens of them, whatever the file says (llama-vocab.cpp)
    types = [CONTROL if token in ends and kind == USER_DEFINED else kind for token, kind in enumerate(types)]
    before, after = around(header, *answer["ids"])
    scores = tuple(header.array("tokenizer.ggml.scores")) if model == "llama" else None
    normalizer = kv.get("edgeai.tokenizer.normalizer")
    shared = tokenizer_json(tokens, types, before, after)
    if model == "gpt2":
        merges = tuple(header.array("tokenizer.ggml.merges"))
        spec = shared | byte_level(header, merges, normalizer, shared["model"]["vocab"])
    else:
        merges = ()
        spec = shared | sentencepiece(header, tokens, types, scores or (), named["unk"], shared["model"]["vocab"])
    named["bos"] = before[0] if before else named["bos"]
    return Vocabulary(
        model=model,
        pre=str(kv.get("tokenizer.ggml.pre", "default")),
        tokens=tuple(tokens),
        types=tuple(types),
        merges=merges,
        scores=scores,
        real_size=len(spec["model"]["vocab"]),
        before=before,
        after=after,
        add_bos=bool(before),
        add_eos=bool(after),
        stop_ids=tuple(answer["eog"]),
        normalizer=normalizer if isinstance(normalizer, str) else None,
        chat_template=text_or_none(kv.get("tokenizer.chat_template")),
        named_templates=templates(header),
        spec=spec,
        bos=named["bos"],
        eos=named["eos"],
        unk=named["unk"],
        pad=named["pad"],
        sep=named["sep"],
        eot=named["eot"],
        eom=named["eom"],
    )


def ask(header: GGUFHeader) -> dict[str, Any]:
    """Return what the runtime does with a short text, (with ends, without them), and which tokens end a generation."""
    sets = [{"texts": [SAMPLE], "add_special": flag, "parse_special": False} for flag in (True, False)]
    try:
        answer = run_native({"jobs": [{"model": str(header.path), "sets": sets}]}, what="asking for the tokenizer")
    except ChildFailed as error:
        raise InvalidModel(
            f"the runtime does not load {str(header.path)!r}: {error.reason}", hint=error.hint
        ) from error
    job: dict[str, Any] = answer["jobs"][0]
    return job | {"ids": [found[0] for found in job["ids"]]}


def around(header: GGUFHeader, full: list[int], plain: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the runtime puts before and after a text."""
    for at in range(len(full) - len(plain) + 1):
        if full[at : at + len(plain)] == plain:
            return tuple(full[:at]), tuple(full[at + len(plain) :])
    raise UnsupportedModel(f"the runtime turns {plain} into {full} with the tokenizer of {str(header.path)!r}")


def named_id(header: GGUFHeader, name: str, count: int) -> int | None:
    """Return the id under a name, or None. The runtime takes one outside the vocabulary for none."""
    value = header.kv.get(f"tokenizer.ggml.{name}_token_id")
    return value if type(value) is int and 0 <= value < count else None


def text_or_none(value: Any) -> str | None:
    """Return VALUE where it is a text that says something."""
    return value if isinstance(value, str) and value else None


def templates(header: GGUFHeader) -> dict[str, str]:
    """Return the chat templates that have a name of their own."""
    start = "tokenizer.chat_template."
    return {key.removeprefix(start): text for key, text in header.kv.items() if key.startswith(start) and text}


def tokenizer_json(
    tokens: Sequence[str], types: Sequence[int], before: tuple[int, ...], after: tuple[int, ...]
) -> dict[str, Any]:
    """Return what both kinds have. Unused ids at the end are padding and no tokens; others keep their place."""
    size = len(tokens)
    while size and types[size - 1] == UNUSED:
        size -= 1
    texts = tokens[:size]
    vocab = {text: token for token, text in enumerate(texts)}
    if len(vocab) != size:
        raise InvalidModel("the vocabulary has one text under two ids", hint="convert the original model again")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": token, "content": texts[token], **flags, "special": types[token] != USER_DEFINED}
        for token in range(size)
        if types[token] in ADDED
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": post_processor(texts, before, after),
        "model": {"vocab": vocab},
    }


def post_processor(texts: Sequence[str], before: tuple[int, ...], after: tuple[int, ...]) -> dict[str, Any] | None:
    """Return what puts the ids BEFORE and AFTER around a text."""
    if not before and not after:
        return None
    ends = [[{"SpecialToken": {"id": texts[token], "type_id": 0}} for token in ids] for ids in (before, after)]
    second = [[{"SpecialToken": {"id": texts[token], "type_id": 1}} for token in ids] for ids in (before, after)]
    one = [*ends[0], {"Sequence": {"id": "A", "type_id": 0}}, *ends[1]]
    special = {texts[token]: {"id": texts[token], "ids": [token], "tokens": [texts[token]]} for token in before + after}
    return {
        "type": "TemplateProcessing",
        "single": one,
        "pair": [*one, *second[0], {"Sequence": {"id": "B", "type_id": 1}}, *second[1]],
        "special_tokens": special,
    }


def byte_level(
    header: GGUFHeader, merges: tuple[str, ...], normalizer: Any, vocab: Mapping[str, int]
) -> dict[str, Any]:
    """Return what is particular to byte-level BPE."""
    pre = pre_tokenizer(header)
    pairs = [merge.split(" ") for merge in merges]
    if wrong := [merge for merge, pair in zip(merges, pairs, strict=True) if len(pair) != 2]:
        raise InvalidModel(f"{str(header.path)!r} has the merge {wrong[0]!r}, and two pieces are needed")
    pairs = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab and pair[0] + pair[1] in vocab]
    steps = [split(expression) for expression in pre.splits if expression != GPT2]
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": GPT2 in pre.splits}
    return {
        "normalizer": {"type": "NFC"} if normalizer == "NFC" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, letters]} if steps else letters,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model_of(vocab, pairs, ignore_merges=pre.ignore_merges),
    }


def pre_tokenizer(header: GGUFHeader) -> PreTokenizer:
    """Return the splitting that the file names."""
    name = str(header.kv.get("tokenizer.ggml.pre", "default"))
    for item in PRE_TOKENIZERS:
        if item.name == ALIASES.get(name, name):
            return item
    known = ", ".join(sorted({item.name for item in PRE_TOKENIZERS} | ALIASES.keys()))
    raise UnsupportedModel(
        f"the pre-tokenizer {name!r} of {str(header.path)!r} cannot be read back", hint=f"known: {known}"
    )


def split(expression: str) -> dict[str, Any]:
    """Return the step of a tokenizer.json that splits by EXPRESSION."""
    if expression == DIGITS:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def sentencepiece(
    header: GGUFHeader,
    tokens: Sequence[str],
    types: Sequence[int],
    scores: Sequence[float],
    unk: int | None,
    vocab: Mapping[str, int],
) -> dict[str, Any]:
    """Return what is particular to SentencePiece. A space before each text is the runtime's default (llama-vocab.cpp)."""
    prefix = bool(header.kv.get("tokenizer.ggml.add_space_prefix", True))
    if len(scores) != len(tokens):
        raise InvalidModel(f"{str(header.path)!r} has {len(tokens)} tokens and {len(scores)} scores")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if prefix else [])]
    ranked = {
        text: 0.0 if types[token] == USER_DEFINED else float(scores[token])
        for text, token in vocab.items()
        if types[token] in (NORMAL, USER_DEFINED)
    }
    return {
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]} if prefix else replace,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model_of(vocab, merges_of(ranked), unk=None if unk is None else tokens[unk], fallback=True),
    }


def merges_of(scores: Mapping[str, float]) -> list[list[str]]:
    """Return the merges of a SentencePiece vocabulary, piece → score: each way to make a piece of two, the best score first.

    Among equals the longer left half comes first, so that a run of one character grows from its start.
    """
    found = [
        (-score, -at, at - len(text), text)
        for text, score in scores.items()
        for at in range(1, len(text))
        if text[:at] in scores and text[at:] in scores
    ]
    found.sort(key=lambda item: item[:3])
    return [[text[:-at], text[-at:]] for _, at, _, text in found]


def model_of(
    vocab: Mapping[str, int],
    merges: list[list[str]],
    *,
    unk: str | None = None,
    fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """Return the `model` of a tokenizer.json."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": fallback,
        "byte_fallback": fallback,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocab),
        "merges": merges,
    }


def tokenizer_config(vocabulary: Vocabulary, context: int) -> dict[str, Any]:
    """Return the tokenizer_config.json: named tokens, chat templates, and a class that does what tokenizer.json says."""
    texts = list(vocabulary.spec["model"]["vocab"])
    names = {"bos_token": vocabulary.bos, "eos_token": vocabulary.eos, "unk_token": vocabulary.unk}
    names |= {"pad_token": vocabulary.pad}
    template: Any = vocabulary.chat_template
    if vocabulary.named_templates:
        pairs = {**({"default": template} if template else {}), **vocabulary.named_templates}
        template = [{"name": name, "template": text} for name, text in pairs.items()]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        **{name: texts[token] for name, token in names.items() if token is not None and token < len(texts)},
        **({"chat_template": template} if template else {}),
    }
