"""Small changes to training pictures that leave what they show."""

from __future__ import annotations

import numpy as np

from edgeai.training.tasks.prepare import Part
from edgeai.training.tasks.recipe import ImageData

__all__ = ["augment"]


def augment(batch: Part, settings: ImageData, *, seed: int, number: int) -> Part:
    """Return BATCH, each picture moved and mirrored as SETTINGS allow; a function of SEED and the step's NUMBER alone.

    What moves in from outside repeats the edge.
    """
    (pictures,) = batch.inputs  # (rows, channels, height, width)
    rng = np.random.Generator(np.random.PCG64([seed, 3, number]))
    count, _, height, width = pictures.shape
    if settings.shift:
        reach = settings.shift
        down, right = rng.integers(-reach, reach + 1, size=(2, count, 1))
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        pictures = np.take_along_axis(pictures, rows[:, None, :, None], axis=2)
        pictures = np.take_along_axis(pictures, columns[:, None, None, :], axis=3)
    if settings.flip:
        mirrored = rng.integers(2, size=(count, 1, 1, 1)) == 1
        pictures = np.where(mirrored, pictures[..., ::-1], pictures)
    return Part((pictures,), batch.answers)
