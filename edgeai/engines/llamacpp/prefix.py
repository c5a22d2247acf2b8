"""Which tokens are in the KV cache, and which sequences have them: a radix tree, without anything native."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["PrefixTree", "common"]


@dataclass(slots=True, eq=False)
class _Node:
    """A run of tokens after those of its parent. `holders` are the sequences that have it, and so all before it."""

    tokens: list[int]
    parent: _Node | None
    holders: set[int] = field(default_factory=set)
    children: dict[int, _Node] = field(default_factory=dict)


class PrefixTree:
    """The tokens of sequences, each run of them stored once however many share it.

    What is in the tree more than once is in the cache more than once only if two requests computed the same before either knew.
    """

    def __init__(self) -> None:
        self._root = _Node([], None)
        self._ends: dict[int, _Node] = {}

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._ends

    def __len__(self) -> int:
        return len(self._ends)

    def put(self, sequence: int, tokens: Sequence[int]) -> None:
        """Note that SEQUENCE has TOKENS: none before, or a beginning of them."""
        node, at = self._root, 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                node = self._grow(sequence, node, list(tokens[at:]))
                break
            shared = common(child.tokens, tokens, at)
            if shared < len(child.tokens):
                child = self._split(child, shared)
            child.holders.add(sequence)
            node, at = child, at + shared
        if node is not self._root:
            self._ends[sequence] = node

    def _grow(self, sequence: int, node: _Node, rest: list[int]) -> _Node:
        """Put REST after NODE, into it where nobody else would notice."""
        if node.holders == {sequence} and not node.children:
            node.tokens += rest
            return node
        child = _Node(rest, node, {sequence})
        node.children[rest[0]] = child
        return child

    def _split(self, node: _Node, at: int) -> _Node:
        """Make two nodes of NODE; the new one is the upper and has its first AT tokens. NODE stays the end of who ended there."""
        assert node.parent is not None  # noqa: S101 - the root has no tokens to split
        upper = _Node(node.tokens[:at], node.parent, set(node.holders))
        node.parent.children[node.tokens[0]] = upper
        node.tokens = node.tokens[at:]
        node.parent = upper
        upper.children[node.tokens[0]] = node
        return upper

    def remove(self, sequence: int) -> None:
        """Forget SEQUENCE, and the tokens that nobody else has. One that is not here is no error."""
        node = self._ends.pop(sequence, None)
        while node is not None and node.parent is not None:
            parent = node.parent
            node.holders.discard(sequence)
            if not node.holders:
                del parent.children[node.tokens[0]]
            node = parent

    def matches(self, tokens: Sequence[int], limit: int) -> Iterator[tuple[int, Collection[int]]]:
        """Yield (length, who has it) for beginnings of TOKENS up to LIMIT that are here, the longest first."""
        found: list[tuple[int, Collection[int]]] = []
        node, at = self._root, 0
        limit = min(limit, len(tokens))
        while at < limit and (child := node.children.get(tokens[at])) is not None:
            shared = common(child.tokens, tokens, at)
            at += shared
            found.append((min(at, limit), child.holders))
            if shared < len(child.tokens):
                break
            node = child
        return reversed(found)

    def covered(self, sequence: int) -> set[int]:
        """Return the other sequences whose every token SEQUENCE has too."""
        found: set[int] = set()
        node = self._ends.get(sequence)
        path = set()
        while node is not None:
            path.add(id(node))
            node = node.parent
        for other, end in self._ends.items():
            if other != sequence and id(end) in path:
                found.add(other)
        return found

    def tokens(self, without: Collection[int] = ()) -> int:
        """Return how many tokens are here, each run counted once; runs that a sequence of WITHOUT has are left out."""
        excluded, total, nodes = set(without), 0, [self._root]
        while nodes:
            node = nodes.pop()
            if not node.holders & excluded:
                total += len(node.tokens)
            nodes += node.children.values()
        return total


def common(run: Sequence[int], tokens: Sequence[int], at: int = 0) -> int:
    """Return how many tokens of RUN are those of TOKENS from AT on."""
    count = min(len(run), len(tokens) - at)
    if list(run[:count]) == list(tokens[at : at + count]):
        return count
    return next(index for index in range(count) if run[index] != tokens[at + index])
