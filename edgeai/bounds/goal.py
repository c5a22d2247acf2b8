"""What a user wants of a file whose types are chosen for the model: what it may take, and what it must keep."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Goal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Bounds of a search; at least one of the first five is given.

    `target_bytes` is the size of the whole file, `target_bpw` bits for each weight of the model in its tensors; `max_kl` is the mean KL
    to the source in nats, `min_top1` the share of positions with the same first choice, `min_cosine` the least mean cosine of an
    embedding model's vectors, each met by the worse end of its 95 % interval. `prefer` is "quality" or "speed". `only` names the types
    that may be used, none: all that fit; `exclude` those that may not. `rounds` is how many files may be measured.
    """

    target_bytes: int | None = None
    target_bpw: float | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    min_cosine: float | None = None
    prefer: str = "quality"
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rounds: int = 6
