"""The child process that loads a GGUF file into libllama: tokenizes texts, computes logits and embeddings, continues a text.

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
LSTRIP, RSTRIP = 1 << 7, 1 << 8
"""`enum llama_token_attr` in llama.h."""
POOLING_NONE, POOLING_RANK, POOLING_OF_THE_MODEL = 0, 4, -1
"""`enum llama_pooling_type` in llama.h."""


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
    if count < 0:  # one character may become many
        room = -count
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
    chats = [segments(lib, vocab, chat) for chat in job.get("chats", [])]
    lib.llama_model_free(model)
    return {"ids": ids, "vocab": count, "eog": ends, "named": named, "chats": chats}


def segments(lib: Any, vocab: Any, chat: list[dict[str, Any]]) -> list[int]:
    """Return the ids of a rendered chat: control texts are one token each, the rest is plain text, as `Vocab.tokenize_segments` does."""
    ids: list[int] = []
    strip = False
    for index, part in enumerate(chat):
        if part["control"]:
            (token,) = tokenize(lib, vocab, part["text"], add_special=False, parse_special=True)[-1:] or [-1]
            ids.append(token)
            strip = bool(lib.llama_vocab_get_attr(vocab, token) & RSTRIP) if token >= 0 else False
            continue
        text = part["text"].lstrip() if strip else part["text"]
        strip = False
        after = chat[index + 1]["text"] if index + 1 < len(chat) else ""
        if after:
            found = tokenize(lib, vocab, after, add_special=False, parse_special=True)
            text = text.rstrip() if found and lib.llama_vocab_get_attr(vocab, found[-1]) & LSTRIP else text
        ids += tokenize(lib, vocab, text, add_special=False, parse_special=False) if text else []
    return ids


def named_tokens(lib: Any, vocab: Any) -> dict[str, str]:
    """Return the texts that the runtime gives chat templates by name, as `Vocab.named` in edgeai.engines.llamacpp does."""
    found = {}
    for name in ("bos", "eos", "pad", "sep"):
        token = int(getattr(lib, f"llama_vocab_{name}")(vocab))
        if token >= 0:
            found[f"{name}_token"] = lib.llama_vocab_get_text(vocab, token).decode("utf-8", "replace")
    return {"bos_token": "", "eos_token": "", **found}


def score(lib: Any, request: dict[str, Any], facts: dict[str, Any]) -> None:
    """Continue texts, leave what is known so far in facts.json, then write the logits of every prompt to a file of its own."""
    import numpy as np

    folder = Path(request["folder"])
    prompts: list[dict[str, Any]] = request["prompts"]
    model = load_model(lib, request["model"], vocab_only=False)
    vocab = lib.llama_model_get_vocab(model)
    size = lib.llama_vocab_n_tokens(vocab)
    longest = max(
        [len(item["ids"]) + item["count"] for item in request["continue"]] + [len(item["ids"]) for item in prompts]
    )
    adapter = load_adapter(lib, model, request["adapter"]) if request.get("adapter") else None

    def opened(least: int = 0) -> Any:
        context = open_context(lib, model, longest, request["threads"], least=least)
        if adapter:
            put_on(lib, context, adapter)
        return context

    context = opened()
    first = lib.llama_n_ctx(context)
    batch = lib.llama_batch_init(longest, 0, 1)
    facts["continued"] = [continuation(lib, context, batch, vocab, item) for item in request["continue"]]
    write_facts(folder, facts)
    turns = Turns()
    for index, prompt in enumerate(prompts):
        turns.wait()
        if prompt["context"] > lib.llama_n_ctx(context):
            lib.llama_free(context)
            context = opened(prompt["context"])
        elif not prompt["context"] and lib.llama_n_ctx(context) > first:
            lib.llama_free(context)
            context = opened()
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        with (folder / f"{index}.f32").open("wb") as file:
            for sequence, start, ids in stretches(prompt):
                if sequence and len(ids) > 1:  # the rest of the tail sees the head too
                    lib.llama_memory_seq_cp(lib.llama_get_memory(context), 0, sequence, -1, -1)
                decode(lib, context, batch, sequence, start, ids)
                np.ctypeslib.as_array(lib.llama_get_logits(context), (len(ids), size)).tofile(file)
        print("ready", index, flush=True)


def load_adapter(lib: Any, model: Any, path: str) -> Any:
    """Load the LoRA adapter PATH; a context makes room for those that are loaded before it."""
    adapter = lib.llama_adapter_lora_init(model, os.fsencode(path))
    if not adapter:
        raise NotLoaded(LOG[-1] if LOG else "libllama does not take the adapter")
    return adapter


def put_on(lib: Any, context: Any, adapter: Any) -> None:
    """Use ADAPTER with all that is computed, at a scale of 1."""
    kind = lib.llama_adapter_lora_p_ctypes
    if lib.llama_set_adapters_lora(context, (kind * 1)(ctypes.cast(adapter, kind)), 1, (ctypes.c_float * 1)(1.0)):
        raise NotLoaded("libllama does not put the adapter on the model")


class Turns:
    """How many prompts may be computed now: the parent grants some on stdin, and nobody is there any more when it ends."""

    def __init__(self) -> None:
        self.left = 0

    def wait(self) -> None:
        """Take one turn, waiting for the next grant where none is left."""
        while not self.left:
            line = sys.stdin.readline()
            if not line:
                sys.exit(0)
            self.left = int(line)
        self.left -= 1


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Leave FACTS in facts.json and say so."""
    (folder / "facts.json").write_text(json.dumps(facts))
    print("facts", flush=True)


def open_context(
    lib: Any, model: Any, longest: int, threads: int, pooling: int | None = None, *, least: int = 0
) -> Any:
    """Return a context for sequences of LONGEST tokens, of LEAST at least, in float32; with POOLING, one for embeddings."""
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = max(longest, least), longest, longest
    params.n_seq_max, params.kv_unified = 2, True  # the second begins behind a gap, see `stretches`
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = lib.GGML_TYPE_F32  # the file is measured here, not a cache format
    params.flash_attn_type = 0
    params.no_perf = True
    if pooling is not None:
        params.embeddings, params.pooling_type = True, pooling
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise NotLoaded(LOG[-1] if LOG else "libllama could not make a context")
    return context


def continuation(lib: Any, context: Any, batch: Any, vocab: Any, item: dict[str, Any]) -> list[int]:
    """Return the likeliest continuation of item["ids"], up to item["count"] tokens or an end token, which is the last."""
    import numpy as np

    size = lib.llama_vocab_n_tokens(vocab)
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    found: list[int] = []
    ids, at = item["ids"], 0
    while len(found) < item["count"]:
        decode(lib, context, batch, 0, at, ids)
        at += len(ids)
        row = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (size,))
        found.append(int(row.argmax()))
        if lib.llama_vocab_is_eog(vocab, found[-1]):
            break
        ids = found[-1:]
    return found


def embed(lib: Any, request: dict[str, Any]) -> None:
    """Write what the model makes of each list of ids: hidden.f32 (all tokens, dim), pooled.f32 (lists, dim, or scores)."""
    import numpy as np

    folder, lists = Path(request["folder"]), request["lists"]
    model = load_model(lib, request["model"], vocab_only=False)
    size, longest = lib.llama_model_n_embd(model), max(map(len, lists))
    batch = lib.llama_batch_init(longest, 0, 1)
    for name, pooling in (("hidden", POOLING_NONE), ("pooled", POOLING_OF_THE_MODEL)):
        context = open_context(lib, model, longest, request["threads"], pooling)
        if name == "pooled" and lib.llama_pooling_type(context) == POOLING_NONE:
            raise NotLoaded("the file names no pooling, so it gives no embedding of a text")
        with (folder / f"{name}.f32").open("wb") as file:
            for index, ids in enumerate(lists):
                if memory := lib.llama_get_memory(context):
                    lib.llama_memory_clear(memory, True)
                decode(lib, context, batch, 0, 0, ids)
                rows = (
                    lib.llama_get_embeddings(context) if name == "hidden" else lib.llama_get_embeddings_seq(context, 0)
                )
                scores = name == "pooled" and lib.llama_pooling_type(context) == POOLING_RANK
                width = lib.llama_model_n_cls_out(model) if scores else size
                count = len(ids) if name == "hidden" else 1
                np.ctypeslib.as_array(rows, (count, width)).tofile(file)
                print(index + 1, len(lists), flush=True)
        lib.llama_free(context)


def stretches(prompt: dict[str, Any]) -> list[tuple[int, int, list[int]]]:
    """Return what to decode one after the other for PROMPT, as (sequence, first position, ids).

    A sequence's positions must be consecutive, but a new one may begin anywhere. So behind a gap one token begins sequence 1, then
    the head is copied to it, and the rest goes on from there with the gap in its past. The cache stays as small as the prompt.
    """
    ids, head, start, prefill = prompt["ids"], prompt["head"], prompt["start"], prompt["prefill"]
    if prefill:  # the rest one by one, with the cache
        return [(0, 0, ids[:prefill]), *((0, at, ids[at : at + 1]) for at in range(prefill, len(ids)))]
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
            score(lib, request["score"], answer)
        if "embed" in request:
            embed(lib, request["embed"])
    except (NotLoaded, ImportError, RuntimeError, FileNotFoundError) as error:
        answer = {"error": str(error), "log": list(LOG)[-6:]}
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the parent got the same Ctrl-C and says what there is to say
        sys.exit(130)
