"""Does the native library survive a decode on this CPU? Asked of a child process, so that no application finds out by dying.

A build of llama.cpp by GCC 12 or older dies with SIGSEGV in its AMX kernels on CPUs that have AMX (llama.cpp #20824). Those kernels
are reached through the "extra buffer types" that repack weights; the same build works when they are off. Run as
`python -m edgeai.selftest 1|0` the module is the child: it decodes a generated model of a few hundred kB with (1) or without (0) them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeai import native
from edgeai.childprocess import CRASHES, ending, read_memo, run_module, write_memo
from edgeai.errors import EngineCrashed

__all__ = ["Verdict", "native_verdict"]

TIMEOUT_S = 120.0
Runner = Callable[[bool], subprocess.CompletedProcess[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the library can do here: whether extra buffer types are safe, and if not, how the child ended."""

    extra_bufts: bool
    reason: str | None = None


def native_verdict(cache_dir: Path, cpu: str, *, run: Runner | None = None) -> Verdict:
    """Return the verdict for the installed library on this CPU, from CACHE_DIR when it was already found out.

    Raises EngineCrashed when a decode fails with and without extra buffer types.
    """
    key = f"{native.fingerprint()} {cpu}"
    cache = cache_dir / "selftest.json"
    known = read_memo(cache)
    found = known.get(key)
    if isinstance(found, dict) and isinstance(found.get("extra_bufts"), bool):
        return Verdict(extra_bufts=found["extra_bufts"], reason=found.get("reason"))
    verdict, lasting = _ask(run or _run_child)
    if lasting:
        write_memo(cache, {**known, key: asdict(verdict)})
    return verdict


def _ask(run: Runner) -> tuple[Verdict, bool]:
    """Return the verdict, and whether it will be the same next time: a child that was killed from outside says little."""
    first = run(True)
    if first.returncode == 0:
        return Verdict(extra_bufts=True), True
    second = run(False)
    if second.returncode == 0:
        reason = f"a decode with extra buffer types {ending(first)} in the native self-test"
        return Verdict(extra_bufts=False, reason=reason), -first.returncode in CRASHES
    raise EngineCrashed(
        f"the native library in {str(native.library_dir())!r} {ending(second)} in a self-test, with and without extra buffer types",
        hint=f"rebuild it on this machine: {sys.executable} -m pip install --force-reinstall --no-cache-dir --no-deps "
        "llama-cpp-python==0.3.36",
    )


def _run_child(extra_bufts: bool) -> subprocess.CompletedProcess[str]:
    return run_module("edgeai.selftest", "1" if extra_bufts else "0", timeout_s=TIMEOUT_S)


# ---- the child


_TYPES = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "F16")
"""One layer each: the types that libggml repacks or has AMX kernels for (ggml-cpu/repack.cpp, ggml-cpu/amx/mmq.cpp)."""


def write_probe_model(path: Path, types: Sequence[str] = _TYPES) -> None:
    """Write a llama model without vocabulary, one layer for each of TYPES, 256 wide.

    The weights of quantized layers are zero bytes, which is a valid block in every type; kernels run the same on them.
    """
    import gguf
    import numpy as np

    width = 256
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(len(types))
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(width)
    writer.add_tokenizer_model("no_vocab")
    ones = np.ones(width, dtype=np.float32)
    embedding = np.eye(width, dtype=np.float32)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", ones)
    for layer, name in enumerate(types):
        quant = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[quant]
        zeros = np.zeros((width, width // block * size), dtype=np.uint8)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", zeros, raw_dtype=quant)
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decode_probe(path: Path, *, extra_bufts: bool) -> None:
    """Decode a batch of 64 tokens and then one more; raise RuntimeError when a logit is not the one it must be."""
    import ctypes

    lib = native.library()
    params = lib.llama_model_default_params()
    params.use_extra_bufts, params.n_gpu_layers = extra_bufts, 0
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise RuntimeError("; ".join(native.last_log(3)) or "the probe model does not load")
    context = lib.llama_init_from_model(model, lib.llama_context_default_params())
    tokens = (ctypes.c_int32 * 64)(*range(64))
    for count in (64, 1):
        if lib.llama_decode(context, lib.llama_batch_get_one(tokens, count)) != 0:
            raise RuntimeError(f"decoding {count} tokens failed")
        logits = lib.llama_get_logits_ith(context, -1)[:256]
        # Zero layers leave the embedding (a unit vector) as it is, so the last token must win against every other.
        if max(range(256), key=logits.__getitem__) != tokens[count - 1]:
            raise RuntimeError(f"decoding {count} tokens gave wrong logits")
    lib.llama_free(context)
    lib.llama_model_free(model)


def _child(extra_bufts: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="edgeai-selftest-") as folder:
        path = Path(folder) / "probe.gguf"
        write_probe_model(path)
        decode_probe(path, extra_bufts=extra_bufts)


if __name__ == "__main__":
    _child(sys.argv[1] == "1")
