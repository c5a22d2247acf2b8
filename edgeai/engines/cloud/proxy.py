"""The proxy of the environment, which an endpoint on another machine is reached through and which is always shown."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from edgeai.engines.cloud.address import Address

__all__ = ["Proxy", "find_proxy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy by its `url`, without user and password, which are in `auth`. `problem`: why it cannot be used."""

    url: str
    auth: tuple[str, str] | None = field(default=None, repr=False)
    problem: str | None = None


def find_proxy(address: Address, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for ADDRESS, None for a direct connection. What is on this machine is never reached through one.

    HTTPS_PROXY or HTTP_PROXY, else ALL_PROXY, in small letters first, and NO_PROXY, as curl has them; HTTP_PROXY in capitals means nothing
    where REQUEST_METHOD is set, since any client of a CGI script can set it (CVE-2016-5385).
    """
    if address.loopback or _is_excepted(address, _variable("no_proxy", environment)):
        return None
    text = _variable(f"{address.scheme}_proxy", environment) or _variable("all_proxy", environment)
    if not text:
        return None
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None:
        return Proxy(url="(not a URL)", problem="the proxy of the environment is not a URL")
    shown = f"[{host}]" if ":" in host else host
    if parts.scheme != "http":
        said = f"the proxy {parts.scheme}://{shown} of the environment is of a kind that is not supported (http:// is)"
        return Proxy(url=f"{parts.scheme}://{shown}", problem=said)
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    return Proxy(url=f"http://{shown}:{port or 80}", auth=auth)


def _variable(name: str, environment: Mapping[str, str]) -> str:
    if small := environment.get(name):
        return small.strip()
    if name == "http_proxy" and "REQUEST_METHOD" in environment:
        return ""
    return environment.get(name.upper(), "").strip()


def _is_excepted(address: Address, exceptions: str) -> bool:
    for text in exceptions.replace(",", " ").split():
        name = text.lower().removeprefix("*.").lstrip(".")
        host, _, port = name.rpartition(":") if name.count(":") == 1 else (name, "", "")
        if text == "*" or (_covers(host.strip("[]") or name, address.host) and port in ("", str(address.port))):
            return True
    return False


def _covers(name: str, host: str) -> bool:
    """Whether NAME (a host, a domain, an address or a network) covers HOST."""
    if host == name or host.endswith("." + name):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False
