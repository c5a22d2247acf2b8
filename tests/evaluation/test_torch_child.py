"""What the child that runs the source makes of folders that transformers does not take as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeai.evaluation import torch_child
from tests.checkpoints import edit_json


def test_the_first_name_of_longrope_is_read(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 256}
    scaling = {"type": "su", "long_factor": [2.0] * 8, "short_factor": [1.0] * 8}
    config = {"model_type": "phi3", **sizes, "original_max_position_embeddings": 64, "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = torch_child.configuration({"source": str(tmp_path)})
    assert found.rope_parameters["rope_type"] == "longrope"
    assert found.rope_parameters["original_max_position_embeddings"] == 64


def test_other_configurations_are_left_to_transformers(llama: Path) -> None:
    assert torch_child.configuration({"source": str(llama)}) is None


def test_a_configuration_that_transformers_refuses_is_no_crash(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    edit_json(tmp_path / "config.json", lambda config: config.update(hidden_act=None))
    request = {"source": str(tmp_path), "class": "LlamaForCausalLM", "threads": 1, "safetensors": True, "optional": []}
    with pytest.raises(torch_child.failures(), match="hidden_act"):
        torch_child.load(request, {})
