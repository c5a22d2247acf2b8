"""A training run, from the recipe to the exported folder; it reads from top to bottom."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from edgeai.errors import EdgeAIError, Interrupted, UsageError
from edgeai.training import accelerator, checkpoint, data, export, footprint, model, step, workspace
from edgeai.training import tokenizer as bpe
from edgeai.training.accelerator import Accelerator
from edgeai.training.baseline import bigram_loss
from edgeai.training.monitor import Event, Meter, Metrics
from edgeai.training.recipe import Recipe
from edgeai.training.workspace import Workspace
from edgeai.types import Notice

__all__ = ["Diverged", "Trained", "train"]

SMOOTHING = 0.95
"""Weight of the past in the reported training loss: about the mean of the last twenty steps."""


class Diverged(EdgeAIError):
    """The loss or its gradient is no longer a finite number."""


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
    with workspace.open_workspace(folder, resume=resume) as space, _torch_settings(chosen):
        footprint.check_memory(recipe, chosen)
        workspace.check_space(folder, footprint.disk_bytes(recipe))
        run = _Run(recipe, space, chosen, _prepare(recipe, documents, space), stop)
        if resume:
            run.restore()
        observe(Event(text=run.describe(), notices=chosen.notices))
        with _interruptible() as interrupted:
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


class _Run:
    """The state of a run between its first and its last step."""

    def __init__(self, recipe: Recipe, space: Workspace, chosen: Accelerator, corpus: Corpus, stop: int) -> None:
        settings = recipe.training
        self.recipe, self.space, self.chosen, self.corpus, self.stop = recipe, space, chosen, corpus, stop
        self.windows = data.Windows(corpus.train, recipe.model.context, settings.batch_size, recipe.seed)
        self.model = model.build(recipe, corpus.tokenizer).to(chosen.device).train()
        self.adamw = step.optimizer(self.model, settings)
        self.params = model.parameter_count(self.model)
        self.meter = Meter()
        self.done = 0
        self.train_loss: float | None = None
        self.identity = {
            "recipe_sha256": recipe.sha256,
            "text_sha256": corpus.sha256,
            "tokenizer_sha256": bpe.sha256(corpus.tokenizer),
        }

    def describe(self) -> str:
        """Return one line on what is trained, on what and where."""
        start = f" · from step {self.done}" if self.done else ""
        return (
            f"{self.recipe.name} · {self.params / 1e6:.2f}M parameters · {self.recipe.data.source}: "
            f"{len(self.corpus.train)} tokens, {len(self.corpus.val)} held out · {self.chosen}{start}"
        )

    def restore(self) -> None:
        """Go on from the last checkpoint."""
        self.done, facts = checkpoint.load(self.space.checkpoints[-1], self.model, self.adamw, self.identity)
        self.train_loss = facts["train_loss"]
        published = (self.space.folder / "config.json").exists()
        if self.done > self.stop or (self.done == self.stop and published):
            raise UsageError(
                f"the run in {str(self.space.folder)!r} is at step {self.done} already, "
                f"and {self.stop!r} steps were asked for",
                hint=f"ask for more: --resume --steps {self.done * 2}",
            )

    def train(
        self, observe: Callable[[Event], None], interrupted: Callable[[], bool], resume_command: str | None
    ) -> None:
        """Take the steps that are left, looking and saving as often as the recipe says."""
        settings = self.recipe.training
        metrics = Metrics(self.space.run / "metrics.jsonl", after_step=self.done)
        try:
            while self.done < self.stop:
                event = self._step()
                last = self.done == self.stop
                if last or self.done % settings.eval_every == 0:
                    event = replace(event, eval_loss=self.evaluate())
                if last or self.done % settings.log_every == 0 or event.eval_loss is not None:
                    metrics.write(event)
                observe(replace(event, eta_s=self.meter.eta_s(self.stop - self.done)))
                if last or interrupted() or self.done % settings.checkpoint_every == 0:
                    self.save()
                if interrupted() and not last:
                    raise Interrupted(
                        f"interrupted after step {self.done} of {self.stop}; nothing is lost",
                        hint=resume_command and f"go on with: {resume_command}",
                    )
        finally:
            metrics.close()

    def _step(self) -> Event:
        settings = self.recipe.training
        rate = step.learning_rate(self.done, settings)
        self.meter.start()
        batch = torch.from_numpy(self.windows.sample(self.done)).to(self.chosen.device)
        micro = settings.micro_batch_size or settings.batch_size
        loss = step.accumulate(self.model, batch, micro, bf16=self.chosen.bf16)
        norm = step.update(self.model, self.adamw, rate, settings.grad_clip)
        self.meter.stop(batch[:, 1:].numel())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(
                f"the loss is {loss!r} and its gradient {norm!r} at step {self.done + 1}; nothing was exported",
                hint=f"lower the learning rate: --set training.lr={settings.lr / 3:.1g}",
            )
        self.done += 1
        self.train_loss = loss if self.train_loss is None else SMOOTHING * self.train_loss + (1 - SMOOTHING) * loss
        return Event(step=self.done, steps=self.stop, loss=loss, lr=rate, grad_norm=norm, tok_s=self.meter.tok_s)

    def evaluate(self) -> float:
        """Return the loss on the held-out documents, in nats per token."""
        return step.evaluate(self.model, self.corpus.val, self.recipe.model.context, bf16=self.chosen.bf16)

    def save(self) -> None:
        """Write a checkpoint."""
        facts = self.identity | {"train_loss": self.train_loss}
        checkpoint.save(self.space, self.done, self.model, self.adamw, facts)

    def finish(self) -> Trained:
        """Round the weights to their stored type, evaluate exactly those, and export them."""
        export.round_weights(self.model, self.recipe.export.dtype)
        eval_loss = self.evaluate()
        bigram = bigram_loss(self.corpus.train, self.corpus.val, self.recipe.tokenizer.vocab_size)
        settings = self.recipe.training
        facts = export.lineage(
            self.recipe,
            self.corpus.tokenizer,
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


@contextlib.contextmanager
def _torch_settings(chosen: Accelerator) -> Iterator[None]:
    """Make torch quiet, deterministic and as wide as the machine for the time of a run."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    rng = torch.get_rng_state()
    # cuBLAS is deterministic only with a workspace of fixed size, which it reads when the first product is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)
        torch.set_rng_state(rng)


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag that is read between two steps; the second one interrupts at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield flag.is_set
        return

    def note(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, previous)
        flag.set()

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
