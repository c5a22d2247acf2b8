"""How far a file may be from its source, by the type of its weights: a table of facts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgeai.errors import UsageError
from edgeai.evaluation.intervals import Interval
from edgeai.evaluation.prompts import EXACT_NMSE
from edgeai.types import Row

__all__ = ["LIMITS", "Limit", "at_least", "at_most", "check_max_kl", "limit_of", "stated", "stored_limit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How far a quantized file may be from its source: NMSE of the logits, mean KL in nats, and for an embedding model the least
    cosine between an embedding of the file and torch's."""

    nmse: float
    mean_kl: float
    cosine: float


LIMITS: Mapping[str, Limit] = {
    "F32": Limit(nmse=EXACT_NMSE, mean_kl=1e-5, cosine=0.9999),
    "F16": Limit(nmse=5e-4, mean_kl=1e-3, cosine=0.9999),
    "BF16": Limit(nmse=5e-3, mean_kl=1e-2, cosine=0.999),
    "Q8_0": Limit(nmse=0.01, mean_kl=0.05, cosine=0.999),
    "INT8": Limit(nmse=0.02, mean_kl=0.05, cosine=0.99),
    "INT4": Limit(nmse=0.5, mean_kl=1.0, cosine=0.95),
    "Q6_K": Limit(nmse=0.05, mean_kl=0.15, cosine=0.99),
    "Q5_1": Limit(nmse=0.1, mean_kl=0.3, cosine=0.98),
    "Q5_0": Limit(nmse=0.1, mean_kl=0.3, cosine=0.98),
    "Q5_K": Limit(nmse=0.1, mean_kl=0.3, cosine=0.98),
    "Q4_1": Limit(nmse=0.5, mean_kl=1.0, cosine=0.95),
    "Q4_0": Limit(nmse=0.5, mean_kl=1.0, cosine=0.95),
    "Q4_K": Limit(nmse=0.5, mean_kl=1.0, cosine=0.95),
    "IQ4_NL": Limit(nmse=0.5, mean_kl=1.0, cosine=0.95),
    "IQ4_XS": Limit(nmse=0.5, mean_kl=1.0, cosine=0.95),
    "MXFP4": Limit(nmse=0.6, mean_kl=1.5, cosine=0.9),
    "Q3_K": Limit(nmse=0.9, mean_kl=2.0, cosine=0.85),
    "IQ3_S": Limit(nmse=0.9, mean_kl=2.0, cosine=0.85),
    "IQ3_XXS": Limit(nmse=1.2, mean_kl=3.0, cosine=0.8),
    "Q2_K": Limit(nmse=1.5, mean_kl=4.0, cosine=0.7),
    "IQ2_S": Limit(nmse=2.0, mean_kl=8.0, cosine=0.5),
    "IQ2_XS": Limit(nmse=2.0, mean_kl=8.0, cosine=0.5),
    "IQ2_XXS": Limit(nmse=2.0, mean_kl=8.0, cosine=0.5),
    "IQ1_M": Limit(nmse=3.0, mean_kl=16.0, cosine=0.2),
    "IQ1_S": Limit(nmse=3.0, mean_kl=16.0, cosine=0.2),
    "Q2_0": Limit(
        nmse=3.0, mean_kl=16.0, cosine=0.2
    ),  # this and those below are for models that were trained to have such weights
    "TQ2_0": Limit(nmse=3.0, mean_kl=16.0, cosine=0.2),
    "TQ1_0": Limit(nmse=3.0, mean_kl=16.0, cosine=0.2),
    "Q1_0": Limit(nmse=3.0, mean_kl=16.0, cosine=0.2),
}
"""By base type: some ten times what published measurements find for models of 7 B (Q8_0 0.001, Q6_K 0.006, Q5_K 0.011, Q4_K 0.031, Q3_K
0.10, Q2_K 0.45 nats: tools/perplexity/README.md of llama.cpp), because small models lose more: 135 M parameters twice to five times as
much, random weights more still (OLMo 2 as it is initialised has an NMSE of 1.1 in Q2_K). They catch a broken file, not a poor one; the
measured values are in the report, and `--max-kl` sets what is good enough. INT8 and INT4 are those of ONNX, where activations are rounded
to 8 bits as well (SmolLM2-135M: 0.0045 and 0.32 nats)."""
EXPERTS_NMSE, EXPERTS_FACTOR = 0.05, 1.5
STORED_NMSE = 1e-5
"""F16 and BF16 against torch with weights, and what they are multiplied with, rounded to that type; see `stored_limit`."""


def limit_of(base: str, max_kl: float | None = None, *, experts: bool = False) -> Limit:
    """Return the limit for files of base type BASE; MAX_KL, where given, is that of the mean KL.

    With EXPERTS, a router that is near a tie sends a token elsewhere for any rounding, which the NMSE of its logits shows.
    """
    found = LIMITS[base]
    nmse = max(EXPERTS_NMSE, EXPERTS_FACTOR * found.nmse) if experts else found.nmse
    return Limit(nmse=nmse, mean_kl=found.mean_kl if max_kl is None else max_kl, cosine=found.cosine)


def stored_limit(base: str, activation_nmse: float, layers: int) -> float:
    """Return the NMSE that a file of halves may have against torch with the same roundings; its weights are compared bit by bit.

    A number that lies near the middle of two neighbours is rounded to the other one by the least difference in the order of additions,
    and every layer adds such numbers: SmolLM2-135M (30 layers) has 2.5e-5 in BF16, random models of two layers 3e-7 to 3e-6. Where the
    runtime's activations differ by an NMSE of ACTIVATION_NMSE that happens more often: per layer its square root, times the distance of
    the neighbours (2⁻⁷ of a number, for BF16).
    """
    depth = max(1.0, layers / 4) if base == "BF16" else 1.0
    return STORED_NMSE * depth + activation_nmse + math.sqrt(activation_nmse) * 2**-7 * layers


def check_max_kl(value: float | None) -> float | None:
    """Return VALUE, a limit for the mean KL; raises UsageError unless it is a finite positive number."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise UsageError(f"--max-kl {value!r} is no limit", hint="give a mean KL in nats above 0, such as 0.05")
    return value


def at_most(name: str, value: float | Interval, limit: float) -> Row:
    """Return the row of a value that must be below LIMIT; one that is not a number is not.

    Of an interval the upper end must be below: the statement is about the text's kind, not only about the tokens that were drawn.
    """
    if isinstance(value, Interval):
        ends = (value.low, value.high)
        return Row(name=name, value=value.value, limit=f"< {limit:.4g}", ok=value.high < limit, interval=ends)
    return Row(name=name, value=value, limit=f"< {limit:.4g}", ok=value < limit)


def at_least(name: str, value: Interval, limit: float) -> Row:
    """Return the row of a measured value that must be at least LIMIT, by the lower end of its interval."""
    ok = value.low >= limit
    return Row(name=name, value=value.value, limit=f">= {limit:g}", ok=ok, interval=(value.low, value.high))


def stated(name: str, value: Interval) -> Row:
    """Return the row of a measured value that has no limit."""
    return Row(name=name, value=value.value, interval=(value.low, value.high))
