from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from edgeai import training
from edgeai.errors import InvalidModel, RecipeError
from edgeai.training.tasks import texts
from edgeai.training.tasks.networks import load_module
from edgeai.training.tasks.numeric_networks import Tcn, TcnShape
from edgeai.training.tasks.recipe import TaskRecipe

Load = Callable[..., TaskRecipe]
ARCHITECTURES = ("cnn", "mlp", "tcn", "text-encoder", "embedder-head")
HEAD = """
seed = 3
[task]
architecture = "embedder-head"
[data]
source = "texts.jsonl"
text = "text"
target = "label"
[model]
encoder = "./encoder"
layers = 1
hidden_size = 8
max_tokens = 24
dropout = 0.1
"""


@pytest.fixture(autouse=True)
def encoder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sentence-transformers folder of a BERT with drawn weights, and a recipe of a head on it."""
    from tests.training.tasks import conftest

    monkeypatch.setitem(conftest.RECIPES, "embedder-head", HEAD)
    folder = home / "encoder"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "model", "reads", "tumour", "grows", "a", "7", "8", "<"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=128)  # as MiniLM's own file has it
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    return folder


def inputs(folder: Path, batch: int, length: int) -> tuple[list[str], list[torch.Tensor]]:
    """Return the names of the graph's inputs, and rows of the test part made BATCH long and, for texts, LENGTH wide."""
    schema = json.loads((folder / "config.json").read_text(encoding="utf-8"))["schema"]["inputs"][0]
    rows = load_file(folder / "data.safetensors")
    if schema["kind"] != "text":
        return [schema["name"]], [rows["test"][torch.arange(batch) % len(rows["test"])]]
    names = schema["graph"]
    ids = rows["test.input_ids"]
    made = ids[torch.arange(batch) % len(ids)][:, torch.arange(length) % ids.shape[1]]
    mask = torch.ones_like(made)
    mask[0, length // 2 + 1 :] = 0
    return names, [made, mask]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_onnx_of_the_rebuilt_module_gives_torch_s_outputs_for_any_batch_and_length(
    load: Load, tmp_path: Path, name: str
) -> None:
    folder = training.train(load(name), tmp_path / "a", steps=3).path
    module = load_module(folder)
    names, example = inputs(folder, 3, 10)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=24)}
    shapes = tuple(axes if len(names) == 2 else {0: axes[0]} for _ in names)
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        module, tuple(example), path, dynamo=True, dynamic_shapes=shapes, input_names=names, output_names=["logits"],
        external_data=False, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [item.shape[0] for item in session.get_inputs()] == ["batch"] * len(names)
    for batch, length in ((1, 1), (1, 7), (5, 24), (2, 13)):
        _, given = inputs(folder, batch, length)
        (found,) = session.run(None, {key: value.numpy() for key, value in zip(names, given, strict=True)})
        assert np.allclose(found, module(*given).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["text-encoder", "embedder-head"])
def test_padding_changes_no_answer(load: Load, tmp_path: Path, name: str) -> None:
    folder = training.train(load(name), tmp_path / "a", steps=3).path
    module = load_module(folder)
    ids = load_file(folder / "data.safetensors")["test.input_ids"][:1, :5]
    alone = module(ids, torch.ones_like(ids))
    longer = torch.cat([ids, torch.full((1, 9), 4)], dim=1)
    mask = torch.cat([torch.ones(1, 5), torch.zeros(1, 9)], dim=1).long()
    assert torch.allclose(alone, module(longer, mask), atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_below_a_head_are_those_of_transformers(
    load: Load, encoder: Path, tmp_path: Path, normalize: bool
) -> None:
    if not normalize:
        modules = json.loads((encoder / "modules.json").read_text(encoding="utf-8"))
        (encoder / "modules.json").write_text(json.dumps(modules[:2]), encoding="utf-8")
    folder = training.train(load("embedder-head"), tmp_path / "a", steps=3).path
    module: Any = load_module(folder)
    rows = load_file(folder / "data.safetensors")
    ids, mask = rows["test.input_ids"], rows["test.attention_mask"]
    with torch.no_grad():
        hidden = BertModel.from_pretrained(encoder)(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = torch.stack([row[: int(count)].mean(0) for row, count in zip(hidden, mask.sum(1), strict=True)])
    reference = torch.nn.functional.normalize(mean) if normalize else mean
    assert torch.allclose(module.embed(ids, mask), reference, atol=1e-5)


def test_head_is_trained_and_its_encoder_stays_as_it_is(load: Load, encoder: Path, tmp_path: Path) -> None:
    trained = training.train(load("embedder-head"), tmp_path / "a")
    weights, before = load_file(trained.path / "model.safetensors"), load_file(encoder / "model.safetensors")
    shared = [name for name in weights if name.startswith("encoder.")]
    assert len(shared) > 10
    assert all(torch.equal(weights[name], before[name.removeprefix("encoder.")]) for name in shared)
    assert any(bool(weights[name].abs().max() > 0.05) for name in weights if name.startswith("head.layers.3"))
    cut = tmp_path / "cut"
    training.train(load("embedder-head"), cut, steps=10)
    again = training.train(load("embedder-head"), cut, resume=True)
    assert trained.sha256 == again.sha256
    assert (cut / "run" / "step-000000020.pt").stat().st_size < 50_000  # of the head alone


def test_tokenizer_of_the_folder_neither_cuts_nor_fills_up(load: Load, tmp_path: Path) -> None:
    folder = training.train(load("embedder-head"), tmp_path / "a", steps=1).path
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert (tokenizer.padding, tokenizer.truncation) == (None, None)
    assert tokenizer.encode("the model").ids == [2, 4, 5, 3]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").write_text('{"model_type": "roberta"}'), "is a 'roberta'"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "no tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be used"),
        (lambda folder: (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}'), "'max'"),
    ],
)
def test_encoder_that_cannot_be_used_is_an_error(
    load: Load, encoder: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(encoder)
    with pytest.raises(RecipeError) as caught:
        texts.read_encoder("./encoder", encoder.parent, 24)
    assert message in caught.value.message


def test_more_tokens_than_the_encoder_has_positions_is_an_error(encoder: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.max_tokens 33"):
        texts.read_encoder("./encoder", encoder.parent, 33)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def replace_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        lambda folder: edit(folder, lambda config: config.update(model_type="llama")),
        lambda folder: edit(folder, lambda config: config.update(architecture="rnn")),
        lambda folder: edit(folder, lambda config: config.update(architecture=["cnn"])),
        lambda folder: edit(folder, lambda config: config.update(network=3)),
        lambda folder: edit(folder, lambda config: config["network"].update(hidden_size=60_000, layers=60)),
        lambda folder: edit(folder, lambda config: config["network"].update(hidden_size=-1)),
        lambda folder: edit(folder, lambda config: config["network"].update(more=1)),
        lambda folder: edit(folder, lambda config: config["network"].pop("inputs")),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 20),
        lambda folder: replace_weights(folder, lambda weights: weights.pop("layers.0.bias")),
        lambda folder: replace_weights(folder, lambda weights: weights.update(more=torch.zeros(1))),
        lambda folder: replace_weights(folder, lambda weights: weights["layers.0.bias"].fill_(float("nan"))),
        lambda folder: replace_weights(folder, lambda weights: weights.update({"layers.0.bias": torch.zeros(9)})),
    ],
)
def test_damaged_folder_is_an_invalid_model(load: Load, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    folder = training.train(load("mlp"), tmp_path / "a", steps=1).path
    load_module(folder)
    damage(folder)
    with pytest.raises(InvalidModel):
        load_module(folder)


def test_tcn_looks_at_no_later_step_and_as_far_back_as_its_shape_says() -> None:
    shape = TcnShape(channels=1, width=4, blocks=2, kernel=3, outputs=2, dropout=0.0)
    module = Tcn(shape).eval()
    series = torch.randn(1, 1, 40)
    inner = module.blocks(series)
    later = series.clone()
    later[..., 21:] += 1
    assert torch.equal(module.blocks(later)[..., :21], inner[..., :21])
    gradient = torch.autograd.functional.jacobian(module, series)[0].abs().sum((0, 1, 2))
    assert shape.sees == 13
    assert torch.nonzero(gradient).min() >= 40 - shape.sees
