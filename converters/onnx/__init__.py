"""ONNX: any torch module → one file, quantized, checked. Importing this imports no torch and no onnx."""

from converters.onnx.export import Exported, export_module

__all__ = ["Exported", "export_module"]
