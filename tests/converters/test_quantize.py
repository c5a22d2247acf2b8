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
from converters.quantize import SLAB_ITEMS, encode, encoded_slabs
from converters.mixes import FALLBACK, MIXES, QUANTS
from converters.quantmap import plan_types
from converters.tokenizer import read_vocabulary
from tests.checkpoints import make

ORACLE = """
import ctypes, json, sys
import llama_cpp.llama_cpp as lib
keep = lib.llama_log_callback(lambda level, text, data: None)
lib.llama_log_set(keep, ctypes.c_void_p(0))
lib.llama_backend_init()
source, targets = sys.argv[1], json.loads(sys.argv[2])
for number, target in targets:
    params = lib.llama_model_quantize_default_params()
    params.ftype = number
    if lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        sys.exit(f"llama_model_quantize failed for {number}")
"""
SHAPES: dict[str, dict[str, Any]] = {
    "whole blocks": {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 9, "num_attention_heads": 8},
    "tied": {"hidden_size": 256, "intermediate_size": 320, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "fallbacks": {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6},
}


def plan_of(folder: Path) -> ModelPlan:
    return plan_model(open_checkpoint(folder))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_type_is_byte_for_byte_what_llama_quantize_writes(tmp_path: Path, shape: str) -> None:
    folder = make(tmp_path / "m", **SHAPES[shape])
    plan = plan_of(folder)
    vocabulary = read_vocabulary(open_checkpoint(folder), plan.vocab_size)
    export = tmp_path / "f32.gguf"
    write_model(export, plan, vocabulary, plan_types(plan, "F32"), {})
    number = {name: number for number, name in FILE_TYPES.items()}
    slow = {"IQ3_S", "IQ3_M"} if shape == "whole blocks" else set()  # their search takes seconds a layer
    quants = [quant for quant in QUANTS if quant not in {"F32", *slow}]
    targets = [(number[quant], str(tmp_path / f"{quant}.oracle")) for quant in quants]
    subprocess.run([sys.executable, "-c", ORACLE, str(export), json.dumps(targets)], check=True)
    for quant in quants:
        ours = tmp_path / f"{quant}.gguf"
        write_model(ours, plan, vocabulary, plan_types(plan, quant), {})
        expected, found = tensors(tmp_path / f"{quant}.oracle"), tensors(ours)
        assert found == expected, quant


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
    known = set(QUANTS.values()) | set(FALLBACK.values()) | {"Q4_0", "Q5_0"}
    wanted = {kind for mix in MIXES.values() for rules in mix.values() for _, kind in rules}
    assert wanted <= known
    assert MIXES.keys() <= QUANTS.keys()
