"""The engine of ONNX language models: see engines.base.Engine."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from edgeai import chat
from edgeai.artifact import Artifact
from edgeai.engines.constraint import Grammars, TokenMask
from edgeai.engines.genai.request import Request, ScoreTask
from edgeai.engines.genai.runtime import Runtime
from edgeai.engines.genai.scheduler import Scheduler
from edgeai.engines.hfvocab import HFVocab
from edgeai.engines.overflow import Tokens, fit_prompt
from edgeai.engines.streaming import ChunkStream
from edgeai.engines.waiting import outcome
from edgeai.errors import UsageError
from edgeai.placement import CPU, Placement, Share
from edgeai.plan import Plan
from edgeai.types import Chunk, GenerationConfig, Prompt

__all__ = ["GenaiEngine"]


class GenaiEngine:
    """A language model of a folder in this process. One thread owns it; callers get streams.

    Token ids come from the source's own tokenizer, through the library that it was trained with, and chat prompts from the same sandbox
    as those of GGUF models. An engine that is forgotten frees its model, as one that is closed does. A process that is forked while a
    model is loaded must leave with os._exit, as those of multiprocessing do: onnxruntime waits at its end for threads that are not there.
    """

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        began = time.perf_counter()
        self.artifact = artifact
        ends = artifact.metadata.get("genai.eos_token_id", ())
        self._vocab = HFVocab.of_folder(
            artifact.path, ends=ends if isinstance(ends, tuple) else (ends,), size=artifact.vocab
        )
        self._runtime = Runtime(artifact, plan)
        self.plan = plan
        self.backend = self._runtime.device
        where = CPU if self.backend == "cpu" else self.backend.upper()
        weights = int(artifact.metadata.get("onnx.data_bytes", 0))
        self.placement = Placement(shares=(Share(device=where, layers=1, weights_bytes=weights),))
        self._grammars = Grammars(self._vocab.guidance)
        self._core = Scheduler(artifact.name, streams=plan.streams, queue=plan.queue)
        weakref.finalize(self, self._core.shut)
        self.load_s = time.perf_counter() - began

    @property
    def batches(self) -> int:
        """How many steps have been taken: a number that stands still while there is work means that native code hangs."""
        return self._core.steps

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of TEXT."""
        return self._vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS. Raises UsageError for an id outside the vocabulary."""
        return self._vocab.detokenize(ids)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the token ids that PROMPT becomes: text with the model's BOS, messages through its chat template."""
        vocab = self._vocab
        if isinstance(prompt, str):
            before, _ = vocab.around
            return [*before, *vocab.tokenize(prompt)]
        rendered = chat.render(self.artifact.template, prompt, special=vocab.named, control=tuple(vocab.control))
        return vocab.tokenize_segments(rendered)

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        """Answer PROMPT; closing the stream stops the work before the next token, or the next part of the prompt."""
        submitted = time.perf_counter()
        self._check(config)
        context = self.plan.context
        tokens = Tokens(encode=self.prompt_ids, tokenize=self._vocab.tokenize, piece=self._vocab.piece)
        fitted = fit_prompt(prompt, config, context=context, trained=self.artifact.context, tokens=tokens)
        request = Request(
            self._runtime, self._vocab, fitted, config, self._mask(config), context=context, load_s=self.load_s, submitted=submitted
        )  # fmt: skip
        if fitted.notices:
            request.channel.put(Chunk(notices=fitted.notices))
        core = self._core
        # Before it is queued: a Ctrl-C from here on drops the stream, which cancels.
        stream = ChunkStream(request.channel, lambda: core.cancel(request))
        core.submit(request)
        return stream

    def _check(self, config: GenerationConfig) -> None:
        """Refuse what this engine does not have, rather than ignore it."""
        if config.adapters:
            raise UsageError(
                "ONNX models take no adapters here", hint="merge them: edgeai convert LORA --merge --to onnx"
            )
        if config.speculation != "off":
            raise UsageError(
                f"speculation {config.speculation!r} is not possible with ONNX models", hint="leave it out"
            )
        self._vocab.check(list(config.logit_bias))
        if len(config.logit_bias) == self._vocab.size and max(config.logit_bias.values()) <= -100:
            raise UsageError("logit_bias bans every token", hint="leave at least one that may come")

    def _mask(self, config: GenerationConfig) -> TokenMask | None:
        return None if config.constraint is None else self._grammars.compile(config.constraint)

    def score(self, text: str | Sequence[int]) -> list[float]:
        """Return the log-probability (nats) of each token of TEXT, or of a list of token ids, after the first; of any length."""
        if not isinstance(text, str):
            self._vocab.check(text)
        ids = self.prompt_ids(text) if isinstance(text, str) else list(text)
        task = ScoreTask(self._runtime, ids, window=self.plan.context, bos=self.artifact.bos)
        self._core.submit(task)
        return outcome(task.result, lambda: self._core.cancel(task))

    def embed(self, texts: Sequence[str]) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: a language model gives no vectors of texts here."""
        raise UsageError(
            f"{self.artifact.name} is a language model, not an embedding model",
            hint="edgeai pull minilm, and then edgeai convert minilm --to onnx, makes one",
        )

    def rank(self, query: str, documents: Sequence[str]) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: a language model has no classifier that ranks."""
        raise UsageError(f"{self.artifact.name} is a language model, not a reranker", hint="use a reranker")

    def classify(self, items: Sequence[Any]) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: a language model has no labels."""
        raise UsageError(f"{self.artifact.name} is a language model, not a classifier", hint="ask it with choices=[…]")

    def save_prompt(self, prompt: Prompt, path: Path) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: onnxruntime-genai cannot give its states away."""
        raise UsageError("prompts of ONNX models cannot be saved", hint="use the GGUF file of the model")

    def load_prompt(self, path: Path) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: as `save_prompt`."""
        raise UsageError("prompts of ONNX models cannot be loaded", hint="use the GGUF file of the model")

    def close(self) -> None:
        """Stop what runs and free the model; every later call raises."""
        self._core.shut()
        self._core.join()
        self._runtime.free()
