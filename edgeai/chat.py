"""Messages to a prompt, by the model's own template, in a sandbox; and what in the prompt is control and what is text.

A chat template is a program that came with an untrusted file. It runs in jinja2's immutable sandbox, every loop and expression in it
is counted against a deadline and a size, and it cannot reach files or modules.

Text of special tokens that a user writes must stay text. Before rendering, each such text in a message is replaced by a placeholder of
private-use characters; after rendering, what still reads as a special token came from the template and is control, and the
placeholders are turned back into plain text.
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeai.errors import InvalidModel, NoChatTemplate, UsageError
from edgeai.types import Message

__all__ = ["Segment", "render", "split_segments"]

MAX_TEMPLATE_CHARS = 262_144
MAX_SECONDS = 5.0
MAX_VALUE_CHARS = 4_000_000
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a prompt: one special token, or text in which nothing is special."""

    text: str
    control: bool


def render(
    template: str | None, messages: Sequence[Message], *, special: Mapping[str, str], control: Sequence[str]
) -> list[Segment]:
    """Return the prompt for MESSAGES, ending where the assistant's answer begins.

    `special` holds the texts of the named tokens that templates refer to (bos_token, eos_token …); `control` the texts of all tokens
    that must never come from a message. Raises NoChatTemplate, UsageError for messages that the template refuses, InvalidModel for a
    template that is broken or exceeds its limits.
    """
    if not template:
        raise NoChatTemplate(
            "the model has no chat template: it is a base model, or its file is incomplete",
            hint="use completion mode: edgeai run MODEL --raw PROMPT",
        )
    _check_messages(messages)
    guard = _Placeholders(control)
    safe = [{"role": message["role"], "content": guard.hide(message["content"])} for message in messages]
    size = sum(len(message["content"]) for message in safe)
    text = _Sandbox(size).render(template, messages=safe, add_generation_prompt=True, tools=None, documents=None, **special)
    return [Segment(guard.show(part.text), part.control) for part in split_segments(text, control)]


def split_segments(text: str, control: Sequence[str]) -> list[Segment]:
    """Cut TEXT at the special tokens in it; the longest token wins where several begin."""
    if not control:
        return [Segment(text, False)] if text else []
    pattern = re.compile("|".join(re.escape(token) for token in sorted(control, key=len, reverse=True)))
    segments, end = [], 0
    for match in pattern.finditer(text):
        segments += [Segment(text[end : match.start()], False), Segment(match.group(), True)]
        end = match.end()
    segments.append(Segment(text[end:], False))
    return [segment for segment in segments if segment.text]


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise UsageError("there are no messages to answer", hint="give at least one message with the role 'user'")
    for message in messages:
        if not isinstance(message.get("content"), str):
            raise UsageError(f"a message's content is {message.get('content')!r}", hint="content must be text")
        if message.get("role") not in ROLES:
            raise UsageError(f"a message has the role {message.get('role')!r}", hint=f"roles are {', '.join(ROLES)}")


class _Placeholders:
    """Hides special-token texts in messages behind private-use characters that no message contains by chance."""

    def __init__(self, control: Sequence[str]) -> None:
        nonce = "".join(chr(0xE000 + byte) for byte in secrets.token_bytes(8))
        self._texts = sorted((token for token in control if token), key=len, reverse=True)
        self._hide = re.compile("|".join(map(re.escape, self._texts))) if self._texts else None
        self._index = {text: index for index, text in enumerate(self._texts)}
        self._open, self._close = nonce, chr(0xF8FF)
        self._show = re.compile(f"{nonce}([0-9]+){self._close}")

    def hide(self, text: str) -> str:
        if self._hide is None:
            return text
        return self._hide.sub(lambda match: f"{self._open}{self._index[match.group()]}{self._close}", text)

    def show(self, text: str) -> str:
        return self._show.sub(lambda match: self._texts[int(match.group(1))], text)


# ---- the sandbox


class _LimitExceeded(Exception):
    """The template used more time or memory than it may."""


class _Sandbox:
    """A jinja2 environment as transformers sets it up for chat templates, with limits."""

    def __init__(self, message_chars: int) -> None:
        import jinja2
        import jinja2.ext
        from jinja2 import nodes
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._max_chars = MAX_VALUE_CHARS + 16 * message_chars
        self._deadline = time.monotonic() + MAX_SECONDS
        self._jinja, self._nodes = jinja2, nodes
        sandbox = self

        class Environment(ImmutableSandboxedEnvironment):
            intercepted_binops = frozenset({"*", "**", "%"})

            def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
                sandbox.check_operands(operator, left, right)
                return super().call_binop(context, operator, left, right)

            def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
                owner = getattr(function, "__self__", None)
                if isinstance(owner, str) and args:
                    sandbox.check_growth(function.__name__, owner, args)
                return super().call(context, function, *args, **kwargs)

            def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
                return attr not in _PADDING and super().is_safe_attribute(obj, attr, value)

        self._environment = Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _generation_tag()]
        )
        for name in _UNBOUNDED_FILTERS:
            self._environment.filters.pop(name, None)
        for name in ("lipsum", "cycler", "joiner"):
            self._environment.globals.pop(name, None)
        self._environment.filters |= {"tojson": _tojson, "join": self._join, "replace": self._replace}
        self._environment.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.datetime.now().astimezone().strftime(form),
            "_checked": self._checked,
        }

    def render(self, source: str, **variables: Any) -> str:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise InvalidModel(
                f"the model's chat template is {len(source)} characters long", hint=f"the limit is {MAX_TEMPLATE_CHARS}"
            )
        jinja2 = self._jinja
        try:
            tree = self._guard(self._environment.parse(source))
            code = self._environment.compile(tree, filename="<chat template>")
            template = self._environment.template_class.from_code(self._environment, code, self._environment.globals)
            parts: list[str] = []
            size = 0
            for part in template.generate(**variables):
                size += len(part)
                self._check_size(size)
                parts.append(part)
            return "".join(parts)
        except _Refused as error:
            raise UsageError(f"the model's chat template refuses these messages: {error}") from error
        except (_LimitExceeded, RecursionError, MemoryError, OverflowError) as error:
            raise InvalidModel(
                f"the model's chat template exceeds its limits: {error or type(error).__name__}",
                hint="do not trust this file; a chat template needs milliseconds",
            ) from error
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError, IndexError, ArithmeticError) as error:
            raise InvalidModel(
                f"the model's chat template fails: {type(error).__name__}: {error}",
                hint="edgeai show MODEL --template prints it; completion mode (--raw) does not need it",
            ) from error

    def _guard(self, tree: Any) -> Any:
        """Make each loop and each expression that can grow a value go through `_checked`."""
        nodes = self._nodes

        def checked(expression: Any) -> Any:
            return nodes.Call(nodes.Name("_checked", "load"), [expression], [], None, None)

        class Guard(self._jinja.visitor.NodeTransformer):  # type: ignore[misc, name-defined]
            def visit_For(self, node: Any) -> Any:  # noqa: N802 - the visitor's naming
                self.generic_visit(node)
                node.body.insert(0, nodes.ExprStmt(checked(nodes.Const(None))))
                return node

            def visit_Macro(self, node: Any) -> Any:  # noqa: N802
                self.generic_visit(node)
                node.body.insert(0, nodes.ExprStmt(checked(nodes.Const(None))))
                return node

            def _wrap(self, node: Any) -> Any:
                self.generic_visit(node)
                return checked(node)

            visit_Concat = visit_Add = visit_Mul = visit_Mod = visit_Filter = _wrap  # noqa: N815

            def visit_Call(self, node: Any) -> Any:  # noqa: N802
                self.generic_visit(node)
                # `caller()` and `super()` are names that the compiler treats itself; their output is checked at the end.
                special = isinstance(node.node, nodes.Name) and node.node.name in {"caller", "super"}
                return node if special else checked(node)

            def visit_FilterBlock(self, node: Any) -> Any:  # noqa: N802
                self.generic_visit(node)
                return node

        guarded = Guard().visit(tree)
        for node in guarded.find_all(nodes.Node):
            node.environment = self._environment
            if getattr(node, "lineno", None) is None:
                node.lineno = 1
        return guarded

    def _checked(self, value: Any) -> Any:
        if time.monotonic() > self._deadline:
            raise _LimitExceeded(f"it ran for {MAX_SECONDS:.0f} s")
        if isinstance(value, (str, list, tuple, dict)):
            self._check_size(len(value))
        return value

    def _check_size(self, size: int) -> None:
        if size > self._max_chars:
            raise _LimitExceeded(f"it makes a value of {size} characters")

    def check_growth(self, method: str, text: str, args: Sequence[Any]) -> None:
        """Refuse a call of a string's METHOD whose result would be huge, before it is made."""
        if method == "join":
            items = list(args[0])
            self._check_size(len(text) * len(items) + sum(len(str(item)) for item in items))
        elif method == "replace" and len(args) > 1:
            self._check_size(len(text) + text.count(str(args[0])) * len(str(args[1])))

    def _join(self, value: Any, d: str = "", attribute: str | int | None = None) -> str:
        items = list(value)
        if attribute is not None:
            items = [self._environment.getitem(item, attribute) for item in items]
        self.check_growth("join", str(d), [items])
        return str(d).join(str(item) for item in items)

    def _replace(self, text: Any, old: str, new: str, count: int | None = None) -> str:
        self.check_growth("replace", str(text), (old, new))
        return str(text).replace(str(old), str(new), -1 if count is None else count)

    def check_operands(self, operator: str, left: Any, right: Any) -> None:
        """Refuse the operations that make something huge out of two small things."""
        if operator == "*":
            for text, count in ((left, right), (right, left)):
                if isinstance(text, (str, list, tuple)) and isinstance(count, int):
                    self._check_size(len(text) * count)
        elif operator == "**" and (abs(left) > 1e6 or abs(right) > 64):
            raise _LimitExceeded(f"it computes {left} ** {right}")
        elif operator == "%" and isinstance(left, str) and re.search(r"%[^a-zA-Z%]*(\d{5,}|\*)", left):
            raise _LimitExceeded(f"it formats with {left!r}")


_PADDING = frozenset({"center", "expandtabs", "format", "format_map", "ljust", "rjust", "zfill"})
"""String methods that pad to a width chosen by the template."""

_UNBOUNDED_FILTERS = frozenset(
    {"batch", "center", "filesizeformat", "format", "indent", "pprint", "random", "slice", "urlize", "wordwrap", "xmlattr"}
)


class _Refused(Exception):
    """The template called raise_exception."""


def _refuse(message: object) -> None:
    raise _Refused(str(message))


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    # transformers' tojson: not escaped for HTML, non-ASCII kept
    return json.dumps(value, ensure_ascii=False, indent=min(indent, 16) if indent else None)


def _generation_tag() -> Any:
    """Return the extension for `{% generation %}`, which marks the assistant's tokens for training and prints its body."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation
