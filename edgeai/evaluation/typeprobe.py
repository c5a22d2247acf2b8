"""Small models whose matrices are all of one ggml type, written, tried and timed in a child process.

The time of a decoded token is taken of the same context that the engine makes (`engines.llamacpp.handle`), with its repacked weights. The
models are decoded in turns, one token each and a walk through BALLAST_BYTES in every round: no weights are left in a cache, as in a model
that is larger than it, and what else happens here meets all alike. A short model finds a pause of other programs where a long one does
not, so the least time of many rounds is that of an idle machine.

Run as `python -m edgeai.evaluation.typeprobe try|time FOLDER REQUEST` the module is the child: FOLDER is for its files, REQUEST a JSON
object. It prints a JSON object a line, so that the parent knows where it was when it died.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.ggml_types import GGML_TYPES
from edgeai.artifact import open_artifact
from edgeai.plan import LoadOptions, Plan, make_plan

if TYPE_CHECKING:
    from edgeai.device import Device
    from edgeai.engines.llamacpp.handle import Handle

__all__ = ["BARE", "BROAD", "LAYERS", "PROMPT", "REFERENCE", "SLIM", "STACK", "TINY", "Shape", "write_uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a llama model of LAYERS equal layers, with heads of 64 that share nothing; its embedding is its output matrix."""

    width: int
    inner: int
    layers: int
    heads: int
    vocab: int = 8  # BARE

    @property
    def matrices(self) -> tuple[tuple[str, int, int], ...]:
        """Name, rows and columns of the matrices of a layer."""
        heads = self.heads * HEAD
        return (
            ("attn_q", heads, self.width),
            ("attn_k", heads, self.width),
            ("attn_v", heads, self.width),
            ("attn_output", self.width, heads),
            ("ffn_gate", self.inner, self.width),
            ("ffn_up", self.inner, self.width),
            ("ffn_down", self.width, self.inner),
        )

    @property
    def rows(self) -> int:
        """The rows of the matrices of a layer."""
        return sum(rows for _, rows, _ in self.matrices)

    @property
    def weights(self) -> int:
        """The weights of the matrices of a layer."""
        return sum(rows * columns for _, rows, columns in self.matrices)


HEAD = 64
SLIM = Shape(width=256, inner=64, layers=1, heads=1, vocab=8192)
BROAD = Shape(width=2048, inner=64, layers=1, heads=1, vocab=2048)
"""A large output matrix and little besides. Rows are whole blocks of every type (256 weights) in both, and eight times as long in one."""
LAYERS = Shape(width=512, inner=1536, layers=2, heads=8)
"""Layers of a small model: matrices of a usual size, one after the other."""
BARE = 8
"""Rows of an output matrix that is next to nothing."""
TINY = Shape(width=64, inner=64, layers=1, heads=2)
STACK = replace(TINY, layers=5)
"""Matrices of next to nothing: what a layer takes besides them."""
SMALL = ("tiny", "stack")
REFERENCE = "F16"
"""The type of TINY and STACK, and of what is not measured in the others: libggml has it everywhere, and it takes rows of any length."""

ROUNDS, CALM_ROUNDS, LEAST_ROUNDS = 200, 25, 4
"""At most, on a machine that does nothing else, and on one where each round takes seconds."""
SETTLED = 0.01
"""The spread at which more rounds will find nothing lower."""
SOME = 12
SLEEPING_LAYER_S = 25 * 10e-6
"""A layer has about 25 barriers (nodes of the graph), and threads that wait longer than 10 µs at one fall asleep (SPINS in native.py)."""
BALLAST_BYTES = 96 << 20
"""Larger, with the models themselves, than the last cache of most processors for the edge."""
PROMPT = 64
"""Tokens of a prompt that is read at once."""
PROMPT_EVERY = 8
"""Rounds without a prompt between two with one: it takes as long as twenty tokens."""
ENCODED_ROWS = 16
"""Rows that are really encoded; a matrix repeats them."""
BLOCK = {item.name: (item.block, item.size) for item in GGML_TYPES.values()}
SLOW_TABLES = ("IQ1_M", "IQ1_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_S", "IQ3_XXS")
"""Types whose encoder first makes tables for up to half a minute (`ggml_quantize_init`, ggml.c)."""
IQ1_M_TOP = 55
"""The byte of a block of IQ1_M that holds sign and exponent of its scale in its upper half (`iq1m_scale_t`, ggml-common.h)."""


# ---- files


def write_uniform(path: Path, shape: Shape, kind: str, *, embedding: str = REFERENCE) -> None:
    """Write a llama model without vocabulary, the matrices of whose layers are of the type KIND and whose embedding is of EMBEDDING."""
    from converters.gguf import ALIGNMENT, collector, write_header

    keys = collector("llama")
    keys.add_block_count(shape.layers)
    keys.add_context_length(256)
    keys.add_embedding_length(shape.width)
    keys.add_feed_forward_length(shape.inner)
    keys.add_head_count(shape.heads)
    keys.add_key_length(HEAD)
    keys.add_value_length(HEAD)
    keys.add_rope_dimension_count(HEAD)
    keys.add_layer_norm_rms_eps(1e-5)
    keys.add_vocab_size(shape.vocab)
    keys.add_tokenizer_model("no_vocab")
    tensors: list[tuple[str, tuple[int, ...], str]] = [("token_embd.weight", (shape.vocab, shape.width), embedding)]
    tensors.append(("output_norm.weight", (shape.width,), "F32"))
    for layer in range(shape.layers):
        tensors += [(f"blk.{layer}.{name}.weight", (rows, columns), kind) for name, rows, columns in shape.matrices]
        tensors += [(f"blk.{layer}.{name}.weight", (shape.width,), "F32") for name in ("attn_norm", "ffn_norm")]
    with path.open("wb") as file:
        write_header(file, keys, [(name, size, kind, nbytes(size, kind)) for name, size, kind in tensors])
        rows_of: dict[tuple[str, int], bytes] = {}
        for _, size, kind in tensors:
            encoded = rows_of.setdefault((kind, size[-1]), b"") or encoded_rows(kind, size[-1])
            rows_of[kind, size[-1]] = encoded
            whole = nbytes(size, kind)
            file.write((encoded * -(-whole // len(encoded)))[:whole])
            file.write(bytes(-whole % ALIGNMENT))


def nbytes(shape: Sequence[int], kind: str) -> int:
    """Return the bytes of a tensor of SHAPE in the type KIND."""
    block, size = BLOCK[kind]
    return math.prod(shape) // block * size


def encoded_rows(kind: str, columns: int) -> bytes:
    """Return ENCODED_ROWS rows of small random weights in the type KIND; those that libggml does not write get random bits."""
    import numpy as np

    from converters.quantize import encode
    from converters.quantmap import TENSOR_TYPES

    random = np.random.default_rng(0)
    if kind in SLOW_TABLES or kind not in TENSOR_TYPES:
        block, size = BLOCK[kind]
        blocks = random.integers(0, 256, (ENCODED_ROWS * columns // block, size), np.uint8)
        if kind == "IQ1_M":
            blocks[:, IQ1_M_TOP] = blocks[:, IQ1_M_TOP] & 0x0F | 0x10  # a scale between 2**-11 and 2**-9
        elif size >= 2:  # the scale comes first, in half precision (block_iq*, ggml-common.h)
            blocks[:, :2] = np.full((len(blocks), 1), 2.0**-10, np.float16).view(np.uint8)
        return blocks.tobytes()
    return bytes(encode(random.normal(0, 0.02, (ENCODED_ROWS, columns)).astype(np.float32), kind))


# ---- the child: loaded models


class Loaded:
    """A model in a context of the engine's, for single tokens and prompts of PROMPT."""

    def __init__(self, path: Path, device: Device, threads: int, *, repacked: bool = True) -> None:
        from edgeai.engines.llamacpp.handle import Handle

        artifact = open_artifact(path)
        options = LoadOptions(ctx=PROMPT, streams=1, prefix_bytes=0, threads=threads, device="cpu")
        self.handle: Handle = Handle(artifact, one_stream(make_plan(artifact, device, options), repacked=repacked))
        self._tokens = (ctypes.c_int32 * PROMPT)(*(number % BARE for number in range(PROMPT)))

    @property
    def is_repacked(self) -> bool:
        """Whether the weights were copied into another order; the others stay in the file."""
        return self.handle.placement.cpu.weights_bytes > 0

    def use(self, threads: int) -> None:
        """Compute with so many THREADS from now on."""
        self.handle.lib.llama_set_n_threads(self.handle.context, threads, threads)

    def seconds(self, count: int = 1) -> float:
        """Return how long COUNT tokens take that are read at once in an empty context."""
        handle, lib = self.handle, self.handle.lib
        handle.clear()
        batch = lib.llama_batch_get_one(self._tokens, count)
        began = time.perf_counter()
        code = lib.llama_decode(handle.context, batch)
        lib.llama_synchronize(handle.context)
        ended = time.perf_counter()
        handle.check(int(code))
        return ended - began


def one_stream(plan: Plan, *, repacked: bool) -> Plan:
    """Return PLAN for one sequence, as `edgeai bench` loads it; with REPACKED false without weights in another order."""
    return replace(
        plan, streams=1, sequences=1, kv_cells=plan.context, prefix_bytes=0, extra_bufts=plan.extra_bufts and repacked
    )


def say(**facts: Any) -> None:
    """Print FACTS for the parent."""
    os.write(1, (json.dumps(facts) + "\n").encode())  # at once: the next call may be the last


# ---- the child: which types run


def try_types(folder: Path, kinds: Sequence[str], use: str) -> None:
    """Load and decode a model for each of KINDS, USE "matrix" or "embedding"; say what is begun and what goes wrong."""
    from edgeai.device import probe

    device = probe(gpus=False)
    for number, kind in enumerate(kinds):
        say(begun=kind)
        path = folder / f"{number}.gguf"
        matrix, embedding = (kind, REFERENCE) if use == "matrix" else (REFERENCE, kind)
        write_uniform(path, replace(LAYERS, layers=1), matrix, embedding=embedding)
        try:
            loaded = Loaded(path, device, 1)
            loaded.seconds(PROMPT)
            loaded.seconds()
            loaded.handle.free()
        except Exception as error:  # noqa: BLE001 - whatever it is, this type does not run, and the parent says so
            say(failed=f"{type(error).__name__}: {error}")
    say(done=True)


# ---- the child: how long they take


def time_types(folder: Path, kinds: Sequence[str], threads: int, limit_s: float) -> None:
    """Say how long a token takes in each model, the least of the rounds, and how far the rounds are apart.

    The names are `KIND slim`, `KIND broad` and `KIND layers`; the first two with ` unpacked` where the library repacks KIND and was kept
    from it; `KIND prompt` for a prompt of PROMPT tokens in the layers; `bare slim` and `bare broad` for those without a large output
    matrix; `tiny` and `stack`, and both with ` again` for the token after, which finds all in the caches. LIMIT_S is for a machine that
    does not become quiet.
    """
    with loaded_models(folder, kinds, threads) as models:
        found = samples(models, limit_s)
        if threads > 1 and is_crowded(found):
            threads = 1
            for model in models.values():
                model.use(threads)
            found = samples(models, limit_s)
        say(seconds={name: min(values) for name, values in found.items()}, spread=spread(found), threads=threads)


def samples(models: Mapping[str, Loaded], limit_s: float) -> dict[str, list[float]]:
    """Return how long tokens and prompts took in each round: until the least times settle, or LIMIT_S are over."""
    import numpy as np

    prompts = {name.replace(" layers", " prompt"): model for name, model in models.items() if name.endswith(" layers")}
    found: dict[str, list[float]] = {name: [] for name in (*models, *prompts, *(f"{name} again" for name in SMALL))}
    ballast, ends = np.ones(BALLAST_BYTES // 8, np.int64), time.perf_counter() + limit_s
    for number in range(ROUNDS):
        say(round=number, rounds=ROUNDS)
        if number >= LEAST_ROUNDS and (time.perf_counter() > ends or (number >= CALM_ROUNDS and has_settled(found))):
            break
        ballast.sum()
        models["tiny"].seconds()  # the first one after the walk finds not even its instructions in a cache
        for name in turns(tuple(models)):
            found[name].append(models[name].seconds())
            if name in SMALL:
                found[f"{name} again"].append(models[name].seconds())
        for name, model in prompts.items() if number % PROMPT_EVERY == 0 else ():
            found[name].append(model.seconds(PROMPT))
    return found


def has_settled(found: Mapping[str, Sequence[float]]) -> bool:
    """Whether more rounds would find nothing lower."""
    return spread(found) < SETTLED and not is_crowded(found)


def is_crowded(found: Mapping[str, Sequence[float]]) -> bool:
    """Whether the threads always slept at the barriers of a model that has nothing to compute: other programs have their cores."""
    return min(found["stack"]) > STACK.layers * SLEEPING_LAYER_S


def turns(names: Sequence[str]) -> Iterator[str]:
    """Yield NAMES, and those that tell what a layer takes after every few of them: all the others are calculated with it."""
    for number, name in enumerate(names):
        yield name
        if number % SOME == 0:
            yield from SMALL


def spread(found: Mapping[str, Sequence[float]]) -> float:
    """Return by what part the third of the least times of a token is above the least, in the median of the models."""
    parts = []
    for name, values in found.items():
        least = sorted(values)[:3]
        if not name.endswith(" prompt"):
            parts.append(least[-1] / least[0] - 1)
    return statistics.median(parts)


@contextlib.contextmanager
def loaded_models(folder: Path, kinds: Sequence[str], threads: int) -> Iterator[dict[str, Loaded]]:
    """Load the models of KINDS, by name; free them at the end."""
    from edgeai.device import probe

    device = probe(gpus=False)
    with contextlib.ExitStack() as stack:
        models: dict[str, Loaded] = {}

        def load(name: str, path: Path, *, repacked: bool = True) -> Loaded:
            loaded = Loaded(path, device, threads, repacked=repacked)
            stack.callback(loaded.handle.free)
            models[name] = loaded
            return loaded

        def make(name: str, shape: Shape, kind: str, embedding: str = REFERENCE) -> Path:
            path = folder / f"{name}.gguf"
            write_uniform(path, shape, kind, embedding=embedding)
            return path

        for name, shape in (("slim", SLIM), ("broad", BROAD)):
            bare = replace(shape, vocab=BARE)
            load(f"bare {name}", make(f"bare {name}", bare, REFERENCE))
            for kind in kinds:
                path = make(f"{kind} {name}", shape, REFERENCE, kind)
                if load(f"{kind} {name}", path).is_repacked:
                    load(f"{kind} {name} unpacked", path, repacked=False)
        for kind in kinds:
            load(f"{kind} layers", make(f"{kind} layers", LAYERS, kind))
        for name, shape in (("tiny", TINY), ("stack", STACK)):
            load(name, make(name, shape, REFERENCE))
        yield models


if __name__ == "__main__":
    task, place, request = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    if task == "try":
        try_types(place, **request)
    else:
        time_types(place, **request)
