"""Files from a URL: resumed where the server can, redirected only to http and https, and never from https to http."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path

import httpx2

from edgeai.errors import NetworkError
from edgeai.fetch.sink import Sink, Wanted
from edgeai.types import Progress

__all__ = ["fetch"]

MAX_REDIRECTS = 5
ATTEMPTS = 4
TIMEOUT = httpx2.Timeout(60, connect=15)
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def fetch(url: str, target: Path, want: Wanted, progress: Progress) -> None:
    """Write the file at URL to TARGET and check it.

    What an earlier attempt left in TARGET is continued when the server says that its file is still the same one
    (If-Range, RFC 9110 section 13.1.5). Raises NetworkError when the download fails; what has come so far stays.
    """
    headers = {"User-Agent": f"edgeai/{importlib.metadata.version('edgeai')}", "Accept-Encoding": "identity"}
    with httpx2.Client(follow_redirects=False, timeout=TIMEOUT, headers=headers) as client:
        for attempt in range(1, ATTEMPTS + 1):
            before = size(target)
            try:
                transfer(client, url, target, want, progress)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                if attempt == ATTEMPTS or size(target) <= before:
                    what = str(error) or type(error).__name__
                    hint = "check the network and try again; what has come so far is kept"
                    raise NetworkError(f"{shown(url)} cannot be downloaded: {what}", hint=hint) from None
            else:
                return
            finally:
                if size(target) in (0, want.size_bytes):  # there is nothing to go on with
                    marks(target).unlink(missing_ok=True)


def size(target: Path) -> int:
    """Return how many bytes of TARGET are there."""
    return target.stat().st_size if target.exists() else 0


def marks(target: Path) -> Path:
    """Return the file that remembers which URL and version the bytes in TARGET are from."""
    return target.with_name(f"{target.name}.json")


def transfer(client: httpx2.Client, url: str, target: Path, want: Wanted, progress: Progress) -> None:
    """Do one request and write its body."""
    mark = read_mark(target, url)
    start = size(target) if mark else 0
    if start >= want.size_bytes:
        start = 0
    response = send(client, url, {"Range": f"bytes={start}-", "If-Range": mark} if mark and start else {})
    try:
        if response.status_code == 416:
            response.close()
            response = send(client, url, {})
        if response.status_code not in (200, 206):
            raise refused(url, response.status_code)
        resume = response.status_code == 206 and continues(response, start, want)
        if response.status_code == 206 and not resume:
            response.close()
            response = send(client, url, {})
            if response.status_code != 200:
                raise refused(url, response.status_code)
        write_mark(target, url, response)
        label = f"downloading {Path(httpx2.URL(url).path).name or shown(url)}"
        with Sink(target, want, shown(url), progress, label=label, resume=resume, keep=True) as sink:
            check_length(response, sink, resume=resume)
            for chunk in response.iter_raw():  # with a chunk size, a cut connection would lose what is buffered
                sink.write(chunk)
            if sink.done < want.size_bytes:
                raise httpx2.ReadError(f"the connection ended after {sink.done} of {want.size_bytes} bytes")
    finally:
        response.close()


def check_length(response: httpx2.Response, sink: Sink, *, resume: bool) -> None:
    """Raise HashMismatch when the server says that its file has another size, before it is downloaded."""
    stated = response.headers.get("content-length", "")
    if not resume and stated.isdigit() and int(stated) != sink.want.size_bytes:
        raise sink.mismatch(f"{stated} bytes")


def refused(url: str, status: int) -> NetworkError:
    """Return the error for a status that is no success."""
    hint = "the file is not there any more: check the catalogue" if status in (404, 410) else "try again later"
    return NetworkError(f"{shown(url)} answered HTTP {status}", hint=hint)


def send(client: httpx2.Client, url: str, headers: dict[str, str]) -> httpx2.Response:
    """Return the response to GET URL, its body unread, after following redirects; no other host is told an Authorization."""
    here = httpx2.URL(url)
    for _ in range(MAX_REDIRECTS + 1):
        response = client.send(client.build_request("GET", here, headers=headers), stream=True)
        if not response.has_redirect_location:
            return response
        response.close()
        there = here.join(response.headers["location"])
        if there.scheme not in ("http", "https") or (here.scheme == "https" and there.scheme == "http"):
            what = f"redirects from {here.scheme} to {there.scheme}: {shown(str(there))}"
            raise NetworkError(f"{shown(url)} {what}", hint="http and https are followed, https never to http")
        if there.host != here.host:
            headers = {name: value for name, value in headers.items() if name != "Authorization"}
        here = there
    raise NetworkError(f"{shown(url)} redirects more than {MAX_REDIRECTS} times", hint="check the address")


def continues(response: httpx2.Response, start: int, want: Wanted) -> bool:
    """Return whether a 206 answer begins at START of a file of the wanted size."""
    match = CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    return match is not None and int(match[1]) == start > 0 and match[2] in ("*", str(want.size_bytes))


def read_mark(target: Path, url: str) -> str | None:
    """Return the validator of the bytes in TARGET when they are from URL."""
    try:
        mark = json.loads(marks(target).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(mark, dict) or mark.get("url") != url or not isinstance(mark.get("validator"), str):
        return None
    return str(mark["validator"])


def write_mark(target: Path, url: str, response: httpx2.Response) -> None:
    """Remember the validator of RESPONSE: a strong ETag, else the date of the last change; without one, nothing."""
    etag = response.headers.get("etag", "")
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("last-modified")
    if validator:
        marks(target).write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
    else:
        marks(target).unlink(missing_ok=True)


def shown(url: str) -> str:
    """Return URL without a password, query or fragment, for people and logs."""
    parts = httpx2.URL(url)
    return repr(str(parts.copy_with(username="", password="", query=None, fragment=None)))
