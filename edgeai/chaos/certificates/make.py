"""Make the certificates of the fault lab: `python -m edgeai.chaos.certificates.make FOLDER`, once; needs the package cryptography.

The keys beside this file are public. They belong to the lab alone, which serves them on the loopback; no program may trust them.
"""

from __future__ import annotations

import datetime
import ipaddress
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["make"]

BEGIN = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(2125, 1, 1, tzinfo=datetime.UTC)
OVER = datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC)
HERE = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
ELSEWHERE = (x509.DNSName("elsewhere.invalid"),)

Names = tuple[x509.GeneralName, ...]
Issuer = tuple[x509.Name, ec.EllipticCurvePrivateKey]


def make(folder: Path) -> None:
    """Write ca.pem, and a file with certificate and key for each of good, expired, wrong-host and self-signed, to FOLDER."""
    authority = ec.generate_private_key(ec.SECP256R1())
    name = _name("edgeai fault lab, trusted by nobody")
    issuer = (name, authority)
    ca = _certificate(name, authority, issuer, names=(), end=END)
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    for file, names, end, signer in (
        ("good", HERE, END, issuer),
        ("expired", HERE, OVER, issuer),
        ("wrong-host", ELSEWHERE, END, issuer),
        ("self-signed", HERE, END, None),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(f"edgeai fault lab, {file}")
        found = _certificate(subject, key, signer or (subject, key), names=names, end=end)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{file}.pem").write_bytes(found.public_bytes(serialization.Encoding.PEM) + private)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, issuer: Issuer, *, names: Names, end: datetime.datetime
) -> x509.Certificate:
    """Return a certificate with the extensions that strict verification wants (RFC 5280, section 4.2); without NAMES that of a CA."""
    usage = x509.KeyUsage(
        digital_signature=bool(names), key_cert_sign=not names, crl_sign=not names, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer[0], public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGIN)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer[1].public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
    return builder.sign(issuer[1], hashes.SHA256())


if __name__ == "__main__":
    make(Path(sys.argv[1]))
