"""The native model and context, with their lifetimes: loaded, used by one thread at a time, freed once."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeai import native
from edgeai.artifact import Artifact
from edgeai.engines.llamacpp.abort import Aborted, AbortFlag
from edgeai.engines.llamacpp.adapters import AdapterSet
from edgeai.engines.llamacpp.failures import decode_error
from edgeai.engines.llamacpp.weights import Weights
from edgeai.plan import Plan

__all__ = ["Aborted", "Handle"]


class Handle:
    """Owns a llama_model and a llama_context; `placement` says where both are, `plan` has a notice for what is less than planned.

    Not safe for concurrent use; `abort` alone may be called from any thread.
    """

    scratch = 0
    """The sequence id for work that is no request: scores, states."""

    def __init__(self, artifact: Artifact, plan: Plan, *, embeddings: bool = False) -> None:
        self._embeddings = embeddings
        self.lib = native.library()
        self._abort = AbortFlag(self.lib)
        self.context: Any = None
        self.weights = Weights(artifact, plan)
        self.model = self.weights.model
        self.adapters = AdapterSet(self.lib, self.model, artifact.path)
        try:
            for name, path in plan.adapters:
                self.adapters.load(name, Path(path))
            self.context = self._new_context(plan)
        except BaseException:
            self.free()
            raise
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        # The library rounds the context up to a multiple of 256; what was promised is what was planned.
        self.n_ctx = min(plan.context, int(self.lib.llama_n_ctx(self.context)))
        self.n_batch = int(self.lib.llama_n_batch(self.context))
        self.n_embd = int(self.lib.llama_model_n_embd(self.model))
        self.n_vocab = int(self.lib.llama_vocab_n_tokens(self.vocab))
        self.placement = self.weights.placement
        self.plan = replace(plan, notices=(*plan.notices, *self.weights.notices))
        self._one = (ctypes.c_int32 * 1)()

    def _new_context(self, plan: Plan) -> Any:
        params = self.lib.llama_context_default_params()
        params.n_ctx = plan.context
        params.n_batch = params.n_ubatch = plan.batch
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = plan.threads
        if not self._embeddings:
            params.type_k = params.type_v = getattr(self.lib, f"GGML_TYPE_{plan.kv_type.upper()}")
        params.embeddings = self._embeddings
        params.abort_callback, params.abort_callback_data = self._abort.callback, self._abort.address
        return self.weights.open_context(params)

    def abort(self) -> None:
        """End the decode that is running, or the next one, within one graph node. Thread-safe."""
        self._abort.set()

    def reset(self) -> None:
        """Forget every token and a pending abort."""
        self._abort.clear()
        # False: the cells are marked empty; overwriting them all would cost a long context tens of milliseconds per request
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)

    def decode(self, ids: Sequence[int]) -> None:
        """Append IDS, at most n_batch of them, to the sequence; logits are those of the last. Raises Aborted, EngineCrashed."""
        if len(ids) == 1:
            self._one[0] = ids[0]
            buffer, count = self._one, 1
        else:
            buffer, count = (ctypes.c_int32 * len(ids))(*ids), len(ids)
        self.check(self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(buffer, count)))

    def check(self, code: int) -> None:
        """Turn a return code of llama_decode into an error: Aborted, DoesNotFit, EngineCrashed."""
        if code == 2:
            raise Aborted
        if code != 0:
            raise decode_error(code)

    def logits_of_all(self, ids: Sequence[int]) -> Any:
        """Return a ctypes view (n, n_vocab) of the logits at each of IDS (n ≤ n_batch), valid until the next decode."""
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for index, token in enumerate(ids):
                batch.token[index], batch.pos[index] = token, index
                batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
            self.check(self.lib.llama_decode(self.context, batch))
        finally:
            self.lib.llama_batch_free(batch)
        pointer = self.lib.llama_get_logits(self.context)
        return ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * self.n_vocab * len(ids))).contents

    def free(self) -> None:
        """Free context and model; safe to call twice."""
        if self.context:
            self.lib.llama_free(self.context)
            self.context = None
        self.weights.free()
        self.model = None
