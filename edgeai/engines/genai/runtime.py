"""onnxruntime-genai as it is used here: one model, generators with a KV cache each, and its errors in one line."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgeai.artifact import Artifact
from edgeai.errors import DeviceUnavailable, DoesNotFit, EdgeAIError, EngineCrashed, InvalidModel
from edgeai.plan import Plan

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Generator", "Runtime", "has_provider"]

LOGITS_BYTES = 64_000_000
"""Logits of one part of a prompt: the graph computes them at every position."""
PART, LEAST_PART = 64, 16
"""Tokens of a prompt that are read at once. The library holds Python's lock meanwhile, so that nothing else of this process runs and
nothing can be cancelled: 0.2 s on 2 cores for SmolLM2. Prompts are read as fast as whole ones (bench/LOG.md)."""
QUIET = 4
"""onnxruntime's severity "fatal": what it would print on stderr is in the errors that it raises."""
SEARCH = {
    "num_beams": 1, "num_return_sequences": 1, "chunk_size": 0, "do_sample": False, "repetition_penalty": 1.0, "min_length": 0,
    "no_repeat_ngram_size": 0,
}  # fmt: skip
"""What a folder may not decide: beams that nobody reads end the process, with chunks the logits of the last one alone are there, and what
is drawn is the caller's."""
NAMES = {"cuda": "cuda", "dml": "DML"}

_lock = threading.Lock()
_library: Any = None


def library() -> Any:
    """Return onnxruntime_genai, which from then on sends nothing anywhere. Raises EngineCrashed where it does not load."""
    global _library
    with _lock:
        if _library is None:
            try:
                import onnxruntime_genai as og
            except ImportError as error:
                raise EngineCrashed(
                    f"onnxruntime-genai does not load: {error}", hint="pip install onnxruntime-genai"
                ) from error
            og.disable_telemetry_events()
            _library = og
        return _library


def has_provider(device: str) -> bool:
    """Whether the installed library was built for DEVICE (cuda, dml)."""
    og = library()
    return bool(og.is_cuda_available() if device == "cuda" else og.is_dml_available())


class Runtime:
    """A loaded model. Its generators are made and used by one thread; see scheduler.py."""

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        self.og = library()
        self.artifact = artifact
        self.plan = plan
        self.model = self._load(plan)
        self.device = str(self.model.device_type).lower()
        found = {"cpu": "cpu", "cuda": "cuda", "dml": "dml"}.get(self.device, self.device)
        if self.plan.device != found:
            raise DeviceUnavailable(
                f"device {self.plan.device!r} was asked for, and {artifact.name!r} runs on {found!r}",
                hint="pip install onnxruntime-genai-cuda in place of onnxruntime-genai, and check the driver",
            )
        self.vocab_size = artifact.vocab
        self.part = max(LEAST_PART, min(PART, LOGITS_BYTES // (4 * max(1, artifact.vocab))))
        window = artifact.metadata.get("genai.window")
        self.window = int(json.loads(window).get("window_size", 0)) if isinstance(window, str) else 0
        self._try_out()

    def _load(self, plan: Plan) -> Any:
        """Return the model. Raises DeviceUnavailable for whatever a GPU fails with: the CPU may do."""
        try:
            return self._open(plan)
        except EdgeAIError as error:
            if plan.device == "cpu":
                raise
            raise DeviceUnavailable(
                f"device {plan.device!r} cannot run {self.artifact.name!r}: {error.message}", hint=error.hint
            ) from error

    def _try_out(self) -> None:
        """Read one token: a configuration that does not fit the graph fails here, and not at the first request."""
        try:
            self.generator(1).read([0])
        except EngineCrashed as error:
            hint = "the folder is damaged or mixed from two models: convert it again"
            kind, hint = (InvalidModel, hint) if self.plan.device == "cpu" else (DeviceUnavailable, "use `device=cpu`")
            raise kind(f"{str(self.artifact.path)!r} does not run: {error.message}", hint=hint) from error

    def _open(self, plan: Plan) -> Any:
        og = self.og
        options = {"intra_op_num_threads": plan.threads, "log_severity_level": QUIET}
        with explained(f"{str(self.artifact.path)!r} does not load", InvalidModel):
            config = og.Config(str(self.artifact.path))
            config.clear_providers()
            if plan.device != "cpu":
                config.append_provider(NAMES[plan.device])
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}, "search": SEARCH}))
            return og.Model(config)

    def generator(self, tokens: int) -> Generator:
        """Return a generator with room for TOKENS tokens, prompt and answer together."""
        return Generator(self, tokens)

    def free(self) -> None:
        """Free the model, once its generators are gone."""
        self.model = None


class Generator:
    """A sequence of tokens in a KV cache of its own: what others do changes none of its numbers."""

    def __init__(self, runtime: Runtime, tokens: int) -> None:
        og = runtime.og
        most = runtime.artifact.context or tokens
        # A cache of windows must have room for a window and what is read at once.
        room = min(most, max(tokens, runtime.window + runtime.part if runtime.window else 0) + 1)
        with explained(f"a KV cache for {room} tokens could not be made", InvalidModel):
            params = og.GeneratorParams(runtime.model)
            params.set_search_options(max_length=room, batch_size=1, num_beams=1, num_return_sequences=1)
            self._native = og.Generator(runtime.model, params)

    def read(self, tokens: Sequence[int]) -> None:
        """Compute TOKENS behind what was read before."""
        import numpy as np

        with explained("onnxruntime failed", EngineCrashed):
            self._native.append_tokens(np.asarray(tokens, np.int32))

    def logits(self) -> npt.NDArray[np.float32]:
        """Return the logits after the last token, (vocab,), which may be changed."""
        import numpy as np

        with explained("onnxruntime failed", EngineCrashed):
            found = self._native.get_logits().reshape(-1)
        rows: npt.NDArray[np.float32] = found.astype(np.float32, copy=not found.flags.writeable)
        return rows

    def likeliest(self) -> int:
        """Return the likeliest token after what was read, as it is: nothing is masked or weighed.

        The token counts as read from then on. The logits stay where they are: fetching them takes 2 % of a fast token (bench/LOG.md).
        """
        with explained("onnxruntime failed", EngineCrashed):
            self._native.generate_next_token()
            return int(self._native.get_next_tokens()[0])

    def logit(self, token: int) -> float:
        """Return the logit of TOKEN where the last token was drawn."""
        with explained("onnxruntime failed", EngineCrashed):
            return float(self._native.get_output("logits")[0, -1, token])

    def all_logits(self, count: int) -> npt.NDArray[np.float32]:
        """Return the logits after each of the COUNT tokens of the last `read`, (tokens, vocab)."""
        import numpy as np

        with explained("onnxruntime failed", EngineCrashed):
            found: npt.NDArray[np.float32] = self._native.get_output("logits")[0].astype(np.float32)
        if len(found) != count:
            raise EngineCrashed(f"the model gave logits for {len(found)} of {count} tokens", hint="edgeai verify MODEL")
        return found


@contextlib.contextmanager
def explained(what: str, kind: type[EdgeAIError]) -> Iterator[None]:
    """Raise what the library raises in the block as an error of KIND: WHAT, and its reason in one line."""
    try:
        yield
    except (RuntimeError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = re.sub(r"\S*/onnxruntime_src/\S+ ", "", reason)
        memory = isinstance(error, MemoryError) or "bad_alloc" in reason or "Failed to allocate memory" in reason
        damaged = "the folder is damaged or not for this runtime: convert the model again"
        hint = "free memory, or use a smaller `ctx`" if memory else damaged if kind is InvalidModel else "edgeai doctor"
        raise (DoesNotFit if memory else kind)(f"{what}: {reason[:400]}", hint=hint) from error
