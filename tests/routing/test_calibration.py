"""Calibrating: a model whose confidence tells, one whose confidence does not, and what is refused; nothing half is kept."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgeai.cli.calibrate import calibrate_command
from edgeai.engines.fake import FakeEngine
from edgeai.engines.streaming import Channel, ChunkStream
from edgeai.errors import UsageError
from edgeai.model import Model
from edgeai.routing import calibration
from edgeai.routing.calibration import calibrate, cross_validate, figures
from edgeai.routing.confidence import FEATURES, load_head
from edgeai.routing.metrics import auroc
from edgeai.routing.questions import Question
from edgeai.types import Chunk, GenerationConfig, Message, Prompt, Timings, TokenLogprob, Usage


class Sayer(FakeEngine):
    """Answers "What is the number N?" with N or N + 1, half and half, and with a log-probability that `sure` makes of (right, draw)."""

    def __init__(self, path: Path, sure: Callable[[bool, random.Random], float]) -> None:
        super().__init__()
        path.write_bytes(b"weights")
        self.artifact = replace(self.artifact, path=path)
        self.sure = sure
        self.configs: list[GenerationConfig] = []

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        assert not isinstance(prompt, str)
        self.configs.append(config)
        number = int(prompt[-1]["content"].split()[-1].rstrip("?"))
        draw = random.Random(number)
        right = draw.random() < 0.5
        logprob = self.sure(right, draw)
        text = str(number if right else number + 1)
        rest = math.log1p(-math.exp(logprob))
        token = TokenLogprob(id=0, text=text, logprob=logprob, top=((0, text, logprob), (1, "x", rest)))
        chunks = Channel()
        timings = Timings(load_s=0.0, ttft_s=0.0, prompt_tok_s=None, gen_tok_s=None, total_s=0.0)
        usage = Usage(prompt_tokens=1, completion_tokens=1)
        chunks.put(Chunk(text=text, logprobs=(token,), finish_reason="stop", usage=usage, timings=timings))
        return ChunkStream(chunks, lambda: None)


def telling(right: bool, draw: random.Random) -> float:
    return math.log(draw.uniform(0.5, 0.95) if right else draw.uniform(0.2, 0.65))


def blind(right: bool, draw: random.Random) -> float:
    return math.log(draw.uniform(0.2, 0.95))


def questions(count: int, strong: bool | None = None) -> list[Question]:
    return [
        Question(
            messages=(Message(role="user", content=f"What is the number {number}?"),), answers=(str(number),), match="number",
            strong_correct=strong,
        )
        for number in range(count)
    ]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def test_a_confidence_that_tells_beats_chance_on_answers_that_were_left_out(path: Path) -> None:
    model = Model(Sayer(path, telling))
    report = calibrate(model, questions(200))
    found = report.figures
    assert found["auroc"]["low"] > 0.8
    assert found["ece"]["value"] < 0.15
    assert found["ece"]["bins"] == 10
    for each in found["hand_off"].values():
        assert each["random"] < each["confidence"]["value"] <= each["oracle"]
        assert each["above_random"]["low"] > 0
    assert found["strong"] == "assumed to be always right: the rows do not say"
    assert not report.warnings
    head, place = load_head(model.artifact, engine=model.plan.engine)
    assert head is not None
    assert place == str(report.path)
    assert head == report.head
    assert head.ability == {"chat": pytest.approx(found["local"]["value"], abs=1e-4)}
    assert head.probability({**dict.fromkeys(FEATURES, 0.0), **features_of(0.95)}) > 0.7
    assert head.probability({**dict.fromkeys(FEATURES, 0.0), **features_of(0.3)}) < 0.3


def features_of(share: float) -> dict[str, float]:
    from edgeai.routing.confidence import features

    token = TokenLogprob(
        id=0, text="1", logprob=math.log(share), top=((0, "1", math.log(share)), (1, "x", math.log(1 - share)))
    )
    return features([token], "stop")


def test_a_confidence_that_does_not_tell_is_said_to_be_none(path: Path) -> None:
    report = calibrate(Model(Sayer(path, blind)), questions(400, strong=True))
    assert [notice.code for notice in report.warnings] == ["weak-confidence"]
    assert report.figures["auroc"]["low"] <= 0.5
    assert report.figures["strong"] == "given"


def test_figures_are_of_answers_that_were_left_out() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(60, 40)), (draw.random(60) < 0.5).astype(float)
    probability = cross_validate(x, y)
    assert figures(probability, y, np.ones(60))["auroc"]["value"] < 0.75
    seen = calibration.fit(x, y)
    assert auroc(np.array([seen.logit(row) for row in x]), y) > 0.95


def test_answers_are_made_as_the_model_usually_makes_them_from_seeds(path: Path) -> None:
    engine = Sayer(path, telling)
    model = Model(engine, sampling={"temperature": 0.3})
    report = calibrate(model, questions(60), samples=2, max_tokens=9)
    first, second, third = engine.configs[:3]
    assert (first.temperature, first.max_tokens, first.logprobs) == (0.3, 9, 5)
    assert second.temperature == third.temperature == 0.7
    assert len({config.seed for config in engine.configs}) == 180
    assert report.head.settings == {"logprobs": 5, "samples": 2, "max_tokens": 9, "temperature": 0.3, "chat": True}
    assert report.head.names == (*FEATURES, "agreed")


def test_choices_hold_the_answer(path: Path) -> None:
    engine = Sayer(path, telling)
    asked = [replace(question, choices=("1", "2")) for question in questions(40)]
    calibration.answer_all(Model(engine), asked)
    assert all(config.constraint is not None and config.constraint.kind == "choices" for config in engine.configs)


def test_too_few_questions_and_answers_of_one_kind_are_refused_and_nothing_is_kept(path: Path) -> None:
    model = Model(Sayer(path, telling))
    with pytest.raises(UsageError, match="39 questions are too few"):
        calibrate(model, questions(39))
    wrong = [replace(question, answers=("-1",)) for question in questions(50)]
    with pytest.raises(UsageError, match="0 of 50 answers are right"):
        calibrate(model, wrong)
    assert [file.name for file in path.parent.iterdir()] == ["m.gguf"]


def test_ctrl_c_keeps_nothing(path: Path) -> None:
    def press(label: str, done: float, total: float | None, unit: str = "") -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(Model(Sayer(path, telling)), questions(60), progress=press)
    assert [file.name for file in path.parent.iterdir()] == ["m.gguf"]


# ---- the command


@pytest.fixture
def loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that the command loads; each is a Sayer."""
    names: list[str] = []
    monkeypatch.setattr("edgeai.model.load", lambda name: names.append(name) or Model(Sayer(path, telling)))
    return names


def run(path: Path, *args: str, count: int = 80) -> Any:
    data = path.with_name("data.jsonl")
    data.write_text("\n".join(json.dumps({"prompt": f"What is the number {n}?", "answer": n}) for n in range(count)))
    return CliRunner().invoke(calibrate_command, [str(data), *args])


def test_the_command_prints_the_figures_for_people(path: Path, loaded: list[str]) -> None:
    result = run(path, "--model", "big")
    assert loaded == ["big"]
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("fake F32: 80 questions, ")
    assert any("AUROC" in line and "0.5 is chance" in line for line in lines)
    assert any("20%" in line and "random" in line and "oracle" in line for line in lines)
    assert any("assumed to be always right" in line for line in lines)
    assert lines[-1] == f"kept in {path.with_name('m.gguf.confidence.json')}"


def test_the_command_prints_one_object(path: Path, loaded: list[str]) -> None:
    result = run(path, "--json", "--limit", "60")
    assert loaded == ["smollm2"], "the local model of the configuration"
    found = json.loads(result.stdout)
    assert found["rows"] == 60
    assert found["figures"].keys() >= {"local", "auroc", "ece", "aurc", "brier", "hand_off", "strong"}


def test_too_few_questions_are_refused_before_the_model_is_loaded(path: Path, loaded: list[str]) -> None:
    result = run(path, count=3)
    assert isinstance(result.exception, UsageError)
    assert loaded == []
