"""The graphs of an ONNX language model that are all of one type, which show what a type costs, and those of a choice, made from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from converters.curvature import Curvature
from converters.knapsack import Selection
from converters.onnx.blocks import can_recode, graft, recode
from converters.onnx.choices import Choices, parse_choices
from converters.onnx.header import Header, read_header
from converters.onnx.language import MODEL, build
from converters.onnx.matrices import BITS, EMBEDDING, HEAD, Matrix, matrices
from converters.onnx.sensitivity import tensors_of
from converters.sensitivity import feedback_from
from edgeai.bounds.outcome import Point
from edgeai.device import cpu_facts
from edgeai.exporting.job import FolderJob

__all__ = ["KINDS", "Graph", "Maker", "build_into", "chosen_by", "graph_of", "recode_all"]

KINDS = ("INT4", "INT8", "F32")
"""The types of a matrix, from the smallest; graphs are built whole of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A graph that is all of one type: its folder, its header and its matrices."""

    folder: Path
    header: Header
    matrices: Mapping[str, Matrix]

    def place(self, name: str) -> tuple[Header, Matrix]:
        """Return where the matrix NAME is; the rows of the embedding are those of the head where one matrix is both."""
        return self.header, self.matrices.get(name) or self.matrices[HEAD]

    @property
    def rest_bytes(self) -> int:
        """What all files of the folder take besides the matrices."""
        return sum(path.stat().st_size for path in self.folder.iterdir()) - self.matrix_bytes

    @property
    def rest_data_bytes(self) -> int:
        """What all other tensors take."""
        return self.header.data_bytes - self.matrix_bytes

    @property
    def matrix_bytes(self) -> int:
        """What the matrices take."""
        return sum(matrix.nbytes for matrix in self.matrices.values())


def graph_of(folder: Path) -> Graph:
    """Return the graph in FOLDER."""
    header = read_header(folder / MODEL)
    return Graph(folder=folder, header=header, matrices=matrices(header))


def chosen_by(job: FolderJob, kind: str, types: tuple[str, ...]) -> Choices:
    """Return the choices that TYPES mean in a file of KIND."""
    tied = bool(job.checkpoint.config.get("tie_word_embeddings", True))
    return parse_choices(kind, types, layers=job.plan.layers, tied=tied)


def build_into(job: FolderJob, choices: Choices, folder: Path, label: str) -> Header:
    """Build the model into FOLDER."""
    job.progress(label, 0, 1)
    header = build(job.checkpoint, job.plan, job.vocabulary, choices, folder, threads=cpu_facts().threads)
    job.progress(label, 1, 1)
    return header


def recode_all(job: FolderJob, graphs: Mapping[str, Graph], curvature: Curvature) -> bool:
    """Give the graph of 4 bits better codes, and return whether it has them: blocks of other settings stay as they are."""
    graph = graphs.get("INT4")
    if graph is None or not all(can_recode(matrix) for matrix in graph.matrices.values()):
        return False
    groups: dict[int, list[str]] = {}
    for name in graph.matrices:
        if known := tensors_of(name, curvature):
            groups.setdefault(curvature.places[known[0]], []).append(name)

    def work(names: Sequence[str]) -> None:
        feedback = feedback_from(curvature, tensors_of(names[0], curvature)[0])
        for name in names:
            recode(*graph.place(name), graphs["F32"].place(name), feedback)

    with ThreadPoolExecutor(cpu_facts().threads) as pool:  # libggml and BLAS let go of Python's lock
        for done, _ in enumerate(pool.map(work, groups.values()), 1):
            job.progress("encoding 4 bits", done, len(groups))
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """What makes a folder of a choice: `said` are the settings of the whole file, `graphs` the ones that are all of one type."""

    job: FolderJob
    said: tuple[str, ...]
    graphs: Mapping[str, Graph]

    def choices(self, chosen: Selection) -> Choices:
        """Return CHOSEN as overrides of the smallest type that it has."""
        present = [kind for kind in KINDS if kind in chosen.kinds.values()]
        if present == ["F32"]:
            return chosen_by(self.job, "F32", ())
        base = present[0]
        # of ends that are two matrices both are named: else an embedding would be float32, or take the type of the head
        named = (HEAD, EMBEDDING) if EMBEDDING in chosen.kinds else ()
        types = [
            f"{name}={kind.lower()}" for name, kind in sorted(chosen.kinds.items()) if kind != base or name in named
        ]
        return chosen_by(self.job, base, (*self.said, *types))

    def make(self, chosen: Selection, folder: Path, label: str = "building the choice") -> tuple[Choices, Header]:
        """Build CHOSEN into the empty FOLDER, with the codes of 4 bits that there are; return what was asked for, and the graph."""
        choices = self.choices(chosen)
        header = build_into(self.job, choices, folder, label)
        for name, matrix in matrices(header).items():
            if matrix.bits == BITS["int4"]:
                graft(self.graphs["INT4"].place(name), (header, matrix))
        return choices, header

    def point(self, chosen: Selection, folder: Path | None, name: str) -> Point:
        """Return what is known of CHOSEN, in FOLDER if it was built, before it is measured."""
        whole = self.graphs[min(self.graphs, key=KINDS.index)]
        size = sum(path.stat().st_size for path in folder.iterdir()) if folder else chosen.nbytes + whole.rest_bytes
        return Point(
            name=name,
            nbytes=size,
            bpw=(chosen.nbytes + whole.rest_data_bytes) * 8 / self.job.plan.parameters,
            predicted=chosen.cost,
            types=Counter(chosen.kinds.values()),
        )
