"""The networks of texts: an encoder from nothing, and a head on an encoder that is there already."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import nn

from edgeai.declared import choice, number
from edgeai.training.tasks.numeric_networks import MANY, Mlp, MlpShape

__all__ = ["BertShape", "EmbedderHead", "EmbedderHeadShape", "TextEncoder", "TextEncoderShape"]

MASKED = -3e4
"""Added to the score of padding: its softmax is 0, and half precision holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderShape:
    """What a TextEncoder is built from."""

    vocab_size: int = number(1, MANY)
    max_tokens: int = number(1, 8192)
    hidden_size: int = number(1, 65536)
    intermediate_size: int = number(1, 2**20)
    layers: int = number(1, 128)
    heads: int = number(1, 1024)
    outputs: int = number(1, MANY)
    dropout: float = number(0.0, 0.9)


class EncoderLayer(nn.Module):
    """Attention to all tokens, then two linear layers, each on a normalised copy and added (pre-norm)."""

    def __init__(self, shape: TextEncoderShape) -> None:
        super().__init__()
        size = shape.hidden_size
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.mlp_norm = nn.LayerNorm(size)
        self.up = nn.Linear(size, shape.intermediate_size)
        self.down = nn.Linear(shape.intermediate_size, size)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (batch, length, hidden) for HIDDEN of that shape; MASK (batch, 1, 1, length) is added to the scores."""
        batch, length, size = hidden.shape
        parts = self.qkv(self.attention_norm(hidden)).view(batch, length, 3, self.heads, size // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (batch, heads, length, head)
        scores = query @ key.transpose(2, 3) * (size // self.heads) ** -0.5 + mask
        seen = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, size)
        hidden = hidden + self.dropout(self.out(seen))
        return hidden + self.dropout(self.down(F.gelu(self.up(self.mlp_norm(hidden)))))


class TextEncoder(nn.Module):
    """A small transformer encoder; the mean of its tokens' vectors goes through one linear layer."""

    def __init__(self, shape: TextEncoderShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.positions = nn.Embedding(shape.max_tokens, shape.hidden_size)
        self.dropout = nn.Dropout(shape.dropout)
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.hidden_size)
        self.head = nn.Linear(shape.hidden_size, shape.outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.05)  # the 0.02 of large models is slow to leave at this width
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (batch, outputs) for INPUT_IDS and ATTENTION_MASK (batch, length), int64; 0 in the mask is padding."""
        hidden = self.dropout(self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]])
        kept = attention_mask.to(hidden.dtype)
        mask = (1.0 - kept)[:, None, None, :] * MASKED
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.head(mean_of_tokens(self.norm(hidden), kept))


def mean_of_tokens(hidden: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the mean (batch, size) of HIDDEN (batch, length, size) over the tokens that KEPT (batch, length) has 1 for."""
    return (hidden * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True).clamp(min=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BertShape:
    """What a BERT is built from, by the names that its own config.json has."""

    vocab_size: int = number(1, MANY)
    hidden_size: int = number(1, 65536)
    num_hidden_layers: int = number(1, 128)
    num_attention_heads: int = number(1, 1024)
    intermediate_size: int = number(1, 2**20)
    hidden_act: str = choice(("gelu", "gelu_new", "relu", "silu"))
    max_position_embeddings: int = number(1, 2**20)
    type_vocab_size: int = number(1, 1024)
    layer_norm_eps: float = number(0.0, 1.0)
    pad_token_id: int = number(0, MANY)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderHeadShape:
    """How the vectors of tokens become one, and what an EmbedderHead's last layers are built from."""

    pooling: str = choice(("mean", "cls"))
    normalize: bool
    hidden_size: int = number(1, 65536)
    layers: int = number(0, 8)
    outputs: int = number(1, MANY)
    dropout: float = number(0.0, 0.9)


class EmbedderHead(nn.Module):
    """An Mlp on the vector that a sentence-transformers model of the BERT family gives a text."""

    def __init__(self, bert: BertShape, shape: EmbedderHeadShape) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(**asdict(bert), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        config._attn_implementation = "eager"  # the other ones choose their kernels while they run, which no graph can
        self.encoder = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
        self.pooling, self.normalize = shape.pooling, shape.normalize
        self.head = Mlp(
            MlpShape(
                inputs=bert.hidden_size,
                hidden_size=shape.hidden_size,
                layers=shape.layers,
                outputs=shape.outputs,
                dropout=shape.dropout,
            )
        )

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (batch, size), the vectors of the texts."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.to(hidden.dtype)
        vector = hidden[:, 0] if self.pooling == "cls" else mean_of_tokens(hidden, kept)
        return F.normalize(vector, dim=1) if self.normalize else vector

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (batch, outputs) for INPUT_IDS and ATTENTION_MASK (batch, length), int64."""
        return self.head(self.embed(input_ids, attention_mask))
