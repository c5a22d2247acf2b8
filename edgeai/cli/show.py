"""`edgeai show`: what a model is."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from edgeai.cli import show_onnx
from edgeai.cli.output import Output, human_bytes, is_terminal, output_options
from edgeai.errors import NoChatTemplate, UsageError

if TYPE_CHECKING:
    from edgeai.artifact import Artifact
    from edgeai.store import Manifest

__all__ = ["show_command"]

Section = tuple[str, list[tuple[str, str]]]


@click.command("show", short_help="Show what a model is.")
@click.argument("model")
@click.option("--template", is_flag=True, help="Print the chat template alone.")
@output_options
def show_command(model: str, template: bool, out: Output) -> None:
    """Show what MODEL is: a pulled name, a GGUF or ONNX file, a folder with an ONNX model, or a Hugging Face folder."""
    from edgeai.artifact import open_artifact
    from edgeai.store import Store

    if template and out.as_json:
        raise UsageError("--template and --json exclude each other", hint="the JSON has the template in it")
    store = Store.open()
    path = store.find(model)
    artifact = open_artifact(path)
    manifest = store.pulled(model) if path == store.path_of(model) else None
    if template:
        if artifact.template is None:
            raise NoChatTemplate(f"{artifact.name!r} has no chat template", hint="`edgeai run --raw` completes text")
        on_terminal = is_terminal(sys.stdout)
        text = printable(artifact.template, keep="\n\t") if on_terminal else artifact.template
        click.echo(text, color=True)  # otherwise click takes escape sequences out of what is piped
    elif out.as_json:
        out.json(to_json(artifact, manifest) | {"passport": passport_json(artifact)})
    else:
        out.answer(layout([*sections(artifact, manifest), *passport(artifact)]))


def to_json(artifact: Artifact, manifest: Manifest | None) -> dict[str, Any]:
    """Return the facts as JSON values."""
    from edgeai.artifact import claimed_quant

    value = asdict(replace(artifact, tensors=())) | {"path": str(artifact.path), "types": dict(artifact.types)}
    del value["tensors"]  # hundreds of them, and `types` says what they are
    value |= {"claimed_quant": claimed_quant(artifact), "licence": licence(artifact, manifest)}
    value |= show_onnx.onnx_json(artifact) if artifact.format == "onnx" else {}
    value["files"] = [asdict(file) for file in manifest.files] if manifest else []
    return {key: plain(item) for key, item in value.items()}


def passport_json(artifact: Artifact) -> dict[str, Any] | None:
    """Return what is known of the proof of a GGUF file or an ONNX model; None for a Hugging Face folder."""
    from edgeai.paper import read_paper

    if artifact.format == "hf":
        return None
    paper = read_paper(artifact.path, artifact.metadata)
    return {"found": paper.place, "ok": paper.ok, "changed": paper.changed, "facts": plain(paper.facts)}


def passport(artifact: Artifact) -> Iterable[Section]:
    """Yield the section about the proof of a GGUF file or an ONNX model."""
    from edgeai.cli.report import row_text
    from edgeai.paper import read_paper

    if artifact.format == "hf":
        return
    paper = read_paper(artifact.path, artifact.metadata)
    what = (
        "folder was changed after the passport in"
        if artifact.path.is_dir()
        else "file was changed after the passport beside"
    )
    lines = [("", f"the {what} it was written")] if paper.changed else []
    if paper.place == "nowhere":
        name = artifact.path.name or "."
        hint = f"none: `edgeai prove SOURCE {name} --write` makes one from the model it was made from"
        yield "Passport", [*lines, ("", printable(hint))]
        return
    said = "passed" if paper.ok else "FAILED: this is not the model it was made from"
    before = "before it was changed, by its own keys: " if paper.changed else ""
    lines.append(("proof", f"{before}{said}"))
    if paper.place == "inside":
        told = {name: f"{value:.2g}" if isinstance(value, float) else value for name, value in paper.facts.items()}
        lines += rows({name.replace("_", " "): value for name, value in told.items() if name != "ok"})
    for row in paper.report.rows:
        lines.append((printable(row.name), printable(("" if row.ok else "FAIL ") + row_text(row))))
    source = artifact.metadata.get("edgeai.source.sha256")
    yield "Passport", [*lines, *rows({"source sha256": source})]


def plain(value: Any) -> Any:
    """Return VALUE with numbers that JSON does not have (NaN, infinities) as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def licence(artifact: Artifact, manifest: Manifest | None) -> str | None:
    """Return the licence in the manifest, else in the file."""
    if manifest:
        return manifest.licence
    stated = artifact.metadata.get("general.license.name") or artifact.metadata.get("general.license")
    return stated if isinstance(stated, str) else None


def sections(artifact: Artifact, manifest: Manifest | None) -> Iterable[Section]:
    """Yield the sections of the page: Model, Tokenizer, Tensors, Lineage, Licence; of ONNX models also what goes in and out."""
    from converters.quantmap import MIXED
    from edgeai.artifact import claimed_quant
    from edgeai.model import file_sampling

    claim = claimed_quant(artifact)
    quant = artifact.quant if claim in (None, artifact.quant) else f"{artifact.quant} (the file says {claim})"
    if artifact.metadata.get("edgeai.quant") == MIXED:
        quant = f"chosen by tensor, most of it {artifact.quant}"
    onnx = artifact.format == "onnx"
    model = {
        "name": artifact.name,
        "task": artifact.task if onnx else None,
        "architecture": artifact.arch if (artifact.arch, onnx) != ("onnx", True) else None,
        "parameters": human_count(artifact.params),
        "context length": artifact.context,
        "quantization": show_onnx.quant_words(artifact) if onnx else quant,
        "bits per weight": f"{artifact.bpw:.2f}",
        "size": human_bytes(artifact.size_bytes),
        "path": artifact.path,
        **(show_onnx.model_facts(artifact) if onnx else {}),
    }
    yield "Model", rows(model)
    if onnx and (taken := rows(show_onnx.schema_rows(artifact.schema))):
        yield "Takes and gives", taken
    kind = [artifact.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre")]
    length = f"{len(artifact.template)} characters" if artifact.template else "none"
    tokenizer = {
        "kind": " ".join(str(item) for item in kind if item),
        "vocabulary": artifact.vocab,
        "first token": artifact.bos,
        "end token": artifact.eos,
        "chat template": length,
    }
    if artifact.vocab or not onnx:
        yield "Tokenizer", rows(tokenizer)
    most_first = dict(sorted(artifact.types.items(), key=lambda item: -item[1]))
    if onnx:
        yield "Weights", rows({kind: human_count(count) for kind, count in most_first.items()})
        yield "Graph", [(key, printable(text)) for key, text in show_onnx.port_rows(artifact)]
    else:
        yield "Tensors", rows(most_first)
    yield "Lineage", list(lineage(artifact, manifest)) or [("", "not stated")]
    sampling = {**file_sampling(artifact), **(manifest.sampling if manifest else {})}
    if sampling:
        yield "Sampling", rows(sampling)
    yield "Licence", [("", printable(licence(artifact, manifest) or "not stated"))]


def lineage(artifact: Artifact, manifest: Manifest | None) -> Iterator[tuple[str, str]]:
    """Yield where the model comes from: its parent, the packages or files it was pulled from, and when."""
    if artifact.parent:
        yield "parent", printable(artifact.parent)
    files = manifest.files if manifest else ()
    whole = (source.partition("#")[0] for file in files for source in file.source.split(", "))
    for index, source in enumerate(dict.fromkeys(whole)):
        yield "source" if not index else "", printable(source)
    if manifest:
        yield "pulled", manifest.pulled_at
    if len(files) == 1:
        yield "sha256", files[0].sha256


def rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return FACTS as text, without those that are not known."""
    return [(key, printable(str(value))) for key, value in facts.items() if value not in (None, "")]


def layout(parts: Iterable[Section]) -> str:
    """Return the sections as text with aligned values."""
    parts = list(parts)
    width = max(len(key) for _, facts in parts for key, _ in facts) + 4
    lines: list[str] = []
    for title, facts in parts:
        indent = width if any(key for key, _ in facts) else 0
        lines += [f"  {title}", *(f"    {key:<{indent}}{value}" for key, value in facts), ""]
    return "\n".join(lines).rstrip()


def printable(text: str, keep: str = "") -> str:
    """Return TEXT with control characters shown as escapes: a model file must not drive the terminal."""
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)


def human_count(count: float) -> str:
    """Return COUNT with its unit: 134.5M."""
    for unit in ("", "K", "M"):
        if count < 1000:
            return f"{count:.1f}{unit}" if unit else f"{count:.0f}"
        count /= 1000
    return f"{count:.1f}B"
