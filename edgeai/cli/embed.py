"""What `edgeai run` prints for an embedding model: the vector of the text."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from edgeai.cli.output import Output
from edgeai.model import Model

__all__ = ["embed_once"]


def embed_once(model: Model, text: str, out: Output) -> None:
    """Print the vector of TEXT as a JSON array on one line, or one JSON object."""
    began = time.perf_counter()
    count = len(model.tokenize(text, add_special=True))
    vector = [round(float(value), 8) for value in model.embed([text])[0]]
    took = time.perf_counter() - began
    if not out.as_json:
        out.answer(json.dumps(vector))
        return
    out.json(
        {
            "embedding": vector,
            "usage": {"prompt_tokens": count},
            "timings": {"load_s": round(model.engine.load_s, 4), "total_s": round(took, 4)},
            "model": model.artifact.name,
            "backend": model.plan.engine,
            "device": model.engine.backend,
            "plan": model.plan.to_dict(),
            "warnings": [asdict(notice) for notice in out.warned],
        }
    )
