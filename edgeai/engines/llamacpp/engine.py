"""The llama.cpp engine: a GGUF model in this process, for any number of callers at once."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from edgeai import chat
from edgeai.artifact import Artifact
from edgeai.engines.constraint import Forced, TokenMask
from edgeai.engines.llamacpp.drafting import DraftModel
from edgeai.engines.llamacpp.grammar import grammars_of
from edgeai.engines.llamacpp.guess_check import WHOLE, GuessCheck
from edgeai.engines.llamacpp.handle import GUESSES, Handle
from edgeai.engines.llamacpp.jobs import ResultJob
from edgeai.engines.llamacpp.promptfile import PromptFile, read_prompt_file, write_prompt_file
from edgeai.engines.llamacpp.promptstate import LoadJob, SaveJob, reusable_ids, subject_of
from edgeai.engines.llamacpp.request import Loaded, Request
from edgeai.engines.llamacpp.scheduler import Scheduler, Stats
from edgeai.engines.llamacpp.scoring import ScoreJob
from edgeai.engines.llamacpp.speculate import Guesser, Lookup
from edgeai.engines.llamacpp.vocab import Vocab
from edgeai.engines.overflow import Fitted, Tokens, fit_prompt
from edgeai.engines.streaming import ChunkStream
from edgeai.engines.waiting import outcome
from edgeai.errors import UsageError
from edgeai.plan import Plan
from edgeai.types import Chunk, GenerationConfig, Notice, Prompt

__all__ = ["LlamaCppEngine"]

T = TypeVar("T")

CHANGED = (
    f"no speculation: here it would change greedy answers, since several tokens at once round differently than one by one (with this type "
    f"of weights, on a GPU, or after {WHOLE} tokens); numerics='fast' (--numerics fast) allows that"
)


class LlamaCppEngine:
    """A GGUF model in this process. See engines.base.Engine for what the methods promise.

    An engine that is forgotten frees its model, as one that is closed does. DRAFT is a small model of the same vocabulary, with its plan.
    """

    def __init__(
        self,
        artifact: Artifact,
        plan: Plan,
        *,
        draft: tuple[Artifact, Plan] | None = None,
    ) -> None:
        began = time.perf_counter()
        self.artifact = artifact
        self._most_exact: int | None = None  # guesses; known when the first are asked for
        if plan.streams > 1:  # a single answer is there before numpy would be
            import numpy  # noqa: F401 - Sampler uses it where it is
        handle = Handle(artifact, plan)
        try:
            # libllama knows no normalizers; our converter notes in the file when the tokenizer has one.
            self._vocab = Vocab(handle, normalizer=artifact.metadata.get("edgeai.tokenizer.normalizer"))
            self._draft = None if draft is None else DraftModel(handle, *draft)
        except BaseException:
            handle.free()
            raise
        self._handle, self.plan, self.placement = handle, handle.plan, handle.placement
        self.backend = self.placement.backend
        self._grammars = grammars_of(handle)
        self.load_s = time.perf_counter() - began
        self._core = Scheduler(
            Loaded(handle=handle, vocab=self._vocab, load_s=self.load_s),
            artifact.name,
            draft=self._draft,
        )
        weakref.finalize(self, self._core.shut)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of TEXT."""
        with self._core.in_use():
            return self._vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS. Raises UsageError for an id outside the vocabulary."""
        self._vocab.check(ids)
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
        """Answer PROMPT; closing the stream stops the work within one batch, in prefill too. Raises Busy when too many wait."""
        submitted = time.perf_counter()
        fitted = self._fit(prompt, config)
        core = self._core
        with core.in_use():
            selection, mask = self._handle.adapters.selection(config.adapters), self._mask(config)
            self._vocab.check(list(config.logit_bias))
            if len(config.logit_bias) == self._handle.n_vocab and max(config.logit_bias.values()) <= -100:
                raise UsageError("logit_bias bans every token", hint="leave at least one that may come")
            guesser, notices = self._guesser(config, mask)
            exact_guesses = self._exact_guesses(config, len(fitted.ids)) if guesser is not None else None
        if exact_guesses == 0:
            guesser, notices = None, (*notices, Notice(code="no-speculation", message=CHANGED))
        request = Request(
            fitted=fitted, config=config, submitted=submitted, adapters=selection, mask=mask, guesser=guesser,
            exact_guesses=exact_guesses,
        )  # fmt: skip
        if fitted.notices or notices:
            request.channel.put(Chunk(notices=(*fitted.notices, *notices)))
        # Before it is queued: a Ctrl-C from here on drops the stream, which cancels.
        stream = ChunkStream(request.channel, lambda: core.cancel(request))
        core.submit(request)
        return stream

    def _mask(self, config: GenerationConfig) -> TokenMask | None:
        return None if config.constraint is None else self._grammars.compile(config.constraint)

    def _guesser(self, config: GenerationConfig, mask: TokenMask | None) -> tuple[Guesser | None, tuple[Notice, ...]]:
        """Return what guesses for an answer, or why nothing does. Raises UsageError for a draft model that is not there."""
        if config.speculation == "off":
            one_by_one = mask is None or self.plan.deterministic or self._handle.recurrent
            return None if mask is None or one_by_one else Forced(mask), ()
        if config.speculation == "draft" and self._draft is None:
            raise UsageError("no draft model is loaded", hint="load the model with draft=PATH, or use 'lookup'")
        reason = "answers that are the same whatever runs beside them" if self.plan.deterministic else ""
        if self._handle.recurrent:
            reason = f"models of the kind {self.artifact.arch!r}, whose state cannot go back"
        if reason:
            message = f"no speculation: it is not possible with {reason}"
            return None, (Notice(code="no-speculation", message=message),)
        if config.speculation == "lookup" or self._draft is None:
            return Lookup(), ()
        return self._draft.guesser(), ()

    def _exact_guesses(self, config: GenerationConfig, prompt_tokens: int) -> int | None:
        """Return how many guesses at once leave an answer of CONFIG the same; None where that does not matter."""
        if self.plan.numerics == "fast" or config.temperature != 0 or config.speculation == "off":
            return None
        if self.plan.gpu_layers or prompt_tokens >= WHOLE:
            return 0
        if self._most_exact is None:
            self._most_exact = self._result(GuessCheck(GUESSES))
        return self._most_exact

    @property
    def batches(self) -> int:
        """How many batches have been computed: a number that stands still while there is work means that native code hangs."""
        return self._handle.batches

    def stats(self) -> Stats:
        """Return what the engine is doing."""
        return self._core.stats()

    def _fit(self, prompt: Prompt, config: GenerationConfig) -> Fitted:
        with self._core.in_use():
            tokens = Tokens(encode=self.prompt_ids, tokenize=self.tokenize, piece=self._vocab.piece)
            return fit_prompt(prompt, config, context=self._handle.n_ctx, trained=self.artifact.context, tokens=tokens)

    def score(self, text: str | Sequence[int], adapters: Sequence[tuple[str, float]] = ()) -> list[float]:
        """Return the log-probability (nats) of each token of TEXT, or of a list of token ids, after the first; of any length.

        What is longer than the context is read in windows that overlap by half (see engines.windows). Raises UsageError for no tokens.
        """
        if not isinstance(text, str):
            self._vocab.check(text)
        ids = self.prompt_ids(text) if isinstance(text, str) else list(text)
        with self._core.in_use():
            selection = self._handle.adapters.selection(adapters)
        return self._result(ScoreJob(ids, window=self._handle.n_ctx, bos=self.artifact.bos, adapters=selection))

    def save_prompt(self, prompt: Prompt, path: Path) -> int:
        """Compute PROMPT and keep the state of its KV cache in the file PATH. Return how many tokens are in it.

        Messages that end with the system's are kept up to where the next message begins. Raises ContextExceeded, OutputError.
        """
        ids = reusable_ids(prompt, self.prompt_ids)
        self._check_saved(len(ids))
        exact = self.plan.numerics == "exact" and not self._handle.recurrent
        state = self._result(SaveJob(ids, alone=exact and self.plan.unified))
        subject = subject_of(self.artifact, self.plan)
        write_prompt_file(path, PromptFile(subject=subject, tokens=tuple(ids), state=state))
        return len(ids)

    def load_prompt(self, path: Path) -> int:
        """Put the prompt in the file PATH into the KV cache, where later requests that begin with it find it. Return its tokens.

        Raises InvalidModel for a file that is damaged or not of this very model, library and kind of cache; nothing is changed then.
        """
        subject, handle = subject_of(self.artifact, self.plan), self._handle
        prompt = read_prompt_file(path, subject, vocab=handle.n_vocab, most_tokens=handle.n_ctx - 1)
        self._check_saved(len(prompt.tokens))
        return self._result(LoadJob(prompt, handle.n_swa or None, self._core.adopt))

    def _check_saved(self, count: int) -> None:
        """Refuse a saved prompt of COUNT tokens where a state that is put back rounds differently from one that has been computed."""
        window = self._handle.n_swa
        if self.plan.numerics == "exact" and (self._handle.recurrent or 0 < window < count):
            kind = "a recurrent state" if self._handle.recurrent else f"windows of {window} tokens"
            raise UsageError(
                f"a saved prompt of {count} tokens would change answers: {self.artifact.name} has {kind}, which rounds differently "
                "when it goes on from a file",
                hint="load the model with `numerics=fast`",
            )

    def _result(self, job: ResultJob[T]) -> T:
        """Run JOB between the batches of requests and return its result."""
        self._core.run(job)
        return outcome(job.result, lambda: setattr(job, "cancelled", True))

    def embed(self, texts: Sequence[str]) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: a language model gives no vectors of texts here."""
        raise UsageError(
            f"{self.artifact.name} is a language model, not an embedding model",
            hint="edgeai pull minilm, and then edgeai convert minilm, makes one",
        )

    def classify(self, items: Sequence[Any]) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: a language model has no labels."""
        raise UsageError(
            f"{self.artifact.name} is a language model, not a classifier", hint="ask it in words, with choices=[…]"
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
