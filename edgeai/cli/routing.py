"""The options that say who may answer, and how a routed answer shows where it came from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeai.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from edgeai.model import Model
    from edgeai.types import Notice

__all__ = [
    "ROUTE_OPTIONS",
    "configured_model",
    "late_notices",
    "load_router",
    "named_route",
    "route_line",
    "route_lines",
    "route_options",
    "who",
]

ROUTE_OPTIONS = ("route", "policy", "private", "redact", "resume_local", "log_bodies", "explain")


def route_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and pass the command one `routing: dict` of those that were given."""

    @click.option(
        "--route",
        metavar="NAME",
        help="Let this machine or a configured endpoint answer: auto, auto:private, auto:quality, local, cloud/NAME or a policy.",
    )
    @click.option("--policy", metavar="NAME", help="Decide by this policy, not by the configuration's.")
    @click.option("--private", is_flag=True, help="Keep it on this machine whatever is in it.")
    @click.option(
        "--redact", is_flag=True, help="Send placeholders for what is private, and put it back in the answer."
    )
    @click.option("--resume-local", is_flag=True, help="Let the local model go on where an endpoint breaks off.")
    @click.option("--log-bodies", is_flag=True, help="Keep the texts in the ledger, not only their digests.")
    @click.option("--explain", is_flag=True, help="Say on stderr why who answered.")
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = {name: value for name in ROUTE_OPTIONS if (value := kwargs.pop(name))}
        return command(*args, routing=given, **kwargs)

    return wrapped


def who(model: str | None, prompts: tuple[str, ...], routing: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return (the model's name, the prompts) of `run [MODEL] [PROMPT]…`, and put the route that a name means into ROUTING.

    With --route the model may be left out: the only word is then the prompt, unless it names a model. Raises UsageError.
    """
    from edgeai.store import Store, exists

    if model is not None and (name := named_route(model)) is not None:
        if "route" in routing:
            raise UsageError(f"{model!r} and --route {routing['route']!r} both say who answers", hint="leave one out")
        if name.startswith("local/"):
            return name.removeprefix("local/"), prompts
        routing["route"] = name
        return "", prompts
    if "route" not in routing:
        if model is None:
            raise UsageError("Missing argument 'MODEL'", hint="edgeai run MODEL [PROMPT], or --route auto")
        return model, prompts
    store = Store.open()
    if model is None or prompts:
        return model or "", prompts
    known = store.path_of(model) is not None or store.entry(model) is not None or exists(Path(model))
    return (model, ()) if known else ("", (model,))


def named_route(model: str) -> str | None:
    """Return MODEL if it is the name of a route and not of a file that is there, else None."""
    from edgeai.store import exists

    is_name = model in ("auto", "cloud", "local") or model.startswith(("auto:", "cloud/", "local/"))
    return model if is_name and not exists(Path(model)) else None


def load_router(
    model: str, routing: Mapping[str, Any], load: Mapping[str, Any], files: Mapping[str, str]
) -> tuple[Model, Any]:
    """Return the router as a model, and the RouteOptions of its requests; MODEL is the local one, "" for the configuration's."""
    from edgeai.config import read_config
    from edgeai.model import Model
    from edgeai.routing.planning import scope_of
    from edgeai.routing.router import Router
    from edgeai.store import Store
    from edgeai.types import RouteOptions

    config = read_config()
    if "log_bodies" in routing:
        config = replace(config, ledger=replace(config.ledger, bodies=True))
    scope = str(routing["route"])
    if not config.cloud and scope_of(scope, ()).only == "any" and scope == "auto:quality":
        raise UsageError(f"{scope!r} needs an endpoint", hint="edgeai config init, or set OPENAI_BASE_URL")
    name = model or scope_of(scope, config.cloud).local_model or config.routing.local_model
    if model:
        Store.open().find(
            model
        )  # a model that was named and is not here is an error, and no reason to ask somebody else
    loaded = Model(Router.open(config, scope=scope, local_model=name, streams=1, **load), sampling=_sampling(name))
    options = RouteOptions(
        policy=routing.get("policy"),
        private=bool(routing.get("private")),
        redact=True if "redact" in routing else None,
        resume_local=True if "resume_local" in routing else None,
        files=tuple(files.items()),
    )
    return loaded, options


def configured_model() -> str:
    """Return the local model of the configuration."""
    from edgeai.config import read_config

    return read_config().routing.local_model


def late_notices(loaded: Model) -> tuple[Notice, ...]:
    """Return what the closed router LOADED could not write down at the end."""
    from edgeai.routing.router import Router

    return loaded.engine.take_notices() if isinstance(loaded.engine, Router) else ()


def _sampling(name: str) -> Mapping[str, float]:
    from edgeai.store import Store

    try:
        return Store.open().sampling(name)
    except ModelNotFound:
        return {}


def route_line(route: Mapping[str, Any]) -> str:
    """Return one line about how an answer came to be, like `local/smollm2 · stays here: card (1) in message 1 · 0 bytes left`."""
    sent = sum(attempt["sent_bytes"] for attempt in route["attempts"])
    hosts = sorted({str(attempt["remote"]) for attempt in route["attempts"] if attempt["sent_bytes"]})
    left = f"{sent} bytes left for {', '.join(hosts)}" if sent else "0 bytes left this machine"
    cost = f" · {route['cost_usd']:.4f} USD" if route["cost_usd"] else ""
    failed = "; ".join(
        f"{attempt['model']}: {attempt['error'] or attempt['status']}"
        for attempt in route["attempts"]
        if attempt["status"] not in ("ok", "late")
    )
    why = f"{failed}" if failed else route["why"]
    return f"{route['answered_by'] or 'nobody'} · {why} · {left}{cost}"


def route_lines(route: Mapping[str, Any]) -> list[str]:
    """Return all that is known of how an answer came to be, for people."""
    from edgeai.routing.explanation import explain_lines

    lines = explain_lines(route)
    for attempt in route["attempts"]:
        first = "" if attempt["ttft_s"] is None else f", first text after {attempt['ttft_s']:.2f} s"
        moved = f", {attempt['sent_bytes']} bytes out, {attempt['received_bytes']} in" if attempt["sent_bytes"] else ""
        sure = "" if attempt["confidence"] is None else f", confidence {attempt['confidence']:.2f}"
        error = f" ({attempt['error']})" if attempt["error"] else ""
        lines.append(f"  asked {attempt['model']}: {attempt['status']}{error}{first}{moved}{sure}")
    lines.append(f"  {route['egress_bytes']} bytes have left")
    return lines
