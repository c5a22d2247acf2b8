"""How much room a context gets: streams, sequences, cells of the KV cache; from the most comfortable to the least that is useful."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from edgeai.artifact import Artifact
from edgeai.memory import Settings, estimate, kv_bytes_per_cell
from edgeai.options import DEFAULT_CONTEXT, DEFAULT_STREAMS, LoadOptions
from edgeai.shape import ModelShape

__all__ = ["BATCH", "Room", "default_context", "rooms"]

BATCH = 512  # tokens; llama.cpp's n_ubatch, common/common.h
LEAST_CONTEXT = 512
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ, llama-cparams.h
KEPT_BYTES = 128 << 20
"""What prompts of requests that have ended may take of main memory when nothing is asked for, at most."""
PLENTIFUL, ASKED_FOR = 1 / 32, 1 / 8
"""Parts of the free memory that a KV cache with room to spare may take: as it is, and where streams and context were both asked for."""
LEAST_OUTPUTS, GUESSES = 64, 8
"""Positions of a batch that can have logits, at least: scoring takes so many at a time, and each stream may check so many guesses."""
TEXTS, FEWEST_TOKENS, MOST_TOKENS, OUTPUT_BYTES = 64, 128, 1024, 64_000_000
"""Texts that are embedded together, and what bounds the tokens of such a batch (engines/llamacpp/pooled.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the buffers of a context are for. `sequences` are for requests; work between the requests has one more.

    `unified`: all sequences share the cells; else each has `context` cells of its own. `comfort`: more than is needed, to be had where
    the KV cache is then at most this part of what is free; 0 for what is needed.
    """

    context: int
    streams: int
    sequences: int
    cells: int
    prefix_bytes: int
    outputs: int
    batch: int
    kv_type: str
    unified: bool = True
    pooled: bool = False
    swa_full: bool = False
    comfort: float = 0.0

    def settings(self, *, flash: bool, features: frozenset[str]) -> Settings:
        """Return what the memory of this room is counted from."""
        return Settings(
            cells=self.cells,
            sequences=self.sequences + 1,
            unified=self.unified,
            batch=self.batch,
            outputs=self.outputs,
            kv_type=self.kv_type,
            swa_full=self.swa_full,
            flash=flash,
            pooled=self.pooled,
            kept_bytes=self.prefix_bytes,
            features=features,
        )


def default_context(artifact: Artifact, needed: int | None) -> int:
    """Return the context when none is asked for: the trained one up to DEFAULT_CONTEXT, less when less can be needed."""
    context = min(artifact.context or DEFAULT_CONTEXT, artifact.positions or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    if needed is None:
        return context
    bound = needed + len(artifact.template or "")  # a template adds at most its own text to a message or two
    return min(context, max(LEAST_CONTEXT, -(-bound // 256) * 256))


def rooms(artifact: Artifact, shape: ModelShape, options: LoadOptions) -> Iterator[Room]:
    """Yield the rooms that OPTIONS allow, the best first. What is fixed there is the same in all of them.

    A caller that asks for several streams serves several people: each gets cells of its own where that takes little of the memory, or at
    least as many in the cells of all, and windows are kept whole, so that any prompt can be kept for later. One that asks for nothing
    gets one context, shared by all streams; or as many streams as take little, where answers must not depend on each other and so share
    nothing.
    """
    context = options.ctx or default_context(artifact, options.needed)
    one = _single(artifact, options) or options.deterministic
    streams = options.streams or (1 if one else DEFAULT_STREAMS)
    whole = _room(artifact, shape, options, context, streams)
    if options.deterministic and options.streams is None and not _single(artifact, options):
        for more in (DEFAULT_STREAMS, DEFAULT_STREAMS // 2, DEFAULT_STREAMS // 4):
            yield replace(_room(artifact, shape, options, context, more), comfort=PLENTIFUL)
    if (options.streams or 0) > 1 and options.needed is None and not options.deterministic:
        yield from _comforts(shape, whole, options)
    yield whole
    if options.prefix_bytes is None and whole.prefix_bytes:  # kept prompts are the first to go
        options = replace(options, prefix_bytes=0)
        yield _room(artifact, shape, options, context, streams)
    fewer = options.streams or 1
    if fewer < streams:
        yield _room(artifact, shape, options, context, fewer)
    while options.ctx is None and context > LEAST_CONTEXT:
        context = max(LEAST_CONTEXT, context // 2)
        yield _room(artifact, shape, options, context, fewer)


def _single(artifact: Artifact, options: LoadOptions) -> bool:
    """Whether the model is loaded for one answer, or for vectors, which are computed one after the other."""
    return options.needed is not None or artifact.embedding


def _comforts(shape: ModelShape, room: Room, options: LoadOptions) -> Iterator[Room]:
    """Yield rooms with more than ROOM has, the best first.

    Attention passes over the cells of all who share them: eight requests of 20 to 250 tokens that share nothing get a quarter more tokens
    a second in cells of their own. What they do share is then copied, a hundredth of the time of computing it.
    """
    full = replace(room, swa_full=shape.windowed and room.prefix_bytes > 0, comfort=PLENTIFUL)
    if not (options.kv_unified or shape.recurrent):
        part = ASKED_FOR if options.ctx else PLENTIFUL
        yield replace(full, **_apart(room.context, room.streams), comfort=part)
    times = room.streams
    while times > 1:
        yield replace(full, cells=room.cells + room.context * (times - 1))
        times //= 2
    if full.swa_full:
        yield full


def _room(artifact: Artifact, shape: ModelShape, options: LoadOptions, context: int, streams: int) -> Room:
    kv_type = options.kv_type or "f16"
    per_cell = kv_bytes_per_cell(shape, kv_type)
    prefix = _prefix_bytes(artifact, options, per_cell * context)
    # A request that has ended has its sequence until another begins. A recurrent model has a state for each.
    kept = (1 if shape.recurrent else streams) if prefix else 0
    sequences = min(MAX_SEQUENCES - 1, TEXTS - 1 if artifact.embedding else streams + kept)
    batch = _pooled_batch(shape, context) if artifact.embedding else min(BATCH, context)
    room = Room(
        context=context,
        streams=streams,
        sequences=sequences,
        cells=max(context, batch if artifact.embedding else 0),
        prefix_bytes=prefix,
        outputs=max(context, _pooled_tokens(shape))
        if artifact.embedding
        else _outputs(shape, batch, streams, sequences),
        batch=batch,
        kv_type=kv_type,
        pooled=artifact.embedding,
    )
    # Attention adds in the order of cells: where an answer must not depend on others, each sequence has cells of its own.
    return replace(room, **_apart(context, sequences)) if options.deterministic and not artifact.embedding else room


def _apart(context: int, sequences: int) -> dict[str, Any]:
    """Return the fields of a room in which each of SEQUENCES, and the one for other work, has CONTEXT cells of its own."""
    return {"unified": False, "sequences": sequences, "cells": context * (sequences + 1)}


def _pooled_batch(shape: ModelShape, context: int) -> int:
    """Return the tokens that are embedded together: a whole text at least, for it is seen without a causal mask."""
    return -(-max(context, _pooled_tokens(shape)) // TEXTS) * TEXTS


def _pooled_tokens(shape: ModelShape) -> int:
    return max(FEWEST_TOKENS, min(MOST_TOKENS, OUTPUT_BYTES // (4 * max(1, shape.vocab))))


def _prefix_bytes(artifact: Artifact, options: LoadOptions, kv_bytes: int) -> int:
    """Return how much memory may keep prompts: as much as a context, within bounds, unless there will be no second request."""
    if options.prefix_bytes is not None:
        return options.prefix_bytes
    return 0 if options.deterministic or _single(artifact, options) else min(kv_bytes, KEPT_BYTES)


def _outputs(shape: ModelShape, batch: int, streams: int, sequences: int) -> int:
    """Return as many positions with logits as fit into the buffer that the layers need anyway, and not fewer than are needed."""
    layers = estimate(shape, Settings(cells=0, batch=batch)).placement.cpu.compute_bytes
    free = layers // (4 * max(1, shape.vocab + 2 * shape.width))
    return max(sequences + 1, min(batch, max(free, LEAST_OUTPUTS, streams * (1 + GUESSES))))
