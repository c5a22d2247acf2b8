"""Hold an answer to a form: which tokens may come next, as llguidance says, put onto the logits before they are sampled.

Everything that cannot be enforced is a ConstraintError when it is compiled, in the caller's thread; nothing is left out silently.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeai.engines.schema_check import enforceable, read_json
from edgeai.errors import ConstraintError
from edgeai.types import Constraint, FinishReason, Notice, is_unicode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Forced", "Grammars", "TokenMask", "check", "incomplete"]

MAX_SOURCE = 1_000_000  # characters; llguidance's own limits are on what a source becomes
KEPT = 32  # compiled constraints per model
MAX_STATES = 50_000  # of a lexer, of 1–2 kB each; llguidance's own 250,000 would let one request take half a gigabyte
JSON_OPTIONS = {
    "whitespace_flexible": False,  # small models loop on whitespace
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
    # No \\u: an escaped name of a property (\\u0061 for a) would pass as another one, and a text could be half of a surrogate pair.
    "json_allowed_escapes": 'nrbtf"\\',
}
"""How JSON is written; llguidance, docs/json_schema.md."""


def grammar_of(constraint: Constraint) -> str:
    """Return CONSTRAINT in llguidance's own form. Raises ConstraintError."""
    from llguidance import LLMatcher

    source = constraint.source
    if len(source) > MAX_SOURCE:
        raise ConstraintError(
            f"the {_NAMES[constraint.kind]} has {len(source)} characters", hint=f"at most {MAX_SOURCE} are read"
        )
    if not is_unicode(source):
        raise ConstraintError(
            f"the {_NAMES[constraint.kind]} is not valid Unicode", hint="write it in whole characters"
        )
    if constraint.kind == "json_schema":
        schema = enforceable(read_json(source, "the schema"))
        try:
            return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_OPTIONS))
        except ValueError as error:  # nested too deeply
            raise _error(constraint, str(error)) from error
    if not source:
        raise ConstraintError(f"the {_NAMES[constraint.kind]} is empty", hint="leave it out for an answer of any form")
    if constraint.kind == "choices":
        return str(LLMatcher.grammar_from_lark(_lark_of_choices(source)))
    if constraint.kind == "regex":
        return str(LLMatcher.grammar_from_regex(narrowed(source)))
    return str(LLMatcher.grammar_from_lark(_checked_lark(source)))


_NAMES = {"json_schema": "schema", "regex": "regex", "lark": "grammar", "choices": "list of choices"}


def narrowed(regex: str) -> str:
    """Return REGEX with \\d and \\w as what whoever writes them means: 0-9, and letters, 0-9 and _.

    In Rust \\d{4} would match ٣ and 🯸, and \\w half of a letter. What matches the result matches REGEX in Python's re, too.
    """
    parts, done, inside, negated = [], 0, False, False
    for match in re.finditer(r"\\.|\[\^?|\]", regex, re.DOTALL):
        found = match.group()
        if found.startswith("[") and not inside:
            inside, negated = True, found == "[^"
        elif found == "]":
            inside = False
        elif found in _NARROW and not (inside and negated):
            parts += [regex[done : match.start()], _NARROW[found] if inside else f"[{_NARROW[found]}]"]
            done = match.end()
    return "".join([*parts, regex[done:]])


_NARROW = {r"\d": "0-9", r"\w": r"\p{L}0-9_"}


def _lark_of_choices(source: str) -> str:
    """Return a grammar with one terminal: as several literals in a rule, a choice that begins another one would end there."""
    choices = read_json(source, "the list of choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ConstraintError("choices must be a list of texts, at least one", hint='as ["yes", "no"]')
    if "" in choices:
        raise ConstraintError("the choice '' is not possible", hint="a choice must have at least one character")
    if broken := next((choice for choice in choices if not is_unicode(choice)), None):
        raise ConstraintError(f"the choice {broken!r} is not valid Unicode", hint="write it in whole characters")
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(choice) for choice in choices)


_LARK_TOKENS = re.compile(
    r'"(?:\\.|[^"\\\n])*"'  # a text
    r"|/(?![/*])(?:\\.|[^/\\\n])+/"  # a regex
    r"|//[^\n]*|\#[^\n]*"  # comments
    r"|(?P<json>%json\s*)(?=\{)"
    r"|(?P<temperature>\[[^\]\n]*\btemperature\s*=)"
)


def _checked_lark(source: str) -> str:
    """Return the grammar with the schemas in it made enforceable. Raises ConstraintError for options that would do nothing."""
    parts, done = [], 0
    while match := _LARK_TOKENS.search(source, done):
        parts.append(source[done : match.end()])
        done = match.end()
        if match["temperature"]:
            raise ConstraintError(
                "temperature inside a grammar has no effect", hint="set the temperature of the answer"
            )
        if match["json"]:
            try:
                schema, done = json.JSONDecoder().raw_decode(source, done)
            except (ValueError, RecursionError) as error:
                raise ConstraintError(
                    f"%json is not followed by valid JSON: {error}", hint="write the schema behind it: %json {…}"
                ) from error
            parts.append(json.dumps(enforceable(schema) | {"x-guidance": JSON_OPTIONS}))
    return "".join([*parts, source[done:]])


def check(constraint: Constraint) -> None:
    """Raise ConstraintError for what is wrong with CONSTRAINT whatever the model; needs none."""
    from llguidance import LLMatcher

    wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar_of(constraint))
    # Tokens that a grammar names can be looked up only in a model's vocabulary.
    messages = [message for message in messages if wrong or not message.startswith("no tokenizer")]
    if messages:
        raise _error(constraint, messages[0])


def _error(constraint: Constraint, message: str) -> ConstraintError:
    """Return llguidance's message without the drawing of where it happened."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason = next(
        (line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0] if lines else "?"
    )
    if len(reason) > 300:
        reason = f"{reason[:300]}…"
    where = re.match(r"(?:at )?\d+\(\d+\)", message)
    if constraint.kind == "lark" and where and where.group() not in reason:
        reason = f"{where.group()}: {reason}"
    shown = constraint.source if len(constraint.source) <= 60 else f"{constraint.source[:57]}…"
    named = f" {shown!r}" if constraint.kind == "regex" else ""
    return ConstraintError(
        f"the {_NAMES[constraint.kind]}{named} cannot be enforced: {reason}", hint=_HINTS.get(constraint.kind)
    )


_HINTS = {
    "json_schema": "see json-schema.org for the keyword; a pattern is a regex without look-around and backreferences",
    "regex": "the syntax is that of Rust's regex crate: no look-around, no backreferences",
    "lark": "the syntax is llguidance's Lark: rules are lowercase, terminals uppercase, and it begins at the rule start",
}


class Grammars:
    """Compiles constraints for one vocabulary, and keeps those that were used last. Safe for many threads.

    BUILD makes the llguidance.LLTokenizer of the vocabulary. It is called once, when the first constraint comes: it takes between a tenth
    of a second and a second.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._kept: OrderedDict[Constraint, Any] = OrderedDict()

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The vocabulary as llguidance needs it. Raises ConstraintError where it cannot be used (that of WordPiece, for example)."""
        try:
            return self._build()
        except ValueError as error:
            raise ConstraintError(
                f"this model's vocabulary cannot hold an answer to a form: {error}",
                hint="use a model of another family",
            ) from error

    def compile(self, constraint: Constraint) -> TokenMask:
        """Return what holds one answer to CONSTRAINT. Raises ConstraintError for what cannot be enforced with this vocabulary."""
        with self._lock:
            matcher = self._kept.get(constraint)
            if matcher is None:
                matcher = self._kept[constraint] = self._compile(constraint)
            self._kept.move_to_end(constraint)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            value = constraint.kind == "json_schema"
            return TokenMask(matcher.deep_copy(), matcher.deep_copy(), self.tokenizer, value=value)

    def _compile(self, constraint: Constraint) -> Any:
        check(constraint)  # what is wrong for all models needs no vocabulary
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_lexer_states=MAX_STATES)
        matcher = LLMatcher(self.tokenizer, grammar_of(constraint), log_level=0, limits=limits)
        if matcher.is_error() or (warnings := matcher.get_grammar_warnings()):
            raise _error(constraint, matcher.get_error() or warnings[0])
        trial = matcher.deep_copy()
        if not any(trial.compute_bitmask()) or trial.is_error():
            raise _error(constraint, "no text at all matches it")
        return matcher


class TokenMask:
    """Holds one answer to its form, a JSON VALUE or any text: `apply` before each draw, `accept` after it. Used by one thread at a time."""

    def __init__(self, matcher: Any, fresh: Any, tokenizer: Any, *, value: bool) -> None:
        self._matcher = matcher
        self._value = value
        self._fresh = fresh
        self._tokenizer = tokenizer
        self._addends, self._buffer, self._bits = _scratch(int(tokenizer.vocab_size))

    def apply(self, logits: npt.NDArray[np.float32]) -> None:
        """Set LOGITS, (vocab,) and changed in place, to minus infinity for every token that may not come next.

        Log-probabilities of the model are to be read before. Raises ConstraintError where no token can go on.
        """
        import numpy as np

        bits = self._bits
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self._matcher.is_error() or not bits.any():
            raise self._lost()
        # Adding 0 or -inf from a table of all bytes is several times as fast as assigning where a mask says so.
        np.take(self._addends, bits.view(np.uint8), axis=0, out=self._buffer, mode="clip")
        known = min(logits.size, self._buffer.size)
        np.add(logits[:known], self._buffer.reshape(-1)[:known], out=logits[:known])
        logits[known:] = -np.inf

    def accept(self, token: int) -> None:
        """Go on after TOKEN, which was drawn; an end marker is one. Raises ConstraintError for a token that was not allowed."""
        if not self._matcher.consume_token(token):
            raise self._lost()

    def forced(self) -> list[int]:
        """Return the tokens that must come next whatever the model says: they need no sampling, and can be decoded in one batch.

        None where there is a choice. Each must still be given to `accept`.
        """
        return list(self._matcher.compute_ff_tokens())

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing but its end may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def whole(self) -> bool:
        """Whether the answer has its form if it ends here."""
        return bool(self._matcher.is_accepting())

    def allows(self, text: str, *, cut: bool = False) -> bool:
        """Whether TEXT, all of an answer, has the form; found anew, from its characters.

        A JSON value that was CUT where it could have gone on is another one than was meant: 10 is a number, and the beginning of 1024.
        """
        matcher, ids = self._fresh.deep_copy(), self._tokenizer.greedy_tokenize(text)
        if matcher.try_consume_tokens(ids) != len(ids) or not matcher.is_accepting():
            return False
        return not (cut and self._value) or bool(matcher.is_stopped())

    def _lost(self) -> ConstraintError:
        reason = (self._matcher.get_error() or "no token of the vocabulary may follow").splitlines()[0]
        return ConstraintError(
            f"the answer cannot go on in its form: {reason[:300]}",
            hint="make the schema or grammar simpler; a logit bias must not ban all that is allowed",
        )


class Forced:
    """Guesses the tokens that the form leaves no choice in, so that they are computed in one batch.

    They are drawn as all others are, since the model may write the same text in other tokens: no answer is changed by a guess.
    """

    def __init__(self, mask: TokenMask) -> None:
        self._mask = mask

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:  # noqa: ARG002 - the mask knows where the answer is
        """Return up to MOST tokens that come next."""
        return self._mask.forced()[:most]

    def close(self) -> None:
        """Nothing is held."""


@functools.cache
def _table() -> npt.NDArray[np.float32]:
    """Return for each byte of a mask what is added to its eight logits, (256, 8)."""
    import numpy as np

    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits > 0, 0, -np.inf).astype(np.float32)


def _scratch(n_vocab: int) -> tuple[Any, Any, Any]:
    import numpy as np

    words = (n_vocab + 31) // 32
    return _table(), np.empty((words * 4, 8), np.float32), np.zeros(words, np.int32)


def incomplete(mask: TokenMask | None, text: str, reason: FinishReason) -> tuple[Notice, ...]:
    """Return the notice that TEXT, an answer that ended for REASON, does not have the form that MASK holds it to; nothing if it does."""
    if mask is None or mask.allows(text, cut=reason != "stop"):
        return ()
    return (
        Notice(code="incomplete-output", message=f"the answer ended before it was whole: {_ENDS.get(reason, reason)}"),
    )


_ENDS: Mapping[FinishReason, str] = {
    "length": "the limit of tokens, or the context, cut it",
    "timeout": "the limit of time cut it",
    "stop": "a stop text ended it",
}
