"""The header of a GGUF file on a hub or a web server, read in ranges: the weights are never downloaded.

What was read is put into a file of the right size with a hole for the weights, so that the one strict reader of headers reads it.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2

from converters.gguf_cursor import Cursor
from converters.header import MAGIC, check_magic, parse
from edgeai.artifact import Artifact, open_artifact
from edgeai.errors import InvalidModel, ModelNotFound, NetworkError, UsageError
from edgeai.fetch import is_offline
from edgeai.fetch.http import CONTENT_RANGE, TIMEOUT, refused, send, shown
from edgeai.types import Progress, no_progress

__all__ = ["is_remote", "remote_artifact"]

FIRST_BYTES, MOST_BYTES = 1 << 18, 1 << 26
"""The first range, and the longest header that is read: those of models with 262,144 tokens have 16 MB."""
HUB = re.compile(r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@([^@:\s]+))?(?::([\w.-]+))?")
USUAL = ("Q4_K_M", "Q4_0", "Q5_K_M", "Q8_0", "F16", "BF16")
"""What is looked at when no quant is named and a repository has several."""
PART = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")


class More(Exception):
    """The header goes on for at least `bytes` bytes of the file."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.bytes = count


@dataclass(slots=True)
class PartCursor(Cursor):
    """A cursor over the first bytes of a file of `size` bytes; raises More where it needs what follows."""

    def need(self, count: int, what: str) -> int:
        """Go on, or ask for more."""
        start = Cursor.need(self, count, what)
        if self.at > len(self.data):
            raise More(self.at)
        return start

    def skip_strings(self, length: int, key: str) -> None:
        """Go past LENGTH strings, or ask for more."""
        at, data, unpack, have = self.at, self.data, struct.Struct("<Q").unpack_from, len(self.data)
        for _ in range(length):
            if at + 8 > have:
                raise More(at + 8)
            at += 8 + unpack(data, at)[0]
            if at > self.size:
                self.fail(f"is not valid: a string in {key!r} goes beyond the end of the file")
        self.at = at


def is_remote(ref: str) -> bool:
    """Return whether REF names a file on a hub or a web server."""
    return ref.startswith(("hf:", "https://", "http://"))


def remote_artifact(ref: str, progress: Progress = no_progress) -> Artifact:
    """Return the facts of the GGUF file that REF names, hf:owner/repo[@revision][:quant] or a URL, from its header alone.

    Raises NetworkError where it cannot be reached or EDGEAI_OFFLINE is set, ModelNotFound for what is not there, InvalidModel for a file
    that is no model or has a header of a hostile size, UsageError for another form.
    """
    if is_offline():
        raise NetworkError(
            f"EDGEAI_OFFLINE is set, and {ref!r} is not on this machine", hint="unset EDGEAI_OFFLINE, or name a file"
        )
    url, secret = _resolve(ref, progress) if ref.startswith("hf:") else (ref, None)
    name = Path(httpx2.URL(url).path).name or "model.gguf"
    progress(f"reading the header of {name}", 0, None, "B")
    head, size = read_head(url, secret)
    with tempfile.TemporaryDirectory(prefix="edgeai-header-") as folder:
        path = Path(folder) / name
        with path.open("wb") as file:
            file.write(head)
            file.truncate(size)
        try:
            return replace(open_artifact(path), path=Path(name))
        except InvalidModel as error:
            raise InvalidModel(error.message.replace(str(path), ref), hint=error.hint) from None


def read_head(url: str, secret: str | None = None) -> tuple[bytes, int]:
    """Return as many first bytes of the file at URL as its header has, and the size of the whole file."""
    headers = {"User-Agent": f"edgeai/{importlib.metadata.version('edgeai')}", "Accept-Encoding": "identity"}
    head, wanted, size = b"", FIRST_BYTES, 0
    try:
        with httpx2.Client(follow_redirects=False, timeout=TIMEOUT, headers=headers) as client:
            while True:
                part, size = _read_range(client, url, len(head), wanted, secret)
                head += part
                try:
                    _check(url, head, size)
                except More as more:
                    if len(head) >= size or more.bytes > MOST_BYTES:
                        limit = f"its header has more than {MOST_BYTES >> 20} MiB, which no model needs"
                        raise InvalidModel(f"{shown(url)} is not valid: {limit}", hint="check the file") from None
                    wanted = min(MOST_BYTES, size, max(more.bytes, 4 * len(head)))
                else:
                    return head, size
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        what = str(error) or type(error).__name__
        raise NetworkError(f"{shown(url)} cannot be read: {what}", hint="check the address and the network") from None


def _check(url: str, head: bytes, size: int) -> None:
    """Read HEAD as the header of a file of SIZE bytes. Raises More, InvalidModel."""
    path = Path(httpx2.URL(url).path)
    check_magic(path, head[:512])
    parse(PartCursor(path=path, data=head, size=size, at=len(MAGIC)))


def _read_range(client: httpx2.Client, url: str, start: int, end: int, secret: str | None) -> tuple[bytes, int]:
    """Return the bytes of URL from START up to END, and the size of the whole file; what a server sends beyond is not read."""
    headers = {"Range": f"bytes={start}-{end - 1}"} | ({"Authorization": f"Bearer {secret}"} if secret else {})
    response = send(client, url, headers)
    try:
        if response.status_code in (401, 403, 404, 410):
            raise ModelNotFound(f"{shown(url)} answered HTTP {response.status_code}", hint="check the address")
        if response.status_code not in (200, 206):
            raise refused(url, response.status_code)
        skip, size = start, int(response.headers.get("content-length", "0") or 0)
        if response.status_code == 206:
            match = CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            if match is None or int(match[1]) != start or match[2] == "*":
                raise NetworkError(f"{shown(url)} answers ranges with nonsense", hint="download the file")
            skip, size = 0, int(match[2])
        if not size:
            raise NetworkError(f"{shown(url)} does not say how large it is", hint="download the file")
        found = bytearray()
        for chunk in response.iter_raw():
            found += chunk
            if len(found) >= skip + end - start:
                break
        part = bytes(found[skip : skip + end - start])
        if len(part) < min(end, size) - start:
            raise httpx2.ReadError(f"the connection ended after {start + len(part)} of {size} bytes")
        return part, size
    finally:
        response.close()


# ---- the hub


def _resolve(ref: str, progress: Progress) -> tuple[str, str | None]:
    """Return the URL of the file that REF names on the hub, and the token for it."""
    from huggingface_hub import get_token, hf_hub_url

    from edgeai.fetch.snapshot import explained, listing

    match = HUB.fullmatch(ref)
    if match is None:
        raise UsageError(f"{ref!r} is not hf:owner/repo, with @revision or :quant", hint="copy the name from the hub")
    repo, revision, quant = match.groups()
    progress(f"looking up {repo}", 0, None)
    with explained(repo, revision):
        commit, files = listing(repo, revision)
    name = choose_file(ref, repo, list(files), quant)
    endpoint = os.environ.get("HF_ENDPOINT")
    token = get_token()
    return hf_hub_url(repo, name, revision=commit, endpoint=endpoint), token if isinstance(token, str) else None


def choose_file(ref: str, repo: str, files: Sequence[str], quant: str | None) -> str:
    """Return the .gguf file of QUANT among FILES, or a usual one. Raises ModelNotFound with what there is."""
    found = {name: _quant_of(name) for name in sorted(files) if name.endswith(".gguf") and "mmproj" not in name.lower()}
    if not found:
        weights = any(name.endswith((".safetensors", ".bin")) for name in files)
        hint = f"edgeai convert hf:{repo} --quant q4_k_m makes one" if weights else "name a repository with .gguf files"
        raise ModelNotFound(f"{ref!r} has no .gguf file", hint=hint)
    for wanted in (quant,) if quant else USUAL:
        for name, kind in found.items():
            if kind.lower() == wanted.lower():
                return _whole(ref, name)
    if quant:
        kinds = ", ".join(dict.fromkeys(kind for kind in found.values() if kind)) or "without a quant in their names"
        raise ModelNotFound(f"{repo!r} has no .gguf file of {quant!r}", hint=f"it has {kinds}")
    return _whole(ref, next(iter(found)))


def _whole(ref: str, name: str) -> str:
    if PART.search(name):
        hint = "download all parts and join them with llama-gguf-split --merge"
        raise InvalidModel(f"{ref!r} is split: {name!r} is one part", hint=hint)
    return name


QUANT = re.compile(r"(?:^|[.\-_/])((?:I?Q\d|TQ\d|MXFP4|NVFP4)\w*|F16|FP16|BF16|F32|FP32)(?=[.\-/]|$)", re.IGNORECASE)


def _quant_of(name: str) -> str:
    """Return the quant in a file's name, "" without one."""
    stem = PART.sub(".gguf", name).removesuffix(".gguf")
    named: Mapping[int, str] = {at: match[1] for at, match in enumerate(QUANT.finditer(stem))}
    return named[max(named)].upper() if named else ""
