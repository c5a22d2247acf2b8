"""Fills batches with what running requests need next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeai.engines.llamacpp.adapters import Selection
from edgeai.engines.llamacpp.composing import PromptPace, in_turns, places, share_out
from edgeai.engines.llamacpp.exact import padding
from edgeai.engines.llamacpp.handle import GUESSES, Batch, Handle
from edgeai.engines.llamacpp.request import Request
from edgeai.engines.llamacpp.speculate import Pace

__all__ = ["Composer", "Part"]

BRIDGED = 2
"""Sequences of nobody that are computed so that those on both sides of them are computed together."""


@dataclass(slots=True)
class Part:
    """The part of a batch that belongs to one request: COUNT of its pending tokens, with logits from INDEX of the batch on.

    `padding` tokens after them mean nothing and are to be forgotten.
    """

    request: Request
    count: int
    index: int | None
    guesses: int
    padding: int = 0


class Composer:
    """Owns the batch of a Handle and knows how fast it is computed; used by the thread of the scheduler."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.batch = Batch(handle.lib, handle.n_batch)
        self._pace = PromptPace(handle.n_batch)
        self._paces: dict[int, Pace] = {}
        self._turn: Selection = ()
        self._read_last = self._shortest = False
        self._idle: list[
            tuple[int, int]
        ] = []  # sequences of nobody that are in the batch, and the tokens that they had

    def learn(self, parts: Sequence[Part], seconds: float) -> None:
        """Take note that the batch of PARTS took SECONDS."""
        prompts = sum(part.count + part.padding for part in parts if part.count > 1 + part.guesses)
        self._pace.learn(prompts, seconds, computed=any(part.index is not None for part in parts))

    def beside(self, *, running: bool) -> int:
        """Return how many tokens a batch of other work may have, while requests are RUNNING so that they need not wait for long."""
        return self._pace.allowance(0) if running and not self._handle.plan.deterministic else self.batch.capacity

    def ended(self, *, computed: bool) -> None:
        """Forget the tokens of nobody in the batch, and how long it took where it was not COMPUTED to its end."""
        self._clear_idle()
        if not computed:
            self._pace.interrupted()

    def learn_guesses(self, request: Request, guessed: int, right: int) -> None:
        """Take note that RIGHT of the tokens GUESSED for REQUEST were right."""
        self._paces[id(request)].learn(guessed, right)

    def forget(self, request: Request) -> None:
        """Forget REQUEST, which does not run any more."""
        self._paces.pop(id(request), None)

    def compose(self, running: Sequence[Request], fail: Callable[[Request, Exception], None]) -> list[Part]:
        """Fill the batch with what is next of RUNNING requests, the oldest first. FAIL is told of one whose guessing has failed."""
        group = self._group(running)
        self.batch.clear()
        self._idle = []
        answering = [request for request in group if not request.reads]
        reading = [request for request in group if request.reads]
        if self._handle.plan.deterministic:  # each alone, as it would be without the others
            answering, reading = (
                (answering[:1], []) if answering and not self._reads_next(reading) else ([], reading[:1])
            )
        if len(answering) > (most := places(self.batch.capacity, reading=bool(reading))):
            answering = sorted(answering, key=_last_served)[:most]
        apart = not self._handle.plan.unified
        if apart:
            answering = sorted(answering, key=_sequence)
        parts: list[Part] = []
        for at, request in enumerate(answering):
            if apart and parts:
                self._bridge(parts[-1].request, request, running, most=self.batch.capacity - len(answering) + at)
            if (part := self._answer_part(request, len(answering), fail)) is not None:
                parts.append(part)
        shares = self._shares(reading, [part.request for part in parts])
        parts += [self._add(request, count) for request, count in shares if count]
        if len(running) == len(reading) == 1 and reading[0].alone:
            self._pad(parts[0])
        return parts

    def _shares(self, reading: Sequence[Request], answering: Sequence[Request]) -> list[tuple[Request, int]]:
        """Return how many tokens of the prompt of each of READING go into the batch beside ANSWERING."""
        pending = [request.pending for request in reading]
        left = self.batch.capacity - self.batch.size
        # Where more wait for their first token than for their next one, those are served.
        short = sum(count <= self.batch.capacity for count in pending)
        hurry = not answering or short > len(answering)
        if self._handle.plan.unified:
            allowance = left if hurry else min(left, self._pace.allowance(self.batch.size))
            return list(zip(reading, share_out(pending, allowance), strict=True))
        allowance = left if hurry else min(left, self._pace.allowance(0))
        self._shortest = not self._shortest
        shares = in_turns(pending, allowance, shortest=self._shortest) if answering else share_out(pending, allowance)
        # The first token of a prompt whose sequence follows on those of answers is computed with these: it is not one of the tile.
        before = {_sequence(request) + 1 for request in answering}
        for at, request in enumerate(reading):
            if 0 < shares[at] < pending[at] and sum(shares) < left and _sequence(request) in before:
                shares[at] += 1
        return sorted(zip(reading, shares, strict=True), key=lambda share: _sequence(share[0]))

    def _bridge(self, before: Request, after: Request, running: Sequence[Request], *, most: int) -> None:
        """Put a token of nobody into the few sequences between two requests, if no other request has them and MOST tokens are enough.

        Where each sequence has cells of its own, libllama computes together only those whose numbers follow each other.
        """
        first, last = _sequence(before) + 1, _sequence(after)
        if last - first > BRIDGED or any(first <= (request.sequence or 0) < last for request in running):
            return
        spans = [(sequence, self._handle.span(sequence)[1] + 1) for sequence in range(first, last)]
        if self.batch.size + len(spans) > most or any(count >= self._handle.n_ctx for _, count in spans):
            return
        for sequence, count in spans:
            self.batch.add([0], count, sequence, 0)
        self._idle += spans

    def _clear_idle(self) -> None:
        for sequence, count in self._idle:
            self._handle.trim(sequence, count)

    def _pad(self, part: Part) -> None:
        """Give the batch of a request that is alone the shape that such batches have."""
        request, handle = part.request, self._handle
        count = padding(part.count)
        if handle.recurrent or count > min(handle.n_ctx - len(request.tokens), self.batch.capacity - self.batch.size):
            request.alone = False
            return
        assert request.sequence is not None  # noqa: S101 - running requests have one
        self.batch.pad(count, request.done + part.count, request.sequence)
        part.padding = count

    def _group(self, running: Sequence[Request]) -> list[Request]:
        """Return the running requests of one selection of adapters, in turn: a batch has only one."""
        selections = list(dict.fromkeys(request.adapters for request in running))
        if not selections:
            return []
        if len(selections) > 1 and self._turn in selections:
            self._turn = selections[(selections.index(self._turn) + 1) % len(selections)]
        else:
            self._turn = selections[0]
        self._handle.adapters.select(self._handle.context, self._turn)
        return [request for request in running if request.adapters == self._turn]

    def _reads_next(self, reading: list[Request]) -> bool:
        """Take turns between reading and answering where a batch has one request only."""
        self._read_last = not self._read_last
        return bool(reading) and self._read_last

    def _answer_part(self, request: Request, answering: int, fail: Callable[[Request, Exception], None]) -> Part | None:
        """Put the last token of REQUEST, one of ANSWERING, into the batch, and guesses; None where guessing has failed, and so it."""
        answer = request.answer
        guesses: list[int] = []
        if request.guesser is not None and answer is not None:
            pace = self._paces.setdefault(id(request), Pace(GUESSES))
            spare = self.batch.capacity - self.batch.size - 2 * answering
            outputs = self._handle.n_outputs // answering - 1
            most = min(pace.count, spare, outputs, answer.room - 1, request.most_guesses)
            try:
                guesses = request.guesser.guess(request.tokens, most) if most > 0 else []
            except Exception as error:  # noqa: BLE001 - it is raised again in the caller's thread
                fail(request, error)
                return None
        return self._add(request, 1, guesses)

    def _add(self, request: Request, count: int, guesses: Sequence[int] = ()) -> Part:
        """Put COUNT pending tokens of REQUEST into the batch, and after its last GUESSES."""
        assert request.sequence is not None  # noqa: S101 - running requests have one
        tokens = request.tokens[request.done : request.done + count]
        last = request.done + count == len(request.tokens)
        request.guesses = list(guesses)
        outputs = 1 + len(guesses) if last else 0
        index = self.batch.add([*tokens, *guesses], request.done, request.sequence, outputs)
        return Part(request, count + len(guesses), index if last else None, len(guesses))


def _sequence(request: Request) -> int:
    assert request.sequence is not None  # noqa: S101 - running requests have one
    return request.sequence


def _last_served(request: Request) -> float:
    return request.answer.last_sampled if request.answer is not None else 0.0
