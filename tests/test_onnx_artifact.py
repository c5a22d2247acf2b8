"""The facts of a folder for onnxruntime-genai, and what is refused before native code sees it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from edgeai.artifact import open_artifact
from edgeai.errors import InvalidModel
from tests.checkpoints import make
from tests.genai import built, changed

CONFIG = "genai_config.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model with a chat template; no test changes it."""
    root = tmp_path_factory.mktemp("artifact")
    return built(make(root / "source"), root / "built é")


def with_config(folder: Path, output: Path, change: Callable[[Any], object]) -> Path:
    return changed(folder, output, CONFIG, change)


def put(*place: str, value: Any) -> Callable[[Any], None]:
    """Return the change that sets VALUE at PLACE."""

    def change(config: Any) -> None:
        for name in place[:-1]:
            config = config.setdefault(name, {})
        config[place[-1]] = value

    return change


def test_facts_are_those_of_the_model(folder: Path) -> None:
    artifact = open_artifact(folder)
    assert (artifact.format, artifact.arch, artifact.task) == ("onnx", "llama", "generation")
    assert (artifact.context, artifact.vocab, artifact.bos, artifact.quant) == (128, 508, 0, "F32")
    assert artifact.template == (folder / "chat_template.jinja").read_text()
    assert artifact.size_bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_a_converted_folder_knows_its_lineage(tiny_onnx_int4: Path) -> None:
    artifact = open_artifact(tiny_onnx_int4)
    assert artifact.quant == "INT4"
    assert artifact.metadata["edgeai.passport.ok"] is True
    assert artifact.parent == json.loads((tiny_onnx_int4 / "edgeai.json").read_text())["source"]["sha256"]


def test_one_file_of_a_folder_names_the_folder(folder: Path) -> None:
    with pytest.raises(InvalidModel, match="one file of a model") as caught:
        open_artifact(folder / "model.onnx")
    assert repr(str(folder)) in str(caught.value.hint)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null", b"{}", b'{"model": 7}', b'{"model": {"decoder": []}}'],
)
def test_a_configuration_that_is_none_is_an_invalid_model(folder: Path, tmp_path: Path, raw: bytes) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / CONFIG).write_bytes(raw)
    with pytest.raises(InvalidModel, match="genai_config"):
        open_artifact(tmp_path / "m")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "decoder", "session_options", "custom_ops_library"), "evil.so"),
        (("model", "decoder", "session_options", "custom_ops_library"), ["evil.so"]),
        (("model", "decoder", "session_options", "Custom_Ops_Library"), "evil.so"),
        (("model", "decoder", "session_options", "provider_options"), [{"x": {"library_path": "evil.so"}}]),
        (("model", "decoder", "session_options", "provider_options"), [[{"plugin_path": "evil.so"}]]),
        (("engine", "library_path"), "evil.so"),
    ],
)
def test_settings_that_load_code_are_refused(folder: Path, tmp_path: Path, place: tuple[str, ...], value: Any) -> None:
    with pytest.raises(InvalidModel, match="would load native code"):
        open_artifact(with_config(folder, tmp_path / "m", put(*place, value=value)))


@pytest.mark.parametrize("name", ["enable_profiling", "optimized_model_filepath", "ep.context_file_path"])
def test_options_of_sessions_that_are_not_known_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    change = put("model", "decoder", "session_options", name, value="/tmp/x")
    with pytest.raises(InvalidModel, match=f"option of sessions that is not known here: '{name}'"):
        open_artifact(with_config(folder, tmp_path / "m", change))


def test_a_name_that_stands_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / CONFIG
    hidden = '{"model": {"decoder": {"session_options": {"custom_ops_library": "evil.so"}}}, '
    path.write_text(hidden + path.read_text().lstrip()[1:])
    with pytest.raises(InvalidModel, match="has 'model' twice"):
        open_artifact(tmp_path / "m")


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "C:model.onnx", "", 7, None, "a/../../model.onnx", "..\\model.onnx"]
)
def test_a_graph_outside_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: Any) -> None:
    with pytest.raises(InvalidModel, match=r"outside of its folder|no file"):
        open_artifact(with_config(folder, tmp_path / "m", put("model", "decoder", "filename", value=name)))


def test_a_graph_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"other\.onnx' is missing"):
        open_artifact(with_config(folder, tmp_path / "m", put("model", "decoder", "filename", value="other.onnx")))


@pytest.mark.parametrize(
    ("place", "part"),
    [
        (("model", "vision"), "vision"),
        (("model", "encoder"), "encoder"),
        (("model", "decoder", "pipeline"), "pipeline"),
    ],
)
def test_models_of_several_graphs_are_refused(folder: Path, tmp_path: Path, place: tuple[str, ...], part: str) -> None:
    with pytest.raises(InvalidModel, match=f"has a part '{part}'"):
        open_artifact(with_config(folder, tmp_path / "m", put(*place, value={"filename": "/etc/passwd"})))


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_names_that_the_graph_does_not_have_are_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(InvalidModel, match=f"has no {kind[:-1]} 'nothing'"):
        open_artifact(with_config(folder, tmp_path / "m", put("model", "decoder", kind, "x", value="nothing")))


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_configuration_without_names_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(InvalidModel, match=f"names no {kind}"):
        open_artifact(with_config(folder, tmp_path / "m", put("model", "decoder", kind, value={})))


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_endless_lists_of_names_are_refused_at_once(folder: Path, tmp_path: Path, kind: str) -> None:
    names = {f"x{at}": "past_key_values.%d.key" for at in range(20_000)}
    output = with_config(folder, tmp_path / "m", put("model", "decoder", kind, value=names))
    began = time.perf_counter()
    with pytest.raises(InvalidModel, match=f"names 20000 {kind}"):
        open_artifact(output)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("count", [2**31 - 1, -1, "two", 2.5, True])
def test_impossible_counts_of_layers_are_refused_at_once(folder: Path, tmp_path: Path, count: Any) -> None:
    output = with_config(folder, tmp_path / "m", put("model", "decoder", "num_hidden_layers", value=count))
    began = time.perf_counter()
    with pytest.raises(InvalidModel, match="num_hidden_layers"):
        open_artifact(output)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("name", ["context_length", "vocab_size", "bos_token_id"])
@pytest.mark.parametrize("value", [-5, 1 << 40, "many", 1.5])
def test_impossible_sizes_are_refused(folder: Path, tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(InvalidModel, match=name):
        open_artifact(with_config(folder, tmp_path / "m", put("model", name, value=value)))


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (("vocab_size",), 1),
        (("vocab_size",), -1),
        (("decoder", "num_key_value_heads"), 1),
        (("decoder", "num_hidden_layers"), 1),
        (("context_length",), 1),
    ],
)
def test_sizes_that_are_not_the_graphs_are_refused(
    folder: Path, tmp_path: Path, place: tuple[str, ...], change: int
) -> None:
    section = json.loads((folder / CONFIG).read_text())["model"]
    for name in place[:-1]:
        section = section[name]
    wrong = section[place[-1]] + change
    with pytest.raises(InvalidModel, match=f"says that {place[-1]} is {wrong}"):
        open_artifact(with_config(folder, tmp_path / "m", put("model", *place, value=wrong)))


def test_a_context_shorter_than_the_graphs_is_kept(folder: Path, tmp_path: Path) -> None:
    output = with_config(folder, tmp_path / "m", put("model", "context_length", value=33))
    assert open_artifact(output).context == 33


@pytest.mark.parametrize("raw", [None, b"", b"{", b"[1]", b"\xff"])
def test_a_tokenizer_that_is_missing_or_broken_is_an_invalid_model(
    folder: Path, tmp_path: Path, raw: bytes | None
) -> None:
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.json"
    path.unlink() if raw is None else path.write_bytes(raw)
    with pytest.raises(InvalidModel, match=r"tokenizer\.json"):
        open_artifact(tmp_path / "m")


def test_a_data_file_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "model.onnx.data").unlink()
    with pytest.raises(InvalidModel, match=r"model\.onnx\.data' is missing"):
        open_artifact(tmp_path / "m")


def test_a_data_file_that_is_cut_off_is_invalid(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidModel, match="is cut off"):
        open_artifact(tmp_path / "m")


@pytest.mark.parametrize("raw", [b"", b"garbage" * 100])
def test_a_graph_that_is_none_is_invalid(folder: Path, tmp_path: Path, raw: bytes) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "model.onnx").write_bytes(raw)
    with pytest.raises(InvalidModel, match=r"model\.onnx"):
        open_artifact(tmp_path / "m")


def test_an_operator_that_onnxruntime_does_not_have_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node.append(helper.make_node("Magic", ["input_ids"], ["m"], domain="evil"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match=r"evil\.Magic") as caught:
        open_artifact(tmp_path / "m")
    assert caught.value.exit_code == 3


def test_a_folder_from_elsewhere_needs_no_lineage(folder: Path) -> None:
    assert not (folder / "edgeai.json").exists()
    assert open_artifact(folder).parent is None


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"source": 7, "passport": [], "name": 1}'])
def test_a_lineage_that_is_broken_is_refused_or_says_nothing(folder: Path, tmp_path: Path, raw: bytes) -> None:
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "edgeai.json").write_bytes(raw)
    if raw.startswith(b'{"'):
        assert open_artifact(tmp_path / "m").parent is None
    else:
        with pytest.raises(InvalidModel, match=r"edgeai\.json"):
            open_artifact(tmp_path / "m")
