"""A trained model → an HF folder: weights, tokenizer, configurations, and edgeai.json, which says how it was made."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer

from edgeai import __version__
from edgeai.training import tokenizer as bpe
from edgeai.training.recipe import Recipe
from edgeai.training.settings import BaseRecipe, TokenizerSettings

__all__ = ["LINEAGE_VERSION", "file_sha256", "lineage", "round_weights", "save_tensors", "write_folder", "write_json"]

LINEAGE_VERSION = 1
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
GENERATION = {"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.95}


def round_weights(model: Any, dtype: str) -> None:
    """Round the fp32 weights of MODEL to what DTYPE can hold, so that what is evaluated is what is exported."""
    kind = DTYPES[dtype]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(kind).float())


def write_folder(folder: Path, model: Any, tokenizer: Tokenizer, recipe: Recipe, facts: Mapping[str, Any]) -> None:
    """Write all files of the model into FOLDER, which is empty. Equal arguments give equal bytes."""
    kind = DTYPES[recipe.export.dtype]
    tensors = {name: value.detach().to("cpu", kind).contiguous() for name, value in model.state_dict().items()}
    if recipe.model.tie_embeddings:
        del tensors["lm_head.weight"]  # it is the embedding, and tie_word_embeddings in config.json says so
    weights = folder / "model.safetensors"
    save_tensors(tensors, weights)
    (folder / "tokenizer.json").write_text(bpe.dump(tokenizer), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", bpe.config(context=recipe.model.context))
    ids = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", GENERATION | ids)
    write_json(folder / "edgeai.json", facts)
    write_json(folder / "config.json", _config(model, recipe))
    weights.chmod((folder / "config.json").stat().st_mode)  # safetensors makes its files readable by the owner alone


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write TENSORS to PATH; what the disk refuses is an OSError, as for every other file.

    The library has an error of its own, with the system's number in its text: `I/O error: … (os error 28)`.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from error


CONFIG_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
)


def _config(model: Any, recipe: Recipe) -> dict[str, Any]:
    """Return config.json: what transformers 5 reads, and the two keys by which older readers know the same."""
    values = model.config.to_dict()
    dtype = {"fp16": "float16", "fp32": "float32"}[recipe.export.dtype]
    return {
        "architectures": ["LlamaForCausalLM"],
        **{key: values[key] for key in CONFIG_KEYS},
        "rope_theta": recipe.model.rope_theta,
        "dtype": dtype,
        "torch_dtype": dtype,
        "transformers_version": values["transformers_version"],
    }


def lineage(
    recipe: BaseRecipe, tokenizer: Tokenizer | None, settings: TokenizerSettings | None, **facts: Any
) -> dict[str, Any]:
    """Return the contents of edgeai.json. It holds no time and no path, so equal runs give equal files.

    SETTINGS are those that the TOKENIZER was trained with; both are None where none was.
    """
    trained = (
        {
            "tokenizer": {
                "pre": settings.pre,
                "sha256": bpe.sha256(tokenizer),
                "vocab_size": tokenizer.get_vocab_size(),
            }
        }
        if tokenizer and settings
        else {}
    )
    return {
        "format": LINEAGE_VERSION,
        "edgeai": __version__,
        "kind": "train",
        "recipe": recipe.to_dict(),
        "recipe_sha256": recipe.sha256,
        **trained,
        "seed": recipe.seed,
        "torch": torch.__version__,
        **facts,
    }


def file_sha256(path: Path) -> str:
    """Return the sha256 of the file at PATH."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write VALUES to PATH."""
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
