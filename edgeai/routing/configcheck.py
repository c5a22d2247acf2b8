"""What a configuration promises and this machine does not keep: endpoints, keys, files and models that are not there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgeai.config import CloudSettings, Config
from edgeai.engines.cloud.address import read_address
from edgeai.engines.cloud.key import SERVICE, Key, find_key
from edgeai.errors import EdgeAIError, UsageError
from edgeai.types import Report, Row

__all__ = ["check_config", "save_key"]


def check_config(config: Config, *, environment: Mapping[str, str] | None = None) -> Report:
    """Look at what CONFIG names; opens no socket, and no value of a key is in the report."""
    environment = os.environ if environment is None else environment
    rows = [_local_model(config), *_detectors(config)]
    if config.privacy.names_model is not None:
        rows.append(_file("privacy.names_model", config.privacy.names_model))
    for cloud in config.cloud:
        rows += _endpoint(cloud, environment)
    if not config.cloud:
        rows.append(Row(name="cloud", value="no endpoint: everything is answered on this machine"))
    return Report(rows=tuple(rows))


def save_key(name: str, secret: str) -> None:
    """Put SECRET into the system's keyring as NAME, which `api_key = "keyring:NAME"` refers to. Raises UsageError."""
    import keyring
    from keyring.errors import KeyringError, NoKeyringError

    Key(secret, origin="", source="the prompt")  # what could not be sent is refused now
    try:
        keyring.set_password(SERVICE, name, secret.strip())
    except NoKeyringError as error:
        raise UsageError(
            "this machine has no keyring that keys could be kept in",
            hint=f'set a variable and write api_key = "env:NAME" instead of "keyring:{name}"',
        ) from error
    except (KeyringError, OSError, RuntimeError) as error:
        raise UsageError(
            f"the keyring does not take the key {name!r} ({type(error).__name__})", hint="unlock it and try again"
        ) from error


def _detectors(config: Config) -> Iterator[Row]:
    """Say where the detectors cannot be what [privacy] asks for, like names without their extra."""
    from edgeai.routing.privacy.detector import Detector

    try:
        Detector(config.privacy).close()
    except EdgeAIError as error:
        yield Row(name="privacy", value=f"{error.message}; {error.hint}", ok=False)


def _endpoint(cloud: CloudSettings, environment: Mapping[str, str]) -> Iterator[Row]:
    name = f"cloud.{cloud.name}"
    try:
        address = read_address(cloud.base_url, http=cloud.http)
    except EdgeAIError as error:
        yield Row(name=f"{name}.base_url", value=f"{error.message}; {error.hint}", ok=False)
        return
    yield Row(name=f"{name}.base_url", value=f"goes to {address.netloc}")
    found = find_key(cloud.api_key, address, environment)
    says = found.problem or (f"a key from {found.key.source}" if found.key else "no key, and none may be needed")
    yield Row(name=f"{name}.api_key", value=says, ok=found.problem is None)
    if cloud.ca_file is not None:
        yield _file(f"{name}.ca_file", cloud.ca_file)


def _file(name: str, path: str) -> Row:
    there = Path(path).expanduser().exists()
    return Row(name=name, value=f"{path!r} is there" if there else f"{path!r} is not there", ok=there)


def _local_model(config: Config) -> Row:
    from edgeai.store import Store

    name = config.routing.local_model
    try:
        path = Store.open().find(name)
    except EdgeAIError as error:
        return Row(name="routing.local_model", value="; ".join(filter(None, (error.message, error.hint))), ok=False)
    return Row(name="routing.local_model", value=f"{name!r} is {str(path)!r}")
