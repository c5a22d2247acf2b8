"""`edgeai rm`: delete pulled models."""

from __future__ import annotations

import click

from edgeai.cli.output import Output, human_bytes, output_options

__all__ = ["rm_command"]


@click.command("rm", short_help="Delete pulled models.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@output_options
def rm_command(names: tuple[str, ...], out: Output) -> None:
    """Delete pulled models; they can be pulled again. Files that other models share stay."""
    from edgeai.store import Store

    store = Store.open()
    models = list(dict.fromkeys(store.need_pulled(name).name for name in names))  # all are checked before one goes
    results = []
    for name in models:
        freed = store.remove(name)
        out.note(f"{name} is deleted, {human_bytes(freed)} freed")
        results.append({"name": name, "freed_bytes": freed})
    if out.as_json:
        out.json(results)
