"""What `edgeai logs replay` and `edgeai route replay` share: the options, and how the outcome is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from edgeai.cli.output import Output
from edgeai.config import POLICIES

__all__ = ["replay_options", "show_replay"]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def replay_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --policy and --config."""
    command = click.option("--config", type=FILE, help="Decide by this configuration and its endpoints.")(command)
    return click.option("--policy", type=click.Choice(POLICIES), help="Decide by this policy.")(command)


def show_replay(rows: Iterable[Mapping[str, Any]], policy: str | None, config: Path | None, out: Output) -> None:
    """Decide ROWS again by POLICY and CONFIG, and print what would have changed."""
    from edgeai.config import read_config
    from edgeai.routing.replay import replay

    settings = read_config(config)
    routing = settings.routing if policy is None else replace(settings.routing, policy=policy)
    found = replay(rows, routing, clouds=settings.cloud if config is not None else None).to_dict()
    found = {"policy": routing.policy} | found
    if out.as_json:
        out.json(found)
        return
    for line in replay_lines(found):
        out.answer(line)
    out.note("what is private was not judged again: the ledger keeps no texts")
    for item in found["skipped"]:
        out.note(f"row {item['seq']} is left out: {item['why']}")


def replay_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the outcome of a replay in lines for people."""
    cost, quality = found["cost_usd"], found["quality"]
    lines = [f"{found['moved']} of {found['requests']} requests would have gone elsewhere under {found['policy']}"]
    lines += [
        f"  {move['count']} from {move['was'] or 'nobody'} to {move['now'] or 'nobody'}" for move in found["moves"]
    ]
    change = cost["would_be"] - cost["was"]
    line = f"cost: ${cost['would_be']:.4f} instead of ${cost['was']:.4f} ({change:+.4f}), of {cost['n']} requests"
    line += f", {cost['estimated']} of them estimated" if cost["estimated"] else ", exact"
    lines.append(line + (f"; of {cost['unknown']} it is not known" if cost["unknown"] else ""))
    if quality["gain"] is None:
        lines.append("right answers: nothing is known of how good these models are at such requests")
    else:
        line = f"right answers, an estimate from the models' measured shares: {100 * quality['gain']:+.1f} points"
        if quality["low"] is not None:
            line += f", 95 % between {100 * quality['low']:+.1f} and {100 * quality['high']:+.1f}"
        lines.append(f"{line}, n = {quality['n']}")
    if found["unsure"]:
        lines.append(f"of {found['unsure']} requests it is not known whether the local answer had been sure enough")
    return lines
