"""Sequences of the KV cache: handed out with what other requests have computed already, kept for later requests, evicted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from edgeai.engines.llamacpp.adapters import Selection
from edgeai.engines.llamacpp.handle import Handle
from edgeai.engines.llamacpp.prefix import PrefixTree

__all__ = ["PrefixCache"]

SHORTEST = 8
"""Fewer shared tokens than this are computed again rather than looked after."""


class PrefixCache:
    """Owns the sequence numbers of a Handle. Not safe for concurrent use: it belongs to the thread of the scheduler.

    What a request has computed stays when it ends, as long as cells, sequence numbers and `budget` (tokens) allow; the one that was not
    used for the longest time goes first. Tokens computed under different LoRA adapters are different tokens.
    """

    def __init__(self, handle: Handle, *, budget: int) -> None:
        self._handle = handle
        self._budget = budget
        self._free = list(range(handle.sequences - 1, -1, -1))
        self._kept: OrderedDict[int, Selection] = OrderedDict()
        self._trees: dict[Selection, PrefixTree] = {}

    @property
    def enabled(self) -> bool:
        """Whether anything may be reused."""
        return self._budget > 0

    @property
    def kept_tokens(self) -> int:
        """How many cells hold tokens of ended requests only."""
        return sum(
            tree.tokens(without=[sequence for sequence in self._all(tree) if sequence not in self._kept])
            for tree in self._trees.values()
        )

    @property
    def kept_sequences(self) -> int:
        """How many ended requests' tokens are kept."""
        return len(self._kept)

    def _all(self, tree: PrefixTree) -> Collection[int]:
        return [sequence for sequence in range(self._handle.sequences) if sequence in tree]

    def begin(self, tokens: Sequence[int], adapters: Selection, *, reuse: bool) -> tuple[int, int] | None:
        """Return a sequence for a request of TOKENS and how many of them it has already; None when no sequence is free.

        At least one token is left to compute, since an answer begins with the logits of the last one.
        """
        found = self._find(tokens, adapters) if reuse and self.enabled else None
        if not self._free and not self.evict(spare=found[0] if found else None):
            if not (found and self.evict()):
                return None
            found = None
        sequence = self._free.pop()
        if found is None:
            return sequence, 0
        source, length = found
        self._handle.share(source, sequence, length)
        self.computed(sequence, tokens[:length], adapters)
        if source in self._kept:
            self._kept.move_to_end(source)
        return sequence, length

    def longest(self, tokens: Sequence[int], adapters: Selection) -> int:
        """Return how many of TOKENS a request could reuse now."""
        found = self._find(tokens, adapters) if self.enabled else None
        return found[1] if found else 0

    def _find(self, tokens: Sequence[int], adapters: Selection) -> tuple[int, int] | None:
        tree = self._trees.get(adapters)
        if tree is None:
            return None
        for length, holders in tree.matches(tokens, len(tokens) - 1):
            if length < SHORTEST:
                return None
            for sequence in holders:
                if self._usable(sequence, length):
                    return sequence, length
        return None

    def _usable(self, sequence: int, length: int) -> bool:
        """Whether the first LENGTH tokens of SEQUENCE can be continued: not all models keep what that takes."""
        handle = self._handle
        if handle.recurrent:  # the state is that after the last token, and no other
            return handle.span(sequence)[1] == length - 1
        if handle.n_swa:  # of the layers with a sliding window only the last tokens are there
            return handle.span(sequence)[0] <= max(0, length - handle.n_swa)
        return True

    def computed(self, sequence: int, tokens: Sequence[int], adapters: Selection) -> None:
        """Note that SEQUENCE has computed TOKENS, so that others can begin with them."""
        if self.enabled:
            self._trees.setdefault(adapters, PrefixTree()).put(sequence, tokens)

    def keep(self, sequence: int, tokens: Sequence[int], adapters: Selection) -> None:
        """Take back SEQUENCE, of which TOKENS are in the cache, and keep them for later requests if the budget allows."""
        if not self.enabled or len(tokens) < SHORTEST:
            self.drop(sequence)
            return
        self.computed(sequence, tokens, adapters)
        self._kept[sequence] = adapters
        if not (self._handle.recurrent or self._handle.n_swa):
            self._merge(sequence, tokens, adapters)
        while self._kept and self.kept_tokens > self._budget:
            self.evict()

    def adopt(self, source: int, tokens: Sequence[int], adapters: Selection = ()) -> bool:
        """Keep TOKENS, which sequence SOURCE has, as if a request had computed them; false where nothing may be kept."""
        if not self.enabled or len(tokens) > self._budget or not (self._free or self.evict()):
            return False
        sequence = self._free.pop()
        self._handle.share(source, sequence, len(tokens))
        self.keep(sequence, tokens, adapters)
        return True

    def _merge(self, sequence: int, tokens: Sequence[int], adapters: Selection) -> None:
        """Have the cells of what SEQUENCE and another one computed both only once, and forget kept ones that it contains whole."""
        tree = self._trees[adapters]
        for length, holders in tree.matches(tokens, len(tokens)):
            others = [other for other in holders if other != sequence]
            if others:
                self._handle.lib.llama_memory_seq_rm(self._handle.memory, sequence, 0, length)
                self._handle.share(others[0], sequence, length)
                break
        for other in tree.covered(sequence):
            if other in self._kept:
                self._release(other)

    def drop(self, sequence: int) -> None:
        """Take back SEQUENCE and keep nothing of it."""
        self.lost(sequence)
        self._handle.forget(sequence)
        self._free.append(sequence)

    def lost(self, sequence: int) -> None:
        """Note that SEQUENCE, which goes on to be used, has nothing computed any more."""
        for tree in self._trees.values():
            tree.remove(sequence)

    def evict(self, spare: int | None = None) -> bool:
        """Forget the kept tokens that were not used for the longest time, those of SPARE excepted; false when there are none."""
        for sequence in self._kept:
            if sequence != spare:
                self._release(sequence)
                return True
        return False

    def _release(self, sequence: int) -> None:
        del self._kept[sequence]
        self.drop(sequence)

    def clear(self) -> None:
        """Forget all kept tokens."""
        while self.evict():
            pass
