"""Where a conversation may go. Whatever keeps the detectors from being sure keeps it on this machine: there is no way to fail to "any"."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgeai.config import PrivacySettings
from edgeai.errors import EdgeAIError
from edgeai.routing.privacy.hits import Hit
from edgeai.routing.privacy.names import Names, open_names
from edgeai.routing.privacy.rules import Rules
from edgeai.routing.privacy.structured import scan, to_findings
from edgeai.routing.privacy.taint import Taint
from edgeai.routing.request import Finding, Part, Verdict

__all__ = ["Detector"]


class Detector:
    """Examines what a request would send, by SETTINGS; with TAINT also for what was private before.

    Raises UsageError for settings that cannot be followed, like a pattern that is none or names without their extra. May be used from
    several threads.
    """

    def __init__(self, settings: PrivacySettings, *, taint: Taint | None = None) -> None:
        self.settings = settings
        self._rules = Rules(settings)
        self._taint = taint
        self._names: Names | None = open_names(settings) if settings.tier == "names" else None

    def close(self) -> None:
        """Let go of the child process that searches the user's patterns, if one was needed."""
        self._rules.close()

    def examine(self, parts: Sequence[Part]) -> Verdict:
        """Return where PARTS may go, with everything that was found. Never raises for what is in them: a failure is "local_only"."""
        began = time.perf_counter()
        clock = _Clock(self.settings.timeout_s)
        findings: list[Finding] = []
        failed: str | None = None
        try:
            chars = sum(len(part.text) for part in parts)
            if chars > self.settings.max_chars:
                failed = f"too long to examine: {chars} characters of at most {self.settings.max_chars}"
                parts = [replace(part, text="") for part in parts]
            for part in parts:
                for found in self._part(part, clock):
                    findings += [replace(finding, where=part.where, message=part.message) for finding in found]
                    clock.check()
        except TimeoutError:
            failed = f"not examined to its end in {self.settings.timeout_s:g} s"
        except EdgeAIError as error:
            failed = f"the detector failed: {error.message}"
        except Exception as error:  # noqa: BLE001 - whatever it is, the text stays here; its message may hold the text
            failed = f"the detector failed: {type(error).__name__}"
        return Verdict(
            placement="local_only" if findings or failed else "any",
            findings=tuple(findings),
            tier=self.settings.tier,
            failed=failed,
            took_ms=(time.perf_counter() - began) * 1e3,
        )

    def _part(self, part: Part, clock: _Clock) -> Iterator[list[Finding]]:
        """Yield what is private in PART, piece by piece, so that the clock is looked at in between."""
        yield list(self._rules.of_part(part))
        if not part.text:
            return
        if self.settings.tier != "off":
            hits: list[Hit] = []
            for piece in scan(part.text):
                hits += piece
                yield []
            yield to_findings(part.text, hits)
        if self._taint is not None and self._taint.touches(part.text):
            yield [Finding(id="privacy.taint", kind="taint", start=0, end=len(part.text), masked="…", redactable=False)]
        yield from self._rules.of_text(part.text, timeout_s=clock.left_s)
        if self._names is not None:
            yield from self._names.find(part.text)


class _Clock:
    """How long an examination may still take."""

    def __init__(self, timeout_s: float) -> None:
        self._ends = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        return max(0.0, self._ends - time.monotonic())

    def check(self) -> None:
        """Raise TimeoutError when the time is over."""
        if time.monotonic() > self._ends:
            raise TimeoutError
