"""Scores and saved prompts beside requests: they take turns, are never starved, and are exact."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgeai.engines.llamacpp.composer import Composer
from edgeai.engines.opening import open_engine
from edgeai.errors import UsageError
from edgeai.evaluation.streams import end_tokens
from edgeai.model import Model
from tests.engines.test_scheduler import WORDS, engine_of
from tests.families import VARIANTS, make_variant, write_f32

DEADLINE_S = 30


def endless(path: Path) -> dict[str, Any]:
    return {"temperature": 0, "logit_bias": dict.fromkeys(end_tokens(path), -100.0)}


def test_a_short_score_does_not_wait_for_a_long_one_which_is_the_same_as_without(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, streams=2, threads=1)) as model:
        ids = [5 + at * 7 % 200 for at in range(6000)]
        alone, short = model.score(ids[:6000]), model.score(ids[:9])
        found: list[str] = []
        scores: dict[str, list[float]] = {}

        def score(name: str, count: int) -> None:
            scores[name] = model.score(ids[:count])
            found.append(name)

        threads = [
            threading.Thread(target=score, args=("long", 6000)),
            threading.Thread(target=score, args=("short", 9)),
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.02)  # the long one takes a tenth of a second or more
        for thread in threads:
            thread.join()
    assert found == ["short", "long"]
    assert scores["short"] == pytest.approx(short, abs=1e-3)
    assert scores["long"] == pytest.approx(alone, abs=1e-3)


def test_a_score_is_not_starved_by_requests_that_fill_the_cache(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Composer, "beside", lambda *_, **__: 2)  # so slow that it never ends before the cache is full
    stop = threading.Event()
    with Model(open_engine(tiny_gguf, ctx=256, threads=1)) as model:

        def ask(number: int) -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                model.complete(f"{number} {turn} {WORDS}", max_tokens=220, **endless(tiny_gguf))

        users = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for user in users:
            user.start()
        time.sleep(0.2)
        job = threading.Thread(target=model.score, args=([5 + at % 200 for at in range(250)],), daemon=True)
        job.start()
        job.join(DEADLINE_S)
        ended = not job.is_alive()
        stop.set()
        for user in users:
            user.join()
    assert ended


def test_a_prompt_is_saved_as_it_is_alone_though_others_run(smollm2_path: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "logprobs": 2}
    prompt = f"{WORDS}. {WORDS}."
    with Model(open_engine(smollm2_path, ctx=512)) as model:
        with model.stream("Once upon a time", max_tokens=40, **endless(smollm2_path)) as running:
            next(running)
            saving = threading.Thread(target=model.save_prompt, args=(prompt, tmp_path / "p"))
            saving.start()
            running.collect()
        saving.join()
    with Model(open_engine(smollm2_path, ctx=512)) as model:
        fresh = model.complete(f"{prompt} And", **options, prefix_cache=False)
        model.load_prompt(tmp_path / "p")
        found = model.complete(f"{prompt} And", **options)
    assert found.usage.cached_tokens > 20
    assert found.logprobs == fresh.logprobs


@pytest.mark.parametrize("others_kept", ["saving", "loading"])
def test_a_saved_prompt_of_a_model_with_windows_is_exact_whatever_else_is_kept(
    others_kept: str, tmp_path: Path
) -> None:
    path = write_f32(make_variant(tmp_path, VARIANTS["gemma3"], sliding_window=64), tmp_path / "x.gguf")
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "logprobs": 2}
    with Model(open_engine(path, ctx=512, threads=2)) as model:
        window = engine_of(model)._handle.n_swa
        prompt = model.detokenize(model.tokenize(f"{WORDS} {WORDS}")[: window - 4])
        fresh = model.complete(f"{prompt} if", **options, prefix_cache=False)
        for moment in ("saving", "loading"):
            engine_of(model)._core._cache.clear()
            if moment == others_kept:
                model.complete(f"red {WORDS}", max_tokens=1)
            if moment == "saving":
                model.save_prompt(prompt, tmp_path / "p")
            else:
                model.load_prompt(tmp_path / "p")
        found = model.complete(f"{prompt} if", **options)
    assert found.usage.cached_tokens > 8
    assert found.logprobs == fresh.logprobs


@pytest.mark.parametrize("variant", ["gemma3", "lfm2"])
def test_a_saved_prompt_that_would_round_differently_is_refused_unless_speed_was_asked_for(
    variant: str, tmp_path: Path
) -> None:
    path = write_f32(make_variant(tmp_path, VARIANTS[variant]), tmp_path / "x.gguf")
    with Model(open_engine(path, ctx=512, threads=1, numerics="fast")) as model:
        count = model.save_prompt(f"{WORDS} {WORDS}", tmp_path / "p")
        assert model.load_prompt(tmp_path / "p") == count
    with Model(open_engine(path, ctx=512, threads=1)) as model:
        for method in (model.load_prompt, lambda file: model.save_prompt(f"{WORDS} {WORDS}", file)):
            with pytest.raises(UsageError, match=f"a saved prompt of {count} tokens would change answers"):
                method(tmp_path / "p")


@pytest.mark.parametrize("saved", [{"streams": 2}, {}])
@pytest.mark.parametrize("loaded", [{"streams": 4}, {}])
def test_a_prompt_is_loaded_whatever_the_streams_it_was_saved_beside(
    saved: dict[str, Any], loaded: dict[str, Any], tiny_gguf: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "logprobs": 2}
    with Model(open_engine(tiny_gguf, ctx=256, threads=1, **saved)) as model:
        count = model.save_prompt(WORDS, tmp_path / "p")
    with Model(open_engine(tiny_gguf, ctx=256, threads=1, **loaded)) as model:
        fresh = model.complete(f"{WORDS} if", **options, prefix_cache=False)
        assert model.load_prompt(tmp_path / "p") == count
        found = model.complete(f"{WORDS} if", **options)
    assert found.usage.cached_tokens >= count - 1
    assert found.logprobs == fresh.logprobs
