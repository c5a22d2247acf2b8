"""LoRA adapters beside a model: the answers of the merged model, switched per request; files that are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.checkpoint import open_checkpoint
from converters.families import plan_model
from converters.gguf import write_model
from converters.header import read_header
from converters.lora import open_adapter
from converters.lora_gguf import write_adapter
from converters.lora_merge import merge
from converters.quantmap import plan_types
from converters.tokenizer import read_vocabulary
from edgeai.errors import EdgeAIError, InvalidModel, UsageError
from edgeai.model import Model, open_engine
from tests.converters.test_lora import ADAPTERS, make, train
from tests.families import write_f32

TEXT = "The for statement is used to iterate over the elements of a sequence"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters and the base merged with each: `base.gguf`, `one.gguf`, `merged-one.gguf` …"""
    place = tmp_path_factory.mktemp("adapters é")
    base = make(place / "base")
    write_f32(base, place / "base.gguf")
    checkpoint = open_checkpoint(base)
    for name, settings in (("one", ADAPTERS["plain"]), ("two", ADAPTERS["stabilised"])):
        adapter = open_adapter(train(base, place / name, **settings), checkpoint)
        write_adapter(place / f"{name}.gguf", plan_model(checkpoint), adapter, {})
        both = merge(checkpoint, adapter)
        plan = plan_model(both)
        vocabulary = read_vocabulary(checkpoint, plan.vocab_size)
        write_model(place / f"merged-{name}.gguf", plan, vocabulary, plan_types(plan, "F32"), {})
    return place


@pytest.fixture(scope="module")
def model(place: Path) -> Iterator[Model]:
    adapters = {name: place / f"{name}.gguf" for name in ("one", "two")}
    with Model(open_engine(place / "base.gguf", threads=1, ctx=128, adapters=adapters)) as found:
        yield found


def logprobs(model: Model, *adapters: tuple[str, float]) -> list[float]:
    """Return what a score of TEXT gives with ADAPTERS on."""
    return model.engine.score(TEXT, adapters=adapters)  # type: ignore[call-arg]


@pytest.fixture(scope="module")
def merged(place: Path) -> Callable[[str], list[float]]:
    def find(name: str) -> list[float]:
        with Model(open_engine(place / f"{name}.gguf", threads=1, ctx=128)) as found:
            return found.score(TEXT)

    return find


@pytest.mark.parametrize("name", ["one", "two"])
def test_base_and_adapter_are_the_merged_model(model: Model, merged: Callable[[str], list[float]], name: str) -> None:
    base, found = logprobs(model), logprobs(model, (name, 1.0))
    assert found == pytest.approx(merged(f"merged-{name}"), abs=2e-2)  # the KV cache is f16
    assert np.abs(np.array(found) - base).max() > 0.1


def test_a_scale_of_zero_is_the_base(model: Model) -> None:
    assert logprobs(model, ("one", 0.0)) == logprobs(model)


def test_switching_back_and_forth_changes_no_answer(model: Model) -> None:
    selections: list[tuple[tuple[str, float], ...]] = [(), (("one", 1.0),), (("one", 0.5), ("two", 0.5)), ()]

    def answers() -> list[str]:
        return [model.complete("The for", max_tokens=12, temperature=0, adapters=chosen).text for chosen in selections]

    first = answers()
    assert first == answers()
    assert first[0] == first[3]
    assert len(set(first)) > 1


def test_an_unknown_name_is_refused_with_those_that_are_there(model: Model) -> None:
    with pytest.raises(UsageError, match="no adapter 'three' is loaded") as caught:
        model.complete("The", adapters=(("three", 1.0),))
    assert "one, two" in (caught.value.hint or "")


def test_a_name_twice_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="'one' is there twice"):
        model.complete("The", adapters=(("one", 1.0), ("one", 0.5)))


def refused(place: Path, path: Path, base: str = "base.gguf") -> EdgeAIError:
    """Return the error of loading the base with the adapter PATH; the base alone loads."""
    with pytest.raises(EdgeAIError) as caught:
        open_engine(place / base, threads=1, ctx=128, adapters={"bad": path})
    return caught.value


def test_a_model_is_no_adapter(place: Path) -> None:
    error = refused(place, place / "base.gguf")
    assert isinstance(error, InvalidModel)
    assert "no LoRA adapter" in str(error)


def test_an_adapter_of_another_architecture_is_refused_by_name(place: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    data = (place / "one.gguf").read_bytes().replace(b"llama", b"qwen2", 1)
    (tmp_path / "other.gguf").write_bytes(data)
    assert "'qwen2'" in str(refused(place, tmp_path / "other.gguf"))
    assert isinstance(refused(tiny_gguf.parent, place / "one.gguf", tiny_gguf.name), UsageError)  # of another size


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"blk.0.attn_q.weight.lora_a", b"blk.9.attn_q.weight.lora_a", "lacks the tensor"),
        (b"blk.0.attn_q.weight.lora_", b"blk.9.attn_q.weight.lora_", "'blk.9.attn_q.weight', which 'base.gguf' does not have"),
        (b"blk.0.attn_q.weight.lora_a", b"blk.0.attn_norm.weight_abc", "no part of a LoRA"),
        (b"adapter.lora.alpha", b"adapter.lora.alphx", "adapter.lora.alpha None"),
        (b"lora_a", b"lora_c", "no part of a LoRA"),
    ],
)  # fmt: skip
def test_a_spoiled_adapter_is_refused_and_says_why(
    place: Path, tmp_path: Path, old: bytes, new: bytes, said: str
) -> None:
    data = (place / "one.gguf").read_bytes()
    assert old in data
    (tmp_path / "bad.gguf").write_bytes(data.replace(old, new))
    assert said in str(refused(place, tmp_path / "bad.gguf"))


def test_an_adapter_that_is_cut_off_is_refused(place: Path, tmp_path: Path) -> None:
    data = (place / "one.gguf").read_bytes()
    for size in (0, 10, 200, len(data) - 8):
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        assert isinstance(refused(place, tmp_path / "cut.gguf"), InvalidModel)


def test_an_adapter_with_a_number_that_is_none_is_refused(place: Path, tmp_path: Path) -> None:
    header = read_header(place / "one.gguf")
    data = bytearray(header.path.read_bytes())
    struct.pack_into("<f", data, header.tensors[-1].offset, float("nan"))
    (tmp_path / "nan.gguf").write_bytes(data)
    assert "not finite" in str(refused(place, tmp_path / "nan.gguf"))


def test_an_adapter_of_the_tokens_is_refused_where_they_are_the_output_too(place: Path) -> None:
    from edgeai.engines.llamacpp.adapters import check_adapter

    base, adapter = read_header(place / "base.gguf"), read_header(place / "one.gguf")
    tied = replace(base, tensors=tuple(item for item in base.tensors if item.name != "output.weight"))
    a, b = (next(item for item in adapter.tensors if item.name.endswith(part)) for part in (".lora_a", ".lora_b"))
    table = [replace(item, name=f"token_embd.weight{part}") for item, part in ((a, ".lora_a"), (b, ".lora_b"))]
    with pytest.raises(UsageError, match="output matrix"):
        check_adapter(replace(adapter, tensors=tuple(table)), tied)
