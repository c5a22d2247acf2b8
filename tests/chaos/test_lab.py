"""The lab keeps what it saw, does what it is told, and leaves nothing behind."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from edgeai.chaos import answers
from edgeai.chaos.certificates import CA_FILE, KINDS, certificate
from edgeai.chaos.lab import Lab
from edgeai.errors import UsageError
from tests.chaos.raw import PROMPT, ask, hear, request

KEY = "Authorization: Bearer k-1\r\n"
TEXT = answers.cloud_text(PROMPT)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as found:
        yield found


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=1)


def test_what_a_client_sends_is_kept(lab: Lab) -> None:
    lab.set("good")
    ask(lab, more=KEY + "Connection: close\r\n")
    (seen,) = lab.attempts
    assert (seen.listener, seen.method, seen.path, seen.key) == ("http", "POST", "/v1/chat/completions", "Bearer k-1")
    assert seen.prompt == PROMPT
    assert seen.asked["stream"] is True
    assert not seen.reused


def test_it_is_kept_how_much_was_taken_and_that_and_when_the_client_left(lab: Lab) -> None:
    lab.set("huge-body")
    began = time.monotonic()
    ask(lab, most=1000)
    assert lab.wait_closed(1)
    (seen,) = lab.attempts
    assert 1000 <= seen.sent_bytes < 32 << 20
    assert seen.left_at is not None
    assert began < seen.left_at < began + 1


def test_what_the_lab_ends_itself_was_not_left(lab: Lab) -> None:
    lab.set("rst-after-tokens")
    ask(lab)
    assert lab.attempts[0].left_at is None
    assert not lab.attempts[0].open


def test_an_exchange_is_open_until_the_client_leaves(lab: Lab) -> None:
    lab.set("words-then-silence")
    with connect(lab.port) as sock:
        sock.sendall(request())
        hear(sock, 2, most=1)
        assert not lab.wait_closed(0.05)
    assert lab.wait_closed(1)


def test_a_script_is_met_in_its_order_and_then_answered(lab: Lab) -> None:
    lab.script(["status-503", "rst-before-head", "html-page"])
    heard = [ask(lab) for _ in range(5)]
    assert [each.status if each.data else each.ending for each in heard] == [503, "rst", 200, 200, 200]
    assert [seen.fault for seen in lab.attempts] == ["status-503", "rst-before-head", "html-page", "good", "good"]
    assert [each.text for each in heard[3:]] == [TEXT, TEXT]


def test_a_fault_of_so_many_requests_ends_after_them(lab: Lab) -> None:
    lab.set("status-500", times=2)
    assert [ask(lab).status for _ in range(3)] == [500, 500, 200]


def test_a_fault_of_connecting_needs_no_request(lab: Lab) -> None:
    lab.set("rst-on-accept")
    with connect(lab.port) as sock:
        assert hear(sock).ending == "rst"
    assert [(seen.fault, seen.method) for seen in lab.attempts] == [("rst-on-accept", "")]


def test_a_connection_is_kept_and_may_be_reset_or_held(lab: Lab) -> None:
    lab.set("good")
    for end, wanted in ((lab.reset_idle, "fin"), (lab.hold_idle, "open")):
        with connect(lab.port) as sock:
            sock.sendall(request())
            assert hear(sock, 2, until=b"\r\n0\r\n\r\n").text == TEXT
            sock.sendall(request())
            assert hear(sock, 2, until=b"\r\n0\r\n\r\n").text == TEXT
            assert [seen.reused for seen in lab.attempts] == [False, True]
            end()
            if wanted == "open":
                sock.sendall(request())
            heard = hear(sock, 0.1)
            assert (heard.ending, heard.data) == (wanted, b"")
        lab.set("good")


def test_the_same_prompt_has_the_same_answer_and_another_another(lab: Lab) -> None:
    lab.set("good")
    assert ask(lab).data == ask(lab).data
    assert answers.cloud_text("one") != answers.cloud_text("two")
    assert not set(answers.LOCAL_ANSWER.split()) & {*answers.WORDS, *answers.WIDE}
    assert len(set(answers.cloud_words("one"))) == answers.LENGTH


def test_the_second_endpoint_answers_with_the_other_answer_whatever_is_set(lab: Lab) -> None:
    lab.set("status-500")
    with connect(lab.ports["second"]) as sock:
        sock.sendall(request(more="Connection: close\r\n"))
        assert hear(sock).text == answers.LOCAL_ANSWER
    assert not lab.attempts


def test_models_are_listed_and_what_is_no_http_is_refused(lab: Lab) -> None:
    lab.set("status-500")
    for data, wanted in (
        (b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n", 200),
        (b"\x16\x03\x01 hello\r\n\r\n", 400),
    ):
        with connect(lab.port) as sock:
            sock.sendall(data)
            assert hear(sock).status == wanted
    assert [seen.method for seen in lab.seen] == ["GET", ""]


def test_a_port_refuses_is_a_black_hole_and_answers_again(lab: Lab) -> None:
    port = lab.port
    lab.set("refused")
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    lab.set("blackhole")
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), timeout=0.2)
    lab.set("good")
    assert lab.port == port
    assert ask(lab).text == TEXT


def test_redirects_lead_to_a_listener_that_says_who_came_with_a_key(lab: Lab) -> None:
    lab.set("redirect-307")
    place = ask(lab).head.partition(b"location: ")[2].split(b"\r\n")[0].decode()
    assert place == lab.urls["other"] + "/chat/completions"
    with connect(lab.ports["other"]) as sock:
        sock.sendall(request(more=KEY + "Connection: close\r\n"))
        assert b"text of another host" in hear(sock).data
    assert [(seen.listener, seen.key) for seen in lab.seen] == [("http", None), ("other", "Bearer k-1")]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("good", None),
        ("expired", "expired"),
        ("wrong-host", "mismatch"),
        ("self-signed", "self-signed"),
        ("plain", "SSL"),
    ],
)
def test_a_certificate_is_wrong_in_one_way_only(lab: Lab, kind: str, why: str | None) -> None:
    lab.set("good")
    context = ssl.create_default_context(cafile=str(CA_FILE))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with connect(lab.ports[kind if kind == "plain" else f"tls-{kind}"]) as sock:
        if why is None:
            with context.wrap_socket(sock, server_hostname="127.0.0.1") as secured:
                secured.sendall(request(more="Connection: close\r\n"))
                assert hear(secured).text == TEXT
            return
        with pytest.raises(ssl.SSLError, match=why) as caught:
            context.wrap_socket(sock, server_hostname="127.0.0.1")
        assert isinstance(caught.value, ssl.SSLCertVerificationError) == (kind != "plain")
    assert not lab.attempts


def test_tls_may_hang_and_be_cut(lab: Lab) -> None:
    lab.set("good")
    context = ssl.create_default_context(cafile=str(CA_FILE))
    with connect(lab.ports["tls-hang"]) as sock:
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            context.wrap_socket(sock, server_hostname="127.0.0.1")
    with connect(lab.ports["tls-cut"]) as sock, pytest.raises(OSError, match=r"reset|EOF|closed"):
        context.wrap_socket(sock, server_hostname="127.0.0.1")
    assert [seen.body[:1] for seen in lab.seen] == [b"\x16", b"\x16"]  # a TLS handshake record


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_last(kind: str) -> None:
    text = certificate(kind).read_text()
    seconds = ssl.cert_time_to_seconds(_not_after(text))
    assert (seconds > time.time() + 90 * 365 * 86400) == (kind != "expired")
    assert "PRIVATE KEY" in text


def _not_after(pem: str) -> str:
    x509 = pytest.importorskip("cryptography.x509")
    return str(x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc.strftime("%b %d %H:%M:%S %Y GMT"))


def test_a_lab_leaves_no_file_and_no_thread() -> None:
    process, threads = psutil.Process(), threading.active_count()
    files: list[int] = []
    for _ in range(3):
        with Lab() as lab:
            for name in ("good", "words-then-silence", "rst-after-tokens", "blackhole", "refused", "huge-body"):
                lab.set(name)
                if name in ("blackhole", "refused"):
                    continue
                sock = connect(lab.port)
                sock.sendall(request())
                hear(sock, 0.02, most=100)
                sock.close()
        assert not lab.problems
        files.append(process.num_fds())
    assert files[0] == files[1] == files[2]
    assert threading.active_count() == threads


def test_a_client_that_stays_does_not_keep_a_lab_from_ending() -> None:
    with Lab() as lab:
        lab.set("comments-forever")
        sock = connect(lab.port)
        sock.sendall(request())
        hear(sock, 2, most=1)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    sock.close()


def test_wrong_names_and_ports_are_errors(lab: Lab) -> None:
    with pytest.raises(UsageError, match="'rst-after-token'") as caught:
        lab.set("rst-after-token")
    assert "rst-after-tokens" in str(caught.value.hint)
    with pytest.raises(UsageError, match="'refused' cannot be in a script"):
        lab.script(["good", "refused"])
    with pytest.raises(UsageError, match=f"port {lab.port}"), Lab(lab.port):
        pass
