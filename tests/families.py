"""Tiny random models of every family, made by transformers, and their logits in torch and in libllama.

`VARIANTS` is the table: one row for each shape of a family that the converter must carry over.
"""

from __future__ import annotations

import ctypes
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.checkpoints import TEMPLATE, tokenizer_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

PROMPT, DECODED = 24, 4
"""Tokens that are computed at once, and tokens that follow one by one with the cache."""
BASE: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WIDE: Mapping[str, Any] = {"hidden_size": 256, "intermediate_size": 512}
"""Rows that are whole blocks of K-quants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model class of transformers, what its configuration gets besides BASE, and the split of its tokenizer."""

    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    split: str = "llama3"
    base: Mapping[str, Any] = field(default_factory=lambda: BASE)


VARIANTS: Mapping[str, Variant] = {
    "llama": Variant(model="LlamaForCausalLM"),
    "llama-256-tied": Variant(model="LlamaForCausalLM", config={**WIDE, "tie_word_embeddings": True}),
    "llama-biases": Variant(model="LlamaForCausalLM", config={"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": Variant(model="LlamaForCausalLM", config={"head_dim": 32}),
    "mistral": Variant(model="MistralForCausalLM", config={"sliding_window": None}),
    "qwen2": Variant(model="Qwen2ForCausalLM", split="qwen2"),
    "qwen2-256-tied": Variant(model="Qwen2ForCausalLM", config={**WIDE, "tie_word_embeddings": True}, split="qwen2"),
    "qwen2-yarn": Variant(
        model="Qwen2ForCausalLM",
        config={
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "rope_theta": 1e6,
            }
        },
        split="qwen2",
    ),
}


def make_variant(folder: Path, variant: Variant, **config: Any) -> Path:
    """Write a random model of VARIANT with a byte-level tokenizer into FOLDER; CONFIG changes its configuration. The seed is fixed."""
    import torch
    import transformers

    text = tokenizer_json(variant.split)
    model_class = getattr(transformers, variant.model)
    size = len(json.loads(text)["model"]["vocab"]) + 8
    settings = model_class.config_class(**{**variant.base, "vocab_size": size, **variant.config, **config})
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(7)
        model = model_class(settings).to(torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():  # random enough that every tensor matters, norms and biases too
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def write_f32(folder: Path, path: Path) -> Path:
    """Convert the checkpoint in FOLDER to the GGUF file PATH in F32, without the proof."""
    from converters.checkpoint import open_checkpoint
    from converters.families import plan_model
    from converters.gguf import write_model
    from converters.quantmap import plan_types
    from converters.tokenizer import read_vocabulary

    checkpoint = open_checkpoint(folder)
    plan = plan_model(checkpoint)
    write_model(path, plan, read_vocabulary(checkpoint, plan.vocab_size), plan_types(plan, "F32"), {})
    return path


def some_ids(vocab_size: int, count: int = PROMPT + DECODED) -> list[int]:
    """Return COUNT token ids drawn from the whole vocabulary, the same every time."""
    import numpy as np

    found: list[int] = np.random.default_rng(3).integers(0, vocab_size, count).tolist()
    return found


def torch_logits(folder: Path, ids: list[int]) -> F32:
    """Return the logits of every position of IDS in torch, (positions, vocab)."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        rows: F32 = model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    return rows


def libllama_logits(path: Path, ids: list[int], prompt: int = PROMPT) -> F32:
    """Return libllama's logits of every position of IDS: PROMPT tokens at once, the rest one by one with the cache."""
    import numpy as np
    from llama_cpp import llama_cpp as lib

    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, False
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"libllama does not load {path}"
    settings = lib.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(64, len(ids))
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = lib.GGML_TYPE_F32
    settings.flash_attn_type = 0
    context = lib.llama_init_from_model(model, settings)
    assert context, "libllama makes no context"
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    rows = []
    batch = lib.llama_batch_init(len(ids), 0, 1)
    for start, part in [(0, ids[:prompt]), *((at, ids[at : at + 1]) for at in range(prompt, len(ids)))]:
        batch.n_tokens = len(part)
        for index, token in enumerate(part):
            batch.token[index], batch.pos[index], batch.logits[index] = token, start + index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        assert lib.llama_decode(context, batch) == 0
        logits = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
        rows.append(np.ctypeslib.as_array(logits, (len(part), size)).copy())
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return np.concatenate(rows)


def nmse(reference: F32, candidate: F32) -> float:
    """Return Σ(candidate - reference)² / Σ reference²."""
    return float(((candidate - reference) ** 2).sum() / (reference**2).sum())
