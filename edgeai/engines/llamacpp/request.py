"""One request while it is computed: its tokens, and how far they are."""

from __future__ import annotations

import math
import secrets
import time
from dataclasses import dataclass, field

from edgeai.engines.answer import Facts, TextAnswer, never_begun
from edgeai.engines.constraint import TokenMask
from edgeai.engines.llamacpp.adapters import Selection
from edgeai.engines.llamacpp.guess_check import WHOLE
from edgeai.engines.llamacpp.handle import GUESSES, Handle
from edgeai.engines.llamacpp.sampler import Sampler
from edgeai.engines.llamacpp.speculate import Guesser
from edgeai.engines.llamacpp.vocab import Vocab
from edgeai.engines.overflow import Fitted
from edgeai.engines.streaming import Channel
from edgeai.errors import EngineCrashed
from edgeai.types import FinishReason, GenerationConfig

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
            facts = Facts(
                submitted=self.submitted,
                prompt_tokens=self.prompt_tokens,
                truncated_tokens=self.fitted.truncated_tokens,
                context=0,
                load_s=load_s,
            )
            self.channel.put(never_begun(facts, finish))

    def fail(self, error: BaseException) -> None:
        """Hand ERROR to the reader instead of a last chunk."""
        if self.answer is not None:
            self.answer.sampler.free()
        self.channel.put(error)


class Answer(TextAnswer):
    """The answer of a request as it grows, and the sampler that draws it."""

    def __init__(self, request: Request, model: Loaded) -> None:
        handle = model.handle
        super().__init__(
            request.config,
            request.channel,
            Facts(
                submitted=request.submitted,
                prompt_tokens=request.prompt_tokens,
                truncated_tokens=request.fitted.truncated_tokens,
                context=handle.n_ctx,
                load_s=model.load_s,
            ),
            model.vocab,
            request.mask,
        )
        self._request, self._handle = request, handle
        self.sampler = Sampler(handle, request.config, request.seed, request.fitted.ids)

    def sample(self, index: int) -> tuple[int, FinishReason | None]:
        """Draw the next token from the logits at INDEX of the last batch and show it. Return it, and why the answer ends if it does."""
        mask, wish = self.mask, self.config.logprobs
        row = None if mask is None and wish is None else self._handle.logits(index)
        raw = row.copy() if row is not None and wish is not None else None
        if mask is not None and row is not None:
            mask.apply(row)
        token = self.sampler.sample(index)
        if not math.isfinite(self._handle.logit(index, token)):
            raise EngineCrashed("the model gave a probability that is not finite", hint="edgeai verify MODEL")
        return token, self.accept(token, raw)

    def end(self, finish: FinishReason) -> None:
        """Show what was held back and put the last chunk."""
        self.sampler.free()
        began = self._request.began
        self.finish(finish, began=0.0 if began is None else began, cached=self._request.cached)
