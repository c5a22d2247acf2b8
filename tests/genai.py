"""Folders for onnxruntime-genai, built in this process, and the plain loop that is the reference of the engine."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from converters.checkpoint import open_checkpoint
from converters.families import plan_model
from converters.onnx import builder_child, language
from converters.tokenizer import read_vocabulary
from edgeai.artifact import open_artifact
from edgeai.engines.genai.runtime import Runtime
from edgeai.onnxplan import language_plan
from edgeai.plan import LoadOptions

if TYPE_CHECKING:
    import numpy.typing as npt

PART = 64
"""Tokens of a prompt that the engine reads at once."""


class InProcessBuilder:
    """The builder's child without the child: torch, transformers and the builder are imported once."""

    checked = False

    def __init__(self, _script: Path, request: dict[str, Any], *, what: str) -> None:
        self.request = request

    def __enter__(self) -> InProcessBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to end."""

    def result(self) -> dict[str, Any]:
        import torch

        if "sys.path" not in vars(type(self)):
            with contextlib.suppress(ImportError):
                import onnxruntime_genai.models.builder  # noqa: F401 - puts its folder into sys.path
        from builders.base import Model
        from builders.smollm import SmolLM3Model

        threads = torch.get_num_threads()
        with (
            pytest.MonkeyPatch.context() as patch,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            name = "make_rotary_embedding_caches_from_scratch"
            patch.setattr(Model, name, getattr(Model, name))  # what the child changes for its life is put back
            patch.setattr(Model, "make_tied_embeddings_init", Model.make_tied_embeddings_init)
            name = "make_tied_quantized_embedding_input_names"
            patch.setattr(Model, name, getattr(Model, name))
            for name in ("is_qkv_projection_packable", "to_nbits"):
                patch.setattr(Model, name, getattr(Model, name))
            patch.setattr(SmolLM3Model, "make_attention", SmolLM3Model.make_attention)
            if InProcessBuilder.checked:
                patch.setattr(builder_child, "check", lambda _path: None)  # its schema can be registered once
            found = builder_child.build(self.request)
        InProcessBuilder.checked = True
        torch.set_num_threads(threads)
        return found


def built(source: Path, folder: Path, quant: str = "f32", types: Sequence[str] = ()) -> Path:
    """Build the checkpoint SOURCE into FOLDER, without a proof."""
    from converters.onnx.choices import parse_choices
    from edgeai.exporting.language import whole_context

    checkpoint = open_checkpoint(source)
    plan = whole_context(plan_model(checkpoint), checkpoint.config)
    tied = bool(checkpoint.config.get("tie_word_embeddings", True))
    choices = parse_choices(quant, types, layers=plan.layers, tied=tied)
    vocabulary = read_vocabulary(checkpoint, plan.vocab_size, allow_inexact=True)
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "Child", InProcessBuilder)
        language.build(checkpoint, plan, vocabulary, choices, folder, threads=1)
    return folder


def runtime(folder: Path) -> Runtime:
    """Return the model in FOLDER, loaded on one thread."""
    artifact = open_artifact(folder)
    return Runtime(artifact, language_plan(artifact, LoadOptions(threads=1), lambda _device: False))


def genai_logits(folder: Path, ids: list[int], prompt: int) -> npt.NDArray[np.float32]:
    """Return the logits of every position of IDS: PROMPT tokens in parts as the engine reads them, the rest one by one."""
    generator = runtime(folder).generator(len(ids))
    parts = [ids[at : min(at + PART, prompt)] for at in range(0, prompt, PART)]
    rows = []
    for part in [*parts, *([token] for token in ids[prompt:])]:
        generator.read(part)
        rows.append(generator.all_logits(len(part)))
    return np.concatenate(rows)


def raw_greedy(folder: Path, ids: Sequence[int], count: int, threads: int = 1) -> list[int]:
    """Return the COUNT likeliest tokens after IDS by nothing but onnxruntime_genai, the prompt read in parts of 64."""
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    config.clear_providers()
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + count + 1, batch_size=1)
    generator = og.Generator(model, params)
    for at in range(0, len(ids), PART):
        generator.append_tokens(np.asarray(ids[at : at + PART], np.int32))
    found: list[int] = []
    while len(found) < count:
        found.append(int(generator.get_logits().reshape(-1).argmax()))
        generator.append_tokens(np.asarray(found[-1:], np.int32))
    return found


def changed(source: Path, folder: Path, name: str, change: Callable[[Any], object]) -> Path:
    """Copy the folder SOURCE to FOLDER, with CHANGE applied to the JSON in its file NAME."""
    shutil.copytree(source, folder)
    path = folder / name
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    return folder
