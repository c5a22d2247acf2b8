"""The child process that loads a GGUF file into libllama: tokenizes texts, or computes logits.

Run by `converters.child` as a script: it imports nothing of this project, because an interpreter started with -P does not see it.
argv[1] is a folder with request.json; the answer goes to answer.json beside it.
"""

from __future__ import annotations

import collections
import ctypes
import importlib
import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

LOG: collections.deque[str] = collections.deque(maxlen=12)


class NotLoaded(Exception):
    """libllama does not take the file."""


def load_library() -> Any:
    """Return the low-level binding, its log kept and not printed."""
    lib = import_binding()

    @lib.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def keep(level: int, text: bytes, _data: Any) -> None:
        if level in (3, 4):  # warnings and errors
            LOG.append(text.decode("utf-8", "replace").rstrip())

    lib.llama_log_set(keep, ctypes.c_void_p(0))
    lib.keep_log_callback = keep  # C holds only the address
    lib.llama_backend_init()
    return lib


def import_binding() -> Any:
    """Import the low-level module without the package around it, whose classes and their imports take 0.1 s."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        raise ImportError("llama-cpp-python is not installed")
    shell = types.ModuleType("llama_cpp")
    shell.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["llama_cpp"] = shell
    return importlib.import_module("llama_cpp.llama_cpp")


def load_model(lib: Any, path: str, *, vocab_only: bool) -> Any:
    """Load PATH on the CPU, without the repacked weight formats: they are slower to load and some builds die in them."""
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.vocab_only = vocab_only
    params.use_extra_bufts = False
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise NotLoaded(LOG[-2] if len(LOG) > 1 else "libllama gave no reason")
    return model


def tokenize(lib: Any, vocab: Any, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
    """Return the token ids of TEXT."""
    raw = text.encode()
    room = len(raw) + 8
    ids = (lib.llama_token * room)()
    count = lib.llama_tokenize(vocab, raw, len(raw), ids, room, add_special, parse_special)
    return list(ids[:count])


def tokenize_job(lib: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Tokenize each set of texts; also say which tokens end a generation and which have names."""
    model = load_model(lib, job["model"], vocab_only=True)
    vocab = lib.llama_model_get_vocab(model)
    count = lib.llama_vocab_n_tokens(vocab)
    ids = [
        [
            tokenize(lib, vocab, text, add_special=item["add_special"], parse_special=item["parse_special"])
            for text in item["texts"]
        ]
        for item in job["sets"]
    ]
    ends = [token for token in range(count) if lib.llama_vocab_is_eog(vocab, token)]
    named = named_tokens(lib, vocab)
    lib.llama_model_free(model)
    return {"ids": ids, "vocab": count, "eog": ends, "named": named}


def named_tokens(lib: Any, vocab: Any) -> dict[str, str]:
    """Return the texts that the runtime gives chat templates by name, as `Vocab.named` in edgeai.engines.llamacpp does."""
    found = {}
    for name in ("bos", "eos", "pad", "sep"):
        token = int(getattr(lib, f"llama_vocab_{name}")(vocab))
        if token >= 0:
            found[f"{name}_token"] = lib.llama_vocab_get_text(vocab, token).decode("utf-8", "replace")
    return {"bos_token": "", "eos_token": "", **found}


def score(lib: Any, request: dict[str, Any]) -> None:
    """Write the logits of every position of every prompt, (positions, vocab) float32, to request["logits"]."""
    import numpy as np

    prompts: list[dict[str, Any]] = request["prompts"]
    model = load_model(lib, request["model"], vocab_only=False)
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    longest = max(len(prompt["ids"]) for prompt in prompts)
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = longest
    params.n_seq_max, params.kv_unified = 2, True  # the second begins behind a gap, see `stretches`
    params.n_threads = params.n_threads_batch = request["threads"]
    params.type_k = params.type_v = lib.GGML_TYPE_F32  # the file is measured here, not a cache format
    params.flash_attn_type = 0
    params.no_perf = True
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise NotLoaded(LOG[-1] if LOG else "libllama could not make a context")
    logits = np.lib.format.open_memmap(
        request["logits"], "w+", np.float32, (sum(len(prompt["ids"]) for prompt in prompts), size)
    )
    batch = lib.llama_batch_init(longest, 0, 1)
    at = 0
    for index, prompt in enumerate(prompts):
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        for sequence, start, ids in stretches(prompt):
            if sequence and len(ids) > 1:  # the rest of the tail sees the head too
                lib.llama_memory_seq_cp(lib.llama_get_memory(context), 0, sequence, -1, -1)
            decode(lib, context, batch, sequence, start, ids)
            logits[at : at + len(ids)] = np.ctypeslib.as_array(lib.llama_get_logits(context), (len(ids), size))
            at += len(ids)
        print(index + 1, len(prompts), flush=True)
    logits.flush()


def stretches(prompt: dict[str, Any]) -> list[tuple[int, int, list[int]]]:
    """Return what to decode one after the other for PROMPT, as (sequence, first position, ids).

    A sequence's positions must be consecutive, but a new one may begin anywhere. So behind a gap one token begins sequence 1, then
    the head is copied to it, and the rest goes on from there with the gap in its past. The cache stays as small as the prompt.
    """
    ids, head, start = prompt["ids"], prompt["head"], prompt["start"]
    if not head:
        return [(0, 0, ids)]
    return [(0, 0, ids[:head]), (1, start, ids[head : head + 1]), (1, start + 1, ids[head + 1 :])]


def decode(lib: Any, context: Any, batch: Any, sequence: int, start: int, ids: list[int]) -> None:
    """Run IDS at position START and up of SEQUENCE, with logits for each."""
    batch.n_tokens = len(ids)
    for index, token in enumerate(ids):
        batch.token[index], batch.pos[index] = token, start + index
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        batch.logits[index] = 1
    if code := lib.llama_decode(context, batch):
        raise NotLoaded(f"llama_decode returned {code} for {len(ids)} tokens at position {start}")


def main() -> None:
    """Answer the request in the folder argv[1]."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: a parent that was killed takes this process along
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text())
    try:
        lib = load_library()
        answer: dict[str, Any] = {"jobs": [tokenize_job(lib, job) for job in request["jobs"]]}
        if "score" in request:
            score(lib, request["score"])
    except (NotLoaded, ImportError, RuntimeError, FileNotFoundError) as error:
        answer = {"error": str(error), "log": list(LOG)[-6:]}
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the parent got the same Ctrl-C and says what there is to say
        sys.exit(130)
