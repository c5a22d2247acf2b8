"""What a proof adds to the outcome of a search."""

from __future__ import annotations

from dataclasses import replace

from edgeai.bounds.outcome import with_proof
from edgeai.evaluation.intervals import Interval
from edgeai.types import Report, Row
from tests.bounds.outcomes import outcome

PROOF = Report(
    rows=(
        Row(name="token ids", value="equal"),
        Row(name="mean KL on text, nats", value=0.012, limit="< 0.02", interval=(0.01, 0.014)),
        Row(name="first choice as torch", value=0.93, interval=(0.92, 0.94)),
    )
)


def test_a_file_that_the_search_did_not_measure_has_what_the_proof_measured() -> None:
    found = outcome()
    found = replace(found, chosen=replace(found.chosen, quality=None, top1=None))
    proved = with_proof(found, PROOF).chosen
    assert proved.quality == Interval(value=0.012, low=0.01, high=0.014)
    assert proved.top1 == Interval(value=0.93, low=0.92, high=0.94)


def test_what_the_search_measured_stays() -> None:
    found = outcome()
    assert found.chosen.quality is not None
    assert with_proof(found, PROOF) is found


def test_a_proof_without_text_adds_nothing() -> None:
    found = outcome()
    found = replace(found, chosen=replace(found.chosen, quality=None))
    assert with_proof(found, Report(rows=PROOF.rows[:1])).chosen.quality is None
