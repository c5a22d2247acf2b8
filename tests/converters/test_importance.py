from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import importance_child
from converters.calibration import check_calibration, load, reachable
from converters.checkpoint import open_checkpoint
from converters.errors import EdgeAIError, InvalidModel, WrongChoice
from converters.families import ModelPlan, plan_model
from converters.importance import (
    ImportanceMatrix,
    is_importance_file,
    read_importance,
    read_text,
    usable,
    write_importance,
)
from converters.quantize import encode
from tests.converters.test_quantmap import dense

NAME = "blk.0.attn_q.weight"
ROWS = np.linspace(0.5, 2, 256, dtype=np.float32)[None]


def matrix(**changes: Any) -> ImportanceMatrix:
    """Return the matrix of all of `dense()`, 4 columns at a time alike, seen 10 times."""
    plan = dense(layers=1)
    shapes = {
        tensor.name: tensor.shape for tensor in plan.tensors if tensor.name.startswith("blk.") and len(tensor.shape) > 1
    }
    sums = {name: np.full((1, shape[-1]), 20, np.float32) for name, shape in shapes.items()}
    counts = {name: np.array([10], np.float32) for name in shapes}
    return replace(ImportanceMatrix(sums=sums, counts=counts, chunks=3, window=512, datasets=("a text",)), **changes)


def legacy(path: Path, entries: list[tuple[bytes, int, Any]], tail: bytes = b"") -> Path:
    """Write a .dat file as `save_imatrix_legacy` in llama.cpp's tools/imatrix/imatrix.cpp does."""
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        raw = np.asarray(values, "<f4")
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, raw.size) + raw.tobytes()
    path.write_bytes(data + tail)
    return path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_importance(path, matrix())
    found = read_importance(path)
    assert is_importance_file(path)
    assert (found.chunks, found.window, found.datasets) == (3, 512, ("a text",))
    assert all((found.sums[name] == values).all() for name, values in matrix().sums.items())
    assert found.sums.keys() == matrix().sums.keys() == found.counts.keys()


def test_the_written_file_has_what_llama_quantize_looks_for(tmp_path: Path) -> None:
    from gguf import GGUFReader

    path = tmp_path / "m.gguf"
    write_importance(path, matrix())
    reader = GGUFReader(path)  # another reader than ours
    assert {"imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"} <= reader.fields.keys()
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found[f"{NAME}.in_sum2"].shape) == [256, 1]
    assert list(found[f"{NAME}.counts"].shape) == [1, 1]
    assert float(found[f"{NAME}.counts"].data.ravel()[0]) == 10


def test_the_older_form_gives_the_same_means(tmp_path: Path) -> None:
    calls, means = 7, ROWS
    tail = struct.pack("<ii", 3, 5) + b"a.txt"
    path = legacy(tmp_path / "m.dat", [(NAME.encode(), calls, means * calls)], tail)
    found = read_importance(path)
    assert is_importance_file(path)
    assert (found.chunks, found.datasets) == (3, ("a.txt",))
    rows = usable(found, dense(layers=1), "it").rows[NAME]
    assert np.allclose(rows, means, rtol=1e-6)


@pytest.mark.parametrize("text", ["A few words.", "\ufeffmark", "x", "GGUF", "ab" * 400])
def test_a_text_is_not_taken_for_a_matrix(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t"
    path.write_text(text, encoding="utf-8")
    assert is_importance_file(path) == text.startswith("GGUF")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"caf\xe9 au lait", r"byte 3 is 0xe9"),
        (b"a\0b", "zero bytes"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "notes"
    path.write_bytes(data)
    with pytest.raises(WrongChoice, match=message):
        read_text(path)


@pytest.mark.parametrize("name", ["absent", "folder"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(WrongChoice, match=name):
        is_importance_file(tmp_path / name)


@pytest.mark.parametrize("size", [0, 3, 4, 8, 11, 12, 20, 60, 200, 1000])
def test_a_matrix_that_is_cut_off_is_damaged_and_nothing_worse(tmp_path: Path, size: int) -> None:
    whole = legacy(tmp_path / "whole", [(NAME.encode(), 1, ROWS), (b"b", 1, ROWS)]).read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(whole[:size])
    with pytest.raises(EdgeAIError):
        read_importance(path)


@pytest.mark.parametrize("seed", range(40))
def test_no_bytes_end_in_anything_but_a_matrix_or_an_error(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path / "m"
    if seed % 2:
        write_importance(path, matrix())
    else:
        legacy(path, [(NAME.encode(), 1, ROWS), (b"b", 1, ROWS)], struct.pack("<ii", 1, 1) + b"t")
    data = bytearray(path.read_bytes())
    for _ in range(4):
        data[rng.integers(min(len(data), 400))] = rng.integers(256)
    path.write_bytes(data)
    with contextlib.suppress(EdgeAIError):
        usable(read_importance(path), dense(layers=1), "it")


@pytest.mark.parametrize(
    ("entries", "tail", "message"),
    [
        ([(NAME.encode(), 1, [np.nan] * 256)], b"", "not finite"),
        ([(NAME.encode(), 1, [-1.0] * 256)], b"", "negative"),
        ([(NAME.encode(), 1, ROWS)] * 2, b"", "is there twice"),
        ([(b"", 1, ROWS)], b"", "name of 0 bytes"),
        ([(NAME.encode(), 1, [])], b"", "has 0 values"),
        ([(NAME.encode(), 1, ROWS)], struct.pack("<ii", 1, 0) + b"more", "4 bytes after"),
        ([(NAME.encode(), 1, ROWS)], struct.pack("<ii", 1, 1 << 30), "would take"),
    ],
)
def test_a_matrix_with_impossible_values_is_refused(
    tmp_path: Path, entries: list[tuple[bytes, int, Any]], tail: bytes, message: str
) -> None:
    with pytest.raises(InvalidModel, match=message):
        read_importance(legacy(tmp_path / "m.dat", entries, tail))


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    from converters.gguf import collector, write_header

    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        write_header(file, collector("llama"), [])
    with pytest.raises(InvalidModel, match="'llama' and no importance matrix"):
        read_importance(path)


def test_sums_without_counts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_importance(path, matrix())
    path.write_bytes(path.read_bytes().replace(b"attn_q.weight.counts", b"attn_q.weight.cuonts"))
    with pytest.raises(InvalidModel, match="no counts"):
        read_importance(path)


def test_a_matrix_of_another_model_is_refused() -> None:
    with pytest.raises(WrongChoice, match="512 columns") as caught:
        usable(matrix(), dense(layers=1, hidden=512), "it")
    assert "another model" in (caught.value.hint or "")
    strange = ImportanceMatrix(sums={"other": ROWS}, counts={"other": np.ones(1, np.float32)})
    with pytest.raises(WrongChoice, match="says nothing about any of the"):
        usable(strange, dense(), "it")


def test_what_does_not_fit_is_said_and_never_silent() -> None:
    base = matrix()
    sums = {**base.sums, "blk.9.attn_q.weight": ROWS, "blk.0.attn_v.weight": np.zeros((1, 256), np.float32)}
    sums["blk.0.ffn_up.weight"] = np.r_[np.zeros(1), np.ones(255)].astype(np.float32)[None]
    del sums["blk.0.attn_k.weight"]
    found = usable(matrix(sums=sums, counts={**base.counts, "blk.9.attn_q.weight": np.ones(1)}), dense(layers=1), "it")
    said = dict(found.warnings)
    assert "blk.9.attn_q.weight" in said["importance-unmatched"]
    assert "blk.0.attn_v.weight" in said["importance-zero"]
    assert "blk.0.ffn_up.weight" in said["importance-columns"]
    assert "1 (blk.0.attn_k.weight)" in said["importance-missing"]
    assert not {"blk.0.attn_v.weight", "blk.0.attn_k.weight"} & found.rows.keys()


def test_a_matrix_without_counts_is_said_to_be_one_and_experts_are_not_blamed() -> None:
    base = matrix()
    none = {name: np.zeros(1, np.float32) for name in base.counts}
    said = dict(usable(matrix(sums=base.sums, counts=none), dense(layers=1), "it").warnings)
    assert "importance-uncounted" in said
    assert "importance-unreached" not in said


def test_a_negative_count_is_damage(tmp_path: Path) -> None:
    path, base = tmp_path / "m.gguf", matrix()
    write_importance(path, matrix(sums=base.sums, counts={name: -count for name, count in base.counts.items()}))
    with pytest.raises(InvalidModel, match="negative count"):
        read_importance(path)


def test_an_expert_that_no_token_reached_counts_all_columns_alike() -> None:
    plan = dense(layers=1, experts=3)
    name = "blk.0.ffn_up_exps.weight"
    sums = {name: np.stack([ROWS[0] * 4, ROWS[0] * 0, ROWS[0] * 2])}
    found = usable(ImportanceMatrix(sums=sums, counts={name: np.array([4, 0, 2], np.float32)}), plan, "it")
    assert np.allclose(found.rows[name], [ROWS[0], np.ones(256), ROWS[0]])
    assert "importance-unreached" in dict(found.warnings)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K", "IQ4_NL", "IQ3_S"])
def test_importance_chooses_other_codes_and_a_permuted_one_others_again(kind: str) -> None:
    rng = np.random.default_rng(5)
    rows, weights = rng.normal(size=(4, 256)).astype(np.float32), rng.gamma(0.3, size=(1, 256)).astype(np.float32)
    plain, informed, permuted = (bytes(encode(rows, kind, item)) for item in (None, weights, weights[:, ::-1]))
    assert len({plain, informed, permuted}) == 3


def test_each_expert_is_encoded_with_its_own_importance() -> None:
    rng = np.random.default_rng(6)
    rows, weights = rng.normal(size=(3, 4, 256)).astype(np.float32), rng.gamma(0.3, size=(3, 256)).astype(np.float32)
    whole = bytes(encode(rows, "Q4_K", weights))
    assert whole == b"".join(bytes(encode(rows[part], "Q4_K", weights[part : part + 1])) for part in range(3))
    assert whole != bytes(encode(rows, "Q4_K", weights[::-1]))


def request(folder: Path, plan: ModelPlan, text: Path, **changes: Any) -> dict[str, Any]:
    return {
        "source": str(folder),
        "text": str(text),
        "sources": reachable(plan),
        "before": [],
        "after": [],
        "window": 32,
        "tokens": 96,
        "threads": 1,
        **changes,
    }


@pytest.fixture
def text(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over <|im_end|> the lazy dog. " * 40, encoding="utf-8")
    return path


def test_the_inputs_of_the_first_layer_are_the_normalised_embeddings(llama: Path, tmp_path: Path, text: Path) -> None:
    checkpoint = open_checkpoint(llama)
    plan = plan_model(checkpoint)
    asked = request(llama, plan, text)
    windows, _ = importance_child.windows(asked)
    answer = importance_child.calibrate(asked, tmp_path)
    found = load(tmp_path / "sums.npz", answer["targets"], answer["windows"], answer["window"], "0")
    assert (answer["windows"], answer["tokens"], found.counts[NAME].tolist()) == (3, 96, [96])
    ids = np.array(windows).ravel()
    weights = {name: checkpoint.tensors[name].rows(0, checkpoint.tensors[name].shape[0]) for name in CLOSED_FORM}
    embedded = weights["model.embed_tokens.weight"][ids].astype(np.float64)
    normal = embedded / np.sqrt((embedded**2).mean(-1, keepdims=True) + checkpoint.config["rms_norm_eps"])
    expected = ((normal * weights["model.layers.0.input_layernorm.weight"]) ** 2).sum(0)
    for name in ("attn_q", "attn_k", "attn_v"):
        assert np.allclose(found.sums[f"blk.0.{name}.weight"][0], expected, rtol=1e-5)
    assert found.sums.keys() == reachable(plan).keys()
    assert not usable(found, plan, "it").warnings


CLOSED_FORM = ("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight")


def test_special_tokens_in_the_text_are_text_and_the_beginning_comes_first(llama: Path, text: Path) -> None:
    plan = plan_model(open_checkpoint(llama))
    windows, available = importance_child.windows(request(llama, plan, text, before=[1]))
    assert all(window[0] == 1 and len(window) == 32 for window in windows)
    assert not any(2 in window for window in windows)  # <|im_end|>
    assert available > 96


def test_windows_come_from_all_over_a_long_text(llama: Path, tmp_path: Path) -> None:
    plan = plan_model(open_checkpoint(llama))
    path = tmp_path / "long.txt"
    path.write_text("a" * 40_000 + "b" * 40_000, encoding="utf-8")
    windows, _ = importance_child.windows(request(llama, plan, path))
    assert len({tuple(window) for window in windows}) > 1


def test_a_text_of_a_few_words_is_refused(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("hi", encoding="utf-8")
    with pytest.raises(importance_child.NoText, match="at least 16"):
        importance_child.windows(request(llama, plan_model(open_checkpoint(llama)), path))
    with pytest.raises(WrongChoice, match="0 calibration tokens"):
        check_calibration(path, 0)


def test_every_expert_sees_its_own_tokens(tmp_path: Path) -> None:
    import torch
    from transformers import MixtralConfig, MixtralModel

    config = MixtralConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MixtralModel(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    targets = [f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up", "down")]
    experts = importance_child.match_experts(model, targets)
    ((name, found),) = experts.items()
    assert found == targets
    seen: list[Any] = []
    module = model.get_submodule(name)
    module.register_forward_pre_hook(lambda _module, args: seen.append(args[:2]))
    sums = importance_child.Sums()
    with torch.inference_mode(), importance_child.hooked(model, {}, experts, sums):
        model(input_ids=torch.arange(20)[None])
    ((hidden, chosen),) = seen
    assert sums.counts[f"{name}|in"].sum() == 40
    for part in range(4):
        rows = hidden.reshape(-1, 32)[[part in row for row in chosen.tolist()]]
        inner = torch.nn.functional.silu(rows @ module.gate_up_proj[part][:48].T) * (
            rows @ module.gate_up_proj[part][48:].T
        )
        assert torch.allclose(sums.values[f"{name}|in"][part], rows.double().square().sum(0), rtol=1e-5)
        assert torch.allclose(sums.values[f"{name}|down"][part], inner.double().square().sum(0), rtol=1e-4)
