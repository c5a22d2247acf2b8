"""Many requests on one model: each gets its own answer, in bounded time, and what is shared is computed once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeai.engines.llamacpp import LlamaCppEngine, guess_check
from edgeai.engines.opening import open_engine, planned
from edgeai.errors import Busy, ContextExceeded, UsageError
from edgeai.evaluation.streams import end_tokens
from edgeai.model import Model
from edgeai.plan import LoadOptions
from edgeai.types import Completion
from tests.families import VARIANTS, make_variant, write_f32

WORDS = "the function returns a list of strings and raises an error when it is not found in the module"


def engine_of(model: Model) -> LlamaCppEngine:
    assert isinstance(model.engine, LlamaCppEngine)
    return model.engine


def together(model: Model, prompts: list[str], **options: Any) -> list[Completion]:
    """Ask all PROMPTS at once, each from a thread of its own."""
    found: dict[int, Completion] = {}
    start = threading.Barrier(len(prompts))

    def ask(at: int) -> None:
        start.wait()
        found[at] = model.complete(prompts[at], **options)

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[at] for at in range(len(prompts))]


def prompts_of(count: int) -> list[str]:
    words = WORDS.split()
    return [" ".join(words[at : at + 4] + words[: 3 + at]) for at in range(count)]


@pytest.fixture(scope="module")
def small(tiny_gguf: Path) -> Iterator[Model]:
    with Model(open_engine(tiny_gguf, ctx=256, streams=4, threads=1)) as model:
        yield model


@pytest.mark.parametrize("variant", ["llama", "gemma3", "lfm2"])
def test_deterministic_answers_are_the_same_to_the_bit_alone_and_beside_seven(
    variant: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    path = write_f32(make_variant(tmp_path, VARIANTS[variant]), tmp_path / "x.gguf")
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "logprobs": 3}
    with Model(open_engine(path, ctx=128, streams=8, threads=1, deterministic=True)) as model:
        prompts = prompts_of(8)
        alone = [model.complete(prompt, **options) for prompt in prompts]
        beside = together(model, prompts, **options)
        assert [done.logprobs for done in beside] == [done.logprobs for done in alone]


def test_streams_are_computed_side_by_side(small: Model) -> None:
    streams = [small.stream(prompt, max_tokens=40, temperature=0) for prompt in prompts_of(4)]
    for stream in streams:
        next(stream)
    assert engine_of(small).stats().running == 4
    for stream in streams:
        stream.close()


def test_more_requests_than_streams_all_get_their_answer(small: Model) -> None:
    prompts = prompts_of(12)
    alone = [small.complete(prompt, max_tokens=6, temperature=0).usage for prompt in prompts]
    assert [done.usage.completion_tokens for done in together(small, prompts, max_tokens=6, temperature=0)] == [
        usage.completion_tokens for usage in alone
    ]


def test_a_full_queue_says_busy_and_how_long_to_wait(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, streams=1, queue=1, threads=1)) as model:
        running = model.stream("the function", max_tokens=200, temperature=0)
        next(running)
        waiting = model.stream("the list", max_tokens=1)
        with pytest.raises(Busy, match="1 requests run and 1 wait"):
            model.stream("the module", max_tokens=1)
        running.close()
        assert waiting.collect().usage.completion_tokens == 1


def test_a_seed_gives_the_same_answer_in_any_company(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, streams=4, threads=1, deterministic=True)) as model:
        alone = model.complete("the list", max_tokens=12, seed=7, temperature=1.0).text
        assert {done.text for done in together(model, ["the list"] * 4, max_tokens=12, seed=7, temperature=1.0)} == {
            alone
        }


# ---- shared beginnings


def test_a_prompt_that_was_read_is_not_read_again(small: Model) -> None:
    first = small.complete(WORDS, max_tokens=4, temperature=0)
    again = small.complete(WORDS, max_tokens=4, temperature=0)
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    assert again.text == first.text


def test_simultaneous_requests_compute_their_shared_beginning_once(tiny_gguf: Path) -> None:
    shared = " ".join([WORDS] * 4)
    with Model(open_engine(tiny_gguf, ctx=256, streams=4, threads=1)) as model:
        length = len(model.tokenize(shared, add_special=True))
        done = together(model, [f"{shared} {word}" for word in ("alpha", "beta", "gamma", "delta")], max_tokens=2)
        assert sorted(answer.usage.cached_tokens >= length - 2 for answer in done) == [False, True, True, True]


@pytest.mark.parametrize("variant", ["llama", "gemma3", "lfm2", "mixtral"])
def test_a_reused_beginning_does_not_change_an_answer(variant: str, tmp_path: Path) -> None:
    path = write_f32(make_variant(tmp_path, VARIANTS[variant]), tmp_path / "x.gguf")
    begin = " ".join(WORDS.split()[:12])
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    with Model(open_engine(path, ctx=128, streams=2, threads=1)) as model:
        fresh = [model.complete(f"{begin} {end}", **options, prefix_cache=False).text for end in ("a", "list", "of")]
        for _ in range(2):
            assert [model.complete(f"{begin} {end}", **options).text for end in ("a", "list", "of")] == fresh


def test_a_request_may_refuse_to_share(small: Model) -> None:
    small.complete(WORDS, max_tokens=1)
    assert small.complete(WORDS, max_tokens=1, prefix_cache=False).usage.cached_tokens == 0


def test_kept_prompts_stay_within_their_budget_and_the_oldest_go_first(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, streams=1, threads=1, prefix_bytes=100_000)) as model:
        texts = [f"{word} " + " ".join(WORDS.split()[at:]) for at, word in enumerate(("red", "green", "blue", "white"))]
        for text in texts:
            model.complete(text, max_tokens=1)
            assert engine_of(model).stats().kept_bytes <= 100_000
        assert model.complete(texts[-1], max_tokens=1).usage.cached_tokens > 0
        assert model.complete(texts[0], max_tokens=1).usage.cached_tokens == 0


@pytest.mark.parametrize("variant", ["llama", "lfm2"])
def test_a_prompt_that_was_parked_is_continued_as_if_it_had_stayed(variant: str, tmp_path: Path) -> None:
    path = write_f32(make_variant(tmp_path, VARIANTS[variant]), tmp_path / "x.gguf")
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    first, longer = " ".join(WORDS.split()[:10]), " ".join(WORDS.split()[:14])
    with Model(open_engine(path, ctx=128, streams=1, threads=1, prefix_bytes=1 << 20, numerics="fast")) as model:
        fresh = model.complete(longer, **options, prefix_cache=False)
        model.complete(first, max_tokens=1)
        model.complete("another thing altogether", max_tokens=1)  # takes the cells, so the first is parked
        again = model.complete(longer, **options)
        assert again.usage.cached_tokens >= len(model.tokenize(first))
        assert again.text == fresh.text


SYSTEM = "You are a careful assistant who answers in short sentences and names the sources. " * 9


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_kept_prompt_gives_the_same_numbers_as_a_fresh_one(smollm2_path: Path, kv_unified: bool) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "logprobs": 5}
    with Model(open_engine(smollm2_path, ctx=512, streams=2, kv_unified=kv_unified)) as model:
        for question in ("Why is the sky blue?", "Hi", "Name three rivers of Europe and the seas that they flow into."):
            for system in (SYSTEM, SYSTEM[:90]):  # long ones are computed in another way than short ones
                prompt = f"{system}\n{question}"
                fresh = model.complete(prompt, **options, prefix_cache=False)
                model.complete(f"{system}\nWhat is a tuple?", max_tokens=2)
                again = model.complete(prompt, **options)
                assert again.usage.cached_tokens >= len(model.tokenize(system)) - 1
                assert again.logprobs == fresh.logprobs  # to the bit


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_prompt_that_was_parked_gives_the_same_numbers_as_a_fresh_one(smollm2_path: Path, kv_unified: bool) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "logprobs": 5}
    long, other = f"{SYSTEM}\nWhy is the sky blue?", "Another text altogether, which is not long."
    with Model(open_engine(smollm2_path, ctx=512, streams=2, kv_unified=kv_unified)) as model:
        fresh = [model.complete(prompt, **options, prefix_cache=False) for prompt in (long, f"{SYSTEM}\nHi", other)]
        model.complete(long, **options)
        model.complete(other, **options)  # takes the cells, so the first is parked
        again = [model.complete(prompt, **options) for prompt in (long, f"{SYSTEM}\nHi", other)]
    assert all(answer.usage.cached_tokens >= 8 for answer in again)
    assert [answer.logprobs for answer in again] == [answer.logprobs for answer in fresh]


@pytest.mark.parametrize("kv_unified", [True, False])
def test_what_was_read_before_others_came_stays_exact_for_all_of_them(smollm2_path: Path, kv_unified: bool) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "logprobs": 5}
    prompt = f"{SYSTEM}\nWhy is the sky blue?"
    endless: dict[str, Any] = {"temperature": 0, "logit_bias": dict.fromkeys(end_tokens(smollm2_path), -100.0)}
    room_for_one = {"prefix_bytes": 6 << 20, "kv_unified": kv_unified}
    with Model(open_engine(smollm2_path, ctx=512, streams=3, **room_for_one)) as model:
        length = len(model.tokenize(SYSTEM))
        with model.stream(f"{SYSTEM}\nHi", **endless) as first:
            next(first)
            second = model.stream(f"{SYSTEM}\nWhat is a tuple?", **endless)
            next(second)
        while engine_of(model).stats().running > 1:
            time.sleep(0.01)
        second.close()
        again = model.complete(prompt, **options)
        fresh = model.complete(prompt, **options, prefix_cache=False)
    assert again.usage.cached_tokens >= length - 1
    assert again.logprobs == fresh.logprobs


def test_a_beginning_in_cells_is_shared_rather_than_a_little_more_of_a_parked_one(small: Model) -> None:
    begin = len(small.tokenize(WORDS, add_special=True))
    small.complete(f"{WORDS}: a list", max_tokens=1)
    with small.stream(f"{WORDS} and", max_tokens=200, temperature=1.5) as running:
        next(running)
        assert small.complete(f"{WORDS}: a string", max_tokens=1).usage.cached_tokens == begin


@pytest.mark.parametrize("length", [40, 200])
def test_models_with_a_window_continue_what_was_kept_to_the_bit(length: int, tmp_path: Path) -> None:
    path = write_f32(make_variant(tmp_path, VARIANTS["gemma3"]), tmp_path / "x.gguf")
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "logprobs": 5}
    with Model(open_engine(path, ctx=640, streams=2, threads=2)) as model:
        begin = (" ".join([WORDS] * 40))[: length * 4]
        for end in (" and", " or a list", " when"):
            fresh = model.complete(begin + end, **options, prefix_cache=False)
            model.complete(begin + " the", max_tokens=24)
            again = model.complete(begin + end, **options)
            assert again.usage.cached_tokens >= len(model.tokenize(begin)) - 2
            assert again.logprobs == fresh.logprobs


def test_the_next_turn_finds_the_last_answer_exact_without_reading_it_again(smollm2_path: Path) -> None:
    turn: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
    options: dict[str, Any] = {"max_tokens": 120, "temperature": 0, "logprobs": 5}
    with Model(open_engine(smollm2_path, ctx=1024, streams=2)) as model:
        answer = model.chat(turn, **options)
        turn += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And at night?"}]
        engine = engine_of(model)
        batches = engine.batches
        deadline = time.monotonic() + 20
        while engine.batches == batches and time.monotonic() < deadline:
            time.sleep(0.01)  # the answer is read while nobody asks
        again = model.chat(turn, **options)
        fresh = model.chat(turn, **options, prefix_cache=False)
    assert again.usage.cached_tokens >= answer.usage.prompt_tokens + answer.usage.completion_tokens - 2
    assert again.logprobs == fresh.logprobs


def test_nothing_is_kept_without_a_budget(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, streams=1, threads=1, prefix_bytes=0)) as model:
        model.complete(WORDS, max_tokens=1)
        assert engine_of(model).stats().kept_tokens == 0
        assert model.complete(WORDS, max_tokens=1).usage.cached_tokens == 0


def test_when_the_cache_is_full_the_youngest_waits_and_all_finish(tiny_gguf: Path) -> None:
    artifact, plan = planned(tiny_gguf, LoadOptions(ctx=256, streams=3, threads=1, prefix_bytes=0, kv_unified=True))
    with Model(LlamaCppEngine(artifact, replace(plan, kv_cells=256))) as model:
        prompts = [f"{word} {WORDS}" for word in ("red", "green", "blue")]
        alone = [model.complete(prompt, max_tokens=120, temperature=0).usage for prompt in prompts]
        done = together(model, prompts, max_tokens=120, temperature=0)
        assert [answer.usage.completion_tokens for answer in done] == [usage.completion_tokens for usage in alone]
        assert engine_of(model).stats().preempted > 0


def test_a_failure_of_work_that_nobody_asked_for_ends_nothing(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeai.engines.llamacpp import scheduler

    failed = threading.Event()

    def fail(*_: object) -> None:
        failed.set()
        raise MemoryError

    monkeypatch.setattr(scheduler, "settle", fail)
    with Model(open_engine(tiny_gguf, ctx=256, streams=1, threads=1)) as model:
        before = model.complete(WORDS, max_tokens=20, temperature=0).text
        assert failed.wait(10)
        assert model.complete(WORDS, max_tokens=20, temperature=0).text == before


# ---- limits


def test_cancelling_one_stream_leaves_the_others(small: Model) -> None:
    one, two = (small.stream(prompt, max_tokens=60, temperature=0) for prompt in prompts_of(2))
    next(one)
    one.close()
    assert two.collect().usage.completion_tokens > 0
    assert engine_of(small).stats().running == 0


def test_a_long_prompt_is_cancelled_while_it_is_read(smollm2_path: Path) -> None:
    with Model(open_engine(smollm2_path, ctx=4096, streams=2)) as model:
        stream = model.stream(" word" * 3500, max_tokens=1)
        time.sleep(0.2)  # reading it takes seconds
        began = time.perf_counter()
        stream.cancel()
        assert stream.collect().finish_reason == "cancelled"
        assert time.perf_counter() - began < 2
        assert engine_of(model).stats().running == 0


def test_an_answer_ends_when_its_time_is_over(small: Model) -> None:
    done = small.complete("the function", max_tokens=100_000, temperature=0, max_seconds=0.0001)
    assert done.finish_reason == "timeout"


def test_a_running_stream_goes_on_while_a_long_prompt_is_read(smollm2_path: Path) -> None:
    with Model(open_engine(smollm2_path, ctx=4096, streams=2)) as model:
        running = model.stream("The sun is", max_tokens=2000, temperature=0.8, seed=1)
        next(running)
        shown: list[float] = []
        reader = threading.Thread(target=lambda: shown.extend(time.perf_counter() for _ in running))
        reader.start()
        began = time.perf_counter()
        done = model.complete(" word" * 1000, max_tokens=1)
        read = began + (done.timings.ttft_s or 0)
        running.cancel()
        reader.join()
    assert sum(began < moment < read for moment in shown) >= 5


# ---- what a request may ask for


def test_log_probabilities_are_those_of_scoring(small: Model) -> None:
    done = small.complete("the function returns", max_tokens=6, temperature=0, logprobs=2)
    assert done.logprobs is not None
    ids = [*small.tokenize("the function returns", add_special=True), *(token.id for token in done.logprobs)]
    scored = engine_of(small).score(ids)[-len(done.logprobs) :]
    assert [token.logprob for token in done.logprobs] == pytest.approx(scored, abs=1e-3)
    assert "".join(token.text for token in done.logprobs) == done.text
    assert all(token.top[0][0] == token.id for token in done.logprobs)  # greedy: the likeliest was taken


def test_a_banned_token_does_not_come(small: Model) -> None:
    plain = small.complete("the function returns", max_tokens=1, temperature=0, logprobs=0).logprobs
    assert plain
    biased = small.complete(
        "the function returns", max_tokens=1, temperature=0, logprobs=0, logit_bias={plain[0].id: -100}
    ).logprobs
    assert biased
    assert biased[0].id != plain[0].id


def test_a_bias_changes_the_choice_where_libllama_would_change_it(small: Model) -> None:
    plain = small.complete("the function returns", max_tokens=1, temperature=0, logprobs=2).logprobs
    assert plain
    (best, _, high), (second, _, low) = plain[0].top[:2]
    for bias, expected in ((high - low - 1e-3, best), (high - low + 1e-3, second)):
        for penalty in (1.0, 1.0 + 1e-7):  # with a penalty libllama's own chain chooses
            done = small.complete(
                "the function returns", max_tokens=1, temperature=0, logprobs=0, repeat_penalty=penalty,
                logit_bias={second: bias},
            ).logprobs  # fmt: skip
            assert done
            assert done[0].id == expected


def test_a_bias_on_a_token_that_there_is_not_is_refused(small: Model) -> None:
    with pytest.raises(UsageError, match="not in the vocabulary"):
        small.complete("the", max_tokens=1, logit_bias={10**6: 1.0})


def test_a_prompt_beyond_the_context_is_refused_before_any_work(small: Model) -> None:
    with pytest.raises(ContextExceeded):
        small.complete(" ".join([WORDS] * 40))


# ---- speculation


REPEATED = (
    "def add(first, second):\n    return first + second\n\ndef subtract(first, second):\n    return first - second\n\n"
)


def test_guesses_change_no_number_of_a_greedy_answer(smollm2_path: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 80, "temperature": 0, "logprobs": 5, "prefix_cache": False}
    with Model(open_engine(smollm2_path, ctx=512, streams=1)) as model:
        plain = model.complete(REPEATED, **options)
        guessed = model.complete(REPEATED, **options, speculation="lookup")
    assert guessed.logprobs == plain.logprobs
    assert guessed.timings.drafted >= guessed.timings.accepted > 0


def test_nothing_is_guessed_where_that_would_change_answers_unless_it_is_allowed(smollm2_path: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "speculation": "lookup"}
    with Model(open_engine(smollm2_path, ctx=512, streams=1)) as model:
        done = model.complete(REPEATED * 12, **options)  # more tokens than attention takes in one piece
    with Model(open_engine(smollm2_path, ctx=512, streams=1, numerics="fast")) as model:
        fast = model.complete(REPEATED * 12, **options)
    assert (done.timings.drafted, [notice.code for notice in done.warnings]) == (0, ["no-speculation"])
    assert (fast.timings.accepted > 0, fast.warnings) == (True, ())


def test_a_sampled_answer_may_always_be_guessed_at(small: Model) -> None:
    done = small.complete(REPEATED, max_tokens=60, temperature=0.2, seed=1, speculation="lookup")
    assert done.timings.drafted > 0


def test_guesses_are_as_many_as_are_computed_like_one_by_one(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(_: object, ids: list[int], start: int) -> list[Any]:
        rows = [np.full(4, start + at, np.float32) for at in range(len(ids))]
        if len(ids) in {4, 5, 6}:  # as a product of matrices in groups of four rows may round
            rows[-1][2] = np.nextafter(rows[-1][2], np.float32(np.inf))
        return rows

    monkeypatch.setattr(guess_check, "logits", rounded)
    check = guess_check.GuessCheck(8)
    while not check.step(engine_of(small)._handle, 512):
        pass
    assert check.result.get_nowait() == 2


def test_a_draft_model_that_is_the_model_is_nearly_always_right(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=256, streams=2, threads=1, draft=tiny_gguf, numerics="fast")) as model:
        plain = model.complete(WORDS, max_tokens=30, temperature=0, prefix_cache=False)
        drafted = model.complete(WORDS, max_tokens=30, temperature=0, speculation="draft", prefix_cache=False)
        assert drafted.text == plain.text
        assert drafted.timings.accepted > 0.8 * drafted.timings.drafted > 0


def test_a_draft_of_another_vocabulary_is_refused(tiny_gguf: Path, smollm2_path: Path) -> None:
    with pytest.raises(UsageError, match="draft model"):
        open_engine(smollm2_path, ctx=256, draft=tiny_gguf)


def test_speculation_without_a_draft_model_is_refused(small: Model) -> None:
    with pytest.raises(UsageError, match="no draft model"):
        small.complete("the", max_tokens=1, speculation="draft")


def test_models_whose_state_cannot_go_back_say_that_they_do_not_guess(tmp_path: Path) -> None:
    path = write_f32(make_variant(tmp_path, VARIANTS["lfm2"]), tmp_path / "x.gguf")
    with Model(open_engine(path, ctx=128, streams=1, threads=1)) as model:
        done = model.complete("the list", max_tokens=4, speculation="lookup")
        assert [notice.code for notice in done.warnings] == ["no-speculation"]


def test_as_many_run_and_wait_as_may_though_all_come_at_once(tiny_gguf: Path) -> None:
    endless: dict[str, Any] = {"max_tokens": 200, "logit_bias": dict.fromkeys(end_tokens(tiny_gguf), -100.0)}
    with Model(open_engine(tiny_gguf, ctx=256, streams=2, queue=1, threads=1)) as model:
        streams = [model.stream(f"{number} {WORDS}", **endless) for number in range(3)]
        with pytest.raises(Busy):
            model.stream("one more", **endless)
        for stream in streams:
            stream.close()


def test_an_answer_is_the_same_where_nothing_is_kept(smollm2_path: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "logprobs": 2}
    found = []
    for prefix_bytes in (None, 0):
        with Model(open_engine(smollm2_path, ctx=256, prefix_bytes=prefix_bytes)) as model:
            found.append(model.chat([{"role": "user", "content": "Why is the sky blue?"}], **options).logprobs)
    assert found[0] == found[1]


@pytest.mark.parametrize("streams", [1, 2])
def test_near_the_end_of_the_context_an_answer_is_still_that_of_a_fresh_model(smollm2_path: Path, streams: int) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "logprobs": 2}
    with Model(open_engine(smollm2_path, ctx=300, streams=streams)) as model:
        ids = model.tokenize(" ".join([WORDS] * 20))
        prompt = model.detokenize(ids[:286])
        fresh = model.complete(prompt, **options, prefix_cache=False)
        model.complete(model.detokenize(ids[:266]), max_tokens=1)
        again = model.complete(prompt, **options)
    assert again.logprobs == fresh.logprobs


def test_a_short_prompt_does_not_wait_for_a_long_one_that_has_passed_what_they_share(tiny_gguf: Path) -> None:
    with Model(open_engine(tiny_gguf, ctx=16384, streams=4, threads=1)) as model:
        begin = model.detokenize(model.tokenize(f"{WORDS} {WORDS}")[:36])
        long = model.stream(f"{begin}: " + " ".join(str(number) for number in range(3000)), max_tokens=1)
        reading = engine_of(model)
        while reading.batches < 11:  # so much that copying it for what is shared is not worth it
            time.sleep(0.001)
        short = model.complete(f"{begin}, or else", max_tokens=1)
        assert engine_of(model).stats().running == 1  # the long one is not done yet
        assert short.timings.queue_s < 0.5
        long.close()


@pytest.mark.parametrize("temperature", [1e-50, 1e-38, 1e-9])
def test_temperatures_next_to_nothing_are_greedy(small: Model, temperature: float) -> None:
    greedy = small.complete(WORDS, max_tokens=12, temperature=0, prefix_cache=False).text
    assert small.complete(WORDS, max_tokens=12, temperature=temperature, seed=3, prefix_cache=False).text == greedy


def test_a_stop_text_that_no_answer_can_have_is_refused(small: Model) -> None:
    with pytest.raises(UsageError, match="not valid Unicode"):
        small.complete(WORDS, stop="\ud800")
