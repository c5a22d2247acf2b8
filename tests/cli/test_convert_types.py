"""`edgeai convert` where the types of a file are chosen: --type, --imatrix, --dry-run."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from click.testing import CliRunner, Result

from converters import calibration, importance_child
from converters.checkpoint import open_checkpoint
from converters.families import plan_model
from converters.header import read_header
from converters.importance import ImportanceMatrix, wanted, write_importance
from edgeai.cli import cli
from edgeai.evaluation import passport
from tests.checkpoints import make


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source") / "model", hidden_size=256, intermediate_size=256)


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A copy of the model, with an empty folder around it."""
    return Path(shutil.copytree(source, tmp_path / "models" / source.name))


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passport, "no_torch", lambda _plan: "not wanted in this test")


@pytest.fixture
def matrix(folder: Path, tmp_path: Path) -> Path:
    """An importance matrix of the model, as a file."""
    rng = np.random.default_rng(1)
    shapes = {name: shape for name, shape in wanted(plan_model(open_checkpoint(folder))).items() if "blk" in name}
    sums = {name: rng.gamma(1, size=shape).astype(np.float32) for name, shape in shapes.items()}
    counts = {name: np.ones(1, np.float32) for name in shapes}
    path = tmp_path / "of secret prompts.gguf"
    write_importance(path, ImportanceMatrix(sums=sums, counts=counts, chunks=1, window=512))
    return path


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["convert", *map(str, args)])


def tensors(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    return {item.name: data[item.offset : item.offset + item.nbytes] for item in read_header(path).tensors}


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("quant", ["q4_k_m", "f16"])
def test_a_dry_run_says_the_exact_size_and_the_types_and_writes_nothing(folder: Path, matrix: Path, quant: str) -> None:
    options = [folder, "--quant", quant, "--type", "*.ffn_down=q5_1", "--imatrix", matrix]
    would = json.loads(run(*options, "--dry-run", "--json").stdout)
    assert [item.name for item in folder.parent.iterdir()] == [folder.name]
    done = json.loads(run(*options, "--json").stdout)
    header = read_header(Path(done["path"]))
    assert would["bytes"] == done["bytes"] == header.file_bytes
    assert (would["types"], would["bpw"]) == (done["types"], done["bpw"])
    assert {item["name"]: item["type"] for item in would["tensors"]} == {
        item.name: item.type for item in header.tensors
    }
    assert sum(item["nbytes"] for item in would["tensors"]) == would["tensor_bytes"]


def test_the_table_has_a_line_for_layers_that_are_alike_and_with_v_one_for_each_tensor(folder: Path) -> None:
    result = run(folder, "--quant", "q4_0", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.count("blk.*.attn_q ") == 1
    assert "0-1" in result.stdout
    assert "nothing was written" in result.stdout
    assert len(result.stdout.splitlines()) < 16
    whole = run(folder, "--quant", "q4_0", "--dry-run", "-v").stdout
    assert "blk.1.attn_q " in whole
    assert len(whole.splitlines()) == 3 + 1 + len(plan_model(open_checkpoint(folder)).tensors)


def test_a_dry_run_says_what_the_shapes_force(tmp_path: Path) -> None:
    folder = make(tmp_path / "narrow", hidden_size=96, intermediate_size=160, num_attention_heads=6)
    result = run(folder, "--quant", "q4_k_m", "--dry-run")
    assert "rows of 96 are not whole blocks of 256, so Q5_0" in result.stdout
    assert "0.0% of the tensor bytes are in Q4_K" in result.stdout
    assert "warning: Q4_K_M does not fit the shapes" in result.stderr


@pytest.mark.usefixtures("no_torch")
def test_importance_changes_the_codes_and_is_named_by_its_values_and_not_its_path(folder: Path, matrix: Path) -> None:
    out = folder.parent
    for name, options in {"plain": (), "informed": ("--imatrix", matrix)}.items():
        assert run(folder, "--quant", "q5_k_s", *options, "-o", out / f"{name}.gguf").exit_code == 0
    plain, informed = (tensors(out / f"{name}.gguf") for name in ("plain", "informed"))
    changed = {name for name in plain if plain[name] != informed[name]}
    assert changed == {name for name in plain if name.startswith("blk.") and "norm" not in name}
    kv = read_header(out / "informed.gguf").kv
    assert kv["quantize.imatrix.entries_count"] == len(changed)
    assert len(kv["edgeai.imatrix.sha256"]) == 64
    assert b"secret prompts" not in (out / "informed.gguf").read_bytes()


class InProcess:
    """The child that computes an importance matrix, without the child."""

    def __init__(self, _script: Path, request: Mapping[str, Any], *, what: str) -> None:
        del what
        self.request = request
        self.path = Path(request["text"]).parent

    def result(self, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        del progress
        with contextlib.redirect_stdout(io.StringIO()):  # its progress
            return importance_child.calibrate(self.request, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.usefixtures("no_torch")
def test_the_matrix_that_was_kept_makes_the_same_file_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "Child", InProcess)
    text, kept = tmp_path / "text.txt", tmp_path / "kept.gguf"
    text.write_text("It was the best of times, it was the worst of times. " * 60, encoding="utf-8")
    options = [folder, "--quant", "q5_k_m", "--json"]
    first = run(
        *options, "--imatrix", text, "--calibration-tokens", "256", "--imatrix-out", kept, "-o", tmp_path / "1.gguf"
    )
    again = run(*options, "--imatrix", kept, "-o", tmp_path / "2.gguf")
    assert (first.exit_code, again.exit_code) == (0, 0), first.output + again.output
    one, two = json.loads(first.stdout), json.loads(again.stdout)
    assert one["sha256"] == two["sha256"]
    assert "calibrate_s" in one["timings"]
    assert b"tmp" not in kept.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quant", "iq2_m"], "needs an importance matrix"),
        (["--imatrix", "absent.txt"], "'absent.txt' is not there"),
        (["--imatrix", "."], "is a folder"),
        (["--imatrix-out", "x.gguf"], "of no use without --imatrix"),
        (["--calibration-tokens", "5"], "of no use without --imatrix"),
        (["--type", "nonsense"], "is not a pattern and a type"),
        (["--type", "blk.*=q9_9"], "'q9_9'"),
        (["--type", "output_norm=q8_0"], "always stays F32"),
        (["--type", "blk.7.ffn_down=q8_0"], "matches no tensor"),
        (["--to", "hf", "--dry-run"], "--dry-run belongs to --to gguf"),
        (["--to", "hf", "--type", "a=q8_0"], "--type belongs to --to gguf"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(folder: Path, options: list[str], message: str) -> None:
    result = run(folder, *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert [item.name for item in folder.parent.iterdir()] == [folder.name]


def test_an_importance_matrix_needs_no_calibration(folder: Path, matrix: Path) -> None:
    result = run(folder, "--imatrix", matrix, "--calibration-tokens", "100")
    assert result.exit_code == 2
    assert "is an importance matrix" in result.stderr


def test_the_kept_matrix_never_replaces_the_text(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 500, encoding="utf-8")
    result = run(folder, "--imatrix", text, "--imatrix-out", text, "--force")
    assert result.exit_code == 2
    assert text.read_text(encoding="utf-8").startswith("words")


@pytest.mark.parametrize("quant", ["q8_0", "f16"])
def test_a_matrix_that_changes_nothing_is_said_to(folder: Path, matrix: Path, quant: str) -> None:
    said = "the importance matrix changes nothing in this file"
    assert said in run(folder, "--quant", quant, "--imatrix", matrix, "--dry-run").stderr
    assert said not in run(folder, "--quant", "q4_k_m", "--imatrix", matrix, "--dry-run").stderr


def test_what_is_read_or_kept_besides_the_model_is_never_its_output(folder: Path, matrix: Path, tmp_path: Path) -> None:
    text, before = tmp_path / "text.txt", matrix.read_bytes()
    text.write_text("words " * 500, encoding="utf-8")
    cases: list[list[str | Path]] = [
        ["--imatrix", matrix, "-o", matrix],
        ["--imatrix", text, "--imatrix-out", tmp_path / "x.gguf", "-o", tmp_path / "x.gguf"],
        ["--imatrix", text, "--imatrix-out", tmp_path / "x.gguf.passport.json", "-o", tmp_path / "x.gguf"],
        ["--eval-text", text, "-o", text],
    ]
    for options in cases:
        result = run(folder, "--quant", "q4_0", "--force", *options)
        assert result.exit_code == 2, result.output
        assert "are the same file" in result.stderr
    assert matrix.read_bytes() == before
    assert text.read_text(encoding="utf-8").startswith("words")
