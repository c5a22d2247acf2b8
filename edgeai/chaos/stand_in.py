"""A local engine that stands for the local model in the lab: it answers LOCAL_ANSWER, or fails as one of faults.HOOKS says."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edgeai.chaos.answers import LOCAL_ANSWER
from edgeai.engines.fake import FakeEngine
from edgeai.engines.streaming import Channel, ChunkStream
from edgeai.errors import Busy, ContextExceeded, DoesNotFit, EdgeAIError, EngineCrashed, ModelNotFound
from edgeai.types import Chunk, GenerationConfig, Prompt

__all__ = ["StandIn", "open_stand_in"]

SLOW_S = 2.0
SOME_WORDS = 3
CONTEXT = 4096

AT_ONCE: dict[str, Callable[[], EdgeAIError]] = {
    "local-oom": lambda: DoesNotFit("the lab's local model needs more memory than there is"),
    "local-busy": lambda: Busy("as many requests wait for the lab's local model as may"),
    "local-context": lambda: ContextExceeded("the prompt is longer than the context of the lab's local model"),
}
"""What `generate` raises before any work."""


def open_stand_in(hook: str | None = None) -> StandIn:
    """Return the engine that fails as HOOK says; other hooks are no matter of it. Raises ModelNotFound where there is to be none."""
    if hook in ("local-missing", "local-down"):
        raise ModelNotFound("the lab has no local model", hint="this is what the fault is")
    return StandIn(hook)


class StandIn(FakeEngine):
    """Answers LOCAL_ANSWER; with HOOK it fails when it is asked, before its first word, after some, or is slow."""

    def __init__(self, hook: str | None = None) -> None:
        super().__init__(LOCAL_ANSWER, context=CONTEXT)
        self._hook = hook

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        """Answer, or fail."""
        if (error := AT_ONCE.get(self._hook or "")) is not None:
            raise error()
        stream = super().generate(prompt, config)
        if self._hook in ("local-crash", "local-crash-midway"):
            return self._crashing(0 if self._hook == "local-crash" else SOME_WORDS)
        return self._late(stream) if self._hook == "local-slow" else stream

    def _crashing(self, words: int) -> ChunkStream:
        channel = Channel()
        for index, word in enumerate(LOCAL_ANSWER.split(" ")[:words]):
            channel.put(Chunk(text=f" {word}" if index else word))
        channel.put(EngineCrashed("the lab's local model crashed"))
        return ChunkStream(channel, self._count_cancel)

    def _late(self, stream: ChunkStream) -> ChunkStream:
        channel, left = Channel(), threading.Event()

        def pass_on() -> None:
            if not left.wait(SLOW_S):
                for chunk in stream:
                    channel.put(chunk)

        def cancel() -> None:
            self._count_cancel()
            left.set()
            channel.end()

        threading.Thread(target=pass_on, name="edgeai-chaos-slow", daemon=True).start()
        return ChunkStream(channel, cancel)
