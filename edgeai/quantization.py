"""From what a user wants of a file's types to the type of every tensor: the name, patterns, and an importance matrix.

Two steps: `decide` finds out everything that can be known before the work, `Quantization.calibrate` computes the importance matrix where
one is to be made from a text.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from converters import calibration, importance, manifest
from converters.checkpoint import Checkpoint
from converters.families import ModelPlan, TensorPlan, Value
from converters.feedback import Feedback
from converters.ggml_types import FILE_TYPES
from converters.output import OutputFile, check_output
from converters.quantmap import ALIASES, NEEDS_IMPORTANCE, QUANTS, Override, QuantMap, parse_override, plan_types
from converters.tokenizer import Vocabulary
from edgeai import __version__
from edgeai.errors import UsageError
from edgeai.evaluation.summary import placeholders

__all__ = ["DEFAULT_QUANT", "Quantization", "Wish", "decide", "file_keys", "is_quant", "parse_quant"]

DEFAULT_QUANT = "q8_0"
"""Half the size of F16, faster on CPUs, and within measuring noise of the source (mean KL about 0.001): what a model that is converted
without a wish should be."""
INDIFFERENT = frozenset({"F32", "F16", "BF16", "Q8_0", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0"})
"""Types whose encoders do not look at an importance matrix (`quantize_*` in ggml-quants.c)."""
Say = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a user asked for: QUANT and TYPES as they were written, the text or file of an importance matrix, where to keep it."""

    quant: str = DEFAULT_QUANT
    types: tuple[str, ...] = ()
    imatrix: Path | None = None
    calibration_tokens: int | None = None
    imatrix_out: Path | None = None

    @property
    def name(self) -> str:
        """The quant type in its usual writing; raises UsageError."""
        return parse_quant(self.quant, informed=self.imatrix is not None)

    def overrides(self) -> tuple[Override, ...]:
        """Return the patterns; raises WrongChoice."""
        return tuple(map(parse_override, self.types))

    def check(self) -> None:
        """Raise UsageError or WrongChoice for what no model could fulfil, and for options that say nothing without another."""
        _ = self.name, self.overrides()
        for option, value in (
            ("--calibration-tokens", self.calibration_tokens),
            ("--imatrix-out", self.imatrix_out),
        ):
            if value is not None and self.imatrix is None:
                raise UsageError(f"{option} {str(value)!r} is of no use without --imatrix", hint="--imatrix TEXT")


@dataclass(slots=True, kw_only=True)
class Quantization:
    """The types of a file, and what the encoder knows of the columns: `rows` is tensor → (matrices, columns), or nothing at all.

    `feedback` is what a tensor is encoded with that makes up for its errors. `text` is there as long as the importance matrix has to be
    computed; then `quantmap` stands on the names that it will have.
    """

    quantmap: QuantMap
    rows: Mapping[str, importance.F32] | None = None
    text: Path | None = None
    tokens: int = calibration.DEFAULT_TOKENS
    output: Path | None = None
    keys: dict[str, Value] = field(default_factory=dict)
    feedback: Callable[[TensorPlan], Feedback | None] = lambda _tensor: None

    def calibrate(
        self,
        checkpoint: Checkpoint,
        plan: ModelPlan,
        vocabulary: Vocabulary,
        say: Say,
        *,
        threads: int,
        progress: Callable[[int, int], None],
    ) -> None:
        """Compute the importance matrix where it comes from a text, and keep it where that was asked for."""
        if self.text is None:
            return
        found = calibration.calibrate(
            checkpoint.path, plan, vocabulary, self.text, tokens=self.tokens, threads=threads, progress=progress
        )
        for code, message in found.warnings:
            say(code, message)
        if self.output is not None:
            with OutputFile(self.output) as out:
                path = out.temporary()
                importance.write_importance(path, found.matrix)
                out.commit(path)
        self.text = None
        self.use(found.matrix, plan, say, "the importance matrix of this text")

    def use(self, matrix: importance.ImportanceMatrix, plan: ModelPlan, say: Say, origin: str) -> None:
        """Take MATRIX for the encoder and plan the types again with what it knows."""
        usable = importance.usable(matrix, plan, origin)
        for code, message in usable.warnings:
            say(code, message)
        self.rows = usable.rows
        self.quantmap = plan_types(
            plan, self.quantmap.quant, importance=usable.rows.keys(), overrides=self.quantmap.overrides
        )
        digest = hashlib.sha256()
        for name in sorted(usable.rows):
            digest.update(name.encode() + b"\0" + usable.rows[name].astype("<f4").tobytes())
        self.keys |= importance_keys(matrix, len(usable.rows), digest.hexdigest())


def check_used(quantmap: QuantMap, say: Say) -> None:
    """Say so where no tensor has a type whose encoder asks an importance matrix."""
    kinds = set(quantmap.counts())
    if kinds <= INDIFFERENT:
        message = (
            f"the importance matrix changes nothing in this file: {', '.join(sorted(kinds))} are encoded without one; "
        )
        message += "types of fewer bits, such as q4_k_m, use it"
        say("importance-unused", message)


def importance_keys(matrix: importance.ImportanceMatrix, entries: int, digest: str) -> dict[str, Value]:
    """Return the keys about an importance matrix: two of llama-quantize's, and in place of its path the sha256 of its values."""
    return {
        "quantize.imatrix.entries_count": entries,
        "quantize.imatrix.chunks_count": matrix.chunks,
        "edgeai.imatrix.sha256": digest,
    }


def is_quant(name: str) -> bool:
    """Whether NAME is a quant type of GGUF."""
    try:
        parse_quant(name, informed=True)
    except UsageError:
        return False
    return True


def parse_quant(name: str, *, informed: bool = False) -> str:
    """Return the quant type NAME in its usual writing; raises UsageError with what was perhaps meant and the list.

    INFORMED says whether there is an importance matrix, which types of few bits need. A number is one of `enum llama_ftype`, as for
    llama-quantize.
    """
    word = name.strip().upper().replace("-", "_")
    if word.isdecimal() and len(word) < 4:
        word = FILE_TYPES.get(int(word), word)
    word = ALIASES.get(word, word)
    if word in NEEDS_IMPORTANCE and not informed:
        raise UsageError(
            f"the quant type {name!r} needs an importance matrix",
            hint="with so few bits a quantizer must know which weights matter: --imatrix TEXT computes that from a text like those that "
            "the model will read, --imatrix FILE reads it; the smallest types without one are q2_k and iq3_s",
        )
    if word in QUANTS:
        return word
    known = ", ".join(quant.lower() for quant in QUANTS)
    close = difflib.get_close_matches(word, [*QUANTS, *ALIASES], n=1)
    meant = f"did you mean {close[0].lower()!r}? " if close else ""
    raise UsageError(f"the quant type {name!r} is not known", hint=f"{meant}known: {known}")


def decide(wish: Wish, plan: ModelPlan, checkpoint: Checkpoint, say: Say, *, force: bool = False) -> Quantization:
    """Return the types that WISH gives the tensors of PLAN, reading no tensor.

    Raises UsageError and WrongChoice for a wish that cannot be fulfilled, InvalidModel for a damaged importance matrix.
    """
    wish.check()
    quant, overrides = wish.name, wish.overrides()
    keys: dict[str, Value] = {"edgeai.quant.types": ",".join(map(str, overrides))} if overrides else {}
    if wish.imatrix is None:
        return Quantization(quantmap=plan_types(plan, quant, overrides=overrides), keys=keys)
    if importance.is_importance_file(wish.imatrix):
        if wish.imatrix_out is not None or wish.calibration_tokens is not None:
            raise UsageError(
                f"{str(wish.imatrix)!r} is an importance matrix, so none is computed",
                hint="leave out --imatrix-out and --calibration-tokens, or give a text",
            )
        matrix = importance.read_importance(wish.imatrix)
        bare = Quantization(quantmap=QuantMap(quant=quant, choices={}, overrides=overrides), keys=keys)
        bare.use(matrix, plan, say, f"the importance matrix {str(wish.imatrix)!r}")
        check_used(bare.quantmap, say)
        return bare
    tokens = wish.calibration_tokens if wish.calibration_tokens is not None else calibration.DEFAULT_TOKENS
    calibration.check_calibration(wish.imatrix, tokens)
    if wish.imatrix_out is not None:
        check_output(wish.imatrix_out, checkpoint.path, [*checkpoint.files, wish.imatrix], force=force)
    names = calibration.reachable(plan).keys()
    empty = importance.ImportanceMatrix(sums={}, counts={})
    quantmap = plan_types(plan, quant, importance=names, overrides=overrides)
    check_used(quantmap, say)
    return Quantization(
        quantmap=quantmap,
        text=wish.imatrix,
        tokens=tokens,
        output=wish.imatrix_out,
        keys=keys | importance_keys(empty, len(names), "0" * 64),
    )


def file_keys(
    checkpoint: Checkpoint, plan: ModelPlan, quantization: Quantization, source: str, *, torch: bool
) -> dict[str, Value]:
    """Return the keys that say what the file is, what it was made from, how its types were chosen, and room for the proof's result.

    SOURCE is the sha256 of the source; TORCH says whether torch is the reference of the proof.
    """
    return {
        **manifest.file_keys(checkpoint, plan, quantization.quantmap.label, source, __version__),
        **quantization.keys,
        **placeholders(plan, torch=torch),
    }
