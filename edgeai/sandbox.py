"""A place to run a chat template: it came with an untrusted file and is a program.

It runs in jinja2's immutable sandbox, cannot reach files or modules, and every loop and every expression that can grow a value is
counted against a deadline and a size.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from edgeai.errors import InvalidModel, UsageError

__all__ = ["Sandbox"]

MAX_TEMPLATE_CHARS = 262_144
MAX_SECONDS = 5.0
MAX_VALUE_CHARS = 4_000_000
MAX_ITEMS = 50_000
MAX_DEPTH = 64
MAX_BITS = 4096


class _LimitExceeded(Exception):
    """The template used more time or memory than it may."""


class Sandbox:
    """A jinja2 environment as transformers sets it up for chat templates, with limits."""

    def __init__(self, message_chars: int, messages: int = 0) -> None:
        import jinja2
        import jinja2.ext
        from jinja2 import nodes
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._max_chars = MAX_VALUE_CHARS + 16 * message_chars
        self._max_items = MAX_ITEMS + 16 * messages
        self._deadline = time.monotonic() + MAX_SECONDS
        self._jinja, self._nodes = jinja2, nodes
        sandbox = self

        class Environment(ImmutableSandboxedEnvironment):
            guard: Callable[[Any], Any]
            intercepted_binops = frozenset({"*", "**", "%"})

            def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
                sandbox.check_operands(operator, left, right)
                return super().call_binop(context, operator, left, right)

            def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
                # jinja2 replaces str.format by a wrapper of its own; what it wraps tells whose method it is.
                owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
                if isinstance(owner, str):
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
        self._environment.filters |= {
            "tojson": _tojson,
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
        }
        self._environment.guard = self._checked
        self._environment.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.datetime.now().astimezone().strftime(str(form)[:256]),
        }

    def render(self, source: str, **variables: Any) -> str:
        """Return what the template SOURCE makes of VARIABLES. Raises UsageError for what it refuses, InvalidModel."""
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
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            AttributeError,
            KeyError,
            IndexError,
            ArithmeticError,
        ) as error:
            raise InvalidModel(
                f"the model's chat template fails: {type(error).__name__}: {error}",
                hint="edgeai show MODEL --template prints it; completion mode (--raw) does not need it",
            ) from error

    def _guard(self, tree: Any) -> Any:
        """Make each loop and each expression that can grow a value go through `_checked`."""
        nodes = self._nodes

        def checked(expression: Any) -> Any:
            # An attribute of the environment: no name that a template could bind anew.
            return nodes.Call(nodes.EnvironmentAttribute("guard"), [expression], [], None, None)

        class Guard(self._jinja.visitor.NodeTransformer):  # type: ignore[misc, name-defined]
            def _tick(self, node: Any) -> Any:
                self.generic_visit(node)
                node.body.insert(0, nodes.ExprStmt(checked(nodes.Const(None))))
                return node

            def _wrap(self, node: Any) -> Any:
                self.generic_visit(node)
                return checked(node)

            def _only_parts(self, node: Any) -> Any:
                self.generic_visit(node)
                return node

            def _tuple(self, node: Any) -> Any:
                # `for key, value in …` stores into a tuple: that is no value
                return self._wrap(node) if node.ctx == "load" else node

            def _call(self, node: Any) -> Any:
                # `caller()` and `super()` are names that the compiler treats itself; their output is checked at the end.
                special = isinstance(node.node, nodes.Name) and node.node.name in {"caller", "super"}
                return self._only_parts(node) if special else self._wrap(node)

            def _block(self, node: Any) -> Any:
                # The compiler wants the bare call or filter of these blocks; their bodies are visited like all others.
                self.generic_visit(node.call if isinstance(node, nodes.CallBlock) else node.filter)
                node.body = [self.visit(part) for part in node.body]
                return node

        wrapped = (nodes.Concat, nodes.Add, nodes.Mul, nodes.Mod, nodes.Filter, nodes.List, nodes.Dict)
        for kinds, method in (
            (wrapped, Guard._wrap),
            ((nodes.For, nodes.Macro), Guard._tick),
            ((nodes.Tuple,), Guard._tuple),
            ((nodes.Call,), Guard._call),
            ((nodes.CallBlock, nodes.FilterBlock), Guard._block),
        ):
            for kind in kinds:
                setattr(Guard, f"visit_{kind.__name__}", method)
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
            self._weigh(value)
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise _LimitExceeded(f"it makes a number of {value.bit_length()} bits")
        return value

    def _weigh(self, value: Any) -> None:
        """Refuse a value that is too large when every part is counted as often as it occurs, as printing and comparing do."""
        chars = items = 0
        stack = [(value, 0)]
        while stack:
            part, depth = stack.pop()
            items += 1
            if isinstance(part, str):
                chars += len(part)
            elif isinstance(part, (list, tuple, dict)):
                items += len(part)
                if items <= self._max_items:
                    inner = [*part.keys(), *part.values()] if isinstance(part, dict) else part
                    stack += [(item, depth + 1) for item in inner]
            if items > self._max_items or depth > MAX_DEPTH:
                raise _LimitExceeded("it makes a value of too many parts")
        self._check_size(chars)

    def _check_size(self, size: int) -> None:
        if size > self._max_chars:
            raise _LimitExceeded(f"it makes a value of {size} characters")

    def check_growth(self, method: str, text: str, args: Sequence[Any]) -> None:
        """Refuse a call of a string's METHOD whose result would be huge, before it is made."""
        if method == "join" and args:
            items = list(args[0])
            self._check_size(len(text) * len(items) + sum(len(str(item)) for item in items))
        elif method in {"format", "format_map"} and _WIDE_FORMAT.search(text):
            raise _LimitExceeded(f"it formats with {text[:80]!r}")
        elif method == "replace" and len(args) > 1:
            self._check_size(len(text) + text.count(str(args[0])) * len(str(args[1])))

    def _join(self, value: Any, d: str = "", attribute: str | int | None = None) -> str:
        items = list(value)
        if attribute is not None:
            items = [self._environment.getitem(item, attribute) for item in items]
        self.check_growth("join", str(d), [items])
        return str(d).join(str(item) for item in items)

    def _indent(self, text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        from jinja2.filters import do_indent

        self._check_size(len(str(text)) + str(text).count("\n") * (len(width) if isinstance(width, str) else width))
        return do_indent(str(text), width, first, blank)

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
        elif operator == "%" and isinstance(left, str) and _WIDE_PERCENT.search(left):
            raise _LimitExceeded(f"it formats with {left[:80]!r}")


_WIDE_FORMAT = re.compile(r"\{[^{}]*:[^{}]*(?:\d{4}|\{)")
_WIDE_PERCENT = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(?:\d{5}|\*|\d*\.(?:\d{5}|\*))")
"""Formats with a width of thousands, or with one that is given as an argument."""


_PADDING = frozenset({"center", "encode", "expandtabs", "ljust", "rjust", "translate", "zfill"})
"""String methods that pad to a width chosen by the template, or make what no limit here can weigh."""

_UNBOUNDED_FILTERS = frozenset(
    {
        "batch",
        "center",
        "filesizeformat",
        "format",
        "pprint",
        "random",
        "slice",
        "urlize",
        "wordwrap",
        "xmlattr",
    }
)


class _Refused(Exception):
    """The template called raise_exception."""


def _refuse(message: object) -> None:
    text = str(message)[:500]
    raise _Refused("".join(char if char.isprintable() else repr(char)[1:-1] for char in text))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return VALUE as JSON: the filter of transformers, which unlike jinja2's own does not escape for HTML."""
    width = min(indent, 16) if isinstance(indent, int) else None
    short = tuple(str(part)[:16] for part in separators) if separators else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=width, separators=short, sort_keys=sort_keys)  # type: ignore[arg-type]


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
