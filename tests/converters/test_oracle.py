"""The same checkpoints through llama.cpp's reference converter: the same tensors and keys, apart from what the tables here list.

Needs a folder of llama.cpp's sources (they are in the source distribution of llama-cpp-python) named by EDGEAI_LLAMA_CPP.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.families import VARIANTS, Variants, write_f32

LLAMA_CPP = os.environ.get("EDGEAI_LLAMA_CPP")
DRIVER = Path(__file__).parents[1] / "reference_converter.py"
NEEDS = pytest.mark.skipif(not LLAMA_CPP, reason="EDGEAI_LLAMA_CPP names no folder of llama.cpp's sources")

REFUSED: Mapping[str, str] = {
    "bert-roberta-masked-lm": "not supported",
    "granite-biases": "Missing",
    "ministral": "not supported",
}
"""Variants that the reference converter does not take → a part of what it says."""
KEYS: Mapping[str, str] = {
    r"general\.(name|type|size_label|basename|version|finetune)": "names are the caller's business here",
    r"tokenizer\.ggml\.add_(bos|eos)_token": "always written: libllama's defaults depend on `pre`",
    r"tokenizer\.ggml\.token_type_count": "written with the vocabulary of BERT, which is not used here",
    r"tokenizer\.ggml\.pre": "its table of known tokenizers is not asked",
    r"\w+\.attention\.(key|value)_length": "always written",
    r"\w+\.rope\.dimension_count": "always written",
    r"\w+\.vocab_size": "always written",
}
"""Keys that may differ, or be in one file only, for every variant → why."""
SOME_KEYS: Mapping[str, Mapping[str, str]] = {
    "gemma3-no-window": {
        r"gemma3\.attention\.sliding_window|gemma3\.rope\.freq_base_swa": "no layer has a window, and none is written",
    },
    "gemma3-pattern": {r"gemma3\.attention\.sliding_window_pattern": "not the pattern that the runtime assumes"},
    "gpt2-256-inner": {r"gpt2\.feed_forward_length": "the reference does not read n_inner, and its file does not load"},
    "llama-yarn-bounds": {
        r"llama\.rope\.scaling\..*": "the runtime's llama does not read the bounds: the divisors are written instead",
    },
    "mistral-window": {r"llama\.context_length": "no longer than the window, which the runtime does not compute"},
}
TENSORS: Mapping[str, Mapping[str, str]] = {
    "gemma3": {r"token_embd\.weight": "the reference cuts rows that no token has; here tokens are padded"},
    "gemma3-query": {r"blk\.\d+\.attn_q_norm\.weight": "query_pre_attn_scalar is carried by the norm of the query"},
    "llama-yarn-bounds": {r"rope_freqs\.weight": "the divisors that stand for the bounds"},
    "olmo2-tied": {r"output\.weight": "the runtime's olmo2 needs one"},
}
"""Variant or family → tensors that may differ, or be in one file only → why."""


@dataclass(frozen=True)
class File:
    """What two files are compared by: key → (types, value), tensor → (type, shape, hash)."""

    keys: Mapping[str, Any]
    tensors: Mapping[str, Any]


def read(path: Path) -> File:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    return File(
        keys={
            name: ([kind.name for kind in item.types], item.contents())
            for name, item in reader.fields.items()
            if not name.startswith("GGUF.")
        },
        tensors={
            item.name: (item.tensor_type.name, item.shape.tolist(), hashlib.sha256(item.data.tobytes()).hexdigest())
            for item in reader.tensors
        },
    )


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any], allowed: Mapping[str, str]) -> dict[str, Any]:
    """Return name → both values where they are not the same and no pattern of ALLOWED matches the name."""
    return {
        name: (ours.get(name), theirs.get(name))
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name) and not any(re.fullmatch(pattern, name) for pattern in allowed)
    }


@pytest.fixture(scope="module")
def references(variants: Variants, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path | str]:
    """What the reference converter made of every variant, in one process: a file, or what it said."""
    root = tmp_path_factory.mktemp("reference")
    request = {name: (str(variants(name)), str(root / f"{name}.gguf")) for name in VARIANTS}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(LLAMA_CPP)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, str | None] = json.loads(done.stdout)
    return {name: error or Path(request[name][1]) for name, error in answer.items()}


@NEEDS
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_the_reference_converter_writes_the_same_file(
    variants: Variants, references: Mapping[str, Path | str], tmp_path: Path, name: str
) -> None:
    reference = references[name]
    if name in REFUSED:
        assert isinstance(reference, str)
        assert REFUSED[name] in reference
        return
    assert isinstance(reference, Path), reference
    ours, theirs = read(write_f32(variants(name), tmp_path / "ours.gguf")), read(reference)
    tensors = {**TENSORS.get(name.partition("-")[0], {}), **TENSORS.get(name, {})}
    assert differing(ours.tensors, theirs.tensors, tensors) == {}
    assert differing(ours.keys, theirs.keys, {**KEYS, **SOME_KEYS.get(name, {})}) == {}
