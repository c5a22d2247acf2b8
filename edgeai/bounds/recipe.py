"""`edgeai.quant.toml`: everything that decided a file whose types were chosen, so that the same bytes can be made again.

Its goal and its measured values say why; what a replay needs are the types, the calibration, and the sha256 of the source, and the last
line of defence is that of the tensors.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from converters.errors import WrongChoice
from converters.families import ModelPlan
from converters.quantmap import Override, is_matrix, layer_of, obey
from edgeai.bounds.goal import Goal
from edgeai.bounds.goals import check_goal, type_name
from edgeai.bounds.layers import bits
from edgeai.declared import File, number
from edgeai.errors import RecipeError

__all__ = ["FILE_NAME", "FORMAT", "Calibration", "QuantRecipe", "check_recipe", "read_recipe", "write_recipe"]

FILE_NAME = "edgeai.quant.toml"
FORMAT = 1
MAX_BYTES = 4 << 20
"""A model of 1000 layers with ten matrices each has 400 kB."""
MAX_NAME_CHARS = 256
MAX_ENTRIES = 1000
"""Of [measured] and [tools]."""
MOST_SHOWN = 3
"""Tensors that an error names."""
RECIPE = File("quant recipe", RecipeError)
SHA256 = re.compile(r"[0-9a-f]{64}")
TABLES = ("goal", "calibration", "measured", "tools", "types")
TEXTS = ("model", "source", "tensors_sha256")
HEAD = """\
# How the types of a file were chosen. `edgeai convert MODEL --recipe {name}` makes the same file again, byte for byte,
# with the tools named below.
"""
ABOUT = {
    "source": "sha256 over the lines `sha256  name` of the source's files, as sha256sum prints them",
    "tensors_sha256": "of all tensor data of the file, in its order",
    "goal": "What was wanted.",
    "calibration": "What the choice was made on. Without text_sha256 it was the bundled text.",
    "measured": "What came out, on text that was not used to choose. A replay does not read it.",
    "tools": "What it was made with. Other versions may give other bytes.",
    "types": "The type of each tensor; those that are not named here are F32.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the choice of types was made on.

    `tokens` of the text with the sha256 `text_sha256` (None: the bundled one), `generated` of them drawn from the model itself with
    `seed`. Sums depend on the number of `threads`, in their last bits. `feedback`: whether the encoder knew the errors of the columns
    before, with `damping` of their covariance; `kept_back`: whether the last part of the text was left out, to measure on,
    and `compared_sha256` that of a text that was given for it.
    """

    text_sha256: str | None = None
    tokens: int = number(1, 2**40)
    generated: int = number(0, 2**40)
    seed: int = number(0, 2**63 - 1)
    threads: int = number(1, 4096)
    feedback: bool
    damping: float = number(0.0, 1e6)
    kept_back: bool = False
    compared_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantRecipe:
    """How a file was made. `source` is one sha256 for the source's files (`converters.manifest.chain`), `types` tensor → type of all of its
    matrices, `tensors_sha256` that of all tensor data of the file, `tools` name → version, `measured` name → value."""

    model: str
    source: str
    goal: Goal
    calibration: Calibration
    types: Mapping[str, str]
    tensors_sha256: str
    tools: Mapping[str, str]
    measured: Mapping[str, float]


def write_recipe(recipe: QuantRecipe) -> str:
    """Return RECIPE as TOML; equal recipes give equal texts, whatever the order of their tables.

    Raises RecipeError for a recipe that `read_recipe` would refuse.
    """
    goal = {spec.name: value for spec in fields(Goal) if (value := getattr(recipe.goal, spec.name)) != spec.default}
    goal |= {name: tuple(map(str.lower, goal[name])) for name in ("only", "exclude") if name in goal}
    calibration = {
        spec.name: value
        for spec in fields(Calibration)
        if (value := getattr(recipe.calibration, spec.name)) is not None
    }
    parts = [
        HEAD.format(name=FILE_NAME) + line("format", FORMAT) + line("model", plain(recipe.model)),
        *(f"# {name}: {ABOUT[name]}\n" + line(name, getattr(recipe, name)) for name in TEXTS[1:]),
        table("goal", goal),
        table("calibration", calibration),
        table("measured", {name: float(recipe.measured[name]) for name in sorted(recipe.measured)}),
        table("tools", dict(sorted(recipe.tools.items()))),
        types_table(recipe.types),
    ]
    text = "\n".join(parts)
    parse(text, "that is to be written")
    return text


def types_table(types: Mapping[str, str]) -> str:
    """Return the table of TYPES, those of a type together, from the most bits to the fewest, each in the order of the layers."""

    def rank(name: str) -> tuple[float, str]:
        kind = type_name(types[name], f"types.{name}: the type", RecipeError)
        return -bits(kind), kind.lower()

    blocks = []
    for (_, kind), names in itertools.groupby(sorted(types, key=lambda name: (*rank(name), place(name))), key=rank):
        lines = [line(name, kind) for name in names]
        blocks.append(f"\n# {kind}: {len(lines)} tensor{'s' if len(lines) > 1 else ''}\n" + "".join(lines))
    return table("types", {}) + "".join(blocks)


def place(name: str) -> tuple[int, str]:
    """Return what the tensor NAME is sorted by: its layer, then its name."""
    return layer_of(name), name


def table(name: str, values: Mapping[str, Any]) -> str:
    """Return the table NAME of VALUES with its comment."""
    return f"# {ABOUT[name]}\n[{name}]\n" + "".join(line(key, value) for key, value in values.items())


def line(key: str, value: Any) -> str:
    """Return `KEY = VALUE` in TOML."""
    return f"{key if re.fullmatch('[A-Za-z0-9_-]+', key) else quoted(key)} = {toml(value)}\n"


def toml(value: Any) -> str:
    """Return VALUE in TOML."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, float):
        return repr(value)  # TOML has inf and nan as well, and reading says what is wrong with them
    return json.dumps(value)  # whole numbers and booleans are written alike


def quoted(text: str) -> str:
    """Return TEXT between quotation marks. TOML has the escapes of JSON, and wants one for DEL, too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def plain(text: str) -> str:
    """Return TEXT with escapes for halves of surrogate pairs, which no file of UTF-8 can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_recipe(path: Path) -> QuantRecipe:
    """Return the recipe in the file PATH, every value checked. Raises RecipeError for a file that cannot be read or is none."""
    shown = repr(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"the quant recipe {shown} cannot be read: {getattr(error, 'strerror', None) or error}",
            hint=f"name the {FILE_NAME} that lies beside a converted file",
        ) from error
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{shown} has more than {MAX_BYTES} bytes, and no quant recipe has", hint="name another file")
    try:
        text = data.decode("utf-8-sig")  # Windows' Notepad begins a file with a BOM
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"the quant recipe {shown} is not UTF-8 text: {error.reason} at byte {error.start}", hint="save it as UTF-8"
        ) from error
    return parse(text, shown)


def parse(text: str, shown: str) -> QuantRecipe:
    """Return the recipe in TEXT; SHOWN names it in errors."""
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:  # ValueError: a number of too many digits
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RecipeError(f"the quant recipe {shown} is not TOML: {why}", hint="mend that line") from error
    return recipe_of(values)


def recipe_of(values: dict[str, Any]) -> QuantRecipe:
    """Return the recipe of VALUES, as TOML has them; raises RecipeError for the first that is wrong."""
    known = ("format", *TEXTS, *TABLES)
    form = values.get("format")
    if "format" in values and (type(form) is not int or form != FORMAT):
        raise RecipeError(
            f"format {form!r} is not possible", hint=f"this version of edgeai reads format {FORMAT} of quant recipes"
        )
    for key in values:
        if key not in known:
            raise RECIPE.unknown(key, known)
    for key in known:
        if key not in values:
            wanted = f"[{key}]" if key in TABLES else f"{key} = …"
            raise RecipeError(f"the quant recipe has no {key}", hint=f"add {wanted}, or replay another recipe")
    calibration = RECIPE.build(Calibration, values["calibration"], "calibration")
    for name in ("text_sha256", "compared_sha256"):
        if (value := getattr(calibration, name)) is not None:
            check_sha256(value, f"calibration.{name}")
    return QuantRecipe(
        model=check_text(values["model"], "model"),
        source=check_sha256(values["source"], "source"),
        goal=check_goal(RECIPE.build(Goal, values["goal"], "goal"), RecipeError),
        calibration=calibration,
        types=check_types(values["types"]),
        tensors_sha256=check_sha256(values["tensors_sha256"], "tensors_sha256"),
        tools=dict(entries(values["tools"], "tools", check_text)),
        measured=dict(entries(values["measured"], "measured", check_number)),
    )


def entries(values: Any, where: str, check: Callable[[Any, str], Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of the table WHERE, each checked."""
    if not isinstance(values, dict):
        raise RecipeError(f"{where} {values!r:.80} is not a table", hint=f"write [{where}] and its lines below it")
    if len(values) > MAX_ENTRIES:
        raise RecipeError(f"{where} has {len(values)} lines, and {MAX_ENTRIES} are possible", hint="take some out")
    for key, value in values.items():
        check_text(key, f"a key of [{where}]")
        yield key, check(value, f"{where}.{key}")


def check_text(value: Any, name: str) -> str:
    """Return VALUE, the text NAME; raises RecipeError for what is none, for nothing, and for what is too long."""
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_NAME_CHARS:
        wrong(name, value, f"a text of 1 to {MAX_NAME_CHARS} characters")
    return str(value)


def check_number(value: Any, name: str) -> float:
    """Return VALUE, the number NAME; raises RecipeError for what is none, and for an infinite one."""
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:  # not of a number that is none, either
        wrong(name, value, "a finite number")
    return float(value)


def check_sha256(value: Any, name: str) -> str:
    """Return VALUE, the sha256 NAME; raises RecipeError for what is none."""
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        wrong(name, value, "a sha256: 64 digits of 0-9 and a-f")
    return str(value)


def check_types(values: Any) -> dict[str, str]:
    """Return tensor → type, as the tables of `converters` name them."""
    if not isinstance(values, dict) or not values:
        raise RecipeError(
            f"types {values!r:.80} is not a table of tensors", hint='write [types] and lines such as "blk.0.ffn_up.weight" = "q4_k"'
        )  # fmt: skip
    found = {}
    for tensor, kind in values.items():
        check_text(tensor, "a key of [types]")
        if not isinstance(kind, str):
            wrong(f"types.{tensor}", kind, "a type, such as q4_k")
        found[tensor] = type_name(kind, f"types.{tensor}: the type", RecipeError)
    return found


def wrong(name: str, value: Any, rule: str) -> NoReturn:
    """Raise RecipeError: the value of NAME is not what RULE says."""
    raise RecipeError(f"{name} {value!r:.80} is not possible", hint=f"{name} must be {rule}")


def check_recipe(recipe: QuantRecipe, plan: ModelPlan, source_sha256: str) -> None:
    """Raise RecipeError unless RECIPE is of the model PLAN, whose source is SOURCE_SHA256, names its matrices, and its types fit them."""
    if recipe.source != source_sha256:
        raise RecipeError(
            f"the quant recipe is of {recipe.model!r} with the sha256 {recipe.source!r}, and this source has {source_sha256!r}",
            hint="replay it on the folder that it was made from, or choose types for this one with `max_kl` or `target_bytes`",
        )  # fmt: skip
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    matrices = [tensor.name for tensor in plan.tensors if is_matrix(tensor)]
    if missing := [name for name in matrices if name not in recipe.types]:
        raise RecipeError(
            f"the quant recipe says nothing of {listed(missing)}", hint="add a line for each below [types]"
        )
    if extra := [name for name in recipe.types if name not in tensors]:
        raise RecipeError(
            f"the quant recipe names {listed(extra)}, which this model has not", hint="take that out of [types]"
        )
    for name, kind in recipe.types.items():
        tensor = tensors[name]
        if not is_matrix(tensor) and kind != "F32":
            raise RecipeError(
                f"types.{name} {kind.lower()!r} is not possible: that tensor always stays F32", hint=f"take {name!r} out of [types]"
            )  # fmt: skip
        try:
            obey(tensor, Override(pattern=name, type=kind))
        except WrongChoice as error:
            raise RecipeError(f"types: {error.message}", hint=error.hint) from error


def listed(names: list[str]) -> str:
    """Return the first of NAMES, and how many more there are."""
    more = len(names) - MOST_SHOWN
    shown = ", ".join(map(repr, names[:MOST_SHOWN]))
    return f"{shown} and {more} more" if more > 0 else shown
