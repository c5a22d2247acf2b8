"""How many threads a model runs with here, and why: what was asked for, else what was tuned, else what the cores suggest."""

from __future__ import annotations

from dataclasses import dataclass

from edgeai.device import CPU
from edgeai.tuning import Tuned

__all__ = ["Threads", "choose_threads"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """Threads to decode with, threads to read prompts with, and the reasons in sentences."""

    decode: int
    batch: int
    why: tuple[str, ...]


def choose_threads(cpu: CPU, *, decode: int | None, batch: int | None, tuned: Tuned | None, kind: str = "") -> Threads:
    """Return the thread counts for CPU. DECODE and BATCH are what was asked for; a DECODE alone counts for both, as in llama.cpp.

    TUNED is what was measured for models of this KIND.
    """
    if decode is not None:
        asked = batch if batch is not None else decode
        return Threads(decode=decode, batch=asked, why=(_said(decode, asked, "asked for"),))
    if tuned is not None:
        chosen, why = tuned.threads, f"the fastest here for {kind}, found by edgeai bench --tune"
        return _with(chosen, tuned.threads_batch, batch, why)
    return _with(cpu.threads, cpu.threads_batch, batch, reason(cpu))


def _with(decode: int, best: int, asked: int | None, why: str) -> Threads:
    if asked is None:
        return Threads(decode=decode, batch=best, why=(_said(decode, best, why),))
    return Threads(decode=decode, batch=asked, why=(_said(decode, decode, why), f"prompts with {asked} as asked for"))


def _said(decode: int, batch: int, why: str) -> str:
    counts = f"{decode} thread{'s' * (decode != 1)}" if decode == batch else f"{decode} threads, prompts with {batch}"
    return f"{counts}: {why}"


def reason(cpu: CPU) -> str:
    """Return why CPU's own thread counts are what they are."""
    cores, quota = cpu.cores, cpu.quota
    fast = cores.performance if cores else cpu.physical
    if fast > cpu.usable:
        limit = (
            f"the cgroup allows {quota:g} cores" if quota is not None else "the process is bound to so many processors"
        )
        return f"{limit}, of {fast} physical ones"
    if cores and cores.efficiency:
        rest = f"{cores.efficiency} slower one{'s' * (cores.efficiency != 1)}"
        helping = "help with prompts only" if cores.helpful else "are left out: the others would wait for them"
        return f"one for each of {fast} performance cores; {rest} {helping}"
    shared = ", whose hardware threads share one arithmetic unit" if cpu.logical > cpu.physical else ""
    return f"one for each of {fast} physical core{'s' * (fast != 1)} that may be used{shared}"
