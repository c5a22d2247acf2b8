"""A GGUF file read backwards gives the checkpoint that it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from converters import hf_export, tokenproof
from converters.checkpoint import INDEX, SINGLE, open_checkpoint
from converters.dequantize import decode
from converters.errors import BrokenCheckpoint, ConvertError, InvalidModel, UnsupportedModel
from converters.families import plan_model
from converters.ggml_types import GGML_TYPES
from converters.gguf import write_model, write_vocabulary
from converters.header import read_header
from converters.imports.checkpoint import import_gguf
from converters.imports.tokenizer import vocabulary_of
from converters.quantize import encode
from converters.quantmap import plan_types
from converters.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    read_vocabulary,
    source_tokenizer,
)
from converters.tokenproof import PROBE_KEYS, stress_texts
from tests.checkpoints import make
from tests.conftest import Record
from tests.families import VARIANTS, Variant, make_variant, nmse, some_ids, torch_logits, write_f32

LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 5e5,
}
READ_BACK: Mapping[str, Variant] = {
    **{
        name: variant
        for name, variant in VARIANTS.items()
        if variant.model in ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM")
        and name not in ("llama-yarn-bounds", "llama3-rope", "linear-rope")
    },
    "llama3-rope": Variant(model="LlamaForCausalLM", config={"rope_parameters": LLAMA3_ROPE, "head_dim": 32}),
    "linear-rope": Variant(
        model="LlamaForCausalLM",
        config={"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
}


@pytest.fixture(scope="session")
def gguf_file(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_f32(llama, tmp_path_factory.mktemp("gguf é") / "model é.gguf")


def export(path: Path, folder: Path, dtype: str = "f32", **options: Any) -> Path:
    folder.mkdir()
    hf_export.write_folder(folder, import_gguf(path).checkpoint, dtype, **options)
    return folder


@pytest.fixture(scope="session")
def round_trips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, Path]]:
    """Original folder, file, and the folder read back of each variant, made once."""
    found = {}
    for name, variant in READ_BACK.items():
        place = tmp_path_factory.mktemp("round é")
        original = make_variant(place / "original", variant)
        path = write_f32(original, place / "model.gguf")
        found[name] = original, path, export(path, place / "back é")
    return found


@pytest.mark.parametrize("name", sorted(READ_BACK))
def test_what_is_read_back_computes_the_logits_of_the_original(
    round_trips: dict[str, tuple[Path, Path, Path]], name: str, record_proof: Record
) -> None:
    original, _, folder = round_trips[name]
    ids = some_ids(plan_model(open_checkpoint(original)).vocab_size)
    error = nmse(torch_logits(original, ids), torch_logits(folder, ids))
    assert error < 1e-12
    record_proof(
        model=READ_BACK[name].model, source="GGUF, read back", variant=name, proof="F32 logits NMSE", error=error
    )


@pytest.mark.parametrize("name", sorted(READ_BACK))
def test_converting_what_was_read_back_gives_the_same_keys_and_tensors(
    round_trips: dict[str, tuple[Path, Path, Path]], name: str
) -> None:
    _, path, folder = round_trips[name]
    plan, header = plan_model(open_checkpoint(folder)), read_header(path)
    assert {f"{header.arch}.{key}" for key in plan.keys} == {key for key in header.kv if key.startswith(header.arch)}
    assert [tensor.name for tensor in plan.tensors] == [tensor.name for tensor in header.tensors]


def test_a_rope_scaling_without_words_in_config_json_is_refused(tmp_path: Path) -> None:
    path = write_f32(make_variant(tmp_path / "original", VARIANTS["llama-yarn-bounds"]), tmp_path / "model.gguf")
    with pytest.raises(UnsupportedModel, match="rope_freqs"):
        import_gguf(path)


def test_tensors_are_those_of_the_original(llama: Path, gguf_file: Path, tmp_path: Path) -> None:
    expected, found = load_file(llama / SINGLE), load_file(export(gguf_file, tmp_path / "back") / SINGLE)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_a_slab_of_permuted_rows_is_those_rows(gguf_file: Path) -> None:
    tensor = import_gguf(gguf_file).checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"]
    assert np.array_equal(tensor.rows(5, 41), tensor.rows(0, tensor.shape[0])[5:41])


@pytest.mark.parametrize("split", ["llama3", "qwen2", "gpt2", "smollm"])
def test_the_tokenizer_gives_the_ids_of_the_original(tmp_path: Path, split: str) -> None:
    original = make(tmp_path / "original", split=split)
    back = open_checkpoint(export(write_f32(original, tmp_path / "model.gguf"), tmp_path / "back"))
    vocabulary = read_vocabulary(open_checkpoint(original), plan_model(back).vocab_size)
    again = read_vocabulary(back, plan_model(back).vocab_size)
    texts = stress_texts(vocabulary)
    ids = [[item.ids for item in source_tokenizer(each.spec).encode_batch(texts)] for each in (vocabulary, again)]
    assert ids[0] == ids[1]
    assert (again.tokens, again.merges, again.chat_template) == (
        vocabulary.tokens,
        vocabulary.merges,
        vocabulary.chat_template,
    )
    assert set(vocabulary.stop_ids) <= set(again.stop_ids)


def pieces() -> dict[str, tuple[float, int]]:
    """A SentencePiece vocabulary: named tokens, runs that are their own tokens, bytes, letters, and words built up by merges."""
    found: dict[str, tuple[float, int]] = {"<unk>": (0.0, UNKNOWN), "<s>": (0.0, CONTROL), "</s>": (0.0, CONTROL)}
    found |= {run * count: (-1000.0, USER_DEFINED) for run in (" ", "\n") for count in (2, 3, 4)}
    found |= {f"<0x{byte:02X}>": (0.0, BYTE) for byte in range(256)}
    words = ["▁the", "▁quick", "▁brown", "ing", "▁th", "▁t", "▁qu", "he", "in", "ick", "ck", "▁b", "own", "ow", "br"]
    for rank, word in enumerate([*words, "▁", *"abcdefghijklmnopqrstuvwxyzABCDEé.,!?模型"]):
        found[word] = (-float(rank), NORMAL)
    return found


def sentencepiece(*, prefix: bool) -> Vocabulary:
    table = pieces()
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tuple(table),
        types=tuple(kind for _, kind in table.values()),
        scores=tuple(score for score, _ in table.values()),
        real_size=len(table),
        bos=1,
        eos=2,
        unk=0,
        pad=None,
        before=(1,),
        add_bos=True,
        add_eos=False,
        add_space_prefix=prefix,
        stop_ids=(2,),
        normalizer=None,
        chat_template=None,
        named_templates={},
        spec={},
    )


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_vocabulary_gives_the_ids_of_the_runtime(tmp_path: Path, *, prefix: bool) -> None:
    path = tmp_path / "vocabulary.gguf"
    given = sentencepiece(prefix=prefix)
    write_vocabulary(path, "llama", given, {**PROBE_KEYS, "vocab_size": len(given.tokens)})
    vocabulary = vocabulary_of(read_header(path))
    tokenproof.ask([tokenproof.ids_question(path, vocabulary)])
    assert vocabulary.before == (1,)
    assert vocabulary.spec["model"]["byte_fallback"]


def test_a_wrong_merge_order_fails_the_proof(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    given = sentencepiece(prefix=True)
    write_vocabulary(path, "llama", given, {**PROBE_KEYS, "vocab_size": len(given.tokens)})
    vocabulary = vocabulary_of(read_header(path))
    model = vocabulary.spec["model"]
    wrong = replace(vocabulary, spec={**vocabulary.spec, "model": {**model, "merges": model["merges"][::-1]}})
    with pytest.raises(ConvertError, match="other token ids"):
        tokenproof.ask([tokenproof.ids_question(path, wrong)])


PYTHON_DECODES = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "BF16",
    "F16", "F32", "TQ1_0", "TQ2_0", "MXFP4",
]  # fmt: skip


@pytest.mark.parametrize("kind", PYTHON_DECODES)
def test_numbers_are_decoded_as_the_python_package_gguf_decodes_them(kind: str) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = np.random.default_rng(2).normal(size=(3, 512)).astype(np.float32)
    data = encode(rows, kind)
    raw = np.frombuffer(data, np.uint8).reshape(3, -1)
    if kind in ("F16", "F32"):
        raw = raw.view({"F16": "<f2", "F32": "<f4"}[kind])
    assert np.array_equal(decode(data, kind, 512), dequantize(raw, GGMLQuantizationType[kind]))


def test_every_type_of_weights_can_be_decoded() -> None:
    from converters.dequantize import decodable

    assert {item.name for item in GGML_TYPES.values() if not decodable(item.name)} == {
        "I8", "I16", "I32", "I64", "Q8_1", "Q8_K",
    }  # fmt: skip


def test_shards_and_their_index_are_read_as_one_model(gguf_file: Path, tmp_path: Path) -> None:
    whole = open_checkpoint(export(gguf_file, tmp_path / "whole"))
    folder = export(gguf_file, tmp_path / "shards", shard_bytes=50_000)
    parts = open_checkpoint(folder)
    assert (folder / INDEX).is_file()
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert parts.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert np.array_equal(tensor.rows(0, tensor.shape[0]), parts.tensors[name].rows(0, tensor.shape[0]))


@pytest.mark.parametrize(("dtype", "torch_name"), [("f16", "float16"), ("bf16", "bfloat16")])
def test_rounding_is_that_of_torch(gguf_file: Path, tmp_path: Path, dtype: str, torch_name: str) -> None:
    import torch

    exact = open_checkpoint(export(gguf_file, tmp_path / "exact")).tensors
    rounded = open_checkpoint(export(gguf_file, tmp_path / "rounded", dtype)).tensors
    for name, tensor in exact.items():
        values = torch.from_numpy(tensor.rows(0, tensor.shape[0])).to(getattr(torch, torch_name)).float().numpy()
        assert np.array_equal(values, rounded[name].rows(0, tensor.shape[0]))


def test_a_number_too_large_for_f16_is_refused() -> None:
    with pytest.raises(ConvertError, match="f16 cannot hold"):
        hf_export.encode(np.array([[7e4]], np.float32), "f16", "x")


def test_a_value_that_is_no_number_is_refused() -> None:
    with pytest.raises(BrokenCheckpoint, match="not finite"):
        hf_export.encode(np.array([[np.nan]], np.float32), "bf16", "x")


def edited(path: Path, target: Path, **changes: Any) -> Path:
    """Write the model in PATH again with other keys of its architecture."""
    imported = import_gguf(path)
    keys = {key: value for key, value in {**imported.plan.keys, **changes}.items() if value is not None}
    plan = replace(imported.plan, keys=keys)
    write_model(target, plan, imported.vocabulary, plan_types(plan, "F32"), {})
    return target


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope.dimension_count": 8}, "rope.dimension_count 8"),
        ({"attention.value_length": 8}, "value_length 8"),
        ({"expert_count": 4}, "4 experts"),
        ({"rope.scaling.type": "longrope"}, "longrope"),
        ({"attention.head_count_kv": (1, 2)}, "for each layer"),
    ],
)
def test_what_a_folder_cannot_say_is_refused_by_name(
    gguf_file: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        import_gguf(edited(gguf_file, tmp_path / "edited.gguf", **changes))


def test_a_missing_key_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="block_count None"):
        import_gguf(edited(gguf_file, tmp_path / "edited.gguf", block_count=None))


def test_keys_without_a_place_are_named(gguf_file: Path, tmp_path: Path) -> None:
    notices = import_gguf(edited(gguf_file, tmp_path / "edited.gguf", foreign=7)).notices
    assert [code for code, _ in notices] == ["keys-left-out"]
    assert "llama.foreign" in notices[0][1]


def test_an_unknown_pre_tokenizer_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    imported = import_gguf(gguf_file)
    path = tmp_path / "edited.gguf"
    vocabulary = replace(imported.vocabulary, pre="chatglm-bpe")
    write_model(path, imported.plan, vocabulary, plan_types(imported.plan, "F32"), {})
    with pytest.raises(UnsupportedModel, match="chatglm-bpe"):
        import_gguf(path)


def test_the_folder_says_what_it_was_made_of_and_nothing_of_where(gguf_file: Path, tmp_path: Path) -> None:
    folder = export(gguf_file, tmp_path / "back", more={"edgeai.json": {"kind": "import"}})
    assert json.loads((folder / "edgeai.json").read_text()) == {"kind": "import"}
    assert not any(str(tmp_path) in path.read_text(errors="replace") for path in folder.glob("*.json"))


@pytest.mark.parametrize(
    "settings",
    [
        (8.0, 1.0, 4.0, 8192, 5e5, 128),
        (32.0, 1.0, 4.0, 8192, 5e5, 64),
        (4.0, 2.0, 6.0, 3000, 1e4, 64),
        (8.0, 1.0, 4.0, 100, 1e6, 4),
    ],
)
def test_llama3_scaling_is_found_from_its_divisors(settings: tuple[float, float, float, int, float, int]) -> None:
    from converters.families.rope import llama3_divisors
    from converters.imports.config import llama3

    factor, low, high, original, theta, size = settings
    scaling = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    scaling |= {"original_max_position_embeddings": original, "rope_theta": theta}
    divisors = llama3_divisors(scaling, size, 131072).constant
    assert divisors is not None
    found = llama3({"rope_theta": theta, "max_position_embeddings": 131072}, divisors, "x")
    again = llama3_divisors(found | {"rope_theta": theta}, size, 131072).constant
    assert again is not None
    assert np.allclose(divisors, again, rtol=2e-6)


def test_divisors_that_are_no_llama3_scaling_are_refused() -> None:
    from converters.imports.config import llama3

    with pytest.raises(UnsupportedModel, match="no llama3 rope scaling"):
        llama3({"rope_theta": 1e4, "max_position_embeddings": 64}, np.array([3, 1, 2, 5], np.float32), "x")
