"""Model families: each is a declaration of facts in a file of its own, and the few functions here read it.

A family says which GGUF architecture it is, which hyperparameters and tensors it has, and what is done to them. Adding one touches
one file, the table `FAMILIES`, and a test row.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from converters.checkpoint import ITEM_BYTES, Checkpoint, Source
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families.rules import Rule, TensorPlan, interleave_halves

__all__ = [
    "FAMILIES",
    "Facts",
    "Family",
    "Keys",
    "ModelPlan",
    "Rule",
    "TensorPlan",
    "Value",
    "interleave_halves",
    "plan_model",
]

FAMILIES: Mapping[str, str] = {
    "BertForMaskedLM": "bert",
    "BertForPreTraining": "bert",
    "BertForSequenceClassification": "bert",
    "BertModel": "bert",
    "CamembertForMaskedLM": "bert",
    "CamembertForSequenceClassification": "bert",
    "CamembertModel": "bert",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
    "GPT2LMHeadModel": "gpt2",
    "GraniteForCausalLM": "granite",
    "Lfm2ForCausalLM": "lfm2",
    "LlamaForCausalLM": "llama",
    "MinistralForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "mixtral",
    "Olmo2ForCausalLM": "olmo2",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "RobertaForMaskedLM": "bert",
    "RobertaForSequenceClassification": "bert",
    "RobertaModel": "bert",
    "SmolLM3ForCausalLM": "smollm3",
    "XLMRobertaForMaskedLM": "bert",
    "XLMRobertaForSequenceClassification": "bert",
    "XLMRobertaModel": "bert",
}
"""The name in config.architectures → the module in this package."""
MODEL_TYPES: Mapping[str, str] = {
    "bert": "BertModel",
    "camembert": "CamembertModel",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "granite": "GraniteForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "ministral": "MinistralForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "roberta": "RobertaModel",
    "smollm3": "SmolLM3ForCausalLM",
    "xlm-roberta": "XLMRobertaModel",
}
"""config.model_type → architecture, for folders whose config has no `architectures`."""

Value = int | float | str | bool | tuple[int, ...] | tuple[float, ...] | tuple[bool, ...]
"""What a key of a GGUF file can hold here; a tuple becomes an array, one value for each layer."""
Keys = dict[str, Value]
Warnings = tuple[tuple[str, str], ...]
"""(code, message) pairs: things that the result does less well than the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """What the GGUF file will hold: its keys, its tensors in their order, and what was changed on the way.

    `pooling` ("mean", "cls", "last") makes it an embedding model, "rank" a reranker, None a language model. `window` is the sliding
    window, in tokens, of layers that have one in the runtime too. `gaps` says whether positions may jump, which layers with a state of
    their own (short convolutions) and texts that are read in both directions do not take. `kv_heads` is the largest of all layers.
    `activation_nmse` is what the runtime's approximation of an activation can add to the NMSE between its results and the source's.
    Contexts of more than `rope_switch` tokens have other rotary frequencies in the runtime; in the source, texts of more tokens.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    context: int
    vocab_size: int
    tied: bool
    keys: Mapping[str, Value]
    tensors: tuple[TensorPlan, ...]
    warnings: Warnings = ()
    pooling: str | None = None
    window: int | None = None
    gaps: bool = True
    activation_nmse: float = 0.0
    rope_switch: int | None = None

    @property
    def parameters(self) -> int:
        """The number of weights of the model, computed tensors not counted."""
        return sum(tensor.elements for tensor in self.tensors if tensor.constant is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The facts of a family.

    `read` checks the configuration and returns the sizes by name, the facts for `Rule.when` and everything but the tensors;
    `ignored` are patterns of checkpoint tensors that carry nothing; of `prefixes`, the first that names in the checkpoint begin with
    is `{p}` in the rules; `aliases` are (pattern, replacement) pairs for older names of tensors, applied to each name.
    """

    architecture: str
    read: Callable[[Checkpoint], Facts]
    once_before: tuple[Rule, ...]
    per_layer: tuple[Rule, ...]
    once_after: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    aliases: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a family reads from a configuration; `layer_facts` are those of single layers, `skip` names tensors that are not needed.

    `head_dim` is the number that transforms get, `factors` are those of `Rule.factor`. The rest is as in `ModelPlan`.
    """

    sizes: Mapping[str, int]
    facts: frozenset[str]
    head_dim: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    keys: Mapping[str, Value]
    constants: tuple[TensorPlan, ...] = ()
    skip: tuple[str, ...] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
    warnings: Warnings = ()
    layer_facts: tuple[frozenset[str], ...] = ()
    pooling: str | None = None
    window: int | None = None
    gaps: bool = True
    activation_nmse: float = 0.0
    rope_switch: int | None = None


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
    checkpoint = replace(checkpoint, tensors=current_names(checkpoint.tensors, family.aliases))
    facts = family.read(checkpoint)
    wanted = list(expand(family, facts, prefix_of(family, checkpoint.tensors)))
    check_names(checkpoint, family, facts, [source for item in wanted for source in item.sources])
    return ModelPlan(
        architecture=family.architecture,
        layers=facts.layers,
        heads=facts.heads,
        kv_heads=facts.kv_heads,
        context=facts.context,
        vocab_size=facts.sizes["vocab"],
        tied="untied" not in facts.facts,
        keys=facts.keys,
        tensors=(*facts.constants, *(plan_tensor(checkpoint, facts, item) for item in wanted)),
        warnings=facts.warnings + left_out(checkpoint, facts),
        pooling=facts.pooling,
        window=facts.window,
        gaps=facts.gaps,
        activation_nmse=facts.activation_nmse,
        rope_switch=facts.rope_switch,
    )


def left_out(checkpoint: Checkpoint, facts: Facts) -> Warnings:
    """Return a warning where a language model is also one of sentence-transformers, whose pooling the file does not carry."""
    if facts.pooling or not (checkpoint.path / "modules.json").exists():
        return ()
    message = (
        "modules.json makes vectors of texts with this model; the file carries no pooling, and continues texts only"
    )
    return (("pooling-left-out", message),)


def current_names(tensors: Mapping[str, Source], aliases: tuple[tuple[str, str], ...]) -> Mapping[str, Source]:
    """Return TENSORS under the names in use today; raises BrokenCheckpoint where two become one."""
    found: dict[str, Source] = {}
    for name, tensor in tensors.items():
        current = name
        for pattern, replacement in aliases:
            current = re.sub(pattern, replacement, current)
        if current in found:
            raise BrokenCheckpoint(f"the checkpoint has the tensor {current!r} twice, also as {name!r}")
        found[current] = tensor
    return found


def prefix_of(family: Family, tensors: Mapping[str, Source]) -> str:
    """Return the first prefix of FAMILY that names in TENSORS begin with."""
    return next((item for item in family.prefixes if any(name.startswith(item) for name in tensors)), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A rule with its names filled in: one tensor of the file, and the tensors of the checkpoint that it is made of."""

    rule: Rule
    target: str
    sources: tuple[str, ...]


def expand(family: Family, facts: Facts, prefix: str) -> Iterable[Wanted]:
    """Yield each tensor that applies, in the order of the file."""
    experts = facts.sizes.get("experts", 0)

    def fill(rules: Iterable[Rule], layer: int | None) -> Iterable[Wanted]:
        held = facts.facts | (facts.layer_facts[layer] if layer is not None and facts.layer_facts else frozenset())
        for rule in rules:
            if rule.when is None or rule.when in held:
                each = range(experts) if "{e}" in rule.source else range(1)
                sources = tuple(rule.source.format(i=layer, p=prefix, e=expert) for expert in each)
                yield Wanted(rule=rule, target=rule.target.format(i=layer), sources=sources)

    yield from fill(family.once_before, None)
    for layer in range(facts.layers):
        yield from fill(family.per_layer, layer)
    yield from fill(family.once_after, None)


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


def plan_tensor(checkpoint: Checkpoint, facts: Facts, item: Wanted) -> TensorPlan:
    """Return the plan of one tensor after checking the shapes and dtypes of its sources."""
    rule = item.rule
    shape = tuple(facts.sizes[size] for size in rule.shape)
    stacked = "{e}" in rule.source
    first_row = facts.sizes[rule.skip_rows] if rule.skip_rows else 0
    expected = tuple(facts.sizes[size] for size in rule.squeezed) if rule.squeezed else shape[1:] if stacked else shape
    if rule.transposed:
        expected = expected[::-1]
    if first_row:
        expected = (expected[0] + first_row, *expected[1:])
    sources = tuple(checkpoint.tensors[source] for source in item.sources)
    for source in sources:
        check_source(source, expected)
    block = shape[0] if rule.transposed else facts.head_dim if rule.transform else 1
    return TensorPlan(
        name=item.target,
        shape=shape,
        sources=sources,
        transform=rule.transform,
        block_rows=block,
        transposed=rule.transposed,
        stacked=stacked,
        first_row=first_row,
        factor=facts.factors[rule.factor] if rule.factor else 1.0,
    )


def check_source(source: Source, expected: tuple[int, ...]) -> None:
    """Raise unless SOURCE has the shape EXPECTED and a dtype that can be read."""
    if source.shape != expected:
        raise BrokenCheckpoint(
            f"tensor {source.name!r} has the shape {list(source.shape)}, and config.json makes it {list(expected)}",
            hint="weights and config.json are not of the same model",
        )
    if source.dtype not in ITEM_BYTES:
        raise UnsupportedModel(
            f"tensor {source.name!r} is stored as {source.dtype}, and {', '.join(sorted(ITEM_BYTES))} can be read",
            hint="convert the full-precision model it was made from",
        )
