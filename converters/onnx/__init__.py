"""ONNX: what files hold (`header`), and how models become files: any torch module through `export_module`.

Importing this imports nothing else: what runs a model needs neither torch nor onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converters.onnx.export import Exported, export_module

__all__ = ["Exported", "export_module"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from converters.onnx import export

        return getattr(export, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
