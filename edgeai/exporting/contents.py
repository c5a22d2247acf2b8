"""What an ONNX model says of itself, held against its source before either runs: shapes, names, tokens, ends, labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converters.families import ModelPlan
from converters.onnx.embedder import INPUTS
from converters.onnx.header import Header, Port
from converters.onnx.schema import graph_names
from converters.tokenizer import Vocabulary, source_tokenizer
from converters.tokenizer.known import ENDS
from converters.weight_files import read_json
from edgeai.artifact import Artifact
from edgeai.engines.hfvocab import HFVocab
from edgeai.engines.onnx.texts import tokenizer_text
from edgeai.errors import InvalidModel
from edgeai.evaluation.settings import may_be_longer, shown, text_of
from edgeai.types import Row

__all__ = ["embedder_rows", "language_rows", "module_rows", "tokenizer_row"]

MAX_TOKENIZER_BYTES = 64_000_000


def equal(name: str, have: Any, want: Any) -> Row:
    """Return the row of a thing that is not as in the source."""
    return Row(name=name, value=f"{shown(have)}, in the source {shown(want)}", limit="equal", ok=False)


# ---- language models


def language_rows(artifact: Artifact, header: Header, plan: ModelPlan, vocabulary: Vocabulary) -> list[Row]:
    """Return the rows about shapes and tokens of a language model."""
    wrong = [equal(*item) for item in differences(artifact, header, plan)]
    layers = artifact.metadata.get("genai.num_hidden_layers")
    rows = wrong or [Row(name="architecture and shapes", value=f"{artifact.arch}, {layers} layers", limit="equal")]
    return [
        *rows,
        *context_rows(artifact.context, plan),
        *token_rows(artifact.path, vocabulary),
        *end_rows(artifact, plan, vocabulary),
    ]


def differences(artifact: Artifact, header: Header, plan: ModelPlan) -> Iterator[tuple[str, Any, Any]]:
    """Yield (what, in the file, in the source) for everything that makes it pointless to run the two."""
    keys: Mapping[str, Any] = plan.keys
    heads = keys.get("attention.head_count_kv", keys.get("attention.head_count"))
    width = keys.get("attention.key_length")
    if width is None and isinstance(keys.get("attention.head_count"), int):
        width = keys["embedding_length"] // keys["attention.head_count"]
    wanted = {
        "num_hidden_layers": keys.get("block_count"),
        "hidden_size": keys.get("embedding_length"),
        "num_key_value_heads": max(heads) if isinstance(heads, list | tuple) else heads,
        "head_size": width,
    }
    for name, want in wanted.items():
        have = artifact.metadata.get(f"genai.{name}")
        if want is not None and have != want:
            yield name.replace("_", " "), have, want
    if artifact.vocab != plan.vocab_size:
        yield "vocabulary", artifact.vocab, plan.vocab_size
    logits = next((port for port in header.outputs if port.name == "logits"), None)
    last = logits.shape[-1] if logits is not None and logits.shape else None
    if isinstance(last, int) and last != plan.vocab_size:
        yield "logits", last, plan.vocab_size


def context_rows(have: Any, plan: ModelPlan) -> list[Row]:
    """Return a row for another context than the source's; a shorter one is still that model."""
    if have is None or have == plan.context or may_be_longer(have, plan.context, plan):
        return []
    return [
        Row(name="context", value=f"{have}, in the source {plan.context}", limit="at most that", ok=have < plan.context)
    ]


def token_rows(folder: Path, vocabulary: Vocabulary) -> list[Row]:
    """Return a row where the tokens in the tokenizer.json of FOLDER are not those of VOCABULARY: no list of texts has them all."""
    have = HFVocab(read_json(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)).tokens
    want = source_tokenizer(vocabulary.spec).get_vocab(with_added_tokens=True)
    wrong = sorted(text for text in have.keys() | want.keys() if have.get(text) != want.get(text))
    if not wrong:
        return []
    text = wrong[0]
    value = f"{len(wrong)} differ, such as {text!r:.40}: {shown(have.get(text))}, in the source {shown(want.get(text))}"
    return [Row(name="tokens", value=value, limit="equal", ok=False)]


def end_rows(artifact: Artifact, plan: ModelPlan, vocabulary: Vocabulary) -> list[Row]:
    """Return a row for each token at which the file would stop and the source not, and for another beginning where that is used."""
    rows = []
    ends = artifact.metadata.get("genai.eos_token_id", ())
    for token in ends if isinstance(ends, tuple) else (ends,):
        whole = isinstance(token, int) and 0 <= token < plan.vocab_size
        known = token in vocabulary.stop_ids or token == vocabulary.eos or text_of(vocabulary, token) in ENDS
        if not whole or (vocabulary.stop_ids and not known):
            said = f"{token} ({text_of(vocabulary, token)!r})"
            wanted = ", ".join(map(str, vocabulary.stop_ids)) or "none"
            rows.append(Row(name="end token", value=f"{said}, in the source {wanted}", limit="equal", ok=False))
    used = vocabulary.add_bos or "bos_token" in (vocabulary.chat_template or "")
    if used and vocabulary.bos is not None and artifact.bos not in (None, vocabulary.bos):
        rows.append(equal("bos token", artifact.bos, vocabulary.bos))
    return rows


# ---- embedding models


def embedder_rows(artifact: Artifact, header: Header, plan: ModelPlan, vocabulary: Vocabulary) -> list[Row]:
    """Return the rows about inputs, output and tokens of an embedding model."""
    names = sorted(port.name for port in header.inputs)
    dim, output = plan.keys.get("embedding_length"), header.outputs[0]
    wrong = []
    if artifact.arch not in ("onnx", plan.architecture):
        wrong.append(equal("architecture", artifact.arch, plan.architecture))
    if names != sorted(INPUTS):
        wrong.append(Row(name="inputs", value=", ".join(names), limit=", ".join(INPUTS), ok=False))
    if output.shape is None or len(output.shape) != 2 or output.shape[-1] != dim:
        wrong.append(Row(name="output", value=words(output), limit=f"(texts, {dim})", ok=False))
    rows = wrong or [Row(name="architecture and shapes", value=f"{artifact.arch}, vectors of {dim}", limit="equal")]
    schema = artifact.schema
    most = (
        schema["inputs"][0].get("max_tokens") if schema is not None and isinstance(schema["inputs"][0], dict) else None
    )
    return [
        *rows,
        *(context_rows(most, plan) if isinstance(most, int) else []),
        *token_rows(header.path.parent, vocabulary),
    ]


# ---- classifiers


def module_rows(artifact: Artifact, header: Header, schema: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Row]:
    """Return the rows about inputs, outputs and the schema of a classifier; INPUTS are those of the test set."""
    have, wrong = {port.name: port for port in header.inputs}, []
    for name in sorted(have.keys() | set(graph_names(schema))):
        want = inputs[name].shape[1:] if name in inputs else None
        if want is None or name not in have or not fits(have[name], want):
            said = words(have[name]) if name in have else "absent"
            limit = "absent" if want is None else f"({', '.join(['batch', *map(str, want)])})"
            wrong.append(Row(name=f"input {name}", value=said, limit=limit, ok=False))
    count, output = len(schema.get("labels") or schema["targets"]), header.outputs[0]
    last = output.shape[-1] if output.shape else None
    if isinstance(last, int) and len(output.shape or ()) > 1 and last != count:
        wrong.append(Row(name="outputs", value=words(output), limit=f"(batch, {count})", ok=False))
    rows = wrong or [Row(name="inputs and outputs", value=f"{', '.join(have)} → {output.name}", limit="equal")]
    own = artifact.schema or {}
    return rows + [
        equal(f"schema, {key}", own.get(key), schema.get(key))
        for key in sorted({str(key) for key in own} | set(schema))
        if own.get(key) != schema.get(key)
    ]


def fits(port: Port, want: tuple[int, ...]) -> bool:
    """Whether an array of items of the shape WANT goes into PORT."""
    shape = port.shape
    if shape is None or len(shape) != len(want) + 1:
        return False
    return all(side == size for side, size in zip(shape[1:], want, strict=True) if isinstance(side, int))


def words(port: Port) -> str:
    """Return the shape of PORT in words."""
    return f"({', '.join('?' if side is None else str(side) for side in port.shape or ())})"


def tokenizer_row(artifact: Artifact, source: Path) -> Row:
    """Return the row whether a classifier of texts has the tokenizer of the folder SOURCE."""
    try:
        have = json.loads(tokenizer_text(artifact))
    except (InvalidModel, ValueError, RecursionError):
        have = None
    same = have == json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    return Row(name="tokenizer in the file", value="the source's" if same else "another", limit="the source's", ok=same)
