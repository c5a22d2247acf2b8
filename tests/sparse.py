"""GGUF files of any size that hold a header and no bytes of weights: holes on the disk, of the shapes of real models.

libllama loads them with `no_alloc` (it computes every buffer and allocates none), so its own sizes are the reference of the planner's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.ggml_types import GGML_TYPES
from converters.gguf_cursor import Cursor
from converters.header import parse
from edgeai.artifact import Artifact, open_gguf

NUMBERS = {kind.name: (number, kind) for number, kind in GGML_TYPES.items()}
Tensors = Mapping[str, tuple[Sequence[int], str]]
"""Name → shape in ggml's order, type."""


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, value: Any) -> bytes:
    """Return one key: bools, ints as u32, floats, strings, and lists of those (ints as i32)."""
    if isinstance(value, bool):
        return text(key) + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    first = value[0]
    if isinstance(first, bool):
        return text(key) + struct.pack(f"<IIQ{len(value)}?", 9, 7, len(value), *value)
    if isinstance(first, int):
        return text(key) + struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))


def header(keys: Mapping[str, Any], tensors: Tensors) -> tuple[bytes, int]:
    """Return the header of a file with KEYS and TENSORS, and the size of the whole file."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))
    head += b"".join(entry(key, value) for key, value in keys.items())
    offset = 0
    for name, (shape, kind_name) in tensors.items():
        number, kind = NUMBERS[kind_name]
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", number, offset)
        elements = 1
        for size in shape:
            elements *= size
        offset += -(-elements // kind.block * kind.size // 32) * 32
    head += bytes(-len(head) % 32)
    return head, len(head) + offset


def imagine(name: str, keys: Mapping[str, Any], tensors: Tensors) -> Artifact:
    """Return the facts of such a file without writing it."""
    head, size = header(keys, tensors)
    return open_gguf(parse(Cursor(path=Path(f"{name}.gguf"), data=head, size=size, at=4)))


def write_sparse(path: Path, keys: Mapping[str, Any], tensors: Tensors) -> Path:
    head, size = header(keys, tensors)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def decoder(
    arch: str, *, layers: int, width: int, heads: int, kv_heads: int | Sequence[int], inner: int, vocab: int = 32000, kind: str = "Q4_K",
    head_dim: int | None = None, experts: int = 0, experts_used: int = 2, tied: bool = False, context: int = 8192,
    conv: int = 0, **more: Any,
) -> tuple[dict[str, Any], dict[str, tuple[Sequence[int], str]]]:  # fmt: skip
    """Return keys and tensors of a decoder of the llama kind: `conv` makes layers without KV heads short convolutions (lfm2)."""
    per_layer = [kv_heads] * layers if isinstance(kv_heads, int) else list(kv_heads)
    size = head_dim or width // heads
    keys: dict[str, Any] = {
        "general.architecture": arch, "general.name": "sparse", f"{arch}.block_count": layers, f"{arch}.context_length": context,
        f"{arch}.embedding_length": width, f"{arch}.feed_forward_length": inner, f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads, f"{arch}.attention.layer_norm_rms_epsilon": 1e-5, f"{arch}.vocab_size": vocab,
        f"{arch}.rope.freq_base": 10000.0, "tokenizer.ggml.model": "no_vocab",
    }  # fmt: skip
    if head_dim:
        keys |= {f"{arch}.attention.key_length": size, f"{arch}.attention.value_length": size}
    if experts:
        keys |= {f"{arch}.expert_count": experts, f"{arch}.expert_used_count": experts_used}
    if conv:
        keys[f"{arch}.shortconv.l_cache"] = conv
    keys |= {f"{arch}.{key.replace('__', '.')}": value for key, value in more.items()}
    tensors: dict[str, tuple[Sequence[int], str]] = {"token_embd.weight": ((width, vocab), kind)}
    norm = "token_embd_norm" if arch == "lfm2" else "output_norm"
    tensors[f"{norm}.weight"] = ((width,), "F32")
    if not tied:
        tensors["output.weight"] = ((width, vocab), kind)
    for at, kv in enumerate(per_layer):
        parts: dict[str, tuple[Sequence[int], str]] = {"attn_norm": ((width,), "F32"), "ffn_norm": ((width,), "F32")}
        if kv:
            parts |= {
                "attn_q": ((width, heads * size), kind), "attn_k": ((width, kv * size), kind), "attn_v": ((width, kv * size), kind),
                "attn_output": ((heads * size, width), kind),
            }  # fmt: skip
        else:
            parts |= {
                "shortconv.conv": ((conv, width), "F32"), "shortconv.in_proj": ((width, 3 * width), kind),
                "shortconv.out_proj": ((width, width), kind),
            }  # fmt: skip
        if arch in ("lfm2", "qwen3", "qwen3moe", "gemma3") and kv:
            parts |= {"attn_q_norm": ((size,), "F32"), "attn_k_norm": ((size,), "F32")}
        if arch in ("gemma2", "gemma3"):
            parts |= {"post_attention_norm": ((width,), "F32"), "post_ffw_norm": ((width,), "F32")}
        if experts:
            parts |= {
                "ffn_gate_inp": ((width, experts), "F32"), "ffn_gate_exps": ((width, inner, experts), kind),
                "ffn_up_exps": ((width, inner, experts), kind), "ffn_down_exps": ((inner, width, experts), kind),
            }  # fmt: skip
        else:
            parts |= {
                "ffn_gate": ((width, inner), kind),
                "ffn_up": ((width, inner), kind),
                "ffn_down": ((inner, width), kind),
            }
        tensors |= {f"blk.{at}.{name}.weight": what for name, what in parts.items()}
    return keys, tensors
