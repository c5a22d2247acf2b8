"""What libllama says when it fails, as the error that it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeai import native
from edgeai.artifact import Artifact
from edgeai.errors import DoesNotFit, EdgeAIError, EngineCrashed, InvalidModel, UsageError
from edgeai.native import LogLine
from edgeai.plan import Plan

__all__ = ["context_error", "decode_error", "load_error"]

_NO_MEMORY = re.compile(r"failed to allocate|unable to allocate|out of memory|cudaMalloc failed", re.IGNORECASE)
_KV_TYPE = re.compile(r"cache type|V cache", re.IGNORECASE)


def _reason(log: Sequence[LogLine]) -> str:
    """Return the last warnings and errors of LOG."""
    said = [line.text.strip() for line in log if line.level in {native.WARN, native.ERROR} and line.text.strip()]
    return "; ".join(said[-3:]) or "it says no more"


def load_error(artifact: Artifact, log: Sequence[LogLine]) -> EdgeAIError:
    """Return why llama_model_load_from_file gave nothing."""
    reason = _reason(log)
    if _NO_MEMORY.search(reason):
        return DoesNotFit(
            f"{artifact.name!r} does not fit in memory: {reason}", hint="use a smaller file of this model"
        )
    return InvalidModel(
        f"the native library cannot load {str(artifact.path)!r}: {reason}",
        hint="edgeai verify PATH checks the file; a newer model family may need a newer llama-cpp-python",
    )


def context_error(artifact: Artifact, plan: Plan, log: Sequence[LogLine]) -> EdgeAIError:
    """Return why llama_init_from_model gave nothing."""
    reason = _reason(log)
    if _NO_MEMORY.search(reason):
        return DoesNotFit(
            f"no memory for {artifact.name!r} at context {plan.context}: {reason}", hint="use a smaller `ctx`"
        )
    if _KV_TYPE.search(reason):
        return UsageError(
            f"{artifact.name!r} cannot have a KV cache of type {plan.kv_type!r}: {reason}", hint="use `kv_type=f16`"
        )
    return EngineCrashed(f"no context of {plan.context} for {artifact.name!r}: {reason}", hint="edgeai doctor")


_DECODE = {
    1: "the KV cache has no room for the batch, which the scheduler should have known",
    -1: "the batch is not valid",
    -3: "the computation failed",
}
"""Return codes of llama_decode (llama.h; llama_context::decode in llama-context.cpp). 2 is an abort that was asked for, -2 memory."""


def decode_error(code: int) -> EdgeAIError:
    """Return what CODE of llama_decode or llama_encode means, with the library's last words.

    A lost GPU has no code: libggml ends the process (`native.abort_reason` says why).
    """
    said = "; ".join(native.last_log(3, errors_only=True)) or "it says no more"
    if code == -2:
        return DoesNotFit(
            f"memory ran out in the middle of an answer: {said}", hint="use a smaller `ctx`, or fewer streams"
        )
    meaning = _DECODE.get(code, "it failed")
    return EngineCrashed(f"the native library cannot go on: {meaning} (code {code}): {said}", hint="edgeai doctor")
