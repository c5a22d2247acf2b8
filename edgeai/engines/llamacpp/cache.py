"""Sequences of the KV cache: handed out with what other requests have computed already, kept for later requests, forgotten.

What a request has computed stays in the cache when it ends. When another request begins that has no use for it, it is parked: its state
goes to main memory and its cells are free again, since attention looks at every cell that is in use, whoever's it is (4000 tokens of
others made a step of SmolLM2 1.7 times as long). Parked states are put back by copying, a hundredth of the time of computing them.
Models with sliding windows are not parked: libllama's state of a sequence has the last window only, and could not be shortened. What
they have computed stays in its cells until a request that is alone begins with something else.

Where each sequence has cells of its own (Plan.unified), others' cells cost nothing: what ended requests have computed stays in theirs until
the sequence is needed, a conversation goes on where it is, and what else is shared is copied. Those cells are the streams' own whether
they hold anything or not, so only parked states count as kept memory.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgeai.engines.llamacpp.adapters import Selection
from edgeai.engines.llamacpp.exact import padded
from edgeai.engines.llamacpp.handle import Handle
from edgeai.engines.llamacpp.prefix import PrefixTree, common
from edgeai.errors import EngineCrashed

__all__ = ["PrefixCache"]

SHORTEST = 8
"""Fewer shared tokens than this are computed again rather than looked after."""
NEAR = 32
"""As many tokens may be computed again for a beginning that is in cells rather than in main memory."""
COPIED = 128
"""A sequence is copied as a whole: not for fewer of its tokens than this part of them, which are computed about as fast."""
LEAST = 16
"""Fewer tokens of an answer than this are not worth reading again."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """Tokens of an ended request: in the cells of a sequence while `state` is None, else parked in main memory.

    `span`: the first and the last position that the state has. The first `exact` tokens are as a request that is alone reads them;
    `alone`: it computed the others too.
    """

    tokens: tuple[int, ...]
    adapters: Selection
    exact: int = 0
    alone: bool = False
    state: bytes | None = None
    span: tuple[int, int] = (0, 0)


class PrefixCache:
    """Owns the sequence numbers of a Handle. Not safe for concurrent use: it belongs to the thread of the scheduler.

    At most `budget` bytes of ended requests are kept; what was not used for the longest time goes first. Tokens computed under different
    LoRA adapters are different tokens.
    """

    def __init__(self, handle: Handle, *, budget: int, token_bytes: int) -> None:
        self._handle = handle
        self._budget, self._token_bytes = budget, max(1, token_bytes)
        self._free = list(range(handle.sequences - 1, -1, -1))
        # Parked tokens have numbers of their own, above those of sequences.
        self._numbers = itertools.count(handle.sequences + 1)
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._trees: dict[Selection, PrefixTree] = {}
        self._exact_of: dict[int, int] = {}  # of running requests
        self._in_place: set[int] = set()  # sequences whose exact tokens are in the cells from the first on
        self._exact = handle.plan.numerics == "exact"
        self._unified = handle.plan.unified

    @property
    def enabled(self) -> bool:
        """Whether anything may be reused."""
        return self._budget > 0

    @property
    def kept_tokens(self) -> int:
        """How many tokens of ended requests are kept."""
        return sum(len(kept.tokens) for kept in tuple(self._kept.values()))  # a copy: other threads ask too

    @property
    def in_cells(self) -> bool:
        """Whether some of them are in the cells of the KV cache."""
        return any(kept.state is None for kept in self._kept.values())

    @property
    def kept_sequences(self) -> int:
        """How many ended requests' tokens are kept."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """What they take: parked ones their states, the others their cells of a cache that all share."""
        return sum(self._size(kept) for kept in tuple(self._kept.values()))

    def _size(self, kept: _Kept) -> int:
        if kept.state is not None:
            return len(kept.state)
        return len(kept.tokens) * self._token_bytes if self._unified else 0

    # ---- a request begins

    def begin(
        self, tokens: Sequence[int], adapters: Selection, *, reuse: bool, alone: bool = False
    ) -> tuple[int, int, int] | None:
        """Return a sequence for a request of TOKENS, how many of them it has already, and how many of those are exact.

        None when no sequence is free. At least one token is left to compute, since an answer begins with the logits of the last one.
        A request that is ALONE takes only what does not change its answer.
        """
        exactly = alone and self._exact and not self._handle.recurrent
        reuse = reuse and self.enabled and (not exactly or padded(len(tokens), self._handle.n_ctx))
        find = self._find_exact if exactly else self._find
        if not self._unified and reuse and (going_on := self._go_on(tokens, adapters, find(tokens, adapters))):
            return going_on
        if not self._free and not self._park_one():
            return None
        sequence = self._take_free()
        if exactly and self._unified:
            self._make_way(tokens, adapters, reuse=reuse)
        found = find(tokens, adapters) if reuse else None
        length = 0 if found is None else self._take_over(sequence, *found)
        exact = 0 if found is None else min(self._exact_part(found[0]), length)
        if exactly or not self._unified or (found is not None and found[0] in self._in_place):
            self._in_place.add(sequence)
        if length:
            self.computed(sequence, tokens[:length], adapters, exact=exact)
        if self._unified and (exactly or not self._handle.n_swa):
            self.park(but=None if found is None or self._holds_more(*found) else found[0])
        return sequence, length, exact

    def _take_free(self) -> int:
        """Return a free sequence: the least, since libllama computes together only sequences whose numbers follow each other."""
        sequence = min(self._free)
        self._free.remove(sequence)
        return sequence

    def _go_on(
        self, tokens: Sequence[int], adapters: Selection, found: tuple[int, int] | None
    ) -> tuple[int, int, int] | None:
        """Return what `begin` does with the sequence of the ended request that FOUND names, if TOKENS go on where it ended."""
        kept = None if found is None else self._kept.get(found[0])
        if found is None or kept is None or kept.state is not None:
            return None
        sequence, length = found
        if common(kept.tokens, tokens) <= len(kept.tokens) - LEAST:
            return None
        del self._kept[sequence]
        self.lost(sequence)
        self._in_place.add(sequence)
        exact = min(kept.exact, length)
        if not self._handle.trim(sequence, length):
            length = exact = 0
        self.computed(sequence, tokens[:length], adapters, exact=exact)
        return sequence, length, exact

    def _make_way(self, tokens: Sequence[int], adapters: Selection, *, reuse: bool) -> None:
        """Free all cells but those that a request of TOKENS that is alone begins with, so that it has them from the first on."""
        found = self._find_exact(tokens, adapters) if reuse else None
        source = None if found is None else found[0]
        if source is not None:
            self._kept.move_to_end(source)
        self.park(but=source if source in self._in_place else None)

    def _exact_part(self, number: int) -> int:
        """Return how many of the first tokens of NUMBER are exact."""
        kept = self._kept.get(number)
        return self._exact_of.get(number, 0) if kept is None else kept.exact

    def _holds_more(self, number: int, length: int) -> bool:
        """Whether kept tokens are more than the LENGTH that a running request has too, and so take cells of their own."""
        kept = self._kept.get(number)
        return kept is not None and len(kept.tokens) > length

    def _take_over(self, sequence: int, source: int, length: int) -> int:
        """Give SEQUENCE the first LENGTH tokens of SOURCE. Return how many it has then."""
        kept = self._kept.get(source)
        if kept is not None:
            self._kept.move_to_end(source)
        if kept is None or kept.state is None:
            return length if self._handle.share(source, sequence, length) else 0
        if not self._handle.restore(sequence, kept.state):
            return 0
        if length < len(kept.tokens) and not self._handle.trim(sequence, length):
            return 0
        return length

    def longest(self, tokens: Sequence[int], adapters: Selection) -> int:
        """Return how many of TOKENS a request could reuse now."""
        found = self._find(tokens, adapters) if self.enabled else None
        return found[1] if found else 0

    def _find(self, tokens: Sequence[int], adapters: Selection) -> tuple[int, int] | None:
        """Return who has the longest beginning of TOKENS, and its length; of several, one that need not be copied.

        What is in a unified cache is shared, what is parked takes cells of its own, which every later batch looks at: NEAR tokens are not
        worth that.
        """
        tree, parked = self._trees.get(adapters), None
        near = NEAR if self._unified else 0
        for length, holders in () if tree is None else tree.matches(tokens, len(tokens) - 1):
            if length < (SHORTEST if parked is None else parked[1] - near):
                break
            for number in sorted(holders):
                if not self._usable(number, length):
                    continue
                if number not in self._kept or self._kept[number].state is None:
                    return number, length
                parked = parked or (number, length)
        return parked

    def _find_exact(self, tokens: Sequence[int], adapters: Selection) -> tuple[int, int] | None:
        """Return who has kept most of the beginning of TOKENS that is exact, and how many of them may be taken."""
        best = (0, 0)
        for shared, holders in (
            self._trees[adapters].matches(tokens, len(tokens) - 1) if adapters in self._trees else ()
        ):
            for number in holders:
                if (kept := self._kept.get(number)) is not None:
                    length = min(shared, kept.exact)
                    if self._usable(number, length):
                        best = max(best, (length, -number))
        return (-best[1], best[0]) if best[0] >= SHORTEST else None

    def _usable(self, number: int, length: int) -> bool:
        """Whether the first LENGTH tokens of NUMBER can be continued: not all models keep what that takes."""
        handle, kept = self._handle, self._kept.get(number)
        if not self._unified and (kept is None or kept.state is None) and length * COPIED <= handle.span(number)[1]:
            return False
        if not (handle.recurrent or handle.n_swa):
            return True
        first, last = handle.span(number) if kept is None or kept.state is None else kept.span
        if handle.recurrent:  # the state is that after the last token, and no other
            return last == length - 1
        return first <= max(0, length - handle.n_swa + 1)

    def computed(self, sequence: int, tokens: Sequence[int], adapters: Selection, *, exact: int = 0) -> None:
        """Note that SEQUENCE has computed TOKENS, so that others can begin with them; the first EXACT are exact."""
        if self.enabled:
            self._exact_of[sequence] = exact
            self._trees.setdefault(adapters, PrefixTree()).put(sequence, tokens)

    # ---- a request ends

    def keep(
        self, sequence: int, tokens: Sequence[int], adapters: Selection, *, exact: int = 0, alone: bool = False,
        asked: bool = False,
    ) -> None:  # fmt: skip
        """Take back SEQUENCE, of which TOKENS are in the cache, and keep them for later requests if the budget allows.

        The first EXACT of them are as a request that is alone reads them. ALONE: so was the rest, one by one. ASKED: a caller wants
        them kept.
        """
        recurrent = self._handle.recurrent
        large = self._size(_Kept(tuple(tokens), adapters)) > self._budget
        if not self.enabled or large or len(tokens) < SHORTEST or (recurrent and self._exact and not asked):
            self.drop(sequence)
            return
        self.computed(sequence, tokens, adapters)
        self._kept[sequence] = _Kept(tuple(tokens), adapters, exact, alone)
        if not (recurrent or self._handle.n_swa):
            for other in self._trees[adapters].covered(sequence):
                if other in self._kept and self._kept[other].exact <= exact:
                    self._release(other)
        self._keep_to_budget()

    def adopt(self, source: int, tokens: Sequence[int], *, in_place: bool) -> bool:
        """Keep TOKENS, which sequence SOURCE has, as if a request had computed them; false where nothing may be kept.

        IN_PLACE: they have the cells from the first on.
        """
        if len(tokens) * self._token_bytes > self._budget or not (self._free or self._park_one()):
            return False
        sequence = self._take_free()
        if not self._handle.share(source, sequence, len(tokens)):
            self._free.append(sequence)
            return False
        if in_place or not self._unified:
            self._in_place.add(sequence)
        self.keep(sequence, tokens, (), exact=len(tokens), asked=True)
        return True

    def drop(self, sequence: int) -> None:
        """Take back SEQUENCE and keep nothing of it."""
        self.lost(sequence)
        self._handle.forget(sequence)
        self._free.append(sequence)

    def lost(self, number: int) -> None:
        """Note that NUMBER has nothing computed any more."""
        self._exact_of.pop(number, None)
        self._in_place.discard(number)
        for adapters, tree in list(self._trees.items()):
            tree.remove(number)
            if not tree:
                del self._trees[adapters]

    # ---- the last answer, read again

    def unsettled(self) -> tuple[int, list[int], int, Selection] | None:
        """Return the sequence of the last request that has ended, its tokens, from where they are not exact, its adapters."""
        if not self._kept or not self._exact or self._handle.recurrent:
            return None
        sequence, kept = next(reversed(self._kept.items()))
        if kept.state is not None or not kept.alone or len(kept.tokens) - kept.exact < LEAST:
            return None
        if not self._usable(sequence, kept.exact):
            return None
        return sequence, list(kept.tokens), kept.exact, kept.adapters

    def settled(self, sequence: int, exact: int) -> None:
        """Note that SEQUENCE has EXACT tokens left, all of them exact."""
        kept = self._kept.get(sequence)
        if kept is None:
            return
        if exact < SHORTEST:
            self._release(sequence)
            return
        in_place = sequence in self._in_place
        self.lost(sequence)
        if in_place:
            self._in_place.add(sequence)
        self._kept[sequence] = replace(kept, tokens=kept.tokens[:exact], exact=exact)
        self.computed(sequence, kept.tokens[:exact], kept.adapters)

    # ---- what is kept

    def park(self, but: int | None = None) -> None:
        """Free the cells of all ended requests except BUT; what they hold goes to main memory."""
        while self._park_one(but):
            pass

    def _park_one(self, but: int | None = None) -> bool:
        """Free the cells of one ended request other than BUT; false where there is none. What cannot be parked is forgotten."""
        sequence = next((number for number, kept in self._kept.items() if kept.state is None and number != but), None)
        if sequence is None:
            return False
        if self._handle.n_swa:
            self._release(sequence)
            return True
        try:
            state, span = self._handle.state(sequence), self._handle.span(sequence)
        except (MemoryError, EngineCrashed):
            state, span = b"", (0, 0)
        kept = self._kept.pop(sequence)
        self.drop(sequence)
        if not state or len(state) > self._budget:
            return True
        number = next(self._numbers)
        self._kept[number] = replace(kept, state=state, span=span)
        self.computed(number, kept.tokens, kept.adapters)
        self._keep_to_budget()
        return True

    def _keep_to_budget(self) -> None:
        while self._kept and self.kept_bytes > self._budget:
            self._release(next(number for number, kept in self._kept.items() if self._size(kept)))

    def _release(self, number: int) -> None:
        """Forget kept tokens."""
        if self._kept.pop(number).state is None:
            self.drop(number)
        else:
            self.lost(number)

    def clear(self) -> None:
        """Forget all kept tokens."""
        while self._kept:
            self._release(next(iter(self._kept)))
