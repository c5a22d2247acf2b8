"""The curvature that the child sums up, against gradients that plain torch computes one prediction after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from converters.curvature import Curvature, Texts, measure_curvature, reorders, sources
from converters.curvature_child import SPARE, draw, rounding
from converters.errors import ConvertError
from converters.families import TensorPlan, interleave_halves
from converters.families.rules import add_one
from converters.quantmap import is_matrix
from tests.curvatures import measured, plan_of, some_texts
from tests.families import VARIANTS, make_variant

if TYPE_CHECKING:
    import torch

F64 = npt.NDArray[np.float64]
COVERED = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma3-two-layers",
    "phi3",
    "gpt2",
    "bert",
    "smollm3",
    "granite",
    "olmo2",
    "lfm2",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the checkpoint of a row of VARIANTS with the changes that its name says, made once."""
    root = tmp_path_factory.mktemp("curved é")

    def find(name: str) -> Path:
        if not (root / name).exists():
            variant, _, tied = name.partition("+")
            config: dict[str, Any] = {"tie_word_embeddings": True} if tied else {}
            make_variant(root / name, VARIANTS[variant], **config)
        return root / name

    return find


@pytest.fixture(scope="module")
def llama(place: Callable[[str], Path]) -> tuple[Path, Curvature]:
    return place("llama"), measured(place("llama"))


@dataclass
class Reference:
    """What plain torch says of one model on the same texts and draws: sums by module, over every position of every text."""

    rows: dict[str, F64]
    columns: dict[str, F64]
    plain: dict[str, F64]
    predictions: int


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=__import__("torch").float32).eval()


def draws(said: torch.Tensor, seed: int, at: int) -> torch.Tensor:
    """Return the log-likelihood of the tokens that the child draws for the text AT."""
    import torch

    generator = torch.Generator().manual_seed(seed * 1000003 + at + 1)
    uniform = torch.rand(len(said), 1, generator=generator, dtype=torch.float64).numpy()
    sums = np.cumsum(
        said.detach().exp().double().numpy(), -1
    )  # a draw is where the sum of probabilities passes the uniform number
    drawn = [int(np.searchsorted(row, part * row[-1])) for row, (part,) in zip(sums, uniform, strict=True)]
    return said.gather(1, torch.tensor(drawn)[:, None]).sum()


def test_draws_have_the_probabilities_that_they_are_made_with() -> None:
    import torch

    shares = torch.tensor([[0.5, 0.0, 0.3, 0.2], [0.0, 0.0, 0.0, 1.0]]).repeat(4000, 1)
    found = draw(shares, torch.Generator().manual_seed(1))[:, 0].reshape(4000, 2)
    counts = torch.bincount(found[:, 0], minlength=4) / 4000
    assert counts.tolist() == pytest.approx([0.5, 0.0, 0.3, 0.2], abs=0.025)  # three standard deviations
    assert counts[1] == 0
    assert set(found[:, 1].tolist()) == {3}


def reference(folder: Path, texts: Texts, names: list[str]) -> Reference:
    """Return the sums for the modules NAMES, from the gradients of additions to their outputs (no hooks on gradients)."""
    import torch
    from torch.nn import functional

    model = load(folder)
    rows: dict[str, Any] = dict.fromkeys(names, 0)
    products: dict[str, Any] = dict.fromkeys(names, 0)
    plain: dict[str, Any] = dict.fromkeys(names, 0)
    modules = {name: model.get_submodule(name) for name in names}
    count = 0
    for at, ids in enumerate(texts.windows):
        added = {
            name: torch.zeros(len(ids), module.weight.shape[0], requires_grad=True) for name, module in modules.items()
        }
        inputs: dict[str, torch.Tensor] = {}

        def replaced(name: str, module: Any, added: Mapping[str, Any], inputs: dict[str, Any]) -> Callable[..., Any]:
            def forward(values: torch.Tensor) -> torch.Tensor:
                inputs[name] = values.detach()[0].double()
                return functional.linear(values, module.weight, module.bias) + added[name]

            return forward

        for name, module in modules.items():
            module.forward = replaced(name, module, added, inputs)
        said = torch.log_softmax(model(torch.tensor([list(ids)]), use_cache=False).logits[0].float(), -1)
        draws(said, texts.seed, at).backward()
        for name in names:
            assert added[name].grad is not None
            square = added[name].grad.double().square()
            rows[name] = rows[name] + square.sum(0)
            plain[name] = plain[name] + inputs[name].square().sum(0)
            for x, weight in zip(inputs[name], square.sum(1), strict=True):
                products[name] = products[name] + weight * torch.outer(x, x)
        count += len(ids)
    return Reference(
        rows={name: (value / count).numpy() for name, value in rows.items()},
        columns={name: value.numpy() for name, value in products.items()},
        plain={name: (value / count).numpy() for name, value in plain.items()},
        predictions=count,
    )


def near(found: npt.NDArray[Any], wanted: npt.NDArray[Any], tolerance: float = 1e-4) -> None:
    """Hold FOUND against WANTED, as parts of the largest value."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * float(np.abs(wanted).max()))


def bytes_of(curvature: Curvature) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(curvature.folder.iterdir())}


def tensor_of(folder: Path, name: str) -> TensorPlan:
    return next(tensor for tensor in plan_of(folder).tensors if tensor.name == name)


def test_rows_and_columns_of_a_matrix_are_what_plain_torch_says(place: Callable[[str], Path]) -> None:
    folder, texts = place("llama"), some_texts(plan_of(place("llama")), generated=0)
    found, name = measured(folder, texts), "model.layers.0.mlp.down_proj"
    wanted = reference(folder, texts, [name])
    tensor = tensor_of(folder, "blk.0.ffn_down.weight")
    near(found.rows(tensor), wanted.rows[name])
    near(found.columns(tensor.name), wanted.columns[name] / (wanted.rows[name].sum() * wanted.predictions))
    near(found.plain(tensor.name)[0], wanted.plain[name])


def test_matrices_with_the_same_input_share_the_sum_of_their_products(place: Callable[[str], Path]) -> None:
    folder, texts = place("llama"), some_texts(plan_of(place("llama")), generated=0)
    found, names = measured(folder, texts), [f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up")]
    wanted = reference(folder, texts, names)
    assert found.places["blk.1.ffn_gate.weight"] == found.places["blk.1.ffn_up.weight"]
    total = sum(wanted.rows[name].sum() for name in names) * wanted.predictions
    near(found.columns("blk.1.ffn_up.weight"), sum(wanted.columns[name] for name in names) / total)
    near(found.rows(tensor_of(folder, "blk.1.ffn_gate.weight")), wanted.rows[names[0]])


def test_rows_stand_in_the_order_of_the_file(place: Callable[[str], Path]) -> None:
    folder, texts = place("llama"), some_texts(plan_of(place("llama")), generated=0)
    found, name = measured(folder, texts), "model.layers.0.self_attn.q_proj"
    tensor = tensor_of(folder, "blk.0.attn_q.weight")
    assert tensor.transform is interleave_halves
    plain = reference(folder, texts, [name]).rows[name]
    near(found.rows(tensor), interleave_halves(plain[:, None].astype(np.float32), 16)[:, 0])  # 64 rows of 4 heads
    assert np.abs(found.rows(tensor) - plain).max() > 1e-3 * plain.max()


def test_rows_of_a_part_of_a_matrix_are_those_of_that_part(place: Callable[[str], Path]) -> None:
    folder, texts = place("gpt2"), some_texts(plan_of(place("gpt2")), generated=0)
    found = measured(folder, texts)
    whole = plan_of(folder)
    tensors = [tensor for tensor in whole.tensors if tensor.name == "blk.0.attn_qkv.weight"]
    assert [found.rows(tensor).shape for tensor in tensors] == [(192,)]
    phi = place("phi3")
    part = next(tensor for tensor in plan_of(phi).tensors if tensor.name == "blk.0.ffn_up.weight")
    assert measured(phi, some_texts(plan_of(phi), count=1, generated=0)).rows(part).shape == (part.shape[0],)


def test_a_transform_that_changes_values_moves_no_rows() -> None:
    def plan(transform: Any) -> TensorPlan:
        return TensorPlan(name="a.weight", shape=(32, 4), transform=transform, block_rows=16)

    assert reorders(plan(interleave_halves))
    assert not reorders(plan(add_one))


def test_the_ends_of_an_untied_model_are_what_plain_torch_says(place: Callable[[str], Path]) -> None:
    import torch

    folder, texts = place("llama"), some_texts(plan_of(place("llama")), generated=0)
    found, model = measured(folder, texts), load(folder)
    inner, outer = torch.zeros(64, 64).double(), torch.zeros(64, 64).double()
    chosen = torch.zeros(model.config.vocab_size).double()
    seen, count = np.zeros(model.config.vocab_size), 0
    for at, ids in enumerate(texts.windows):
        embedded = model.model.embed_tokens(torch.tensor([list(ids)])).detach().requires_grad_(True)
        hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        said = torch.log_softmax(model.lm_head(hidden)[0], -1)
        draws(said, texts.seed, at).backward()
        gradient, states = embedded.grad[0].double(), hidden[0].detach().double()
        inner += gradient.T @ gradient
        spread = said.detach().exp().double() * (1 - said.detach().exp().double())  # E[g²] over draws, g = one-hot - p
        chosen = chosen + spread.sum(0)
        outer += (states * spread.sum(1)[:, None]).T @ states
        np.add.at(seen, list(ids), 1)
        count += len(ids)
    size = len(seen)
    near(found.columns("token_embd.weight"), (inner / count).numpy())
    near(found.rows(tensor_of(folder, "token_embd.weight")), (seen + SPARE / size) / (seen.sum() + SPARE))
    near(found.columns("output.weight"), (outer / chosen.sum()).numpy())
    near(found.rows(tensor_of(folder, "output.weight")), (chosen / count).numpy())


def test_what_an_embedding_that_is_both_ends_costs_is_what_both_cost(place: Callable[[str], Path]) -> None:
    tied, texts = place("llama+tied"), some_texts(plan_of(place("llama+tied")), generated=0)
    with pytest.MonkeyPatch.context() as patch:  # the same model, its ends told apart
        from converters import curvature_child

        found = measured(tied, texts)
        caught: list[Any] = []
        result = curvature_child.Ends.result

        def keep(self: Any, count: int) -> Any:
            caught.append((self.inner / count, self.outer / count, self.chosen / count, self.seen))
            return result(self, count)

        patch.setattr(curvature_child.Ends, "result", keep)
        measured(tied, texts)
    (inner, outer, chosen, seen), tensor = caught[0], tensor_of(tied, "token_embd.weight")
    errors = np.random.default_rng(0).standard_normal(tensor.shape)
    both = (found.rows(tensor) * ((errors @ found.columns(tensor.name)) * errors).sum(1)).sum()
    as_input = (seen / seen.sum()).numpy() @ ((errors @ inner.numpy()) * errors).sum(1)
    as_output = (chosen / chosen.sum()).numpy() @ ((errors @ outer.numpy()) * errors).sum(1)
    assert both == pytest.approx(as_input + as_output, rel=0.25)
    assert found.rows(tensor).sum() == pytest.approx(1, abs=1e-4)


def test_the_model_writes_texts_of_its_own_that_count_like_the_others(llama: tuple[Path, Curvature]) -> None:
    folder, found = llama
    texts = some_texts(plan_of(folder))
    assert (found.texts, found.tokens) == (5, 5 * 24)
    alone = measured(folder, some_texts(plan_of(folder), generated=0))
    assert (alone.texts, alone.tokens) == (3, 3 * 24)
    assert not np.allclose(found.plain("blk.0.ffn_down.weight"), alone.plain("blk.0.ffn_down.weight"))
    assert texts.generated == 2


def test_several_passes_give_the_sums_of_one(llama: tuple[Path, Curvature]) -> None:
    folder, once = llama
    often = measured(folder, BUDGET=1)  # one sum at a time
    assert often.places.keys() == once.places.keys()
    for tensor in filter(is_matrix, plan_of(folder).tensors):
        np.testing.assert_array_equal(often.columns(tensor.name), once.columns(tensor.name))
        np.testing.assert_array_equal(often.plain(tensor.name), once.plain(tensor.name))
        np.testing.assert_array_equal(often.rows(tensor), once.rows(tensor))


def test_the_same_twice_gives_the_same_bytes(llama: tuple[Path, Curvature]) -> None:
    folder, once = llama
    assert bytes_of(measured(folder)) == bytes_of(once)


def test_another_seed_gives_other_draws(llama: tuple[Path, Curvature]) -> None:
    folder, once = llama
    texts = some_texts(plan_of(folder))
    other = measured(folder, Texts(windows=texts.windows, generated=2, length=24, starts=[[1]], seed=6))
    assert bytes_of(other).keys() == bytes_of(once).keys()
    assert bytes_of(other)["blk.0.ffn_up.weight.G.f32"] != bytes_of(once)["blk.0.ffn_up.weight.G.f32"]


@pytest.mark.parametrize("name", COVERED)
def test_torch_says_something_about_every_matrix(place: Callable[[str], Path], name: str) -> None:
    plan = plan_of(place(name))
    found = measured(place(name), some_texts(plan, count=2, generated=0 if plan.pooling else 1))
    for tensor in filter(is_matrix, plan.tensors):
        if (
            not tensor.sources
            or tensor.name.startswith(("position_embd", "token_types"))
            or "shortconv.conv" in tensor.name
        ):
            continue
        assert tensor.name in found, tensor.name
        assert found.rows(tensor).shape == tensor.shape[:1], tensor.name
        assert found.columns(tensor.name).shape == tensor.shape[-1:] * 2, tensor.name
        for values in (found.rows(tensor), found.columns(tensor.name), found.importance(tensor.name)):
            assert np.isfinite(values).all()
            assert values.max() > 0


def test_an_embedding_model_has_the_gradient_of_its_pooled_vector(place: Callable[[str], Path]) -> None:
    import torch
    from transformers import AutoModel

    folder = place("bert")
    plan = plan_of(folder)
    texts = some_texts(plan, count=2, generated=0)
    found, model = measured(folder, texts), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    weight = model.encoder.layer[1].intermediate.dense.weight
    rows, products = torch.zeros(weight.shape[0]), torch.zeros(64, 64)
    for at, ids in enumerate(texts.windows):
        vector = model(torch.tensor([list(ids)])).last_hidden_state[0].mean(0)
        generator = torch.Generator().manual_seed(texts.seed * 1000003 + at + 1)
        (vector / vector.norm() * torch.randn(len(vector), generator=generator)).sum().backward()
        gradient, weight.grad = weight.grad, None
        rows, products = rows + gradient.square().sum(1), products + gradient.T @ gradient
    assert found.whole
    near(found.rows(tensor_of(folder, "blk.1.ffn_up.weight")), (rows / 2).numpy())
    near(found.columns("blk.1.ffn_up.weight"), (products / rows.sum()).numpy())


def test_where_torch_cannot_run_the_model_the_error_says_why(place: Callable[[str], Path], tmp_path: Path) -> None:
    plan = plan_of(place("llama"))
    (tmp_path / "sums").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConvertError, match="torch does not run"):
        measure_curvature(tmp_path, plan, some_texts(plan), tmp_path / "sums")


def test_the_ends_are_no_inner_matrices(place: Callable[[str], Path]) -> None:
    inner, ends = sources(plan_of(place("llama")))
    assert ends == {"embedding": ["token_embd.weight"], "output": ["output.weight"]}
    assert sources(plan_of(place("llama+tied")))[1] == {"both": ["token_embd.weight"]}
    assert sources(plan_of(place("bert")))[1] == {"embedding": ["token_embd.weight"]}
    assert len(inner) == 14


def test_inputs_are_rounded_as_ggml_rounds_them() -> None:
    import torch

    from converters.dequantize import decode
    from converters.quantize import encode

    values = np.random.default_rng(3).standard_t(2, (8, 512)).astype(np.float32)
    values[0, :32] = 0
    found = rounding(torch.from_numpy(values), 32).numpy()
    wanted = decode(encode(values, "Q8_0", None), "Q8_0", 512).reshape(values.shape) - values
    np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(values).max())
    wide = rounding(torch.from_numpy(values), 256).numpy().reshape(-1, 256)
    steps = np.abs(values.reshape(-1, 256)).max(1, keepdims=True) / 127
    assert (np.abs(wide) <= steps * 0.5001).all()
    assert (np.abs(wide).max(1) > 0.4 * steps[:, 0]).all()


@pytest.mark.parametrize(
    ("name", "target", "module"),
    [
        ("llama", "blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj"),
        ("llama", "blk.1.attn_k.weight", "model.layers.1.self_attn.k_proj"),
        ("phi3", "blk.0.attn_qkv.weight", "model.layers.0.self_attn.qkv_proj"),
        ("gpt2", "blk.1.ffn_up.weight", "transformer.h.1.mlp.c_fc"),
    ],
)
def test_what_rounded_inputs_cost_is_what_they_do_to_the_likelihood(
    place: Callable[[str], Path], name: str, target: str, module: str
) -> None:
    import torch

    folder = place(name)
    plan = plan_of(folder)
    texts = some_texts(plan, generated=0)
    found, model = measured(folder, texts), load(folder)
    total, count, inner = 0.0, 0, model.get_submodule(module)
    for at, ids in enumerate(texts.windows):
        kept: dict[str, Any] = {}

        def catch(_module: Any, args: Any, out: Any, kept: dict[str, Any] = kept) -> None:
            out.retain_grad()
            kept.update(inputs=args[0].detach()[0], out=out)

        handle = inner.register_forward_hook(catch)
        said = torch.log_softmax(model(torch.tensor([list(ids)]), use_cache=False).logits[0].float(), -1)
        draws(said, texts.seed, at).backward()
        handle.remove()
        weights = inner.weight.detach() if type(inner).__name__ == "Linear" else inner.weight.detach().T
        change = rounding(kept["inputs"], 32).double() @ weights.double().T  # of the outputs
        total += float((change * kept["out"].grad[0].double()).sum(-1).square().sum())
        count += len(ids)
    assert found.rounded(target, 32) == pytest.approx(total / 2 / count, rel=1e-3)


def test_rounding_the_inputs_of_an_output_matrix_costs_something_and_looking_up_rows_nothing(
    place: Callable[[str], Path], llama: tuple[Path, Curvature]
) -> None:
    _, untied = llama
    assert untied.rounded("output.weight", 32) > 0
    assert untied.rounded("token_embd.weight", 32) == 0
    assert measured(place("llama+tied")).rounded("token_embd.weight", 32) > 0


def test_matrices_that_are_not_rounded_for_cost_nothing_more(llama: tuple[Path, Curvature]) -> None:
    _, found = llama
    assert found.rounded("blk.0.ffn_down.weight", 1) == 0
    assert found.rounded("no such tensor", 32) == 0
