"""`edgeai run`: the answer and nothing else on stdout, every failure one error with its exit code."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeai.cli import cli
from edgeai.engines.fake import FakeEngine

ENGINE = "edgeai.model.open_engine"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """A fake engine behind `run`."""
    fake = FakeEngine("one two three four")
    monkeypatch.setattr(ENGINE, lambda *_, **__: fake)
    return fake


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A path that exists; the engine behind it is fake."""
    path = tmp_path / "é 模型.gguf"
    path.write_bytes(b"")
    return str(path)


def run(*arguments: str, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(cli, ["run", *arguments], input=stdin)


def test_the_answer_alone_is_on_stdout(engine: FakeEngine, model: str) -> None:
    result = run(model, "hello")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "one two three four\n", "")
    assert engine.closed


def test_json_has_the_contracts_keys(engine: FakeEngine, model: str) -> None:
    answer = json.loads(run(model, "hello", "--json").stdout)
    assert set(answer) == {
        "text", "finish_reason", "usage", "timings", "model", "backend", "device", "plan", "warnings", "route",
    }  # fmt: skip
    assert set(answer["usage"]) >= {"prompt_tokens", "cached_tokens", "completion_tokens"}
    assert set(answer["timings"]) >= {"load_s", "ttft_s", "prompt_tok_s", "gen_tok_s", "total_s"}
    assert (answer["text"], answer["finish_reason"], answer["route"]) == ("one two three four", "stop", None)


def test_piped_text_follows_the_prompt(engine: FakeEngine, model: str) -> None:
    run(model, "Summarise:", stdin="a text\nof lines\n")
    assert engine.prompts == [[{"role": "user", "content": "Summarise:\n\na text\nof lines"}]]


def test_piped_text_alone_is_the_prompt(engine: FakeEngine, model: str) -> None:
    run(model, stdin="why?")
    assert engine.prompts == [[{"role": "user", "content": "why?"}]]


def test_files_are_added(engine: FakeEngine, model: str, tmp_path: Path) -> None:
    for name in ("a b.txt", "é.txt"):
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
    run(model, "Compare:", "--file", str(tmp_path / "a b.txt"), "--file", str(tmp_path / "é.txt"))
    assert engine.prompts == [[{"role": "user", "content": "Compare:\n\ntext of a b.txt\n\ntext of é.txt"}]]


def test_system_comes_first(engine: FakeEngine, model: str) -> None:
    run(model, "hi", "--system", "Be brief.")
    assert engine.prompts == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]]


def test_raw_is_completed_as_it_is(engine: FakeEngine, model: str) -> None:
    run(model, "Once upon", "--raw")
    assert engine.prompts == ["Once upon"]


def test_an_answer_that_is_cut_says_so_on_stderr(engine: FakeEngine, model: str) -> None:
    result = run(model, "hi", "--max-tokens", "2")
    assert (result.stdout, result.stderr) == ("one two\n", "[cut after 2 tokens: --max-tokens]\n")


def test_escape_sequences_in_an_answer_are_not_changed(engine: FakeEngine, model: str) -> None:
    engine.answer = "a \x1b[31mred\x1b[0m word"
    assert run(model, "hi").stdout == engine.answer + "\n"


def test_quiet_says_nothing_on_stderr(engine: FakeEngine, model: str) -> None:
    assert run(model, "hi", "--max-tokens", "2", "--quiet").stderr == ""


def test_stop_ends_the_answer(engine: FakeEngine, model: str) -> None:
    assert run(model, "hi", "--stop", " three").stdout == "one two\n"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["hi", "--temp", "-1"], 2, "temperature"),
        (["hi", "--temp", "nan"], 2, "temperature"),
        (["hi", "--top-p", "0"], 2, "top_p"),
        (["hi", "--min-p", "1"], 2, "min_p"),
        (["hi", "--seed", "-1"], 2, "seed"),
        (["hi", "--max-tokens", "0"], 2, "max_tokens"),
        (["hi", "--device", "gpu"], 2, "gpu"),
        (["hi", "--file", "/nowhere.txt"], 2, "/nowhere.txt"),
        (["hi", "--raw", "--system", "x"], 2, "--raw"),
        (["word " * 100], 4, "101 tokens|100 tokens"),
        ([""], 2, "empty"),
        (["--json"], 2, "prompt"),
    ],
)
def test_bad_arguments_end_with_their_exit_code(
    engine: FakeEngine, model: str, arguments: list[str], code: int, says: str
) -> None:
    result = run(model, *arguments)
    assert result.exit_code == code
    assert any(part in result.stderr for part in says.split("|"))
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "/" + "y" * 300])
def test_an_impossible_name_is_exit_3(name: str) -> None:
    result = run(name, "hi")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("arguments", [["hi \udcff"], ["hi", "--system", "\udcff"]])
def test_bytes_that_are_no_utf8_are_usage_errors(engine: FakeEngine, model: str, arguments: list[str]) -> None:
    result = run(model, *arguments)
    assert (result.exit_code, "not UTF-8" in result.stderr) == (2, True)


def test_no_stdin_and_no_prompt_is_a_usage_error(tiny_gguf: Path) -> None:
    command = shlex.join([sys.executable, "-m", "edgeai", "run", str(tiny_gguf)])
    done = subprocess.run(["/bin/sh", "-c", f"{command} <&-"], capture_output=True, text=True, check=False)
    assert (done.returncode, "the prompt is empty" in done.stderr) == (2, True)


@pytest.mark.parametrize(("redirection", "code"), [(">&-", 2), ("<&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 2)])
def test_closed_streams_are_no_traceback(tiny_gguf: Path, redirection: str, code: int) -> None:
    command = shlex.join(
        [sys.executable, "-m", "edgeai", "run", str(tiny_gguf), "hi", "--raw", "--max-tokens", "2", "--json"]
    )
    done = subprocess.run(["/bin/sh", "-c", f"{command} {redirection}"], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_terminal_of_another_encoding_is_no_traceback(tiny_gguf: Path) -> None:
    command = [sys.executable, "-m", "edgeai", "show", str(tiny_gguf.parent / "模型.gguf")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, "Traceback" in done.stderr) == (3, False)


def test_binary_input_is_a_usage_error(engine: FakeEngine, model: str, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe\x00")
    result = run(model, "hi", "--file", str(tmp_path / "x.bin"))
    assert (result.exit_code, "not UTF-8" in result.stderr) == (2, True)


def test_a_model_that_only_the_catalogue_knows_is_exit_3_with_the_pull_line() -> None:
    result = run("smollm2", "hi")
    assert result.exit_code == 3
    assert "edgeai pull smollm2" in result.stderr


def test_a_near_miss_is_suggested() -> None:
    result = run("smolm2", "hi")
    assert (result.exit_code, "did you mean 'smollm2'" in result.stderr) == (3, True)


def test_a_text_file_named_gguf_is_exit_3(tmp_path: Path) -> None:
    path = tmp_path / "notes.gguf"
    path.write_text("these are my notes\n" * 10)
    result = run(str(path), "hi")
    assert result.exit_code == 3
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_cuda_that_cannot_run_is_exit_6(tiny_gguf: Path) -> None:
    from edgeai.device import nvidia_gpus

    if nvidia_gpus()[0]:
        pytest.skip("this machine has an NVIDIA GPU")
    result = run(str(tiny_gguf), "hi", "--device", "cuda")
    assert (result.exit_code, "NVIDIA" in result.stderr) == (6, True)


def test_a_base_model_completes_and_says_so(tiny_gguf: Path) -> None:
    result = run(str(tiny_gguf), "The for statement", "--max-tokens", "5", "--json")
    assert [warning["code"] for warning in json.loads(result.stdout)["warnings"]] == ["completion-mode"]
    assert "no chat template" in result.stderr
    assert run(str(tiny_gguf), "The for statement", "--max-tokens", "5", "--raw", "--strict").exit_code == 0
    assert run(str(tiny_gguf), "The for statement", "--strict").exit_code != 0


def test_a_truncated_model_is_exit_3(tiny_gguf: Path, tmp_path: Path) -> None:
    data = tiny_gguf.read_bytes()
    for size in (0, 3, 20, 1000, len(data) // 2, len(data) - 1):
        path = tmp_path / f"{size}.gguf"
        path.write_bytes(data[:size])
        result = run(str(path), "hi")
        assert (result.exit_code, result.stdout) == (3, ""), size


# ---- in a process of its own


def start(*arguments: str, terminal: bool = False) -> tuple[subprocess.Popen[bytes], int]:
    """Start `edgeai run`; with TERMINAL its stdin and stderr are one, and the second value is the other end."""
    command = [sys.executable, "-m", "edgeai", "run", *arguments]
    if not terminal:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE), -1
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    return process, ours


def read_until(fd: int, text: str, seconds: float = 60) -> str:
    """Read from a terminal until TEXT has come; the test fails when it does not."""
    seen, deadline = "", time.monotonic() + seconds
    while text not in seen:
        assert time.monotonic() < deadline, seen
        try:
            seen += os.read(fd, 4096).decode("utf-8", "replace")
        except OSError:  # the other end is closed
            break
    assert text in seen, seen
    return seen


def test_ctrl_c_keeps_what_came_and_exits_130(smollm2_path: Path) -> None:
    process, _ = start(
        str(smollm2_path), "Count from one to a thousand in words.", "--seed", "1", "--max-tokens", "4000"
    )
    assert process.stdout is not None
    first = process.stdout.read(8)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(first + rest) >= 8
    assert errors.decode().strip() == "interrupted"


ANNOUNCED = """
import sys
try:
    from edgeai.__main__ import main
    print("here", flush=True)
    main()
except KeyboardInterrupt:  # between the two lines above
    sys.exit(130)
"""
"""The program, which says when it begins: how long Python itself takes to start is another matter."""


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_ctrl_c_at_any_moment_of_the_start_ends_the_program(smollm2_path: Path, after_s: float) -> None:
    command = [sys.executable, "-c", ANNOUNCED, "run", str(smollm2_path), "word " * 6000, "--temp", "0"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors.decode()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [["run", "MODEL", "hi", "--raw"], ["list", "--all"], ["--help"], ["run", "MODEL", "hi", "--json"]]
)
def test_an_output_that_cannot_be_written_is_one_error(tiny_gguf: Path, arguments: list[str]) -> None:
    words = [str(tiny_gguf) if word == "MODEL" else word for word in arguments]
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "edgeai", *words]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert "error: standard output cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_answer_is_not_lost_in_a_closed_output(tiny_gguf: Path, more: list[str]) -> None:
    command = [sys.executable, "-m", "edgeai", "run", str(tiny_gguf), "hi", "--raw", *more]
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "error: standard output is closed" in done.stderr


def test_kill_int_stops_a_background_job_too(smollm2_path: Path) -> None:
    """A shell without job control starts background jobs with Ctrl-C ignored."""
    run = shlex.join([sys.executable, "-m", "edgeai", "run", str(smollm2_path), "Hello", "--max-tokens", "4000"])
    with subprocess.Popen(
        ["/bin/sh", "-c", f"trap '' INT; exec {run}"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.read(4)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_a_reader_that_goes_away_is_no_error(smollm2_path: Path) -> None:
    process, _ = start(str(smollm2_path), "Count from one to a hundred in words.", "--seed", "1")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(8)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert errors == b""


def test_chat_keeps_history_and_returns_to_the_prompt_after_ctrl_c(smollm2_path: Path, tmp_path: Path) -> None:
    process, terminal = start(str(smollm2_path), "--temp", "0", "--max-tokens", "400", terminal=True)
    try:
        read_until(terminal, ">>> ")
        os.write(terminal, b"My name is Zelda. Count from one to a thousand in words.\n")
        read_until(terminal, "words.\r\n")  # the terminal's echo
        read_until(terminal, " ")  # the answer has begun
        os.killpg(process.pid, signal.SIGINT)
        read_until(terminal, ">>> ")
        os.write(terminal, b'"""\nWhat is\nmy name?"""\n')
        read_until(terminal, ">>> ")
        saved = tmp_path / "é talk.json"
        os.write(terminal, f"/save {saved}\n".encode())
        read_until(terminal, "4 messages saved")
        os.write(terminal, b"/set temp 3x\n/nonsense\n/clear\n/bye\n")
        seen = read_until(terminal, "the conversation is forgotten")
        assert "temperature cannot be '3x'" in seen
        assert "there is no command '/nonsense'" in seen
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    talk = json.loads(saved.read_text(encoding="utf-8"))
    assert [message["role"] for message in talk] == ["user", "assistant", "user", "assistant"]
    assert talk[2]["content"] == "What is\nmy name?"


def test_on_a_terminal_a_missing_model_is_offered(tmp_path: Path) -> None:
    process, terminal = start("smollm2", "hi", terminal=True)
    try:
        read_until(terminal, "pull 98.4 MB now?")
        os.write(terminal, b"n\n")
        seen = read_until(terminal, "edgeai pull smollm2")
        assert "error:" in seen
        assert process.wait(timeout=30) == 3
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
