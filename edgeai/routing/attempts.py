"""What a routed request asks of an endpoint, and what is kept of each attempt at anybody."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from edgeai.types import Chunk, GenerationConfig, Prompt

__all__ = ["Asked", "Attempt", "Status", "Upstream"]

Status = Literal["running", "ok", "failed", "interrupted", "cancelled", "unsure", "late"]
"""`unsure`: the local answer was not confident enough. `late`: another candidate was quicker. `interrupted`: it broke off after text."""


class Asked(Protocol):
    """One attempt at an endpoint, whose chunks are read in the thread that iterates over it (engines.cloud.Attempt)."""

    @property
    def requests(self) -> int:
        """How often the request was written: twice where its first connection had been closed."""

    @property
    def sent_bytes(self) -> int:
        """Bytes that left, headers included."""

    @property
    def received_bytes(self) -> int:
        """Bytes that came."""

    @property
    def remote(self) -> str | None:
        """The address that was connected to; None before."""

    def __iter__(self) -> Iterator[Chunk]:
        """Give the chunks of the answer. Raises CloudFailure."""

    def abort(self) -> None:
        """End it from any thread, at once."""


class Upstream(Protocol):
    """An endpoint (engines.cloud.Endpoint)."""

    @property
    def name(self) -> str:
        """What the configuration calls it."""

    @property
    def model(self) -> str:
        """The model that is asked for."""

    def problem(self) -> str | None:
        """Say why it cannot be asked, None where nothing is known against it."""

    def encode(self, prompt: Prompt, config: GenerationConfig) -> bytes:
        """Return the bytes that would leave. Raises UsageError for what it cannot be asked."""

    def attempt(
        self, prompt: Prompt, config: GenerationConfig, *, deadline: float | None = None, first_token_s: float | None = None,
        body: bytes | None = None, repeats: bool = True,
    ) -> Asked:  # fmt: skip
        """Ask it; DEADLINE is a time of time.monotonic. It may be asked a second time over a fresh connection only if it REPEATS."""

    def close(self) -> None:
        """Close what is open."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One try at a model: how it ended, why, and what it moved. Times in seconds, bytes as they went over the socket."""

    model: str
    status: Status = "running"
    kind: str | None = None
    error: str | None = None
    reason: str = ""
    ttft_s: float | None = None
    wall_s: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    remote: str | None = None
    requests: int = 1
    confidence: float | None = None
    _began: float = field(default_factory=time.monotonic, repr=False)

    def ended(self, status: Status, *, kind: str | None = None, error: str | None = None, reason: str = "") -> None:
        """Note how it ended. REASON is a word of ours; ERROR may quote an endpoint, which may quote the prompt."""
        self.status, self.kind, self.error, self.reason = status, kind, error, reason
        self.wall_s = time.monotonic() - self._began

    def began_text(self) -> None:
        """Note the first token."""
        if self.ttft_s is None:
            self.ttft_s = time.monotonic() - self._began

    def moved(self, asked: Asked) -> None:
        """Take over what ASKED counted."""
        self.sent_bytes, self.received_bytes, self.remote = asked.sent_bytes, asked.received_bytes, asked.remote
        self.requests = asked.requests

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {key: value for key, value in asdict(self).items() if not key.startswith("_")}

    def noted(self) -> dict[str, Any]:
        """Return it as it may be written down: without words of anybody else."""
        why = self.kind if self.reason in ("", self.kind) else f"{self.kind} ({self.reason})"
        return self.to_dict() | {"error": None if self.error is None else why}

    def line(self) -> str:
        """Return one line for people."""
        return f"{self.model}: {self.error or self.status}"
