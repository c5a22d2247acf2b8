"""A training run, from the recipe to the exported folder; it reads from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from edgeai.errors import UsageError
from edgeai.training import accelerator, data, export, footprint, model, step, workspace
from edgeai.training import tokenizer as bpe
from edgeai.training.accelerator import Accelerator
from edgeai.training.baseline import bigram_loss
from edgeai.training.monitor import Event
from edgeai.training.recipe import Recipe
from edgeai.training.steps import Diverged, Steps, interruptible, torch_settings
from edgeai.training.workspace import Workspace
from edgeai.types import Notice

__all__ = ["Diverged", "Trained", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished run. Losses are in nats per token; `bigram_loss` is of the same held-out tokens as `eval_loss`."""

    path: Path
    steps: int
    train_loss: float
    eval_loss: float
    bigram_loss: float
    params: int
    tok_s: float
    seconds: float
    sha256: str
    device: str
    horizon: int
    notices: tuple[Notice, ...] = ()

    @property
    def perplexity(self) -> float:
        """The exponential of the held-out loss, per token."""
        return math.exp(self.eval_loss)

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `edgeai train --json` prints."""
        values = asdict(self)
        values["warnings"] = values.pop("notices")
        del values["horizon"]
        return values | {"path": str(self.path)}


@dataclass(frozen=True, slots=True)
class Corpus:
    """The text of a run as tokens, and what identifies it."""

    tokenizer: Tokenizer
    train: data.Tokens
    val: data.Tokens
    sha256: str
    documents: tuple[int, int]


def train(
    recipe: Recipe,
    folder: Path,
    *,
    steps: int | None,
    resume: bool,
    device: str,
    observe: Callable[[Event], None],
    resume_command: str | None,
) -> Trained:
    """Run the whole list; see `edgeai.training.train`."""
    began = time.monotonic()
    stop = recipe.training.steps if steps is None else steps
    if stop < 1:
        raise UsageError(f"steps {stop!r} is not possible", hint="train at least 1 step")
    chosen = accelerator.choose(device)
    documents = data.read(recipe.data, recipe.folder)
    with workspace.open_workspace(folder, resume=resume) as space, torch_settings(chosen):
        _quiet_transformers()
        footprint.check_memory(recipe, chosen)
        workspace.check_space(folder, footprint.disk_bytes(recipe))
        run = _Run(recipe, space, chosen, _prepare(recipe, documents, space), stop)
        if resume:
            run.restore()
        observe(Event(text=run.describe(), notices=chosen.notices))
        with interruptible() as interrupted:
            run.train(observe, interrupted, resume_command)
        return replace(run.finish(), seconds=time.monotonic() - began)


def _prepare(recipe: Recipe, documents: list[data.Document], space: Workspace) -> Corpus:
    """Split the text, train the tokenizer on the training part alone, and put the tokens on the disk."""
    training, held = data.split(documents, recipe.data.val_fraction, recipe.seed)
    settings = recipe.tokenizer
    tokenizer = bpe.train((document.text for document in training), pre=settings.pre, vocab_size=settings.vocab_size)
    return Corpus(
        tokenizer=tokenizer,
        train=data.encode(tokenizer, training, space.run / "train.bin"),
        val=data.encode(tokenizer, held, space.run / "val.bin"),
        sha256=data.sha256(documents),
        documents=(len(training), len(held)),
    )


class _Run(Steps):
    """The steps of a language model, and its export."""

    def __init__(self, recipe: Recipe, space: Workspace, chosen: Accelerator, corpus: Corpus, stop: int) -> None:
        identity = {
            "recipe_sha256": recipe.sha256,
            "text_sha256": corpus.sha256,
            "tokenizer_sha256": bpe.sha256(corpus.tokenizer),
        }
        settings = recipe.training
        self.recipe, self.chosen, self.corpus = recipe, chosen, corpus
        self.windows = data.Windows(corpus.train, recipe.model.context, settings.batch_size, recipe.seed)
        self.model = model.build(recipe, corpus.tokenizer).to(chosen.device).train()
        self.params = model.parameter_count(self.model)
        super().__init__(settings, space, self.model, identity, stop)

    def describe(self) -> str:
        """Return one line on what is trained, on what and where."""
        start = f" · from step {self.done}" if self.done else ""
        return (
            f"{self.recipe.name} · {self.params / 1e6:.2f}M parameters · {self.recipe.data.source}: "
            f"{len(self.corpus.train)} tokens, {len(self.corpus.val)} held out · {self.chosen}{start}"
        )

    def gradient(self, number: int) -> tuple[float, int]:
        """Put the gradient of the windows of step NUMBER into the parameters; return their loss and tokens."""
        batch = torch.from_numpy(self.windows.sample(number)).to(self.chosen.device)
        micro = self.settings.micro_batch_size or self.settings.batch_size
        return step.accumulate(self.model, batch, micro, bf16=self.chosen.bf16), batch[:, 1:].numel()

    def look(self, event: Event) -> Event:
        """Return EVENT with the loss on the held-out documents."""
        return replace(event, eval_loss=self.evaluate())

    def evaluate(self) -> float:
        """Return the loss on the held-out documents, in nats per token."""
        return step.evaluate(self.model, self.corpus.val, self.recipe.model.context, bf16=self.chosen.bf16)

    def finish(self) -> Trained:
        """Round the weights to their stored type, evaluate exactly those, and export them."""
        export.round_weights(self.model, self.recipe.export.dtype)
        eval_loss = self.evaluate()
        bigram = bigram_loss(self.corpus.train, self.corpus.val, self.recipe.tokenizer.vocab_size)
        settings = self.recipe.training
        facts = export.lineage(
            self.recipe,
            self.corpus.tokenizer,
            self.recipe.tokenizer,
            data={
                "source": self.recipe.data.source,
                "sha256": self.corpus.sha256,
                "documents": sum(self.corpus.documents),
                "held_out_documents": self.corpus.documents[1],
                "tokens": len(self.corpus.train),
                "held_out_tokens": len(self.corpus.val),
            },
            steps=self.done,
            tokens_seen=self.done * settings.batch_size * self.recipe.model.context,
            params=self.params,
            train_loss=self.train_loss,
            eval_loss=eval_loss,
            baseline={"bigram": bigram},
            device=self.chosen.device,
        )
        workspace.publish(
            self.space,
            lambda folder: export.write_folder(folder, self.model, self.corpus.tokenizer, self.recipe, facts),
        )
        assert self.train_loss is not None  # noqa: S101 - at least one step was taken, here or before a resume
        return Trained(
            path=self.space.folder,
            steps=self.done,
            train_loss=self.train_loss,
            eval_loss=eval_loss,
            bigram_loss=bigram,
            params=self.params,
            tok_s=self.meter.tok_s,
            seconds=0.0,
            sha256=export.file_sha256(self.space.folder / "model.safetensors"),
            device=str(self.chosen),
            horizon=settings.steps,
            notices=self.chosen.notices,
        )


def _quiet_transformers() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
