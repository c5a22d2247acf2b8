"""Certificates of the fault lab, each file with its key. The keys are public and of the lab alone: trust none of them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CA_FILE", "KINDS", "certificate"]

KINDS = ("good", "expired", "wrong-host", "self-signed")
"""All but the last are signed by ca.pem; `wrong-host` is for elsewhere.invalid, the others for localhost and 127.0.0.1."""

CA_FILE = Path(__file__).with_name("ca.pem")


def certificate(kind: str) -> Path:
    """Return the file with the certificate KIND and its key."""
    return Path(__file__).with_name(f"{kind}.pem")
