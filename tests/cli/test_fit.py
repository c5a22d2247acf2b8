"""`edgeai fit`: what a model takes here, what else would fit, and whether that is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeai.cli import cli
from edgeai.cli.output import human_bytes
from edgeai.paths import home
from tests.loopback import serve


def fit(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["fit", *arguments])


def fit_json(*arguments: str) -> dict[str, Any]:
    result = fit(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_parts_add_up_to_the_plan(tiny_gguf: Path) -> None:
    found = fit_json(str(tiny_gguf))
    (part,) = found["parts"]
    sizes = [part[name] for name in ("weights_bytes", "kv_bytes", "compute_bytes", "other_bytes")]
    idle = sum(sizes) - part["total_bytes"]  # logits of positions that only scoring asks for
    assert 0 <= idle < part["compute_bytes"]
    assert found["plan"]["memory_bytes"] == part["total_bytes"]
    assert found["fits"]
    assert found["measured"] is None


def test_the_table_names_every_part(tiny_gguf: Path) -> None:
    text = fit(str(tiny_gguf)).stdout
    for word in ("weights", "KV cache", "buffers", "total", "free", "fits on the CPU"):
        assert word in text


def test_an_imagined_machine_is_planned_for(smollm2_path: Path) -> None:
    found = fit_json(str(smollm2_path), "--gpu-memory", "500MB", "--gpu-memory", "0.4GB", "--ctx", "8192")
    assert [part["device"] for part in found["parts"]] == ["CUDA0", "CUDA1", "CPU"]
    assert [part["free_bytes"] for part in found["parts"][:2]] == [500_000_000, 400_000_000]
    assert sum(part["layers"] for part in found["parts"]) == 31
    assert fit_json(str(smollm2_path), "--ram", "250MB")["plan"]["context"] < 8192


def test_what_does_not_fit_ends_with_5_and_says_what_would(smollm2_path: Path) -> None:
    result = fit(str(smollm2_path), "--ram", "200MB", "--ctx", "8192")
    assert (result.exit_code, result.stdout) == (5, "")
    assert "--ctx 2048" in result.stderr
    proposed = fit(str(smollm2_path), "--ram", "200MB", "--ctx", "2048")
    assert proposed.exit_code == 0, proposed.stderr


def test_what_must_be_free_is_said_of_the_plan_as_of_what_takes_less(smollm2_path: Path) -> None:
    options = (str(smollm2_path), "--streams", "4")
    needed = fit_json(*options)["plan"]
    needed = needed["memory_bytes"] - needed["twice_bytes"] + needed["prefix_bytes"]
    text = fit(*options).stdout
    assert f"so {human_bytes(needed)} must be free" in text
    assert "`" not in text


def test_less_is_less(smollm2_path: Path) -> None:
    found = fit_json(str(smollm2_path))
    assert found["alternatives"]
    assert all(
        other["needs_bytes"] < found["plan"]["memory_bytes"] + found["plan"]["prefix_bytes"]
        for other in found["alternatives"]
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the tolerance is that of Linux")
def test_a_measurement_is_within_a_tenth_and_remembered(smollm2_path: Path) -> None:
    found = fit_json(str(smollm2_path), "--measure", "--ctx", "512")
    assert [row["what"] for row in found["measured"]] == ["all", "buffers"]
    for row in found["measured"]:
        assert row["predicted_bytes"] == pytest.approx(row["measured_bytes"], rel=0.1), row
    memory = home() / "cache" / "memory.json"
    if memory.exists():  # a prediction that was right by a percent is not worth remembering
        assert "CPU" in memory.read_text()
        assert any(
            "as measured here before" in why for why in fit_json(str(smollm2_path), "--ctx", "512")["plan"]["why"]
        )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--ram", "8x"], 2, "is not a size"),
        (["--ram", "1GB", "--measure"], 2, "exclude each other"),
        (["--ctx", "1"], 2, "ctx 1"),
        (["--kv-type", "q3"], 2, "q3"),
        (["--device", "cuda"], 6, "cuda"),
    ],
)
def test_bad_options_are_errors(tiny_gguf: Path, arguments: list[str], code: int, said: str) -> None:
    result = fit(str(tiny_gguf), *arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert "hint:" in result.stderr


def test_a_folder_of_weights_is_to_be_converted_first(tmp_path: Path) -> None:
    result = fit(str(Path(__file__).parents[2] / "models" / "tiny"))
    assert result.exit_code == 3
    assert "edgeai convert" in result.stderr


def test_a_file_on_a_server_is_planned_from_its_header(tiny_gguf: Path) -> None:
    with serve() as web:
        web.files["/tiny.gguf"] = tiny_gguf.read_bytes()
        found = fit_json(f"{web.url}/tiny.gguf")
        measured = fit(f"{web.url}/tiny.gguf", "--measure")
    assert found["plan"]["memory_bytes"] == fit_json(str(tiny_gguf))["plan"]["memory_bytes"]
    assert measured.exit_code == 2
