"""Text to token ids and back by a tokenizer.json, through the library that the model was trained with: the ids are the source's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.weight_files import read_json
from edgeai.chat import Segment
from edgeai.errors import InvalidModel, UsageError
from edgeai.types import check_text, is_whole

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["HFVocab", "read_tokenizer"]

MAX_BYTES = 64_000_000
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
FIRST = "first"
"""A prepend scheme by which only the beginning of a prompt gets a space before it."""


class HFVocab:
    """The tokenizer of a folder, or of a text that is its tokenizer.json. Any thread may use it.

    Text never becomes a special token. Tokens that were added without being special (`<think>` of some families) are ordinary vocabulary:
    the tokenizer that the model was trained with finds them in any text, and so does this one.

    `ends` are the ids that end a generation; `names` the texts of named tokens, for chat templates; `size` is the model's vocabulary,
    which may be larger than the tokenizer's.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        ends: Iterable[int] = (),
        names: Mapping[str, str] | None = None,
        size: int | None = None,
    ) -> None:
        spec = _with_decoder(spec)
        self._spec = spec
        self._special = _load(spec)
        self._plain = _load(_hidden(spec))
        self._plain.encode_special_tokens = True
        self._ends = frozenset(ends)
        self.named = {"bos_token": "", "eos_token": ""} | dict(names or {})
        self.size = size or self._special.get_vocab_size()
        added = [item for item in spec.get("added_tokens") or [] if isinstance(item, dict)]
        self.control = {str(item["content"]): item for item in added if item.get("special") and item.get("content")}
        self._control_ids = {int(item["id"]) for item in self.control.values()}

    @classmethod
    def of_folder(cls, folder: Path, *, ends: Iterable[int] = (), size: int | None = None) -> HFVocab:
        """Read tokenizer.json of FOLDER, and the names of tokens in tokenizer_config.json. Raises InvalidModel."""
        spec = read_json(folder / "tokenizer.json", MAX_BYTES)
        path = folder / "tokenizer_config.json"
        config = read_json(path, MAX_BYTES) if path.is_file() else {}
        names = {}
        for name in NAMED:
            value = config.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                names[name] = value
        return cls(spec, ends=ends, names=names, size=size)

    @property
    def tokens(self) -> dict[str, int]:
        """Every token and its id."""
        return dict(self._special.get_vocab(with_added_tokens=True))

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the ids of TEXT, with what the model puts around a text if `add_special`."""
        check_text(text)
        _check_unicode(text)
        if parse_special:
            return list(self._special.encode(text, add_special_tokens=add_special).ids)
        ids = list(self._plain.encode(text, add_special_tokens=False).ids)
        return self.with_ends(ids) if add_special else ids

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each of TEXTS with what the model puts around a text; in all threads of the library."""
        for text in texts:
            check_text(text)
            _check_unicode(text)
        return [
            self.with_ends(list(item.ids)) for item in self._plain.encode_batch(list(texts), add_special_tokens=False)
        ]

    def with_ends(self, ids: list[int]) -> list[int]:
        """Return IDS with what the model puts before and after a text."""
        before, after = self.around
        return [*before, *ids, *after]

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The tokens that the model puts before and after a text."""
        bare = self._special.encode("a", add_special_tokens=False).ids
        whole = self._special.encode("a", add_special_tokens=True).ids
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return list(whole[:start]), list(whole[start + len(bare) :])
        return [], []

    def tokenize_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Return the ids of a rendered prompt: control segments are one token each, everything else is plain text.

        A prompt in which no message has the text of a special token is read whole, as the source's own `apply_chat_template` reads it.
        """
        parts = list(segments)
        for part in parts:
            _check_unicode(part.text)
        if not any(text in part.text for part in parts if not part.control for text in self.control):
            return list(self._special.encode("".join(part.text for part in parts), add_special_tokens=False).ids)
        ids: list[int] = []
        strip = False
        for index, part in enumerate(parts):
            if part.control:
                item = self.control[part.text]
                ids.append(int(item["id"]))
                strip = bool(item.get("rstrip"))
                continue
            text = part.text.lstrip() if strip else part.text
            strip = False
            after = parts[index + 1] if index + 1 < len(parts) else None
            if after is not None and after.control and self.control[after.text].get("lstrip"):
                text = text.rstrip()
            tokenizer = self._plain if not ids else self._later
            ids += tokenizer.encode(text, add_special_tokens=False).ids if text else []
        return ids

    @cached_property
    def _later(self) -> Tokenizer:
        """The tokenizer of text that does not begin a prompt."""
        text = json.dumps(_hidden(self._spec))
        tokenizer = _load(json.loads(text.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def check(self, ids: Iterable[int]) -> None:
        """Raise UsageError for an id that is not in the vocabulary, and for what is no list of ids."""
        try:
            wrong = [id_ for id_ in ids if not (is_whole(id_) and 0 <= id_ < self.size)]
        except TypeError as error:
            raise UsageError(f"{ids!r:.60} is no list of token ids", hint="tokenize makes one of a text") from error
        if wrong:
            raise UsageError(
                f"token id {wrong[0]!r:.60} is not in the vocabulary", hint=f"ids go from 0 to {self.size - 1}"
            )

    def is_end(self, token: int) -> bool:
        """Whether TOKEN ends a generation."""
        return token in self._ends

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a generation."""
        return self._ends

    def piece(self, token: int) -> bytes:
        """Return the bytes of TOKEN as it stands in the middle of a text; special tokens, and ids without a token, have none."""
        return self._pieces[token] if token < len(self._pieces) else b""

    @cached_property
    def _pieces(self) -> list[bytes]:
        vocab = self._special.get_vocab(with_added_tokens=True)
        found = [b""] * min(max(vocab.values(), default=-1) + 1, self.size)
        decode = _piece_decoder(self._spec)
        added = {int(item["id"]) for item in self._spec.get("added_tokens") or []}
        for text, token in vocab.items():
            if token not in self._control_ids and token < len(found):
                found[token] = text.encode("utf-8", "replace") if token in added else decode(text)
        return found

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS as the library joins it, without special tokens."""
        self.check(ids)
        return str(self._special.decode(list(ids), skip_special_tokens=True))

    def guidance(self) -> Any:
        """Return the vocabulary as llguidance needs it. Raises ValueError where it cannot be used."""
        from llguidance import LLTokenizer

        ends = sorted(self._ends)
        try:
            return LLTokenizer(json.dumps(dict(self._spec)), n_vocab=self.size, eos_token=ends or None)
        except Exception as error:  # the library raises Exception itself
            raise ValueError(str(error)) from error


def read_tokenizer(text: str, where: str) -> Mapping[str, Any]:
    """Return the values of a tokenizer.json that is TEXT. Raises InvalidModel that names WHERE it is."""
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"the tokenizer of {where} is not JSON: {error}", hint="convert the model again") from error
    if not isinstance(spec, dict):
        raise InvalidModel(f"the tokenizer of {where} is not a JSON object", hint="convert the model again")
    return spec


def _load(spec: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises Exception itself
        raise InvalidModel(f"tokenizer.json does not load: {error}", hint="convert the model again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _with_decoder(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return SPEC with the decoder of bytes where it has none, and its tokens are bytes in letters: transformers adds it by class."""
    if spec.get("decoder") is None and "ByteLevel" in _kinds(spec.get("pre_tokenizer"), "pretokenizers"):
        return {
            **spec,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        }
    return spec


def _hidden(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return SPEC so that no text becomes a special token: a Unigram model has them among its pieces and finds them in any text."""
    from converters.tokenizer.source import without_control

    if not isinstance(spec.get("model"), dict):
        return spec
    return without_control({**spec, "added_tokens": spec.get("added_tokens") or []})


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the text is not valid Unicode: {error.reason} at position {error.start}") from error


def _piece_decoder(spec: Mapping[str, Any]) -> Any:
    """Return the function from the text of a token, as the vocabulary has it, to its bytes."""
    kinds = set(_kinds(spec.get("decoder")))
    if "ByteLevel" in kinds:
        from converters.tokenizer import byte_alphabet

        back = {letter: byte for byte, letter in byte_alphabet().items()}
        return lambda text: (
            bytes(back[letter] for letter in text) if all(letter in back for letter in text) else text.encode()
        )
    if "WordPiece" in kinds:
        return lambda text: (text[2:] if text.startswith("##") else f" {text}").encode()

    def sentencepiece(text: str) -> bytes:
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            try:
                return bytes([int(text[3:5], 16)])
            except ValueError:
                pass
        return text.replace("\u2581", " ").encode("utf-8", "replace")

    return sentencepiece


def _kinds(part: Any, inner: str = "decoders") -> Iterable[str]:
    """Yield the types of a part of a tokenizer, and of the parts that are under INNER in it."""
    if isinstance(part, Mapping):
        yield str(part.get("type"))
        items = part.get(inner)
        for item in items if isinstance(items, list) else []:
            yield from _kinds(item, inner)
