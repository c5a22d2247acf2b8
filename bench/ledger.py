"""Measure the ledger of routed requests: what the caller pays, what the writer takes, what reading the chain takes.

    python bench/ledger.py [-o bench/results/ledger.json]

Times are of this machine's disk: a row alone is one commit that is on the disk (fsync) before the next.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from edgeai.routing.ledger import QUEUE, Entry, Ledger
from edgeai.routing.request import Candidate, CloudState, Decision, Facts, LocalState, State, Verdict

MODELS = ("cloud/a", "local/smollm2")


def entry(number: int) -> Entry:
    """A request of 1,200 characters with an answer of 600."""
    attempt = {"model": "cloud/a", "status": "ok", "error": None, "sent_bytes": 1400, "remote": "api.example.com:443"}
    return Entry(
        id=f"r{number}", facts=Facts(placement="any", prompt_tokens=300), verdict=Verdict(placement="any"),
        state=State(local=LocalState(model="smollm2", ability={"chat": 0.5}), clouds=(CloudState(name="a", model="m"),)),
        decision=Decision(
            placement="any", policy="cloud-first", reason="r", candidates=tuple(Candidate(model=name) for name in MODELS)
        ),
        attempts=(attempt,), answered_by="cloud/a", cost_usd=0.001, prompt=[{"role": "user", "content": "hello " * 200}],
        answer="a " * 300, config="ab" * 32,
    )  # fmt: skip


def measure(folder: Path) -> dict[str, Any]:
    """Return the figures."""
    ledger = Ledger(folder / "ledger.sqlite3")
    ledger.record(entry(0))
    assert ledger.flush(30)
    calls: list[float] = []
    written_s = 0.0
    for _ in range(10):
        batch = [entry(number) for number in range(QUEUE - 100)]
        began = time.perf_counter()
        for one in batch:
            before = time.perf_counter()
            ledger.record(one)
            calls.append(time.perf_counter() - before)
        assert ledger.flush(60)
        written_s += time.perf_counter() - began
    alone = []
    for number in range(200):
        began = time.perf_counter()
        ledger.record(entry(number))
        assert ledger.flush(30)
        alone.append(time.perf_counter() - began)
    sums = []
    for _ in range(1000):
        began = time.perf_counter()
        ledger.spent_usd()
        sums.append(time.perf_counter() - began)
    assert ledger.close(30)
    assert ledger.notices() == ()
    began = time.perf_counter()
    found = ledger.history().verify()
    verified_s = time.perf_counter() - began
    assert found.ok
    cuts = statistics.quantiles(calls, n=100)
    return {
        "record_us_p50": 1e6 * statistics.median(calls), "record_us_p99": 1e6 * cuts[98], "writer_ms_row": 1e3 * written_s / len(calls),
        "row_alone_ms_p50": 1e3 * statistics.median(alone), "spent_usd_us_p50": 1e6 * statistics.median(sums),
        "verify_us_row": 1e6 * verified_s / found.rows, "rows": found.rows,
        "bytes_row": (folder / "ledger.sqlite3").stat().st_size / found.rows,
    }  # fmt: skip


def main() -> None:
    """Measure, print, and write the file that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    result = {
        "command": "python bench/ledger.py",
        "commit": commit,
        "machine": platform.processor() or platform.machine(),
    } | found
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
