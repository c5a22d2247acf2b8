"""edgeai: from full-precision weights to an answer on a laptop, with proof.

    with edgeai.load("smollm2") as m:
        print(m.chat([{"role": "user", "content": "Hi"}], max_tokens=64).text)

The names below are imported when they are first used, so `import edgeai` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeai import errors
    from edgeai.aio import AsyncModel, AsyncStream
    from edgeai.config import Config, read_config
    from edgeai.model import Model, Stream, load
    from edgeai.routing.router import Router
    from edgeai.types import (
        Chunk,
        Completion,
        Constraint,
        GenerationConfig,
        Message,
        Notice,
        Prediction,
        RouteOptions,
        ToolCall,
    )

__version__ = "0.1.0"

__all__ = [
    "AsyncModel",
    "AsyncStream",
    "Chunk",
    "Completion",
    "Config",
    "Constraint",
    "GenerationConfig",
    "Message",
    "Model",
    "Notice",
    "Prediction",
    "RouteOptions",
    "Router",
    "Stream",
    "ToolCall",
    "__version__",
    "errors",
    "load",
    "read_config",
]

_HOMES = {
    "AsyncModel": "edgeai.aio",
    "AsyncStream": "edgeai.aio",
    "Config": "edgeai.config",
    "Model": "edgeai.model",
    "Router": "edgeai.routing.router",
    "Stream": "edgeai.model",
    "load": "edgeai.model",
    "read_config": "edgeai.config",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgeai' has no attribute {name!r}")
    if name == "errors":
        return importlib.import_module("edgeai.errors")
    return getattr(importlib.import_module(_HOMES.get(name, "edgeai.types")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
