"""The steps of a run, whatever is trained: rates, looks, checkpoints, Ctrl-C; and torch set for the time of a run."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from edgeai.errors import EdgeAIError, Interrupted, UsageError
from edgeai.training import checkpoint, step
from edgeai.training.accelerator import Accelerator
from edgeai.training.monitor import Event, Meter, Metrics
from edgeai.training.settings import TrainingSettings
from edgeai.training.workspace import Workspace

__all__ = ["Diverged", "Steps", "interruptible", "torch_settings"]

SMOOTHING = 0.95
"""Weight of the past in the reported training loss: about the mean of the last twenty steps."""


class Diverged(EdgeAIError):
    """The loss or its gradient is no longer a finite number."""


class Steps(ABC):
    """The state of a run between its first and its last step. `trained` is the module whose parameters move."""

    def __init__(
        self, settings: TrainingSettings, space: Workspace, trained: Any, identity: Mapping[str, str], stop: int
    ) -> None:
        """Begin at step 0; IDENTITY says by hashes what a checkpoint must be of to be gone on from."""
        self.settings, self.space, self.trained, self.identity, self.stop = settings, space, trained, identity, stop
        self.adamw = step.optimizer(trained, settings)
        self.meter = Meter()
        self.done = 0
        self.train_loss: float | None = None

    @abstractmethod
    def gradient(self, number: int) -> tuple[float, int]:
        """Put the gradient of step NUMBER, from 0, into the parameters; return its mean loss and what it counted.

        That are the tokens or rows in it. It depends on nothing but NUMBER, the parameters and torch's generator.
        """

    @abstractmethod
    def look(self, event: Event) -> Event:
        """Return EVENT with the loss on what is held out."""

    def paced(self, event: Event) -> Event:
        """Return EVENT with the speed so far."""
        return replace(event, tok_s=self.meter.tok_s)

    def restore(self) -> None:
        """Go on from the last checkpoint."""
        self.done, facts = checkpoint.load(self.space.checkpoints[-1], self.trained, self.adamw, self.identity)
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
        settings = self.settings
        metrics = Metrics(self.space.run / "metrics.jsonl", after_step=self.done)
        try:
            while self.done < self.stop:
                event = self._step()
                last = self.done == self.stop
                if last or self.done % settings.eval_every == 0:
                    event = self.look(event)
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
        settings = self.settings
        rate = step.learning_rate(self.done, settings)
        self.meter.start()
        loss, counted = self.gradient(self.done)
        norm = step.update(self.trained, self.adamw, rate, settings.grad_clip)
        self.meter.stop(counted)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(
                f"the loss is {loss!r} and its gradient {norm!r} at step {self.done + 1}; nothing was exported",
                hint=f"lower the learning rate: --set training.lr={settings.lr / 3:.1g}",
            )
        self.done += 1
        self.train_loss = loss if self.train_loss is None else SMOOTHING * self.train_loss + (1 - SMOOTHING) * loss
        return self.paced(Event(step=self.done, steps=self.stop, loss=loss, lr=rate, grad_norm=norm))

    def save(self) -> None:
        """Write a checkpoint."""
        facts = {**self.identity, "train_loss": self.train_loss}
        checkpoint.save(self.space, self.done, self.trained, self.adamw, facts)


@contextlib.contextmanager
def torch_settings(chosen: Accelerator) -> Iterator[None]:
    """Make torch deterministic and as wide as the machine for the time of a run."""
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
def interruptible() -> Iterator[Callable[[], bool]]:
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
