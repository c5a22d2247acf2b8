"""Text to token ids and back, by the vocabulary in the file."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

from converters.normalize import NORMALIZERS, normalize
from edgeai.chat import Segment
from edgeai.errors import InvalidModel, UsageError
from edgeai.types import check_text, is_whole

__all__ = ["Vocab"]

# enum llama_token_attr, llama.h
_UNKNOWN, _CONTROL, _LSTRIP, _RSTRIP = 1 << 0, 1 << 3, 1 << 7, 1 << 8


class Loaded(Protocol):
    """A loaded model: the library, the native vocabulary and its size."""

    @property
    def lib(self) -> Any:
        """The low-level binding."""

    @property
    def vocab(self) -> Any:
        """The llama_vocab."""

    @property
    def n_vocab(self) -> int:
        """Tokens in it."""


class Vocab:
    """The vocabulary of a loaded model. Its native calls only read, so any thread may use it.

    Text never becomes a token that the file marks as control. Tokens that it marks as user-defined (Gemma's runs of newlines, `<think>`
    of some families) are ordinary vocabulary: the tokenizer that the model was trained with finds them in any text, and so does this one.
    """

    def __init__(self, handle: Loaded, *, normalizer: str | None = None) -> None:
        if normalizer not in (None, *NORMALIZERS):
            raise InvalidModel(
                f"the file's tokenizer needs the text normalizer {normalizer!r}, which is not known here"
            )
        self._normalizer = normalizer
        self._lib: Any = handle.lib
        self._vocab = handle.vocab
        self._size = handle.n_vocab
        self._buffer_size = 256

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = False, first: bool = True
    ) -> list[int]:
        """Return the ids of TEXT, with the model's BOS/EOS if `add_special`. FIRST: no token stands before it in a prompt."""
        check_text(text)
        try:
            data = normalize(text, self._normalizer, first=first).encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the text is not valid Unicode: {error.reason} at position {error.start}") from error
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
        if count < 0:
            ids = (ctypes.c_int32 * -count)()
            count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, -count, add_special, parse_special)
        return ids[:count]

    def tokenize_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Return the ids of a rendered prompt: control segments are one token each, everything else is plain text.

        Whitespace beside tokens that strip it (Phi-3's, for example) is dropped, as libllama does when it parses special tokens.
        """
        ids: list[int] = []
        strip_next = False
        parts = list(segments)
        for index, part in enumerate(parts):
            if part.control:
                token, attr = self.control[part.text]
                ids.append(token)
                strip_next = bool(attr & _RSTRIP)
                continue
            text = part.text.lstrip() if strip_next else part.text
            after = parts[index + 1] if index + 1 < len(parts) else None
            if after is not None and after.control and self.control[after.text][1] & _LSTRIP:
                text = text.rstrip()
            ids += self.tokenize(text, first=not ids) if text else []
            strip_next = False
        return ids

    @cached_property
    def control(self) -> dict[str, tuple[int, int]]:
        """Map the text of each control or unknown token to (id, attributes)."""
        attr, text = self._lib.llama_vocab_get_attr, self._lib.llama_vocab_get_text
        found: dict[str, tuple[int, int]] = {}
        for token in range(self._size):
            flags = int(attr(self._vocab, token))
            if flags & (_CONTROL | _UNKNOWN):
                found.setdefault(text(self._vocab, token).decode("utf-8", "replace"), (token, flags))
        found.pop("", None)
        return found

    @cached_property
    def named(self) -> dict[str, str]:
        """Map the names that chat templates use to the texts of those tokens."""
        names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad", "sep_token": "sep"}
        found: dict[str, str] = {}
        for name, function in names.items():
            token = int(getattr(self._lib, f"llama_vocab_{function}")(self._vocab))
            if token >= 0:
                found[name] = self._lib.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")
        return {"bos_token": "", "eos_token": ""} | found

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The tokens that the model puts before and after a text."""
        both = self.tokenize("", add_special=True)
        lead = 1 if both and both[0] == self._lib.llama_vocab_bos(self._vocab) else 0
        return both[:lead], both[lead:]

    @cached_property
    def between(self) -> list[int]:
        """What comes between two texts, after what ends the first: RoBERTa's second separator (llama-server, format_prompt_rerank)."""
        lib, vocab = self._lib, self._vocab
        both = lib.llama_vocab_get_add_eos(vocab) and lib.llama_vocab_get_add_sep(vocab)
        return [int(lib.llama_vocab_sep(vocab))] if both else []

    def check(self, ids: Iterable[int]) -> None:
        """Raise UsageError for an id that is not in the vocabulary, and for what is no list of ids."""
        try:
            wrong = [id_ for id_ in ids if not (is_whole(id_) and 0 <= id_ < self._size)]
        except TypeError as error:
            raise UsageError(f"{ids!r:.60} is no list of token ids", hint="tokenize makes one of a text") from error
        if wrong:
            raise UsageError(
                f"token id {wrong[0]!r:.60} is not in the vocabulary", hint=f"ids go from 0 to {self._size - 1}"
            )

    def is_end(self, token: int) -> bool:
        """Whether TOKEN ends a generation: EOS, end of turn, end of message …"""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def piece(self, token: int) -> bytes:
        """Return the bytes of TOKEN; control tokens have none."""
        buffer = ctypes.create_string_buffer(self._buffer_size)
        count = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        if count < 0:
            self._buffer_size = -count
            return self.piece(token)
        return buffer.raw[:count]

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS as libllama joins it, without special tokens."""
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        room = 16 * len(ids) + 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            count = self._lib.llama_detokenize(self._vocab, tokens, len(ids), buffer, room, False, False)
            if count >= 0:
                break
            room = -count
        return buffer.raw[:count].decode("utf-8", "replace")
