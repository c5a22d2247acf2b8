"""One request while it is computed: its tokens, how far they are, its clock, and the way of its tokens to text."""

from __future__ import annotations

import math
import secrets
import time
from dataclasses import dataclass, field

from edgeai.engines.constraint import TokenMask, incomplete
from edgeai.engines.llamacpp.adapters import Selection
from edgeai.engines.llamacpp.guess_check import WHOLE
from edgeai.engines.llamacpp.handle import GUESSES, Handle
from edgeai.engines.llamacpp.logprobs import token_logprob
from edgeai.engines.llamacpp.sampler import Sampler
from edgeai.engines.llamacpp.speculate import Guesser
from edgeai.engines.llamacpp.vocab import Vocab
from edgeai.engines.overflow import Fitted
from edgeai.engines.streaming import Channel, StopFilter, Utf8Decoder
from edgeai.errors import EngineCrashed
from edgeai.types import Chunk, FinishReason, GenerationConfig, Notice, Timings, TokenLogprob, Usage

__all__ = ["Loaded", "Request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a request needs to know of the model that answers it."""

    handle: Handle
    vocab: Vocab
    load_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """What to answer and how far that is.

    `tokens` are the prompt and the answer so far; the first `done` of them are in the KV cache under `sequence`. `guesses` are tokens
    that may come next, computed along. `alone`: nothing else was computed beside it so far, and its first `exact` tokens are what they
    would be in any other request that is alone. `cancelled` is set by any thread; all else belongs to the thread of the scheduler.
    """

    fitted: Fitted
    config: GenerationConfig
    submitted: float
    adapters: Selection = ()
    mask: TokenMask | None = None
    guesser: Guesser | None = None
    exact_guesses: int | None = None
    channel: Channel = field(default_factory=Channel)
    cancelled: bool = False
    tokens: list[int] = field(init=False)
    guesses: list[int] = field(default_factory=list, init=False)
    done: int = field(default=0, init=False)
    sequence: int | None = field(default=None, init=False)
    seed: int = field(init=False)
    cached: int = field(default=0, init=False)
    answer: Answer | None = field(default=None, init=False)
    began: float | None = field(default=None, init=False)
    alone: bool = field(default=False, init=False)
    exact: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.fitted.ids)
        self.seed = secrets.randbelow(2**32 - 1) if self.config.seed is None else self.config.seed

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return len(self.fitted.ids)

    @property
    def pending(self) -> int:
        """How many of its tokens are not in the cache; one, when it waits for nothing but its next token."""
        return len(self.tokens) - self.done

    @property
    def most_guesses(self) -> int:
        """How many guesses may be checked now; `exact_guesses` at once where they must not change the answer."""
        return GUESSES if self.exact_guesses is None else min(self.exact_guesses, WHOLE - len(self.tokens))

    @property
    def reads(self) -> bool:
        """Whether it is still reading its prompt, or reads it again with the answer so far."""
        return self.pending > 1 or self.answer is None or self.answer.samples == 0

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        limit = self.config.max_seconds
        return limit is not None and time.perf_counter() - self.submitted > limit

    def start(self, model: Loaded) -> None:
        """Make what the answer needs, when the first token of the prompt is about to be computed."""
        if self.answer is None:
            self.began = time.perf_counter()
            self.answer = Answer(self, model)
            self.channel.begin()

    def end(self, finish: FinishReason, load_s: float) -> None:
        """End the stream; a request that never began ends too."""
        answer = self.answer
        if answer is not None:
            answer.end(finish)
        else:
            self.channel.put(_last(self, finish, load_s))

    def fail(self, error: BaseException) -> None:
        """Hand ERROR to the reader instead of a last chunk."""
        if self.answer is not None:
            self.answer.sampler.free()
        self.channel.put(error)


class Answer:
    """The answer of a request as it grows: sampler, text, stop strings, limits, clock."""

    def __init__(self, request: Request, model: Loaded) -> None:
        config, handle = request.config, model.handle
        self._request, self._model = request, model
        self.sampler = Sampler(handle, config, request.seed, request.fitted.ids)
        self._decoder, self._stops = Utf8Decoder(), StopFilter(config.stop)
        room = handle.n_ctx - request.prompt_tokens
        self._limit = room if config.max_tokens is None else min(room, config.max_tokens)
        self._cut_by_context = self._limit == room and config.max_tokens != room
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self.tokens = 0  # of the answer: the end marker is sampled too, and is no part of it
        self.samples = self.drafted = self.accepted = 0
        self.first_sampled = self.last_sampled = 0.0
        self.first_shown: float | None = None

    def sample(self, index: int) -> tuple[int, FinishReason | None]:
        """Draw the next token from the logits at INDEX of the last batch and show it. Return it, and why the answer ends if it does."""
        request, vocab = self._request, self._model.vocab
        mask, wish = request.mask, request.config.logprobs
        row = None if mask is None and wish is None else self._model.handle.logits(index)
        raw = row.copy() if row is not None and wish is not None else None
        if mask is not None and row is not None:
            mask.apply(row)
        token = self.sampler.sample(index)
        if not math.isfinite(self._model.handle.logit(index, token)):
            raise EngineCrashed("the model gave a probability that is not finite", hint="edgeai verify MODEL")
        self._clock()
        if mask is not None:
            mask.accept(token)
        if vocab.is_end(token):
            return token, "stop"
        self.tokens += 1
        piece = vocab.piece(token)
        if raw is not None and wish is not None:
            self._logprobs.append(token_logprob(raw, token, wish, vocab))
        self._show(self._stops.feed(self._decoder.feed(piece)))
        if self._stops.stopped or (mask is not None and mask.finished):
            return token, "stop"
        return token, "length" if self.tokens >= self._limit else None

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
        self._request.channel.put(Chunk(text=text, logprobs=logprobs))

    @property
    def room(self) -> int:
        """How many more tokens the answer may have."""
        return self._limit - self.tokens

    def end(self, finish: FinishReason) -> None:
        """Show what was held back and put the last chunk."""
        self._show(self._stops.flush())
        notices: tuple[Notice, ...] = ()
        if finish == "length" and self._cut_by_context:
            context = self._model.handle.n_ctx
            message = f"the answer ends because the context of {context} tokens is full"
            notices += (Notice(code="context-full", message=message),)
        if finish != "cancelled":
            notices += incomplete(self._request.mask, "".join(self._text), finish)
        self.sampler.free()
        self._request.channel.put(
            _last(self._request, finish, self._model.load_s, notices=notices, logprobs=tuple(self._logprobs))
        )


def _last(
    request: Request,
    finish: FinishReason,
    load_s: float,
    *,
    notices: tuple[Notice, ...] = (),
    logprobs: tuple[TokenLogprob, ...] = (),
) -> Chunk:
    """Return the chunk that ends the stream. Time until the first sampled token is the prompt's, time after it is generation's."""
    answer, began, now = request.answer, request.began, time.perf_counter()
    began = now if began is None else began
    samples = answer.samples if answer else 0
    prefill = answer.first_sampled - began if answer and samples else 0.0
    decode = answer.last_sampled - answer.first_sampled if answer and samples > 1 else 0.0
    shown = answer.first_shown if answer else None
    return Chunk(
        finish_reason=finish,
        usage=Usage(
            prompt_tokens=request.prompt_tokens,
            completion_tokens=answer.tokens if answer else 0,
            cached_tokens=request.cached,
            truncated_tokens=request.fitted.truncated_tokens,
        ),
        timings=Timings(
            load_s=load_s,
            ttft_s=None if shown is None else shown - request.submitted,
            prompt_tok_s=(request.prompt_tokens - request.cached) / prefill if prefill else None,
            gen_tok_s=(samples - 1) / decode if decode else None,
            total_s=now - request.submitted,
            queue_s=began - request.submitted,
            drafted=answer.drafted if answer else 0,
            accepted=answer.accepted if answer else 0,
        ),
        notices=notices,
        logprobs=logprobs,
    )
