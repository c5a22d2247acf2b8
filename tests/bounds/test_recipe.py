"""The recipe of a file's types: what is written is read back, and nothing else is taken for a recipe."""

from __future__ import annotations

import json
import math
import random
import re
import tomllib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.families import ModelPlan, TensorPlan
from converters.quantmap import TENSOR_TYPES
from edgeai.bounds.goal import Goal
from edgeai.bounds.recipe import MAX_BYTES, Calibration, QuantRecipe, check_recipe, parse, read_recipe, write_recipe
from edgeai.errors import RecipeError

SHA, OTHER_SHA = "0123456789abcdef" * 4, "f" * 64
RECIPE = QuantRecipe(
    model="SmolLM2-135M",
    source=SHA,
    goal=Goal(max_kl=0.02, prefer="speed", only=("Q4_K", "Q6_K", "F16")),
    calibration=Calibration(
        text_sha256=SHA, tokens=8192, generated=4096, seed=1, threads=2, feedback=True, damping=0.01
    ),
    types={"token_embd.weight": "Q6_K", "blk.0.ffn_up.weight": "Q4_K", "blk.10.ffn_up.weight": "Q4_K", "blk.2.ffn_up.weight": "Q4_K"},
    tensors_sha256=OTHER_SHA,
    tools={"torch": "2.13.0+cpu", "edgeai": "0.1.0"},
    measured={"mean_kl": 0.0189, "top1": 0.954},
)  # fmt: skip

texts = st.text(min_size=1, max_size=40).filter(str.strip)
shas = st.integers(0, 2**256 - 1).map(lambda value: f"{value:064x}")
positive = st.floats(1e-300, 1e300)
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
kinds = st.sampled_from(TENSOR_TYPES)


@st.composite
def goals(draw: st.DrawFn) -> Goal:
    size = draw(
        st.sampled_from([{}, {"target_bytes": draw(st.integers(1, 2**53))}, {"target_bpw": draw(st.floats(1e-9, 32))}])
    )
    quality = draw(
        st.sampled_from(
            [{"max_kl": draw(positive)}, {"min_top1": draw(shares)}, {"min_cosine": draw(shares)}, {"max_kl": 1.0, "min_top1": 0.5}]
        )
    )  # fmt: skip
    only = draw(st.lists(kinds, unique=True, max_size=4))
    exclude = [kind for kind in draw(st.lists(kinds, unique=True, max_size=4)) if kind not in only]
    return Goal(
        **size, **quality, prefer=draw(st.sampled_from(["quality", "speed"])), rounds=draw(st.integers(1, 99)), only=tuple(only),
        exclude=tuple(exclude),
    )  # fmt: skip


calibrations = st.builds(
    Calibration, text_sha256=st.none() | shas, tokens=st.integers(1, 2**40), generated=st.integers(0, 2**40),
    seed=st.integers(0, 2**63 - 1), threads=st.integers(1, 4096), feedback=st.booleans(), damping=st.floats(0, 1e6),
)  # fmt: skip
recipes = st.builds(
    QuantRecipe, model=texts, source=shas, goal=goals(), calibration=calibrations, tensors_sha256=shas,
    types=st.dictionaries(texts, kinds, min_size=1, max_size=8), tools=st.dictionaries(texts, texts, max_size=4),
    measured=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=4),
)  # fmt: skip


@given(recipes)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, recipe: QuantRecipe) -> None:
    path = tmp_path_factory.getbasetemp() / "edgeai.quant.toml"
    path.write_bytes(write_recipe(recipe).encode())
    assert read_recipe(path) == recipe


@given(recipes, st.randoms(use_true_random=False))
def test_equal_recipes_are_equal_texts(recipe: QuantRecipe, chance: random.Random) -> None:
    def shuffled(table: Any) -> dict[str, Any]:
        items = list(table.items())
        chance.shuffle(items)
        return dict(items)

    other = replace(
        recipe, types=shuffled(recipe.types), tools=shuffled(recipe.tools), measured=shuffled(recipe.measured)
    )
    assert write_recipe(other) == write_recipe(recipe)


def test_tensors_of_a_type_stand_together_in_the_order_of_the_layers() -> None:
    written = write_recipe(RECIPE)
    assert list(tomllib.loads(written)["types"].items()) == [
        ("token_embd.weight", "q6_k"),
        ("blk.0.ffn_up.weight", "q4_k"),
        ("blk.2.ffn_up.weight", "q4_k"),
        ("blk.10.ffn_up.weight", "q4_k"),
    ]
    assert "# q6_k: 1 tensor\n" in written
    assert "# q4_k: 3 tensors\n" in written


def test_a_goal_is_only_what_was_given() -> None:
    assert tomllib.loads(write_recipe(RECIPE))["goal"] == {
        "max_kl": 0.02,
        "prefer": "speed",
        "only": ["q4_k", "q6_k", "f16"],
    }


def test_the_bundled_text_has_no_sha256() -> None:
    recipe = replace(RECIPE, calibration=replace(RECIPE.calibration, text_sha256=None))
    written = write_recipe(recipe)
    assert "text_sha256" not in tomllib.loads(written)["calibration"]
    assert parse(written, "it") == recipe


def test_half_of_a_surrogate_pair_in_a_name_is_written_as_its_escape() -> None:
    assert parse(write_recipe(replace(RECIPE, model="a\ud800")), "it").model == "a\\ud800"


@pytest.mark.parametrize(
    "change",
    [
        {"measured": {"mean_kl": math.nan}},
        {"measured": {"mean_kl": math.inf}},
        {"source": "abc"},
        {"types": {"a.weight": "Q9_K"}},
        {"types": {}},
        {"goal": Goal()},
        {"model": ""},
    ],
)
def test_a_recipe_that_could_not_be_read_is_not_written(change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        write_recipe(replace(RECIPE, **change))


Change = Callable[[dict[str, Any]], None]


def put(*path: str, value: Any) -> Change:
    """A change that puts VALUE at PATH."""

    def change(values: dict[str, Any]) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


def drop(*path: str) -> Change:
    """A change that takes away what is at PATH."""

    def change(values: dict[str, Any]) -> None:
        for key in path[:-1]:
            values = values[key]
        del values[path[-1]]

    return change


TABLES = ("goal", "calibration", "measured", "tools", "types")
TOP = ("model", "source", "tensors_sha256", *TABLES)
SUMS = ("", "ab", SHA.upper(), SHA + "0", "g" * 64)
COUNTS = ("tokens", "generated", "seed", "threads")

WRONG: list[tuple[Change, str]] = [
    (put("format", value=2), "format 2"),
    (put("format", value=True), "format True"),
    (put("format", value="1"), "format '1'"),
    (put("extra", value=1), "'extra'"),
    (put("modle", value="x"), "'modle'"),
    *((drop(key), f"no {key}") for key in ("format", *TOP)),
    *((put(key, value=1), f"{key} 1") for key in TOP),
    *((put(key, value=value), f"{key} {value!r}") for key in ("source", "tensors_sha256") for value in SUMS),
    *((put(table, "surplus", value=1), f"'{table}.surplus'") for table in ("goal", "calibration")),
    *((drop("calibration", key), f"no calibration.{key}") for key in (*COUNTS, "feedback", "damping")),
    (put("calibration", "text_sha256", value="x"), "calibration.text_sha256 'x'"),
    (put("calibration", "compared_sha256", value="x"), "calibration.compared_sha256 'x'"),
    *((put("calibration", key, value=-1), f"calibration.{key} -1") for key in (*COUNTS, "damping")),
    *((put("calibration", key, value="1"), f"calibration.{key} '1'") for key in (*COUNTS, "damping", "feedback")),
    (put("calibration", "tokens", value=8192.0), "calibration.tokens 8192.0"),
    (put("calibration", "feedback", value=1), "calibration.feedback 1"),
    (put("calibration", "kept_back", value=1), "calibration.kept_back 1"),
    (put("calibration", "damping", value=math.nan), "calibration.damping nan"),
    (put("calibration", "damping", value=10**400), "calibration.damping inf"),
    (put("goal", value={}), "no bound"),
    (put("goal", "max_kl", value=-0.5), "max_kl -0.5"),
    (put("goal", "max_kl", value=10**400), "max_kl inf"),
    (put("goal", "max_kl", value="0.02"), "goal.max_kl '0.02'"),
    (put("goal", "rounds", value=0), "rounds 0"),
    (put("goal", "rounds", value=True), "goal.rounds True"),
    (put("goal", "prefer", value="luck"), "prefer 'luck'"),
    (put("goal", "only", value="q4_k"), "goal.only 'q4_k'"),
    (put("goal", "only", value=[4]), "goal.only [4]"),
    (put("goal", "only", value=["q4_k_m"]), "'q4_k_m'"),
    (put("measured", "mean_kl", value="x"), "measured.mean_kl 'x'"),
    (put("measured", "mean_kl", value=True), "measured.mean_kl True"),
    (put("measured", "mean_kl", value=math.inf), "measured.mean_kl inf"),
    (put("measured", "mean_kl", value=-(10**400)), "measured.mean_kl -1000"),
    (put("measured", "", value=1.0), "a key of [measured] ''"),
    (put("tools", "torch", value=2), "tools.torch 2"),
    (put("tools", "torch", value="x" * 300), "tools.torch 'xxx"),
    (put("tools", value={str(number): "1" for number in range(1001)}), "tools has 1001 lines"),
    (put("types", value={}), "types {}"),
    (put("types", "blk.0.ffn_up.weight", value="q9_k"), "'q9_k'"),
    (put("types", "blk.0.ffn_up.weight", value="q4_k_m"), "'q4_k_m'"),
    (put("types", "blk.0.ffn_up.weight", value="q8_k"), "'q8_k'"),
    (put("types", "blk.0.ffn_up.weight", value=4), "types.blk.0.ffn_up.weight 4"),
    (put("types", "blk.0.ffn_up.weight", value={"weight": "q4_k"}), "types.blk.0.ffn_up.weight {"),
    (put("types", " ", value="q4_k"), "a key of [types] ' '"),
]  # fmt: skip


def as_toml(values: dict[str, Any]) -> str:
    """VALUES as TOML, written by other means than those under test."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {text(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        return str(value) if isinstance(value, float) else json.dumps(value)

    return "".join(f"{json.dumps(key)} = {text(value)}\n" for key, value in values.items())


def read(tmp_path: Path, data: str | bytes) -> QuantRecipe:
    path = tmp_path / "é.toml"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_recipe(path)


def test_a_recipe_in_another_writing_is_the_same(tmp_path: Path) -> None:
    assert read(tmp_path, as_toml(tomllib.loads(write_recipe(RECIPE)))) == RECIPE
    assert read(tmp_path, b"\xef\xbb\xbf" + write_recipe(RECIPE).replace("\n", "\r\n").encode()) == RECIPE
    assert read(tmp_path, write_recipe(RECIPE).replace('"q4_k"', '"Q4_K"')) == RECIPE


@pytest.mark.parametrize(("change", "named"), WRONG, ids=[named for _, named in WRONG])
def test_a_wrong_value_is_named_with_a_hint(tmp_path: Path, change: Change, named: str) -> None:
    values = tomllib.loads(write_recipe(RECIPE))
    change(values)
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, as_toml(values))
    assert named in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_every_value_of_a_recipe_has_a_wrong_one_above() -> None:
    named = " ".join(named for _, named in WRONG)
    assert all(f"calibration.{spec.name}" in named for spec in fields(Calibration))
    assert all(spec.name in named for spec in fields(QuantRecipe))


def test_a_slip_of_the_pen_is_understood(tmp_path: Path) -> None:
    values = tomllib.loads(write_recipe(RECIPE))
    values["goal"]["max_k1"] = values["goal"].pop("max_kl")
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, as_toml(values))
    assert caught.value.hint == "did you mean 'goal.max_kl'?"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"format = ", "is not TOML"),
        (b"\xff = 1", "is not UTF-8 text"),
        (b"a = " + b"[" * 100_000, "is not TOML"),
        (b"a = " + b"1" * 5000, "is not TOML"),
        (b"format = 1\nformat = 1", "is not TOML"),
        (b"#" * (MAX_BYTES + 1), "more than"),
        (b"", "has no format"),
    ],
    ids=["cut", "latin-1", "nested", "digits", "twice", "large", "empty"],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        read(tmp_path, data)


@pytest.mark.parametrize("name", ["none.toml", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / name)


@given(st.integers(0, 2**32), st.binary(min_size=1, max_size=3))
def test_a_damaged_recipe_is_refused_or_read_and_nothing_else(place: int, data: bytes) -> None:
    whole = write_recipe(RECIPE).encode()
    place %= len(whole)
    try:
        text = (whole[:place] + data + whole[place + 1 :]).decode()
    except UnicodeDecodeError:
        return
    try:
        found = parse(text, "it")
    except RecipeError:
        return
    assert parse(write_recipe(found), "it") == found


def plan_of(**shapes: tuple[int, ...]) -> ModelPlan:
    """A model with tensors of SHAPES."""
    tensors = tuple(TensorPlan(name=name.replace("__", "."), shape=shape, sources=()) for name, shape in shapes.items())
    return ModelPlan(
        architecture="llama", layers=1, heads=1, kv_heads=1, context=8, vocab_size=8, tied=True, keys={}, tensors=tensors
    )  # fmt: skip


PLAN = plan_of(
    token_embd__weight=(8, 256),
    blk__0__attn_norm__weight=(256,),
    blk__0__ffn_up__weight=(64, 256),
    blk__0__ffn_down__weight=(256, 96),
)
FITS = {"token_embd.weight": "Q6_K", "blk.0.ffn_up.weight": "Q4_K", "blk.0.ffn_down.weight": "Q5_0"}
OF_PLAN = replace(RECIPE, types=FITS)


def test_a_recipe_of_the_model_passes() -> None:
    check_recipe(OF_PLAN, PLAN, SHA)
    check_recipe(replace(OF_PLAN, types={**FITS, "blk.0.attn_norm.weight": "F32"}), PLAN, SHA)


def test_another_source_is_refused_with_both_sums() -> None:
    with pytest.raises(RecipeError) as caught:
        check_recipe(OF_PLAN, PLAN, OTHER_SHA)
    assert repr(SHA) in caught.value.message
    assert repr(OTHER_SHA) in caught.value.message
    assert repr(RECIPE.model) in caught.value.message


@pytest.mark.parametrize("tensor", FITS)
def test_a_matrix_without_a_type_is_named(tensor: str) -> None:
    types = {name: kind for name, kind in FITS.items() if name != tensor}
    with pytest.raises(RecipeError, match=re.escape(f"says nothing of '{tensor}'")):
        check_recipe(replace(OF_PLAN, types=types), PLAN, SHA)


def test_many_missing_tensors_are_counted() -> None:
    plan = plan_of(**{f"blk__{layer}__ffn_up__weight": (64, 256) for layer in range(9)})
    with pytest.raises(RecipeError, match=r"'blk.2.ffn_up.weight' and 5 more"):
        check_recipe(replace(RECIPE, types={"blk.8.ffn_up.weight": "Q4_K"}), plan, SHA)


def test_a_tensor_that_the_model_has_not_is_named() -> None:
    with pytest.raises(RecipeError, match=r"'blk\.1\.ffn_up\.weight', which this model has not"):
        check_recipe(replace(OF_PLAN, types={**FITS, "blk.1.ffn_up.weight": "Q4_K"}), PLAN, SHA)


def test_a_vector_has_no_other_type_than_f32() -> None:
    with pytest.raises(RecipeError, match="always stays F32"):
        check_recipe(replace(OF_PLAN, types={**FITS, "blk.0.attn_norm.weight": "F16"}), PLAN, SHA)


@pytest.mark.parametrize("kind", [kind for kind in TENSOR_TYPES if kind not in ("F32", "F16", "BF16")])
def test_a_type_whose_blocks_do_not_fit_the_rows_is_named(kind: str) -> None:
    from converters.mixes import BLOCK

    recipe = replace(OF_PLAN, types={**FITS, "blk.0.ffn_down.weight": kind})
    if 96 % BLOCK[kind] == 0:
        check_recipe(recipe, PLAN, SHA)
        return
    with pytest.raises(RecipeError, match=f"does not fit 'blk.0.ffn_down.weight'.*{BLOCK[kind]}"):
        check_recipe(recipe, PLAN, SHA)
