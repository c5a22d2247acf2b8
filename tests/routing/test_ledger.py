"""The ledger: nothing waits for it, nothing readable is in it, and whoever changes it is found out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgeai.config import LedgerSettings
from edgeai.errors import EdgeAIError, LedgerBroken
from edgeai.routing import ledger as ledgers
from edgeai.routing.chain import Head, read_head
from edgeai.routing.entry import is_here, scrub
from edgeai.routing.history import History
from edgeai.routing.ledger import QUEUE, Ledger
from edgeai.routing.ledgerfile import LedgerFile, head_path
from edgeai.types import Notice
from tests.routing.entries import ANSWER, SECRET, entry

ROOT = Path(__file__).parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="signals and modes of POSIX")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "é x" / "ledger.sqlite3"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    made = Ledger(path)
    yield made
    made.close(0.1)


@pytest.fixture
def ten(path: Path) -> Path:
    """A ledger of ten rows, closed."""
    made = Ledger(path)
    for number in range(10):
        made.record(entry(f"r{number}", sent=100 * number, cost=number / 100))
    assert made.close(10)
    return path


def change(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def child(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Run CODE, which finds its arguments in sys.argv, in a Python of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


# What is written.


def test_a_row_has_everything_but_the_text(ten: Path) -> None:
    rows = History(ten).rows()
    assert [row["seq"] for row in rows] == list(range(1, 11))
    first, last = rows[0], rows[-1]
    assert first["rules"][0] == {
        "id": "privacy.card", "kind": "card", "start": 11, "end": 30, "masked": "4111 **** 1111", "where": "message 1",
        "message": 0, "redactable": True,
    }  # fmt: skip
    assert (first["placement"], first["egress_bytes"], first["egress"]) == ("local_only", 0, [])
    assert last["egress"] == [{"host": "api.example.com:443", "bytes": 900, "here": False}]
    assert last["config"] == ("c0ffee" * 10)[:16]
    assert last["state"]["clouds"][0]["usd_per_million_input"] == 10.0
    assert last["decision"]["target"] == "cloud/gpt"
    assert datetime.fromisoformat(last["time"]).tzinfo == UTC
    everything = b"".join(file.read_bytes() for file in ten.parent.iterdir())
    assert SECRET.encode() not in everything
    assert b"4111 1111" not in everything
    assert ANSWER.encode() not in everything


def test_the_hash_of_a_row_is_that_of_the_chain(ten: Path) -> None:
    """Computed here from the bytes on the disk, as the documentation says it."""
    with contextlib.closing(sqlite3.connect(ten)) as connection:
        previous = bytes(32)
        for text, written in connection.execute("SELECT row, hash FROM rows ORDER BY seq"):
            assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
            previous = hashlib.sha256(previous + text.encode()).digest()
            assert written == previous.hex()
    assert read_head(head_path(ten)) == Head(10, previous.hex(), read_head(head_path(ten)).mac)  # type: ignore[union-attr]


def test_digests_are_keyed_and_of_one_machine(ten: Path, tmp_path: Path) -> None:
    digests = History(ten).rows()[0]["digests"]
    key = ten.with_name("ledger.sqlite3.key").read_bytes()
    assert digests["answer"] == hashlib.blake2b(ANSWER.encode(), digest_size=16, key=key).hexdigest()
    other = Ledger(tmp_path / "other.sqlite3")
    other.record(entry())
    other.close(10)
    assert other.history().rows()[0]["digests"]["answer"] != digests["answer"]


@posix
def test_only_the_user_may_read_it(ten: Path) -> None:
    assert {file.stat().st_mode & 0o077 for file in (ten.parent, *ten.parent.iterdir())} == {0}


def test_bodies_are_kept_only_where_that_was_asked_for(path: Path, ten: Path) -> None:
    assert "bodies" not in (History(ten).row(1) or {})
    with_bodies = Ledger(path.with_name("other.sqlite3"), LedgerSettings(bodies=True))
    with_bodies.record(entry())
    assert with_bodies.close(10)
    row = with_bodies.history().row(1)
    assert row is not None
    assert json.loads(row["bodies"]["prompt"]) == [{"role": "user", "content": SECRET}]
    assert row["bodies"]["answer"] == ANSWER
    change(with_bodies.path, "UPDATE bodies SET answer = 'no' WHERE seq = 1")
    assert [problem.what for problem in with_bodies.history().verify().problems] == [
        "the answer of row 1 is not the one that was recorded"
    ]


def test_a_ledger_that_is_off_writes_nothing(path: Path) -> None:
    off = Ledger(path, LedgerSettings(on=False))
    off.record(entry(cost=0.5))
    assert off.close()
    assert not path.parent.exists()
    assert off.spent_usd() == 0.5


def test_errors_of_endpoints_are_kept_without_keys_and_controls(ledger: Ledger) -> None:
    said = "bad key sk-abcdefgh12345678 for Bearer abc.def at https://me:pw@host/ \x1b[31m" + "x" * 999
    attempt = {"model": "cloud/gpt", "status": "failed", "error": said, "sent_bytes": 5, "remote": "h:1"}
    ledger.record(entry(attempts=(attempt,), error=said))
    ledger.flush(10)
    row = ledger.history().rows()[0]
    for text in (row["error"], row["attempts"][0]["error"], scrub(said) or ""):
        assert len(text) < 320
        assert not any(part in text for part in ("sk-abc", "abc.def", "me:pw", "\x1b"))


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1:80", True),
        ("[::1]:80", True),
        ("localhost:1", True),
        ("127.0.0.1.evil.com:80", False),
        ("10.0.0.1:80", False),
    ],
)
def test_only_loopback_is_this_machine(host: str, here: bool) -> None:
    assert is_here(host) == here


def test_numbers_that_json_has_not_are_null(ledger: Ledger) -> None:
    ledger.record(entry(cost=float("nan"), attempts=({"model": "m", "ttft_s": float("inf")},)))
    assert ledger.flush(10)
    row = ledger.history().rows()[0]
    assert (row["cost_usd"], row["attempts"][0]["ttft_s"]) == (0.0, None)


# Nobody waits.


def test_what_cannot_be_an_entry_is_a_notice_and_the_next_is_written(ledger: Ledger) -> None:
    ledger.record(entry(attempts=(1,)))
    ledger.record(entry("good"))
    assert ledger.flush(10)
    assert [notice.code for notice in ledger.notices()] == ["ledger"]
    assert [row["id"] for row in ledger.history().rows()] == ["good"]
    assert [row["kind"] for row in ledger.history().rows(requests=False)] == ["lost", "request"]


def test_a_full_queue_drops_and_says_so_in_the_ledger(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    right = LedgerFile.append

    def slow(self: LedgerFile, records: Any) -> int:
        gate.wait(20)
        return right(self, records)

    monkeypatch.setattr(LedgerFile, "append", slow)
    ledger.record(entry())
    while ledger._writer is not None and ledger._writer._queue:
        time.sleep(0.001)
    began = time.perf_counter()
    for number in range(QUEUE + 7):
        ledger.record(entry(f"r{number}"))
    assert time.perf_counter() - began < 10  # and not 20
    gate.set()
    ledger.flush(20)
    ledger.record(entry("last"))
    ledger.flush(20)
    rows = ledger.history().rows(requests=False)
    assert [row["count"] for row in rows if row["kind"] == "lost"] == [7]
    assert len(rows) == QUEUE + 3
    assert "wait to be written" in ledger.notices()[0].message
    assert any("7 requests could not be recorded" in note for note in ledger.history().verify().notes)


def test_a_callback_gets_each_cause_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Notice] = []
    failing = Ledger(path, notify=said.append)
    monkeypatch.setattr(LedgerFile, "append", raising(PermissionError(13, "Permission denied")))
    for _ in range(3):
        failing.record(entry())
        assert not failing.flush(10)
    assert len(said) == 1
    assert failing.take_notices() == tuple(said)
    assert failing.take_notices() == ()
    failing.close(0.1)


def test_a_callback_that_fails_reaches_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Ledger(path, notify=raising(RuntimeError("callback")))
    with monkeypatch.context() as patch:
        patch.setattr(LedgerFile, "append", raising(PermissionError(13, "Permission denied")))
        failing.record(entry())
        assert not failing.flush(10)
    failing.record(entry("next"))
    assert failing.flush(10)
    assert len(failing.notices()) == 1
    failing.close()


def raising(error: Exception) -> Callable[..., Any]:
    def raise_it(*_args: Any) -> Any:
        raise error

    return raise_it


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY])
def test_rows_wait_for_a_fault_that_may_pass(ledger: Ledger, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    error = sqlite3.OperationalError("a fault")
    error.sqlite_errorcode = code  # as sqlite3 sets it
    with monkeypatch.context() as patch:
        patch.setattr(LedgerFile, "append", raising(error))
        ledger.record(entry("first"))
        began = time.monotonic()
        assert not ledger.flush(30)
        assert time.monotonic() - began < 5  # it is not waited for
    ledger.record(entry("second"))
    assert ledger.flush(10)
    assert [row["id"] for row in ledger.history().rows()] == ["first", "second"]
    assert len(ledger.notices()) == 1


@posix
def test_a_full_disk_costs_a_notice_and_no_answer(path: Path) -> None:
    """The real thing: a limit on the size of files, which the kernel enforces."""
    code = """if True:
        import resource, sys
        from pathlib import Path
        from edgeai.routing.ledger import Ledger
        from tests.routing.entries import entry
        made = Ledger(Path(sys.argv[1]))
        made.record(entry("before"))
        assert made.flush(10)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
        for number in range(200):
            made.record(entry(f"r{number}"))
        assert not made.flush(10)
        print(made.notices()[0].message)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert made.close(10), made.notices()
    """
    process = child(code, path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "requests wait in memory" in out
    assert len(History(path).rows()) == 201
    assert History(path).verify().ok


def test_a_lock_that_stays_is_a_notice_and_the_rows_come_later(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeai.routing.ledgerfile.BUSY_S", 0.05)
    ledger.record(entry("first"))
    assert ledger.flush(10)
    ledger.close()
    code = """if True:
        import sqlite3, sys
        held = sqlite3.connect(sys.argv[1], isolation_level=None)
        held.execute("BEGIN EXCLUSIVE")
        print("held", flush=True)
        sys.stdin.read()
    """
    process = child(code, path, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    ledger.record(entry("second"))
    began = time.monotonic()
    assert not ledger.flush(30)
    assert time.monotonic() - began < 5
    assert "locked" in ledger.notices()[0].message
    process.communicate("", timeout=20)
    assert ledger.flush(10)
    assert [row["id"] for row in ledger.history().rows()] == ["first", "second"]
    assert ledger.history().verify().ok


@posix
def test_a_folder_that_cannot_be_written_is_a_notice(tmp_path: Path) -> None:
    """A file where the folder should be: this holds for root too."""
    (tmp_path / "routing").write_text("no folder")
    failing = Ledger(tmp_path / "routing" / "ledger.sqlite3")
    failing.record(entry())
    assert not failing.flush(10)
    assert "cannot be written" in failing.notices()[0].message
    failing.close(0.1)


@pytest.mark.parametrize("damage", ["text", "middle", "cut"])
def test_a_damaged_file_is_moved_aside_and_kept(ten: Path, damage: str) -> None:
    content = ten.read_bytes()
    broken = {
        "text": b"this is no database" * 100,
        "middle": content[:4096] + b"\xff" * (len(content) - 4096),
        "cut": content[: len(content) // 2 // 4096 * 4096],
    }[damage]
    ten.write_bytes(broken)
    made = Ledger(ten)
    made.record(entry("after"))
    assert made.flush(10), made.notices()
    made.close()
    assert "a new one begun" in made.notices()[0].message
    (aside,) = (file for file in ten.parent.glob("*.corrupt-*") if file.suffix != ".head")
    assert aside.read_bytes()[:1000] == broken[:1000]
    assert aside.with_name(f"{aside.name}.head").exists()
    rows = made.history().rows(requests=False)
    assert [row["kind"] for row in rows] == ["begun", "request"]
    assert aside.name in made.history().verify().notes[0]


def test_a_file_of_a_later_format_is_left_alone(ten: Path) -> None:
    change(ten, "PRAGMA user_version = 2")
    made = Ledger(ten)
    made.record(entry())
    assert not made.flush(10)
    made.close(0.1)
    assert "format 2" in made.notices()[0].message
    assert len(History(ten).rows()) == 10


def test_a_ledger_deleted_while_it_is_written_is_begun_anew_and_that_is_found(path: Path, ledger: Ledger) -> None:
    ledger.record(entry("first"))
    ledger.record(entry("second"))
    assert ledger.flush(10)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    ledger.record(entry("third"))
    assert ledger.flush(10)
    assert [row["id"] for row in ledger.history().rows()] == ["third"]
    assert "rows from 1 to 2 had been cut off" in ledger.history().verify().problems[0].what


# Several writers, and sudden ends.

WRITE = """if True:
    import sys
    from pathlib import Path
    from edgeai.routing.ledger import Ledger
    from tests.routing.entries import entry
    made = Ledger(Path(sys.argv[1]))
    for number in range(int(sys.argv[3])):
        made.record(entry(f"{sys.argv[2]}{number}"))
        if number % 10 == 0:
            made.flush(30)
    print(made.close(30), made.notices())
"""


def test_two_processes_write_one_chain(path: Path) -> None:
    both = [child(WRITE, path, name, 200) for name in "ab"]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert out == "True ()\n", err
    found = History(path).verify()
    assert (found.ok, found.rows, found.notes) == (True, 400, ())
    assert len({row["id"] for row in History(path).rows()}) == 400
    assert read_head(head_path(path)).seq == 400  # type: ignore[union-attr]


@posix
def test_a_process_killed_while_it_writes_leaves_a_chain_that_verifies(path: Path) -> None:
    for _ in range(3):
        process = child(WRITE, path, "k", 100_000)
        before = len(History(path).rows()) if path.exists() else 0
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(EdgeAIError):  # it is being made
                if len(History(path).rows()) > before + 20:
                    break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        assert History(path).verify().ok
    made = Ledger(path)
    made.record(entry("after"))
    assert made.close(10)
    found = History(path).verify()
    assert found.ok, found.problems
    assert found.rows > 60


@posix
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_writer_of_its_own(ledger: Ledger) -> None:
    ledger.record(entry("parent"))
    assert ledger.flush(10)
    pid = os.fork()
    if pid == 0:
        ledger.record(entry("child"))
        os._exit(0 if ledger.flush(10) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    ledger.record(entry("parent again"))
    assert ledger.flush(10)
    assert [row["id"] for row in ledger.history().rows()] == ["parent", "child", "parent again"]
    assert ledger.history().verify().ok


def test_what_waits_is_written_when_the_program_ends(path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from edgeai.routing.ledger import Ledger
        from tests.routing.entries import entry
        Ledger(Path(sys.argv[1])).record(entry("only"))
    """
    process = child(code, path)
    assert process.communicate(timeout=60)[1] == ""
    assert [row["id"] for row in History(path).rows()] == ["only"]


# Who changes it is found out.

TAMPER = {
    "a cost": ("UPDATE rows SET row = replace(row, '\"cost_usd\":0.04', '\"cost_usd\":0.01') WHERE seq = 5", 5),
    "bytes that left": ("UPDATE rows SET row = replace(row, ':400', ':0') WHERE seq = 5", 5),
    "a hash": ("UPDATE rows SET hash = (SELECT hash FROM rows WHERE seq = 4) WHERE seq = 5", 5),
    "no hash": ("UPDATE rows SET hash = 'nonsense' WHERE seq = 5", 5),
    "spaces": ("UPDATE rows SET row = row || ' ' WHERE seq = 5", 5),
    "a middle row removed": ("DELETE FROM rows WHERE seq = 5", 5),
    "the first row removed": ("DELETE FROM rows WHERE seq = 1", 1),
    "the last row removed": ("DELETE FROM rows WHERE seq = 10", 10),
    "three last rows removed": ("DELETE FROM rows WHERE seq > 7", 8),
    "every row removed": ("DELETE FROM rows", 1),
}


@pytest.mark.parametrize("how", TAMPER)
def test_tampering_is_found_and_its_row_named(ten: Path, how: str) -> None:
    statement, seq = TAMPER[how]
    assert History(ten).verify().ok
    with contextlib.closing(sqlite3.connect(ten)) as connection:
        connection.execute(statement)
        assert connection.total_changes
        connection.commit()
    found = History(ten).verify()
    assert not found.ok
    assert found.problems[0].seq == seq
    assert f"row {seq}" in found.problems[0].what


def test_a_row_edited_with_its_hash_is_found_at_the_next(ten: Path) -> None:
    row = History(ten).rows()[4]
    del row["hash"]
    text = json.dumps(row | {"egress_bytes": 0}, sort_keys=True, separators=(",", ":"))
    with contextlib.closing(sqlite3.connect(ten)) as connection:
        (previous,) = connection.execute("SELECT hash FROM rows WHERE seq = 4").fetchone()
        fresh = hashlib.sha256(bytes.fromhex(previous) + text.encode()).hexdigest()
        connection.execute("UPDATE rows SET row = ?, hash = ? WHERE seq = 5", (text, fresh))
        connection.commit()
    (problem,) = History(ten).verify().problems
    assert problem.seq == 6
    assert "not the one that followed row 5" in problem.what


def test_bytes_edited_in_the_file_are_found(ten: Path) -> None:
    content = ten.read_bytes()
    assert content.count(b'"id":"r4"') == 1
    ten.write_bytes(content.replace(b'"id":"r4"', b'"id":!r4"'))
    assert [problem.what for problem in History(ten).verify().problems] == [
        "row 5 was edited, or is not the one that followed row 4",
        "row 5 is not a row of the ledger",
    ]
    with pytest.raises(EdgeAIError):
        History(ten).rows()


def test_two_rows_swapped_are_both_found(ten: Path) -> None:
    change(
        ten,
        "UPDATE rows SET seq = 99 WHERE seq = 4",
        "UPDATE rows SET seq = 4 WHERE seq = 7",
        "UPDATE rows SET seq = 7 WHERE seq = 99",
    )
    problems = History(ten).verify().problems
    assert {problem.seq for problem in problems} >= {4, 7}
    assert any(problem.what == "row 4 was written as row 7" for problem in problems)


def test_a_row_inserted_in_the_middle_is_found(ten: Path) -> None:
    change(
        ten,
        "UPDATE rows SET seq = -seq - 1 WHERE seq > 4",
        "UPDATE rows SET seq = -seq WHERE seq < 0",
        "INSERT INTO rows (seq, row, hash) SELECT 5, replace(row, '\"seq\":4', '\"seq\":5'), hash FROM rows WHERE seq = 4",
    )
    assert History(ten).verify().problems[0].seq == 5


def test_a_head_that_was_written_back_is_found(ten: Path) -> None:
    head = read_head(head_path(ten))
    row = History(ten).row(9)
    assert head is not None
    assert row is not None
    change(ten, "DELETE FROM rows WHERE seq = 10")
    head_path(ten).write_text(json.dumps({"seq": 9, "hash": row["hash"], "mac": head.mac}))
    assert "not written by this machine" in History(ten).verify().problems[0].what


def test_a_head_that_is_gone_is_found(ten: Path) -> None:
    head_path(ten).unlink()
    assert "head file is gone" in History(ten).verify().problems[0].what


def test_rows_cut_off_stay_found_when_more_are_written(ten: Path) -> None:
    change(ten, "DELETE FROM rows WHERE seq > 8")
    made = Ledger(ten)
    made.record(entry("after"))
    assert made.close(10)
    (problem,) = History(ten).verify().problems
    assert problem.seq == 9
    assert "rows from 9 to 10 had been cut off" in problem.what


def test_a_chain_made_anew_is_found_by_a_hash_that_was_kept(ten: Path) -> None:
    kept = Head(10, History(ten).verify().head)
    assert History(ten).verify(kept).ok
    for file in list(ten.parent.iterdir()):
        file.unlink()
    made = Ledger(ten)
    for number in range(10):
        made.record(entry(f"r{number}"))
    made.close(10)
    assert History(ten).verify().ok
    assert "hash that was kept" in History(ten).verify(kept).problems[0].what


def test_rows_that_the_head_does_not_know_are_noted(ten: Path) -> None:
    LedgerFile(ten).append([({"kind": "lost", "time": "2030-01-01T00:00:00.000000Z", "count": 1}, None)])
    found = History(ten).verify()
    assert found.ok
    assert "head file does not know row 11" in found.notes[-1]


# Reading, sums, pruning.


def test_rows_are_found_by_time_and_number(ledger: Ledger) -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    for day in range(5):
        ledger.record(entry(f"d{day}", time=start + timedelta(days=day), sent=10 * (day % 2), cost=1.0))
    assert ledger.flush(10)
    history = ledger.history()
    assert [row["id"] for row in history.rows(since=start + timedelta(days=3))] == ["d3", "d4"]
    assert [row["id"] for row in history.rows(limit=2)] == ["d3", "d4"]
    assert [row["id"] for row in history.rows(egress=True)] == ["d1", "d3"]
    assert history.cost_usd(start + timedelta(days=1)) == 4.0
    assert history.row(99) is None


def test_a_ledger_that_is_not_there_is_empty(path: Path) -> None:
    assert History(path).rows() == []
    assert History(path).row(1) is None
    assert History(path).cost_usd(datetime.now(UTC)) == 0
    assert History(path).verify().ok
    assert not path.parent.exists()


def test_what_is_no_ledger_is_an_error_to_read_and_a_problem_to_verify(ten: Path) -> None:
    ten.write_bytes(b"nonsense" * 1000)
    with pytest.raises(LedgerBroken, match="is no ledger"):
        History(ten).rows()
    assert not History(ten).verify().ok


def test_what_was_spent_counts_all_processes_and_what_is_not_written_yet(path: Path, ledger: Ledger) -> None:
    ledger.record(entry(cost=0.25))
    assert ledger.spent_usd() == pytest.approx(0.25)
    ledger.flush(10)
    assert ledger.spent_usd() == pytest.approx(0.25)
    ledger.record(entry(cost=0.5))
    assert ledger.spent_usd() == pytest.approx(0.75)
    ledger.record(entry(cost=9.0, time=datetime.now(UTC) - timedelta(days=3)))
    ledger.flush(10)
    other = Ledger(path)
    assert other.spent_usd() == pytest.approx(0.75)
    assert other.spent_usd(datetime.now(UTC) - timedelta(days=7)) == pytest.approx(9.75)


def test_what_was_spent_is_known_where_nothing_can_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LedgerFile, "append", raising(PermissionError(13, "no")))
    failing = Ledger(path)
    failing.record(entry(cost=0.25))
    failing.flush(10)
    assert failing.spent_usd() == pytest.approx(0.25)
    failing.close(0.1)


def test_pruning_leaves_a_chain_that_says_so(ledger: Ledger) -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    for day in range(6):
        ledger.record(entry(f"d{day}", time=start + timedelta(days=day)))
    assert ledger.close(10)
    file = LedgerFile(ledger.path)
    assert file.prune(start + timedelta(days=2)) == 2
    assert file.prune(start + timedelta(days=2)) == 0
    assert file.prune(start + timedelta(days=4)) == 2
    file.close()
    found = ledger.history().verify()
    assert found.ok, found.problems
    assert found.notes[0].startswith("rows up to 2 were pruned")
    assert [row["id"] for row in ledger.history().rows()] == ["d4", "d5"]
    assert b'"d1"' not in ledger.path.read_bytes()


def test_more_rows_removed_than_were_pruned_is_found(ledger: Ledger) -> None:
    for number in range(6):
        ledger.record(entry(f"d{number}", time=datetime(2030, 1, number + 1, tzinfo=UTC)))
    assert ledger.close(10)
    file = LedgerFile(ledger.path)
    file.prune(datetime(2030, 1, 3, tzinfo=UTC))
    file.close()
    change(ledger.path, "DELETE FROM rows WHERE seq = 3")
    assert ledger.history().verify().problems[0].what == "row 1 to 3 was removed"


def test_recording_takes_next_to_no_time(ledger: Ledger) -> None:
    """The caller's share is 2 µs; 20 are promised, and a busy machine gets more. `ledgers` is what the router imports."""
    assert ledgers.Ledger is Ledger
    ledger.record(entry())
    ledger.flush(10)
    made = [entry(f"r{number}") for number in range(200)]
    times = []
    for one in made:
        began = time.perf_counter()
        ledger.record(one)
        times.append(time.perf_counter() - began)
    assert sorted(times)[len(times) // 2] < 100e-6
    assert ledger.flush(20)
