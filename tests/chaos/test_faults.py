"""The table of faults is whole and names only what there is."""

from __future__ import annotations

from typing import get_args

import pytest

from edgeai.chaos.behaviours import BEHAVIOURS, PORTS
from edgeai.chaos.faults import FAULTS, HOOKS, Kind, Patch, chosen
from edgeai.errors import UsageError

VARIANTS = [variant for fault in FAULTS for variant in fault.variants]


def test_there_are_thirty_faults_each_with_variants() -> None:
    assert [fault.number for fault in FAULTS] == list(range(1, 31))
    assert all(fault.variants for fault in FAULTS)
    assert len({fault.name for fault in FAULTS}) == 30


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_names_only_what_there_is(fault: object) -> None:
    variants = [variant for each in FAULTS if each is fault for variant in each.variants]
    assert len({variant.name for variant in variants}) == len(variants)
    for variant in variants:
        assert variant.serve in BEHAVIOURS or variant.serve in PORTS, variant.name
        assert variant.hook is None or variant.hook in HOOKS, variant.name
        assert variant.patch is None or variant.patch in get_args(Patch), variant.name
        assert variant.expect, variant.name
        assert set(variant.expect) <= set(get_args(Kind)), variant.name


def test_every_hook_and_every_behaviour_is_used() -> None:
    assert {variant.hook for variant in VARIANTS} - {None} == set(HOOKS)
    assert not set(BEHAVIOURS) - {variant.serve for variant in VARIANTS}


def test_what_is_never_allowed_is_expected_nowhere() -> None:
    """No fault may end in text that is not what it seems."""
    assert not {"partial", "doubled", "foreign", "wrong tools"} & {
        kind for variant in VARIANTS for kind in variant.expect
    }


def test_faults_are_chosen_by_number_or_name() -> None:
    assert [fault.number for fault in chosen("8, 9,tls")] == [8, 9, 3]
    assert chosen(None) == FAULTS
    with pytest.raises(UsageError, match="'31'"):
        chosen("8,31")
