"""What one kind of tokenizer contributes to a vocabulary, before the tokens that every kind has are added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from converters.tokenizer.table import Table
from converters.tokenizer.vocabulary import Model

__all__ = ["Hazard", "Kind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hazard:
    """Something in texts that the runtime is known to treat otherwise than the source, and what it does."""

    in_text: Callable[[str], object]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The model's name, the table of its ordinary tokens, and the fields of Vocabulary that only it has.

    `scores` is id → score; an id without one gets `other_score`. `doubts` are reasons why the runtime may not do as the tokenizer does,
    so that it has to be measured; `choices` are then the names of pre-tokenizers among which measuring decides.
    """

    model: Model
    pre: str = "default"
    table: Table
    merges: tuple[str, ...] = ()
    scores: dict[int, float] | None = None
    other_score: float = 0.0
    normalizer: str | None = None
    unk: int | None = None
    choices: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    hazards: tuple[Hazard, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    embeds: bool = False
    """Whether the kind is one of embedding models, which may have no end token."""
