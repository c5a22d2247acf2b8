"""Several folders of one ONNX language model compared with torch on the same text, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from edgeai.evaluation.heldout import HeldOut
from edgeai.evaluation.onnx_language import OnnxProof

__all__ = ["OnnxHeldOut"]


@dataclass(slots=True)
class OnnxHeldOut(HeldOut, OnnxProof):
    """The comparison of folders for onnxruntime-genai: what is run as the proof of one runs it, on windows of text alone."""
