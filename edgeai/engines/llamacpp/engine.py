"""The llama.cpp engine: one thread owns the context, callers from any thread submit requests and read their own stream."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeai import chat
from edgeai.artifact import Artifact
from edgeai.engines.llamacpp.handle import Aborted, Handle
from edgeai.engines.llamacpp.sampler import Sampler
from edgeai.engines.llamacpp.vocab import Vocab
from edgeai.engines.streaming import ChunkStream, StopFilter, Utf8Decoder
from edgeai.errors import ContextExceeded, EdgeAIError, EngineCrashed, UsageError
from edgeai.plan import Plan
from edgeai.types import Chunk, FinishReason, GenerationConfig, Notice, Prompt, Timings, Usage

__all__ = ["LlamaCppEngine"]


class _Closed(EngineCrashed):
    """The engine was used after close()."""


@dataclass(slots=True)
class _Request:
    """One generation: what to do, where its chunks go, and whether anyone still wants them."""

    ids: list[int]
    config: GenerationConfig
    submitted: float
    chunks: queue.SimpleQueue[Chunk | BaseException] = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False


@dataclass(slots=True)
class _Score:
    """A request for the log-probabilities of a text."""

    ids: list[int]
    result: queue.SimpleQueue[list[float] | BaseException] = field(default_factory=queue.SimpleQueue)


class LlamaCppEngine:
    """A GGUF model in this process. See engines.base.Engine for what the methods promise."""

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        began = time.perf_counter()
        self.artifact = artifact
        self._handle = Handle(artifact, plan)
        # libllama knows no normalizers; our converter notes in the file when the tokenizer has one.
        self._vocab = Vocab(self._handle, normalizer=artifact.metadata.get("edgeai.tokenizer.normalizer"))
        self.plan = plan
        self.backend = self._handle.backend
        self._work: queue.SimpleQueue[_Request | _Score | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards _closed and _current
        self._closed = False
        self._current: _Request | None = None
        self._thread = threading.Thread(target=self._loop, name=f"edgeai {artifact.name}", daemon=True)
        self._thread.start()
        self.load_s = time.perf_counter() - began

    # ---- called from any thread

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of TEXT."""
        self._check_open()
        return self._vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS. Raises UsageError for an id outside the vocabulary."""
        self._check_open()
        if wrong := [token for token in ids if not 0 <= token < self._handle.n_vocab]:
            raise UsageError(
                f"token id {wrong[0]} is not in the vocabulary", hint=f"ids go from 0 to {self._handle.n_vocab - 1}"
            )
        return self._vocab.detokenize(ids)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the token ids that PROMPT becomes: text with the model's BOS, messages through its chat template."""
        self._check_open()
        if isinstance(prompt, str):
            return self._vocab.tokenize(prompt, add_special=True)
        segments = chat.render(
            self.artifact.template, prompt, special=self._vocab.named, control=tuple(self._vocab.control)
        )
        return self._vocab.tokenize_segments(segments)

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        """Answer PROMPT; closing the stream stops the work within one graph node, in prefill too."""
        submitted = time.perf_counter()
        ids = self.prompt_ids(prompt)
        self._check_length(ids)
        request = _Request(ids=ids, config=config, submitted=submitted)
        self._submit(request)
        return ChunkStream(request.chunks, lambda: self._cancel(request))

    def _check_length(self, ids: Sequence[int]) -> None:
        if not ids:
            raise UsageError("the prompt is empty", hint="give at least one character")
        if len(ids) >= self._handle.n_ctx:
            raise ContextExceeded(
                f"the prompt has {len(ids)} tokens and the context holds {self._handle.n_ctx}, the answer included",
                hint=self._longer_context_hint(len(ids)),
            )

    def _longer_context_hint(self, tokens: int) -> str:
        trained = self.artifact.context
        if trained is None or trained > tokens:
            return f"use --ctx {min(trained or tokens + 1024, max(tokens + 1024, 2 * self._handle.n_ctx))}"
        return f"the model was trained for {trained} tokens: shorten the prompt"

    def _cancel(self, request: _Request) -> None:
        with self._lock:
            request.cancelled = True
            if self._current is request:
                self._handle.abort()

    def score(self, text: str) -> list[float]:
        """Return the log-probability (nats) of each token of TEXT after the first.

        Raises ContextExceeded when the text has more tokens than the context.
        """
        ids = self.prompt_ids(text)
        if len(ids) > min(self._handle.n_ctx, self._handle.n_batch):
            raise ContextExceeded(
                f"the text has {len(ids)} tokens and can be scored up to {min(self._handle.n_ctx, self._handle.n_batch)}",
                hint="score it in pieces",
            )
        job = _Score(ids)
        self._submit(job)
        result = job.result.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """Stop what runs and free the model; every later call raises."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._current is not None:
                self._current.cancelled = True
                self._handle.abort()
        self._work.put(None)
        self._thread.join()
        self._handle.free()

    def _check_open(self) -> None:
        if self._closed:
            raise _Closed(f"{self.artifact.name!r} has been closed", hint="load it again")

    def _submit(self, job: _Request | _Score) -> None:
        with self._lock:
            self._check_open()
            self._work.put(job)

    # ---- the thread that owns the context

    def _loop(self) -> None:
        while (job := self._work.get()) is not None:
            if isinstance(job, _Score):
                self._answer_score(job)
            else:
                self._answer(job)
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        """Tell those who were still queued when the engine was closed."""
        while not self._work.empty():
            job = self._work.get()
            if isinstance(job, _Request):
                job.chunks.put(_Closed(f"{self.artifact.name!r} has been closed"))
            elif isinstance(job, _Score):
                job.result.put(_Closed(f"{self.artifact.name!r} has been closed"))

    def _answer(self, request: _Request) -> None:
        self._handle.reset()
        with self._lock:
            if request.cancelled or self._closed:
                request.chunks.put(_Closed(f"{self.artifact.name!r} has been closed"))
                return
            self._current = request
        try:
            for chunk in self._generate(request):
                request.chunks.put(chunk)
        except Exception as error:  # noqa: BLE001 - it is raised again in the caller's thread
            request.chunks.put(error)
        finally:
            with self._lock:
                self._current = None

    def _answer_score(self, job: _Score) -> None:
        try:
            self._handle.reset()
            job.result.put(_log_probabilities(self._handle.logits_of_all(job.ids), job.ids))
        except EdgeAIError as error:
            job.result.put(error)

    def _generate(self, request: _Request) -> Iterator[Chunk]:
        config = request.config
        seed = secrets.randbelow(2**32 - 1) if config.seed is None else config.seed
        sampler = Sampler(self._handle, config, seed)
        run = _Run(request)
        try:
            yield from self._decode(request, sampler, run)
        except Aborted:
            yield run.last("cancelled", self.load_s)
        finally:
            sampler.free()

    def _decode(self, request: _Request, sampler: Sampler, run: _Run) -> Iterator[Chunk]:
        handle, vocab, config = self._handle, self._vocab, request.config
        for start in range(0, len(request.ids), handle.n_batch):
            if request.cancelled:
                raise Aborted
            handle.decode(request.ids[start : start + handle.n_batch])
        room = handle.n_ctx - len(request.ids)
        limit = room if config.max_tokens is None else min(room, config.max_tokens)
        decoder, stops = Utf8Decoder(), StopFilter(config.stop)
        finish: FinishReason = "length"
        while True:
            token = sampler.sample()  # waits for the logits, so the clock is read after it
            run.sampled()
            if vocab.is_end(token):
                finish = "stop"
                break
            run.tokens += 1
            if text := stops.feed(decoder.feed(vocab.piece(token))):
                run.shown()
                yield Chunk(text=text)
            if stops.stopped:
                finish = "stop"
                break
            if run.tokens >= limit:
                break
            if request.cancelled:
                raise Aborted
            handle.decode((token,))
        if held := stops.flush():
            run.shown()
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

    def sampled(self) -> None:
        """Note that a token was drawn."""
        self._samples += 1
        self._last_sampled = time.perf_counter()
        if self._samples == 1:
            self._first_sampled = self._last_sampled

    def shown(self) -> None:
        """Note that text goes out."""
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
        return Chunk(
            finish_reason=finish,
            usage=Usage(prompt_tokens=prompt, completion_tokens=self.tokens),
            timings=Timings(
                load_s=load_s,
                ttft_s=None if self._first_shown is None else self._first_shown - submitted,
                prompt_tok_s=prompt / prefill if self._samples else None,
                gen_tok_s=(self._samples - 1) / decode if self._samples > 1 else None,
                total_s=time.perf_counter() - submitted,
            ),
            notices=notices,
        )


def _log_probabilities(logits: Any, ids: Sequence[int]) -> list[float]:
    """Return log softmax(LOGITS[i])[IDS[i + 1]] for each i, in nats; LOGITS is (n, vocab), computed in float64."""
    import numpy as np

    rows = np.ctypeslib.as_array(logits)[:-1].astype(np.float64)  # (n - 1, vocab)
    rows -= rows.max(axis=1, keepdims=True)
    chosen = rows[np.arange(len(rows)), list(ids[1:])]
    return (chosen - np.log(np.exp(rows).sum(axis=1))).tolist()  # type: ignore[no-any-return]
