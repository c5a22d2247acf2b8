"""Prompts on disk: put back they continue as if computed, for every kind of memory; a file that is not right never reaches native code."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeai.engines.llamacpp.handle import Handle
from edgeai.engines.llamacpp.promptfile import (
    FRONT,
    PromptFile,
    Subject,
    read_prompt_file,
    write_prompt_file,
)  # fmt: skip
from edgeai.engines.llamacpp.promptstate import LoadJob, SaveJob, read, reusable_ids
from edgeai.engines.llamacpp.statelayout import read_state
from edgeai.engines.opening import planned
from edgeai.errors import ContextExceeded, InvalidModel, UsageError
from edgeai.model import Model, open_engine
from edgeai.options import LoadOptions
from edgeai.types import Message
from tests.families import VARIANTS, make_variant, some_ids, write_f32

SUBJECT = Subject(model="m", template="t", library="l", kv_type="f16", long_context=False)
FAMILIES = {"llama": "llama", "sliding window": "gemma3", "hybrid": "lfm2"}


def run(job: Any, handle: Handle) -> Any:
    """Run JOB to its end and return its result."""
    while not job.step(handle, handle.n_batch):
        pass
    return job.result.get_nowait()


def logits(handle: Handle) -> np.ndarray[Any, Any]:
    pointer = ctypes.cast(handle.lib.llama_get_logits(handle.context), ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, (handle.n_vocab,)).copy()


def opened(path: Path, **options: Any) -> Handle:
    return Handle(*planned(path, LoadOptions(threads=1, ctx=128, **options)))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def handle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Handle]:
    place = tmp_path_factory.mktemp("state")
    found = opened(write_f32(make_variant(place / "m", VARIANTS[FAMILIES[request.param]]), place / "m.gguf"))
    yield found
    found.free()


@pytest.fixture(scope="module")
def plain(tiny_gguf: Path) -> Iterator[Handle]:
    found = opened(tiny_gguf)
    yield found
    found.free()


def saved(handle: Handle, count: int = 40) -> PromptFile:
    ids = some_ids(handle.n_vocab, count)
    return PromptFile(subject=SUBJECT, tokens=tuple(ids), state=run(SaveJob(ids), handle))


def nothing(tokens: Sequence[int]) -> bool:
    """Keep no state and say that it was kept."""
    return True


def load(handle: Handle, prompt: PromptFile, keep: Any = nothing) -> Any:
    return run(LoadJob(prompt, handle.n_swa or None, keep), handle)


def test_a_state_that_is_put_back_continues_as_if_it_had_been_computed(handle: Handle) -> None:
    prompt = saved(handle)
    handle.forget(handle.scratch)
    read(handle, prompt.tokens, 0)
    read(handle, [5], len(prompt.tokens))
    expected = logits(handle)
    found: list[Any] = []

    def keep(tokens: Sequence[int]) -> bool:
        read(handle, [5], len(tokens))
        found.append(logits(handle))
        return True

    assert load(handle, prompt, keep) == len(prompt.tokens)
    assert np.array_equal(found[0], expected)


def test_nothing_is_left_on_the_scratch_sequence(plain: Handle) -> None:
    load(plain, saved(plain))
    assert plain.span(plain.scratch) == (-1, -1)


def test_a_state_of_fewer_or_more_tokens_than_the_file_says_is_refused(handle: Handle) -> None:
    prompt = saved(handle)
    for tokens in (prompt.tokens[:-1], (*prompt.tokens, 1)):
        with pytest.raises(InvalidModel, match="not those of"):
            load(handle, replace(prompt, tokens=tokens))


def test_a_state_of_another_model_is_refused(handle: Handle, plain: Handle) -> None:
    with pytest.raises(InvalidModel, match=r"another model|laid out"):
        load(plain, saved(handle))


def test_a_state_of_another_kv_type_is_refused(smollm2_path: Path) -> None:
    one, two = (opened(smollm2_path, kv_type=kind) for kind in ("q8_0", "f16"))
    prompt = saved(one)
    assert load(one, prompt) == 40
    with pytest.raises(InvalidModel, match="another kind of KV cache"):
        load(two, prompt)
    one.free()
    two.free()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_spoiled_state_reaches_the_library_or_stops_the_model(plain: Handle, data: st.DataObject) -> None:
    prompt = saved(plain, 8)
    at = data.draw(st.integers(0, 250) | st.integers(0, len(prompt.state) - 1))
    value = data.draw(st.binary(min_size=1, max_size=8))
    spoiled = prompt.state[:at] + value + prompt.state[at + len(value) :]
    cut = data.draw(st.sampled_from([None, at, len(spoiled) - 1]))
    with contextlib.suppress(InvalidModel):
        load(plain, replace(prompt, state=spoiled[:cut]))
    assert load(plain, prompt) == 8


def test_a_number_that_is_none_is_refused(handle: Handle) -> None:
    prompt = saved(handle)
    row = read_state(prompt.state).parts[0].rows[0]
    state = bytearray(prompt.state)
    state[row.start : row.start + 2] = np.full(1, np.nan, np.float16).tobytes()
    with pytest.raises(InvalidModel, match="not finite"):
        load(handle, replace(prompt, state=bytes(state)))


def test_what_never_ends_is_no_prompt_file() -> None:
    with pytest.raises(InvalidModel, match="not a file"):
        read_prompt_file(Path("/dev/zero"), SUBJECT, vocab=10, most_tokens=10)


def test_a_prompt_that_fills_the_context_is_refused(plain: Handle) -> None:
    with pytest.raises(ContextExceeded, match="128 tokens and the context holds 128"):
        SaveJob([1] * 128).step(plain, plain.n_batch)
    with pytest.raises(UsageError, match="0 tokens"):
        SaveJob([])


# ---- the file


PROMPT = PromptFile(subject=SUBJECT, tokens=(1, 2, 3), state=b"some state")


def reread(path: Path, subject: Subject = SUBJECT, vocab: int = 10, most_tokens: int = 5) -> PromptFile:
    return read_prompt_file(path, subject, vocab=vocab, most_tokens=most_tokens)


def test_a_file_is_read_as_it_was_written_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    write_prompt_file(tmp_path / "é p", PROMPT)
    assert reread(tmp_path / "é p") == PROMPT
    assert [path.name for path in tmp_path.iterdir()] == ["é p"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "x"}, "another model file"),
        ({"template": "x"}, "another chat template"),
        ({"library": "x"}, "another build of the native library"),
        ({"kv_type": "q8_0"}, r"another type \('f16', and here it is 'q8_0'\)"),
        ({"long_context": True}, "context of another kind"),
    ],
)
def test_a_foreign_file_is_refused_with_what_differs(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write_prompt_file(tmp_path / "p", PROMPT)
    with pytest.raises(InvalidModel, match=said):
        reread(tmp_path / "p", replace(SUBJECT, **change))


def test_tokens_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_prompt_file(tmp_path / "p", PROMPT)
    with pytest.raises(InvalidModel, match="token 3, and the model has 3"):
        reread(tmp_path / "p", vocab=3)
    with pytest.raises(InvalidModel, match="3 tokens, and 2 fit"):
        reread(tmp_path / "p", most_tokens=2)


def test_every_cut_and_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "p"
    write_prompt_file(path, PROMPT)
    data = path.read_bytes()
    for at in range(len(data)):
        for spoiled in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            path.write_bytes(spoiled)
            with pytest.raises(InvalidModel):
                reread(path)
    path.write_bytes(data + b"x")
    with pytest.raises(InvalidModel, match="bytes, and says it has"):
        reread(path)


@pytest.mark.parametrize("header", [b"[]", b"{}", b"nonsense", b'{"tokens": 1}', None])
def test_a_crafted_header_with_a_right_sum_is_refused(tmp_path: Path, header: bytes | None) -> None:
    if header is None:
        fields = {"model": ["m"], "template": "t", "library": "l", "kv_type": "f16", "long_context": False}
        header = json.dumps({**fields, "tokens": [1]}).encode()
    body = FRONT.pack(b"EDGEAIps", 1, len(header), 0) + header
    (tmp_path / "p").write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(InvalidModel, match="header that is not valid"):
        reread(tmp_path / "p")


def test_another_version_is_refused_by_its_number(tmp_path: Path) -> None:
    write_prompt_file(tmp_path / "p", PROMPT)
    data = bytearray((tmp_path / "p").read_bytes())
    struct.pack_into("<I", data, 8, 2)
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(InvalidModel, match="version 2"):
        reread(tmp_path / "p")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="cannot be read"):
        reread(tmp_path / "none")


def test_what_a_system_message_shares_with_every_question_is_reused() -> None:
    def ids_of(prompt: Any) -> list[int]:
        return [ord(letter) for letter in "".join(f"<{item['role']}>{item['content']}" for item in prompt) + "<answer>"]

    found = reusable_ids([{"role": "system", "content": "Be brief."}], ids_of)
    assert bytes(found) == b"<system>Be brief.<user>"
    asked = reusable_ids([{"role": "user", "content": "Hi"}], ids_of)
    assert bytes(asked) == b"<user>Hi<answer>"


# ---- through the API


SYSTEM = "You are a careful assistant. " + "You answer in short sentences and name your sources. " * 6


def test_a_saved_prompt_is_reused_by_another_load_and_changes_no_answer(tiny_gguf: Path, tmp_path: Path) -> None:
    path, options = tmp_path / "é prompt", {"max_tokens": 12, "temperature": 0}
    with Model(open_engine(tiny_gguf, threads=1, ctx=512)) as model:
        count = model.save_prompt(SYSTEM, path)
        fresh = model.complete(SYSTEM + "Why is the", prefix_cache=False, **options)
    with Model(open_engine(tiny_gguf, threads=1, ctx=512)) as model:
        assert model.load_prompt(path) == count
        found = model.complete(SYSTEM + "Why is the", **options)
    assert (
        found.usage.cached_tokens >= found.usage.prompt_tokens - 72
    )  # as many are read again as an exact answer takes
    assert fresh.usage.cached_tokens == 0
    assert found.text == fresh.text


def test_a_saved_prompt_gives_the_same_numbers_as_a_fresh_one(smollm2_path: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "logprobs": 5}
    with Model(open_engine(smollm2_path, ctx=512)) as model:
        fresh = model.complete(SYSTEM + "Why is the sky blue?", prefix_cache=False, **options)
        count = model.save_prompt(SYSTEM, tmp_path / "p")
    with Model(open_engine(smollm2_path, ctx=512)) as model:
        model.load_prompt(tmp_path / "p")
        found = model.complete(SYSTEM + "Why is the sky blue?", **options)
    assert found.usage.cached_tokens >= count - 2
    assert found.logprobs == fresh.logprobs


def test_a_saved_system_message_is_reused_by_conversations(smollm2_path: Path, tmp_path: Path) -> None:
    system: Message = {"role": "system", "content": SYSTEM}
    with Model(open_engine(smollm2_path, ctx=512)) as model:
        count = model.save_prompt([system], tmp_path / "p")
    with Model(open_engine(smollm2_path, ctx=512)) as model:
        model.load_prompt(tmp_path / "p")
        for question in ("What is a tuple?", "Hi"):
            messages: list[Message] = [system, {"role": "user", "content": question}]
            assert model.chat(messages, max_tokens=2).usage.cached_tokens >= count


def test_a_model_goes_on_after_a_file_that_is_refused(tiny: Model, tmp_path: Path) -> None:
    before = tiny.complete("The for", max_tokens=8, temperature=0).text
    tiny.save_prompt(SYSTEM, tmp_path / "p")
    data = (tmp_path / "p").read_bytes()
    (tmp_path / "p").write_bytes(data[:-100])
    with pytest.raises(InvalidModel):
        tiny.load_prompt(tmp_path / "p")
    assert tiny.complete("The for", max_tokens=8, temperature=0).text == before


def test_another_model_refuses_the_file_by_name(tiny: Model, smollm2: Model, tmp_path: Path) -> None:
    tiny.save_prompt(SYSTEM, tmp_path / "p")
    with pytest.raises(InvalidModel, match="another model file"):
        smollm2.load_prompt(tmp_path / "p")


def test_a_model_that_keeps_nothing_says_so(tiny_gguf: Path, tmp_path: Path) -> None:
    with Model(open_engine(tiny_gguf, threads=1, ctx=512, prefix_bytes=0)) as model:
        model.save_prompt(SYSTEM, tmp_path / "p")
        with pytest.raises(UsageError, match=r"MB, and 0.0 MB are set aside"):
            model.load_prompt(tmp_path / "p")
