"""The native model and context, with their lifetimes: loaded, used by one thread at a time, freed once."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters.ggml_types import GGML_TYPES
from edgeai import native
from edgeai.artifact import Artifact
from edgeai.engines.llamacpp.abort import Aborted, AbortFlag
from edgeai.engines.llamacpp.adapters import AdapterSet
from edgeai.engines.llamacpp.failures import decode_error
from edgeai.engines.llamacpp.weights import Weights
from edgeai.errors import EngineCrashed
from edgeai.plan import Plan

__all__ = ["Aborted", "Batch", "Handle", "NoRoom"]

GUESSES = 8
"""Tokens that speculation may add to each stream in one batch."""


class NoRoom(Exception):
    """The KV cache has no free cells for a batch; nothing of it was computed."""


class Handle:
    """Owns a llama_model and a llama_context; `placement` says where both are, `plan` has a notice for what is less than planned.

    Sequences are numbers from 0 to `sequences` - 1; `scratch`, one more, belongs to work that is no request: scores, states.
    Not safe for concurrent use; `abort` alone may be called from any thread.
    """

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        self.lib: Any = native.library()
        self._abort = AbortFlag(self.lib)
        self.context: Any = None
        self.batches = 0  # that were computed
        self.choosing_s = 0.0  # spent on finding the greatest logits without numpy
        self._rows: dict[int, Any] = {}  # of logits, by their address
        self._copied: tuple[int, bytes] | None = None  # the sequence that was shared last, and its state
        self.sequences = self.scratch = max(plan.sequences - 1, plan.streams)
        self.n_outputs = max(plan.outputs, self.sequences + 1)
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
        lib = self.lib
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.memory = lib.llama_get_memory(self.context)
        # The library rounds the context up to a multiple of 256; what was promised is what was planned.
        self.n_ctx = min(plan.context, int(lib.llama_n_ctx_seq(self.context)))
        self.n_batch = int(lib.llama_n_batch(self.context))
        self.n_embd = int(lib.llama_model_n_embd(self.model))
        self.n_vocab = int(lib.llama_vocab_n_tokens(self.vocab))
        # Also with `swa_full`: cells beyond the window are overwritten when the search for free ones comes by.
        self.n_swa = int(lib.llama_model_n_swa(self.model))
        self.recurrent = bool(lib.llama_model_is_recurrent(self.model) or lib.llama_model_is_hybrid(self.model))
        self.placement = self.weights.placement
        self.plan = replace(plan, notices=(*plan.notices, *self.weights.notices))

    def _new_context(self, plan: Plan) -> Any:
        params = self.lib.llama_context_default_params()
        params.n_batch = params.n_ubatch = plan.batch
        params.n_threads, params.n_threads_batch = plan.threads, plan.threads_batch or plan.threads
        params.abort_callback, params.abort_callback_data = self._abort.callback, self._abort.address
        params.type_k = params.type_v = _TYPE_IDS[plan.kv_type.upper()]
        params.n_outputs_max = self.n_outputs
        params.n_seq_max = self.sequences + 1
        params.swa_full = plan.swa_full
        params.kv_unified = plan.unified
        params.n_ctx = max(plan.kv_cells, plan.context) if plan.unified else plan.context * params.n_seq_max
        return self.weights.open_context(params)

    @property
    def token_bytes(self) -> int:
        """What a token in the KV cache takes, as the cache really is."""
        cells = int(self.lib.llama_n_ctx(self.context))  # the library rounds it up to a multiple of 256
        return sum(share.kv_bytes for share in self.placement.shares) // cells

    # ---- decoding

    def abort(self) -> None:
        """End the decode that is running, or the next one, within one graph node. Thread-safe."""
        self._abort.set()

    def clear_abort(self) -> None:
        """Let decodes run again."""
        self._abort.clear()

    def decode(self, batch: Batch) -> None:
        """Compute BATCH. Raises Aborted and NoRoom, after which nothing of it is in the cache, DoesNotFit, EngineCrashed."""
        self._copied = None
        self.check(int(self.lib.llama_decode(self.context, batch.native)))

    def check(self, code: int) -> None:
        """Turn the return code of llama_decode into an error."""
        self.batches += code == 0
        if code == 1:
            raise NoRoom
        if code == 2:
            raise Aborted
        if code != 0:
            raise decode_error(code)

    def logits(self, index: int) -> Any:
        """Return the logits after the token at INDEX of the last batch as a writable (n_vocab,) float32 array, valid until the next."""
        address = ctypes.addressof(self.lib.llama_get_logits_ith(self.context, index).contents)
        row = self._rows.get(address)
        if row is None:
            import numpy as np

            if len(self._rows) >= self.n_outputs:  # libllama has moved them
                self._rows.clear()
            view = (ctypes.c_float * self.n_vocab).from_address(address)
            row = self._rows[address] = np.frombuffer(memoryview(view), np.float32)
        return row

    def logit(self, index: int, token: int) -> float:
        """Return that of TOKEN after the token at INDEX of the last batch, without numpy."""
        return float(self.lib.llama_get_logits_ith(self.context, index)[token])

    # ---- sequences in the KV cache

    def share(self, source: int, target: int, count: int) -> bool:
        """Let sequence TARGET, which is empty, have the first COUNT tokens of SOURCE; false, and it has nothing, where that fails.

        In a unified cache nothing is copied but marks. Otherwise the cells are, by way of main memory: llama_memory_seq_cp copies all of
        a sequence's cells, used or not, and only with the next batch. With windows it must be that, since a state has the last one only;
        nothing then writes into cells but batches (what has windows is not parked, and a loaded prompt begins with a batch).
        """
        if self.plan.unified:
            self.lib.llama_memory_seq_cp(self.memory, source, target, 0, count)
            return True
        if self.n_swa:
            self.lib.llama_memory_seq_cp(self.memory, source, target, -1, -1)
            return self.trim(target, count)
        if self._copied is None or self._copied[0] != source:
            self._copied = (source, self.state(source))
        return self.restore(target, self._copied[1]) and self.trim(target, count)

    def trim(self, sequence: int, count: int) -> bool:
        """Forget all of SEQUENCE but its first COUNT tokens; false where the model's state cannot go back, and all is forgotten."""
        self._forget_copy(sequence)
        if self.lib.llama_memory_seq_rm(self.memory, sequence, count, -1):
            return True
        self.forget(sequence)
        return False

    def forget(self, sequence: int) -> None:
        """Forget SEQUENCE."""
        self._forget_copy(sequence)
        self.lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def _forget_copy(self, sequence: int) -> None:
        if self._copied is not None and self._copied[0] == sequence:
            self._copied = None

    def span(self, sequence: int) -> tuple[int, int]:
        """Return the first and the last position of SEQUENCE that are in the cache, (-1, -1) for none."""
        memory = self.memory
        return (
            int(self.lib.llama_memory_seq_pos_min(memory, sequence)),
            int(self.lib.llama_memory_seq_pos_max(memory, sequence)),
        )

    def state(self, sequence: int) -> bytes:
        """Return what the cache holds of SEQUENCE, to be put back with `restore` in this process."""
        lib = self.lib
        size = int(lib.llama_state_seq_get_size_ext(self.context, sequence, 0))
        buffer = (ctypes.c_uint8 * size)()
        if int(lib.llama_state_seq_get_data_ext(self.context, buffer, size, sequence, 0)) != size:
            raise EngineCrashed("the native library does not give the state of a prompt", hint="edgeai doctor")
        return bytes(buffer)

    def restore(self, sequence: int, state: bytes) -> bool:
        """Put STATE, which came from `state`, back as SEQUENCE; false, and nothing is there, where no cells are free."""
        self._forget_copy(sequence)
        buffer = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        taken = int(self.lib.llama_state_seq_set_data_ext(self.context, buffer, len(state), sequence, 0))
        if taken != len(state):
            self.forget(sequence)
        return taken == len(state)

    def clear(self) -> None:
        """Forget every sequence and a pending abort."""
        self._abort.clear()
        # False: the cells are marked empty; overwriting them all would cost a long context tens of milliseconds
        self.lib.llama_memory_clear(self.memory, False)

    def free(self) -> None:
        """Free context and model; safe to call twice."""
        if self.context:
            self.lib.llama_free(self.context)
            self.context = None
        self.weights.free()
        self.model = None


_TYPE_IDS = {kind.name: number for number, kind in GGML_TYPES.items()}


class Batch:
    """A llama_batch of up to CAPACITY tokens of any sequences, filled again and again."""

    def __init__(self, lib: Any, capacity: int) -> None:
        self._tokens = (ctypes.c_int32 * capacity)()
        self._positions = (ctypes.c_int32 * capacity)()
        self._counts = (ctypes.c_int32 * capacity)(*([1] * capacity))
        self._sequences = (ctypes.c_int32 * capacity)()
        self._wanted = (ctypes.c_int8 * capacity)()
        size = ctypes.sizeof(ctypes.c_int32)
        base = ctypes.addressof(self._sequences)
        pointer = ctypes.POINTER(ctypes.c_int32)
        self._rows = (pointer * (capacity + 1))(
            *(ctypes.cast(base + index * size, pointer) for index in range(capacity))
        )
        self.native = lib.llama_batch()
        self.native.token = ctypes.cast(self._tokens, ctypes.POINTER(ctypes.c_int32))
        self.native.pos = ctypes.cast(self._positions, ctypes.POINTER(ctypes.c_int32))
        self.native.n_seq_id = ctypes.cast(self._counts, ctypes.POINTER(ctypes.c_int32))
        self.native.seq_id = ctypes.cast(self._rows, ctypes.POINTER(pointer))
        self.native.logits = ctypes.cast(self._wanted, ctypes.POINTER(ctypes.c_int8))
        self.capacity = capacity
        self.size = 0

    def clear(self) -> None:
        """Begin an empty batch."""
        self.size = self.native.n_tokens = 0

    def add(self, tokens: Sequence[int], first: int, sequence: int, logits: int) -> int:
        """Append TOKENS of SEQUENCE from position FIRST on; the last LOGITS of them get logits. Return the index of the first of these."""
        start, count = self.size, len(tokens)
        stop = start + count
        self._tokens[start:stop] = list(tokens)
        self._positions[start:stop] = list(range(first, first + count))
        self._sequences[start:stop] = [sequence] * count
        self._wanted[start:stop] = [*([0] * (count - logits)), *([1] * logits)]
        self.size = self.native.n_tokens = stop
        return stop - logits

    def pad(self, count: int, first: int, sequence: int) -> None:
        """Append COUNT tokens that mean nothing to SEQUENCE from position FIRST on; whoever computes the batch trims them away."""
        if count > 0:
            self.add([0] * count, first, sequence, 0)
