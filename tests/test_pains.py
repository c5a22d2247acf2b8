"""What hurts people who run models on their own machines, each with the test of the promise that ends it.

Some promises are asserted here, end to end, as a user sees them; others are where their part of the program is tested, and `PROMISES`
says where. A name in it that is no test any more fails.

| pain                                                                  | promise                                                        |
|-----------------------------------------------------------------------|----------------------------------------------------------------|
| the GPU is there, and is silently not used                            | one line with the reason and the cure; asked for, an error     |
| the GPU goes away with a driver, a suspend, another program           | an error with its reason, then it is said what runs instead    |
| memory runs out and takes the application along                       | refused before loading, with what would fit; or a child dies   |
| the estimate of memory is wrong                                       | what was chosen automatically steps down; what was measured    |
|                                                                       | is remembered                                                  |
| a prompt is cut without a word                                        | refused with both numbers; cut only on request, and counted    |
| the whole prompt is computed again for each turn                      | its beginning is kept, across processes too, and counted       |
| a request with other options loads the model again                    | nothing that a request may say loads anything                  |
| memory grows with kept prompts                                        | a budget in the plan, none where no second request comes       |
| two callers crash or mix up one model                                 | any number of threads and tasks; too many are told             |
| a prompt that is being read cannot be stopped                         | it stops within a batch and leaves nothing behind              |
| a chat template is guessed                                            | an error; completion still works and says what it is           |
| memory is not given back                                              | twenty loads and unloads leave nothing                         |
| an answer never ends, a model hangs while it is stopped               | limits by tokens and by the clock; a hanging child is killed   |
| the library was built for another CPU and the program is gone         | an error that names the instructions                           |
| JSON was asked for and something else comes                           | the form holds, or it is a typed error                         |
| the same question and seed, another answer                            | deterministic: the same to the bit in any company              |
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import edgeai
from edgeai import native, selftest
from edgeai.cli import cli
from edgeai.device import Device
from edgeai.engines import opening
from edgeai.engines.llamacpp import LlamaCppEngine
from edgeai.engines.opening import open_model
from edgeai.engines.worker.engine import WorkerEngine
from edgeai.engines.worker.limits import Limits
from edgeai.errors import EngineCrashed, UsageError
from edgeai.model import Model
from edgeai.options import LoadOptions
from edgeai.plan import make_plan
from edgeai.types import Message
from tests.sparse import decoder, imagine
from tests.test_cuda import ADA, machine

PROMISES = {
    "the GPU is there, and is silently not used": [
        "tests.test_pains:test_a_gpu_that_is_not_used_is_said_and_not_silent",
        "tests.test_pains:test_cuda_that_was_asked_for_and_cannot_run_is_an_error_with_a_cure",
        "tests.engines.test_weights:test_the_library_naming_layers_that_no_gpu_has_is_not_believed",
        "tests.cli.test_cli:test_doctor_prints_the_cuda_command_where_it_applies",
    ],
    "the GPU goes away": [
        "tests.test_pains:test_a_gpu_that_is_lost_is_an_error_and_the_next_answers_say_what_they_run_on",
        "tests.test_cuda:test_every_way_that_cuda_fails_to_start_keeps_its_words_and_has_a_cure",
    ],
    "memory runs out and takes the application along": [
        "tests.test_pains:test_what_does_not_fit_is_refused_before_loading_with_things_that_do",
        "tests.engines.worker.test_supervision:test_all_streams_of_a_killed_child_say_so_and_the_next_request_works",
        "tests.engines.worker.test_supervision:test_the_child_goes_first_when_memory_runs_out",
    ],
    "the estimate of memory is wrong": [
        "tests.engines.test_opening:test_automatic_values_step_down_until_loading_works",
        "tests.engines.test_opening:test_explicit_values_fail_as_they_are",
        "tests.cli.test_fit:test_a_measurement_is_within_a_tenth_and_remembered",
        "tests.test_memory:test_the_prediction_for_smollm2_is_within_a_tenth_of_what_the_process_holds",
    ],
    "a prompt is cut without a word": [
        "tests.test_pains:test_a_prompt_that_is_too_long_is_refused_or_what_was_cut_is_counted",
        "tests.cli.test_chat:test_a_conversation_longer_than_the_context_is_an_error_and_not_a_cut",
    ],
    "the whole prompt is computed again": [
        "tests.test_pains:test_the_next_turn_of_a_conversation_does_not_read_its_beginning_again",
        "tests.engines.test_promptstate:test_a_saved_prompt_is_reused_by_another_load_and_changes_no_answer",
    ],
    "a request loads the model again": ["tests.test_pains:test_no_request_loads_the_model_again"],
    "memory grows with kept prompts": [
        "tests.test_pains:test_kept_prompts_are_in_the_plan_and_never_more_than_it_says",
        "tests.test_pains:test_nothing_is_kept_where_no_second_request_comes",
        "tests.test_plan:test_a_budget_for_kept_prompts_must_be_free_too",
    ],
    "two callers crash or mix up one model": [
        "tests.test_concurrency:test_fifty_threads_with_twenty_requests_each_get_their_own_answers",
        "tests.test_concurrency:test_threads_and_event_loops_share_a_model",
        "tests.test_concurrency:test_a_full_queue_is_an_error_for_who_comes_too_late_and_for_nobody_else",
    ],
    "a prompt that is being read cannot be stopped": [
        "tests.engines.test_scheduler:test_a_long_prompt_is_cancelled_while_it_is_read",
        "tests.test_aio:test_a_cancelled_task_stops_its_work",
        "tests.cli.test_run:test_ctrl_c_at_any_moment_of_the_start_ends_the_program",
    ],
    "a chat template is guessed": [
        "tests.test_pains:test_without_a_chat_template_a_chat_is_an_error_and_a_completion_says_so",
        "tests.test_chat:test_rendering_equals_transformers",
    ],
    "memory is not given back": [
        "tests.engines.worker.test_supervision:test_twenty_loads_and_unloads_leave_no_memory_descriptor_thread_or_process"
    ],
    "an answer never ends": [
        "tests.test_pains:test_an_answer_that_would_never_end_does",
        "tests.engines.worker.test_supervision:test_a_child_that_hangs_is_found_out_and_replaced",
        "tests.engines.worker.test_supervision:test_closing_beside_a_child_that_hangs_ends_in_bounded_time",
    ],
    "the library was built for another CPU": [
        "tests.test_pains:test_a_library_for_another_cpu_is_an_error_that_names_the_instructions",
        "tests.test_selftest:test_a_library_that_really_crashes_is_run_without_extra_buffer_types",
    ],
    "JSON was asked for and something else comes": [
        "tests.cli.test_form:test_a_schema_makes_stdout_json",
        "tests.cli.test_form:test_a_cut_answer_is_exit_4_with_what_came_on_stdout",
        "tests.cli.test_form:test_a_form_that_cannot_be_is_refused_before_the_model_is_looked_at",
        "tests.engines.test_constrained_answers:test_without_the_mask_an_answer_is_an_error_and_not_wrong_text",
    ],
    "the same question and seed, another answer": [
        "tests.engines.test_scheduler:test_deterministic_answers_are_the_same_to_the_bit_alone_and_beside_seven",
        "tests.engines.test_scheduler:test_a_reused_beginning_does_not_change_an_answer",
        "tests.test_concurrency:test_fifty_threads_with_twenty_requests_each_get_their_own_answers",
    ],
}
"""The pain → its tests, as module:name."""


@pytest.mark.parametrize("pain", PROMISES)
def test_each_pain_has_a_test(pain: str) -> None:
    for place in PROMISES[pain]:
        module, name = place.split(":")
        assert name.startswith("test_")
        assert callable(getattr(importlib.import_module(module), name, None)), place


def run(model: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["run", str(model), *arguments, "--threads", "1"], input="")


# ---- GPUs


@pytest.fixture
def unused_gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A machine with a GPU whose driver is too old for the library."""
    found = machine(gpus=(ADA,), error="CUDA driver version is insufficient for CUDA runtime version")
    monkeypatch.setattr("edgeai.device.probe", lambda **_: found)
    return found


@pytest.mark.usefixtures("unused_gpu")
def test_a_gpu_that_is_not_used_is_said_and_not_silent(tiny_gguf: Path) -> None:
    result = run(tiny_gguf, "The", "--raw", "-n", "2", "--json")
    answer = json.loads(result.stdout)
    assert (answer["device"], [notice["code"] for notice in answer["warnings"]]) == ("cpu", ["cpu-fallback"])
    assert "driver 580.1 is older" in result.stderr
    assert "update the NVIDIA driver" in result.stderr
    assert run(tiny_gguf, "The", "--raw", "-n", "2", "--strict").exit_code != 0


@pytest.mark.usefixtures("unused_gpu")
def test_cuda_that_was_asked_for_and_cannot_run_is_an_error_with_a_cure(tiny_gguf: Path) -> None:
    result = run(tiny_gguf, "The", "--raw", "--device", "cuda")
    assert (result.exit_code, result.stdout) == (6, "")
    assert "hint: update the NVIDIA driver" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_a_gpu_that_is_lost_is_an_error_and_the_next_answers_say_what_they_run_on(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEAI_LOST", str(tmp_path / "lost"))
    options, limits = LoadOptions(threads=1), Limits(delay_s=0.01)
    engine = WorkerEngine(open_model(tiny_gguf), options, limits=limits, module="tests.lost_gpu")
    with Model(engine) as model:
        with model.stream("The", max_tokens=100_000) as stream:
            assert next(stream).text
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGUSR1)
            with pytest.raises(EngineCrashed, match="CUDA error: unspecified launch failure"):
                stream.collect()
        done = model.complete("The", max_tokens=2)
    assert done.device == "cpu"
    assert [notice.code for notice in done.warnings] == ["cpu-fallback", "plan-changed"]
    assert "device cpu instead of cuda" in done.warnings[1].message


# ---- memory


def test_what_does_not_fit_is_refused_before_loading_with_things_that_do(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded all the same")

    monkeypatch.setattr(opening, "_load", load)
    result = run(smollm2_path, "hi", "--ctx", "100000000")
    assert (result.exit_code, result.stdout) == (5, "")
    _, _, offers = result.stderr.partition("these fit: ")
    assert len(offers.split("; ")) == 3
    options = [word for offer in offers.split("; ")[:2] for word in re.sub(r"\(.*", "", offer).split()]
    assert CliRunner().invoke(cli, ["fit", str(smollm2_path), *options]).exit_code == 0


def test_kept_prompts_are_in_the_plan_and_never_more_than_it_says(tiny_gguf: Path) -> None:
    budget = 150_000
    twice = opening.planned(tiny_gguf, LoadOptions(ctx=256, threads=1, prefix_bytes=2 * budget))[1]
    with edgeai.load(tiny_gguf, ctx=256, threads=1, prefix_bytes=budget) as model:
        assert twice.needed_bytes - model.plan.needed_bytes == budget
        assert isinstance(model.engine, LlamaCppEngine)
        kept = []
        for number in range(30):
            model.complete(f"{number} " * 40, max_tokens=1)
            kept.append(model.engine.stats().kept_bytes)
    assert 0 < max(kept) <= budget


def test_nothing_is_kept_where_no_second_request_comes() -> None:
    embedder, chat = (
        imagine("m", *decoder("llama", layers=4, width=256, heads=4, kv_heads=4, inner=512, pooling_type=pooling))
        for pooling in (3, 0)
    )
    assert make_plan(embedder, machine(), LoadOptions()).prefix_bytes == 0
    assert make_plan(chat, machine(), LoadOptions(needed=20)).prefix_bytes == 0
    assert make_plan(chat, machine(), LoadOptions()).prefix_bytes > 0


# ---- prompts


def test_a_prompt_that_is_too_long_is_refused_or_what_was_cut_is_counted(tiny_gguf: Path) -> None:
    with edgeai.load(tiny_gguf, ctx=64, threads=1) as model:
        text = "The value is a string. " * 40
        whole = len(model.tokenize(text, add_special=True))
    result = run(tiny_gguf, text, "--raw", "--ctx", "64")
    assert (result.exit_code, result.stdout) == (4, "")
    assert f"{whole} tokens" in result.stderr
    assert "64" in result.stderr
    cut = run(tiny_gguf, text, "--raw", "--ctx", "64", "-n", "4", "--overflow", "truncate-middle", "--json")
    answer = json.loads(cut.stdout)
    assert answer["usage"]["prompt_tokens"] + answer["usage"]["truncated_tokens"] == whole
    assert [notice["code"] for notice in answer["warnings"]] == ["context-truncated"]


def test_the_next_turn_of_a_conversation_does_not_read_its_beginning_again(smollm2_path: Path) -> None:
    talk: list[Message] = [{"role": "user", "content": "Name three colours, and for each a thing that has it."}]
    with edgeai.load(smollm2_path, ctx=512) as model:
        first = model.chat(talk, max_tokens=24, temperature=0)
        talk += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And one more?"}]
        second = model.chat(talk, max_tokens=2, temperature=0)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens


def test_no_request_loads_the_model_again(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        return lambda *arguments: (loaded.append(name), real(*arguments))[1]

    library = native.library()
    for name in ("llama_model_load_from_file", "llama_init_from_model"):
        monkeypatch.setattr(library, name, counted(name, getattr(library, name)))
    with edgeai.load(tiny_gguf, ctx=128, threads=1) as model:
        assert loaded == ["llama_model_load_from_file", "llama_init_from_model"]
        model.complete("The", max_tokens=2, temperature=0.3, top_k=5, seed=1, logprobs=2, logit_bias={5: -100})
        model.complete("A", max_tokens=2, regex="[0-9]{1}", prefix_cache=False)
        model.complete("The " * 100, max_tokens=2, overflow="truncate-middle", speculation="lookup")
        model.score("The value")
        for option in ("ctx", "threads", "kv_type", "device"):
            with pytest.raises(UsageError, match=repr(option)):
                model.complete("The", max_tokens=2, **{option: 64})
    assert len(loaded) == 2


def test_without_a_chat_template_a_chat_is_an_error_and_a_completion_says_so(tiny_gguf: Path) -> None:
    with edgeai.load(tiny_gguf, ctx=64, threads=1) as model:
        with pytest.raises(edgeai.errors.NoChatTemplate):
            model.chat([{"role": "user", "content": "The"}], max_tokens=2)
        assert model.complete("The", max_tokens=2).warnings == ()
    result = run(tiny_gguf, "The", "-n", "2", "--json")
    assert [notice["code"] for notice in json.loads(result.stdout)["warnings"]] == ["completion-mode"]
    assert run(tiny_gguf, "The", "--system", "Be brief.").exit_code == 3


# ---- time and the CPU


def test_an_answer_that_would_never_end_does(tiny_gguf: Path) -> None:
    with edgeai.load(tiny_gguf, ctx=64, threads=1) as model:
        eos = model.artifact.eos
        assert eos is not None
        endless = {"logit_bias": {eos: -100.0}}
        full = model.complete("The", **endless)
        assert full.finish_reason == "length"
        assert full.usage.prompt_tokens + full.usage.completion_tokens == 64
        assert model.complete("The", **endless, max_tokens=5).usage.completion_tokens == 5
        assert model.complete("The", **endless, max_seconds=0.001).finish_reason == "timeout"


def test_a_library_for_another_cpu_is_an_error_that_names_the_instructions(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def child(task: str) -> subprocess.CompletedProcess[str]:
        illegal = f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})"
        code = "print('CPU : AVX2 = 1 | AVX1024 = 1')" if task == "features" else illegal
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    monkeypatch.setattr(selftest, "_run_child", child)
    result = run(tiny_gguf, "The", "--raw")
    assert (result.exit_code, result.stdout) == (7, "")
    assert "instructions that this CPU does not have" in result.stderr
    assert "SIGILL" in result.stderr
    assert "hint: " in result.stderr
