"""The ONNX header: what `onnx` writes is read as it is, everything else ends in InvalidModel, quickly."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.errors import InvalidModel
from converters.onnx.header import BITS, Header, data_files, inside, read_header
from converters.onnx.wire import MAX_DEPTH

Change = Callable[[Any], object]


def model(
    *nodes: Any, tensors: tuple[Any, ...] = (), functions: tuple[Any, ...] = (), domains: tuple[str, ...] = ()
) -> Any:
    """A model that adds a weight to its input, with NODES besides."""
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "weight")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "weight"], ["y"]), *nodes],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, None])],
        [weight, *tensors],
    )
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    found = helper.make_model(
        graph, opset_imports=opsets, functions=list(functions), producer_name="tests", ir_version=10
    )
    found.metadata_props.add(key="naïve", value="日本")
    return found


def written(folder: Path, value: Any) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(value if isinstance(value, bytes) else value.SerializeToString())
    return path


def outside(folder: Path, change: Change = lambda _tensor: None, size: int = 64) -> Path:
    """A model whose weight is at 16 in weights.bin of SIZE bytes; CHANGE makes something else of the tensor."""
    value = model()
    tensor = value.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "weights.bin"), ("offset", "16"), ("length", "48")):
        tensor.external_data.add(key=key, value=text)
    change(tensor)
    (folder / "weights.bin").write_bytes(bytes(size))
    return written(folder, value)


def entry(name: str, value: str) -> Change:
    """Return the change by which the external data of a tensor says VALUE under NAME."""

    def change(tensor: Any) -> None:
        kept = [item for item in tensor.external_data if item.key != name]
        pairs = [(item.key, item.value) for item in kept]
        del tensor.external_data[:]
        for key, text in [*pairs, (name, value)]:
            tensor.external_data.add(key=key, value=text)

    return change


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def by_hand(graph: bytes = b"", *more: bytes) -> bytes:
    """A model by hand, so that it can be wrong in one place."""
    output = field(12, field(1, b"y"))
    return field(1, 10) + field(8, field(2, 20)) + field(7, graph + output) + b"".join(more)


# ---- against onnx


def test_what_onnx_writes_is_read(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, model()))
    assert (header.producer, header.ir_version, header.opsets) == ("tests", 10, {"": 20})
    assert header.metadata == {"naïve": "日本"}
    assert [(port.name, port.dtype, port.shape) for port in header.inputs] == [("x", "float32", ("batch", 4))]
    assert [(port.name, port.dtype, port.shape) for port in header.outputs] == [("y", "float32", (3, None))]
    assert dict(header.operators) == {("", "Add"): 1}
    assert [(item.name, item.dtype, item.shape, item.nbytes) for item in header.tensors] == [
        ("weight", "float32", (3, 4), 48)
    ]


def test_all_types_of_onnx_are_known_with_their_bits() -> None:
    known = {value: name for name, value in TensorProto.DataType.items() if name != "UNDEFINED"}
    assert known.keys() <= BITS.keys()
    for code in known:
        name, bits = BITS[code]
        if bits:
            expected = helper.tensor_dtype_to_np_dtype(code)
            held = onnx.numpy_helper.from_array(np.zeros(16, expected)).raw_data
            assert len(held) * 8 == 16 * bits, name


def test_data_in_the_file_lies_where_the_header_says(tmp_path: Path) -> None:
    path = written(tmp_path, model())
    (tensor,) = read_header(path).tensors
    assert np.fromfile(path, "<f4", 12, offset=tensor.offset or 0).tolist() == list(range(12))


def test_data_beside_the_file_lies_where_the_header_says(tmp_path: Path) -> None:
    value = model()
    onnx.save_model(value, tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    header = read_header(tmp_path / "model.onnx")
    (tensor,) = header.tensors
    assert (tensor.file, data_files(header)) == ("w.bin", [tmp_path / "w.bin"])
    assert np.fromfile(tmp_path / "w.bin", "<f4", 12, offset=tensor.offset or 0).tolist() == list(range(12))


def test_nodes_and_tensors_in_branches_are_counted(tmp_path: Path) -> None:
    out = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    constant = helper.make_node("Constant", [], ["z"], value=numpy_helper.from_array(np.ones(5, np.float32)))
    branch = helper.make_graph([constant], "branch", [], out)
    node = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    header = read_header(written(tmp_path, model(node)))
    assert header.operators["", "Constant"] == 2
    assert sum(tensor.elements for tensor in header.tensors) == 12 + 5 + 5


def test_operators_of_functions_in_the_file_are_known(tmp_path: Path) -> None:
    body = [helper.make_node("Abs", ["x"], ["y"])]
    function = helper.make_function("own", "Twice", ["x"], ["y"], body, [helper.make_opsetid("", 20)])
    node = helper.make_node("Twice", ["x"], ["z"], domain="own")
    header = read_header(written(tmp_path, model(node, functions=(function,), domains=("own",))))
    assert header.unknown_operators() == []
    assert header.operators["", "Abs"] == 1


def test_operators_of_other_domains_are_unknown(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Magic", ["x"], ["a"], domain="evil"),
        helper.make_node("Gelu", ["x"], ["b"], domain="com.microsoft"),
    ]
    assert read_header(written(tmp_path, model(*nodes))).unknown_operators() == ["evil.Magic"]


def blocks(**values: int) -> Any:
    codes = numpy_helper.from_array(np.zeros((4, 1, 16), np.uint8), "codes")
    scales = numpy_helper.from_array(np.ones(4, np.float32), "scales")
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["z"], domain="com.microsoft", block_size=32, **values
    )
    return model(node, tensors=(codes, scales), domains=("com.microsoft",))


def test_weights_in_blocks_count_as_weights_and_their_scales_do_not(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, blocks(K=32, N=4, bits=4)))
    assert dict(header.by_type()) == {"INT4": 128, "F32": 12}


def test_blocks_without_their_sizes_are_counted_by_their_codes(tmp_path: Path) -> None:
    assert read_header(written(tmp_path, blocks(bits=4))).by_type()["INT4"] == 128


@pytest.mark.parametrize(
    "values", [{"bits": 0}, {"bits": -8}, {"bits": 64}, {"K": -1, "N": 4}, {"K": 1 << 62, "N": 1 << 62}]
)
def test_blocks_of_impossible_sizes_are_refused(tmp_path: Path, values: dict[str, int]) -> None:
    with pytest.raises(InvalidModel, match="MatMulNBits has"):
        read_header(written(tmp_path, blocks(**values)))


# ---- data that lies elsewhere


@pytest.mark.parametrize(
    "place",
    ["/etc/passwd", "../weights.bin", "a/../../weights.bin", "..\\weights.bin", "C:\\weights.bin", "C:weights.bin", "\\\\server\\share\\w",
     "*/_ORT_MEM_ADDR_/*", "", "a\0b"],
)  # fmt: skip
def test_data_outside_of_the_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    with pytest.raises(InvalidModel, match=r"outside of its folder|no file"):
        read_header(outside(tmp_path / "inner", entry("location", place)))


def test_data_behind_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidModel, match="through a link"):
        read_header(outside(tmp_path / "inner", entry("location", "link")))


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    path = outside(tmp_path, entry("location", "link"))
    (tmp_path / "link").symlink_to("weights.bin")
    assert read_header(path).tensors[0].file == "link"


def test_a_name_that_is_no_text_leads_nowhere(tmp_path: Path) -> None:
    for name in (None, 7, ["model.onnx"]):
        with pytest.raises(InvalidModel, match="no file"):
            inside(tmp_path, name, what="the graph")


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    path = outside(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InvalidModel, match=r"weights\.bin' is missing"):
        read_header(path)


def test_a_folder_is_no_data_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="is missing"):
        read_header(outside(tmp_path, entry("location", ".")))


def test_a_data_file_that_is_cut_off_says_how_much_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="has 60 bytes, and 4 more are needed for 'weight'"):
        read_header(outside(tmp_path, size=60))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offset", "-16"),
        ("offset", "0x10"),
        ("offset", "9" * 30),
        ("length", "44"),
        ("length", "1e2"),
        ("offset", "999999999999"),
    ],
)
def test_places_that_are_no_numbers_or_too_far_are_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(InvalidModel):
        read_header(outside(tmp_path, entry(name, value)))


def test_data_described_by_an_unknown_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="'url', which is not known"):
        read_header(outside(tmp_path, entry("url", "https://example.org")))


def test_a_tensor_that_names_a_file_and_says_it_needs_none_is_refused(tmp_path: Path) -> None:
    def change(tensor: Any) -> None:
        tensor.data_location = TensorProto.DEFAULT
        tensor.raw_data = bytes(48)

    with pytest.raises(InvalidModel, match=r"names 'weights\.bin'"):
        read_header(outside(tmp_path, change))


def far_tensor() -> Any:
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    return tensor


def test_data_of_sparse_values_in_attributes_is_checked(tmp_path: Path) -> None:
    indices = numpy_helper.from_array(np.arange(4, dtype=np.int64), "indices")
    sparse = onnx.SparseTensorProto(values=far_tensor(), indices=indices, dims=[9])
    node = helper.make_node("Constant", [], ["z"])
    node.attribute.append(
        onnx.AttributeProto(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    )
    with pytest.raises(InvalidModel, match="outside of its folder"):
        read_header(written(tmp_path, model(node)))


def test_data_of_defaults_of_functions_is_checked(tmp_path: Path) -> None:
    function = helper.make_function(
        "own", "F", ["x"], ["y"], [helper.make_node("Abs", ["x"], ["y"])], [helper.make_opsetid("", 20)]
    )
    function.attribute_proto.append(onnx.AttributeProto(name="t", type=onnx.AttributeProto.TENSOR, t=far_tensor()))
    with pytest.raises(InvalidModel, match="outside of its folder"):
        read_header(written(tmp_path, model(functions=(function,))))


def test_an_attribute_with_two_values_is_refused(tmp_path: Path) -> None:
    tensor = field(2, 1) + field(8, b"t")
    node = field(1, field(4, b"Constant") + field(5, field(1, b"value") + field(5, tensor) + field(5, tensor)))
    with pytest.raises(InvalidModel, match="has 2 values"):
        read_header(written(tmp_path, by_hand(node)))


# ---- damaged files


@pytest.mark.parametrize(
    "raw", [b"", b"GGUF", b"\0" * 100, b"\xff" * 100, b"{}" * 40, b"PK\x03\x04" + b"a" * 90, b"\x08\x0a" * 30]
)
def test_what_is_no_onnx_file_is_an_invalid_model(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(InvalidModel):
        read_header(written(tmp_path, raw))


def test_a_file_that_is_not_there_is_an_invalid_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="cannot be read"):
        read_header(tmp_path / "nothing.onnx")


def test_data_that_is_shorter_than_its_shape_is_refused(tmp_path: Path) -> None:
    value = model()
    value.graph.initializer[0].dims[:] = [3, 5]
    with pytest.raises(InvalidModel, match=r"48 bytes of data, and its shape \[3, 5\] needs 60"):
        read_header(written(tmp_path, value))


@pytest.mark.parametrize("dims", [[-1, 4], [1 << 41], [1] * 33, [1 << 39] * 40])
def test_impossible_shapes_are_refused(tmp_path: Path, dims: list[int]) -> None:
    value = model()
    value.graph.initializer[0].dims[:] = dims
    with pytest.raises(InvalidModel):
        read_header(written(tmp_path, value))


@pytest.mark.parametrize("packed", [True, False])
def test_a_million_dimensions_are_refused_before_they_are_read(tmp_path: Path, packed: bool) -> None:
    dims = field(1, b"\1" * 4_000_000) if packed else field(1, 1) * 4_000_000
    path = written(tmp_path, by_hand(field(5, field(2, 1) + dims)))
    began = time.perf_counter()
    with pytest.raises(InvalidModel, match="more than 32 dimensions"):
        read_header(path)
    assert time.perf_counter() - began < 1


def nested(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return graph


def test_graphs_in_graphs_end_at_a_depth(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=f"more than {MAX_DEPTH} messages"):
        read_header(written(tmp_path, by_hand(nested(2000))))


def test_graphs_in_graphs_of_some_depth_are_read(tmp_path: Path) -> None:
    assert read_header(written(tmp_path, by_hand(nested(10)))).nodes == 10


@pytest.mark.parametrize(
    "more",
    [b"\x08" + b"\xff" * 11, field(2, b"")[:-1] + varint(1 << 62), varint(3 << 3 | 3), varint(3 << 3 | 7), varint(0) + b"\1",
     field(2, b"\xff\xfe"), field(2, b"a" * 5000), b"\x0d\1", b"\x09\1\1", b"\x80"],
    ids=["varint of 11 bytes", "length beyond the end", "group", "type 7", "field 0", "no UTF-8", "long name", "cut 32", "cut 64", "open"],
)  # fmt: skip
def test_wrong_fields_are_refused(tmp_path: Path, more: bytes) -> None:
    with pytest.raises(InvalidModel):
        read_header(written(tmp_path, by_hand(b"", more)))


def test_two_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="more than one graph"):
        read_header(written(tmp_path, by_hand(b"", field(7, b""), field(2, b"padding"))))


def valid_or_invalid(path: Path) -> Header | None:
    try:
        return read_header(path)
    except InvalidModel:
        return None


def everything(folder: Path) -> bytes:
    """The bytes of a small model that has something of everything."""
    out = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    constant = helper.make_node("Constant", [], ["z"], value=numpy_helper.from_array(np.ones(2, np.float32)))
    branch = helper.make_graph([constant], "branch", [], out)
    node = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    value = blocks(K=32, N=4, bits=4)
    value.graph.node.append(node)
    tensor = value.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    (folder / "weights.bin").write_bytes(bytes(48))
    return bytes(value.SerializeToString())


def test_a_file_that_is_cut_off_anywhere_is_invalid(tmp_path: Path) -> None:
    raw = everything(tmp_path)
    whole = read_header(written(tmp_path, raw))
    began = time.perf_counter()
    for size in range(len(raw)):
        found = valid_or_invalid(written(tmp_path, raw[:size]))
        # what comes behind the graph can be missing without a trace
        assert found is None or found.nodes == whole.nodes
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_give_a_header_or_an_invalid_model(tmp_path: Path, seed: int) -> None:
    raw = everything(tmp_path)
    draw = random.Random(seed)
    began = time.perf_counter()
    for _ in range(500):
        broken = bytearray(raw)
        for _ in range(draw.choice((1, 1, 2, 5))):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        found = valid_or_invalid(written(tmp_path, bytes(broken)))
        if found is not None:  # and what is computed from it
            assert sum(found.by_type().values()) >= 0
            found.unknown_operators()
    assert time.perf_counter() - began < 20
