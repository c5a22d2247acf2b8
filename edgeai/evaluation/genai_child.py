"""The child process that runs a folder in onnxruntime-genai: continues texts, and computes the logits of prompts.

Run by `converters.child` as a script: it imports nothing of this project. argv[1] is a folder with request.json. What is known before the
logits goes to facts.json, the logits of each prompt to a file of their own as far as stdin grants prompts, an error to answer.json.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any


class Model:
    """The model of a folder, on the CPU."""

    def __init__(self, request: dict[str, Any]) -> None:
        import onnxruntime_genai as og

        og.disable_telemetry_events()
        self.og = og
        config = og.Config(request["model"])
        config.clear_providers()
        options = {"intra_op_num_threads": request["threads"], "log_severity_level": 4}
        search = {"num_beams": 1, "num_return_sequences": 1, "chunk_size": 0}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}, "search": search}))
        self.model = og.Model(config)
        self.context, self.window, self.part = request["context"], request["window"], request["part"]

    def generator(self, tokens: int) -> Any:
        """Return a generator for TOKENS tokens."""
        params = self.og.GeneratorParams(self.model)
        room = max(tokens, self.window + self.part if self.window else 0) + 1
        params.set_search_options(max_length=min(self.context, room), batch_size=1)
        return self.og.Generator(self.model, params)

    def logits(self, prompt: dict[str, Any], file: Any) -> None:
        """Write the logits of PROMPT to FILE, read as the engine reads prompts, and token by token where it says so."""
        import numpy as np

        ids, prefill = prompt["ids"], prompt["prefill"]
        generator = self.generator(len(ids))
        whole = prefill or len(ids)
        parts = [ids[at : min(at + self.part, whole)] for at in range(0, whole, self.part)]
        for part in [*parts, *([token] for token in ids[whole:])]:
            generator.append_tokens(np.asarray(part, np.int32))
            generator.get_output("logits")[0].astype(np.float32).tofile(file)

    def continuation(self, item: dict[str, Any]) -> list[int]:
        """Return the likeliest continuation of item["ids"], up to item["count"] tokens or one of item["stop"], which is the last."""
        import numpy as np

        generator = self.generator(len(item["ids"]) + item["count"])
        found: list[int] = []
        for at in range(0, len(item["ids"]), self.part):
            generator.append_tokens(np.asarray(item["ids"][at : at + self.part], np.int32))
        while True:
            found.append(int(generator.get_logits().reshape(-1).argmax()))
            if len(found) >= item["count"] or found[-1] in item["stop"]:
                return found
            generator.append_tokens(np.asarray(found[-1:], np.int32))


def turns() -> Any:
    """Return a function that waits until the parent grants one more prompt; it grants some at a time on stdin."""
    left = 0

    def wait() -> None:
        nonlocal left
        while not left:
            line = sys.stdin.readline()
            if not line:
                sys.exit(0)
            left = int(line)
        left -= 1

    return wait


def main() -> None:
    """Answer the request in the folder argv[1]."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: a parent that was killed takes this process along
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text())
    place, answer = Path(request["folder"]), dict[str, Any]()
    try:
        model = Model(request)
        facts = {"continued": [model.continuation(item) for item in request["continue"]]}
        (place / "facts.json").write_text(json.dumps(facts))
        print("facts", flush=True)
        wait = turns()
        for index, prompt in enumerate(request["prompts"]):
            wait()
            with (place / f"{index}.f32").open("wb") as file:
                model.logits(prompt, file)
            print("ready", index, flush=True)
    except (ImportError, RuntimeError, ValueError, MemoryError) as error:
        answer = {"error": " ".join(str(error).split()) or type(error).__name__, "log": []}
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the parent got the same Ctrl-C and says what there is to say
        sys.exit(130)
