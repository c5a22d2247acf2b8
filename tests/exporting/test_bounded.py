"""Types chosen for a goal: what was promised is measured in the runtime, no smaller choice was near, and what cannot be is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converters.checkpoint import open_checkpoint
from converters.curvature import Curvature, Texts, measure_curvature
from converters.errors import BrokenCheckpoint
from converters.families import plan_model
from converters.onnx.choices import parse_choices
from converters.onnx.header import read_header
from converters.onnx.matrices import matrices
from edgeai.bounds.aim import Aim
from edgeai.bounds.goal import Goal
from edgeai.conversion import Conversion
from edgeai.errors import ProofFailed, UsageError
from edgeai.evaluation import passport
from edgeai.exporting import bounded, convert_onnx, language
from tests.checkpoints import InProcessTorch
from tests.families import VARIANTS, make_variant
from tests.genai import InProcessBuilder

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "tiny"
FEW = {"tokens": 1024, "rounds": 4}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Run torch and the builder in this process; the curvature of a model is measured once, on few tokens."""
    known: dict[Path, Curvature] = {}

    def curvature_of(source: Path, _sha256: str, plan: Any, texts: Texts, _progress: Any) -> Curvature:
        if source not in known:
            folder = tmp_path_factory.mktemp("curvature")
            known[source] = measure_curvature(source, plan, replace(texts, threads=1), folder)
        return known[source]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("converters.onnx.language.Child", InProcessBuilder)
        patch.setattr(passport, "Child", InProcessTorch)
        patch.setattr(bounded, "curvature_of", curvature_of)
        patch.setattr(bounded, "held_out_tokens", lambda _parameters, _vocabulary: FEW["tokens"])
        yield patch


def search(
    source: Path, output: Path, *, types: tuple[str, ...] = (), presets: bool = False, **goal: Any
) -> Conversion:
    """Convert SOURCE to OUTPUT for a GOAL."""
    aim = Aim(goal=Goal(rounds=FEW["rounds"], **goal), tokens=FEW["tokens"], presets=presets)
    return convert_onnx(source, output, types=types, aim=aim)


def bits_of(folder: Path) -> dict[str, int]:
    """Return matrix → bits of the graph in FOLDER."""
    return {name: matrix.bits for name, matrix in matrices(read_header(folder / "model.onnx")).items()}


def measured(done: Conversion) -> float:
    """Return the upper end of the mean KL in the proof of DONE."""
    row = next(row for row in done.report.rows if row.name == "mean KL on text, nats")
    assert row.interval is not None
    return row.interval[1]


@pytest.fixture(scope="module")
def within(here: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """models/tiny with a bound between what all int4 and all int8 have, and the builder's own files beside it."""
    assert here
    return search(TINY, tmp_path_factory.mktemp("within") / "out", max_kl=0.004, presets=True)


# ---- a bound


def test_the_worse_end_of_the_interval_meets_the_bound(within: Conversion) -> None:
    assert measured(within) < 0.004
    assert within.report.ok
    assert within.outcome is not None
    assert within.outcome.chosen.quality is not None
    assert within.outcome.chosen.quality.high <= 0.004


def test_the_choice_is_between_the_whole_files_in_size(within: Conversion) -> None:
    assert within.outcome is not None
    small, large = sorted(point.nbytes for point in within.outcome.presets)
    assert small < within.bytes < 0.9 * large


def test_the_graph_has_the_types_that_were_chosen(within: Conversion) -> None:
    assert within.outcome is not None
    kinds = {"INT4": 4, "INT8": 8, "F32": 32}
    assert bits_of(within.path) == {name: kinds[kind] for name, kind in within.outcome.kinds.items()}
    assert len(set(within.outcome.kinds.values())) == 2


def test_the_folder_says_what_was_wanted_and_what_it_was_chosen_on(within: Conversion) -> None:
    facts = json.loads((within.path / "edgeai.json").read_text())
    assert facts["search"]["goal"] == {"max_kl": 0.004}
    assert facts["search"]["calibration"]["text_sha256"] == "bundled"
    assert facts["search"]["calibration"]["feedback"] is True
    assert json.loads((within.path / "passport.json").read_text())["search"] == facts["search"]
    choices = parse_choices("int4", facts["choices"], layers=2, tied=True)
    expected = {name: bits for name, bits in bits_of(within.path).items() if bits != 4}
    assert {name: choices.bits[name] for name in expected} == expected


def test_expectations_are_of_the_size_of_what_is_measured(within: Conversion) -> None:
    assert within.outcome is not None
    point = within.outcome.chosen
    assert point.quality is not None
    assert point.predicted is not None
    assert 0.4 < point.predicted / point.quality.value < 2.5


@pytest.mark.slow
def test_four_bits_that_make_up_for_each_other_are_better_than_the_builders(within: Conversion, tmp_path: Path) -> None:
    assert within.outcome is not None
    builder = next(point for point in within.outcome.presets if point.name == "int4")
    assert builder.quality is not None
    done = search(TINY, tmp_path / "out", max_kl=1.0, only=("int4",))
    assert set(bits_of(done.path).values()) == {4}
    assert measured(done) < 0.7 * builder.quality.low


@pytest.mark.slow
def test_a_share_of_first_choices_is_a_bound_too(within: Conversion, tmp_path: Path) -> None:
    assert within.outcome is not None
    done = search(TINY, tmp_path / "out", min_top1=0.96)
    row = next(row for row in done.report.rows if row.name == "first choice as torch")
    assert row.limit == ">= 0.96"
    assert row.interval is not None
    assert row.interval[0] >= 0.96


@pytest.mark.usefixtures("here")
def test_a_bound_that_no_type_meets_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        ProofFailed, match=r"no choice of types meets mean KL <= 1e-05; even the largest types"
    ) as caught:
        search(TINY, tmp_path / "out", max_kl=1e-5, exclude=("f32",))
    assert caught.value.exit_code == 9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_float32_is_left_for_what_eight_bits_do_not_keep(tmp_path: Path) -> None:
    done = search(TINY, tmp_path / "out", max_kl=1e-4)
    assert 32 in bits_of(done.path).values()
    assert measured(done) < 1e-4


@pytest.mark.usefixtures("here")
def test_a_folder_of_float32_alone_is_proved_as_an_export(tmp_path: Path) -> None:
    done = search(TINY, tmp_path / "out", max_kl=1e-7)
    assert set(bits_of(done.path).values()) <= {32}
    assert done.report.ok
    assert any(row.name == "F32 logits against torch: NMSE" for row in done.report.rows)


# ---- a size


@pytest.mark.usefixtures("here")
def test_a_size_is_kept_and_used(tmp_path: Path) -> None:
    done = search(TINY, tmp_path / "out", target_bytes=1_300_000)
    held = sum(path.stat().st_size for path in done.path.iterdir())
    assert 0.9 * 1_300_000 < held <= 1_300_000
    assert done.outcome is not None
    assert done.outcome.chosen.quality is None


@pytest.mark.usefixtures("here")
def test_bits_per_weight_are_kept(tmp_path: Path) -> None:
    done = search(TINY, tmp_path / "out", target_bpw=6.5)
    assert 6.2 < done.bpw <= 6.5


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_sensitivities_that_are_shuffled_choose_worse(here: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The mutation that shows that the sensitivities matter: the least is spent on what matters most."""
    good = search(TINY, tmp_path / "good", target_bpw=6.5)
    right = bounded.items_of

    def reversed_items(*arguments: Any) -> Any:
        items = right(*arguments)
        gains = sorted(((item.options[0].cost - item.options[1].cost) / item.options[0].nbytes, item) for item in items)
        found = []
        for (gain, _), (_, item) in zip(gains, reversed(gains), strict=True):
            four, *others = item.options
            found.append(replace(item, options=(replace(four, cost=gain * four.nbytes + others[0].cost), *others)))
        return found

    with here.context() as patch:
        patch.setattr(bounded, "items_of", reversed_items)
        bad = search(TINY, tmp_path / "bad", target_bpw=6.5)
    assert measured(bad) > 1.3 * measured(good)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({"target_bytes": 500_000}, r"500000 bytes cannot be met: the smallest folder .* has about 1\d{6} bytes"),
        ({"target_bpw": 3.0}, r"3 bits per weight cannot be met: .* has about 5\.\d+ bits per weight"),
    ],
)
def test_a_size_below_the_smallest_is_refused_before_the_work(
    here: pytest.MonkeyPatch, tmp_path: Path, goal: dict[str, Any], message: str
) -> None:
    def begun(*_: Any) -> Any:
        raise AssertionError("the work has begun")

    with here.context() as patch:
        patch.setattr(bounded, "curvature_of", begun)
        with pytest.raises(UsageError, match=message):
            search(TINY, tmp_path / "out", **goal)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("here")
def test_a_size_above_the_largest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="more than the largest folder"):
        search(TINY, tmp_path / "out", target_bpw=20.0, exclude=("f32",))


# ---- what else a user says


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_types_that_are_given_are_kept_and_the_others_chosen(tmp_path: Path) -> None:
    types = ("layers.0.mlp.up_proj=f32", "layers.1.attn.*=int4", "accuracy=0")
    done = search(TINY, tmp_path / "out", types=types, max_kl=0.002)
    found = bits_of(done.path)
    assert found["layers.0.mlp.up_proj"] == 32
    assert {found["layers.1.attn.qkv_proj"], found["layers.1.attn.o_proj"]} == {4}
    assert 8 in found.values()


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_other_blocks_are_chosen_between_without_feedback(tmp_path: Path) -> None:
    done = search(TINY, tmp_path / "out", types=("method=k_quant",), max_kl=0.005)
    facts = json.loads((done.path / "edgeai.json").read_text())
    assert facts["search"]["calibration"]["feedback"] is False
    assert measured(done) < 0.005
    assert bits_of(done.path)["embed_tokens"] in (4, 8, 32)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_the_ends_of_a_model_with_two_matrices_are_chosen_each(tmp_path: Path) -> None:
    source = make_variant(tmp_path / "llama", VARIANTS["llama"])
    plan = plan_model(open_checkpoint(source))
    assert plan.architecture == "llama"
    done = search(source, tmp_path / "out", target_bpw=9.0)
    found = bits_of(done.path)
    assert {"lm_head", "embed_tokens"} <= found.keys()
    assert found["embed_tokens"] in (4, 8)


REFUSED = [
    ({"prefer": "speed", "max_kl": 0.1}, (), "prefer 'speed'"),
    ({"min_cosine": 0.9}, (), "min_cosine 0.9"),
    ({"max_kl": 0.1, "only": ("q4_k",)}, (), "only 'q4_k' is no type of a matrix in ONNX"),
    ({"max_kl": 0.1, "exclude": ("int4", "int8", "f32")}, (), "no type is left"),
    ({"max_kl": 0.1}, ("layers.1.attn.v_proj=int8",), "query, key and value of layer 1 get different types"),
]


@pytest.mark.parametrize(("goal", "types", "message"), REFUSED)
def test_what_no_search_can_do_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, goal: dict[str, Any], types: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(language, "build", None)
    with pytest.raises(UsageError, match=message):
        search(TINY, tmp_path / "out", types=types, **goal)


def test_a_text_to_choose_on_is_no_text_to_measure_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(language, "build", None)
    (tmp_path / "text").write_text("the same words " * 400)
    aim = Aim(goal=Goal(max_kl=0.1), calibration=tmp_path / "text")
    with pytest.raises(UsageError, match=r"is the calibration text .* itself"):
        convert_onnx(TINY, tmp_path / "out", aim=aim, text="the same words " * 400)


@pytest.mark.usefixtures("here")
def test_a_weight_that_is_no_number_is_refused_by_its_name(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = shutil.copytree(TINY, tmp_path / "tiny")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BrokenCheckpoint, match=r"up_proj.weight.* not finite numbers"):
        search(source, tmp_path / "out", max_kl=0.1)


def test_a_recipe_is_of_other_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recipe"):
        convert_onnx(TINY, tmp_path / "out", aim=Aim())


def test_a_type_of_file_and_a_goal_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quant 'int8' and a goal exclude each other"):
        convert_onnx(TINY, tmp_path / "out", "int8", aim=Aim(goal=Goal(max_kl=0.1)))
