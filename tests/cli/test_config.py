"""`edgeai config` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import keyring
import keyring.backends.fail
import pytest
from click.testing import CliRunner, Result
from keyring.backend import KeyringBackend

from edgeai.cli import cli
from edgeai.config import config_path
from edgeai.configfile import example
from edgeai.store import Store

SECRET = "sk-abcdefgh12345678"


class Memory(KeyringBackend):
    """A keyring that forgets."""

    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    backend = Memory()
    monkeypatch.setattr(keyring.core, "_keyring_backend", backend)
    return backend


@pytest.fixture(autouse=True)
def model_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "find", lambda _self, _name: tmp_path / "model.gguf")


def config(*arguments: str, **options: str) -> Result:
    return CliRunner().invoke(cli, ["config", *arguments], **options)  # type: ignore[arg-type]


def write(text: str) -> None:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text(text, encoding="utf-8")


CLOUD = '[[cloud]]\nname = "c"\nbase_url = "https://api.example.com/v1"\nmodel = "m"\n'


def test_init_writes_the_example_once() -> None:
    result = config("init")
    assert result.stdout.strip() == str(config_path())
    assert config_path().read_text(encoding="utf-8") == example()
    again = config("init")
    assert again.exit_code == 2
    assert "--force" in again.stderr
    write("mine")
    assert json.loads(config("init", "--force", "--json").stdout) == {"path": str(config_path())}
    assert config_path().read_text(encoding="utf-8") == example()


def test_path_says_whether_it_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config("path").stdout.strip() == str(config_path())
    assert "not there yet" in config("path").stderr
    monkeypatch.setenv("EDGEAI_CONFIG", str(tmp_path / "é.toml"))
    assert json.loads(config("path", "--json").stdout) == {"path": str(tmp_path / "é.toml"), "exists": False}


def test_show_has_values_origins_and_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    write(CLOUD + 'api_key = "env:MY_KEY"\n')
    monkeypatch.setenv("MY_KEY", SECRET)
    monkeypatch.setenv("EDGEAI_ROUTING_POLICY", "cloud-first")
    out = config("show").stdout
    assert "cloud-first  (environment EDGEAI_ROUTING_POLICY)" in out
    assert "env:MY_KEY  (file)" in out
    assert SECRET not in out
    found = json.loads(config("show", "--json").stdout)
    assert {"name": "routing.hedge_s", "value": 4.0, "origin": "default"} in found["settings"]


def test_a_wrong_file_is_an_error_with_its_hint() -> None:
    write("[routing]\npolcy = 'offline'\n")
    for verb in ("show", "check"):
        result = config(verb)
        assert result.exit_code == 2
        assert "did you mean 'routing.policy'?" in result.stderr


def test_check_says_where_an_endpoint_is_and_whose_key_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    write(CLOUD + 'api_key = "env:MY_KEY"\n')
    monkeypatch.setenv("MY_KEY", SECRET)
    result = config("check")
    assert result.exit_code == 0
    assert "goes to api.example.com" in result.stdout
    assert "a key from MY_KEY" in result.stdout
    assert SECRET not in result.output


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('api_key = "env:NOT_SET"', "NOT_SET is not set"),
        ('api_key = "keyring:none"', "the keyring has no password"),
        ('api_key = "env:MY_KEY"\nca_file = "/none.pem"', "'/none.pem' is not there"),
    ],
)
def test_check_finds_what_is_missing(memory: Memory, monkeypatch: pytest.MonkeyPatch, line: str, what: str) -> None:
    write(CLOUD + line)
    monkeypatch.setenv("MY_KEY", SECRET)
    result = config("check")
    assert result.exit_code == 2
    assert what in result.stdout
    assert not json.loads(config("check", "--json").stdout)["ok"]


def test_check_refuses_plain_http_to_other_machines(memory: Memory) -> None:
    write(CLOUD.replace("https", "http"))
    result = config("check")
    assert result.exit_code == 2
    assert "plain http" in result.stdout


def test_a_key_goes_into_the_keyring_and_is_found_there(memory: Memory) -> None:
    result = config("set-key", "work", input=f"{SECRET}\n")
    assert result.exit_code == 0
    assert memory.kept == {("edgeai", "work"): SECRET}
    assert 'api_key = "keyring:work"' in result.stderr
    assert SECRET not in result.output
    write(CLOUD + 'api_key = "keyring:work"\n')
    assert config("check").exit_code == 0


@pytest.mark.parametrize("key", ["", "\n", "with blank\n", "schlüssel\n"])
def test_what_is_no_key_is_refused_and_not_shown(memory: Memory, key: str) -> None:
    result = config("set-key", "work", input=key)
    assert result.exit_code == 2
    assert memory.kept == {}
    assert not key.strip() or key.strip() not in result.output


def test_a_key_in_place_of_a_name_is_not_shown(memory: Memory) -> None:
    result = config("set-key", f"{SECRET} x", input=f"{SECRET}\n")
    assert result.exit_code == 2
    assert SECRET not in result.output


def test_a_machine_without_a_keyring_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring.core, "_keyring_backend", keyring.backends.fail.Keyring())
    result = config("set-key", "work", input=f"{SECRET}\n")
    assert result.exit_code == 2
    assert "no keyring" in result.stderr
    assert "env:NAME" in result.stderr
    assert SECRET not in result.output
