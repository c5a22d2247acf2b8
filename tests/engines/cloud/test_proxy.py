"""Proxies over real sockets: a name that is on no machine, so that only the proxy can be connected to."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.engines.cloud.endpoints import KEY, ask, endpoint, failure_of, text_of
from tests.engines.cloud.server import GOOD, answer, serve
from tests.engines.cloud.test_tls import Authority


def test_plain_http_goes_to_the_proxy_with_the_whole_url() -> None:
    with serve(GOOD) as server:
        environment = {"HTTP_PROXY": f"http://me:pass@127.0.0.1:{server.port}"}
        with endpoint("http://far.example/v1", environment=environment, http=True) as made:
            assert made.proxy == f"http://127.0.0.1:{server.port}"
            assert text_of(ask(made)) == "Hello there"
        assert server.requests[0].startswith(b"POST http://far.example/v1/chat/completions HTTP/1.1\r\n")
        assert server.head()["proxy-authorization"] == "Basic " + base64.b64encode(b"me:pass").decode()


def test_https_goes_through_a_tunnel_in_which_the_proxy_reads_nothing(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with serve(b"HTTP/1.1 200 OK\r\n\r\n") as server:
        inner = authority.context("far.example")

        def tunnel(sock: object) -> None:
            with inner.wrap_socket(sock, server_side=True) as secure:  # type: ignore[arg-type]
                server.read(secure)
                secure.sendall(GOOD)
                server.over.wait(0.2)

        server.scripts = [[b"HTTP/1.1 200 OK\r\n\r\n", tunnel]]
        environment = {"HTTPS_PROXY": f"http://127.0.0.1:{server.port}"}
        with endpoint("https://far.example/v1", environment=environment, ca_file=str(authority.file)) as made:
            assert text_of(ask(made)) == "Hello there"
        assert server.requests[0].startswith(b"CONNECT far.example:443 HTTP/1.1\r\n")
        assert KEY.encode() not in server.requests[0]
        assert KEY.encode() in server.requests[1]


def test_a_proxy_that_refuses_is_told_without_its_password() -> None:
    with serve(answer("407 Proxy Authentication Required")) as server:
        environment = {"HTTPS_PROXY": f"http://me:passpass@127.0.0.1:{server.port}"}
        with endpoint("https://far.example/v1", environment=environment) as made:
            found = failure_of(made)
            assert (found.kind, found.reason) == ("connection", "proxy")
            assert "407" in found.message
            assert "passpass" not in f"{found.message}{made!r}{made.proxy}"


def test_a_proxy_that_never_answers_is_part_of_connecting() -> None:
    with serve(["hang"]) as server:
        environment = {"HTTPS_PROXY": f"http://127.0.0.1:{server.port}"}
        with endpoint("https://far.example/v1", environment=environment) as made:
            assert failure_of(made).reason == "connect-timeout"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", "http_proxy"])
def test_an_endpoint_on_this_machine_is_never_asked_through_a_proxy(variable: str) -> None:
    with serve(GOOD) as proxy, serve(GOOD) as server:
        with endpoint(server.url, environment={variable: f"http://127.0.0.1:{proxy.port}"}) as made:
            assert made.proxy is None
            ask(made)
        assert (proxy.connections, server.connections) == (0, 1)


def test_a_proxy_of_another_kind_is_a_problem_and_no_direct_connection() -> None:
    with endpoint("https://far.example/v1", environment={"ALL_PROXY": "socks5://127.0.0.1:1"}) as made:
        assert "socks5" in str(made.problem())
        assert failure_of(made).reason == "proxy"
