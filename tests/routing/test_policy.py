"""Who answers: what is private never leaves, each policy's order, each reason for which a candidate is left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.config import POLICIES, RoutingSettings
from edgeai.routing import policy
from edgeai.routing.explanation import explain, explain_lines
from edgeai.routing.policy import cost_usd, decide, expected_ability
from edgeai.routing.request import (
    Breaker,
    CloudState,
    Decision,
    Facts,
    Finding,
    LocalState,
    Online,
    State,
    Task,
    Verdict,
)

LOCAL = LocalState(model="tiny", context=2048, ability={"chat": 0.8}, loaded=True)
CLOUD = CloudState(name="big", model="gpt", usd_per_million_input=1.0, usd_per_million_output=4.0)
STATE = State(local=LOCAL, clouds=(CLOUD,))
FACTS = Facts(placement="any", prompt_tokens=100, max_tokens=100)
PRIVATE = replace(FACTS, placement="local_only", rules=("privacy.card", "privacy.email"))


def under(name: str, facts: Facts = FACTS, state: State = STATE, **settings: Any) -> Decision:
    return decide(facts, state, RoutingSettings(policy=name, **settings))


def with_local(**changes: Any) -> State:
    return replace(STATE, local=replace(LOCAL, **changes))


def with_cloud(**changes: Any) -> State:
    return replace(STATE, clouds=(replace(CLOUD, **changes),))


def why_not(decision: Decision, model: str) -> str | None:
    return next(item.excluded_by for item in decision.candidates if item.model == model)


LONG = replace(FACTS, prompt_tokens=8900)


def test_a_prompt_that_may_be_too_long_is_tried_here_where_nobody_else_may_answer() -> None:
    assert under("local-first", LONG).order == ("cloud/big",)
    assert under("local-only", LONG).order == ("local/tiny",)
    assert under("local-first", replace(LONG, placement="local_only")).order == ("local/tiny",)


def test_an_answer_that_may_not_fit_goes_to_an_endpoint_first() -> None:
    decision = under("local-first", replace(FACTS, max_tokens=2000))
    assert decision.order == ("cloud/big", "local/tiny")
    assert "context: 2100 tokens with the answer" in decision.reason


# ---- for all facts, states and settings

NAMES = st.sampled_from(["any", "local", "big", "small", "nobody", ""])
SHARES = st.floats(0, 1)
WORDS = st.sampled_from(["", "privacy.card", "any", "open"])
facts = st.builds(
    Facts, placement=st.sampled_from(["any", "local_only"]), prompt_tokens=st.integers(0, 300_000),
    max_tokens=st.none() | st.integers(1, 100_000), task=st.sampled_from(get_args(Task)), difficulty=SHARES, tools=st.booleans(),
    constrained=st.booleans(), scope=NAMES, deadline_s=st.none() | st.floats(0, 100), rules=st.lists(WORDS, max_size=2).map(tuple),
    redacted=st.booleans(),
)  # fmt: skip
locals_ = st.builds(
    LocalState, model=st.just("tiny"), context=st.none() | st.integers(1, 9000),
    ability=st.dictionaries(st.sampled_from(get_args(Task)), SHARES), calibrated=st.booleans(), loaded=st.booleans(), load=SHARES,
    needed_bytes=st.integers(0, 10**11), free_bytes=st.none() | st.integers(0, 10**11), on_battery=st.booleans(),
    battery=st.none() | SHARES, problem=st.none() | WORDS,
)  # fmt: skip
clouds = st.builds(
    CloudState, name=st.sampled_from(["big", "small"]), model=st.just("m"), context=st.integers(1, 200_000), quality=SHARES,
    usd_per_million_input=st.floats(0, 100), usd_per_million_output=st.floats(0, 100), breaker=st.sampled_from(get_args(Breaker)),
    problem=st.none() | WORDS,
)  # fmt: skip
states = st.builds(
    State, local=st.none() | locals_, clouds=st.lists(clouds, max_size=3).map(tuple), online=st.sampled_from(get_args(Online)),
    metered=st.booleans(), spent_usd=st.floats(0, 10),
)  # fmt: skip
settings = st.builds(
    RoutingSettings, policy=st.sampled_from(POLICIES), hedge_s=st.floats(0, 10), min_confidence=SHARES, min_ability=SHARES,
    usd_per_day=st.none() | st.floats(0, 10),
)  # fmt: skip


def leaks(decision: Decision) -> bool:
    return decision.placement == "local_only" and any(not model.startswith("local/") for model in decision.order)


@given(facts, states, settings)
def test_what_stays_here_has_no_endpoint_in_its_order_whatever_else_holds(
    facts: Facts, state: State, settings: RoutingSettings
) -> None:
    facts = replace(facts, placement="local_only")
    decision = decide(facts, state, settings)
    assert not leaks(decision)
    assert decision.placement == "local_only"
    assert not decision.cascade
    assert not decision.hedge
    if facts.scope not in ("any", "local"):
        assert decision.order == ()


@given(facts, states, settings)
def test_a_decision_names_every_candidate_once_and_says_why_in_one_line(
    facts: Facts, state: State, settings: RoutingSettings
) -> None:
    decision = decide(facts, state, settings)
    there = [f"cloud/{cloud.name}" for cloud in state.clouds] + ([] if state.local is None else ["local/tiny"])
    assert sorted(item.model for item in decision.candidates) == sorted(there)
    assert decision.reason
    assert "\n" not in decision.reason
    assert decision == decide(facts, state, settings)
    excluded = [item.excluded_by is not None for item in decision.candidates]
    assert excluded == sorted(excluded), "those that may answer come first"


@given(facts, states, settings)
def test_offline_and_an_open_breaker_are_never_asked(facts: Facts, state: State, settings: RoutingSettings) -> None:
    order = decide(facts, state, settings).order
    if state.online in ("offline", "forced_offline") or settings.policy in ("local-only", "offline"):
        assert not any(model.startswith("cloud/") for model in order)
    shut = {f"cloud/{cloud.name}" for cloud in state.clouds if cloud.breaker == "open"}
    names = [cloud.name for cloud in state.clouds]
    assert not shut & set(order) or len(set(names)) < len(names)


def test_without_the_rule_of_placement_the_property_would_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = policy._forbidden
    monkeypatch.setattr(policy, "_forbidden", lambda facts, *rest: blind(replace(facts, placement="any"), *rest))
    assert leaks(under("cloud-first", PRIVATE))


# ---- why a candidate is left out

TOO_LARGE = with_local(loaded=False, needed_bytes=3_100_000_000, free_bytes=10**9)
REASONS: list[tuple[str, Facts, State, dict[str, Any], str]] = [
    ("cloud/big", PRIVATE, STATE, {}, "privacy.card"),
    ("cloud/big", replace(PRIVATE, rules=()), STATE, {}, "privacy"),
    ("cloud/big", replace(FACTS, scope="local"), STATE, {}, "this machine was asked for"),
    ("local/tiny", replace(FACTS, scope="big"), STATE, {}, "'big' was asked for"),
    ("cloud/big", replace(FACTS, scope="other"), STATE, {}, "'other' was asked for"),
    ("cloud/big", FACTS, replace(STATE, online="offline"), {}, "offline"),
    ("cloud/big", FACTS, replace(STATE, online="forced_offline"), {}, "forced offline"),
    ("cloud/big", FACTS, with_cloud(problem="no key: OPENAI_API_KEY is empty"), {}, "no key: OPENAI_API_KEY is empty"),
    ("cloud/big", FACTS, with_cloud(breaker="open"), {}, "breaker open"),
    ("cloud/big", FACTS, with_cloud(context=150), {}, "context: 200 tokens with the answer, 150 fit"),
    ("cloud/big", FACTS, replace(STATE, spent_usd=0.51), {"usd_per_day": 0.5}, "budget: 0.51 of 0.50 USD spent"),
    ("cloud/big", FACTS, replace(STATE, spent_usd=0.4999), {"usd_per_day": 0.5}, "budget: 0.50 of 0.50 USD spent, 0.0005 more"),
    ("cloud/big", FACTS, replace(STATE, metered=True), {}, "metered network"),
    ("local/tiny", FACTS, with_local(problem="it crashed"), {}, "it crashed"),
    ("local/tiny", replace(FACTS, tools=True), STATE, {}, "tools"),
    ("local/tiny", replace(FACTS, prompt_tokens=8900), STATE, {}, "context: 8900 tokens, 2048 fit"),
    ("local/tiny", FACTS, TOO_LARGE, {}, "does not fit: needs 3.1 GB, 1.0 GB free"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "facts", "state", "settings", "why"), REASONS)
def test_who_cannot_answer_stays_in_the_list_with_the_reason(
    model: str, facts: Facts, state: State, settings: dict[str, Any], why: str
) -> None:
    decision = under("local-first", facts, state, **settings)
    assert why_not(decision, model) == why
    assert model not in decision.order


@pytest.mark.parametrize("name", ["local-only", "offline"])
def test_a_local_policy_excludes_every_endpoint(name: str) -> None:
    assert under(name).order == ("local/tiny",)
    assert why_not(under(name), "cloud/big") == f"policy {name}"
    assert under(name, replace(FACTS, scope="big")).order == ()


def test_a_half_open_breaker_may_be_probed() -> None:
    assert under("cloud-first", state=with_cloud(breaker="half_open")).target == "cloud/big"


def test_a_free_endpoint_is_within_any_budget() -> None:
    free = with_cloud(usd_per_million_input=0.0, usd_per_million_output=0.0)
    assert under("cloud-first", state=free, usd_per_day=0.0).target == "cloud/big"
    assert under("cloud-first", usd_per_day=0.0).target == "local/tiny"


def test_a_loaded_model_has_its_memory_already() -> None:
    assert under("local-first", state=with_local(needed_bytes=10**12, free_bytes=1)).target == "local/tiny"


def test_a_metered_network_is_used_when_it_is_asked_for_or_the_local_model_cannot() -> None:
    metered = replace(STATE, metered=True)
    assert under("cloud-first", state=metered).order == ("local/tiny",)
    assert under("cloud-first", replace(FACTS, scope="big"), metered).target == "cloud/big"
    assert under("cloud-first", replace(FACTS, tools=True), metered).target == "cloud/big"


# ---- in which order


def test_each_policy_asks_first_whom_it_says() -> None:
    assert under("local-first").order == ("local/tiny", "cloud/big")
    assert under("cloud-first").order == ("cloud/big", "local/tiny")
    assert under("cascade").order == ("local/tiny", "cloud/big")
    assert under("cheapest-that-is-good-enough").order == ("local/tiny", "cloud/big")


LATER: list[tuple[Facts, State, str]] = [
    (FACTS, with_local(ability={"chat": 0.3}), "right in 30% of chat, below 50%"),
    (FACTS, with_local(load=0.95), "others use 95% of the processor"),
    (FACTS, with_local(on_battery=True, battery=0.09), "battery 9%"),
    (replace(FACTS, deadline_s=1.0), with_local(loaded=False, needed_bytes=4 * 10**9), "deadline in 1.0 s, loading takes about 10.5 s"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "state", "why"), LATER)
@pytest.mark.parametrize("name", ["local-first", "cascade"])
def test_what_speaks_against_the_local_model_makes_it_the_fallback(
    name: str, facts: Facts, state: State, why: str
) -> None:
    decision = under(name, facts, state)
    assert decision.order == ("cloud/big", "local/tiny")
    assert why in decision.reason
    assert not decision.cascade


@pytest.mark.parametrize(("facts", "state", "why"), LATER)
def test_it_still_answers_where_nobody_else_may(facts: Facts, state: State, why: str) -> None:
    assert under("local-first", facts, replace(state, online="offline")).order == ("local/tiny",)
    assert under("local-first", replace(facts, placement="local_only"), state).order == ("local/tiny",)


def test_other_tasks_and_a_plugged_or_charged_battery_change_nothing() -> None:
    assert under("local-first", replace(FACTS, task="code"), with_local(ability={"chat": 0.1})).target == "local/tiny"
    assert under("local-first", state=with_local(on_battery=False, battery=0.09)).target == "local/tiny"
    assert under("local-first", state=with_local(on_battery=True, battery=0.5)).target == "local/tiny"


def test_an_answer_with_a_form_is_local_where_it_can_be() -> None:
    asked = replace(FACTS, constrained=True)
    assert under("cloud-first", asked).target == "local/tiny"
    assert under("local-first", asked, with_local(load=0.99)).target == "local/tiny"


def test_a_cascade_needs_a_confidence_of_this_file_and_says_when_there_is_none() -> None:
    decision = under("cascade", state=with_local(calibrated=True))
    assert decision.cascade
    assert "not calibrated" not in decision.reason
    plain = under("cascade")
    assert not plain.cascade
    assert plain.order == ("local/tiny", "cloud/big")
    assert "its confidence is not calibrated for this file, and so not used" in plain.reason
    assert not under("cascade", state=replace(with_local(calibrated=True), clouds=())).cascade


def test_a_hedge_needs_both_and_a_charged_battery() -> None:
    assert under("cloud-first", hedge_s=2.0).hedge
    assert not under("cloud-first", hedge_s=0.0).hedge
    assert not under("local-first", hedge_s=2.0).hedge
    assert not under("cloud-first", state=with_local(problem="gone"), hedge_s=2.0).hedge
    assert not under("cloud-first", state=with_local(on_battery=True, battery=0.1), hedge_s=2.0).hedge


# ---- cheapest that is good enough

CHEAP = CloudState(name="small", model="s", quality=0.7, usd_per_million_input=0.1)
THREE = State(local=replace(LOCAL, ability={"chat": 0.55}), clouds=(CLOUD, CHEAP))


def test_the_cheapest_of_those_that_are_good_enough_goes_first() -> None:
    chosen = {
        least: under("cheapest-that-is-good-enough", state=THREE, min_ability=least).target for least in (0.5, 0.6, 0.8)
    }
    assert chosen == {0.5: "local/tiny", 0.6: "cloud/small", 0.8: "cloud/big"}


def test_a_hard_question_needs_a_better_one() -> None:
    hard, easy = replace(FACTS, difficulty=1.0), replace(FACTS, difficulty=0.0)
    assert under("cheapest-that-is-good-enough", easy, THREE, min_ability=0.5).target == "local/tiny"
    assert under("cheapest-that-is-good-enough", hard, THREE, min_ability=0.5).target == "cloud/small"
    assert under("cheapest-that-is-good-enough", easy, THREE, min_ability=0.7).target == "cloud/small"
    assert under("cheapest-that-is-good-enough", hard, THREE, min_ability=0.7).target == "cloud/big"


def test_where_nobody_is_good_enough_the_best_goes_first() -> None:
    decision = under("cheapest-that-is-good-enough", state=THREE, min_ability=0.99)
    assert decision.order == ("cloud/big", "cloud/small", "local/tiny")
    assert "nobody is known to be right in 99%" in decision.reason


def test_a_model_that_was_never_measured_is_not_taken_to_be_good_enough_and_that_is_said() -> None:
    decision = under("cheapest-that-is-good-enough", replace(FACTS, task="maths"))
    assert decision.order == ("cloud/big", "local/tiny")
    assert "local/tiny is not measured for maths (`edgeai route calibrate`)" in decision.reason


def test_costs_are_tokens_times_prices() -> None:
    assert cost_usd(FACTS, CLOUD) == pytest.approx((100 * 1.0 + 100 * 4.0) / 1e6)
    assert cost_usd(replace(FACTS, max_tokens=None), CLOUD) == pytest.approx((100 + policy.ANSWER_TOKENS * 4) / 1e6)


@given(SHARES, SHARES, SHARES)
def test_ability_falls_with_difficulty_above_the_middle_and_never_rises(
    ability: float, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert expected_ability(ability, high) <= expected_ability(ability, low) + 1e-12
    assert expected_ability(ability, min(0.5, low)) == pytest.approx(ability, abs=2e-6)
    assert expected_ability(0.5, 1.0) == pytest.approx(1 / (1 + np.exp(policy.HARDNESS)))


# ---- in words


def explained(
    facts: Facts, state: State = STATE, verdict: Verdict | None = None, name: str = "local-first"
) -> dict[str, Any]:
    verdict = Verdict(placement=facts.placement) if verdict is None else verdict
    return explain(under(name, facts, state), facts, verdict, state, router_ms=0.12345, config_hash="ab" * 32)


def test_an_explanation_of_a_private_request_names_rule_and_what_the_cloud_would_have_cost() -> None:
    finding = Finding(
        id="privacy.card", kind="card", start=4, end=20, masked="4111 **** 1111", where="message 3", message=2
    )
    found = explained(PRIVATE, verdict=Verdict(placement="local_only", findings=(finding,)))
    assert found["placement"] == "local_only"
    assert found["target"] == "local/tiny"
    assert found["rules"] == [
        {"id": "privacy.card", "kind": "card", "start": 4, "end": 20, "message": 2, "masked": "4111 **** 1111"}
        | {"where": "message 3"}
    ]
    assert found["egress_bytes"] == 0
    assert found["est_cost_usd"] == 0.0
    assert found["would_have_cost_usd"] == pytest.approx(0.0005)
    assert found["config_hash"] == "ab" * 8
    lines = explain_lines(found)
    assert lines[0] == "local/tiny  (local-first)"
    assert "  found card 4111 **** 1111 in message 3  (privacy.card)" in lines
    assert any("cloud/big" in line and "not asked: privacy.card" in line for line in lines)


def test_a_failed_examination_is_said() -> None:
    found = explained(PRIVATE, verdict=Verdict(placement="local_only", failed="the detectors took longer than 5 s"))
    assert any("the detectors took longer than 5 s" in line for line in explain_lines(found))
    assert not any("nothing private" in line for line in explain_lines(found))


def test_nobody_is_an_explanation_too() -> None:
    found = explained(replace(PRIVATE, scope="big"))
    assert found["target"] is None
    assert found["reason"].startswith("nobody may answer: ")
    assert explain_lines(found)[0] == "nobody  (local-first)"
    assert explained(FACTS, State())["reason"] == "nobody may answer: there is no model and no endpoint"
