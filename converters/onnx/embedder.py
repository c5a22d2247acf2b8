"""A BERT-like checkpoint → one ONNX graph from token ids to vectors of length 1: encoder, pooling and norm together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.checkpoint import Checkpoint
from converters.errors import ConvertError, UnsupportedModel
from converters.families import ModelPlan
from converters.onnx.export import Dtype, Exported, export_module
from converters.onnx.quiet import quiet

if TYPE_CHECKING:
    import torch

__all__ = ["INPUTS", "embedder_schema", "export_embedder", "load_encoder"]

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "vectors"
POOLINGS = ("mean", "cls", "last")
SHAPE = (2, 16)
"""Texts and tokens of the example that the graph is traced with."""


def load_encoder(checkpoint: Checkpoint) -> torch.nn.Module:
    """Return the encoder of CHECKPOINT in float32, read by transformers. Raises ConvertError where weights are missing."""
    import torch
    import transformers

    with quiet():
        try:
            model, info = transformers.AutoModel.from_pretrained(
                checkpoint.path,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, LookupError, RuntimeError, AttributeError, TypeError) as error:
            failure, model, info = error, None, {}
    if model is None:
        reason = " ".join(str(failure).split())
        raise ConvertError(f"transformers cannot read {str(checkpoint.path)!r}: {reason:.300}")
    absent = [str(name) for name in [*info["missing_keys"], *info["mismatched_keys"]] if "pooler." not in str(name)]
    if absent:
        raise ConvertError(f"transformers finds no weights for {', '.join(sorted(absent)[:6])}")
    encoder: torch.nn.Module = model.eval()
    return encoder


def with_pooling(encoder: torch.nn.Module, pooling: str) -> torch.nn.Module:
    """Return ENCODER with what sentence-transformers does behind it: POOLING over the tokens of the mask, and the norm of one."""
    import torch

    class Embedder(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            # hidden: (batch, length, dim)
            if pooling == "mean":
                mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
                pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            elif pooling == "cls":
                pooled = hidden[:, 0]
            else:
                last = attention_mask.sum(dim=1) - 1  # (batch,)
                at = last.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
                pooled = torch.gather(hidden, 1, at).squeeze(1)
            return torch.nn.functional.normalize(pooled, p=2.0, dim=1)

    return Embedder().eval()


def embedder_schema(name: str, plan: ModelPlan) -> dict[str, Any]:
    """Return the `edgeai.schema` of an embedding model."""
    text = {"kind": "text", "name": "text", "max_tokens": plan.context, "graph": list(INPUTS)}
    return {
        "version": 1,
        "name": name,
        "task": "embedding",
        "inputs": [text],
        "output": {"name": OUTPUT, "kind": "vectors"},
    }


def export_embedder(
    checkpoint: Checkpoint,
    plan: ModelPlan,
    path: Path,
    *,
    name: str,
    dtype: Dtype = "f32",
    metadata: Mapping[str, str] | None = None,
) -> Exported:
    """Write the embedding model CHECKPOINT as the ONNX file PATH, with its schema; batch and length may be any.

    Raises UnsupportedModel for a model that gives scores, ConvertError where torch cannot read or export it.
    """
    import torch

    if plan.pooling not in POOLINGS:
        raise UnsupportedModel(
            f"a model with the pooling {plan.pooling!r} cannot become ONNX",
            hint="rerankers become GGUF files: --to gguf",
        )
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, plan.vocab_size, SHAPE, generator=draw)
    mask = torch.ones(SHAPE, dtype=torch.int64)
    mask[1, SHAPE[1] // 2 :] = 0
    return export_module(
        with_pooling(load_encoder(checkpoint), plan.pooling),
        dict(zip(INPUTS, (ids, mask), strict=True)),
        path,
        schema=embedder_schema(name, plan),
        metadata={"edgeai.pooling": plan.pooling, **(metadata or {})},
        dtype=dtype,
    )
