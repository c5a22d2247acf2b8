"""An ONNX file in float32 → one with 8-bit weights, and for the static way 8-bit activations, for onnxruntime on a CPU.

Weights are signed, symmetric, one scale for each output channel; activations unsigned, asymmetric, one scale for each tensor: what
onnxruntime's kernels for x86 are made for (its quantize_static says so, and on ARM they take it too). After a ReLU, which is where most
activations come from, signed ones would waste half of their values.

Weights use 7 of their 8 bits (REDUCE_RANGE). CPUs with AVX2 and without VNNI add two products of 8 bits in 16, which 255 · 127 · 2
overflows and 255 · 64 · 2 does not; they clamp without a word. The machine that proves the file may have VNNI and would not see it on
one that has not, so files are made for both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.errors import ConvertError, WrongChoice
from converters.onnx.checks import file_checks, open_session
from converters.onnx.export import strip
from converters.onnx.metadata import load_graph, set_metadata, write_bytes
from converters.onnx.quiet import quiet
from converters.onnx.ranges import METHODS, Method, calibration_arrays, measure
from converters.scratch import Scratch

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["DYNAMIC_OPS", "REDUCE_RANGE", "STATIC_OPS", "Quantized", "quantize_dynamic", "quantize_static"]

REDUCE_RANGE = True
PERCENTILE = 99.99
STATIC_OPS: Mapping[str, str] = {
    "Conv": "most of the work; onnxruntime has QLinearConv for it",
    "Gemm": "the same, QGemm",
    "MatMul": "with weights only: the products of attention keep their float activations, which 8 bits hold badly after a softmax",
    "Relu": "becomes the lower end of a range, and is gone",
    "Clip": "the same at both ends",
    "Add": "of two activations after a convolution only, so that a residual network stays in 8 bits; adding a bias stays float",
    "MaxPool": "moves numbers, and is four times less memory in 8 bits",
    "AveragePool": "has an 8-bit kernel",
    "GlobalAveragePool": "has an 8-bit kernel",
    "Concat": "has an 8-bit kernel",
    "Pad": "moves numbers; stands between convolutions over time",
    "Reshape": "moves numbers",
    "Flatten": "moves numbers",
    "Transpose": "moves numbers",
    "Squeeze": "moves numbers",
    "Unsqueeze": "moves numbers",
    "Slice": "moves numbers",
}
"""Operator → why it is quantized. What is not here stays float: Softmax, LayerNormalization, Gelu, Erf, Sigmoid, Tanh, divisions and
means have no 8-bit kernel that is faster; a table of embeddings would be decoded whole for every text. With Softmax,
LayerNormalization, the residual Add and Gather in the list the NMSE of a text encoder was 3.4e-4 instead of 1.2e-4."""
DYNAMIC_OPS: Mapping[str, str] = {
    "MatMul": "MatMulInteger and DynamicQuantizeMatMul, with weights only; Gemm is turned into it",
    "LSTM": "DynamicQuantizeLSTM",
    "Gather": "a table of embeddings is most of a small text model, and one scale for all of it costs little: NMSE 8e-5 becomes "
    "1.2e-4 in an encoder of 64 dimensions, whose file is 40 % smaller for it",
}
"""Operator → why its weights are quantized while activations are at run time. Not Conv: ConvInteger has no kernel with bias and
activation, and is slower than float."""
QUANTIZED_OPS = frozenset(
    ("MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "ConvInteger")
)
HELPERS = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Constant", "Identity", "Cast", "Reshape"),
        *("Transpose", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice", "Shape", "Concat", "Split"),
    }
)
"""What computes nothing, and is not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A file that was written. `int8_share` is the part of the weights that has 8 bits; `quantized` and `stayed` are operator → how many
    compute in 8 bits, and how many in float; `ranges` value → range of a static file."""

    path: Path
    quant: str
    bytes: int
    int8_share: float
    quantized: Mapping[str, int]
    stayed: Mapping[str, int]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def quantize_dynamic(
    source: Path | str,
    target: Path | str,
    *,
    per_channel: bool = True,
    reduce_range: bool = REDUCE_RANGE,
    ops: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Quantized:
    """Write the file SOURCE as TARGET with 8-bit weights; activations get 8 bits at run time, by the range they then have.

    For networks of matrix products: text, tables. OPS are the operators (default DYNAMIC_OPS). Raises WrongChoice where the graph has
    none of them, ConvertError, InvalidModel.
    """
    from onnxruntime.quantization import QuantizationMode, QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer

    chosen = [*(DYNAMIC_OPS if ops is None else ops)]
    with Scratch() as folder:
        prepared = preprocess(Path(source), Path(folder))
        with libraries():
            quantizer = ONNXQuantizer(
                loaded(prepared),
                per_channel,
                reduce_range,
                QuantizationMode.IntegerOps,
                False,
                QuantType.QInt8,
                QuantType.QUInt8,
                None,
                [],
                [],
                chosen,
                {"MatMulConstBOnly": True, "WeightSymmetric": True},
            )
            quantizer.quantize_model()
            model = quantizer.model.model
    return finish(
        model, Path(source), Path(target), "INT8-DYNAMIC", metadata, "quant int8 has kernels for convolutions"
    )


def quantize_static(
    source: Path | str,
    target: Path | str,
    calibration: Mapping[str, npt.NDArray[Any]] | npt.NDArray[Any],
    *,
    method: Method = "minmax",
    per_channel: bool = True,
    percentile: float = PERCENTILE,
    reduce_range: bool = REDUCE_RANGE,
    ops: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Quantized:
    """Write the file SOURCE as TARGET with 8-bit weights and activations, in the QDQ format.

    CALIBRATION are inputs of the graph, (rows, …) each; an array that is mapped from a file is read in parts. METHOD makes ranges of
    what the activations are on them (ranges.METHODS), `percentile` with PERCENTILE % of them inside. OPS are the operators (default
    STATIC_OPS). The graph's outputs stay float: 8 bits would make two classes equal, and a regression a staircase. Raises
    WrongChoice, ConvertError, InvalidModel.
    """
    import numpy as np
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

    if method not in METHODS:
        raise WrongChoice(f"calibration method {method!r} is not known", hint=f"one of {', '.join(METHODS)}")
    if not 50 < percentile <= 100:
        raise WrongChoice(f"percentile {percentile!r} is not possible", hint="above 50 and at most 100, such as 99.99")
    chosen = [*(STATIC_OPS if ops is None else ops)]
    with Scratch() as folder:
        prepared = preprocess(Path(source), Path(folder))
        data = calibration_arrays(open_session(prepared), calibration)
        graph = load_graph(prepared)
        skipped = left_alone(graph.graph)
        names = values_of(graph.graph, chosen, skipped)
        found = measure(with_outputs(graph, names, Path(folder)), names, data, method, percentile)
        skipped += [
            node.name for node in graph.graph.node if any(name in names and name not in found for name in taken(node))
        ]
        ranges = {name: (np.float32(low), np.float32(high)) for name, (low, high) in found.items()}
        with libraries():
            quantizer = QDQQuantizer(
                loaded(prepared),
                per_channel,
                reduce_range,
                QuantType.QInt8,
                QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, ranges),
                [],
                skipped,
                chosen,
                {"WeightSymmetric": True, "ActivationSymmetric": False},
            )
            quantizer.quantize_model()
            model = quantizer.model.model
    float_outputs(model.graph)
    hint = "quant int8-dynamic needs no ranges"
    return finish(model, Path(source), Path(target), "INT8", metadata, hint, ranges=found)


class libraries:  # noqa: N801 - reads as what it is at the `with`
    """Silence the libraries, and turn what they raise or log as an error into a ConvertError."""

    def __enter__(self) -> None:
        self.context = quiet("onnxruntime.quantization", "root")
        self.errors = self.context.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.context.__exit__(None, None, None)
        if isinstance(error, Exception):
            raise ConvertError(f"the graph cannot be quantized: {type(error).__name__}: {error!s:.300}") from error
        if error is None and self.errors:
            raise ConvertError(f"the graph cannot be quantized: {self.errors[0].splitlines()[0]:.300}")


def preprocess(source: Path, folder: Path) -> Path:
    """Write the graph of SOURCE into FOLDER as the quantizers want it, with shapes, folded constants and node names; return the file."""
    from onnxruntime.quantization import quant_pre_process

    broken = next((row for row in file_checks(source) if not row.ok), None)
    if broken is not None:
        raise ConvertError(f"{source.name!r} cannot be quantized: {broken.name}: {broken.value}")
    beside = any(item.external_data for item in load_graph(source).graph.initializer)
    target = folder / "prepared.onnx"
    with libraries():
        quant_pre_process(
            source,
            target,
            skip_symbolic_shape=True,
            save_as_external_data=beside,
            all_tensors_to_one_file=True,
            external_data_location=f"{target.name}.data" if beside else None,
        )
    model = load_graph(target)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    write_bytes(model, target)
    return target


def loaded(path: Path) -> Any:
    """Return the whole model in the file PATH, marked as one whose shapes are known."""
    import onnx
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    model = onnx.load(path)
    add_infer_metadata(model)
    return model


def left_alone(graph: Any) -> list[str]:
    """Return the names of nodes of GRAPH that stay float although their operator is quantized: see STATIC_OPS."""
    weights = {tensor.name for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        given = [name for name in node.input if name not in weights]
        after_conv = any(behind(makers, name) == "Conv" for name in given)
        activations_only = node.op_type == "MatMul" and node.input[1] not in weights
        plain_add = node.op_type == "Add" and (len(given) < 2 or not after_conv)
        if activations_only or plain_add:
            found.append(node.name)
    return found


def behind(makers: Mapping[str, Any], name: str) -> str | None:
    """Return the operator that makes the value NAME, or the one before where that is an activation."""
    node = makers.get(name)
    if node is not None and node.op_type in ("Relu", "Clip"):
        node = makers.get(node.input[0])
    return None if node is None else str(node.op_type)


def values_of(graph: Any, ops: list[str], skipped: list[str]) -> list[str]:
    """Return the names of the float values that the nodes of GRAPH with operators of OPS take and give, in their order."""
    import onnx

    weights = {tensor.name for tensor in graph.initializer}
    places = (*graph.input, *graph.output, *graph.value_info)
    kinds = {value.name: value.type.tensor_type.elem_type for value in places}
    names = [
        name
        for node in graph.node
        if node.op_type in ops and node.name not in skipped
        for name in (*node.input, *node.output)
        if name not in weights and kinds.get(name) == onnx.TensorProto.FLOAT
    ]
    return list(dict.fromkeys(names))


def with_outputs(model: Any, names: list[str], folder: Path) -> Path:
    """Write MODEL into FOLDER with the values NAMES as further outputs; return the file."""
    import onnx

    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    there = {value.name for value in (*wider.graph.output, *wider.graph.input)}
    wider.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    path = folder / "wider.onnx"
    write_bytes(wider, path)
    return path


def float_outputs(graph: Any) -> None:
    """Take the last step to 8 bits and back away from the outputs of GRAPH."""
    makers = {name: node for node in graph.node for name in node.output}
    for value in graph.output:
        back = makers.get(value.name)
        if back is None or back.op_type != "DequantizeLinear":
            continue
        there = makers.get(back.input[0])
        if there is None or there.op_type != "QuantizeLinear":
            continue
        maker = makers.get(there.input[0])
        if maker is None or maker.op_type == "DequantizeLinear":
            continue
        inner = there.input[0]
        graph.node.remove(back)
        graph.node.remove(there)
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == inner:
                        names[index] = value.name
    tidy(graph)


def sort_nodes(graph: Any) -> None:
    """Put the nodes of GRAPH, to which the quantizers add at the end, behind those whose values they take."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    nodes = list(graph.node)
    needs = [[makers[name] for name in taken(node) if name in makers] for node in nodes]
    order: list[int] = []
    state = [0] * len(nodes)  # 1: on the way, 2: placed
    for first in range(len(nodes)):
        path = [first]
        while path:
            at = path[-1]
            missing = [need for need in needs[at] if state[need] == 0] if state[at] < 2 else []
            state[at] = max(state[at], 1)
            if missing:
                path.append(missing[0])
                continue
            if state[at] == 1:
                order.append(at)
                state[at] = 2
            path.pop()
    del graph.node[:]
    graph.node.extend(nodes[index] for index in order)


def taken(node: Any) -> list[str]:
    """Return the values that NODE takes, also inside its graphs."""
    inner = [graph for item in node.attribute for graph in ((item.g,) if item.HasField("g") else item.graphs)]
    return [*node.input, *(name for graph in inner for part in graph.node for name in taken(part))]


def tidy(graph: Any) -> None:
    """Remove weights of GRAPH that nothing uses, and what is said about values that are not there."""
    used = {name for node in nodes_in(graph) for name in node.input} | {value.name for value in graph.output}
    for tensor in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(tensor)
    there = used | {name for node in graph.node for name in node.output}
    for value in [item for item in graph.value_info if item.name not in there]:
        graph.value_info.remove(value)


def nodes_in(graph: Any) -> Iterator[Any]:
    """Give the nodes of GRAPH and of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_in(attribute.g)
            for inner in attribute.graphs:
                yield from nodes_in(inner)


def finish(
    model: Any,
    source: Path,
    target: Path,
    quant: str,
    metadata: Mapping[str, str] | None,
    hint: str,
    *,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Quantized:
    """Write the quantized MODEL to TARGET with the texts, inputs and outputs of SOURCE, and check it."""
    sort_nodes(model.graph)
    tidy(model.graph)
    share, done, stayed = account(model)
    if not share:
        raise WrongChoice(f"nothing in {source.name!r} can be quantized as {quant.lower()}", hint=hint)
    strip(model)
    original = load_graph(source)
    texts = {item.key: item.value for item in original.metadata_props}
    set_metadata(model, texts | {"edgeai.quant": quant} | dict(metadata or {}))
    used = {node.domain for node in nodes_in(model.graph)} | {""}
    for item in [item for item in model.opset_import if item.domain not in used]:
        model.opset_import.remove(item)
    for kind in ("input", "output"):
        before, now = ([value.name for value in getattr(item.graph, kind)] for item in (original, model))
        if before != now:
            raise ConvertError(f"the quantized graph has the {kind}s {now}, and the graph {before}")
    write_bytes(model, target)
    broken = next((row for row in file_checks(target) if not row.ok), None)
    if broken is not None:
        raise ConvertError(f"the quantized graph is not valid: {broken.name}: {broken.value}")
    return Quantized(
        path=target,
        quant=quant,
        bytes=target.stat().st_size,
        int8_share=share,
        quantized=done,
        stayed=stayed,
        ranges=dict(ranges or {}),
    )


def account(model: Any) -> tuple[float, dict[str, int], dict[str, int]]:
    """Return the share of MODEL's weights that has 8 bits, and its operators with weights or activations in 8 bits, and those in float."""
    import math

    import onnx

    graph = model.graph
    sizes = {tensor.name: (math.prod(tensor.dims), tensor.data_type) for tensor in graph.initializer}
    small = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    wide = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT32)
    eight = sum(size for size, kind in sizes.values() if kind in small and size > 1)
    rest = sum(size for name, (size, kind) in sizes.items() if kind in wide and not name.endswith("_scale"))
    from_eight = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    done: Counter[str] = Counter()
    stayed: Counter[str] = Counter()
    places = (*graph.input, *graph.output, *graph.value_info)
    floats = {value.name for value in places if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT} | from_eight
    for node in graph.node:
        if node.op_type in HELPERS:
            continue
        given = [name for name in node.input if name in floats]
        if node.op_type in QUANTIZED_OPS or (given and all(name in from_eight for name in given)):
            done[node.op_type] += 1
        elif given or any(name in floats for name in node.output):
            stayed[node.op_type] += 1
    return eight / (eight + rest) if eight else 0.0, dict(sorted(done.items())), dict(sorted(stayed.items()))
