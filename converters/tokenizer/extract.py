"""The merges of a SentencePiece BPE, which holds scores instead."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["merges_by_score"]


def merges_by_score(pieces: Mapping[str, int], scores: Mapping[int, float]) -> list[tuple[str, str]]:
    """Return every pair of pieces that makes a piece, the best result first, as transformers' SentencePieceExtractor does.

    Pairs of one result stand in the order of the ids of their parts.
    """
    merges = []
    for text, token in pieces.items():
        pairs = ((text[:at], text[at:]) for at in range(1, len(text)))
        local = sorted(
            (pieces[left], pieces[right], left, right) for left, right in pairs if left in pieces and right in pieces
        )
        merges += [(-scores[token], token, place, left, right) for place, (_, _, left, right) in enumerate(local)]
    return [(left, right) for *_, left, right in sorted(merges)]
