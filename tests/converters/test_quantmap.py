from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from converters import mixes
from converters.errors import UnsupportedModel, WrongChoice
from converters.families import ModelPlan, TensorPlan
from converters.quantmap import Override, QuantMap, parse_override, plan_types

LAYER = {
    "attn_norm": (0,),
    "attn_q": (2, 1),
    "attn_k": (3, 1),
    "attn_v": (3, 1),
    "attn_output": (1, 2),
    "ffn_gate": (4, 1),
    "ffn_up": (4, 1),
    "ffn_down": (1, 4),
}
"""Part → its shape, as indices into (vector, hidden, query, key/value, feed forward)."""


def dense(
    architecture: str = "llama",
    *,
    hidden: int = 256,
    ff: int = 512,
    vocab: int = 64,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 4,
    head_dim: int = 64,
    tied: bool = False,
    experts: int = 0,
    **keys: int,
) -> ModelPlan:
    """Return the plan of a decoder of these sizes; the shapes are all that there is of its tensors."""
    sizes = (hidden, hidden, heads * head_dim, kv_heads * head_dim, ff)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (vocab, hidden)
    for layer in range(layers):
        for part, dims in LAYER.items():
            shape = tuple(sizes[dim] for dim in dims)
            if experts and part.startswith("ffn"):
                part, shape = f"{part}_exps", (experts, *shape)
            shapes[f"blk.{layer}.{part}.weight"] = shape
        if experts:
            shapes[f"blk.{layer}.ffn_gate_inp.weight"] = (experts, hidden)
    return ModelPlan(
        architecture=architecture,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        context=128,
        vocab_size=vocab,
        tied=tied,
        keys={**keys, **({"expert_count": experts} if experts else {})},
        tensors=tuple(
            TensorPlan(name=name, shape=shape, constant=np.broadcast_to(np.float32(0), shape))
            for name, shape in shapes.items()
        ),
    )


def types_of(quantmap: QuantMap) -> dict[str, str]:
    return {name: kind for name, kind, _ in quantmap.explain()}


SNAPSHOTS = {
    "qwen3-0.6b": dense("qwen3", hidden=1024, ff=3072, layers=28, heads=16, kv_heads=8, head_dim=128),
    "qwen3-14b": dense("qwen3", hidden=5120, ff=17408, layers=40, heads=40, kv_heads=8, head_dim=128),
    "gemma-3-4b-it": dense("gemma3", hidden=2560, ff=10240, layers=34, heads=8, kv_heads=4, head_dim=256, tied=True),
    "meta-llama-3.1-70b-instruct": dense("llama", hidden=8192, ff=28672, layers=80, heads=64, kv_heads=8, head_dim=128),
}


def snapshot(path: Path) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Yield (name, base type, tensor → other type) from one of llama.cpp's tests/snapshots/*.schema."""
    for section in re.split(r"^\[", path.read_text(), flags=re.M)[1:]:
        head, *lines = section.strip().splitlines()
        name, base = head.split("] ")
        yield name, base.upper(), {tensor: kind.upper() for tensor, kind in (line.split() for line in lines if line)}


@pytest.mark.parametrize("model", SNAPSHOTS)
def test_mixes_are_those_that_llama_cpp_expects_of_itself(model: str) -> None:
    peers = Path(os.environ.get("EDGEAI_PEERS", Path.home() / ".cache" / "edgeai" / "peers"))
    found = sorted(peers.glob(f"llama-cpp-python*/*/vendor/llama.cpp/tests/snapshots/{model}.schema"))
    if not found:
        pytest.skip("needs the unpacked sdist of llama-cpp-python: python bench/peers.py")
    plan, seen = SNAPSHOTS[model], 0
    for name, base, others in snapshot(found[-1]):
        ours = types_of(plan_types_without_refusal(plan, name))
        matrices = {tensor.name for tensor in plan.tensors if len(tensor.shape) > 1}
        assert {tensor: kind for tensor, kind in ours.items() if tensor in matrices and kind != base} == others, name
        seen += 1
    assert seen > 30


def plan_types_without_refusal(plan: ModelPlan, quant: str) -> QuantMap:
    """Plan as without an importance matrix, which the snapshots are made without, even for types that need one."""
    from unittest import mock

    with mock.patch("converters.quantmap.check_importance"):
        return plan_types(plan, quant)


def test_a_wrong_entry_in_the_mixes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {**mixes.MIXES, "Q4_K_M": {**mixes.MIXES["Q4_K_M"], mixes.V: ((mixes.always, "Q5_K"),)}}
    right = types_of(plan_types(SNAPSHOTS["qwen3-0.6b"], "Q4_K_M"))
    monkeypatch.setattr("converters.quantmap.MIXES", changed)
    assert types_of(plan_types(SNAPSHOTS["qwen3-0.6b"], "Q4_K_M")) != right


def test_eight_experts_keep_their_keys_and_values_in_8_bits() -> None:
    found = types_of(plan_types(dense(experts=8, layers=8, kv_heads=1), "Q4_K_M"))
    assert found["blk.0.attn_k.weight"] == found["blk.0.attn_v.weight"] == "Q8_0"
    assert found["blk.0.attn_output.weight"] == "Q5_K"
    assert found["blk.0.ffn_gate_inp.weight"] == "F32"
    assert found["blk.7.ffn_down_exps.weight"] == "Q6_K"


def test_mxfp4_is_for_experts_and_the_rest_has_8_bits() -> None:
    found = types_of(plan_types(dense(experts=4), "MXFP4_MOE"))
    assert found["blk.1.ffn_up_exps.weight"] == "MXFP4"
    assert {found["output.weight"], found["token_embd.weight"], found["blk.1.attn_q.weight"]} == {"Q8_0"}


def test_what_is_small_and_matters_is_never_quantized() -> None:
    plan = dense("bert", tied=True)
    small = [
        "position_embd.weight",
        "token_types.weight",
        "token_embd_norm.weight",
        "blk.0.shortconv.conv.weight",
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_q.bias",
    ]
    extra = tuple(
        TensorPlan(
            name=name,
            shape=(256, 256) if name.endswith("weight") else (256,),
            constant=np.zeros((256, 256), np.float32),
        )
        for name in small
    )
    for quant in ("F16", "Q4_K_M"):
        found = types_of(plan_types(edited(plan, tensors=plan.tensors + extra), quant))
        assert {found[name] for name in small} == {"F32"}


def edited(plan: ModelPlan, **changes: object) -> ModelPlan:
    from dataclasses import replace

    return replace(plan, **changes)  # type: ignore[arg-type]


def test_a_model_whose_first_layer_has_no_attention_counts_as_one_without_shared_heads() -> None:
    plan = dense(heads=8, kv_heads=2, head_dim=32)
    assert types_of(plan_types(plan, "Q2_K"))["blk.1.attn_v.weight"] == "Q4_K"
    hybrid = edited(plan, keys={"attention.head_count_kv": (0, 2, 2, 2)})
    assert types_of(plan_types(hybrid, "Q2_K"))["blk.1.attn_v.weight"] == "Q3_K"


@pytest.mark.parametrize("quant", mixes.NEEDS_IMPORTANCE)
def test_types_that_need_an_importance_matrix_are_refused_without_one(quant: str) -> None:
    plan = dense(layers=8)
    with pytest.raises(WrongChoice, match="needs an importance matrix") as caught:
        plan_types(plan, quant)
    assert caught.value.exit_code == 2
    assert "--imatrix" in (caught.value.hint or "")
    rows = {tensor.name for tensor in plan.tensors if tensor.name.startswith("blk.")}
    assert plan_types(plan, quant, importance=rows).quant == quant
    with pytest.raises(WrongChoice, match=r"says nothing about this tensor"):
        plan_types(plan, quant, importance=rows - {name for name in rows if "attn_q" in name or "ffn" in name})


def test_a_type_without_a_stand_in_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match=r"rows of 96 .* blocks of 128"):
        plan_types(dense(hidden=96), "Q1_0")


def test_a_pattern_chooses_with_or_without_the_suffix_and_the_last_one_wins() -> None:
    overrides = [parse_override(text) for text in ("blk.*=Q5-K", "*.ffn_down=q8_0", "blk.0.ffn_down.weight=bf16")]
    found = types_of(plan_types(dense(), "Q4_0", overrides=overrides))
    assert (found["blk.0.attn_q.weight"], found["blk.1.ffn_down.weight"]) == ("Q5_K", "Q8_0")
    assert found["blk.0.ffn_down.weight"] == "BF16"
    assert (found["output.weight"], found["blk.0.attn_norm.weight"]) == ("Q6_K", "F32")


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16"])
def test_patterns_work_with_the_plain_types_too(quant: str) -> None:
    quantmap = plan_types(dense(), quant, overrides=[Override(pattern="output", type="Q6_K")])
    assert types_of(quantmap)["output.weight"] == "Q6_K"
    assert quantmap.bytes_of("output.weight") == 64 * 210


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("blk.*.fnn_down=q6_k", "matches no tensor", r"blk\.\*\.ffn_down"),
        ("blk.0.attn_norm=q8_0", "always stays F32", "matrices"),
        ("blk.*.ffn_down=iq2_xs", "needs an importance matrix", "--imatrix"),
        ("token_embd=iq1_s", "needs an importance matrix", "--imatrix"),
    ],
)
def test_a_pattern_that_cannot_be_followed_is_an_error(text: str, message: str, hint: str) -> None:
    with pytest.raises(WrongChoice, match=message) as caught:
        plan_types(dense(), "Q8_0", overrides=[parse_override(text)])
    assert re.search(hint, caught.value.hint or "")


def test_a_pattern_never_falls_back() -> None:
    with pytest.raises(WrongChoice, match=r"rows of 96 are not whole blocks of 256") as caught:
        plan_types(dense(hidden=96), "Q4_K_M", overrides=[parse_override("*.attn_q=q6_k")])
    assert "q8_0" in (caught.value.hint or "")
    assert "q6_k" not in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["q4_0", "=q4_0", "blk.*=", "blk.*=q4_k_m", "blk.*=q8_k", "blk.*=i32", ""])
def test_what_is_no_pattern_and_type_is_refused(text: str) -> None:
    with pytest.raises(WrongChoice) as caught:
        parse_override(text)
    assert caught.value.hint


def test_a_near_type_is_suggested() -> None:
    with pytest.raises(WrongChoice) as caught:
        parse_override("blk.*=q4_k_m")
    assert "did you mean 'q4_k'" in (caught.value.hint or "")


def test_the_weakest_type_that_was_asked_for_is_the_measure_of_the_file() -> None:
    assert plan_types(dense(), "F32").weakest == "F32"
    assert plan_types(dense(), "F32", overrides=[parse_override("*.ffn_down=q5_1")]).weakest == "Q5_1"
    assert plan_types(dense(), "Q4_0", overrides=[parse_override("*.ffn_down=q8_0")]).weakest == "Q4_0"


def test_the_output_of_tied_embeddings_is_named_in_the_hint() -> None:
    with pytest.raises(WrongChoice, match="embedding is its output matrix") as caught:
        plan_types(dense(tied=True), "Q8_0", overrides=[parse_override("output=q6_k")])
    assert caught.value.hint == "--type token_embd=q6_k"
