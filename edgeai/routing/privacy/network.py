"""Addresses of machines, and URLs that carry a password."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from edgeai.routing.privacy.hits import Hit
from edgeai.routing.privacy.placeholders import is_placeholder
from edgeai.routing.privacy.text import View

__all__ = ["find_addresses", "find_url_credentials"]

V4 = re.compile(
    r"[0-9](?<![0-9A-Za-z_.].)[0-9]{0,2}(?:(?:\.|\[\.\])[0-9]{1,3}){3}(?![0-9A-Za-z_^]|\.[0-9]|-[A-Za-z]{1,8}[.+0-9])"
)
V6 = re.compile(
    r"[0-9A-Fa-f:](?<![0-9A-Za-z_:.].)[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{2,38}(?:(?<=:)[0-9]{1,3}(?:\.[0-9]{1,3}){3})?(?![0-9A-Za-z_:]|\.[0-9])"
)
COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
HEX = frozenset("0123456789abcdefABCDEF")
VERSIONED = re.compile(
    r"(?:\b(?:version|versions|ver|rev|revision|release|released|build|firmware|driver|patch|sdk|assembly|nuget|oid|python|java|jdk|chrome)"
    r"\b[\w .:=\"'/(]{0,12}"
    r"|[\w.\]][ ]?(?:==|>=|<=|~=|!=|\^)[ ]?|\bv\.? ?|§ ?|[0-9a-z][_-]v)$"
)
"""What stands before a version of four parts."""
PERHAPS = re.compile(
    r"(?:\b(?:upgrade[ds]?|update[ds]?|api|section|sections|sec|chapter|clause|appendix|annex|paragraph|para|figure|fig|table|rule|item|step|art|article|node|kernel)"
    r"\b[\w .:=\"'/(]{0,12}|[0-9a-z][_-])$"
)
"""What stands before a version or a section of four parts, and before an address too: small numbers are no address then."""
MOST_PART = 100
RELEASED = re.compile(r" (?:build|release|version)\b")
PRODUCT = re.compile(r"[a-z][a-z0-9_.+-]{1,30}/$")
HEADLINE = re.compile(r"[ \t]{1,4}[A-Z][a-z]")
MOST_SECTION = 30


def find_addresses(view: View) -> Iterator[Hit]:
    """Yield the IP addresses in VIEW.

    A private address counts as well as a public one: it tells of the inside of somebody's network. The addresses of documentation do too,
    because only the writer knows that nobody has them. Loopback, unspecified, multicast and masks are nobody's, and do not.
    """
    text = view.text
    if text.count(".") >= 3:
        for match in V4.finditer(text):
            if _is_v4(view, match.start(), match.end()):
                yield Hit("ip", "privacy.ip", match.start(), match.end())
    if text.count(":") >= 2:
        past = 0
        for colons in COLONS.finditer(text):
            start = colons.start()
            if start < past:
                continue
            while start > max(past, colons.start() - 4) and text[start - 1] in HEX:
                start -= 1
            found = V6.match(text, start)
            if found is None:
                continue
            match = found
            past = match.end()
            value = match[0].rstrip(":") if not match[0].endswith("::") else match[0]
            if _is_v6(value) and text[match.start() + len(value) :][:1] != "(":
                yield Hit("ip", "privacy.ip", match.start(), match.start() + len(value))


def _is_v4(view: View, start: int, end: int) -> bool:
    value = view.text[start:end].replace("[.]", ".")
    parts = [int(part) for part in value.split(".")]
    if max(parts) > 255 or any(len(part) > 1 and part[0] == "0" for part in value.split(".")):
        return False
    if parts[0] in (0, 127) or parts[0] >= 224:
        return False
    before = view.before(start, 32)
    if RELEASED.match(view.after(end, 12)):
        return False
    private = parts[0] == 10 or parts[:2] == [192, 168] or (parts[0] == 172 and 16 <= parts[1] < 32)
    if VERSIONED.search(before) or (not private and max(parts) < MOST_PART and PERHAPS.search(before)):
        return False
    if PRODUCT.search(before) and (
        parts[2:] == [0, 0] or ("://" not in before and not before.rstrip("/").endswith((".", "ip")))
    ):
        return "://" in before or private  # Chrome/117.0.0.0; but hosts are written name/10.0.0.1 too
    heading = not before or before.endswith("\n") or before.rpartition("\n")[2].strip(" #*\t") == ""
    return not (heading and max(parts) <= MOST_SECTION and parts[0] != 10 and HEADLINE.match(view.text, end))


def _is_v6(value: str) -> bool:
    if value.count(":") < 2:
        return False
    try:
        address = ipaddress.IPv6Address(value)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or (address.is_multicast and "::" in value):
        return False
    groups = [group for group in value.split(":") if group]
    if "::" not in value:
        return True
    # a::b, std::dec and slices are no addresses: the first group must be of a range that is in use.
    return bool(
        re.match(
            r"(?i)2[0-9a-f]{3}$|3[0-9a-f]{3}$|f[cd][0-9a-f]{2}$|fe[89ab][0-9a-f]$|64$|::ffff:",
            groups[0] if groups else value,
        )
    ) or (value.lower().startswith("::ffff:") and "." in value)


URL = re.compile(
    r"(?<![A-Za-z0-9+.\-])[A-Za-z][A-Za-z0-9+.\-]{1,24}://(?P<user>[^\s/@:\"'<>`,|?#\\]{0,128})(?P<password>:[^\s/@\"'<>`|]{1,256})?@(?=[A-Za-z0-9\[_$%{-])(?:[A-Za-z0-9._\-]{1,253}|\[[0-9A-Fa-f:]{2,45}\])"
)


def find_url_credentials(view: View) -> Iterator[Hit]:
    """Yield the beginnings of URLs up to their host that carry a password, or a token in the place of the user."""
    text = view.text
    place = text.find("://")
    past = 0
    while place >= 0:
        start = place
        while start > max(past, place - 25) and (
            text[start - 1].isascii() and (text[start - 1].isalnum() or text[start - 1] in "+.-")
        ):
            start -= 1
        match = URL.match(text, start)
        if match is not None:
            past = match.end()
            secret = (match["password"] or "")[1:] or (match["user"] if len(match["user"]) >= 16 else "")
            if secret and not is_placeholder(secret):
                yield Hit("url_credentials", "privacy.url_credentials", match.start(), match.end())
        place = text.find("://", place + 3)
