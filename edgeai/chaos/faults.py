"""The thirty faults as data: what happens, in which variants, and what may come of each.

A table of facts. The numbers are those of a survey of what gateways and clients meet in practice; sources stand where a fault is known from
one. A variant is met by a fresh subject, which must then do one of what `expect` names:

answer       the endpoint's answer, whole and exact          tools     its call of a tool, exact
fallback     the other answer (local, or a second endpoint's), whole, and no word of the endpoint's
interrupted  the beginning of an answer, marked as broken off    resumed   the same, a visible seam, and the local answer
error        no text, and an error                           empty     no text and no error: the endpoint had nothing to say
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from edgeai.chaos.statuses import REDIRECTS, SERVER_ERRORS, WAIT_S
from edgeai.errors import UsageError

__all__ = [
    "ATTEMPTS",
    "CONNECT_S",
    "DEADLINE_S",
    "FAULTS",
    "FIRST_TOKEN_S",
    "HOOKS",
    "LEAST_BYTES_S",
    "MAX_BYTES",
    "STALL_S",
    "Fault",
    "Kind",
    "Mode",
    "Variant",
    "chosen",
]

# How a subject is to be set up. The faults take longer than these limits, so the whole run is as short as they are.
CONNECT_S = 0.5
FIRST_TOKEN_S = 0.6
STALL_S = 0.5
LEAST_BYTES_S = 200.0
MAX_BYTES = 1 << 20
ATTEMPTS = 3
DEADLINE_S = 3.0

SLACK_S = 0.25
"""How much later than its deadline an answer may end."""
SENT_BYTES = 24 << 20
"""The most of an endless body that the kernel may take: a limit of 16 MiB, and the buffers of both ends."""

Kind = Literal["answer", "fallback", "error", "interrupted", "resumed", "empty", "tools"]
Mode = Literal["stream", "whole"]
Patch = Literal["clock-forward", "clock-back", "resolver-hang", "http-proxy", "all-proxy", "dead-proxy"]
"""What the scorer does to this process while it asks."""

HOOKS: Mapping[str, str] = {
    "local-oom": "the local engine raises DoesNotFit when it is asked",
    "local-missing": "the local model is not there: ModelNotFound when it is opened",
    "local-busy": "the local engine raises Busy",
    "local-context": "the local engine raises ContextExceeded",
    "local-crash": "the local engine raises EngineCrashed before its first word",
    "local-crash-midway": "the local engine raises EngineCrashed after some words",
    "local-slow": "the local engine gives no word for two seconds",
    "local-down": "there is no local model that could answer",
    "detector-crash": "the detector of private text raises an exception of its own",
    "detector-slow": "the detector takes longer than privacy.timeout_s",
    "text-too-long": "the text is longer than privacy.max_chars",
    "ledger-full": "every write to the ledger fails with ENOSPC",
    "ledger-locked": "another process holds the ledger's lock",
    "resume": "answers that break off are continued by the local model (resume_local)",
}
"""What a subject does to itself, by name; nobody can do it to a gateway from outside."""

FALL: tuple[Kind, ...] = ("fallback",)
FALL_OR_ERROR: tuple[Kind, ...] = ("fallback", "error")
BROKEN: tuple[Kind, ...] = ("interrupted", "resumed", "fallback")
"""What may come of a stream that breaks after words of it: they may have been shown by then, or not."""
ANSWER: tuple[Kind, ...] = ("answer",)
EITHER: tuple[Kind, ...] = ("answer", "fallback")
BOTH: tuple[Mode, ...] = ("stream", "whole")
STREAM: tuple[Mode, ...] = ("stream",)
WHOLE: tuple[Mode, ...] = ("whole",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One form of a fault. `serve`: what the lab does (its own name if it is one), to `times` requests (None: to all).

    `expect`: what may come of it. `least`, `most`: how many requests the endpoint may see, over all `asks`. `within_s`: when the answer
    must be there at the latest, None for the deadline. `gap_s`: if there is a second attempt, not before that long after the first.
    `where`: the listener, or a whole base URL, that is the endpoint; `hook`, `patch`: see HOOKS and Patch. `warm`: an ask before, and what
    then happens to the connection. `leave_after`: the caller goes away after so many pieces of text. `says`: what an error must name.
    """

    name: str
    expect: tuple[Kind, ...]
    serve: str
    modes: tuple[Mode, ...] = BOTH
    times: int | None = None
    least: int = 0
    most: int = ATTEMPTS
    asks: int = 1
    within_s: float | None = None
    gap_s: float = 0.0
    sent_bytes: int = SENT_BYTES
    where: str = "http"
    hook: str | None = None
    patch: Patch | None = None
    policy: str = "cloud-first"
    private: bool = False
    tools: bool = False
    finish: str | None = None
    warm: Literal["reset", "hold"] | None = None
    leave_after: int | None = None
    says: tuple[str, ...] = ()
    notice: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault: its number, its name, what happens in one line, and its variants."""

    number: int
    name: str
    what: str
    variants: tuple[Variant, ...]

    @property
    def expected(self) -> str:
        """What may come of it, over all variants."""
        kinds = dict.fromkeys(kind for variant in self.variants for kind in variant.expect)
        return " or ".join(kinds)


def v(name: str, expect: tuple[Kind, ...], **more: object) -> Variant:
    """Return a variant that is served under its own name unless MORE says otherwise."""
    return Variant(**{"name": name, "expect": expect, "serve": name, **more})  # type: ignore[arg-type]


def once(name: str, expect: tuple[Kind, ...] = ANSWER, **more: object) -> Variant:
    """Return a variant that one request meets; the next is answered."""
    return v(f"{name}-once", expect, **{"serve": name, "times": 1, **more})


def inside(name: str, expect: tuple[Kind, ...], **more: object) -> Variant:
    """Return a variant that a hook of the subject makes; the endpoint is good."""
    return v(name, expect, **{"serve": "good", "hook": name, "modes": STREAM, **more})


def _faults() -> Iterator[tuple[str, str, tuple[Variant, ...]]]:
    yield "name", "the endpoint's name does not exist, or nobody says whether it does", (
        v("nxdomain", FALL, serve="good", where="https://does-not-exist.invalid/v1", most=0, within_s=1.5),
        v("resolver-hang", FALL, serve="good", where="https://resolver-hang.invalid/v1", most=0, patch="resolver-hang", modes=STREAM),
    )  # fmt: skip
    yield (
        "refused",
        "no connection: refused, or ended as soon as it is there",
        (
            v("refused", FALL, most=0),
            v("refused-often", FALL, serve="refused", asks=8, most=0, modes=STREAM),
            v("rst-on-accept", FALL),
            v("close-on-accept", FALL),
        ),
    )
    yield (
        "tls",
        "a certificate that is expired, of another host or of nobody; plain HTTP where TLS is expected",
        (
            v("tls-good", ANSWER, serve="good", where="tls-good"),
            v("tls-expired", FALL, serve="good", where="tls-expired", most=0),
            v("tls-wrong-host", FALL, serve="good", where="tls-wrong-host", most=0),
            v("tls-self-signed", FALL, serve="good", where="tls-self-signed", most=0),
            v("plain-on-tls", FALL, serve="good", where="plain", most=0),
            v("tls-cut", FALL, serve="good", where="tls-cut", most=0),
            v("tls-hang", FALL, serve="good", where="tls-hang", most=0, modes=STREAM),
        ),
    )
    yield "connect", "packets to the endpoint vanish", (v("blackhole", FALL, most=0, modes=STREAM),)
    yield (
        "silent",
        "the connection is there, and no answer comes",
        (
            v("accept-silent", FALL, modes=STREAM),
            v("never-answers", FALL),
            v("half-close", FALL),
            v("late", EITHER, modes=STREAM),
        ),
    )
    yield (
        "stall",
        "a head, or some words, and then nothing but comments",
        (
            v("head-then-silence", FALL),
            v("words-then-silence", BROKEN),
            v("comments-forever", FALL, modes=STREAM),
            v("words-then-comments", BROKEN, modes=STREAM),
            v("informational-forever", FALL, modes=STREAM),
        ),
    )
    yield (
        "drip",
        "the answer comes, ten bytes a second",
        (
            v("drip-head", FALL, modes=STREAM),
            v("drip-body", FALL),
            v("drip-after-words", BROKEN, modes=STREAM),
            v("slow-words", BROKEN, modes=STREAM),
        ),
    )
    yield (
        "eof",
        "the stream ends in order before its end mark",
        (
            v("eof-before-done", BROKEN),
            v("eof-unframed", BROKEN),
            v("eof-before-finish", BROKEN),
            v("eof-before-words", FALL),
            v("no-done-mark", (*ANSWER, *BROKEN)),
            once("eof-before-words", EITHER, modes=STREAM),
        ),
    )
    yield (
        "cut",
        "the connection is reset, or its framing breaks, after some words",
        (
            v("rst-after-tokens", BROKEN),
            v("close-in-chunk", BROKEN),
            v("bad-chunk-length", BROKEN),
            v("short-chunk-length", BROKEN),
            v("short-body", BROKEN),
            v("half-close-midway", BROKEN),
            v("rst-before-head", FALL),
            v("close-before-head", FALL),
            v("rst-in-head", FALL),
            v("not-http", FALL),
            once("rst-before-head"),
            once("close-before-head"),
            v("resume", ("resumed",), serve="rst-after-tokens", hook="resume", modes=STREAM),
        ),
    )
    odd = (
        "crlf", "cr-only", "crlf-cut", "comments", "no-space", "many-lines", "bom", "split-utf8", "byte-chunks", "one-segment",
        "other-fields", "escapes", "blank-lines", "no-last-line-end", "slow-pieces", "unframed", "chunk-extras",
    )  # fmt: skip
    bad = (
        "bad-json",
        "not-json",
        "not-an-object",
        "bad-utf8",
        "lone-surrogate",
        "nul-bytes",
        "deep-json",
        "number-content",
        "huge-number",
    )
    yield (
        "events",
        "events that are odd and must be read, and events that are none",
        (
            *(v(name, ANSWER, modes=STREAM, most=1) for name in odd),
            *(v(name, BROKEN) for name in bad),
            *(v(name, (*ANSWER, *BROKEN), modes=STREAM) for name in ("wrong-types", "null-choice")),
        ),
    )
    yield (
        "inner-error",
        "an error inside of a 200",
        (
            v("error-in-200", FALL),
            v("error-object-in-200", FALL),
            v("error-event", FALL, modes=STREAM),
            v("error-as-text", FALL),
            v("error-midway", BROKEN),
            v("error-429-in-200", FALL),
            v("error-401-in-200", FALL, most=1),
            once("error-in-200", EITHER),
        ),
    )
    pages = (
        "html-page",
        "html-as-answer",
        "captive-511",
        "captive-302",
        "image",
        "status-200-empty",
        "status-204",
        "status-206",
        "json-list",
    )
    yield (
        "wrong-content",
        "200 and a page of a network that wants a login, or nothing, or something else",
        (
            *(v(name, FALL) for name in (*pages, "json-text", "json-other")),
            *(v(name, EITHER) for name in ("wrong-type", "no-type")),
        ),
    )
    yield (
        "empty",
        "an answer without a word",
        (
            *(once(name) for name in ("empty-choices", "empty-content", "null-content")),
            *(v(name, FALL) for name in ("empty-choices", "empty-content", "null-content", "empty-no-reason")),
            v("empty-length", ("empty",), most=1, finish="length"),
            v("empty-filter", ("empty", "fallback", "error"), most=1),
        ),
    )
    yield (
        "request",
        "the request is refused: 400, 404, 422; or it is too long",
        (
            *(v(f"status-{number}", FALL_OR_ERROR, most=1) for number in (400, 404, 405, 413, 422)),
            v("context-length", FALL, most=1),
        ),
    )
    yield (
        "credentials",
        "401, 402, 403",
        (
            *(v(f"status-{number}", FALL, most=1) for number in (401, 402, 403)),
            v("401-again", FALL, serve="status-401", asks=3, most=1, modes=STREAM),
        ),
    )
    yield (
        "conflict",
        "408, 409, 425: once more, and not oftener",
        (
            *(once(f"status-{number}") for number in (408, 409, 425)),
            *(v(f"status-{number}", FALL, most=2) for number in (408, 409, 425)),
        ),
    )
    forms = ("bare", "past", "negative", "nan", "infinite", "garbage", "digits", "date-garbage")
    yield (
        "rate",
        "429, with every form of Retry-After",
        (
            *(once(f"429-{form}", EITHER, gap_s=WAIT_S, modes=STREAM) for form in ("float", "ms", "body", "date")),
            once("429-int", EITHER, gap_s=1.0, modes=STREAM),
            *(once(f"429-{form}", EITHER, modes=STREAM) for form in forms),
            *(v(f"429-{form}", FALL, most=1, within_s=1.0) for form in ("hour", "1e9", "far-date")),
            v("429-cools", FALL, serve="429-hour", asks=3, most=1, modes=STREAM),
        ),
    )
    yield (
        "quota",
        "429, because the account has run out",
        (
            v("quota", FALL, most=1, within_s=1.0),
            v("quota-again", FALL, serve="quota", asks=3, most=1, modes=STREAM),
        ),
    )
    yield (
        "server",
        "500, 502, 503, 504, 520 to 524, 529",
        (
            *(once(f"status-{number}", modes=BOTH if number == 503 else STREAM) for number in SERVER_ERRORS),
            v("status-500", FALL),
            v("status-503", FALL),
            *(v(name, FALL) for name in ("html-500", "status-599", "status-799")),
            once("503-retry-after", EITHER, gap_s=WAIT_S, modes=STREAM),
            v("retry-storm", FALL, serve="status-503", asks=12, most=12, modes=STREAM),
        ),
    )
    floods = ("huge-line", "huge-space", "huge-header", "many-headers", "gzip-bomb")
    yield (
        "huge",
        "a body, a header or a number of pieces without end, or far more than it says",
        (
            v("huge-body", BROKEN),
            *(v(name, FALL) for name in floods),
            *(v(name, FALL, modes=STREAM) for name in ("many-events", "million-chunks")),
            v("gzip-good", EITHER),
            v("gzip-broken", EITHER),
            v("unknown-encoding", FALL),
            v("after-done", ANSWER, most=1, within_s=1.5, modes=STREAM),
        ),
    )
    whole_or_broken = (*ANSWER, *BROKEN)
    yield (
        "pieces",
        "pieces that come twice, in another order, or of another answer",
        (
            *(v(name, ANSWER, modes=STREAM) for name in ("repeated-role", "reason-twice", "message-at-end")),
            *(v(name, whole_or_broken, modes=STREAM) for name in ("text-after-reason", "whole-again", "second-choice")),
            *(v(name, whole_or_broken, modes=STREAM) for name in ("same-event-twice", "events-swapped")),
            v("other-answer", BROKEN, modes=STREAM),
            *(
                v(name, ("tools",), tools=True, modes=STREAM)
                for name in ("tool-split", "tool-name-repeated", "tool-index-gap")
            ),
            v("tool-doubled", ("tools", *FALL_OR_ERROR, "interrupted"), tools=True, modes=STREAM),
            v("tool-cut", (*FALL_OR_ERROR, "interrupted"), tools=True, modes=STREAM),
        ),
    )
    yield (
        "redirect",
        "301, 302, 303, 307, 308 to another port, host or scheme: never followed",
        (
            *(v(f"redirect-{number}", FALL_OR_ERROR, most=1) for number in REDIRECTS),
            *(v(f"redirect-{where}", FALL_OR_ERROR, most=1) for where in ("host", "tls", "same", "relative")),
        ),
    )
    yield (
        "proxy",
        "HTTP_PROXY and ALL_PROXY are set; an endpoint on this machine is reached without them",
        (
            v("http-proxy", ANSWER, serve="good", patch="http-proxy", most=1),
            v("all-proxy", ANSWER, serve="good", patch="all-proxy", most=1, modes=STREAM),
            v("dead-proxy", ANSWER, serve="good", patch="dead-proxy", most=1, modes=STREAM),
        ),
    )
    urls = {
        "url-with-password": "http://user:secret@{host}/v1",
        "url-with-query": "http://{host}/v1?key=secret",
        "url-plain-http": "http://elsewhere.invalid/v1",
        "url-metadata": "http://169.254.169.254/latest",
        "url-metadata-tls": "https://169.254.169.254/latest",
        "url-file": "file:///etc/hosts",
        "url-none": "not a url",
    }
    yield (
        "base-url",
        "a base URL with a password or a query, in plain HTTP to elsewhere, or of a cloud's metadata",
        tuple(
            v(name, FALL_OR_ERROR, serve="good", where=url, most=0, within_s=1.0, modes=STREAM)
            for name, url in urls.items()
        ),
    )
    yield (
        "leave",
        "the caller goes away in the middle of an answer",
        (
            v(
                "leave-midway",
                ("interrupted", "answer"),
                serve="slow-good",
                leave_after=3,
                most=1,
                modes=STREAM,
                within_s=1.5,
            ),
            v(
                "leave-silence",
                ("interrupted",),
                serve="words-then-silence",
                leave_after=2,
                most=1,
                modes=STREAM,
                within_s=1.5,
            ),
        ),
    )
    before = ("local-oom", "local-missing", "local-busy", "local-context", "local-crash")
    yield "local", "the local model fails: no memory, not there, busy, prompt too long, crashed, slow", (
        *(inside(name, ANSWER, policy="local-first") for name in before),
        inside("local-crash-midway", (*ANSWER, "interrupted", "resumed"), policy="local-first"),
        inside("local-slow", (*ANSWER, "fallback", "interrupted"), policy="local-first"),
        *(v(f"{name}-private", ("error",), serve="good", hook=name, private=True, most=0, modes=STREAM, policy="local-first")
          for name in ("local-oom", "local-crash")),
    )  # fmt: skip
    yield (
        "clock",
        "the clock jumps; a connection did not survive a sleep or a change of networks",
        (
            v("clock-forward", ANSWER, serve="slow-good", patch="clock-forward", most=1, modes=STREAM),
            v("clock-back", ANSWER, serve="slow-good", patch="clock-back", most=1, modes=STREAM),
            v("stale-reset", ANSWER, serve="good", warm="reset"),
            v("stale-held", EITHER, serve="good", warm="hold", modes=STREAM),
        ),
    )
    yield (
        "both",
        "neither side can answer",
        (
            v("both-refused", ("error",), serve="refused", hook="local-down", most=0, says=("lab", "local")),
            v("both-503", ("error",), serve="status-503", hook="local-down", says=("lab", "local")),
            v("both-private", ("error",), serve="good", hook="local-down", private=True, most=0, modes=STREAM),
        ),
    )
    yield (
        "detector",
        "the detector of private text fails: what it did not clear stays here",
        (
            *(inside(name, FALL, most=0) for name in ("detector-crash", "detector-slow", "text-too-long")),
            v("detector-crash-whole", FALL, serve="good", hook="detector-crash", most=0, modes=WHOLE),
        ),
    )
    yield (
        "ledger",
        "the ledger's disk is full or locked: answered without it, and said",
        (*(inside(name, ANSWER, most=1, notice=True) for name in ("ledger-full", "ledger-locked")),),
    )


FAULTS: tuple[Fault, ...] = tuple(
    Fault(number=number, name=name, what=what, variants=variants)
    for number, (name, what, variants) in enumerate(_faults(), start=1)
)


def chosen(names: str | None) -> tuple[Fault, ...]:
    """Return the faults that NAMES, numbers or names with commas between, say; all for None. Raises UsageError for one that is none."""
    if names is None:
        return FAULTS
    found = []
    for word in (part.strip() for part in names.split(",")):
        fault = next((fault for fault in FAULTS if word in (str(fault.number), fault.name)), None)
        if fault is None:
            raise UsageError(
                f"there is no fault {word!r}", hint="edgeai chaos --list shows all, with numbers and names"
            )
        found.append(fault)
    return tuple(found)
