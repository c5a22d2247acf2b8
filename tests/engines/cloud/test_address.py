"""Where an endpoint may be, and through which proxy it is reached."""

from __future__ import annotations

import pytest

from edgeai.engines.cloud.address import is_forbidden, is_loopback, read_address
from edgeai.engines.cloud.proxy import find_proxy
from edgeai.errors import UsageError


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1/chat/completions"),
        ("https://API.Example.:443/a/b", "https://api.example/a/b/chat/completions"),
        ("https://h:8443", "https://h:8443/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
        ("http://localhost:11434/v1", "http://localhost:11434/v1/chat/completions"),
        ("http://127.8.9.1/v1", "http://127.8.9.1/v1/chat/completions"),
        ("http://[::1]:80/v1", "http://[::1]/v1/chat/completions"),
        ("https://bücher.example/v1", "https://xn--bcher-kva.example/v1/chat/completions"),
    ],
)
def test_the_chat_api_is_below_the_base(base_url: str, url: str) -> None:
    assert read_address(base_url).url == url


@pytest.mark.parametrize(
    "base_url",
    [
        "", "h", "//h/v1", "ftp://h/v1", "file:///etc/passwd", "https://", "https://:8/v1", "https://h:0/v1", "https://h:99999/v1",
        "https://user@h/v1", "https://user:secret@h/v1", "https://h/v1?key=secret", "https://h/v1#secret", "https://h/v1?", "https://h /v1",
        "https://h\t/v1", "https://h\\@evil/v1", "https://h/v1\n", "http://h/v1", "http://192.168.0.4/v1", "http://0.0.0.0/v1",
        "https://169.254.169.254/v1", "https://169.254.1.1/v1", "https://[fe80::1]/v1", "https://[::ffff:169.254.169.254]/v1",
        "https://metadata.google.internal/v1", "https://[fd00:ec2::254]/v1", "https://100.100.100.200/v1", "https://224.0.0.1/v1",
        "http://localhost.evil.example/v1", "http://127.0.0.1.evil.example/v1", "https://" + "ü" * 80 + "/v1", "https://[::1/v1",
    ],
)  # fmt: skip
def test_what_is_no_safe_place_is_refused_and_its_secrets_are_not_shown(base_url: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_address(base_url)
    assert "secret" not in raised.value.message


def test_plain_http_leaves_this_machine_only_where_that_was_said() -> None:
    assert read_address("http://192.168.0.4:8080/v1", http=True).origin == "http://192.168.0.4:8080"


@pytest.mark.parametrize("host", ["localhost", "a.localhost", "127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example", "10.0.0.1", "0x7f000001", "2130706433", "h"])
def test_what_only_looks_like_this_machine_is_not_it(host: str) -> None:
    assert not is_loopback(host)


def test_link_local_addresses_are_forbidden_with_their_zone_too() -> None:
    assert is_forbidden("fe80::1%eth0")
    assert not is_forbidden("10.0.0.1")


def proxy(base_url: str, **environment: str) -> str | None:
    found = find_proxy(read_address(base_url, http=True), environment)
    return None if found is None else found.url


def test_the_proxy_of_the_environment_is_used_and_shown_without_its_password() -> None:
    found = find_proxy(read_address("https://h/v1"), {"HTTPS_PROXY": "http://me:se%20cret@proxy:3128"})
    assert found is not None
    assert found.url == "http://proxy:3128"
    assert found.auth == ("me", "se cret")
    assert "cret" not in repr(found)


def test_each_scheme_has_its_proxy_and_all_proxy_is_for_both() -> None:
    assert proxy("https://h", HTTPS_PROXY="http://a:1", HTTP_PROXY="http://b:2") == "http://a:1"
    assert proxy("http://h", HTTPS_PROXY="http://a:1", HTTP_PROXY="http://b:2") == "http://b:2"
    assert proxy("https://h", ALL_PROXY="c:3") == "http://c:3"
    assert proxy("https://h", https_proxy="http://small:1", HTTPS_PROXY="http://LARGE:1") == "http://small:1"
    assert proxy("https://h") is None


@pytest.mark.parametrize(
    "base_url", ["http://localhost:1/v1", "http://127.0.0.1:1", "http://[::1]:1", "https://a.localhost"]
)
def test_this_machine_is_never_reached_through_a_proxy(base_url: str) -> None:
    everything = {"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:1", "ALL_PROXY": "http://p:1"}
    assert proxy(base_url, **everything) is None


@pytest.mark.parametrize(
    ("exceptions", "direct"),
    [
        ("*", True), ("h.example", True), (".example", True), ("*.example", True), ("example", True), ("other, h.example", True),
        ("h.example:443", True), ("h.example:80", False), ("xample", False), ("g.example", False), ("", False),
    ],
)  # fmt: skip
def test_no_proxy_makes_exceptions(exceptions: str, direct: bool) -> None:
    found = proxy("https://h.example/v1", HTTPS_PROXY="http://p:1", NO_PROXY=exceptions)
    assert (found is None) == direct


def test_no_proxy_knows_networks() -> None:
    assert proxy("http://10.1.2.3/v1", HTTP_PROXY="http://p:1", NO_PROXY="10.0.0.0/8") is None
    assert proxy("http://11.1.2.3/v1", HTTP_PROXY="http://p:1", NO_PROXY="10.0.0.0/8") == "http://p:1"


def test_http_proxy_means_nothing_to_a_cgi_script() -> None:
    assert proxy("http://h", HTTP_PROXY="http://p:1", REQUEST_METHOD="GET") is None


@pytest.mark.parametrize("text", ["socks5://p:1", "https://p:1", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_a_problem_and_not_passed_by(text: str) -> None:
    found = find_proxy(read_address("https://h"), {"HTTPS_PROXY": text})
    assert found is not None
    assert found.problem
