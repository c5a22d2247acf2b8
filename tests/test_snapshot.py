"""A model of a hub as a folder: against a hub on the loopback, and no network beyond it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeai.cli import cli
from edgeai.errors import DoesNotFit, ModelNotFound, NetworkError, UsageError
from edgeai.evaluation import passport
from edgeai.fetch import snapshot as module
from edgeai.fetch.snapshot import choose, snapshot
from tests.checkpoints import make
from tests.loopback import Loopback, serve

COMMIT = "a" * 40
"""What the loopback answers for every file."""
REPO = "someone/tiny-model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A hub with one model, beside which lie code, a picture and the same weights once more."""
    with serve() as state:
        files = {item.name: item.read_bytes() for item in folder.iterdir()}
        files |= {"README.md": b"# hi", "modeling_x.py": b"raise SystemExit", "pytorch_model.bin": b"x" * 99}
        publish(state, files)
        monkeypatch.setenv("HF_ENDPOINT", state.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache é"))
        yield state


def publish(state: Loopback, files: dict[str, bytes]) -> None:
    siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
    facts = {"_id": "1", "id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
    state.files[f"/api/models/{REPO}"] = json.dumps(facts).encode()
    state.files[f"/api/models/{REPO}/revision/main"] = json.dumps(facts).encode()
    for name, content in files.items():
        state.files[f"/{REPO}/resolve/{COMMIT}/{name}"] = content


def fetched(state: Loopback) -> set[str]:
    return {name.rpartition("/")[2] for method, name, _ in state.requests if method == "GET" and "/resolve/" in name}


def test_only_what_a_conversion_reads_is_downloaded(hub: Loopback, folder: Path) -> None:
    found = snapshot(f"hf:{REPO}")
    assert fetched(hub) == {item.name for item in folder.iterdir()}
    assert (found.path / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert (found.name, found.origin) == ("tiny-model", f"hf:{REPO}@{COMMIT}")


def test_what_is_in_the_cache_is_not_downloaded_again(hub: Loopback) -> None:
    first = snapshot(f"hf:{REPO}@main")
    hub.requests.clear()
    assert snapshot(f"hf:{REPO}@main") == first
    assert fetched(hub) == set()


def test_offline_the_cache_is_enough_and_nothing_is_asked(hub: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAI_OFFLINE", "1")
    with pytest.raises(NetworkError, match="EDGEAI_OFFLINE"):
        snapshot(f"hf:{REPO}")
    assert hub.requests == []
    monkeypatch.delenv("EDGEAI_OFFLINE")
    online = snapshot(f"hf:{REPO}@main")
    monkeypatch.setenv("EDGEAI_OFFLINE", "1")
    hub.requests.clear()
    assert snapshot(f"hf:{REPO}@{COMMIT}") == online
    assert hub.requests == []


def test_a_missing_repository_is_not_found(hub: Loopback) -> None:
    with pytest.raises(ModelNotFound, match="someone/other"):
        snapshot("hf:someone/other")
    assert fetched(hub) == set()


@pytest.mark.usefixtures("hub")
def test_a_hub_that_is_gone_is_a_network_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match="someone/tiny-model"):
        snapshot(f"hf:{REPO}")


@pytest.mark.parametrize("source", ["hf:", "hf:name", "hf:a/b/c", "hf:../../etc", "hf:a/..", "hf:a/b@", "hf:a b/c"])
def test_another_form_is_an_error_before_the_network(source: str) -> None:
    with pytest.raises(UsageError, match="owner/repo"):
        snapshot(source)


def test_a_full_disk_is_told_before_the_first_byte(hub: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 10

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _path: Full)
    with pytest.raises(DoesNotFit, match=r"0\.00 GB are free"):
        snapshot(f"hf:{REPO}")
    assert fetched(hub) == set()


def test_a_repository_without_weights_is_refused(hub: Loopback) -> None:
    publish(hub, {"config.json": b"{}", "model.onnx": b"x"})
    with pytest.raises(ModelNotFound, match="no weights"):
        snapshot(f"hf:{REPO}")


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["a.py", "config.json", "model.safetensors", "pytorch_model.bin"], ["config.json", "model.safetensors"]),
        (["pytorch_model.bin", "vocab.txt", "flax_model.msgpack"], ["vocab.txt", "pytorch_model.bin"]),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (["1_Pooling/config.json", "modules.json", "model.safetensors", "onnx/model.onnx"],
         ["1_Pooling/config.json", "modules.json", "model.safetensors"]),
        (["adapter_config.json", "adapter_model.safetensors"], ["adapter_config.json", "adapter_model.safetensors"]),
        (["model.gguf"], []),
    ],
)  # fmt: skip
def test_weights_are_chosen_once(files: list[str], chosen: list[str]) -> None:
    assert choose(dict.fromkeys(files, 0)) == chosen


def test_a_model_of_the_hub_is_converted_and_its_commit_is_in_the_passport(
    hub: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passport, "no_torch", lambda _plan: "not wanted in this test")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["convert", f"hf:{REPO}"])
    assert (result.exit_code, result.stdout) == (0, "tiny-model.gguf\n"), result.stderr
    paper = json.loads((tmp_path / "tiny-model.gguf.passport.json").read_text())
    assert paper["source"]["origin"] == f"hf:{REPO}@{COMMIT}"
    assert hub.requests
