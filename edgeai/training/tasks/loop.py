"""A run of a task's recipe, from the examples to the exported folder; it reads from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it

from edgeai.device import memory_facts
from edgeai.errors import DoesNotFit, UsageError
from edgeai.training import accelerator, data, workspace
from edgeai.training import export as files
from edgeai.training.accelerator import Accelerator
from edgeai.training.monitor import Event
from edgeai.training.steps import Steps, interruptible, torch_settings
from edgeai.training.tasks import export, networks, score, sources
from edgeai.training.tasks.augment import augment
from edgeai.training.tasks.prepare import Part, Prepared, prepare
from edgeai.training.tasks.recipe import ImageData, TaskRecipe
from edgeai.training.tasks.text_networks import EmbedderHead
from edgeai.training.workspace import Workspace
from edgeai.types import Notice

__all__ = ["TrainedTask", "train"]

EVAL_ROWS = 256
"""Rows that go through the network at once where nothing is learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTask:
    """A finished run. `test` is what the model is worth on the test part, which nothing was chosen by; see `score`."""

    path: Path
    task: str
    architecture: str
    steps: int
    train_loss: float
    eval_loss: float
    test: dict[str, Any]
    params: int
    row_s: float
    seconds: float
    sha256: str
    device: str
    horizon: int
    notices: tuple[Notice, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `edgeai train --json` prints."""
        values = asdict(self)
        values["warnings"] = values.pop("notices")
        del values["horizon"]
        return values | {"path": str(self.path)}


def train(
    recipe: TaskRecipe,
    folder: Path,
    *,
    steps: int | None,
    resume: bool,
    device: str,
    observe: Callable[[Event], None],
    resume_command: str | None,
) -> TrainedTask:
    """Run the whole list; see `edgeai.training.train`."""
    began = time.monotonic()
    stop = recipe.training.steps if steps is None else steps
    if stop < 1:
        raise UsageError(f"steps {stop!r} is not possible", hint="train at least 1 step")
    chosen = replace(accelerator.choose(device), bf16=False)  # networks this small gain nothing from it
    examples = sources.read(recipe)
    with workspace.open_workspace(folder, resume=resume) as space, torch_settings(chosen):
        ready = prepare(recipe, examples)
        torch.manual_seed(recipe.seed)
        run = _Run(recipe, space, chosen, ready, stop)
        if resume:
            run.restore()
        observe(Event(text=run.describe(), notices=run.notices))
        with interruptible() as interrupted:
            run.train(observe, interrupted, resume_command)
        return replace(run.finish(), seconds=time.monotonic() - began)


class _Run(Steps):
    """The steps of a classifier or a regression, and its export."""

    def __init__(self, recipe: TaskRecipe, space: Workspace, chosen: Accelerator, ready: Prepared, stop: int) -> None:
        self.recipe, self.chosen, self.ready = recipe, chosen, ready
        self.notices = chosen.notices + ready.notices
        self.module = networks.build(recipe.task.architecture, ready.shape)
        self.params = sum(parameter.numel() for parameter in self.module.parameters())
        self._check_room(space)
        self.module.to(chosen.device).train()
        self.train_part, self.val_part, trained = ready.train, ready.val, self.module
        if isinstance(self.module, EmbedderHead):
            assert ready.encoder is not None  # noqa: S101 - `prepare` has read it
            export.load_encoder(self.module, ready.encoder)
            self.train_part, self.val_part = self._embed(ready.train), self._embed(ready.val)
            trained = self.module.head
        identity = {"recipe_sha256": recipe.sha256, "data_sha256": ready.sha256}
        super().__init__(recipe.training, space, trained, identity, stop)

    def _check_room(self, space: Workspace) -> None:
        """Raise DoesNotFit where memory or disk would not do: weights, gradients and moments; two checkpoints."""
        rows = sum(
            values.nbytes for part in (self.ready.train, self.ready.val, self.ready.test) for values in part.inputs
        )
        need, free = 16 * self.params + rows, memory_facts().available
        if need > free:
            raise DoesNotFit(
                f"{self.recipe.name!r} needs about {need / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free",
                hint="make the network smaller, or the examples",
            )
        workspace.check_space(space.folder, 4 * self.params * (3 * 3 + 1) + export.MOST_BYTES + 2**20)

    def describe(self) -> str:
        """Return one line on what is trained, on what and where."""
        ready = self.ready
        start = f" · from step {self.done}" if self.done else ""
        return (
            f"{self.recipe.name} · {self.recipe.task.architecture} of {self.params / 1e6:.3g}M parameters · {ready.source}: "
            f"{len(ready.train)} rows, {len(ready.val)} held out on the way and {len(ready.test)} for the test · "
            f"{self.chosen}{start}"
        )

    def gradient(self, number: int) -> tuple[float, int]:
        """Put the gradient of the rows of step NUMBER into the parameters; return their mean loss and their count."""
        settings, part = self.settings, self.train_part
        chosen = data.draw(number, settings.batch_size, len(part), self._order)
        batch = part.rows(chosen)
        if isinstance(self.recipe.data, ImageData):
            schema, seed = self.ready.schema["inputs"][0], self.recipe.seed
            pictures = augment(batch.inputs[0], self.recipe.data, schema, seed=seed, number=number)
            batch = Part((pictures,), batch.answers)
        micro = settings.micro_batch_size or settings.batch_size
        total = 0.0
        for first in range(0, len(batch), micro):
            piece = batch.rows(slice(first, first + micro))
            loss = self._loss(self._outputs(self.trained, piece), piece.answers) / len(batch)
            loss.backward()
            total += float(loss.detach())
        return total, len(batch)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        rng = np.random.Generator(np.random.PCG64([self.recipe.seed, 2, epoch]))
        return rng.permutation(len(self.train_part)).astype(np.int64)

    def _loss(self, outputs: torch.Tensor, answers: Any) -> torch.Tensor:
        """Return the summed cross-entropy in nats, or the summed squared error of values of spread 1."""
        wanted = torch.from_numpy(answers).to(outputs.device)
        if self.recipe.is_classification:
            return F.cross_entropy(outputs, wanted, reduction="sum")
        return F.mse_loss(outputs, wanted, reduction="sum")

    def _outputs(self, module: Any, part: Part) -> torch.Tensor:
        """Return what MODULE makes of PART: as it is, but for padding that no row of it needs."""
        inputs = part.inputs
        if len(inputs) == 2:
            longest = max(int(inputs[1].sum(axis=1).max()), 1)
            inputs = tuple(values[:, :longest] for values in inputs)
        return module(*(torch.from_numpy(np.ascontiguousarray(values)).to(self.chosen.device) for values in inputs))

    def _all(self, module: Any, run: Any, part: Part) -> npt.NDArray[np.float32]:
        """Return what RUN makes of all of PART, with MODULE in eval mode meanwhile; texts of like length go together."""
        order = np.argsort(part.inputs[1].sum(axis=1), kind="stable") if len(part.inputs) == 2 else np.arange(len(part))
        was_training = module.training
        module.eval()
        with torch.no_grad():
            made = [
                self._outputs(run, part.rows(order[first : first + EVAL_ROWS])).float().cpu().numpy()
                for first in range(0, len(part), EVAL_ROWS)
            ]
        module.train(was_training)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        joined: npt.NDArray[np.float32] = np.concatenate(made)[back]
        return joined

    def _embed(self, part: Part) -> Part:
        return Part((self._all(self.module, self.module.embed, part),), part.answers)

    def look(self, event: Event) -> Event:
        """Return EVENT with the loss, and the accuracy or R², of the part that is held out on the way."""
        outputs = self._all(self.trained, self.trained, self.val_part)
        name = "accuracy" if self.recipe.is_classification else "r2"
        return replace(
            event,
            eval_loss=self._mean_loss(outputs, self.val_part),
            score=(name, self._score(outputs, self.val_part)[name]),
        )

    def _mean_loss(self, outputs: npt.NDArray[np.float32], part: Part) -> float:
        return float(self._loss(torch.from_numpy(outputs), part.answers)) / len(part)

    def _score(self, outputs: npt.NDArray[np.float32], part: Part) -> dict[str, Any]:
        if self.recipe.is_classification:
            return score.classification(outputs, part.answers, self.ready.train.answers)
        return score.regression(outputs[:, 0], part.answers[:, 0], self.ready.schema["targets"][0])

    def paced(self, event: Event) -> Event:
        """Return EVENT with the rows a second so far."""
        return replace(event, row_s=self.meter.tok_s)

    def finish(self) -> TrainedTask:
        """Look at the test part, for the first time, and export."""
        ready, recipe = self.ready, self.recipe
        eval_loss = self._mean_loss(self._all(self.trained, self.trained, self.val_part), self.val_part)
        test = self._score(self._all(self.module, self.module, ready.test), ready.test)
        facts = files.lineage(
            recipe,
            ready.tokenizer,
            recipe.tokenizer,
            data={
                "source": recipe.data.source,
                "sha256": ready.sha256,
                "rows": len(ready.train),
                "val_rows": len(ready.val),
                "test_rows": len(ready.test),
            },
            **({"encoder": {"sha256": ready.encoder.sha256}} if ready.encoder else {}),
            steps=self.done,
            rows_seen=self.done * self.settings.batch_size,
            params=self.params,
            train_loss=self.train_loss,
            eval_loss=eval_loss,
            test=test,
            device=self.chosen.device,
        )
        names = export.file_names(ready)
        workspace.publish(
            self.space, lambda folder: export.write_folder(folder, self.module, recipe, ready, facts), names
        )
        assert self.train_loss is not None  # noqa: S101 - at least one step was taken, here or before a resume
        return TrainedTask(
            path=self.space.folder,
            task=recipe.task.kind,
            architecture=recipe.task.architecture,
            steps=self.done,
            train_loss=self.train_loss,
            eval_loss=eval_loss,
            test=test,
            params=self.params,
            row_s=self.meter.tok_s,
            seconds=0.0,
            sha256=files.file_sha256(self.space.folder / "model.safetensors"),
            device=str(self.chosen),
            horizon=self.settings.steps,
            notices=self.notices,
        )
