"""The configuration: every key by file and by environment, strict, and with nothing secret in an error."""

from __future__ import annotations

import stat
import tomllib
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import pytest

from edgeai.config import TABLES, CloudSettings, Config, config_path, read_config
from edgeai.configfile import ABOUT, SHOWN, example, settings_in_effect, write_example
from edgeai.errors import OutputError, UsageError

CLOUD = {"name": "c", "base_url": "https://api.example.com/v1", "model": "m"}
ALL = [(table, spec) for table, cls in {**TABLES, "cloud": CloudSettings}.items() for spec in fields(cls)]
IDS = [f"{table}.{spec.name}" for table, spec in ALL]
OTHER: dict[str, Any] = {
    "routing.local_model": "tiny", "privacy.names_model": "n.onnx", "privacy.words": ["a", "b"], "privacy.patterns": ["a{2,3}"],
    "privacy.files": ["*.key"], "privacy.folders": ["/x"], "cloud.name": "d", "cloud.base_url": "http://127.0.0.1:1/v1",
    "cloud.model": "n", "cloud.api_key": "env:KEY", "cloud.ca_file": "ca.pem",
}  # fmt: skip
SECRET = "sk-abcdefgh12345678"


def other(table: str, spec: Field[Any]) -> Any:
    """A value of a key that is not its default."""
    if (name := f"{table}.{spec.name}") in OTHER:
        return OTHER[name]
    if "options" in spec.metadata:
        return next(option for option in spec.metadata["options"] if option != spec.default)
    if isinstance(spec.default, bool):
        return not spec.default
    low, high = spec.metadata["low"], spec.metadata["high"]
    value = low if spec.default != low else high
    return int(value) if spec.type == "int" else float(value)


def toml(values: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else repr(value)

    return "\n".join(f"{key} = {text(value)}" for key, value in values.items())


def read(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> Config:
    path = tmp_path / "é c.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path, environment=environment or {})


def value_of(config: Config, table: str, key: str) -> Any:
    return getattr(config.cloud[0] if table == "cloud" else getattr(config, table), key)


def as_read(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize(("table", "spec"), ALL, ids=IDS)
def test_every_key_is_read_from_the_file(tmp_path: Path, table: str, spec: Field[Any]) -> None:
    value = other(table, spec)
    head = "[[cloud]]" if table == "cloud" else f"[{table}]"
    values = (CLOUD if table == "cloud" else {}) | {spec.name: value}
    assert value_of(read(tmp_path, f"{head}\n{toml(values)}"), table, spec.name) == as_read(value)


@pytest.mark.parametrize(("table", "spec"), ALL, ids=IDS)
def test_every_key_is_read_from_the_environment_before_the_file(tmp_path: Path, table: str, spec: Field[Any]) -> None:
    value = other(table, spec)
    text = ",".join(value) if isinstance(value, list) else str(value)
    variable = f"EDGEAI_{table}_{spec.name}".upper()
    config = read(tmp_path, f"[[cloud]]\n{toml(CLOUD)}", {variable: text})
    assert value_of(config, table, spec.name) == as_read(value)


@pytest.mark.parametrize(("table", "spec"), ALL, ids=IDS)
def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path, table: str, spec: Field[Any]) -> None:
    head = "[[cloud]]" if table == "cloud" else f"[{table}]"
    values = (CLOUD if table == "cloud" else {}) | {spec.name: {}}
    with pytest.raises(UsageError):
        read(tmp_path, f"{head}\n{toml(values)}")


@pytest.mark.parametrize(
    ("table", "spec"), [pair for pair in ALL if "low" in pair[1].metadata],
    ids=[name for name, pair in zip(IDS, ALL, strict=True) if "low" in pair[1].metadata],
)  # fmt: skip
def test_a_number_out_of_its_range_is_refused(tmp_path: Path, table: str, spec: Field[Any]) -> None:
    for beyond in (spec.metadata["low"] - 1, spec.metadata["high"] * 2 + 1):
        head = "[[cloud]]" if table == "cloud" else f"[{table}]"
        values = (CLOUD if table == "cloud" else {}) | {
            spec.name: int(beyond) if "int" in str(spec.type) else float(beyond)
        }
        with pytest.raises(UsageError, match=f"{table}.{spec.name}"):
            read(tmp_path, f"{head}\n{toml(values)}")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_no_number_is_infinite(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        read(tmp_path, f"[routing]\nhedge_s = {text}")
    with pytest.raises(UsageError):
        read(tmp_path, "", {"EDGEAI_ROUTING_HEDGE_S": text})


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("[routng]", "'routng' is not a setting", "did you mean 'routing'?"),
        ("[routing]\npolcy = 'offline'", "'routing.polcy' is not a setting", "did you mean 'routing.policy'?"),
        ("[routing]\npolicy = 'cloud'", "'cloud' is not possible", "one of: local-only"),
        ("[cloud]\nname = 'x'", "not a list of tables", "two brackets"),
        ("cloud = [1]", "not a table", "[[cloud]]"),
        ("routing = 3", "is not a table", "[routing]"),
        ("[[cloud]]\nname = 'x'\nmodel = 'm'", "no cloud.base_url", "below [[cloud]], or set EDGEAI_CLOUD_BASE_URL"),
        ("[privacy]\npatterns = ['(']", "no regular expression", "mend"),
        ("policy = ", "is not TOML", "mend that line"),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(tmp_path: Path, text: str, what: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert what in caught.value.message
    assert hint in str(caught.value.hint)


def test_an_unknown_variable_of_a_table_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        read_config(environment={"EDGEAI_ROUTING_POLCY": "offline"})
    assert "did you mean 'routing.policy'?" in str(caught.value.hint)


@pytest.mark.parametrize("variable", ["EDGEAI_HOME", "EDGEAI_OFFLINE", "edgeai_routing_policy", "OTHER"])
def test_other_variables_are_left_alone(variable: str) -> None:
    assert read_config(environment={variable: "x"}) == Config()


def test_a_variable_that_is_empty_says_nothing(tmp_path: Path) -> None:
    """Above all it does not empty the words that keep a text here."""
    text = "[privacy]\nwords = ['acme']\n[routing]\nresume_local = true"
    config = read(tmp_path, text, {"EDGEAI_PRIVACY_WORDS": "", "EDGEAI_ROUTING_RESUME_LOCAL": " "})
    assert config.privacy.words == ("acme",)
    assert config.routing.resume_local


@pytest.mark.parametrize(
    ("text", "patterns"),
    [(r"\d{3,5}", (r"\d{3,5}",)), (r"[A-Z]{2,3}\d", (r"[A-Z]{2,3}\d",)), (r'["a,b", "c"]', ("a,b", "c"))],
)
def test_a_pattern_with_commas_stays_one(text: str, patterns: tuple[str, ...]) -> None:
    assert read_config(environment={"EDGEAI_PRIVACY_PATTERNS": text}).privacy.patterns == patterns


@pytest.mark.parametrize(("text", "value"), [("1", True), ("Yes", True), ("true", True), ("0", False), ("no", False)])
def test_yes_and_no_have_several_words(text: str, value: bool) -> None:
    assert read_config(environment={"EDGEAI_LEDGER_BODIES": text}).ledger.bodies is value
    with pytest.raises(UsageError, match="EDGEAI_LEDGER_BODIES 'maybe'"):
        read_config(environment={"EDGEAI_LEDGER_BODIES": "maybe"})


# Endpoints.


def test_endpoints_keep_their_order_and_need_names_of_their_own(tmp_path: Path) -> None:
    first, second = f"[[cloud]]\n{toml(CLOUD)}\n", f"[[cloud]]\n{toml(CLOUD | {'name': 'b'})}\n"
    assert [cloud.name for cloud in read(tmp_path, first + second).cloud] == ["c", "b"]
    with pytest.raises(UsageError, match=r"two .*cloud.* of the name 'c'"):
        read(tmp_path, first + first)


def test_the_environment_speaks_of_the_first_endpoint_or_makes_one(tmp_path: Path) -> None:
    two = f"[[cloud]]\n{toml(CLOUD)}\n[[cloud]]\n{toml(CLOUD | {'name': 'b'})}\n"
    assert [cloud.model for cloud in read(tmp_path, two, {"EDGEAI_CLOUD_MODEL": "new"}).cloud] == ["new", "m"]
    made = {"EDGEAI_CLOUD_BASE_URL": "https://h.example/v1", "EDGEAI_CLOUD_MODEL": "m"}
    assert [cloud.name for cloud in read_config(environment=made).cloud] == ["cloud"]


def test_the_variables_of_openai_make_an_endpoint_where_the_file_has_none(tmp_path: Path) -> None:
    environment = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": SECRET, "OPENAI_MODEL": "m"}
    (cloud,) = read_config(environment=environment).cloud
    assert (cloud.name, cloud.model, cloud.api_key) == ("openai", "m", "env:OPENAI_API_KEY")
    assert read(tmp_path, f"[[cloud]]\n{toml(CLOUD)}", environment).cloud[0].name == "c"


def test_a_key_alone_makes_no_endpoint() -> None:
    """Many have OPENAI_API_KEY set for other programs: nothing may leave because of that."""
    assert read_config(environment={"OPENAI_API_KEY": SECRET}).cloud == ()


@pytest.mark.parametrize(
    "key",
    [repr(SECRET), repr(f"env:{SECRET}"), f"['{SECRET}']", f"{{a = '{SECRET}'}}", repr(f"keyring: {SECRET}"), "'env:'"],
)
def test_a_key_in_the_file_is_refused_and_not_shown(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match="no reference") as caught:
        read(tmp_path, f"[[cloud]]\n{toml(CLOUD)}\napi_key = {key}")
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    "text",
    [
        f"[cloud]\napi_key = '{SECRET}'",
        f"cloud = ['{SECRET}']",
        f"[[cloud]]\nname = 'x'\napikey = '{SECRET}'",
        f"api_key = '{SECRET}'",
        f"[[cloud]]\napi_key = {SECRET}",
        f"[[cloud]]\nname = 'x'\nmodel = 'm'\nbase_url = 'https://me:{SECRET}@host/v1'",
    ],
)
def test_a_key_in_a_wrong_place_is_not_shown_either(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"


def test_a_key_in_the_environment_is_refused_and_not_shown() -> None:
    environment = {"EDGEAI_CLOUD_BASE_URL": "https://h/v1", "EDGEAI_CLOUD_MODEL": "m", "EDGEAI_CLOUD_API_KEY": SECRET}
    with pytest.raises(UsageError, match="no reference") as caught:
        read_config(environment=environment)
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("url", ["ftp://h/v1", "h/v1", "https://", "https:///v1", ""])
def test_an_endpoint_needs_a_url(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="base_url"):
        read(tmp_path, f"[[cloud]]\n{toml(CLOUD | {'base_url': url})}")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "a\\n", "x" * 65])
def test_a_name_of_an_endpoint_is_a_word(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"cloud\.name"):
        read(tmp_path, f"[[cloud]]\n{toml(CLOUD)}".replace("'c'", f'"{name}"'))


# Files.


def test_no_file_is_as_good_as_an_empty_one(tmp_path: Path) -> None:
    assert read_config() == Config() == read(tmp_path, "")


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(environment={"EDGEAI_CONFIG": str(tmp_path / "none.toml")})


def test_a_file_that_cannot_be_read_is_an_error_named_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    path = config_path()
    path.mkdir(parents=True)  # a folder where the file should be: this holds for root too
    with pytest.raises(UsageError, match="cannot be read"):
        read_config()


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbf[routing]\npolicy = 'offline'\n")
    assert read_config(tmp_path / "c.toml").routing.policy == "offline"
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_config(tmp_path / "c.toml")


def test_the_hash_is_of_every_value(tmp_path: Path) -> None:
    assert read_config().sha256 == Config().sha256
    hashes = {read_config(environment={f"EDGEAI_TIMEOUTS_{key}": "7"}).sha256 for key in ("STALL_S", "TOTAL_S")}
    assert len(hashes | {Config().sha256}) == 3


# The example.


def test_the_example_changes_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, example()) == Config()


def test_the_example_has_every_key_with_its_default_and_says_what_it_is(tmp_path: Path) -> None:
    text = "\n".join(line.removeprefix("#") if not line.startswith("# ") else "" for line in example().splitlines())
    found = tomllib.loads(text)
    found["cloud"] = found["cloud"][0]
    assert {f"{table}.{key}" for table, values in found.items() for key in values} == set(IDS)
    assert set(ABOUT) == {*TABLES, "cloud", *IDS}
    for table, spec in ALL:
        if f"{table}.{spec.name}" not in SHOWN:
            assert as_read(found[table][spec.name]) == spec.default
        else:
            assert spec.default in (None, MISSING)
    assert read(tmp_path, text).cloud[0].api_key == "env:OPENAI_API_KEY"
    assert max(map(len, example().splitlines())) <= 115


def test_the_example_is_written_whole_for_the_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.toml"
    assert write_example(path) == path
    assert path.read_text(encoding="utf-8") == example()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("mine")
    with pytest.raises(OutputError, match="there already"):
        write_example(path)
    assert path.read_text() == "mine"
    write_example(path, force=True)
    assert path.read_text(encoding="utf-8") == example()
    assert [file.name for file in path.parent.iterdir()] == ["config.toml"]


def test_an_example_that_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("mine")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_example(path, force=True)
    assert path.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


# Where values come from.


def test_each_value_says_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"[routing]\npolicy = 'offline'\nattempts = 2\n[[cloud]]\n{toml(CLOUD)}\n", encoding="utf-8")
    environment = {"EDGEAI_ROUTING_ATTEMPTS": "4", "EDGEAI_CLOUD_MODEL": "n", "EDGEAI_PRIVACY_WORDS": ""}
    config, settings = settings_in_effect(path, environment=environment)
    found = {setting.name: (setting.value, setting.origin) for setting in settings}
    assert found["routing.policy"] == ("offline", "file")
    assert found["routing.attempts"] == (4, "environment EDGEAI_ROUTING_ATTEMPTS")
    assert found["routing.hedge_s"] == (config.routing.hedge_s, "default")
    assert found["privacy.words"] == ([], "default")
    assert found["cloud.c.model"] == ("n", "environment EDGEAI_CLOUD_MODEL")
    assert found["cloud.c.base_url"] == (CLOUD["base_url"], "file")


def test_an_endpoint_of_openai_variables_says_so() -> None:
    _config, settings = settings_in_effect(
        environment={"OPENAI_BASE_URL": "http://127.0.0.1/v1", "OPENAI_API_KEY": SECRET}
    )
    found = {setting.name: (setting.value, setting.origin) for setting in settings}
    assert found["cloud.openai.base_url"] == ("http://127.0.0.1/v1", "environment OPENAI_BASE_URL")
    assert found["cloud.openai.api_key"] == ("env:OPENAI_API_KEY", "environment OPENAI_API_KEY")
    assert SECRET not in repr(settings)
