"""Prove by execution that a GGUF vocabulary gives the token ids of the Hugging Face tokenizer.

Three questions are asked of libllama, in a child process because a wrong name can abort it: are the ids of a stress list equal, with
special tokens as control and as plain text; are BOS and EOS added alike; and, with a vocabulary made for the purpose, does the named
pre-tokenizer cut at the same places. The last one matters for small vocabularies, which have no merges across the places where
splittings differ, so that a wrong name would pass unseen.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converters.child import ChildDied, ChildFailed, run_native
from converters.errors import TokenizerMismatch
from converters.gguf import write_vocabulary
from converters.normalize import normalize
from converters.scratch import Scratch
from converters.stress import PROSE, STRESS, from_vocabulary
from converters.tokenizer import (
    CONTROL,
    CUTS,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    byte_alphabet,
    source_tokenizer,
    without_control,
)

__all__ = [
    "Question",
    "TokenProof",
    "cut_questions",
    "ids_question",
    "prove_vocabulary",
    "put",
    "stress_texts",
    "whole_questions",
]

PROBE_KEYS: Mapping[str, int | float | str | bool] = {
    "context_length": 64,
    "embedding_length": 32,
    "block_count": 1,
    "feed_forward_length": 32,
    "attention.head_count": 1,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenProof:
    """What was found equal: texts, and the tokens that end a generation in the runtime."""

    texts: int
    splits: int
    end_tokens: tuple[int, ...]
    different_cuts: int = 0

    @property
    def cuts(self) -> str:
        """In words, for how many texts the pre-tokenizer cuts in equal places."""
        if self.different_cuts:
            return (
                f"equal for {self.splits - self.different_cuts} of {self.splits} texts; the others as measured before"
            )
        return f"equal for {self.splits} texts"


def stress_texts(vocabulary: Vocabulary) -> list[str]:
    """Return the stress list for VOCABULARY: fixed texts, texts of its own pieces, and its special tokens amid text."""
    special = vocabulary.special_texts()[:64]
    amid = [form.format(text) for text in special for form in ("{0}", "a{0}b", " {0} {0}{0}\n")] if special else []
    pieces = vocabulary.pieces()
    own = from_vocabulary(pieces)
    if (
        vocabulary.model != "gpt2"
    ):  # where the runtime differs in rare characters, so that the usual ones are seen by themselves
        own += from_vocabulary([piece for piece in pieces if piece.isascii()])
    texts = [*STRESS, *PROSE, *own, *amid, "".join(special), " ".join(special)]
    return list(dict.fromkeys(texts))


def prepare(text: str, vocabulary: Vocabulary, parse_special: bool) -> str:
    """Return TEXT as the runtime here gives it to libllama: normalized between the special tokens."""
    if vocabulary.normalizer is None:
        return text
    kinds = (CONTROL, USER_DEFINED, UNKNOWN) if parse_special else (USER_DEFINED,)
    special = {token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in kinds}
    whole = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    parts = re.split(f"({whole})", text) if special else [text]
    return "".join(
        part if part in special else normalize(part, vocabulary.normalizer, first=not any(parts[:place]))
        for place, part in enumerate(parts)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Texts for one vocabulary file, and what each way of reading them must give."""

    path: Path
    vocabulary: Vocabulary
    texts: list[str]
    readings: tuple[Reading, ...]

    def request(self) -> dict[str, Any]:
        """Return the job for the child."""
        sets = [
            {
                "texts": [prepare(text, self.vocabulary, item.parse_special) for text in self.texts],
                "add_special": item.add_special,
                "parse_special": item.parse_special,
            }
            for item in self.readings
        ]
        return {"model": str(self.path), "sets": sets}

    def allowed(self, reading: Reading) -> Mapping[str, Sequence[int]]:
        """Return the texts that may have other ids, and which: those that were measured when the tokenizer was read."""
        return self.vocabulary.inexact.found.get(reading.name, {}) if self.vocabulary.inexact else {}

    def summary(self) -> str:
        """Return in words what a passed check has found."""
        if inexact := self.vocabulary.inexact:
            return f"{inexact.summary()}, as measured before; the others are equal"
        return f"equal for {len(self.texts)} texts"

    def differences(self, answer: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
        """Return reading → text → ids for the texts whose ids in ANSWER are not the source's."""
        return {
            item.name: {
                text: tuple(ids)
                for text, want, ids in zip(self.texts, item.expected, found, strict=True)
                if list(want) != list(ids)
            }
            for item, found in zip(self.readings, answer["ids"], strict=True)
        }

    def check(self, answer: Mapping[str, Any]) -> None:
        """Raise TokenizerMismatch unless ANSWER is right."""
        for item, found in zip(self.readings, answer["ids"], strict=True):
            compare(self.texts, item.expected, found, item.name, self.allowed(item))
        if answer["vocab"] != len(self.vocabulary.tokens):
            count = len(self.vocabulary.tokens)
            raise TokenizerMismatch(f"the file has {answer['vocab']} tokens, and {count} are expected")
        if unknown := sorted(set(self.vocabulary.stop_ids) - set(answer["eog"])):
            shown = ", ".join(repr(self.vocabulary.tokens[token]) for token in unknown)
            raise TokenizerMismatch(
                f"the runtime would not stop at the end tokens {shown}", hint="name fewer in generation_config.json"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One way of reading the texts, and the ids that it must give."""

    name: str
    add_special: bool
    parse_special: bool
    expected: list[list[int]]
    probe: bool = False
    """Whether the vocabulary is made to show the cuts, and not the model's."""


def prove_vocabulary(vocabulary: Vocabulary, architecture: str = "llama") -> TokenProof:
    """Prove VOCABULARY before any tensor is read: ids and places of the cuts. Raises TokenizerMismatch."""
    with Scratch() as name:
        folder = Path(name)
        questions = whole_questions(folder, vocabulary, architecture)
        answers, cuts = ask(questions), questions[1:]
        return TokenProof(
            texts=len(stress_texts(vocabulary)),
            splits=len(cuts[0].texts) if cuts else 0,
            end_tokens=tuple(answers[0]["eog"]),
            different_cuts=vocabulary.inexact.cuts if vocabulary.inexact else 0,
        )


def whole_questions(folder: Path, vocabulary: Vocabulary, architecture: str) -> list[Question]:
    """Return every question about VOCABULARY, whose files are written into FOLDER."""
    path = folder / "vocabulary.gguf"
    write_vocabulary(path, architecture, vocabulary, {**PROBE_KEYS, "vocab_size": len(vocabulary.tokens)})
    return [ids_question(path, vocabulary), *cut_questions(folder, vocabulary, architecture)]


def prove_splits(folder: Path, vocabulary: Vocabulary, architecture: str) -> None:
    """Prove that the pre-tokenizer cuts where the source's does. Raises TokenizerMismatch with an example."""
    ask(cut_questions(folder, vocabulary, architecture))


def ids_question(path: Path, vocabulary: Vocabulary) -> Question:
    """Return the question whether PATH reads the stress list as the source does."""
    texts = stress_texts(vocabulary)
    tokenizer = source_tokenizer(vocabulary.spec)
    control = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    if (hidden := without_control(vocabulary.spec)) is not vocabulary.spec:
        tokenizer = source_tokenizer(hidden)
    tokenizer.encode_special_tokens = True
    plain = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    whole = [vocabulary.with_ends(ids) for ids in control]
    readings = (
        Reading(name="special tokens read as control", add_special=False, parse_special=True, expected=control),
        Reading(name="special tokens read as text", add_special=False, parse_special=False, expected=plain),
        Reading(name="BOS and EOS added", add_special=True, parse_special=True, expected=whole),
    )
    return Question(path=path, vocabulary=vocabulary, texts=texts, readings=readings)


def cut_questions(folder: Path, vocabulary: Vocabulary, architecture: str, names: Sequence[str] = ()) -> list[Question]:
    """Return the questions whether the pre-tokenizer cuts where the source's does: two for each of NAMES, by default the vocabulary's.

    The vocabulary of the probe is the 256 bytes and every pair of neighbours in the texts: a pair merges unless there is
    a cut. Once with the pairs ranked in order and once reversed, because a pair also stays apart when one of its bytes
    has merged elsewhere. Only byte-level BPE has a pre-tokenizer.
    """
    if vocabulary.model != "gpt2":
        return []
    texts = stress_texts(vocabulary)
    if vocabulary.normalizer == "NFC":
        texts = list(dict.fromkeys(unicodedata.normalize("NFC", text) for text in texts))
    alphabet = byte_alphabet()
    encoded = ["".join(alphabet[byte] for byte in text.encode()) for text in texts]
    pairs = sorted({line[at : at + 2] for line in encoded for at in range(len(line) - 1)})
    probes = {}
    for order, ranked in (("ascending", pairs), ("descending", pairs[::-1])):
        probe = probe_vocabulary(vocabulary, [*alphabet.values()], ranked)
        expected = [item.ids for item in source_tokenizer(probe.spec).encode_batch(texts, add_special_tokens=False)]
        probes[order] = probe, expected
    questions = []
    for name in names or (vocabulary.pre,):
        for order, (probe, expected) in probes.items():
            probe = replace(probe, pre=name)
            path = folder / f"{name}-{order}.gguf"
            write_vocabulary(path, architecture, probe, {**PROBE_KEYS, "vocab_size": len(probe.tokens)})
            how = f"{CUTS} of {name!r}, {order}"
            reading = Reading(name=how, add_special=False, parse_special=False, expected=expected, probe=True)
            questions.append(Question(path=path, vocabulary=probe, texts=texts, readings=(reading,)))
    return questions


def ask(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Put QUESTIONS to libllama in one child and check the answers."""
    answers = put(questions)
    for question, answer in zip(questions, answers, strict=True):
        question.check(answer)
    return answers


def put(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Put QUESTIONS to libllama in one child and return its answers."""
    if not questions:
        return []
    request = {"jobs": [question.request() for question in questions]}
    try:
        answers: list[dict[str, Any]] = run_native(request, what="checking the tokenizer")["jobs"]
    except ChildFailed as error:
        raise TokenizerMismatch(f"libllama does not load the vocabulary: {error.reason}", hint=error.hint) from error
    except ChildDied as error:
        raise TokenizerMismatch(f"libllama dies of the vocabulary: {error.message}", hint=error.hint) from error
    return answers


def compare(
    texts: Sequence[str],
    expected: Sequence[Sequence[int]],
    found: Sequence[Sequence[int]],
    how: str,
    allowed: Mapping[str, Sequence[int]],
) -> None:
    """Raise TokenizerMismatch that shows the shortest text with other ids than EXPECTED and than those that are ALLOWED."""
    wrong = [
        index
        for index, text in enumerate(texts)
        if list(found[index]) not in [list(expected[index]), *(list(allowed[text]) for _ in range(text in allowed))]
    ]
    if wrong:
        at = min(wrong, key=lambda index: len(texts[index]))
        raise TokenizerMismatch(
            f"{len(wrong)} of {len(texts)} texts get other token ids from the file than from the tokenizer ({how}), such as "
            f"{example(texts[at], expected[at], found[at])}",
            hint="the runtime has no pre-tokenizer that splits text in the same way",
        )


def example(text: str, expected: Sequence[int], found: Sequence[int]) -> str:
    """Return one text with its ids, as words."""
    return f"{text!r}: {short(found)} instead of {short(expected)}"


def short(ids: Sequence[int]) -> str:
    """Return the first ids as text."""
    return f"[{', '.join(map(str, ids[:12]))}{', …' if len(ids) > 12 else ''}]"


def probe_vocabulary(vocabulary: Vocabulary, letters: list[str], pairs: list[str]) -> Vocabulary:
    """Return a vocabulary of LETTERS and PAIRS with the splitting of VOCABULARY."""
    tokens = (*letters, *pairs)
    merges = tuple(f"{pair[0]} {pair[1]}" for pair in pairs)
    table = {token: index for index, token in enumerate(tokens)}
    model = {
        "type": "BPE",
        "vocab": table,
        "merges": list(merges),
        "ignore_merges": False,
        "byte_fallback": False,
        "fuse_unk": False,
    }
    spec = {**vocabulary.spec, "added_tokens": [], "normalizer": None, "post_processor": None, "model": model}
    return replace(
        vocabulary,
        tokens=tokens,
        types=(NORMAL,) * len(tokens),
        merges=merges,
        real_size=len(tokens),
        bos=None,
        eos=0,
        stop_ids=(),
        unk=None,
        pad=None,
        eot=None,
        eom=None,
        before=(),
        after=(),
        add_bos=False,
        add_eos=False,
        chat_template=None,
        named_templates={},
        spec=spec,
    )
