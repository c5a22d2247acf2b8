"""The options that say how a model is loaded: the fields of options.LoadOptions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from edgeai.errors import UsageError
from edgeai.options import DeviceChoice, KVType, Numerics

__all__ = ["MACHINE_OPTIONS", "load_options"]

MACHINE_OPTIONS = (
    "device", "gpu_layers", "ctx", "kv_type", "threads", "threads_batch", "lora", "draft", "numerics",
    "deterministic", "isolated", "pull",
)  # fmt: skip
"""The options of `load_options` in the order of the help, and `pull`, which the command has itself."""


def load_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and pass the command one `load: dict` of those that were given, for LoadOptions, and `lora`: names → scales."""

    @click.option("--device", type=click.Choice(get_args(DeviceChoice)), default="auto", show_default=True)
    @click.option("--gpu-layers", type=int, help="Layers on the GPU.  [default: as many as fit]")
    @click.option("--ctx", type=int, help="Context in tokens, the answer included.")
    @click.option(
        "--kv-type",
        type=click.Choice(get_args(KVType)),
        help="Type of the KV cache; q8_0 takes half the memory of f16.",
    )
    @click.option("--threads", type=int, help="CPU threads.")
    @click.option("--threads-batch", type=int, help="CPU threads that read the prompt.  [default: --threads]")
    @click.option("--lora", multiple=True, metavar="PATH[=SCALE]", help="Add a LoRA adapter in GGUF; may be repeated.")
    @click.option("--draft", metavar="MODEL", help="Let this small model guess ahead; see --numerics.")
    @click.option(
        "--numerics",
        type=click.Choice(get_args(Numerics)),
        help="fast lets speed-ups round differently, which changes some greedy answers.  [default: exact]",
    )
    @click.option("--deterministic", is_flag=True, help="The answer depends on nothing else that runs; slower.")
    @click.option("--isolated", is_flag=True, help="Run the model in a process of its own, which may crash.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, lora: tuple[str, ...], draft: str | None, deterministic: bool, isolated: bool, **kwargs: Any
    ) -> Any:
        names = ("device", "gpu_layers", "ctx", "kv_type", "threads", "threads_batch", "numerics")
        load = {name: value for name in names if (value := kwargs.pop(name)) is not None}
        load |= {name: True for name, given in (("deterministic", deterministic), ("isolated", isolated)) if given}
        if draft is not None:
            load["draft"] = _find(draft)
        adapters = [_adapter(text) for text in lora]
        if adapters:
            load["adapters"] = {name: path for name, path, _ in adapters}
            if len(load["adapters"]) < len(adapters):
                raise UsageError(
                    "two --lora files have the same name", hint="a name may be given once: rename one file"
                )
        return command(*args, load=load, lora=tuple((name, scale) for name, _, scale in adapters), **kwargs)

    return wrapped


def _adapter(text: str) -> tuple[str, Path, float]:
    """Return name, path and scale of `PATH[=SCALE]`; a path that is there may have a `=` in it."""
    ref, mark, number = text.rpartition("=")
    if not mark or Path(text).exists():
        ref, number = text, "1"
    try:
        scale = float(number)
    except ValueError as error:
        raise UsageError(f"--lora {text!r} has no scale after '='", hint="--lora adapter.gguf=0.5") from error
    path = _find(ref)
    return path.stem, path, scale


def _find(ref: str) -> Path:
    from edgeai.store import Store

    return Store.open().find(ref)
