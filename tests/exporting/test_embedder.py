"""Embedding models in ONNX: tiny random ones of each kind, and MiniLM, against transformers and sentence-transformers."""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from edgeai.artifact import open_artifact
from edgeai.cli import cli
from edgeai.conversion import Conversion
from edgeai.errors import ClosedError, ContextExceeded, ConvertError, InvalidModel, OutputError, ProofFailed, UsageError
from edgeai.evaluation import passport
from edgeai.exporting import convert_onnx, embedder
from edgeai.model import Model, open_engine
from tests.checkpoints import InProcessTorch
from tests.families import VARIANTS, make_variant, torch_vectors

F32 = npt.NDArray[np.float32]
TEXTS = [
    "Hello world",
    "a",
    "another text, rather longer than the first one, with [CLS] and <s> in it",
    "Ünïcode 模型 1234",
]


@pytest.fixture(autouse=True, scope="module")
def torch_in_this_process() -> Iterator[None]:
    """Run the source in this process: torch is imported once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passport, "Child", InProcessTorch)
        yield


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Conversion]]:
    """Return the source of a row of VARIANTS and its conversion, made once."""
    root = tmp_path_factory.mktemp("embedders é")
    kept: dict[tuple[str, str], tuple[Path, Conversion]] = {}

    def make(name: str = "bert", quant: str = "f32") -> tuple[Path, Conversion]:
        if (name, quant) not in kept:
            source = root / name
            if not source.exists():
                make_variant(source, VARIANTS[name])
            kept[name, quant] = source, convert_onnx(source, root / f"{name}-{quant}", quant)
        return kept[name, quant]

    return make


def unit(rows: F32) -> F32:
    found: F32 = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


@pytest.mark.parametrize("name", ["bert", "bert-256-cls", "bert-roberta", "bert-xlm-roberta"])
def test_vectors_are_torchs_however_texts_are_batched(
    converted: Callable[..., tuple[Path, Conversion]], name: str
) -> None:
    source, done = converted(name)
    with Model(open_engine(done.path)) as model:
        found = model.embed(TEXTS)
        ids = [model.tokenize(text, add_special=True) for text in TEXTS]
        alone = np.concatenate([model.embed([text]) for text in TEXTS])
    pool = {"mean": lambda rows: rows.mean(0), "cls": lambda rows: rows[0], "lasttoken": lambda rows: rows[-1]}
    kind = str(VARIANTS[name].pooling)
    expected = unit(np.stack([pool[kind](torch_vectors(source, item)) for item in ids]))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(alone, found, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_the_folder_says_what_it_is(converted: Callable[..., tuple[Path, Conversion]]) -> None:
    _, done = converted("bert", "int8")
    artifact = open_artifact(done.path)
    assert (artifact.task, artifact.quant, artifact.format) == ("embedding", "INT8", "onnx")
    assert artifact.metadata["edgeai.passport.ok"] is True
    passport = json.loads((done.path / "passport.json").read_text())
    assert passport["report"]["ok"] is True
    assert passport["sha256"] == done.sha256


def test_the_same_source_gives_the_same_bytes(
    converted: Callable[..., tuple[Path, Conversion]], tmp_path: Path
) -> None:
    source, done = converted("bert", "int8")
    again = convert_onnx(source, tmp_path / done.path.name, "int8")
    for path in sorted(done.path.iterdir()):
        assert (again.path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(("quant", "most"), [("f16", 0.55), ("int8", 0.5)])
def test_a_smaller_type_is_smaller_and_near(
    converted: Callable[..., tuple[Path, Conversion]], quant: str, most: float
) -> None:
    _, whole = converted("bert-256-cls")
    _, small = converted("bert-256-cls", quant)
    graph, smaller = (done.path / "model.onnx" for done in (whole, small))
    assert smaller.stat().st_size < most * graph.stat().st_size
    with Model(open_engine(whole.path)) as one, Model(open_engine(small.path)) as two:
        assert float((one.embed(TEXTS) * two.embed(TEXTS)).sum(axis=1).min()) > 0.99


def broken(path: Path, change: Callable[[F32], F32], part: str) -> None:
    """Change the first stored matrix whose name has PART in it."""
    model = onnx.load(path)
    item = next(item for item in model.graph.initializer if part in item.name and len(item.dims) == 2)
    item.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(item).copy()), item.name))
    onnx.save(model, path)


def test_a_changed_weight_fails_the_proof_and_leaves_nothing(
    converted: Callable[..., tuple[Path, Conversion]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = converted()
    right = embedder.export_embedder

    def wrong(*args: object, **options: object) -> object:
        found = right(*args, **options)  # type: ignore[arg-type]
        broken(found.path, lambda rows: rows[::-1].copy(), "position_embeddings")
        return found

    monkeypatch.setattr(embedder, "export_embedder", wrong)
    with pytest.raises(ProofFailed, match="F32 vectors of texts"):
        convert_onnx(source, tmp_path / "out", "f32")
    assert not list(tmp_path.iterdir())


def test_a_swapped_tokenizer_fails_the_proof(
    converted: Callable[..., tuple[Path, Conversion]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = converted()
    right = embedder.write_tokenizer

    def wrong(folder: Path, vocabulary: object) -> None:
        right(folder, vocabulary)  # type: ignore[arg-type]
        path = folder / "tokenizer.json"
        spec = json.loads(path.read_text())
        words = spec["model"]["vocab"]
        first, second = [word for word in words if len(word) == 1 and word.isalpha()][:2]
        words[first], words[second] = words[second], words[first]
        path.write_text(json.dumps(spec))

    monkeypatch.setattr(embedder, "write_tokenizer", wrong)
    with pytest.raises(ProofFailed, match="token ids"):
        convert_onnx(source, tmp_path / "out", "f32")


def test_an_unknown_type_and_a_taken_name_are_refused(
    converted: Callable[..., tuple[Path, Conversion]], tmp_path: Path
) -> None:
    source, _ = converted()
    with pytest.raises(UsageError, match="int4"):
        convert_onnx(source, tmp_path / "out", "int4")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="there already"):
        convert_onnx(source, tmp_path / "full", "f32")
    with pytest.raises(UsageError, match="--max-kl"):
        convert_onnx(source, tmp_path / "out", "f32", max_kl=0.1)


def test_a_reranker_is_refused_by_name(tmp_path: Path) -> None:
    source = make_variant(tmp_path / "reranker", VARIANTS["bert"])
    config = json.loads((source / "config.json").read_text()) | {
        "architectures": ["BertForSequenceClassification"],
        "num_labels": 1,
        "id2label": {"0": "LABEL_0"},
    }
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises((ConvertError, InvalidModel)):
        convert_onnx(source, tmp_path / "out", "f32")


def test_bad_texts_are_errors_with_their_place_and_the_engine_goes_on(
    converted: Callable[..., tuple[Path, Conversion]],
) -> None:
    with Model(open_engine(converted()[1].path)) as model:
        most = model.plan.context
        with pytest.raises(ContextExceeded, match=rf"text 2 of 2 has \d+ tokens and the model takes {most}"):
            model.embed(["a", "word " * (most + 5)])
        with pytest.raises(UsageError, match="text 2 of 3 is empty"):
            model.embed(["a", " ", "b"])
        with pytest.raises(UsageError, match="item 1"):
            model.embed([7])  # type: ignore[list-item]
        with pytest.raises(UsageError, match="vectors, not text"):
            model.complete("Hi")
        with pytest.raises(UsageError, match="classifier"):
            model.rank("a", ["b"])
        assert model.embed([]).shape == (0, model.embed(["a"]).shape[1])


def test_ten_thousand_texts_come_in_their_order(converted: Callable[..., tuple[Path, Conversion]]) -> None:
    words = ["Hello", "world", "a b c d e f g", "x y"]
    texts = [words[at % 4] for at in range(10_000)]
    with Model(open_engine(converted()[1].path)) as model:
        found, four = model.embed(texts), model.embed(words)
    assert found.shape[0] == 10_000
    np.testing.assert_allclose(found, np.tile(four, (2500, 1)), atol=2e-6)


def test_threads_share_an_engine_and_close_ends_it(converted: Callable[..., tuple[Path, Conversion]]) -> None:
    with Model(open_engine(converted()[1].path)) as model:
        expected, found = model.embed(TEXTS), [np.zeros(0, np.float32)] * 8

        def work(at: int) -> None:
            found[at] = model.embed(TEXTS)

        threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for rows in found:
            np.testing.assert_allclose(rows, expected, atol=2e-6)
    with pytest.raises(ClosedError):
        model.embed(["a"])


def test_a_vector_in_eight_bits_is_the_same_in_company_where_that_is_asked_for(
    converted: Callable[..., tuple[Path, Conversion]],
) -> None:
    with Model(open_engine(converted("bert", "int8")[1].path, deterministic=True)) as model:
        together = model.embed(TEXTS)
        alone = np.concatenate([model.embed([text]) for text in TEXTS])
    np.testing.assert_array_equal(together, alone)


def test_an_isolated_engine_gives_the_same_vectors(converted: Callable[..., tuple[Path, Conversion]]) -> None:
    path = converted()[1].path
    with Model(open_engine(path)) as one, Model(open_engine(path, isolated=True)) as two:
        np.testing.assert_allclose(two.embed(TEXTS), one.embed(TEXTS), atol=1e-6)


@pytest.mark.parametrize("option", [{"ctx": 128}, {"kv_type": "f16"}, {"gpu_layers": 3}])
def test_options_that_do_nothing_are_refused(
    converted: Callable[..., tuple[Path, Conversion]], option: dict[str, object]
) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        open_engine(converted()[1].path, **option)


def test_the_command_line_prints_the_vector(converted: Callable[..., tuple[Path, Conversion]]) -> None:
    path = converted()[1].path
    result = CliRunner().invoke(cli, ["run", str(path), "Hello world", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    with Model(open_engine(path)) as model:
        np.testing.assert_allclose(found["embedding"], model.embed(["Hello world"])[0], atol=1e-6)
    assert (found["backend"], found["device"]) == ("onnxruntime", "cpu")


@pytest.mark.real
@pytest.mark.slow
def test_minilm_is_sentence_transformers_minilm(minilm_path: Path, tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    text = re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics)))
    sentences = [part for part in re.split(r"(?<=[.!?]) (?=[A-Z])", text) if 20 <= len(part) < 400]
    plain = [
        text for text in TEXTS if "[CLS]" not in text
    ]  # sentence-transformers takes what a user writes for a token
    sentences = [*plain, *sentences[:: len(sentences) // 200]][:200]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(minilm_path), device="cpu", local_files_only=True)
        expected = encoder.encode(sentences, normalize_embeddings=True)
    for quant, least in (("f32", 0.99999), ("int8", 0.99)):
        done = convert_onnx(minilm_path, tmp_path / quant, quant)
        with Model(open_engine(done.path)) as model:
            cosines = (model.embed(sentences) * expected).sum(axis=1)
        assert float(cosines.min()) >= least
