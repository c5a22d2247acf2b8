"""The types of an ONNX language model's matrices, chosen for a goal: int4, int8 or float32 for each.

    float32, int4 and int8 are built once → better codes of 4 bits → costs → [choose → build → measure] until the bound is met

The codes of 4 bits make up for each other's errors (`converters.feedback`) where the blocks are libggml's, which is the default. What is
chosen gets them from the folder in int4, so no matrix is encoded twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from converters.curvature import Curvature
from converters.knapsack import Item, Option, Selection, frontier
from converters.onnx.blocks import block_bytes
from converters.onnx.choices import Choices, parts_of
from converters.onnx.header import Header
from converters.onnx.matrices import BITS, EMBEDDING, HEAD, PACKED_QKV, QKV, Matrix
from converters.onnx.sensitivity import costs, tensors_of
from converters.sensitivity import check_finite
from edgeai.bounds.aim import Aim
from edgeai.bounds.calibration import Material, material
from edgeai.bounds.costs import curvature_of
from edgeai.bounds.goal import Goal
from edgeai.bounds.outcome import SPLIT, Outcome, Point
from edgeai.bounds.search import CORNERS, Search, decide, line_of
from edgeai.device import cpu_facts
from edgeai.errors import UsageError
from edgeai.evaluation.corpus import read_text
from edgeai.evaluation.heldout import held_out_tokens
from edgeai.evaluation.onnx_heldout import OnnxHeldOut
from edgeai.evaluation.passport import no_torch_notice
from edgeai.exporting.graphs import KINDS, Graph, Maker, build_into, chosen_by, graph_of, recode_all
from edgeai.exporting.job import FolderJob
from edgeai.types import Notice

__all__ = ["BASE", "Found", "check_aim", "find_types"]

BASE = "INT4"
"""The type of file that overrides are read for."""
UNKNOWN = "INT8"
"""The type of a matrix that torch says nothing about."""
PAPERS = 24 << 10
"""What lineage and passport of a folder take at most, without what is said of each matrix …"""
PAPERS_EACH = 160
"""… and with that."""
SURE = 1.01
"""How much more than the smallest size is certainly possible: what the graph takes is known when it has been built."""
PLAIN_ACCURACY = ("0", "1")
"""Settings of `accuracy` with which the runtime does not round inputs to 8 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came out: the types, the graph, how they were found, and the text that the proof compares on (None: the bundled one)."""

    choices: Choices
    outcome: Outcome
    facts: Mapping[str, object]
    header: Header
    text: str | None
    tokens: int | None


def check_aim(aim: Aim, choices: Choices, text: str | None) -> None:
    """Raise UsageError for what an ONNX language model has no use for, types that it cannot have, and a calibration text that is TEXT."""
    goal = aim.goal
    if goal is None:
        raise UsageError("a recipe names the types of a GGUF file, and this is ONNX", hint="--to gguf, or a bound")
    if goal.min_cosine is not None:
        raise UsageError(
            f"min_cosine {goal.min_cosine!r} is of models that give vectors, and this one writes text",
            hint="--max-kl 0.02",
        )
    if goal.prefer == "speed":
        raise UsageError(
            "prefer 'speed' is of GGUF files: how fast the types of an ONNX model run here is not measured",
            hint="leave it out",
        )
    for where, names in (("only", goal.only), ("exclude", goal.exclude)):
        if unknown := [name for name in names if name.upper() not in KINDS]:
            raise UsageError(
                f"{where} {unknown[0]!r} is no type of a matrix in ONNX",
                hint=f"one of: {', '.join(KINDS).lower()}",
            )
    if aim.calibration is not None and text is not None and read_text(aim.calibration).strip() == text.strip():
        raise UsageError(
            f"the text to compare on is the calibration text {str(aim.calibration)!r} itself, on which any folder would look too good",
            hint="name another --eval-text, or none: a part of the calibration text is kept back for that",
        )
    if not allowed(goal):
        raise UsageError("no type is left to choose from", hint="take one out of `exclude`")
    given = fixed_types(choices)
    for layer in {name.split(".")[1] for name in given if name.startswith("layers.")}:
        if len({given.get(f"layers.{layer}.{part}") for part in QKV}) > 1:
            raise UsageError(
                f"query, key and value of layer {layer} get different types, and a search gives them one",
                hint=f"--type 'layers.{layer}.attn.qkv_proj=int8'",
            )


def allowed(goal: Goal) -> tuple[str, ...]:
    """Return the types that GOAL leaves."""
    only, exclude = ({name.upper() for name in names} for names in (goal.only, goal.exclude))
    return tuple(kind for kind in KINDS if (not only or kind in only) and kind not in exclude)


def fixed_types(choices: Choices) -> dict[str, str]:
    """Return matrix → type for those that the user names one for."""
    kinds = {BITS[kind.lower()]: kind for kind in KINDS}
    named = {part for names in choices.asked.values() for name in names for part in (name, *parts_of(name))}
    for first in [name for name in named if name.endswith(QKV[0])]:
        whole = first.removesuffix(QKV[0]) + PACKED_QKV
        if named.issuperset(parts_of(whole)):
            named.add(whole)
    return {name: kinds[choices.bits.get(name, BITS[BASE.lower()])] for name in sorted(named)}


def find_types(
    job: FolderJob,
    aim: Aim,
    choices: Choices,
    *,
    source_sha256: str,
    export: Path,
    scratch: Path,
    output: Path,
    text: str | None,
) -> Found:
    """Search for the types that AIM wants and build them into the empty folder OUTPUT. CHOICES has the settings and types that are given.

    EXPORT is the model built in float32, SCRATCH a folder, TEXT the user's to compare on. Raises UsageError for a size out of reach, a text
    that is no use, or torch without room, and ProofFailed where nothing meets a bound.
    """
    goal = aim.goal
    assert goal is not None  # noqa: S101 - checked before
    if notice := no_torch_notice(job.plan, job.checkpoint):
        raise UsageError(
            f"types cannot be chosen for a bound here: {notice.message}", hint="give the type: --quant int8"
        )
    check_size(job, goal, choices, graph_of(export))
    texts = material(
        job.plan,
        job.vocabulary,
        aim.calibration,
        tokens=aim.tokens,
        keep_back=text is None,
        threads=cpu_facts().threads,
    )
    compared = text if text is not None else texts.held_out
    for done, tensor in enumerate(job.plan.tensors, 1):
        check_finite(tensor)
        job.progress("looking at every weight", done, len(job.plan.tensors))
    curvature = curvature_of(job.checkpoint.path, source_sha256, job.plan, texts.texts, job.progress)
    maker = Maker(job=job, said=settings(choices), graphs=whole_graphs(job, choices, goal, curvature, export, scratch))
    better = recode_all(job, maker.graphs, curvature)
    items = items_of(job, maker.graphs, choices, goal, curvature)
    search = searching(job, goal, items, maker.graphs, curvature, compared)
    chosen, point, presets = pursue(search, maker, scratch, presets=aim.presets)
    final, header = maker.make(chosen, output)
    outcome = Outcome(
        model=job.checkpoint.path.resolve().name,
        measure="mean KL, nats",
        chosen=replace(point, name="chosen"),
        rounds=tuple(item for item in search.found if item.nbytes != point.nbytes or item.quality != point.quality),
        presets=presets,
        frontier=tuple(corners(search, maker)),
        kinds=chosen.kinds,
        costs={item.name: next(o.cost for o in item.options if o.kind == chosen.kinds[item.name]) for item in items},
        bound=goal.max_kl,
        target_bytes=goal.target_bytes,
        min_top1=goal.min_top1,
        beside="all in one type",
        notes=() if texts.held_out is None else (SPLIT,),
    )
    return Found(
        choices=final,
        outcome=outcome,
        facts=facts_of(goal, texts, feedback=better),
        header=header,
        text=compared,
        tokens=tokens_of(job, compared),
    )


def tokens_of(job: FolderJob, text: str | None) -> int | None:
    """Return how many tokens are compared on: of the bundled text as many as the search, of another one what is usual."""
    return held_out_tokens(job.plan.parameters, job.plan.vocab_size) if text is None else None


def facts_of(goal: Goal, texts: Material, *, feedback: bool) -> dict[str, object]:
    """Return what the folder says of how its types were chosen."""
    wanted = {name: getattr(goal, name) for name in ("target_bytes", "target_bpw", "max_kl", "min_top1")}
    read = texts.facts
    return {
        "goal": {name: value for name, value in wanted.items() if value is not None},
        "calibration": {
            "text_sha256": read.text_sha256 or "bundled",
            "tokens": read.tokens,
            "generated": read.generated,
            "seed": read.seed,
            "feedback": feedback,
        },
    }


def settings(choices: Choices) -> tuple[str, ...]:
    """Return what was said of the whole file."""
    return tuple(text for text in choices.said if text not in choices.asked)


def whole_graphs(
    job: FolderJob, choices: Choices, goal: Goal, curvature: Curvature, export: Path, scratch: Path
) -> dict[str, Graph]:
    """Return type → the graph whose matrices all have it, for the types that some matrix may have."""
    found = {"F32": graph_of(export)}
    wanted = {*allowed(goal), *fixed_types(choices).values()}
    if not all(tensors_of(name, curvature) for name in found["F32"].matrices):
        wanted.add(UNKNOWN)
    for kind in ("INT4", "INT8"):
        if kind in wanted:
            types = (*settings(choices), f"*={kind.lower()}")
            folder = scratch / kind.lower()
            folder.mkdir()
            build_into(job, chosen_by(job, kind, types), folder, f"building {kind}")
            found[kind] = graph_of(folder)
    return found


def items_of(
    job: FolderJob, graphs: Mapping[str, Graph], choices: Choices, goal: Goal, curvature: Curvature
) -> list[Item]:
    """Return an item for each matrix: what each type takes, and what it is expected to cost."""
    exact, blocks = graphs["F32"], [kind for kind in KINDS if kind in graphs and kind != "F32"]
    rounded = choices.options.get("accuracy_level") not in PLAIN_ACCURACY
    fixed = fixed_types(choices)
    names = graphs[blocks[0]].matrices if blocks else exact.matrices
    if EMBEDDING in fixed and EMBEDDING not in names:  # one matrix is both ends
        fixed.setdefault(HEAD, fixed[EMBEDDING])
    unknown = [name for name in names if not tensors_of(name, curvature)]
    if unknown:
        message = (
            f"torch says nothing about {len(unknown)} matrices, which are {UNKNOWN.lower()}: {', '.join(unknown[:4])}"
        )
        job.say(Notice(code="types-unmeasured", message=message + (" …" if len(unknown) > 4 else "")))
    items = []
    for done, name in enumerate(names, 1):
        built = {kind: graphs[kind].place(name) for kind in blocks}
        known = name not in unknown
        found = costs(exact.place(name), built, curvature, rounded=rounded) if known else dict.fromkeys(built, 0.0)
        found["F32"] = 0.0
        kinds = (fixed[name],) if name in fixed else allowed(goal) if known else (UNKNOWN,)
        sizes = {kind: matrix.nbytes for kind, (_, matrix) in built.items()}
        sizes["F32"] = 4 * exact.place(name)[1].rows * exact.place(name)[1].columns
        options = tuple(Option(kind=kind, nbytes=sizes[kind], cost=found[kind]) for kind in kinds)
        items.append(Item(name=name, options=options))
        job.progress("finding out what each type costs", done, len(names))
    return items


def size_limit(job: FolderJob, goal: Goal, ends: Sequence[int], graphs: Sequence[Graph], count: int) -> int | None:
    """Return how many bytes the COUNT matrices may take, None for any number. Raises UsageError for a size that is not between the ENDS,
    what they take in the smallest and in the largest choice."""
    if goal.target_bytes is not None:
        rest = max(graph.rest_bytes for graph in graphs) + PAPERS + PAPERS_EACH * count
        check_reach(f"{goal.target_bytes} bytes", goal.target_bytes, [end + rest for end in ends], "{:.0f} bytes")
        return goal.target_bytes - rest
    if goal.target_bpw is None:
        return None
    rest = max(graph.rest_data_bytes for graph in graphs)
    sizes = [(end + rest) * 8 / job.plan.parameters for end in ends]
    check_reach(f"{goal.target_bpw:g} bits per weight", goal.target_bpw, sizes, "{:.3f} bits per weight")
    return int(goal.target_bpw * job.plan.parameters / 8) - rest


def check_size(job: FolderJob, goal: Goal, choices: Choices, graph: Graph) -> None:
    """Raise UsageError for a size that is out of reach whatever comes of the work; GRAPH is the model in float32."""
    block = int(choices.options.get("block_size", "32"))
    fixed = fixed_types(choices)

    def size(matrix: Matrix, kind: str) -> int:
        bits = BITS[kind.lower()]
        if kind == "F32":
            return 4 * matrix.rows * matrix.columns
        return block_bytes(matrix.rows, matrix.columns, bits, block)

    sizes = [
        [size(matrix, kind) for kind in ((fixed[name],) if name in fixed else allowed(goal))]
        for name, matrix in graph.matrices.items()
    ]
    most = sum(4 * matrix.rows * matrix.columns for matrix in graph.matrices.values())
    size_limit(job, goal, [sum(map(min, sizes)), 2 * most], [graph], len(sizes))


def searching(
    job: FolderJob,
    goal: Goal,
    items: Sequence[Item],
    graphs: Mapping[str, Graph],
    curvature: Curvature,
    compared: str | None,
) -> Search:
    """Return the search. Raises UsageError for a size that no choice has."""
    ends = [sum(pick(option.nbytes for option in item.options) for item in items) for pick in (min, max)]
    return Search(
        checkpoint=job.checkpoint,
        plan=job.plan,
        vocabulary=job.vocabulary,
        goal=goal,
        curvature=curvature,
        items=items,
        budget=size_limit(job, goal, ends, list(graphs.values()), len(items)),
        seconds=None,
        extra={},
        comparison=lambda: OnnxHeldOut(
            checkpoint=job.checkpoint,
            plan=job.plan,
            vocabulary=job.vocabulary,
            base="INT4",
            exports=False,
            stores=False,
            torch=True,
            text=compared,
            tokens=tokens_of(job, compared),
            progress=job.progress,
            files=goal.rounds + len(KINDS),
        ),
        progress=job.progress,
    )


def check_reach(wanted: str, value: float, ends: Sequence[float], shown: str) -> None:
    """Raise UsageError where VALUE is not between the ENDS, the sizes of the smallest and of the largest choice."""
    least, most = (shown.format(end) for end in ends)
    if value < ends[0]:
        raise UsageError(
            f"the target of {wanted} cannot be met: the smallest folder with the types that may be used has about {least}",
            hint=f"ask for {shown.format(ends[0] * SURE)} or more",
        )
    if value > ends[1]:
        raise UsageError(
            f"the target of {wanted} is more than the largest folder with the types that may be used has: {most}",
            hint="--quant f32 is the source's values",
        )


def pursue(search: Search, maker: Maker, scratch: Path, *, presets: bool) -> tuple[Selection, Point, tuple[Point, ...]]:
    """Return the choice, its point, and with PRESETS the points of int4 and int8 as the builder makes them."""
    if not search.bounded and not presets:
        chosen, _ = decide(search, lambda _chosen, _name: Point(name="", nbytes=0, bpw=0.0))
        return chosen, maker.point(chosen, None, "chosen"), ()
    trial = scratch / "trial"
    with search.comparison() as compared:

        def measure(chosen: Selection, name: str) -> Point:
            search.progress(name, 0, 1)
            trial.mkdir()
            maker.make(chosen, trial, f"{name}: building")
            found = compared.measure(trial)
            point = maker.point(chosen, trial, name)
            shutil.rmtree(trial)
            point = replace(point, quality=found.quality, top1=found.top1, p999=found.p999)
            search.found.append(point)
            return point

        chosen, made = decide(search, measure)
        point = made or measure(chosen, "chosen")
        beside = []
        for kind in ("INT4", "INT8") if presets else ():
            trial.mkdir()
            build_into(maker.job, chosen_by(maker.job, kind, maker.said), trial, f"measuring {kind.lower()}")
            found = compared.measure(trial)
            graph = graph_of(trial)
            beside.append(
                Point(
                    name=kind.lower(),
                    nbytes=graph.rest_bytes + graph.matrix_bytes,
                    bpw=graph.header.data_bytes * 8 / maker.job.plan.parameters,
                    quality=found.quality,
                    top1=found.top1,
                    p999=found.p999,
                )
            )
            shutil.rmtree(trial)
    return chosen, point, tuple(beside)


def corners(search: Search, maker: Maker) -> list[Point]:
    """Return some corners of the frontier, evenly over its sizes, corrected by what was measured."""
    found = [item for item in frontier(search.items) if item.cost > 0]
    floor, scale = line_of(search.found)
    step = max(1, len(found) // CORNERS)
    some = [*found[::step], *(found[-1:] if found and (len(found) - 1) % step else [])]
    return [replace(maker.point(item, None, ""), predicted=floor + item.cost * scale) for item in some]
