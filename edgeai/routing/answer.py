"""The answer of a routed request as its reader gets it: one candidate's text, given once, with one end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from edgeai.engines.streaming import Channel
from edgeai.types import Chunk, FinishReason, Notice, Served, Timings, Usage

__all__ = ["Answer", "Cancelled"]


class Cancelled(Exception):
    """The reader wants no more."""


class Answer:
    """What has been given of one answer, and by whom. `submitted` is a time of time.monotonic; the deadline is MAX_SECONDS after it.

    The first candidate that claims the answer has it for good: that is the commit point. Any thread may claim, cancel and give.
    """

    def __init__(self, max_seconds: float | None, submitted: float | None = None) -> None:
        self.channel = Channel()
        self.submitted = time.monotonic() if submitted is None else submitted
        self.deadline = None if max_seconds is None else self.submitted + max_seconds
        self.pieces: list[str] = []
        self.called_tools = False
        self.end: Chunk | None = None
        self.error: BaseException | None = None
        self.cancelled = threading.Event()
        self.turned = threading.Event()
        """Set when somebody has claimed it, or the reader wants no more: nothing is to be waited for."""
        self._lock = threading.Lock()
        self._winner: str | None = None
        self._stops: dict[str, Callable[[], None]] = {}
        self._ttft_s: float | None = None

    @property
    def text(self) -> str:
        """What has been given so far."""
        return "".join(self.pieces)

    @property
    def winner(self) -> str | None:
        """Whose text it is; None before the first of it."""
        return self._winner

    def left_s(self) -> float | None:
        """Return how much of the deadline is left; None where there is none."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def check_wanted(self) -> None:
        """Raise Cancelled where the reader wants no more."""
        if self.cancelled.is_set():
            raise Cancelled

    def claim(self, model: str) -> bool:
        """Make MODEL the one whose text is given, unless another one is; return whether it is."""
        with self._lock:
            if self._winner is None:
                self._winner = model
                self.turned.set()
            return self._winner == model

    def hand_over(self, model: str) -> None:
        """Make MODEL the one who goes on."""
        with self._lock:
            self._winner = model

    # ---- stopping

    def cancel(self) -> None:
        """Stop everything that runs for this request."""
        self.cancelled.set()
        self.turned.set()
        self.stop("")

    def stop(self, beginning: str) -> None:
        """Stop what runs under a name with this BEGINNING."""
        with self._lock:
            stops = [stop for name, stop in self._stops.items() if name.startswith(beginning)]
        for stop in stops:
            stop()

    @contextlib.contextmanager
    def stopped_by(self, name: str, stop: Callable[[], None]) -> Iterator[None]:
        """Have STOP called where what runs under NAME while the block lasts is to end."""
        key = f"{name} {id(stop)}"
        with self._lock:
            self._stops[key] = stop
        try:
            if self.cancelled.is_set():
                stop()
            yield
        finally:
            with self._lock:
                self._stops.pop(key, None)

    # ---- giving

    def give(self, chunk: Chunk) -> None:
        """Give CHUNK to the reader; one that says nothing is not given."""
        if chunk.text or chunk.tool_calls:
            self.pieces.append(chunk.text)
            self.called_tools = self.called_tools or bool(chunk.tool_calls)
            if self._ttft_s is None:
                self._ttft_s = time.monotonic() - self.submitted
                self.channel.hand_over(chunk)
                return
        if chunk.text or chunk.tool_calls or chunk.notices or chunk.logprobs:
            self.channel.put(chunk)

    def warn(self, code: str, message: str) -> None:
        """Give a warning."""
        self.channel.put(Chunk(notices=(Notice(code=code, message=message),)))

    def finish_with(self, last: Chunk, served: Served) -> None:
        """Have LAST, the last chunk of the one who answered, be the last of the whole."""
        if last.text:
            self.pieces.append(last.text)
        assert last.usage is not None  # noqa: S101 - a last chunk has it
        self.end = replace(last, timings=self._timings(last.usage, last.timings), served=served)

    def finish(self, reason: FinishReason, served: Served, *, prompt_tokens: int, notice: Notice | None = None) -> None:
        """End the answer as it is. Its completion tokens are the pieces that came, which endpoints send token by token."""
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=sum(1 for piece in self.pieces if piece))
        self.end = Chunk(
            finish_reason=reason, usage=usage, timings=self._timings(usage, None), notices=(notice,) if notice else (), served=served
        )  # fmt: skip

    def _timings(self, usage: Usage, known: Timings | None) -> Timings:
        total = time.monotonic() - self.submitted
        rate = known.gen_tok_s if known else None
        spent = total - (self._ttft_s or 0.0)
        if rate is None and usage.completion_tokens > 1 and spent > 0:
            rate = (usage.completion_tokens - 1) / spent
        return Timings(
            load_s=known.load_s if known else 0.0, ttft_s=self._ttft_s, prompt_tok_s=known.prompt_tok_s if known else None,
            gen_tok_s=rate, total_s=total,
        )  # fmt: skip
