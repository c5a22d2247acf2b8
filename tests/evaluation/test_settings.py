"""What a file says of itself is compared key by key: each thing that logits are too coarse to see is found, and a right file passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from converters.checkpoint import open_checkpoint
from converters.families import ModelPlan, plan_model
from converters.ggml_types import FILE_TYPES
from converters.header import GGUFHeader, TensorInfo, read_header
from converters.tokenizer import Vocabulary, read_vocabulary
from edgeai.evaluation.prove import types_of
from edgeai.evaluation.settings import kind_rows, setting_rows, tensor_rows, token_rows
from tests.families import write_f32

ENDS = "tokenizer.ggml.eos_token_id"


@dataclass(frozen=True)
class Case:
    """A right file and what it is held against."""

    header: GGUFHeader
    plan: ModelPlan
    vocabulary: Vocabulary

    def failed(self, keys: Mapping[str, Any], tensors: Callable[[str], bool] = lambda _name: True) -> list[str]:
        """Return the names of the rows that fail where KEYS are changed (None: taken out) and only some TENSORS are there."""
        kv = {key: value for key, value in {**self.header.kv, **keys}.items() if value is not None}
        header = replace(self.header, kv=kv, tensors=tuple(item for item in self.header.tensors if tensors(item.name)))
        rows = [
            *setting_rows(header, self.plan),
            *tensor_rows(header, self.plan),
            *token_rows(header, self.vocabulary),
        ]
        return [row.name for row in rows if not row.ok]


@pytest.fixture(scope="module")
def case(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    checkpoint = open_checkpoint(llama)
    plan = plan_model(checkpoint)
    path = write_f32(llama, tmp_path_factory.mktemp("settings") / "right.gguf")
    return Case(header=read_header(path), plan=plan, vocabulary=read_vocabulary(checkpoint, plan.vocab_size))


def test_a_right_file_has_no_row_that_fails(case: Case) -> None:
    assert case.failed({}) == []


@pytest.mark.parametrize(
    ("key", "value", "row"),
    [
        ("llama.rope.freq_base", 10100.0, "setting rope.freq_base"),
        ("llama.attention.layer_norm_rms_epsilon", 1e-4, "setting attention.layer_norm_rms_epsilon"),
        ("llama.attention.layer_norm_rms_epsilon", None, "setting attention.layer_norm_rms_epsilon"),
        ("llama.context_length", 64, "setting context_length"),
        ("llama.context_length", 4096, "setting context_length"),
        ("llama.attention.head_count", (4, 8), "setting attention.head_count"),
        ("llama.rope.scaling.factor", 1.001, "setting rope.scaling.factor"),
        ("llama.logit_scale", 0.99, "setting logit_scale"),
        ("llama.attention.causal", False, "setting attention.causal"),
        (ENDS, 5, "eos token"),
        (ENDS, -1, "eos token"),
        (ENDS, "2", "eos token"),
        ("tokenizer.ggml.eot_token_id", 9, "eot token"),
    ],
)
def test_a_setting_that_is_not_the_source_s_fails(case: Case, key: str, value: Any, row: str) -> None:
    assert row in case.failed({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.freq_base", None),
        ("llama.rope.dimension_count", None),
        ("llama.vocab_size", None),
        ("llama.attention.head_count", (4, 4)),
        ("llama.rope.scaling.type", "none"),
        ("llama.rope.scaling.factor", 1.0),
        ("llama.attention.causal", True),
        ("llama.unknown.to.anyone", 7),
        ("tokenizer.ggml.eot_token_id", 2),
        ("tokenizer.ggml.eot_token_id", 0),
        (ENDS, None),
    ],
)
def test_another_way_to_say_the_same_passes(case: Case, key: str, value: Any) -> None:
    assert case.failed({key: value}) == []


def test_a_bias_too_many_or_too_few_fails(case: Case) -> None:
    assert case.failed({}, lambda name: name != "blk.0.ffn_up.weight") == ["tensors missing"]
    extra = TensorInfo(name="blk.0.attn_q.bias", shape=(64,), type="F32", offset=0, nbytes=256)
    header = replace(case.header, tensors=(*case.header.tensors, extra))
    assert [row.name for row in tensor_rows(header, case.plan)] == ["tensors that the source has not"]


def swapped(values: tuple[Any, ...], left: int, right: int) -> tuple[Any, ...]:
    found = list(values)
    found[left], found[right] = found[right], found[left]
    return tuple(found)


def test_tokens_and_merges_in_another_order_and_hidden_tokens_fail(case: Case) -> None:
    tokens, merges = (tuple(case.header.array(f"tokenizer.ggml.{key}")) for key in ("tokens", "merges"))
    types = tuple(case.header.array("tokenizer.ggml.token_type"))
    rare = case.vocabulary.real_size - 1
    assert case.failed({"tokenizer.ggml.tokens": swapped(tokens, rare, rare - 1)}) == ["tokens"]
    assert case.failed({"tokenizer.ggml.merges": swapped(merges, -1, -2)}) == ["merges"]
    assert case.failed({"tokenizer.ggml.merges": merges[:-1]}) == ["merges"]
    assert case.failed({"tokenizer.ggml.token_type": (*types[:rare], 3, *types[rare + 1 :])}) == ["token types"]


def test_another_kind_of_tokenizer_fails(case: Case) -> None:
    assert kind_rows(case.header, case.vocabulary) == []
    for kind in ("llama", None, 5):
        header = replace(case.header, kv={**case.header.kv, "tokenizer.ggml.model": kind})
        assert [row.name for row in kind_rows(header, case.vocabulary)] == ["kind of tokenizer"]


def test_another_beginning_counts_only_where_it_is_used(case: Case) -> None:
    other = {"tokenizer.ggml.bos_token_id": 7}
    assert not case.vocabulary.add_bos
    assert case.failed(other) == []
    used = replace(case, vocabulary=replace(case.vocabulary, chat_template="{{ bos_token }}"))
    assert used.failed(other) == ["bos token"]


def test_a_type_that_no_tensor_has_gives_no_milder_limit(case: Case) -> None:
    mildest = next(number for number, name in FILE_TYPES.items() if name == "IQ1_S")
    coarse = tuple(replace(item, type="Q8_0" if "ffn" in item.name else item.type) for item in case.header.tensors)
    header = replace(case.header, kv={**case.header.kv, "general.file_type": mildest}, tensors=coarse)
    assert types_of(header) == ("IQ1_S", "Q8_0")
