"""What a model has to beat: a bigram model of the same tokens, as good as counting can make it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["bigram_loss"]

Tokens = npt.NDArray[np.integer]


def bigram_loss(train: Tokens, val: Tokens, vocab_size: int) -> float:
    """Return the cross-entropy, in nats per token, of a bigram model of TRAIN on all tokens of VAL but the first.

    The bigram is interpolated with an add-one unigram by Witten-Bell weights: after a token seen n times with k
    different followers, the bigram counts n/(n+k) (Witten and Bell 1991, method C). It has no parameter to tune, and
    knows what follows far better than add-k smoothing does.
    """
    unigram = (np.bincount(train, minlength=vocab_size) + 1.0) / (len(train) + vocab_size)
    pairs = _pairs(train, vocab_size)
    seen, counts = np.unique(pairs, return_counts=True)
    n = np.bincount(train[:-1], minlength=vocab_size).astype(np.float64)
    k = np.bincount(seen // vocab_size, minlength=vocab_size).astype(np.float64)

    wanted = _pairs(val, vocab_size)
    where = np.minimum(np.searchsorted(seen, wanted), len(seen) - 1)
    count = np.where(seen[where] == wanted, counts[where], 0).astype(np.float64)
    before, after = wanted // vocab_size, wanted % vocab_size
    total = n[before] + k[before]
    known = total > 0
    probability = np.where(known, (count + k[before] * unigram[after]) / np.where(known, total, 1.0), unigram[after])
    return float(-np.log(probability).mean())


def _pairs(tokens: Tokens, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return one number for each pair of neighbours: first * vocab_size + second."""
    wide = np.asarray(tokens, dtype=np.int64)
    return wide[:-1] * vocab_size + wide[1:]
