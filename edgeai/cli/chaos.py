"""`edgeai chaos`: the fault lab, against edgeai's own router or any gateway that speaks OpenAI's API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgeai.cli.output import Output, output_options
from edgeai.errors import UsageError

if TYPE_CHECKING:
    from edgeai.chaos.faults import Fault
    from edgeai.chaos.lab import Lab
    from edgeai.chaos.score import Card, Result
    from edgeai.chaos.subject import Subject

__all__ = ["chaos_command"]

FAILED = 1
PORT = click.IntRange(1, 65535)


@click.command("chaos", short_help="Meet every fault that endpoints have, and score what comes of it.")
@click.option(
    "--gateway", metavar="URL", help="Score the gateway at URL (with its /v1) instead of edgeai's own router."
)
@click.option("--listen", type=PORT, metavar="PORT", help="The lab's port, which --gateway has as its endpoint.")
@click.option(
    "--second",
    type=PORT,
    metavar="PORT",
    help="The port of a second endpoint that never fails, where --gateway falls back to one.",
)
@click.option("--key", help="The key that --gateway wants.")
@click.option("--model", default="lab", show_default=True, help="The model that --gateway is asked for.")
@click.option("--only", metavar="FAULTS", help="Only these, by number or name: 8,9,tls.")
@click.option(
    "--deadline", type=click.FloatRange(0.5, 600), metavar="S", help="How long an answer may take.  [default: 3]"
)
@click.option(
    "--fuzz", type=click.IntRange(1), metavar="N", help="Instead: N requests, each with a random sequence of faults."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="What prompts and random sequences follow from.",
)
@click.option("--serve", type=PORT, metavar="PORT", help="Instead: only serve --fault on PORT, until Ctrl-C.")
@click.option("--fault", metavar="NAME", help="What --serve serves, as the column `serves` of --list has it.")
@click.option("--list", "list_", is_flag=True, help="Say what there is, and what is expected.")
@output_options
def chaos_command(
    gateway: str | None,
    listen: int | None,
    second: int | None,
    key: str | None,
    model: str,
    only: str | None,
    deadline: float | None,
    fuzz: int | None,
    seed: int,
    serve: int | None,
    fault: str | None,
    list_: bool,
    out: Output,
) -> None:
    """Serve thirty faults over real sockets and score who meets them: 0 is the exit code only when all pass.

    \b
    edgeai chaos
    edgeai chaos --only 8,9
    edgeai chaos --fuzz 2000 --seed 1
    edgeai chaos --gateway http://127.0.0.1:4000/v1 --listen 9100
    edgeai chaos --serve 9100 --fault eof-before-done
    """
    from edgeai.chaos.faults import DEADLINE_S, chosen
    from edgeai.chaos.opening import Target, opened

    if (serve is None) != (fault is None):
        raise UsageError("--serve and --fault go together", hint="edgeai chaos --serve 9100 --fault eof-before-done")
    if (gateway is None) != (listen is None):
        raise UsageError(
            "--gateway and --listen go together", hint="the gateway's endpoint must be the lab: give the port it has"
        )
    if gateway is None and (second or key):
        raise UsageError("--second and --key are for --gateway", hint="add --gateway URL --listen PORT")
    faults = chosen(only)
    if list_:
        show_list(faults, out)
        return
    if serve is not None and fault is not None:
        serve_fault(serve, fault, seed, out)
        return
    target = None
    if gateway is not None and listen is not None:
        target = Target(url=gateway, listen=listen, second=second, key=key, model=model)
    with opened(target, out.note) as (subject, lab):
        deadline_s = deadline or DEADLINE_S
        if fuzz is None:
            ok = show_score(subject, lab, faults, deadline_s, seed, out)
        else:
            ok = show_fuzz(subject, lab, fuzz, deadline_s, seed, out)
    click.get_current_context().exit(0 if ok else FAILED)


def show_score(
    subject: Subject, lab: Lab, faults: tuple[Fault, ...], deadline_s: float, seed: int, out: Output
) -> bool:
    """Score SUBJECT with FAULTS, print the table as it comes, and return whether all passed."""
    from edgeai.chaos.score import score

    def show(result: Result) -> None:
        if not out.as_json and result.applicable:
            out.answer(line_of(result))

    if not out.as_json:
        out.answer(f"{'':4}  {'#':>2}  {'fault':<12}  {'variant':<30}  {'took':>7}  what came, of what may")
    card = score(subject, lab, faults, deadline_s=deadline_s, seed=seed, each=show)
    if out.as_json:
        out.json(card.to_dict())
    else:
        out.answer(summary_of(card, len(faults)))
    return card.ok


def line_of(result: Result) -> str:
    """Return the line of the table for RESULT."""
    variant = f"{result.variant} ({result.mode})"
    mark = "ok" if result.ok else "FAIL"
    line = f"{mark:<4}  {result.number:>2}  {result.fault:<12}  {variant:<30}  {result.wall_s:5.2f} s  "
    return line + f"{result.got}, of {result.expected}" + "".join(f"; {why}" for why in result.why)


def summary_of(card: Card, faults: int) -> str:
    """Return what the whole CARD says, in one line."""
    rest = faults - card.applicable
    words = f"\n{card.passed} of {card.applicable} faults as expected"
    return words + (f"; {rest} are not applicable to a gateway from outside" if rest else "")


def show_fuzz(subject: Subject, lab: Lab, requests: int, deadline_s: float, seed: int, out: Output) -> bool:
    """Ask SUBJECT with random faults, print what came of it, and return whether everything held."""
    from edgeai.chaos.fuzz import fuzz
    from edgeai.cli.report import report_lines

    found = fuzz(
        subject,
        lab,
        requests,
        seed=seed,
        deadline_s=deadline_s,
        progress=lambda done: out.progress("requests", done, requests),
    )
    if out.as_json:
        out.json(found.to_dict())
        return found.ok
    for line in report_lines(found.report()):
        out.answer(line)
    for each in found.broken:
        out.answer(f"  request {each.number}: {' then '.join(each.faults) or 'no fault'}: {each.got}: {each.why}")
    return found.ok


def show_list(faults: tuple[Fault, ...], out: Output) -> None:
    """Print FAULTS with their variants and what is expected of each."""
    if out.as_json:
        from dataclasses import asdict

        out.json([asdict(fault) for fault in faults])
        return
    for fault in faults:
        out.answer(f"{fault.number:>2}  {fault.name}: {fault.what}")
        for variant in fault.variants:
            inner = f"  inside: {variant.hook or variant.patch}" if variant.hook or variant.patch else ""
            out.answer(f"      {variant.name:<22}  serves {variant.serve:<22}  {' or '.join(variant.expect)}{inner}")


def serve_fault(port: int, fault: str, seed: int, out: Output) -> None:
    """Serve FAULT on PORT until Ctrl-C, and say what comes."""
    import time

    from edgeai.chaos.opening import serving

    with serving(port, fault, seed=seed) as lab:
        out.note(f"{lab.url} serves {fault!r} until Ctrl-C")
        shown = 0
        while True:
            time.sleep(0.1)
            for seen in lab.seen[shown:]:
                shown += 1
                out.note(f"{seen.method or 'connection'} {seen.path} {'with a key' if seen.key else 'without a key'}")
