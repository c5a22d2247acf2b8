"""Headers are read in ranges from a web server or a hub; weights never are, and nothing hostile is believed."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeai.artifact import open_artifact
from edgeai.errors import InvalidModel, ModelNotFound, NetworkError, UsageError
from edgeai.fetch import remote
from edgeai.fetch.remote import choose_file, remote_artifact
from tests.loopback import Loopback, serve
from tests.sparse import decoder, header

HEAD, SIZE = header(*decoder("llama", layers=4, width=256, heads=4, kv_heads=4, inner=512))
FILE = HEAD + bytes(SIZE - len(HEAD))


@pytest.fixture
def web() -> Iterator[Loopback]:
    with serve() as state:
        yield state


@pytest.fixture
def hub(web: Loopback, monkeypatch: pytest.MonkeyPatch) -> Loopback:
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return web


def publish(hub: Loopback, *names: str) -> None:
    facts = {"id": "o/m", "sha": "b" * 40, "siblings": [{"rfilename": name, "size": SIZE} for name in names]}
    for path in ("/api/models/o/m", "/api/models/o/m/revision/v2"):
        hub.files[path] = json.dumps(facts).encode()
    for name in names:
        hub.files[f"/o/m/resolve/{'b' * 40}/{name}"] = FILE


def test_the_facts_are_those_of_the_downloaded_file(web: Loopback, tmp_path: Path) -> None:
    web.files["/dir/m.Q4_K.gguf"] = FILE
    (tmp_path / "m.Q4_K.gguf").write_bytes(FILE)
    found, local = remote_artifact(f"{web.url}/dir/m.Q4_K.gguf"), open_artifact(tmp_path / "m.Q4_K.gguf")
    assert (found.name, found.size_bytes, found.tensors, found.metadata) == (
        local.name,
        local.size_bytes,
        local.tensors,
        local.metadata,
    )


def test_no_weights_are_asked_for(web: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_BYTES", 100)
    web.files["/m.gguf"] = FILE
    remote_artifact(f"{web.url}/m.gguf")
    ranges = [tuple(map(int, (asked or "").removeprefix("bytes=").split("-"))) for asked in web.gets("/m.gguf")]
    assert len(ranges) > 1
    assert [start for start, _ in ranges] == [0, *(end + 1 for _, end in ranges[:-1])]  # none twice
    assert ranges[-1][1] < 5 * len(HEAD) < SIZE


def test_a_server_without_ranges_is_read_only_as_far_as_needed(web: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_BYTES", 100)
    web.ranges = False
    web.files["/m.gguf"] = FILE
    assert remote_artifact(f"{web.url}/m.gguf").arch == "llama"


def test_a_header_of_hostile_size_is_refused(web: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MOST_BYTES", 1 << 19)
    array = struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 10, 1 << 17)
    web.files["/m.gguf"] = array + bytes(8 << 17) + bytes(10_000)
    with pytest.raises(InvalidModel, match="which no model needs"):
        remote_artifact(f"{web.url}/m.gguf")
    assert len(web.gets("/m.gguf")) <= 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>" + bytes(1000), "web page"),
        (HEAD[: len(HEAD) // 2], "download or convert it again"),
        (HEAD, "download or convert it again"),
        (b"GGUF" + bytes(500), "convert the model again"),
    ],
)
def test_what_is_no_model_is_told_by_its_first_bytes(web: Loopback, content: bytes, said: str) -> None:
    web.files["/m.gguf"] = content
    with pytest.raises(InvalidModel) as caught:
        remote_artifact(f"{web.url}/m.gguf")
    assert said in (caught.value.hint or "")
    assert "edgeai-header" not in caught.value.message


def test_what_is_not_there_is_not_found(web: Loopback) -> None:
    with pytest.raises(ModelNotFound, match="404"):
        remote_artifact(f"{web.url}/none.gguf")


def test_a_connection_that_is_cut_is_a_network_error(web: Loopback) -> None:
    web.files["/m.gguf"] = FILE
    web.cut_after = [50]
    with pytest.raises(NetworkError):
        remote_artifact(f"{web.url}/m.gguf")


def test_offline_nothing_is_asked(web: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAI_OFFLINE", "1")
    with pytest.raises(NetworkError, match="EDGEAI_OFFLINE"):
        remote_artifact(f"{web.url}/m.gguf")
    assert web.requests == []


def test_a_hub_repository_is_read_by_its_quant(hub: Loopback) -> None:
    publish(hub, "m-Q8_0.gguf", "m-Q4_K_M.gguf", "README.md")
    assert remote_artifact("hf:o/m").path.name == "m-Q4_K_M.gguf"
    assert remote_artifact("hf:o/m:q8_0").path.name == "m-Q8_0.gguf"
    assert remote_artifact("hf:o/m@v2:Q8_0").path.name == "m-Q8_0.gguf"


def test_a_token_is_for_the_hub_alone(hub: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeai.fetch import http

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    told: list[tuple[str, str | None]] = []

    class Client(http.httpx2.Client):
        def send(self, request, **options):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN202
            told.append((request.url.host, request.headers.get("authorization")))
            return super().send(request, **options)

    monkeypatch.setattr(remote.httpx2, "Client", Client)
    publish(hub, "m-Q8_0.gguf")
    path = f"/o/m/resolve/{'b' * 40}/m-Q8_0.gguf"
    with serve() as elsewhere:
        elsewhere.files["/blob"] = hub.files.pop(path)
        hub.redirects[path] = elsewhere.url.replace("127.0.0.1", "localhost") + "/blob"
        remote_artifact("hf:o/m")
    # A thread of transformers, left by another test, may ask its own hub beside this.
    assert dict(told) | {"huggingface.co": None} == {
        "127.0.0.1": "Bearer hf_secret",
        "localhost": None,
        "huggingface.co": None,
    }
    assert not [host for host, token in told if token and host != "127.0.0.1"]


@pytest.mark.parametrize("ref", ["hf:", "hf:o", "hf:o/m:", "hf:o/m/../x", "hf:o/m:q4 k"])
def test_another_form_of_a_name_is_a_usage_error(hub: Loopback, ref: str) -> None:
    with pytest.raises(UsageError):
        remote_artifact(ref)


def test_what_a_repository_has_is_told() -> None:
    with pytest.raises(ModelNotFound) as caught:
        choose_file("hf:o/m:q2_k", "o/m", ["a.Q8_0.gguf", "a.Q4_0.gguf"], "q2_k")
    assert caught.value.hint == "it has Q4_0, Q8_0"
    with pytest.raises(ModelNotFound) as caught:
        choose_file("hf:o/m", "o/m", ["model.safetensors"], None)
    assert "edgeai convert hf:o/m" in (caught.value.hint or "")
    with pytest.raises(InvalidModel, match="split"):
        choose_file("hf:o/m", "o/m", ["m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf"], None)
