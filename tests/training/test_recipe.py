from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai import catalogue
from edgeai.errors import RecipeError
from edgeai.training import recipe as recipes

TINY = Path(__file__).parents[2] / "models" / "recipes" / "tiny.toml"


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("model.hiden_size=64", "'model.hiden_size' is not a setting", "'model.hidden_size'"),
        ("sed=1", "'sed' is not a setting", "'seed'"),
        ("modle.layers=1", "'modle' is not a setting", "'model'"),
        ("model.hidden_size=100", "100", "multiple of 32"),
        ("model.hidden_size=64.0", "64.0", "whole number"),
        ("model.layers=true", "True", "whole number"),
        ("model.heads=3", "3", "divisor of model.hidden_size"),
        ("model.kv_heads=3", "3", "divisor of model.heads"),
        ("tokenizer.pre=llama", "'llama'", "gpt-2, smollm, llama-bpe, qwen2"),
        ("tokenizer.vocab_size=256", "256", "between 259"),
        ("training.lr=nan", "nan", "between"),
        ("training.lr=-1", "-1.0", "between"),
        ("training.steps=0", "0", "between 1"),
        ("training.warmup_steps=20", "20", "below training.steps"),
        ("training.micro_batch_size=3", "3", "divisor of batch_size"),
        ("training.min_lr=1", "1.0", "at most training.lr"),
        ("training.decay_steps=5", "5", "only wsd"),
        ("export.dtype=bf16", "'bf16'", "fp16, fp32"),
        ("export", "'export'", "--set training.lr"),
        ("export=1", "names a table", "--set export"),
        ("data.val_fraction=0.9", "0.9", "between 0.01 and 0.5"),
    ],
)
def test_wrong_setting_is_named_with_its_value_and_rule(
    mini_file: Path, override: str, message: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.load(mini_file, [override])
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_setting_is_checked_in_the_file_as_in_an_override(mini_file: Path) -> None:
    mini_file.write_text(mini_file.read_text().replace("layers = 1", "layers = 0"))
    with pytest.raises(RecipeError, match=r"model\.layers 0"):
        recipes.load(mini_file)


def test_missing_setting_is_named(mini_file: Path) -> None:
    mini_file.write_text(mini_file.read_text().replace("layers = 1\n", ""))
    with pytest.raises(RecipeError, match=r"no model\.layers"):
        recipes.load(mini_file)


@pytest.mark.parametrize("content", [b"[model", b"\xff\xfe", b"model = 3"])
def test_file_that_is_no_recipe_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError):
        recipes.load(path)


def test_override_changes_the_setting_and_the_hash(mini_file: Path) -> None:
    changed = recipes.load(mini_file, ["model.hidden_size=64", "tokenizer.pre=qwen2", "name=x"])
    assert (changed.model.hidden_size, changed.tokenizer.pre, changed.name) == (64, "qwen2", "x")
    assert changed.sha256 != recipes.load(mini_file).sha256


def test_equal_recipes_have_equal_hashes_however_they_are_written(mini_file: Path) -> None:
    before = recipes.load(mini_file).sha256
    mini_file.write_text("# a comment\n" + mini_file.read_text().replace("lr = 0.01", "lr = 1e-2\nbeta1 = 0.9"))
    assert recipes.load(mini_file).sha256 == before


@given(st.text(max_size=40))
def test_any_override_text_is_taken_or_refused(text: str) -> None:
    with contextlib.suppress(RecipeError):
        recipes.load(TINY, [text])


def test_tiny_recipe_fits_every_gguf_block_type() -> None:
    shape = recipes.load(TINY).model
    assert shape.hidden_size % 256 == 0
    assert shape.intermediate_size % 256 == 0
    assert shape.kv_heads < shape.heads
    assert shape.head_dim >= 32


def test_name_of_a_shipped_recipe_is_found() -> None:
    assert recipes.find("tiny") == TINY
    assert recipes.load(recipes.find("tiny")).name == "tiny"


def test_recipes_of_an_installed_edgeai_are_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "é 模型" / "edgeai"
    (package / "_models" / "recipes").mkdir(parents=True)
    (package / "_models" / "catalogue.toml").touch()
    (package / "_models" / "recipes" / "tiny.toml").write_bytes(TINY.read_bytes())
    monkeypatch.setattr(catalogue, "__file__", str(package / "catalogue.py"))
    assert recipes.find("tiny") == package / "_models" / "recipes" / "tiny.toml"


def test_file_here_wins_over_a_shipped_name_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert recipes.find("tiny") == TINY
    assert recipes.find("./tiny") == Path("tiny")
    (tmp_path / "tiny").rmdir()
    (tmp_path / "tiny").touch()
    assert recipes.find("tiny") == Path("tiny")


@pytest.mark.parametrize(
    ("ref", "hint"),
    [("tinny", "did you mean 'tiny'?"), ("zzz", "one of edgeai's: "), ("x" * 5000, "tiny"), ("", "tiny")],
)
def test_name_of_no_recipe_says_what_there_is(ref: str, hint: str) -> None:
    with pytest.raises(RecipeError, match="there is no recipe") as caught:
        recipes.find(ref)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("name", ["../escaped", "a/b", "", ".", "..", " x", "x\n", "/tmp/x", "a\\b"])
def test_name_that_would_leave_the_output_folder_is_refused(tmp_path: Path, name: str) -> None:
    text = TINY.read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('name = "tiny"', f"name = {json.dumps(name)}"), encoding="utf-8")
    with pytest.raises(RecipeError, match="name"):
        recipes.load(path)
