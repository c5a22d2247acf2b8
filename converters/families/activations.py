"""Names of activations in configurations, and how far the runtime's own way of computing them is from the source's.

libggml computes GELU by the approximation with a hyperbolic tangent, on the CPU through a table in half precision (`ggml_gelu` and
GGML_GELU_FP16 in ggml-cpu/vec.h). Source of the names: `ACT2FN` in transformers' activations.py.
"""

from __future__ import annotations

__all__ = ["EXACT_GELU", "GELU_TABLE_NMSE", "GELU_TANH_NMSE", "TANH_GELU"]

TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate")
EXACT_GELU = ("gelu", "gelu_python")
"""With the error function: at most 5e-4 from the approximation."""
GELU_TABLE_NMSE = 1e-7
"""What the table adds per layer at most; MiniLM-L6: 3e-8, in torch with the same roundings."""
GELU_TANH_NMSE = 1e-6
"""What table and approximation add per layer at most where the source means the exact function; MiniLM-L6: 3.5e-7."""
