"""The proof of an ONNX language model: the same prompts and measures as of a GGUF file, run by onnxruntime-genai.

onnxruntime-genai takes no positions that jump, so what lies far apart is proved otherwise: the graph holds its angles of rope in tables,
and these are compared with torch's at every position.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import tokenproof
from converters.child import Child, ChildFailed
from converters.onnx.header import Header, Tensor, read_header
from edgeai.artifact import open_artifact
from edgeai.engines.hfvocab import HFVocab
from edgeai.errors import ProofFailed
from edgeai.evaluation import tokens
from edgeai.evaluation.passport import Proof, Run
from edgeai.evaluation.prompts import Prompt, far_limit, window_tokens
from edgeai.evaluation.stream import LogitStream
from edgeai.types import Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

__all__ = ["OnnxProof"]

GENAI_CHILD = Path(__file__).with_name("genai_child.py")
PART = 64
"""Tokens of a prompt that are read at once, as the engine reads them."""
MOST_WINDOW = 2048
"""A prompt that is longer than a window of attention is run where the window is no longer than this."""


@dataclass(slots=True)
class OnnxProof(Proof):
    """The proof of a folder for onnxruntime-genai."""

    def _choose(self) -> None:
        """Choose the prompts: those of GGUF files without jumps, and one beyond the window where there is one."""
        self.angles = self.plan.context
        Proof._choose(self)
        for prompts in (self._exact, self._loose, self._stored):
            prompts[:] = [prompt for prompt in prompts if prompt.kind != "far"]
        self._stored.clear()  # the runtime adds up halves in its own ways
        window = self.plan.window
        if self._exact and window is not None and window_tokens(self.plan) <= window <= MOST_WINDOW:
            ids = [token for prompt in self._exact for token in prompt.ids]
            size = min(self.plan.context, window + PART + PART // 2)
            self._exact.append(Prompt(kind="noise", ids=(ids * (size // len(ids) + 1))[:size]))

    def _weights(self, path: Path) -> list[Row]:
        """Return the rows about the graph: operators, data, tables of rope."""
        header = read_header(path / str(open_artifact(path).metadata["onnx.file"]))
        unknown = header.unknown_operators()
        nodes = sum(header.operators.values())
        opset = header.opsets.get("", 0)
        rows = [
            Row(name="graph", value=f"opset {opset}, {nodes} nodes, onnx.checker passed"),
            Row(name="operators of other libraries", value=", ".join(unknown) or "none", limit="none", ok=not unknown),
            Row(name="weights in the folder", value=f"{len(header.tensors)} tensors, {header.data_bytes} bytes"),
        ]
        return [*rows, *self._angle_rows(header)]

    def _angle_rows(self, header: Header) -> list[Row]:
        """Compare the tables of rope in the graph with torch's, each with the one of torch that is nearest."""
        import numpy as np

        # a graph for layers with and without windows has both tables, where all its layers are of one kind too
        tables = {tensor.name: tensor for tensor in header.tensors if tensor.name in header.tables}
        if self._torch is None or not tables:
            return []
        stems = self._facts().get("angles", [])
        rows = []
        for name, tensor in sorted(tables.items()):
            found = read_tensor(header, tensor)
            with np.errstate(invalid="ignore", over="ignore"):  # a damaged table has anything in it
                worst = min(
                    (
                        float(np.abs(found[: len(want)] - want[: len(found)]).max())
                        for stem in stems
                        if (want := self._angles(stem, name[:3], found.shape[-1])) is not None
                    ),
                    default=float("inf"),
                )
            limit = far_limit(len(found)) ** 0.5
            half_precision = tensor.dtype != "float32"
            limit = max(limit, 2.0**-8 if half_precision else 0.0)
            row = Row(name=f"{name} at {len(found)} positions", value=worst, limit=f"< {limit:.2g}", ok=worst < limit)
            rows.append(row)
        return rows

    def _angles(self, stem: str, what: str, width: int) -> F32 | None:
        """Return torch's table, (positions, WIDTH), or None where it is of another width."""
        import numpy as np

        assert self._torch is not None  # noqa: S101 - asked before
        flat = np.fromfile(self._torch.folder / f"{stem}-{what}.f32", np.float32)
        rows: F32 = flat.reshape(self.angles, -1)
        return rows if rows.shape[1] == width else None

    def _template(self, path: Path) -> Any:
        return open_artifact(path).template

    def _run(self, path: Path, prompts: Sequence[Prompt]) -> Run:
        """Run the folder PATH: check the ids that its tokenizer gives, and start its logits for PROMPTS."""
        artifact = open_artifact(path)
        ends = artifact.metadata.get("genai.eos_token_id", ())
        vocab = HFVocab.of_folder(path, ends=ends if isinstance(ends, tuple) else (ends,), size=artifact.vocab)
        question = replace(tokenproof.ids_question(path, self.vocabulary), path=path)
        answer = {
            "ids": [
                [
                    vocab.tokenize(text, add_special=item.add_special, parse_special=item.parse_special)
                    for text in question.texts
                ]
                for item in question.readings
            ],
            "vocab": len(self.vocabulary.tokens),
            "eog": sorted(vocab.ends),
        }
        parts, errors = tokens.segments(self.vocabulary, vocab.named)
        chats = [vocab.tokenize_segments(tokens.as_segments(part)) for part in parts if part is not None]
        folder = self._place("file")
        window = artifact.metadata.get("genai.window")
        request = {
            "model": str(path),
            "prompts": [asdict(prompt) for prompt in prompts],
            "continue": tokens.questions(self.plan, self.vocabulary),
            "folder": str(folder),
            "context": artifact.context or self.plan.context,
            "window": int(json.loads(window).get("window_size", 0)) if isinstance(window, str) else 0,
            "part": PART,
            "threads": self._threads(),
        }
        try:
            child = self._keep(Child(GENAI_CHILD, request, what=f"running {path.name!r}", feed=True))
            stream = LogitStream(child, folder, prompts, self.plan.vocab_size, progress=self.progress)
            facts = stream.wait_facts()
        except ChildFailed as error:
            raise ProofFailed(
                f"onnxruntime-genai does not run the converted model: {error.reason}", hint=error.hint
            ) from error
        rows = [*tokens.id_rows(self.vocabulary, question, answer), *self._ends(vocab.ends)]
        return Run(
            path=path, stream=stream, rows=rows, facts={**facts, "jobs": [{"chats": chats}]}, parts=parts, errors=errors
        )

    def _ends(self, found: frozenset[int]) -> list[Row]:
        """Compare the tokens that end an answer: one that is too many cuts answers short, which no logits show."""
        wanted = frozenset(self.vocabulary.stop_ids)
        if not wanted:
            return []
        value = ", ".join(map(str, sorted(found))) or "none"
        limit = ", ".join(map(str, sorted(wanted)))
        return [Row(name="ends of an answer", value=value, limit=limit, ok=found == wanted)]


def read_tensor(header: Header, tensor: Tensor) -> F32:
    """Return the numbers of TENSOR as float32. Raises ProofFailed where they are not in one piece, or of a type without a number."""
    import numpy as np

    kinds: dict[str, np.dtype[Any]] = {
        "float32": np.dtype("<f4"),
        "float16": np.dtype("<f2"),
        "bfloat16": np.dtype("<u2"),
    }
    if tensor.offset is None or tensor.dtype not in kinds:
        raise ProofFailed(f"the table {tensor.name!r} of the graph cannot be read: it is of the type {tensor.dtype}")
    place = header.path if tensor.file is None else header.path.parent / tensor.file
    flat = np.fromfile(place, kinds[tensor.dtype], tensor.elements, offset=tensor.offset)
    if tensor.dtype == "bfloat16":  # the upper half of a float32
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    found: F32 = flat.astype(np.float32).reshape(tensor.shape)
    return found
