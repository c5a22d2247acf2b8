"""What the router adds: the same loopback endpoint asked directly and through the router, in one run, in turns.

    python bench/router.py [--streams 1,8,64] [--chunks N] [--rounds N] [--requests N]

A server in a process of its own answers with N chunks, each in an event and a chunk of HTTP of its own. It is asked by a bare loop over
httpx2 (json.loads of each event, nothing checked), by edgeai's engine of endpoints, and by the router: detectors, decision, ledger.

The time per chunk is measured with all chunks sent at once: the wall over all chunks, so what a whole request adds is in it. The time to
the first text is measured with a chunk every 20 ms, as models give them, and streams that begin at random moments: a flood would measure
who gets Python's lock first. What is added is a difference of medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure

PACE_S, PACED_CHUNKS = 0.02, 40
PROMPT = (
    "Explain in a few sentences why the sky is blue at noon and red in the evening, and what the air has to do with it."
)
Ask = Callable[[], Iterator[str]]


async def serve(chunks: int) -> None:
    """Answer every request on a free port of the loopback, which is printed, with so many CHUNKS."""

    def event(value: Any) -> bytes:
        data = b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"
        return f"{len(data):x}\r\n".encode() + data + b"\r\n"

    def delta(content: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {
            "id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": content, "finish_reason": reason}],
        }  # fmt: skip

    usage = {"prompt_tokens": 30, "completion_tokens": chunks, "total_tokens": chunks + 30}
    pieces = [event(delta({"role": "assistant", "content": ""}))]
    pieces += [event(delta({"content": f"word{index} "})) for index in range(chunks)]
    pieces += [
        event(delta({}, "stop")),
        event({**delta({}), "choices": [], "usage": usage}),
        event(b"[DONE]"),
        b"0\r\n\r\n",
    ]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in request.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                )
                body = await reader.readexactly(length)
                writer.write(head)
                if b'"paced"' in body:
                    writer.write(pieces[0] + pieces[1])
                    for piece in [*pieces[2 : PACED_CHUNKS + 1], *pieces[-4:]]:
                        await asyncio.sleep(PACE_S)
                        writer.write(piece)
                    continue
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def bare(url: str, model: str) -> Ask:
    """Return a loop over httpx2 that asks for MODEL and believes everything."""
    import httpx2

    client = httpx2.Client(timeout=60, limits=httpx2.Limits(max_connections=200, max_keepalive_connections=200))

    def ask() -> Iterator[str]:
        body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": True}
        with client.stream("POST", f"{url}/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    choices = json.loads(line[6:])["choices"]
                    if choices and (text := choices[0]["delta"].get("content")):
                        yield text

    return ask


def of_engine(engine: Any) -> Ask:
    """Return what reads the text of an ENGINE's answer."""
    from edgeai.types import GenerationConfig, Message

    config, messages = GenerationConfig(), [Message(role="user", content=PROMPT)]

    def ask() -> Iterator[str]:
        for chunk in engine.generate(messages, config):
            if chunk.text:
                yield chunk.text

    return ask


def run(ask: Ask, streams: int, requests: int, chunks: int, *, apart: bool = False) -> tuple[list[float], float]:
    """Ask REQUESTS times in each of STREAMS threads; return the times to the first text and the wall of all, in seconds.

    APART: each thread begins at a moment of its own, within the length of a paced answer.
    """
    draw = random.Random(streams)  # noqa: S311 - no secret
    waits = [draw.random() * PACE_S * PACED_CHUNKS if apart else 0.0 for _ in range(streams)]
    firsts: list[float] = []
    wrong: list[int] = []

    def work(wait: float) -> None:
        time.sleep(wait)
        for _ in range(requests):
            began, first, count = time.perf_counter(), None, 0
            for _text in ask():
                first = first or time.perf_counter() - began
                count += 1
            firsts.append(first or 0.0)
            if count != chunks:
                wrong.append(count)

    threads = [threading.Thread(target=work, args=(wait,)) for wait in waits]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    assert not wrong, f"{len(wrong)} answers had another number of chunks, {wrong[0]}"
    return firsts, wall


def compare(
    asks: dict[str, Ask], paced: dict[str, Ask], streams: int, rounds: int, requests: int, chunks: int
) -> dict[str, Any]:
    """Return medians of each way to ask, and what the router adds to each of the others."""
    firsts: dict[str, list[float]] = {name: [] for name in asks}
    walls: dict[str, list[float]] = {name: [] for name in asks}
    for ask in asks.values():
        run(ask, streams, 1, chunks)  # connections are made, modules imported
    for _ in range(rounds):
        for name, ask in asks.items():
            _, wall = run(ask, streams, requests, chunks)
            walls[name].append(wall / (streams * requests * chunks))
        for name, ask in paced.items():
            firsts[name] += run(ask, streams, max(1, 4 // streams), PACED_CHUNKS, apart=True)[0]
    ttft = {name: 1000 * statistics.median(values) for name, values in firsts.items()}
    chunk = {name: 1e6 * statistics.median(values) for name, values in walls.items()}
    others = [name for name in asks if name != "routed"]
    return {
        "ttft_ms_p50": ttft,
        "ttft_ms_p99": {name: 1000 * sorted(values)[int(0.99 * (len(values) - 1))] for name, values in firsts.items()},
        "us_per_chunk": chunk,
        "added_ttft_ms": {name: ttft["routed"] - ttft[name] for name in others},
        "added_us_per_chunk": {name: chunk["routed"] - chunk[name] for name in others},
    }


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,8,64")
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=0, help="by each stream and round; 0: as many as make 64")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--try", action="store_true", dest="trying", help="do not write the result")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.chunks))
        return
    with tempfile.TemporaryDirectory() as home:
        os.environ["EDGEAI_HOME"] = home
        server = subprocess.Popen(
            [sys.executable, __file__, "--serve", "--chunks", str(options.chunks)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            results = measured(url, Path(home), options)
        finally:
            server.kill()
            server.wait()
    measure.save("router", results, keep=not options.trying)


def measured(url: str, home: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the comparison for each number of streams."""
    from edgeai.config import CloudSettings, Config, RoutingSettings, Timeouts
    from edgeai.engines.cloud import CloudEngine, Endpoint
    from edgeai.engines.fake import FakeEngine
    from edgeai.routing.ledger import Ledger
    from edgeai.routing.local import LocalModel
    from edgeai.routing.router import Router
    from edgeai.routing.surroundings import Surroundings

    cloud = CloudSettings(name="loop", base_url=url, model="m")
    config = Config(cloud=(cloud,), routing=RoutingSettings(policy="cloud-first"))
    engine = CloudEngine([Endpoint(cloud, Timeouts())])
    ledger = Ledger(home / "ledger.sqlite3")
    local = LocalModel.loaded_already("fake", FakeEngine(context=4096))
    router = Router(Surroundings(config, local, ledger=ledger))
    asks = {"httpx2": bare(url, "m"), "engine": of_engine(engine), "routed": of_engine(router)}
    slow = replace(cloud, model="paced")
    slow_engine = CloudEngine([Endpoint(slow, Timeouts())])
    slow_router = Router(Surroundings(replace(config, cloud=(slow,)), local, ledger=ledger))
    paced = {"httpx2": bare(url, "paced"), "engine": of_engine(slow_engine), "routed": of_engine(slow_router)}
    found: dict[str, Any] = {"chunks": options.chunks, "rounds": options.rounds}
    for streams in map(int, options.streams.split(",")):
        requests = options.requests or max(1, 64 // streams)
        found[f"{streams} streams"] = compare(asks, paced, streams, options.rounds, requests, options.chunks)
    for opened in (router, slow_router, engine, slow_engine):
        opened.close()
    return found


if __name__ == "__main__":
    main()
