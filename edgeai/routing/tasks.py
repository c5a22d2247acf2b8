"""What kind of task a text is, and how hard it may be: a guess from the text alone."""

from __future__ import annotations

from edgeai.routing.request import Task

__all__ = ["difficulty", "task_of"]


def task_of(text: str) -> Task:
    """Return the kind of task that TEXT asks for."""
    return "chat"


def difficulty(text: str) -> float:
    """Return how hard TEXT is, 0 to 1."""
    return 0.5
