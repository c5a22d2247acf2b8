"""Does the native library survive a decode on this CPU? Asked of a child process, so that no application finds out by dying.

A build of llama.cpp by GCC 12 or older dies with SIGSEGV in its AMX kernels on CPUs that have AMX (llama.cpp #20824). Those kernels
are reached through the "extra buffer types" that repack weights; the same build works when they are off. A build for another CPU dies
with SIGILL, and one for another GPU with SIGABRT at the first kernel.

Run as `python -m edgeai.selftest 1|0|cuda|features` the module is the child: it decodes a generated model of a few hundred kB with (1) or
without (0) them or on the GPUs, or prints what the library was built with.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeai import native
from edgeai.childprocess import CRASHES, ending, read_memo, run_module, write_memo
from edgeai.errors import DeviceUnavailable, EngineCrashed

__all__ = ["Verdict", "cuda_failure", "native_verdict"]

TIMEOUT_S = 120.0
Runner = Callable[[str], subprocess.CompletedProcess[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the library can do here: whether extra buffer types are safe, and if not, how the child ended."""

    extra_bufts: bool
    reason: str | None = None


def native_verdict(cache_dir: Path, cpu: str, isa: Iterable[str] = (), *, run: Runner | None = None) -> Verdict:
    """Return the verdict for the installed library on this CPU, from CACHE_DIR when it was already found out.

    Raises EngineCrashed when a decode fails with and without extra buffer types, naming what the library needs and ISA does not have;
    DeviceUnavailable when the library does not load for want of CUDA.
    """
    key = f"{native.fingerprint()} {cpu}"
    cache = cache_dir / "selftest.json"
    known = read_memo(cache)
    found = known.get(key)
    if isinstance(found, dict) and isinstance(found.get("extra_bufts"), bool):
        return Verdict(extra_bufts=found["extra_bufts"], reason=found.get("reason"))
    verdict, lasting = _ask(run or _run_child, isa)
    if lasting:
        write_memo(cache, {**known, key: asdict(verdict)})
    return verdict


def _ask(run: Runner, isa: Iterable[str]) -> tuple[Verdict, bool]:
    """Return the verdict, and whether it will be the same next time: a child that was killed from outside says little."""
    first = run("1")
    if first.returncode == 0:
        return Verdict(extra_bufts=True), True
    if first.returncode == DeviceUnavailable.exit_code:
        native.library()  # fails here as it did in the child, in order and with its own words
    second = run("0")
    if second.returncode == 0:
        reason = f"a decode with extra buffer types {ending(first)} in the native self-test"
        return Verdict(extra_bufts=False, reason=reason), -first.returncode in CRASHES
    needed = _missing_instructions(run, isa) if -second.returncode == signal.SIGILL else ""
    raise EngineCrashed(
        f"the native library in {str(native.library_dir())!r} {ending(second)} in a self-test, "
        f"with and without extra buffer types{needed}",
        hint=f"rebuild it on this machine: {native.cpu_install_command()}",
    )


_INSTRUCTIONS = {
    "AVX": "avx", "AVX2": "avx2", "F16C": "f16c", "FMA": "fma", "BMI2": "bmi2", "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f", "AVX512_VBMI": "avx512vbmi", "AVX512_VNNI": "avx512_vnni", "AVX512_BF16": "avx512_bf16", "AMX_INT8": "amx_int8",
    "NEON": "asimd", "DOTPROD": "asimddp", "MATMUL_INT8": "i8mm", "SVE": "sve", "SME": "sme",
}  # fmt: skip
"""Features of a build (ggml_backend_cpu_get_features, ggml-cpu.cpp) → flags of /proc/cpuinfo (Linux, arch/*/cpufeatures)."""


def _missing_instructions(run: Runner, isa: Iterable[str]) -> str:
    """Return in words which instructions the library was built with and this CPU does not have."""
    built = run("features").stdout  # a library that cannot even be loaded prints nothing
    names = [name for name, flag in _INSTRUCTIONS.items() if re.search(rf"\b{name} = 1\b", built) and flag not in isa]
    if not names:
        return ": it uses instructions that this CPU does not have"
    return f": it is built with {', '.join(names)}, which this CPU does not have"


def cuda_failure(cache_dir: Path, gpus: Sequence[str], *, run: Runner | None = None) -> str | None:
    """Return how a decode on the GPUs called GPUS goes wrong in a child process, None when it does not; remembered in CACHE_DIR.

    libggml ends the process at a CUDA error, so an application must not be the first to try.
    """
    key = f"cuda {native.fingerprint(cuda=True)} {', '.join(gpus)}"
    cache = cache_dir / "selftest.json"
    known = read_memo(cache)
    if known.get(key) is True:
        return None
    child = (run or _run_child)("cuda")
    if child.returncode == 0:
        write_memo(cache, {**known, key: True})
        return None
    said = native.abort_reason(child.stderr)
    return f"it {ending(child)}" + (f" ({said})" if said and said not in ending(child) else "")


def _run_child(task: str) -> subprocess.CompletedProcess[str]:
    return run_module("edgeai.selftest", task, timeout_s=TIMEOUT_S, gpu=task == "cuda")


# ---- the child


_TYPES = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "F16")
"""One layer each: the types that libggml repacks or has AMX kernels for (ggml-cpu/repack.cpp, ggml-cpu/amx/mmq.cpp)."""


def write_probe_model(path: Path, types: Sequence[str] = _TYPES) -> None:
    """Write a llama model without vocabulary, one layer for each of TYPES, 256 wide, that answers each token with the one after it.

    The weights of quantized layers are zero bytes, which is a valid block in every type; kernels run the same on them. The output layer is
    no identity: a device that computes nothing could pass on the vector it was given, in the same memory.
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
    writer.add_tensor("output.weight", np.roll(embedding, 1, axis=0))  # row i + 1 is the unit vector i
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


def decode_probe(path: Path, *, extra_bufts: bool, gpus: Sequence[str] = ()) -> None:
    """Decode a batch of 64 tokens and then one more, all layers on GPUS; raise RuntimeError when a logit is not the one it must be."""
    import ctypes

    lib = native.library()
    params = lib.llama_model_default_params()
    devices = native.device_list(gpus)
    params.devices = ctypes.cast(devices, ctypes.c_void_p)
    params.use_extra_bufts, params.n_gpu_layers = extra_bufts, 999 if gpus else 0
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise RuntimeError("; ".join(native.last_log(3)) or "the probe model does not load")
    context = lib.llama_init_from_model(model, lib.llama_context_default_params())
    tokens = (ctypes.c_int32 * 64)(*range(64))
    for count in (64, 1):
        if lib.llama_decode(context, lib.llama_batch_get_one(tokens, count)) != 0:
            raise RuntimeError(f"decoding {count} tokens failed")
        logits = lib.llama_get_logits_ith(context, -1)[:256]
        # Zero layers leave the embedding (a unit vector) as it is, so the token after the last one must win against every other.
        if max(range(256), key=logits.__getitem__) != tokens[count - 1] + 1:
            raise RuntimeError(f"decoding {count} tokens gave wrong logits")
    lib.llama_free(context)
    lib.llama_model_free(model)


def _child(task: str) -> None:
    if task == "features":
        print(native.library().llama_print_system_info().decode())  # the parent reads it
        return
    gpus = [device.name for device in native.backend_devices() if device.name.startswith("CUDA")]
    with tempfile.TemporaryDirectory(prefix="edgeai-selftest-") as folder:
        path = Path(folder) / "probe.gguf"
        write_probe_model(path)
        decode_probe(path, extra_bufts=task == "1", gpus=gpus if task == "cuda" else ())


if __name__ == "__main__":
    try:
        _child(sys.argv[1])
    except DeviceUnavailable as error:
        sys.exit(error.exit_code)
