"""What runs on an ONNX model: an answer that is being given, and a text that is scored."""

from __future__ import annotations

import math
import queue
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeai.engines.answer import Facts, TextAnswer, never_begun
from edgeai.engines.chain import ArraySampler, is_greatest
from edgeai.engines.constraint import TokenMask
from edgeai.engines.genai.runtime import Generator, Runtime
from edgeai.engines.hfvocab import HFVocab
from edgeai.engines.overflow import Fitted
from edgeai.engines.streaming import Channel
from edgeai.engines.windows import Window, windows
from edgeai.errors import ClosedError, EngineCrashed, UsageError
from edgeai.types import FinishReason, GenerationConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Request", "ScoreTask"]

PACE = 0.025
"""Seconds between two handovers of text: the library holds Python's lock while it computes, so each costs 2 to 3 % of a fast token."""
CHECK_EVERY = 32
"""Tokens between two looks at the logits of an answer that takes the likeliest."""


class Request:
    """One answer. Its generator has room for the prompt and the longest answer that it may become."""

    def __init__(
        self, runtime: Runtime, vocab: HFVocab, fitted: Fitted, config: GenerationConfig, mask: TokenMask | None, *,
        context: int, load_s: float, submitted: float,
    ) -> None:  # fmt: skip
        self._runtime, self._config, self._mask = runtime, config, mask
        self._ids, self._context = fitted.ids, context
        self.channel = Channel(PACE)
        self.cancelled = False
        self._facts = Facts(
            submitted=submitted,
            prompt_tokens=len(fitted.ids),
            truncated_tokens=fitted.truncated_tokens,
            context=context,
            load_s=load_s,
        )
        self._answer = TextAnswer(config, self.channel, self._facts, vocab, mask)
        self._as_it_is = mask is None and config.logprobs is None and not config.logit_bias and is_greatest(config)
        self._seed = secrets.randbelow(2**32 - 1) if config.seed is None else config.seed
        self._began: float | None = None
        self._read = 0
        self._generator: Generator | None = None
        self._sampler: ArraySampler | None = None

    def step(self) -> bool:
        """Read a part of the prompt, or draw a token and read it. Return whether the answer goes on."""
        if self.expired:
            return self._end("timeout")
        if self._generator is None:
            self._begin()
        generator = self._generator
        assert generator is not None  # noqa: S101 - just made
        if self._read < len(self._ids):
            part = self._ids[self._read : self._read + self._runtime.part]
            generator.read(part)
            self._read += len(part)
            if self._read < len(self._ids):
                return True
        token, finish = self._follow(generator) if self._as_it_is else self._draw(generator.logits())
        if finish is not None:
            return self._end(finish)
        self._ids = [] if self._as_it_is else [token]
        self._read = 0
        return True

    def _begin(self) -> None:
        self._began = time.perf_counter()
        most = self._config.max_tokens
        room = self._context if most is None else min(self._context, len(self._ids) + most)
        self._generator = self._runtime.generator(room)
        self._sampler = ArraySampler(self._runtime.vocab_size, self._config, self._seed, self._ids)
        self.channel.begin()

    def _follow(self, generator: Generator) -> tuple[int, FinishReason | None]:
        """Take the likeliest token. The runtime finds it, which saves copying the logits; they are looked at now and then."""
        due = self._answer.samples % CHECK_EVERY == 0
        token = generator.likeliest()
        # What is not a number stays so in all that follows, and has no likeliest token but the first.
        if due or token == 0:
            check_finite(generator.logit(token))
        return token, self._answer.accept(token, None)

    def _draw(self, logits: npt.NDArray[np.float32]) -> tuple[int, FinishReason | None]:
        raw = logits.copy() if self._config.logprobs is not None else None
        if self._mask is not None:
            self._mask.apply(logits)
        assert self._sampler is not None  # noqa: S101 - made with the generator
        token = self._sampler.sample(logits)
        check_finite(float(logits[token]))
        return token, self._answer.accept(token, raw)

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        limit = self._config.max_seconds
        return limit is not None and time.perf_counter() - self._facts.submitted > limit

    def _end(self, reason: FinishReason) -> bool:
        self._free()
        if self._began is None:
            self.channel.put(never_begun(self._facts, reason))
        else:
            self._answer.finish(reason, began=self._began)
        return False

    def stop(self) -> None:
        """End as cancelled."""
        self._end("cancelled")

    def fail(self, error: BaseException) -> None:
        """Hand ERROR to the reader instead of a last chunk."""
        self._free()
        self.channel.put(error)

    def _free(self) -> None:
        self._generator = None  # frees its KV cache
        if self._sampler is not None:
            self._sampler.free()


def check_finite(logit: float) -> None:
    """Raise EngineCrashed for a LOGIT that is no number: the model, or this machine's arithmetic, is broken."""
    if not math.isfinite(logit):
        raise EngineCrashed("the model gave a probability that is not finite", hint="edgeai verify MODEL")


class ScoreTask:
    """The log-probabilities of a text of any length, read in windows of at most WINDOW tokens; `result` gets them, or the error."""

    expired = False

    def __init__(self, runtime: Runtime, ids: Sequence[int], *, window: int, bos: int | None) -> None:
        if len(ids) < 1:
            raise UsageError("the text is empty", hint="give at least one character")
        self._runtime, self._ids = runtime, ids
        self._bos = bos if bos is not None and ids[0] == bos else None
        self.cancelled = False
        self.result: queue.SimpleQueue[list[float] | BaseException] = queue.SimpleQueue()
        self._left: list[Window] = list(windows(len(ids), window - (1 if self._bos is not None else 0)))[::-1]
        self._found: list[float] = []
        self._generator: Generator | None = None
        self._tokens: list[int] = []
        self._ahead = 0  # tokens of the window that are not of the text
        self._read = 0

    def step(self) -> bool:
        """Read a part of a window and score it. Return whether there is more."""
        if len(self._ids) < 2:
            self.result.put([])
            return False
        window = self._left[-1]
        if self._generator is None:
            self._tokens = list(self._ids[window.start : window.end])
            self._ahead = int(self._bos is not None and window.start > 0)
            if self._ahead and self._bos is not None:
                self._tokens.insert(0, self._bos)
            self._generator, self._read = self._runtime.generator(len(self._tokens)), 0
        part = self._tokens[self._read : self._read + self._runtime.part]
        self._generator.read(part)
        self._score(window, len(part))
        self._read += len(part)
        if self._read >= len(self._tokens):
            self._left.pop()
            self._generator = None
        if self._left:
            return True
        self.result.put(self._found)
        return False

    def _score(self, window: Window, count: int) -> None:
        """Take the log-probabilities of the tokens that follow those just read."""
        import numpy as np

        first = max(window.first - window.start + self._ahead, self._read + 1)
        last = min(len(self._tokens), self._read + count + 1)
        if first >= last:
            return
        assert self._generator is not None  # noqa: S101 - it has just read
        rows = self._generator.all_logits(count)[first - 1 - self._read : last - 1 - self._read].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = rows[np.arange(len(rows)), self._tokens[first:last]] - np.log(np.exp(rows).sum(axis=1))
        self._found += chosen.tolist()

    def fail(self, error: BaseException) -> None:
        """Hand ERROR to whoever waits."""
        self._generator = None
        self.result.put(error)

    def stop(self) -> None:
        """Nobody waits any more, or the engine closes."""
        self.fail(ClosedError("the model has been closed", hint="load it again"))
