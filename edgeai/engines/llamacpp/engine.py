"""The llama.cpp engine: one thread owns the context, callers from any thread submit requests and read their own stream."""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from edgeai import chat
from edgeai.artifact import Artifact
from edgeai.engines.constraint import TokenMask, incomplete
from edgeai.engines.llamacpp.adapters import Selection
from edgeai.engines.llamacpp.grammar import grammars_of, logits_view
from edgeai.engines.llamacpp.handle import Aborted, Handle
from edgeai.engines.llamacpp.sampler import Sampler
from edgeai.engines.llamacpp.scoring import ScoreJob
from edgeai.engines.llamacpp.vocab import Vocab
from edgeai.engines.overflow import Fitted, Tokens, fit_prompt
from edgeai.engines.streaming import Channel, ChunkStream, StopFilter, Utf8Decoder
from edgeai.errors import ClosedError, EngineCrashed, UsageError
from edgeai.plan import Plan
from edgeai.types import Chunk, FinishReason, GenerationConfig, Notice, Prompt, Timings, Usage

__all__ = ["LlamaCppEngine"]


@dataclass(slots=True)
class _Request:
    """One generation: what to do, where its chunks go, and whether anyone still wants them."""

    ids: list[int]
    config: GenerationConfig
    submitted: float
    adapters: Selection
    fitted: Fitted
    mask: TokenMask | None = None
    chunks: Channel = field(default_factory=Channel)
    cancelled: bool = False


class LlamaCppEngine:
    """A GGUF model in this process. See engines.base.Engine for what the methods promise.

    An engine that is forgotten frees its model, as one that is closed does.
    """

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        began = time.perf_counter()
        self.artifact = artifact
        self._core = _Core(artifact, plan)
        self._vocab = self._core.vocab
        self.plan = self._core.handle.plan
        self.placement = self._core.handle.placement
        self.backend = self.placement.backend
        self.load_s = self._core.load_s = time.perf_counter() - began
        weakref.finalize(self, self._core.shut)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of TEXT."""
        with self._core.in_use():
            return self._vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS. Raises UsageError for an id outside the vocabulary."""
        size = self._core.handle.n_vocab
        if wrong := [token for token in ids if not 0 <= token < size]:
            raise UsageError(f"token id {wrong[0]} is not in the vocabulary", hint=f"ids go from 0 to {size - 1}")
        with self._core.in_use():
            return self._vocab.detokenize(ids)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the token ids that PROMPT becomes: text with the model's BOS, messages through its chat template."""
        with self._core.in_use():
            if isinstance(prompt, str):
                return self._vocab.tokenize(prompt, add_special=True)
            named, control = self._vocab.named, tuple(self._vocab.control)
            return self._vocab.tokenize_segments(
                chat.render(self.artifact.template, prompt, special=named, control=control)
            )

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        """Answer PROMPT; closing the stream stops the work within one graph node, in prefill too."""
        submitted = time.perf_counter()
        fitted = self._fit(prompt, config)
        core = self._core
        with core.in_use():
            mask = None if config.constraint is None else core.grammars.compile(config.constraint)
        adapters = core.handle.adapters.selection(config.adapters)
        request = _Request(
            ids=fitted.ids, config=config, submitted=submitted, adapters=adapters, fitted=fitted, mask=mask
        )
        if fitted.notices:
            request.chunks.put(Chunk(notices=fitted.notices))
        core.submit(request)
        return ChunkStream(request.chunks, lambda: core.cancel(request))

    def _fit(self, prompt: Prompt, config: GenerationConfig) -> Fitted:
        with self._core.in_use():
            tokens = Tokens(encode=self.prompt_ids, tokenize=self.tokenize, piece=self._vocab.piece)
            return fit_prompt(
                prompt, config, context=self._core.handle.n_ctx, trained=self.artifact.context, tokens=tokens
            )

    def score(self, text: str | Sequence[int], adapters: Sequence[tuple[str, float]] = ()) -> list[float]:
        """Return the log-probability (nats) of each token of TEXT, or of a list of token ids, after the first; of any length.

        What is longer than the context is read in windows that overlap by half (see scoring.windows). Raises UsageError for no tokens.
        """
        ids = self.prompt_ids(text) if isinstance(text, str) else list(text)
        self._vocab.check(ids)
        job = ScoreJob(ids, window=self._core.handle.n_ctx, bos=self.artifact.bos)
        job.adapters = self._core.handle.adapters.selection(adapters)
        self._core.submit(job)
        try:
            result = job.result.get()
        except BaseException:  # Ctrl-C: nobody waits for the rest
            job.cancelled = True
            raise
        if isinstance(result, BaseException):
            raise result
        return result

    def embed(self, texts: Sequence[str]) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: a language model gives no vectors of texts here."""
        raise UsageError(
            f"{self.artifact.name} is a language model, not an embedding model", hint="edgeai pull minilm is one"
        )

    def rank(self, query: str, documents: Sequence[str]) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: a language model has no classifier that ranks."""
        raise UsageError(
            f"{self.artifact.name} is a language model, not a reranker: its file has no classifier",
            hint="convert a reranker (…ForSequenceClassification with one label)",
        )

    def close(self) -> None:
        """Stop what runs and free the model; every later call raises."""
        self._core.shut()
        self._core.join()


class _Core:
    """The native model, the thread that owns its context, and the queue between them and the engine's callers.

    The thread refers to this object and not to the engine, so that a forgotten engine can be collected.
    """

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        self.name = artifact.name
        self.handle = Handle(artifact, plan)
        # libllama knows no normalizers; our converter notes in the file when the tokenizer has one.
        self.vocab = Vocab(self.handle, normalizer=artifact.metadata.get("edgeai.tokenizer.normalizer"))
        self.grammars = grammars_of(self.handle)
        self.load_s = 0.0
        self._process = os.getpid()
        self._work: queue.SimpleQueue[_Request | ScoreJob | None] = queue.SimpleQueue()
        # Reentrant, since the collector may drop a stream (which cancels) in the middle of any of these methods.
        self._gate = threading.Condition(threading.RLock())
        self._users = 0
        self._closed = False
        self._current: _Request | None = None
        self._thread = threading.Thread(target=self._loop, name=f"edgeai {artifact.name}", daemon=True)
        self._thread.start()

    # ---- called from any thread

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise EngineCrashed(
                f"{self.name!r} was loaded before this process was forked",
                hint="load the model in the process that uses it",
            )
        if self._closed:
            raise ClosedError(f"{self.name!r} has been closed", hint="load it again")

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the model in memory for a native call of this thread."""
        with self._gate:
            self._check_open()
            self._users += 1
        try:
            yield
        finally:
            with self._gate:
                self._users -= 1
                self._gate.notify_all()

    def submit(self, job: _Request | ScoreJob) -> None:
        """Queue JOB."""
        with self._gate:
            self._check_open()
            self._work.put(job)

    def cancel(self, request: _Request) -> None:
        """End REQUEST, running or waiting."""
        with self._gate:
            request.cancelled = True
            if self._current is request:
                self.handle.abort()

    def shut(self) -> None:
        """Refuse new work and end what runs; the thread then frees the model. Does not wait."""
        with self._gate:
            if self._closed or os.getpid() != self._process:
                return
            self._closed = True
            if self._current is not None:
                self._current.cancelled = True
                self.handle.abort()
            self._work.put(None)

    def join(self) -> None:
        """Wait until the model is freed."""
        if threading.current_thread() is not self._thread and os.getpid() == self._process:
            self._thread.join()

    # ---- the thread that owns the context

    def _loop(self) -> None:
        while (job := self._work.get()) is not None:
            if isinstance(job, ScoreJob):
                self._score(job)
            else:
                self._answer(job)
        self._end_waiting()
        with self._gate:
            self._gate.wait_for(lambda: self._users == 0)
            self.handle.free()

    def _end_waiting(self) -> None:
        """Tell those who were still queued when the engine was closed."""
        while not self._work.empty():
            job = self._work.get()
            if isinstance(job, _Request):
                job.chunks.put(_Run(job).last("cancelled", self.load_s))
            elif isinstance(job, ScoreJob):
                job.result.put(ClosedError(f"{self.name!r} has been closed", hint="load it again"))

    def _answer(self, request: _Request) -> None:
        self.handle.reset()
        with self._gate:
            wanted = not (request.cancelled or self._closed)
            self._current = request if wanted else None
        if not wanted:
            request.chunks.put(_Run(request).last("cancelled", self.load_s))
            return
        try:
            self.handle.adapters.select(self.handle.context, request.adapters)
            for chunk in self._generate(request):
                request.chunks.put(chunk)
        except Exception as error:  # noqa: BLE001 - it is raised again in the caller's thread
            request.chunks.put(error)
        finally:
            with self._gate:
                self._current = None

    def _score(self, job: ScoreJob) -> None:
        try:
            self.handle.reset()
            self.handle.adapters.select(self.handle.context, job.adapters)
            while not job.step(self.handle):
                pass
        except Exception as error:  # noqa: BLE001 - it is raised again in the caller's thread
            job.fail(error)

    def _generate(self, request: _Request) -> Iterator[Chunk]:
        config = request.config
        seed = secrets.randbelow(2**32 - 1) if config.seed is None else config.seed
        sampler = Sampler(self.handle, config, seed)
        run, stops = _Run(request), StopFilter(config.stop)
        try:
            yield from self._decode(request, sampler, run, stops)
        except Aborted:
            if held := stops.flush():
                yield Chunk(text=held)
            yield run.last("cancelled", self.load_s)
        finally:
            sampler.free()

    def _decode(self, request: _Request, sampler: Sampler, run: _Run, stops: StopFilter) -> Iterator[Chunk]:
        handle, vocab, config = self.handle, self.vocab, request.config
        for start in range(0, len(request.ids), handle.n_batch):
            if request.cancelled:
                raise Aborted
            handle.decode(request.ids[start : start + handle.n_batch])
        room = handle.n_ctx - len(request.ids)
        limit = room if config.max_tokens is None else min(room, config.max_tokens)
        decoder, mask = Utf8Decoder(), request.mask
        finish: FinishReason = "length"
        while True:
            if mask is not None:
                mask.apply(logits_view(handle))
            token = sampler.sample()  # waits for the logits, so the clock is read after it
            run.sampled()
            if mask is not None:
                mask.accept(token)
            if vocab.is_end(token):
                finish = "stop"
                break
            run.tokens += 1
            if text := stops.feed(decoder.feed(vocab.piece(token))):
                run.shown(text)
                yield Chunk(text=text)
            if stops.stopped or (mask is not None and mask.finished):
                finish = "stop"
                break
            if run.tokens >= limit:
                break
            if request.cancelled:
                raise Aborted
            handle.decode((token,))
        if held := stops.flush():
            run.shown(held)
            yield Chunk(text=held)
        cut_by_context = finish == "length" and limit == room and config.max_tokens != limit
        yield run.last(finish, self.load_s, context=handle.n_ctx if cut_by_context else None)


class _Run:
    """The clock of one generation. Time until the first sampled token is the prompt's, time after it is generation's."""

    def __init__(self, request: _Request) -> None:
        self.request = request
        self.began = time.perf_counter()
        self.tokens = 0  # of the answer: the end marker is sampled too, and is no part of it
        self._samples = 0
        self._first_sampled = self._last_sampled = 0.0
        self._first_shown: float | None = None
        self._text: list[str] = []

    def sampled(self) -> None:
        """Note that a token was drawn."""
        self._samples += 1
        self._last_sampled = time.perf_counter()
        if self._samples == 1:
            self._first_sampled = self._last_sampled

    def shown(self, text: str) -> None:
        """Note that TEXT goes out."""
        self._text.append(text)
        if self._first_shown is None:
            self._first_shown = time.perf_counter()

    def last(self, finish: FinishReason, load_s: float, context: int | None = None) -> Chunk:
        """Return the chunk that ends the stream; CONTEXT is the size of the context if that is what ended it."""
        submitted, prompt = self.request.submitted, len(self.request.ids)
        prefill = self._first_sampled - self.began
        decode = self._last_sampled - self._first_sampled
        notices: tuple[Notice, ...] = ()
        if context is not None:
            notices = (
                Notice(code="context-full", message=f"the answer ends because the context of {context} tokens is full"),
            )
        if finish != "cancelled":
            notices += incomplete(self.request.mask, "".join(self._text), finish)
        return Chunk(
            finish_reason=finish,
            usage=Usage(
                prompt_tokens=prompt,
                completion_tokens=self.tokens,
                truncated_tokens=self.request.fitted.truncated_tokens,
            ),
            timings=Timings(
                load_s=load_s,
                ttft_s=None if self._first_shown is None else self._first_shown - submitted,
                prompt_tok_s=prompt / prefill if self._samples else None,
                gen_tok_s=(self._samples - 1) / decode if self._samples > 1 else None,
                total_s=time.perf_counter() - submitted,
            ),
            notices=notices,
        )
