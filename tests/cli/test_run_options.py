"""The options of `edgeai run`: each reaches the engine as it was given, what contradicts itself is refused before a model loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner, Result

from edgeai.cli import cli
from edgeai.cli.run import run_command
from edgeai.cli.sections import SectionedCommand
from edgeai.engines.fake import FakeEngine
from edgeai.engines.streaming import ChunkStream
from edgeai.types import GenerationConfig, Notice, Overflow, Prompt, TokenLogprob
from tests.puppet import Puppet


class Recorder(FakeEngine):
    """Keeps what it was loaded with and the configurations of its answers."""

    def __init__(self) -> None:
        super().__init__("one two three")
        self.loaded: dict[str, Any] = {}
        self.configs: list[GenerationConfig] = []

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        self.configs.append(config)
        return super().generate(prompt, config)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    fake = Recorder()

    def open_engine(_: Path, **options: Any) -> Recorder:
        fake.loaded = options
        return fake

    monkeypatch.setattr("edgeai.model.open_engine", open_engine)
    return fake


@pytest.fixture
def model(tmp_path: Path) -> str:
    for name in ("m.gguf", "a.gguf", "é=b.gguf", "draft.gguf"):
        (tmp_path / name).write_bytes(b"")
    return str(tmp_path / "m.gguf")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["run", *arguments], input="")


def test_every_way_to_answer_reaches_the_engine(engine: Recorder, model: str) -> None:
    options = (
        "-n 7 --max-seconds 2.5 --stop END --stop X --overflow rolling --logprobs 3 --json --speculative lookup --temp 0.5 --top-p 0.4"
        " --top-k 3 --min-p 0.2 --repeat-penalty 1.1 --seed 9 --logit-bias 5=-100 --logit-bias 7=1.5"
    )
    assert run(model, "hi", *options.split()).exit_code == 0
    assert engine.configs == [
        GenerationConfig(
            max_tokens=7, max_seconds=2.5, stop=("END", "X"), overflow="rolling", logprobs=3, speculation="lookup", temperature=0.5,
            top_p=0.4, top_k=3, min_p=0.2, repeat_penalty=1.1, seed=9, logit_bias={5: -100.0, 7: 1.5},
        )
    ]  # fmt: skip


def test_every_way_to_load_reaches_the_engine(engine: Recorder, model: str, tmp_path: Path) -> None:
    options = "--device cpu --gpu-layers 0 --ctx 99 --kv-type q8_0 --threads 3 --threads-batch 4 --deterministic"
    files = [
        "--lora",
        str(tmp_path / "a.gguf"),
        "--lora",
        f"{tmp_path / 'é=b.gguf'}=-0.5",
        "--draft",
        str(tmp_path / "draft.gguf"),
    ]
    assert run(model, "hi", "--raw", "-n", "10", *options.split(), *files).exit_code == 0
    assert engine.loaded == {
        "streams": 1, "needed": 12, "device": "cpu", "gpu_layers": 0, "ctx": 99, "kv_type": "q8_0", "threads": 3, "threads_batch": 4,
        "deterministic": True, "adapters": {"a": tmp_path / "a.gguf", "é=b": tmp_path / "é=b.gguf"}, "draft": tmp_path / "draft.gguf",
    }  # fmt: skip
    assert engine.configs[0].adapters == (("a", 1.0), ("é=b", -0.5))
    assert engine.configs[0].speculation == "draft"


def test_nothing_that_was_not_given_is_passed_on(engine: Recorder, model: str) -> None:
    run(model, "hi")
    assert engine.loaded == {"streams": 1, "needed": 2 + 1024, "device": "auto"}
    assert engine.configs == [GenerationConfig(max_tokens=1024)]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--logprobs", "2"], 2, "--json"),
        (["--logprobs", "21", "--json"], 2, "logprobs"),
        (["--logit-bias", "x=1"], 2, "'x=1'"),
        (["--logit-bias", "5"], 2, "'5'"),
        (["--logit-bias", "5=nan"], 2, "logit_bias"),
        (["--max-seconds", "0"], 2, "max_seconds"),
        (["--overflow", "cut"], 2, "'cut'"),
        (["--speculative", "draft"], 2, "--draft MODEL"),
        (["--draft", "m.gguf", "--speculative", "lookup"], 2, "exclude each other"),
        (["--draft", "nowhere.gguf"], 3, "'nowhere.gguf'"),
        (["--lora", "nowhere.gguf=0.5"], 3, "'nowhere.gguf'"),
        (["--lora", "a.gguf=much"], 2, "'a.gguf=much'"),
        (["--lora", "a.gguf=inf"], 2, "adapters"),
        (["--lora", "a.gguf", "--lora", "./a.gguf=2"], 2, "same name"),
        (["--kv-type", "q2_k"], 2, "'q2_k'"),
        (["--gpu-layers", "-1"], 2, "gpu_layers"),
        (["--threads-batch", "0"], 2, "threads_batch"),
        (["--repeat-penalty", "0"], 2, "repeat_penalty"),
    ],
)
def test_what_is_impossible_ends_before_the_model_loads(
    engine: Recorder, model: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(Path(model).parent)
    result = run(model, "hi", *arguments)
    assert (result.exit_code, result.stdout, engine.loaded) == (code, "", {})
    assert says in result.stderr


def test_a_prompt_that_is_too_long_names_the_option_that_cuts_it(engine: Recorder, model: str) -> None:
    result = run(model, "word " * 100)
    assert (result.exit_code, "--overflow truncate-middle" in result.stderr) == (4, True)
    assert "`" not in result.stderr


def test_a_prompt_that_is_cut_says_so_before_the_answer_and_in_json(engine: Recorder, model: str) -> None:
    result = run(model, "word " * 100, "--overflow", "truncate-middle", "-n", "4", "--json")
    answer = json.loads(result.stdout)
    assert (result.exit_code, answer["usage"]["prompt_tokens"], answer["usage"]["truncated_tokens"]) == (0, 60, 40)
    assert [warning["code"] for warning in answer["warnings"]] == ["context-truncated"]
    assert result.stderr.count("warning: ") == 1
    strict = run(model, "word " * 100, "--overflow", "truncate-middle", "--strict")
    assert (strict.exit_code != 0, strict.stdout) == (True, "")


def test_log_probabilities_are_in_json_only_when_asked_for(
    engine: Recorder, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "logprobs" not in json.loads(run(model, "hi", "--json").stdout)
    token, puppet = TokenLogprob(id=3, text="one", logprob=-0.5, top=((3, "one", -0.5),)), Puppet()

    def generate(prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        stream = puppet.generate(prompt, config)
        puppet.requests[-1].say("one", logprobs=(token,))
        puppet.requests[-1].finish()
        return stream

    monkeypatch.setattr(engine, "generate", generate)
    found = json.loads(run(model, "hi", "--json", "--logprobs", "1").stdout)["logprobs"]
    assert found == [{"id": 3, "text": "one", "logprob": -0.5, "top": [[3, "one", -0.5]]}]


def test_the_ways_of_overflow_are_those_of_the_configuration() -> None:
    overflow = next(param for param in run_command.params if param.name == "overflow")
    assert isinstance(overflow.type, click.Choice)
    assert tuple(overflow.type.choices) == get_args(Overflow)


def test_help_has_every_option_in_a_section() -> None:
    assert isinstance(run_command, SectionedCommand)
    text = CliRunner().invoke(cli, ["run", "--help"]).stdout
    headings = re.findall(r"^(\w[\w ]+):$", text, flags=re.MULTILINE)
    assert headings == [*run_command.sections, "Output"]
    last = text[text.index("\nOutput:") :]
    assert set(re.findall(r"--[a-z-]+", last)) == {"--json", "--quiet", "--verbose", "--strict", "--help"}
    for param in run_command.params:
        if isinstance(param, click.Option):
            assert param.opts[-1] in text


def test_notices_at_the_end_follow_the_answer(engine: Recorder, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    puppet = Puppet()

    def generate(prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        stream = puppet.generate(prompt, config)
        puppet.requests[-1].say("an answer")
        puppet.requests[-1].say("", notices=(Notice(code="context-full", message="it is full"),))
        puppet.requests[-1].finish("length")
        return stream

    monkeypatch.setattr(engine, "generate", generate)
    result = run(model, "hi")
    assert (result.stdout, result.stderr) == ("an answer\n", "warning: it is full\n")
