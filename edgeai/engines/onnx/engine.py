"""A classifier, a regression, or any other ONNX model of arrays, in this process; see engines.base.Engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgeai.artifact import Artifact
from edgeai.engines.onnx.batches import Fill
from edgeai.engines.onnx.cache import OptimizedModels
from edgeai.engines.onnx.classifier import FEW, Ports, check_task, classifier_of
from edgeai.engines.onnx.session import Session, open_session, run_failure
from edgeai.engines.onnx.texts import Texts
from edgeai.engines.streaming import ChunkStream
from edgeai.errors import ClosedError, EdgeAIError, InvalidModel, UsageError
from edgeai.options import DeviceChoice
from edgeai.plan import Plan
from edgeai.types import GenerationConfig, Prediction, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["ClassifierEngine", "graph_of", "ports_of"]

TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(int64)": "int64",
    "tensor(int32)": "int32", "tensor(int8)": "int8", "tensor(uint8)": "uint8", "tensor(bool)": "bool",
    "tensor(int16)": "int16", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
}  # fmt: skip


def graph_of(artifact: Artifact) -> Path:
    """Return the .onnx file of ARTIFACT, which is a file or a folder."""
    return artifact.path / str(artifact.metadata["onnx.file"]) if artifact.path.is_dir() else artifact.path


class ClassifierEngine:
    """Pictures, rows, series, texts or arrays to labels or values. Any number of threads may use it at once: nothing is locked.

    One item alone goes through arrays that are bound to the session once for each thread, which onnxruntime runs in less time than what
    it is given anew. An engine that is forgotten frees its model, as one that is closed does.
    """

    def __init__(
        self,
        artifact: Artifact,
        plan: Plan,
        *,
        device: DeviceChoice | None = None,
        cache: OptimizedModels | None = None,
    ) -> None:
        began = time.perf_counter()
        check_task(artifact)
        self.artifact = artifact
        session = open_session(graph_of(artifact), device=device or plan.device, threads=plan.threads, cache=cache)
        self.session: Session | None = session
        self.backend = session.backend
        self.plan = replace(
            plan,
            device=session.backend,
            why=(*plan.why, session.in_words),
            notices=(*plan.notices, *session.notices),
        )
        self._ports = ports_of(artifact, session.native)
        self._classifier = classifier_of(artifact, self._ports)
        self._output = [self._ports["output"][0]]
        self._local: threading.local | None = threading.local() if self._may_bind() else None
        self._alone = self._for_one()
        self.batches = 0
        self.load_s = time.perf_counter() - began

    def _may_bind(self) -> bool:
        """Return whether one item always has the same shape, and its output too."""
        reader, names, (_, dtype, shape) = self._classifier.reader, self._classifier.names, self._ports["output"]
        port = self._ports["inputs"][reader.names[0]]
        if self.backend != "cpu":
            return False  # a GPU's copy to what is bound here has not been tried
        plain = dtype == "float32" and shape[1:] == (len(names),) and len(names) <= FEW
        return (
            plain and bool(reader.item_shape) and self._classifier.fixed in (None, 1) and port[0] == reader.dtype.name
        )

    def _for_one(self) -> Callable[[Any], dict[str, Any] | None] | None:
        """Return what makes the inputs of one text without the steps that only a batch needs; None for other models."""
        reader, count, (_, _, shape) = self._classifier.reader, len(self._classifier.names), self._ports["output"]
        if (
            not isinstance(reader, Texts)
            or shape[1:] != (count,)
            or count > FEW
            or self._classifier.fixed not in (None, 1)
        ):
            return None
        same = all(kind == reader.dtype.name for kind, _ in self._ports["inputs"].values())
        return reader.alone if same else None

    def classify(self, items: Sequence[Any]) -> list[Prediction]:
        """Return what the model says of each of ITEMS; of a file with rows, of each row.

        Raises UsageError with the place of what is wrong with an item; the engine goes on. EngineCrashed for outputs that are no numbers.
        """
        local = self._local
        if local is not None and type(items) is list and len(items) == 1:
            try:
                bound = local.bound
            except AttributeError:
                bound = local.bound = self._bind()
            if bound.fill(items[0]):
                return [self._classifier.single(self._run_bound(bound))]
        alone = self._alone
        if alone is not None and type(items) is list and len(items) == 1 and (feed := alone(items[0])) is not None:
            return [self._classifier.single(self.infer(feed)[0].tolist())]
        return self._classifier.classify(items, self.infer, self.plan.batch)

    def _run_bound(self, bound: _Bound) -> list[float]:
        try:
            bound.run()
        except Exception as error:
            raise run_failure(self.artifact.name, error) from error
        self.batches += 1
        row: list[float] = bound.row.tolist()
        return row

    def _bind(self) -> _Bound:
        reader = self._classifier.reader
        return _Bound(self._native(), reader, self._output[0], len(self._classifier.names))

    def infer(self, feed: Mapping[str, Array]) -> Array:
        """Return the model's first output for the inputs FEED, arrays by the names of the graph."""
        native = self._native()
        try:
            (found,) = native.run(self._output, dict(feed))
        except EdgeAIError:
            raise
        except Exception as error:
            raise run_failure(self.artifact.name, error) from error
        self.batches += 1
        return found  # type: ignore[no-any-return]

    def ports(self) -> Ports:
        """Return the inputs and the first output of the graph."""
        return self._ports

    def _native(self) -> Any:
        session = self.session
        if session is None:
            raise ClosedError(f"{self.artifact.name!r} has been closed", hint="load it again")
        return session.native

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of TEXT. Raises UsageError for a model that reads no texts, and for `parse_special`."""
        reader = self._texts()
        if parse_special:
            raise UsageError("special tokens in a text are text for a classifier", hint="leave parse_special out")
        return reader.tokenize(text, add_special=add_special)  # type: ignore[no-any-return]

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of IDS. Raises UsageError for a model that reads no texts."""
        return self._texts().detokenize(ids)  # type: ignore[no-any-return]

    def _texts(self) -> Any:
        reader = self._classifier.reader
        if not hasattr(reader, "tokenize"):
            raise UsageError(f"{self.artifact.name} reads no texts", hint="use classify")
        return reader

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:  # noqa: ARG002
        """Raise UsageError: there are no vectors."""
        self._no_text("vectors")

    def rank(self, query: str, documents: Sequence[str]) -> list[float]:  # noqa: ARG002
        """Raise UsageError: nothing is compared."""
        self._no_text("ranks")

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:  # noqa: ARG002
        """Raise UsageError: there is no text to come."""
        self._no_text("text")

    def score(self, text: str | Sequence[int]) -> list[float]:  # noqa: ARG002
        """Raise UsageError: there are no probabilities of tokens."""
        self._no_text("probabilities of tokens")

    def save_prompt(self, prompt: Prompt, path: Path) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: nothing is continued."""
        self._no_text("text")

    def load_prompt(self, path: Path) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: nothing is continued."""
        self._no_text("text")

    def _no_text(self, what: str) -> NoReturn:
        gives = "labels" if self.artifact.task == "classification" else "values"
        raise UsageError(
            f"{self.artifact.name} is a model for {self.artifact.task}: it gives {gives}, not {what}",
            hint="use classify",
        )

    def close(self) -> None:
        """Free the model; what runs in other threads ends as it would. Calling it twice is fine."""
        self.session = self._local = None


class _Bound:
    """For one thread: the arrays of one item and its output, bound to the session, so that a run passes nothing."""

    __slots__ = ("binding", "fill", "input", "row", "run")

    def __init__(self, native: Any, reader: Any, output: str, count: int) -> None:
        import numpy as np

        self.input = np.zeros((1, *reader.item_shape), dtype=reader.dtype)
        result = np.zeros((1, count), dtype=np.float32)
        self.row = result[0]
        self.binding = native.io_binding()
        place = self.input.ctypes.data
        self.binding.bind_input(reader.names[0], "cpu", 0, reader.dtype.type, self.input.shape, place)
        self.binding.bind_output(output, "cpu", 0, np.float32, result.shape, result.ctypes.data)
        self.fill: Fill = reader.filler(self.input)
        self.run = _runner(native, self.binding)


def _runner(native: Any, binding: Any) -> Callable[[], None]:
    """Return what runs the session NATIVE with BINDING: straight in native code where onnxruntime keeps it as it does in 1.22 to 1.32.

    Its public method first asks whether WebGPU records the graph, and makes options for each run: 1.4 of 3.7 µs of a small model.
    """
    session, bound = getattr(native, "_sess", None), getattr(binding, "_iobinding", None)
    if session is None or bound is None:
        return partial(native.run_with_iobinding, binding)
    from onnxruntime import RunOptions

    return partial(session.run_with_iobinding, bound, RunOptions())


def ports_of(artifact: Artifact, native: Any) -> Ports:
    """Return what the graph of ARTIFACT takes and gives first, as its session NATIVE says. Raises InvalidModel for what is not run here."""
    inputs, outputs = native.get_inputs(), native.get_outputs()
    if not inputs or not outputs:
        raise InvalidModel(f"{str(artifact.path)!r} has no inputs or no outputs", hint="name a model")
    for port in (*inputs, outputs[0]):
        if port.type not in TYPES:
            raise InvalidModel(
                f"{str(artifact.path)!r} has {port.name!r} of {port.type}, which is not run here",
                hint="export it with tensors of numbers (for scikit-learn: without ZipMap)",
            )
    return {
        "inputs": {port.name: (TYPES[port.type], _sides(port)) for port in inputs},
        "output": (outputs[0].name, TYPES[outputs[0].type], _sides(outputs[0])),
    }


def _sides(port: Any) -> tuple[int | None, ...]:
    return tuple(side if isinstance(side, int) and side >= 0 else None for side in port.shape)
