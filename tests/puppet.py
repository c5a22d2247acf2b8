"""An engine whose answers a test hands out chunk by chunk, so that it decides what has come when."""

from __future__ import annotations

import threading

from edgeai.engines.fake import FakeEngine
from edgeai.engines.streaming import Channel, ChunkStream
from edgeai.types import Chunk, FinishReason, GenerationConfig, Notice, Prompt, Timings, TokenLogprob, Usage

__all__ = ["Puppet", "Request", "end"]


def end(reason: FinishReason = "stop", text: str = "") -> Chunk:
    """Return a last chunk."""
    timings = Timings(load_s=0.0, ttft_s=0.0, prompt_tok_s=None, gen_tok_s=None, total_s=0.0)
    return Chunk(
        text=text, finish_reason=reason, usage=Usage(prompt_tokens=1, completion_tokens=len(text)), timings=timings
    )


class Request:
    """One answer: `say` gives a chunk to its reader. Its cancel ends it as an engine does."""

    def __init__(self) -> None:
        self.channel = Channel()
        self.cancelled = threading.Event()

    def say(self, text: str, *, notices: tuple[Notice, ...] = (), logprobs: tuple[TokenLogprob, ...] = ()) -> None:
        """Put a chunk."""
        self.channel.put(Chunk(text=text, notices=notices, logprobs=logprobs))

    def finish(self, reason: FinishReason = "stop", text: str = "") -> None:
        """Put the last chunk."""
        self.channel.put(end(reason, text))

    def cancel(self) -> None:
        """End as cancelled."""
        self.cancelled.set()
        self.finish("cancelled")


class Puppet(FakeEngine):
    """Keeps its requests for the test; `may_begin` holds up the reading of prompts while it is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.begun = threading.Semaphore(0)
        self.may_begin = threading.Event()
        self.may_begin.set()

    def generate(self, prompt: Prompt, config: GenerationConfig) -> ChunkStream:
        """Return the stream of a new request."""
        self.begun.release()
        self.may_begin.wait()
        request = Request()
        self.requests.append(request)
        return ChunkStream(request.channel, request.cancel)

    def close(self) -> None:
        """End what runs as cancelled."""
        super().close()
        for request in self.requests:
            request.cancel()
