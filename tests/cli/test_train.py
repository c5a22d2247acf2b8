from __future__ import annotations

import importlib.util
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeai.cli import cli
from edgeai.cli import train as train_cli
from edgeai.training.monitor import Event

RECIPE = """
[data]
source = "text.jsonl"
[tokenizer]
vocab_size = 280
[model]
hidden_size = 32
intermediate_size = 32
layers = 1
heads = 2
kv_heads = 1
context = 8
[training]
steps = 20
batch_size = 2
lr = 0.01
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEAI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("edgeai.training.accelerator._cores", lambda: 1)  # as in tests/training
    folder = tmp_path / "my recipes é 模型"
    folder.mkdir()
    monkeypatch.chdir(folder)
    lines = [json.dumps({"text": f"document {number} of the text " * 5}) for number in range(12)]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    path = folder / "mini.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["train", *map(str, args)])


def test_json_is_one_object_on_stdout(recipe: Path, tmp_path: Path) -> None:
    result = run(recipe, "-o", tmp_path / "out", "--json")
    value = json.loads(result.stdout)
    assert result.exit_code == 0
    assert value["path"] == str(tmp_path / "out")
    assert value["steps"] == 20
    assert value["warnings"] == []
    assert {"train_loss", "eval_loss", "bigram_loss", "params", "tok_s", "seconds", "sha256"} <= set(value)


def test_stdout_is_the_folder_and_stderr_ends_with_the_next_command(recipe: Path) -> None:
    result = run(recipe)
    assert result.stdout == "out/mini\n"
    assert result.stderr.splitlines()[-1] == "next: edgeai convert out/mini --quant q8_0 -o out/mini.gguf"
    assert (recipe.parent / "out" / "mini" / "config.json").exists()


def test_without_a_terminal_progress_is_a_line_for_each_tenth(recipe: Path) -> None:
    lines = [line for line in run(recipe).stderr.splitlines() if line.startswith("step ")]
    assert [line.split(" · ")[0] for line in lines] == [f"step {step}/20" for step in range(2, 21, 2)]
    assert "eval " in lines[-1]
    assert all(word in lines[0] for word in ("loss ", "lr 9.9e-3", "tok/s", "ETA 0:0"))


def test_quiet_prints_the_folder_alone(recipe: Path) -> None:
    result = run(recipe, "-q")
    assert (result.stdout, result.stderr) == ("out/mini\n", "")


def test_run_stopped_before_the_schedule_ended_says_so(recipe: Path) -> None:
    assert "stopped at step 3 of the recipe's 20" in run(recipe, "--steps", 3).stderr


@pytest.mark.parametrize(
    ("args", "code", "error", "hint"),
    [
        (["--steps", "0"], 2, "error: steps 0 is not possible", "at least 1 step"),
        (["--resume"], 2, "has no checkpoint to resume from", "leave --resume out"),
        (["--set", "model.layrs=1"], 2, "'model.layrs' is not a setting", "did you mean 'model.layers'?"),
        (["-o", "."], 2, "already holds 'mini.toml'", "another folder with -o"),
        (["-o", "mini.toml"], 2, "'mini.toml' is a file", "another folder with -o"),
    ],
)
def test_mistake_ends_with_its_exit_code_and_a_hint(
    recipe: Path, args: list[str], code: int, error: str, hint: str
) -> None:
    result = run(recipe, *args)
    assert result.exit_code == code
    assert error in result.stderr
    assert hint in result.stderr.split("\n\nhint: ")[1]
    assert result.stdout == ""


def test_recipe_that_does_not_exist_is_a_usage_error(recipe: Path) -> None:
    result = run("missing.toml")
    assert result.exit_code == 2
    assert "'missing.toml' cannot be read" in result.stderr


def test_recipe_that_comes_with_edgeai_has_a_name(recipe: Path) -> None:
    result = run("tiny", "--set", "model.layrs=1")  # the name is found, so the setting is what is wrong
    assert "'model.layrs' is not a setting" in result.stderr
    result = run("tinny")
    assert (result.exit_code, "did you mean 'tiny'?" in result.stderr) == (2, True)


def test_explicit_cuda_where_it_cannot_run_is_exit_6(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    result = run(recipe, "--device", "cuda")
    assert result.exit_code == 6
    assert "built without CUDA" in result.stderr


def test_interrupt_is_exit_130_and_the_hint_is_a_command_that_goes_on(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def interrupt(_self: Any, event: Event) -> None:
            if event.step == 4:
                signal.raise_signal(signal.SIGINT)

        patch.setattr(train_cli.LiveLine, "__call__", interrupt)
        result = run("mini.toml", "-o", "my out", "--steps", 9, "--set", "name=a b")
    assert result.exit_code == 130
    assert "interrupted after step 4 of 9" in result.stderr
    command = shlex.split(result.stderr.split("go on with: ")[1])
    assert command[:2] == ["edgeai", "train"]
    again = CliRunner().invoke(cli, [*command[1:], "--json"])
    assert json.loads(again.stdout)["steps"] == 9


def test_fallback_is_a_warning_and_under_strict_an_error_before_the_first_step(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr("edgeai.training.accelerator._nvidia_gpu", lambda: "GeForce 256")
    strict = run(recipe, "--strict")
    assert strict.exit_code != 0
    assert "step " not in strict.stderr
    assert not (recipe.parent / "out").exists()
    relaxed = run(recipe, "--json")
    assert "warning: training on the CPU although there is a GeForce 256" in relaxed.stderr
    assert [warning["code"] for warning in json.loads(relaxed.stdout)["warnings"]] == ["cpu_fallback"]


def test_missing_torch_is_a_usage_error_with_the_install_command(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    result = run(recipe)
    assert result.exit_code == 2
    assert "training needs torch" in result.stderr
    assert "pip install 'edgeai[train]'" in result.stderr


def test_command_and_trainer_import_no_torch() -> None:
    code = "import sys, edgeai.cli.train, edgeai.training; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_live_line_is_redrawn_in_place_and_ended(recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from edgeai.cli.output import Output

    monkeypatch.setattr(train_cli.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    with train_cli.LiveLine(Output()) as live:
        live(Event(step=300, steps=900, loss=3.41, lr=2.8e-3, tok_s=41_000, eval_loss=3.55, eta_s=48))
    line = "step 300/900 · loss 3.410 · lr 2.8e-3 · 41.0k tok/s · eval 3.550 · ETA 0:48"
    assert capsys.readouterr().err == f"\r\x1b[2K{line}\n"


TASK = """
[task]
architecture = "mlp"
[data]
source = "rows.csv"
target = "kind"
[model]
hidden_size = 4
layers = 1
[training]
steps = 20
batch_size = 8
lr = 0.01
checkpoint_every = 5
eval_every = 10
"""


@pytest.fixture
def task(recipe: Path) -> Path:
    rows = "".join(f"{number},{'ab'[number % 2]}\n" for number in range(40))
    (recipe.parent / "rows.csv").write_text("size,kind\n" + rows, encoding="utf-8")
    path = recipe.parent / "task.toml"
    path.write_text(TASK, encoding="utf-8")
    return path


def test_json_of_a_task_is_one_object_with_the_test_s_result(task: Path, tmp_path: Path) -> None:
    result = run(task, "-o", tmp_path / "out", "--json")
    value = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (value["path"], value["steps"], value["task"]) == (str(tmp_path / "out"), 20, "classification")
    assert {"rows", "accuracy", "interval", "baseline", "macro_f1"} == set(value["test"])
    assert {"architecture", "train_loss", "eval_loss", "params", "row_s", "seconds", "sha256", "warnings"} <= set(value)


def test_task_ends_with_its_accuracy_its_interval_and_the_next_command(task: Path) -> None:
    result = run(task)
    assert result.stdout == "out/task\n"
    lines = result.stderr.splitlines()
    assert lines[-1] == "next: edgeai convert out/task --to onnx -o out/task.onnx"
    assert "test accuracy " in lines[-2]
    assert "95 % between" in lines[-2]
    assert "always the commonest class 50.0%" in lines[-2]
    assert "rows/s" in lines[1]
    assert "accuracy " in lines[-3]


def test_digits_of_edgeai_are_trained_by_their_name(recipe: Path) -> None:
    result = run("digits", "--steps", 20, "--set", "model.width=4")
    assert (result.exit_code, result.stdout) == (0, "out/digits\n")
    assert "stopped at step 20 of the recipe's 800" in result.stderr


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["--set", "model.widht=3"], "'model.widht' is not a setting", "known here: hidden_size"),
        (["--set", "data.target=knid"], "data.target 'knid' is not a column of 'rows.csv'", "did you mean 'kind'?"),
        (["--set", "task.kind=regression"], "has 'a', which is no number, in column 'kind'", "fill it in"),
        (["--resume"], "has no checkpoint to resume from", "leave --resume out"),
    ],
)
def test_mistake_in_a_task_is_exit_2_with_a_hint(task: Path, args: list[str], error: str, hint: str) -> None:
    result = run(task, *args)
    assert result.exit_code == 2
    assert error in result.stderr
    assert hint in result.stderr.split("\n\nhint: ")[1]
    assert not (task.parent / "out").exists()


def test_interrupted_task_goes_on_by_the_command_of_its_hint(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = json.loads(run(task, "-o", "straight", "--json").stdout)
    with monkeypatch.context() as patch:

        def interrupt(_self: Any, event: Event) -> None:
            if event.step == 4:
                signal.raise_signal(signal.SIGINT)

        patch.setattr(train_cli.LiveLine, "__call__", interrupt)
        result = run("task.toml", "-o", "my out")
    assert result.exit_code == 130
    command = shlex.split(result.stderr.split("go on with: ")[1])
    again = json.loads(CliRunner().invoke(cli, [*command[1:], "--json"]).stdout)
    assert (again["sha256"], again["test"]) == (straight["sha256"], straight["test"])
