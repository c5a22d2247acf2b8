"""The proof of a classifier or a regression: the file against the torch module it was made from, on a test set with its labels.

What a user loses is accuracy, so that is what a quantized file is held to. The same examples go through both, so the difference is one of
paired proportions, and its interval is Tango's (Statistics in Medicine 17, 1998, pp. 891-908), which is right for few differing
examples, and for none. For a regression the loss is in R², with Student's interval of the mean of paired differences.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.onnx.checks import EXACT_NMSE, nmse, open_session
from converters.onnx.schema import graph_names
from edgeai.errors import ProofFailed, UsageError
from edgeai.evaluation.intervals import Interval, mean_interval, share_interval
from edgeai.evaluation.limits import at_most, stated
from edgeai.types import Report, Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Array = npt.NDArray[Any]
    F64 = npt.NDArray[np.float64]

__all__ = ["LIMITS", "ClassifierProof", "Limit", "loss_interval", "prove_classifier", "resolution"]

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""
ROWS = 256
"""How many examples run together."""
TIE = 1e-4
"""Two logits nearer than this, in root mean squares of all logits, are equal: float32 of another order of additions may swap them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How far a file may be from its module: NMSE of the outputs, least share of equal labels, largest loss of accuracy or of R²."""

    nmse: float
    agreement: float
    loss: float


LIMITS: Mapping[str, Limit] = {
    "F32": Limit(nmse=EXACT_NMSE, agreement=1.0, loss=0.0),  # the same numbers in another order: 1e-14 is usual
    "F16": Limit(
        nmse=1e-5, agreement=0.99, loss=0.005
    ),  # weights rounded to 11 bits, all else float32: 1e-9 to 1e-7 measured
    "INT8": Limit(nmse=0.1, agreement=0.9, loss=0.03),  # 1e-4 to 1e-2 measured; a file of other weights has 1 and more
    "INT8-DYNAMIC": Limit(nmse=0.1, agreement=0.9, loss=0.03),
}
"""By quant. Those of agreement and loss hold for the ends of the 95 % intervals, and what a test set of this size cannot tell from zero
(`resolution`) is allowed besides: with 100 examples that is 3.7 %, with 10000 0.04 %."""


def resolution(count: int) -> float:
    """Return the upper end of Wilson's 95 % interval for a share of which COUNT examples show nothing: z² / (n + z²)."""
    return Z**2 / (count + Z**2)


def loss_interval(reference: npt.NDArray[np.bool_], found: npt.NDArray[np.bool_]) -> Interval:
    """Return by how much fewer examples FOUND has right than REFERENCE, as a share, with its interval; both are (examples,).

    Tango's score interval: the differences that a score test at 5 % does not refuse, found by bisection.
    """
    count = len(reference)
    lost, won = int((reference & ~found).sum()), int((~reference & found).sum())
    high = score_end(lost, won, count)
    low = -score_end(won, lost, count)
    return Interval(value=(lost - won) / count, low=low, high=high)


def score_end(lost: int, won: int, count: int) -> float:
    """Return the largest difference that LOST and WON of COUNT examples do not refuse: where Tango's score statistic is -z."""
    low, high = (lost - won) / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        # The likeliest share of examples that are won, if the difference is MIDDLE: equation 8 of the paper.
        linear = -lost - won + (2 * count - lost + won) * middle
        constant = -won * middle * (1 - middle)
        share = (math.sqrt(max(0.0, linear**2 - 8 * count * constant)) - linear) / (4 * count)
        spread = count * (2 * share + middle * (1 - middle))
        inside = spread > 0 and count * middle - (lost - won) < Z * math.sqrt(spread)
        low, high = (middle, high) if inside or (spread <= 0 and middle <= 0) else (low, middle)
    return high


@dataclass(slots=True)
class ClassifierProof:
    """Files held against MODULE on a test set: INPUTS, graph input → (examples, …), already preprocessed, with LABELS, (examples,) or
    (examples, targets).

    SCHEMA is the one that the file has to hold. `summary` gets the numbers of the file that was proved last.
    """

    module: torch.nn.Module
    inputs: Mapping[str, Array]
    labels: Array
    schema: Mapping[str, Any]
    summary: dict[str, float] = field(default_factory=dict, init=False)
    _reference: Array | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        names = graph_names(self.schema)
        if set(names) != set(self.inputs):
            raise UsageError(f"the test inputs are {sorted(self.inputs)!r}, and the schema's {sorted(names)!r}")
        counts = {len(self.labels), *(len(values) for values in self.inputs.values())}
        if len(counts) != 1 or not len(self.labels):
            raise UsageError(
                f"the test set has {sorted(counts)!r} rows", hint="as many inputs as labels, and at least one"
            )

    def reference(self) -> Array:
        """Return torch's outputs, (examples, outputs); computed once."""
        import numpy as np
        import torch

        from converters.onnx.checks import flatten
        from converters.onnx.export import prepared

        if self._reference is None:
            given = [torch.from_numpy(np.ascontiguousarray(self.inputs[name])) for name in graph_names(self.schema)]
            with prepared(self.module) as ready, torch.no_grad():
                parts = [
                    flatten(ready(*(value[at : at + ROWS] for value in given)))[0].numpy()
                    for at in range(0, len(self.labels), ROWS)
                ]
            self._reference = np.concatenate(parts)
        return self._reference

    def rows(self, path: Path, quant: str) -> list[Row]:
        """Return the rows that hold the file PATH to the limits of QUANT."""
        limit = LIMITS[quant]
        session = open_session(path)
        found = self._run(session)
        reference = self.reference()
        if found.shape != reference.shape:
            raise ProofFailed(
                f"{path.name!r} gives outputs of the shape {found.shape[1:]}, and torch {reference.shape[1:]}"
            )
        schema = schema_of(session)
        same = schema == self.schema
        self.summary = {"nmse": nmse(reference, found)}
        rows = [
            Row(name="schema in the file", value="the source's" if same else "another", limit="the source's", ok=same),
            at_most(f"{quant} outputs against torch: NMSE", self.summary["nmse"], limit.nmse),
        ]
        if self.schema["task"] == "regression":
            return [*rows, *self._regression(reference, found, quant, limit)]
        return [*rows, *self._classes(reference, found, schema, quant, limit)]

    def _run(self, session: Any) -> Array:
        """Return the file's outputs, (examples, outputs)."""
        import numpy as np

        places = session.get_inputs()
        if {place.name for place in places} != set(self.inputs):
            raise ProofFailed(
                f"the file takes {[place.name for place in places]!r}, and the schema says {list(self.inputs)!r}"
            )
        size = next((place.shape[0] for place in places if isinstance(place.shape[0], int)), ROWS)
        count = len(self.labels)
        starts = [min(at, count - size) if size <= count else at for at in range(0, count, size)]
        parts, done = [], 0
        for at in starts:  # where the graph fixes the batch, the last one overlaps that before it
            feed = {name: np.ascontiguousarray(values[at : at + size]) for name, values in self.inputs.items()}
            parts.append(session.run(None, feed)[0][done - at :])
            done = min(count, at + size)
        return np.concatenate(parts)

    def _classes(
        self, reference: Array, found: Array, schema: Mapping[str, Any], quant: str, limit: Limit
    ) -> list[Row]:
        """Return the rows about labels. They are compared by name, as the file gives them: their order counts."""
        import numpy as np

        count = len(self.labels)
        names, own = np.array(self.schema["labels"]), np.array(schema.get("labels") or ["?"])
        said = names[reference.argmax(1)]
        given = own[np.minimum(found.argmax(1), len(own) - 1)]
        right = names[self.labels.astype(np.int64)]
        top = np.sort(reference, axis=1)[:, -2:]
        near = (top[:, -1] - top[:, 0]) < TIE * math.sqrt(float(np.square(reference, dtype=np.float64).mean()))
        equal = (said == given) | (near if quant == "F32" else False)
        share = share_interval(equal.astype(np.float64), np.arange(count))
        least = limit.agreement * (1 - resolution(count))
        good = share.value == 1 if limit.agreement == 1 else share.low >= least
        shown = "1" if limit.agreement == 1 else f">= {least:.3g}"
        ends = (share.low, share.high)
        loss = loss_interval(said == right, given == right)
        probability, other = softmax(reference), softmax(found)
        at = np.arange(count), reference.argmax(1)
        self.summary |= {
            "agreement": share.value,
            "accuracy": float((given == right).mean()),
            "source_accuracy": float((said == right).mean()),
        }
        return [
            Row(name=f"{quant} labels as torch's, of {count}", value=share.value, limit=shown, ok=good, interval=ends),
            stated("accuracy in torch", share_interval((said == right).astype(np.float64), np.arange(count))),
            stated(f"accuracy in {quant}", share_interval((given == right).astype(np.float64), np.arange(count))),
            lost(f"accuracy lost in {quant}", loss, limit, count),
            Row(
                name=f"{quant} probability of torch's label: mean difference",
                value=float(np.abs(probability[at] - other[at]).mean()),
            ),
        ]

    def _regression(self, reference: Array, found: Array, quant: str, limit: Limit) -> list[Row]:
        """Return the rows about numbers, in the units of the targets."""
        import numpy as np

        count = len(self.labels)
        targets = self.schema["targets"]
        std = np.array([item["std"] for item in targets], np.float64)
        mean = np.array([item["mean"] for item in targets], np.float64)
        said = reference.reshape(count, -1) * std + mean  # (examples, targets)
        given = found.reshape(count, -1) * std + mean
        right = self.labels.reshape(count, -1).astype(np.float64)
        if said.shape != right.shape:
            raise UsageError(
                f"the module gives {said.shape[1]} values for each example, and the labels {right.shape[1]}"
            )
        spread = np.square(right - right.mean(0)).mean(0)
        spread[spread == 0] = 1.0
        before, after = np.square(said - right) / spread, np.square(given - right) / spread
        loss = mean_interval((after - before).mean(1), np.arange(count))
        scale = math.sqrt(float(spread.mean()))
        self.summary |= {
            "rmse": math.sqrt(float(np.square(given - right).mean())),
            "r2": 1 - float(after.mean()),
            "source_r2": 1 - float(before.mean()),
        }
        return [
            Row(name="RMSE in torch", value=math.sqrt(float(np.square(said - right).mean()))),
            Row(name=f"RMSE in {quant}", value=self.summary["rmse"]),
            Row(name="R² in torch", value=self.summary["source_r2"]),
            Row(name=f"R² in {quant}", value=self.summary["r2"]),
            lost(f"R² lost in {quant}", loss, limit, count),
            Row(
                name=f"{quant} largest difference, in standard deviations",
                value=float(np.abs(given - said).max() / scale),
            ),
        ]


def lost(name: str, loss: Interval, limit: Limit, count: int) -> Row:
    """Return the row of a LOSS over COUNT examples; where none is allowed, the outputs and labels have said all."""
    return at_most(name, loss, limit.loss + resolution(count)) if limit.loss else stated(name, loss)


def schema_of(session: Any) -> dict[str, Any]:
    """Return the schema in the file that SESSION has open; an empty one where there is none."""
    try:
        found = json.loads(session.get_modelmeta().custom_metadata_map.get("edgeai.schema", ""))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def softmax(logits: Array) -> F64:
    """Return the probabilities of LOGITS, (examples, classes)."""
    import numpy as np

    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    found: F64 = powers / powers.sum(1, keepdims=True)
    return found


def prove_classifier(
    module: torch.nn.Module,
    path: Path,
    inputs: Mapping[str, Array],
    labels: Array,
    *,
    schema: Mapping[str, Any],
    quant: str = "F32",
) -> Report:
    """Return the report on the file PATH, of the type QUANT, against MODULE on a test set: see ClassifierProof.

    Raises UsageError for a test set that does not fit, InvalidModel for a file that does not load, and ProofFailed for one that
    takes or gives something else.
    """
    if quant not in LIMITS:
        raise UsageError(f"quant {quant!r} is not known", hint=f"one of {', '.join(LIMITS)}")
    proof = ClassifierProof(module, inputs, labels, schema)
    return Report(rows=tuple(proof.rows(path, quant)))
