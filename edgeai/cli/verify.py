"""`edgeai verify`: check that model files still are what they were."""

from __future__ import annotations

import click

from edgeai.cli.output import Output, output_options
from edgeai.errors import InvalidModel

__all__ = ["verify_command"]


@click.command("verify", short_help="Check the bytes of models.")
@click.argument("models", metavar="[NAME|PATH]...", nargs=-1)
@output_options
def verify_command(models: tuple[str, ...], out: Output) -> None:
    """Hash pulled models again, and check the header and extents of other model files; without a name, all pulled."""
    from edgeai.store import Store

    store = Store.open()
    damaged = store.damaged()
    targets = models or tuple(sorted([*damaged, *(model.name for model in store.list())]))
    reports = {target: store.verify(target, out.progress) for target in targets}
    if out.as_json:
        out.json([{"name": target, **report.to_dict()} for target, report in reports.items()])
    else:
        for row in (row for report in reports.values() for row in report.rows):
            want = f", and {row.limit} is wanted" if row.limit else ""
            out.answer(f"ok    {row.name}" if row.ok else f"BAD   {row.name}: {row.value}{want}")
        if not reports:
            out.note("no models are here yet; `edgeai list --all` shows what can be pulled")
    bad = [target for target, report in reports.items() if not report.ok]
    if bad:
        pulled = " ".join(target for target in bad if target not in damaged and store.is_pulled(target))
        hint = f"edgeai rm {pulled}; edgeai pull {pulled}" if pulled else "download or convert the file again"
        hints = [str(damaged[target].hint) for target in bad if target in damaged]
        raise InvalidModel(
            f"{', '.join(bad)}: not what it should be", hint="; ".join(hints + [hint] * (len(bad) > len(hints)))
        )
