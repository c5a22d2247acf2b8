"""`edgeai convert` as a user meets it: what it prints, its exit codes, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from converters.checkpoint import SINGLE
from converters.header import read_header
from converters.scratch import sweep
from edgeai import pipeline
from edgeai.cli import cli
from edgeai.evaluation import limits, passport
from tests.checkpoints import edit_json, make

NOTHING = limits.Limit(nmse=0, mean_kl=0, cosine=1)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in a folder with a difficult name."""
    return make(tmp_path_factory.mktemp("source") / "a model é 模型")


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A copy of the model, with an empty folder around it."""
    return Path(shutil.copytree(source, tmp_path / "models" / source.name))


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove against the unquantized export, which is quicker; tests/evaluation has torch."""
    monkeypatch.setattr(passport, "no_torch", lambda _plan: "not wanted in this test")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["convert", *map(str, args)])


def names(folder: Path) -> set[str]:
    return {item.name for item in folder.parent.iterdir()}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in folder.iterdir()}


@pytest.mark.usefixtures("no_torch")
def test_stdout_is_the_path_and_nothing_else(folder: Path) -> None:
    before = snapshot(folder)
    result = run(folder)
    assert (result.exit_code, result.stdout) == (0, f"{folder}.gguf\n")
    assert "next: edgeai run" in result.stderr
    assert names(folder) == {folder.name, f"{folder.name}.gguf", f"{folder.name}.gguf.passport.json"}
    assert snapshot(folder) == before


@pytest.mark.usefixtures("no_torch")
def test_json_is_one_object_with_the_promised_keys(folder: Path) -> None:
    result = run(folder, "--quant", "Q4_0", "--json")
    done = json.loads(result.stdout)
    keys = {
        "path",
        "format",
        "bytes",
        "bpw",
        "quant",
        "types",
        "sha256",
        "report",
        "timings",
        "peak_rss_bytes",
        "proof_peak_rss_bytes",
        "warnings",
    }
    assert done.keys() == keys
    assert done["report"]["ok"]
    assert (done["format"], done["quant"]) == ("gguf", "Q4_0")
    assert done["bytes"] == Path(done["path"]).stat().st_size
    assert sum(done["types"].values()) == len(read_header(Path(done["path"])).tensors)
    assert done["peak_rss_bytes"] > 1 << 20
    assert {notice["code"] for notice in done["warnings"]} == {"no-torch-reference"}


@pytest.mark.usefixtures("no_torch")
def test_the_same_source_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    first, second = (pipeline.convert(path, None, "q8_0").sha256 for path in (folder, other))
    assert first == second


@pytest.mark.usefixtures("no_torch")
def test_threads_and_the_working_folder_change_no_byte_and_leave_no_trace(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = pipeline.convert(folder, tmp_path / "one.gguf", "q4_k_m")
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(pipeline, "cpu_facts", lambda: SimpleNamespace(threads=7))
    again = pipeline.convert(Path(folder.name), Path("two.gguf"), "q4_k_m")
    assert again.sha256 == done.sha256
    data = done.path.read_bytes()
    assert not any(str(part).encode() in data for part in (folder, folder.name, tmp_path, Path.home()))


@pytest.mark.usefixtures("no_torch")
def test_the_file_says_what_it_was_made_from(folder: Path) -> None:
    pipeline.convert(folder, None, "q8_0")
    kv = read_header(Path(f"{folder}.gguf")).kv
    facts = json.loads(Path(f"{folder}.gguf.passport.json").read_text())
    assert kv["edgeai.source.sha256"] == facts["source"]["sha256"]
    assert set(facts["source"]["files"]) >= {"config.json", "tokenizer.json", SINGLE}
    assert kv["edgeai.quant"] == "Q8_0"


@pytest.mark.parametrize(
    ("name", "expected"), [("q4-km", "did you mean 'q4_k_m'"), ("zzz", "known: f32"), ("iq2_xs", "importance matrix")]
)
def test_an_unknown_type_is_a_usage_error_that_helps(folder: Path, name: str, expected: str) -> None:
    result = run(folder, "--quant", name)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert names(folder) == {folder.name}


def test_strict_makes_a_warning_an_error_before_any_work(folder: Path) -> None:
    result = run(folder, "--quant", "q4_k_m", "--strict")
    assert result.exit_code == 1
    assert "Q4_K → Q5_0" in result.stderr
    assert names(folder) == {folder.name}


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), 3, "no config.json"),
        (lambda folder: (folder / SINGLE).unlink(), 3, "no weights"),
        (lambda folder: (folder / "tokenizer.json").unlink(), 3, "no tokenizer.json"),
        (lambda folder: (folder / SINGLE).write_bytes(b"\x00" * 100), 3, "not a whole safetensors file"),
        (lambda folder: edit_json(folder / "config.json", lambda c: c.update(architectures=["XNet"])), 3, "XNet"),
        (
            lambda folder: edit_json(folder / "config.json", lambda c: c.update(num_hidden_layers=3)),
            3,
            "9 of 30 tensors",
        ),
    ],
    ids=["no config", "no weights", "no tokenizer", "garbage", "family", "tensors"],
)
def test_a_bad_source_is_one_clear_error(folder: Path, change: Any, code: int, said: str) -> None:
    change(folder)
    result = run(folder)
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert names(folder) == {folder.name}


def test_a_source_that_is_not_there_is_exit_3(tmp_path: Path) -> None:
    assert run(tmp_path / "nowhere").exit_code == 3
    assert run("no-such-model").exit_code == 3


def test_an_output_that_is_the_input_is_refused(folder: Path) -> None:
    before = snapshot(folder)
    result = run(folder, "-o", folder / SINGLE, "--force")
    assert (result.exit_code, snapshot(folder) == before) == (2, True)


def test_a_folder_that_cannot_be_written_is_refused(folder: Path) -> None:
    assert run(folder, "-o", "/proc/x.gguf").exit_code == 2


@pytest.mark.usefixtures("no_torch")
def test_an_existing_file_survives_until_the_new_one_is_proved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Path(f"{folder}.gguf")
    output.write_bytes(b"old")
    assert run(folder).exit_code == 2
    with monkeypatch.context() as patch:
        patch.setattr(limits, "LIMITS", {"Q8_0": NOTHING})
        failed = run(folder, "--force")
    assert (failed.exit_code, output.read_bytes()) == (9, b"old")
    assert names(folder) == {folder.name, output.name}
    assert run(folder, "--force").exit_code == 0
    assert output.read_bytes() != b"old"


@pytest.mark.usefixtures("no_torch")
def test_a_failed_file_is_kept_only_when_asked_and_under_another_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIMITS", {"Q8_0": NOTHING})
    result = run(folder, "--keep-failed")
    assert result.exit_code == 9
    assert "NMSE" in result.stderr
    assert names(folder) == {folder.name, f"{folder.name}.gguf.failed", f"{folder.name}.gguf.failed.passport.json"}
    facts = json.loads(Path(f"{folder}.gguf.failed.passport.json").read_text())
    assert not facts["report"]["ok"]
    assert read_header(Path(f"{folder}.gguf.failed")).kv["edgeai.passport.ok"] is False


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize(
    "label",
    [
        "proving the tokenizer",
        "hashing the source",
        "writing F32",
        "running the file",
        "writing Q8_0",
    ],
)
def test_an_interrupt_in_any_step_leaves_nothing(folder: Path, tmp_path: Path, label: str) -> None:
    def interrupt(step: str, done: float, total: float | None, unit: str = "") -> None:
        if step == label:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.convert(folder, None, "q8_0", progress=interrupt)
    assert names(folder) == {folder.name}


def test_a_full_disk_is_exit_5(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    assert run(folder).exit_code == 5


def test_a_full_folder_for_temporary_files_is_exit_5_and_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch é"
    scratch.mkdir()
    usage = shutil.disk_usage
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage(path)._replace(**({"free": 1000} if Path(path) == scratch else {}))
    )
    result = run(folder)
    assert result.exit_code == 5
    assert "scratch é" in result.stderr
    assert "TMPDIR" in result.stderr
    assert names(folder) == {folder.name}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_a_signal_ends_the_program_without_a_final_file(
    folder: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "edgeai", "convert", str(folder)]
    env = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("running the source"):  # children are at work now
                process.send_signal(number)
                break
        said = process.stderr.read()
        assert process.wait(30) == code
    time.sleep(0.05)
    assert not Path(f"{folder}.gguf").exists()
    if number == signal.SIGINT:
        assert said.strip().endswith("interrupted")
    if number != signal.SIGKILL:
        assert names(folder) == {folder.name}
    sweep(scratch)
    assert not list(scratch.iterdir())


@pytest.mark.usefixtures("no_torch")
def test_a_file_that_the_conversion_would_replace_beside_the_output_needs_force(folder: Path) -> None:
    paper = Path(f"{folder}.gguf.passport.json")
    for text in ("mine", "[]", '{"file": "other.gguf"}', "[" * 100000):
        paper.write_text(text)
        result = run(folder)
        assert (result.exit_code, paper.read_text()) == (2, text)
        assert "passport.json" in result.stderr
        assert names(folder) == {folder.name, paper.name}
    assert run(folder, "--force").exit_code == 0
    assert json.loads(paper.read_text())["file"] == f"{folder.name}.gguf"


@pytest.mark.usefixtures("no_torch")
def test_the_passport_of_a_removed_model_is_replaced(folder: Path) -> None:
    assert run(folder).exit_code == 0
    Path(f"{folder}.gguf").unlink()
    assert run(folder, "--quant", "f16").exit_code == 0
    assert json.loads(Path(f"{folder}.gguf.passport.json").read_text())["quant"] == "F16"


def test_a_failed_file_replaces_none_without_force(folder: Path) -> None:
    kept = Path(f"{folder}.gguf.failed")
    kept.write_text("mine")
    assert run(folder, "--keep-failed").exit_code == 2
    assert kept.read_text() == "mine"


@pytest.mark.usefixtures("no_torch")
def test_a_new_model_never_stands_beside_an_old_passport(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, paper = Path(f"{folder}.gguf"), Path(f"{folder}.gguf.passport.json")
    assert run(folder).exit_code == 0
    commit = pipeline.OutputFile.commit

    def die_after(self: pipeline.OutputFile, path: Path, name: Path | None = None) -> None:
        commit(self, path, name)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.OutputFile, "commit", die_after)
    with pytest.raises(KeyboardInterrupt):
        pipeline.convert(folder, None, "f16", force=True)
    assert output.exists()
    assert not paper.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
@pytest.mark.usefixtures("no_torch")
def test_names_that_are_no_text_are_taken(folder: Path) -> None:
    source = folder.rename(folder.with_name(os.fsdecode(b"\xfes")))
    output = source.with_name(os.fsdecode(b"\xfft.gguf"))
    done = pipeline.convert(source, output, "q8_0")
    assert done.path.exists()
    assert json.loads(Path(f"{output}.passport.json").read_bytes())["file"] == output.name
    pipeline.convert(source, output, "q8_0", force=True)
    assert names(source) == {source.name, output.name, f"{output.name}.passport.json"}


@pytest.mark.parametrize("length", [245, 300])
def test_a_name_that_is_too_long_is_refused_before_any_work(folder: Path, length: int) -> None:
    result = run(folder, "-o", folder.with_name("x" * length))
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert "writing" not in result.stderr
    assert names(folder) == {folder.name}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="other systems have no such place")
def test_memory_is_that_of_the_conversion_and_not_of_the_program_that_started_it() -> None:
    import numpy as np

    ballast = np.ones(600 << 17)  # 600 MB
    code = "from edgeai.conversion import peak_rss_bytes; print(peak_rss_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < 400 << 20
    assert ballast.sum() > 0
