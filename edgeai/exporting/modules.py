"""Convert a trained classifier: its folder → one ONNX file, proved. A straight list, as in `pipeline`.

folder → torch module → export F32 → prove that against torch → quantize → prove the file against the same outputs → rename → passport
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import manifest
from converters.errors import BrokenCheckpoint
from converters.onnx.export import export_module
from converters.onnx.halves import halve_file
from converters.onnx.header import NUMBERS, read_header
from converters.onnx.metadata import write_metadata
from converters.onnx.ranges import METHODS, Method
from converters.onnx.schema import graph_names
from converters.output import OutputFile, check_output
from edgeai import __version__
from edgeai.conversion import Conversion, cannot_write, peak_rss_bytes
from edgeai.engines.onnx.schema import EXAMPLES
from edgeai.errors import ProofFailed, UnsupportedModel, UsageError
from edgeai.evaluation.classifier import ClassifierProof
from edgeai.evaluation.summary import rounded
from edgeai.exporting.job import require
from edgeai.paper import PREFIX, paper_of
from edgeai.pipeline import Notify, check_companions, shown_with_ends
from edgeai.types import Notice, Progress, Report, Row, finite, no_progress

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    Arrays = Mapping[str, npt.NDArray[Any]]

__all__ = ["DEFAULT_QUANT", "MODEL_TYPE", "QUANTS", "convert_module", "is_module_folder"]

MODEL_TYPE = "edgeai-classifier"
QUANTS: Mapping[str, str] = {
    "F32": "all numbers as they were trained",
    "F16": "weights in halves, computed in float32: half the size",
    "INT8": "weights and activations in 8 bits, by ranges from the folder's calibration data: a quarter of the size, fast",
    "INT8-DYNAMIC": "weights of matrix products in 8 bits, activations as they come: for text",
}
DEFAULT_QUANT, DEFAULT_QUANT_OF_TEXTS = "INT8", "INT8-DYNAMIC"
"""Of texts the ranges of activations differ more from one to the next than eight bits can hold."""
FEW_EXAMPLES = 100
"""With fewer, a test set cannot tell a loss of accuracy below 3.7 % from none."""
LITTLE = 0.5
"""Of the weights in 8 bits."""
SOURCE_FILES = ("config.json", "model.safetensors", "data.safetensors", "edgeai.json", "tokenizer.json")
TOOLS = ("numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "torch")
NEEDED = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
Load = Callable[[Path], "torch.nn.Module"]


@dataclass(slots=True)
class Job:
    """What all steps share."""

    folder: Path
    output: Path
    quant: str
    method: Method
    schema: Mapping[str, Any]
    progress: Progress
    notify: Notify
    notices: list[Notice] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def say(self, code: str, message: str) -> None:
        """Record a notice and pass it on at once."""
        self.notices.append(Notice(code=code, message=message))
        self.notify(self.notices[-1])

    @contextmanager
    def step(self, name: str, label: str) -> Iterator[None]:
        """Measure a step, and show it."""
        began = time.perf_counter()
        self.progress(label, 0, 1)
        try:
            yield
        finally:
            self.timings[f"{name}_s"] = self.timings.get(f"{name}_s", 0.0) + time.perf_counter() - began
        self.progress(label, 1, 1)


def is_module_folder(folder: Path) -> bool:
    """Whether FOLDER is a trained classifier's."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def convert_module(
    folder: Path,
    output: Path | None = None,
    quant: str | None = None,
    *,
    calibration_method: str = "minmax",
    force: bool = False,
    progress: Progress = no_progress,
    notify: Notify = lambda _notice: None,
    load: Load | None = None,
) -> Conversion:
    """Convert the trained classifier in FOLDER to the ONNX file OUTPUT (default: FOLDER with .onnx), and prove it on the folder's test set.

    QUANT is a name of QUANTS in any case (default: INT8, for texts INT8-DYNAMIC); CALIBRATION_METHOD one of
    converters.onnx.ranges.METHODS, for int8. LOAD builds the torch
    module (default: the trainer's). Raises UsageError, BrokenCheckpoint, UnsupportedModel, ConvertError, OutputError, and ProofFailed
    where the file is not the module; then nothing is left behind.
    """
    began = time.perf_counter()
    require(NEEDED)
    job = preflight(folder, output, quant, calibration_method, force=force, progress=progress, notify=notify)
    try:
        with OutputFile(job.output) as out:
            with job.step("load", "reading the module"):
                module = (load or trained)(folder)
                data = read_data(folder, job.schema)
                hashes = {
                    name: manifest.file_sha256(folder / name) for name in SOURCE_FILES if (folder / name).exists()
                }
            path, report, measured = write_and_prove(job, out, module, data, manifest.chain(hashes))
            if not report.ok:
                raise failure(job, report)
            with job.step("finish", "writing the passport"):
                write_metadata(path, outcome(measured, ok=True))
                size, digest = path.stat().st_size, manifest.file_sha256(path)
                paper = out.temporary()
                paper.write_bytes(passport(job, report, measured, hashes, digest))
                paper_of(job.output).unlink(missing_ok=True)  # never an old passport beside a new model
                types = tensor_types(path)
                out.commit(path)
                out.commit(paper, paper_of(job.output))
    except OSError as error:
        raise cannot_write(job.output, error) from error
    job.timings["total_s"] = time.perf_counter() - began
    weights = sum(parameter.numel() for parameter in module.parameters())
    return Conversion(
        path=job.output,
        bytes=size,
        bpw=size * 8 / max(1, weights),
        quant=job.quant,
        types=types,
        sha256=digest,
        report=report,
        timings=job.timings,
        peak_rss_bytes=peak_rss_bytes(),
        proof_peak_rss_bytes=peak_rss_bytes(),
        warnings=tuple(job.notices),
        format="onnx",
        example=EXAMPLES[job.schema["inputs"][0]["kind"]],
    )


def preflight(
    folder: Path,
    output: Path | None,
    quant: str | None,
    method: str,
    *,
    force: bool,
    progress: Progress,
    notify: Notify,
) -> Job:
    """Find out everything that can be known before a tensor is read."""
    schema = read_config(folder)["schema"]
    if quant is None:
        quant = DEFAULT_QUANT_OF_TEXTS if schema["inputs"][0]["kind"] == "text" else DEFAULT_QUANT
    chosen = quant.upper().replace("_", "-") if isinstance(quant, str) else repr(quant)
    if chosen not in QUANTS:
        names = ", ".join(name.lower() for name in QUANTS)
        raise UsageError(f"quant {quant!r} is not one that an ONNX file can have", hint=f"one of {names}")
    kind: Method | None = next((name for name in METHODS if name == method), None)  # type: ignore[misc]
    if kind is None:
        raise UsageError(f"calibration method {method!r} is not known", hint=f"one of {', '.join(METHODS)}")
    place = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would leave the folder that a link stands in
    target = output or place.with_name(f"{place.name}.onnx")
    check_output(target, folder, [item for item in folder.iterdir() if item.is_file()], force=force)
    check_companions(target, force=force, keep_failed=False)
    return Job(folder=folder, output=target, quant=chosen, method=kind, schema=schema, progress=progress, notify=notify)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of FOLDER. Raises BrokenCheckpoint, or UnsupportedModel where it is another kind of folder."""
    place = folder / "config.json"
    try:
        config = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise BrokenCheckpoint(f"{str(place)!r} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise BrokenCheckpoint(f"{str(place)!r} is not valid JSON: {error}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != MODEL_TYPE:
        raise UnsupportedModel(
            f"{str(folder)!r} has the model type {found!r}", hint=f"{MODEL_TYPE} is what `edgeai train` makes of a task"
        )
    schema = config.get("schema")
    if not isinstance(schema, dict) or schema.get("task") not in ("classification", "regression"):
        raise BrokenCheckpoint(f"{str(place)!r} has no schema of a classification or a regression")
    wanted = "labels" if schema["task"] == "classification" else "targets"
    if not isinstance(schema.get(wanted), list) or not isinstance(schema.get("output"), dict):
        raise BrokenCheckpoint(f"the schema in {str(place)!r} has no {wanted}, or no output")
    graph_names(schema)
    return dict(config)


def trained(folder: Path) -> torch.nn.Module:
    """Return the torch module in FOLDER, built by the trainer."""
    networks = importlib.import_module("edgeai.training.tasks.networks")  # by name: it imports torch
    module: torch.nn.Module = networks.load_module(folder)
    return module


def read_data(folder: Path, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"calibration": graph input → array, "test": the same, "labels": array} from the folder's data. Raises BrokenCheckpoint."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    place = folder / "data.safetensors"
    try:
        tensors = load_file(place)
    except (OSError, SafetensorError) as error:
        raise BrokenCheckpoint(f"{str(place)!r} cannot be read: {error}", hint="train the model again") from error
    names = graph_names(schema)
    found: dict[str, Any] = {}
    for part in ("calibration", "test"):
        keys = [part if len(names) == 1 and part in tensors else f"{part}.{name}" for name in names]
        missing = [key for key in keys if key not in tensors]
        if missing:
            raise BrokenCheckpoint(f"{str(place)!r} has no tensor {missing[0]!r}", hint="train the model again")
        found[part] = {name: tensors[key] for name, key in zip(names, keys, strict=True)}
    if "test.labels" not in tensors:
        raise BrokenCheckpoint(f"{str(place)!r} has no tensor 'test.labels'", hint="train the model again")
    return found | {"labels": tensors["test.labels"]}


def write_and_prove(
    job: Job, out: OutputFile, module: torch.nn.Module, data: Mapping[str, Any], source_sha256: str
) -> tuple[Path, Report, dict[str, float]]:
    """Write the file, after an export in float32 that is proved first; return it with the report and its numbers."""
    import torch

    from converters.onnx.checks import torch_checks

    texts = {"edgeai.version": __version__, "edgeai.source.sha256": source_sha256, **outcome({}, ok=False)}
    if job.schema["inputs"][0]["kind"] == "text":
        texts["edgeai.tokenizer"] = read_tokenizer(job.folder)
    examples = tuple(torch.from_numpy(data["test"][name][:2].copy()) for name in graph_names(job.schema))
    path = out.temporary()
    with job.step("write", "exporting"):
        export_module(module, examples, path, schema=job.schema, metadata=texts, external_above=None)
    count = len(data["labels"])
    if count < FEW_EXAMPLES:
        job.say("small-test-set", f"{count} examples in the test set cannot tell a small loss of accuracy from none")
    with job.step("proof", "proving F32"):
        checks = torch_checks(module, path, examples)
        rows = [Row(name=check.name, value=check.value, limit=check.limit, ok=check.ok) for check in checks]
        proof = ClassifierProof(module, data["test"], data["labels"], job.schema)
        report = Report(rows=(*rows, *proof.rows(path, "F32")))
    if job.quant == "F32" or not report.ok:
        return path, report, proof.summary
    smaller = out.temporary()
    with job.step("write", f"writing {job.quant}"):
        more = quantize(job, path, smaller, data["calibration"])
    out.discard(path)
    with job.step("proof", f"proving {job.quant}"):
        said = {row.name for row in report.rows}
        rows = [row for row in proof.rows(smaller, job.quant) if not row.ok or row.name not in said]
    return smaller, report.plus([*rows, *more]), proof.summary


def quantize(job: Job, source: Path, target: Path, calibration: Arrays) -> list[Row]:
    """Write the float32 file SOURCE as TARGET in the job's quant; return rows that say what it has become."""
    from converters.onnx.quantize import quantize_dynamic, quantize_static

    if job.quant == "F16":
        stayed = halve_file(source, target)
        if stayed:
            job.say("float32-weights", f"float16 cannot hold {', '.join(stayed)}: float32 there")
        return []
    if job.quant == "INT8":
        done = quantize_static(source, target, calibration, method=job.method)
        job.details["calibration"] = {"method": job.method, "rows": len(next(iter(calibration.values())))}
    else:
        done = quantize_dynamic(source, target)
    job.details |= {"quantized": dict(done.quantized), "float": dict(done.stayed)}
    if done.int8_share < LITTLE:
        job.say(
            "little-quantized", f"only {done.int8_share:.0%} of the weights have 8 bits: the rest has no 8-bit operator"
        )
    operators = ", ".join(done.stayed) or "none"
    return [
        Row(name="weights in 8 bits", value=f"{done.int8_share:.1%}"),
        Row(name="operators in float", value=operators),
    ]


def read_tokenizer(folder: Path) -> str:
    """Return the text of the folder's tokenizer. Raises BrokenCheckpoint where it has none that can be read."""
    place = folder / "tokenizer.json"
    try:
        text = place.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        raise BrokenCheckpoint(f"{str(place)!r} cannot be read: {error}", hint="a text classifier needs it") from error
    return text


def outcome(measured: Mapping[str, float], *, ok: bool) -> dict[str, str]:
    """Return the outcome of the proof as texts for the file; the same proof gives the same bytes."""
    found = {
        f"{PREFIX}{name}": f"{round(value, 4) if name != 'nmse' else rounded(value):g}"
        for name, value in finite(dict(measured)).items()
        if value is not None
    }
    return found | {f"{PREFIX}ok": "true" if ok else "false"}


def tensor_types(path: Path) -> dict[str, int]:
    """Return the types of the weights in the file PATH, and how many tensors have each."""
    names = Counter(NUMBERS[tensor.dtype] for tensor in read_header(path).tensors if tensor.dtype in NUMBERS)
    return dict(sorted(names.items()))


def failure(job: Job, report: Report) -> ProofFailed:
    """Return the error for a report that is not ok."""
    parts = "; ".join(f"{row.name} {shown_with_ends(row)}, limit {row.limit}" for row in report.failed)
    others = {"INT8": ("int8-dynamic", "f16"), "INT8-DYNAMIC": ("f16", "f32")}.get(job.quant)
    hint = f"try {others[0]}, or {others[1]}" if others else None
    return ProofFailed(f"{job.output.name!r} would not be the module in {str(job.folder)!r}: {parts}", hint=hint)


def passport(job: Job, report: Report, measured: Mapping[str, float], hashes: Mapping[str, str], digest: str) -> bytes:
    """Return the passport: what the file is, what it was made from and with, and the proof."""
    tools = {}
    for name in TOOLS:
        try:
            tools[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return manifest.passport(
        {
            "file": job.output.name,
            "sha256": digest,
            "quant": job.quant,
            "source": {"sha256": manifest.chain(hashes), "files": dict(hashes)},
            "tools": {"edgeai": __version__, **tools},
            "report": report.to_dict(),
            "measured": finite(dict(measured)),
            **job.details,
            "warnings": [asdict(notice) for notice in job.notices],
        }
    )
