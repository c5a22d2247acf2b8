"""API keys: where one is looked for, what it may be sent to, and that it is shown nowhere."""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from edgeai.engines.cloud.address import Address, read_address
from edgeai.errors import EdgeAIError, UsageError

__all__ = ["Found", "Key", "find_key", "mask"]

SERVICE = "edgeai"
"""Under this name keys are in the system's keyring; the user is the host, or what `keyring:NAME` names."""
KEYRING_S = 2.0
"""How long a keyring may take: one that is locked waits for its password for ever."""
MASK = "[key]"
SHORTEST = 4
"""A shorter key is no secret, and masking it would eat texts."""
OPENAI = "api.openai.com"


class Key:
    """A secret that is sent to one origin only. It can be neither printed nor pickled."""

    __slots__ = ("__weakref__", "_secret", "origin", "source")

    def __init__(self, secret: str, *, origin: str, source: str) -> None:
        secret = secret.strip()
        if not secret or not all("!" <= character <= "~" for character in secret):
            raise UsageError(f"the key from {source} is not one", hint="a key has printable ASCII characters only")
        self._secret = secret
        self.origin = origin
        self.source = source
        _remember(self)

    def header(self, origin: str) -> bytes:
        """Return the value of `Authorization` for ORIGIN. Raises UsageError for any other origin than its own."""
        if origin != self.origin:
            raise UsageError(
                f"the key of {self.origin} is not for {origin}", hint="give each endpoint a key of its own"
            )
        return b"Bearer " + self._secret.encode("ascii")

    def mask(self, text: str) -> str:
        """Return TEXT without this key."""
        if len(self._secret) < SHORTEST:
            return text
        return text.replace(self._secret, MASK).replace(quote(self._secret, safe=""), MASK)

    def __repr__(self) -> str:
        return "Key(…)"

    def __reduce__(self) -> Any:
        raise TypeError("a key is not pickled")


@dataclass(frozen=True, slots=True)
class Found:
    """What a search for a key gave: the key, or what is wrong (`problem`), or neither where none is needed."""

    key: Key | None = None
    problem: str | None = None


def find_key(reference: str | None, address: Address, environment: Mapping[str, str]) -> Found:
    """Return the key for ADDRESS: what REFERENCE names ("env:NAME", "keyring:NAME"), else OPENAI_API_KEY, else the keyring's for the host.

    OPENAI_API_KEY goes to api.openai.com and to the host of OPENAI_BASE_URL only. The keyring is not asked for endpoints on this machine.
    """
    kind, _, name = (reference or "").partition(":")
    if kind == "env":
        secret = environment.get(name)
        return _bound(secret, address, f"{name}") if secret else Found(problem=f"the variable {name} is not set")
    if kind == "keyring":
        secret, trouble = _from_keyring(name)
        if secret is None:
            return Found(problem=f"the keyring has no password of {SERVICE!r} for {name!r}{trouble and f': {trouble}'}")
        return _bound(secret, address, f"the keyring's entry {name!r}")
    known = {f"https://{OPENAI}", _origin(environment.get("OPENAI_BASE_URL"))}
    if address.origin in known and (secret := environment.get("OPENAI_API_KEY")):
        return _bound(secret, address, "OPENAI_API_KEY")
    if not address.loopback:
        secret, _trouble = _from_keyring(address.host)
        if secret is not None:
            return _bound(secret, address, f"the keyring's entry {address.host!r}")
    return Found(problem="there is no key for it") if address.host == OPENAI else Found()


def _bound(secret: str, address: Address, source: str) -> Found:
    try:
        return Found(key=Key(secret, origin=address.origin, source=source))
    except UsageError as error:
        return Found(problem=error.message)


def _origin(base_url: str | None) -> str | None:
    try:
        return read_address(base_url, http=True).origin if base_url else None
    except EdgeAIError:
        return None  # a base URL that cannot be used has no key either


def _from_keyring(user: str) -> tuple[str | None, str]:
    """Return the password of USER, and what is wrong with the keyring: nothing where it only has no such entry."""
    replies: queue.SimpleQueue[tuple[str | None, str]] = queue.SimpleQueue()
    threading.Thread(target=_ask_keyring, args=(user, replies.put), daemon=True, name="edgeai-keyring").start()
    try:
        return replies.get(timeout=KEYRING_S)
    except queue.Empty:
        return None, f"it did not answer within {KEYRING_S:g} s"


def _ask_keyring(user: str, reply: Callable[[tuple[str | None, str]], None]) -> None:
    try:
        import keyring

        secret = keyring.get_password(SERVICE, user)
    except Exception as error:  # noqa: BLE001  backends raise what they like
        reply((None, f"it cannot be used ({type(error).__name__})"))
    else:
        reply((secret or None, ""))


_keys: weakref.WeakSet[Key] = weakref.WeakSet()
_lock = threading.Lock()


def mask(text: str) -> str:
    """Return TEXT without any key that this process has."""
    with _lock:
        keys = list(_keys)
    for key in keys:
        text = key.mask(text)
    return text


class _Masking(logging.Filter):
    """Takes keys out of the records of the HTTP library, which prints the headers of responses: an endpoint may send back what it got."""

    def filter(self, record: logging.LogRecord) -> bool:
        shown = record.getMessage()
        masked = mask(shown)
        if masked != shown:
            record.msg, record.args = masked, ()
        return True


_MASKING = _Masking()


def _remember(key: Key) -> None:
    with _lock:
        _keys.add(key)
    for name in ("connection", "http11", "proxy"):
        logging.getLogger(f"httpcore2.{name}").addFilter(_MASKING)  # a second time does nothing
