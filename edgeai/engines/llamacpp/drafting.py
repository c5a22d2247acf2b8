"""A small model that guesses what a larger one of the same vocabulary will say."""

from __future__ import annotations

from collections.abc import Sequence

from edgeai.artifact import Artifact
from edgeai.engines.llamacpp.handle import Batch, Handle, NoRoom
from edgeai.errors import UsageError
from edgeai.plan import Plan

__all__ = ["DraftModel"]


class DraftModel:
    """Owns the Handle of a draft model; used by the thread of the scheduler, except `guesser`, which any thread may call."""

    def __init__(self, main: Handle, artifact: Artifact, plan: Plan) -> None:
        """Load ARTIFACT. Raises UsageError when its vocabulary is not that of MAIN, or its state cannot go back."""
        self.handle = handle = Handle(artifact, plan)
        try:
            _check(main, handle, artifact.name)
        except BaseException:
            handle.free()
            raise
        self._lib = handle.lib
        self._greedy = self._lib.llama_sampler_init_greedy()
        self._batch = Batch(self._lib, handle.n_batch)
        self._free = list(range(handle.sequences))

    def guesser(self) -> _Draft:
        """Return the guesser of one request."""
        return _Draft(self)

    def take(self) -> int | None:
        """Return a sequence, None where all are in use."""
        return self._free.pop() if self._free else None

    def give_back(self, sequence: int) -> None:
        """Take back SEQUENCE."""
        self.handle.forget(sequence)
        self._free.append(sequence)

    @property
    def at_once(self) -> int:
        """The tokens that one batch of it may have."""
        return self._batch.capacity

    def next(self, tokens: Sequence[int], first: int, sequence: int) -> int:
        """Compute TOKENS, at most `at_once`, of SEQUENCE from position FIRST on and return the likeliest next one. Raises NoRoom."""
        self._batch.clear()
        index = self._batch.add(tokens, first, sequence, 1)
        self.handle.decode(self._batch)
        return int(self._lib.llama_sampler_sample(self._greedy, self.handle.context, index))

    def free(self) -> None:
        """Free the model."""
        self._lib.llama_sampler_free(self._greedy)
        self.handle.free()


class _Draft:
    """The guesses for one request: the draft model reads what the request has, a batch at a time, and goes on from there."""

    def __init__(self, model: DraftModel) -> None:
        self._model = model
        self._sequence: int | None = None
        self._read: list[int] = []
        self._no_room = False

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return the MOST tokens that the draft model would say after TOKENS; none while it has not read them, or lacks room for them."""
        if self._sequence is None and not self._no_room:
            self._sequence = self._model.take()
        if self._sequence is None or len(tokens) + most > self._model.handle.n_ctx:
            return []
        try:
            return self._guess(self._sequence, tokens, most)
        except NoRoom:  # other requests have its cells; trying again for each token would cost more than it gives
            self._no_room = True
            self.close()
            return []

    def _guess(self, sequence: int, tokens: Sequence[int], most: int) -> list[int]:
        same = next(
            (at for at, (old, new) in enumerate(zip(self._read, tokens, strict=False)) if old != new), len(self._read)
        )
        same = min(same, len(tokens) - 1)
        if same < len(self._read):
            same = same if self._model.handle.trim(sequence, same) else 0
        found: list[int] = []
        unread, at = list(tokens[same:]), same
        if (
            len(unread) > self._model.at_once
        ):  # the others' answers and a cancellation wait for one batch, not for a long prompt
            unread = unread[: self._model.at_once]
            self._model.next(unread, at, sequence)
            self._read = [*tokens[:same], *unread]
            return []
        while len(found) < most:
            token = self._model.next(unread, at, sequence)
            at += len(unread)
            found.append(token)
            unread = [token]
        self._read = [*tokens, *found[:-1]]
        return found

    def close(self) -> None:
        """Give the sequence back."""
        if self._sequence is not None:
            self._model.give_back(self._sequence)
            self._sequence = None


def _check(main: Handle, draft: Handle, name: str) -> None:
    if draft.recurrent:
        raise UsageError(f"{name!r} cannot be a draft model: its state cannot go back", hint="use a transformer")
    if main.n_vocab != draft.n_vocab:
        raise UsageError(
            f"the draft model {name!r} has {draft.n_vocab} tokens and the model {main.n_vocab}",
            hint="use a smaller model of the same family",
        )
    text = main.lib.llama_vocab_get_text
    for token in range(main.n_vocab):
        if text(main.vocab, token) != text(draft.vocab, token):
            raise UsageError(
                f"token {token} of the draft model {name!r} is another one than the model's",
                hint="use a smaller model of the same family",
            )
