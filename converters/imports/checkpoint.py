"""A GGUF file as a checkpoint: names, shapes, configuration and tokenizer of the Hugging Face folder that it could have come from.

The tensors are those of the family's rules read backwards. As a check the result is planned forwards again: the keys and tensors that
come out must be those of the file.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.checkpoint import Checkpoint, Source
from converters.dequantize import decodable
from converters.errors import UnsupportedModel
from converters.families import FAMILIES, Family, ModelPlan, Rule, names, plan_model
from converters.families.rules import INVERSE
from converters.header import GGUFHeader, read_header
from converters.imports.config import ARCHITECTURES, FREQUENCIES, config_of
from converters.imports.source import Backwards, StoredTensor, check_whole, stored_tensors
from converters.imports.tokenizer import tokenizer_config, vocabulary_of
from converters.tokenizer import Vocabulary

__all__ = ["Imported", "import_gguf"]

SAMPLING: Mapping[str, tuple[str, ...]] = {
    "temperature": ("general.sampling.temp",),
    "top_k": ("general.sampling.top_k",),
    "top_p": ("general.sampling.top_p",),
    "min_p": ("general.sampling.min_p",),
}
"""generation_config.json → key of the file (llama-arch.cpp, `LLM_KV_GENERAL_SAMPLING_…`)."""
DESCRIBED = ("general.name", "general.author", "general.organization", "general.license", "general.license.link")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A GGUF file read back: the checkpoint, its plan and vocabulary, and notices as (code, message)."""

    header: GGUFHeader
    checkpoint: Checkpoint
    plan: ModelPlan
    vocabulary: Vocabulary
    stored: Mapping[str, StoredTensor]
    notices: tuple[tuple[str, str], ...]

    @property
    def kinds(self) -> set[str]:
        """The types in which its matrices are stored."""
        return {tensor.kind for tensor in self.stored.values() if len(tensor.shape) > 1}

    @property
    def described(self) -> dict[str, str]:
        """What the file says of itself: its name and whose it is."""
        kv = self.header.kv
        return {key.removeprefix("general."): str(kv[key]) for key in DESCRIBED if isinstance(kv.get(key), str)}


def import_gguf(path: Path) -> Imported:
    """Open the GGUF file PATH as a checkpoint, reading its header and its vocabulary only.

    Raises InvalidModel for a damaged file, UnsupportedModel that names what has no words in a Hugging Face folder.
    """
    header = read_header(path)
    check_whole(header)
    stored = stored_tensors(header)
    for tensor in stored.values():
        if not decodable(tensor.kind):
            raise UnsupportedModel(
                f"the tensor {tensor.name!r} of {str(path)!r} is stored as {tensor.kind}, which holds no weights",
                hint="convert the full-precision model it was made from",
            )
    config, without_place = config_of(header, stored)
    vocabulary = vocabulary_of(header)
    ends = {f"{name}_token_id": getattr(vocabulary, name) for name in ("bos", "eos", "pad")}
    config |= ends
    checkpoint = Checkpoint(
        path=path,
        config=config,
        tensors=backwards(header, stored, config["head_dim"]),
        generation_config=generation_config(header, vocabulary, ends),
        tokenizer_config=tokenizer_config(vocabulary, config["max_position_embeddings"]),
        tokenizer_json=json.dumps(vocabulary.spec, ensure_ascii=False),
    )
    plan = plan_model(checkpoint)
    check(header, plan)
    notices = [("keys-left-out", f"keys without a place in config.json: {names(without_place)}")] * bool(without_place)
    return Imported(
        header=header,
        checkpoint=checkpoint,
        plan=plan,
        vocabulary=vocabulary,
        stored=stored,
        notices=(*notices, *plan.warnings),
    )


def generation_config(header: GGUFHeader, vocabulary: Vocabulary, ends: Mapping[str, int | None]) -> dict[str, Any]:
    """Return the generation_config.json: all tokens that end a text in the runtime, and the sampling that the file asks for."""
    stops = [vocabulary.eos, *(token for token in vocabulary.stop_ids if token != vocabulary.eos)]
    known = [token for token in stops if token is not None]
    found: dict[str, Any] = {name: token for name, token in ends.items() if token is not None}
    found["eos_token_id"] = known[0] if len(known) == 1 else known
    sampling = {
        name: header.kv[key]
        for name, keys in SAMPLING.items()
        for key in keys
        if isinstance(header.kv.get(key), (int, float))
    }
    return found | sampling | ({"do_sample": True} if sampling else {})


def backwards(header: GGUFHeader, stored: Mapping[str, StoredTensor], head_dim: int) -> dict[str, Source]:
    """Return every tensor under the name, in the shape and with the rows that it has in a checkpoint."""
    layout = ARCHITECTURES[header.arch]
    family: Family = importlib.import_module(f"converters.families.{FAMILIES[layout.model]}").FAMILY
    found: dict[str, Source] = {}
    left = dict(stored)
    if layout.frequencies:
        left.pop(FREQUENCIES, None)
    for rule, layer in rules_of(family, stored):
        target = rule.target.format(i=layer)
        if target not in left:
            continue
        tensor = left.pop(target)
        for source in undone(rule, layer, layout.prefix, tensor, head_dim):
            found[source.name] = source
    if left:
        raise UnsupportedModel(
            f"{str(header.path)!r} has {len(left)} tensors that {layout.model} has no place for: {names(sorted(left))}",
            hint="they would be lost",
        )
    return found


def rules_of(family: Family, stored: Mapping[str, StoredTensor]) -> Iterator[tuple[Rule, int | None]]:
    """Yield each rule of FAMILY with each layer."""
    layers = {int(match[1]) for name in stored if (match := re.match(r"blk\.(\d{1,5})\.", name))}
    for rule in (*family.once_before, *family.once_after):
        yield rule, None
    for layer in sorted(layers):
        for rule in family.per_layer:
            yield rule, layer


def undone(rule: Rule, layer: int | None, prefix: str, tensor: StoredTensor, head_dim: int) -> Iterator[Backwards]:
    """Yield what TENSOR was made of by RULE."""
    if rule.skip_rows or rule.squeezed:
        raise UnsupportedModel(f"the tensor {tensor.name!r} cannot be read back: its rule has no inverse")
    if "{e}" in rule.source:
        for part in range(tensor.shape[0]):
            name = rule.source.format(i=layer, p=prefix, e=part)
            yield Backwards(name=name, shape=tensor.shape[1:], stored=tensor, part=part)
        return
    yield Backwards(
        name=rule.source.format(i=layer, p=prefix),
        shape=tensor.shape[::-1] if rule.transposed else tensor.shape,
        stored=tensor,
        undo=INVERSE[rule.transform] if rule.transform else None,
        block_rows=head_dim if rule.transform else 1,
        transposed=rule.transposed,
    )


def check(header: GGUFHeader, plan: ModelPlan) -> None:
    """Raise UnsupportedModel where converting what was read back would not give the keys and tensors of the file."""
    import numpy as np

    for key, value in plan.keys.items():
        name = f"{header.arch}.{key}"
        given = header.kv.get(name)
        same = given == value or (
            isinstance(given, float) and isinstance(value, (int, float)) and np.float32(given) == np.float32(value)
        )
        if isinstance(given, tuple) or given is None or same:
            continue
        raise UnsupportedModel(
            f"{str(header.path)!r} has {name} {given!r}, and the config.json that says so best means {value!r}",
            hint="a folder of transformers cannot say this",
        )
    expected, present = {tensor.name for tensor in plan.tensors}, {tensor.name for tensor in header.tensors}
    if lost := sorted((expected ^ present) - {FREQUENCIES}):
        raise UnsupportedModel(f"{str(header.path)!r} differs from what it is read back as: {names(lost)}")
