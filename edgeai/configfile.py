"""The configuration for people: a commented example of the file, and where each value in effect comes from."""

from __future__ import annotations

import contextlib
import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

from edgeai.config import TABLES, CloudSettings, Config, config_path, read_config, read_tables
from edgeai.errors import OutputError

__all__ = ["ABOUT", "Setting", "example", "settings_in_effect", "write_example"]

HEAD = """\
The configuration of edgeai. Everything here is optional: take the # away before a line to change it.
Each value can also be an environment variable, which goes first: EDGEAI_ROUTING_POLICY is policy of
[routing], and EDGEAI_CLOUD_MODEL is model of the first [[cloud]].
`edgeai config show` says what is in effect, and why."""

ABOUT = {
    "routing": "Who answers.",
    "routing.policy": "How that is decided. What is private stays on this machine under every policy.",
    "routing.local_model": "The model that answers here: a name of `edgeai list --all`, or a path.",
    "routing.hedge_s": "The local model starts too when the endpoint's first token is later than this, in seconds; 0: never.",
    "routing.min_confidence": "Under the policy cascade, a local answer that is right with less probability is asked of the endpoint.",
    "routing.min_ability": "Which share of such questions the local model must get right to be good enough.",
    "routing.attempts": "How often one endpoint is tried for one request.",
    "routing.retry_budget": "Retries as a share of all requests.",
    "routing.usd_per_day": "What endpoints may cost in a day, in US dollars. Not set: any sum.",
    "routing.resume_local": "Continue here an answer that an endpoint broke off, with a visible seam.",
    "privacy": "What must not leave this machine.",
    "privacy.tier": "What is looked for: numbers and keys (structured), persons and places too (names), or nothing (off).",
    "privacy.names_model": "An ONNX model that finds names, for the tier names.",
    "privacy.words": "A text with one of these words stays here.",
    "privacy.patterns": "A text that has a match of one of these regular expressions stays here.",
    "privacy.files": "Files whose text stays here, as globs.",
    "privacy.folders": "Folders with files whose text stays here.",
    "privacy.redact": "Send such texts with placeholders for what was found, and put it back into the answer; without it they stay here.",
    "privacy.timeout_s": "A text that takes longer to examine counts as private, in seconds.",
    "privacy.max_chars": "A longer text counts as private.",
    "timeouts": "Limits of one attempt at an endpoint.",
    "timeouts.connect_s": "Finding the name, connecting and TLS, in seconds.",
    "timeouts.first_token_s": "Until the first token, in seconds.",
    "timeouts.stall_s": "Between two pieces of an answer, in seconds.",
    "timeouts.total_s": "The whole attempt, in seconds.",
    "timeouts.least_bytes_s": "An answer that comes slower than this has stalled too, in bytes a second.",
    "timeouts.max_bytes": "A longer answer is cut off, in bytes.",
    "ledger": "What is written down of every routed request; `edgeai logs` shows it.",
    "ledger.on": "Whether anything is.",
    "ledger.bodies": "Keep prompts and answers too, and not only digests of them.",
    "cloud": "An endpoint that speaks OpenAI's chat API. Several may follow each other, and are tried in their order.",
    "cloud.name": "Its name here: `edgeai run --route cloud/openai`.",
    "cloud.base_url": "Where it is, up to and with /v1.",
    "cloud.model": "Which model of it is asked.",
    "cloud.api_key": "Where its key is, never the key itself: env:NAME, or keyring:NAME after `edgeai config set-key NAME`.",
    "cloud.usd_per_million_input": "Its price for a million tokens of prompts, in US dollars.",
    "cloud.usd_per_million_output": "Its price for a million tokens of answers, in US dollars.",
    "cloud.quality": "Which share of questions it answers well, as far as is known.",
    "cloud.context": "How long prompt and answer may be together, in tokens.",
    "cloud.ca_file": "Certificates to trust beside the system's.",
    "cloud.http": "Allow plain http to another machine, where the network itself is trusted.",
}  # fmt: skip
"""What each table and key is, for the example."""

SHOWN: dict[str, Any] = {
    "routing.usd_per_day": 1.0,
    "privacy.names_model": "~/models/names.onnx",
    "cloud.name": "openai",
    "cloud.base_url": "https://api.openai.com/v1",
    "cloud.model": "gpt-4o-mini",
    "cloud.api_key": "env:OPENAI_API_KEY",
    "cloud.ca_file": "~/company.pem",
}
"""What the example shows where there is no default, or it is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value in effect, like `routing.policy`. `origin` is "default", "file" or "environment NAME"."""

    name: str
    value: Any
    origin: str


def example() -> str:
    """Return the text of a configuration that changes nothing: each key with what it is and its default, behind a #."""
    lines = _comment(HEAD)
    for table, cls in {**TABLES, "cloud": CloudSettings}.items():
        lines += ["", *_comment(ABOUT[table]), "#[[cloud]]" if table == "cloud" else f"[{table}]"]
        for spec in fields(cls):
            lines += ["", *_comment(_about(table, spec)), f"#{spec.name} = {_toml(_shown(table, spec))}"]
    return "\n".join(lines) + "\n"


def write_example(path: Path | None = None, *, force: bool = False) -> Path:
    """Write the example to PATH (config_path), whole or not at all and readable for the user alone; returns the path.

    Raises OutputError where there is a file already, unless FORCE.
    """
    path = config_path() if path is None else path
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh.unlink(missing_ok=True)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(example())
            file.flush()
            os.fsync(file.fileno())
        _take_name(fresh, path, force=force)
    except FileExistsError as error:
        raise OutputError(f"{str(path)!r} is there already", hint="edgeai config init --force replaces it") from error
    except OSError as error:
        raise OutputError(
            f"{str(path)!r} cannot be written: {error.strerror or error}", hint="EDGEAI_CONFIG names another"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
    return path


def _take_name(fresh: Path, path: Path, *, force: bool) -> None:
    if force:
        fresh.replace(path)
        return
    try:
        os.link(fresh, path)  # unlike a rename this never replaces a file that has come meanwhile
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        fresh.replace(path)


def settings_in_effect(
    path: Path | None = None, *, environment: Mapping[str, str] | None = None
) -> tuple[Config, list[Setting]]:
    """Return the configuration and each of its values with where it comes from; keys are references. Raises as read_config does."""
    environment = os.environ if environment is None else environment
    config = read_config(path, environment=environment)
    named = path is not None or bool(environment.get("EDGEAI_CONFIG"))
    tables = read_tables(config_path(environment) if path is None else path, named=named)
    found = []
    for table in TABLES:
        values = getattr(config, table)
        found += list(_settings(table, values, tables.get(table, {}), _variables(table, values, environment)))
    clouds = tables.get("cloud", [])
    for index, cloud in enumerate(config.cloud):
        variables = _variables("cloud", cloud, environment) if index == 0 else {}
        if not clouds and not variables:  # made of OPENAI_BASE_URL
            variables = {"base_url": "OPENAI_BASE_URL"}
            if environment.get("OPENAI_MODEL"):
                variables["model"] = "OPENAI_MODEL"
            if cloud.api_key is not None:
                variables["api_key"] = "OPENAI_API_KEY"
        written = clouds[index] if index < len(clouds) else {}
        found += list(_settings(f"cloud.{cloud.name}", cloud, written, variables))
    return config, found


def _settings(table: str, values: Any, written: Mapping[str, Any], variables: Mapping[str, str]) -> Iterator[Setting]:
    for spec in fields(values):
        value = getattr(values, spec.name)
        origin = "file" if spec.name in written else "default"
        if spec.name in variables:
            origin = f"environment {variables[spec.name]}"
        yield Setting(
            name=f"{table}.{spec.name}", value=list(value) if isinstance(value, tuple) else value, origin=origin
        )


def _variables(table: str, values: Any, environment: Mapping[str, str]) -> dict[str, str]:
    """Return key → variable for what ENVIRONMENT says of TABLE."""
    names = {spec.name: f"EDGEAI_{table}_{spec.name}".upper() for spec in fields(values)}
    return {key: name for key, name in names.items() if environment.get(name, "").strip()}


def _shown(table: str, spec: Field[Any]) -> Any:
    return SHOWN.get(f"{table}.{spec.name}", None if spec.default is MISSING else spec.default)


def _about(table: str, spec: Field[Any]) -> str:
    about = ABOUT[f"{table}.{spec.name}"]
    options = spec.metadata.get("options")
    return f"{about} One of: {', '.join(options)}." if options else about


def _comment(text: str) -> list[str]:
    return [f"# {line}" for part in text.splitlines() for line in textwrap.wrap(part, 110, break_on_hyphens=False)]


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)  # texts, numbers and booleans are written alike
