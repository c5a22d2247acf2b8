"""Server-sent events, from bytes as they come (WHATWG HTML, section 9.2.6 "Interpreting an event stream")."""

from __future__ import annotations

from edgeai.errors import CloudFailure

__all__ = ["EventReader"]

BOM = b"\xef\xbb\xbf"
MOST_BYTES = 2 << 20
"""Of one line, and of the data of one event."""
MOST_EVENTS = 1 << 18
"""More pieces than any answer has tokens."""
KEPT_IDS = 256


LEAST_STEPS = 3
"""After so many ids that are numbers, each one more than the one before, the next is known."""


class EventReader:
    """Turns pieces of a stream into the data of its events; names of events and `retry` mean nothing here.

    An event that comes twice, by its `id` and its data, is given once. An event whose end has not come is not given.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._cr = False
        self._begun = False
        self._data: list[bytes] = []
        self._size = 0
        self._count = 0
        self._id = b""
        self._ids: dict[bytes, str] = {}
        self._ids_tell = True
        self._number, self._in_step = -1, 0
        self.doubled = 0

    def feed(self, piece: bytes) -> list[str]:
        """Return the data of the events that PIECE completes. Raises CloudFailure, malformed, beyond the limits."""
        if self._cr or b"\r" in piece:
            piece = self._with_lf(piece)
        if b"\n" not in piece:  # no copy of what is there: a long line may come byte by byte
            self._rest += piece
            if len(self._rest) > MOST_BYTES:
                raise _too_much(f"a line of more than {MOST_BYTES} bytes")
            return []
        if self._rest:
            piece = bytes(self._rest) + piece
        if not self._begun:
            piece, self._begun = piece.removeprefix(BOM), True
        lines = piece.split(b"\n")
        self._rest = bytearray(lines.pop())
        found: list[str] = []
        for line in lines:
            if not line:
                if self._data:
                    self._dispatch(found)
                self._id = b""
            elif line.startswith(b"data:"):
                self._add(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":
                self._add(b"")
            elif line.startswith(b"id:"):
                self._id = line[3:].removeprefix(b" ")
        return found

    @property
    def rest(self) -> str:
        """What has come of an event without an end."""
        lines = [*self._data, bytes(self._rest).removeprefix(b"data:").removeprefix(b" ")]
        return b"\n".join(line for line in lines if line).decode("utf-8", "replace")

    def _with_lf(self, piece: bytes) -> bytes:
        """Return PIECE with LF for every end of a line; a CR at its end is one at once, and an LF that follows it is none."""
        if self._cr and piece:
            piece, self._cr = piece.removeprefix(b"\n"), False
        self._cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _add(self, value: bytes) -> None:
        self._data.append(value)
        self._size += len(value) + 1
        if self._size > MOST_BYTES:
            raise _too_much(f"an event of more than {MOST_BYTES} bytes")

    def _dispatch(self, found: list[str]) -> None:
        data = self._data
        try:
            text = (data[0] if len(data) == 1 else b"\n".join(data)).decode("utf-8")
        except (
            UnicodeDecodeError
        ):  # the specification would put U+FFFD: an answer with other characters than were meant
            raise _malformed("text that is no UTF-8", "encoding") from None
        self._data, self._size = [], 0
        if not text:  # the specification gives no event without data
            return
        self._count += 1
        if self._count > MOST_EVENTS:
            raise _too_much(f"more than {MOST_EVENTS} events")
        if not (self._id and self._is_double(text)):
            found.append(text)

    def _is_double(self, text: str) -> bool:
        """Whether an event of this id and TEXT was given before; ids that were seen with other data tell nothing.

        Raises CloudFailure for a number that is not in its place: less than the one before and new, or not the next one where so far each
        was. Events are then in another order than they were made in, or some are missing.
        """
        if not self._ids_tell:
            return False
        known = self._ids.get(self._id)
        if known is None and self._id.isdigit() and len(self._id) < 18:
            number, self._number = self._number, int(self._id)
            if self._number < number or (self._in_step >= LEAST_STEPS and self._number != number + 1):
                raise _malformed("events in the wrong order", "order")
            self._in_step = self._in_step + 1 if self._number == number + 1 else -MOST_EVENTS
        if known is None:
            if len(self._ids) >= KEPT_IDS:
                del self._ids[next(iter(self._ids))]
            self._ids[self._id] = text
            return False
        self._ids_tell = known == text
        self.doubled += self._ids_tell
        return self._ids_tell


def _too_much(what: str) -> CloudFailure:
    return _malformed(what, "size")


def _malformed(what: str, reason: str) -> CloudFailure:
    return CloudFailure(f"the endpoint sent {what}", kind="malformed", reason=reason, hint="ask another endpoint")
