"""Small changes to training pictures that leave what they show."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgeai.training.tasks.recipe import ImageData

__all__ = ["augment"]

Pictures = npt.NDArray[np.float32]


def augment(pictures: Pictures, data: ImageData, schema: dict[str, Any], *, seed: int, number: int) -> Pictures:
    """Return PICTURES (rows, channels, height, width), each moved and mirrored as DATA allows.

    It is a function of SEED and the step's NUMBER alone. What moves in is black (where `invert` is set: white) by the
    mean and spread of SCHEMA: a digit fills its picture, and repeating its edge would draw strokes that nobody wrote.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 3, number]))
    count, channels, height, width = pictures.shape
    if data.shift:
        reach = data.shift
        outside = (-np.array(schema["mean"]) / np.array(schema["std"])).astype(np.float32)
        wide = np.empty((count, channels, height + 2 * reach, width + 2 * reach), dtype=np.float32)
        wide[:] = outside[:, None, None]
        wide[:, :, reach:-reach, reach:-reach] = pictures
        down, right = rng.integers(0, 2 * reach + 1, size=(2, count, 1))
        wide = np.take_along_axis(wide, (np.arange(height) + down)[:, None, :, None], axis=2)
        pictures = np.take_along_axis(wide, (np.arange(width) + right)[:, None, None, :], axis=3)
    if data.flip:
        mirrored = rng.integers(2, size=(count, 1, 1, 1)) == 1
        pictures = np.where(mirrored, pictures[..., ::-1], pictures)
    return pictures
