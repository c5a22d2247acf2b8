"""The user's own rules: words, patterns, files and folders."""

import time
from pathlib import Path

import pytest

from edgeai.config import PrivacySettings
from edgeai.errors import UsageError
from edgeai.routing.privacy.detector import Detector
from edgeai.routing.privacy.patterns import PatternSearch, is_bounded
from edgeai.routing.request import Part, Verdict


def examined(settings: PrivacySettings, text: str, path: str | None = None) -> Verdict:
    detector = Detector(settings)
    try:
        return detector.examine([Part(text=text, where="prompt", path=path)])
    finally:
        detector.close()


@pytest.mark.parametrize(
    ("word", "text", "private"),
    [
        ("Nachtigall", "the NACHTIGALL plan", True),
        ("Nachtigall", "Nachtigallen sing", False),
        ("Проект Ёлка", "это проект\nёлка", True),
        ("机密", "这是机密文件", True),
        ("acme", "acme's", True),
        ("acme", "nach\u200btigall a\u200bcme", True),
        ("C++", "we use c++ here", True),
        ("straße", "STRASSE", False),
    ],
)
def test_word_is_found_whole_in_any_case_and_script(word: str, text: str, private: bool) -> None:
    verdict = examined(PrivacySettings(words=(word,)), text)
    assert (verdict.placement == "local_only") is private


@pytest.mark.parametrize("text", ["AURORA_2", "aurora2 is late", "plan_aurora.md"])
def test_digits_and_underscores_are_borders_of_a_word(text: str) -> None:
    assert examined(PrivacySettings(words=("Aurora",)), text).placement == "local_only"


def test_word_marks_where_it_is_and_may_not_be_replaced() -> None:
    (finding,) = examined(PrivacySettings(words=("acme",)), "for Acme only").findings
    assert (finding.id, finding.start, finding.end, finding.redactable) == ("privacy.word", 4, 8, False)


def test_pattern_marks_where_it_fits() -> None:
    verdict = examined(PrivacySettings(patterns=(r"PROJ-\d{3}", r"K\w+Z")), "see PROJ-123 and KxxZ")
    assert [(finding.id, finding.start, finding.end) for finding in verdict.findings] == [
        ("privacy.pattern", 4, 12), ("privacy.pattern", 17, 21),
    ]  # fmt: skip


def test_pattern_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"'\(unclosed'"):
        Detector(PrivacySettings(patterns=("fine", "(unclosed")))


def test_catastrophic_pattern_ends_in_time_and_keeps_the_text_here() -> None:
    detector = Detector(PrivacySettings(patterns=("(a+)+$",), timeout_s=0.5))
    began = time.monotonic()
    verdict = detector.examine([Part(text="a" * 60 + "b", where="prompt")])
    assert verdict.placement == "local_only"
    assert verdict.failed is not None
    assert time.monotonic() - began < 2.0
    # The next text has a new process to go to.
    later = detector.examine([Part(text="xyz", where="prompt")])
    assert (later.placement, later.failed) == ("any", None)
    detector.close()


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "a*a*b",
        "(a|ab)*c",
        r".*x.*y",
        r"(?:a{1,9}){1,9}",
        r"(\w)\1",
        r"\d+",
        "a{0,64}a{0,64}b",
        "(a|a)" * 20 + "b",
        "a?" * 30 + "a" * 30,
    ],
)
def test_pattern_that_may_take_long_goes_to_the_child(pattern: str) -> None:
    assert not is_bounded(pattern)


@pytest.mark.parametrize("pattern", ["abc", r"PROJ-\d{3}", "[+*]x?", r"a\+b", "(?i)acme", "x{1,9}|y"])
def test_short_pattern_is_searched_here(pattern: str) -> None:
    assert is_bounded(pattern)
    search = PatternSearch([pattern])
    search.close()


def test_child_that_died_is_begun_again() -> None:
    search = PatternSearch([r"x\d+"])
    assert search.spans("a x12", timeout_s=5) == [(2, 5)]
    assert search._child is not None
    assert search._child._process is not None
    search._child._process.kill()
    search._child._process.wait()
    assert search.spans("x3", timeout_s=5) == [(0, 2)]
    search.close()


# ---- files


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "private" / "deep").mkdir(parents=True)
    (tmp_path / "open").mkdir()
    (tmp_path / "private" / "deep" / "a.txt").write_text("x")
    (tmp_path / "open" / "b.txt").write_text("x")
    (tmp_path / "open" / "link.txt").symlink_to(tmp_path / "private" / "deep" / "a.txt")
    (tmp_path / "alias").symlink_to(tmp_path / "private")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "private"),
    [
        ("private/deep/a.txt", True),
        ("open/../private/deep/a.txt", True),
        ("open/link.txt", True),
        ("alias/deep/a.txt", True),
        ("private/not-there-yet.txt", True),
        ("open/b.txt", False),
        ("private-not/c.txt", False),
    ],
)
def test_file_in_a_private_folder_is_private_by_its_real_path(place: Path, path: str, private: bool) -> None:
    for folder in (str(place / "private"), str(place / "alias"), str(place / "open" / ".." / "private")):
        verdict = examined(PrivacySettings(folders=(folder,)), "text", str(place / path))
        assert (verdict.placement == "local_only") is private, folder


@pytest.mark.parametrize(
    ("glob", "path", "private"),
    [
        ("*.key", "open/server.key", True),
        ("*.KEY", "open/server.key", True),
        ("private/*", "private/deep/a.txt", True),
        ("**/deep/*.txt", "open/link.txt", True),
        ("*.key", "open/b.txt", False),
        ("deep/*.txt", "open/b.txt", False),
    ],
)
def test_glob_fits_names_and_the_ends_of_real_paths(place: Path, glob: str, path: str, private: bool) -> None:
    verdict = examined(PrivacySettings(files=(glob,)), "text", str(place / path))
    assert (verdict.placement == "local_only") is private


def test_glob_may_begin_with_a_link_or_the_home_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    real = str(place / "private" / "deep" / "a.txt")
    assert examined(PrivacySettings(files=(f"{place}/alias/*.txt",)), "text", real).placement == "local_only"
    assert examined(PrivacySettings(files=("~/private/*",)), "text", real).placement == "local_only"
    assert examined(PrivacySettings(folders=("~/private",)), "text", "~/private/deep/a.txt").placement == "local_only"


def test_links_in_a_circle_are_private(place: Path) -> None:
    (place / "one").symlink_to(place / "two")
    (place / "two").symlink_to(place / "one")
    verdict = examined(PrivacySettings(folders=(str(place / "private"),)), "text", str(place / "one"))
    assert verdict.placement == "local_only"
