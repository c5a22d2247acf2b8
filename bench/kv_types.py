"""What a KV cache in fewer bits costs: KL divergence to the cache in F16, the same best token, bytes per token.

    python bench/kv_types.py [--model smollm2] [--tokens 2048] [--quick]

Text: Python's own help texts. Every position of windows of 512 tokens counts; the weights are the same file for all types.
"""

from __future__ import annotations

import argparse
from pydoc_data import topics
from typing import Any

import numpy as np
from measure import save

from edgeai.device import probe
from edgeai.engines.llamacpp.handle import Handle
from edgeai.engines.llamacpp.scoring import decode_with_logits
from edgeai.plan import KVType, LoadOptions
from edgeai.store import Store

WINDOW, STEP = 512, 64
KINDS: tuple[KVType, ...] = ("f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


class Run:
    """A model with a KV cache of one type."""

    def __init__(self, name: str, kind: KVType) -> None:
        from edgeai.engines.llamacpp.vocab import Vocab
        from edgeai.engines.opening import planned

        path = Store.open().find(name)
        self.handle = Handle(*planned(path, LoadOptions(ctx=WINDOW, streams=1, kv_type=kind)))
        self.vocab = Vocab(self.handle)
        shares = self.handle.placement.shares
        self.bytes_per_token = sum(share.kv_bytes for share in shares) / self.handle.lib.llama_n_ctx(
            self.handle.context
        )

    def log_probabilities(self, ids: list[int], start: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return log softmax at each of IDS, (tokens, vocab), which follow START tokens of the same window."""
        if not start:
            self.handle.clear()
        rows = decode_with_logits(self.handle, ids, start, [True] * len(ids))
        assert rows is not None
        found = rows.astype(np.float64)
        found -= found.max(axis=1, keepdims=True)
        return found - np.log(np.exp(found).sum(axis=1, keepdims=True))


def compare(reference: Run, other: Run, ids: list[int]) -> dict[str, float]:
    """Return KL(reference ‖ other) in nats and how often both have the same best token."""
    kls, same = [], []
    outputs = reference.handle.n_outputs
    step = 1 << (min(STEP, outputs).bit_length() - 1)  # divides a window
    for at in range(0, len(ids), step):
        part = ids[at : at + step]
        left, right = (run.log_probabilities(part, at % WINDOW) for run in (reference, other))
        kls.append((np.exp(left) * (left - right)).sum(axis=1))
        same.append(left.argmax(axis=1) == right.argmax(axis=1))
    kl = np.concatenate(kls)
    return {
        "kl_mean": float(kl.mean()),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "same_top_1": float(np.concatenate(same).mean()),
        "bytes_per_token": other.bytes_per_token,
    }


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--quick", action="store_true", help="512 tokens, two types; nothing is saved")
    arguments = parser.parse_args()
    probe()
    reference = Run(arguments.model, "f16")
    count = 512 if arguments.quick else arguments.tokens
    ids = reference.vocab.tokenize("\n".join(topics.topics.values()))[: count // WINDOW * WINDOW]
    found: dict[str, Any] = {"model": arguments.model, "tokens": len(ids)}
    found["f16"] = {"bytes_per_token": reference.bytes_per_token}
    for kind in ("q8_0", "q4_0") if arguments.quick else KINDS:
        other = Run(arguments.model, kind)  # type: ignore[arg-type]
        found[kind] = compare(reference, other, ids)
        other.handle.free()
    save("kv_types", found, keep=not arguments.quick)


if __name__ == "__main__":
    main()
