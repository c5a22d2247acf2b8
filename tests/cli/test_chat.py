"""The slash-commands of a conversation, without a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeai.cli.chat import Chat
from edgeai.cli.output import Output
from edgeai.engines.fake import FakeEngine
from edgeai.model import Model
from edgeai.types import GenerationConfig


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine("fine thanks", context=32)


@pytest.fixture
def chat(engine: FakeEngine) -> Chat:
    return Chat(Model(engine), GenerationConfig(), None, Output())


def test_history_is_sent_along(chat: Chat, engine: FakeEngine) -> None:
    chat.react("hello")
    chat.react("and you?")
    assert [message["content"] for message in engine.prompts[1]] == ["hello", "fine thanks", "and you?"]  # type: ignore[index]


def test_clear_forgets_the_history_and_keeps_the_system_message(chat: Chat, engine: FakeEngine) -> None:
    for line in ("/system Be brief.", "hello", "/clear", "again"):
        chat.react(line)
    assert engine.prompts[-1] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "again"}]


def test_set_changes_the_sampling(chat: Chat) -> None:
    for line in ("/set temp 0.1", "/set max-tokens 5", "/set seed 7", "/set stop END"):
        chat.react(line)
    assert chat.config == GenerationConfig(temperature=0.1, max_tokens=5, seed=7, stop=("END",))


@pytest.mark.parametrize(
    "line", ["/set heat 3", "/set temp hot", "/set temp -1", "/nothing", "/save", "/load /nowhere.json"]
)
def test_a_wrong_command_says_so_and_changes_nothing(chat: Chat, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    chat.react(line)
    assert "error: " in capsys.readouterr().err
    assert chat.config == GenerationConfig()


def test_a_saved_conversation_loads_again(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "é 模型 talk.json"
    for line in ("/system Be brief.", "hello", f"/save {path}"):
        chat.react(line)
    other = Chat(Model(FakeEngine()), GenerationConfig(), None, Output())
    other.react(f"/load {path}")
    assert (other.system, other.messages) == ("Be brief.", chat.messages)


@pytest.mark.parametrize("text", ["", "{}", '[{"role": "boss", "content": "x"}]', '[{"role": "user"}]', "[1]"])
def test_a_damaged_conversation_is_refused(
    chat: Chat, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.react("hello")
    (tmp_path / "x.json").write_text(text)
    chat.react(f"/load {tmp_path / 'x.json'}")
    assert "not a saved conversation" in capsys.readouterr().err
    assert len(chat.messages) == 2


def test_a_conversation_longer_than_the_context_is_an_error_and_not_a_cut(
    chat: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.react("hello")
    chat.react("word " * 40)
    assert "the context holds 32" in capsys.readouterr().err
    assert len(chat.messages) == 2


def test_a_long_conversation_goes_on_when_its_oldest_messages_may_be_left_out(
    chat: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.react("/set overflow rolling")
    for number in range(6):
        chat.react(f"question {number} of eight words and then more")
    said = capsys.readouterr().err
    assert said.count("warning: ") == 4
    assert "error" not in said
    assert len(chat.messages) == 12  # the history is whole: a larger context could use it


def test_a_conversation_that_is_too_long_names_the_way_to_go_on(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.react("hello")
    chat.react("word " * 40)
    assert "/set overflow rolling" in capsys.readouterr().err


def test_saving_over_a_folder_leaves_nothing_behind(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    chat.react(f"/save {tmp_path / 'folder'}")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_saved_json_is_the_openai_shape(chat: Chat, tmp_path: Path) -> None:
    chat.react("hello")
    chat.react(f"/save {tmp_path / 'x.json'}")
    assert json.loads((tmp_path / "x.json").read_text())[0] == {"role": "user", "content": "hello"}
