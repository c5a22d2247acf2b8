"""Logits of a model file or of its source, and what two sets of logits have to do with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.child import NATIVE, Child
from edgeai.device import cpu_facts
from edgeai.types import Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgeai.evaluation.prompts import Prompt

    Logits = npt.NDArray[np.float32]

__all__ = ["Agreement", "compare", "native_logits"]

CHUNK = 64
"""Positions compared at once: memory stays at a few times CHUNK · vocabulary · 8 bytes."""
SMALL_BYTES = 64 << 20
TIE = 1e-4
"""Two logits closer than this part of their position's spread are the same first choice: rounding decides between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How two models' logits agree: NMSE, mean KL(reference ‖ candidate) in nats, share of equal first choices."""

    positions: int
    nmse: float
    mean_kl: float
    top1: float


def native_logits(
    model: Path,
    prompts: Sequence[Prompt],
    out: Path,
    progress: Progress = no_progress,
    *,
    jobs: Sequence[Mapping[str, Any]] = (),
) -> tuple[Logits, list[dict[str, Any]]]:
    """Return libllama's logits for every position of PROMPTS, (positions, vocab) float32, kept in the file OUT.

    JOBS are texts to tokenize on the way (`tokenproof.Question.request`); their answers come second. Runs in a child
    process. Raises ChildFailed where libllama refuses the file, ChildDied where it crashes.
    """
    import numpy as np

    score = {
        "model": str(model),
        "prompts": [asdict(prompt) for prompt in prompts],
        "logits": str(out),
        "threads": threads(model),
    }
    with Child(NATIVE, {"jobs": list(jobs), "score": score}, what=f"running {model.name!r}") as child:
        answer = child.result(lambda done, total: progress("running the file", done, total))
    logits: Logits = np.load(out, mmap_mode="r")
    return logits, list(answer["jobs"])


def threads(model: Path) -> int:
    """Return how many threads to run MODEL with: all that this process may use, but one for a small file.

    ggml's threads wait for each other by spinning; where the cores are shared, that costs a small model ten times its work.
    """
    if model.stat().st_size < SMALL_BYTES:
        return 1
    return cpu_facts().threads


def compare(reference: Logits, candidate: Logits) -> Agreement:
    """Compare two (positions, vocab) arrays of logits.

    NMSE is Σ(candidate - reference)² / Σ reference² as in llama.cpp's tests; KL as in its perplexity tool.
    Raises ValueError when the shapes differ.
    """
    import numpy as np

    if reference.shape != candidate.shape:
        raise ValueError(f"logits of shape {reference.shape} and {candidate.shape} cannot be compared")
    error = power = kl = 0.0
    same = 0
    for start in range(0, len(reference), CHUNK):
        ref = np.asarray(reference[start : start + CHUNK], np.float64)  # (positions, vocab)
        cand = np.asarray(candidate[start : start + CHUNK], np.float64)
        error += float(((cand - ref) ** 2).sum())
        power += float((ref**2).sum())
        log_p, log_q = log_softmax(ref), log_softmax(cand)
        kl += float((np.exp(log_p) * (log_p - log_q)).sum())
        chosen = np.take_along_axis(ref, cand.argmax(-1, keepdims=True), -1)[:, 0]
        same += int((ref.max(-1) - chosen <= TIE * ref.std(-1)).sum())
    count = len(reference)
    return Agreement(
        positions=count, nmse=error / power if power else float("inf"), mean_kl=kl / count, top1=same / count
    )


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the log-probabilities of LOGITS along the last axis."""
    import numpy as np

    shifted = logits - logits.max(-1, keepdims=True)
    result: npt.NDArray[Any] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
