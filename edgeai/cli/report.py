"""A report as lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from edgeai.types import Report, Row

__all__ = ["report_lines", "row_text"]

BAD, GOOD, NEITHER = "FAIL", "ok", ""


def report_lines(report: Report) -> Iterator[str]:
    """Yield one line for each row: whether it is ok, its name, its value with interval and limit."""
    width = max((len(row.name) for row in report.rows), default=0)
    marks = [BAD if not row.ok else GOOD if row.limit else NEITHER for row in report.rows]
    size = max(map(len, marks), default=0)
    for mark, row in zip(marks, report.rows, strict=True):
        yield f"  {mark:<{size}}  {row.name:<{width}}  {row_text(row)}"


def row_text(row: Row) -> str:
    """Return the value of ROW as text, with its interval and its limit."""
    if isinstance(row.value, str):
        return row.value
    text = f"{row.value:.3g}"
    if row.interval is not None:
        text += f", 95 % between {row.interval[0]:.3g} and {row.interval[1]:.3g}"
    return f"{text}  (limit {row.limit})" if row.limit else text
