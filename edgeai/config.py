"""The user's configuration: `config.toml`, with every single value also as an environment variable, each checked when it is read.

The file is EDGEAI_CONFIG, or config.toml in the platform's folder for configuration; none is as good as an empty one. A value of the
environment goes before the file: EDGEAI_ROUTING_POLICY is `policy` of [routing], and EDGEAI_CLOUD_BASE_URL that of the first [[cloud]].
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgeai.declared import File, choice, number
from edgeai.errors import UsageError

__all__ = [
    "POLICIES",
    "CloudSettings",
    "Config",
    "LedgerSettings",
    "PrivacySettings",
    "RoutingSettings",
    "Timeouts",
    "config_path",
    "read_config",
    "read_tables",
]

FILE = File("configuration")

POLICIES = ("local-only", "local-first", "cloud-first", "cascade", "cheapest-that-is-good-enough", "offline")
"""What routing.policy decides by. `offline` is `local-only` that also never looks whether there is a network."""
TIERS = ("off", "structured", "names")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSettings:
    """[routing]: who answers. `hedge_s`: the local model starts when the cloud's first token is that late, 0 for never.

    `min_confidence`: under the policy `cascade`, a local answer that is right with less probability is asked of the cloud.
    `min_ability`: what share of such questions the local model must get right to be good enough.
    `attempts`: how often one endpoint is tried for one request. `retry_budget`: retries as a share of all requests.
    `usd_per_day`: what endpoints may cost in a day, None for any sum. `resume_local`: an answer that breaks off is continued here.
    """

    policy: str = choice(POLICIES, "local-first")
    local_model: str = "smollm2"
    hedge_s: float = number(0.0, 600.0, 4.0)
    min_confidence: float = number(0.0, 1.0, 0.7)
    min_ability: float = number(0.0, 1.0, 0.5)
    attempts: int = number(1, 10, 3)
    retry_budget: float = number(0.0, 1.0, 0.2)
    usd_per_day: float | None = number(0.0, 1e6, None)
    resume_local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySettings:
    """[privacy]: what must not leave. `tier`: "structured", or "names" too (needs the extra edgeai[names], or `names_model`, an ONNX file).

    `words` and `patterns` (regular expressions) make any text private that has one; `files` (globs) and `folders` any file there.
    `redact`: what the detectors found is replaced by placeholders in what leaves, and put back in the answer; without it such a request
    stays here. What `words`, `patterns`, `files`, `folders` and the tag `private` mark never leaves, redacted or not.
    `timeout_s`: what took longer to examine counts as private; so does a text of more than `max_chars`.
    """

    tier: str = choice(TIERS, "structured")
    names_model: str | None = None
    words: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    redact: bool = False
    timeout_s: float = number(0.01, 600.0, 5.0)
    max_chars: int = number(1000, 10**9, 4_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSettings:
    """One [[cloud]]: an endpoint that speaks OpenAI's chat API. Several are tried in their order.

    `api_key` is a reference, "env:NAME" or "keyring:NAME", never a key. `usd_per_million_input` and `…_output`: prices of tokens.
    `quality`: what share of questions this model answers well, as far as is known. `context` in tokens. `ca_file`: certificates to trust
    beside the system's. `http`: plain http to a host that is not this machine, where the network itself is trusted.
    """

    name: str
    base_url: str
    model: str
    api_key: str | None = None
    usd_per_million_input: float = number(0.0, 1e6, 0.0)
    usd_per_million_output: float = number(0.0, 1e6, 0.0)
    quality: float = number(0.0, 1.0, 0.9)
    context: int = number(1, 10**9, 128_000)
    ca_file: str | None = None
    http: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """[timeouts] of one attempt at an endpoint, in seconds. `connect_s` is name, connection and TLS; `stall_s` between two pieces.

    `least_bytes_s`: an answer that comes slower than so many bytes a second, over `stall_s`, has stalled too.
    """

    connect_s: float = number(0.05, 600.0, 3.0)
    first_token_s: float = number(0.05, 3600.0, 20.0)
    stall_s: float = number(0.05, 3600.0, 15.0)
    total_s: float = number(0.05, 86400.0, 300.0)
    least_bytes_s: float = number(0.0, 1e6, 8.0)
    max_bytes: int = number(1024, 10**10, 16 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """[ledger]: what is written down of every decision. `bodies` keeps the texts too; without it there are only digests."""

    on: bool = True
    bodies: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a user can configure."""

    routing: RoutingSettings = field(default_factory=RoutingSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    cloud: tuple[CloudSettings, ...] = ()
    timeouts: Timeouts = field(default_factory=Timeouts)
    ledger: LedgerSettings = field(default_factory=LedgerSettings)

    @property
    def sha256(self) -> str:
        """Hash of every value; the ledger names the configuration of a decision by its first 16 digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


TABLES: dict[str, type] = {
    "routing": RoutingSettings, "privacy": PrivacySettings, "timeouts": Timeouts, "ledger": LedgerSettings,
}  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9][\w.:-]{0,63}")
REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|keyring:[\w.@:/-]+")
"""The names of variables have no hyphen and most keys do: "env:sk-…" is a key in the wrong place, and is not shown."""
ENDPOINT = "openai"
"""The name of the endpoint that OPENAI_BASE_URL makes where the file has none."""


def config_path(environment: Mapping[str, str] | None = None) -> Path:
    """Return where the configuration is, or would be: EDGEAI_CONFIG, or config.toml in the platform's folder for configuration."""
    override = (os.environ if environment is None else environment).get("EDGEAI_CONFIG")
    if override:
        return Path(override).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_path("edgeai")) / "config.toml"


def read_config(path: Path | None = None, *, environment: Mapping[str, str] | None = None) -> Config:
    """Return the configuration in PATH (config_path) with what ENVIRONMENT (this process's) says before it.

    Raises UsageError for a file that EDGEAI_CONFIG or PATH names and that is not there, that is no TOML, for unknown keys, with what is
    close, and for values that are not possible.
    """
    environment = os.environ if environment is None else environment
    named = path is not None or bool(environment.get("EDGEAI_CONFIG"))
    path = config_path(environment) if path is None else path
    values = read_tables(path, named=named)
    clouds = values.pop("cloud", [])
    if not isinstance(clouds, list):
        raise UsageError("cloud is not a list of tables", hint="write [[cloud]], with two brackets")
    for key in values:
        if key not in TABLES:
            raise FILE.unknown(key, [*TABLES, "cloud"])
    for variable, value in environment.items():
        _override(values, clouds, variable, value)
    if not clouds and environment.get("OPENAI_BASE_URL"):
        model = environment.get("OPENAI_MODEL") or "default"
        reference = {"api_key": "env:OPENAI_API_KEY"} if environment.get("OPENAI_API_KEY") else {}
        clouds.append({"name": ENDPOINT, "base_url": environment["OPENAI_BASE_URL"], "model": model, **reference})
    for cloud in clouds:
        _check_cloud(cloud)
    built = tuple(FILE.build(CloudSettings, cloud, "cloud") for cloud in clouds)
    _check_clouds(built)
    tables: dict[str, Any] = {name: FILE.build(cls, values.get(name, {}), name) for name, cls in TABLES.items()}
    _check_patterns(tables["privacy"])
    return Config(cloud=built, **tables)


def read_tables(path: Path, *, named: bool = True) -> dict[str, Any]:
    """Return what the file PATH says, unchecked; nothing where it is not there and nobody has NAMED it. Raises UsageError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows' Notepad begins a file with a BOM
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not named:
            return {}
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(
            f"the configuration {str(path)!r} cannot be read: {why}", hint="edgeai config init writes an example"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the configuration {str(path)!r} is not TOML: {error}", hint="mend that line") from error


def _override(values: dict[str, Any], clouds: list[Any], variable: str, text: str) -> None:
    """Put TEXT where the environment VARIABLE says, if it is one of ours."""
    match = re.fullmatch(rf"EDGEAI_({'|'.join((*TABLES, 'cloud'))})_(\w+)", variable, re.IGNORECASE)
    if match is None or not variable.isupper() or not text.strip():
        return  # a variable that is set to nothing says nothing: it must not empty a list of private words
    table, key = match[1].lower(), match[2].lower()
    cls = TABLES.get(table, CloudSettings)
    kinds = {spec.name: str(spec.type) for spec in fields(cls)}
    if key not in kinds:
        wrong = FILE.unknown(key, kinds, table)
        raise UsageError(f"{variable} is no setting: {wrong.message}", hint=wrong.hint)
    value = _from_text(kinds[key], text, variable)
    if table != "cloud":
        target = values.setdefault(table, {})
    else:
        if not clouds:
            clouds.append({"name": "cloud"})
        target = clouds[0]
    if isinstance(target, dict):
        target[key] = value


def _from_text(kind: str, text: str, variable: str) -> Any:
    """Return TEXT, the value of an environment VARIABLE, as TOML would give a setting of KIND."""
    kind = kind.removesuffix(" | None")
    try:
        if kind == "bool":
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.strip().lower()]
        if kind.startswith("tuple"):
            return _list_from_text(text, whole=variable.endswith("_PATTERNS"))
        return {"int": int, "float": float}.get(kind, str)(text)
    except (ValueError, KeyError) as error:
        words = {"int": "a whole number", "float": "a number", "bool": "true or false"}
        raise UsageError(f"{variable} {text!r} is not possible", hint=f"it must be {words.get(kind, kind)}") from error


def _list_from_text(text: str, *, whole: bool) -> Any:
    """Return the list that TEXT is: JSON, or words between commas; WHOLE, one pattern, which may have commas and brackets itself."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return [text] if whole else [part.strip() for part in text.split(",") if part.strip()]


def _check_patterns(privacy: PrivacySettings) -> None:
    for pattern in privacy.patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(
                f"privacy.patterns {pattern!r:.100} is no regular expression: {error}", hint="mend it"
            ) from error


def _check_cloud(values: Any) -> None:
    """Refuse what a [[cloud]] must not have before any message could show it, and say where what is missing belongs."""
    if not isinstance(values, Mapping):
        raise UsageError("cloud has what is not a table", hint="write [[cloud]] and its settings below it")
    name = values.get("name")
    reference = values.get("api_key")
    if reference is not None and not (isinstance(reference, str) and REFERENCE.fullmatch(reference)):
        raise UsageError(
            f"cloud.api_key of {name!r} is no reference",
            hint='write "env:NAME" or "keyring:NAME"; a key itself does not belong into a file',
        )
    url = values.get("base_url")
    if isinstance(url, str) and "@" in url.partition("://")[2].partition("/")[0]:
        raise UsageError(f"cloud.base_url of {name!r} carries a user or a password", hint='write api_key = "env:NAME"')
    if isinstance(url, str) and not re.match(r"(?i)https?://[^\s/]", url):
        raise UsageError(f"cloud.base_url {url!r:.100} is not possible", hint="write https://HOST/v1")
    for key in ("name", "base_url", "model"):
        if key not in values and not set(values) - {spec.name for spec in fields(CloudSettings)}:
            hint = f"add {key} = … below [[cloud]], or set EDGEAI_CLOUD_{key.upper()}"
            raise UsageError(f"the configuration has no cloud.{key}", hint=hint)


def _check_clouds(clouds: tuple[CloudSettings, ...]) -> None:
    for index, cloud in enumerate(clouds):
        if not NAME.fullmatch(cloud.name):
            raise UsageError(
                f"cloud.name {cloud.name!r} is not possible", hint="letters, digits and . _ : - make a name"
            )
        if cloud.name in {other.name for other in clouds[:index]}:
            raise UsageError(f"there are two [[cloud]] of the name {cloud.name!r}", hint="give each a name of its own")
