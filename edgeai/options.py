"""What a caller wants of a loaded model; what is left open is chosen by the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from edgeai.errors import UsageError
from edgeai.types import check_numbers

__all__ = [
    "DEFAULT_CONTEXT",
    "DEFAULT_QUEUE",
    "DEFAULT_STREAMS",
    "DeviceChoice",
    "KVType",
    "LoadOptions",
    "Numerics",
]

DeviceChoice = Literal["auto", "cpu", "cuda", "dml"]
"""`dml` is DirectML, which runs ONNX models on any GPU under Windows."""

Numerics = Literal["exact", "fast"]

KVType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
"""The types that libllama keeps a KV cache in (common/arg.cpp, kv_cache_types)."""

DEFAULT_CONTEXT = 8192
"""Context when none is asked for, or the trained one if that is smaller."""

DEFAULT_STREAMS = 8
"""Requests computed side by side when nothing is asked for; those that come on top wait."""

DEFAULT_QUEUE = 1024
"""Requests that may wait for their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a caller wants of a loaded model. None leaves the choice to the plan; what is given is kept or refused, never changed.

    `ctx`: the longest prompt and answer together, in tokens. `needed`: an upper bound of the tokens that will ever be in the context, for
    callers that know it: without `ctx` the context is then no larger than that. `threads` decode, `threads_batch` read prompts.
    `streams`: requests computed side by side. `queue`: how many may wait before Busy. `prefix_bytes`: how much main memory may keep
    prompts for later requests, 0 for none. `kv_unified`: all streams share the cells of one KV cache, also where memory is plentiful and
    each would get cells of its own; faster where most requests begin with the same long text, slower where they share little.
    `numerics`: under "exact" nothing that is only done for speed changes the answer of a request that is alone: kept prompts are reused,
    and guesses made, only where all numbers stay the same; "fast" does both wherever it can, and rounding then changes greedy answers.
    `deterministic`: an answer does not depend on what else runs, at the price of speed.
    `adapters`: name → LoRA adapter file. `draft`: a small model of the same vocabulary for speculation.
    `isolated`: in a supervised child process, so that no crash of native code ends this one.
    """

    ctx: int | None = None
    needed: int | None = None
    threads: int | None = None
    threads_batch: int | None = None
    device: DeviceChoice = "auto"
    gpu_layers: int | None = None
    kv_type: KVType | None = None
    streams: int | None = None
    queue: int = DEFAULT_QUEUE
    prefix_bytes: int | None = None
    kv_unified: bool = False
    numerics: Numerics = "exact"
    deterministic: bool = False
    adapters: Mapping[str, Path] = field(default_factory=dict)
    draft: Path | None = None
    isolated: bool = False

    def __post_init__(self) -> None:
        check_numbers(
            self,
            whole=("ctx", "needed", "threads", "threads_batch", "gpu_layers", "streams", "queue", "prefix_bytes"),
        )
        limits: tuple[tuple[str, bool, str], ...] = (
            ("ctx", self.ctx is None or self.ctx >= 8, "at least 8"),
            ("needed", self.needed is None or self.needed >= 1, "at least 1"),
            ("deterministic", isinstance(self.deterministic, bool), "True or False"),
            (
                "kv_unified",
                isinstance(self.kv_unified, bool) and not (self.kv_unified and self.deterministic),
                "True or False, and False under deterministic",
            ),
            ("isolated", isinstance(self.isolated, bool), "True or False"),
            ("threads", self.threads is None or 1 <= self.threads <= 512, "between 1 and 512"),
            ("threads_batch", self.threads_batch is None or 1 <= self.threads_batch <= 512, "between 1 and 512"),
            ("device", self.device in get_args(DeviceChoice), "one of " + ", ".join(get_args(DeviceChoice))),
            ("gpu_layers", self.gpu_layers is None or 0 <= self.gpu_layers <= 10_000, "between 0 and 10000"),
            ("kv_type", self.kv_type in (None, *get_args(KVType)), "one of " + ", ".join(get_args(KVType))),
            ("streams", self.streams is None or 1 <= self.streams <= 128, "between 1 and 128"),
            ("queue", 0 <= self.queue <= 10**6, "between 0 and 1000000"),
            (
                "prefix_bytes",
                not (self.deterministic and self.prefix_bytes),
                "0 under deterministic, where each sequence is apart",
            ),
            ("numerics", self.numerics in get_args(Numerics), "one of " + ", ".join(get_args(Numerics))),
            ("prefix_bytes", self.prefix_bytes is None or self.prefix_bytes >= 0, "0 or more"),
        )
        for name, ok, rule in limits:
            if not ok:
                raise UsageError(f"{name} {getattr(self, name)!r} is not possible", hint=f"{name} must be {rule}")
        if self.gpu_layers is not None and (self.device, self.gpu_layers > 0) in (("cpu", True), ("cuda", False)):
            raise UsageError(
                f"device {self.device!r} and gpu_layers {self.gpu_layers!r} exclude each other",
                hint="leave one of them out",
            )
