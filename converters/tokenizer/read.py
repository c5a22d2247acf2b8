"""Read the tokenizer of a checkpoint: find its kind, and put together what the kind and the named tokens say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.errors import UnsupportedModel
from converters.pretokenizer import flatten
from converters.tokenizer.bytelevel import byte_level
from converters.tokenizer.kind import Kind
from converters.tokenizer.sentencepiece import sentence_piece
from converters.tokenizer.settle import settle
from converters.tokenizer.source import check_ids, read_spec
from converters.tokenizer.special import (
    Warnings,
    chat_templates,
    ends_of,
    flags_differ,
    mark_control,
    named_ids,
    stop_tokens,
)
from converters.tokenizer.strip import with_strips
from converters.tokenizer.table import add_tokens, check_size, drop_modalities, pad
from converters.tokenizer.unigram import unigram
from converters.tokenizer.vocabulary import Vocabulary
from converters.tokenizer.wordpiece import word_piece

__all__ = ["read_vocabulary"]

Reader = Callable[[Mapping[str, Any], Warnings], Kind]


def read_vocabulary(checkpoint: Checkpoint, vocab_size: int, *, allow_inexact: bool = False) -> Vocabulary:
    """Return the vocabulary of CHECKPOINT, padded to VOCAB_SIZE.

    Raises UnsupportedModel for a tokenizer that is not known, BrokenCheckpoint for one that is damaged or of another model, and
    TokenizerMismatch for one that the runtime can only do nearly, unless ALLOW_INEXACT: then a warning has the measured rate.
    """
    vocabulary, kind = assemble(checkpoint, vocab_size)
    if kind.doubts or kind.hazards or allow_inexact:
        return settle(vocabulary, kind, allow_inexact=allow_inexact)
    return vocabulary


def assemble(checkpoint: Checkpoint, vocab_size: int) -> tuple[Vocabulary, Kind]:
    """Return the vocabulary of CHECKPOINT as far as its files tell, and its kind."""
    spec = read_spec(checkpoint)
    warnings: Warnings = []
    if gone := drop_modalities(spec, vocab_size):
        message = (
            f"the tokens {', '.join(map(repr, gone))} stand for no text, and the model has no rows for them: left out"
        )
        warnings.append(("tokenizer-modality", message))
    mark_control(spec, warnings)
    kind = with_strips(reader_of(spec)(spec, warnings), spec)
    special = named_ids(checkpoint, spec, warnings)
    table = dict(kind.table)
    add_tokens(table, spec)
    real_size = check_size(table, vocab_size)
    tokens, types = pad(table, vocab_size)
    check_ids(spec)
    named_eos = special["eos_token"]
    ends = surround(checkpoint, kind, ends_of(spec), special, warnings)
    eos, eot, eom, stops = stop_tokens(checkpoint, special["eos_token"], named_eos, tokens, types, warnings)
    if eos is None and not kind.embeds:
        raise UnsupportedModel(
            f"nothing says which token ends a text: no eos_token and no eos_token_id in {str(checkpoint.path)!r}",
            hint="name an eos_token in tokenizer_config.json",
        )
    default, named = chat_templates(checkpoint)
    scores = kind.scores
    vocabulary = Vocabulary(
        model=kind.model,
        pre=kind.pre,
        tokens=tokens,
        types=types,
        merges=kind.merges,
        scores=None if scores is None else tuple(scores.get(token, kind.other_score) for token in range(len(tokens))),
        real_size=real_size,
        bos=special["bos_token"],
        eos=eos,
        unk=kind.unk if special["unk_token"] is None else special["unk_token"],
        pad=special["pad_token"],
        sep=special["sep_token"],
        cls=special["cls_token"],
        mask=special["mask_token"],
        eot=eot,
        eom=eom,
        stop_ids=stops,
        normalizer=kind.normalizer,
        chat_template=default,
        named_templates=named,
        spec=spec,
        warnings=tuple(warnings),
        **ends,
        **kind.fields,
    )
    return vocabulary, kind


def reader_of(spec: Mapping[str, Any]) -> Reader:
    """Return the function that reads the kind of tokenizer that SPEC is."""
    model = spec["model"]
    name = model.get("type") or guess(model)
    if name == "BPE":
        return sentence_piece if is_sentence_piece(spec) else byte_level
    if isinstance(name, str) and name in READERS:
        return READERS[name]
    raise UnsupportedModel(
        f"the tokenizer model {name!r} is not known",
        hint="known: BPE (byte-level or SentencePiece), WordPiece, Unigram",
    )


READERS: Mapping[str, Reader] = {"WordPiece": word_piece, "Unigram": unigram}


def guess(model: Mapping[str, Any]) -> str | None:
    """Return the model that an old tokenizer.json without a name for it has."""
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model.get("vocab"), list) else None


def is_sentence_piece(spec: Mapping[str, Any]) -> bool:
    """Whether the BPE of SPEC is over characters, with bytes in angle brackets, and not over the bytes of byte-level BPE."""
    steps = flatten(spec.get("pre_tokenizer"))
    return bool(spec["model"].get("byte_fallback")) or any(step.get("type") == "Metaspace" for step in steps)


def surround(
    checkpoint: Checkpoint,
    kind: Kind,
    ends: tuple[tuple[int, ...], tuple[int, ...]],
    special: dict[str, int | None],
    warnings: Warnings,
) -> dict[str, Any]:
    """Return the fields about ids around a text; the names of SPECIAL are set to them where the runtime looks there.

    libllama puts at most one id before a text, that of BOS, and one after it: EOS, or SEP for WordPiece.
    """
    before, after = ends
    last = "sep_token" if kind.model == "bert" else "eos_token"
    if len(before) > 1 or len(after) > 1:
        raise UnsupportedModel(
            f"the tokenizer's post_processor puts {list(before)} before a text and {list(after)} after it",
            hint="known: nothing, one token before, one token after",
        )
    for name, ids in (("bos_token", before), (last, after)):
        if ids and special[name] not in (None, ids[0]):
            message = (
                f"the tokenizer puts the token {ids[0]} where its {name} is {special[name]}: the file names the former"
            )
            warnings.append(("tokenizer-ends", message))
        special[name] = ids[0] if ids else special[name]
    add_bos, add_eos = bool(before), bool(after) and kind.model != "bert"
    flags_differ(checkpoint, {"add_bos_token": add_bos, "add_eos_token": add_eos}, warnings)
    found: dict[str, Any] = {"before": before, "after": after, "add_bos": add_bos, "add_eos": add_eos}
    if add_eos and checkpoint.architecture.endswith("ForSequenceClassification"):
        # Between the two texts of a pair RoBERTa has a separator more: </s></s> (RobertaProcessing in tokenizers).
        found["add_sep"] = True
    return found
