"""What stands where a secret would: examples and variables, which are none."""

from __future__ import annotations

import re

__all__ = ["is_placeholder"]

VARIABLE = re.compile(
    r"^\$\w|\$\{|\{\{|\{%|%\w+%|%[({]?s\b|<[\w .-]+>|\[[\w .-]+\]|\$\(|\{[\w.]*\}|process\.env|os\.environ|getenv"
    r"|env\[|secrets\.|vault:|arn:"
)
WORDS = re.compile(
    r"(?i)your|\bmy[_-]|example|placeholder|change[_-]?(?:me|it|this)|replace|insert|dummy|redacted|\bxxx|x{4,}|\*{3,}|\.{3,}|…|todo|fixme|\bfake|sample|"
    r"\bnone\b|\bnull\b|\bundefined\b|\btrue\b|\bfalse\b|goes[_-]?here|put[_-]|enter[_-]|test[_-]?(?:key|token|secret|password)|_here\b|-here\b"
)
FILLED = re.compile(r"(?i)x{4,}|\*{3,}|\.{3,}|your|_here|-here|0{8,}|1234567890abcdefg")
LONG_CHARS = 32
PLAIN = frozenset(
    [
        "password",
        "passwd",
        "pass",
        "pwd",
        "passphrase",
        "secret",
        "token",
        "user",
        "username",
        "key",
        "apikey",
        "api_key",
        "pw",
        "psw",
        "login",
        "admin",
        "root",
        "guest",
        "test",
        "string",
        "str",
        "text",
        "value",
        "foo",
        "bar",
        "baz",
    ]
)


def is_placeholder(value: str) -> bool:
    """Whether VALUE is an example or a variable instead of a secret: `your-key-here`, `xxxx`, `${KEY}`, or one character over and over."""
    if value.lower() in PLAIN or len(set(value.lower())) <= 2:
        return True
    if VARIABLE.search(value):
        return True
    # In a long one with digits such letters are chance, or somebody's joke: wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY is AWS's own.
    long = len(value) >= LONG_CHARS and any(map(str.isdigit, value)) and not FILLED.search(value)
    return not long and WORDS.search(value) is not None
