"""What `edgeai convert --to` may say: one format, or several of the same model, each with a quant type of its own."""

from __future__ import annotations

from collections.abc import Callable

import click

from edgeai.cli.bounds import given
from edgeai.errors import UsageError

__all__ = ["TARGETS", "TargetsParam", "check_options", "quants_for"]

TARGETS = ("gguf", "onnx", "hf")


class TargetsParam(click.ParamType[tuple[str, ...]]):
    """Formats with commas between them."""

    name = "FORMAT[,FORMAT]"

    def convert(
        self, value: str | tuple[str, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the formats, each once."""
        if isinstance(value, tuple):
            return value
        found = tuple(dict.fromkeys(part.strip().lower() for part in value.split(",")))
        if wrong := [part for part in found if part not in TARGETS]:
            self.fail(f"{wrong[0]!r} is not one of {', '.join(map(repr, TARGETS))}.", param, ctx)
        if "hf" in found and len(found) > 1:
            self.fail("'hf' reads a GGUF file back, and goes with no other format.", param, ctx)
        return found


def quants_for(targets: tuple[str, ...], quant: str | None) -> dict[str, str | None]:
    """Return target → the quant type that QUANT names for it; None for a target that is to get its default.

    With several targets QUANT is a list, and each name must belong to one of them: q4_k_m to gguf, int4 to onnx; f16 and f32 to both.
    Raises UsageError.
    """
    if quant is None or len(targets) == 1:
        return dict.fromkeys(targets, quant)
    from converters.onnx.choices import quant_of
    from edgeai.quantization import DEFAULT_QUANT, is_quant

    knows: dict[str, Callable[[str], bool]] = {"gguf": is_quant, "onnx": lambda name: quant_of(name) is not None}
    found: dict[str, str | None] = dict.fromkeys(targets)
    fits: dict[str, list[str]] = {}
    for name in (part.strip() for part in quant.split(",")):
        fits[name] = [target for target in targets if knows[target](name)]
        if not fits[name]:
            raise UsageError(
                f"--quant {name!r} is no type of {' or '.join(targets)}",
                hint=f"as {DEFAULT_QUANT},int8 for --to gguf,onnx",
            )
    narrowest_first = sorted(fits.items(), key=lambda item: len(item[1]))
    for name, fitting in narrowest_first:
        still = [target for target in fitting if found[target] is None]
        if not still:
            raise UsageError(
                f"--quant {quant!r} has two types for {' and '.join(fitting)}", hint="convert once for each of them"
            )
        found |= dict.fromkeys(still, name)
    if missing := [target for target in targets if found[target] is None]:
        raise UsageError(
            f"--quant {quant!r} has no type for {missing[0]}", hint=f"as {DEFAULT_QUANT},int8 for --to gguf,onnx"
        )
    return found


OF_TARGETS = {
    **dict.fromkeys(("imatrix", "calibration_tokens", "imatrix_out", "dry_run", "requantize"), ("gguf",)),
    **dict.fromkeys(("base", "merge", "keep_failed", "allow_inexact_tokenizer"), ("gguf",)),
    **dict.fromkeys(("quant", "types", "max_kl", "eval_text", "calibration"), ("gguf", "onnx")),
    **dict.fromkeys(("target_bytes", "target_bpw", "min_top1", "rounds", "plot"), ("gguf", "onnx")),
    **dict.fromkeys(("min_cosine", "prefer", "only", "exclude", "recipe"), ("gguf",)),
    "dtype": ("hf",),
}
"""Option → the only targets that it belongs to."""


def check_options(targets: tuple[str, ...]) -> None:
    """Raise UsageError for an option that one of TARGETS would silently ignore."""
    for name, of in OF_TARGETS.items():
        other = [target for target in targets if target not in of]
        if other and (option := given(name)):
            raise UsageError(
                f"{option} belongs to --to {' or '.join(of)}, and the target is {other[0]!r}",
                hint=f"leave {option} out",
            )
    if len(targets) > 1 and (option := given("types")):
        raise UsageError(
            f"{option} names tensors, which each format has its own for", hint="convert one format at a time"
        )
