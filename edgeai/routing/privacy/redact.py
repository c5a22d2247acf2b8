"""Placeholders instead of private values in what leaves, for one request: put in before, and put back into what comes in answer.

The map is in memory only and dies with its Redactor, so no request can see the values of another.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, cast

from edgeai.errors import EdgeAIError
from edgeai.routing.privacy.conversation import parts_of, strings_in
from edgeai.routing.privacy.detector import Detector
from edgeai.routing.privacy.hits import mask
from edgeai.routing.privacy.restore import PLACEHOLDER, Restorer
from edgeai.routing.privacy.structured import find_structured
from edgeai.routing.request import Finding, Part, Verdict
from edgeai.types import Message, Prompt

__all__ = ["NotRedactable", "Redactor", "is_redactable"]

LEAST_COMPARED = 5
"""A value of fewer letters and digits is looked for as it is written only: its plain form may be anywhere."""
KEPT = {"role", "content", "private", "tool_calls", "tool_call_id"}
REST = re.compile(r"[\W_]+")
MOST_DEPTH = 64
MOST_PASSES = 6


class NotRedactable(EdgeAIError):
    """Something private is in the request that no placeholder may stand for, so it stays on this machine."""


def is_redactable(verdict: Verdict) -> bool:
    """Whether placeholders may stand for everything that VERDICT found, and nothing kept the detectors from being sure."""
    return verdict.failed is None and all(finding.redactable for finding in verdict.findings)


class Redactor:
    """Redacts one request with what DETECTOR finds. The same value always has the same placeholder; `repr` shows no value."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._names: dict[str, str] = {}
        self._values: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._taken: set[tuple[str, int]] = set()

    def __repr__(self) -> str:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(Counter(self._kinds.values()).items()))
        return f"<Redactor of {kinds or 'nothing'}>"

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Those that stand for something."""
        return tuple(self._values)

    def redact(self, prompt: Prompt) -> Prompt:
        """Return PROMPT with placeholders in every message: contents, results of tools, and the arguments of their calls.

        Raises NotRedactable where something private may not be replaced, or a detector fails.
        """
        self._avoid(part.text for part in parts_of(prompt))
        if isinstance(prompt, str):
            return self.redact_text(prompt)
        redacted = [self._message(message) for message in prompt]
        return [self._message(message) for message in redacted]  # with what was learned from later messages

    def redact_text(self, text: str, *, where: str = "text") -> str:
        """Return TEXT with placeholders, for what is sent beside the prompt, like files."""
        self._avoid([text])
        for _ in range(MOST_PASSES):
            redacted = self._once(self._known(text), where)
            if redacted == text:
                return text
            text = redacted  # what stood beside a value may show itself now that it is gone
        raise NotRedactable(
            f"{where} cannot be redacted: it shows something private again and again",
            hint="such a request stays on this machine",
        )

    def _known(self, text: str) -> str:
        """Return TEXT without the values that are known from elsewhere, where no word may say any more what they are."""
        for value in sorted(self._names, key=len, reverse=True):
            if len(value) >= LEAST_COMPARED and value in text:
                text = text.replace(value, self._names[value])
        return text

    def _once(self, text: str, where: str) -> str:
        verdict = self._detector.examine([Part(text=text, where=where)])
        if not is_redactable(verdict):
            why = verdict.failed or ", ".join(
                sorted({finding.id for finding in verdict.findings if not finding.redactable})
            )
            raise NotRedactable(f"{where} cannot be redacted: {why}", hint="such a request stays on this machine")
        pieces, place = [], 0
        for finding in _apart(verdict.findings):
            pieces += [text[place : finding.start], self._name(finding.kind, text[finding.start : finding.end])]
            place = finding.end
        return "".join([*pieces, text[place:]])

    def redact_json(self, value: Any, depth: int = 0) -> Any:
        """Return the JSON VALUE (definitions of tools, arguments) with placeholders in its strings; keys are replaced too."""
        if depth > MOST_DEPTH:
            raise NotRedactable(f"JSON of more than {MOST_DEPTH} levels cannot be redacted", hint="make it flatter")
        if isinstance(value, str):
            return self._json_text(value, depth) if value.lstrip()[:1] in ("{", "[") else self.redact_text(value)
        if isinstance(value, Mapping):
            return {
                self.redact_text(key) if isinstance(key, str) else key: self._member(key, item, depth)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.redact_json(item, depth + 1) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            redacted = self.redact_text(str(value))
            return value if redacted == str(value) else redacted
        return value

    def restorer(self) -> Restorer:
        """Return a filter that puts the values back into a stream of text."""
        return Restorer(self._values)

    def restore(self, text: str) -> str:
        """Return TEXT with the values put back."""
        restorer = self.restorer()
        return restorer.feed(text) + restorer.flush()

    def restore_json(self, arguments: str) -> str:
        """Return ARGUMENTS, JSON text of a call, with the values put back as JSON escapes them; what is no JSON, as in a string of it."""
        escaped = {name: json.dumps(value, ensure_ascii=False)[1:-1] for name, value in self._values.items()}
        try:
            return json.dumps(self._restored(json.loads(arguments)), ensure_ascii=False)
        except (ValueError, RecursionError):
            restorer = Restorer(escaped)
            return restorer.feed(arguments) + restorer.flush()

    def leaks(self, outgoing: bytes) -> list[Finding]:
        """Return what is still private in the bytes OUTGOING: a value of the map in any layout, or anything that has a form of its own.

        Strings of JSON are read as they will be at the other end. Places are those in the text of the bytes; 0 where escapes moved them.
        """
        raw = outgoing.decode("utf-8", "replace")
        texts = strings_in(raw)
        whole = "\n".join([raw, *texts])
        small = whole.casefold()
        plain = REST.sub("", small)
        found = []
        for name, value in self._values.items():
            kind, form = self._kinds[name], REST.sub("", value.casefold())
            if value.casefold() in small or (len(form) >= LEAST_COMPARED and form in plain):
                start = max(raw.find(value), 0)
                end = start + len(value) if value in raw else 0
                found.append(
                    Finding(
                        id=f"privacy.{kind}",
                        kind=kind,
                        start=start,
                        end=end,
                        masked=mask(kind, value),
                        where="outgoing",
                    )
                )
        for text in texts:
            for finding in find_structured(text):
                start = max(raw.find(text[finding.start : finding.end]), 0)
                end = start + finding.end - finding.start
                found.append(
                    Finding(
                        id=finding.id, kind=finding.kind, start=start, end=end, masked=finding.masked, where="outgoing"
                    )
                )
        return found

    # ---- inside

    def _member(self, key: Any, item: Any, depth: int) -> Any:
        """Return ITEM redacted; the name of a bare number or word may say what it is, as in "phone": "5551234"."""
        redacted = self.redact_json(item, depth + 1)
        if redacted == item and isinstance(item, str | int) and not isinstance(item, bool) and isinstance(key, str):
            named = f'"{key}": "{item}"'
            if (changed := self.redact_text(named)) != named and changed.startswith(f'"{key}": "'):
                return changed[len(key) + 5 : -1]
        return redacted

    def _json_text(self, text: str, depth: int) -> str:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self.redact_text(text)
        redacted = self.redact_json(value, depth + 1)
        # What only the text as a whole shows is looked for as well; what did not change keeps its layout.
        return self.redact_text(text if redacted == value else json.dumps(redacted, ensure_ascii=False))

    def _message(self, message: Message) -> Message:
        if message.get("private"):
            raise NotRedactable(
                "a message that is tagged private cannot be redacted", hint="such a request stays on this machine"
            )
        changed: dict[str, Any] = dict(message)
        content: Any = message.get("content")
        where = f"the {message.get('role', 'user')} message"
        if isinstance(content, str):
            changed["content"] = self.redact_text(content, where=where)
        elif content is not None:
            if any(part.private for part in parts_of([message])):
                raise NotRedactable(
                    "a message that is no text cannot be redacted", hint="such a request stays on this machine"
                )
            changed["content"] = [
                self.redact_text(piece)
                if isinstance(piece, str)
                else {**piece, "text": self.redact_text(piece["text"])}
                for piece in content
            ]
        if message.get("tool_calls"):
            changed["tool_calls"] = [self.redact_json(call) for call in message["tool_calls"]]
        for key in changed.keys() - KEPT:
            changed[key] = self.redact_json(changed[key])
        return cast(Message, changed)

    def _restored(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.restore(value)
        if isinstance(value, Mapping):
            return {self.restore(key): self._restored(item) for key, item in value.items()}
        return [self._restored(item) for item in value] if isinstance(value, list) else value

    def _avoid(self, texts: Iterable[str]) -> None:
        """Never give a name that a text of the request has already: it would come back as a value that was not meant."""
        for text in texts:
            for match in PLACEHOLDER.finditer(text):
                if match[0].upper().replace("\\", "") not in self._values:
                    self._taken.add((match["kind"].upper().replace(" ", "_"), int(match["number"])))

    def _name(self, kind: str, value: str) -> str:
        if value not in self._names:
            label = kind.upper()
            count = self._counts.get(kind, 0) + 1
            while (label, count) in self._taken:
                count += 1
            self._counts[kind] = count
            name = f"<{label}_{count}>"
            self._names[value], self._values[name], self._kinds[name] = name, value, kind
        return self._names[value]


def _apart(findings: Iterable[Finding]) -> list[Finding]:
    """Return FINDINGS in order, without those that overlap a longer one."""
    kept: list[Finding] = []
    for finding in sorted(findings, key=lambda finding: (finding.start, -finding.end)):
        if not kept or finding.start >= kept[-1].end:
            kept.append(finding)
        elif finding.end > kept[-1].end:  # they cross: one placeholder for both, so that nothing of either is left
            last = kept.pop()
            kept.append(Finding(id=last.id, kind=last.kind, start=last.start, end=finding.end, masked=last.masked))
    return kept
