"""The facts of a GGUF file, from its checked header."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from converters.ggml_types import FILE_TYPES
from converters.header import GGUFArray, GGUFHeader, TensorInfo
from edgeai.artifact.facts import UNNAMED, Artifact
from edgeai.errors import InvalidModel

__all__ = ["claimed_quant", "dominant", "open_gguf"]

SHORT_LIST = 16
"""Arrays up to this length are kept in `metadata`; of longer ones only the length."""
SHORT_LIST_BYTES = 4096
NO_TOKEN = 0xFFFFFFFF
"""-1 as u32: how some converters write "there is no such token"."""
PARENT_KEYS = ("general.base_model.0.repo_url", "general.base_model.0.name", "edgeai.source.sha256")
EMBEDDINGS = ("token_embd.", "output.", "token_types.", "position_embd.")
QUANT_SUFFIX = re.compile(r"[.\-_](?:(?:I?Q\d|TQ\d|MXFP4|NVFP4)\w*|F16|FP16|BF16|F32|FP32)$", re.IGNORECASE)


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
