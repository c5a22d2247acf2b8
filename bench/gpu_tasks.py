"""What the checks of gpu.py do in processes of their own: `python bench/gpu_tasks.py TASK '{"device": …}'` prints one JSON object."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPTS = (
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):",
    "Water boils at",
    "Dear Sir or Madam,",
    "1, 2, 3, 4,",
    "The quick brown fox",
    "In the year 2050",
)
TEXT = "The quick brown fox jumps over the lazy dog while seven wizards quietly mix jars of blue liquid. "


def load(given: dict[str, Any], **more: Any) -> Any:
    """Load the model that GIVEN names on its device."""
    import edgeai

    return edgeai.load(given["model"], **{"ctx": 1024, "device": given["device"], **given.get("options", {}), **more})


def open_weights(given: dict[str, Any], ctx: int) -> Any:
    """Load the weights alone as GIVEN says, all GPUs getting the same number of layers if it says `split`."""
    from dataclasses import replace

    from edgeai import native
    from edgeai.artifact import open_artifact
    from edgeai.device import probe
    from edgeai.engines.llamacpp.weights import Weights
    from edgeai.plan import LoadOptions, make_plan

    artifact = open_artifact(Path(given["model"]))
    plan = make_plan(
        artifact, probe(), LoadOptions(**{"ctx": ctx, "device": given["device"], **given.get("options", {})})
    )
    if given.get("split"):
        names = tuple(device.name for device in native.backend_devices() if device.kind == "gpu")
        plan = replace(plan, devices=names, tensor_split=(1.0,) * len(names))
    return Weights(artifact, plan)


def free_bytes() -> dict[str, int]:
    """Return the free memory of each GPU, as CUDA says."""
    from edgeai import native

    return {device.name: device.memory_free for device in native.backend_devices() if device.kind != "cpu"}


def facts(given: dict[str, Any]) -> dict[str, Any]:
    """Return what there is."""
    from edgeai import native
    from edgeai.device import probe

    device = probe()
    named = [found.description for found in device.cuda_devices] if given["device"] == "cuda" else [device.cpu.name]
    return {
        "name": named[0] if named else "no GPU",
        "devices": [vars_of(found) for found in device.library.devices],
        "gpus": [vars_of(gpu) for gpu in device.gpus],
        "features": device.library.features,
        "library_dir": str(native.library_dir()),
        "threads": device.cpu.threads,
        "cuda_error": device.library.cuda_error,
    }


def vars_of(value: Any) -> dict[str, Any]:
    """Return the fields of a slotted dataclass."""
    from dataclasses import asdict

    return asdict(value)


def generate(given: dict[str, Any]) -> dict[str, Any]:
    """Answer the prompts greedily, one after the other; tell the plan, the placement and the memory that loading took."""
    before = free_bytes()
    with load(given) as model:
        texts = [model.complete(prompt, max_tokens=48, temperature=0).text for prompt in PROMPTS[:3]]
        after = free_bytes()
        placement, plan = model.engine.placement, model.plan
        predicted = getattr(plan, "placement", None)
        return {
            "texts": texts,
            "backend": model.engine.backend,
            "layers": [placement.gpu_layers, placement.layers],
            "placement": placement.to_dict()["shares"],
            "predicted": predicted.to_dict()["shares"] if predicted else [],
            "taken": {name: before[name] - after[name] for name in before},
            "notices": [notice.code for notice in plan.notices],
        }


def logits(given: dict[str, Any]) -> dict[str, Any]:
    """Save the logits of every position of a text, (tokens, vocabulary) float32, to the file that GIVEN names."""
    import numpy as np

    weights = open_weights(given, 512)
    lib = weights.lib
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    context = weights.open_context(params)
    vocab = lib.llama_model_get_vocab(weights.model)
    ids, text = (ctypes.c_int32 * 256)(), (TEXT * 20).encode()
    long = (ctypes.c_int32 * 4096)()
    lib.llama_tokenize(vocab, text, len(text), long, 4096, True, False)
    ids[:] = long[:256]
    batch = lib.llama_batch_init(256, 0, 1)
    batch.n_tokens = 256
    for index, token in enumerate(ids):
        batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, index, 1
        batch.seq_id[index][0], batch.logits[index] = 0, 1
    assert lib.llama_decode(context, batch) == 0
    lib.llama_synchronize(context)
    size = lib.llama_vocab_n_tokens(vocab)
    found = np.ctypeslib.as_array(lib.llama_get_logits(context), (256, size)).copy()
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    np.save(given["file"], found)
    weights.free()
    return {"placement": weights.placement.to_dict()["shares"]}


def speed(given: dict[str, Any]) -> dict[str, Any]:
    """Return tok/s of a prompt of 512 tokens and of an answer of 128 through the engine, sampling and text included."""
    rounds = given.get("rounds", 3)
    with load(given) as model:
        ids = model.tokenize(TEXT * 60)[: 512 - 1]
        prompt = model.detokenize(ids)
        model.complete("Warm up", max_tokens=8, temperature=0)
        ours: dict[str, list[float]] = {"pp512": [], "tg128": []}
        for number in range(rounds):  # another first word each time: nothing is to come from a kept prefix
            ours["pp512"].append(
                model.complete(f"{number} {prompt}", max_tokens=1, temperature=0).timings.prompt_tok_s or 0.0
            )
            done = model.complete("Once upon a time", max_tokens=128, temperature=0, logit_bias=no_end(model))
            ours["tg128"].append(done.timings.gen_tok_s or 0.0)
        placement = model.engine.placement
    return {
        "ours": {name: sorted(values)[rounds // 2] for name, values in ours.items()},
        "gpu_layers": placement.gpu_layers,
    }


def no_end(model: Any) -> dict[int, float]:
    """Return a bias that keeps MODEL from ending its answer."""
    return {model.artifact.eos: -100.0} if model.artifact.eos is not None else {}


def bare(given: dict[str, Any]) -> dict[str, Any]:
    """Return tok/s of llama_decode alone, as llama-bench measures: no sampling, no text, tokens of no meaning."""
    from edgeai.device import cpu_facts

    weights = open_weights(given, 1024)
    lib = weights.lib
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, 512
    params.n_threads = params.n_threads_batch = cpu_facts().threads
    context = weights.open_context(params)
    memory = lib.llama_get_memory(context)
    tokens = (ctypes.c_int32 * 512)(*(3 + index % 200 for index in range(512)))

    def timed(count: int, times: int) -> float:
        lib.llama_memory_clear(memory, False)
        began = time.perf_counter()
        for _ in range(times):
            assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, count)) == 0
            lib.llama_synchronize(context)
        return count * times / (time.perf_counter() - began)

    timed(512, 1), timed(1, 8)
    found = {"pp512": sorted(timed(512, 1) for _ in range(3))[1], "tg128": sorted(timed(1, 128) for _ in range(3))[1]}
    lib.llama_free(context)
    weights.free()
    return found


def streams(given: dict[str, Any]) -> dict[str, Any]:
    """Answer eight prompts alone and then side by side; return the texts of both and the tokens per second of both."""
    with load(given, streams=8) as model:
        model.complete("Warm up", max_tokens=4, temperature=0)

        def one(prompt: str) -> tuple[str, int]:
            done = model.complete(prompt, max_tokens=64, temperature=0, prefix_cache=False)
            return done.text, done.usage.completion_tokens

        began = time.perf_counter()
        alone = [one(prompt) for prompt in PROMPTS]
        alone_s = time.perf_counter() - began
        together: dict[str, tuple[str, int]] = {}
        threads = [threading.Thread(target=lambda p=prompt: together.update({p: one(p)})) for prompt in PROMPTS]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        together_s = time.perf_counter() - began
    beside = [together[prompt] for prompt in PROMPTS]
    return {
        "same": [one_[0] == other[0] for one_, other in zip(alone, beside, strict=True)],
        "alone_tok_s": sum(count for _, count in alone) / alone_s,
        "together_tok_s": sum(count for _, count in beside) / together_s,
    }


def cancel(given: dict[str, Any]) -> dict[str, Any]:
    """Cancel a long prompt in its middle and an answer; return how long each took to end, and that the next request works."""
    with load(given, ctx=8192) as model:
        text = model.detokenize(model.tokenize(TEXT * 400)[:3800])
        began = time.perf_counter()
        model.complete(text, max_tokens=1, temperature=0, prefix_cache=False)
        whole = time.perf_counter() - began
        stream = model.stream(
            "again " + text, max_tokens=4000, temperature=0, prefix_cache=False, logit_bias=no_end(model)
        )
        time.sleep(whole / 4)
        began = time.perf_counter()
        stream.cancel()
        reason = [chunk.finish_reason for chunk in stream][-1]
        prefill = time.perf_counter() - began
        stream = model.stream("Once", max_tokens=8000, temperature=0, logit_bias=no_end(model))
        next(stream)
        began = time.perf_counter()
        stream.cancel()
        for _ in stream:
            pass
        answer = time.perf_counter() - began
        alive = model.complete("Once upon a time", max_tokens=4, temperature=0).usage.completion_tokens
    return {"prompt_s": whole, "prefill_cancel_s": prefill, "answer_cancel_s": answer, "reason": reason, "after": alive}


def cycles(given: dict[str, Any]) -> dict[str, Any]:
    """Load, answer and unload again and again in one process; return the memory in use after each time."""
    import psutil

    used: list[int] = []
    resident: list[int] = []
    for _ in range(given["times"]):
        with load(given) as model:
            model.complete("Once", max_tokens=4, temperature=0)
        used.append(-sum(free_bytes().values()))
        resident.append(psutil.Process().memory_info().rss)
    return {"gpu": [value - used[0] for value in used], "rss": resident}


def share(given: dict[str, Any]) -> dict[str, Any]:
    """Answer while another process does the same: say when loaded, and wait for a line on stdin to begin."""
    with load(given) as model:
        print("ready", file=sys.stderr, flush=True)
        sys.stdin.readline()
        began = time.perf_counter()
        done = [model.complete(prompt, max_tokens=64, temperature=0) for prompt in PROMPTS[:3]]
        return {
            "texts": [one.text for one in done],
            "seconds": time.perf_counter() - began,
            "backend": model.engine.backend,
        }


def balloon(given: dict[str, Any]) -> dict[str, Any]:
    """Take the memory of the first GPU but for `leave` bytes until stdin ends."""
    from edgeai import native

    lib = native.library()._lib
    lib.ggml_backend_dev_buffer_type.restype, lib.ggml_backend_dev_buffer_type.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_void_p],
    )
    allocate = lib.ggml_backend_buft_alloc_buffer
    allocate.restype, allocate.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]
    device = native.device_list(["CUDA0"])[0]
    size = free_bytes()["CUDA0"] - given["leave"]
    assert allocate(lib.ggml_backend_dev_buffer_type(device), size), "the memory cannot be taken"
    print("ready", file=sys.stderr, flush=True)
    sys.stdin.readline()
    return {"bytes": size}


def lost(given: dict[str, Any]) -> dict[str, Any]:
    """Lose the device in the middle of an answer of an isolated engine; return what was said, and how it went on."""
    from edgeai.errors import EdgeAIError

    chunks, said, kind, hint = 0, "", "", None
    with load(given, isolated=True, ctx=8192) as model:
        before = model.engine.backend
        began = time.perf_counter()
        timer = threading.Timer(0.3, lose, (given, model.engine.pid))
        timer.start()
        try:
            for _ in model.stream("Once upon a time", max_tokens=8000, temperature=0, logit_bias=no_end(model)):
                chunks += 1
        except EdgeAIError as error:
            said, kind, hint = error.message, type(error).__name__, error.hint
        seconds = time.perf_counter() - began
        timer.join()
        try:
            done = model.complete("Once upon a time", max_tokens=4, temperature=0)
            after: dict[str, Any] = {"tokens": done.usage.completion_tokens, "backend": model.engine.backend,
                                     "warnings": [notice.code for notice in done.warnings]}  # fmt: skip
        except EdgeAIError as error:
            after = {"error": type(error).__name__, "message": error.message}
    return {
        "before": before,
        "error": kind,
        "said": said,
        "hint": hint,
        "seconds": seconds,
        "chunks": chunks,
        "after": after,
    }


def lose(given: dict[str, Any], pid: int | None) -> None:
    """Make CUDA fail from now on (see SHIM), or end the child as an abort would where there is no GPU to lose."""
    import signal

    if given["device"] == "cuda":
        Path(os.environ["EDGEAI_BENCH_LOST"]).touch()
    elif pid:
        os.kill(pid, signal.SIGABRT)


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* CUDA as it is after the driver has gone: 999 is cudaErrorUnknown, 100 cudaErrorNoDevice. */
static int gone(void) { const char *file = getenv("EDGEAI_BENCH_LOST"); return file && access(file, F_OK) == 0; }
/* The real function. RTLD_NEXT does not see a libcudart that came with a library loaded later. */
static void *real(const char *name) {
    static void *library;
    char line[4096];
    FILE *maps = library ? NULL : fopen("/proc/self/maps", "r");
    while (maps && !library && fgets(line, sizeof line, maps)) {
        char *path = strchr(line, '/');
        if (!path || !strstr(path, "libcudart.so")) continue;
        path[strcspn(path, "\n")] = 0;
        library = dlopen(path, RTLD_LAZY);
    }
    if (maps) fclose(maps);
    return library ? dlsym(library, name) : NULL;
}
int cudaStreamSynchronize(void *stream) {
    int (*function)(void *) = real("cudaStreamSynchronize");
    return gone() || !function ? 999 : function(stream);
}
int cudaGetDeviceCount(int *count) {
    int (*function)(int *) = real("cudaGetDeviceCount");
    *count = 0;
    return gone() || !function ? 100 : function(count);
}
"""


def training(_given: dict[str, Any]) -> dict[str, Any]:
    """Train the tiny recipe for a few steps on the GPU; return torch's view of it and the speed."""
    import tempfile

    import torch

    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "edgeai",
            "train",
            "tiny",
            "-o",
            f"{folder}/out",
            "--steps",
            "30",
            "--device",
            "cuda",
            "--json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = (Path(folder) / "out" / "metrics.jsonl").read_text().splitlines() if done.returncode == 0 else []
    return {
        "torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "bf16": torch.cuda.is_bf16_supported(), "exit": done.returncode,
        "stderr": done.stderr[-500:], "tok_s": json.loads(lines[-1]).get("tok_s") if lines else None,
    }  # fmt: skip


TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    function.__name__: function
    for function in (facts, generate, logits, speed, bare, streams, cancel, cycles, share, balloon, lost, training)
}


if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](json.loads(sys.argv[2]))))
