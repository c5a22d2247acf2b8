"""The vocabulary of a GGUF model as llguidance needs it."""

from __future__ import annotations

import ctypes
from typing import Any

from edgeai.engines.constraint import Grammars
from edgeai.engines.llamacpp.vocab import Loaded

__all__ = ["grammars_of"]

_UNKNOWN, _CONTROL = 1 << 0, 1 << 3  # enum llama_token_attr, llama.h


def grammars_of(model: Loaded) -> Grammars:
    """Return the compiler of constraints for MODEL, to be used while it is loaded."""
    return Grammars(lambda: _tokenizer(model))


def _tokenizer(model: Loaded) -> Any:
    """Return the llguidance.LLTokenizer. Tokens are the bytes that an answer shows for them; those that show nothing are special."""
    from llguidance import LLTokenizer

    lib, vocab = model.lib, model.vocab
    attributes, is_end = lib.llama_vocab_get_attr, lib.llama_vocab_is_eog
    tokens, ends = [], []
    pieces = _Pieces(model)
    for token in range(model.n_vocab):
        # 0xff begins no UTF-8: so llguidance's trie marks a token that no text can hold.
        tokens.append((b"\xff" if attributes(vocab, token) & (_CONTROL | _UNKNOWN) else b"") + pieces.bytes_of(token))
        if is_end(vocab, token):
            ends.append(token)
    tokenize = ctypes.cast(lib.llama_tokenize, ctypes.c_void_p).value
    return LLTokenizer.from_llamacpp(
        tokens=tokens, vocab_ptr=vocab, tokenize_fptr=tokenize, eos_token=ends or [int(lib.llama_vocab_eos(vocab))]
    )


class _Pieces:
    """Reads the bytes of tokens into one buffer, which grows when one is longer."""

    def __init__(self, model: Loaded) -> None:
        self._to_piece = model.lib.llama_token_to_piece
        self._vocab = model.vocab
        self._buffer = ctypes.create_string_buffer(64)

    def bytes_of(self, token: int) -> bytes:
        count = self._to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, True)
        if count < 0:
            self._buffer = ctypes.create_string_buffer(-count)
            return self.bytes_of(token)
        return self._buffer.raw[:count]
