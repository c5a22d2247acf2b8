"""The way of an answer from tokens to text: stop strings, limits, log-probabilities, clock, and the chunk that ends it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgeai.engines.constraint import TokenMask, incomplete
from edgeai.engines.logprobs import token_logprob
from edgeai.engines.streaming import Channel, StopFilter, Utf8Decoder
from edgeai.types import Chunk, FinishReason, GenerationConfig, Notice, Timings, TokenLogprob, Usage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Facts", "TextAnswer", "Words", "never_begun"]


class Words(Protocol):
    """A vocabulary: what its tokens show, and which of them end an answer."""

    def piece(self, token: int) -> bytes:
        """Return the bytes of TOKEN."""

    def is_end(self, token: int) -> bool:
        """Whether TOKEN ends an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a request before its answer begins. `submitted` is a reading of time.perf_counter."""

    submitted: float
    prompt_tokens: int
    truncated_tokens: int
    context: int
    load_s: float


class TextAnswer:
    """An answer as it grows: what is drawn goes in with `accept`, and its text into CHANNEL."""

    def __init__(
        self, config: GenerationConfig, channel: Channel, facts: Facts, words: Words, mask: TokenMask | None
    ) -> None:
        self.config, self.mask = config, mask
        self._channel, self._facts, self._words = channel, facts, words
        self._decoder, self._stops = Utf8Decoder(), StopFilter(config.stop)
        room = facts.context - facts.prompt_tokens
        self._limit = room if config.max_tokens is None else min(room, config.max_tokens)
        self._cut_by_context = self._limit == room and config.max_tokens != room
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self.tokens = 0  # of the answer: the end marker is sampled too, and is no part of it
        self.samples = self.drafted = self.accepted = 0
        self.first_sampled = self.last_sampled = 0.0
        self.first_shown: float | None = None

    def accept(self, token: int, raw: npt.NDArray[np.float32] | None) -> FinishReason | None:
        """Go on with TOKEN, drawn where the model gave the logits RAW (for log-probabilities). Return why the answer ends here."""
        self._clock()
        if self.mask is not None:
            self.mask.accept(token)
        if self._words.is_end(token):
            return "stop"
        self.tokens += 1
        if raw is not None and self.config.logprobs is not None:
            self._logprobs.append(token_logprob(raw, token, self.config.logprobs, self._words))
        self._show(self._stops.feed(self._decoder.feed(self._words.piece(token))))
        if self._stops.stopped or (self.mask is not None and self.mask.finished):
            return "stop"
        return "length" if self.tokens >= self._limit else None

    def _clock(self) -> None:
        self.samples += 1
        self.last_sampled = time.perf_counter()
        if self.samples == 1:
            self.first_sampled = self.last_sampled

    def _show(self, text: str) -> None:
        if not text:
            return
        self._text.append(text)
        if self.first_shown is None:
            self.first_shown = time.perf_counter()
        logprobs, self._logprobs = tuple(self._logprobs), []
        self._channel.put(Chunk(text=text, logprobs=logprobs))

    @property
    def room(self) -> int:
        """How many more tokens the answer may have."""
        return self._limit - self.tokens

    def finish(self, reason: FinishReason, *, began: float, cached: int = 0) -> None:
        """Show what was held back and put the last chunk; the work BEGAN then, and CACHED tokens of the prompt were not computed."""
        self._show(self._stops.flush())
        notices: tuple[Notice, ...] = ()
        if reason == "length" and self._cut_by_context:
            message = f"the answer ends because the context of {self._facts.context} tokens is full"
            notices += (Notice(code="context-full", message=message),)
        if reason != "cancelled":
            notices += incomplete(self.mask, "".join(self._text), reason)
        self._channel.put(self._last(reason, notices, began, cached))

    def _last(self, reason: FinishReason, notices: tuple[Notice, ...], began: float, cached: int) -> Chunk:
        """Return the chunk that ends the stream. Time until the first sampled token is the prompt's, time after it is generation's."""
        facts, now = self._facts, time.perf_counter()
        prefill = self.first_sampled - began if self.samples else 0.0
        decode = self.last_sampled - self.first_sampled if self.samples > 1 else 0.0
        return Chunk(
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=facts.prompt_tokens,
                completion_tokens=self.tokens,
                cached_tokens=cached,
                truncated_tokens=facts.truncated_tokens,
            ),
            timings=Timings(
                load_s=facts.load_s,
                ttft_s=None if self.first_shown is None else self.first_shown - facts.submitted,
                prompt_tok_s=(facts.prompt_tokens - cached) / prefill if prefill else None,
                gen_tok_s=(self.samples - 1) / decode if decode else None,
                total_s=now - facts.submitted,
                queue_s=began - facts.submitted,
                drafted=self.drafted,
                accepted=self.accepted,
            ),
            notices=notices,
            logprobs=tuple(self._logprobs),
        )


def never_begun(facts: Facts, reason: FinishReason) -> Chunk:
    """Return the only chunk of a request that ended before anything was computed for it."""
    waited = time.perf_counter() - facts.submitted
    return Chunk(
        finish_reason=reason,
        usage=Usage(prompt_tokens=facts.prompt_tokens, completion_tokens=0, truncated_tokens=facts.truncated_tokens),
        timings=Timings(
            load_s=facts.load_s, ttft_s=None, prompt_tok_s=None, gen_tok_s=None, total_s=waited, queue_s=waited
        ),
    )
