"""Where an endpoint is: its base URL, checked before anything is sent there."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from edgeai.errors import UsageError

__all__ = ["PORTS", "Address", "is_address", "is_forbidden", "is_loopback", "read_address"]

PORTS = {"http": 80, "https": 443}
COMPLETIONS = "/chat/completions"
METADATA = {
    "metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal",
}  # fmt: skip
"""Names under which clouds give their machines credentials: Google Cloud and EC2, from their documentation of instance metadata."""
METADATA_IPS = {ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")}
"""The same as addresses outside 169.254.0.0/16: EC2 in IPv6, Alibaba Cloud."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An endpoint's place. `path` is that of the chat API, with `/chat/completions`."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(self.host)

    @property
    def origin(self) -> str:
        """Scheme, host and port: what a key is bound to."""
        return f"{self.scheme}://{self.netloc}"

    @property
    def netloc(self) -> str:
        """The host as a URL has it, with the port where it is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.origin + self.path


def read_address(base_url: str, *, http: bool = False) -> Address:
    """Return what BASE_URL says. HTTP: plain http may leave this machine.

    Raises UsageError for what is no http(s) URL, carries a user, a query or a fragment, is the metadata service of a cloud, or is plain
    http to another machine. No message shows the parts of a URL that may be secret.
    """
    if any(character <= " " or character in "\x7f\\" for character in base_url):
        raise _refusal("base_url has blanks, control characters or backslashes", "write https://HOST/v1")
    try:
        parts = urlsplit(base_url)
        port = parts.port
        host = _ascii(parts.hostname or "")
    except ValueError as error:
        raise _refusal("base_url is not a URL", "write https://HOST/v1") from error
    if parts.scheme not in PORTS:
        raise _refusal(f"base_url has the scheme {parts.scheme!r}", "use https://, or http:// on this machine")
    if not host or port == 0:
        raise _refusal("base_url names no host", "write https://HOST/v1")
    if "@" in parts.netloc:
        raise _refusal(
            f"base_url of {host!r} carries a user or a password", 'put the key elsewhere: api_key = "env:NAME"'
        )
    if "?" in base_url or "#" in base_url:
        raise _refusal(f"base_url of {host!r} has a query or a fragment", "leave out everything from ? or # on")
    if host in METADATA or _is_forbidden_text(host):
        raise _refusal(f"base_url names {host!r}, which is no place of a model", "name the endpoint's own host")
    if parts.scheme == "http" and not (http or is_loopback(host)):
        hint = "use https://; or set http = true if the whole network up to there is trusted"
        raise _refusal(f"base_url is plain http to {host!r}, where everyone on the way reads prompts and the key", hint)
    path = parts.path.rstrip("/").removesuffix(COMPLETIONS) + COMPLETIONS
    return Address(scheme=parts.scheme, host=host, port=port or PORTS[parts.scheme], path=_quoted(path))


def is_address(host: str) -> bool:
    """Whether HOST is an IP address, no name."""
    return _ip(host) is not None


def is_loopback(host: str) -> bool:
    """Whether HOST, a name or an address, is this machine. Of names only `localhost` is; what it resolves to is checked again."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    ip = _ip(host)
    return ip is not None and ip.is_loopback


def is_forbidden(address: str) -> bool:
    """Whether the IP ADDRESS, as a name was resolved to, is one that no endpoint has: link-local, metadata, multicast, none."""
    ip = _ip(address)
    if ip is None:
        return True
    return ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in METADATA_IPS


def _is_forbidden_text(host: str) -> bool:
    return _ip(host) is not None and is_forbidden(host)


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that TEXT is, an IPv4 one that is written as IPv6 as itself; None for a name."""
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def _ascii(host: str) -> str:
    """Return HOST as DNS has it. Raises UnicodeError, a ValueError, for what cannot be a name."""
    if _ip(host) is not None:
        return host
    return (host if host.isascii() else host.encode("idna").decode("ascii")).lower().rstrip(".")


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(path, safe="/%:@!$&'()*+,;=~-._")


def _refusal(what: str, hint: str) -> UsageError:
    return UsageError(what, hint=hint)
