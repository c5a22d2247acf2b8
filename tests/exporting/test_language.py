"""Export of language models: what is made is proved, named at the end, the same every time; what cannot be is refused before the work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converters.child import ChildFailed
from converters.errors import UnsupportedModel, WrongChoice
from converters.onnx.header import read_header
from edgeai import exporting
from edgeai.artifact import open_artifact
from edgeai.errors import DoesNotFit, OutputError, ProofFailed, UsageError
from edgeai.evaluation import onnx_language, passport
from edgeai.exporting import convert_onnx, job, language
from edgeai.exporting.language import whole_context
from edgeai.paper import read_paper
from tests.checkpoints import InProcessTorch, make
from tests.families import VARIANTS, Variant, longrope, make_variant
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


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No builder is ever started: what follows is refused before."""

    def started(*_: Any, **__: Any) -> Iterator[None]:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(language, "build", started)


def left(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in folder.iterdir()}


# ---- models/tiny, converted once


def test_a_converted_folder_has_what_runs_it_and_what_proves_it(tiny_onnx_int4: Path) -> None:
    assert left(tiny_onnx_int4) == {
        "genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json", "edgeai.json", "passport.json",
    }  # fmt: skip


def test_its_passport_is_its_own(tiny_onnx_int4: Path) -> None:
    paper = read_paper(tiny_onnx_int4, {})
    assert (paper.place, paper.ok, paper.changed) == ("beside", True, False)


def test_a_changed_folder_has_another_sum(tiny_onnx_int4: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_onnx_int4, tmp_path / "copy")
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
    paper = read_paper(copy, {})
    assert (paper.place, paper.changed) == ("nowhere", True)


def test_weights_are_counted_as_those_of_the_source(tiny_onnx_int4: Path, tiny_onnx_f32: Path) -> None:
    parameters = open_artifact(ROOT / "models" / "tiny").params
    for folder in (tiny_onnx_int4, tiny_onnx_f32):
        assert json.loads((folder / "edgeai.json").read_text())["parameters"] == parameters
        assert read_header(folder / "model.onnx").parameters == parameters


def test_no_path_of_this_machine_is_in_a_folder(tiny_onnx_int4: Path) -> None:
    for path in tiny_onnx_int4.iterdir():
        raw = path.read_bytes()
        for word in (str(ROOT), str(tiny_onnx_int4.parent), str(Path.home()) + "/"):
            assert word.encode() not in raw, path.name


@pytest.mark.slow
def test_the_same_source_gives_the_same_bytes_in_processes_of_their_own(tiny_onnx_f32: Path, tmp_path: Path) -> None:
    convert_onnx(ROOT / "models" / "tiny", tmp_path / tiny_onnx_f32.name, "f32")
    again, first = snapshot(tmp_path / tiny_onnx_f32.name), snapshot(tiny_onnx_f32)
    assert again.keys() == first.keys()
    assert [name for name in first if again[name] != first[name]] == []


# ---- in this process


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("quant", ["f32", "f16", "int8"])
def test_conversions_say_what_they_made(source: Path, tmp_path: Path, quant: str) -> None:
    output = tmp_path / "out é"
    done = convert_onnx(source, output, quant)
    assert (done.path, done.format, done.quant) == (output, "onnx", quant.upper())
    assert done.bytes >= sum(path.stat().st_size for path in output.iterdir())
    assert open_artifact(output).metadata["edgeai.passport.ok"] is True
    assert left(tmp_path) == {"out é"}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("quant", ["int4", "int8"])
@pytest.mark.parametrize(
    "text",
    [
        "lm_head=f32", "embed_tokens=f32 lm_head=int4", "embed_tokens=int8 lm_head=f32", "symmetric=false", "method=k_quant", "method=rtn",
        "lm_head=int8", "lm_head=int4", "method=k_quant embed_tokens=int8", "method=rtn lm_head=int8", "block=64",
    ],
)  # fmt: skip
def test_overrides_of_a_model_with_one_matrix_for_both_ends_are_proved(tmp_path: Path, quant: str, text: str) -> None:
    convert_onnx(ROOT / "models" / "tiny", tmp_path / "out", quant, types=tuple(text.split()))
    assert json.loads((tmp_path / "out" / "edgeai.json").read_text())["choices"] == text.split()


@pytest.mark.usefixtures("here")
def test_a_better_type_for_some_matrices_makes_a_better_file_that_is_larger(tmp_path: Path) -> None:
    found = []
    for at, types in enumerate([(), ("layers.*.mlp.*=int8",), ("layers.*=int8", "lm_head=int8")]):
        done = convert_onnx(ROOT / "models" / "tiny", tmp_path / str(at), "int4", types=types)
        kl = next(row.value for row in done.report.rows if row.name == "mean KL on text, nats")
        found.append((done.bytes, -float(kl)))
    assert found == sorted(found)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_one_quantized_matrix_is_both_ends(tmp_path: Path, quant: str) -> None:
    convert_onnx(ROOT / "models" / "tiny", tmp_path / "out", quant)
    large = [tensor.name for tensor in read_header(tmp_path / "out" / "model.onnx").tensors if tensor.nbytes > 100_000]
    assert [name for name in large if "embed" in name] == []
    assert sum("lm_head" in name for name in large) == 1


@pytest.mark.usefixtures("here")
def test_the_source_stays_as_it_is(source: Path, tmp_path: Path) -> None:
    before = snapshot(source)
    convert_onnx(source, tmp_path / "out", "f32")
    assert snapshot(source) == before


@pytest.mark.usefixtures("here")
def test_a_folder_that_another_process_wrote_meanwhile_is_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = language.build

    def build(*arguments: Any, **options: Any) -> Any:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "edgeai.json").write_text("{}")
        return right(*arguments, **options)

    monkeypatch.setattr(language, "build", build)
    with pytest.raises(OutputError, match="another process"):
        convert_onnx(source, tmp_path / "out", "f32")
    assert snapshot(tmp_path / "out") == {"edgeai.json": b"{}"}
    assert left(tmp_path) == {"out"}


@pytest.mark.usefixtures("here")
def test_without_an_output_the_folder_is_beside_the_source(source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "model")
    assert convert_onnx(folder, None, "f32").path == tmp_path / "model-onnx"


@pytest.mark.usefixtures("here")
def test_an_output_that_is_replaced_stays_until_the_new_one_is_proved(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_onnx(source, tmp_path / "out", "f32")
    before = snapshot(tmp_path / "out")
    broken = onnx_language.OnnxProof._angle_rows

    def rows(self: Any, header: Any) -> Any:
        return [replace(row, ok=False) for row in broken(self, header)]

    with monkeypatch.context() as patch:
        patch.setattr(onnx_language.OnnxProof, "_angle_rows", rows)
        with pytest.raises(ProofFailed, match="would not be the model") as caught:
            convert_onnx(source, tmp_path / "out", "f32", force=True)
    assert caught.value.exit_code == 9
    assert snapshot(tmp_path / "out") == before
    assert left(tmp_path) == {"out"}
    convert_onnx(source, tmp_path / "out", "f32", force=True)
    assert snapshot(tmp_path / "out") == before


@pytest.mark.usefixtures("here")
def test_longrope_says_that_its_context_is_cut(tmp_path: Path) -> None:
    config = {**longrope(64, 8), "max_position_embeddings": 128}
    folder = make_variant(tmp_path / "phi", Variant(model="Phi3ForCausalLM", config=config))
    done = convert_onnx(folder, tmp_path / "out", "f32")
    assert [notice.code for notice in done.warnings] == ["context-cut"]
    assert open_artifact(tmp_path / "out").context == 64


@pytest.mark.usefixtures("here")
def test_a_window_keeps_the_whole_context(tmp_path: Path) -> None:
    folder = make_variant(tmp_path / "mistral", VARIANTS["mistral-window"])
    done = convert_onnx(folder, tmp_path / "out", "f32")
    assert done.warnings == ()
    assert open_artifact(tmp_path / "out").context == 128


# ---- refused before the work


@pytest.mark.usefixtures("nothing_runs")
def test_an_output_that_is_there_is_not_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(OutputError):
        convert_onnx(source, tmp_path / "out", "f32")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


@pytest.mark.usefixtures("nothing_runs")
def test_the_source_is_no_output(source: Path) -> None:
    with pytest.raises((OutputError, UsageError)):
        convert_onnx(source, source, "f32", force=True)


@pytest.mark.usefixtures("nothing_runs")
def test_a_family_that_the_builder_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = make_variant(tmp_path / "gpt2", VARIANTS["gpt2"])
    with pytest.raises(UnsupportedModel, match="GPT2LMHeadModel") as caught:
        convert_onnx(folder, tmp_path / "out")
    assert caught.value.exit_code == 3
    assert "LlamaForCausalLM" in str(caught.value.hint)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(("quant", "types"), [("q8_0", ()), ("int4", ("blk.0=f32",)), ("f32", ("lm_head=f32",))])
def test_wrong_types_are_refused(source: Path, tmp_path: Path, quant: str, types: tuple[str, ...]) -> None:
    with pytest.raises(WrongChoice):
        convert_onnx(source, tmp_path / "out", quant, types=types)
    assert left(tmp_path) == set()


@pytest.mark.usefixtures("nothing_runs")
def test_calibration_is_not_for_language_models(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--calibration"):
        convert_onnx(source, tmp_path / "out", "int8", calibration="minmax")


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("limit", [-1.0, float("nan")])
def test_an_impossible_limit_is_refused(source: Path, tmp_path: Path, limit: float) -> None:
    with pytest.raises(UsageError):
        convert_onnx(source, tmp_path / "out", "int8", max_kl=limit)


@pytest.mark.usefixtures("nothing_runs")
def test_memory_that_is_not_free_is_an_error_before_the_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "needed_bytes", lambda _plan: 1 << 60)
    with pytest.raises(DoesNotFit, match="of memory"):
        convert_onnx(source, tmp_path / "out", "f32")


@pytest.mark.usefixtures("nothing_runs")
def test_a_disk_without_room_is_an_error_before_the_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "built_bytes", lambda _plan, _choices: 1 << 60)
    with pytest.raises(DoesNotFit, match="are free"):
        convert_onnx(source, tmp_path / "out", "f32")


@pytest.mark.usefixtures("nothing_runs")
def test_a_library_that_is_missing_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UsageError, match="needs onnxscript, not installed here"):
        language.convert_language(source, tmp_path / "out")


def test_a_disk_that_fills_up_while_the_builder_writes_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(InProcessBuilder):
        def result(self) -> dict[str, Any]:
            reason = "OSError: [Errno 28] No space left on device: 'model.onnx.data'"
            raise ChildFailed(f"building: {reason}", reason=reason, log=[])

    monkeypatch.setattr("converters.onnx.language.Child", Full)
    (tmp_path / "here").mkdir()
    with pytest.raises(DoesNotFit, match="is full"):
        convert_onnx(source, tmp_path / "here" / "out", "f32")
    assert left(tmp_path / "here") == set()


def test_a_plan_without_windows_and_long_texts_is_left_alone(source: Path) -> None:
    from converters.checkpoint import open_checkpoint
    from converters.families import plan_model

    checkpoint = open_checkpoint(source)
    plan = plan_model(checkpoint)
    assert whole_context(plan, checkpoint.config) == plan
    assert exporting.OPTION["types"] == "--type"
