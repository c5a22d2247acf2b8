"""show, verify, fit, bench, doctor, list, rm, convert and run with paths of ONNX models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeai import onnxplan, runtimes
from edgeai.cli import cli
from edgeai.device import GPU
from tests.engines.onnx.models import COLUMNS, linear, schema, table

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "tiny"


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def as_json(*args: str | Path) -> Any:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def titles(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("  ") and not line.startswith("   ")]


def refused(result: Result, code: int, said: str) -> None:
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert result.stderr.startswith("error: ")
    assert "\nhint: " in result.stderr
    assert said in result.stderr


# ---- show


def test_show_of_a_language_model(onnx_tiny_for_verbs: Path) -> None:
    text = run("show", onnx_tiny_for_verbs).stdout
    assert titles(text) == ["Model", "Tokenizer", "Weights", "Graph", "Lineage", "Licence", "Passport"]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "task generation",
        "architecture llama",
        "context length 256",
        "quantization INT4",
        "vocabulary 1024",
        "proof passed",
    ):
        assert line in lines, line
    assert any(line.startswith("past_key_values.N.key float32 (") and line.endswith("× 2") for line in lines)
    found = as_json("show", onnx_tiny_for_verbs)
    assert (found["task"], found["context"], found["schema"], found["passport"]["ok"]) == (
        "generation",
        256,
        None,
        True,
    )
    refused(run("show", onnx_tiny_for_verbs, "--template"), 3, "no chat template")


def test_show_of_a_classifier_and_an_embedder(onnx_classifiers: Path, onnx_embedder: Path) -> None:
    lines = [" ".join(line.split()) for line in run("show", onnx_classifiers / "cnn.onnx").stdout.splitlines()]
    for line in (
        "task classification",
        "takes pictures, 8 × 8, grey",
        "labels 0, 1, 2, 3, 4, 5 … (10)",
        "inputs image float32 (batch, 1, 8, 8)",
    ):
        assert line in lines, line
    assert "Tokenizer" not in lines
    found = as_json("show", onnx_classifiers / "text-encoder.onnx")
    assert found["schema"]["inputs"][0]["kind"] == "text"
    assert not {"edgeai.tokenizer", "edgeai.schema"} & found["metadata"].keys()  # not the whole tokenizer
    assert "takes texts of up to" in " ".join(run("show", onnx_embedder).stdout.split())


def test_show_says_what_the_weights_are_whatever_the_file_claims(tmp_path: Path) -> None:
    path = linear(tmp_path / "a.onnx", [4], schema(table(COLUMNS)))
    from converters.onnx.metadata import write_metadata

    write_metadata(path, {"edgeai.quant": "INT4", "edgeai.name": "\x1b[31m"})
    text = run("show", path).stdout
    assert "INT4 (most weights are F32)" in text
    assert "columns" in text
    assert "\x1b" not in text
    assert "none: `edgeai prove SOURCE a.onnx --write`" in text


@pytest.mark.parametrize(
    "about", [{"inputs": [3], "version": 1}, {"inputs": [{"kind": []}], "labels": 5, "targets": {}, "version": 1}]
)
def test_show_survives_a_schema_of_nonsense(tmp_path: Path, about: dict[str, Any]) -> None:
    assert run("show", linear(tmp_path / "a.onnx", [4], about)).exit_code == 0


# ---- verify


def test_verify_finds_changed_bytes_missing_data_and_a_cut_file(onnx_tiny_for_verbs: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(onnx_tiny_for_verbs, tmp_path / "c"))
    assert run("verify", place).stdout == f"ok    {place}\nok    {place}, by its passport\n"
    data = place / "model.onnx.data"
    kept = data.read_bytes()
    data.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    result = run("verify", place)
    assert (result.exit_code, result.stdout.splitlines()[1].split(":")[0]) == (3, f"BAD   {place}, by its passport")
    data.write_bytes(kept[:-1])
    assert "is cut off" in run("verify", place).stdout
    data.unlink()
    assert "is missing" in run("verify", place).stdout
    (place / "passport.json").unlink()
    data.write_bytes(kept)
    assert run("verify", place).stdout == f"ok    {place}\n"


# ---- fit


def test_fit_counts_weights_and_a_cache_for_each_stream(onnx_tiny_for_verbs: Path) -> None:
    found = as_json("fit", onnx_tiny_for_verbs, "--ctx", "128", "--streams", "3")
    (part,) = found["parts"]
    assert part["kv_bytes"] == 2 * 2 * 4 * 32 * 4 * 128 * 3  # keys and values, layers, heads, size of a head, float32
    assert part["total_bytes"] == part["weights_bytes"] + part["kv_bytes"] + part["other_bytes"]
    assert found["plan"]["memory_bytes"] == part["total_bytes"]
    assert [item["text"] for item in found["alternatives"]] == ["--streams 1"]
    text = run("fit", onnx_tiny_for_verbs).stdout
    for word in ("weights", "KV cache", "runtime", "total", "free", "fits on the CPU: context 256, 1 stream"):
        assert word in text


def test_what_a_language_model_takes_is_measured(onnx_tiny_for_verbs: Path) -> None:
    (row,) = as_json("fit", onnx_tiny_for_verbs, "--measure")["measured"]
    assert abs(row["error"]) < 0.5


def test_fit_of_other_models_is_one_figure(onnx_classifiers: Path, onnx_embedder: Path) -> None:
    for path in (onnx_classifiers / "cnn.onnx", onnx_embedder):
        found = as_json("fit", path)
        assert found["parts"][0]["total_bytes"] > 2 * found["size_bytes"]
        assert "without a context" in run("fit", path).stdout


@pytest.mark.parametrize(
    "option", [["--kv-type", "q8_0"], ["--gpu-layers", "1"], ["--prefix-bytes", "1MB"], ["--gpu-memory", "8GB"]]
)
def test_fit_refuses_what_means_nothing(onnx_tiny_for_verbs: Path, onnx_classifiers: Path, option: list[str]) -> None:
    for path in (onnx_tiny_for_verbs, onnx_classifiers / "cnn.onnx"):
        refused(run("fit", path, *option), 2, f"leave {option[0]} out")


def test_fit_refuses_contexts_of_a_classifier_and_too_little_memory(
    onnx_tiny_for_verbs: Path, onnx_classifiers: Path
) -> None:
    for option in (["--ctx", "64"], ["--streams", "2"], ["--measure"]):
        refused(run("fit", onnx_classifiers / "cnn.onnx", *option), 2, "classification")
    refused(run("fit", onnx_classifiers / "cnn.onnx", "--ram", "1MB"), 5, "needs")
    refused(run("fit", onnx_tiny_for_verbs, "--ram", "1MB"), 5, "needs")
    refused(run("fit", onnx_tiny_for_verbs, "--ram", "2MB", "--streams", "8"), 5, "8 streams")
    refused(run("fit", onnx_tiny_for_verbs, "--ctx", "512"), 2, "built for 256 tokens")
    refused(run("fit", onnx_classifiers / "cnn"), 3, "--to onnx")


# ---- bench


def test_bench_of_a_language_model_has_llama_benchs_rows(onnx_tiny_for_verbs: Path) -> None:
    rows = as_json(
        "bench", onnx_tiny_for_verbs, "--pp", "8", "--tg", "2", "--depth", "0,4", "--threads", "1,2", "--repeat", "2"
    )
    tests = ["pp8", "tg2", "pp8 @ d4", "tg2 @ d4"]
    assert [(row["threads"], row["test"]) for row in rows] == [(count, test) for count in (1, 2) for test in tests]
    assert all(row["tok_s_mean"] > 0 and row["n"] == 2 and row["backend"] == "onnxruntime-genai" for row in rows)
    assert rows[0]["size_bytes"] > 900_000


def test_bench_has_sizes_that_the_model_was_built_for(onnx_tiny_for_verbs: Path) -> None:
    lines = run("bench", onnx_tiny_for_verbs, "--repeat", "1").stdout.splitlines()
    assert [line.split("|")[6].strip() for line in lines[2:]] == ["pp256", "tg128"]
    assert len(set(map(len, lines))) == 1
    refused(run("bench", onnx_tiny_for_verbs, "--pp", "300"), 2, "built for 256 tokens, and this needs 300")


def test_bench_asks_several_at_once(onnx_tiny_for_verbs: Path) -> None:
    (row,) = as_json("bench", onnx_tiny_for_verbs, "--streams", "3", "--pp", "8", "--tg", "2", "--repeat", "2")
    assert (row["test"], row["streams"], row["n"], row["backend"]) == ("3x pp8+tg2", 3, 2, "onnxruntime-genai")
    assert 0 < row["ttft_p50_s"] <= row["ttft_p95_s"]


def test_bench_of_classifiers_and_embedders(onnx_classifiers: Path, onnx_embedder: Path) -> None:
    for name in ("cnn", "text-encoder"):
        rows = as_json("bench", onnx_classifiers / f"{name}.onnx", "--repeat", "2")
        assert [(row["test"], row["unit"], row["n"]) for row in rows] == [
            (f"{n} at once", "items/s", 2) for n in (1, 32)
        ]
    assert "items/s |" in run("bench", onnx_classifiers / "cnn.onnx", "--repeat", "1").stdout.splitlines()[0]
    (row,) = as_json("bench", onnx_embedder, "--pp", "8", "--repeat", "2")
    assert (row["backend"], row["tok_s_mean"] > 0) == ("onnxruntime", True)


def test_bench_makes_items_of_every_kind(tmp_path: Path) -> None:
    series = {
        "kind": "series",
        "name": "features",
        "channels": 2,
        "length": 3,
        "columns": [{"name": "a"}, {"name": "b"}],
    }
    tensor = {"kind": "tensor", "name": "features", "dtype": "float32", "shape": [2, 3]}
    for given, shape in ((table(COLUMNS), [4]), (series, [2, 3]), (tensor, [2, 3])):
        assert len(as_json("bench", linear(tmp_path / "a.onnx", shape, schema(given)), "--repeat", "1")) == 2
    refused(run("bench", linear(tmp_path / "b.onnx", [4], None)), 2, "does not say what it takes")


@pytest.mark.parametrize("option", [["--tune"], ["--gpu-layers", "1"], ["--kv-type", "q8_0"], ["--threads-batch", "2"]])
def test_bench_refuses_what_means_nothing(onnx_tiny_for_verbs: Path, onnx_classifiers: Path, option: list[str]) -> None:
    refused(run("bench", onnx_tiny_for_verbs, *option), 2, "is an ONNX model")
    refused(run("bench", onnx_classifiers / "cnn.onnx", *option), 2, "")
    refused(run("bench", onnx_classifiers / "cnn.onnx", "--pp", "8"), 2, "leave out --pp")


# ---- doctor


def test_doctor_names_the_runtimes_and_what_mends_a_gpu_that_stays_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeai import doctor

    found = as_json("doctor")["onnx"]
    assert "CPU" in found["onnxruntime"]
    assert found["onnxruntime-genai"].endswith("with CPU")
    gpu = GPU(name="RTX 4060", memory_total=8 << 30, memory_free=7 << 30, driver="580.1", compute_capability="8.9")
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: ((gpu,), None))
    text = run("doctor").stdout
    assert "mend: pip uninstall -y onnxruntime && pip install onnxruntime-gpu" in text
    assert "mend: pip uninstall -y onnxruntime-genai && pip install onnxruntime-genai-cuda" in text


def test_two_packages_of_one_module_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes.metadata, "version", lambda _name: "1.22.0")
    what = [what for what, _ in runtimes.onnx_problems(())]
    assert len(what) == 2
    assert "onnxruntime and onnxruntime-gpu and onnxruntime-directml are installed" in what[0]


def test_a_runtime_that_does_not_load_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "providers", lambda: "does not load: no libstdc++")
    assert any("no libstdc++" in what for what, _ in runtimes.onnx_problems(()))


# ---- paths


def test_a_typing_error_in_a_name_is_answered_with_the_closest(
    onnx_tiny_for_verbs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(onnx_tiny_for_verbs.parent)
    refused(run("run", "tiny-onx", "hi"), 3, "did you mean 'tiny-onnx'?")
    refused(run("run", "./tiny-onx", "hi"), 3, "did you mean 'tiny-onnx'?")
    refused(run("show", onnx_tiny_for_verbs.with_name("tiny-onx")), 3, "tiny-onnx'?")
    refused(run("rm", "tiny-onnx"), 3, "is a path")
    assert onnx_tiny_for_verbs.exists()
    assert as_json("list") == []


def test_a_folder_of_full_precision_names_both_ways_to_run_it(onnx_classifiers: Path) -> None:
    refused(run("run", TINY, "hi"), 3, "makes a GGUF file, and with --to onnx an ONNX model")
    refused(run("run", onnx_classifiers / "cnn", "hi"), 3, "cnn' --to onnx")


@pytest.mark.parametrize("to", [[], ["--to", "onnx"], ["--to", "hf"], ["--to", "gguf,onnx"]])
def test_nothing_is_converted_from_onnx(
    onnx_tiny_for_verbs: Path, onnx_embedder: Path, onnx_classifiers: Path, tmp_path: Path, to: list[str]
) -> None:
    for path in (onnx_tiny_for_verbs, onnx_embedder, onnx_classifiers / "cnn.onnx"):
        refused(run("convert", path, *to, "-o", tmp_path / "out"), 3, "is an ONNX model already")
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_becomes_onnx_alone(onnx_classifiers: Path) -> None:
    refused(run("convert", onnx_classifiers / "cnn"), 3, "hint: --to onnx")


def test_the_next_step_fits_what_the_model_takes(onnx_classifiers: Path, tmp_path: Path) -> None:
    for name, example in (("cnn", "picture.png"), ("text-encoder", '"a text"')):
        result = run(
            "convert", onnx_classifiers / name, "--to", "onnx", "--quant", "f32", "-o", tmp_path / f"{name}.onnx"
        )
        assert f"next: edgeai run {tmp_path}/{name}.onnx {example}" in result.stderr.replace("'", "")


def test_memory_that_is_named_is_planned_for(onnx_tiny_for_verbs: Path) -> None:
    from edgeai.artifact import open_artifact
    from edgeai.errors import DoesNotFit
    from edgeai.options import LoadOptions

    artifact = open_artifact(onnx_tiny_for_verbs)
    assert onnxplan.language_plan(artifact, LoadOptions(), lambda _: False, free=10**9).device == "cpu"
    with pytest.raises(DoesNotFit):
        onnxplan.language_plan(artifact, LoadOptions(), lambda _: False, free=10**5)


def test_a_regression_of_rows_is_shown_by_its_values(tmp_path: Path) -> None:
    about = schema(
        table(COLUMNS), task="regression", output={"name": "values", "kind": "values"}, targets=[{"name": "price"}]
    )
    del about["labels"]
    lines = [
        " ".join(line.split())
        for line in run("show", linear(tmp_path / "r.onnx", [4], about, outputs=1, output="values")).stdout.splitlines()
    ]
    assert "values price" in lines
    assert "columns width, colour, height" in lines
