"""A folder with one folder of pictures for each class → pixels."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from edgeai.device import memory_facts
from edgeai.errors import DoesNotFit, RecipeError
from edgeai.training.tasks.examples import Examples
from edgeai.training.tasks.recipe import ImageData
from edgeai.training.tasks.tables import locate
from edgeai.types import Notice

__all__ = ["pixels", "read_folder"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
}
BYTES_A_PIXEL = 6
"""The byte that was read and the number it becomes, and room for a batch."""


def read_folder(settings: ImageData, folder: Path) -> Examples:
    """Return the pictures below `settings.source`; the name of the folder that each is in is its class."""
    path = locate(settings.source, folder)
    if not path.is_dir():
        raise RecipeError(
            f"data.source {settings.source!r} is not a folder",
            hint="give one folder with a folder of pictures for each class, or sklearn:digits",
        )
    files, others = _list(path, settings.source)
    need = len(files) * settings.height * settings.width * settings.channels * BYTES_A_PIXEL
    free = memory_facts().available
    if need > free:
        raise DoesNotFit(
            f"{len(files)} pictures of {settings.height} x {settings.width} need {need / 1e9:.1f} GB of memory "
            f"and {free / 1e9:.1f} GB are free",
            hint="lower data.height and data.width",
        )
    labels = sorted({label for label, _ in files})
    read = np.empty((len(files), settings.channels, settings.height, settings.width), dtype=np.uint8)
    for row, (_, file) in enumerate(files):
        read[row] = pixels(file, settings)
    message = (
        f"{len(others)} files in {settings.source!r} are no pictures by their ending and are left out, such as {others[0]!r}"
        if others
        else ""
    )
    return Examples(
        source=settings.source,
        images=read,
        classes=np.array([labels.index(label) for label, _ in files], dtype=np.int64),
        labels=tuple(labels),
        notices=(Notice(code="files_left_out", message=message),) if others else (),
    )


def _list(path: Path, source: str) -> tuple[list[tuple[str, Path]], list[str]]:
    """Return (class, file) of each picture, and the names of files that are none."""
    files: list[tuple[str, Path]] = []
    others: list[str] = []
    for folder in sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith(".")):
        inside = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
        found = [file for file in inside if file.suffix.lower() in SUFFIXES]
        others += [file.relative_to(path).as_posix() for file in inside if file.suffix.lower() not in SUFFIXES]
        if not found:
            raise RecipeError(
                f"the folder {folder.name!r} in {source!r} has no pictures",
                hint=f"put some there ({' '.join(SUFFIXES)}), or delete it: each folder is a class",
            )
        files += [(folder.name, file) for file in found]
    if not files:
        raise RecipeError(
            f"data.source {source!r} has no folders", hint="put the pictures of each class in a folder of its own"
        )
    return files, others


def pixels(file: Path, settings: ImageData) -> npt.NDArray[np.uint8]:
    """Return FILE upright, as (channels, height, width) of 0…255; raises RecipeError for what is no picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.mode.startswith(("I", "F")):
                    raise RecipeError(
                        f"{str(file)!r} has more than 8 bits a colour ({image.mode})", hint="save it with 8 bits"
                    )
                flat = _on_white(ImageOps.exif_transpose(image)).convert("L" if settings.channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RecipeError(
            f"{str(file)!r} is a picture that cannot be read: {error}",
            hint="save it again, or take it out of the folder",
        ) from error
    size = (settings.width, settings.height)
    if flat.size != size:
        flat = flat.resize(size, RESAMPLING[settings.resize])
    values = np.asarray(flat, dtype=np.uint8)
    return values[None] if settings.channels == 1 else values.transpose(2, 0, 1)


def _on_white(image: Image.Image) -> Image.Image:
    """Return IMAGE with white behind what can be seen through: what colour a hidden pixel has is an accident."""
    if not image.has_transparency_data:
        return image
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
