"""`edgeai logs` as a user types it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeai.cli import cli
from edgeai.config import LedgerSettings, RoutingSettings
from edgeai.routing import policy
from edgeai.routing import replay as replays
from edgeai.routing.ledger import Entry, Ledger
from edgeai.routing.ledgerfile import default_path
from edgeai.routing.request import Candidate, Decision, Facts, State
from edgeai.types import Usage
from tests.routing.entries import ANSWER, entry


def logs(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["logs", *arguments])


def write(*entries: Entry, bodies: bool = False) -> Path:
    made = Ledger(settings=LedgerSettings(bodies=bodies))
    for one in entries:
        made.record(one)
    assert made.close(10)
    return default_path()


@pytest.fixture
def some() -> Path:
    """Row 1 stayed here, rows 2 and 3 left, 3 with placeholders."""
    facts = Facts(placement="any", prompt_tokens=9, redacted=True)
    return write(
        entry("a"),
        entry("b", sent=1234, cost=0.25),
        entry("c", sent=1000, cost=0.5, facts=facts, verdict=entry("x").verdict),
    )


def decide(facts: Facts, _state: State, settings: RoutingSettings) -> Decision:
    """Stands in for policy.decide: what is private stays, all else goes to the cloud or stays, by the name of the policy."""
    cloud_first = settings.policy == "cloud-first" and facts.placement == "any"
    models = ("cloud/gpt", "local/smollm2") if cloud_first else ("local/smollm2",)
    return Decision(
        placement=facts.placement, policy=settings.policy, reason="as the test wants it",
        candidates=tuple(Candidate(model=model) for model in models), cascade=settings.policy == "cascade",
    )  # fmt: skip


# What is shown.


def test_the_table_has_the_newest_last(some: Path) -> None:
    lines = logs().stdout.splitlines()
    assert lines[0].split() == ["SEQ", "TIME", "PLACEMENT", "ANSWERED", "BY", "SENT", "COST", "REASON"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    assert "local only" in lines[1]
    assert "local/smollm2" in lines[1]
    assert "1.2 kB" in lines[2]
    assert "$0.2500" in lines[2]
    assert lines[2].endswith("a reason")


def test_json_is_the_rows(some: Path) -> None:
    rows = json.loads(logs("--json").stdout)
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert [row["id"] for row in json.loads(logs("--json", "--limit", "1").stdout)] == ["c"]


def test_since_takes_dates_and_ages() -> None:
    now = datetime.now(UTC)
    write(entry("old", time=now - timedelta(days=9)), entry("new", time=now - timedelta(minutes=1)))
    for since in ("2h", "8d", "1w", (now - timedelta(days=2)).date().isoformat()):
        assert [row["id"] for row in json.loads(logs("--json", "--since", since).stdout)] == ["new"], since
    assert len(json.loads(logs("--json", "--since", "10d").stdout)) == 2


@pytest.mark.parametrize("since", ["yesterday", "3x", "999999w", "2030-13-01", ""])
def test_a_time_that_is_none_is_refused(since: str) -> None:
    result = logs("--since", since)
    assert result.exit_code == 2
    assert "is no time" in result.stderr


def test_an_empty_ledger_says_so_on_stderr() -> None:
    assert logs().stdout == ""
    assert "no requests are in the ledger yet" in logs().stderr
    assert json.loads(logs("--json").stdout) == []
    assert not default_path().exists()


def test_options_before_a_subcommand_are_not_ignored(some: Path) -> None:
    result = logs("--json", "verify")
    assert result.exit_code == 2
    assert "edgeai logs verify" in result.stderr


def test_what_an_endpoint_said_does_not_drive_the_terminal() -> None:
    write(
        entry(
            "a",
            answered_by=None,
            finish_reason=None,
            error="cut",
            attempts=({"model": "m\x1b[31m", "status": "failed"},),
        )
    )
    assert "nobody (cut)" in logs().stdout
    assert "\x1b" not in logs("show", "1").stdout


# What left.


def test_egress_lists_what_left_and_what_was_replaced(some: Path) -> None:
    out = logs("--egress").stdout
    assert "api.example.com:443: 2.2 kB in 2 requests" in out
    assert "2234 bytes have left this machine" in out
    rows = [line for line in out.splitlines() if line.startswith(("2 ", "3 "))]
    assert rows[0].endswith("-")
    assert rows[1].endswith("card (1)")
    found = json.loads(logs("--egress", "--json").stdout)
    assert (found["left_bytes"], found["here_bytes"]) == (2234, 0)
    assert found["hosts"] == {"api.example.com:443": {"bytes": 2234, "requests": 2, "here": False}}
    assert found["sent"][1]["replaced"] == {"card": 1}


def test_nothing_left_is_said_as_zero_bytes() -> None:
    write(entry("a"))
    assert logs("--egress").stdout == "0 bytes have left this machine\n"


def test_bytes_to_an_endpoint_here_are_told_apart() -> None:
    attempt = {"model": "cloud/mine", "status": "ok", "sent_bytes": 77, "remote": "127.0.0.1:8000"}
    write(entry("a", attempts=(attempt,)))
    out = logs("--egress").stdout
    assert "127.0.0.1:8000 (this machine)" in out
    assert "0 bytes have left this machine" in out
    assert "77 bytes went to endpoints on this machine" in out


# One row, and the whole chain.


def test_show_has_everything_of_a_request() -> None:
    write(entry("a"), bodies=True)
    out = logs("show", "1").stdout
    for part in (
        "stays" if "stays" in out else "local_only",
        "4111 **** 1111",
        "excluded by privacy.card",
        "0 bytes",
        ANSWER,
    ):
        assert part in out
    assert json.loads(logs("show", "1", "--json").stdout)["bodies"]["answer"] == ANSWER
    assert logs("show", "9").exit_code == 2


def test_verify_is_ok_and_prints_what_to_keep(some: Path) -> None:
    result = logs("verify")
    assert result.exit_code == 0
    kept = result.stdout.split()[-1]
    assert kept.startswith("3:")
    assert logs("verify", "--against", kept).exit_code == 0
    assert logs("verify", "--against", "3:" + "0" * 64).exit_code == 9
    assert logs("verify", "--against", "nonsense").exit_code == 2
    assert json.loads(logs("verify", "--json").stdout)["ok"]


def test_verify_names_the_edited_row_and_exits_9(some: Path) -> None:
    with contextlib.closing(sqlite3.connect(some)) as connection:
        connection.execute("UPDATE rows SET row = replace(row, '1234', '4321') WHERE seq = 2")
        connection.commit()
    result = logs("verify")
    assert result.exit_code == 9
    assert "row 2 was edited" in result.stderr
    assert "BAD   row 2 was edited" in result.stdout
    result = logs("verify", "--json")
    assert result.exit_code == 9
    assert json.loads(result.stdout)["problems"][0]["seq"] == 2


def test_a_ledger_that_is_none_is_an_error_without_traceback(some: Path) -> None:
    some.write_bytes(b"nonsense" * 999)
    for arguments in ((), ("--egress",), ("verify",), ("show", "1"), ("replay",), ("prune", "--before", "1d")):
        result = logs(*arguments)
        assert result.exit_code == 9, arguments
        assert result.stderr.startswith("error: ")


def test_prune_deletes_old_rows_and_the_rest_verifies() -> None:
    now = datetime.now(UTC)
    write(entry("old", time=now - timedelta(days=9)), entry("new"))
    assert json.loads(logs("prune", "--before", "2d", "--json").stdout)["pruned"] == 1
    assert [row["id"] for row in json.loads(logs("--json").stdout)] == ["new"]
    assert logs("verify").exit_code == 0
    assert logs("prune", "--before", "2d").stderr == "0 rows are deleted\n"


# Past requests decided again.


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "decide", decide)


def test_replay_says_what_another_policy_changes(stub: None, some: Path) -> None:
    found = json.loads(logs("replay", "--policy", "local-first", "--json").stdout)
    assert (found["requests"], found["moved"], found["policy"]) == (3, 2, "local-first")
    assert found["moves"] == [{"was": "cloud/gpt", "now": "local/smollm2", "count": 2}]
    assert found["cost_usd"] == {"was": 0.75, "would_be": 0.0, "n": 3, "estimated": 0, "unknown": 0}
    # Quality falls from 0.9 to 0.6 in two of three.
    assert found["quality"]["gain"] == pytest.approx(-0.2)
    assert found["quality"]["n"] == 3
    assert found["quality"]["low"] == pytest.approx(-0.3)
    assert found["quality"]["high"] == pytest.approx(0.0)
    out = logs("replay", "--policy", "local-first").stdout
    assert "2 of 3 requests would have gone elsewhere under local-first" in out
    assert "an estimate" in out


def test_replay_prices_what_would_have_left_as_an_estimate(stub: None) -> None:
    facts = Facts(placement="any", prompt_tokens=100)
    write(entry("private"), entry("a", facts=facts), entry("b", facts=facts, usage=None))
    found = json.loads(logs("replay", "--policy", "cloud-first", "--json").stdout)
    # 100 tokens at $10 and 50 at $30 a million.
    assert found["cost_usd"] == {"was": 0.0, "would_be": pytest.approx(0.0025), "n": 2, "estimated": 1, "unknown": 1}
    assert found["moves"] == [{"was": "local/smollm2", "now": "cloud/gpt", "count": 2}]


def test_what_is_private_stays_under_any_policy(stub: None) -> None:
    write(entry("private"))
    assert json.loads(logs("replay", "--policy", "cloud-first", "--json").stdout)["moved"] == 0


def test_replay_takes_the_endpoints_of_a_configuration(stub: None, tmp_path: Path) -> None:
    write(entry("a", facts=Facts(placement="any", prompt_tokens=100)))
    config = tmp_path / "new.toml"
    config.write_text(
        '[routing]\npolicy = "cloud-first"\n[[cloud]]\nname = "gpt"\nbase_url = "https://x.example/v1"\nmodel = "m"\n'
        "usd_per_million_input = 20.0\nquality = 1.0\n",
        encoding="utf-8",
    )
    found = json.loads(logs("replay", "--config", str(config), "--json").stdout)
    assert found["cost_usd"]["would_be"] == pytest.approx(0.002)
    assert found["quality"]["gain"] == pytest.approx(0.4)


def test_a_cascade_is_replayed_by_the_confidence_that_was_measured() -> None:
    def cascade(_facts: Facts, _state: State, settings: RoutingSettings) -> Decision:
        models = (Candidate(model="local/smollm2"), Candidate(model="cloud/gpt"))
        return Decision(placement="any", policy="cascade", reason="", candidates=models, cascade=True)

    def row(confidence: float | None) -> dict[str, object]:
        attempt = {"model": "local/smollm2", "confidence": confidence}
        return {
            "seq": 1, "facts": {"placement": "any", "prompt_tokens": 1}, "state": {}, "decision": {"target": None},
            "attempts": [attempt], "answered_by": "local/smollm2", "cost_usd": 0.0, "usage": None,
        }  # fmt: skip

    settings = RoutingSettings(min_confidence=0.7)
    found = replays.replay([row(0.8), row(0.6), row(None)], settings, decide=cascade)
    assert [change.now for change in found.changes] == ["local/smollm2", "cloud/gpt", "local/smollm2"]
    assert found.unsure == 1


def test_rows_come_back_as_the_values_they_were() -> None:
    """Facts and state of a row are those of the entry, so that the same policy decides the same."""
    seen = []

    def watch(facts: Facts, state: State, settings: RoutingSettings) -> Decision:
        seen.append((facts, state))
        return decide(facts, state, settings)

    one = entry("a", facts=Facts(placement="any", prompt_tokens=5, rules=("privacy.card",), deadline_s=2.0))
    write(one)
    replays.replay(json.loads(logs("--json").stdout), RoutingSettings(), decide=watch)
    assert seen == [(one.facts, one.state)]


def test_a_row_that_cannot_be_read_is_left_out_and_said() -> None:
    found = replays.replay([{"seq": 4}], RoutingSettings(), decide=decide)
    assert found.changes == ()
    assert found.skipped[0][0] == 4


def test_the_same_model_costs_what_was_paid() -> None:
    one = {
        "seq": 1, "facts": {"placement": "any", "prompt_tokens": 1}, "state": {}, "decision": {"target": "local/smollm2"},
        "answered_by": "local/smollm2", "cost_usd": 0.125, "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }  # fmt: skip
    found = replays.replay([one], RoutingSettings(), decide=decide).to_dict()
    assert found["cost_usd"] == {"was": 0.125, "would_be": 0.125, "n": 1, "estimated": 0, "unknown": 0}
    assert Usage(prompt_tokens=1, completion_tokens=1).cached_tokens == 0
