"""Keys: where they are found, whom they are for, and that they are shown nowhere."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest

from edgeai.engines.cloud import key as keys
from edgeai.engines.cloud.address import read_address
from edgeai.engines.cloud.key import Found, Key, find_key, mask
from edgeai.errors import UsageError

OPENAI = "https://api.openai.com/v1"
OTHER = "https://other.example/v1"


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], str]:
    """A keyring of the test's own."""
    import keyring

    found: dict[tuple[str, str], str] = {}
    monkeypatch.setattr(keyring, "get_password", lambda service, user: found.get((service, user)))
    return found


def find(base_url: str, reference: str | None = None, **environment: str) -> Found:
    return find_key(reference, read_address(base_url), environment)


def secret(found: Found) -> str | None:
    return None if found.key is None else found.key.header(found.key.origin).decode().removeprefix("Bearer ")


def test_a_reference_goes_before_everything() -> None:
    assert secret(find(OPENAI, "env:MINE", MINE="mine", OPENAI_API_KEY="theirs")) == "mine"


def test_a_variable_that_is_not_set_is_a_problem_even_where_another_key_is_there() -> None:
    found = find(OPENAI, "env:MINE", OPENAI_API_KEY="theirs")
    assert found.key is None
    assert found.problem == "the variable MINE is not set"


def test_the_key_of_openai_goes_to_openai_and_to_the_base_url_that_came_with_it() -> None:
    assert secret(find(OPENAI, OPENAI_API_KEY="key")) == "key"
    assert secret(find(OTHER, OPENAI_API_KEY="key", OPENAI_BASE_URL="https://other.example/v2")) == "key"


@pytest.mark.parametrize(
    "elsewhere",
    [
        None,
        OPENAI,
        "http://other.example/v1",
        "https://other.example:444/v1",
        "https://evil/?https://other.example",
        "nonsense",
    ],
)
def test_the_key_of_openai_goes_nowhere_else(elsewhere: str | None) -> None:
    environment = {"OPENAI_API_KEY": "key"} | ({"OPENAI_BASE_URL": elsewhere} if elsewhere else {})
    assert find(OTHER, **environment) == Found()


def test_the_keyring_is_asked_by_name_and_by_host(entries: dict[tuple[str, str], str]) -> None:
    entries["edgeai", "work"] = "named"
    entries["edgeai", "other.example"] = "of-the-host"
    assert secret(find(OTHER, "keyring:work")) == "named"
    assert secret(find(OTHER)) == "of-the-host"


def test_a_name_that_the_keyring_does_not_have_is_a_problem() -> None:
    assert "the keyring has no password of 'edgeai' for 'work'" in str(find(OTHER, "keyring:work").problem)


def test_a_keyring_that_is_not_there_is_no_problem_where_nobody_named_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import keyring

    def fail(service: str, user: str) -> str:
        raise RuntimeError("no D-Bus, and here is a secret")

    monkeypatch.setattr(keyring, "get_password", fail)
    assert find(OTHER) == Found()
    assert "RuntimeError" in str(find(OTHER, "keyring:work").problem)
    assert "secret" not in str(find(OTHER, "keyring:work").problem)


def test_a_keyring_that_waits_for_its_password_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import keyring

    over = threading.Event()
    monkeypatch.setattr(keys, "KEYRING_S", 0.05)
    monkeypatch.setattr(keyring, "get_password", lambda *_: over.wait(20))
    assert "did not answer" in str(find(OTHER, "keyring:work").problem)
    over.set()


def test_an_endpoint_on_this_machine_needs_no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    import keyring

    def fail(service: str, user: str) -> str:
        pytest.fail("the keyring was asked")

    monkeypatch.setattr(keyring, "get_password", fail)
    assert find("http://127.0.0.1:1/v1") == Found()


def test_openai_without_a_key_is_known_before_anything_is_sent() -> None:
    assert find(OPENAI).problem == "there is no key for it"


def test_a_key_is_for_its_origin_only() -> None:
    key = Key("sk-1234567890", origin="https://h", source="a test")
    assert key.header("https://h") == b"Bearer sk-1234567890"
    for other in ("http://h", "https://h:444", "https://g"):
        with pytest.raises(UsageError):
            key.header(other)


@pytest.mark.parametrize("text", ["", " ", "a\nb: c", "a b", "clé", "a\x00"])
def test_what_is_no_key_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        Key(text, origin="https://h", source="a test")
    assert not text.strip() or text.strip() not in raised.value.message


def test_the_blank_that_ends_a_file_is_no_part_of_a_key() -> None:
    assert Key("abcd\n", origin="o", source="s").header("o") == b"Bearer abcd"


def test_a_key_can_be_neither_shown_nor_pickled_nor_copied() -> None:
    key: Any = Key("sk-1234567890", origin="https://h", source="a test")
    shown = f"{key} {key!r} {[key]} {Found(key=key)}"
    assert "1234567890" not in shown
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            leak(key)
    assert not hasattr(key, "__dict__")


def test_keys_are_masked_in_texts_while_they_live() -> None:
    key = Key("sk-12/34+567890", origin="https://h", source="a test")
    assert mask("a sk-12/34+567890 b sk-12%2F34%2B567890") == "a [key] b [key]"
    del key
