"""Pictures as a model takes them: of any file format and mode, to channels, height and width, to numbers."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeai.engines.onnx.batches import Batch, Fill, Place, groups
from edgeai.engines.onnx.schema import Image
from edgeai.errors import UsageError
from edgeai.types import Notice

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image as Picture

    F32 = npt.NDArray[np.float32]

__all__ = ["Pictures"]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
"""What is opened. Pillow knows more, among them EPS, for which it starts Ghostscript: a picture is untrusted."""
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Modes with 16 bits for a pixel; "I" is what some formats make of these."""
HINT = "give PNG, JPEG, WebP, BMP, GIF, TIFF or PNM files, or arrays of uint8"

_opening = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Pixels:
    """A picture as (height, width, channels) uint8 in the size of the model, and what has to be said of it."""

    array: Any
    notices: tuple[Notice, ...] = ()


class Pictures:
    """Makes arrays of paths, PIL images and numpy arrays, as IMAGE says."""

    def __init__(self, image: Image, *, source: str = "picture") -> None:
        import numpy as np

        self._image, self._source = image, source
        levels = np.arange(256, dtype=np.float64) * image.scale
        if image.invert:
            levels = 1 - levels
        # One table of 256 numbers for each channel: the division is done once, and in float64.
        self._levels = [
            ((levels - mean) / std).astype(np.float32) for mean, std in zip(image.mean, image.std, strict=True)
        ]
        self._shape = (image.height, image.width)
        self.item_shape: tuple[int, ...] = (image.channels, image.height, image.width)
        self.dtype = np.dtype(np.float32)
        self._pixels = np.dtype(np.uint8)

    @property
    def names(self) -> tuple[str, ...]:
        """The input of the graph."""
        return (self._image.name,)

    def filler(self, into: F32) -> Fill:
        """Return what writes an array of uint8 in the right size and colours to INTO, (1, channels, height, width)."""
        pixels, array = self._pixels, type(into)
        colours: list[Any] = [levels.take for levels in self._levels]
        gray = colours[0]
        if self._image.channels == 1:
            target, shape = into[0, 0], self._shape

            def fill(item: Any) -> bool:
                if type(item) is not array or item.dtype != pixels or item.shape != shape:
                    return False
                gray(item, None, target, "clip")
                return True

            return fill

        def fill_colours(item: Any) -> bool:
            if type(item) is not array or item.dtype != pixels or item.shape != (*self._shape, 3):
                return False
            for channel, take in enumerate(colours):
                take(item[:, :, channel], None, into[0, channel], "clip")
            return True

        return fill_colours

    def batches(self, items: Sequence[Any], rows: int) -> Iterator[Batch]:
        """Yield a Batch of at most ROWS for each part of ITEMS. Paths are looked for before anything is computed."""
        import numpy as np

        places = [self._place(item, at, len(items)) for at, item in enumerate(items)]
        for group in groups(list(zip(items, places, strict=True)), rows):
            found = [self._read(item, place) for item, place in group]
            array = np.stack([self._numbers(pixels.array) for pixels in found])
            yield Batch({self._image.name: array}, len(found), tuple(pixels.notices for pixels in found))

    def _place(self, item: Any, at: int, of: int) -> Place:
        if isinstance(item, str | os.PathLike):
            path = Path(os.fsdecode(item))
            if not path.is_file():
                what = "is a folder" if path.is_dir() else "is not there"
                hint = f"name its pictures: {path}/*.png" if path.is_dir() else "check the path of the picture"
                raise UsageError(f"the picture {str(path)!r} {what}", hint=hint)
            return Place(repr(str(path)))
        return Place(f"{self._source} {at + 1} of {of}" if of > 1 else f"the {self._source}")

    def _numbers(self, pixels: Any) -> F32:
        import numpy as np

        channels = pixels.shape[2]
        return np.stack([self._levels[channel].take(pixels[:, :, channel]) for channel in range(channels)])

    def _read(self, item: Any, place: Place) -> _Pixels:
        import PIL.Image

        if isinstance(item, str | os.PathLike):
            with self._open(Path(os.fsdecode(item)), place) as picture:
                return self._fitted(picture, place)
        if isinstance(item, PIL.Image.Image):
            return self._fitted(item, place)
        return self._fitted(PIL.Image.fromarray(_as_bytes(item, place)), place)

    def _open(self, path: Path, place: Place) -> Picture:
        import PIL.Image

        try:
            # The lock is for `catch_warnings`, which is one for all threads. Pillow warns of what has more pixels than its limit.
            with _opening, warnings.catch_warnings():
                warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
                return PIL.Image.open(path, formats=FORMATS)
        except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
            raise _too_large(place) from error
        except PIL.UnidentifiedImageError as error:
            raise UsageError(f"{place} is not a picture", hint=HINT) from error
        except (OSError, ValueError, SyntaxError) as error:
            raise UsageError(f"{place} cannot be read as a picture: {error}", hint=HINT) from error

    def _fitted(self, picture: Picture, place: Place) -> _Pixels:
        import numpy as np
        import PIL.Image
        import PIL.ImageOps

        limit = PIL.Image.MAX_IMAGE_PIXELS
        if limit is not None and picture.width * picture.height > limit:
            raise _too_large(place)
        notices = []
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            message = f"{place} has {frames} pictures; the first one is taken"
            notices.append(Notice(code="first-frame", message=message))
        try:
            picture = PIL.ImageOps.exif_transpose(picture)
            flat, seen_through = _flat(picture, place)
        except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:
            raise UsageError(f"{place} is not a whole picture: {error}", hint="save it again") from error
        if seen_through:
            notices.append(Notice(code="transparency", message=f"{place} is partly transparent and was laid on white"))
        flat = flat.convert("L" if self._image.channels == 1 else "RGB")
        size = (self._image.width, self._image.height)
        if flat.size != size:
            flat = flat.resize(size, getattr(PIL.Image.Resampling, self._image.resize.upper()))
        pixels = np.asarray(flat)
        return _Pixels(pixels.reshape(*pixels.shape[:2], self._image.channels), tuple(notices))


def _flat(picture: Picture, place: Place) -> tuple[Picture, bool]:
    """Return PICTURE with 8 bits for a colour and nothing to see through, and whether there was."""
    import PIL.Image

    if picture.mode in DEEP:
        return _from_deep(picture, place), False
    if picture.mode == "F":
        raise UsageError(f"{place} has pixels of floating point, whose range it does not say", hint=HINT)
    if not picture.has_transparency_data:
        return picture, False
    layered = picture.convert("RGBA")
    lowest = layered.getchannel("A").getextrema()[0]
    white = PIL.Image.new("RGBA", layered.size, "white")
    return PIL.Image.alpha_composite(white, layered).convert("RGB"), lowest < 255  # type: ignore[operator]


def _from_deep(picture: Picture, place: Place) -> Picture:
    """Return a picture of 16 bits in 8: 65535 becomes 255. Pillow's own `convert` makes 255 of everything above that."""
    import numpy as np
    import PIL.Image

    deep = np.asarray(picture).astype(np.int64)
    if deep.size and (deep.min() < 0 or deep.max() > 65535):
        raise UsageError(f"{place} has pixels outside of 0 to 65535", hint=HINT)
    return PIL.Image.fromarray(((deep + 128) // 257).astype(np.uint8))


def _as_bytes(item: Any, place: Place) -> Any:
    """Return the array ITEM as uint8 in a shape that Pillow takes. Raises UsageError where the range of its values is not plain."""
    import numpy as np

    if not isinstance(item, np.ndarray):
        raise UsageError(f"{place} is not a picture but {item!r:.60}", hint="give paths, PIL images or numpy arrays")
    if item.ndim == 3 and item.shape[2] == 1:
        item = item[:, :, 0]
    if item.ndim not in (2, 3) or (item.ndim == 3 and item.shape[2] not in (3, 4)) or not item.size:
        hint = "give (height, width), or (height, width, 3 or 4); several pictures are a list of these"
        raise UsageError(f"{place} is an array of shape {item.shape}, which is no picture", hint=hint)
    if item.dtype == np.bool_:
        return item.astype(np.uint8) * np.uint8(255)
    if item.dtype == np.uint16:
        return ((item.astype(np.int64) + 128) // 257).astype(np.uint8)
    if item.dtype.kind not in "iu":
        hint = "give 0 to 255 as uint8: (x * 255).round().astype('uint8')"
        raise UsageError(f"{place} is an array of {item.dtype}, whose range is not known", hint=hint)
    if item.dtype != np.uint8 and (item.min() < 0 or item.max() > 255):
        raise UsageError(f"{place} has pixels outside of 0 to 255", hint="give 0 to 255 as uint8, or uint16")
    return np.ascontiguousarray(item, dtype=np.uint8)


def _too_large(place: Place) -> UsageError:
    import PIL.Image

    return UsageError(
        f"{place} has more than {PIL.Image.MAX_IMAGE_PIXELS} pixels, Pillow's limit", hint="make it smaller"
    )
