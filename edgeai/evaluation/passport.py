"""The proof that a converted file still is the model it was made from.

The unquantized export is compared with the source in torch, read by transformers' own code; a quantized file is compared with the same
logits. Without torch the reference is the unquantized export in the runtime, and the report and a notice say so.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from converters import tokenproof
from converters.checkpoint import Checkpoint, open_checkpoint
from converters.child import Child, ChildFailed
from converters.errors import InvalidModel, TokenizerMismatch
from converters.families import ModelPlan, plan_model
from converters.ggml_types import FILE_TYPES
from converters.gguf import write_model
from converters.header import read_header
from converters.quantmap import QUANTS, plan_types
from converters.tokenizer import Vocabulary, read_vocabulary, source_tokenizer
from edgeai import chat
from edgeai.device import cpu_facts, memory_facts
from edgeai.errors import DoesNotFit, ProofFailed, UsageError
from edgeai.evaluation.prompts import EXACT_NMSE, Prompts, choose_prompts, far_limit, scratch_bytes
from edgeai.evaluation.score import compare, native_logits
from edgeai.types import Message, Notice, Progress, Report, Row, no_progress

if TYPE_CHECKING:
    from edgeai.evaluation.score import Agreement, Logits

__all__ = ["LIMITS", "Limit", "Proof", "check_scratch", "no_torch_notice", "prove"]

TORCH_CHILD = Path(__file__).with_name("torch_child.py")
MEMORY_FACTOR = 1.3
"""Memory of the torch reference, as a multiple of its float32 weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How far a quantized file may be from its source: NMSE of the logits and mean KL in nats."""

    nmse: float
    mean_kl: float


LIMITS: Mapping[str, Limit] = {
    "F32": Limit(nmse=EXACT_NMSE, mean_kl=1e-5),
    "F16": Limit(nmse=1e-4, mean_kl=1e-3),
    "BF16": Limit(nmse=1e-3, mean_kl=1e-2),
    "Q8_0": Limit(nmse=0.01, mean_kl=0.05),
    "Q6_K": Limit(nmse=0.05, mean_kl=0.15),
    "Q5_1": Limit(nmse=0.1, mean_kl=0.3),
    "Q5_0": Limit(nmse=0.1, mean_kl=0.3),
    "Q5_K": Limit(nmse=0.1, mean_kl=0.3),
    "Q4_1": Limit(nmse=0.3, mean_kl=1.0),
    "Q4_0": Limit(nmse=0.3, mean_kl=1.0),
    "Q4_K": Limit(nmse=0.3, mean_kl=1.0),
    "IQ4_NL": Limit(nmse=0.3, mean_kl=1.0),
    "IQ4_XS": Limit(nmse=0.3, mean_kl=1.0),
    "Q3_K": Limit(nmse=0.6, mean_kl=2.0),
    "IQ3_S": Limit(nmse=0.6, mean_kl=2.0),
    "MXFP4": Limit(nmse=0.3, mean_kl=1.0),
    "IQ3_XXS": Limit(nmse=0.9, mean_kl=3.0),
    "Q2_K": Limit(nmse=0.9, mean_kl=4.0),
    "IQ2_S": Limit(nmse=1.5, mean_kl=8.0),
    "IQ2_XS": Limit(nmse=1.5, mean_kl=8.0),
    "IQ2_XXS": Limit(nmse=1.5, mean_kl=8.0),
    "IQ1_M": Limit(nmse=3.0, mean_kl=16.0),
    "IQ1_S": Limit(nmse=3.0, mean_kl=16.0),
    "Q2_0": Limit(nmse=3.0, mean_kl=16.0),  # this and those below are for models that were trained to have such weights
    "TQ2_0": Limit(nmse=3.0, mean_kl=16.0),
    "TQ1_0": Limit(nmse=3.0, mean_kl=16.0),
    "Q1_0": Limit(nmse=3.0, mean_kl=16.0),
}
"""By base type: some ten times what published measurements find for models of 7 B, because small models lose more. They catch a broken
file, not a poor one; the measured values are in the report."""

CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hi"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?\n"}),
    (
        {"role": "user", "content": " Ünï 模型 'quoted' \"text\" "},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "{{ 1 + 1 }} {% raw %}"},
    ),
)


@dataclass(slots=True)
class Proof:
    """One proof in the making. The torch reference starts in the background when the block is entered, and dies when it is left."""

    checkpoint: Checkpoint
    plan: ModelPlan
    vocabulary: Vocabulary
    progress: Progress = no_progress
    notices: list[Notice] = field(default_factory=list)
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False)
    _torch: Child | None = field(default=None, init=False)
    _reference: Logits | None = field(default=None, init=False)
    _answer: dict[str, Any] = field(default_factory=dict, init=False)
    _named: dict[str, str] = field(default_factory=dict, init=False)
    _prompts: Prompts = field(default_factory=Prompts, init=False)

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="edgeai-proof-")
        self._prompts = choose_prompts(self.plan, self.vocabulary)
        if (notice := no_torch_notice(self.plan)) is not None:
            self.notices.append(notice)
        else:
            self._torch = Child(TORCH_CHILD, self._request(), what="running the source model in torch")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._torch is not None:
            self._torch.close()
        self._reference = None  # a file in the folder, mapped into memory
        if self._folder is not None:
            self._folder.cleanup()

    def _request(self) -> dict[str, Any]:
        return {
            "source": str(self.checkpoint.path.resolve()),
            "prompts": [asdict(prompt) for prompt in self._prompts.all()],
            "logits": str(self.file("torch.npy")),
            "threads": cpu_facts().threads,
            "conversations": CONVERSATIONS,
            "texts": tokenproof.stress_texts(self.vocabulary),
        }

    def file(self, name: str) -> Path:
        """Return the path of the temporary file NAME; it lives as long as the block."""
        assert self._folder is not None  # noqa: S101 - the block has been entered
        return Path(self._folder.name) / name

    def export(self, path: Path) -> list[Row]:
        """Return the rows that prove the unquantized export PATH: tokens, logits, template."""
        reference = self.reference()
        rows, logits = self._run(path, "export.npy")
        if reference is None:
            self._reference = logits
            rows.append(Row(name="logits against torch", value="not compared"))
        else:
            rows += self._exact(reference, self._checked(logits))
        return [*rows, *self.template(path)]

    def quantized(self, path: Path, base: str) -> list[Row]:
        """Return the rows that compare the quantized file PATH, of base type BASE, with the reference; `export` comes first."""
        reference = self._reference
        assert reference is not None  # noqa: S101 - `export` or `reference` has set it
        rows, logits = self._run(path, "quantized.npy")
        near, far = self._parts(reference, self._checked(logits))
        count = self._prompts.text_positions or self._prompts.near_positions
        text = compare(reference[:count], logits[:count])
        limit, of = LIMITS[base], "torch" if self._torch else "the F32 export"
        return [
            *rows,
            at_most(f"logits against {of}: NMSE", near.nmse, limit.nmse),
            *(at_most(f"logits {away} tokens apart: NMSE", found.nmse, limit.nmse) for away, found in far.items()),
            at_most("mean KL on text, nats", text.mean_kl, limit.mean_kl),
            Row(name=f"first choice as {of}", value=text.top1),
        ]

    def reference(self) -> Logits | None:
        """Wait for torch and return its logits; None when torch is not the reference."""
        if self._torch is not None and self._reference is None:
            import numpy as np

            try:
                self._answer = self._torch.result(
                    lambda done, total: self.progress("running the source in torch", done, total)
                )
            except ChildFailed as error:
                raise ProofFailed(
                    f"transformers cannot run the source, so nothing can be compared: {error.reason}", hint=error.hint
                ) from error
            self._reference = np.load(self.file("torch.npy"), mmap_mode="r")
        return self._reference

    def _parts(self, reference: Logits, logits: Logits) -> tuple[Agreement, dict[int, Agreement]]:
        """Compare the positions near each other, and those across each gap by its distance."""
        count = self._prompts.near_positions
        far = {distance: compare(reference[part], logits[part]) for distance, part in self._prompts.gaps()}
        return compare(reference[:count], logits[:count]), far

    def _exact(self, reference: Logits, logits: Logits) -> list[Row]:
        """Return the rows about an export that must be torch's equal."""
        near, far = self._parts(reference, logits)
        return [
            at_most("F32 logits against torch: NMSE", near.nmse, EXACT_NMSE),
            *(
                at_most(f"F32 logits {away} tokens apart: NMSE", found.nmse, far_limit(away))
                for away, found in far.items()
            ),
            Row(name="F32 first choice as torch", value=near.top1, limit="= 1", ok=near.top1 == 1),
            Row(name="positions compared", value=f"{self._prompts.positions} in {len(self._prompts.all())} prompts"),
            *self._same_ids(),
        ]

    def _run(self, path: Path, name: str) -> tuple[list[Row], Logits]:
        """Load the file PATH in the runtime; return the rows about its tokens, and its logits, kept in the file NAME."""
        question = tokenproof.ids_question(path, self.vocabulary)
        try:
            logits, answers = native_logits(
                path, self._prompts.all(), self.file(name), self.progress, jobs=[question.request()]
            )
        except ChildFailed as error:
            raise ProofFailed(
                f"the runtime does not load the converted file: {error.reason}", hint=error.hint
            ) from error
        self._named = answers[0]["named"]
        try:
            question.check(answers[0])
        except TokenizerMismatch as error:
            return [Row(name="token ids", value=error.message, limit="equal", ok=False)], logits
        ends = ", ".join(repr(self.vocabulary.tokens[token]) for token in answers[0]["eog"])
        ids = f"equal for {len(question.texts)} texts (pre {self.vocabulary.pre!r})"
        return [Row(name="token ids", value=ids, limit="equal"), Row(name="end tokens", value=ends)], logits

    def _checked(self, logits: Logits) -> Logits:
        assert self._reference is not None  # noqa: S101 - the callers have set it
        if logits.shape != self._reference.shape:
            raise ProofFailed(f"the file gives logits of shape {logits.shape}, and the source {self._reference.shape}")
        return logits

    def _same_ids(self) -> list[Row]:
        """State whether the tokenizer class of transformers agrees with tokenizer.json, which the file is made from."""
        expected = self._answer.get("ids")
        if expected is None:
            message = f"transformers cannot load the tokenizer ({self._answer.get('tokenizer_error')}); tokenizer.json is the reference"
            self.notices.append(Notice(code="tokenizer-class", message=message))
            return []
        tokenizer = source_tokenizer(self.vocabulary.spec)
        texts = tokenproof.stress_texts(self.vocabulary)
        plain = [item.ids for item in tokenizer.encode_batch(texts, add_special_tokens=False)]
        ours = [self.vocabulary.with_ends(ids) for ids in plain]
        wrong = [text for text, left, right in zip(texts, ours, expected, strict=True) if left != right]
        if wrong:
            message = (
                f"AutoTokenizer gives other ids than tokenizer.json for {len(wrong)} of {len(texts)} texts, such as "
            )
            message += f"{min(wrong, key=len)!r}; tokenizer.json is the reference"
            self.notices.append(Notice(code="tokenizer-class", message=message))
            return []
        return [Row(name="token ids as transformers", value=f"equal for {len(texts)} texts", limit="equal")]

    def template(self, path: Path) -> list[Row]:
        """Compare what the template of the file PATH, which has been run, gives here with what transformers makes of the source's."""
        source = self.vocabulary.chat_template
        if source is None:
            return [Row(name="chat template", value="none")]
        carried = read_header(path).kv.get("tokenizer.chat_template")
        if carried != source:
            return [Row(name="chat template", value="not that of the source", limit="equal", ok=False)]
        rendered, errors = self._render(source)
        expected = self._answer.get("rendered")
        if not any(text is not None for text in expected or rendered):
            value = f"refuses all {len(rendered)} test conversations" + (f": {errors[0]}" if errors else "")
            return [Row(name="chat template", value=value, limit="equal", ok=False)]
        if not expected:
            return [Row(name="chat template", value="the same text; not rendered with transformers", limit="equal")]
        pairs = [(want, have) for want, have in zip(expected, rendered, strict=True) if want is not None]
        wrong = [(want, have) for want, have in pairs if want != have]
        if wrong:
            want, have = wrong[0]
            gives = f"gives {have!r}" if have is not None else f"fails here ({errors[0]})"
            return [Row(name="chat template", value=f"{gives} instead of {want!r}", limit="equal", ok=False)]
        return [
            Row(name="chat template", value=f"renders {len(pairs)} conversations as transformers does", limit="equal")
        ]

    def _render(self, template: str) -> tuple[list[str | None], list[str]]:
        """Return what TEMPLATE makes of each test conversation with the names that the runtime gives it, and the reasons for None."""
        control, texts, errors = self.vocabulary.special_texts(), list[str | None](), list[str]()
        for messages in CONVERSATIONS:
            try:
                parts = chat.render(template, messages, special=self._named, control=control)
            except (UsageError, InvalidModel) as error:
                texts.append(None)
                errors.append(error.message)
            else:
                texts.append("".join(part.text for part in parts))
        return texts, errors


def at_most(name: str, value: float, limit: float) -> Row:
    """Return the row of a value that must be below LIMIT; one that is not a number is not."""
    return Row(name=name, value=value, limit=f"< {limit:.2g}", ok=value < limit)


def no_torch_notice(plan: ModelPlan) -> Notice | None:
    """Return the notice that torch is not the reference here, or None when it is."""
    if not (reason := no_torch(plan)):
        return None
    message = f"the reference of the proof is the unquantized export in the runtime, not torch: {reason}"
    return Notice(code="no-torch-reference", message=message)


def no_torch(plan: ModelPlan) -> str | None:
    """Return why torch cannot be the reference here, or None when it can."""
    absent = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed (pip install 'edgeai[convert]')"
    need, free = int(plan.parameters * 4 * MEMORY_FACTOR), memory_facts().available
    if need > free:
        return f"it needs {need / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free"
    return None


def check_scratch(plan: ModelPlan, more: int = 0) -> None:
    """Raise DoesNotFit when the logits of a proof, and MORE bytes, do not fit in the folder for temporary files."""
    place = tempfile.gettempdir()
    need, free = scratch_bytes(plan) + more, shutil.disk_usage(place).free
    if need > free:
        raise DoesNotFit(
            f"the proof needs {need / 1e9:.2f} GB for temporary files in {place!r}, and {free / 1e9:.2f} GB are free",
            hint="free some space there, or set TMPDIR to a folder on another disk",
        )


def prove(source: Path, artifact: Path, *, progress: Progress = no_progress) -> Report:
    """Check that the GGUF file ARTIFACT still is the model in the folder SOURCE.

    Raises what opening them raises, and ProofFailed where one of the two does not run.
    """
    checkpoint = open_checkpoint(source)
    plan = plan_model(checkpoint)
    vocabulary = read_vocabulary(checkpoint, plan.vocab_size)
    header = read_header(artifact)
    name = FILE_TYPES.get(header.kv.get("general.file_type", -1), "")
    if name not in QUANTS:
        raise InvalidModel(
            f"{str(artifact)!r} has the file type {name or header.kv.get('general.file_type')!r}, which is not known"
        )
    check_scratch(plan)
    with Proof(checkpoint=checkpoint, plan=plan, vocabulary=vocabulary, progress=progress) as proof:
        if name == "F32":
            return Report(rows=tuple(proof.export(artifact)))
        if proof.reference() is None:
            export, quantmap = proof.file("export.gguf"), plan_types(plan, "F32")
            check_scratch(plan, quantmap.nbytes)
            write_model(export, plan, vocabulary, quantmap, {}, threads=cpu_facts().threads)
            proof.export(export)
        rows = proof.quantized(artifact, QUANTS[name])
        return Report(rows=(*rows, *proof.template(artifact)))
