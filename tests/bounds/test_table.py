"""The table of files and the map of types, as text."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.bounds.layers import layer_map
from edgeai.bounds.outcome import Point
from edgeai.bounds.table import WIDTH, cells, interval_text, rows, text, type_map, unit_of
from edgeai.evaluation.intervals import Interval
from tests.bounds.outcomes import PRESETS, interval, kinds, outcome


def test_files_stand_from_the_smallest_to_the_largest() -> None:
    found = rows(outcome(), rounds=True)
    assert [row.nbytes for row in found] == sorted(row.nbytes for row in found)
    assert {row.name for row in found} == {*PRESETS, "chosen", "round 1", "round 2", "round 3"}


def test_rounds_are_shown_only_when_asked_for() -> None:
    assert {row.name for row in rows(outcome())} == {*PRESETS, "chosen"}


def test_one_file_is_marked_and_it_is_the_chosen_one() -> None:
    assert [row.name for row in rows(outcome()) if row.chosen] == ["chosen"]
    marked = [line for line in text(outcome()).splitlines() if line.startswith("→ ")]
    assert [line.split()[1] for line in marked] == ["chosen"]


def test_a_preset_that_is_called_chosen_is_not_marked() -> None:
    found = outcome()
    other = replace(found, presets=(replace(found.chosen, nbytes=1),))
    assert [row.chosen for row in rows(other)] == [False, True]


def test_a_line_says_what_was_measured() -> None:
    measured = {"quality": interval(0.1614), "top1": interval(0.801), "p999": 6.4, "predicted": 0.13}
    found = outcome(presets=(Point(name="q4_0", nbytes=78_340_000, bpw=4.546, **measured),))
    assert cells(found)[:2] == [
        ["file", "size", "bits per weight", "mean KL, nats", "top-1", "p99.9", "predicted"],
        ["q4_0", "78.3 MB", "4.55", "0.161 (0.145 to 0.178)", "80.1%", "6.4", "0.13"],
    ]


def test_lines_end_at_one_column() -> None:
    lines = text(outcome()).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_columns_that_say_nothing_are_left_out() -> None:
    found = outcome()
    bare = replace(found, presets=(), rounds=(), chosen=replace(found.chosen, top1=None, p999=None, predicted=None))
    assert cells(bare)[0] == ["file", "size", "bits per weight", "mean KL, nats"]


def test_a_bound_on_top1_shows_its_interval() -> None:
    chosen = outcome().chosen
    assert chosen.top1 is not None
    with_ends = next(line for line in cells(outcome(min_top1=0.94)) if line[0] == "chosen")
    assert with_ends[4] == f"{chosen.top1.value:.1%} ({chosen.top1.low:.1%} to {chosen.top1.high:.1%})"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Interval(value=0.0189, low=0.0171, high=0.0207), "0.0189 (0.0171 to 0.0207)"),
        (Interval(value=0.0189, low=-math.inf, high=math.inf), "0.0189 (no interval)"),
        (Interval(value=math.nan, low=math.nan, high=math.nan), "nan (no interval)"),
        (None, "-"),
    ],
)
def test_an_interval_is_said_where_there_is_one(value: Interval | None, shown: str) -> None:
    assert interval_text(value) == shown


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (89_940_000, "89.9 MB"), (999_949_999, "999.9 MB"), (4_534_000_000, "4.53 GB")],
)  # fmt: skip
def test_a_size_has_the_unit_that_it_reads_well_in(nbytes: int, shown: str) -> None:
    assert unit_of(nbytes).text(nbytes) == shown


def test_all_sizes_of_a_table_have_one_unit() -> None:
    found = outcome(weights=1.5e9)
    assert {line[1].split()[1] for line in cells(found)[1:]} == {"MB"}


def test_the_map_says_runs_of_layers() -> None:
    types = {f"blk.{layer}.ffn_down.weight": "Q6_K" if layer < 4 else "Q4_K" for layer in range(12)}
    types |= {"token_embd.weight": "Q8_0", "blk.0.attn_q.weight": "Q4_K", "blk.0.attn_norm.weight": "F32"}
    assert type_map(outcome(kinds=types)).splitlines() == [
        "token_embd  q8_0",
        "attn_q      0 q4_k",
        "ffn_down    0-3 q6_k · 4-11 q4_k",
    ]


@given(st.integers(1, 90), st.booleans())
def test_the_map_is_narrow_and_says_every_layer(layers: int, tied: bool) -> None:
    types = kinds(layers, tied=tied)
    shown = type_map(outcome(kinds=types))
    assert all(len(line) <= WIDTH for line in shown.splitlines())
    found = layer_map(types)
    joined = [" ".join(block.split()) for block in _blocks(shown)]
    for part in found.parts:
        words = (
            next(block for block in joined if block.startswith(part.name + " ")).removeprefix(part.name).split(" · ")
        )
        said = {}
        for word in words:
            where, kind = word.split()
            first, _, last = where.partition("-")
            said |= dict.fromkeys(range(int(first), int(last or first) + 1), kind)
        assert said == part.kinds


def _blocks(shown: str) -> list[str]:
    blocks: list[str] = []
    for line in shown.splitlines():
        if line.startswith(" "):
            blocks[-1] += line
        else:
            blocks.append(line)
    return blocks


def test_a_file_without_matrices_has_an_empty_map() -> None:
    assert type_map(outcome(kinds={})) == ""
