"""`edgeai convert --to onnx` as a user meets it: what it prints, its exit codes, and that the builder says nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from edgeai.cli import cli
from edgeai.cli.convert_onnx import placed
from edgeai.cli.targets import TargetsParam, quants_for
from edgeai.errors import UsageError
from edgeai.evaluation import passport, sidebyside
from edgeai.evaluation.sidebyside import measure
from tests.checkpoints import InProcessTorch, make
from tests.families import VARIANTS, make_variant
from tests.genai import InProcessBuilder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source") / "a model é 模型")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run torch and the builder in this process."""
    monkeypatch.setattr("converters.onnx.language.Child", InProcessBuilder)
    monkeypatch.setattr(passport, "Child", InProcessTorch)


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


@pytest.mark.slow
def test_stdout_is_the_path_and_the_builder_says_nothing(source: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "edgeai",
        "convert",
        str(source),
        "--to",
        "onnx",
        "--quant",
        "f32",
        "-o",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}\n")
    for word in ("GroupQueryAttention", "Reading", "Saving", "quantiz", "Warning", "it/s", "onnxruntime_src"):
        assert word not in done.stderr
    assert "proof" in done.stderr.lower() or "logits" in done.stderr


@pytest.mark.usefixtures("here")
def test_json_is_one_object(source: Path, tmp_path: Path) -> None:
    result = run("convert", source, "--to", "onnx", "--quant", "f32", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0
    done = json.loads(result.stdout)
    assert (done["path"], done["format"], done["quant"]) == (str(tmp_path / "out"), "onnx", "F32")


@pytest.mark.usefixtures("here")
def test_several_formats_are_shown_side_by_side(source: Path, tmp_path: Path) -> None:
    result = run("convert", source, "--to", "gguf,onnx", "--quant", "f32", "-o", tmp_path / "both")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["format", "quant"]
    assert [line.split()[:2] for line in lines[1:]] == [["gguf", "F32"], ["onnx", "F32"]]
    assert lines[1].endswith("both.gguf")
    assert lines[2].endswith("both-onnx")


@pytest.mark.usefixtures("here")
def test_several_formats_are_one_json_object(source: Path, tmp_path: Path) -> None:
    result = run("convert", source, "--to", "gguf,onnx", "--quant", "f32", "-o", tmp_path / "both", "--json")
    done = json.loads(result.stdout)
    assert done["ok"] is True
    assert [item["format"] for item in done["results"]] == ["gguf", "onnx"]
    assert all(item["gen_tok_s"] > 0 and item["prompt_tok_s"] > 0 and item["load_s"] > 0 for item in done["results"])


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--quant", "q8_0"), 2, "'q8_0' is no type of ONNX"),
        (("--quant", "int4", "--type", "blk.*=f32"), 2, "matches no matrix"),
        (("--quant", "int4", "--type", "lm_head"), 2, "is no NAME=VALUE"),
        (("--quant", "f32", "--type", "block=16"), 2, "does nothing"),
        (("--imatrix", "x.txt"), 2, "--imatrix belongs to --to gguf"),
        (("--dry-run",), 2, "--dry-run belongs to --to gguf"),
        (("--dtype", "f16"), 2, "--dtype belongs to --to hf"),
        (("--max-kl", "-1"), 2, "max"),
        (("--calibration", "minmax", "--quant", "int8"), 2, "--calibration"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_is_written(
    source: Path, tmp_path: Path, args: tuple[str, ...], code: int, words: str
) -> None:
    result = run("convert", source, "--to", "onnx", "-o", tmp_path / "out", *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr
    assert "hint: " in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("quant", "words"),
    [("q8_0", "has no type for onnx"), ("int4", "has no type for gguf"), ("q8_0,q4_0", "two types for gguf"),
     ("q8_0,magic", "'magic' is no type of gguf or onnx")],
)  # fmt: skip
def test_a_quant_that_is_not_for_all_formats_says_what_is_missing(source: Path, quant: str, words: str) -> None:
    result = run("convert", source, "--to", "gguf,onnx", "--quant", quant)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert "hint: " in result.stderr


@pytest.mark.parametrize(
    ("quant", "expected"),
    [("q4_k_m,int4", {"gguf": "q4_k_m", "onnx": "int4"}), ("int4, q4_0", {"gguf": "q4_0", "onnx": "int4"}),
     ("f16", {"gguf": "f16", "onnx": "f16"}),
     (None, {"gguf": None, "onnx": None})],
)  # fmt: skip
def test_each_format_gets_the_type_that_it_knows(quant: str | None, expected: dict[str, str | None]) -> None:
    assert quants_for(("gguf", "onnx"), quant) == expected


def test_types_of_several_formats_are_refused() -> None:
    with pytest.raises(UsageError, match="two types"):
        quants_for(("gguf", "onnx"), "int8,int4,q8_0")


@pytest.mark.parametrize("value", ["hf,onnx", "onnx,tflite", "", "gguf,,onnx"])
def test_formats_that_do_not_go_together_are_refused(value: str) -> None:
    with pytest.raises(click.BadParameter):
        TargetsParam().convert(value, None, None)


def test_a_format_named_twice_is_one() -> None:
    assert TargetsParam().convert("ONNX, onnx", None, None) == ("onnx",)


@pytest.mark.parametrize(
    ("base", "target", "several", "given", "expected"),
    [(None, "onnx", True, False, None), (Path("a"), "onnx", False, True, Path("a")), (Path("a.gguf"), "onnx", True, True, Path("a-onnx")),
     (Path("a"), "gguf", True, True, Path("a.gguf")), (Path("b/a.gguf"), "onnx", False, False, Path("b/a-onnx"))],
)  # fmt: skip
def test_results_get_names_of_their_formats(
    base: Path | None, target: str, several: bool, given: bool, expected: Path | None
) -> None:
    assert placed(base, target, several=several, given=given) == expected


def test_a_file_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    result = run("convert", tmp_path / "model.gguf", "--to", "onnx")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is a file, and ONNX is made from a folder" in result.stderr


def test_a_family_that_cannot_be_is_listed_against(tmp_path: Path) -> None:
    folder = make_variant(tmp_path / "gpt2", VARIANTS["gpt2"])
    result = run("convert", folder, "--to", "onnx")
    assert result.exit_code == 3
    assert "LlamaForCausalLM" in result.stderr


def test_an_output_that_is_there_is_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    result = run("convert", source, "--to", "onnx", "-o", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "") or result.exit_code == 10
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_a_folder_runs_from_the_command_line(tiny_onnx_f32: Path, tiny_genai: object) -> None:
    from edgeai.model import Model

    assert isinstance(tiny_genai, Model)
    result = run(
        "run", tiny_onnx_f32, "The for statement", "--raw", "--max-tokens", "8", "--temp", "0", "--threads", "1"
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.rstrip("\n") == tiny_genai.complete(
        "The for statement", max_tokens=8, temperature=0
    ).text.rstrip("\n")


def test_the_speed_of_prompts_and_of_answers_is_the_median_of_the_rounds(
    tiny_onnx_f32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([(100.0, 1.0), (300.0, 9.0), (200.0, 2.0)])
    right = sidebyside.Model.complete

    def complete(self: Any, *arguments: Any, **options: Any) -> Any:
        done = right(self, *arguments, **options)
        prompt, answer = next(rates)
        return replace(done, timings=replace(done.timings, prompt_tok_s=prompt, gen_tok_s=answer))

    monkeypatch.setattr(sidebyside.Model, "complete", complete)
    (found,) = measure([tiny_onnx_f32], rounds=3)
    assert (found.prompt_tok_s, found.gen_tok_s) == (200.0, 2.0)


def test_files_are_measured_in_turn(tiny_onnx_f32: Path, tiny_gguf: Path) -> None:
    found = measure([tiny_gguf, tiny_onnx_f32], rounds=1)
    assert [item.path for item in found] == [tiny_gguf, tiny_onnx_f32]
    assert all(item.prompt_tok_s > 0 and item.gen_tok_s > 0 and item.load_s > 0 for item in found)
