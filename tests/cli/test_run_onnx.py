"""`edgeai run` with a classifier: a line for each item, one JSON object, and every mistake one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner, Result

from edgeai.cli import cli
from tests.engines.onnx.models import (
    COLUMNS,
    IMAGE,
    LABELS,
    NUMBERS,
    linear,
    schema,
    softmax,
    table,
    text_model,
    weights,
)

GREY = np.random.default_rng(1).integers(0, 256, (4, 4), dtype=np.uint8)
CSV = "id,height,colour,width\n7,-1.0,green,6.0\n8,0.25,red,2.0\n"
ROWS = np.array([[1, 0, 1, 0], [0, 1, 0, 2.5]])


def run(*arguments: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, ["run", *map(str, arguments)], input=stdin)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A classifier of pictures of 4 × 4."""
    return linear(tmp_path / "digits.onnx", [1, 4, 4], schema(IMAGE), name="image")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A classifier of rows, beside a file with two of them."""
    (tmp_path / "rows.csv").write_text(CSV)
    return linear(tmp_path / "rows.onnx", [4], schema(table(COLUMNS)))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A classifier of texts."""
    return text_model(tmp_path / "texts.onnx")


def wanted_of_rows() -> Any:
    matrix, bias = weights(4)
    return softmax(ROWS @ matrix + bias)


def test_pictures_give_an_aligned_table(pictures: Path, tmp_path: Path) -> None:
    for name in ("a.png", "longer.png"):
        PIL.Image.fromarray(GREY).save(tmp_path / name)
    result = run(pictures, tmp_path / "a.png", tmp_path / "longer.png")
    matrix, bias = weights(16)
    parts = softmax(((GREY / 255 - 0.5) / 0.25).reshape(-1) @ matrix + bias)
    first, second, third = (f"{LABELS[at]} {parts[at]:.3f}" for at in np.argsort(-parts))
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["INPUT", "LABEL", "PROBABILITY", "NEXT"]
    assert [line.split("  ")[-1].strip() for line in lines] == [f"{second}, {third}"] * 2
    assert [line.split()[-6:-4] for line in lines] == [first.split()] * 2
    assert len({line.rindex(first) if first in line else line.rindex(first.split()[0]) for line in lines}) == 1
    assert [line.split()[0][-5:] for line in lines] == ["a.png", "r.png"]
    assert (result.exit_code, result.stderr) == (0, "")


def test_json_has_every_probability_and_how_it_ran(rows: Path, tmp_path: Path) -> None:
    result = run(rows, tmp_path / "rows.csv", "--json")
    found = json.loads(result.stdout)
    assert set(found) == {
        "model", "task", "predictions", "usage", "timings", "backend", "device", "plan", "warnings",
    }  # fmt: skip
    assert (found["model"], found["task"], found["usage"]) == ("rows", "classification", {"rows": 2})
    assert (found["backend"], found["device"], found["plan"]["threads"]) == ("onnxruntime", "cpu", 1)
    assert [notice["code"] for notice in found["warnings"]] == ["ignored-columns"]
    for item, parts, number in zip(found["predictions"], wanted_of_rows(), (1, 2), strict=True):
        assert set(item) == {"input", "row", "label", "index", "score", "probabilities"}
        assert (item["input"], item["row"], item["index"]) == (str(tmp_path / "rows.csv"), number, int(parts.argmax()))
        assert list(item["probabilities"].values()) == pytest.approx(parts.tolist(), rel=1e-5)
        assert item["label"] == LABELS[item["index"]]


def test_rows_are_numbered_and_ignored_columns_said(rows: Path, tmp_path: Path) -> None:
    result = run(rows, tmp_path / "rows.csv")
    assert [line.split()[1:3] for line in result.stdout.splitlines()[1:]] == [["row", "1"], ["row", "2"]]
    assert "warning: the model reads nothing of 'id'" in result.stderr
    assert run(rows, tmp_path / "rows.csv", "--strict").exit_code == 1


def test_files_and_rows_come_in_the_order_in_which_they_are_given(rows: Path, tmp_path: Path) -> None:
    row = '{"height": 0.25, "colour": "red", "width": 2.0}'
    (tmp_path / "one.csv").write_text("".join(CSV.splitlines(keepends=True)[:2]))
    given = [row, str(tmp_path / "rows.csv"), row, str(tmp_path / "one.csv"), row]
    found = json.loads(run(rows, *given, "--json").stdout)["predictions"]
    assert [item["input"] for item in found] == [row, given[1], given[1], row, given[3], row]
    first, second = (parts.argmax() for parts in wanted_of_rows())
    assert [item["index"] for item in found] == [second, first, second, second, first, second]


def test_rows_may_be_written_as_json(rows: Path) -> None:
    given = '{"width": 6.0, "colour": "green", "height": -1.0}'
    for word in (given, f"[{given}]", '[6.0, "green", -1.0]'):
        found = json.loads(run(rows, word, "--json").stdout)["predictions"]
        assert [item["score"] for item in found] == pytest.approx([wanted_of_rows()[0].max()], rel=1e-5)


def test_texts_come_from_arguments_files_and_pipes(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good\nfilm\n")
    found = json.loads(
        run(texts, "good film", "-f", tmp_path / "a.txt", "--json", stdin="good film\n\nbad film\n").stdout
    )
    inputs = [item["input"] for item in found["predictions"]]
    assert inputs == ["good film", str(tmp_path / "a.txt"), "good film", "bad film"]
    scores = [item["score"] for item in found["predictions"]]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)
    assert scores[0] == pytest.approx(scores[2], rel=1e-6)


def test_a_text_that_was_cut_is_said(texts: Path) -> None:
    result = run(texts, "very " * 20)
    assert result.exit_code == 0
    assert "warning: the text has 22 tokens and the model reads 6: the last 16 were left out" in result.stderr


def test_a_regression_prints_its_values(tmp_path: Path) -> None:
    about = schema(
        table(NUMBERS), task="regression", output={"name": "values", "kind": "values"},
        targets=[{"name": "price", "mean": 10.0, "std": 2.0}],
    )  # fmt: skip
    path = linear(tmp_path / "r.onnx", [2], about, outputs=1, output="values")
    matrix, bias = weights(2, 1)
    value = float((np.array([1.0, 0.0]) @ matrix + bias)[0] * 2 + 10)
    result = run(path, "[6.0, -1.0]")
    assert result.stdout.splitlines()[0].split() == ["INPUT", "PRICE"]
    assert float(result.stdout.split()[-1]) == pytest.approx(value, rel=1e-4)
    (found,) = json.loads(run(path, "[6.0, -1.0]", "--json").stdout)["predictions"]
    assert found["values"] == {"price": pytest.approx(value, rel=1e-5)}


def test_a_file_that_says_nothing_of_itself_prints_arrays(tmp_path: Path) -> None:
    path = linear(tmp_path / "a.onnx", [2], None)
    np.save(tmp_path / "a.npy", np.array([1.0, 2.0]))
    matrix, bias = weights(2)
    result = run(path, tmp_path / "a.npy")
    assert json.loads(result.stdout) == pytest.approx((np.array([1.0, 2.0]) @ matrix + bias).tolist(), rel=1e-5)


@pytest.mark.parametrize("word", ["nowhere.png", "nowhere", "\0", "x" * 5000])
def test_a_picture_that_is_not_there_is_an_error_of_one_line(pictures: Path, word: str) -> None:
    result = run(pictures, word)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("word", ["reviews.csv", "./review", "../x", "review.txt", "/tmp/no/such"])
def test_a_word_that_looks_like_a_path_is_never_taken_for_a_text(texts: Path, word: str) -> None:
    result = run(texts, word)
    assert result.exit_code == 2
    assert "there is no file" in result.stderr


@pytest.mark.parametrize("word", ["good", "and/or", "https://x.y/z.txt", "see a.txt", "README"])
def test_other_words_are_texts(texts: Path, word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README").write_text("bad")
    assert json.loads(run(texts, word, "--json").stdout)["predictions"][0]["input"] == word


@pytest.mark.parametrize(
    "option",
    [
        ["--temp", "1"], ["--max-tokens", "5"], ["--system", "x"], ["--raw"], ["--seed", "1"], ["--ctx", "64"], ["--kv-type", "q8_0"],
        ["--choice", "a"], ["--gpu-layers", "1"],
    ],
)  # fmt: skip
def test_options_for_answers_are_refused(texts: Path, option: list[str]) -> None:
    result = run(texts, "good", *option)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"leave {option[0]} out" in result.stderr


def test_a_gpu_that_is_not_there_is_exit_code_six(texts: Path) -> None:
    result = run(texts, "good", "--device", "cuda")
    assert result.exit_code == 6
    assert "onnxruntime-gpu" in result.stderr


def test_nothing_to_read_is_an_error(pictures: Path, texts: Path, rows: Path, tmp_path: Path) -> None:
    for path in (pictures, texts, rows):
        result = run(path)
        assert result.exit_code == 2
        assert "needs a" in result.stderr
    (tmp_path / "none.csv").write_text("width,colour,height\n")
    result = run(rows, tmp_path / "none.csv")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "there are no rows\n")
    assert json.loads(run(rows, tmp_path / "none.csv", "--json").stdout)["predictions"] == []


def test_a_wrong_cell_is_named_by_file_row_and_column(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(CSV.replace("2.0\n", "abc\n"))
    result = run(rows, tmp_path / "bad.csv")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: '{tmp_path / 'bad.csv'}', row 2, column 'width' is 'abc', no number" in result.stderr


def test_an_isolated_model_prints_the_same(rows: Path, tmp_path: Path) -> None:
    assert run(rows, tmp_path / "rows.csv", "--isolated").stdout == run(rows, tmp_path / "rows.csv").stdout


def test_labels_of_a_file_do_not_drive_the_terminal(tmp_path: Path) -> None:
    labels = ["\x1b[31mred", "b", "c"]
    path = linear(tmp_path / "l.onnx", [2], schema(table(NUMBERS), labels=labels))
    assert "\x1b" not in run(path, "[1, 2]").stdout


def test_several_prompts_for_a_language_model_are_refused(tiny_gguf: Path) -> None:
    result = run(tiny_gguf, "one", "two")
    assert result.exit_code == 2
    assert "there are 2 prompts" in result.stderr


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = run(tmp_path / "no.onnx", "a.png")
    assert result.exit_code == 3
    assert "no.onnx" in result.stderr
