"""The proof that a converted file still is the model it was made from.

The unquantized export is compared with the source in torch, read by transformers' own code; a quantized file is compared with the same
torch model. Without torch the reference is the unquantized export in the runtime, and the report and a notice say so.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from converters import tokenproof
from converters.checkpoint import Checkpoint
from converters.child import NATIVE, Child, ChildFailed, run_native
from converters.families import ModelPlan
from converters.header import read_header
from converters.scratch import Scratch
from converters.tokenizer import Vocabulary
from edgeai.device import cpu_facts, memory_facts
from edgeai.errors import DoesNotFit, InvalidModel, ProofFailed
from edgeai.evaluation import corpus, tokens
from edgeai.evaluation.comparison import Comparison, compare_streams, exact_rows, quantized_rows, stored_rows, tie_of
from edgeai.evaluation.limits import LIMITS, Limit, limit_of, stored_limit
from edgeai.evaluation.prompts import Prompt, near_prompts, window_tokens
from edgeai.evaluation.stream import AHEAD_BYTES, LogitStream, Stream
from edgeai.evaluation.weights import weight_rows
from edgeai.types import Notice, Progress, Row, no_progress

__all__ = ["LIMITS", "Limit", "Proof", "check_scratch", "no_torch_notice", "scratch_bytes"]

TORCH_CHILD = Path(__file__).with_name("torch_child.py")
MEMORY_FACTOR = 1.3
"""Memory of the torch reference, as a multiple of its float32 weights."""
SMALL_BYTES = 64 << 20
HALVES = ("F16", "BF16")


@dataclass(slots=True)
class Proof:
    """One proof in the making. The torch reference starts in the background when the block is entered, and dies when it is left.

    `base` is the base type of the file to prove, `types` GGUF tensor name → type; `exports` says whether `export` will be asked for, and
    `stores` whether a file of halves is also compared with weights that torch has rounded in the same way. `text` replaces the bundled
    text, `tokens` the number of its tokens and `max_kl` the limit of the type; `min_top1` is the least share of first choices as in the
    source and `min_cosine` the least mean cosine, where they are bounds. `torch` says whether it is the reference (None: if it can be),
    and `of` names the file that is the reference without it. `adapter_file` is a LoRA adapter that the runtime puts on each file.
    `angles` is for how many positions torch leaves its tables of rope.
    """

    checkpoint: Checkpoint
    plan: ModelPlan
    vocabulary: Vocabulary
    base: str = "F32"
    types: Mapping[str, str] = field(default_factory=dict)
    exports: bool = True
    stores: bool = True
    torch: bool | None = None
    text: str | None = None
    tokens: int | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    min_cosine: float | None = None
    of: str = "the F32 export"
    adapter_file: Path | None = None
    angles: int = 0
    progress: Progress = no_progress
    notices: list[Notice] = field(default_factory=list)
    summary: dict[str, float | str] = field(default_factory=dict, init=False)
    _folder: Scratch | None = field(default=None, init=False)
    _torch: LogitStream | None = field(default=None, init=False)
    _export: Path | None = field(default=None, init=False)
    _exact: list[Prompt] = field(default_factory=list, init=False)
    _loose: list[Prompt] = field(default_factory=list, init=False)
    _stored: list[Prompt] = field(default_factory=list, init=False)
    _open: list[Child] = field(default_factory=list, init=False)

    def __enter__(self) -> Self:
        self._choose()
        self._folder = Scratch()
        if self.torch is None and (notice := no_torch_notice(self.plan, self.checkpoint)):
            self.notices.append(notice)
            self.torch = False
        self.summary["reference"] = "runtime" if self.torch is False else "torch"
        if self.torch is not False:
            self._torch = self._start_torch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._open:
            child.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _choose(self) -> None:
        """Choose the prompts of the export, of the quantized file, and of the comparison with rounded weights."""
        windows = corpus.windows(self.plan, self.vocabulary, self.text, self.tokens)
        texts = [Prompt(kind="window", ids=ids) for ids in windows]
        end = tokens.end_prompt(self.plan, self.vocabulary)
        near = near_prompts(self.plan, self.vocabulary, exact=True)
        if self.exports:
            self._exact = [*near, *end, *texts[:1]]
        if self.base != "F32":
            self._loose = [*near_prompts(self.plan, self.vocabulary, exact=False), *end, *texts]
            self.summary["text_sha256"] = corpus.corpus_sha256(windows)
        if self.base in HALVES and self.stores:
            self._stored = [*(prompt for prompt in near if prompt.kind == "text"), *texts[:1]]

    def _request(self) -> dict[str, Any]:
        """Return what torch is asked for."""
        rounded = {
            source.name: self.types[tensor.name]
            for tensor in self.plan.tensors
            for source in tensor.sources
            if self.types.get(tensor.name) in HALVES
        }
        return {
            "class": "AutoModelForCausalLM",
            "optional": [],
            "window": self.plan.window,
            "conversations": tokens.CONVERSATIONS,
            "continue": tokens.questions(self.plan, self.vocabulary),
            "lists": [],
            "angles": self.angles,
            "phases": [
                {"prompts": [asdict(prompt) for prompt in phase], "stored": rounded if phase is self._stored else {}}
                for phase in (self._exact, self._loose, self._stored)
            ],
        }

    def _start_torch(self) -> LogitStream:
        """Start the torch reference for all prompts in their order."""
        folder = self._place("torch")
        request = {
            **self._request(),
            "source": str(self.checkpoint.path.resolve()),
            "adapter": str(self.checkpoint.adapter.resolve()) if self.checkpoint.adapter else None,
            "safetensors": any(
                path.suffix == ".safetensors" and path.parent == self.checkpoint.path for path in self.checkpoint.files
            ),
            "texts": tokenproof.stress_texts(self.vocabulary),
            "threads": half(cpu_facts().threads),
            "folder": str(folder),
        }
        self.progress("running the source in torch", 0, 1)
        child = self._keep(Child(TORCH_CHILD, request, what="running the source model in torch", feed=True))
        prompts = [*self._exact, *self._loose, *self._stored]
        return LogitStream(child, folder, prompts, self.plan.vocab_size, ahead_bytes=self._ahead())

    def _ahead(self) -> int:
        """Return how many bytes of torch's logits may lie on the disk."""
        return AHEAD_BYTES

    def _threads(self) -> int:
        """Return how many threads a file is run with: half of those that this process may use, beside the reference."""
        return half(cpu_facts().threads)

    def export(self, path: Path) -> list[Row]:
        """Return the rows that prove the unquantized export PATH: tokens, logits, continuation, template."""
        self._export = path
        run = self._run(path, self._exact)
        facts = self._facts()
        rows = [*run.rows, *self._weights(path)]
        if self._torch is None:
            for _ in run.stream.take(len(self._exact)):
                pass
            rows.append(Row(name="logits against torch", value="not compared"))
        else:
            found = self._compare(self._torch, run.stream, self._exact)
            rows += exact_rows(found, self.plan.activation_nmse, experts="expert_count" in self.plan.keys)
            self.summary |= found.summary()
            rows += self._said(tokens.same_ids(self.vocabulary, facts))
        rows += self._continued(facts, run, exact=True)
        return [*rows, *self._chats(facts, run)]

    def quantized(self, path: Path) -> list[Row]:
        """Return the rows that compare the file PATH of another type with the reference.

        Without torch that is the export, which must still be there.
        """
        experts = "expert_count" in self.plan.keys
        limit = limit_of(self.base, self.max_kl, experts=experts)
        reference, of = self._torch, "torch"
        if reference is None:
            assert self._export is not None  # noqa: S101 - `export` or `use_export` has set it
            reference, of = self._run(self._export, self._loose).stream, self.of
        stored = self._stored if self._torch is not None else []
        run = self._run(path, [*self._loose, *stored])
        facts = self._facts()
        weights = self._weights(path)  # while the children compute
        found = self._compare(reference, run.stream, self._loose)
        rows = [*run.rows, *weights, *quantized_rows(found, limit, of, min_top1=self.min_top1)]
        self.summary |= found.summary()
        if stored:
            most = stored_limit(self.base, self.plan.activation_nmse, self.plan.layers)
            rows += stored_rows(self._compare(reference, run.stream, stored), self.base, most, gated=not experts)
        rows += self._continued(facts, run, exact=False)
        return [*rows, *self._chats(facts, run)]

    def use_export(self, path: Path) -> None:
        """Take PATH for the unquantized export without proving it."""
        self._export = path

    @property
    def needs_export(self) -> bool:
        """Whether `quantized` needs the export: there is no other reference."""
        return self._torch is None

    def place(self, name: str) -> Path:
        """Return the path NAME in the folder for temporary files, which lives as long as the block."""
        assert self._folder is not None  # noqa: S101 - the block has been entered
        return Path(self._folder.name) / name

    def _place(self, name: str) -> Path:
        folder = self.place(f"{len(self._open)}-{name}")
        folder.mkdir(exist_ok=True)
        return folder

    def _keep(self, child: Child) -> Child:
        self._open.append(child)
        return child

    def _said(self, found: tuple[list[Row], list[Notice]]) -> list[Row]:
        self.notices += found[1]
        return found[0]

    def _facts(self) -> Mapping[str, Any]:
        """Wait for what torch says before its logits; nothing where it is not the reference."""
        if self._torch is None:
            return {}
        try:
            return self._torch.wait_facts()
        except ChildFailed as error:
            raise ProofFailed(
                f"transformers cannot run the source, so nothing can be compared: {error.reason}", hint=error.hint
            ) from error

    def _run(self, path: Path, prompts: Sequence[Prompt]) -> Run:
        """Load the file PATH in the runtime: check its tokens, and start its logits for PROMPTS."""
        question = tokenproof.ids_question(path, self.vocabulary)
        folder = self._place("file")
        try:
            answer = run_native({"jobs": [question.request()]}, what=f"running {path.name!r}")["jobs"][0]
            parts, errors = tokens.segments(self.vocabulary, answer["named"])
            chats = [part for part in parts if part is not None]
            request = {
                "jobs": [{"model": str(path), "sets": [], "chats": chats}],
                "score": {
                    "model": str(path),
                    "prompts": [asdict(prompt) for prompt in prompts],
                    "continue": tokens.questions(self.plan, self.vocabulary),
                    "folder": str(folder),
                    "adapter": str(self.adapter_file) if self.adapter_file else None,
                    "threads": 1 if is_small(path) else self._threads(),
                },
            }
            child = self._keep(Child(NATIVE, request, what=f"running {path.name!r}", feed=True))
            stream = LogitStream(child, folder, prompts, self.plan.vocab_size, progress=self.progress)
            facts = stream.wait_facts()
        except ChildFailed as error:
            if path == self._export and not self.exports:
                raise InvalidModel(f"the runtime does not load the source: {error.reason}", hint=error.hint) from error
            raise ProofFailed(
                f"the runtime does not load the converted file: {error.reason}", hint=error.hint
            ) from error
        rows = tokens.id_rows(self.vocabulary, question, answer)
        return Run(path=path, stream=stream, rows=rows, facts=facts, parts=parts, errors=errors)

    def _compare(self, reference: Stream, candidate: Stream, prompts: Sequence[Prompt]) -> Comparison:
        try:
            return compare_streams(reference, candidate, prompts, self.vocabulary.stop_ids)
        except ValueError as error:
            raise ProofFailed(f"the file and the source give different outputs: {error}") from error
        except ChildFailed as error:
            raise ProofFailed(f"{error.message}", hint=error.hint) from error

    def _continued(self, facts: Mapping[str, Any], run: Run, *, exact: bool) -> list[Row]:
        if "continued" not in facts:
            return []
        near = tie_of(self.plan.activation_nmse)
        return tokens.continuation_rows(
            self.vocabulary, facts["continued"], run.facts["continued"], exact=exact, near=near
        )

    def _chats(self, facts: Mapping[str, Any], run: Run) -> list[Row]:
        ids = run.facts["jobs"][0]["chats"]
        template = self._template(run.path)
        return self._said(tokens.chat_rows(template, self.vocabulary, run.parts, run.errors, ids, facts))

    def _template(self, path: Path) -> Any:
        """Return the chat template of the file PATH."""
        return read_header(path).kv.get("tokenizer.chat_template")

    def _weights(self, path: Path) -> list[Row]:
        """Return the rows about the weights of the file PATH."""
        return list(weight_rows(path, self.plan))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A file that runs: its logits, the rows about its token ids, what the child said, and the conversations that it was given."""

    path: Path
    stream: LogitStream
    rows: list[Row]
    facts: Mapping[str, Any]
    parts: list[list[dict[str, Any]] | None]
    errors: list[str]


def is_small(model: Path) -> bool:
    """Whether MODEL is to be run with one thread.

    ggml's threads wait for each other by spinning; where the cores are shared, that costs a small model ten times its work.
    """
    return model.stat().st_size < SMALL_BYTES


def half(count: int) -> int:
    """Return half of COUNT threads: the reference and the file run side by side."""
    return max(1, count // 2)


def no_torch_notice(plan: ModelPlan, checkpoint: Checkpoint | None = None) -> Notice | None:
    """Return the notice that torch is not the reference here, or None when it is."""
    reason = no_torch(plan)
    if not reason and checkpoint is not None and checkpoint.adapter and importlib.util.find_spec("peft") is None:
        reason = "the source has a LoRA adapter, and peft is not installed (pip install peft)"
    if not reason:
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


def scratch_bytes(plan: ModelPlan) -> int:
    """Return how many bytes of logits lie on the disk at once, at most: those that torch is ahead, and a window of each file."""
    return 4 * plan.vocab_size * 2 * window_tokens(plan) + 2 * AHEAD_BYTES


def check_scratch(plan: ModelPlan, more: int = 0) -> None:
    """Raise DoesNotFit when the logits of a proof, and MORE bytes, do not fit in the folder for temporary files."""
    place = tempfile.gettempdir()
    need, free = scratch_bytes(plan) + more, shutil.disk_usage(place).free
    if need > free:
        raise DoesNotFit(
            f"the proof needs {need / 1e9:.2f} GB for temporary files in {place!r}, and {free / 1e9:.2f} GB are free",
            hint="free some space there, or set TMPDIR to a folder on another disk",
        )
