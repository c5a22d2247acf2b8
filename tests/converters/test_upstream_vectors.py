"""llama.cpp's own token vectors: its vocabularies as tokenizer folders, converted again, give the ids that Hugging Face gave.

They need an unpacked source distribution: EDGEAI_LLAMA_CPP names the folder of llama.cpp in it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from converters.checkpoint import Checkpoint
from converters.child import run_native
from converters.gguf import write_vocabulary
from converters.tokenizer import read_vocabulary
from converters.tokenproof import PROBE_KEYS
from tests.converters.rebuild import folder_from_gguf

SOURCE = os.environ.get("EDGEAI_LLAMA_CPP")
VOCABULARIES = (
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "qwen35",
    "llama-spm",
    "phi-3",
    "bert-bge",
    "starcoder",
    "refact",
    "command-r",
)
pytestmark = pytest.mark.skipif(not SOURCE, reason="EDGEAI_LLAMA_CPP names no unpacked llama.cpp")


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_vocabulary_made_again_gives_the_ids_of_hugging_face(tmp_path: Path, name: str) -> None:
    path = Path(SOURCE or "") / "models" / f"ggml-vocab-{name}.gguf"
    size = folder_from_gguf(path, tmp_path / "source")
    folder = tmp_path / "source"
    checkpoint = Checkpoint(
        path=folder,
        config={},
        tensors={},
        tokenizer_config=json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")),
        tokenizer_json=(folder / "tokenizer.json").read_text(encoding="utf-8"),
    )
    vocabulary = read_vocabulary(checkpoint, size)
    write_vocabulary(tmp_path / "v.gguf", "llama", vocabulary, {**PROBE_KEYS, "vocab_size": size})
    inputs = path.with_name(f"{path.name}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = [list(map(int, line.split())) for line in path.with_name(f"{path.name}.out").read_text().splitlines()]
    texts = inputs[: len(expected)]
    sets = [{"texts": texts, "add_special": False, "parse_special": False}]
    answer = run_native({"jobs": [{"model": str(tmp_path / "v.gguf"), "sets": sets}]}, what="reading the vectors")
    assert answer["jobs"][0]["ids"][0] == expected
