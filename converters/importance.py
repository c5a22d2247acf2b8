"""Importance matrices: which columns of each matrix matter, as sums of squared inputs over a text.

Read here in both forms that llama-imatrix writes, GGUF (`NAME.in_sum2` beside `NAME.counts`) and the older .dat, and written as GGUF,
which llama-quantize reads. Sources: tools/imatrix/imatrix.cpp (`save_imatrix`, `save_imatrix_legacy`), common/imatrix-loader.cpp and
`load_imatrix` of tools/quantize/quantize.cpp. A file is untrusted: every count and length is checked against the bytes that are there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from converters.errors import InvalidModel, WrongChoice
from converters.families import ModelPlan
from converters.gguf import TensorEntry, pad, write_header
from converters.header import MAGIC, GGUFHeader, read_header
from converters.mixes import EMBEDDING, OUTPUT, part_of
from converters.quantmap import is_matrix

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = [
    "ImportanceMatrix",
    "Usable",
    "is_importance_file",
    "read_importance",
    "read_text",
    "usable",
    "wanted",
    "write_importance",
]

SUMS, COUNTS = ".in_sum2", ".counts"
MAX_FILE_BYTES = 1 << 30
"""That of a model of 400 B weights is some 100 MB."""
MAX_ENTRIES = 1 << 16
MAX_NAME_BYTES = 512
MAX_TEXT_BYTES = 1 << 28
DAMAGED = "the file is damaged or incomplete: make it again, with llama-imatrix or --imatrix TEXT --imatrix-out FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceMatrix:
    """Tensor name → the sums of its squared inputs, (parts, columns), and → how many inputs were summed in each part, (parts,).

    A part is one expert of a stacked tensor, or everything; `chunks` windows of `window` tokens were read.
    """

    sums: Mapping[str, F32]
    counts: Mapping[str, F32]
    chunks: int = 0
    window: int = 0
    datasets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usable:
    """What of an importance matrix can be used for a model: tensor name → mean squared inputs, (matrices, columns), and warnings."""

    rows: Mapping[str, F32]
    warnings: tuple[tuple[str, str], ...] = field(default=())


def is_importance_file(path: Path) -> bool:
    """Whether PATH is an importance matrix and not a text: a GGUF file, or one that begins as a .dat does.

    A text cannot be taken for one: its first four characters would be a count of more than a hundred million entries.
    """
    head = read_head(path)
    if head.startswith(MAGIC):
        return True
    if len(head) < 12:
        return False
    entries, length = struct.unpack_from("<ii", head)
    return 0 < entries <= MAX_ENTRIES and 0 < length <= MAX_NAME_BYTES and head[8:9].isascii() and head[8:9].isalnum()


def read_head(path: Path) -> bytes:
    """Return the first bytes of PATH; raises WrongChoice where it cannot be read."""
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not there" if not path.exists() else "is no regular file"
            raise WrongChoice(
                f"{str(path)!r} {what}: --imatrix needs a text, or an importance matrix", hint="check the path"
            )
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise WrongChoice(
            f"{str(path)!r} cannot be read: {error.strerror or error}", hint="check its permissions"
        ) from error


def read_text(path: Path) -> str:
    """Return the calibration text in PATH; raises WrongChoice for one that is empty, too large or no text."""
    read_head(path)
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise WrongChoice(
            f"{str(path)!r} has {path.stat().st_size / 1e6:.0f} MB, and a calibration text has at most {MAX_TEXT_BYTES / 1e6:.0f}",
            hint="a megabyte is plenty: head -c 1000000 TEXT > part.txt",
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongChoice(
            f"{str(path)!r} is neither an importance matrix nor a UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}",
            hint="save it as UTF-8: iconv -f LATIN1 -t UTF-8 TEXT",
        ) from None
    if "\0" in text:
        raise WrongChoice(f"{str(path)!r} is neither an importance matrix nor a text: it holds zero bytes")
    if not text.strip():
        raise WrongChoice(
            f"the text {str(path)!r} is empty",
            hint="give one of the kind that the model will read: prompts, prose, code",
        )
    return text


def read_importance(path: Path) -> ImportanceMatrix:
    """Return the importance matrix in the file PATH; raises InvalidModel for one that is damaged or none at all."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise InvalidModel(f"{str(path)!r} has {size} bytes, too many for an importance matrix", hint=DAMAGED)
    matrix = read_gguf(path) if read_head(path).startswith(MAGIC) else read_legacy(path)
    for name, sums in matrix.sums.items():
        check_values(path, name, sums, matrix.counts[name])
    return matrix


def check_values(path: Path, name: str, sums: F32, counts: F32) -> None:
    """Raise InvalidModel for values that no sum of squares can have."""
    import numpy as np

    if not (np.isfinite(sums).all() and np.isfinite(counts).all()):
        raise InvalidModel(f"{str(path)!r} has values for {name!r} that are not finite numbers", hint=DAMAGED)
    for what, values in (("sum of squares", sums), ("count", counts)):
        if float(values.min(initial=0.0)) < 0:
            raise InvalidModel(f"{str(path)!r} has a negative {what} for {name!r}", hint=DAMAGED)


def read_gguf(path: Path) -> ImportanceMatrix:
    """Read the GGUF form."""
    header = read_header(path, model=False)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    if not names:
        kind = header.kv.get("general.architecture") or header.kv.get("general.type") or "nothing known"
        raise InvalidModel(
            f"{str(path)!r} is a GGUF file of {kind!r} and no importance matrix: it has no tensor named *{SUMS}",
            hint="llama-imatrix makes one, and so does --imatrix TEXT --imatrix-out FILE",
        )
    sums, counts = {}, {}
    with path.open("rb") as file:
        for name in names:
            if f"{name}{COUNTS}" not in tensors:
                raise InvalidModel(f"{str(path)!r} has sums and no counts for {name!r}", hint=DAMAGED)
            found = [read_floats(path, file, header, f"{name}{suffix}") for suffix in (SUMS, COUNTS)]
            if found[0].size % found[1].size:
                raise InvalidModel(
                    f"{str(path)!r} has {found[0].size} sums and {found[1].size} counts for {name!r}", hint=DAMAGED
                )
            sums[name], counts[name] = found[0].reshape(found[1].size, -1), found[1]
    return ImportanceMatrix(
        sums=sums,
        counts=counts,
        chunks=whole(header, "imatrix.chunk_count"),
        window=whole(header, "imatrix.chunk_size"),
        datasets=tuple(map(str, header.array("imatrix.datasets"))) if "imatrix.datasets" in header.kv else (),
    )


def whole(header: GGUFHeader, key: str) -> int:
    """Return the number KEY, 0 where it is absent or none."""
    value = header.kv.get(key)
    return value if type(value) is int else 0


def read_floats(path: Path, file: BinaryIO, header: GGUFHeader, name: str) -> F32:
    """Return the float32 values of the tensor NAME, as one row."""
    import numpy as np

    (info,) = (tensor for tensor in header.tensors if tensor.name == name)
    if info.type != "F32":
        raise InvalidModel(f"{str(path)!r} stores {name!r} as {info.type}, and F32 is needed", hint=DAMAGED)
    file.seek(info.offset)
    return np.frombuffer(file.read(info.nbytes), "<f4").astype(np.float32)


def read_legacy(path: Path) -> ImportanceMatrix:
    """Read the .dat form: for each entry its name, calls and values, which are means times calls; then the calls and the text's name."""
    import numpy as np

    data = path.read_bytes()
    at = 0

    def take(count: int, what: str) -> bytes:
        nonlocal at
        if not 0 <= count <= len(data) - at:
            raise InvalidModel(
                f"{str(path)!r} is not a whole importance matrix: {what} would take {count} bytes, and {len(data) - at} are left",
                hint=DAMAGED,
            )
        at += count
        return data[at - count : at]

    def number(what: str) -> int:
        return int(struct.unpack("<i", take(4, what))[0])

    entries = number("the number of entries")
    if not 0 < entries <= MAX_ENTRIES:
        raise InvalidModel(f"{str(path)!r} is no importance matrix: it would have {entries} entries", hint=DAMAGED)
    sums: dict[str, F32] = {}
    counts: dict[str, F32] = {}
    for index in range(entries):
        length = number(f"the name of entry {index}")
        if not 0 < length <= MAX_NAME_BYTES:
            raise InvalidModel(f"{str(path)!r} has a name of {length} bytes at entry {index}", hint=DAMAGED)
        name = take(length, f"the name of entry {index}").decode("utf-8", "replace")
        calls, values = number(f"the calls of {name!r}"), number(f"the size of {name!r}")
        if name in sums or values < 1:
            what = "is there twice" if name in sums else f"has {values} values"
            raise InvalidModel(f"{str(path)!r} is damaged: {name!r} {what}", hint=DAMAGED)
        sums[name] = np.frombuffer(take(4 * values, f"the values of {name!r}"), "<f4").astype(np.float32)[None]
        counts[name] = np.array([max(calls, 1)], np.float32)
    chunks = number("the number of chunks") if at < len(data) else 0
    dataset = take(number("the name of the text"), "the name of the text") if at < len(data) else b""
    if at < len(data):
        raise InvalidModel(f"{str(path)!r} has {len(data) - at} bytes after its end", hint=DAMAGED)
    return ImportanceMatrix(
        sums=sums,
        counts=counts,
        chunks=max(chunks, 0),
        datasets=(dataset.decode("utf-8", "replace"),) if dataset else (),
    )


def write_importance(path: Path, matrix: ImportanceMatrix) -> None:
    """Write MATRIX to PATH as llama-imatrix does, so that llama-quantize reads it. `datasets` must hold no local path."""
    from gguf import GGUFWriter

    keys = GGUFWriter(None, "")  # type: ignore[arg-type, unused-ignore]
    keys.kv_data[0].clear()  # no architecture: it is no model
    keys.add_type("imatrix")
    keys.add_array("imatrix.datasets", list(matrix.datasets) or ["unknown"])  # llama-quantize wants the key
    keys.add_uint32("imatrix.chunk_count", matrix.chunks)
    keys.add_uint32("imatrix.chunk_size", matrix.window)
    arrays: list[tuple[str, F32]] = []
    for name in sorted(matrix.sums):
        arrays += [(f"{name}{SUMS}", matrix.sums[name]), (f"{name}{COUNTS}", matrix.counts[name].reshape(-1, 1))]
    entries: list[TensorEntry] = [(name, array.shape, "F32", array.nbytes) for name, array in arrays]
    with path.open("wb") as file:
        write_header(file, keys, entries)
        for _name, array in arrays:
            pad(file, file.write(array.astype("<f4").tobytes()))


def wanted(plan: ModelPlan) -> dict[str, tuple[int, int]]:
    """Return tensor name → (matrices, columns) for each tensor of PLAN that an importance matrix can say something about."""
    return {
        tensor.name: (tensor.shape[0] if len(tensor.shape) > 2 else 1, tensor.shape[-1])
        for tensor in plan.tensors
        if is_matrix(tensor)
    }


def usable(matrix: ImportanceMatrix, plan: ModelPlan, origin: str) -> Usable:
    """Return the mean squared inputs that MATRIX has for the tensors of PLAN. ORIGIN names it in messages.

    Raises WrongChoice where it is one of another model: no name fits, or a size does not. An expert that no token reached gets ones, as
    llama-quantize gives it; a tensor whose inputs were all zero is left out. Each of these is a warning.
    """
    import numpy as np

    shapes, rows = wanted(plan), {}
    unreached: list[str] = []
    uncounted: list[str] = []
    silent: list[str] = []
    partly: list[str] = []
    for name in (name for name in matrix.sums if name in shapes):
        sums, counts = matrix.sums[name], np.floor(matrix.counts[name] + np.float32(0.5))[:, None]
        matrices, columns = shapes[name]
        if sums.size != matrices * columns:
            raise WrongChoice(
                f"{origin} has {sums.size} values for {name!r}, and this model has {matrices * columns} columns there",
                hint="it was made from another model",
            )
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1)).astype(np.float32)
        means = means.reshape(matrices, columns)
        if not (counts > 0).all():
            (unreached if matrices > 1 else uncounted).append(name)
        if not means.any():
            silent.append(name)
            continue
        if (means == 0).any():
            partly.append(name)
        rows[name] = means
    if not rows:
        raise WrongChoice(
            f"{origin} says nothing about any of the {len(shapes)} matrices of this model"
            + (f": it names {', '.join(map(repr, sorted(matrix.sums)[:3]))}" if matrix.sums else ""),
            hint="it was made from another model, or holds nothing",
        )
    inner = [name for name in shapes if name not in rows and part_of(name) not in (EMBEDDING, OUTPUT)]
    notes = (
        ("importance-unmatched", "names tensors that this model does not have", sorted(matrix.sums.keys() - shapes.keys())),
        ("importance-unreached", "saw no token for some experts, which count as if all columns were alike", unreached),
        ("importance-uncounted", "counts no token for matrices, which are encoded as if all columns were alike", uncounted),
        ("importance-zero", "has nothing but zeros for matrices, which are encoded without it", silent),
        ("importance-columns", "has zeros for some columns, whose weights may be lost", partly),
        ("importance-missing", "says nothing about matrices, which are encoded without it", [n for n in inner if n not in silent]),
    )  # fmt: skip
    return Usable(
        rows=rows,
        warnings=tuple((code, f"{origin} {what}: {listed(names)}") for code, what, names in notes if names),
    )


def listed(names: Sequence[str]) -> str:
    """Return the number of NAMES and the first few."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{len(names)} ({', '.join(names[:4])}{more})"
