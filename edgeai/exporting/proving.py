"""Prove an ONNX file or folder that is already there, from here or from elsewhere: what its conversion proves, and nothing is exported.

What is compared is chosen by the source: a trained classifier, an embedding model, a language model. How far it may be off follows from
the types of the weights in the graph, not from what the file says of itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from converters import manifest
from converters.checkpoint import Checkpoint, open_checkpoint
from converters.families import ModelPlan, plan_model
from converters.onnx.checks import file_checks, torch_checks
from converters.onnx.choices import Choices
from converters.onnx.header import Header, read_header
from converters.onnx.language import build, needed_bytes
from converters.onnx.schema import graph_names
from converters.tokenizer import Vocabulary, read_vocabulary
from edgeai.artifact import Artifact, open_artifact
from edgeai.artifact.onnx import GENAI_CONFIG, MODEL
from edgeai.device import cpu_facts
from edgeai.engines.onnx.engine import graph_of
from edgeai.errors import DoesNotFit, InvalidModel, ProofFailed
from edgeai.evaluation import classifier
from edgeai.evaluation import prove as gguf
from edgeai.evaluation.classifier import ClassifierProof
from edgeai.evaluation.limits import LIMITS, check_max_kl
from edgeai.evaluation.onnx_embedding import OnnxEmbeddingProof
from edgeai.evaluation.onnx_language import OnnxProof
from edgeai.evaluation.passport import check_scratch
from edgeai.evaluation.prove import Verdict
from edgeai.exporting import is_embedder, refuse
from edgeai.exporting.contents import embedder_rows, language_rows, module_rows, tokenizer_row
from edgeai.exporting.job import check_room, require
from edgeai.exporting.modules import SOURCE_FILES, is_module_folder, read_config, read_data, trained
from edgeai.paper import sha256_of
from edgeai.types import Notice, Progress, Report, Row, no_progress

__all__ = ["is_onnx", "prove", "types_of"]

BITS: Mapping[str, int] = {"F64": 64, "F32": 32, "F16": 16, "BF16": 15, "INT8": 8, "INT4": 4, "INT2": 2}
"""How exact the types of weights are; BF16 is less so than F16."""
LEAST = 0.01
"""Of the weights: fewer of a coarser type do not make the file one of that type."""
NEEDED = ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime_genai")
FOR_CLASSIFIERS = ("torch", "onnx", "onnxruntime")
Notify = Callable[[Notice], None]


@dataclass(slots=True, kw_only=True)
class Case:
    """What is proved, and what came of it so far."""

    source: Path
    artifact: Artifact
    header: Header
    quant: str
    base: str
    text: str | None
    max_kl: float | None
    progress: Progress
    rows: list[Row]
    notices: list[Notice]
    summary: Mapping[str, float | str]
    hashes: Mapping[str, str]
    parameters: int = 0

    @property
    def good(self) -> bool:
        """Whether it makes sense to run it."""
        return all(row.ok for row in self.rows)


def prove(
    source: Path,
    artifact: Path,
    *,
    text: str | None = None,
    max_kl: float | None = None,
    progress: Progress = no_progress,
    notify: Notify = lambda _notice: None,
) -> Verdict:
    """Check that ARTIFACT, of GGUF or ONNX, still is the model in the folder SOURCE; neither is changed.

    Raises what opening them raises, UsageError for a TEXT or MAX_KL that means nothing to this kind of model, and ProofFailed where one
    of the two does not run. The file of another model is no error: the report says where it differs.
    """
    if not is_onnx(artifact):
        return gguf.prove(source, artifact, text=text, max_kl=max_kl, progress=progress, notify=notify)
    began = time.perf_counter()
    check_max_kl(max_kl)
    found = open_artifact(artifact)
    header = read_header(graph_of(found))
    quant, base = types_of(header, str(found.metadata.get("edgeai.quant", "")))
    case = Case(
        source=source, artifact=found, header=header, quant=quant, base=base, text=text, max_kl=max_kl, progress=progress,
        rows=[], notices=[], summary={}, hashes={},
    )  # fmt: skip
    prove_module(case) if is_module_folder(source) else prove_folder(case)
    for notice in case.notices:
        notify(notice)
    return Verdict(
        path=found.path,
        source=source,
        quant=quant,
        parameters=case.parameters,
        sha256=sha256_of(found.path),
        source_files=case.hashes,
        report=Report(rows=tuple(case.rows)),
        summary=case.summary,
        timings={"total_s": time.perf_counter() - began},
        warnings=tuple(case.notices),
    )


def is_onnx(path: Path) -> bool:
    """Whether PATH is an ONNX file, or a folder with one that is meant to be run."""
    return path.suffix.lower() == ".onnx" or any((path / name).exists() for name in (GENAI_CONFIG, MODEL))


def types_of(header: Header, claim: str) -> tuple[str, str]:
    """Return the name of the file's type and its base type, by which it is judged: the coarsest that a hundredth of the weights have.

    CLAIM, what the file says of itself, only names a variant of that. Raises InvalidModel for a type that no limits are known for.
    """
    found = header.by_type()
    least = found.total() * LEAST
    kinds = [kind for kind, count in found.items() if count >= least]
    if not kinds:
        raise InvalidModel(f"{str(header.path)!r} has no weights", hint="name a model's .onnx file")
    base = min(kinds, key=lambda kind: BITS.get(kind, 1))
    if base not in LIMITS:
        raise InvalidModel(f"{str(header.path)!r} has weights of the type {base}, which no proof is known for")
    return claim if claim.upper().replace("_", "-").partition("-")[0] == base else base, base


def weights_row(header: Header) -> Row:
    """Return the row that says what the weights are."""
    found = header.by_type()
    shares = {kind: f"{count / found.total():.1%}" for kind, count in found.most_common()}
    parts = ", ".join(f"{share} {kind}" for kind, share in shares.items() if share != "0.0%")
    return Row(name="weights", value=f"{found.total()}: {parts}")


def checked(case: Case) -> None:
    """Add the rows about the file itself."""
    rows = (
        Row(name=item.name, value=item.value, limit=item.limit, ok=item.ok) for item in file_checks(case.header.path)
    )
    case.rows += [weights_row(case.header), *rows]


def other_task(case: Case, wanted: str) -> bool:
    """Whether the file is for another task than WANTED, which is then a row. One that says nothing is looked at closer."""
    if case.artifact.task in (wanted, "arrays"):
        return False
    case.rows.append(Row(name="task", value=f"{case.artifact.task}, in the source {wanted}", limit="equal", ok=False))
    return True


# ---- a classifier or a regression


def prove_module(case: Case) -> None:
    """Prove the file of a trained classifier against the torch module, on the test set in its folder."""
    refuse({"max_kl": case.max_kl, "text": case.text}, ("max_kl", "text"), "a classifier or regression")
    require(FOR_CLASSIFIERS)
    schema = read_config(case.source)["schema"]
    names = [name for name in SOURCE_FILES if (case.source / name).exists()]
    case.hashes = {name: manifest.file_sha256(case.source / name) for name in names}
    if other_task(case, schema["task"]):
        return
    if case.base not in classifier.LIMITS:
        raise InvalidModel(
            f"{str(case.artifact.path)!r} has weights in {case.base}, and no classifier's proof is known for that"
        )
    data = read_data(case.source, schema)
    case.rows += module_rows(case.artifact, case.header, schema, data["test"])
    if schema["inputs"][0]["kind"] == "text":
        case.rows.append(tokenizer_row(case.artifact, case.source))
    checked(case)
    if not case.good:
        return
    import torch

    case.progress("running the source in torch", 0, 1)
    module = trained(case.source)
    case.parameters = sum(parameter.numel() for parameter in module.parameters())
    path = case.header.path
    with runs(path):
        if case.base == "F32":
            examples = tuple(torch.from_numpy(data["test"][name][:2].copy()) for name in graph_names(schema))
            rows = torch_checks(module, path, examples)
            case.rows += [Row(name=item.name, value=item.value, limit=item.limit, ok=item.ok) for item in rows]
        proof = ClassifierProof(module, data["test"], data["labels"], schema)
        quant = case.quant if case.quant in classifier.LIMITS else case.base
        case.rows += proof.rows(path, quant)
    case.summary = dict(proof.summary)
    case.progress("running the source in torch", 1, 1)


@contextmanager
def runs(path: Path) -> Iterator[None]:
    """Raise ProofFailed where onnxruntime raises an error of its own in the block."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        reason = " ".join(str(error).split())
        raise ProofFailed(f"onnxruntime does not run {path.name!r}: {reason:.300}") from error


# ---- a Hugging Face folder


def prove_folder(case: Case) -> None:
    """Prove an embedding model or a language model against the Hugging Face folder it was made from."""
    checkpoint = open_checkpoint(case.source)
    plan = plan_model(checkpoint)
    # What libllama's tokenizers cannot do exactly is no matter here: the runtime uses the source's own.
    vocabulary = replace(read_vocabulary(checkpoint, plan.vocab_size, allow_inexact=True), inexact=None)
    embedder = is_embedder(checkpoint)
    if embedder:
        refuse({"max_kl": case.max_kl}, ("max_kl",), "an embedding model")
    require(NEEDED)
    case.parameters = plan.parameters
    case.hashes = checkpoint.hashes(lambda done, total: case.progress("hashing the source", done, total, "B"))
    if other_task(case, "embedding" if embedder else "generation"):
        return
    rows = embedder_rows if embedder else language_rows
    case.rows += rows(case.artifact, case.header, plan, vocabulary)
    if embedder:
        case.rows.append(weights_row(case.header))  # the proof has the rest
    else:
        checked(case)
    if case.good:
        check_scratch(plan)
        prove_embedder(case, checkpoint, plan, vocabulary) if embedder else prove_language(
            case, checkpoint, plan, vocabulary
        )


def prove_embedder(case: Case, checkpoint: Checkpoint, plan: ModelPlan, vocabulary: Vocabulary) -> None:
    """Compare the vectors of texts with torch's."""
    with OnnxEmbeddingProof(
        checkpoint=checkpoint, plan=plan, vocabulary=vocabulary, base=case.base, stores=False, text=case.text, progress=case.progress
    ) as proof:  # fmt: skip
        if proof.needs_export:
            raise DoesNotFit(f"an ONNX embedding model is proved against torch: {proof.notices[0].message}")
        with runs(case.header.path):
            of = proof.export if case.base == "F32" else proof.quantized
            case.rows += of(case.header.path)
        case.notices, case.summary = proof.notices, dict(proof.summary)


def prove_language(case: Case, checkpoint: Checkpoint, plan: ModelPlan, vocabulary: Vocabulary) -> None:
    """Compare logits with torch's; where there is no room for torch, with those of an export in float32."""
    with OnnxProof(
        checkpoint=checkpoint, plan=plan, vocabulary=vocabulary, base=case.base, exports=case.base == "F32", stores=False,
        text=case.text, max_kl=case.max_kl, progress=case.progress,
    ) as proof:  # fmt: skip
        if proof.exports and not proof.needs_export:
            case.rows += proof.export(case.artifact.path)
        else:
            if proof.needs_export:
                export = proof.place("export")
                export.mkdir()
                check_room(export, memory=needed_bytes(plan), folder=plan.parameters * 4, export=0)
                build(checkpoint, plan, vocabulary, Choices(quant="F32"), export, threads=cpu_facts().threads)
                proof.use_export(export)
            case.rows += proof.quantized(case.artifact.path)
        case.notices, case.summary = proof.notices, dict(proof.summary)
