"""The values that pass between the layers: messages in, chunks out, and what is said about them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real
from typing import Any, Literal, NotRequired, Protocol, TypedDict, get_args

from edgeai.errors import UsageError

__all__ = [
    "SAMPLING",
    "Chunk",
    "ChunkKind",
    "Completion",
    "Constraint",
    "FinishReason",
    "GenerationConfig",
    "Message",
    "Notice",
    "Overflow",
    "Prediction",
    "Progress",
    "Prompt",
    "Report",
    "RouteOptions",
    "Row",
    "Served",
    "Speculation",
    "Timings",
    "TokenLogprob",
    "ToolCall",
    "Usage",
    "check_numbers",
    "check_text",
    "is_whole",
    "no_progress",
]

FinishReason = Literal["stop", "length", "cancelled", "timeout", "tool_calls", "content_filter", "interrupted"]
"""`length`: max_tokens or the end of the context; `timeout`: max_seconds. Of endpoints alone: `tool_calls`, the model wants tools to be
called; `content_filter`, the endpoint cut the answer; `interrupted`, the stream broke after text of it had been given."""

Overflow = Literal["error", "truncate-middle", "rolling"]
"""What happens to a prompt that is longer than the context. `rolling` drops the oldest messages and keeps the system message."""

Speculation = Literal["off", "lookup", "draft"]
"""Where guesses at the next tokens come from: nowhere, the text so far (prompt lookup), or a draft model."""


class Message(TypedDict):
    """One turn of a conversation, in the OpenAI shape.

    `private` keeps the whole conversation on this machine. Tools are for endpoints alone: `tool_calls` is what the assistant wanted called,
    as OpenAI's API has it, and a turn of the role "tool" is the result of the call `tool_call_id`.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    private: NotRequired[bool]
    tool_calls: NotRequired[Sequence[Mapping[str, Any]]]
    tool_call_id: NotRequired[str]


Prompt = str | Sequence[Message]
"""A string is completed as it is; messages go through the model's chat template."""


class Progress(Protocol):
    """Told how far a long step is; never from more than one thread at a time."""

    def __call__(self, label: str, done: float, total: float | None, unit: Literal["", "B"] = "") -> None:
        """Report DONE of TOTAL (None: not known) in UNIT: "B" is bytes, "" a plain count."""


def no_progress(label: str, done: float, total: float | None, unit: Literal["", "B"] = "") -> None:
    """Take a progress report and show nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that is less than was asked for: a fallback, a substitution, an unproved step."""

    code: str
    message: str


def check_numbers(values: Any, *, whole: Iterable[str], real: Iterable[str] = ()) -> None:
    """Raise UsageError for a field of the dataclass VALUES that is no whole number (of WHOLE) or no number (of REAL).

    None may stand where it is the default; numbers of numpy are numbers.
    """
    for names, is_one, rule in ((whole, is_whole, "a whole number"), (real, _is_number, "a number")):
        for name in names:
            value = getattr(values, name)
            if not (is_one(value) or (value is None and type(values).__dataclass_fields__[name].default is None)):
                raise UsageError(f"{name} {value!r} is not possible", hint=f"{name} must be {rule}")


def is_unicode(text: str) -> bool:
    """Whether TEXT has no half of a surrogate pair, which no encoding of it could hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def is_whole(value: Any) -> bool:
    """Whether VALUE is a whole number, of Python or numpy; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_text(text: Any) -> None:
    """Raise UsageError for TEXT that is none."""
    if not isinstance(text, str):
        raise UsageError(f"{text!r:.60} is not a text", hint="give a str")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_adapter(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str) and _is_number(item[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteOptions:
    """What a caller wants of one routed request. None leaves it to the configuration.

    `scope`: "auto", "local", or "cloud/NAME" for one endpoint. `policy`: a name of config.POLICIES. `private`: it stays on this machine.
    `redact`: placeholders for what is private, rather than staying here. `resume_local`: an answer that breaks off is continued here.
    `files`: the paths that texts in the prompt came from, and the text of each.
    """

    scope: str = "auto"
    policy: str | None = None
    private: bool = False
    redact: bool | None = None
    resume_local: bool | None = None
    files: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        files = isinstance(self.files, tuple | list) and all(
            isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(part, str) for part in item)
            for item in self.files
        )
        for name, ok, rule in (
            ("scope", isinstance(self.scope, str), "the name of a route, like 'cloud/NAME'"),
            ("policy", isinstance(self.policy, str | None), "the name of a policy"),
            ("private", isinstance(self.private, bool), "True or False"),
            ("redact", isinstance(self.redact, bool | None), "True or False"),
            ("resume_local", isinstance(self.resume_local, bool | None), "True or False"),
            ("files", files, "pairs of a path and its text"),
        ):
            if not ok:
                raise UsageError(f"{name} {getattr(self, name)!r:.60} is not possible", hint=f"{name} must be {rule}")


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")
"""The fields of GenerationConfig that the makers of a model recommend values for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A form that the answer must have: `source` is JSON text (a schema, or a list of strings for choices), a regex or a Lark grammar."""

    kind: Literal["json_schema", "regex", "lark", "choices"]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """How to answer. `temperature` 0 is greedy; `max_tokens` None ends at the context; `seed` None draws one.

    The order of the samplers and the defaults of top_k, top_p and min_p are llama.cpp's (`common/common.h`).

    `max_seconds`: wall-clock limit from submission; the answer then ends with `timeout`.
    `logprobs`: how many alternatives to report at each token, 0 for the token alone, None for nothing.
    `logit_bias`: token id → what is added to its logit (-100 or less bans it, as in OpenAI's API).
    `adapters`: (name, scale) of the LoRA adapters, loaded with the model, that this answer uses.
    `prefix_cache`: whether kept prompts may be reused and this one kept.
    `tools`: what the model may call, as OpenAI's API has them; for endpoints alone.
    `prefill`: text that the answer begins with as if the model had written it; it is not given again.
    `route`: what a router is told of this request; engines of one model have no use for it.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_seconds: float | None = None
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    constraint: Constraint | None = None
    overflow: Overflow = "error"
    adapters: tuple[tuple[str, float], ...] = ()
    speculation: Speculation = "off"
    prefix_cache: bool = True
    tools: tuple[Mapping[str, Any], ...] = ()
    prefill: str = ""
    route: RouteOptions | None = None

    def __post_init__(self) -> None:
        self._check_kinds()
        limits: tuple[tuple[str, bool, str], ...] = (
            ("max_tokens", self.max_tokens is None or 1 <= self.max_tokens <= 10**9, "between 1 and 1000000000"),
            ("temperature", 0 <= self.temperature <= 100, "between 0 and 100"),
            ("top_k", 0 <= self.top_k <= 10**6, "between 0 (off) and 1000000"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p < 1, "at least 0 and below 1"),
            ("repeat_penalty", 0 < self.repeat_penalty <= 10, "above 0 and at most 10"),
            ("seed", self.seed is None or 0 <= self.seed < 2**32 - 1, "between 0 and 4294967294"),
            ("max_seconds", self.max_seconds is None or 0 < self.max_seconds <= 10**9, "above 0"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= 20, "between 0 and 20"),
            ("overflow", self.overflow in get_args(Overflow), f"one of {', '.join(get_args(Overflow))}"),
            ("speculation", self.speculation in get_args(Speculation), f"one of {', '.join(get_args(Speculation))}"),
            ("logit_bias", all(-1000 <= bias <= 1000 for bias in self.logit_bias.values()), "between -1000 and 1000"),
            ("adapters", all(math.isfinite(scale) for _, scale in self.adapters), "names with finite scales"),
        )
        for name, ok, rule in limits:
            if not ok:  # NaN fails every comparison, so it ends here too
                raise UsageError(f"{name} {getattr(self, name)!r} is not possible", hint=f"{name} must be {rule}")
        if any(not text for text in self.stop):
            raise UsageError("stop '' is not possible", hint="a stop string must have at least one character")
        if broken := next((text for text in self.stop if not is_unicode(text)), None):
            raise UsageError(f"stop {broken!r} is not valid Unicode", hint="no answer can have half of a character")

    def _check_kinds(self) -> None:
        check_numbers(
            self,
            whole=("max_tokens", "top_k", "seed", "logprobs"),
            real=("temperature", "top_p", "min_p", "repeat_penalty", "max_seconds"),
        )
        kinds: tuple[tuple[str, bool, str], ...] = (
            ("stop", all(isinstance(text, str) for text in self.stop), "texts"),
            (
                "logit_bias",
                isinstance(self.logit_bias, Mapping)
                and all(is_whole(id_) and _is_number(bias) for id_, bias in self.logit_bias.items()),
                "a dict of token ids and numbers, like {5: -100}",
            ),
            (
                "adapters",
                isinstance(self.adapters, tuple | list) and all(_is_adapter(item) for item in self.adapters),
                "pairs of a name and a scale, like ('law', 1.0)",
            ),
            ("constraint", isinstance(self.constraint, Constraint | None), "a Constraint; schema= takes a JSON schema"),
            ("prefix_cache", isinstance(self.prefix_cache, bool), "True or False"),
            ("prefill", isinstance(self.prefill, str), "a text"),
            ("route", isinstance(self.route, RouteOptions | None), "RouteOptions"),
            (
                "tools",
                isinstance(self.tools, tuple | list) and all(isinstance(tool, Mapping) for tool in self.tools),
                "tools as OpenAI's API has them",
            ),
        )
        for name, ok, rule in kinds:
            if not ok:
                raise UsageError(f"{name} {getattr(self, name)!r} is not possible", hint=f"{name} must be {rule}")

    def with_(self, **changes: Any) -> GenerationConfig:
        """Return a copy with CHANGES, checked again."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one request: `cached_tokens` of the prompt were not computed again, `truncated_tokens` were dropped before."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    truncated_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Wall-clock times in seconds and rates in tokens per second; a rate of a phase that did not happen is None.

    `queue_s`: from submission until the work began. `drafted`, `accepted`: tokens that speculation guessed, and those that were right.
    """

    load_s: float
    ttft_s: float | None
    prompt_tok_s: float | None
    gen_tok_s: float | None
    total_s: float
    queue_s: float = 0.0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token of an answer with its log-probability in nats, as the model gave it: before temperature, bias and constraint.

    `top` are the likeliest tokens at its place, (id, text, log-probability), likeliest first.
    """

    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model wants; `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Who made an answer, where more than one could: the model by its routed name, what computed it, and its plan."""

    model: str
    backend: str
    device: str
    plan: Mapping[str, Any] = field(default_factory=dict)


ChunkKind = Literal["text", "tool_calls", "warning", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of an answer. The last one, and only that one, has a finish reason, usage and timings.

    `tool_calls` are whole calls, each given once. Where the request was routed, the last chunk also says who made the answer (`served`) and
    how that was decided (`route`).
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    notices: tuple[Notice, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    served: Served | None = None
    route: Mapping[str, Any] | None = None

    @property
    def kind(self) -> ChunkKind:
        """What this event is: the `end` of the answer, `tool_calls`, a `warning` without text, or `text`."""
        if self.finish_reason is not None:
            return "end"
        if self.tool_calls:
            return "tool_calls"
        return "warning" if self.notices and not self.text else "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer with everything that is known about how it came to be."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    model: str
    backend: str
    device: str
    plan: Mapping[str, Any]
    warnings: tuple[Notice, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    route: Mapping[str, Any] | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `edgeai run --json` prints; without log-probabilities or calls of tools it has no key for them."""
        found = asdict(self) | {"warnings": [asdict(notice) for notice in self.warnings]}
        if self.logprobs is None:
            del found["logprobs"]
        if not self.tool_calls:
            del found["tool_calls"]
        return found


@dataclass(slots=True)
class Prediction:
    """What a classifier or a regression says of one item.

    Of a classifier `names` are the labels, `logits` the outputs in their order, `index` the greatest of them and `score` its
    probability. Of a regression `names` are the targets and `values` what they are, in their units; of a model that does not say what it
    gives, `values` are its output in the order of memory and there are no names. `warnings` are of this item.
    """

    # Not frozen: Python then takes 0.6 µs more to make one, a tenth of what a small model takes for all of its work.

    names: tuple[str, ...]
    logits: tuple[float, ...] = ()
    index: int | None = None
    score: float | None = None
    values: tuple[float, ...] = ()
    warnings: tuple[Notice, ...] = ()

    @property
    def label(self) -> str | None:
        """The likeliest label; None of a regression."""
        return None if self.index is None else self.names[self.index]

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each label, the softmax of the logits in float64; nothing of a regression."""
        if not self.logits:
            return {}
        most = max(self.logits)
        parts = [math.exp(logit - most) for logit in self.logits]
        total = math.fsum(parts)
        return {name: part / total for name, part in zip(self.names, parts, strict=True)}

    @property
    def value(self) -> float:
        """The only value. Raises UsageError where there are several, or none."""
        if len(self.values) != 1:
            raise UsageError(f"there are {len(self.values)} values, not one", hint="use values, probabilities or label")
        return self.values[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON-ready values."""
        if self.index is not None:
            return {"label": self.label, "index": self.index, "score": self.score, "probabilities": self.probabilities}
        return {"values": dict(zip(self.names, self.values, strict=True)) if self.names else list(self.values)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a report: a measured value, the limit it had to meet, and whether it did.

    `limit` is None for a value that is only stated; `interval` is where the value lies with 95 % confidence.
    """

    name: str
    value: float | str
    limit: str | None = None
    ok: bool = True
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A list of checks; the same object for proofs, benchmarks and training gates."""

    rows: tuple[Row, ...] = field(default_factory=tuple)

    @property
    def ok(self) -> bool:
        """Whether every row is ok, and there is at least one: an empty report proves nothing."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows that are not ok."""
        return tuple(row for row in self.rows if not row.ok)

    def plus(self, rows: Iterable[Row]) -> Report:
        """Return this report with ROWS after its own."""
        return Report(rows=(*self.rows, *rows))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {"ok": self.ok, "rows": [finite(asdict(row)) for row in self.rows]}

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        return json.dumps(self.to_dict())


def finite(value: Any) -> Any:
    """Return VALUE with the numbers that JSON does not have (NaN, infinities) as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
