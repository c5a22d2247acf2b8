"""`edgeai logs`: what was asked, who answered, what left this machine; and whether that record is whole."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from edgeai.cli.output import Output, human_bytes, output_options
from edgeai.cli.replaying import replay_options, show_replay
from edgeai.cli.show import printable
from edgeai.errors import LedgerBroken, UsageError

__all__ = ["logs_command"]

SHOWN = 20
"""How many requests a table shows."""
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Moment(click.ParamType[Any]):
    """A date or time in ISO 8601, local unless it says otherwise, `today`, or how long ago: 90m, 24h, 7d."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        now = datetime.now().astimezone()
        if value == "today":
            return now.replace(hour=0, minute=0, second=0, microsecond=0)
        try:
            if match := re.fullmatch(r"(\d{1,6})([smhdw])", value):
                return now - timedelta(**{UNITS[match[2]]: int(match[1])})
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time. Write 2030-01-31, '2030-01-31 12:00', today, or 24h for a day ago.", param, ctx
            )


WHEN = Moment()


class Noted(click.ParamType[Any]):
    """SEQ:HASH as `logs verify` prints them."""

    name = "seq:hash"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from edgeai.routing.chain import Head

        match = re.fullmatch(r"(\d{1,12}):([0-9a-f]{64})", value) if isinstance(value, str) else None
        if match is None:
            self.fail(f"{value!r} is not SEQ:HASH as `edgeai logs verify` prints it.", param, ctx)
        return Head(int(match[1]), match[2])


@click.group("logs", invoke_without_command=True, short_help="Show what was asked, who answered and what left.")
@click.option("-n", "--limit", type=click.IntRange(min=1), help=f"Show the last N requests: {SHOWN}, in JSON all.")
@click.option("--since", type=WHEN, help="Only from then on: 2030-01-31, today, 24h, 7d.")
@click.option("--egress", is_flag=True, help="Only what left: bytes, where to, and what was replaced before.")
@output_options
@click.pass_context
def logs_command(ctx: click.Context, limit: int | None, since: datetime | None, egress: bool, out: Output) -> None:
    """Show routed requests, newest last: where each was answered, how many bytes left, what it cost, and why.

    The ledger holds no texts, only keyed digests of them, unless [ledger] bodies = true.
    """
    if ctx.invoked_subcommand is not None:
        if limit or since or egress or out != Output():
            name = ctx.invoked_subcommand
            raise UsageError(
                f"options before {name!r} have no effect", hint=f"write them after it: edgeai logs {name} …"
            )
        return
    history = open_history()
    if egress:
        show_egress(history.rows(since=since, egress=True), limit, out)
        return
    rows = history.rows(since=since, limit=limit if limit or out.as_json else SHOWN)
    if out.as_json:
        out.json(rows)
    elif rows:
        show_table(("SEQ", "TIME", "PLACEMENT", "ANSWERED BY", "SENT", "COST", "REASON"), map(cells, rows), out)
    else:
        out.note("no requests are in the ledger" + (" since then" if since else " yet"))


def open_history() -> Any:
    """Return the ledger of this user, to read."""
    from edgeai.routing.history import History
    from edgeai.routing.ledgerfile import default_path

    return History(default_path())


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of one request."""
    answered = row["answered_by"] or f"nobody ({row['error'] or row['finish_reason'] or 'no answer'})"
    cost = f"${row['cost_usd']:.4f}" if row["cost_usd"] else "-"
    placement = row["placement"].replace("_", " ")
    return [
        str(row["seq"]),
        local_time(row["time"]),
        placement,
        answered,
        human_bytes(row["egress_bytes"]),
        cost,
        row["reason"],
    ]


def local_time(text: str) -> str:
    """Return the time TEXT of a row in local time."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def show_table(header: tuple[str, ...], rows: Any, out: Output) -> None:
    """Print ROWS below HEADER in plain columns; what comes from an endpoint cannot drive the terminal."""
    lines = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        out.answer("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_egress(rows: list[dict[str, Any]], limit: int | None, out: Output) -> None:
    """Print what left."""
    from edgeai.routing.egress import egress_report

    report = egress_report(rows)
    if out.as_json:
        out.json(report.to_dict())
        return
    shown = report.sent[-(limit or SHOWN) :]
    if shown:
        table = [
            [
                str(item.seq), local_time(item.time), item.host + (" (this machine)" if item.here else ""), human_bytes(item.bytes),
                item.model or "-", ", ".join(f"{kind} ({count})" for kind, count in item.replaced.items()) or "-",
            ]
            for item in shown
        ]  # fmt: skip
        show_table(("SEQ", "TIME", "HOST", "SENT", "MODEL", "REPLACED"), table, out)
        if len(shown) < len(report.sent):
            out.note(f"and {len(report.sent) - len(shown)} before these; --limit shows more")
        out.answer("")
    for host, total in report.hosts().items():
        out.answer(printable(f"{host}: {human_bytes(total['bytes'])} in {total['requests']} requests"))
    out.answer(f"{report.left_bytes} bytes have left this machine")
    if report.here_bytes:
        out.answer(f"{report.here_bytes} bytes went to endpoints on this machine; what listens there may pass them on")


@logs_command.command("show", short_help="Show one request with everything that is known of it.")
@click.argument("seq", type=click.IntRange(min=1))
@output_options
def show_command(seq: int, out: Output) -> None:
    """Show the row SEQ of the ledger."""
    row = open_history().row(seq)
    if row is None:
        raise UsageError(f"the ledger has no row {seq}", hint="edgeai logs shows which it has")
    if out.as_json:
        out.json(row)
        return
    for line in row_lines(row):
        out.answer(printable(line))


def row_lines(row: dict[str, Any]) -> list[str]:
    """Return a row in lines for people."""
    if row["kind"] != "request":
        return [f"{key:<12}{value}" for key, value in row.items()]
    facts = [("request", f"{row['id']} at {local_time(row['time'])}"), ("policy", row["policy"])]
    facts += [("placement", row["placement"]), ("reason", row["reason"])]
    facts += [("found", f"{rule['kind']} {rule['masked']} in {rule['where']}") for rule in row["rules"]]
    for candidate in row["decision"]["candidates"]:
        why = candidate["excluded_by"]
        facts.append(("candidate", candidate["model"] + (f", excluded by {why}" if why else "")))
    facts += [("attempt", attempt_text(attempt)) for attempt in row["attempts"]]
    facts += [("left", f"{item['bytes']} bytes to {item['host']}") for item in row["egress"]] or [("left", "0 bytes")]
    usage = row["usage"]
    if usage:
        facts.append(("tokens", f"{usage['prompt_tokens']} in, {usage['completion_tokens']} out"))
    facts += [("answered by", row["answered_by"] or "nobody"), ("ended", row["finish_reason"] or row["error"] or "-")]
    facts += [("cost", f"${row['cost_usd']:.6f}"), ("config", row["config"] or "-"), ("hash", row["hash"])]
    facts += [(f"{name} digest", text) for name, text in (row["digests"] or {}).items() if text and name != "key"]
    facts += [(name, json.dumps(text)) for name, text in row.get("bodies", {}).items() if text is not None]
    return [f"{name:<15}{value}" for name, value in facts]


def attempt_text(attempt: dict[str, Any]) -> str:
    """Return one attempt in one line."""
    parts = [attempt.get("model"), attempt.get("status"), attempt.get("error")]
    if attempt.get("ttft_s") is not None:
        parts.append(f"first token after {attempt['ttft_s']:.2f} s")
    if attempt.get("confidence") is not None:
        parts.append(f"confidence {attempt['confidence']:.2f}")
    return ", ".join(str(part) for part in parts if part)


@logs_command.command("verify", short_help="Check that nobody changed the ledger.")
@click.option("--against", type=Noted(), help="A row's number and hash that you kept: SEQ:HASH.")
@output_options
def verify_command(against: Any, out: Output) -> None:
    """Walk the chain of hashes: an edited, removed, inserted or moved row is named, and rows cut off at the end.

    Who may write the ledger could make all of it anew. Keep the line that this prints elsewhere, and hold the ledger against it later.
    """
    found = open_history().verify(against)
    if out.as_json:
        out.json(found.to_dict())
    else:
        for note in found.notes:
            out.note(printable(note))
        for problem in found.problems:
            out.answer(printable(f"BAD   {problem.what}"))
    if not found.ok:
        raise LedgerBroken(printable(f"the ledger is not what was written: {found.problems[0].what}"))
    if not out.as_json:
        out.answer(f"ok    {found.rows} rows, the last is {found.last}:{found.head}")


@logs_command.command("replay", short_help="Decide past requests again under other settings.")
@replay_options
@click.option("--since", type=WHEN, help="Only requests from then on.")
@output_options
def replay_command(policy: str | None, config: Path | None, since: datetime | None, out: Output) -> None:
    """Say what another policy or configuration would have changed: who answers, what it costs, how good it is.

    Nothing is asked and no model runs: decisions are made again from what the ledger kept.
    """
    show_replay(open_history().rows(since=since), policy, config, out)


@logs_command.command("prune", short_help="Delete old rows.")
@click.option("--before", type=WHEN, required=True, help="Delete what is older: 2030-01-31, 90d.")
@output_options
def prune_command(before: datetime, out: Output) -> None:
    """Delete the oldest rows and the texts kept with them; a row says up to which, so that the rest still verifies."""
    from edgeai.routing.ledgerfile import default_path, prune

    count = prune(default_path(), before)
    if out.as_json:
        out.json({"pruned": count, "before": before.astimezone(UTC).isoformat()})
    else:
        out.note(f"{count} rows are deleted")
