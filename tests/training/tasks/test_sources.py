from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeai import training
from edgeai.errors import RecipeError
from edgeai.training.tasks import prepare, sources, texts
from edgeai.training.tasks.recipe import TaskRecipe

Load = Callable[..., TaskRecipe]
GOOD = "id,size,colour,kind\n" + "".join(f"{n},{n}.5,{'rg'[n % 2]},{'ab'[n % 2]}\n" for n in range(20))


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("", "is empty", "names the columns"),
        ("id,size,colour,kind\n", "has a header and no rows", "each line"),
        (GOOD.replace(",kind", ",sort", 1), "data.target 'kind' is not a column", "known here: id, size"),
        (GOOD.replace(",kind", ",kinds", 1), "data.target 'kind' is not a column", "did you mean 'kinds'?"),
        (
            GOOD.replace("3.5", "nan"),
            "line 5 of 'rows.csv' has 'nan', which is no number, in column 'size'",
            "take the row out",
        ),
        (GOOD.replace("3.5", "inf"), "line 5 of 'rows.csv' has 'inf'", "take the row out"),
        (GOOD.replace("3.5", ""), "line 5 of 'rows.csv' has nothing in column 'size'", 'data.ignore = ["size"]'),
        (GOOD.replace("3.5", "?"), "line 5 of 'rows.csv' has '?', which is no number", "fill it in"),
        (GOOD.replace("3.5,g", "3.5,"), "has nothing in column 'colour'", "fill it in"),
        (GOOD.replace("3.5,g,b", "3.5,g,"), "line 5 of 'rows.csv' has nothing in column 'kind'", "needs an answer"),
        (GOOD.replace("3.5,g,b", "3.5,g"), "line 5 of 'rows.csv' has 3 cells, and the header 4", "in quotes"),
        (GOOD.replace("3.5,g", '3.5,"g'), "is not CSV", "quotes"),
        (GOOD.replace(",colour", ",size", 1), "two columns 'size'", "a name of its own"),
        (GOOD.replace(",colour", ",", 1), "a column without a name", "a name of its own"),
        (GOOD.replace(",a\n", ",b\n"), "has one class alone: 'b'", "at least two"),
        (GOOD + "20,1,r,c\n", "the class 'c' of 'rows.csv' has 1 different example", "at least 5"),
        ("id,kind\n" + "1,a\n2,b\n" * 9, "no column but the target", "at least one column"),
    ],
)
def test_bad_table_is_one_clear_error(
    load: Load, home: Path, content: str, message: str, hint: str, tmp_path: Path
) -> None:
    (home / "rows.csv").write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        training.train(load("mlp"), tmp_path / "out")
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.source=nowhere.csv", "'nowhere.csv' is not there"),
        ("data.source=mlp.toml", "is not a file that can be read here"),
        ("data.source=sklearn:breast_cancr", "none that this architecture can read"),
        ("data.source=sklearn:digits", "none that this architecture can read"),
        ("data.source=sklearn:iris", "data.target 'kind' is not possible"),
        ('data.ignore=["ID"]', "data.ignore 'ID' is not a column"),
        ('data.ignore=["id", "size", "colour"]', "no column but the target"),
        ("task.kind=regression", "has 'a', which is no number"),
    ],
)
def test_source_that_does_not_fit_the_recipe_is_an_error(load: Load, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        sources.read(load("mlp", override))
    assert message in caught.value.message
    assert caught.value.hint


def test_file_that_is_no_text_is_an_error(load: Load, home: Path) -> None:
    (home / "rows.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        sources.read(load("mlp"))


def test_columns_are_numbers_or_categories_and_the_schema_undoes_what_the_graph_takes(load: Load) -> None:
    recipe = load("mlp")
    examples = sources.read(recipe)
    ready = prepare.prepare(recipe, examples)
    number, category = ready.schema["inputs"][0]["columns"]
    assert (number["name"], number["kind"]) == ("size", "number")
    assert category == {"name": "colour", "kind": "category", "values": ["green", "red"]}
    assert ready.schema["labels"] == ["a", "b", "c"]
    rows = ready.train.inputs[0]
    assert rows.shape[1] == 3
    assert rows[:, 0].mean() == pytest.approx(0, abs=1e-6)
    assert rows[:, 0].std() == pytest.approx(1, abs=1e-6)
    assert examples.columns[0].numbers is not None
    back = rows[:, 0].astype(np.float64) * number["std"] + number["mean"]
    assert set(np.round(back, 3)) <= set(np.round(examples.columns[0].numbers, 3))
    assert set(map(tuple, rows[:, 1:].tolist())) == {(0.0, 1.0), (1.0, 0.0)}


@pytest.mark.parametrize(("delimiter", "name"), [(";", "rows.csv"), ("\t", "rows.tsv"), (",", "rows.csv")])
def test_usual_delimiters_a_byte_order_mark_and_quotes_are_read(
    load: Load, home: Path, delimiter: str, name: str
) -> None:
    text = '\ufeff"id","size","colour","kind"\r\n' + "".join(f'{n},{n},"r, ""{n % 2}""",{n % 2}\r\n' for n in range(20))
    (home / name).write_text(
        text if delimiter == "," else text.replace('"r, ', '"r ').replace(",", delimiter), "utf-8", newline=""
    )
    examples = sources.read(load("mlp", f"data.source={name}"))
    assert (len(examples), examples.labels) == (20, ("0", "1"))
    assert len(set(examples.columns[1].texts)) == 2


def test_labels_that_are_numbers_are_in_their_order(load: Load, home: Path) -> None:
    rows = "".join(f"{n},{n},r,{n % 11}\n" for n in range(60))
    (home / "rows.csv").write_text("id,size,colour,kind\n" + rows, encoding="utf-8")
    assert sources.read(load("mlp")).labels == tuple(map(str, range(11)))


def test_column_of_numbers_may_be_a_category(load: Load) -> None:
    recipe = load("mlp", "data.ignore=[]", 'data.categories=["id"]')
    assert [column.numbers is None for column in sources.read(recipe).columns] == [True, False, True]


def test_category_that_training_has_not_seen_is_a_row_of_zeros(load: Load, home: Path) -> None:
    recipe = load("mlp")
    examples = sources.read(recipe)
    test = prepare.split(examples, test_fraction=0.2, val_fraction=0.1, seed=recipe.seed).test
    lines = (home / "rows.csv").read_text(encoding="utf-8").splitlines()
    lines[1 + test[0]] = lines[1 + test[0]].replace("red", "blue").replace("green", "blue")
    (home / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    ready = prepare.prepare(recipe, sources.read(recipe))
    assert ready.schema["inputs"][0]["columns"][1]["values"] == ["green", "red"]
    assert (0.0, 0.0) in set(map(tuple, ready.test.inputs[0][:, 1:].tolist()))


def test_series_of_a_table_has_its_channels_one_after_another(load: Load, home: Path) -> None:
    rows = "".join(f"{n},{n + 1},{n * 10},{n * 10 + 5},{n % 2}\n" for n in range(20))
    (home / "series.csv").write_text("a0,a1,b0,b1,kind\n" + rows, encoding="utf-8")
    recipe = load("tcn", "data.source=series.csv", "data.target=kind", "data.channels=2")
    ready = prepare.prepare(recipe, sources.read(recipe))
    schema = ready.schema["inputs"][0]
    assert (schema["channels"], schema["length"]) == (2, 2)
    assert ready.train.inputs[0].shape[1:] == (2, 2)
    back = ready.train.inputs[0] * np.array([[schema["columns"][0]["std"]], [schema["columns"][2]["std"]]])
    assert np.allclose(back[:, 1, 1] - back[:, 1, 0], 5, atol=1e-4)
    with pytest.raises(RecipeError, match=r"data\.channels 3"):
        sources.read(load("tcn", "data.source=series.csv", "data.target=kind", "data.channels=3"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 61 of 'texts.jsonl' is not JSON"),
        ("[1]", "line 61 of 'texts.jsonl' is not an object"),
        ('{"text": "x"}', "line 61 of 'texts.jsonl' has no 'label'"),
        ('{"text": null, "label": "1"}', "line 61 of 'texts.jsonl' has no 'text'"),
        ('{"text": "  ", "label": "1"}', "line 61 of 'texts.jsonl' has no text"),
    ],
)
def test_bad_line_of_texts_is_named(load: Load, home: Path, line: str, message: str) -> None:
    with (home / "texts.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + line + "\n")
    with pytest.raises(RecipeError) as caught:
        sources.read(load("text-encoder"))
    assert message in caught.value.message


def test_special_token_in_a_text_is_text_and_long_texts_are_cut(load: Load) -> None:
    recipe = load("text-encoder")
    ready = prepare.prepare(recipe, sources.read(recipe))
    assert ready.tokenizer is not None
    ids, mask = texts.encode(ready.tokenizer, ["7 < 8 <|eos|>", "x" * 500], 24)
    assert ids[0, 0] == ready.tokenizer.token_to_id("<|bos|>")
    assert ready.tokenizer.token_to_id("<|eos|>") not in ids[0, : mask[0].sum()]
    assert mask[1].sum() == ids.shape[1] == 24
    assert ready.tokenizer.decode(ids[0][mask[0] == 1].tolist()).endswith("7 < 8 <|eos|>")


def test_pictures_of_folders_are_what_pillow_makes_of_them(load: Load, pictures: Path) -> None:
    recipe = load("cnn", f"data.source={pictures}", "data.channels=3", "data.resize=bicubic")
    examples = sources.read(recipe)
    assert examples.labels == ("bright", "dark")
    assert examples.images is not None
    first = sorted((pictures / "bright").iterdir())[0]
    with Image.open(first) as image:
        reference = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(examples.images[0], reference.transpose(2, 0, 1))
    ready = prepare.prepare(recipe, examples)
    schema = ready.schema["inputs"][0]
    mean, std = (np.array(schema[key])[:, None, None] for key in ("mean", "std"))
    back = (ready.train.inputs[0] * std + mean) / schema["scale"]
    assert np.allclose(back, np.round(back), atol=1e-3)


def test_picture_that_is_seen_through_lies_on_white(load: Load, pictures: Path) -> None:
    recipe = load("cnn", f"data.source={pictures}", "data.channels=1")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(pictures / "dark" / "0.png")
    examples = sources.read(recipe)
    assert examples.images is not None
    assert any((image == 255).all() for image in examples.images)


def test_inverted_picture_is_one_less_what_it_was(load: Load, pictures: Path) -> None:
    grey = [f"data.source={pictures}", "data.channels=1"]
    plain, inverted = (
        prepare.prepare(recipe, sources.read(recipe))
        for recipe in (load("cnn", *grey), load("cnn", *grey, "data.invert=true"))
    )
    assert np.allclose(plain.train.inputs[0], -inverted.train.inputs[0], atol=1e-5)


def test_bad_pictures_are_one_clear_error_each(load: Load, pictures: Path) -> None:
    recipe = load("cnn", f"data.source={pictures}", "data.channels=3")
    (pictures / "dark" / "notes.txt").write_text("mine", encoding="utf-8")
    assert [notice.code for notice in sources.read(recipe).notices] == ["files_left_out"]
    broken = pictures / "dark" / "broken.png"
    whole = (pictures / "dark" / "1 é.png").read_bytes()
    for content in (b"", b"not a picture", whole[: len(whole) // 2]):
        broken.write_bytes(content)
        with pytest.raises(RecipeError, match=r"broken\.png' is a picture that cannot be read"):
            sources.read(recipe)
    Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(broken)
    with pytest.raises(RecipeError, match="more than 8 bits"):
        sources.read(recipe)
    broken.unlink()
    (pictures / "empty").mkdir()
    with pytest.raises(RecipeError, match="'empty'"):
        sources.read(recipe)
    with pytest.raises(RecipeError, match="is not a folder"):
        sources.read(load("cnn", "data.source=rows.csv"))
    with pytest.raises(RecipeError, match="has no folders"):
        sources.read(load("cnn", f"data.source={pictures / 'dark'}"))


@pytest.mark.parametrize("name", ["cnn", "tcn", "text-encoder"])
def test_regression_of_classes_is_an_error(load: Load, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        sources.read(load(name, "task.kind=regression", *(["data.target=text"] if name == "text-encoder" else [])))
    assert caught.value.exit_code == 2
