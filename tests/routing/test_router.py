"""The router as callers meet it: real detectors, ledger and endpoints; the endpoint is the fault lab on the loopback."""

from __future__ import annotations

import enum
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeai.aio import AsyncModel
from edgeai.chaos.answers import cloud_text
from edgeai.chaos.lab import Lab
from edgeai.config import CloudSettings, Config, PrivacySettings, RoutingSettings, Timeouts
from edgeai.engines.base import Engine
from edgeai.engines.fake import FakeEngine
from edgeai.errors import ClosedError, EngineCrashed, NoAnswer, StreamInterrupted, UsageError
from edgeai.model import Model
from edgeai.routing.ledger import Ledger
from edgeai.routing.local import LocalModel
from edgeai.routing.planning import scope_of
from edgeai.routing.router import Router, plan
from edgeai.routing.surroundings import Surroundings
from edgeai.types import Message

CARD = "My card is 4111 1111 1111 1111, is it a Visa?"
KEY = "sk-router-test-0a1b2c3d4e5f"
HERE = "the local model answers"
Make = Callable[..., Model]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def make(lab: Lab) -> Iterator[Make]:
    """Open routers with the lab as their endpoint, and close them."""
    lab.set("good")
    opened: list[Model] = []

    def open_(
        policy: str = "cloud-first", local: Engine | None = None, privacy: PrivacySettings | None = None, **routing: Any
    ) -> Model:
        config = Config(
            cloud=(
                CloudSettings(
                    name="lab", base_url=lab.url, model="lab", usd_per_million_input=1.0, usd_per_million_output=2.0
                ),
            ),
            routing=RoutingSettings(policy=policy, **routing),
            timeouts=Timeouts(connect_s=1.0, first_token_s=2.0, stall_s=1.0, total_s=10.0),
            privacy=privacy or PrivacySettings(),
        )
        model = LocalModel.loaded_already("tiny", local or FakeEngine(HERE, context=4096))
        opened.append(Model(Router(Surroundings(config, model, ledger=Ledger(), keys={"lab": KEY}))))
        return opened[-1]

    yield open_
    for model in opened:
        model.close()


def user(text: str, **more: Any) -> list[Message]:
    return [Message(role="user", content=text, **more)]


def rows(model: Model) -> list[dict[str, Any]]:
    router = model.engine
    assert isinstance(router, Router)
    assert router.around.ledger is not None
    assert router.around.ledger.flush(10)
    return list(router.around.ledger.history().rows())


# ---- what leaves and what does not


@pytest.fixture
def outside() -> Iterator[list[Any]]:
    """Every address that this process connects to or sends to, as the interpreter reports it."""
    found: list[Any] = []
    on = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if on and event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
            found.append((event, arguments[1] if event != "socket.getaddrinfo" else arguments[0]))

    sys.addaudithook(hook)
    yield found
    on = False


@pytest.mark.parametrize(
    "messages",
    [
        user(CARD),
        [Message(role="system", content="The customer is jane.doe@example.com."), *user("Write to her.")],
        [*user(CARD), Message(role="assistant", content="Yes."), *user("And now a poem about spring.")],
        user("A poem, please.", private=True),
        [*user("Look it up."), Message(role="tool", content='{"iban": "DE89370400440532013000"}', tool_call_id="1")],
    ],
    ids=["last message", "system", "an earlier turn", "tag", "result of a tool"],
)
@pytest.mark.parametrize("policy", ["cloud-first", "cascade", "cheapest-that-is-good-enough"])
def test_a_private_conversation_opens_no_socket_at_all(
    messages: list[Message], policy: str, make: Make, lab: Lab, outside: list[Any]
) -> None:
    model = make(policy)
    outside.clear()
    if messages[-1]["role"] == "tool":  # nobody here reads results of tools, so nobody answers
        with pytest.raises(NoAnswer, match="stays on this machine"):
            model.chat(messages)
    else:
        done = model.chat(messages)
        assert (done.text, done.model) == (HERE, "local/tiny")
        assert done.route is not None
        assert (done.route["placement"], done.route["egress_bytes"]) == ("local_only", 0)
    assert outside == []
    assert lab.seen == []


def test_the_spy_sees_what_leaves(make: Make, outside: list[Any]) -> None:
    make().chat(user("A poem, please."))
    assert any(event == "socket.connect" for event, _ in outside)


@pytest.mark.parametrize("name", ["local-oom", "local-crash", "local-busy"])
def test_no_failure_of_the_local_model_lets_something_private_out(name: str, make: Make, lab: Lab) -> None:
    from edgeai.chaos.stand_in import open_stand_in

    model = make(local=open_stand_in(name))
    with pytest.raises(Exception, match="lab's local model"):
        model.chat(user(CARD))
    assert lab.seen == []


def test_a_text_that_was_made_of_a_private_one_stays_private(make: Make, lab: Lab) -> None:
    answer = "the customer Jane wants her money back because the kettle she bought never worked at all"
    model = make(local=FakeEngine(answer, context=4096))
    summary = model.chat(user("Summarise: jane.doe@example.com wants her money back, the kettle never worked.")).text
    done = model.chat(user(f"Improve this note: {summary}"))
    assert done.route is not None
    assert [rule["id"] for rule in done.route["rules"]] == ["privacy.taint"]
    assert lab.seen == []
    assert (
        model.chat(user("Improve this note: the weather is fine today and the garden is green.")).model == "cloud/lab"
    )


def test_files_of_a_private_folder_stay_here(make: Make, lab: Lab, tmp_path: Path) -> None:
    model = make(privacy=PrivacySettings(folders=(str(tmp_path),)))
    done = model.chat(user("Summarise: hello"), files=((str(tmp_path / "a.txt"), "hello"),))
    assert done.model == "local/tiny"
    assert lab.seen == []


@pytest.mark.parametrize(
    "asked",
    [
        {"stop": ["jane.doe@example.com"]},
        {"tools": ({"type": "function", "function": {"name": "4111 1111 1111 1111"}},)},
    ],
    ids=["stop text", "tools"],
)
def test_what_is_asked_beside_the_prompt_is_examined_too(asked: dict[str, Any], make: Make, lab: Lab) -> None:
    model = make()
    if "tools" in asked:
        with pytest.raises(NoAnswer):
            model.chat(user("Hello"), **asked)
    else:
        assert model.chat(user("Hello"), **asked).model == "local/tiny"
    assert lab.seen == []


# ---- redaction


def test_what_is_redacted_leaves_as_placeholders_and_comes_back(make: Make, lab: Lab) -> None:
    model = make()
    prompt = "Write to jane.doe@example.com about 4111 1111 1111 1111."
    done = model.chat(user(prompt), redact=True)
    body = lab.attempts[0].body.decode()
    assert "jane.doe" not in body
    assert "4111" not in body
    sent = json.loads(body)["messages"][0]["content"]
    assert sent == "Write to <EMAIL_1> about <CARD_1>."
    assert done.text == cloud_text(sent)
    assert done.route is not None
    assert done.route["placement"] == "any"


def test_rules_of_the_user_are_not_redacted_away(make: Make, lab: Lab) -> None:
    model = make(privacy=PrivacySettings(words=("Bluebird",), redact=True))
    assert model.chat(user("What is project Bluebird? Ask jane.doe@example.com.")).model == "local/tiny"
    assert lab.seen == []


# ---- the routed answer


def test_the_answer_says_who_made_it_and_what_it_cost(make: Make) -> None:
    done = make().chat(user("Why?"))
    assert (done.text, done.model, done.backend) == (cloud_text("Why?"), "cloud/lab", "cloud")
    assert done.route is not None
    assert done.route["attempts"][0]["status"] == "ok"
    assert done.route["egress_bytes"] > 100
    assert done.route["cost_usd"] == pytest.approx((done.usage.prompt_tokens + 2 * done.usage.completion_tokens) / 1e6)


def test_every_request_is_in_the_ledger_with_its_bytes_and_without_its_text(make: Make, lab: Lab) -> None:
    model = make()
    model.chat(user("Tell me of herons."))
    model.chat(user(CARD))
    found = rows(model)
    assert [row["answered_by"] for row in found] == ["cloud/lab", "local/tiny"]
    assert [row["egress_bytes"] > 0 for row in found] == [True, False]
    assert len(lab.attempts[0].body) < found[0]["egress_bytes"] < len(lab.attempts[0].body) + 600  # and the headers
    assert "heron" not in json.dumps(found)
    assert "4111 1111 1111 1111" not in json.dumps(found)


def test_an_answer_that_breaks_off_is_an_error_with_its_text(make: Make, lab: Lab) -> None:
    model = make()
    lab.set("rst-after-tokens")
    with pytest.raises(StreamInterrupted) as error:
        model.chat(user("Why?"))
    assert error.value.text
    assert cloud_text("Why?").startswith(error.value.text)


def test_an_answer_that_breaks_off_is_continued_where_that_is_wanted(make: Make, lab: Lab) -> None:
    model = make()
    lab.set("rst-after-tokens")
    done = model.chat(user("Why?"), resume_local=True)
    assert "[cloud/lab broke off here; local/tiny goes on]" in done.text
    assert done.text.endswith(HERE)
    assert done.model == "local/tiny"


def test_the_key_is_in_no_log_no_error_and_no_row(make: Make, lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    said = []
    with caplog.at_level(logging.DEBUG):
        for fault in ("good", "status-401", "status-400", "error-in-200", "redirect-host", "rst-in-head", "html-page"):
            lab.set(fault)
            model = make()  # with a breaker of its own
            said += [json.dumps(model.chat(user(f"Why {fault}?")).to_dict()), repr(model.engine)]
            assert lab.attempts
    for text in (caplog.text, *said, json.dumps(rows(model))):
        assert KEY not in text


def test_many_threads_get_their_own_answers(make: Make) -> None:
    model, wrong = make(), []

    def ask(number: int) -> None:
        for turn in range(5):
            prompt = f"What is {number} and {turn}?"
            if model.chat(user(prompt)).text != cloud_text(prompt):
                wrong.append(prompt)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


async def _async_answer(model: Model) -> str:
    async with AsyncModel(model) as asynchronous:
        return (await asynchronous.chat(user("Why?"))).text


def test_asyncio_uses_it_without_knowing(make: Make) -> None:
    import asyncio

    assert asyncio.run(_async_answer(make())) == cloud_text("Why?")


def test_a_closed_router_says_so(make: Make) -> None:
    model = make()
    model.close()
    with pytest.raises(ClosedError):
        model.chat(user("Why?"))


def test_what_is_no_answer_comes_from_the_local_model(make: Make) -> None:
    assert make().tokenize("a b a") == [0, 1, 0]


def test_a_day_s_money_ends_what_costs(make: Make, lab: Lab) -> None:
    model = make(usd_per_day=0.00004)
    assert model.chat(user("Why?"), max_tokens=10).model == "cloud/lab"
    assert model.chat(user("Why then?"), max_tokens=10).model == "local/tiny"
    assert len(lab.attempts) == 1


# ---- names


CLOUDS = (CloudSettings(name="big", base_url="https://big.example/v1", model="gpt-big"),)


@pytest.mark.parametrize(
    ("name", "policy", "only", "local"),
    [
        ("auto", None, "any", None), ("auto:private", "local-only", "any", None), ("auto:quality", "cloud-first", "any", None),
        ("local", None, "local", None), ("local/smollm2", None, "local", "smollm2"), ("cloud/big", None, "big", None),
        ("cloud/gpt-big", None, "big", None), ("cloud", None, "big", None), ("cascade", "cascade", "any", None),
    ],
)  # fmt: skip
def test_names_of_routes(name: str, policy: str | None, only: str, local: str | None) -> None:
    found = scope_of(name, CLOUDS)
    assert (found.policy, found.only, found.local_model) == (policy, only, local)


def test_an_endpoint_whose_model_is_open_takes_any() -> None:
    clouds = (replace(CLOUDS[0], model="default"),)
    assert scope_of("cloud/gpt-9", clouds).cloud_model == "gpt-9"


@pytest.mark.parametrize(("name", "hint"), [("atuo", "'auto'"), ("cloud/bgi", "'cloud/big'"), ("remote", "routes are")])
def test_a_name_that_is_none_gets_what_is_close(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        scope_of(name, CLOUDS)
    assert error.value.hint is not None
    assert hint in error.value.hint


def test_an_endpoint_that_is_asked_for_by_name_gets_nothing_private(make: Make, lab: Lab) -> None:
    with pytest.raises(NoAnswer, match="stays on this machine") as error:
        make().chat(user(CARD), scope="cloud/lab")
    assert error.value.exit_code == 2
    assert lab.seen == []


def test_a_dry_decision_asks_nobody(lab: Lab, outside: list[Any]) -> None:
    lab.set("good")
    config = Config(
        cloud=(CloudSettings(name="lab", base_url=lab.url, model="lab"),), routing=RoutingSettings(policy="cloud-first")
    )
    outside.clear()
    found = plan(user("Why?"), config=config).to_dict()
    assert (found["target"], outside, lab.seen) == ("cloud/lab", [], [])
    assert plan(user(CARD), config=config).verdict.placement == "local_only"


# ---- what must not be kept, shown or passed over


def test_words_of_an_endpoint_are_not_written_down(make: Make, lab: Lab) -> None:
    model = make()
    lab.set("status-400")
    model.chat(user("zebra zebra"))
    lab.set("status-401")
    model.chat(user("zebra zebra"))
    kept = rows(model)
    assert [row["attempts"][0]["error"] for row in kept] == ["refused (status-400)", "credentials (status-401)"]
    assert "zebra" not in json.dumps(kept)


def test_what_was_refused_marks_nothing(make: Make, lab: Lab) -> None:
    model = make()
    with pytest.raises(NoAnswer) as error:
        model.chat(
            user("Write a long and friendly letter to jane.doe@example.com about the kettle."), scope="cloud/lab"
        )
    assert error.value.hint is not None
    assert "`redact`" in error.value.hint
    done = model.chat(
        user("Write a long and friendly letter to jane.doe@example.com about the kettle."),
        scope="cloud/lab",
        redact=True,
    )
    assert done.model == "cloud/lab"
    with pytest.raises(NoAnswer) as error:
        model.chat(user("A secret plan."), scope="cloud/lab", private=True)
    assert "redact" not in (error.value.hint or "")


@pytest.mark.parametrize(
    "wrong",
    [{"scope": 5}, {"redact": "no"}, {"private": None}, {"policy": 1}, {"files": ["a"]}],
    ids=lambda item: next(iter(item)),
)
def test_options_of_the_wrong_kind_are_errors(wrong: dict[str, Any], make: Make) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} .* is not possible"):
        make().chat(user("Hi"), **wrong)


def test_no_messages_are_an_error_before_anything_is_sent(make: Make, lab: Lab) -> None:
    with pytest.raises(UsageError, match="no messages"):
        make().chat([])
    assert lab.seen == []


# ---- everything that is sent is examined


class Name(str, enum.Enum):  # noqa: UP042 - a StrEnum is another thing
    JANE = "jane.doe@example.com"


@pytest.mark.parametrize(
    "messages",
    [
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "hi", "image_url": {"url": "mail jane.doe@example.com"}}],
            }
        ],
        [{"role": "jane.doe@example.com", "content": "hi"}],
        [{"role": "user", "content": "hi", "name": "jane.doe@example.com"}],
    ],
    ids=["another key of a piece", "role", "another key"],
)
def test_nothing_of_a_message_passes_unseen(messages: Any) -> None:
    config = Config(cloud=(CloudSettings(name="lab", base_url="http://127.0.0.1:9/v1", model="lab"),))
    assert plan(messages, config=config).sent is None


def test_texts_that_are_members_of_an_enumeration_are_seen(make: Make, lab: Lab) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": Name.JANE}}
    with pytest.raises(NoAnswer):
        make().chat(user("Hi"), tools=(tool,))
    assert lab.seen == []


def test_a_schema_is_examined_as_its_reader_will_understand_it(make: Make, lab: Lab) -> None:
    from edgeai.types import Constraint

    source = json.dumps({"type": "object", "description": "Herr Müller\nFalcon"})
    assert "\\u00fc" in source
    for word in ("Müller", "Falcon"):
        model = make(privacy=PrivacySettings(words=(word,)))
        router = model.engine
        assert isinstance(router, Router)
        config = model.config(constraint=Constraint(kind="json_schema", source=source))
        assert router.planned(user("Hi"), config).sent is None


def test_the_model_that_an_open_endpoint_is_asked_for_is_examined() -> None:
    config = Config(cloud=(CloudSettings(name="lab", base_url="http://127.0.0.1:9/v1", model="default"),))
    assert plan(user("Hi"), config=config, scope="cloud/gpt-9").sent is not None
    assert plan(user("Hi"), config=config, scope="cloud/jane.doe@example.com").sent is None


def test_what_is_asked_beside_a_prompt_is_not_redacted_and_so_stays(make: Make, lab: Lab) -> None:
    done = make().chat(user("Hi, jane.doe@example.com"), stop=["bob@example.org"], redact=True)
    assert done.model == "local/tiny"
    assert lab.seen == []


class Waits(FakeEngine):
    """Crashes when it is let go."""

    def __init__(self) -> None:
        super().__init__(context=4096)
        self.go = threading.Event()

    def generate(self, prompt: Any, config: Any) -> Any:
        self.go.wait(20)
        raise EngineCrashed("gone")


def test_a_message_that_is_changed_after_it_was_examined_is_not_what_leaves(make: Make, lab: Lab) -> None:
    messages, engine = user("Hi"), Waits()
    model = make("local-first", local=engine)
    with model.stream(messages) as stream:
        messages[0]["content"] = "my mail is jane.doe@example.com"
        engine.go.set()
        list(stream)
    assert [json.loads(seen.body)["messages"][0]["content"] for seen in lab.attempts] == ["Hi"]
