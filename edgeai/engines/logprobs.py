"""Log-probabilities of a token and of those that could have come in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgeai.types import TokenLogprob

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["token_logprob"]


class Pieces(Protocol):
    """A vocabulary that knows the bytes of its tokens."""

    def piece(self, token: int) -> bytes:
        """Return the bytes of TOKEN."""


def token_logprob(logits: npt.NDArray[np.float32], token: int, top: int, vocab: Pieces) -> TokenLogprob:
    """Return the log-probability of TOKEN under LOGITS (n_vocab,) and the TOP likeliest tokens, in nats."""
    import numpy as np

    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    likeliest: list[int] = []
    if top:
        chosen = np.argpartition(values, -top)[-top:]
        likeliest = chosen[np.argsort(-values[chosen], kind="stable")].tolist()
    return TokenLogprob(
        id=token,
        text=_text(vocab, token),
        logprob=float(values[token]),
        top=tuple((other, _text(vocab, other), float(values[other])) for other in likeliest),
    )


def _text(vocab: Pieces, token: int) -> str:
    return vocab.piece(token).decode("utf-8", "replace")
