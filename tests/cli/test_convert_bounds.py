"""`edgeai convert` with bounds in place of a type: what is accepted holds, and what is refused says the numbers."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from converters.header import read_header
from converters.mixes import BLOCK, SIZE
from edgeai.cli import cli
from edgeai.evaluation import passport
from edgeai.paper import paper_of
from tests.checkpoints import InProcessTorch, make
from tests.families import VARIANTS, make_variant

TINY = Path(__file__).parents[2] / "models" / "tiny"
FEW = ("--calibration-tokens", "2048")
QUICK = (*FEW, "--only", "q4_0,q5_0,q8_0")
BOUND = 0.02


def settle(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Keep what is found out of a model in HOME, and compare quickly: torch in this process, a part of the text."""
    patch.setenv("EDGEAI_HOME", str(home))
    patch.setattr(passport, "Child", InProcessTorch)
    for module in ("edgeai.bounds.aim", "edgeai.evaluation.prove"):
        patch.setattr(f"{module}.held_out_tokens", lambda *_sizes: 1536)


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["convert", *map(str, args)])


def done(*args: str | Path) -> dict[str, Any]:
    """Return what a conversion that works says in JSON."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*args: str | Path, code: int = 2) -> str:
    """Return what a conversion that is refused says."""
    result = run(*args)
    assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
    assert "\nhint: " in result.stderr
    return result.stderr


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kinds(path: Path) -> dict[str, str]:
    return {item.name: item.type for item in read_header(path).tensors}


@pytest.fixture(scope="module")
def kept_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home of bounds")


@pytest.fixture(autouse=True)
def one_home(kept_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what was found out of a model from test to test."""
    settle(monkeypatch, kept_home)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A copy of models/tiny, in a folder of its own."""
    return Path(shutil.copytree(TINY, tmp_path / "models é" / "tiny"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, kept_home: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Return models/tiny converted with options, once: the file and what the command said."""
    root = tmp_path_factory.mktemp("chosen é")
    found: dict[tuple[str, ...], tuple[Path, dict[str, Any]]] = {}

    def make_it(*options: str) -> tuple[Path, dict[str, Any]]:
        if options not in found:
            folder = root / str(len(found))
            folder.mkdir(exist_ok=True)
            shutil.copytree(TINY, folder / "tiny", dirs_exist_ok=True)
            with pytest.MonkeyPatch.context() as patch:
                settle(patch, kept_home)
                found[options] = folder / "tiny.gguf", done(folder / "tiny", *options)
        return found[options]

    return make_it


Made = Callable[..., tuple[Path, dict[str, Any]]]
BOUNDED = ("--max-kl", str(BOUND), "--rounds", "3", *FEW, "--only", "q3_k,q4_0,iq4_nl,q4_1,q5_0,q6_k")
SIZED = ("--target-size", "1MB", *QUICK)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of some thousand tokens."""
    from edgeai.bounds.calibration import bundled_text

    path = tmp_path_factory.mktemp("texts") / "own.txt"
    path.write_text(bundled_text()[20_000:50_000], encoding="utf-8")
    return path


# ---- what is accepted


def test_a_file_for_a_bound_meets_it_in_its_passport(made: Made) -> None:
    path, said = made(*BOUNDED)
    paper = json.loads(paper_of(path).read_text())
    (row,) = [row for row in paper["report"]["rows"] if row["name"] == "mean KL on text, nats"]
    assert row["ok"]
    assert row["interval"][1] < BOUND
    assert row["limit"] == f"< {BOUND}"
    assert said["search"]["chosen"]["quality"]["high"] <= BOUND
    assert said["search"]["bound"] == BOUND
    assert said["bytes"] == path.stat().st_size == said["search"]["chosen"]["nbytes"]


def test_the_choice_is_smaller_than_the_usual_file_of_the_same_quality(made: Made) -> None:
    path, _ = made(*BOUNDED)
    parameters = sum(item.elements for item in read_header(path).tensors)
    assert path.stat().st_size < 4.5 / 8 * parameters  # Q4_0 has a mean KL of more than the bound


def test_the_types_that_are_said_are_those_of_the_file(made: Made) -> None:
    path, said = made(*BOUNDED)
    assert kinds(path) == {**dict.fromkeys(kinds(path), "F32"), **said["search"]["kinds"]}


def test_a_file_of_a_size_has_at_most_that_size_and_nearly_all_of_it(made: Made) -> None:
    path, said = made(*SIZED)
    assert 0.98 * 1_000_000 <= path.stat().st_size <= 1_000_000
    assert said["search"]["target_bytes"] == 1_000_000
    assert set(kinds(path).values()) <= {"Q4_0", "Q5_0", "Q8_0", "F32"}


def test_a_file_of_a_size_is_shown_with_what_the_proof_measured(made: Made) -> None:
    _, said = made(*SIZED)
    rows = {row["name"]: row for row in said["report"]["rows"]}
    quality = said["search"]["chosen"]["quality"]
    assert quality["value"] == rows["mean KL on text, nats"]["value"]
    assert [quality["low"], quality["high"]] == rows["mean KL on text, nats"]["interval"]


def test_prove_finds_the_figures_that_the_bound_was_met_with(made: Made) -> None:
    path, said = made(*BOUNDED)
    again = CliRunner().invoke(cli, ["prove", str(path.parent / "tiny"), str(path), "--max-kl", str(BOUND), "--json"])
    assert again.exit_code == 0, again.stderr
    wanted, found = (
        {row["name"]: row["value"] for row in rows}["text compared"]
        for rows in (said["report"]["rows"], json.loads(again.stdout)["report"]["rows"])
    )
    assert found == wanted


def test_bits_per_weight_are_those_of_the_tensors(made: Made) -> None:
    path, said = made("--target-bpw", "5", *FEW, "--exclude", "q8_0,f16", "--type", "token_embd=q8_0")
    items = read_header(path).tensors
    bits = sum(item.elements * SIZE[item.type] * 8 / BLOCK[item.type] for item in items)
    assert 4.9 < bits / sum(item.elements for item in items) <= 5
    assert said["bpw"] == pytest.approx(bits / sum(item.elements for item in items), rel=1e-3)


def test_a_type_that_is_asked_for_is_not_overridden(made: Made) -> None:
    path, _ = made("--target-bpw", "5", *FEW, "--exclude", "q8_0,f16", "--type", "token_embd=q8_0")
    found = kinds(path)
    assert found.pop("token_embd.weight") == "Q8_0"
    assert not {"Q8_0", "F16"} & set(found.values())


def test_a_picture_shows_the_choice_beside_the_presets(tiny: Path, tmp_path: Path) -> None:
    said = done(tiny, *SIZED, "--plot", tmp_path / "kl.html")
    page = (tmp_path / "kl.html").read_text()
    for preset in ("q3_k_m", "q4_0", "q4_k_m", "q8_0"):
        assert preset in page
    presets = {item["name"]: item["quality"]["value"] for item in said["search"]["presets"]}
    assert presets["q3_k_m"] > presets["q4_k_m"] > presets["q8_0"]
    assert said["search"]["chosen"]["quality"]["value"] < presets["q3_k_m"]


def test_speed_as_a_second_objective_gives_a_file_within_the_size(tiny: Path) -> None:
    said = done(tiny, *SIZED, "--prefer", "speed")
    assert said["bytes"] <= 1_000_000


def test_a_gguf_file_gets_types_that_are_chosen_for_it(tiny_gguf: Path, tmp_path: Path) -> None:
    output = tmp_path / "smaller.gguf"
    said = done(tiny_gguf, *SIZED, "-o", output)
    assert said["bytes"] == output.stat().st_size <= 1_000_000


# ---- recipes


def test_a_recipe_makes_the_same_bytes_where_nothing_is_kept(
    made: Made, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = made(*BOUNDED)
    monkeypatch.setenv("EDGEAI_HOME", str(tmp_path / "bare"))
    again = done(tiny, "--recipe", said["recipe"])
    assert again["warnings"] == []
    assert sha256(Path(again["path"])) == sha256(path)
    assert Path(again["recipe"]).read_bytes() == Path(said["recipe"]).read_bytes()


@pytest.mark.parametrize(
    "options",
    [SIZED, ("--target-bpw", "5", *FEW, "--exclude", "q8_0,f16", "--type", "token_embd=q8_0")],
    ids=["size", "asked for"],
)
def test_a_recipe_of_a_file_without_a_bound_makes_the_same_bytes(
    made: Made, tiny: Path, options: tuple[str, ...]
) -> None:
    path, said = made(*options)
    assert sha256(Path(done(tiny, "--recipe", said["recipe"])["path"])) == sha256(path)


def test_a_matrix_that_stays_f32_is_in_the_recipe(tiny: Path, tmp_path: Path) -> None:
    first = done(tiny, "--target-bpw", "12", *QUICK, "--type", "token_embd=f32")
    again = done(tiny, "--recipe", first["recipe"], "-o", tmp_path / "again.gguf")
    assert kinds(Path(again["path"]))["token_embd.weight"] == "F32"
    assert again["sha256"] == first["sha256"]


def test_the_recipe_is_part_of_the_passport(made: Made) -> None:
    import tomllib

    path, said = made(*BOUNDED)
    assert json.loads(paper_of(path).read_text())["recipe"] == tomllib.loads(Path(said["recipe"]).read_text())


def test_a_recipe_of_another_model_is_refused(made: Made, tmp_path: Path) -> None:
    _, said = made(*SIZED)
    other = make(tmp_path / "other")
    message = refused(other, "--recipe", said["recipe"])
    assert "is of 'tiny'" in message
    assert not (tmp_path / "other.gguf").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: re.sub(r'"blk\.0\.ffn_up\.weight" = .*\n', "", text), "says nothing of 'blk.0.ffn_up.weight'"),
        (lambda text: text.replace('= "q4_0"', '= "q9_0"', 1), "'q9_0' is not known"),
        (lambda text: re.sub(r"tokens = \d+", "tokens = 4096", text, count=1), "generated"),
        (lambda text: text[: len(text) // 2], "quant recipe"),
        (lambda text: text.replace("[types]", '[types]\n"blk.9.ffn_up.weight" = "q8_0"'), "blk.9.ffn_up"),
    ],
    ids=["a tensor less", "no such type", "other tokens", "cut off", "a tensor more"],
)
def test_a_recipe_that_was_changed_is_refused(
    made: Made, tiny: Path, tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    _, report = made(*SIZED)
    recipe = tmp_path / "changed.toml"
    recipe.write_text(change(Path(report["recipe"]).read_text()))
    assert said in refused(tiny, "--recipe", recipe)
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny"]


def test_a_recipe_of_the_bundled_text_takes_no_other(made: Made, tiny: Path, text: Path) -> None:
    path, _ = made(*BOUNDED)
    recipe = path.parent / "edgeai.quant.toml"
    assert "the bundled calibration text" in refused(tiny, "--recipe", recipe, "--calibration", text)


def test_a_recipe_with_another_type_is_proved_but_said_to_differ(made: Made, tiny: Path, tmp_path: Path) -> None:
    _, report = made(*SIZED)
    recipe = tmp_path / "changed.toml"
    recipe.write_text(Path(report["recipe"]).read_text().replace('= "q4_0"', '= "q8_0"', 1))
    assert [item["code"] for item in done(tiny, "--recipe", recipe)["warnings"]] == ["recipe-differs"]


# ---- what is refused


def nothing_beside(tiny: Path) -> None:
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target-size", "100kB"), r"100000 bytes cannot be met: the smallest .* has \d{6}"),
        (("--target-size", "9MB"), r"9000000 bytes cannot be met: the largest .* has 2\d{6}"),
        (("--target-bpw", "1"), r"1 bits per weight cannot be met"),
        (("--target-bpw", "12", "--only", "q4_0,q8_0"), r"the largest file .* has 8\.\d+"),
        (("--min-cosine", "0.99"), r"min_cosine 0\.99 is of models that give vectors"),
        (("--max-kl", "0"), r"max_kl 0\.0 is not possible"),
        (("--max-kl", "0.1", "--only", "q9_0"), r"'q9_0' is not known"),
        (("--max-kl", "0.1", "--type", "nothing=q8_0"), r"nothing"),
        (("--max-kl", "0.1", "--only", ""), r"--only '' names no type"),
        (("--max-kl", "0.1", "--plot", "/proc/kl.png"), r"the picture '/proc/kl.png' cannot be written"),
        (("--prefer", "speed"), r"--prefer is of no use without a bound"),
        (("--target-size", "1MB", "--quant", "q4_0"), r"--quant and --target-size exclude each other"),
        (("--target-size", "1MB", "--target-bpw", "4"), r"exclude each other"),
        (("--target-size", "1MB", "--dry-run"), r"--dry-run and --target-size exclude each other"),
        (("--min-cosine", "0.9", "--to", "onnx"), r"--min-cosine"),
        (("--target-size", "1MB", "--to", "hf"), r"."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    tiny: Path, options: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: object, **_options: object) -> None:
        raise AssertionError("nothing is measured")

    monkeypatch.setattr("converters.curvature.Child", never)
    result = run(tiny, *options)
    assert result.exit_code in (2, 3), (result.exit_code, result.stderr, result.exception)
    assert re.search(said, result.stderr), result.stderr
    nothing_beside(tiny)


def test_a_bound_that_even_the_largest_types_violate_is_refused_with_what_they_have(tiny: Path) -> None:
    message = refused(tiny, "--max-kl", "1e-9", *FEW, code=9)
    assert "even the largest types" in message
    assert re.search(r"mean KL \d\.?\d*e-0[678]", message), message
    nothing_beside(tiny)


def test_a_bound_that_no_file_of_the_size_meets_is_refused(tiny: Path) -> None:
    message = refused(tiny, "--max-kl", "0.001", *SIZED, code=9)
    assert "mean KL <= 0.001 within" in message
    nothing_beside(tiny)


def test_a_calibration_text_that_is_too_short_is_refused_with_its_tokens(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("A short text of a few words. " * 20)
    message = refused(tiny, "--max-kl", "0.02", "--calibration", tmp_path / "short.txt")
    assert re.search(r"has \d+ tokens, .* and at least 512 are needed", message)
    nothing_beside(tiny)


def test_a_calibration_text_in_another_script_is_refused_with_the_numbers(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "han.txt").write_text("天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏" * 200, encoding="utf-8")
    message = refused(tiny, "--max-kl", "0.02", "--calibration", tmp_path / "han.txt")
    assert "does not know the script" in message
    assert re.search(r"\d\.\d\d bytes|\d+% of its tokens", message)
    nothing_beside(tiny)


def test_the_calibration_text_cannot_be_the_one_to_compare_on(tiny: Path, text: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(text, tmp_path / "copy.txt"))
    assert "itself" in refused(tiny, "--max-kl", "0.02", "--calibration", text, "--eval-text", copy)
    nothing_beside(tiny)


def test_a_text_of_the_users_is_split_and_named_in_the_recipe(tiny: Path, text: Path, tmp_path: Path) -> None:
    said = done(tiny, *SIZED, "--calibration", text)
    assert said["warnings"] == []
    assert "last quarter" in " ".join(said["search"]["notes"])
    recipe = Path(said["recipe"]).read_text()
    assert hashlib.sha256(text.read_bytes()).hexdigest() in recipe
    assert "kept_back = true" in recipe
    assert "--calibration" in refused(tiny, "--recipe", said["recipe"], "-o", tmp_path / "again.gguf")
    again = done(tiny, "--recipe", said["recipe"], "--calibration", text, "-o", tmp_path / "again.gguf")
    assert again["sha256"] == said["sha256"]


def test_a_tensor_with_a_value_that_is_no_number_is_refused_with_its_name(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = make(tmp_path / "models" / "broken", hidden_size=256, intermediate_size=256)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][17, 3] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    result = run(folder, "--target-bpw", "5", *FEW)
    assert result.exit_code not in (0, 1), result.stderr
    assert "'model.layers.1.mlp.up_proj.weight' has values that are not finite numbers" in result.stderr
    assert [path.name for path in folder.parent.iterdir()] == ["broken"]


# ---- embedding models


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_variant(tmp_path_factory.mktemp("vectors é") / "bert", VARIANTS["bert-256-cls"])


def test_a_cosine_is_kept_by_an_embedding_model(bert: Path, tmp_path: Path) -> None:
    said = done(bert, "--min-cosine", "0.995", *QUICK, "-o", tmp_path / "bert.gguf")
    (row,) = [
        row for row in said["report"]["rows"] if "cosine" in row["name"] and row["limit"] and "0.995" in row["limit"]
    ]
    assert row["ok"]
    assert row["interval"][0] >= 0.995
    assert said["bpw"] < 16


def test_a_language_model_s_bound_is_refused_for_an_embedding_model(bert: Path, tmp_path: Path) -> None:
    for options in (("--max-kl", "0.02"), ("--min-top1", "0.9")):
        message = refused(bert, *options, "-o", tmp_path / "bert.gguf")
        assert "is of language models, and this one gives vectors" in message
    assert not list(tmp_path.glob("bert*"))
