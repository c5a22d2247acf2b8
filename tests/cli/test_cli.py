"""The program as a whole: quick to start, honest about errors, clear about what it prints where."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import edgeai
from edgeai.cli import VERBS, cli
from edgeai.cli.output import Degraded, Output, human_bytes
from edgeai.errors import EdgeAIError
from edgeai.types import Notice

HEAVY = {"torch", "transformers", "numpy", "llama_cpp", "jinja2", "rich", "gguf", "huggingface_hub", "httpx2", "psutil"}


def imported_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def test_importing_edgeai_imports_nothing_heavy() -> None:
    assert not imported_by("import edgeai") & (HEAVY | {"click"})


def test_help_imports_nothing_heavy() -> None:
    code = "from click.testing import CliRunner; from edgeai.cli import cli; CliRunner().invoke(cli, ['--help'])"
    assert not imported_by(code) & HEAVY


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_takes_json(verb: str) -> None:
    result = CliRunner().invoke(cli, [verb, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_an_unknown_verb_suggests_a_known_one() -> None:
    result = CliRunner().invoke(cli, ["convrt"])
    assert result.exit_code == 2
    assert "Did you mean 'convert'" in result.stderr


def test_every_error_has_an_exit_code_of_the_contract() -> None:
    def tree(kind: type[EdgeAIError]) -> list[type[EdgeAIError]]:
        return [kind, *(sub for child in kind.__subclasses__() for sub in tree(child))]

    assert {kind.exit_code for kind in tree(EdgeAIError)} <= {1, 2, 3, 4, 5, 6, 7, 8, 9, 130}


def test_doctor_looks_at_this_machine() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert set(found) == {"ok", "machine", "gpu", "native library", "onnx", "packages", "store", "problems"}
    assert found["native library"]["self-test"].startswith("passed")


def test_doctor_prints_the_cuda_command_where_it_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeai import doctor
    from edgeai.device import GPU

    gpu = GPU(name="RTX 4060", memory_total=8 << 30, memory_free=7 << 30, driver="580.1", compute_capability="8.9")
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: ((gpu,), None))
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0
    assert "RTX 4060 stays unused" in result.stdout
    assert "-DGGML_CUDA=on" in result.stdout


def test_doctor_survives_a_library_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeai import doctor
    from edgeai.errors import EngineCrashed

    def crash(_: object) -> None:
        raise EngineCrashed("the native library died with SIGILL", hint="rebuild it")

    monkeypatch.setattr(doctor, "library_facts", crash)
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 7
    assert "SIGILL" in result.stdout


def test_strict_makes_a_warning_an_error() -> None:
    with pytest.raises(Degraded):
        Output(strict=True).warn([Notice(code="x", message="less than asked")])


def test_progress_is_never_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.progress("working", 1, 10)
    out.progress("working", 10, 10)
    out.end_progress()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "working\n"


def test_bytes_are_shown_as_hubs_show_them() -> None:
    assert [human_bytes(count) for count in (0, 999, 98_362_432, 2_500_000_000)] == [
        "0 B",
        "999 B",
        "98.4 MB",
        "2.5 GB",
    ]


def test_public_names_are_importable() -> None:
    assert all(getattr(edgeai, name) is not None for name in edgeai.__all__)
    with pytest.raises(AttributeError):
        _ = edgeai.nothing  # type: ignore[attr-defined]
