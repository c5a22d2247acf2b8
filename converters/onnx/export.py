"""A torch module → one ONNX file, through torch.export and torch.onnx. Equal modules give equal bytes.

from converters.onnx import export_module

export_module(net, torch.randn(1, 3, 32, 32), Path("net.onnx"), labels=["cat", "dog"])
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from converters.errors import ConvertError, OutputError, UnsupportedModel, WrongChoice
from converters.onnx.halves import halve
from converters.onnx.metadata import set_metadata, write_bytes
from converters.onnx.quiet import quiet
from converters.onnx.schema import check_labels, default_axes, default_schema, graph_names

if TYPE_CHECKING:
    import torch

__all__ = ["EXTERNAL_BYTES", "OPSET", "OPSETS", "Exported", "export_module"]

OPSET = 20
"""What torch 2.13 writes itself. From 20 on Gelu is one operator, before it is five, and onnxruntime has had 20 since 1.17."""
OPSETS = range(18, 24)
"""torch's exporter is written for 18 to 23; what is below, it passes through onnx's version converter, which gives up without a word."""
EXTERNAL_BYTES = 2_000_000_000
"""Of weights; a protobuf file ends at 2 GiB, and the graph needs some of that."""
Axes = Mapping[str, Mapping[int, str]]
Dtype = Literal["f32", "f16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that was written: its graph inputs and outputs with their shapes, where a text is the name of an axis that varies."""

    path: Path
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    opset: int
    dtype: str
    bytes: int
    external: Path | None = None
    schema: Mapping[str, Any] | None = None


def export_module(
    module: torch.nn.Module,
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor],
    path: Path | str,
    *,
    dynamic_axes: Axes | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    schema: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    opset: int = OPSET,
    dtype: Dtype = "f32",
    external_above: int | None = EXTERNAL_BYTES,
) -> Exported:
    """Write MODULE as the ONNX file PATH, which is replaced; weights of more than EXTERNAL_ABOVE bytes go to PATH.data beside it.

    EXAMPLE_INPUTS are a tensor, several in the order of `forward`, or a dict by the names of its parameters. DYNAMIC_AXES is
    {graph input: {axis: name}}; the default is {0: "batch"}, and for a text schema also {1: "length"}; {} fixes all sizes. Graph
    inputs have INPUT_NAMES, else those of SCHEMA, else the names in `forward`; outputs OUTPUT_NAMES, else those of SCHEMA. LABELS alone
    make a schema (see converters.onnx.schema.default_schema). METADATA are more texts for the file's metadata_props. DTYPE f16 stores
    weights in halves and computes in float32 (see converters.onnx.halves). EXTERNAL_ABOVE None refuses what needs a second file.

    MODULE is exported as it is in eval mode on the CPU, in float32, and left as it was. Raises WrongChoice for arguments that do not
    fit each other, OutputError for a PATH that cannot be written, and ConvertError for a module that cannot be exported. While it works,
    nothing in this process can print.
    """
    import torch

    target = Path(path)
    if opset not in OPSETS:
        raise WrongChoice(f"opset {opset!r} is not possible", hint=f"{OPSETS.start} to {OPSETS.stop - 1}")
    if dtype not in ("f32", "f16"):
        raise WrongChoice(f"dtype {dtype!r} is not possible", hint="f32 or f16")
    if not isinstance(module, torch.nn.Module):
        raise WrongChoice(f"{module!r:.60} is no torch.nn.Module", hint="give an object of a class that is one")
    if target.is_dir() or not target.parent.is_dir():
        what = "is a folder" if target.is_dir() else f"is in {str(target.parent)!r}, which is no folder"
        raise OutputError(f"the output {str(target)!r} {what}", hint="name a file in a folder that is there")
    named = name_examples(module, example_inputs)
    if labels is not None:
        if isinstance(labels, str):
            raise WrongChoice(f"labels {labels!r:.60} are one text", hint="give a list of texts, one for each output")
        if schema is not None:
            raise WrongChoice("both labels and a schema were given", hint="put the labels into the schema")
        schema = schema_of_labels(target.stem, list(labels), named, dynamic_axes)
    names = choose_names(named, input_names, schema)
    axes = choose_axes(names, named, dynamic_axes, schema)
    with prepared(module) as ready:
        examples = [widen(plain(value), axes[name]) for name, value in zip(names, named.values(), strict=True)]
        model = trace(ready, dict(zip(named, examples, strict=True)), [axes[name] for name in names], opset)
    rename_axes(model, [axes[name] for name in names])
    outs = output_names_of(model, output_names, schema)
    rename(model, names, outs)
    strip(model)
    shapes = {value.name: shape_of(value) for value in (*model.graph.input, *model.graph.output)}
    if schema is not None:
        last = shapes[outs[0]][-1] if shapes[outs[0]] else None
        check_labels(schema, last if isinstance(last, int) else None)
    if dtype == "f16":
        halve(model)
    set_metadata(model, file_metadata(schema, dtype, metadata))
    external = write(model, target, external_above)
    check(target, opset)
    return Exported(
        path=target,
        inputs={name: shapes[name] for name in names},
        outputs={name: shapes[name] for name in outs},
        opset=opset,
        dtype=dtype,
        bytes=target.stat().st_size + (external.stat().st_size if external else 0),
        external=external,
        schema=schema,
    )


def name_examples(module: torch.nn.Module, given: Any) -> dict[str, Any]:
    """Return the example inputs by the names of `forward`'s parameters. Raises WrongChoice where they do not fit it."""
    import torch

    signature = inspect.signature(module.forward)
    what = f"{type(module).__name__}.forward{signature}"
    try:
        if isinstance(given, Mapping):
            bound = signature.bind(**given)
        else:
            bound = signature.bind(*([given] if isinstance(given, torch.Tensor) else given))
    except TypeError as error:
        raise WrongChoice(
            f"the example inputs do not fit {what}: {error}", hint="one tensor for each parameter"
        ) from error
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found |= {f"{name}_{index}": item for index, item in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        else:
            found[name] = value
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise WrongChoice(f"the example input {name!r} is {value!r:.40}", hint="example inputs are torch tensors")
    if not found:
        raise WrongChoice("there are no example inputs", hint="one tensor for each parameter of forward()")
    return found


def schema_of_labels(
    name: str, labels: list[str], named: Mapping[str, Any], dynamic_axes: Axes | None
) -> dict[str, Any]:
    """Return the schema that labels alone make."""
    if len(named) != 1:
        raise WrongChoice(
            f"labels alone do not say what the inputs {', '.join(named)} are",
            hint="give a schema, which describes them",
        )
    (value,) = named.values()
    axes = {0: "batch"} if dynamic_axes is None else dict(next(iter(dynamic_axes.values()), {}))
    kind = str(value.dtype).removeprefix("torch.")
    return default_schema(name, labels, value.shape, "float32" if value.dtype.is_floating_point else kind, axes)


def choose_names(
    named: Mapping[str, Any], input_names: Sequence[str] | None, schema: Mapping[str, Any] | None
) -> list[str]:
    """Return the names of the graph inputs, in the order of `forward`."""
    if schema is not None:
        wanted = graph_names(schema)
        if input_names is not None and list(input_names) != wanted:
            raise WrongChoice(f"the input names {list(input_names)!r} are not those of the schema, {wanted!r}")
        names = list(named) if set(wanted) == set(named) else wanted
    else:
        names = list(named if input_names is None else input_names)
    if len(names) != len(named) or len(set(names)) != len(names):
        raise WrongChoice(
            f"{len(names)} names {names!r} for {len(named)} inputs {list(named)!r}", hint="one name for each tensor"
        )
    return names


def choose_axes(
    names: Sequence[str], named: Mapping[str, Any], dynamic_axes: Axes | None, schema: Mapping[str, Any] | None
) -> dict[str, dict[int, str]]:
    """Return graph input → axis → name of the axes that vary; an input without axes has none."""
    if dynamic_axes is None:
        usual = default_axes(schema)
        return {
            name: {axis: text for axis, text in usual.items() if axis < value.ndim}
            for name, value in zip(names, named.values(), strict=True)
        }
    chosen: dict[str, dict[int, str]] = {name: {} for name in names}
    for key, axes in dynamic_axes.items():
        name = names[list(named).index(key)] if key in named else key
        if name not in chosen:
            raise WrongChoice(
                f"dynamic_axes names {key!r}, which is no input", hint=f"the inputs are {', '.join(names)}"
            )
        rank = named[list(named)[names.index(name)]].ndim
        for axis, text in axes.items():
            if not (isinstance(axis, int) and 0 <= axis < rank and isinstance(text, str) and text.isidentifier()):
                raise WrongChoice(
                    f"axis {axis!r} of {key!r}, called {text!r}, is not possible",
                    hint=f"an axis is 0 to {rank - 1}, and its name a word like batch",
                )
        chosen[name] = dict(axes)
    return chosen


@contextmanager
def prepared(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Give MODULE in eval mode, on the CPU and in float32: itself, or a copy where it is not; its modes are restored."""
    import copy

    import torch

    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise ConvertError(
            f"{type(module).__name__} has weights without values, on the device meta", hint="load them first"
        )
    fits = all(
        tensor.device.type == "cpu" and (not tensor.is_floating_point() or tensor.dtype == torch.float32)
        for tensor in tensors
    )
    modes = [(part, part.training) for part in module.modules()]
    try:
        ready = module if fits else copy.deepcopy(module).cpu().float()
        yield ready.eval()
    finally:
        for part, training in modes:
            part.training = training


def plain(value: torch.Tensor) -> torch.Tensor:
    """Return an example as the graph takes it: on the CPU, floats in float32."""
    import torch

    value = value.detach().cpu()
    return value.to(torch.float32) if value.is_floating_point() else value


def widen(value: torch.Tensor, axes: Mapping[int, str]) -> torch.Tensor:
    """Return the example VALUE with two of what it has one of on an axis that varies: torch takes a size of 1 for a constant."""
    import torch

    for axis in axes:
        if value.shape[axis] == 0:
            raise WrongChoice(
                f"an example input has the shape {tuple(value.shape)}", hint="give one with numbers in it"
            )
        if value.shape[axis] == 1:
            value = torch.cat([value, value], dim=axis)
    return value


def trace(
    module: torch.nn.Module, examples: Mapping[str, torch.Tensor], axes: Sequence[Mapping[int, str]], opset: int
) -> Any:
    """Return the onnx.ModelProto of MODULE. Raises ConvertError with torch's reason.

    Where an axis may only have some sizes, as the length of a text has an end where the table of positions has, torch says so
    and wants to hear it: it is asked once more with those.
    """
    import torch

    ends: dict[str, dict[str, int]] = {text: {"min": 1} for item in axes for text in item.values()}
    failure: Exception | None = None
    with quiet(), torch.no_grad():
        for _ in range(2):
            try:
                program = torch.export.export(module, strict=False, **call(module, examples, axes, ends))
                return torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset).model_proto
            except Exception as error:  # noqa: BLE001 - whatever the module's own code, torch and onnxscript raise
                failure = error
            found = {name: sizes for name, sizes in suggested(str(failure)).items() if name in ends}
            if not found:
                break
            ends |= found
    assert failure is not None  # noqa: S101 - the loop has returned otherwise
    raise why_not(type(module).__name__, failure) from failure


def call(
    module: torch.nn.Module,
    examples: Mapping[str, torch.Tensor],
    axes: Sequence[Mapping[int, str]],
    ends: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """Return what torch.export is given: the examples, and the axes of each that vary, with their ENDS."""
    from torch.export import Dim

    dims = {text: Dim(text, **sizes) for text, sizes in ends.items()}
    shapes = [{axis: dims[text] for axis, text in item.items()} for item in axes]
    kinds = [item.kind for item in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        fixed = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return {"args": tuple(examples.values()), "dynamic_shapes": (*shapes[:fixed], tuple(shapes[fixed:]))}
    return {"args": (), "kwargs": dict(examples), "dynamic_shapes": dict(zip(examples, shapes, strict=True))}


SUGGESTED = re.compile(r"^\s*(\w+) = Dim\('\w+'((?:, (?:min|max)=\d+)+)\)", re.MULTILINE)


def suggested(message: str) -> dict[str, dict[str, int]]:
    """Return axis → {"min": …, "max": …} as torch suggests in MESSAGE; one that would have to be a constant is not among them."""
    found = {}
    for name, sizes in SUGGESTED.findall(message):
        pairs = (part.split("=") for part in sizes.removeprefix(", ").split(", "))
        found[name] = {"min": 1} | {key: int(value) for key, value in pairs}
    return found


REASONS: Mapping[str, str] = {
    "GuardOnDataDependentSymNode": "forward() decides by the values of its input, and a graph has no `if`: use torch.where, or take "
    "the decision out of forward()",
    "ConstraintViolationError": "forward() works for one size only on an axis that should vary: use x.shape there in place of a number, "
    "or fix all sizes with dynamic_axes={}",
    "DispatchError": "ONNX has no such operator: write that step with others",
    "UnsupportedOperatorError": "ONNX has no such operator: write that step with others",
}
"""Class name of torch's exception → what to do about it."""
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*m")
AXIS = re.compile(r"dynamic but your code specialized it to be a constant \((\d+)\)")


def why_not(name: str, error: BaseException) -> ConvertError:
    """Return the error for a module NAME that was not exported: the innermost reason that is known, else the outermost."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    known = [item for item in chain if type(item).__name__ in REASONS]
    told = known[-1] if known else error
    lines = [line.strip(" -") for line in TERMINAL_CODES.sub("", str(told)).splitlines() if line.strip()]
    text = next((line for line in lines if AXIS.search(line)), lines[0] if lines else type(told).__name__)
    text = text.split("  (Size-like")[0].split("! For more information")[0]
    return ConvertError(
        f"{name} cannot be exported to ONNX: {type(told).__name__}: {text:.400}", hint=REASONS.get(type(told).__name__)
    )


def shape_of(value: Any) -> tuple[int | str, ...]:
    """Return the shape of a graph input or output, a name where a size varies."""
    return tuple(dim.dim_param or int(dim.dim_value) for dim in value.type.tensor_type.shape.dim)


WORD = re.compile(r"[A-Za-z_]\w*")


def rename_axes(model: Any, axes: Sequence[Mapping[int, str]]) -> None:
    """Call the axes that vary by their names in place of torch's (s77), also where a size is computed from one (2*s77)."""
    names: dict[str, str] = {}
    for value, wanted in zip(model.graph.input, axes, strict=True):
        shape = shape_of(value)
        for axis, text in wanted.items():
            symbol = shape[axis]
            if not isinstance(symbol, str):
                raise ConvertError(f"axis {axis} of {value.name!r} has become a constant, {symbol}")
            names[symbol] = text
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = WORD.sub(lambda word: names.get(word[0], word[0]), dim.dim_param)


def output_names_of(model: Any, given: Sequence[str] | None, schema: Mapping[str, Any] | None) -> list[str]:
    """Return the names for the graph's outputs."""
    count = len(model.graph.output)
    names = list(given) if given is not None else ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    if schema is not None:
        first = str(schema["output"]["name"])
        if given is not None and names[:1] != [first]:
            raise WrongChoice(f"the first output is {names[:1]!r}, and the schema's {first!r}")
        names[0] = first
    if len(names) != count or len(set(names)) != count:
        raise WrongChoice(
            f"the names {names!r} for {count} outputs", hint="one name for each tensor that forward() returns"
        )
    return names


def rename(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the graph's inputs and outputs their names, everywhere in the graph and in the graphs inside it."""
    graph = model.graph
    for value in graph.output:  # an output that is an input, a constant, or another output, gets a node of its own
        made = {name for node in graph.node for name in node.output}
        if value.name not in made or [item.name for item in graph.output].count(value.name) > 1:
            fresh = f"{value.name}__copy_{len(graph.node)}"
            graph.node.add(op_type="Identity", name=fresh, input=[value.name], output=[fresh])
            value.name = fresh
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {i.name for i in graph.initializer}
    ends = [*zip((value.name for value in graph.input), inputs, strict=True)]
    ends += zip((value.name for value in graph.output), outputs, strict=True)
    changes = {old: new for old, new in ends if old != new}
    for new in set(changes.values()) & (taken - changes.keys()):
        changes[new] = f"{new}__inner"
    rename_values(graph, changes)


def rename_values(graph: Any, changes: Mapping[str, str]) -> None:
    """Rename values in GRAPH and in the graphs that its nodes hold, which see those around them."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = changes.get(value.name, value.name)
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name in changes:
                    names[index] = changes[name]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                rename_values(inner, changes)


def strip(message: Any) -> None:
    """Remove the notes of torch in MESSAGE and all that is in it: places in source files of this machine, and comments."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None and field.name not in ("opset_import", "raw_data"):
            for item in value if field.is_repeated else (value,):
                strip(item)


def file_metadata(schema: Mapping[str, Any] | None, dtype: str, more: Mapping[str, str] | None) -> dict[str, str]:
    """Return the texts for the file's metadata_props."""
    import json

    found = {"edgeai.quant": dtype.upper()}
    if schema is not None:
        found["edgeai.schema"] = json.dumps(schema, ensure_ascii=False)
    for key, value in (more or {}).items():
        if not isinstance(value, str):
            raise WrongChoice(f"the metadata {key!r} is {value!r:.40}", hint="metadata are texts")
        found[key] = value
    return found


def write(model: Any, path: Path, external_above: int | None) -> Path | None:
    """Write MODEL to PATH, and weights that make it too large to PATH.data, whose path is returned."""
    import onnx

    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    beside = path.with_name(f"{path.name}.data")
    if size <= (EXTERNAL_BYTES if external_above is None else external_above):
        write_bytes(model, path)
        beside.unlink(missing_ok=True)  # of a file that was here before
        return None
    if external_above is None:
        raise UnsupportedModel(
            f"the weights are {size / 1e9:.1f} GB, and one ONNX file holds 2", hint="dtype f16 takes half"
        )
    beside.unlink(missing_ok=True)  # onnx would add to it
    onnx.external_data_helper.convert_model_to_external_data(
        model, all_tensors_to_one_file=True, location=beside.name, size_threshold=1024
    )
    onnx.external_data_helper.write_external_data_tensors(model, str(path.parent))
    write_bytes(model, path)
    return beside if beside.exists() else None


def check(path: Path, opset: int) -> None:
    """Raise ConvertError unless the file PATH is one that onnx's checker takes, of this OPSET."""
    from converters.onnx.checks import file_checks

    for found in file_checks(path, opset=opset):
        if not found.ok:
            raise ConvertError(f"the exported graph is not valid: {found.name}: {found.value}, limit {found.limit}")
