"""Prove by execution that a GGUF vocabulary gives the token ids of the Hugging Face tokenizer.

Three questions are asked of libllama, in a child process because a wrong name can abort it: are the ids of a stress list equal, with
special tokens as control and as plain text; are BOS and EOS added alike; and, with a vocabulary made for the purpose, does the named
pre-tokenizer cut at the same places. The last one matters for small vocabularies, which have no merges across the places where
splittings differ, so that a wrong name would pass unseen.
"""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converters.child import ChildFailed, run_native
from converters.errors import TokenizerMismatch
from converters.gguf import write_vocabulary
from converters.stress import PROSE, STRESS, from_vocabulary
from converters.tokenizer import NORMAL, Vocabulary, byte_alphabet, source_tokenizer

__all__ = ["TokenProof", "prove_file", "prove_vocabulary", "stress_texts"]

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


def stress_texts(vocabulary: Vocabulary) -> list[str]:
    """Return the stress list for VOCABULARY: fixed texts, texts of its own pieces, and its special tokens amid text."""
    special = vocabulary.special_texts()[:64]
    amid = [form.format(text) for text in special for form in ("{0}", "a{0}b", " {0} {0}{0}\n")] if special else []
    texts = [*STRESS, *PROSE, *from_vocabulary(vocabulary.pieces()), *amid, "".join(special), " ".join(special)]
    if vocabulary.normalizer == "NFC":  # the file cannot say so; a warning does
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    return list(dict.fromkeys(texts))


def prove_vocabulary(vocabulary: Vocabulary, architecture: str = "llama") -> TokenProof:
    """Prove VOCABULARY before any tensor is read: ids and places of the cuts. Raises TokenizerMismatch."""
    with tempfile.TemporaryDirectory(prefix="edgeai-") as folder:
        path = Path(folder) / "vocabulary.gguf"
        write_vocabulary(path, architecture, vocabulary, {**PROBE_KEYS, "vocab_size": len(vocabulary.tokens)})
        proof = prove_file(path, vocabulary)
        return replace(proof, splits=prove_splits(Path(folder), vocabulary, architecture))


def prove_file(path: Path, vocabulary: Vocabulary) -> TokenProof:
    """Prove that the GGUF file PATH gives the ids of VOCABULARY's source. Raises TokenizerMismatch with an example."""
    texts = stress_texts(vocabulary)
    tokenizer = source_tokenizer(vocabulary.spec)
    control = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    tokenizer.encode_special_tokens = True
    plain = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    bos, eos = [vocabulary.bos] * vocabulary.add_bos, [vocabulary.eos] * vocabulary.add_eos
    ends = [[*bos, *ids, *eos] for ids in control]
    sets = [
        {"texts": texts, "add_special": False, "parse_special": True},
        {"texts": texts, "add_special": False, "parse_special": False},
        {"texts": texts, "add_special": True, "parse_special": True},
    ]
    answer = ask(path, sets)
    compare(texts, control, answer["ids"][0], "special tokens read as control")
    compare(texts, plain, answer["ids"][1], "special tokens read as text")
    compare(texts, ends, answer["ids"][2], "BOS and EOS added")
    if answer["vocab"] != len(vocabulary.tokens):
        raise TokenizerMismatch(f"the file has {answer['vocab']} tokens, and {len(vocabulary.tokens)} are expected")
    if unknown := sorted(set(vocabulary.stop_ids) - set(answer["eog"])):
        shown = ", ".join(repr(vocabulary.tokens[token]) for token in unknown)
        raise TokenizerMismatch(
            f"the runtime would not stop at the end tokens {shown}", hint="name fewer in generation_config.json"
        )
    return TokenProof(texts=len(texts), splits=0, end_tokens=tuple(answer["eog"]))


def ask(path: Path, sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return libllama's answer for SETS of texts."""
    request = {"op": "tokenize", "model": str(path), "sets": list(sets)}
    try:
        return run_native(request, what="checking the tokenizer")
    except ChildFailed as error:
        raise TokenizerMismatch(f"libllama does not load the vocabulary: {error.reason}", hint=error.hint) from error


def compare(texts: Sequence[str], expected: Sequence[Sequence[int]], found: Sequence[Sequence[int]], how: str) -> None:
    """Raise TokenizerMismatch that shows the shortest text with other ids."""
    wrong = [index for index in range(len(texts)) if list(expected[index]) != list(found[index])]
    if wrong:
        at = min(wrong, key=lambda index: len(texts[index]))
        raise TokenizerMismatch(
            f"{len(wrong)} of {len(texts)} texts get other token ids from the file than from the tokenizer ({how}), such as {texts[at]!r}: "
            f"{short(found[at])} instead of {short(expected[at])}",
            hint="the runtime has no pre-tokenizer that splits text in the same way",
        )


def short(ids: Sequence[int]) -> str:
    """Return the first ids as text."""
    return f"[{', '.join(map(str, ids[:12]))}{', …' if len(ids) > 12 else ''}]"


def prove_splits(folder: Path, vocabulary: Vocabulary, architecture: str) -> int:
    """Prove that the pre-tokenizer cuts where the source's does; return the number of texts.

    The vocabulary of the probe is the 256 bytes and every pair of neighbours in the texts: a pair merges unless there is a cut. Once
    with the pairs ranked in order and once reversed, because a pair also stays apart when one of its bytes has merged elsewhere.
    """
    texts = stress_texts(vocabulary)
    alphabet = byte_alphabet()
    encoded = ["".join(alphabet[byte] for byte in text.encode()) for text in texts]
    pairs = sorted({line[at : at + 2] for line in encoded for at in range(len(line) - 1)})
    for name, order in (("ascending", pairs), ("descending", pairs[::-1])):
        probe = probe_vocabulary(vocabulary, [*alphabet.values()], order)
        path = folder / f"{name}.gguf"
        write_vocabulary(path, architecture, probe, {**PROBE_KEYS, "vocab_size": len(probe.tokens)})
        expected = [
            encoding.ids for encoding in source_tokenizer(probe.spec).encode_batch(texts, add_special_tokens=False)
        ]
        found = ask(path, [{"texts": texts, "add_special": False, "parse_special": False}])["ids"][0]
        compare(texts, expected, found, f"places of the cuts of {vocabulary.pre!r}")
    return len(texts)


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
        unk=None,
        pad=None,
        eot=None,
        eom=None,
        add_bos=False,
        add_eos=False,
        chat_template=None,
        named_templates={},
        spec=spec,
    )
