"""BERT and RoBERTa as embedding models (MiniLM, BGE, E5, XLM-R), and as rerankers: a sequence classifier with one score.

Vectors of tokens are pooled; the heads for training are left out.

Sources: `BertConfig`, `modeling_bert.py`, `modeling_roberta.py` in transformers; src/models/bert.cpp in llama.cpp.
"""

from __future__ import annotations

from converters.checkpoint import Checkpoint
from converters.errors import BrokenCheckpoint, UnsupportedModel
from converters.families import Facts, Family, Rule, Warnings
from converters.families.activations import EXACT_GELU, GELU_TABLE_NMSE, GELU_TANH_NMSE, TANH_GELU
from converters.families.decoder import require
from converters.families.pooling import POOLING_KEYS, pooling
from converters.families.settings import COPY_CONFIG, integer, number

__all__ = ["FAMILY"]

CLASSIFIER = "ForSequenceClassification"
LAYER = "{p}encoder.layer.{i}"
FROM_PADDING = ("roberta", "xlm-roberta", "camembert")
"""Values of model_type whose first token has the position pad_token_id + 1 (`create_position_ids_from_input_ids`)."""
PAIRS = (
    ("attn_q", f"{LAYER}.attention.self.query", ("hidden", "hidden")),
    ("attn_k", f"{LAYER}.attention.self.key", ("hidden", "hidden")),
    ("attn_v", f"{LAYER}.attention.self.value", ("hidden", "hidden")),
    ("attn_output", f"{LAYER}.attention.output.dense", ("hidden", "hidden")),
    ("attn_output_norm", f"{LAYER}.attention.output.LayerNorm", ("hidden",)),
    ("ffn_up", f"{LAYER}.intermediate.dense", ("ff", "hidden")),
    ("ffn_down", f"{LAYER}.output.dense", ("hidden", "ff")),
    ("layer_output_norm", f"{LAYER}.output.LayerNorm", ("hidden",)),
)
"""What each layer has: the name in the file, the name in the checkpoint, the shape of the weight; its bias has the first of it."""


def read(checkpoint: Checkpoint) -> Facts:
    """Return the facts of a BERT configuration. Defaults of absent keys are those of `BertConfig` and `RobertaConfig`."""
    config = checkpoint.config
    why = "GGUF's bert architecture always computes"
    require(config, "hidden_act", *EXACT_GELU, *TANH_GELU, why=f"{why} 'gelu'")
    require(config, "position_embedding_type", "absolute", why=f"{why} absolute positions")
    require(config, "is_decoder", False, why=f"{why} attention in both directions")
    require(config, "add_cross_attention", False, why=f"{why} an encoder alone")
    require(config, "pruned_heads", {}, why=f"{why} the same number of heads in every layer")
    hidden, heads = integer(config, "hidden_size", 768), integer(config, "num_attention_heads", 12)
    if hidden % heads:
        raise BrokenCheckpoint(
            f"config.json has hidden_size {hidden} and {heads} attention heads, which do not divide", hint=COPY_CONFIG
        )
    unused = unused_positions(checkpoint)
    context = integer(config, "max_position_embeddings", 512) - unused
    if context < 1:
        raise BrokenCheckpoint(f"config.json leaves {context} positions for tokens", hint=COPY_CONFIG)
    layers, ff = integer(config, "num_hidden_layers", 12, most=4096), integer(config, "intermediate_size", 3072)
    types = integer(config, "type_vocab_size", 2, most=1 << 16)
    ranks = checkpoint.architecture.endswith(CLASSIFIER)
    pooled, warnings = ("rank", ()) if ranks else pooling(checkpoint)
    return Facts(
        sizes={
            "hidden": hidden,
            "ff": ff,
            "vocab": integer(config, "vocab_size", 30522, most=1 << 24),
            "types": types,
            "context": context,
            "unused": unused,
            "labels": labels(checkpoint) if ranks else 0,
        },
        facts=frozenset({"roberta-ranks" if is_roberta(checkpoint) else "bert-ranks"} if ranks else ()),
        head_dim=hidden // heads,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        context=context,
        keys={
            "block_count": layers,
            "context_length": context,
            "embedding_length": hidden,
            "feed_forward_length": ff,
            "attention.head_count": heads,
            "attention.layer_norm_epsilon": number(config, "layer_norm_eps", 1e-12),
            "attention.causal": False,
            "pooling_type": POOLING_KEYS[pooled],
            "tokenizer.ggml.token_type_count": types,
        },
        warnings=warnings + head_left_out(checkpoint),
        pooling=pooled,
        gaps=False,
        activation_nmse=layers * (GELU_TABLE_NMSE if config.get("hidden_act") in TANH_GELU else GELU_TANH_NMSE),
    )


def is_roberta(checkpoint: Checkpoint) -> bool:
    """Whether positions and classifier are those of RoBERTa."""
    kind = checkpoint.model_type or checkpoint.architecture.lower()
    return kind.startswith(FROM_PADDING) or checkpoint.architecture.lower().startswith(("roberta", "xlmroberta"))


def labels(checkpoint: Checkpoint) -> int:
    """Return 1, the number of scores of a reranker. Raises UnsupportedModel for a classifier with more."""
    named = checkpoint.config.get("id2label")
    count = checkpoint.config.get("num_labels", len(named) if isinstance(named, dict) else 2)
    if count != 1:
        raise UnsupportedModel(
            f"{checkpoint.architecture} has {count!r} labels, and a reranker has one score",
            hint="a classifier into several classes is no model that the runtime ranks with",
        )
    return 1


def unused_positions(checkpoint: Checkpoint) -> int:
    """Return how many rows of the position embeddings come before that of the first token."""
    if not is_roberta(checkpoint):
        return 0
    padding = checkpoint.config.get("pad_token_id", 1)
    if type(padding) is not int or not 0 <= padding < 1 << 16:
        raise UnsupportedModel(
            f"config.json has pad_token_id {padding!r}, and positions are counted from it", hint=COPY_CONFIG
        )
    return padding + 1


def head_left_out(checkpoint: Checkpoint) -> Warnings:
    """Return a warning where the source predicts words, which the file will not."""
    if not checkpoint.architecture.endswith(("ForMaskedLM", "ForPreTraining")):
        return ()
    message = f"{checkpoint.architecture} becomes an embedding model: the head that predicts words is left out"
    return (("head-left-out", message),)


def both(target: str, source: str, shape: tuple[str, ...], when: str | None = None) -> tuple[Rule, Rule]:
    """Return the rules for a weight and its bias."""
    weight = Rule(target=f"{target}.weight", source=f"{source}.weight", shape=shape, when=when)
    return weight, Rule(target=f"{target}.bias", source=f"{source}.bias", shape=shape[:1], when=when)


EMBEDDINGS = "{p}embeddings"
FAMILY = Family(
    architecture="bert",
    read=read,
    prefixes=("bert.", "roberta.", ""),
    aliases=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),  # TensorFlow's names in the first checkpoints
    once_before=(
        Rule(target="token_embd.weight", source=f"{EMBEDDINGS}.word_embeddings.weight", shape=("vocab", "hidden")),
        Rule(
            target="position_embd.weight",
            source=f"{EMBEDDINGS}.position_embeddings.weight",
            shape=("context", "hidden"),
            skip_rows="unused",
        ),
        Rule(
            target="token_types.weight", source=f"{EMBEDDINGS}.token_type_embeddings.weight", shape=("types", "hidden")
        ),
        *both("token_embd_norm", f"{EMBEDDINGS}.LayerNorm", ("hidden",)),
    ),
    per_layer=tuple(rule for target, source, shape in PAIRS for rule in both("blk.{i}." + target, source, shape)),
    once_after=(
        *both("cls", "{p}pooler.dense", ("hidden", "hidden"), "bert-ranks"),
        *both("cls.output", "classifier", ("labels", "hidden"), "bert-ranks"),
        *both("cls", "classifier.dense", ("hidden", "hidden"), "roberta-ranks"),
        *both("cls.output", "classifier.out_proj", ("labels", "hidden"), "roberta-ranks"),
    ),
    ignored=(
        r"((ro)?bert(a)?\.)?embeddings\.(position_ids|token_type_ids)",
        r"((ro)?bert(a)?\.)?pooler\.dense\.(weight|bias)",  # for the task "next sentence"
        r"cls\.(predictions|seq_relationship)\..*",
        r"lm_head\..*",
    ),
)
