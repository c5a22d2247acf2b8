"""What must be true of an ONNX file before anybody gets it: it is whole and valid, and it computes what torch does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.errors import ConvertError, InvalidModel
from converters.onnx.header import data_files, read_header
from converters.onnx.quiet import quiet

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

__all__ = ["EXACT_NMSE", "Check", "file_checks", "nmse", "open_session", "torch_checks"]

EXACT_NMSE = 1e-6
BATCHES = (1, 2, 7)
FULL_BYTES = 1 << 30
"""Up to this size the checker also infers all shapes, for which it copies the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A measured value, the limit it had to meet, and whether it did."""

    name: str
    value: float | str
    limit: str
    ok: bool


def file_checks(path: Path, *, opset: int | None = None) -> list[Check]:
    """Return the checks of the file PATH that need no running: its structure with the weights beside it, operators, opset (None: any),
    and onnx's own checker."""
    import onnx

    from converters.onnx.builder_child import teach

    try:
        header = read_header(path)
    except InvalidModel as error:
        return [Check(name="structure", value=error.message, limit="whole", ok=False)]
    unknown = header.unknown_operators()
    found = header.opsets.get("", header.opsets.get("ai.onnx"))
    good = found is not None and (opset is None or found == opset)
    rows = [
        Check(name="structure", value="whole", limit="whole", ok=True),
        Check(name="operators", value=", ".join(unknown) or "known", limit="known to onnxruntime", ok=not unknown),
        Check(name="opset", value=str(found), limit=str(opset or "one"), ok=good),
    ]
    if unknown or not good:
        return rows  # the checker does not know such operators either
    full = header.file_bytes < FULL_BYTES and not data_files(header)
    reason = ""
    if header.operators["", "SimplifiedLayerNormalization"] and not onnx.defs.has("SimplifiedLayerNormalization"):
        teach()  # an operator of onnxruntime that its language models have in the standard domain
    with quiet():
        try:
            onnx.checker.check_model(str(path), full_check=full)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            reason = (str(error).strip().splitlines() or ["not valid"])[0]
    return [*rows, Check(name="onnx.checker", value=reason or "valid", limit="valid", ok=not reason)]


def open_session(path: Path, *, threads: int | None = None) -> Any:
    """Return an onnxruntime session of the file PATH on the CPU. Raises InvalidModel with its reason where it takes none."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    if threads is not None:
        options.intra_op_num_threads = threads
    errors = tuple(item for item in vars(native).values() if isinstance(item, type) and issubclass(item, Exception))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except errors as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidModel(f"onnxruntime does not take {path.name!r}: {reason:.300}") from error


def nmse(reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Return Σ(found - reference)² / Σ reference², and infinity where one is not finite or of another shape."""
    import numpy as np

    if reference.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    left, right = reference.astype(np.float64), found.astype(np.float64)
    rest, size = float(((right - left) ** 2).sum()), float((left**2).sum())
    return rest / size if size else (0.0 if rest == 0 else float("inf"))


def torch_checks(
    module: torch.nn.Module,
    path: Path,
    example_inputs: Any,
    *,
    batches: Sequence[int] = BATCHES,
    limit: float = EXACT_NMSE,
) -> list[Check]:
    """Return the checks of the file PATH against MODULE: the NMSE of each output for each of the BATCHES.

    The inputs are rows of EXAMPLE_INPUTS again and again, floats with a tenth of themselves as noise. A second axis that varies is cut to
    one and to the half for the first two batches, so that a graph for one length does not pass. Sizes that the graph fixes stay.
    """
    import torch

    from converters.onnx.export import name_examples, plain, prepared

    named = {name: plain(value) for name, value in name_examples(module, example_inputs).items()}
    session = open_session(path)
    places = inputs_of(session, list(named), [value.ndim for value in named.values()])
    rows = []
    with prepared(module) as ready, torch.no_grad():
        for turn, batch in enumerate(batches):
            cuts = {0: 1, 1: 2}.get(turn)
            given = {
                name: resize(value, place.shape, batch, cuts, turn)
                for (name, value), place in zip(named.items(), places, strict=True)
            }
            reference = flatten(ready(*given.values()) if positional(ready) else ready(**given))
            feed = {place.name: given[name].numpy() for name, place in zip(named, places, strict=True)}
            found = session.run(None, feed)
            shown = "×".join(map(str, next(iter(given.values())).shape))
            if len(found) != len(reference):
                raise ConvertError(f"{path.name!r} gives {len(found)} outputs, and the module {len(reference)}")
            for place, left, right in zip(session.get_outputs(), reference, found, strict=True):
                value = nmse(left.numpy(), right)
                rows.append(
                    Check(
                        name=f"{place.name} against torch, {shown}: NMSE",
                        value=value,
                        limit=f"< {limit:g}",
                        ok=value < limit,
                    )
                )
    return rows


def inputs_of(session: Any, names: Sequence[str], ranks: Sequence[int]) -> list[Any]:
    """Return the graph inputs for `forward`'s parameters NAMES: by name where all are the same, else in their order."""
    places = {place.name: place for place in session.get_inputs()}
    found = [places[name] for name in names] if set(places) == set(names) else list(places.values())
    if [len(place.shape) for place in found] != list(ranks):
        raise ConvertError(f"the graph inputs {', '.join(places)} are not those of the module, {', '.join(names)}")
    return found


def positional(module: torch.nn.Module) -> bool:
    """Whether `forward` takes any number of tensors, which have no names."""
    import inspect

    kinds = [item.kind for item in inspect.signature(module.forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def resize(
    value: torch.Tensor, shape: Sequence[int | str | None], batch: int, cuts: int | None, turn: int
) -> torch.Tensor:
    """Return VALUE with as many rows as BATCH where the graph's SHAPE lets them vary, other such axes divided by CUTS (1: a single one)."""
    import torch

    for axis, size in enumerate(shape):
        if isinstance(size, int):
            continue
        count = value.shape[axis]
        wanted = batch if axis == 0 else (1 if cuts == 1 else max(1, count // cuts) if cuts else count)
        value = value.index_select(axis, torch.arange(wanted) % count)
    if value.is_floating_point():
        spread = float(value.std()) if value.numel() > 1 else 0.0
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(turn))
        value = value * (1 + noise / 10) if spread else value + noise  # what is positive remains so
    return value


def flatten(output: Any) -> list[torch.Tensor]:
    """Return the tensors in what a module returns, in the order in which they become graph outputs."""
    import torch

    leaves = torch.utils._pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
