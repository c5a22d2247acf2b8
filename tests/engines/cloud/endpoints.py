"""What the tests of endpoints share: an endpoint for a scripted server, and what an attempt came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from edgeai.config import CloudSettings, Timeouts
from edgeai.engines.cloud import Endpoint
from edgeai.errors import CloudFailure
from edgeai.types import Chunk, GenerationConfig, Message

ASK: list[Message] = [{"role": "user", "content": "hi"}]
SHORT = Timeouts(connect_s=0.4, first_token_s=0.4, stall_s=0.3, total_s=2.0)
KEY = "sk-test-0123456789abcdef"


@contextmanager
def endpoint(
    url: str, timeouts: Timeouts = SHORT, *, key: str | None = KEY, environment: Mapping[str, str] | None = None, **settings: Any
) -> Iterator[Endpoint]:  # fmt: skip
    """An endpoint at URL, in an ENVIRONMENT that has no variables."""
    made = Endpoint(
        CloudSettings(name="t", base_url=url, model="m", **settings), timeouts, key=key, environment=environment or {}
    )
    try:
        yield made
    finally:
        made.close()


def ask(made: Endpoint, config: GenerationConfig | None = None, **options: Any) -> list[Chunk]:
    """Every chunk of an answer."""
    return list(made.attempt(ASK, config or GenerationConfig(), **options))


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def failure_of(made: Endpoint, config: GenerationConfig | None = None, **options: Any) -> CloudFailure:
    """How an attempt failed."""
    with pytest.raises(CloudFailure) as raised:
        ask(made, config, **options)
    return raised.value
