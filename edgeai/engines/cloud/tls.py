"""TLS: certificates are always verified, and what is wrong with one is said in words."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from edgeai.errors import UsageError

__all__ = ["describe", "make_context"]

# X509_V_ERR_*, openssl/x509_vfy.h.
EXPIRED, NOT_YET, HOST, ADDRESS = 10, 9, 62, 64
SELF_SIGNED = {18, 19}
NO_ISSUER = {2, 20, 21, 27}
PLAIN = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "HTTPS_PROXY_REQUEST",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
}
"""What OpenSSL says of an answer that is no TLS record; which one depends on its version and on the bytes."""


def make_context(ca_file: str | None) -> ssl.SSLContext:
    """Return what verifies endpoints: the system's certificates, as httpx2 has them, and those in CA_FILE.

    Raises UsageError for a CA_FILE that has none.
    """
    import httpcore2

    context = httpcore2.default_ssl_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            why = getattr(error, "strerror", None) or "it has no certificate in PEM"
            raise UsageError(
                f"ca_file {ca_file!r} cannot be used: {why}", hint="name a file of PEM certificates"
            ) from None
    return context


def describe(error: OSError, host: str) -> tuple[str, str, str]:
    """Return what is wrong with the TLS of HOST: a word for programs, a sentence for people, and a hint."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _describe_certificate(error, host)
    reason = getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLError) and reason in PLAIN:
        said = "what answers there does not speak TLS"
        return "tls-plain", said, "check scheme and port of base_url; something on the way may answer in its place"
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return "tls", "the connection broke off in the TLS handshake", "ask again later"
    return (
        "tls",
        f"TLS cannot be agreed on ({reason or type(error).__name__})",
        "the endpoint must speak TLS 1.2 or later",
    )


def _describe_certificate(error: ssl.SSLCertVerificationError, host: str) -> tuple[str, str, str]:
    code: int = getattr(error, "verify_code", 0)
    found: Mapping[int, tuple[str, str, str]] = {
        EXPIRED: ("tls-expired", f"the certificate of {host} has expired", "check the clock of this machine"),
        NOT_YET: ("tls-expired", f"the certificate of {host} is not valid yet", "check the clock of this machine"),
    }
    wrong_host = (
        "tls-host", f"the certificate is not for {host}",
        "something else answers in its place: a network that wants a login, or a wrong base_url",
    )  # fmt: skip
    if code in (HOST, ADDRESS):
        return wrong_host
    if code in SELF_SIGNED:
        said = f"the certificate of {host} is signed by nobody who is trusted here (self-signed)"
        return "tls-issuer", said, "if it is yours, name it in `ca_file`"
    if code in NO_ISSUER:
        said = f"the certificate of {host} is signed by nobody who is trusted here"
        return "tls-issuer", said, "if the issuer is yours, name its certificate in `ca_file`"
    return found.get(code, ("tls", f"the certificate of {host} is not valid (OpenSSL's code {code})", "ask its owner"))
