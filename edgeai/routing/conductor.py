"""One routed request from its decision to its last chunk: who is asked, who takes over, and what is given to the reader.

The commit point is the first visible text: before it any candidate may take over, after it nothing is said twice. Then an answer that
breaks off ends as `interrupted`, or is continued here behind a visible seam.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

from edgeai.engines.streaming import ChunkStream
from edgeai.errors import CloudFailure, EdgeAIError, NoAnswer, UsageError
from edgeai.routing.answer import Answer, Cancelled
from edgeai.routing.attempts import Asked, Attempt, Upstream
from edgeai.routing.breaker import Breaker
from edgeai.routing.here import Hedge, Here, kind_of
from edgeai.routing.local import LocalModel
from edgeai.routing.planning import Planned
from edgeai.routing.retrying import RetryBudget, wait_before_retry
from edgeai.routing.timers import Timer, Timers
from edgeai.types import Chunk, GenerationConfig, Notice, Prompt, Served

if TYPE_CHECKING:
    from edgeai.routing.privacy.restore import Restorer

__all__ = ["SEAM", "Conductor", "Orchestra"]

SEAM = "\n[{broken} broke off here; {here} goes on]\n"
SHARE_OF_FIRST = 0.5
"""How much of what is left of a deadline an endpoint may use until its first token where somebody else could still answer."""


class Orchestra(Protocol):
    """What requests share (surroundings.Surroundings)."""

    local: LocalModel | None
    timers: Timers
    budget: RetryBudget

    def endpoint(self, name: str, model: str) -> tuple[Upstream, Breaker]:
        """Return the endpoint NAME, to be asked for MODEL, and its breaker."""


class Broken(Exception):
    """A candidate failed before its first text; the next one may take over."""


def _excused(failure: CloudFailure) -> CloudFailure:
    """Return FAILURE as one that says nothing of its endpoint."""
    return CloudFailure(failure.message, kind="aborted", reason=failure.reason)


class Conductor:
    """Carries out what was PLANNED in a thread of its own; FINISHED writes down what happened before the reader sees the end.

    `attempts` has every try, in the order in which they began.
    """

    def __init__(
        self, orchestra: Orchestra, planned: Planned, config: GenerationConfig, *, resume: bool, finished: Callable[[Conductor], None],
        submitted: float | None = None,
    ) -> None:  # fmt: skip
        self.planned, self.config = planned, config
        self.attempts: list[Attempt] = []
        self.answer = Answer(config.max_seconds, submitted)
        self._orchestra, self._resume, self._finished = orchestra, resume, finished
        self._thread = threading.Thread(target=self._run, name="edgeai route", daemon=True)
        local = orchestra.local
        self._here = None if local is None else Here(local, planned, config, self.answer)
        self._hedge: Hedge | None = None
        self._timer: Timer | None = None
        self._held: list[Chunk] = []
        self._local_error: EdgeAIError | None = None

    def start(self) -> ChunkStream:
        """Begin, and return the stream of the answer; closing it stops the work."""
        stream = ChunkStream(self.answer.channel, self.answer.cancel)
        self._thread.start()
        return stream

    def join(self, timeout_s: float) -> None:
        """Wait for the end, TIMEOUT_S at most."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        answer = self.answer
        try:
            self._ask_everybody()
        except Cancelled:
            self._finish("cancelled")
        except BaseException as error:  # noqa: BLE001 - it is raised again in the reader
            answer.error = error
        if self._timer is not None:
            self._timer.cancel()
        if self._hedge is not None:
            self._hedge.stop()
        try:
            self._finished(self)
        except BaseException as error:  # noqa: BLE001 - as above
            answer.error = answer.error or error
        # What was written down is there when the reader sees the end.
        answer.channel.put(answer.error or answer.end or RuntimeError("a routed request ended without an end"))

    def _ask_everybody(self) -> None:
        order = self.planned.decision.order
        if not order:
            raise self._nobody()
        for index, model in enumerate(order):
            self.answer.check_wanted()
            if self.answer.is_late:
                break
            others = order[index + 1 :]
            try:
                if model.startswith("local/"):
                    self._ask_local(model, others)
                else:
                    self._ask_cloud(model, others)
            except Broken:
                continue
            return
        if not self._held:
            raise self._all_failed()
        self._say_why(self._with_here().model)
        for chunk in self._held:  # not sure enough, but nobody else answered
            self._with_here().give(chunk)

    def _note(self, model: str) -> Attempt:
        attempt = Attempt(model=model)
        self.attempts.append(attempt)
        return attempt

    def _with_here(self) -> Here:
        assert self._here is not None  # noqa: S101 - the local model is a candidate
        return self._here

    # ---- an endpoint

    def _ask_cloud(self, model: str, others: tuple[str, ...]) -> None:
        """Ask the endpoint MODEL until it answers or there is no sense in it. Raises Broken."""
        planned, answer = self.planned, self.answer
        if planned.facts.placement == "local_only" or planned.sent is None:  # no decision has it: a bug must not leak
            raise RuntimeError(f"{model} was to be asked what has to stay on this machine")
        name = model.partition("/")[2]
        asked_for = next(cloud.model for cloud in planned.state.clouds if cloud.name == name)
        endpoint, breaker = self._orchestra.endpoint(name, asked_for)
        body = self._encoded(endpoint, model, *planned.sent)
        self._set_hedge(others)
        if not breaker.admit():
            self._note(model).ended("failed", kind="breaker", error=f"not asked, it failed before ({breaker.why})")
            raise Broken
        self._orchestra.budget.request()
        most, total_s = planned.config.routing.attempts, planned.config.timeouts.total_s
        tries = 0
        while tries < most:
            failure = self._try_cloud(endpoint, breaker, model, body, others, repeats=tries + 1 < most)
            if failure is None or self._taken_over():
                return
            tries += self._last_try(model).requests
            left = answer.left_s()
            wait = wait_before_retry(
                failure, tries, most_tries=most, left_s=total_s if left is None else left, others=bool(others)
            )
            if wait is None or not self._orchestra.budget.take():
                break
            answer.turned.wait(wait)
            answer.check_wanted()
            if self._taken_over():
                return
        raise Broken

    def _last_try(self, model: str) -> Attempt:
        """Return the last try at MODEL; one of a hedge may have come since."""
        return next(attempt for attempt in reversed(self.attempts) if attempt.model == model)

    def _encoded(self, endpoint: Upstream, model: str, prompt: Prompt, config: GenerationConfig) -> bytes:
        """Return what would leave, examined once more where it was redacted. Raises Broken."""
        try:
            body = endpoint.encode(prompt, config)
        except UsageError as error:
            self._note(model).ended("failed", kind="refused", error=error.message)
            raise Broken from error
        redactor = self.planned.redactor
        if redactor is not None and (left := redactor.leaks(body)):
            kinds = ", ".join(sorted({finding.kind for finding in left}))
            self._note(model).ended(
                "failed", kind="leak", error=f"not asked, {kinds} would still have left after redaction"
            )
            raise Broken
        return body

    def _try_cloud(
        self, endpoint: Upstream, breaker: Breaker, model: str, body: bytes, others: tuple[str, ...], *, repeats: bool
    ) -> CloudFailure | None:
        """Make one attempt; return how it failed, None where the answer has been given or has ended."""
        answer, planned, attempt = self.answer, self.planned, self._note(model)
        left = answer.left_s()
        first = None if left is None or not others else left * SHARE_OF_FIRST
        assert planned.sent is not None  # noqa: S101 - the caller looked
        asked: Asked | None = None
        try:
            asked = endpoint.attempt(
                *planned.sent, deadline=answer.deadline, first_token_s=first, body=body, repeats=repeats
            )
            with answer.stopped_by(model, asked.abort):
                if answer.winner is not None:  # the hedge was quicker than this attempt
                    asked.abort()
                self._pass_on(asked, model, attempt)
        except CloudFailure as failure:
            breaker.failed(_excused(failure) if self._hurried(failure, first) else failure)
            if asked is not None:
                attempt.moved(asked)
            return self._after_failure(failure, model, attempt)
        except BaseException as error:
            breaker.failed(CloudFailure("a bug", kind="aborted"))  # or its only probe would never be made again
            if asked is not None:
                attempt.moved(asked)
            attempt.ended("failed", kind=type(error).__name__, error=str(error))
            raise
        attempt.moved(asked)
        attempt.ended("ok")
        breaker.succeeded()
        return None

    def _hurried(self, failure: CloudFailure, first: float | None) -> bool:
        """Whether the endpoint was given less time than it is configured to have: it has not failed then."""
        if failure.reason in ("deadline", "max_seconds"):
            return True
        usual = self.planned.config.timeouts.first_token_s
        return first is not None and first < usual and failure.reason in ("first-token", "connect-timeout")

    def _pass_on(self, asked: Asked, model: str, attempt: Attempt) -> None:
        """Give the chunks of ASKED to the reader, with what was redacted put back. Raises CloudFailure."""
        answer, redactor = self.answer, self.planned.redactor
        restorer = None if redactor is None else redactor.restorer()
        try:
            self._pass_chunks(asked, model, attempt, restorer)
        except CloudFailure:
            if restorer is not None and answer.winner == model:
                answer.give(Chunk(text=restorer.flush()))  # what it held back in case a placeholder went on
            raise

    def _pass_chunks(self, asked: Asked, model: str, attempt: Attempt, restorer: Restorer | None) -> None:
        answer, redactor = self.answer, self.planned.redactor
        for chunk in asked:
            last = chunk.finish_reason is not None
            if answer.winner is None and (chunk.text or chunk.tool_calls or last):
                if not answer.claim(model):
                    asked.abort()
                    raise CloudFailure(f"{answer.winner} was quicker", kind="aborted")
                attempt.began_text()
                self._say_why(model)
                if self._hedge is not None:
                    self._hedge.stop()
            elif answer.winner not in (None, model):
                asked.abort()
                raise CloudFailure(f"{answer.winner} was quicker", kind="aborted")
            if restorer is not None and redactor is not None:
                text = restorer.feed(chunk.text) + (restorer.flush() if last else "")
                calls = tuple(
                    replace(call, arguments=redactor.restore_json(call.arguments)) for call in chunk.tool_calls
                )
                chunk = replace(chunk, text=text, tool_calls=calls)
            if not last:
                answer.give(chunk)
                continue
            served = chunk.served or Served(model=model, backend="cloud", device=asked.remote or "")
            answer.finish_with(chunk, replace(served, model=model))

    def _after_failure(self, failure: CloudFailure, model: str, attempt: Attempt) -> CloudFailure | None:
        answer = self.answer
        if answer.cancelled.is_set():
            attempt.ended("cancelled", kind=failure.kind)
            raise Cancelled
        if answer.winner not in (None, model):
            attempt.ended("late", kind="late", error=f"{answer.winner} was quicker")
            return failure
        if answer.winner is None:
            attempt.ended("failed", kind=failure.kind, error=failure.message, reason=failure.reason)
            return failure
        attempt.ended("interrupted", kind=failure.kind, error=failure.message, reason=failure.reason)
        self._break_off(failure, model)
        return None

    # ---- this machine

    def _ask_local(self, model: str, others: tuple[str, ...]) -> None:
        """Have the local model answer. Raises Broken."""
        here = self._with_here()
        if self._hedge is not None:
            self._hedge.begin()  # if it has not begun by itself
            if not self._taken_over(wait=True):
                raise Broken
            return
        attempt = self._note(model)
        self._say_why(model)
        try:
            if self.planned.decision.cascade and others:
                self._judge(here, attempt)
            else:
                for chunk in here.chunks(attempt):
                    here.give(chunk)
        except Cancelled:
            attempt.ended("cancelled")
            raise
        except UsageError as error:  # the caller's mistake, which nobody else should answer
            attempt.ended("failed", kind=kind_of(error), error=error.message)
            raise
        except EdgeAIError as error:
            self._local_failed(error, model, attempt)
            return
        attempt.ended("ok")

    def _local_failed(self, error: EdgeAIError, model: str, attempt: Attempt) -> None:
        self.answer.check_wanted()
        if self.answer.winner is None:
            attempt.ended("failed", kind=kind_of(error), error=error.message)
            self._local_error = error
            raise Broken from error
        attempt.ended("interrupted", kind=kind_of(error), error=error.message)
        self._interrupt(f"{model} broke off after {len(self.answer.text)} characters: {error.message}")

    def _judge(self, here: Here, attempt: Attempt) -> None:
        """Give the whole local answer if it is sure enough of itself, else keep it. Raises Broken."""
        chunks = list(here.chunks(attempt, judged=True))
        if chunks and chunks[-1].finish_reason == "cancelled":
            raise Cancelled
        local, least = self._orchestra.local, self.planned.config.routing.min_confidence
        head = None if local is None else local.head()
        if head is not None:  # else the file has changed since the decision, and is as good as uncalibrated
            attempt.confidence = here.sureness(head, chunks, attempt)
            if attempt.confidence < least:
                attempt.ended("unsure", kind="unsure", error=f"sure to {attempt.confidence:.2f}, below {least:.2f}")
                self._held = chunks
                raise Broken
        for chunk in chunks:
            here.give(chunk)

    def _say_why(self, model: str) -> None:
        """Warn the reader that MODEL answers because others failed, if they did; a try of its own that failed is no news."""
        failed = [item.line() for item in self.attempts if item.status == "failed" and item.model != model]
        if failed:
            self.answer.warn("fallback", f"{model} answers, because {'; '.join(dict.fromkeys(failed))}")

    def _set_hedge(self, others: tuple[str, ...]) -> None:
        """Have the local model start when the endpoint is late, where the decision says so."""
        if not self.planned.decision.hedge or self._hedge is not None or self._here is None:
            return
        if self._here.model in others:
            self._hedge = Hedge(self._here, self.answer, self.attempts)
            self._timer = self._orchestra.timers.after(self.planned.config.routing.hedge_s, self._hedge.begin)

    def _taken_over(self, *, wait: bool = False) -> bool:
        """Whether the local model has begun to answer beside the endpoint, or does so if we WAIT; then its end is waited for."""
        hedge, answer = self._hedge, self.answer
        if hedge is None or not (wait or hedge.has_won):
            return False
        hedge.join()
        answer.check_wanted()
        if not hedge.has_won:
            return False
        if answer.end is None and answer.error is None:
            self._interrupt(f"{hedge.here.model} broke off after {len(answer.text)} characters: {self._last_error()}")
        return True

    def _last_error(self) -> str:
        return next((item.error for item in reversed(self.attempts) if item.error), "it ended without a word")

    # ---- when an answer breaks off

    def _break_off(self, failure: CloudFailure, model: str) -> None:
        """End an answer of which text was given: by its own deadline, here behind a seam, or as interrupted."""
        if failure.kind == "timeout" and self.answer.is_late:
            self._finish("timeout")
            return
        local, here = self._orchestra.local, self._here
        message = f"{model} broke off after {len(self.answer.text)} characters: {failure.message}"
        alone = self.config.constraint is None and not self.answer.called_tools
        if not self._resume or here is None or local is None or local.problem() is not None or not alone:
            self._interrupt(message)
            return
        begun, attempt = self.answer.text, self._note(here.model)
        self.answer.warn("resumed", f"{message}; {here.model} goes on")
        self.answer.give(Chunk(text=SEAM.format(broken=model, here=here.model)))
        self.answer.hand_over(here.model)
        try:
            for chunk in here.chunks(attempt, begun=begun):
                here.give(chunk)
        except Cancelled:
            attempt.ended("cancelled")
            raise
        except EdgeAIError as error:
            self.answer.check_wanted()
            attempt.ended("interrupted", kind=kind_of(error), error=error.message)
            self._interrupt(f"{message}; {here.model} could not go on: {error.message}")
            return
        attempt.ended("ok")

    def _interrupt(self, message: str) -> None:
        self._finish("interrupted", Notice(code="stream_interrupted", message=message))

    def _finish(self, reason: Literal["cancelled", "timeout", "interrupted"], notice: Notice | None = None) -> None:
        model = self.answer.winner or next((item.model for item in self.attempts), "none")
        served = Served(model=model, backend="cloud" if model.startswith("cloud/") else "none", device="")
        self.answer.finish(reason, served, prompt_tokens=self.planned.facts.prompt_tokens, notice=notice)

    # ---- when nobody answers

    def _nobody(self) -> NoAnswer:
        verdict, facts = self.planned.verdict, self.planned.facts
        listed = "; ".join(self._excluded()) or "there is no model"
        local = self.planned.state.local
        broken = local is not None and local.problem is not None
        if facts.placement == "local_only":
            hints = [] if facts.scope in ("any", "local") else ["edgeai run auto answers it here"]
            asked = self.config.route is not None and self.config.route.redact
            if not asked and verdict.failed is None and all(finding.redactable for finding in verdict.findings):
                hints.append("let placeholders stand for what is private: `redact`")
            return NoAnswer(
                f"this stays on this machine ({verdict.reason}), and nobody here may answer: {listed}",
                hint=", or ".join(hints) or "edgeai route TEXT --explain says more",
                exit_code=3 if broken else 2,
            )
        code = 3 if broken else 8 if self.planned.state.online.endswith("offline") else 2
        return NoAnswer(f"nobody may answer: {listed}", hint="edgeai route TEXT --explain says more", exit_code=code)

    def _excluded(self) -> list[str]:
        """Return who was not asked and why, a line for each reason; that another one was asked for is no news."""
        found: dict[str, list[str]] = {}
        for item in self.planned.decision.candidates:
            if item.excluded_by is not None and not item.excluded_by.endswith("was asked for"):
                found.setdefault(item.excluded_by, []).append(item.model)
        return [f"{', '.join(models)}: not asked, {why}" for why, models in found.items()]

    def _all_failed(self) -> EdgeAIError:
        if self._local_error is not None and len(self.planned.decision.order) == 1:
            return self._local_error
        kinds = {item.kind for item in self.attempts}
        hint = "edgeai logs has each attempt"
        if "credentials" in kinds:
            hint = "check the key of the endpoint: edgeai config show names where it comes from"
        elif "quota" in kinds:
            hint = "the account at the endpoint has run out"
        tried = Counter(item.line() for item in self.attempts)
        lines = [f"{line} ({count} times)" if count > 1 else line for line, count in tried.items()]
        listed = "; ".join([*lines, *self._excluded()]) or "nobody could be asked in time"
        late = self.answer.is_late and self.config.max_seconds is not None
        what = f"no answer within {self.config.max_seconds:g} s" if late else "no candidate gave an answer"
        return NoAnswer(f"{what}: {listed}", attempts=[item.to_dict() for item in self.attempts], hint=hint)
