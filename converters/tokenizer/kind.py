"""What one kind of tokenizer contributes to a vocabulary, before the tokens that every kind has are added."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from converters.tokenizer.table import Table
from converters.tokenizer.vocabulary import Model

__all__ = ["Kind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The model's name, the table of its ordinary tokens, and the fields of Vocabulary that only it has.

    `scores` is id → score; an id without one gets `other_score`.
    """

    model: Model
    pre: str = "default"
    table: Table
    merges: tuple[str, ...] = ()
    scores: dict[int, float] | None = None
    other_score: float = 0.0
    normalizer: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    embeds: bool = False
    """Whether the kind is one of embedding models, which may have no end token."""
