"""Tables in a text (CSV, TSV, Markdown): the heading of a column says what the bare numbers under it are."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Table", "find_tables"]

MOST_TABLES = 64
HEADINGS = (
    r"(?:tele)?(?:phone|fon)|tel|mobile?|cell|fax|handy|whatsapp|m[oó]vil|tel[eé]fono|t[eé]l[eé]phone|portable|电话|手机|電話|전화|телефон|"
    r"ssn|sin|bsn|pesel|cpf|nhs|tfn|aadhaar|tax|steuer|passport|national|social|personal|identity|nif|nir|"
    r"card|visa|iban|password|secret|token|key"
)
HEADING = re.compile(rf"[,;\t|\n][^,;\t|\n]{{0,24}}?(?:{HEADINGS})")
DELIMITERS = "|\t;,"
MOST_LINE = 4000


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose heading line ends at START of the text and whose rows end at END; `headings` are those of its columns."""

    start: int
    end: int
    delimiter: str
    headings: tuple[str, ...]

    def heading(self, text: str, place: int) -> str:
        """Return the heading of the column of TEXT that PLACE is in, empty if it is in none."""
        if not self.start <= place < self.end:
            return ""
        begin = text.rfind("\n", max(self.start - 1, place - MOST_LINE), place) + 1
        before = text[begin:place]
        cells = _split(before, self.delimiter) if '"' in before else before.split(self.delimiter)
        index = len(cells) - 1
        return self.headings[index] if 0 <= index < len(self.headings) else ""


def find_tables(text: str) -> list[Table]:
    """Return the tables of TEXT of which a heading may say something."""
    lower = text.lower()
    if len(lower) != len(text) or not any(delimiter in lower for delimiter in DELIMITERS):
        return []
    found: list[Table] = []
    place = 0
    lower = f"\n{lower}"  # so that the first line also follows one
    while len(found) < MOST_TABLES and (match := HEADING.search(lower, place)):
        begin = lower.rfind("\n", 0, match.start() + 1) + 1
        end = lower.find("\n", begin)
        if end < 0:
            break
        place = end
        table = _table(lower[begin:end], end) if end - begin <= MOST_LINE else None
        if table is not None:
            stop = lower.find("\n\n", end)
            found.append(Table(end, len(text) if stop < 0 else stop, *table))
    return found


def _table(line: str, end: int) -> tuple[str, tuple[str, ...]] | None:
    """Return the delimiter and the headings of LINE if it looks like the heading of a table."""
    del end
    delimiter = max(DELIMITERS, key=line.count)
    cells = [cell.strip(" \"'*_") for cell in line.split(delimiter)]
    if len(cells) < 2 or any(len(cell) > 40 for cell in cells) or sum(map(str.isdigit, line)) > len(cells):
        return None
    return delimiter, tuple(cells)


def _split(line: str, delimiter: str) -> list[str]:
    """Split LINE at DELIMITER outside of double quotes."""
    cells, quoted, begin = [], False, 0
    for index, character in enumerate(line):
        if character == '"':
            quoted = not quoted
        elif character == delimiter and not quoted:
            cells.append(line[begin:index])
            begin = index + 1
    return [*cells, line[begin:]]
