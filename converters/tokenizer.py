"""A Hugging Face tokenizer.json as a GGUF vocabulary.

Only byte-level BPE is known here. Whatever has no twin in the runtime (a prefix space, an unknown expression, tokens that swallow the
spaces around them) raises UnsupportedModel before any tensor is read; that the twin gives the same ids is proved in
`converters.tokenproof`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from converters.checkpoint import Checkpoint
from converters.errors import BrokenCheckpoint, ConvertError, UnsupportedModel
from converters.pretokenizer import PreTokenizer, candidates, normalizer_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["CONTROL", "NORMAL", "UNUSED", "USER_DEFINED", "Vocabulary", "read_vocabulary", "source_tokenizer"]

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""`enum llama_token_type` in llama.h."""
KNOWN_ENDS = {
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<EOT>",
}
"""Texts that libllama takes for the end of a generation wherever they are (llama-vocab.cpp, `special_eog_ids`)."""
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Everything about tokens that goes into the file; `spec` is the tokenizer.json with the added tokens of the other files.

    `stop_ids` are the tokens that end a generation in the source; the runtime must know each of them.
    """

    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    real_size: int
    bos: int | None
    eos: int
    unk: int | None
    pad: int | None
    eot: int | None
    eom: int | None
    add_bos: bool
    add_eos: bool
    stop_ids: tuple[int, ...]
    normalizer: str | None
    chat_template: str | None
    named_templates: Mapping[str, str]
    spec: Mapping[str, Any]
    warnings: tuple[tuple[str, str], ...] = field(default=())

    def pieces(self) -> list[str]:
        """Return the texts of ordinary tokens, those that are whole UTF-8, for stress texts."""
        decode = {char: byte for byte, char in byte_alphabet().items()}
        found = []
        for token, kind in zip(self.tokens, self.types, strict=True):
            if kind == NORMAL and all(char in decode for char in token):
                try:
                    found.append(bytes(decode[char] for char in token).decode())
                except UnicodeDecodeError:
                    continue  # half of a character: nothing that could be written as text
        return found

    def with_ends(self, ids: list[int]) -> list[int]:
        """Return IDS with BOS before and EOS after them, as far as the tokenizer adds these."""
        before = [self.bos] if self.add_bos and self.bos is not None else []
        return [*before, *ids, *([self.eos] if self.add_eos else [])]

    def special_texts(self) -> list[str]:
        """Return the texts of the added tokens."""
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in (CONTROL, USER_DEFINED)]


def byte_alphabet() -> dict[int, str]:
    """Return byte → character of byte-level BPE: printable Latin-1 stands for itself, the other bytes for characters from U+0100.

    Source: `bytes_to_unicode` of https://github.com/openai/gpt-2/blob/master/src/encoder.py.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(rest)}


def read_vocabulary(checkpoint: Checkpoint, vocab_size: int) -> Vocabulary:
    """Return the vocabulary of CHECKPOINT, padded to VOCAB_SIZE.

    Raises UnsupportedModel for a tokenizer that is not known, BrokenCheckpoint for one that is damaged or of another model.
    """
    spec = read_spec(checkpoint)
    model = spec["model"]
    normalizer, choices = normalizer_of(spec), candidates(spec)
    check_model(model)
    warnings: list[tuple[str, str]] = []
    if normalizer:
        message = f"the tokenizer brings text into {normalizer} first, which llama.cpp does not know of: "
        message += "edgeai does so, and other runtimes give text in decomposed Unicode other token ids"
        warnings.append(("tokenizer-normalizer", message))
    special = {name: special_id(checkpoint, spec, name, warnings) for name in NAMED}
    tokens, types, real_size = token_table(spec, vocab_size)
    eos, eot, eom, stops = stop_tokens(checkpoint, special["eos_token"], tokens, types, warnings)
    add_bos, add_eos = added_ends(checkpoint, spec, special["bos_token"], eos, warnings)
    check_ids(spec)
    default, named = chat_templates(checkpoint)
    return Vocabulary(
        pre=choose(spec, choices).name,
        tokens=tokens,
        types=types,
        merges=merges_of(model),
        real_size=real_size,
        bos=special["bos_token"],
        eos=eos,
        unk=special["unk_token"],
        pad=special["pad_token"],
        eot=eot,
        eom=eom,
        add_bos=add_bos,
        add_eos=add_eos,
        stop_ids=stops,
        normalizer=normalizer,
        chat_template=default,
        named_templates=named,
        spec=spec,
        warnings=tuple(warnings),
    )


def source_tokenizer(spec: Mapping[str, Any]) -> Tokenizer:
    """Return the Hugging Face tokenizer of SPEC, without truncation and padding."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConvertError("the package 'tokenizers' is not installed", hint="pip install tokenizers") from error
    try:
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises Exception itself
        raise BrokenCheckpoint(f"tokenizer.json does not load: {error}", hint="copy or download it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_spec(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return tokenizer.json as values, with the added tokens that only tokenizer_config.json has."""
    if checkpoint.tokenizer_json is None:
        other = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (checkpoint.path / name).exists()]
        if other:
            raise UnsupportedModel(
                f"{str(checkpoint.path)!r} has its tokenizer in {other[0]!r} only, and tokenizer.json is needed",
                hint="AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes tokenizer.json",
            )
        raise BrokenCheckpoint(f"{str(checkpoint.path)!r} has no tokenizer.json", hint="copy the tokenizer files too")
    try:
        spec = json.loads(checkpoint.tokenizer_json)
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(
            f"tokenizer.json is not valid JSON: {error}", hint="copy or download it again"
        ) from error
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise BrokenCheckpoint("tokenizer.json has no model", hint="copy or download it again")
    spec["added_tokens"] = [*(spec.get("added_tokens") or []), *config_tokens(checkpoint, spec)]
    return spec


def config_tokens(checkpoint: Checkpoint, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the added tokens that transformers would add from the other files, in the shape of tokenizer.json."""
    known = {str(item.get("content")) for item in spec.get("added_tokens") or [] if isinstance(item, dict)}
    vocab = spec["model"].get("vocab")
    table = checkpoint.tokenizer_config.get("added_tokens_decoder")
    found: dict[str, dict[str, Any]] = {}
    for key, item in (table if isinstance(table, dict) else {}).items():
        if isinstance(item, dict) and str(key).isdigit() and str(item.get("content")) not in known:
            found[str(item["content"])] = {
                "id": int(key),
                **{flag: bool(item.get(flag)) for flag in FLAGS},
                "content": item["content"],
            }
    for name in NAMED:  # a named token that is in the vocabulary is a special one, listed or not
        text = special_text(checkpoint, name)
        if (
            text
            and text not in known
            and text not in found
            and isinstance(vocab, dict)
            and type(vocab.get(text)) is int
        ):
            found[text] = {"id": vocab[text], **dict.fromkeys(FLAGS, False), "special": True, "content": text}
    return sorted(found.values(), key=lambda item: int(item["id"]))


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def check_model(model: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel unless MODEL is byte-level BPE without options that the runtime has no twin of."""
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind != "BPE":
        raise UnsupportedModel(f"the tokenizer model {kind!r} is not known", hint="known: BPE (byte-level)")
    if model.get("byte_fallback"):
        raise UnsupportedModel("the tokenizer is SentencePiece-style BPE (byte_fallback)", hint="known: byte-level BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UnsupportedModel(f"the tokenizer has {option} {model[option]!r}, which the runtime cannot do")


def merges_of(model: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the merges as "left right"; tokenizer.json has either that or pairs."""
    merges = []
    for merge in model.get("merges") or []:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if len(parts) != 2 or not all(isinstance(part, str) and part and " " not in part for part in parts):
            raise UnsupportedModel(f"the tokenizer has the merge {merge!r}, which a GGUF file cannot hold")
        merges.append(f"{parts[0]} {parts[1]}")
    return tuple(merges)


def token_table(spec: Mapping[str, Any], vocab_size: int) -> tuple[tuple[str, ...], tuple[int, ...], int]:
    """Return the text and the type of each id, padded to VOCAB_SIZE, and the number of ids that the tokenizer can give."""
    vocab = spec["model"].get("vocab")
    if not isinstance(vocab, dict) or not all(type(token) is int and token >= 0 for token in vocab.values()):
        raise BrokenCheckpoint("tokenizer.json has no vocabulary of token → id", hint="copy or download it again")
    table: dict[int, tuple[str, int]] = {token: (text, NORMAL) for text, token in vocab.items()}
    if len(table) != len(vocab):
        raise BrokenCheckpoint("tokenizer.json gives one id to two tokens", hint="copy or download it again")
    for item in spec["added_tokens"]:
        table[check_added(item, table)] = (str(item["content"]), CONTROL if item.get("special") else USER_DEFINED)
    real_size = max(table) + 1
    if real_size > vocab_size:
        raise BrokenCheckpoint(
            f"the tokenizer gives ids up to {real_size - 1} ({table[real_size - 1][0]!r}), and config.json has vocab_size {vocab_size}",
            hint="tokens were added without model.resize_token_embeddings(): resize and save the model again",
        )
    taken = {text for text, _ in table.values()}
    if len(taken) != len(table):
        raise BrokenCheckpoint("the tokenizer has one text under two ids", hint="copy or download it again")
    for token in range(vocab_size):
        if token not in table:
            table[token] = (padding_text(token, taken), UNUSED)
    ordered = [table[token] for token in range(vocab_size)]
    return tuple(text for text, _ in ordered), tuple(kind for _, kind in ordered), real_size


def padding_text(token: int, taken: set[str]) -> str:
    """Return a text for an id that no token has; libllama wants each text once."""
    text = f"[PAD{token}]"
    while text in taken:
        text = f"[{text}]"
    taken.add(text)
    return text


def check_added(item: Any, table: Mapping[int, tuple[str, int]]) -> int:
    """Return the id of one added token after checking what it does to the text around it."""
    if not isinstance(item, dict) or type(item.get("id")) is not int or item["id"] < 0 or not item.get("content"):
        raise BrokenCheckpoint(f"tokenizer.json has the added token {item!r}", hint="copy or download it again")
    token, text = int(item["id"]), str(item["content"])
    if token in table and table[token][0] != text:
        raise BrokenCheckpoint(
            f"the added token {text!r} has the id {token}, which is {table[token][0]!r} in the vocabulary"
        )
    for option in ("lstrip", "rstrip", "single_word"):
        if item.get(option):
            raise UnsupportedModel(
                f"the added token {text!r} has {option}, which the runtime cannot do",
                hint=f"save the tokenizer with {option} false",
            )
    return token


def check_ids(spec: Mapping[str, Any]) -> None:
    """Raise BrokenCheckpoint where the tokenizers library gives an added token another id than the file says: it leaves no gaps."""
    tokenizer = source_tokenizer(spec)
    for item in spec["added_tokens"]:
        found = tokenizer.token_to_id(str(item["content"]))
        if found != item["id"]:
            raise BrokenCheckpoint(
                f"the added token {item['content']!r} has the id {item['id']} in the file, and the tokenizers library gives it {found}",
                hint="there is a gap in the ids before it: load and save the tokenizer again",
            )


def special_text(checkpoint: Checkpoint, name: str) -> str | None:
    """Return the text of a named special token."""
    for source in (checkpoint.tokenizer_config, checkpoint.special_tokens):
        value = source.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str) and value:
            return value
    return None


def special_id(
    checkpoint: Checkpoint, spec: Mapping[str, Any], name: str, warnings: list[tuple[str, str]]
) -> int | None:
    """Return the id of the special token NAME: by its text, or else by config.json where that points at an added token."""
    added = {str(item["content"]): int(item["id"]) for item in spec["added_tokens"]}
    text = special_text(checkpoint, name)
    if text in added:
        return added[text]
    if text is not None:
        warnings.append(("special-token-missing", f"{name} {text!r} is not in the vocabulary and is left out"))
        return None
    token = checkpoint.config.get(f"{name}_id")
    return token if name != "eos_token" and type(token) is int and token in added.values() else None


def stop_tokens(
    checkpoint: Checkpoint,
    eos: int | None,
    tokens: tuple[str, ...],
    types: tuple[int, ...],
    warnings: list[tuple[str, str]],
) -> tuple[int, int | None, int | None, tuple[int, ...]]:
    """Return the ids of EOS, of two further end tokens (EOT, EOM), and all that end a generation in the source.

    transformers stops at generation_config's eos_token_id (else config's), which may be a list. An id there that is an ordinary piece
    of text while the tokenizer names an EOS is a default that nobody set (LlamaConfig: 2), and is left out with a warning.
    """
    value = checkpoint.generation_config.get("eos_token_id", checkpoint.config.get("eos_token_id"))
    listed = [
        item
        for item in (value if isinstance(value, list) else [value])
        if type(item) is int and 0 <= item < len(tokens)
    ]
    for token in list(listed):
        if eos is not None and token != eos and types[token] not in (CONTROL, USER_DEFINED):
            listed.remove(token)
            warnings.append(
                (
                    "eos-ignored",
                    f"eos_token_id {token} of config.json is the ordinary token {tokens[token]!r} and is left out",
                )
            )
    if eos is None and not listed:
        raise UnsupportedModel(
            f"nothing says which token ends a text: no eos_token and no eos_token_id in {str(checkpoint.path)!r}",
            hint="name an eos_token in tokenizer_config.json",
        )
    eos = listed[0] if eos is None else eos
    extra = [token for token in dict.fromkeys(listed) if token != eos]
    # The two further slots go to ends that the runtime does not know by their text; the rest it finds itself, or the proof says no.
    slots = sorted(extra, key=lambda token: tokens[token] in KNOWN_ENDS)
    eot, eom = (*slots, None, None)[:2]
    return eos, eot, eom, (eos, *extra)


def added_ends(
    checkpoint: Checkpoint, spec: Mapping[str, Any], bos: int | None, eos: int, warnings: list[tuple[str, str]]
) -> tuple[bool, bool]:
    """Return whether the tokenizer puts BOS before and EOS after a text, found by running it.

    Where tokenizer_config.json has other flags, tokenizer.json holds, as it does in transformers 5, and a warning says so.
    """
    tokenizer = source_tokenizer(spec)
    plain, full = (tokenizer.encode("a b", add_special_tokens=flag).ids for flag in (False, True))
    for found in ((False, False), (True, False), (False, True), (True, True)):
        if full != [*([bos] * found[0]), *plain, *([eos] * found[1])]:
            continue
        for name, added in zip(("add_bos_token", "add_eos_token"), found, strict=True):
            flag = checkpoint.tokenizer_config.get(name)
            if isinstance(flag, bool) and flag != added:
                message = f"tokenizer_config.json has {name} {flag}, and tokenizer.json does otherwise: the file does as tokenizer.json"
                warnings.append(("tokenizer-ends", message))
        return found
    raise UnsupportedModel(
        f"the tokenizer's post_processor turns {plain} into {full}, which is not BOS {bos} before or EOS {eos} after it",
        hint="known: nothing, BOS before, EOS after",
    )


def chat_templates(checkpoint: Checkpoint) -> tuple[str | None, dict[str, str]]:
    """Return the default chat template and the named ones; chat_template.jinja comes before tokenizer_config.json."""
    value = checkpoint.tokenizer_config.get("chat_template")
    named: dict[str, str] = {}
    if isinstance(value, list):
        named = {
            str(item["name"]): str(item["template"])
            for item in value
            if isinstance(item, dict) and {"name", "template"} <= item.keys()
        }
        value = named.pop("default", None)
    default = checkpoint.chat_template_file or (value if isinstance(value, str) else None)
    return default or None, named


def choose(spec: Mapping[str, Any], choices: list[PreTokenizer]) -> PreTokenizer:
    """Return the first of CHOICES that treats whole words as the tokenizer does, by its flag or in effect."""
    wanted = bool(spec["model"].get("ignore_merges"))
    for item in choices:
        if item.ignore_merges == wanted or merges_reach_every_token(spec):
            return item
    raise UnsupportedModel(
        f"the tokenizer has ignore_merges {wanted}, and the runtime's {choices[0].name!r} is the other way",
        hint="its vocabulary has tokens that merges do not reach, so the two would give different ids",
    )


def merges_reach_every_token(spec: Mapping[str, Any]) -> bool:
    """Whether merging alone gives each token of the vocabulary for its own text; then `ignore_merges` changes nothing."""
    plain = {**spec, "model": {**spec["model"], "ignore_merges": False}}
    tokenizer = source_tokenizer(plain)
    added = {str(item["content"]) for item in spec["added_tokens"]}
    for text, token in spec["model"]["vocab"].items():
        if text in added and len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) != 1:
            continue  # never one word, so it is only ever found as an added token
        found = tokenizer.model.tokenize(text)
        if len(found) != 1 or found[0].id != token:
            return False
    return True
