"""Encoded tensors on the disk, while several files of one model are made: most tensors have the same type in the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["Kept"]

PIECE = 4 << 20
"""Bytes that are read at once."""


class Kept:
    """What tensors became in each type, in FOLDER, at most MOST bytes of it; further ones are made again each time.

    All of them have to be made in the same way: of the same source, with the same importance and feedback.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._room = folder, most

    def slabs(
        self, name: str, kind: str, nbytes: int, make: Callable[[], Iterator[memoryview]]
    ) -> Iterator[memoryview]:
        """Yield the NBYTES of the tensor NAME in the type KIND, as MAKE yields them the first time."""
        path = self._folder / f"{name}.{kind}"
        if path.exists():
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    yield memoryview(piece)
            return
        if nbytes > self._room:
            yield from make()
            return
        self._room -= nbytes
        part = path.with_name(f"{path.name}.part")  # one that is not whole never has the name
        with part.open("wb") as file:
            for slab in make():
                file.write(slab)
                yield slab
        part.replace(path)
