"""Certificates: each fault has its own words, and nothing is sent before the handshake is over."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.engines.cloud.endpoints import KEY, ask, endpoint, failure_of, text_of
from tests.engines.cloud.server import GOOD, answer, serve

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates, and is trusted by whoever names its file."""

    def __init__(self, folder: Path, name: str = "root") -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = self._builder(self.name, self.key, -DAY, DAY).add_extension(x509.BasicConstraints(True, None), True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.certificate = own.add_extension(usage, True).sign(self.key, hashes.SHA256())
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, begin: datetime.timedelta, end: datetime.timedelta
    ) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return builder.add_extension(issuer, False).not_valid_before(NOW + begin).not_valid_after(NOW + end)

    def context(
        self, host: str = "127.0.0.1", *, begin: datetime.timedelta = -DAY, end: datetime.timedelta = DAY
    ) -> ssl.SSLContext:
        """What a server of HOST needs."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        try:
            names: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            names = x509.DNSName(host)
        builder = self._builder(name, key, begin, end).add_extension(x509.SubjectAlternativeName([names]), False)
        signed = builder.sign(self.key, hashes.SHA256())
        file = self.folder / f"{host}-{end.days}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def test_a_certificate_of_a_trusted_authority_is_accepted(authority: Authority) -> None:
    with serve(GOOD, tls=authority.context()) as server, endpoint(server.url, ca_file=str(authority.file)) as made:
        attempt = made.attempt([{"role": "user", "content": "x"}], _greedy())
        assert text_of(list(attempt)) == "Hello there"
        assert attempt.sent_bytes == len(server.requests[0])  # counted without TLS
        assert text_of(ask(made)) == "Hello there"
        assert server.connections == 1
        assert server.head()["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("expired", "tls-expired"), ("early", "tls-expired"), ("host", "tls-host"), ("issuer", "tls-issuer")],
)
def test_each_fault_of_a_certificate_has_its_words_and_nothing_is_sent(
    fault: str, reason: str, authority: Authority, tmp_path: Path
) -> None:
    contexts = {
        "expired": lambda: authority.context(begin=-3 * DAY, end=-2 * DAY),
        "early": lambda: authority.context(begin=DAY, end=9 * DAY),
        "host": lambda: authority.context("other.example"),
        "issuer": lambda: Authority(tmp_path, "stranger").context(),
    }
    with serve(GOOD, tls=contexts[fault]()) as server, endpoint(server.url, ca_file=str(authority.file)) as made:
        found = failure_of(made)
        assert (found.kind, found.reason) == ("connection", reason)
        assert "127.0.0.1" in found.message
        assert server.requests == []


def test_plain_http_on_a_port_of_tls_is_told_and_hears_nothing(authority: Authority) -> None:
    heard: list[bytes] = []
    ready = threading.Event()

    def listen(sock: object) -> None:
        ready.set()

    with serve([listen, answer("400 x")]) as server:
        server.read = lambda sock: heard.append(sock.recv(65536)) is None  # type: ignore[method-assign]
        with endpoint(f"https://127.0.0.1:{server.port}/v1", ca_file=str(authority.file)) as made:
            found = failure_of(made)
            assert (found.kind, found.reason) == ("connection", "tls-plain")
    assert ready.is_set()
    assert heard[0][:1] == b"\x16"  # a ClientHello, and nothing else
    assert KEY.encode() not in b"".join(heard)


def test_a_connection_that_breaks_off_in_the_handshake_is_told() -> None:
    with serve(["rst"]) as server:
        server.read = lambda sock: bool(sock.recv(9))  # type: ignore[method-assign]
        with endpoint(f"https://127.0.0.1:{server.port}/v1") as made:
            found = failure_of(made)
            assert (found.kind, found.reason) == ("connection", "tls")


def test_old_versions_of_tls_are_not_spoken(authority: Authority) -> None:
    context = authority.context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with endpoint("https://127.0.0.1:1/v1", ca_file=str(authority.file)) as made:
        assert made._context is not None
        assert made._context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert made._context.verify_mode == ssl.CERT_REQUIRED
        assert made._context.check_hostname


def _greedy() -> object:
    from edgeai.types import GenerationConfig

    return GenerationConfig(temperature=0)
