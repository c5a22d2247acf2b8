from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeai.errors import DoesNotFit
from edgeai.training.monitor import Event, Meter, Metrics


def test_rate_counts_the_time_of_steps_and_the_eta_all_of_it() -> None:
    clock = iter([0.0, 1.0, 3.0, 10.0, 12.0, 20.0])  # made, step 1 to 3 s, step 10 to 12 s, asked at 20 s
    meter = Meter(lambda: next(clock))
    for _ in range(2):
        meter.start()
        meter.stop(100)
    assert meter.tok_s == pytest.approx(200 / 4)
    assert meter.eta_s(5) == pytest.approx(20 / 2 * 5)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_is_told_once(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", after_step=0)
    metrics.close()
    metrics._file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115 - Metrics closes it
    with pytest.raises(DoesNotFit, match=r"metrics\.jsonl"):
        metrics.write(Event(step=1))
    metrics.close()


def test_metrics_of_steps_that_were_lost_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    metrics = Metrics(path, after_step=2)
    metrics.write(Event(step=3, loss=1.5))
    metrics.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1] == {
        "step": 3, "loss": 1.5, "lr": 0.0, "grad_norm": 0.0, "tok_s": 0.0, "eval_loss": None,
    }  # fmt: skip
