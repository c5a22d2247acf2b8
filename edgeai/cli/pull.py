"""`edgeai pull`: download models of the catalogue."""

from __future__ import annotations

import time

import click

from edgeai.cli.output import Output, human_bytes, output_options

__all__ = ["pull_command"]


@click.command("pull", short_help="Download models by name.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@output_options
def pull_command(names: tuple[str, ...], out: Output) -> None:
    """Download models by name; `edgeai list --all` shows the names.

    A download that was interrupted goes on where it stopped, as far as its source can.
    """
    from edgeai.store import Store

    store = Store.open()
    entries = {entry.name: entry for entry in map(store.need, names)}  # every name is checked before the first byte
    results = []
    for entry in entries.values():
        before, start = store.pulled(entry.name), time.monotonic()
        path = store.pull(entry.name, out.progress)
        here = store.pulled(entry.name) == before
        size, seconds = human_bytes(entry.size_bytes), time.monotonic() - start
        out.note(f"{entry.name} is here already ({size})" if here else f"{entry.name}: {size} in {seconds:.1f} s")
        results.append(
            {
                "name": entry.name,
                "path": str(path),
                "size_bytes": entry.size_bytes,
                "pulled": not here,
                "seconds": round(seconds, 3),
            }
        )
    if out.as_json:
        out.json(results)
