"""The facts of an ONNX model: a folder of onnxruntime-genai with a language model, a folder with an embedder, or a single file.

Besides the graph a folder has configurations that native code follows: the names of files, options of sessions, libraries to load.
They are untrusted as the graph is, and checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.onnx.header import Header, Port, data_files, inside, read_header
from converters.weight_files import read_json
from edgeai.artifact.facts import PASSPORT, SCHEMA, UNNAMED, Artifact
from edgeai.artifact.folder import MAX_CONFIG_BYTES, folder_template, whole
from edgeai.errors import InvalidModel

__all__ = ["GENAI_CONFIG", "LINEAGE", "MODEL", "check_operators", "open_language_model", "open_onnx"]

GENAI_CONFIG, MODEL, LINEAGE = "genai_config.json", "model.onnx", "edgeai.json"
MAX_TOKENIZER_BYTES = 64_000_000
DECODER_ONLY = ("encoder", "vision", "speech", "embedding", "pipeline", "joiner")
"""Sections of genai_config.json that a plain language model does not have."""
MOST_PORTS = 64
NATIVE = ("library", "custom_op", "plugin")
"""Parts of names of settings by which onnxruntime would load code from a file."""
SESSION = frozenset({
    "log_id", "log_severity_level", "log_verbosity_level", "intra_op_num_threads", "inter_op_num_threads", "provider_options",
    "enable_cpu_mem_arena", "enable_mem_pattern", "graph_optimization_level", "disable_cpu_ep_fallback", "disable_quant_qdq",
    "enable_quant_qdq_cleanup", "use_env_allocators",
})  # fmt: skip
"""Options of sessions that only say how to compute; others write files (enable_profiling), or are anything that onnxruntime knows."""
MOST_LAYERS, MOST_NAMES = 10_000, 64
"""More layers, or more names of inputs or outputs, than any model has: each is looked for in the graph."""


def open_onnx(path: Path, *, folder: bool = False) -> Artifact:
    """Return the facts of the ONNX file PATH: a model that gives vectors, labels or values, as its `edgeai.schema` says.

    One that has been converted elsewhere has no schema; it can be looked at, and run on arrays. With FOLDER, and where it was made here
    in a folder, that is the model.
    """
    header = read_header(path)
    check_operators(header)
    folder = folder or (path.name == MODEL and (path.parent / LINEAGE).exists())
    place = path.parent if folder else path
    metadata: dict[str, Any] = {key: _value(key, value) for key, value in header.metadata.items()}
    metadata |= _lineage(path.parent) if folder else {}
    schema = metadata.get(SCHEMA)
    if schema is None and folder and (path.parent / LINEAGE).exists():
        raise InvalidModel(f"{str(path)!r} does not say what it takes: it has no {SCHEMA}", hint="convert it again")
    if schema is not None:
        _check_schema(path, schema)
    return _artifact(header, place, metadata, arch=str(metadata.get("edgeai.architecture") or "onnx"))


def open_language_model(folder: Path) -> Artifact:
    """Return the facts of a folder as onnxruntime-genai's model builder makes it.

    Raises InvalidModel where a file is missing or damaged, where a name leads out of the folder, and for settings that load native code.
    """
    path = folder / GENAI_CONFIG
    config = _read_config(path)
    model = config.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        raise InvalidModel(f"{str(path)!r} does not describe a model with a decoder", hint="convert the model again")
    for place, value in _walk(config):
        if any(part in place[-1].lower() for part in NATIVE) and value not in (None, "", False):
            raise InvalidModel(
                f"{str(path)!r} would load native code: {'.'.join(place)} is {value!r:.100}",
                hint="do not use this folder",
            )
    for place, _ in _walk(config):
        if len(place) > 1 and place[-2] == "session_options" and place[-1] not in SESSION:
            raise InvalidModel(
                f"{str(path)!r} has an option of sessions that is not known here: {place[-1]!r:.100}",
                hint="leave it out of the file, if you trust the folder",
            )
    if other := sorted(set(DECODER_ONLY) & (model.keys() | decoder.keys())):
        raise InvalidModel(
            f"{str(folder)!r} is no plain language model: it has a part {other[0]!r}",
            hint="models of text alone are run here",
        )
    name = decoder.get("filename", MODEL)
    graph = inside(folder, name, what=f"the graph of {str(folder)!r}")
    if not graph.is_file():
        missing = f"{str(graph)!r} is missing: {GENAI_CONFIG} names it"
        raise InvalidModel(missing, hint="copy the whole folder, or convert it again")
    header = read_header(graph)
    check_operators(header)
    _check_ports(header, decoder)
    _check_sizes(header, model, decoder)
    _check_tokenizer(folder)
    said = {f"genai.{key}": _brief(model.get(key)) for key in ("type", "eos_token_id", "pad_token_id")}
    metadata: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    metadata |= {"genai.search": json.dumps(config.get("search") or {}), **_lineage(folder)}
    window = decoder.get("sliding_window")
    if isinstance(window, dict):
        metadata["genai.window"] = json.dumps(window)
    sizes = {
        key: whole(decoder, key) for key in ("num_hidden_layers", "num_key_value_heads", "head_size", "hidden_size")
    }
    metadata |= {f"genai.{key}": value for key, value in sizes.items() if value is not None}
    if header.operators[("com.microsoft", "GatherBlockQuantized")]:
        metadata["onnx.shared_bytes"] = sum(tensor.nbytes for tensor in header.tensors if "lm_head" in tensor.name)
    return _artifact(
        header,
        folder,
        metadata,
        arch=str(model.get("type") or "onnx"),
        context=whole(model, "context_length"),
        vocab=whole(model, "vocab_size") or 0,
        bos=whole(model, "bos_token_id", zero=True),
        eos=whole(model, "eos_token_id", zero=True),
        template=folder_template(folder),
    )


def _ports(ports: Sequence[Port]) -> tuple[str, ...]:
    """Return PORTS in words; those that every layer has are one."""
    groups: dict[tuple[str, str], list[str]] = {}
    for port in ports:
        sides = ", ".join("?" if side is None else str(side) for side in port.shape or ())
        groups.setdefault((re.sub(r"[0-9]+", "N", port.name), f"{port.dtype} ({sides})"), []).append(port.name)
    return tuple(
        f"{names[0]} {kind}" if len(names) == 1 else f"{pattern} {kind} × {len(names)}"
        for (pattern, kind), names in list(groups.items())[:MOST_PORTS]
    )


def check_operators(header: Header) -> None:
    """Raise InvalidModel for operators of domains that onnxruntime does not have: they would need a library that came with the file."""
    if unknown := header.unknown_operators():
        named = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        raise InvalidModel(
            f"{str(header.path)!r} has operators that onnxruntime does not have: {named}",
            hint="export it with standard operators; libraries of operators are not loaded",
        )


def _artifact(
    header: Header, place: Path, metadata: Mapping[str, Any], *, arch: str, context: int | None = None, vocab: int = 0,
    bos: int | None = None, eos: int | None = None, template: str | None = None,
) -> Artifact:  # fmt: skip
    by_type = header.by_type()
    params = sum(by_type.values())
    files = [header.path, *data_files(header)]
    size = sum(item.stat().st_size for item in (place.iterdir() if place.is_dir() else files) if item.is_file())
    most = by_type.most_common(1)[0][0] if by_type else "F32"
    stem = place.resolve().name if place.name in UNNAMED else place.name
    named = metadata.get("edgeai.name")
    name = place.stem if place.suffix == ".onnx" else stem
    parent = metadata.get("edgeai.source.sha256")
    return Artifact(
        path=place,
        name=named if name in UNNAMED and isinstance(named, str) else name,
        format="onnx",
        arch=arch,
        params=params,
        context=context,
        quant=str(metadata.get("edgeai.quant") or most),
        bpw=8 * header.data_bytes / params if params else 0.0,
        vocab=vocab,
        bos=bos,
        eos=eos,
        template=template,
        parent=parent if isinstance(parent, str) else None,
        size_bytes=size,
        types=by_type,
        metadata={
            **metadata, "onnx.opset": header.opsets.get("", header.opsets.get("ai.onnx", 0)), "onnx.file": header.path.name,
            "onnx.data_bytes": header.data_bytes, "onnx.producer": header.producer, "onnx.most": most,
            "onnx.inputs": _ports(header.inputs), "onnx.outputs": _ports(header.outputs),
        },
    )  # fmt: skip


def _read_config(path: Path) -> dict[str, Any]:
    """Return genai_config.json. One that has a name twice is refused: onnxruntime-genai reads both, and Python the last."""
    config = read_json(path, MAX_CONFIG_BYTES)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for at, (name, _) in enumerate(pairs) if any(name == other for other, _ in pairs[:at]))
            raise InvalidModel(f"{str(path)!r} has {twice!r:.100} twice", hint="do not use this folder")
        return found

    json.loads(path.read_bytes(), object_pairs_hook=unique)
    return config


def _walk(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (place, value) of everything in a JSON value; a place ends with the name of a setting."""
    left: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while left:
        place, item = left.pop()
        if isinstance(item, Mapping):
            left += [((*place[-8:], str(key)), inner) for key, inner in item.items()]
        elif isinstance(item, list):
            left += [(place, inner) for inner in item]
        if place:
            yield place, None if isinstance(item, Mapping | list) else item


def _check_ports(header: Header, decoder: Mapping[str, Any]) -> None:
    """Raise InvalidModel where the configuration names inputs or outputs that the graph does not have: the runtime would abort later."""
    layers = whole(decoder, "num_hidden_layers") or 0
    if layers > MOST_LAYERS:
        raise InvalidModel(
            f"{GENAI_CONFIG} is not valid: num_hidden_layers is {layers}", hint="convert the model again"
        )
    for kind, ports in (("inputs", header.inputs), ("outputs", header.outputs)):
        have = {port.name for port in ports}
        named = decoder.get(kind)
        if not isinstance(named, Mapping) or not named:
            raise InvalidModel(f"{GENAI_CONFIG} names no {kind} of the graph", hint="convert the model again")
        if len(named) > MOST_NAMES:
            raise InvalidModel(f"{GENAI_CONFIG} names {len(named)} {kind}", hint="do not use this folder")
        for key, name in named.items():
            if not isinstance(name, str):
                continue
            numbered = [name.replace("%d", str(layer)) for layer in range(layers)] if "%d" in name else [name]
            # layers of another kind (convolutions) have no keys and values: one of a numbered name is enough
            if not any(item in have for item in numbered):
                raise InvalidModel(
                    f"{str(header.path)!r} has no {kind[:-1]} {numbered[0]!r}, which {GENAI_CONFIG} names as {key}",
                    hint="the folder is damaged or mixed from two models: convert it again",
                )


def _check_sizes(header: Header, model: Mapping[str, Any], decoder: Mapping[str, Any]) -> None:
    """Raise InvalidModel where the configuration says another size than the graph has: the runtime would fail at the first request."""
    ports = {port.name: port.shape or () for port in (*header.inputs, *header.outputs)}
    inputs, outputs = decoder["inputs"], decoder["outputs"]
    logits = ports.get(str(outputs.get("logits", "logits")), ())
    pairs = [("vocab_size", whole(model, "vocab_size"), logits[-1] if logits else None)]
    caches = str(inputs.get("past_key_names", ""))
    for layer in range(whole(decoder, "num_hidden_layers") or 0):
        keys = ports.get(caches.replace("%d", str(layer)), ())
        if len(keys) == 4:  # batch, heads, tokens, head size
            pairs += [
                (name, whole(decoder, name), keys[at]) for name, at in (("num_key_value_heads", 1), ("head_size", 3))
            ]
    layers = [
        int(match.group(1))
        for name in inputs.values()
        if isinstance(name, str) and "%d" in name
        for port in header.inputs
        if (match := re.fullmatch(re.escape(name).replace("%d", "([0-9]{1,5})"), port.name))
    ]
    if layers:
        pairs.append(("num_hidden_layers", whole(decoder, "num_hidden_layers"), max(layers) + 1))
    for name, said, found in pairs:
        if said is not None and isinstance(found, int) and said != found:
            raise InvalidModel(
                f"{GENAI_CONFIG} says that {name} is {said}, and in {str(header.path)!r} it is {found}",
                hint="the folder is damaged or mixed from two models: convert it again",
            )
    context = whole(model, "context_length")
    tables = [tensor.shape[0] for tensor in header.tensors if "cos_cache" in tensor.name and len(tensor.shape) == 2]
    if context is not None and tables and context > max(tables):
        raise InvalidModel(
            f"{GENAI_CONFIG} says that context_length is {context}, and {str(header.path)!r} has positions for {max(tables)} tokens",
            hint="lower context_length, or convert the model again",
        )


def _check_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InvalidModel(
            f"{str(path)!r} is missing", hint="copy the tokenizer of the model into its folder, or convert it again"
        )
    read_json(path, MAX_TOKENIZER_BYTES)


def _lineage(folder: Path) -> dict[str, Any]:
    """Return what edgeai.json says of a folder that was converted here, as flat keys."""
    path = folder / LINEAGE
    if not path.is_file():
        return {}
    facts = read_json(path, MAX_CONFIG_BYTES)
    found = {
        f"edgeai.{key}": facts[key] for key in ("name", "quant", "architecture") if isinstance(facts.get(key), str)
    }
    source, passport = facts.get("source"), facts.get("passport")
    if isinstance(source, dict) and isinstance(source.get("sha256"), str):
        found["edgeai.source.sha256"] = source["sha256"]
    if isinstance(passport, dict):
        found |= {
            f"{PASSPORT}{key}": value for key, value in passport.items() if isinstance(value, bool | int | float | str)
        }
    return found


def _value(key: str, value: str) -> Any:
    """Return a value of the metadata, which has only texts, as what it is."""
    if key == f"{PASSPORT}ok":
        return value == "true"
    if key.startswith(PASSPORT):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _brief(value: Any) -> Any:
    return (
        tuple(value)
        if isinstance(value, list) and len(value) <= 64
        else value
        if isinstance(value, int | str)
        else None
    )


def _check_schema(path: Path, text: Any) -> None:
    try:
        schema = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        schema = None
    if (
        not isinstance(schema, dict)
        or schema.get("version") != 1
        or not isinstance(schema.get("inputs"), list)
        or not schema["inputs"]
    ):
        raise InvalidModel(f"the {SCHEMA} of {str(path)!r} is not valid: {text!r:.80}", hint="convert the model again")
