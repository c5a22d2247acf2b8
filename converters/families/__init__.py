"""Model families: each is a declaration of facts in a file of its own, and the few functions here read it.

A family says which GGUF architecture it is, which hyperparameters and tensors it has, and what is done to them. Adding one touches
one file, the table `FAMILIES`, and a test row.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from converters.checkpoint import ITEM_BYTES, Checkpoint, SourceTensor
from converters.errors import BrokenCheckpoint, ConvertError, UnsupportedModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["FAMILIES", "Family", "ModelPlan", "Rule", "TensorPlan", "interleave_halves", "plan_model"]

FAMILIES: Mapping[str, str] = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama"}
"""The name in config.architectures → the module in this package."""
MODEL_TYPES: Mapping[str, str] = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
"""config.model_type → architecture, for folders whose config has no `architectures`."""

Transform = Callable[["F32", int], "F32"]
"""Gets a block of rows and the family's number for it (for `interleave_halves`: the head size)."""


def interleave_halves(rows: F32, head_dim: int) -> F32:
    """Reorder the rows of each head from (first half, second half) to adjacent pairs.

    Hugging Face rotates element i of a head with element i + head_dim/2; ggml's NORM rope rotates 2i with 2i + 1. So row i goes to 2i
    and row i + head_dim/2 to 2i + 1. ROWS is (n · head_dim, …): a weight or a bias. Source: `LlamaModel.permute` in llama.cpp's
    converter and GGML_ROPE_TYPE_NORMAL in ggml.h.
    """
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])  # (head, half, i, columns)
    return heads.swapaxes(1, 2).reshape(rows.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One tensor of the GGUF file: the name there, the name in the checkpoint, the sizes by name, what is done to it.

    `{i}` in the names stands for the layer. `when` names a fact of the configuration that must hold for the tensor to be there.
    """

    target: str
    source: str
    shape: tuple[str, ...]
    transform: Transform | None = None
    when: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """One tensor to write: `shape` in numpy's order; the data comes from `source` or is `constant`.

    A transform works on blocks of `block_rows` rows, so a large tensor can be read in slabs.
    """

    name: str
    shape: tuple[int, ...]
    source: SourceTensor | None = None
    constant: F32 | None = None
    transform: Transform | None = None
    block_rows: int = 1

    def rows(self, first: int, last: int) -> F32:
        """Return the finished rows FIRST to LAST; both must be multiples of `block_rows` (or the end)."""
        if self.constant is not None:
            return self.constant[first:last]
        assert self.source is not None  # noqa: S101 - one of the two is always there
        rows = self.source.rows(first, last)
        return self.transform(rows, self.block_rows) if self.transform else rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """What the GGUF file will hold: its keys, its tensors in their order, and what was changed on the way.

    `warnings` are (code, message) pairs: things that the result does less well than the source.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    context: int
    vocab_size: int
    tied: bool
    keys: Mapping[str, int | float | str | bool]
    tensors: tuple[TensorPlan, ...]
    warnings: tuple[tuple[str, str], ...] = ()

    @property
    def parameters(self) -> int:
        """The number of weights of the model, computed tensors not counted."""
        total = 0
        for tensor in self.tensors:
            if tensor.constant is None:
                count = 1
                for dim in tensor.shape:
                    count *= dim
                total += count
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The facts of a family.

    `read` checks the configuration and returns the sizes by name, the facts for `Rule.when` and everything but the tensors;
    `ignored` are patterns of checkpoint tensors that carry nothing.
    """

    architecture: str
    read: Callable[[Checkpoint], Facts]
    once_before: tuple[Rule, ...]
    per_layer: tuple[Rule, ...]
    once_after: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a family reads from a configuration."""

    sizes: Mapping[str, int]
    facts: frozenset[str]
    head_dim: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    keys: Mapping[str, int | float | str | bool]
    constants: tuple[TensorPlan, ...] = ()
    skip: tuple[str, ...] = ()
    warnings: tuple[tuple[str, str], ...] = field(default=())


def family_of(checkpoint: Checkpoint) -> Family:
    """Return the family of CHECKPOINT; raises UnsupportedModel that names it and lists the known ones."""
    name = checkpoint.architecture or MODEL_TYPES.get(checkpoint.model_type, "")
    if name not in FAMILIES:
        shown = checkpoint.architecture or checkpoint.model_type
        raise UnsupportedModel(
            f"the model family {shown!r} is not known to the converter"
            if shown
            else f"{str(checkpoint.path / 'config.json')!r} names no model family: no architectures and no model_type",
            hint=f"known families: {', '.join(FAMILIES)}",
        )
    if checkpoint.config.get("quantization_config"):
        method = checkpoint.config["quantization_config"]
        kind = method.get("quant_method") if isinstance(method, dict) else method
        raise UnsupportedModel(
            f"{str(checkpoint.path)!r} is already quantized ({kind!r})",
            hint="convert the full-precision model it was made from",
        )
    family: Family = importlib.import_module(f"converters.families.{FAMILIES[name]}").FAMILY
    return family


def plan_model(checkpoint: Checkpoint) -> ModelPlan:
    """Return what CHECKPOINT becomes, reading no tensor data.

    Every tensor of the checkpoint must be used or be ignored by name, and every expected one must be there with the right shape:
    UnsupportedModel and BrokenCheckpoint list the names.
    """
    family = family_of(checkpoint)
    facts = family.read(checkpoint)
    rules = list(expand(family, facts))
    check_names(checkpoint, family, facts, [source for _, _, source in rules])
    tensors = [plan_tensor(checkpoint, facts, rule, target, source) for rule, target, source in rules]
    return ModelPlan(
        architecture=family.architecture,
        layers=facts.layers,
        heads=facts.heads,
        kv_heads=facts.kv_heads,
        context=facts.context,
        vocab_size=facts.sizes["vocab"],
        tied="untied" not in facts.facts,
        keys=facts.keys,
        tensors=(*facts.constants, *tensors),
        warnings=facts.warnings,
    )


def expand(family: Family, facts: Facts) -> Iterable[tuple[Rule, str, str]]:
    """Yield each rule that applies, with its target and source names filled in."""
    for rule in family.once_before:
        if applies(rule, facts):
            yield rule, rule.target, rule.source
    for layer in range(facts.layers):
        for rule in family.per_layer:
            if applies(rule, facts):
                yield rule, rule.target.format(i=layer), rule.source.format(i=layer)
    for rule in family.once_after:
        if applies(rule, facts):
            yield rule, rule.target, rule.source


def applies(rule: Rule, facts: Facts) -> bool:
    """Whether the tensor of RULE is part of this model."""
    return rule.when is None or rule.when in facts.facts


def check_names(checkpoint: Checkpoint, family: Family, facts: Facts, wanted: list[str]) -> None:
    """Raise unless the checkpoint has exactly the tensors in WANTED, apart from those that are ignored."""
    if missing := sorted(set(wanted) - checkpoint.tensors.keys()):
        raise BrokenCheckpoint(
            f"{len(missing)} of {len(wanted)} tensors are missing from {str(checkpoint.path)!r}: {names(missing)}",
            hint="copy or download the model again; if it was saved in part, save it whole",
        )
    extra = checkpoint.tensors.keys() - set(wanted) - set(facts.skip)
    unknown = sorted(name for name in extra if not any(re.fullmatch(pattern, name) for pattern in family.ignored))
    if unknown:
        raise UnsupportedModel(
            f"{str(checkpoint.path)!r} has {len(unknown)} tensors that {checkpoint.architecture or 'its family'} does not use: "
            f"{names(unknown)}",
            hint="they would be lost: merge adapters into the weights first, or check config.json",
        )


def names(items: list[str]) -> str:
    """Return the first few of ITEMS as text."""
    return ", ".join(repr(item) for item in items[:6]) + (f" and {len(items) - 6} more" if len(items) > 6 else "")


def plan_tensor(checkpoint: Checkpoint, facts: Facts, rule: Rule, target: str, source: str) -> TensorPlan:
    """Return the plan of one tensor after checking its shape and dtype."""
    tensor = checkpoint.tensors[source]
    shape = tuple(facts.sizes[size] for size in rule.shape)
    if tensor.shape != shape:
        raise BrokenCheckpoint(
            f"tensor {source!r} has the shape {list(tensor.shape)}, and config.json makes it {list(shape)}",
            hint="weights and config.json are not of the same model",
        )
    if tensor.dtype not in ITEM_BYTES:
        raise UnsupportedModel(
            f"tensor {source!r} is stored as {tensor.dtype}, and {', '.join(sorted(ITEM_BYTES))} can be read",
            hint="convert the full-precision model it was made from",
        )
    block = facts.head_dim if rule.transform else 1
    return TensorPlan(name=target, shape=shape, source=tensor, transform=rule.transform, block_rows=block)


COPY_CONFIG = "copy the config.json of the model again"


def integer(config: Mapping[str, Any], key: str, default: int | None = None, *, most: int = 1 << 31) -> int:
    """Return the positive integer KEY of a configuration; DEFAULT where it is absent or null."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise BrokenCheckpoint(f"config.json has no {key!r}", hint=COPY_CONFIG)
        return default
    if type(value) is not int or not 1 <= value <= most:
        raise BrokenCheckpoint(
            f"config.json has {key} {value!r}, and a whole number from 1 to {most} is needed", hint=COPY_CONFIG
        )
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Return the positive finite number KEY of a configuration; DEFAULT where it is absent or null."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise BrokenCheckpoint(f"config.json has no {key!r}", hint=COPY_CONFIG)
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise BrokenCheckpoint(f"config.json has {key} {value!r}, and a positive number is needed", hint=COPY_CONFIG)
    return float(value)


def refuse(what: str, hint: str) -> ConvertError:
    """Return the error for a setting that no converter here can carry over."""
    return UnsupportedModel(what, hint=hint)
