"""`edgeai list`: the models that are here, and those that could be."""

from __future__ import annotations

import sys
from typing import Any

import click

from edgeai.cli.output import Output, human_bytes, is_terminal, output_options
from edgeai.types import Notice

__all__ = ["list_command"]

COLUMNS = ("NAME", "SIZE", "QUANT", "LICENCE", "PULLED")


@click.command("list", short_help="List the models that are here.")
@click.option("-a", "--all", "everything", is_flag=True, help="Add the models that can be pulled.")
@output_options
def list_command(everything: bool, out: Output) -> None:
    """List the models on this machine."""
    from edgeai.store import Store

    store = Store.open()
    damaged = store.damaged()
    out.warn(
        Notice(code="damaged_manifest", message=f"{name!r} is left out: {error.message}; {error.hint}")
        for name, error in damaged.items()
    )
    rows: list[dict[str, Any]] = []
    for model in store.list():
        path = store.path_of(model.name)
        rows.append(describe(model) | {"pulled_at": model.pulled_at, "path": str(path) if path else None})
    if everything:
        here = {row["name"] for row in rows}
        others = [entry for entry in store.entries().values() if entry.name not in here]
        rows += [describe(entry) | {"pulled_at": None, "path": None} for entry in others]
    if out.as_json:
        out.json(rows)
        return
    if rows:
        show(rows, wide=everything, out=out)
    elif not damaged:
        out.note("no models are here yet; `edgeai list --all` shows what can be pulled")


def describe(model: Any) -> dict[str, Any]:
    """Return what a manifest and a catalogue entry both say of a model."""
    return {
        "name": model.name,
        "size_bytes": model.size_bytes,
        "quant": model.quant,
        "licence": model.licence,
        "description": model.description,
    }


def show(rows: list[dict[str, Any]], *, wide: bool, out: Output) -> None:
    """Print ROWS: a table on a terminal, plain columns elsewhere; WIDE adds the description."""
    header = (*COLUMNS, "DESCRIPTION") if wide else COLUMNS
    cells = [[*texts(row), row["description"]] if wide else texts(row) for row in rows]
    if not is_terminal(sys.stdout):
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        for line in (header, *cells):
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            out.answer("  ".join(padded).rstrip())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in header:
        table.add_column(name, justify="right" if name == "SIZE" else "left", no_wrap=name != "DESCRIPTION")
    for line in cells:
        table.add_row(*line)
    Console().print(table, markup=False)


def texts(row: dict[str, Any]) -> list[str]:
    """Return the cells of one row."""
    if not row["pulled_at"]:
        when = "-"
    elif not row["path"]:
        when = "incomplete"
    else:
        when = row["pulled_at"][:10]
    return [row["name"], human_bytes(row["size_bytes"]), row["quant"], row["licence"], when]
