"""What is measured is what is said: figures have the sizes, threads and tokens that they name."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from edgeai.device import CPU
from edgeai.engines.opening import planned
from edgeai.errors import UsageError
from edgeai.evaluation.bench import Case, Measured, Native, interruptible, matrix
from edgeai.evaluation.energy import Meter
from edgeai.evaluation.streams import Answer, ask, distinct_texts, end_tokens, quantile, together
from edgeai.evaluation.tune import Trial, best, candidates
from edgeai.model import Model
from edgeai.plan import LoadOptions


class Fixed:
    """A counter of one joule a reading."""

    name = "fixed"

    def __init__(self) -> None:
        self.readings = 0

    def joules(self) -> float:
        self.readings += 1
        return float(self.readings)


def test_cases_come_in_llama_benchs_order_and_zero_is_none() -> None:
    cases = matrix(prompts=(512, 0), answers=(128,), depths=(0, 64), threads=((2, 4),))
    assert [(case.name, case.threads) for case in cases] == [
        ("pp512", 4), ("tg128", 2), ("pp512 @ d64", 4), ("tg128 @ d64", 2),
    ]  # fmt: skip
    with pytest.raises(UsageError):
        matrix(prompts=(0,), answers=(0,), depths=(0,), threads=((1, 1),))


def test_spread_is_that_of_a_sample() -> None:
    case = Case(kind="pp", size=1, threads=1)
    assert Measured(case=case, tok_s=(1.0, 3.0)).std == pytest.approx(2**0.5)
    assert Measured(case=case, tok_s=(5.0,)).std == 0


@pytest.fixture(scope="module")
def native(tiny_gguf: Path) -> object:
    artifact, plan = planned(tiny_gguf, LoadOptions(ctx=256, threads=1, streams=1))
    with Native(artifact, plan) as loaded:
        yield loaded


def position(native: Native) -> int:
    lib, context = native._lib, native._handle.context
    return int(lib.llama_memory_seq_pos_max(lib.llama_get_memory(context), 0)) + 1


@pytest.mark.parametrize(("kind", "size", "depth"), [("pp", 24, 0), ("tg", 5, 0), ("pp", 8, 40), ("tg", 5, 40)])
def test_a_case_leaves_as_many_tokens_as_it_names(native: Native, kind: str, size: int, depth: int) -> None:
    found = native.measure(Case(kind=kind, size=size, depth=depth, threads=1), 3, Meter())  # type: ignore[arg-type]
    assert position(native) == depth + size
    assert (len(found.tok_s), found.joules_per_token) == (3, None)


def test_energy_is_per_token_of_the_runs_alone(native: Native) -> None:
    found = native.measure(Case(kind="tg", size=4, depth=16, threads=1), 2, Meter(counters=(Fixed(),)))
    assert found.joules_per_token == pytest.approx(2 / 8)


def test_the_figures_agree_with_the_clock_of_the_engine(native: Native) -> None:
    case = Case(kind="tg", size=64, threads=1)
    began = time.perf_counter()
    found = native.measure(case, 1, Meter())
    assert 64 / found.tok_s[0] <= time.perf_counter() - began


def test_ctrl_c_stops_the_work_and_is_raised_when_it_has_ended() -> None:
    stop, ended = threading.Event(), threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stop.wait(30)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        interruptible(work, stop.set)
    assert ended.is_set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0, lambda: None)


def test_texts_begin_differently_and_have_the_length_asked_for(tiny: Model) -> None:
    def count(text: str) -> int:
        return len(tiny.tokenize(text))

    texts = distinct_texts(count, 8, 50)
    assert len({text.split()[0] for text in texts}) == 8
    assert all(40 <= count(text) <= 50 for text in texts)
    assert texts == distinct_texts(count, 8, 50) != distinct_texts(count, 8, 50, seed=1)


def test_callers_side_by_side_each_see_their_answer(tiny: Model) -> None:
    options = {"max_tokens": 6, "temperature": 0, "logit_bias": dict.fromkeys(end_tokens(tiny.artifact.path), -100.0)}
    found = together([ask(tiny, text, **options) for text in ("One day", "The cat", "A tree")])
    assert [answer.tokens for answer in found.answers] == [6, 6, 6]
    assert all(0 < answer.ttft_s <= answer.ended <= found.wall_s * 1.5 for answer in found.answers)
    assert found.tok_s == pytest.approx(18 / found.wall_s)


def test_an_error_of_one_caller_is_raised_when_all_have_ended(tiny: Model) -> None:
    with pytest.raises(UsageError):
        together([ask(tiny, "a", max_tokens=1), ask(tiny, "a", max_tokens=0)])


def test_end_tokens_are_those_of_the_engine(tiny: Model) -> None:
    assert tiny.artifact.eos in end_tokens(tiny.artifact.path)


def test_gaps_and_quantiles_by_hand() -> None:
    assert Answer(pieces=[0.5, 0.75, 2.0]).longest_gap_s == 1.25
    assert [quantile([1, 2, 3, 4, 5], share) for share in (0.5, 0.95)] == pytest.approx([3, 4.8])


def test_candidates_are_all_counts_of_a_small_machine_and_steps_of_a_large_one() -> None:
    def cpu(usable: int, physical: int) -> CPU:
        return CPU(name="x", physical=physical, logical=usable, usable=usable, quota=None, isa=())

    assert candidates(cpu(4, 2)) == [1, 2, 3, 4]
    large = candidates(cpu(128, 64))
    assert {1, 2, 64, 63, 128} <= set(large)
    assert len(large) <= 11


def test_more_threads_must_be_worth_it() -> None:
    def trials(*speeds: float) -> list[Trial]:
        return [Trial(kind="tg", threads=count, tok_s=speed) for count, speed in enumerate(speeds, start=1)]

    assert best(trials(100, 101, 101.5)) == 1
    assert best(trials(100, 190, 193)) == 2
    assert best(trials(100, 190, 270, 120)) == 3
