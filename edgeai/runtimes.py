"""What of onnxruntime is installed, and what keeps it from the GPU that is here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from edgeai.errors import EdgeAIError

__all__ = ["onnx_facts", "onnx_problems"]

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
GENAI = ("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime-genai-directml")
"""Packages that are the same module for other devices: only one of each may be installed."""
PROVIDERS = "ExecutionProvider"


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Return those of the packages NAMES that are installed, with their versions."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def onnx_facts() -> dict[str, str]:
    """Return the section about onnxruntime."""
    return {
        "onnxruntime": _words(installed(RUNTIMES), providers()),
        "onnxruntime-genai": _words(installed(GENAI), genai_devices()),
    }


def _words(packages: Mapping[str, str], devices: tuple[str, ...] | str) -> str:
    if not packages:
        return "not installed"
    named = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f"{named}: {devices}" if isinstance(devices, str) else f"{named}, with {', '.join(devices)}"


def providers() -> tuple[str, ...] | str:
    """Return the providers of onnxruntime, or why it does not load."""
    try:
        import onnxruntime

        return tuple(name.removesuffix(PROVIDERS) for name in onnxruntime.get_available_providers())
    except (ImportError, OSError, AttributeError) as error:  # two packages of it leave a module in pieces
        return f"does not load: {error}"


def genai_devices() -> tuple[str, ...] | str:
    """Return the devices that onnxruntime-genai was built for, or why it does not load."""
    from edgeai.engines.genai.runtime import has_provider

    try:
        return ("CPU", *(name for name, key in (("CUDA", "cuda"), ("DirectML", "dml")) if has_provider(key)))
    except EdgeAIError as error:
        return error.message


def onnx_problems(gpus: tuple[Any, ...]) -> list[tuple[str, str]]:
    """Return (what is wrong, the command that mends it); GPUS are those of NVIDIA that are here."""
    found: list[tuple[str, str]] = []
    for names in (RUNTIMES, GENAI):
        have = installed(names)
        if len(have) > 1:
            what = f"{' and '.join(have)} are installed, which are the same module: one has written over the other"
            found.append((what, f"pip uninstall -y {' '.join(have)} && pip install {list(have)[-1]}"))
    for what, devices, names, wanted in (
        ("classifiers and embedding models in ONNX", providers(), RUNTIMES, "onnxruntime-gpu"),
        ("language models in ONNX", genai_devices(), GENAI, "onnxruntime-genai-cuda"),
    ):
        have = installed(names)
        if isinstance(devices, str):
            mend = f"pip install --force-reinstall {next(iter(have), names[0])}"
            found.append((f"{what} do not run: {devices}", mend))
        elif gpus and "CUDA" not in devices and len(have) < 2:
            gone = f"pip uninstall -y {' '.join(have)} && " if have else ""
            found.append(
                (f"{what} run on the CPU: {', '.join(have)} was built without CUDA", f"{gone}pip install {wanted}")
            )
    return found
