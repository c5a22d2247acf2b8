"""The GGUF header parser: valid files are read, everything else ends in InvalidModel, quickly."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.errors import InvalidModel
from converters.ggml_types import FILE_TYPES, GGML_TYPES, REMOVED_TYPES
from converters.header import GGUFArray, read_header

U32, STRING, ARRAY = 4, 8, 9


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCH = key("general.architecture", STRING, text("llama"))


def raw(
    keys: tuple[bytes, ...] = (ARCH,),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A GGUF file by hand, so that it can be wrong in one place."""
    tensor_count, key_count = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, key_count) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def write_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_file_type(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(300)])
    writer.add_token_scores([0.5] * 300)
    writer.add_token_types([1] * 300)
    writer.add_array("llama.rope.dimension_sections", [1, 2, 3])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_tensor("token_embd.weight", np.arange(32 * 4, dtype=np.float32).reshape(4, 32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((4, 18), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("é 模型 x") / "tiny.gguf").read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "é 模型"
    folder.mkdir()
    return folder / "a model.gguf"


def refuse(path: Path, content: bytes) -> InvalidModel:
    path.write_bytes(content)
    with pytest.raises(InvalidModel) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value


def test_header_of_a_written_file_is_what_the_gguf_library_reads(path: Path, valid: bytes) -> None:
    path.write_bytes(valid)
    header, reference = read_header(path), gguf.GGUFReader(path)
    assert set(header.kv) == {name for name in reference.fields if not name.startswith("GGUF.")}
    assert header.arch == "llama"
    assert header.types["llama.context_length"] == "u32"
    for mine, theirs in zip(header.tensors, reference.tensors, strict=True):
        assert (mine.name, mine.type, mine.offset) == (theirs.name, theirs.tensor_type.name, theirs.data_offset)
        assert mine.shape == tuple(theirs.shape)
        assert (mine.nbytes, mine.elements) == (theirs.n_bytes, theirs.n_elements)


def test_large_arrays_are_decoded_only_when_asked_for(path: Path, valid: bytes) -> None:
    path.write_bytes(valid)
    header = read_header(path)
    tokens = header.kv["tokenizer.ggml.tokens"]
    assert isinstance(tokens, GGUFArray)
    assert tokens.length == 300
    assert header.array("tokenizer.ggml.tokens") == [f"t{index}" for index in range(300)]
    assert header.array("tokenizer.ggml.scores") == [0.5] * 300
    assert header.array("llama.rope.dimension_sections") == [1, 2, 3]
    assert header.array("not.there") == []
    assert header.kv["llama.rope.dimension_sections"] == (1, 2, 3)
    assert header.kv["tokenizer.ggml.add_bos_token"] is True


def test_array_of_a_scalar_key_is_refused(path: Path, valid: bytes) -> None:
    path.write_bytes(valid)
    with pytest.raises(InvalidModel, match="not an array"):
        read_header(path).array("general.architecture")


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_alignment_of_the_file_is_used(path: Path, alignment: int) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_tensor("a", np.ones(3, np.float32))
    writer.add_tensor("b", np.full(3, 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    assert header.alignment == alignment
    for info, value in zip(header.tensors, (1, 2), strict=True):
        part = path.read_bytes()[info.offset : info.offset + info.nbytes]
        assert np.frombuffer(part, np.float32).tolist() == [value] * 3


def test_vocabulary_without_tensors_is_a_valid_header(path: Path) -> None:
    path.write_bytes(raw())
    assert read_header(path).tensors == ()


@pytest.mark.parametrize(
    ("content", "says", "hint"),
    [
        (b"", "is empty", "download"),
        (b"Hello, world! This is text.", "begins with b'Hello, world! Th'", "edgeai convert"),
        (b"<!DOCTYPE html><html>", "not a GGUF", "web page"),
        (b"\n <html lang=en>", "not a GGUF", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "not a GGUF", "git lfs pull"),
        (b"tjgg" + bytes(40), "not a GGUF", "before GGUF"),
        (struct.pack("<Q", 2) + b"{}", "not a GGUF", "safetensors"),
        (b"PK\x03\x04" + bytes(40), "not a GGUF", "PyTorch"),
        (b"GGUF", "ends in the middle of its version", "damaged"),
        (raw(version=1), "version 1", "convert"),
        (raw(version=4), "version 4", "convert"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(40), "big-endian", "little-endian"),
        (raw(counts=(0, 1 << 60)), f"{1 << 60} keys", "damaged"),
        (raw(counts=(1 << 60, 1)), f"{1 << 60} tensors", "damaged"),
        (raw(()), "general.architecture is None", "damaged"),
        (raw((key("general.architecture", U32, bytes(4)),)), "general.architecture is 0", "damaged"),
        (raw((ARCH, ARCH)), "is there twice", "damaged"),
        (raw((key("", U32, bytes(4)), ARCH)), "has no name", "damaged"),
        (raw((text(b"\xff\xfe") + bytes(8), ARCH)), "not UTF-8", "damaged"),
        (raw((ARCH, key("a", 13, bytes(4)))), "value type 13", "damaged"),
        (raw((ARCH, key("a", 7, b"\x02"))), "bool of 2", "damaged"),
        (raw((ARCH, key("a", STRING, struct.pack("<Q", 1 << 62)))), f"{1 << 62} bytes", "damaged"),
        (raw((ARCH, struct.pack("<Q", 1 << 17) + bytes(1 << 18))), "at most 65536", "damaged"),
        (raw((ARCH, key("a", ARRAY, struct.pack("<IQ", 6, 1 << 61)))), f"{1 << 61} items", "damaged"),
        (raw((ARCH, key("a", ARRAY, struct.pack("<IQ", 8, 1 << 60)))), f"{1 << 60} items", "damaged"),
        (raw((ARCH, key("a", ARRAY, struct.pack("<IQ", 9, 0)))), "array of arrays", "damaged"),
        (raw((ARCH, key("a", ARRAY, struct.pack("<IQ", 77, 0)))), "array of type 77", "damaged"),
        (raw((ARCH, key("a", ARRAY, struct.pack("<IQQ", 8, 1, 1 << 63)))), "beyond the end", "damaged"),
        (raw((ARCH, key("general.alignment", U32, struct.pack("<I", 48)))), "general.alignment is 48", "damaged"),
        (raw((ARCH, key("general.alignment", U32, struct.pack("<I", 0)))), "general.alignment is 0", "damaged"),
        (raw((ARCH, key("general.alignment", STRING, text("32")))), "general.alignment is '32'", "damaged"),
        (raw((ARCH, key("tokenizer.ggml.tokens", U32, bytes(4)))), "is not an array of string", "damaged"),
        (raw(tensors=(text("") + bytes(40),)), "has no name", "damaged"),
        (raw(tensors=(tensor("n" * 64),), data=bytes(32)), "at most 63", "damaged"),
        (raw(tensors=(tensor("a", ()),), data=bytes(99)), "has 0 dimensions", "damaged"),
        (raw(tensors=(tensor("a", (1,) * 5),), data=bytes(99)), "has 5 dimensions", "damaged"),
        (raw(tensors=(tensor("a", (0, 4)),), data=bytes(99)), "shape [0, 4]", "damaged"),
        (raw(tensors=(tensor("a", (1 << 32, 1 << 31)),), data=bytes(99)), "shape", "damaged"),
        (raw(tensors=(tensor("a", kind=99),), data=bytes(99)), "type 99", "update edgeai"),
        (raw(tensors=(tensor("a", kind=31),), data=bytes(99)), "Q4_0_4_4", "convert"),
        (raw(tensors=(tensor("a", (33,), kind=2),), data=bytes(99)), "multiple of 32", "damaged"),
        (raw(tensors=(tensor("a", offset=8),), data=bytes(99)), "leaves a hole", "damaged"),
        (raw(tensors=(tensor("a", (16,)), tensor("b", offset=32)), data=bytes(99)), "overlaps", "damaged"),
        (raw(tensors=(tensor("a"), tensor("a", offset=32)), data=bytes(99)), "is there twice", "damaged"),
        (raw(tensors=(tensor("a"),), data=bytes(31)), "1 are missing", "damaged"),
    ],
)
def test_wrong_header_is_refused_with_the_value_and_a_hint(path: Path, content: bytes, says: str, hint: str) -> None:
    error = refuse(path, content)
    assert says in error.message
    assert hint in str(error.hint)


@pytest.mark.parametrize("name", ["scores", "token_type"])
def test_vocabulary_arrays_of_different_length_are_refused(path: Path, name: str) -> None:
    tokens = key("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", 8, 2) + text("a") + text("b"))
    kind = 6 if name == "scores" else 5
    other = key(f"tokenizer.ggml.{name}", ARRAY, struct.pack("<IQ", kind, 3) + bytes(12))
    assert "2 tokens" in refuse(path, raw((ARCH, tokens, other))).message


def test_cut_off_file_says_how_many_bytes_are_missing(path: Path, valid: bytes) -> None:
    path.write_bytes(valid)
    info = read_header(path).tensors[-1]
    error = refuse(path, valid[: info.offset + info.nbytes - 7])
    assert "7 are missing" in error.message


@pytest.mark.parametrize("kind", ["fifo", "folder", "missing"])
def test_what_is_no_file_is_refused_without_waiting(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(InvalidModel):
        read_header(path)


def hostile_keys() -> bytes:
    one = (ARCH, *(key(f"{index:08x}", ARRAY, struct.pack("<IQ", 0, 256) + bytes(256)) for index in range(65535)))
    return raw(one)


@pytest.mark.parametrize(
    "make",
    [
        lambda: raw((ARCH, key("a", ARRAY, struct.pack("<IQ", 8, 1 << 23) + bytes(8 << 23)))),
        lambda: raw((ARCH, key("a", ARRAY, struct.pack("<IQ", 8, 3_900_000) + bytes(8 * 3_900_000)), b"\xff")),
        hostile_keys,
        lambda: raw(tensors=tuple(tensor(f"{i:08x}", (1,), 0, 32 * i) for i in range(65536))),
    ],
    ids=["strings over the limit", "strings at the limit", "many small arrays", "many tensors"],
)
def test_hostile_header_costs_little_time(path: Path, make: Any) -> None:
    path.write_bytes(make())
    took = []
    for _ in range(3):  # a machine that others use is no fault of the reader
        start = time.process_time()
        with pytest.raises(InvalidModel):
            read_header(path)
        took.append(time.process_time() - start)
        if took[-1] < 1:
            break
    assert min(took) < 1


@settings(max_examples=300, deadline=2000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mutation_of_a_valid_file_is_read_or_refused(path: Path, valid: bytes, data: st.DataObject) -> None:
    content = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(st.sampled_from([b"\0", b"\xff", b"\xff" * 8, b"\x7f" * 4]) | st.binary(min_size=1, max_size=9))
        content[at : at + len(new)] = new
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path.write_bytes(content)
    try:
        header = read_header(path)
        for name in header.kv:
            if header.types[name] == "array":
                header.array(name)
    except InvalidModel:
        pass


@settings(max_examples=150, deadline=2000, suppress_health_check=list(HealthCheck))
@given(tail=st.binary(max_size=400), magic=st.sampled_from([b"", b"GGUF", b"GGUF\x03\0\0\0", raw()[:60]]))
def test_random_bytes_are_read_or_refused(path: Path, tail: bytes, magic: bytes) -> None:
    path.write_bytes(magic + tail)
    with contextlib.suppress(InvalidModel):
        read_header(path)


def test_type_table_is_that_of_the_loaded_library() -> None:
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    names = sorted(folder.glob("libggml-base*.so*")) + sorted(folder.glob("libggml-base*.dylib"))
    if not names:
        pytest.skip("needs libggml-base of llama-cpp-python as a file of its own")
    ggml = ctypes.CDLL(str(names[0]))
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    for number, known in GGML_TYPES.items():
        name = ggml.ggml_type_name(number).decode().upper()
        assert (name, ggml.ggml_blck_size(number), ggml.ggml_type_size(number)) == known
    assert all(ggml.ggml_blck_size(number) == 0 for number in REMOVED_TYPES)


def test_file_types_are_those_of_the_library() -> None:
    from llama_cpp import llama_cpp

    marker = "LLAMA_FTYPE_MOSTLY_"
    theirs = {getattr(llama_cpp, name): name.removeprefix(marker) for name in dir(llama_cpp) if name.startswith(marker)}
    assert theirs | {0: "F32"} == FILE_TYPES
