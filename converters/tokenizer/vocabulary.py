"""What a GGUF file says about tokens, for each of the four kinds of tokenizer that it can hold, and how that is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = [
    "BYTE",
    "CONTROL",
    "CUTS",
    "NORMAL",
    "PHANTOM",
    "UNKNOWN",
    "UNUSED",
    "USER_DEFINED",
    "Inexact",
    "Model",
    "Vocabulary",
    "add_vocabulary",
    "byte_alphabet",
]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`enum llama_token_type` in llama.h."""
PHANTOM = "▁"
"""U+2581: the space of SentencePiece, and what libllama's WordPiece puts before each word."""
CUTS = "places of the cuts"
"""What the names of readings begin with that are about cuts and not about the model's own tokens."""
Model = Literal["gpt2", "llama", "bert", "t5"]
"""`tokenizer.ggml.model`: byte-level BPE, SentencePiece BPE, WordPiece, Unigram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inexact:
    """How far the runtime's tokenizer is from the source's, as measured on the stress list.

    `found` is reading → text → the ids that the runtime gives where they are others than the source's; a proof allows these and no
    more. `texts` is how many texts were tried, `tokens` the share of tokens that differ, in the worst reading.
    """

    texts: int
    found: Mapping[str, Mapping[str, tuple[int, ...]]]
    tokens: float
    example: str
    reason: str

    @property
    def wrong(self) -> int:
        """How many texts get other ids, in the worst reading."""
        return max((len(texts) for name, texts in self.found.items() if not name.startswith(CUTS)), default=0)

    @property
    def cuts(self) -> int:
        """How many texts are cut into words in other places, whether or not any token shows it."""
        return max((len(texts) for name, texts in self.found.items() if name.startswith(CUTS)), default=0)

    @property
    def rate(self) -> float:
        """The share of texts that get other ids, in the worst reading."""
        return self.wrong / max(self.texts, 1)

    def summary(self) -> str:
        """Return the measured difference in words."""
        text = f"{self.wrong} of {self.texts} stress texts ({self.rate:.1%}; {self.tokens:.2%} of the tokens) get other token ids"
        return f"{text}, and {self.cuts} are cut into words in other places" if self.cuts else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Everything about tokens that goes into the file; `spec` is the tokenizer.json with the added tokens of the other files.

    `before` and `after` are the ids that the tokenizer puts around a text. `stop_ids` are the tokens that end a generation in the
    source; the runtime must know each of them. `eos` is absent where a model of embeddings names none. What only some kinds have is
    None (or empty) for the others, and is then not written. `needs_name` must be part of `general.name`: by it libllama knows that
    tokens swallow the spaces after them.
    """

    model: Model = "gpt2"
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None
    real_size: int
    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    eot: int | None = None
    eom: int | None = None
    sep: int | None = None
    cls: int | None = None
    mask: int | None = None
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    add_bos: bool
    add_eos: bool
    add_sep: bool | None = None
    add_space_prefix: bool | None = None
    remove_extra_whitespaces: bool | None = None
    precompiled_charsmap: bytes | None = None
    lowercase: bool | None = None
    strip_accents: bool | None = None
    stop_ids: tuple[int, ...]
    normalizer: str | None
    chat_template: str | None
    named_templates: Mapping[str, str]
    spec: Mapping[str, Any]
    needs_name: str | None = None
    inexact: Inexact | None = None
    warnings: tuple[tuple[str, str], ...] = field(default=())

    def pieces(self) -> list[str]:
        """Return the texts of ordinary tokens, those that are whole UTF-8, for stress texts."""
        normal = [token for token, kind in zip(self.tokens, self.types, strict=True) if kind == NORMAL]
        if self.model != "gpt2":
            return [text for token in normal if (text := token.replace(PHANTOM, " "))]
        decode = {char: byte for byte, char in byte_alphabet().items()}
        found = []
        for token in normal:
            if all(char in decode for char in token):
                try:
                    found.append(bytes(decode[char] for char in token).decode())
                except UnicodeDecodeError:
                    continue  # half of a character: nothing that could be written as text
        return found

    def with_ends(self, ids: list[int]) -> list[int]:
        """Return IDS with what the tokenizer puts before and after a text."""
        return [*self.before, *ids, *self.after]

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


SPECIAL_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "eot": "eot",
    "eom": "eom",
    "sep": "seperator",  # so spelled in llama-arch.cpp
    "cls": "cls",
    "mask": "mask",
}
FLAG_KEYS = {
    "add_bos": "add_bos_token",
    "add_eos": "add_eos_token",
    "add_sep": "add_sep_token",
    "add_space_prefix": "add_space_prefix",
    "remove_extra_whitespaces": "remove_extra_whitespaces",
    "lowercase": "normalizer.lowercase",
    "strip_accents": "normalizer.strip_accents",
}


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """Add the tokenizer's keys; whether BOS and EOS are added is written down, because libllama's defaults depend on `pre`."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    if vocabulary.scores is not None:
        writer.add_token_scores(list(vocabulary.scores))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.model == "gpt2":
        writer.add_token_merges(list(vocabulary.merges))
    for name, key in SPECIAL_KEYS.items():
        token = getattr(vocabulary, name)
        if token is not None:
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
    for name, key in FLAG_KEYS.items():
        flag = getattr(vocabulary, name)
        if flag is not None:
            writer.add_bool(f"tokenizer.ggml.{key}", flag)
    if vocabulary.precompiled_charsmap:
        writer.add_precompiled_charsmap(vocabulary.precompiled_charsmap)
    if vocabulary.normalizer:
        writer.add_string("edgeai.tokenizer.normalizer", vocabulary.normalizer)
    if vocabulary.inexact:
        writer.add_string("edgeai.tokenizer.inexact", vocabulary.inexact.summary())
    add_templates(writer, vocabulary)


def add_templates(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """Add the chat templates: the default one, and the others by name with the list of their names."""
    if vocabulary.chat_template:
        writer.add_string("tokenizer.chat_template", vocabulary.chat_template)
    for name, template in sorted(vocabulary.named_templates.items()):
        writer.add_string(f"tokenizer.chat_template.{name}", template)
    if vocabulary.named_templates:
        writer.add_array("tokenizer.chat_templates", sorted(vocabulary.named_templates))
