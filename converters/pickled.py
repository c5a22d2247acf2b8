"""Read PyTorch's own weight files (.bin): by torch, which unpickles tensors and nothing else, and maps the file into memory.

A pickle can hold code. `weights_only=True` refuses everything that is no tensor or plain container, so none of it ever runs
(https://docs.pytorch.org/docs/stable/notes/serialization.html).
"""

from __future__ import annotations

import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.checkpoint import check_download
from converters.errors import BrokenCheckpoint, ConvertError, UnsupportedModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["PickledTensor", "pickled_tensors"]

AGAIN = "copy or download it again"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
"""Name in torch → name in safetensors, of those that can be read; others keep their own name."""
GLOBAL = re.compile(r"GLOBAL ([\w.]+)|global ([\w.]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PickledTensor:
    """One tensor of a .bin file; `tensor` is torch's view into the file, of whatever strides."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    tensor: Any

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file that holds it."""
        return (self.file,)

    def rows(self, first: int, last: int) -> F32:
        """Return the rows FIRST to LAST (not included) as float32, shape (last - first, *shape[1:])."""
        rows: F32 = self.tensor[first:last].float().contiguous().numpy()
        return rows


def pickled_tensors(path: Path) -> dict[str, PickledTensor]:
    """Return the tensors of the file PATH.

    Raises ConvertError where torch is not installed, BrokenCheckpoint for a file that is damaged or holds more than weights.
    """
    found: dict[str, PickledTensor] = {}
    for name, tensor in weights(path).items():
        kind = type(tensor).__name__
        if kind not in ("Tensor", "Parameter"):
            raise BrokenCheckpoint(
                f"{str(path)!r} holds a {kind} under {str(name)!r}, and a name → tensor table is needed",
                hint="save model.state_dict(), or better model.save_pretrained(folder)",
            )
        if tensor.is_sparse or tensor.is_quantized or tensor.device.type == "meta":
            raise UnsupportedModel(
                f"the tensor {str(name)!r} of {str(path)!r} is {tensor.layout}, {tensor.dtype} on {tensor.device}",
                hint="save the plain full-precision weights",
            )
        dtype = str(tensor.dtype).removeprefix("torch.")
        found[str(name)] = PickledTensor(
            name=str(name),
            shape=tuple(tensor.shape),
            dtype=DTYPES.get(dtype, dtype),
            file=path,
            tensor=tensor.detach(),
        )
    return found


def weights(path: Path) -> dict[Any, Any]:
    """Return the table in the file PATH, mapped into memory where its format (a zip, since torch 1.6) allows it."""
    if not path.is_file():
        raise BrokenCheckpoint(f"{str(path)!r} is not a file", hint=AGAIN)
    check_download(path)
    try:
        import torch
    except ImportError as error:
        raise ConvertError(
            f"{path.name!r} is a PyTorch file, and torch is not installed", hint="pip install 'edgeai[convert]'"
        ) from error
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign formats, which end in an error of their own
            table = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise untrusted(path, str(error)) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BrokenCheckpoint(f"{str(path)!r} is not a whole PyTorch file: {reason}", hint=AGAIN) from error
    if not isinstance(table, dict):
        raise BrokenCheckpoint(
            f"{str(path)!r} holds a {type(table).__name__}, and a name → tensor table is needed",
            hint="save model.state_dict(), or better model.save_pretrained(folder)",
        )
    return table


def untrusted(path: Path, message: str) -> BrokenCheckpoint:
    """Return the error for a file that is not only weights; it names what torch would have had to run."""
    match = GLOBAL.search(message)
    name = (match[1] or match[2]) if match else ""
    if name:
        return BrokenCheckpoint(
            f"{str(path)!r} is not to be trusted: opening it would run {name!r}, which is no tensor; nothing of it was run",
            hint="ask for the weights as .safetensors, which cannot hold code",
        )
    # What torch says here advises to open the file without this protection.
    return BrokenCheckpoint(f"{str(path)!r} is no file of PyTorch weights, or a damaged one", hint=AGAIN)
