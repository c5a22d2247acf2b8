"""What a weight of each ggml type costs a decoded token on this machine: measured once, and added up for any mix of types.

A decoded token multiplies every matrix with one vector, so its time is the sum over the matrices of what their weights and their rows
take, and what a layer takes besides. A row costs something of its own where rows are not repacked (its sums are collected anew): in Q5_K
one of 576 weights takes a tenth more for each than a long one. Two models of each type with rows of different lengths tell both apart
(`typeprobe`), and two of next to no weights what is left. An embedding that is looked up is free; one that is the output too is a matrix.

Only the CPU is measured. Attention over what came before is left out: the times are those of the first tokens.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from converters.families import ModelPlan
from converters.ggml_types import GGML_TYPES
from edgeai import native
from edgeai.childprocess import CRASHES, ending, environment, module_command, read_memo, run_module, write_memo
from edgeai.device import cpu_facts
from edgeai.errors import EngineCrashed, UsageError
from edgeai.evaluation.typeprobe import BARE, BROAD, LAYERS, PROMPT, REFERENCE, SLIM, STACK, TINY
from edgeai.paths import home
from edgeai.types import Notice, Progress, no_progress

__all__ = [
    "TypeSpeeds",
    "decode_seconds",
    "failures",
    "fit",
    "prompt_seconds",
    "runnable",
    "tensor_seconds",
    "type_speeds",
]

CHILD = "edgeai.evaluation.typeprobe"
LIMIT_S = 10.0
"""When the rounds of a measurement end on a machine that does other work; on an idle one they take two seconds."""
TIMEOUT_S = 120.0
MEMO = "typespeed.json"
DISTURBED = 0.1
"""The spread above which the least times are not those of an idle machine."""
LANES = 8
"""Rows that libggml puts side by side at most; a matrix whose rows are no multiple of it stays as it is (ggml-cpu/repack.cpp)."""
EMBEDDING = "token_embd.weight"
LOOKED_UP = (EMBEDDING, "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
NO_PRODUCT = ("shortconv.conv", "ssm_conv1d", "_norm.")
"""Parts of the names of what has two dimensions and is multiplied with no vector."""
ALWAYS = (REFERENCE, "F32")
"""Types that are measured with any others: the first tells what a layer takes, and routers are stored in the second."""
Runner = Callable[..., "subprocess.CompletedProcess[str]"]


class Sized(Protocol):
    """A tensor's name and its shape in numpy's order, as `TensorPlan` has them."""

    @property
    def name(self) -> str:
        """The name in the GGUF file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows before columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeSpeeds:
    """Times on the processor `device` with `threads` threads, in seconds.

    A decoded token takes `token_s`, `layer_s` for each layer, and for each matrix the `seconds` of its type a weight and the `row_seconds`
    a row. A matrix that libggml cannot store in the order that its fastest kernels want takes the `unpacked` ones of both; types
    without such kernels are not in these. `prompt_seconds` are for a weight and a token, in prompts of 64. `left_out` is type → why the
    library does not run it. `spread` is how far the three least times of a measurement are apart.
    """

    device: str
    threads: int
    seconds: Mapping[str, float]
    row_seconds: Mapping[str, float] = field(default_factory=dict)
    unpacked_seconds: Mapping[str, float] = field(default_factory=dict)
    unpacked_row_seconds: Mapping[str, float] = field(default_factory=dict)
    prompt_seconds: Mapping[str, float] = field(default_factory=dict)
    matrix_s: float = 0.0
    layer_s: float = 0.0
    token_s: float = 0.0
    spread: float = 0.0
    asked_threads: int | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def notice(self) -> Notice | None:
        """What to say of times that are not those of an idle machine with the threads that were asked for; they are not remembered."""
        if self.asked_threads not in (None, self.threads):
            why = f"with 1 thread instead of {self.asked_threads}: other programs have the cores of the others"
        elif self.spread > DISTURBED:
            why = f"on a busy machine: even the least times are {self.spread:.0%} apart"
        else:
            return None
        return Notice(code="speeds-uncertain", message=f"the speeds of the types were measured {why}")

    def product_seconds(self, rows: int, columns: int, kind: str) -> float:
        """Return what one matrix of ROWS and COLUMNS takes in the type KIND. Raises UsageError for a type without a speed."""
        self.check(kind)
        unpacked = rows % LANES != 0 and kind in self.unpacked_seconds
        weight = (self.unpacked_seconds if unpacked else self.seconds)[kind]
        row = (self.unpacked_row_seconds if unpacked else self.row_seconds).get(kind, 0.0)
        return rows * (columns * weight + row) + self.matrix_s

    def check(self, kind: str) -> None:
        """Raise UsageError where KIND has no speed."""
        if kind not in self.seconds:
            reason = self.left_out.get(kind, "it was not measured")
            raise UsageError(
                f"the type {kind!r} has no speed on this machine: {reason}", hint=f"known: {', '.join(self.seconds)}"
            )


# ---- what a model takes


def decode_seconds(speeds: TypeSpeeds, plan: ModelPlan, kinds: Mapping[str, str]) -> float:
    """Return how long a decoded token of PLAN takes with KINDS, tensor name → type; what they do not name stays F32."""
    matrices = sum(tensor_seconds(speeds, plan, tensor, kinds.get(tensor.name, "F32")) for tensor in plan.tensors)
    return speeds.token_s + plan.layers * speeds.layer_s + matrices


def prompt_seconds(speeds: TypeSpeeds, plan: ModelPlan, kinds: Mapping[str, str]) -> float:
    """Return how long each token of a prompt takes in the matrices of its layers with KINDS; the output gets one token of all."""
    total = 0.0
    for tensor in plan.tensors:
        parts, rows, columns = multiplied(plan, tensor)
        if parts and tensor.name not in ("output.weight", EMBEDDING):
            kind = kinds.get(tensor.name, "F32")
            speeds.check(kind)
            total += parts * rows * columns * speeds.prompt_seconds[kind]
    return total


def tensor_seconds(speeds: TypeSpeeds, plan: ModelPlan, tensor: Sized, kind: str) -> float:
    """Return the part of a decoded token that TENSOR of PLAN takes in the type KIND; 0 for what is looked up or added."""
    parts, rows, columns = multiplied(plan, tensor)
    return parts * speeds.product_seconds(rows, columns, kind) if parts else 0.0


def multiplied(plan: ModelPlan, tensor: Sized) -> tuple[int, int, int]:
    """Return with how many matrices of TENSOR a token is multiplied (some experts of all), and the rows and columns of one."""
    name, shape = tensor.name, tensor.shape
    if len(shape) < 2 or any(part in name for part in NO_PRODUCT):
        return 0, 0, 0
    if name in LOOKED_UP and (name != EMBEDDING or any(item.name == "output.weight" for item in plan.tensors)):
        return 0, 0, 0
    matrices = math.prod(shape[:-2])
    used = plan.keys.get("expert_used_count", matrices)
    assert isinstance(used, int)  # noqa: S101 - the families read it so
    return min(used, matrices), shape[-2], shape[-1]


# ---- which types run


def runnable(kinds: Sequence[str], *, embedding: bool = False) -> tuple[str, ...]:
    """Return those of KINDS that the library can compute with here, in their order: in matrices, or, with EMBEDDING, in that one too.

    Raises UsageError for a name that is no type, EngineCrashed where they cannot be tried.
    """
    return tuple(kind for kind, reason in failures(kinds, embedding=embedding).items() if reason is None)


def failures(
    kinds: Sequence[str],
    *,
    embedding: bool = False,
    progress: Progress = no_progress,
    fresh: bool = False,
    run: Runner = run_module,
) -> dict[str, str | None]:
    """Return for each of KINDS why it does not run here, None where it does, tried in child processes that may die of it.

    A type is tried in the matrices of a layer, or in an embedding that is looked up and the output matrix too. What was found is
    remembered for this processor and library; FRESH: tried again. RUN starts a child, as `run_module` does. Raises as `runnable`.
    """
    types = [item.name for item in GGML_TYPES.values()]
    if unknown := [kind for kind in kinds if kind not in types]:
        raise UsageError(f"{unknown[0]!r} is no ggml type", hint=f"known: {', '.join(types)}")
    use = "embedding" if embedding else "matrix"
    memo = home() / "cache" / MEMO
    key = f"types {native.fingerprint()} {cpu_facts().name}"
    known = {} if fresh else read_memo(memo).get(key)
    found = (
        {name: reason for name, reason in known.items() if isinstance(reason, str)} if isinstance(known, dict) else {}
    )
    left = list(dict.fromkeys(kind for kind in kinds if f"{kind} {use}" not in found))
    while left:
        progress("trying the types", len(kinds) - len(left), len(kinds))
        tried = _tried(left, use, run)
        found |= {f"{kind} {use}": reason for kind, reason in tried.items()}
        left = left[len(tried) :]
        write_memo(memo, {**read_memo(memo), key: found})
    return {kind: found[f"{kind} {use}"] or None for kind in kinds}


def _tried(kinds: Sequence[str], use: str, run: Runner) -> dict[str, str]:
    """Return for the first of KINDS, up to one that kills its process, why they do not run; nothing where they do."""
    with tempfile.TemporaryDirectory(prefix="edgeai-types-") as folder:
        request = json.dumps({"kinds": list(kinds), "use": use})
        child = run(CHILD, "try", folder, request, timeout_s=TIMEOUT_S)
    found: dict[str, str] = {}
    done = False
    for facts in map(json.loads, child.stdout.splitlines()):
        if "begun" in facts:
            found[facts["begun"]] = ""
        if "failed" in facts:
            found[list(found)[-1]] = facts["failed"]
        done = done or "done" in facts
    outside = child.returncode < 0 and -child.returncode not in CRASHES  # killed, which says nothing about a type
    if done:
        return found
    if not found or outside or child.returncode in (0, 1):
        raise _crashed("trying types", child)
    said = native.abort_reason(child.stderr)
    found[list(found)[-1]] = f"the native library {ending(replaced(child))}" + (f" ({said})" if said else "")
    return found


def replaced(child: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Return CHILD without its stderr."""
    return subprocess.CompletedProcess(child.args, child.returncode, child.stdout, "")


def _crashed(what: str, child: subprocess.CompletedProcess[str]) -> EngineCrashed:
    return EngineCrashed(f"{what} failed: the child process {ending(child)}", hint="edgeai doctor")


# ---- how long they take


def type_speeds(
    kinds: Sequence[str], *, threads: int | None = None, progress: Progress = no_progress, fresh: bool = False
) -> TypeSpeeds:
    """Return what the types KINDS take on this machine, measured in about five seconds unless that is known; FRESH: measured anew.

    THREADS is how many decode, None for as many as a plan takes. What is remembered is of this processor, library and number of threads;
    for a type that is not there all are measured anew, side by side. Types that do not run are in `left_out`.

    Raises UsageError for a name that is no type, EngineCrashed where a measurement fails.
    """
    cpu = cpu_facts()
    threads = threads or cpu.threads
    why = failures(kinds, progress=progress, fresh=fresh)
    wanted = [*ALWAYS, *(kind for kind in kinds if why[kind] is None)]
    memo = home() / "cache" / MEMO
    key = f"speeds {native.fingerprint()} {cpu.name} {threads}"
    known = _known(read_memo(memo).get(key))
    if fresh or known is None or not set(wanted) <= set(known.seconds):
        together = list(dict.fromkeys([*wanted, *(known.seconds if known else ())]))
        known = _timed(together, threads, progress)
        if known.notice is None:
            write_memo(memo, {**read_memo(memo), key: asdict(known)})
    return replace(known, left_out={kind: reason for kind, reason in why.items() if reason is not None})


def fit(least: Mapping[str, float], *, device: str, threads: int) -> TypeSpeeds:
    """Return the speeds that add up to LEAST: the seconds of the models of `typeprobe.time_types`, by name.

    The three models of a type are products of known sizes; what a product takes besides its rows and weights is the same for all
    types, and the median of what is left in their layers. What a layer and a token take is of STACK and TINY: in a context that was not
    used for long, as the others are when they are measured, and, to predict the next token with, in one that has just been.
    """
    kinds = [name.removesuffix(" layers") for name in least if name.endswith(" layers")]
    unpacked = [kind for kind in kinds if f"{kind} slim unpacked" in least]
    weight, row = _rates(_products(least, REFERENCE))
    small = TINY.weights * weight + TINY.rows * row
    more = STACK.layers - TINY.layers
    layer_s = max(0.0, (least["stack"] - least["tiny"]) / more - small)
    token_s = max(0.0, least["tiny"] - layer_s - small)
    layers = {kind: (least[f"{kind} layers"] - token_s) / LAYERS.layers - layer_s for kind in kinds}
    left = []
    for kind in kinds:
        weight, row = _rates(_products(least, kind))
        left.append(layers[kind] - LAYERS.weights * weight - LAYERS.rows * row)
    matrix_s = max(0.0, statistics.median(left) / len(LAYERS.matrices))
    products = matrix_s * len(LAYERS.matrices)
    packed = {
        kind: _rates([*_products(least, kind), (LAYERS.weights, LAYERS.rows, layers[kind] - products)])
        for kind in kinds
    }
    plain = {kind: _rates(_products(least, kind, " unpacked")) for kind in unpacked}
    layer_again_s = max(0.0, least["stack again"] - least["tiny again"]) / more
    return TypeSpeeds(
        device=device,
        threads=threads,
        seconds={kind: weight for kind, (weight, _) in packed.items()},
        row_seconds={kind: row for kind, (_, row) in packed.items()},
        unpacked_seconds={kind: weight for kind, (weight, _) in plain.items()},
        unpacked_row_seconds={kind: row for kind, (_, row) in plain.items()},
        prompt_seconds={kind: least[f"{kind} prompt"] / PROMPT / LAYERS.layers / LAYERS.weights for kind in kinds},
        matrix_s=matrix_s,
        layer_s=layer_again_s,
        token_s=max(0.0, least["tiny again"] - layer_again_s),
    )


def _products(least: Mapping[str, float], kind: str, suffix: str = "") -> list[tuple[int, int, float]]:
    """Return the weights and rows of the large output matrices of KIND, and what they take: the bare models have all but them."""
    found = []
    for name, shape in (("slim", SLIM), ("broad", BROAD)):
        rows = shape.vocab - BARE
        found.append((rows * shape.width, rows, least[f"{kind} {name}{suffix}"] - least[f"bare {name}"]))
    return found


def _rates(products: Sequence[tuple[int, int, float]]) -> tuple[float, float]:
    """Return what a weight and a row take in PRODUCTS of (weights, rows, seconds): the least squares of the relative errors.

    A row that seems to take less than nothing takes nothing.
    """
    import numpy as np

    terms = np.array([(weights / seconds, rows / seconds) for weights, rows, seconds in products])
    scale = terms.max(axis=0)  # weights and rows are of different sizes
    weight, row = np.linalg.lstsq(terms / scale, np.ones(len(terms)))[0] / scale
    if weight > 0 and row >= 0:
        return float(weight), float(row)
    ratios = terms[:, 0]
    return float(ratios.sum() / (ratios @ ratios)), 0.0


def _known(entry: object) -> TypeSpeeds | None:
    """Return what was remembered as ENTRY, None for what no measurement has left."""
    if not isinstance(entry, dict) or set(entry) != {item.name for item in fields(TypeSpeeds)}:
        return None
    tables = [entry[name] for name in entry if name.endswith("seconds")]
    if not all(isinstance(table, dict) for table in tables):
        return None
    numbers = [
        entry["matrix_s"],
        entry["layer_s"],
        entry["token_s"],
        entry["spread"],
        *(number for table in tables for number in table.values()),
    ]
    if not all(isinstance(number, float) and 0 <= number < math.inf for number in numbers):
        return None
    complete = all(set(entry[name]) == set(entry["seconds"]) for name in ("row_seconds", "prompt_seconds"))
    complete = complete and set(entry["unpacked_seconds"]) == set(entry["unpacked_row_seconds"])
    return TypeSpeeds(**entry) if complete else None


def _timed(kinds: Sequence[str], threads: int, progress: Progress) -> TypeSpeeds:
    """Return the speeds of KINDS, measured in a child process. Raises EngineCrashed."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgeai-types-") as folder:
        request = json.dumps({"kinds": list(kinds), "threads": threads, "limit_s": LIMIT_S})
        for found in _told(folder, request):
            if "round" in found:
                progress("measuring the speed of the types", found["round"], found["rounds"])
    speeds = fit(found["seconds"], device=cpu_facts().name, threads=found["threads"])
    return replace(speeds, spread=found["spread"], asked_threads=threads)


def _told(folder: str, request: str) -> Iterator[dict[str, Any]]:
    """Yield what a child says that measures. Raises EngineCrashed where it does not end well, or not in time."""
    command = module_command(CHILD, "time", folder, request)
    log = Path(folder) / "stderr"
    env = {**environment(), "CUDA_VISIBLE_DEVICES": "-1"}
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=env) as child,
    ):
        timer = threading.Timer(TIMEOUT_S, child.kill)
        timer.start()
        try:
            assert child.stdout is not None  # noqa: S101 - asked for above
            yield from map(json.loads, child.stdout)
        except BaseException:
            child.kill()
            raise
        finally:
            timer.cancel()
    if child.returncode:
        said = log.read_text(errors="replace")
        raise _crashed("timing types", subprocess.CompletedProcess(command, child.returncode, "", said))
