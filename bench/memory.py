"""Memory over many requests: the resident size of one process that answers 10,000 of them, four at a time, and its
slope.

    python bench/memory.py [--models tiny smollm2-q4_0] [--requests 10000] [--quick]

Prompts differ in length and text, and every tenth is cancelled on the way. The slope is that of the second half
(least squares), when caches are full.
"""

from __future__ import annotations

import argparse
import gc
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from measure import save

import edgeai
import models

CALLERS, STEP = 4, 100
HERE = Path(__file__).parent
TINY = HERE.parent / "models" / "tiny"


def rss_bytes() -> int:
    """Return the resident size of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def answer(model: edgeai.Model, number: int) -> None:
    """Make one small request of its own kind."""
    order = random.Random(number)  # noqa: S311 - texts to measure with, no secrets
    text = " ".join(str(order.randrange(1000)) for _ in range(order.randrange(2, 40)))
    with model.stream(text, max_tokens=order.randrange(1, 5), temperature=order.choice((0, 0.8))) as stream:
        if number % 10:
            stream.collect()
        else:
            next(stream)


def answers(model: edgeai.Model, numbers: range) -> None:
    """Make the requests NUMBERS, one after another."""
    for number in numbers:
        answer(model, number)


def measure(path: Path, requests: int) -> dict[str, Any]:
    """Return the sizes of this process over REQUESTS, in bytes."""
    sizes: list[tuple[int, int]] = []
    with edgeai.load(str(path), ctx=512, streams=CALLERS, device="cpu") as model:
        for start in range(0, requests, STEP):
            callers = [
                threading.Thread(target=answers, args=(model, range(first, start + STEP, CALLERS)))
                for first in range(start, start + CALLERS)
            ]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            gc.collect()
            sizes.append((start + STEP, rss_bytes()))
    half = sizes[len(sizes) // 2 :]
    return {
        "requests": requests,
        "after_first_100": sizes[0][1],
        "half_way": half[0][1],
        "at_the_end": sizes[-1][1],
        "slope_bytes_per_request": slope(half),
        "values": [size for _, size in sizes],
    }


def slope(points: list[tuple[int, int]]) -> float:
    """Return the slope of the line of least squares through POINTS."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def tiny() -> Path:
    """Return the repository's own model as a GGUF file."""
    import peers

    path = peers.folder() / "models" / "tiny.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "edgeai", "convert", str(TINY), "-o", str(path), "--quant", "f32"], check=True
        )
    return path


def main() -> None:
    """Measure each model in a process of its own, and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", default=("tiny", "smollm2-q4_0"))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="600 requests, to see that it works")
    arguments = parser.parse_args()
    requests = 600 if arguments.quick else arguments.requests
    if arguments.child:
        name = arguments.child
        found = measure(tiny() if name == "tiny" else models.model(name), requests)
        save(f"memory_{name}", found, keep=not arguments.quick)
        return
    for name in arguments.models:
        more = ["--quick"] if arguments.quick else ["--requests", str(requests)]
        subprocess.run([sys.executable, __file__, "--child", name, *more], check=True)


if __name__ == "__main__":
    main()
