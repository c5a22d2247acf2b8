"""Open a path and state its facts; no weights are loaded.

A GGUF file or a Hugging Face folder becomes one `Artifact`, read from checked headers only (`converters.header`,
`converters.weight_files`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from converters.ggml_types import FILE_TYPES
from converters.header import GGUFArray, GGUFHeader, TensorInfo, read_header
from converters.weight_files import read_json, read_weights
from edgeai.errors import InvalidModel, ModelNotFound

__all__ = ["Artifact", "claimed_quant", "open_artifact"]

RANKING = 4
"""LLAMA_POOLING_TYPE_RANK, llama.h."""
SHORT_LIST = 16
"""Arrays up to this length are kept in `metadata`; of longer ones only the length."""
SHORT_LIST_BYTES = 4096
MAX_CONFIG_BYTES = 4_000_000
NO_TOKEN = 0xFFFFFFFF
"""-1 as u32: how some converters write "there is no such token"."""
UNNAMED = {"model", "ggml-model", "pytorch_model", ""}
PARENT_KEYS = ("general.base_model.0.repo_url", "general.base_model.0.name", "edgeai.source.sha256")
EMBEDDINGS = ("token_embd.", "output.", "token_types.", "position_embd.")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")
QUANT_SUFFIX = re.compile(r"[.\-_](?:(?:I?Q\d|TQ\d|MXFP4|NVFP4)\w*|F16|FP16|BF16|F32|FP32)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Facts of a model file.

    `context` is the trained context in tokens, `quant` what most of the block weights really are (see
    `claimed_quant`), `bpw` bits per weight over all tensors, `types` tensor type → number of tensors. `sha256` is
    None unless it is known without hashing. `metadata` has the scalar values and short arrays of the header, the values
    of each layer, and the length of longer arrays. `parent` names what it was made from: a repository, or the sha256 of
    the source. `tensors` are those of a GGUF file.
    """

    path: Path
    name: str
    format: Literal["gguf", "hf", "onnx"]
    arch: str
    params: int
    context: int | None
    quant: str
    bpw: float
    vocab: int
    bos: int | None
    eos: int | None
    template: str | None
    sha256: str | None = None
    parent: str | None = None
    size_bytes: int
    types: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[TensorInfo, ...] = field(default=(), repr=False)

    @property
    def embedding(self) -> bool:
        """Whether the file gives vectors or scores: it names how the vectors of tokens become one (mean, first, last, or a classifier)."""
        return self.metadata.get(f"{self.arch}.pooling_type") in (1, 2, 3, 4)  # enum llama_pooling_type

    @property
    def positions(self) -> int | None:
        """How many positions the model has learned, beyond which it cannot read; None where it computes them."""
        return next((tensor.shape[1] for tensor in self.tensors if tensor.name == "position_embd.weight"), None)

    @property
    def reranker(self) -> bool:
        """Whether it scores pairs of texts."""
        return self.metadata.get(f"{self.arch}.pooling_type") == RANKING


def open_artifact(path: Path) -> Artifact:
    """Return the facts of the GGUF file or Hugging Face folder PATH.

    Raises ModelNotFound when there is nothing at PATH, InvalidModel when it is not a whole and valid model.
    """
    # os.path says no where pathlib raises: for a name too long, or with a zero byte
    if os.path.isdir(path):  # noqa: PTH112
        return open_folder(path)
    if not os.path.exists(path):  # noqa: PTH110
        raise ModelNotFound(f"{str(path)!r} is not there", hint="check the path, or see `edgeai list --all` for names")
    if path.suffix == ".safetensors" and (path.parent / "config.json").exists():
        raise InvalidModel(f"{str(path)!r} is one file of a model", hint=f"name its folder: {str(path.parent)!r}")
    return open_gguf(read_header(path))


def open_gguf(header: GGUFHeader) -> Artifact:
    """Return the facts in a GGUF header."""
    where = str(header.path)
    parts = header.kv.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        hint = "join the parts with `llama-gguf-split --merge`"
        raise InvalidModel(f"{where!r} is one part of {parts}", hint=hint)
    params = sum(tensor.elements for tensor in header.tensors)
    if not params:
        raise InvalidModel(f"{where!r} has no weights, only a vocabulary", hint="name the file with the weights")
    tokens = header.kv.get("tokenizer.ggml.tokens", ())
    vocab = tokens.length if isinstance(tokens, GGUFArray) else len(tokens)
    template = header.kv.get("tokenizer.chat_template")
    parent = next((header.kv[key] for key in PARENT_KEYS if header.kv.get(key)), None)
    return Artifact(
        path=header.path,
        name=display_name(header),
        format="gguf",
        arch=header.arch,
        params=params,
        context=positive(header, f"{header.arch}.context_length"),
        quant=real_quant(header),
        bpw=8 * sum(tensor.nbytes for tensor in header.tensors) / params,
        vocab=vocab or positive(header, f"{header.arch}.vocab_size") or 0,
        bos=token_id(header, "bos", vocab),
        eos=token_id(header, "eos", vocab),
        template=template if isinstance(template, str) else None,
        parent=parent if isinstance(parent, str) else None,
        size_bytes=header.file_bytes,
        types=Counter(tensor.type for tensor in header.tensors),
        tensors=header.tensors,
        metadata={key: shorten(header, key, value) for key, value in header.kv.items()},
    )


def display_name(header: GGUFHeader) -> str:
    """Return the file's name without its quant, or the name in the header when the file has none of its own."""
    stem = QUANT_SUFFIX.sub("", header.path.stem)
    if stem.lower() not in UNNAMED:
        return stem
    name = header.kv.get("general.name")
    return name if isinstance(name, str) and name else header.path.parent.name or stem


def positive(header: GGUFHeader, key: str) -> int | None:
    """Return the value of KEY, a count; None when it is absent. Raises InvalidModel when it is not one."""
    value = header.kv.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 < value < 1 << 31:
        raise InvalidModel(f"{str(header.path)!r} is not valid: {key} is {value!r}", hint="convert the model again")
    return value


def token_id(header: GGUFHeader, role: str, vocab: int) -> int | None:
    """Return the id of the bos or eos token; raises InvalidModel when the vocabulary does not have it."""
    key = f"tokenizer.ggml.{role}_token_id"
    value = header.kv.get(key)
    if value is None or value in (NO_TOKEN, -1):
        return None
    if type(value) is not int or value < 0 or (vocab and value >= vocab):
        what = f"{key} is {value!r}, and the vocabulary has {vocab} tokens"
        raise InvalidModel(f"{str(header.path)!r} is not valid: {what}", hint="convert the model again")
    return value


def claimed_quant(artifact: Artifact) -> str | None:
    """Return what a GGUF file says of itself in general.file_type; it can differ from what it is.

    "Q4_K_M" of a model whose rows are not multiples of 256 is mostly Q5_0 and Q8_0: llama.cpp falls back per tensor
    and keeps the name.
    """
    number = artifact.metadata.get("general.file_type")
    return FILE_TYPES.get(number) if isinstance(number, int) else None


def real_quant(header: GGUFHeader) -> str:
    """Return the quant of the file: its claim when the block weights bear it out, else the type most of them have."""
    number = header.kv.get("general.file_type")
    claim = FILE_TYPES.get(number) if isinstance(number, int) else None
    most = dominant(header.tensors)
    return claim if claim is not None and bears_out(claim, most) else most


def dominant(tensors: Iterable[TensorInfo]) -> str:
    """Return the type with the most bytes, embeddings aside: they are a third of a small model and often kept finer."""
    tensors = tuple(tensors)
    blocks: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1 and not tensor.name.startswith(EMBEDDINGS):
            blocks[tensor.type] += tensor.nbytes
    if not blocks:
        for tensor in tensors:
            blocks[tensor.type] += tensor.nbytes
    return blocks.most_common(1)[0][0]


def bears_out(claim: str, most: str) -> bool:
    """Return whether a file of mostly type MOST may be called CLAIM: Q4_K_M is Q4_K, IQ2_M is any IQ2, and so on."""
    if claim.startswith("IQ"):
        return most.startswith(claim[:3])
    return most == claim or claim.startswith(f"{most}_")


def shorten(header: GGUFHeader, key: str, value: Any) -> Any:
    """Return VALUE for `metadata`: scalars and short arrays as they are, of others the length."""
    if isinstance(value, GGUFArray):
        short = value.length <= SHORT_LIST and value.size <= SHORT_LIST_BYTES
        return tuple(header.array(key)) if short else value.length
    if isinstance(value, tuple) and len(value) > SHORT_LIST and not key.startswith(f"{header.arch}."):
        return len(value)
    return value


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
