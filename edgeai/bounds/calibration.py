"""The texts that a choice of types is made on: the user's own or the bundled one, and what the model writes itself.

What is measured afterwards must be other text. Of a file that the user gives the last part is kept back for that, unless there is another
one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from converters.curvature import BUDGET, Texts
from converters.families import ModelPlan
from converters.feedback import DAMPING
from converters.quantmap import is_matrix
from converters.stress import PROSE
from converters.tokenizer import Vocabulary, source_tokenizer
from edgeai.bounds.languages import LANGUAGES, MARKUP
from edgeai.bounds.recipe import Calibration
from edgeai.errors import UsageError
from edgeai.evaluation.corpus import PROVED_ON, default_text, read_text
from edgeai.evaluation.heldout import held_out_tokens
from edgeai.preflight import source_size

__all__ = ["Material", "bundled_text", "material", "search_memory", "search_positions"]

TOKENS, FEWEST_TOKENS = 8192, 2048
WORK = 2.2e12
"""Parameters times tokens: a larger model reads, and writes, less."""
WRITTEN = 1.0
"""How much a model writes, as a part of what it reads."""
LEAST_TOKENS = 512
"""Fewer tokens of a text say nothing of its kind."""
LEARNING, ROUNDS_TAKEN = 3.2, 4
"""What a token costs that is learnt from, in tokens that are read; and how often the held-out text is read, torch included."""
WINDOW, EMBEDDED = 256, 96
"""Tokens of one text, and of one that an embedding model reads."""
LIBRARY_BYTES = 700 << 20
"""What torch and transformers take before there is a model."""
LOGITS_HELD = 8
"""Arrays of the size of a text's logits that there are at once, forth and back."""
KEPT_BACK = 0.25
"""The part of a given text that files are measured on."""
SEED = 0
ROUNDS, PART = 24, 640
"""The bundled text has so many rounds of prose, code and a language; and the characters of a part of prose or code."""
LEAST_LINE = 40
"""Characters of a line that is in two texts by no chance."""
MODULES = ("textwrap", "heapq", "csv", "argparse", "statistics", "configparser", "json.decoder", "difflib")
"""Where the code is from."""
STRANGE = 0.3
"""A text of another script has more characters than this part outside of ASCII …"""
BYTES_PER_TOKEN = 1.7
"""… and its tokens hold fewer bytes than this: they are bytes, and no pieces of words."""
UNKNOWN = 0.05
"""The part of tokens that a tokenizer may not know of a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the curvature is measured on, what of the user's text is kept back, and what a recipe says of it."""

    texts: Texts
    facts: Calibration
    held_out: str | None = None
    warnings: tuple[tuple[str, str], ...] = field(default=())


def bundled_text(known: Callable[[str], bool] = lambda _text: True) -> str:
    """Return prose, code and many languages in turns: parts of Python's documentation that the proof does not use, of its library, and of
    the tables here. Texts in languages are left out that are not KNOWN.
    """
    prose = [text for topic in documentation() for text in in_parts(topic, PART) if not is_proved_on(text)]
    prose = prose or list(PROSE)
    code = [text for source in library() for text in in_parts(source, PART)]
    strange = [text for text in LANGUAGES if known(text)]
    found: list[str] = []
    for number in range(ROUNDS):
        found += [prose[(number * 2 + more) * len(prose) // (ROUNDS * 2)] for more in (0, 1)]
        found += [code[number * len(code) // ROUNDS]] if code else []
        found += strange[number * len(strange) // ROUNDS : (number + 1) * len(strange) // ROUNDS]
        found += MARKUP[number * len(MARKUP) // ROUNDS : (number + 1) * len(MARKUP) // ROUNDS]
    return "\n\n".join(found)


def is_proved_on(text: str) -> bool:
    """Whether a line of TEXT is in what the proof compares on: some topics of the documentation are in others once more."""
    proof = default_text()
    return any(len(line.strip()) >= LEAST_LINE and line.strip() in proof for line in text.splitlines())


def documentation() -> list[str]:
    """Return the topics of Python's documentation that the proof does not use; none where they are not installed."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # distributions may leave it out
        return []
    return [topics[name] for name in sorted(topics) if name not in PROVED_ON]


def library() -> list[str]:
    """Return the sources of some modules of Python's library; none where they lie in an archive."""
    found = []
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin and spec.origin.endswith(".py") and Path(spec.origin).is_file():
            found.append(Path(spec.origin).read_text("utf-8"))
    return found


def in_parts(text: str, size: int) -> list[str]:
    """Return TEXT in parts of whole lines, of at least SIZE characters each but the last, which is left out if it is shorter."""
    parts, part = [], ""
    for line in text.splitlines(keepends=True):
        part += line
        if len(part) >= size:
            parts.append(part.rstrip())
            part = ""
    return parts


def material(
    plan: ModelPlan,
    vocabulary: Vocabulary,
    path: Path | None,
    *,
    tokens: int | None = None,
    keep_back: bool = True,
    threads: int,
) -> Material:
    """Return the texts for a model, from the file PATH or the bundled text; KEEP_BACK a part of the file to measure on.

    Raises UsageError for a text that is too short, or in a script that the tokenizer does not know.
    """

    def known(part: str) -> bool:
        return unknown_share(vocabulary, plain_ids(vocabulary, part)) <= UNKNOWN

    text = read_text(path) if path is not None else bundled_text(known)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else None
    held_out = None
    if path is not None and keep_back:
        at = cut(text, 1 - KEPT_BACK)
        text, held_out = text[:at], text[at:]
    wanted = tokens or wanted_tokens(plan)
    ids, many = encode(vocabulary, text, wanted)
    if path is not None:
        check_text(
            path, ids, many, vocabulary, characters=len(text) + len(held_out or ""), kept_back=len(held_out or "")
        )
    windows = cut_up(plan, vocabulary, ids, wanted)
    written = 0 if plan.pooling else max(1, round(wanted * WRITTEN / WINDOW))
    length = min(WINDOW, plan.context)
    start = list(vocabulary.before) or [vocabulary.bos if vocabulary.bos is not None else ids[0]]
    facts = Calibration(
        text_sha256=digest,
        tokens=wanted,
        generated=written * length,
        seed=SEED,
        threads=threads,
        feedback=True,
        damping=DAMPING,
        kept_back=held_out is not None,
    )
    texts = Texts(windows=windows, generated=written, length=length, starts=[start], seed=SEED, threads=threads)
    return Material(texts=texts, facts=facts, held_out=held_out)


def search_positions(plan: ModelPlan) -> float:
    """Return how many tokens run through the model in a search, counted as if each were read once: forth, back and summed takes three
    times as long, and a few files read what they are compared on."""
    read = wanted_tokens(plan) * (1 if plan.pooling else 1 + WRITTEN)
    return LEARNING * read + ROUNDS_TAKEN * held_out_tokens(plan.parameters, plan.vocab_size)


def search_memory(plan: ModelPlan) -> int:
    """Return about how many bytes of memory a search takes, most of it while it learns which weights matter: the weights as they are
    stored and as float32, one text's values and logits, and the sums. SmolLM2-135M: 3.1 GB."""
    matrices = [tensor for tensor in plan.tensors if is_matrix(tensor) and len(tensor.shape) == 2]
    inner = [tensor for tensor in matrices if tensor.name.startswith("blk.")]
    stored = sum(source_size(source.shape, source.dtype) for tensor in plan.tensors for source in tensor.sources)
    tokens = EMBEDDED if plan.pooling else min(WINDOW, plan.context)
    values = sum(sum(tensor.shape) for tensor in inner) * tokens * 4
    sums = min(BUDGET, sum(tensor.shape[-1] ** 2 for tensor in inner) * 4)
    logits = 0 if plan.pooling else LOGITS_HELD * tokens * plan.vocab_size * 4
    return LIBRARY_BYTES + stored + plan.parameters * 4 + values + sums + logits


def wanted_tokens(plan: ModelPlan) -> int:
    """Return how many tokens of a text a model reads."""
    return max(FEWEST_TOKENS, min(TOKENS, int(WORK / plan.parameters)))


def cut(text: str, part: float) -> int:
    """Return where PART of TEXT ends: at the end of a line, if there is one near."""
    at = int(len(text) * part)
    line = text.find("\n", at)
    return line + 1 if 0 <= line < at + len(text) // 20 else at


def encode(vocabulary: Vocabulary, text: str, tokens: int) -> tuple[list[int], str]:
    """Return the token ids of pieces from all over TEXT, some more than TOKENS where it has so many, and the text of the pieces."""
    budget = tokens * 16
    if len(text) > budget:
        count = 16
        size = budget // count
        text = "\n".join(text[index * (len(text) - size) // (count - 1) :][:size] for index in range(count))
    return plain_ids(vocabulary, text), text


def plain_ids(vocabulary: Vocabulary, text: str) -> list[int]:
    """Return the token ids of TEXT, in which the names of special tokens are text too."""
    tokenizer = source_tokenizer(vocabulary.spec)
    tokenizer.encode_special_tokens = True
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


def unknown_share(vocabulary: Vocabulary, ids: list[int]) -> float:
    """Return which part of IDS the tokenizer did not know; 0 where it knows everything."""
    return ids.count(vocabulary.unk) / len(ids) if vocabulary.unk is not None and ids else 0.0


def check_text(
    path: Path, ids: list[int], read: str, vocabulary: Vocabulary, *, characters: int, kept_back: int
) -> None:
    """Raise UsageError unless IDS, the tokens of the part READ of the text in PATH, are enough and say something."""
    if len(ids) < LEAST_TOKENS:
        more = f", without the last {kept_back} of its {characters} characters, which are kept back to measure on"
        more = more if kept_back else ""
        raise UsageError(
            f"the calibration text {str(path)!r} has {len(ids)} tokens{more}, and at least {LEAST_TOKENS} are needed",
            hint="give a longer text of the kind that the model will read; without --calibration a bundled one is used",
        )
    unknown = unknown_share(vocabulary, ids)
    strange = sum(ord(char) > 127 for char in read) / len(read)
    density = len(read.encode()) / len(ids)
    if unknown > UNKNOWN or (strange > STRANGE and density < BYTES_PER_TOKEN):
        what = (
            f"{unknown:.0%} of its tokens are unknown"
            if unknown > UNKNOWN
            else f"a token holds {density:.2f} bytes of it"
        )
        raise UsageError(
            f"the tokenizer of this model does not know the script of {str(path)!r}: {what}, and {strange:.0%} of its characters are "
            "not ASCII",
            hint="give a text in a language that the model was trained on",
        )


def cut_up(plan: ModelPlan, vocabulary: Vocabulary, ids: list[int], tokens: int) -> list[list[int]]:
    """Return windows from all over IDS, TOKENS in all, each with what the tokenizer puts around a text."""
    around = len(vocabulary.before) + len(vocabulary.after)
    size = max(8, min(EMBEDDED if plan.pooling else WINDOW, plan.context) - around)
    pieces = [ids[at : at + size] for at in range(0, len(ids), size)]
    whole = [piece for piece in pieces if len(piece) == size] or pieces
    count = min(len(whole), max(1, tokens // size))
    return [vocabulary.with_ends(whole[index * len(whole) // count]) for index in range(count)]
