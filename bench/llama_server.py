"""llama-server as a peer: started on a free port of this machine, asked as its own clients ask it, stopped at the end."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import peers

from edgeai.evaluation.streams import Answer

HOST = "127.0.0.1"
START_S = 60.0
DECODES = ("-fa", "auto", "--no-ui", "--log-disable")


class LlamaServer:
    """A running llama-server. `flags` are those it was started with beside the model."""

    def __init__(self, port: int, flags: Sequence[str], pid: int) -> None:
        self.port, self.flags, self.pid = port, tuple(flags), pid

    def ask(self, prompt: str, tokens: int, **options: Any) -> Callable[[Answer, float], None]:
        """Return what reads the greedy completion of PROMPT, exactly TOKENS long, into an Answer, as fast as it comes."""
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "stream": True, **options}

        def read(answer: Answer, began: float) -> None:
            connection = http.client.HTTPConnection(HOST, self.port, timeout=600)
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"llama-server answers {response.status}: {response.read(400)!r}")
            for line in response:
                if line.startswith(b"data: "):
                    take(json.loads(line[6:]), answer, time.perf_counter() - began)
            connection.close()

        return read


def take(event: Mapping[str, Any], answer: Answer, now_s: float) -> None:
    """Note what EVENT of the stream says."""
    if event.get("content"):
        answer.pieces.append(now_s)
    if event.get("stop"):
        answer.tokens = event["tokens_predicted"]
        answer.prompt_tokens = event["tokens_evaluated"]
        answer.cached_tokens = event.get("tokens_cached", 0)


@contextlib.contextmanager
def llama_server(model: Path, *flags: str) -> Iterator[LlamaServer]:
    """Run llama-server with MODEL and FLAGS, ready to answer, for as long as the block takes."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [
        str(peers.llama_tool("llama-server")),
        "-m",
        str(model),
        "--host",
        HOST,
        "--port",
        str(port),
        *DECODES,
        *flags,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(process, port)
        yield LlamaServer(port, flags, process.pid)
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Return when the server says that it is healthy. Raises RuntimeError when it ends or takes too long."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(HOST, port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"llama-server did not start: exit code {process.poll()}")
