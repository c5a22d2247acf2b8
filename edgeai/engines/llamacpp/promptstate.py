"""Prompts on disk: compute one once, keep the state of its KV cache in a file, put it back in another process."""

from __future__ import annotations

import ctypes
import hashlib
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeai import native
from edgeai.artifact import Artifact
from edgeai.childprocess import read_memo, write_memo
from edgeai.engines.llamacpp.adapters import Selection
from edgeai.engines.llamacpp.batch import decode
from edgeai.engines.llamacpp.cache import SHORTEST
from edgeai.engines.llamacpp.exact import padding
from edgeai.engines.llamacpp.handle import Handle, NoRoom
from edgeai.engines.llamacpp.promptfile import PromptFile, Subject
from edgeai.engines.llamacpp.statelayout import read_state
from edgeai.errors import ContextExceeded, UsageError
from edgeai.paths import home
from edgeai.plan import Plan
from edgeai.types import Message, Prompt

__all__ = ["LoadJob", "SaveJob", "reusable_ids", "subject_of"]

REMEMBERED = 200
"""Sums of model files that are kept, so that a large file is read for its sum once."""


def subject_of(artifact: Artifact, plan: Plan) -> Subject:
    """Return what a state of this model holds for. The first call for a model file reads it whole, for its sum."""
    original = artifact.metadata.get(f"{artifact.arch}.rope.scaling.original_context_length")
    return Subject(
        model=artifact.sha256 or file_sum(artifact.path),
        template=hashlib.sha256((artifact.template or "").encode()).hexdigest(),
        library=native.fingerprint(),
        kv_type=plan.kv_type,
        long_context=isinstance(original, int) and plan.context > original,
    )


def file_sum(path: Path) -> str:
    """Return the sha256 of the file PATH, remembered by its place, size and time."""
    info = path.stat()
    key = f"{path.absolute()} {info.st_size} {info.st_mtime_ns} {info.st_ino}"
    memo = home() / "cache" / "sums.json"
    known = read_memo(memo)
    if not isinstance(known.get(key), str):
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        write_memo(memo, dict(list(known.items())[-REMEMBERED:]))
    return str(known[key])


def reusable_ids(prompt: Prompt, ids_of: Callable[[Prompt], list[int]]) -> list[int]:
    """Return the tokens of PROMPT that later prompts begin with.

    A text, or messages that end with the user's: all tokens. Messages that the user is to answer to (a system message): what they have
    in common whatever the user says next, so without the beginning of an answer that a template puts after them.
    """
    if isinstance(prompt, str) or not prompt or prompt[-1]["role"] == "user":
        return ids_of(prompt)
    one, two = (ids_of([*prompt, Message(role="user", content=text)]) for text in ("A", "7 b"))
    same = next(
        (at for at, (left, right) in enumerate(zip(one, two, strict=False)) if left != right), min(len(one), len(two))
    )
    return one[:same]


@dataclass(slots=True, eq=False)
class SaveJob:
    """Computes IDS on the scratch sequence, a batch a step; `result` gets the native state after the last one.

    `alone`: where the cells of others would change its numbers, it waits until nobody runs.
    """

    ids: Sequence[int]
    alone: bool = False
    result: queue.SimpleQueue[bytes | BaseException] = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False
    adapters: Selection = ()
    _read: int = 0

    def __post_init__(self) -> None:
        if len(self.ids) < SHORTEST:
            raise UsageError(
                f"a prompt of {len(self.ids)} tokens is computed anew sooner than it is read",
                hint=f"save prompts of {SHORTEST} tokens and more",
            )

    @property
    def begun(self) -> bool:
        """Whether some of the tokens are there."""
        return self._read > 0

    def step(self, handle: Handle, most: int) -> bool:
        """Compute the next batch. Return True when there is no more to do."""
        if len(self.ids) >= handle.n_ctx:
            raise ContextExceeded(
                f"the prompt has {len(self.ids)} tokens and the context holds {handle.n_ctx}, the answer included",
                hint="load the model with a larger `ctx`",
            )
        if self._read < len(self.ids) and not self.cancelled:
            if not self._read:
                handle.forget(handle.scratch)
            part = self.ids[self._read : self._read + most]
            read(handle, part, self._read)
            self._read += len(part)
        if self._read < len(self.ids) and not self.cancelled:
            return False
        if not self.cancelled:
            state = handle.state(handle.scratch)
            handle.forget(handle.scratch)
            read_state(state)  # what cannot be read back is not written
            self.result.put(state)
        handle.forget(handle.scratch)
        return True

    def give_way(self) -> None:
        """Begin anew: the scratch sequence has been emptied."""
        self._read = 0

    def pause(self, handle: Handle) -> bool:  # noqa: ARG002
        """It is one prompt, and no longer than any."""
        return not self._read

    def fail(self, error: BaseException) -> None:
        """Hand ERROR to who waits."""
        self.result.put(error)


@dataclass(slots=True, eq=False)
class LoadJob:
    """Puts a saved state on the scratch sequence and calls KEEP, which shares its cells with a sequence that lives on.

    Before the native library gets it, the state is held against one that this very context makes of a single token. `result` gets the
    number of tokens.
    """

    prompt: PromptFile
    window: int | None
    keep: Callable[[Sequence[int]], bool]
    result: queue.SimpleQueue[int | BaseException] = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False
    adapters: Selection = ()
    alone: bool = False
    begun: bool = False

    def step(self, handle: Handle, most: int) -> bool:  # noqa: ARG002 - a single token
        """Check the state and put it back. Raises InvalidModel for one that is not this model's, NoRoom where no cells are free."""
        tokens, state = self.prompt.tokens, self.prompt.state
        handle.forget(handle.scratch)
        try:
            read(handle, tokens[:1], 0)
            own, saved = read_state(handle.state(handle.scratch)), read_state(state)
            handle.forget(handle.scratch)
            own.check(saved, state, len(tokens), self.window)
            state = own.rewritten(saved, state)
            buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
            put = handle.lib.llama_state_seq_set_data_ext(handle.context, buffer, len(state), handle.scratch, 0)
            if put != len(state):
                raise NoRoom  # all else has been checked
            if not self.keep(tokens):
                if handle.plan.deterministic:
                    raise UsageError(
                        "a deterministic model begins each answer anew", hint="load the model without `deterministic`"
                    )
                set_aside = handle.plan.prefix_bytes
                raise UsageError(
                    f"a prompt of {len(tokens)} tokens takes {len(state) / 1e6:.1f} MB, and {set_aside / 1e6:.1f} MB are set aside "
                    "for the prompts of later requests",
                    hint=f"load the model with `prefix_bytes={len(state) * 2}`",
                )
        finally:
            handle.forget(handle.scratch)
        self.result.put(len(tokens))
        return True

    def give_way(self) -> None:
        """Nothing is on the scratch sequence between two steps."""

    def pause(self, handle: Handle) -> bool:  # noqa: ARG002
        """Nothing is on the scratch sequence between two steps."""
        return True

    def fail(self, error: BaseException) -> None:
        """Hand ERROR to who waits."""
        self.result.put(error)


def read(handle: Handle, ids: Sequence[int], start: int) -> None:
    """Put IDS into the KV cache of the scratch sequence at the positions from START, in the shape that makes them exact (exact.py)."""
    import numpy as np

    count = len(ids)
    more = 0 if handle.recurrent else min(padding(count), handle.n_batch - count, handle.n_ctx - start - count)
    total = count + max(0, more)
    outputs = np.arange(total) == count - 1
    positions = np.arange(start, start + total)
    tokens = [*ids, *[0] * (total - count)]
    handle.check(decode(handle.lib, handle.context, tokens, positions, np.full(total, handle.scratch), outputs))
    if total > count:
        handle.trim(handle.scratch, start + count)
