"""E-mail addresses, from the at sign outwards: RFC 5321's limits of length, RFC 6531's letters of every script."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgeai.routing.privacy.hits import Hit
from edgeai.routing.privacy.text import View

__all__ = ["find_emails"]

MOST_LOCAL = 64
AT = re.compile(
    r"(?:@|%40|&#0{0,4}64;|&#[xX]0{0,4}40;|&commat;|\\u0040|[ ]?[\[({](?:at|AT|@)[\])}][ ]?)"
    r"(?=((?:[^\W_](?:[\w-]{0,61}[^\W_])?(?:\.|[ ]?[\[({](?:dot|DOT|\.)[\])}][ ]?)){1,8}"
    r"(?:xn--[a-z0-9-]{2,59}|[^\W\d_]{2,24}))(?![\w]|-\w|\())"
)
"""The sign itself, or a form that stands for it (percent-encoded, HTML, JSON, "[at]"), and then a domain. A call, `a@b.c()`, is none."""
SPOKEN = re.compile(r"[ ](?:at|AT|At)[ ](?=((?:[\w-]{1,63}[ ](?:dot|DOT|Dot)[ ]){1,4}[A-Za-z]{2,10})\b)")
SIGNS = ("@", "%40", "&#", "&commat;", "\\u0040", "[at]", "(at)", "{at}")
LITERAL = re.compile(r"@\[(?:IPv6:[0-9A-Fa-f:.]{2,45}|[0-9.]{7,15})\]")
LOCAL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.!#$%&'*+/=?^_`{|}~-")
EDGES = ".'`/=&?*!|^~{}#$%"
"""Characters that begin or end an address less often than what is around it, although RFC 5322 allows them."""
NOT_DOMAINS = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "ico",
        "css",
        "scss",
        "js",
        "mjs",
        "ts",
        "tsx",
        "jsx",
        "json",
        "html",
        "htm",
        "xml",
        "yml",
        "yaml",
        "toml",
        "txt",
        "md",
        "rst",
        "py",
        "pyc",
        "pyx",
        "rb",
        "rs",
        "go",
        "java",
        "cpp",
        "hpp",
        "cc",
        "so",
        "dll",
        "exe",
        "zip",
        "tar",
        "gz",
        "whl",
        "jar",
        "lock",
        "log",
        "cfg",
        "ini",
        "conf",
        "service",
        "socket",
        "timer",
        "target",
        "mount",
    ]
)
NOBODY = frozenset({"git", "hg", "svn"})
"""Accounts that every host of repositories has: git@github.com:owner/name is an address of a repository."""


def find_emails(view: View) -> Iterator[Hit]:
    """Yield the e-mail addresses in VIEW, without angle brackets and names around them."""
    text = view.text
    if any(sign in view.lower for sign in SIGNS):
        for match in AT.finditer(text):
            domain = match[1]
            if domain.rpartition(".")[2].lower() in NOT_DOMAINS:
                continue
            start = _local(text, match.start())
            if start is None or text[start : match.start()].lower() in NOBODY:
                continue
            if text[max(0, start - 3) : start] != "://":  # the user of a URL
                yield Hit("email", "privacy.email", start, match.end(1))
    if " dot " in view.lower:
        for match in SPOKEN.finditer(text):
            start = _local(text, match.start())
            if start is not None:
                yield Hit("email", "privacy.email", start, match.end(1))
    if "@[" in text:
        for match in LITERAL.finditer(text):
            start = _local(text, match.start())
            if start is not None:
                yield Hit("email", "privacy.email", start, match.end())


def _local(text: str, end: int) -> int | None:
    """Return where the part before the at sign at END begins; None if there is none."""
    least = max(0, end - MOST_LOCAL)
    if text[end - 1 : end] == '"':  # a quoted local part may hold spaces
        start = text.rfind('"', least, end - 1)
        return start if 0 <= start < end - 2 and "\n" not in text[start:end] else None
    start = end
    while start > least:
        character = text[start - 1]
        if not (
            character in LOCAL
            or character.isalnum()
            or (character > "\x7f" and character.isprintable() and character.isalpha())
        ):
            break
        start -= 1
    escaped = text[start - 1 : start] == "\\"
    if escaped and text[start : start + 1] in "nrt":  # the line break of a JSON text is no letter of the address
        start += 1
    while start < end and text[start] in EDGES:
        start += 1
    if "%3" in text[start:end] or "=" in text[start:end] or "/" in text[start:end] or ":" in text[start:end]:
        # parts of a URL: mailto%3A, ?user=…, /path/
        start = max(
            start, *(text.rfind(mark, start, end) + len(mark) for mark in ("%3A", "%3D", "%3a", "%3d", "=", "/"))
        )
    return start if start < end and text[end - 1] not in EDGES else None
