"""The config.json of a GGUF file: its keys read backwards, for the architectures whose families are known here.

Sources: `load_hparams` and src/models/*.cpp in llama.cpp for what a key, or its absence, means to the runtime; the configuration
classes of transformers for the names. The older layout is written (`rope_theta`, `rope_scaling`), which transformers 4 and 5 read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converters.errors import UnsupportedModel
from converters.families.rope import llama3_divisors
from converters.header import GGUFHeader
from converters.imports.settings import Settings
from converters.imports.source import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["ARCHITECTURES", "IGNORED", "config_of"]

IGNORED = (
    "vocab_size",
    "rope.dimension_count",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "rope.dimension_count_swa",
)
"""Keys that say what tensors or other keys say already."""
FREQUENCIES = "rope_freqs.weight"
CONTEXTS = (8192, 4096, 2048, 16384, 32768, 65536, 131072)
"""What `original_max_position_embeddings` is in practice; Llama 3's is the first."""
LOW, HIGH = 1.0, 4.0
"""`low_freq_factor` and `high_freq_factor` of Llama 3."""
SCALE_TOLERANCE = 2e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The class of transformers that an architecture of GGUF is read back as, and what only its configuration has."""

    model: str
    model_type: str
    more: Callable[[Settings, dict[str, Any]], dict[str, Any]]
    frequencies: bool = False
    prefix: str = "model."


def llama(settings: Settings, _config: dict[str, Any]) -> dict[str, Any]:
    """Llama 1 to 3; biases are there or not."""
    names = {tensor.name for tensor in settings.header.tensors}
    return {
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_gate.bias" in names,
    }


def qwen(_settings: Settings, _config: dict[str, Any]) -> dict[str, Any]:
    """Qwen2 and Qwen3, which the runtime computes without a sliding window."""
    return {"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False}


def gemma3(settings: Settings, config: dict[str, Any]) -> dict[str, Any]:
    """Gemma 3 text: every sixth layer sees everything, with a rope of its own; the others a window."""
    layers, head_dim = config["num_hidden_layers"], config["head_dim"]
    big = layers == 62  # the 27B model: the runtime knows it by its number of layers (src/models/gemma3.cpp)
    found: dict[str, Any] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"] if big else head_dim,
        "rope_local_base_freq": settings.number("rope.freq_base_swa", 10000.0),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    }
    if settings.value("final_logit_softcapping"):
        found["final_logit_softcapping"] = settings.number("final_logit_softcapping")
    local = settings.flags("attention.sliding_window_pattern")
    if not settings.value("attention.sliding_window"):
        local = [False] * layers
    elif local is None:
        every = settings.integer("attention.sliding_window_pattern", 6)
        local = [(index + 1) % every != 0 for index in range(layers)]
    if len(local) != layers:
        raise UnsupportedModel(
            f"{str(settings.header.path)!r} says which of {len(local)} layers have a window, and it has {layers}"
        )
    found["sliding_window"] = settings.integer("attention.sliding_window", 4096)
    found["layer_types"] = ["sliding_attention" if near else "full_attention" for near in local]
    return found


ARCHITECTURES: Mapping[str, Layout] = {
    "llama": Layout(model="LlamaForCausalLM", model_type="llama", more=llama, frequencies=True),
    "qwen2": Layout(model="Qwen2ForCausalLM", model_type="qwen2", more=qwen),
    "qwen3": Layout(model="Qwen3ForCausalLM", model_type="qwen3", more=qwen),
    "gemma3": Layout(model="Gemma3ForCausalLM", model_type="gemma3_text", more=gemma3),
}
"""general.architecture → how it is read back."""


def config_of(header: GGUFHeader, tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, Any], list[str]]:
    """Return the config.json of the file and the keys that have no place in it.

    Raises UnsupportedModel for an architecture or a setting that cannot be said there, InvalidModel for values that cannot be.
    """
    if header.arch not in ARCHITECTURES:
        raise UnsupportedModel(
            f"the architecture {header.arch!r} of {str(header.path)!r} cannot be read back",
            hint=f"known: {', '.join(ARCHITECTURES)}",
        )
    layout, settings = ARCHITECTURES[header.arch], Settings(header)
    if settings.value("expert_count"):
        raise UnsupportedModel(
            f"{str(header.path)!r} is a mixture of {settings.value('expert_count')} experts, which cannot be read back"
        )
    config = {"architectures": [layout.model], "model_type": layout.model_type} | common(settings, tensors)
    config |= layout.more(settings, config)
    frequencies = tensors.get(FREQUENCIES) if layout.frequencies else None
    config["rope_scaling"] = rope_scaling(settings, config, frequencies)
    settings.used |= {f"{header.arch}.{key}" for key in IGNORED}
    return config, settings.unused()


def common(settings: Settings, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Return what every decoder has. Absent keys mean what they mean to the runtime (src/llama-model.cpp)."""
    header = settings.header
    hidden, heads = settings.integer("embedding_length"), settings.integer("attention.head_count")
    head_dim = settings.integer("attention.key_length", hidden // heads or 1)
    other = {
        "attention.value_length": settings.integer("attention.value_length", hidden // heads or 1),
        "rope.dimension_count": settings.integer("rope.dimension_count", head_dim),
    }
    for key, value in other.items():
        if value != head_dim:
            raise UnsupportedModel(
                f"{str(header.path)!r} has {header.arch}.{key} {value} and heads of {head_dim}",
                hint="the architecture in transformers has one size for all of a head",
            )
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UnsupportedModel(f"{str(header.path)!r} has no matrix 'token_embd.weight'", hint="name a whole model")
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": settings.integer("feed_forward_length"),
        "num_hidden_layers": settings.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": settings.integer("context_length"),
        "rms_norm_eps": settings.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": settings.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def rope_scaling(settings: Settings, config: Mapping[str, Any], stored: StoredTensor | None) -> dict[str, Any] | None:
    """Return the rope scaling of the file, or None. Raises UnsupportedModel for one that transformers has no words for."""
    kind = settings.value("rope.scaling.type")
    factor = settings.value("rope.scaling.factor") or settings.value("rope.scale_linear") or 1.0
    if kind is None:
        kind = "linear" if factor != 1.0 else "none"  # as llama.cpp: linear is the default, and 1 changes nothing
    where = str(settings.header.path)
    if stored is not None:
        divisors = stored.rows(0, stored.shape[0])
        if (divisors != 1).any():
            if kind not in {"none", "linear"} or factor != 1.0 or settings.value("rope.scaling.attn_factor"):
                raise UnsupportedModel(f"{where!r} has both {FREQUENCIES} and the rope scaling {kind!r}")
            return llama3(config, divisors, where)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": settings.number("rope.scaling.factor", factor)}
    if kind == "yarn":
        return yarn(settings)
    raise UnsupportedModel(f"{where!r} has the rope scaling {kind!r}, which cannot be read back")


def yarn(settings: Settings) -> dict[str, Any]:
    """Return YaRN scaling; the file holds what the runtime's own factor of cosine and sine is multiplied by."""
    import math

    factor = settings.number("rope.scaling.factor")
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": settings.integer("rope.scaling.original_context_length"),
    }
    extra = settings.number("rope.scaling.attn_factor", 1.0)
    if extra != 1.0:
        found["attention_factor"] = extra * (0.1 * math.log(factor) + 1.0)
    return found


def llama3(config: Mapping[str, Any], divisors: F32, where: str) -> dict[str, Any]:
    """Return the llama3 scaling that gives DIVISORS, found by trying and by solving for it.

    Between the two wavelengths the blend is linear in 1 / wavelength, so two of its points say both; `low_freq_factor` can then be
    any number, because only its ratio to the others counts, and 1 is what it always is.
    """
    import numpy as np

    factor = float(divisors.max())
    dims = len(divisors)
    wavelength = 2 * np.pi * config["rope_theta"] ** (np.arange(dims) / dims)
    blend = (1 / divisors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    inner = np.flatnonzero((blend > 1e-3) & (blend < 1 - 1e-3))
    guesses = [guess(factor, LOW, HIGH, original) for original in CONTEXTS]
    guesses += [guess(factor, LOW, HIGH, round((blend[at] * (HIGH - LOW) + LOW) * wavelength[at])) for at in inner]
    if not inner.size and (divisors == 1).any():
        guesses.append(guess(factor, LOW, HIGH, int(np.ceil(HIGH * wavelength[divisors == 1].max()))))
    if len(inner) > 1:
        slope, offset = np.polyfit(1 / wavelength[inner], blend[inner], 1)
        if offset < 0 < slope:
            guesses.append(guess(factor, LOW, round(1 - 1 / offset, 4), round(-slope / offset)))
    for scaling in guesses:
        settings = scaling | {"rope_theta": config["rope_theta"]}
        found = llama3_divisors(settings, 2 * dims, config["max_position_embeddings"]).constant
        if found is not None and np.allclose(found, divisors, rtol=SCALE_TOLERANCE, atol=0):
            return scaling
    raise UnsupportedModel(
        f"{where!r} has {FREQUENCIES}, and no llama3 rope scaling gives its {dims} numbers ({divisors[:4].tolist()}, …)",
        hint="a config.json of transformers cannot say this",
    )


def guess(factor: float, low: float, high: float, original: int) -> dict[str, Any]:
    """Return a llama3 scaling."""
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
