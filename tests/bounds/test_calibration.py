"""The texts that a choice is made on: text is text, what is measured afterwards is other text, and what says nothing is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.checkpoint import open_checkpoint
from converters.families import ModelPlan, plan_model
from converters.tokenizer import Vocabulary, read_vocabulary
from edgeai.bounds.calibration import KEPT_BACK, PART, WINDOW, bundled_text, in_parts, library, material
from edgeai.bounds.languages import LANGUAGES
from edgeai.errors import UsageError
from edgeai.evaluation.corpus import default_text
from tests.checkpoints import make
from tests.families import VARIANTS, make_variant

TINY = Path(__file__).parents[2] / "models" / "tiny"
Model = tuple[ModelPlan, Vocabulary]


def opened(folder: Path) -> Model:
    checkpoint = open_checkpoint(folder)
    plan = plan_model(checkpoint)
    return plan, read_vocabulary(checkpoint, plan.vocab_size)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return opened(TINY)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose tokenizer has tokens that control a chat."""
    return opened(make(tmp_path_factory.mktemp("model") / "chatty"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.txt"
    lines = [f"The {number}th line says that the river is wide and the boat is small.\n" for number in range(900)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_names_of_special_tokens_in_a_text_are_text(chatty: Model, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("<|im_start|>user\nIs the river wide today?<|im_end|>\n<|endoftext|>" * 200)
    found = material(*chatty, path, threads=1)
    ids = {id_ for window in found.texts.windows for id_ in window}
    assert not ids & {0, 1, 2}


def test_the_same_text_gives_the_same_windows(tiny: Model, own: Path) -> None:
    assert material(*tiny, own, threads=1) == material(*tiny, own, threads=1)


def test_windows_are_of_one_length_and_about_as_many_tokens_as_asked_for(tiny: Model) -> None:
    for tokens in (2048, 8192):
        windows = material(*tiny, None, tokens=tokens, threads=1).texts.windows
        assert {len(window) for window in windows} == {WINDOW}
        assert 0.9 * tokens <= sum(map(len, windows)) <= tokens


def test_no_line_of_the_bundled_text_is_in_what_the_proof_compares_on() -> None:
    proof = default_text()
    lines = [line.strip() for line in bundled_text().splitlines() if len(line.strip()) >= 40]
    assert len(lines) > 300
    assert not [line for line in lines if line in proof]


def test_a_part_of_the_bundled_text_is_code_and_other_languages_are_all_over_it() -> None:
    text = bundled_text()
    assert sum(len(part) for source in library() for part in in_parts(source, PART) if part in text) / len(text) > 0.15
    for language in LANGUAGES:
        assert language in text
    quarter = len(text) // 4
    for start in range(0, 4 * quarter, quarter):
        assert any(ord(char) > 0x370 for char in text[start : start + quarter])


def test_languages_that_are_not_known_are_left_out() -> None:
    text = bundled_text(str.isascii)
    assert not [language for language in LANGUAGES if not language.isascii() and language in text]
    assert len(text) > 0.75 * len(bundled_text())


def test_the_last_part_of_the_users_text_is_kept_back_whole_lines_of_it(tiny: Model, own: Path) -> None:
    found, text = material(*tiny, own, threads=1), own.read_text()
    assert found.held_out is not None
    assert text.endswith(found.held_out)
    assert text[: -len(found.held_out)].endswith("\n")
    assert len(found.held_out) == pytest.approx(KEPT_BACK * len(text), rel=0.05)
    assert found.facts.kept_back


def test_nothing_that_is_kept_back_is_read(tiny: Model, tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_text("The river is wide and the boat is small. " * 900 + "\n" + "QQZZXX JJKKWW " * 1000)
    found = material(*tiny, path, threads=1)
    assert found.held_out is not None
    read = material(*tiny, path, keep_back=False, threads=1)
    only_late = set(ids_of(tiny, "QQZZXX JJKKWW")) - set(ids_of(tiny, "The river is wide and the boat is small. "))
    assert not only_late & {id_ for window in found.texts.windows[:-3] for id_ in window}
    assert only_late & {id_ for window in read.texts.windows for id_ in window}
    assert read.held_out is None
    assert not read.facts.kept_back


def ids_of(model: Model, text: str) -> list[int]:
    from converters.tokenizer import source_tokenizer

    found: list[int] = source_tokenizer(model[1].spec).encode(text, add_special_tokens=False).ids
    return found


def test_a_long_text_is_read_all_over(tiny: Model, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"Part {part}. " + "The boat is small. " * 4000 for part in "ABCDEFGH"))
    windows = material(*tiny, path, tokens=2048, keep_back=False, threads=1).texts.windows
    assert len(windows) == 8
    assert len({tuple(window) for window in windows}) > 1


def test_a_text_of_too_few_tokens_is_refused_with_their_number(tiny: Model, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("The river is wide. " * 30)
    with pytest.raises(
        UsageError, match=r"has \d+ tokens, without the last 143 of its 570 characters.*, and at least 512"
    ):
        material(*tiny, path, threads=1)


@pytest.mark.parametrize(
    "text", ["天地玄黄宇宙洪荒日月盈昃辰宿列张" * 300, "ภาษาไทยเป็นภาษาที่สวยงาม" * 300], ids=["Chinese", "Thai"]
)
def test_a_text_in_a_script_that_the_tokenizer_does_not_know_is_refused(tiny: Model, tmp_path: Path, text: str) -> None:
    path = tmp_path / "foreign.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"does not know the script of .*\d"):
        material(*tiny, path, threads=1)


def test_words_of_other_languages_in_the_same_script_are_read(tiny: Model, tmp_path: Path) -> None:
    path = tmp_path / "german.txt"
    path.write_text("Über den Fluss fährt ein kleines Boot, und größer wäre schöner.\n" * 200, encoding="utf-8")
    assert material(*tiny, path, threads=1).texts.windows


def test_an_embedding_model_reads_whole_texts_and_writes_none(tmp_path: Path) -> None:
    plan, vocabulary = opened(make_variant(tmp_path / "bert", VARIANTS["bert"]))
    found = material(plan, vocabulary, None, tokens=1024, threads=1)
    assert found.texts.generated == 0
    assert found.facts.generated == 0
    for window in found.texts.windows:
        assert window[: len(vocabulary.before)] == list(vocabulary.before)
        assert window[len(window) - len(vocabulary.after) :] == list(vocabulary.after)


def test_a_model_with_a_short_context_gets_shorter_windows(chatty: Model) -> None:
    found = material(*chatty, None, threads=1)
    assert max(map(len, found.texts.windows)) <= chatty[0].context
    assert found.texts.length <= chatty[0].context
