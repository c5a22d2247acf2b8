"""Endpoints as an engine: in their order, nothing twice, and cancelled when the reader goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from edgeai.engines.base import Engine
from edgeai.engines.cloud import CloudEngine
from edgeai.errors import ClosedError, CloudFailure, NoAnswer, StreamInterrupted, UsageError
from edgeai.model import Model
from edgeai.types import GenerationConfig
from tests.engines.cloud.endpoints import ASK, endpoint, text_of
from tests.engines.cloud.server import GOOD, HEAD, Server, answer, delta, serve, within


@contextmanager
def engine_of(*servers: Server) -> Iterator[CloudEngine]:
    with ExitStack() as stack:
        engine = CloudEngine([stack.enter_context(endpoint(server.url)) for server in servers])
        yield engine
        engine.close()


def test_it_is_an_engine() -> None:
    with serve(GOOD) as server, engine_of(server) as engine:
        assert isinstance(engine, Engine)
        assert engine.artifact.format == "cloud"
        assert engine.artifact.context == 128_000


def test_a_model_answers_with_it() -> None:
    with serve(GOOD) as server, engine_of(server) as engine:
        done = Model(engine).chat(ASK, max_tokens=5)
        assert done.text == "Hello there"
        assert (done.model, done.backend, done.device) == ("cloud/m", "cloud", f"127.0.0.1:{server.port}")
        assert server.body()["max_tokens"] == 5


def test_the_next_endpoint_answers_where_the_first_fails_and_that_is_said() -> None:
    with serve(answer("503 x")) as first, serve(GOOD) as second, engine_of(first, second) as engine:
        chunks = list(engine.generate(ASK, GenerationConfig()))
        assert text_of(chunks) == "Hello there"
        assert [notice.code for chunk in chunks for notice in chunk.notices] == ["cloud-fallback"]


def test_after_text_no_other_endpoint_is_asked() -> None:
    with serve([HEAD + delta("a"), 0.02, "rst"]) as first, serve(GOOD) as second, engine_of(first, second) as engine:
        with pytest.raises(StreamInterrupted) as raised:
            list(engine.generate(ASK, GenerationConfig()))
        assert raised.value.text == "a"
        assert second.connections == 0


def test_where_all_fail_each_is_named() -> None:
    with serve(answer("503 x")) as first, serve(answer("401 x")) as second, engine_of(first, second) as engine:
        with pytest.raises(NoAnswer) as raised:
            list(engine.generate(ASK, GenerationConfig()))
        assert [attempt["status"] for attempt in raised.value.attempts] == ["server", "credentials"]
    with serve(answer("503 x")) as only, engine_of(only) as engine, pytest.raises(CloudFailure):
        list(engine.generate(ASK, GenerationConfig()))


def test_cancelling_ends_the_stream_and_the_connection() -> None:
    with serve([HEAD + delta("a"), "hang"]) as server, engine_of(server) as engine:
        stream = engine.generate(ASK, GenerationConfig())
        assert next(stream).text == "a"
        begun = time.monotonic()
        stream.cancel()
        assert next(stream).finish_reason == "cancelled"
        assert time.monotonic() - begun < 0.2


def test_closing_ends_what_runs() -> None:
    with serve([HEAD + delta("a"), "hang"]) as server, engine_of(server) as engine:
        stream = engine.generate(ASK, GenerationConfig())
        next(stream)
        engine.close()
        assert next(stream).finish_reason == "cancelled"
        with pytest.raises(ClosedError):
            engine.generate(ASK, GenerationConfig())
        assert within(2, lambda: not engine._running)


def test_what_an_endpoint_cannot_do_is_refused() -> None:
    with serve(GOOD) as server, engine_of(server) as engine:
        for call in (engine.tokenize, engine.score, engine.embed, engine.classify):
            with pytest.raises(UsageError, match="an endpoint cannot"):
                call("x")
        assert server.connections == 0


def test_without_endpoints_there_is_no_engine() -> None:
    with pytest.raises(UsageError, match="there is no endpoint"):
        CloudEngine([])
