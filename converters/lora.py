"""A PEFT LoRA folder: what its configuration means for each matrix, checked against the base model.

W' = W + s · B A with s = alpha / r, or alpha / √r for rank-stabilised LoRA (https://arxiv.org/abs/2312.03732); `alpha_pattern` and
`rank_pattern` say otherwise for single modules. DoRA (https://arxiv.org/abs/2402.09353) scales each row of the sum to a length of its
own. Sources: `LoraConfig` and tuners/lora/layer.py in peft. Whatever else a configuration asks for is refused by name.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.checkpoint import (
    BIN_INDEX,
    BIN_SINGLE,
    INDEX,
    ITEM_BYTES,
    SINGLE,
    Checkpoint,
    Source,
    read_json,
    shard_tensors,
)
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families.decoder import same_values

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["ADAPTER_CONFIG", "Adapter", "Pair", "is_adapter", "open_adapter"]

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MODEL_WEIGHTS = (SINGLE, INDEX, BIN_SINGLE, BIN_INDEX)
WRAPPER = "base_model.model."
UNKNOWN = (
    "target_parameters", "trainable_token_indices", "layer_replication", "use_qalora", "use_bdlora", "lora_bias", "kasa_config",
    "arrow_config", "alora_invocation_tokens", "velora_config", "monteclora_config",
)  # fmt: skip
"""Options that change what is computed in ways not known here."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""`init_lora_weights` after which the base model of the training is not the base model any more."""
MAX_PATTERN, MAX_REPEATS = 256, 4
"""Length of a pattern, and how many parts of it may match a varying number of letters: the time grows by a power of that."""
PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
"""End of a tensor's name → its part; embeddings have no `.weight`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The change of one matrix of the base: `a` is (rank, in), `b` is (out, rank), and `magnitude` is (out,) for DoRA.

    `embedding`: the rows of the base are those of `a`'s columns. `turned`: the base is stored (in, out).
    """

    target: str
    a: Source
    b: Source
    scale: float
    magnitude: Source | None = None
    embedding: bool = False
    turned: bool = False

    @property
    def rank(self) -> int:
        """The number of rows of `a`."""
        return self.a.shape[0]

    def matrices(self) -> tuple[F32, F32]:
        """Return A and B in float32."""
        return self.a.rows(0, self.a.shape[0]), self.b.rows(0, self.b.shape[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter folder: pairs by the name of the base's tensor, and tensors that replace those of the base whole.

    A pair may change a tensor that is replaced as well. PEFT also saves embeddings as they are in the base: those are left out.
    """

    path: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, Pair]
    replaced: Mapping[str, Source] = field(default_factory=dict)

    @property
    def dora(self) -> bool:
        """Whether rows have lengths of their own."""
        return any(pair.magnitude is not None for pair in self.pairs.values())


def is_adapter(path: Path) -> bool:
    """Whether the folder PATH is a PEFT adapter and no whole model; trainers put the config.json of the base beside an adapter.

    Raises UnsupportedModel for both in one folder (which of them is meant cannot be told, and neither may be ignored) and for a folder of
    adapters.
    """
    if not (path / ADAPTER_CONFIG).is_file():
        inside = [] if (path / "config.json").exists() else sorted(path.glob(f"*/{ADAPTER_CONFIG}"))
        if inside:
            raise UnsupportedModel(
                f"{str(path)!r} is no model, and holds {len(inside)} LoRA adapters in folders of their own",
                hint=f"name one of them: {shlex.quote(str(inside[0].parent))}",
            )
        return False
    weights = [name for name in MODEL_WEIGHTS if (path / name).is_file()]
    if weights and any((path / name).is_file() for name in WEIGHTS):
        raise UnsupportedModel(
            f"{str(path)!r} holds a whole model ({weights[0]}) and a LoRA adapter ({ADAPTER_CONFIG})",
            hint="move the adapter's files into a folder of their own, and convert that one or this one",
        )
    return not weights


def open_adapter(path: Path, base: Checkpoint) -> Adapter:
    """Open the adapter folder PATH and find its matrices in BASE, reading headers only.

    Raises UnsupportedModel for a kind or an option that is not known, BrokenCheckpoint where adapter and base do not belong together.
    """
    config = read_json(path / ADAPTER_CONFIG)
    if config is None:
        raise BrokenCheckpoint(f"{str(path)!r} has no {ADAPTER_CONFIG}", hint="name the folder that PEFT has saved")
    check_config(config)
    parts: dict[str, dict[str, Source]] = {}
    whole: dict[str, Source] = {}
    for name, tensor in adapter_tensors(path).items():
        if tensor.dtype not in ITEM_BYTES:
            raise UnsupportedModel(f"tensor {name!r} of the adapter is stored as {tensor.dtype}, which cannot be read")
        module, part = split(name)
        if part:
            parts.setdefault(module, {})[part] = tensor
        else:
            whole[module] = tensor
    pairs = [pair_of(config, base, module, found) for module, found in sorted(parts.items())]
    if not pairs:
        raise BrokenCheckpoint(f"{str(path)!r} has no LoRA matrices", hint="save the adapter again")
    replaced = {base_name(base, name): tensor for name, tensor in whole.items()}
    for name, tensor in replaced.items():
        if tensor.shape != base.tensors[name].shape:
            raise BrokenCheckpoint(
                f"the adapter replaces {name!r} with the shape {list(tensor.shape)}, and the base has {list(base.tensors[name].shape)}",
                hint="name the base model that was trained, with its vocabulary resized in the same way",
            )
    replaced = {name: tensor for name, tensor in replaced.items() if not same_values(tensor, base.tensors[name])}
    return Adapter(path=path, config=config, pairs={pair.target: pair for pair in pairs}, replaced=replaced)


def check_config(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel for a kind of adapter or an option that would come out wrong."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModel(
            f"{ADAPTER_CONFIG} has peft_type {kind!r}, and only LORA can be converted",
            hint="merge it with PEFT: model.merge_and_unload().save_pretrained(folder)",
        )
    for option in UNKNOWN:
        if config.get(option):
            raise UnsupportedModel(
                f"{ADAPTER_CONFIG} has {option} {config[option]!r}, which is not known here",
                hint="merge it with PEFT: model.merge_and_unload().save_pretrained(folder)",
            )
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(CHANGES_BASE):
        raise UnsupportedModel(
            f"{ADAPTER_CONFIG} has init_lora_weights {config['init_lora_weights']!r}: the base model was changed with it",
            hint="save the adapter with path_initial_model_for_weight_conversion, as PEFT's documentation says",
        )


def adapter_tensors(path: Path) -> Mapping[str, Source]:
    """Return the tensors of the adapter, from safetensors or else from .bin."""
    from converters.pickled import pickled_tensors

    if (path / WEIGHTS[0]).exists():
        return shard_tensors(path / WEIGHTS[0])
    if (path / WEIGHTS[1]).exists():
        return pickled_tensors(path / WEIGHTS[1])
    raise BrokenCheckpoint(f"{str(path)!r} has neither {WEIGHTS[0]} nor {WEIGHTS[1]}", hint="copy the whole folder")


def split(name: str) -> tuple[str, str]:
    """Return the module of an adapter's tensor and which part of its pair it is; the whole name and nothing for other tensors."""
    plain = name.removeprefix(WRAPPER)
    if plain == name or plain.startswith("base_model."):
        raise BrokenCheckpoint(
            f"the adapter has the tensor {name!r}, which PEFT would not find: names begin with {WRAPPER!r}, once",
            hint="save it with PEFT: model.save_pretrained(folder)",
        )
    for ending, part in PARTS.items():
        if plain.endswith(f".{ending}"):
            return plain.removesuffix(f".{ending}"), part
    if ".lora_" in plain:
        raise UnsupportedModel(f"the adapter has the tensor {name!r}, which is not known here")
    return plain.replace(".base_layer.", ".").replace(".modules_to_save.", "."), ""


def base_name(base: Checkpoint, name: str) -> str:
    """Return the tensor of BASE that an adapter calls NAME; folders and running models may differ by a prefix."""
    if name in base.tensors:
        return name
    found = [item for item in base.tensors if item.endswith(f".{name}") or name.endswith(f".{item}")]
    if len(found) != 1:
        tied = name == "lm_head.weight" and base.config.get("tie_word_embeddings")
        raise BrokenCheckpoint(
            f"the adapter changes {name!r}, and the base model in {str(base.path)!r} has no such tensor"
            + (": its output matrix is that of the embeddings" if tied else ""),
            hint="merge it with PEFT" if tied else "name the base model that the adapter was trained on",
        )
    return found[0]


def pair_of(config: Mapping[str, Any], base: Checkpoint, module: str, parts: Mapping[str, Source]) -> Pair:
    """Return one pair after checking its shapes against the base."""
    if not {"a", "b"} <= parts.keys():
        raise BrokenCheckpoint(f"the adapter has one half of the pair of {module!r} only", hint="copy it again")
    target = base_name(base, f"{module}.weight")
    a, b, shape = parts["a"], parts["b"], base.tensors[target].shape
    embedding = ".lora_embedding_" in a.name
    turned = bool(config.get("fan_in_fan_out")) and not embedding
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise BrokenCheckpoint(f"the pair of {module!r} has the shapes {list(a.shape)} and {list(b.shape)}")
    wanted = (b.shape[0], a.shape[1])
    if shape != (wanted[::-1] if embedding or turned else wanted):
        raise BrokenCheckpoint(
            f"the adapter changes {target!r} by a matrix of {list(wanted)}, and the base has {list(shape)}",
            hint="name the base model that the adapter was trained on",
        )
    magnitude = parts.get("magnitude")
    if bool(config.get("use_dora")) != (magnitude is not None):
        raise BrokenCheckpoint(
            f"{ADAPTER_CONFIG} has use_dora {config.get('use_dora')!r}, and the tensors of {module!r} do not"
        )
    if magnitude is not None and (embedding or turned or math.prod(magnitude.shape) != shape[0]):
        raise UnsupportedModel(f"the adapter has DoRA on {module!r}, which is no ordinary matrix: merge it with PEFT")
    return Pair(
        target=target,
        a=a,
        b=b,
        scale=scale_of(config, module, a.shape[0]),
        magnitude=magnitude,
        embedding=embedding,
        turned=turned,
    )


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what B A is multiplied by for MODULE, whose matrices have RANK."""
    wanted, alpha = setting(config, "rank_pattern", "r", module), setting(config, "alpha_pattern", "lora_alpha", module)
    if wanted != rank:
        raise BrokenCheckpoint(f"{ADAPTER_CONFIG} says rank {wanted:g} for {module!r}, and its matrices have {rank}")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def setting(config: Mapping[str, Any], pattern_key: str, key: str, module: str) -> float:
    """Return the number KEY for MODULE: that of the first pattern which matches the end of its name, as in peft."""
    patterns = config.get(pattern_key) or {}
    if not isinstance(patterns, dict):
        raise BrokenCheckpoint(f"{ADAPTER_CONFIG} has {pattern_key} {patterns!r}, and a table is needed")
    value = config.get(key)
    for pattern, found in patterns.items():
        if matches(pattern, module):
            value = found
            break
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise BrokenCheckpoint(f"{ADAPTER_CONFIG} has {key} {value!r} for {module!r}, and a positive number is needed")
    return float(value)


def matches(pattern: str, module: str) -> bool:
    """Whether PATTERN, a name or an expression, matches the end of MODULE. What could take for ever is refused."""
    repeats = len(re.findall(r"[*+?{]", pattern))
    if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"\)[*+{]|[*+}][*+{]", pattern):
        raise UnsupportedModel(f"{ADAPTER_CONFIG} has the pattern {pattern[:80]!r}", hint="write the names of modules")
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise BrokenCheckpoint(f"{ADAPTER_CONFIG} has the pattern {pattern!r}: {error}") from error
