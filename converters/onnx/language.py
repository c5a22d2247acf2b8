"""A Hugging Face checkpoint → a folder that onnxruntime-genai runs, built by its own model builder in a child process."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.checkpoint import Checkpoint
from converters.child import Child, ChildDied, ChildFailed
from converters.errors import ConvertError
from converters.families import ModelPlan
from converters.onnx.choices import Choices, check_types
from converters.onnx.header import Header, read_header
from converters.onnx.matrices import matrices
from converters.scratch import Scratch
from converters.tokenizer import Vocabulary

__all__ = ["GENAI_CONFIG", "MODEL", "build", "built_bytes", "needed_bytes"]

BUILDER = Path(__file__).with_name("builder_child.py")
GENAI_CONFIG, MODEL = "genai_config.json", "model.onnx"
BUILDER_BYTES = 700 << 20
"""What torch, transformers and the builder take in memory before there is a model."""
WINDOW_SLACK = 64
"""Tokens that a cache of a window has room for besides the window: as many as are read at once."""
TOKEN_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def built_bytes(plan: ModelPlan, choices: Choices) -> int:
    """Return about how large the folder will be."""
    return int(plan.parameters * choices.precision.bits / 8)


def needed_bytes(plan: ModelPlan) -> int:
    """Return about what the builder takes of memory: the weights in float32, and once more while they are packed (SmolLM2: 1.78 GB)."""
    return BUILDER_BYTES + int(plan.parameters * 4 * 2.1)


def build(
    checkpoint: Checkpoint, plan: ModelPlan, vocabulary: Vocabulary, choices: Choices, folder: Path, *, threads: int
) -> Header:
    """Write the model of CHECKPOINT into the empty FOLDER as CHOICES say, with its tokenizer; return the structure of the graph.

    Raises ConvertError with the builder's own reason where it cannot, OSError where the disk is full. Nothing that it prints reaches the
    terminal.
    """
    with Scratch() as cache:
        request = {
            "source": str(checkpoint.path.resolve()),
            "output": str(folder.resolve()),
            "cache": cache,
            "precision": choices.precision.precision,
            "provider": choices.precision.provider,
            "options": dict(choices.options),
            "nodes": dict(choices.nodes),
            "stop": list(vocabulary.stop_ids) or [vocabulary.eos if vocabulary.eos is not None else 0],
            "bos": vocabulary.bos,
            "threads": threads,
        }
        try:
            with Child(BUILDER, request, what="building the ONNX model") as child:
                child.result()
        except ChildFailed as error:
            for number in (errno.ENOSPC, errno.EDQUOT):
                if f"[Errno {number}]" in error.reason:
                    raise OSError(number, os.strerror(number), str(folder)) from error
            raise ConvertError(
                f"onnxruntime-genai's builder cannot convert this model: {error.reason}", hint=error.hint
            ) from error
        except ChildDied as error:
            raise ConvertError(f"onnxruntime-genai's builder died: {error.message}", hint=error.hint) from error
    write_tokenizer(folder, vocabulary)
    settle(folder / GENAI_CONFIG, plan, vocabulary)
    header = read_header(folder / MODEL)
    check_types(choices, {name: matrix.bits for name, matrix in matrices(header).items()})
    return header


def write_tokenizer(folder: Path, vocabulary: Vocabulary) -> None:
    """Write the tokenizer as it is in the source, in place of what transformers made of it."""
    spec = {**vocabulary.spec, "truncation": None, "padding": None}
    for name in TOKEN_FILES:
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    named = {
        "bos_token": vocabulary.bos,
        "eos_token": vocabulary.eos,
        "pad_token": vocabulary.pad,
        "unk_token": vocabulary.unk,
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{name: vocabulary.tokens[token] for name, token in named.items() if token is not None},
    }
    write_json(folder / "tokenizer_config.json", config)
    if vocabulary.chat_template is not None:
        (folder / "chat_template.jinja").write_text(vocabulary.chat_template, encoding="utf-8")


def settle(path: Path, plan: ModelPlan, vocabulary: Vocabulary) -> None:
    """Put the ends that the source stops at into genai_config.json, and the context that it was trained for."""
    config = json.loads(path.read_text(encoding="utf-8"))
    model = config["model"]
    ends = list(vocabulary.stop_ids)
    if ends:
        model["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    if vocabulary.bos is not None:
        model["bos_token_id"] = vocabulary.bos
    model["pad_token_id"] = vocabulary.pad if vocabulary.pad is not None else (ends or [0])[0]
    model["context_length"] = min(int(model["context_length"]), plan.context)
    window = model["decoder"].get("sliding_window")
    if isinstance(window, dict):
        window["cache_slack"] = WINDOW_SLACK
    config["search"]["max_length"] = model["context_length"]
    write_json(path, config)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write VALUE as JSON that a person can read."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
