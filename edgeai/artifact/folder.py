"""The facts of a Hugging Face folder: its configuration and the headers of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.weight_files import read_json, read_weights
from edgeai.artifact.facts import UNNAMED, Artifact
from edgeai.errors import InvalidModel

__all__ = ["MAX_CONFIG_BYTES", "folder_template", "open_folder", "read_text", "whole"]

MAX_CONFIG_BYTES = 4_000_000
SHORT_LIST = 16
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")


def open_folder(folder: Path) -> Artifact:
    """Return the facts of a Hugging Face folder: config.json, tokenizer_config.json and the safetensors headers."""
    path = folder / "config.json"
    if not path.exists():
        raise InvalidModel(f"{str(folder)!r} has no config.json", hint=folder_hint(folder))
    config = read_json(path, MAX_CONFIG_BYTES)
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, dict)  # noqa: S101 - for the type checker
    arch = config.get("model_type")
    if not isinstance(arch, str) or not arch:
        raise InvalidModel(f"{str(path)!r} does not name its model_type: it is {arch!r}", hint="save the model again")
    weights = read_weights(folder)
    params, nbytes = sum(weight.elements for weight in weights), sum(weight.nbytes for weight in weights)
    if not params:
        raise InvalidModel(f"{str(folder)!r} has no weights", hint="save the model again")
    by_type: Counter[str] = Counter()
    for weight in weights:
        by_type[weight.dtype] += weight.nbytes
    parent = config.get("_name_or_path")
    return Artifact(
        path=folder,
        name=folder.resolve().name if folder.name in UNNAMED else folder.name,
        format="hf",
        arch=arch,
        params=params,
        context=next((whole(text, key) for key in CONTEXT_KEYS if key in text), None),
        quant=declared_quant(config) or by_type.most_common(1)[0][0],
        bpw=8 * nbytes / params,
        vocab=whole(text, "vocab_size") or 0,
        bos=whole(text, "bos_token_id", zero=True),
        eos=whole(text, "eos_token_id", zero=True),
        template=folder_template(folder),
        parent=parent if isinstance(parent, str) and parent else None,
        size_bytes=sum(item.stat().st_size for item in folder.iterdir() if item.is_file()),
        types=Counter(weight.dtype for weight in weights),
        metadata={key: brief(value) for key, value in config.items() if not isinstance(value, dict)},
    )


def folder_hint(folder: Path) -> str:
    """Return what to do about a folder without a config.json."""
    files = sorted(folder.glob("*.gguf"))
    if files:
        return f"name the file: {str(files[0])!r}"
    return "name a .gguf file, or a folder with config.json and safetensors files"


def declared_quant(config: Mapping[str, Any]) -> str | None:
    """Return the method in the config's quantization_config, in capitals: GPTQ, AWQ, BITSANDBYTES."""
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return method.upper() if isinstance(method, str) else None


def whole(config: Mapping[str, Any], key: str, *, zero: bool = False) -> int | None:
    """Return the count or id under KEY, the first of a list; None when it is absent or null."""
    value = config.get(key)
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return None
    if type(value) is not int or not (0 if zero else 1) <= value < 1 << 31:
        raise InvalidModel(f"config.json is not valid: {key} is {value!r}", hint="save the model again")
    return value


def folder_template(folder: Path) -> str | None:
    """Return the chat template of a Hugging Face folder: chat_template.jinja, else tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    path = folder / "tokenizer_config.json"
    value = read_json(path, MAX_CONFIG_BYTES).get("chat_template") if path.is_file() else None
    if isinstance(value, list):  # several named ones: {"name": …, "template": …}
        named = [item for item in value if isinstance(item, dict)]
        value = next((item.get("template") for item in named if item.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def read_text(path: Path) -> str:
    """Return the UTF-8 text in PATH, of at most MAX_CONFIG_BYTES."""
    with path.open("rb") as file:
        raw = file.read(MAX_CONFIG_BYTES + 1)
    if len(raw) > MAX_CONFIG_BYTES:
        raise InvalidModel(f"{str(path)!r} has more than {MAX_CONFIG_BYTES} bytes", hint="save the model again")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidModel(f"{str(path)!r} is not UTF-8", hint="save the model again") from None


def brief(value: Any) -> Any:
    """Return VALUE for `metadata`: a long list is its length."""
    if isinstance(value, list):
        return tuple(value) if len(value) <= SHORT_LIST else len(value)
    return value
