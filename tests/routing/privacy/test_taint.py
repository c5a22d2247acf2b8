"""Marks of private texts: what is known again, what is not, and what a broken disk does."""

import json
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from edgeai.config import PrivacySettings
from edgeai.routing.privacy.conversation import parts_of
from edgeai.routing.privacy.detector import Detector
from edgeai.routing.privacy.fingerprints import GRAM, SPAN, fingerprints, plain
from edgeai.routing.privacy.taint import Taint
from edgeai.types import Message

SECRET = (
    "The board decided on Thursday to sell the plant in the valley before the harvest, because the lender will not wait any longer, "
    "and nobody outside of this room shall learn of it until the contract is signed by both of the families."
)
OTHER = "A recipe for bread: mix flour, water, salt and yeast, wait for an hour, knead the dough again and bake it until it is brown."


@pytest.fixture
def taint(tmp_path: Path) -> Taint:
    made = Taint(tmp_path / "routing")
    made.mark(SECRET)
    return made


def test_every_span_of_the_promised_length_is_known_again_in_any_layout(taint: Taint) -> None:
    letters = plain(SECRET)
    assert all(taint.touches(f"Note: {letters[at : at + SPAN].upper()} …") for at in range(len(letters) - SPAN + 1))


def test_eight_words_are_known_again_whatever_is_between_them(taint: Taint) -> None:
    words = SECRET.split()
    for at in range(len(words) - 10):
        span = words[at : at + 10]
        if len(plain(" ".join(span))) >= SPAN:
            assert taint.touches("Memory:\n- " + " \n\t".join(span).upper())


def test_other_texts_and_short_phrases_are_not(taint: Taint) -> None:
    assert not taint.touches(OTHER)
    letters = plain(SECRET)
    assert not any(taint.touches(letters[at : at + GRAM - 1]) for at in range(0, len(letters) - GRAM, 7))
    assert not taint.touches("because the lender will not")


def test_scripts_without_spaces_need_a_third_of_the_characters(tmp_path: Path) -> None:
    taint = Taint(tmp_path)
    taint.mark("董事会周四决定在收获之前卖掉山谷里的工厂，因为贷款人不会再等下去了。")
    assert taint.touches("摘要：决定在收获之前卖掉山谷里的工厂。")
    assert not taint.touches("我们在山谷里的工厂工作")


def test_short_text_is_known_again_as_a_whole_line(tmp_path: Path) -> None:
    taint = Taint(tmp_path)
    taint.mark("Jane is expecting twins")
    assert taint.touches("Facts:\njane is expecting TWINS\nend")
    assert not taint.touches("Jane is expecting a parcel")
    taint.mark("ok, thanks")
    assert not taint.touches("ok, thanks")


def test_marks_outlive_the_process_and_reach_others(taint: Taint, tmp_path: Path) -> None:
    other = Taint(tmp_path / "routing")
    assert other.touches(f"So: {SECRET[30:120]}")
    taint.mark(OTHER)
    assert other.touches(OTHER)
    other.close()
    taint.close()


def test_text_that_is_marked_again_takes_no_more_room(taint: Taint, tmp_path: Path) -> None:
    taint.close()
    later = Taint(tmp_path / "routing")
    later.mark(SECRET)
    later.close()
    with sqlite3.connect(tmp_path / "routing" / "taint.sqlite3") as database:
        assert database.execute("SELECT COUNT(*) FROM marks").fetchone()[0] == 1
    database.close()


def test_file_holds_no_word_and_belongs_to_its_owner(taint: Taint, tmp_path: Path) -> None:
    taint.close()
    for path in (tmp_path / "routing").iterdir():
        held = path.read_bytes().lower()
        assert b"board" not in held
        assert b"harvest" not in held
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.suffix not in (".salt", ".sqlite3")


def test_fingerprints_of_another_salt_are_others() -> None:
    assert fingerprints(SECRET, b"a" * 32).isdisjoint(fingerprints(SECRET, b"b" * 32))


def test_marks_are_capped_and_the_oldest_go_first(tmp_path: Path) -> None:
    first = Taint(tmp_path, most=100)
    first.mark(SECRET)
    for number in range(20):
        first.mark(f"{OTHER} {number} " + " ".join(f"word{number}x{index}" for index in range(30)))
    first.close()
    later = Taint(tmp_path)
    with sqlite3.connect(tmp_path / "taint.sqlite3") as database:
        assert database.execute("SELECT SUM(count) FROM marks").fetchone()[0] <= 100
    database.close()
    assert not later.touches(SECRET)
    later.close()


# ---- what is marked


def conversation(*turns: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]  # type: ignore[typeddict-item]


SYSTEM = "You are a helpful assistant that answers briefly and in the language of the question that the user asks."
QUESTION = (
    "Please tell me everything that you know about the history of bridges in the city of Prague and who built them."
)


def test_answer_and_later_turns_are_marked_and_the_system_prompt_is_not(tmp_path: Path) -> None:
    taint = Taint(tmp_path)
    detector = Detector(PrivacySettings(), taint=taint)
    messages = conversation(
        ("system", SYSTEM),
        ("user", QUESTION),
        (
            "user",
            "My IBAN is DE89370400440532013000 and the landlord of the house in the valley wants the money by Friday at noon.",
        ),
    )
    parts = parts_of(messages)
    answer = "Then transfer the rent to the landlord of the house tomorrow morning, so that he has it in time for the weekend."
    taint.remember(parts, detector.examine(parts), answer)
    assert detector.examine(parts_of(f"Memory: {answer}")).placement == "local_only"
    assert (
        detector.examine(
            parts_of("the landlord of the house in the valley wants the money by Friday at noon")
        ).placement
        == "local_only"
    )
    assert detector.examine(parts_of(conversation(("system", SYSTEM), ("user", QUESTION)))).placement == "any"
    taint.close()


def test_conversation_without_a_finding_marks_nothing(tmp_path: Path) -> None:
    taint = Taint(tmp_path)
    detector = Detector(PrivacySettings(), taint=taint)
    parts = parts_of(conversation(("user", QUESTION)))
    taint.remember(parts, detector.examine(parts), OTHER)
    assert not taint.touches(QUESTION)
    assert not taint.touches(OTHER)


# ---- disks


def said(taint: Taint) -> str:
    return " ".join(notice.message for notice in taint.take_notices())


def test_locked_file_costs_a_notice_and_marks_stay_in_memory(taint: Taint, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "routing" / "taint.sqlite3", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        taint.mark(OTHER)
        assert "in memory only" in said(taint)
        other.execute("ROLLBACK")
    other.close()
    assert taint.touches(OTHER)
    taint.close()


def test_corrupt_file_makes_every_text_private(tmp_path: Path) -> None:
    (tmp_path / "taint.sqlite3").write_bytes(b"no database at all " * 100)
    taint = Taint(tmp_path)
    assert taint.touches(OTHER)
    assert "letters or more is private" in said(taint)
    assert said(taint) == ""  # once
    assert taint.touches("Another text that was never marked")
    assert not taint.touches("Hi!")  # too short to have been marked
    taint.close()


def test_marks_of_another_salt_make_every_text_private(taint: Taint, tmp_path: Path) -> None:
    taint.close()
    (tmp_path / "routing" / "taint.salt").unlink()
    later = Taint(tmp_path / "routing")
    assert later.touches(OTHER)
    assert "remove both" in said(later)
    later.close()


def test_folder_that_is_none_costs_a_notice_and_makes_every_text_private(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    taint = Taint(tmp_path / "file" / "routing")
    taint.mark(SECRET)
    assert "in memory only" in said(taint)
    assert taint.touches(SECRET)
    assert taint.touches(OTHER)  # nobody can know what was marked before


def test_marking_and_checking_take_less_than_a_millisecond_for_a_thousand_characters(tmp_path: Path) -> None:
    taint = Taint(tmp_path)
    taint.mark(OTHER)
    text = json.dumps(
        [f"sentence {number} of some length about {number * 7919 % 1000} things" for number in range(2000)]
    )
    began = time.process_time()
    taint.mark(text)
    taint.touches(text[::-1])
    assert time.process_time() - began < 2e-3 * len(text) / 1000 * 2
    taint.close()


def test_definitions_of_tools_are_not_marked(tmp_path: Path) -> None:
    from edgeai.routing.request import Finding, Part, Verdict

    taint, tool = Taint(tmp_path), "name: send_message\ndescription: Sends a message to somebody who is waiting for it"
    found = Finding(id="privacy.card", kind="card", start=0, end=4, masked="…", where="message 1")
    parts = [Part(text=SECRET, where="message 1"), Part(text=tool, where="tool definition", message=1)]
    taint.remember(parts, Verdict(placement="local_only", findings=(found,)))
    assert taint.touches(SECRET)
    assert not taint.touches(tool)
    taint.close()
