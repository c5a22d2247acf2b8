"""Tiny random models of every family, made by transformers, and their logits in torch and in libllama.

`VARIANTS` is the table: one row for each shape of a family that the converter must carry over.
"""

from __future__ import annotations

import ctypes
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.checkpoints import TEMPLATE, tokenizer_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from converters.families import ModelPlan

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
BERT: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
ROBERTA: Mapping[str, Any] = {**BERT, "pad_token_id": 1, "max_position_embeddings": 130, "type_vocab_size": 1}
GPT2: Mapping[str, Any] = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "n_ctx": 128,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
WIDE: Mapping[str, Any] = {"hidden_size": 256, "intermediate_size": 512}
"""Rows that are whole blocks of K-quants."""
GEMMA: Mapping[str, Any] = {
    **BASE,
    "num_hidden_layers": 7,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,
}
"""Seven layers, of which the sixth sees everything, and a window that a prompt is longer than."""
GEMMA_IMAGES: Mapping[str, Any] = {
    "text_config": GEMMA,
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    },
    "mm_tokens_per_image": 4,
    "image_token_index": 5,
}
GRANITE: Mapping[str, Any] = {
    **BASE,
    "attention_multiplier": 0.5,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "logits_scaling": 8.0,
}
LLAMA3_ROPE: Mapping[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500000.0,
}
LINEAR_ROPE: Mapping[str, Any] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
LFM2: Mapping[str, Any] = {
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "num_hidden_layers": 4,
    "block_multiple_of": 32,
}
YARN: Mapping[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 1e6,
}


def gemma_rope(full: Mapping[str, Any], near: float = 1e4) -> dict[str, Any]:
    """Return Gemma's two sets of rotary settings."""
    return {"full_attention": dict(full), "sliding_attention": {"rope_type": "default", "rope_theta": near}}


def longrope(original: int, count: int) -> dict[str, Any]:
    """Return a configuration whose texts of more than ORIGINAL tokens get other rotary frequencies; COUNT is that of frequencies."""
    factors = {
        "short_factor": [1.0 + at / 16 for at in range(count)],
        "long_factor": [1.5 + at for at in range(count)],
    }
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    return {"original_max_position_embeddings": original, "rope_parameters": rope}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model class of transformers, what its configuration gets besides BASE, and the split of its tokenizer.

    `pooling` is the way of pooling that modules.json names, for embedding models. `half_gelu`: so deep that the table in half precision
    from which the runtime takes GELU shows, and torch has to take it from there too.
    """

    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    split: str = "llama3"
    base: Mapping[str, Any] = field(default_factory=lambda: BASE)
    pooling: str | None = None
    half_gelu: bool = False


VARIANTS: Mapping[str, Variant] = {
    "bert": Variant(model="BertModel", base=BERT, pooling="mean"),
    "bert-256-cls": Variant(model="BertModel", base=BERT, config=WIDE, pooling="cls"),
    "bert-masked-lm": Variant(model="BertForMaskedLM", base=BERT, config={"hidden_act": "gelu_new"}, pooling="mean"),
    "bert-roberta": Variant(model="RobertaModel", base=ROBERTA, split="gpt2", pooling="lasttoken"),
    "bert-roberta-masked-lm": Variant(model="RobertaForMaskedLM", base=ROBERTA, split="gpt2", pooling="mean"),
    "bert-xlm-roberta": Variant(model="XLMRobertaModel", base=ROBERTA, config=WIDE, pooling="cls"),
    "gemma3": Variant(model="Gemma3ForCausalLM", base=GEMMA),
    "gemma3-256-untied": Variant(
        model="Gemma3ForCausalLM",
        base=GEMMA,
        config={**WIDE, "tie_word_embeddings": False, "final_logit_softcapping": 3.0},
    ),
    "gemma3-62": Variant(
        model="Gemma3ForCausalLM",
        base=GEMMA,
        half_gelu=True,
        config={"num_hidden_layers": 62, "query_pre_attn_scalar": 16},
    ),
    "gemma3-images": Variant(model="Gemma3ForConditionalGeneration", base=GEMMA_IMAGES),
    "gemma3-no-window": Variant(
        model="Gemma3ForCausalLM", base=GEMMA, config={"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2}
    ),
    "gemma3-pattern": Variant(
        model="Gemma3ForCausalLM",
        base=GEMMA,
        config={"layer_types": ["full_attention", "sliding_attention", "full_attention"], "num_hidden_layers": 3},
    ),
    "gemma3-query": Variant(model="Gemma3ForCausalLM", base=GEMMA, config={"query_pre_attn_scalar": 256}),
    "gemma3-rope": Variant(
        model="Gemma3ForCausalLM",
        base=GEMMA,
        config={"rope_parameters": gemma_rope({"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}, 2e4)},
    ),
    "gemma3-two-layers": Variant(model="Gemma3ForCausalLM", base=GEMMA, config={"num_hidden_layers": 2}),
    "gpt2": Variant(model="GPT2LMHeadModel", base=GPT2, split="gpt2"),
    "gpt2-256-inner": Variant(model="GPT2LMHeadModel", base=GPT2, config={"n_embd": 256, "n_inner": 320}, split="gpt2"),
    "gpt2-untied": Variant(
        model="GPT2LMHeadModel", base=GPT2, config={"n_embd": 96, "tie_word_embeddings": False}, split="gpt2"
    ),
    "granite": Variant(model="GraniteForCausalLM", base=GRANITE),
    "granite-256-tied": Variant(model="GraniteForCausalLM", base=GRANITE, config={**WIDE, "tie_word_embeddings": True}),
    "granite-biases": Variant(
        model="GraniteForCausalLM",
        base=GRANITE,
        config={"attention_bias": True, "mlp_bias": True, "head_dim": 32, "rope_parameters": LLAMA3_ROPE},
    ),
    "granite-defaults": Variant(model="GraniteForCausalLM"),
    "lfm2": Variant(model="Lfm2ForCausalLM", config=LFM2),
    "lfm2-256-untied": Variant(
        model="Lfm2ForCausalLM",
        config={**LFM2, **WIDE, "block_auto_adjust_ff_dim": False, "conv_L_cache": 4, "tie_word_embeddings": False},
    ),
    "lfm2-indexes-yarn": Variant(
        model="Lfm2ForCausalLM", config={**LFM2, "layer_types": None, "full_attn_idxs": [0], "rope_parameters": YARN}
    ),
    "llama": Variant(model="LlamaForCausalLM"),
    "llama-256-tied": Variant(model="LlamaForCausalLM", config={**WIDE, "tie_word_embeddings": True}),
    "llama-biases": Variant(model="LlamaForCausalLM", config={"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": Variant(model="LlamaForCausalLM", config={"head_dim": 32}),
    "llama-linear": Variant(model="LlamaForCausalLM", config={"rope_parameters": LINEAR_ROPE}),
    "llama-llama3": Variant(model="LlamaForCausalLM", config={"rope_parameters": LLAMA3_ROPE}),
    "llama-yarn": Variant(model="LlamaForCausalLM", config={"rope_parameters": YARN}),
    "llama-yarn-bounds": Variant(
        model="LlamaForCausalLM",
        config={"rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5}},
    ),
    "ministral": Variant(
        model="MinistralForCausalLM",
        config={
            "head_dim": 32,
            "sliding_window": 64,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "mistral": Variant(model="MistralForCausalLM", config={"sliding_window": None}),
    "mistral-window": Variant(model="MistralForCausalLM", config={"sliding_window": 64, "head_dim": 32}),
    "mixtral": Variant(model="MixtralForCausalLM", config={"num_local_experts": 4}),
    "mixtral-256-tied": Variant(
        model="MixtralForCausalLM",
        config={**WIDE, "num_local_experts": 8, "num_experts_per_tok": 3, "tie_word_embeddings": True},
    ),
    "olmo2": Variant(model="Olmo2ForCausalLM"),
    "olmo2-256-yarn": Variant(model="Olmo2ForCausalLM", config={**WIDE, "rope_parameters": YARN}),
    "olmo2-tied": Variant(model="Olmo2ForCausalLM", config={"tie_word_embeddings": True}),
    "phi3": Variant(model="Phi3ForCausalLM"),
    "phi3-256-tied-partial": Variant(
        model="Phi3ForCausalLM", config={**WIDE, "tie_word_embeddings": True, "partial_rotary_factor": 0.75}
    ),
    "phi3-long": Variant(model="Phi3ForCausalLM", config=longrope(16, 8)),
    "phi3-long-partial": Variant(model="Phi3ForCausalLM", config={**longrope(16, 6), "partial_rotary_factor": 0.75}),
    "phi3-short": Variant(model="Phi3ForCausalLM", config={**longrope(256, 8), "max_position_embeddings": 1024}),
    "qwen2": Variant(model="Qwen2ForCausalLM", split="qwen2"),
    "qwen2-256-tied": Variant(model="Qwen2ForCausalLM", config={**WIDE, "tie_word_embeddings": True}, split="qwen2"),
    "qwen2-yarn": Variant(model="Qwen2ForCausalLM", config={"rope_parameters": YARN}, split="qwen2"),
    "qwen3": Variant(model="Qwen3ForCausalLM", config={"head_dim": 32}, split="qwen2"),
    "qwen3-256-tied": Variant(
        model="Qwen3ForCausalLM", config={**WIDE, "head_dim": 64, "tie_word_embeddings": True}, split="qwen2"
    ),
    "qwen3-yarn": Variant(model="Qwen3ForCausalLM", config={"head_dim": 16, "rope_parameters": YARN}, split="qwen2"),
    "smollm3": Variant(model="SmolLM3ForCausalLM", config={"num_hidden_layers": 5}),
    "smollm3-256-untied": Variant(
        model="SmolLM3ForCausalLM", config={**WIDE, "num_hidden_layers": 4, "tie_word_embeddings": False}
    ),
    "smollm3-yarn": Variant(
        model="SmolLM3ForCausalLM", config={"num_hidden_layers": 4, "head_dim": 32, "rope_parameters": YARN}
    ),
}


Variants = Callable[[str], Path]
"""Name of a row → its folder."""


def make_variant(folder: Path, variant: Variant, **config: Any) -> Path:
    """Write a random model of VARIANT with a byte-level tokenizer into FOLDER; CONFIG changes its configuration. The seed is fixed."""
    import torch
    import transformers

    text = tokenizer_json(variant.split)
    model_class = getattr(transformers, variant.model)
    size = len(json.loads(text)["model"]["vocab"]) + 8
    given = {**variant.base, "vocab_size": size, **variant.config, **config}
    if "text_config" in given:  # the language model of one that also reads images
        given["text_config"] = {**given["text_config"], "vocab_size": given.pop("vocab_size")}
    settings = model_class.config_class(**given)
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
    if variant.pooling:
        add_modules(folder, pooling_mode=variant.pooling)
    return folder


def add_modules(folder: Path, *more: str, **pooling: Any) -> None:
    """Write what sentence-transformers writes beside the weights: a model, POOLING, and MORE modules by class."""
    kinds = ["Transformer", "Pooling", *more]
    modules = [
        {
            "idx": at,
            "name": str(at),
            "path": f"{at}_{kind}" if at else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for at, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")


def write_f32(folder: Path, path: Path, change: Callable[[ModelPlan], ModelPlan] = lambda plan: plan) -> Path:
    """Convert the checkpoint in FOLDER to the GGUF file PATH in F32, without the proof; CHANGE breaks the plan on purpose."""
    from converters.checkpoint import open_checkpoint
    from converters.families import plan_model
    from converters.gguf import write_model
    from converters.quantmap import plan_types
    from converters.tokenizer import read_vocabulary

    checkpoint = open_checkpoint(folder)
    plan = change(plan_model(checkpoint))
    write_model(path, plan, read_vocabulary(checkpoint, plan.vocab_size), plan_types(plan, "F32"), {})
    return path


def some_ids(vocab_size: int, count: int = PROMPT + DECODED) -> list[int]:
    """Return COUNT token ids drawn from the whole vocabulary, the same every time."""
    import numpy as np

    found: list[int] = np.random.default_rng(3).integers(0, vocab_size, count).tolist()
    return found


@contextmanager
def gelu_in_half(active: bool) -> Iterator[None]:
    """Round before and after GELU to half precision in torch, as libggml's table does (GGML_GELU_FP16 in ggml-cpu/vec.h)."""
    import torch
    from torch.nn import functional

    usual = functional.gelu

    def rounded(values: torch.Tensor, approximate: str = "none") -> torch.Tensor:
        halves = usual(values.half().float(), approximate=approximate).half().float()
        return torch.where(values <= -10, 0.0, torch.where(values >= 10, values, halves))

    with pytest.MonkeyPatch.context() as patch:
        if active:
            patch.setattr(functional, "gelu", rounded)
        yield


def torch_logits(folder: Path, ids: list[int], *, half_gelu: bool = False) -> F32:
    """Return the logits of every position of IDS in torch, (positions, vocab)."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    with gelu_in_half(half_gelu), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.inference_mode():
            rows: F32 = model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    return rows


def load(path: Path) -> Any:
    """Load the file PATH on the CPU, in the plain layout of its weights."""
    from edgeai.native import library

    lib = library()

    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, False
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"libllama does not load {path}"
    return model


def fill(batch: Any, ids: list[int], start: int) -> None:
    """Put IDS into BATCH, at the positions from START."""
    batch.n_tokens = len(ids)
    for index, token in enumerate(ids):
        batch.token[index], batch.pos[index], batch.logits[index] = token, start + index, 1
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0


def libllama_logits(path: Path, ids: list[int], prompt: int = PROMPT, adapter: Path | None = None) -> F32:
    """Return libllama's logits of every position of IDS: PROMPT tokens at once, the rest one by one with the cache.

    ADAPTER is a LoRA adapter that is put on the model at a scale of 1.
    """
    import numpy as np

    from converters import native_child
    from edgeai.native import library

    lib = library()

    model = load(path)
    lora = native_child.load_adapter(lib, model, str(adapter)) if adapter else None
    settings = lib.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(64, len(ids))
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = lib.GGML_TYPE_F32
    settings.flash_attn_type = 0
    context = lib.llama_init_from_model(model, settings)
    assert context, "libllama makes no context"
    if lora:
        native_child.put_on(lib, context, lora)
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    rows = []
    batch = lib.llama_batch_init(len(ids), 0, 1)
    for start, part in [(0, ids[:prompt]), *((at, ids[at : at + 1]) for at in range(prompt, len(ids)))]:
        fill(batch, part, start)
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


def torch_vectors(folder: Path, ids: list[int]) -> F32:
    """Return the last hidden state of every position of IDS in torch, (positions, hidden)."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        rows: F32 = model(torch.tensor([ids])).last_hidden_state[0].float().numpy()
    return rows


def libllama_vectors(path: Path, ids: list[int], *, pooled: bool = False) -> F32:
    """Return libllama's vectors of every position of IDS, (positions, hidden); POOLED: the pooled one, (1, hidden)."""
    import numpy as np

    from edgeai.native import library

    lib = library()

    model = load(path)
    settings = lib.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(64, len(ids))
    settings.n_threads = settings.n_threads_batch = 1
    settings.embeddings, settings.flash_attn_type = True, 0
    settings.pooling_type = lib.LLAMA_POOLING_TYPE_UNSPECIFIED if pooled else lib.LLAMA_POOLING_TYPE_NONE
    context = lib.llama_init_from_model(model, settings)
    assert context, "libllama makes no context"
    batch = lib.llama_batch_init(len(ids), 0, 1)
    fill(batch, ids, 0)
    assert lib.llama_encode(context, batch) == 0
    count, size = 1 if pooled else len(ids), lib.llama_model_n_embd(model)
    found = lib.llama_get_embeddings_seq(context, 0) if pooled else lib.llama_get_embeddings(context)
    rows: F32 = np.ctypeslib.as_array(ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (count, size)).copy()
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return rows
