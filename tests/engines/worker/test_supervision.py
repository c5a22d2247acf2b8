"""What happens to a child happens to nobody else: crashes, hangs, floods of garbage, a parent that dies."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgeai.engines.opening import open_model
from edgeai.engines.worker.engine import WorkerEngine
from edgeai.engines.worker.limits import Limits
from edgeai.errors import ClosedError, EdgeAIError, EngineCrashed, InvalidModel
from edgeai.model import Model
from edgeai.options import LoadOptions
from edgeai.types import GenerationConfig

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")

QUICK = Limits(tick_s=0.1, silence_s=3.0, delay_s=0.01, crashes=100)
ROGUE = Limits(tick_s=0.05, silence_s=3.0, stall_s=0.5, crashes=2, delay_s=0.01)


def load(path: Path, limits: Limits = QUICK, **options: Any) -> WorkerEngine:
    return WorkerEngine(open_model(path), LoadOptions(threads=1, **options), limits=limits)


@pytest.fixture(scope="module")
def shared(tiny_gguf: Path) -> Iterator[Model]:
    with Model(load(tiny_gguf, ctx=4096)) as model:
        yield model


@pytest.fixture
def model(shared: Model) -> Model:
    shared.tokenize("x")  # waits for the child that follows the one of the test before
    return shared


def send(model: Model, number: signal.Signals) -> int:
    pid = pid_of(model)
    os.kill(pid, number)
    return pid


def pid_of(model: Model) -> int:
    engine = model.engine
    assert isinstance(engine, WorkerEngine)
    assert engine.pid is not None
    return engine.pid


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return done


# ---- crashes


def test_all_streams_of_a_killed_child_say_so_and_the_next_request_works(model: Model) -> None:
    streams = [model.stream("The", max_tokens=400) for _ in range(8)]
    next(streams[0])
    pid = send(model, signal.SIGKILL)
    texts = []
    for stream in streams:
        try:
            texts.append(stream.collect().text)
        except EngineCrashed as error:
            assert "SIGKILL" in str(error)  # noqa: PT017
            assert error.hint is not None  # noqa: PT017
    assert len(texts) < 8  # those that had not begun may have been done by the next child
    assert model.complete("The", max_tokens=3, temperature=0).text
    assert pid_of(model) != pid


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL"])
def test_the_signal_is_named(model: Model, name: str) -> None:
    stream = model.stream("The", max_tokens=100_000)
    next(stream)
    send(model, signal.Signals[name])
    with pytest.raises(EngineCrashed, match=f"died with {name}"):
        stream.collect()
    assert model.complete("The", max_tokens=1).usage.completion_tokens == 1


def test_a_stream_that_has_begun_is_never_done_again(model: Model) -> None:
    stream = model.stream("The", max_tokens=100_000, temperature=0)
    read = [next(stream).text for _ in range(3)]
    send(model, signal.SIGKILL)
    with pytest.raises(EngineCrashed):
        read.extend(chunk.text for chunk in stream)
    assert model.complete("The", max_tokens=len(read) + 100, temperature=0).text.startswith("".join(read))


def test_a_call_right_after_the_crash_waits_for_the_next_child(model: Model) -> None:
    for _ in range(3):
        send(model, signal.SIGKILL)
        assert model.tokenize("The for statement")


def test_a_request_made_while_there_is_no_child_can_be_cancelled(tiny_gguf: Path) -> None:
    engine = load(tiny_gguf, Limits(delay_s=600, longest_delay_s=600))
    model = Model(engine)
    send(model, signal.SIGKILL)
    assert within(20, lambda: engine.pid is None)
    started = time.monotonic()
    result: list[BaseException] = []

    def ask() -> None:
        try:
            engine.generate("The", GenerationConfig())
        except EdgeAIError as error:
            result.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert within(5, lambda: len(engine._supervisor._requests) == 1)
    model.close()
    thread.join()
    assert time.monotonic() - started < 60
    assert isinstance(result[0], ClosedError)


def test_a_child_that_crashes_again_and_again_stays_down_and_says_why(tiny_gguf: Path) -> None:
    with Model(load(tiny_gguf, Limits(delay_s=0.01, crashes=2))) as model:
        for _ in range(3):
            model.tokenize("x")
            send(model, signal.SIGKILL)
        assert within(20, lambda: model.engine._supervisor._down is not None)  # type: ignore[attr-defined]
        for use in (model.complete, model.tokenize):
            with pytest.raises(EngineCrashed, match=r"3 times within 60 s .*SIGKILL") as caught:
                use("x")
            assert "load it again" in (caught.value.hint or "")


def test_what_the_library_said_last_is_in_the_message(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineCrashed, match=r"exit code 3: I cannot go on"):
        rogue(tiny_gguf, monkeypatch, "ends at once")


# ---- hangs and garbage


def test_a_child_that_hangs_is_found_out_and_replaced(model: Model) -> None:
    stream = model.stream("The", max_tokens=100_000)
    next(stream)
    pid = send(model, signal.SIGSTOP)
    with pytest.raises(EngineCrashed, match=r"hung, without a sign of life for 3 s"):
        stream.collect()
    assert model.complete("The", max_tokens=1).usage.completion_tokens == 1
    assert pid_of(model) != pid
    assert not psutil.pid_exists(pid)


def test_closing_beside_a_child_that_hangs_ends_in_bounded_time(tiny_gguf: Path) -> None:
    engine = load(tiny_gguf, Limits(close_s=0.3))
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    stream = threading.Thread(target=engine.close)
    stream.start()
    stream.join(timeout=10)
    assert not stream.is_alive()
    assert not psutil.pid_exists(pid)


def rogue(path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, limits: Limits = ROGUE) -> WorkerEngine:
    monkeypatch.setenv("EDGEAI_ROGUE", kind)
    return WorkerEngine(open_model(path), LoadOptions(), limits=limits, module="tests.engines.worker.rogue")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("garbage", "no message"),
        ("nonsense", "no message"),
        ("wrong value", "no message"),
        ("wrong chunk", "no message"),
        ("wrong pong", "no message"),
        ("loaded twice", "no message"),
        ("cut", "exit code 0"),
        ("closes its pipe", "closed its pipe"),
        ("silent", "without a sign of life"),
        ("stalls", "without progress"),
    ],
)
def test_a_child_that_breaks_the_protocol_is_a_crash_and_no_hang(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, kind: str, words: str
) -> None:
    engine = rogue(tiny_gguf, monkeypatch, kind)
    try:
        with pytest.raises(EngineCrashed, match=words):
            engine.tokenize("x") if kind != "wrong chunk" else engine.generate("x", GenerationConfig())
    finally:
        engine.close()


@pytest.mark.parametrize(("kind", "times"), [("begins and dies", 1), ("dies", 3)])
def test_what_a_child_had_begun_is_not_done_again_and_the_rest_not_for_ever(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, kind: str, times: int
) -> None:
    limits = replace(ROGUE, crashes=100)
    engine = rogue(tiny_gguf, monkeypatch, kind, limits)
    try:
        with pytest.raises(EngineCrashed, match="exit code 0"):
            list(engine.generate("x", GenerationConfig()))
        assert within(10, lambda: engine.restarts == times)
    finally:
        engine.close()


def test_a_model_file_that_was_replaced_is_not_loaded_in_its_place(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    with Model(load(path)) as model:
        path.unlink()
        path.write_bytes(tiny_gguf.read_bytes())
        send(model, signal.SIGKILL)
        with pytest.raises(InvalidModel, match="changed since it was loaded"):
            model.tokenize("x")


# ---- who ends with whom


def test_a_forgotten_engine_ends_its_child(tiny_gguf: Path) -> None:
    engine = load(tiny_gguf)
    pid = engine.pid
    assert pid is not None
    stream = engine.generate("The", GenerationConfig())
    del engine
    gc.collect()
    assert within(20, lambda: not psutil.pid_exists(pid))
    assert list(stream)[-1].finish_reason is not None


PARENT = """
import sys, time
from pathlib import Path
from edgeai.model import Model, open_engine
model = Model(open_engine(Path(sys.argv[1]), threads=1, isolated=True))
stream = model.stream("The", max_tokens=100_000)
next(stream)
told = False
while True:
    try:
        if not told:
            told = True
            print(model.engine.pid, flush=True)
        for chunk in stream: pass
        stream = model.stream("The", max_tokens=100_000)
    except KeyboardInterrupt:
        stream.close()
        print(model.engine.pid, model.complete("The", max_tokens=2).usage.completion_tokens, flush=True)
"""


@pytest.fixture
def parent(tiny_gguf: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PARENT, str(tiny_gguf)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    yield process
    process.kill()
    process.communicate()


def said(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_child_ends_with_its_parent(parent: subprocess.Popen[str], name: str) -> None:
    (pid,) = said(parent)
    assert psutil.pid_exists(pid)
    parent.send_signal(signal.Signals[name])
    parent.wait()
    assert within(20, lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_ctrl_c_in_the_terminal_is_left_to_the_parent(parent: subprocess.Popen[str]) -> None:
    (pid,) = said(parent)
    os.killpg(parent.pid, signal.SIGINT)
    assert said(parent) == [pid, 2]


def test_a_polite_end_of_the_whole_group_is_left_to_the_parent(model: Model) -> None:
    pid = send(model, signal.SIGTERM)
    assert model.complete("The", max_tokens=2).usage.completion_tokens == 2
    assert pid_of(model) == pid


def test_a_forked_process_is_told_and_does_not_disturb_the_child(tiny_gguf: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from edgeai.model import Model, open_engine\n"
        "m = Model(open_engine(Path(sys.argv[1]), isolated=True)); child = os.fork()\n"
        "if child == 0:\n"
        "  try: m.complete('x', max_tokens=1)\n"
        "  except Exception as error: m.close(); os._exit(7 if 'forked' in str(error) else 1)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "m.complete('x', max_tokens=1); sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tiny_gguf)], check=False, timeout=60).returncode == 7


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_goes_first_when_memory_runs_out(model: Model) -> None:
    own, child = (int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in ("self", pid_of(model)))
    assert child > own


CYCLES = """
import gc, os, sys, threading
from pathlib import Path
import psutil
from edgeai.model import Model, open_engine
me, rows = psutil.Process(), []
for cycle in range(20):
    with Model(open_engine(Path(sys.argv[1]), threads=1, ctx=256, isolated=sys.argv[2] == "isolated")) as model:
        model.complete("The", max_tokens=2)
    del model
    gc.collect()
    rows.append((me.memory_info().rss, len(os.listdir("/proc/self/fd")), threading.active_count(), len(me.children())))
rss = [row[0] for row in rows]
assert len({row[1:] for row in rows[2:]}) == 1, rows
assert rows[-1][3] == 0, rows
assert max(rss[10:]) - max(rss[5:10]) < 5_000_000, rss  # a model that stayed would be ten times that
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
@pytest.mark.parametrize("where", ["isolated", "here"])
def test_twenty_loads_and_unloads_leave_no_memory_descriptor_thread_or_process(tiny_gguf: Path, where: str) -> None:
    command = [sys.executable, "-c", CYCLES, str(tiny_gguf), where]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
