"""A child that does what no child should: EDGEAI_ROGUE says what. `python -m tests.engines.worker.rogue IN OUT PARENT`."""

from __future__ import annotations

import os
import sys
import time

from edgeai.engines.worker.frames import Frame, FrameReader, pack
from edgeai.plan import Plan

PLAN = Plan(
    engine="rogue", device="cpu", gpu_layers=0, context=64, batch=64, threads=1, kv_type="none", extra_bufts=True,
    memory_bytes=0, fits=True,
)  # fmt: skip


def answer(kind: str, frame: Frame) -> bytes:
    """Return what a child of this KIND says to FRAME."""
    if frame.kind == "load":
        return pack("loaded", 0, {"plan": PLAN, "backend": "rogue"})
    if frame.kind == "ping":
        return pack("pong", 0, 7)
    if frame.kind in {"call", "generate"}:
        return {
            "garbage": b"Traceback (most recent call last): no frame at all",
            "nonsense": pack("answers", frame.id, None),
            "wrong value": pack("chunks", 0, 5),
            "wrong chunk": pack("chunks", 0, [(frame.id, 5)]),
            "wrong pong": pack("pong", 0, "x"),
            "loaded twice": pack("loaded", 0, {"plan": PLAN, "backend": "rogue"}),
            "cut": pack("answer", frame.id, "text")[:-3],
        }.get(kind, b"")
    return b""


def main() -> None:
    """Serve until the pipe is closed."""
    kind = os.environ["EDGEAI_ROGUE"]
    read, write = int(sys.argv[1]), int(sys.argv[2])
    if kind == "ends at once":
        print("I cannot go on", file=sys.stderr)
        sys.exit(3)
    frames = FrameReader()
    while data := os.read(read, 1 << 16):
        for frame in frames.feed(data):
            if frame.kind == "call" and kind == "silent":
                time.sleep(600)
            if reply := answer(kind, frame):
                os.write(write, reply)
            if frame.kind == "generate" and kind == "begins and dies":
                os.write(write, pack("answer", frame.id) + pack("chunks", 0, [(frame.id, None)]))
            if (frame.kind, kind) in {("call", "cut"), ("generate", "begins and dies"), ("generate", "dies")}:
                os._exit(0)
            if frame.kind == "call" and kind == "closes its pipe":
                os.close(write)
                time.sleep(600)


if __name__ == "__main__":
    main()
