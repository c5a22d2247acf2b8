from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.checkpoint import open_checkpoint
from converters.errors import BrokenCheckpoint, ConvertError
from converters.families import ModelPlan, TensorPlan, plan_model
from converters.ggml_types import FILE_TYPES
from converters.gguf import write_model
from converters.header import read_header
from converters.importance import wanted
from converters.mixes import FALLBACK, MIXES, NEEDS_IMPORTANCE, QUANTS
from converters.quantize import SLAB_ITEMS, encode, encoded_slabs
from converters.quantmap import plan_types
from converters.tokenizer import read_vocabulary
from tests.checkpoints import make
from tests.families import VARIANTS, make_variant

ORACLE = """
import ctypes, json, sys
import numpy as np
import llama_cpp.llama_cpp as lib
keep = lib.llama_log_callback(lambda level, text, data: None)
lib.llama_log_set(keep, ctypes.c_void_p(0))
lib.llama_backend_init()
source, targets, matrix = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
if matrix:
    rows = {name: values.ravel() for name, values in np.load(matrix).items()}
    items = (lib.llama_model_imatrix_data * (len(rows) + 1))()
    for item, (name, values) in zip(items, rows.items()):
        item.name, item.data, item.size = name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size
for number, target in targets:
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread = number, 2
    if matrix:
        params.imatrix = items
    if lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        sys.exit(f"llama_model_quantize failed for {number}")
"""
SHAPES: dict[str, dict[str, Any]] = {
    "whole blocks": {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8},
    "narrow": {"hidden_size": 32, "intermediate_size": 256},  # only ffn_down has whole blocks
    "tied": {"hidden_size": 256, "intermediate_size": 320, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "fallbacks": {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6},
    "deep": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 17},
}
SLOW = {name for name in QUANTS if name.startswith(("IQ1", "IQ2", "IQ3"))}
"""Their search takes seconds a layer; `test_quantmap` has the mixes for all layers."""
LARGE_TABLES = {"IQ1_M", "IQ1_S", "IQ2_S", "IQ2_M"}
"""libggml computes tables for these, for seconds, in each process."""
NUMBER = {name: number for number, name in FILE_TYPES.items()}


def plan_of(folder: Path) -> ModelPlan:
    return plan_model(open_checkpoint(folder))


def random_importance(plan: ModelPlan) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(3)
    shapes = {name: shape for name, shape in wanted(plan).items() if name.startswith("blk.")}
    return {name: (rng.normal(size=shape) ** 2 * 10 + 0.01).astype(np.float32) for name, shape in shapes.items()}


def compare_with_llama(tmp_path: Path, shape: str, quants: list[str], *, informed: bool) -> None:
    compare_folder(tmp_path, make(tmp_path / "m", **SHAPES[shape]), quants, informed=informed)


def compare_folder(tmp_path: Path, folder: Path, quants: list[str], *, informed: bool) -> None:
    plan = plan_of(folder)
    vocabulary = read_vocabulary(open_checkpoint(folder), plan.vocab_size)
    export, matrix = tmp_path / "f32.gguf", tmp_path / "matrix.npz"
    write_model(export, plan, vocabulary, plan_types(plan, "F32"), {})
    importance = random_importance(plan) if informed else None
    if importance:
        np.savez(matrix, **importance)  # type: ignore[arg-type, unused-ignore]
    targets = [(NUMBER[quant], str(tmp_path / f"{quant}.oracle")) for quant in quants]
    command = [sys.executable, "-c", ORACLE, str(export), json.dumps(targets), str(matrix) if informed else ""]
    subprocess.run(command, check=True)
    for quant in quants:
        ours = tmp_path / f"{quant}.gguf"
        write_model(ours, plan, vocabulary, plan_types(plan, quant, importance=importance), {}, importance=importance)
        expected, found = tensors(tmp_path / f"{quant}.oracle"), tensors(ours)
        different = [name for name in expected if found[name] != expected[name]]
        assert not different, (quant, different[0], found[different[0]][0], expected[different[0]][0])
        assert found.keys() == expected.keys()


@pytest.mark.parametrize("shape", ["whole blocks", "tied", "fallbacks", "deep"])
def test_every_type_is_byte_for_byte_what_llama_quantize_writes(tmp_path: Path, shape: str) -> None:
    skip = {"F32", *NEEDS_IMPORTANCE, *(SLOW if shape == "whole blocks" else {"Q1_0"})}  # Q1_0 has no fallback
    compare_with_llama(tmp_path, shape, [quant for quant in QUANTS if quant not in skip], informed=False)


@pytest.mark.parametrize("shape", ["whole blocks", "narrow", "fallbacks", "deep"])
def test_every_type_with_an_importance_matrix_is_what_llama_quantize_writes(tmp_path: Path, shape: str) -> None:
    skip = {"F32", "F16", "BF16", "Q8_0", "Q1_0", *(SLOW if shape == "whole blocks" else LARGE_TABLES & SLOW)}
    compare_with_llama(tmp_path, shape, [quant for quant in QUANTS if quant not in skip], informed=True)


@pytest.mark.parametrize("family", ["mixtral-256-tied", "gpt2", "bert", "lfm2", "phi3", "gemma3", "granite", "smollm3"])
@pytest.mark.parametrize("informed", [False, True], ids=["plain", "informed"])
def test_every_layout_of_tensors_gets_the_types_of_llama_quantize(tmp_path: Path, family: str, informed: bool) -> None:
    folder = make_variant(tmp_path / "m", VARIANTS[family])
    quants = ["F16", "Q8_0", "MXFP4_MOE", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS", "Q3_K_M", "Q3_K_L", "Q2_K"]
    experts = ["MXFP4_MOE", "Q4_K_M", "Q3_K_M"]
    compare_folder(tmp_path, folder, experts if "mixtral" in family else quants, informed=informed)


@pytest.mark.slow
def test_types_of_one_bit_are_what_llama_quantize_writes(tmp_path: Path) -> None:
    compare_with_llama(tmp_path, "narrow", ["IQ2_M", "IQ1_M"], informed=True)


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    data = path.read_bytes()
    return {item.name: (item.type, data[item.offset : item.offset + item.nbytes]) for item in read_header(path).tensors}


def test_the_number_of_threads_does_not_change_the_bytes() -> None:
    values = np.random.default_rng(1).normal(size=(SLAB_ITEMS // 256 * 3, 256)).astype(np.float32)
    tensor = TensorPlan(name="x.weight", shape=values.shape, constant=values)
    one, four = (b"".join(encoded_slabs(tensor, "Q4_K", threads)) for threads in (1, 4))
    assert one == four == encode(values, "Q4_K")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_a_number_is_refused_with_its_tensor(value: float) -> None:
    values = np.ones((4, 32), np.float32)
    values[2, 3] = value
    with pytest.raises(BrokenCheckpoint, match=r"x\.weight"):
        list(encoded_slabs(TensorPlan(name="x.weight", shape=(4, 32), constant=values), "Q8_0"))


def test_a_value_too_large_for_f16_is_refused_and_not_infinity() -> None:
    tensor = TensorPlan(name="x.weight", shape=(1, 32), constant=np.full((1, 32), 7e4, np.float32))
    with pytest.raises(ConvertError, match="F16 cannot hold"):
        list(encoded_slabs(tensor, "F16"))
    assert b"".join(encoded_slabs(tensor, "BF16"))


def test_fallbacks_are_said_with_their_share(tmp_path: Path) -> None:
    quantmap = plan_types(plan_of(make(tmp_path / "m", **SHAPES["fallbacks"])), "Q4_K_M")
    code, message = quantmap.warning() or ("", "")
    assert code == "quant-fallback"
    assert "Q4_K → Q5_0" in message
    assert quantmap.share() == 0


def test_whole_blocks_give_no_warning(tmp_path: Path) -> None:
    quantmap = plan_types(plan_of(make(tmp_path / "m", **SHAPES["whole blocks"])), "Q4_K_M")
    assert quantmap.warning() is None
    assert quantmap.share() > 0.4


def test_rows_that_no_block_divides_become_f16(tmp_path: Path) -> None:
    quantmap = plan_types(plan_of(make(tmp_path / "m", hidden_size=48, head_dim=16)), "Q4_0")
    assert quantmap.type_of("token_embd.weight") == "F16"


def test_every_type_is_explained(tmp_path: Path) -> None:
    quantmap = plan_types(plan_of(make(tmp_path / "m")), "Q4_K_M")
    assert len(quantmap.explain()) == 21
    assert all(why for _, _, why in quantmap.explain())


def test_tables_name_only_types_that_exist() -> None:
    known = set(QUANTS.values()) | set(FALLBACK.values())
    wanted = {kind for mix in MIXES.values() for rules in mix.values() for _, kind in rules}
    assert wanted <= known
    assert MIXES.keys() <= QUANTS.keys()
