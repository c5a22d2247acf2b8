"""The last answer read again while nothing else is to be done, so that the next turn of a conversation finds it exact and need not wait.

The tokens of an answer were computed one at a time, which gives other roundings than reading them gives (see exact.py). Reading them takes
a tenth of the time that computing them took.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeai.engines.llamacpp.cache import PrefixCache
from edgeai.engines.llamacpp.exact import padding
from edgeai.engines.llamacpp.handle import Aborted, Batch, Handle, NoRoom
from edgeai.errors import UsageError

__all__ = ["settle"]


def settle(handle: Handle, cache: PrefixCache, batch: Batch, idle: Callable[[], bool]) -> None:
    """Make exact what the last request has left, part by part, until IDLE says that there is other work, or a decode is aborted."""
    found = cache.unsettled()
    if found is None:
        return
    sequence, tokens, at, adapters = found
    try:
        handle.adapters.select(handle.context, adapters)
    except UsageError:  # one of them has been removed
        return
    if not handle.trim(sequence, at):
        cache.settled(sequence, 0)
        return
    try:
        while at < len(tokens) and idle():
            count = min(len(tokens) - at, handle.n_batch)
            more = padding(count)
            if count + more > min(handle.n_batch, handle.n_ctx - at):
                break
            batch.clear()
            batch.add(tokens[at : at + count], at, sequence, 0)
            batch.pad(more, at + count, sequence)
            handle.decode(batch)
            at += count
            handle.trim(sequence, at)
    except (Aborted, NoRoom):
        handle.trim(sequence, at)
    finally:
        cache.settled(sequence, at)
