"""Convert: look, write under a temporary name, prove, rename. A straight list; no step reaches back.

    source → checkpoint → family → tokenizer → types → [proof of the vocabulary] → write → write F32 → prove that against torch
           → prove the file against the same logits → rename → passport

With an aim (`edgeai.bounds`) the types are searched for, or read from a recipe, after the proof of the vocabulary.

The unquantized file is what the exact proof is made on; it is removed afterwards (or is the result, for --quant f32).
"""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from converters import gguf, manifest, tokenproof
from converters.checkpoint import Checkpoint, open_checkpoint
from converters.families import ModelPlan, Value, plan_model
from converters.kept import Kept
from converters.lora import open_adapter
from converters.lora_merge import merge
from converters.output import OutputFile, check_apart, check_name, check_output
from converters.quantmap import QuantMap, plan_types
from converters.scratch import Scratch
from converters.tokenizer import Vocabulary, read_vocabulary
from edgeai import __version__
from edgeai.bounds.aim import Aim, Found, check_aim, find_types, replay
from edgeai.bounds.calibration import search_memory, search_positions
from edgeai.bounds.outcome import with_proof
from edgeai.bounds.recipe import write_recipe
from edgeai.bounds.record import recipe_name, recipe_of, tensors_sha256, undecided
from edgeai.conversion import Conversion, cannot_write, peak_rss_bytes, shown
from edgeai.device import cpu_facts
from edgeai.disk import check_disk, disk_need, export_bytes, search_bytes
from edgeai.errors import OutputError, ProofFailed
from edgeai.evaluation.corpus import default_tokens
from edgeai.evaluation.embedding import proof_class
from edgeai.evaluation.limits import check_max_kl
from edgeai.evaluation.passport import Proof, no_torch_notice
from edgeai.evaluation.summary import stamp
from edgeai.paper import is_paper, paper_of
from edgeai.preflight import Preflight, examine
from edgeai.quantization import DEFAULT_QUANT, Quantization, Wish, decide, file_keys, parse_quant
from edgeai.types import Notice, Progress, Report, Row, finite, no_progress

__all__ = ["DEFAULT_QUANT", "Conversion", "Wish", "convert", "parse_quant"]

NEAR_POSITIONS = 450
"""About how many positions the proof runs besides long text."""
Notify = Callable[[Notice], None]
Tell = Callable[[Preflight], None]


@dataclass(slots=True)
class Job:
    """What all steps share: the plan, and what has been said and measured so far."""

    checkpoint: Checkpoint
    plan: ModelPlan
    vocabulary: Vocabulary
    quantization: Quantization
    output: Path
    progress: Progress
    notify: Notify
    notices: list[Notice] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    text: str | None = None
    origin: str | None = None
    max_kl: float | None = None
    aim: Aim | None = None
    found: Found | None = None
    kept: Kept | None = None
    recipe: Path | None = None
    recipe_text: str = ""
    torch: bool = True
    measured: dict[str, float | str] = field(default_factory=dict)

    @property
    def quantmap(self) -> QuantMap:
        """The type of every tensor."""
        return self.quantization.quantmap

    def say(self, code: str, message: str) -> None:
        """Record a notice and pass it on at once: under --strict that ends the work before it starts."""
        notice = Notice(code=code, message=message)
        self.notices.append(notice)
        self.notify(notice)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.timings[f"{name}_s"] = self.timings.get(f"{name}_s", 0.0) + time.perf_counter() - began


def convert(
    source: Path,
    output: Path | None = None,
    quant: str | Wish = DEFAULT_QUANT,
    *,
    force: bool = False,
    keep_failed: bool = False,
    allow_inexact_tokenizer: bool = False,
    max_kl: float | None = None,
    text: str | None = None,
    origin: str | None = None,
    adapter: Path | None = None,
    aim: Aim | None = None,
    progress: Progress = no_progress,
    notify: Notify = lambda _notice: None,
    tell: Tell = lambda _verdict: None,
) -> Conversion:
    """Convert the Hugging Face folder SOURCE to the GGUF file OUTPUT (default: SOURCE with .gguf), and prove it.

    Raises ConvertError for a source that cannot be converted, OutputError, DoesNotFit, and ProofFailed when the file is not the model;
    then, and after Ctrl-C, nothing is left behind. TEXT replaces the text that a quantized file is compared on, and MAX_KL the limit of
    its type for the mean KL in nats. ORIGIN says where the folder came from, for the passport, and the LoRA folder ADAPTER is merged into
    it. With AIM the types are chosen for this model, and QUANT says nothing but its patterns. NOTIFY gets each warning when it arises;
    what it raises ends the work. TELL gets the verdict of the preflight, before any tensor is read.
    """
    began = time.perf_counter()
    check_max_kl(max_kl)
    job = preflight(
        source,
        output,
        quant if isinstance(quant, Wish) else Wish(quant=quant),
        force=force,
        keep_failed=keep_failed,
        allow_inexact_tokenizer=allow_inexact_tokenizer,
        adapter=adapter,
        aim=aim,
        text=text,
        progress=progress,
        notify=notify,
        tell=tell,
    )
    job.max_kl, job.origin = max_kl, origin
    try:
        with OutputFile(job.output) as out, manifest.SourceHashes(job.checkpoint) as hashing, Scratch() as scratch:
            if aim is not None and aim.goal is not None:  # a recipe's file is written once
                job.kept = Kept(Path(scratch), search_bytes(job.quantmap))
            probe = out.temporary()  # a folder that cannot be written is found here, before any tensor is read
            check_disk(job.output, job.plan, job.quantmap)
            with job.step("tokenizer"):
                job.progress("proving the tokenizer", 0, 1)
                tokens = tokenproof.prove_vocabulary(job.vocabulary, job.plan.architecture)
                job.progress("proving the tokenizer", 1, 1)
            with job.step("calibrate"):
                calibrate(job)
            if aim is not None:
                with job.step("search"):
                    pursue(job, hashing)
            first = [Row(name="pre-tokenizer cuts", value=tokens.cuts, limit="equal")] if tokens.splits else []
            path, report, hashes = write_and_prove(job, out, probe, hashing)
            report = Report(rows=(*first, *report.rows))
            if job.found is not None and job.found.outcome is not None:
                job.found = replace(job.found, outcome=with_proof(job.found.outcome, report))
            stamp(path, job.measured, ok=report.ok)
            if not report.ok:
                raise failure(job, report, keep(job, out, path, report, hashes) if keep_failed else None)
            size, digest = publish(job, out, path, report, hashes)
    except OSError as error:
        raise cannot_write(job.output, error) from error
    job.timings["total_s"] = time.perf_counter() - began
    return conversion(job, size, digest, report)


def publish(job: Job, out: OutputFile, path: Path, report: Report, hashes: Mapping[str, str]) -> tuple[int, str]:
    """Give the proved file PATH and its passport their names; return its size and sha256."""
    with job.step("finish"):
        size, digest = path.stat().st_size, manifest.file_sha256(path)
        paper = write_beside(out, passport(job, job.output, report, hashes, digest))
        paper_of(job.output).unlink(missing_ok=True)  # never an old passport beside a new model
        recipe = write_beside(out, job.recipe_text.encode()) if job.recipe is not None else None
        out.commit(path)
        out.commit(paper, paper_of(job.output))
        if recipe is not None:
            out.commit(recipe, job.recipe)
    return size, digest


def conversion(job: Job, size: int, digest: str, report: Report) -> Conversion:
    """Return what came of JOB: a file of SIZE bytes with the sha256 DIGEST."""
    return Conversion(
        path=job.output,
        bytes=size,
        bpw=job.quantmap.nbytes * 8 / job.plan.parameters,
        quant=job.quantmap.label,
        types=job.quantmap.counts(),
        sha256=digest,
        report=report,
        timings=job.timings,
        peak_rss_bytes=job.peak_rss_bytes,
        proof_peak_rss_bytes=max(peak_rss_bytes(), peak_rss_bytes(children=True)),
        warnings=tuple(job.notices),
        outcome=job.found.outcome if job.found else None,
        recipe=job.recipe,
    )


def preflight(
    source: Path,
    output: Path | None,
    wish: Wish,
    *,
    force: bool,
    keep_failed: bool,
    allow_inexact_tokenizer: bool,
    adapter: Path | None,
    aim: Aim | None,
    text: str | None,
    progress: Progress,
    notify: Notify,
    tell: Tell,
) -> Job:
    """Find out everything that can be known before a tensor is read: family, tokenizer, types, output, disk."""
    began = time.perf_counter()
    checkpoint = open_checkpoint(source)
    if adapter is not None:
        checkpoint = merge(checkpoint, open_adapter(adapter, checkpoint))
    plan = plan_model(checkpoint)
    vocabulary = read_vocabulary(checkpoint, plan.vocab_size, allow_inexact=allow_inexact_tokenizer)
    place = Path(os.path.abspath(source))  # noqa: PTH100 - resolve() would leave the folder that a link stands in
    target = output or place.with_name(f"{place.name}.gguf")
    for folder in filter(None, (source, adapter)):
        check_output(target, folder, checkpoint.files, force=force)
    check_companions(target, force=force, keep_failed=keep_failed)
    for path in (target, paper_of(target), failed_name(target)):
        check_apart(path, {"--imatrix": wish.imatrix, "--imatrix-out": wish.imatrix_out})
    said: list[tuple[str, str]] = []
    if aim is None:
        quantization = decide(wish, plan, checkpoint, lambda code, message: said.append((code, message)), force=force)
    else:
        check_aim(aim, plan, wish.overrides(), text)
        quantization = undecided(plan, aim, wish.overrides())
    quantmap = quantization.quantmap
    job = Job(
        checkpoint=checkpoint,
        plan=plan,
        vocabulary=vocabulary,
        quantization=quantization,
        output=target,
        progress=progress,
        notify=notify,
        text=text,
        aim=aim,
        recipe=recipe_name(target, force=force) if aim is not None else None,
    )
    for code, message in (*plan.warnings, *vocabulary.warnings, *said, *filter(None, [quantmap.warning()])):
        job.say(code, message)
    if (notice := no_torch_notice(plan, checkpoint)) is not None:
        job.torch = False
        job.say(notice.code, notice.message)
    tell(
        examine(
            plan,
            vocabulary,
            quantmap,
            disk=disk_need(target, plan, quantmap),
            proof_positions=default_tokens(plan) + NEAR_POSITIONS,
            export_bytes=export_bytes(plan, quantmap),
            search_positions=search_positions(plan) if aim is not None else 0,
            search_memory=search_memory(plan) if aim is not None else 0,
        )
    )
    job.timings["preflight_s"] = time.perf_counter() - began
    return job


def write_and_prove(
    job: Job, out: OutputFile, path: Path, hashing: manifest.SourceHashes
) -> tuple[Path, Report, dict[str, str]]:
    """Write the file to PATH, then prove it beside an unquantized export; return the file, the report and the source's hashes."""
    with job.step("hash"):
        hashes = hashing.result(lambda done, total: job.progress("hashing the source", done, total, "B"))
    extra = file_keys(job.checkpoint, job.plan, job.quantization, manifest.chain(hashes), torch=job.torch)
    with job.step("write"):
        write(job, path, job.quantmap, extra)
    job.peak_rss_bytes = peak_rss_bytes()
    check_replay(job, path)
    with job.step("proof"), open_proof(job) as proof:
        export = path
        if job.quantmap.weakest != "F32":
            export = out.temporary()
            write(job, export, plan_types(job.plan, "F32"), extra)
        report = Report(rows=tuple(proof.export(export)))
        if export != path and report.ok:
            said = {row.name for row in report.rows}
            rows = proof.quantized(path)
            report = report.plus(row for row in rows if not row.ok or row.name not in said).plus([share(job.quantmap)])
        if export != path:
            out.discard(export)
        job.measured = proof.summary
        for notice in proof.notices:
            job.say(notice.code, notice.message)
    if job.found is not None:
        job.recipe_text = recipe_text(job, path, hashes)
    return path, report, hashes


def open_proof(job: Job) -> Proof:
    """Return the proof of the file that JOB writes; it begins when the block is entered."""
    goal = job.aim.goal if job.aim else None
    return proof_class(job.plan.pooling)(
        checkpoint=job.checkpoint,
        plan=job.plan,
        vocabulary=job.vocabulary,
        base=job.quantmap.weakest,
        types={name: choice.type for name, choice in job.quantmap.choices.items()},
        torch=job.torch,
        text=job.text,
        tokens=job.found.tokens if job.found else None,
        max_kl=job.max_kl,
        min_top1=goal.min_top1 if goal else None,
        min_cosine=goal.min_cosine if goal else None,
        progress=job.progress,
    )


def pursue(job: Job, hashing: manifest.SourceHashes) -> None:
    """Choose the types by what is aimed at, or take them from a recipe."""
    assert job.aim is not None  # noqa: S101 - asked only with an aim
    source = manifest.chain(hashing.result(lambda done, total: job.progress("hashing the source", done, total, "B")))
    if job.aim.goal is not None:
        assert job.kept is not None  # noqa: S101 - made for a goal
        job.found = find_types(
            job.aim,
            job.checkpoint,
            job.plan,
            job.vocabulary,
            source_sha256=source,
            overrides=job.quantization.quantmap.overrides,
            text=job.text,
            extra=file_keys(job.checkpoint, job.plan, job.quantization, source, torch=job.torch),
            kept=job.kept,
            say=job.say,
            progress=job.progress,
        )
    else:
        job.found = replay(
            job.aim,
            job.checkpoint,
            job.plan,
            job.vocabulary,
            source_sha256=source,
            text=job.text,
            progress=job.progress,
        )
    job.text = job.found.text
    job.quantization.quantmap, job.quantization.feedback = job.found.quantmap, job.found.feedback


def recipe_text(job: Job, path: Path, hashes: Mapping[str, str]) -> str:
    """Return the recipe of the file PATH as TOML."""
    assert job.aim is not None  # noqa: S101 - asked only of files that were aimed at
    assert job.found is not None  # noqa: S101 - the types were chosen
    model, source = job.checkpoint.path.resolve().name, manifest.chain(hashes)
    return write_recipe(recipe_of(job.aim, job.found, job.plan, model, source, path, job.measured))


def check_replay(job: Job, path: Path) -> None:
    """Say so where the file PATH is another one than its recipe made once."""
    if job.aim is None or job.aim.recipe is None:
        return
    have, want = tensors_sha256(path), job.aim.recipe.tensors_sha256
    if have != want:
        message = f"the tensors have the sha256 {have}, and the recipe's file had {want}: other tools, another processor or another "
        message += "number of threads round differently; the file is proved like any other"
        job.say("recipe-differs", message)


def calibrate(job: Job) -> None:
    """Compute the importance matrix, where it comes from a text."""
    job.quantization.calibrate(
        job.checkpoint,
        job.plan,
        job.vocabulary,
        job.say,
        threads=cpu_facts().threads,
        progress=lambda done, total: job.progress("reading the calibration text", done, total),
    )


def write(job: Job, path: Path, quantmap: QuantMap, extra: Mapping[str, Value]) -> None:
    """Write the model with the types of QUANTMAP."""
    label = f"writing {quantmap.label}"
    gguf.write_model(
        path,
        job.plan,
        job.vocabulary,
        quantmap,
        extra,
        lambda done, total: job.progress(label, done, total, "B"),
        threads=cpu_facts().threads,
        importance=job.quantization.rows,
        feedback=job.quantization.feedback if quantmap is job.quantmap else lambda _tensor: None,
        kept=job.kept if quantmap is job.quantmap else None,
    )


def share(quantmap: QuantMap) -> Row:
    """Return the row that says how much of the file is of the type in its name."""
    return Row(name=f"tensor bytes in {quantmap.base}", value=f"{quantmap.share():.1%}")


def failure(job: Job, report: Report, kept: Path | None) -> ProofFailed:
    """Return the error for a report that is not ok."""
    parts = "; ".join(f"{row.name} {shown(row.value)}, limit {row.limit}" for row in report.failed)
    hint = (
        f"the file was kept as {str(kept)!r}"
        if kept
        else "nothing was written; --keep-failed keeps the file under another name"
    )
    return ProofFailed(
        f"{job.output.name!r} would not be the model in {str(job.checkpoint.path)!r}: {parts}", hint=hint
    )


def keep(job: Job, out: OutputFile, path: Path, report: Report, hashes: Mapping[str, str]) -> Path:
    """Keep the file that failed, under a name that nobody takes for a model that passed, with its passport."""
    kept = failed_name(out.output)
    paper = write_beside(out, passport(job, kept, report, hashes, manifest.file_sha256(path)))
    paper_of(kept).unlink(missing_ok=True)
    out.commit(path, kept)
    out.commit(paper, paper_of(kept))
    return kept


def passport(job: Job, path: Path, report: Report, hashes: Mapping[str, str], digest: str) -> bytes:
    """Return the passport: what the file is, what it was made from and with, and the proof."""
    return manifest.passport(
        {
            "file": path.name,
            "sha256": digest,
            "quant": job.quantmap.label,
            "parameters": job.plan.parameters,
            "source": {
                **({"origin": job.origin} if job.origin else {}),
                "sha256": manifest.chain(hashes),
                "files": dict(hashes),
            },
            "tools": {"edgeai": __version__, **manifest.tools()},
            "report": report.to_dict(),
            "measured": finite(job.measured),
            "types": {name: kind for name, kind, _why in job.quantmap.explain()},
            "warnings": [asdict(notice) for notice in job.notices],
            **({"recipe": tomllib.loads(job.recipe_text)} if job.recipe_text else {}),
        }
    )


def write_beside(out: OutputFile, data: bytes) -> Path:
    """Write the passport, or the recipe, under a temporary name, before anything gets its final one."""
    path = out.temporary()
    path.write_bytes(data)
    return path


def failed_name(output: Path) -> Path:
    """Return where OUTPUT is kept when it fails its proof."""
    return output.with_name(f"{output.name}.failed")


def check_companions(output: Path, *, force: bool, keep_failed: bool) -> None:
    """Raise OutputError where a file beside OUTPUT would be lost. A passport that was written here for a file of this name may be."""
    failed = failed_name(output)
    beside = [paper_of(output), *([failed, paper_of(failed)] if keep_failed else [])]
    for path in beside:
        check_name(path)
    taken = [path for path in beside if os.path.lexists(path)]
    for path in taken:
        if path.is_dir() and not path.is_symlink():
            raise OutputError(f"{str(path)!r} is a folder, and a file goes there", hint="name another file with -o")
        if not force and not is_paper(path, failed if path == paper_of(failed) else output):
            raise OutputError(
                f"{str(path)!r} is there already", hint="--force replaces it, -o names another file for the model"
            )
