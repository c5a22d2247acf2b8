"""Measure a tokenizer of which it is not known that the runtime does as it does, and decide whether it may be converted.

    exact after all         a warning that says what was not known
    known hazards only      a warning with the rate: the runtime is known to differ there for every model of the kind
    anything else           TokenizerMismatch with the rate; a warning with the rate where that is allowed

A wrong pre-tokenizer can abort libllama, so everything runs in a child process.
"""

from __future__ import annotations

from dataclasses import replace

from converters.errors import TokenizerMismatch
from converters.tokenizer.kind import Hazard, Kind
from converters.tokenizer.vocabulary import Inexact, Vocabulary

__all__ = ["ALLOW", "settle"]

ALLOW = "--allow-inexact-tokenizer"


def settle(vocabulary: Vocabulary, kind: Kind, *, allow_inexact: bool) -> Vocabulary:
    """Return VOCABULARY with the nearest pre-tokenizer of KIND, and with what was measured about it.

    Raises TokenizerMismatch when it gives other ids where no known hazard is, unless ALLOW_INEXACT.
    """
    from converters import tokenmeasure  # it needs the vocabulary that is made here

    if kind.choices:
        nearest, found = tokenmeasure.nearest(vocabulary, kind.choices)
    else:
        nearest, found = vocabulary, tokenmeasure.measure(vocabulary)
    doubts = "; ".join(kind.doubts)
    if found is None:
        if not doubts:
            return nearest
        message = f"{doubts}: not known here, but measured, and the runtime's {label(nearest)} gives equal token ids"
        return warn(nearest, "tokenizer-measured", message)
    reasons = explained(found, kind.hazards)
    inexact = replace(found, reason="; ".join(filter(None, [doubts, *reasons])))
    unexplained = not covers(found, kind.hazards)
    if unexplained and not allow_inexact:
        raise TokenizerMismatch(
            f"the runtime has no tokenizer that does as the source's ({inexact.reason or 'reason not known'}): with the nearest, "
            f"{label(nearest)}, {inexact.summary()}, such as {inexact.example}",
            hint=f"{ALLOW} converts it all the same; the model then reads such texts in other pieces than it was trained on",
        )
    message = f"{inexact.summary()} from the file than from the source ({inexact.reason}), such as {inexact.example}"
    return warn(replace(nearest, inexact=inexact), "tokenizer-inexact", message)


def label(vocabulary: Vocabulary) -> str:
    """Return the name of the runtime's tokenizer."""
    return f"pre {vocabulary.pre!r}" if vocabulary.model == "gpt2" else f"tokenizer {vocabulary.model!r}"


def warn(vocabulary: Vocabulary, code: str, message: str) -> Vocabulary:
    """Return VOCABULARY with one more warning."""
    return replace(vocabulary, warnings=(*vocabulary.warnings, (code, message)))


def wrong_texts(found: Inexact) -> set[str]:
    """Return the texts with other ids in any reading."""
    return {text for texts in found.found.values() for text in texts}


def explained(found: Inexact, hazards: tuple[Hazard, ...]) -> list[str]:
    """Return the reasons of the hazards that are in texts with other ids."""
    texts = wrong_texts(found)
    return [hazard.reason for hazard in hazards if any(hazard.in_text(text) for text in texts)]


def covers(found: Inexact, hazards: tuple[Hazard, ...]) -> bool:
    """Whether each text with other ids has a hazard in it."""
    return all(any(hazard.in_text(text) for hazard in hazards) for text in wrong_texts(found))
