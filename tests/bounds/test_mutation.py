"""Types that are chosen by the sensitivities of other tensors make a worse file of the same size: the choice does something."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgeai.bounds import aim as module
from edgeai.bounds.aim import Aim
from edgeai.bounds.goal import Goal
from edgeai.conversion import Conversion
from edgeai.evaluation import passport
from edgeai.pipeline import convert
from edgeai.types import Row
from tests.checkpoints import InProcessTorch
from tests.curvatures import InProcessCurvature

TINY = Path(__file__).parents[2] / "models" / "tiny"
ONLY = ("Q2_K", "Q3_K", "Q4_0", "Q5_0", "Q6_K", "Q8_0")
BYTES = 800_000
Costs = Mapping[str, Mapping[str, float]]
Order = Callable[[list[str]], list[str]]


def permuted(order: Order) -> Callable[..., Costs]:
    """Return `table_of` with the cost of a weight taken from another tensor; ORDER gets the names from the most sensitive on."""
    plain = module.table_of

    def table(plan: Any, *rest: Any) -> Costs:
        found = plain(plan, *rest)
        size = {tensor.name: tensor.elements for tensor in plan.tensors}
        names = sorted(found, key=lambda name: (-found[name]["Q4_0"] / size[name], name))
        return {
            name: {kind: found[other][kind] / size[other] * size[name] for kind in found[name]}
            for name, other in zip(names, order(names), strict=True)
        }

    return table


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Order | None], Conversion]:
    """Return models/tiny in a file of `BYTES`, its types chosen by the costs in ORDER; None: the right ones."""
    root = tmp_path_factory.mktemp("mutants")

    def make(order: Order | None) -> Conversion:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EDGEAI_HOME", str(root / "home"))
            patch.setattr(passport, "Child", InProcessTorch)
            patch.setattr("converters.curvature.Child", InProcessCurvature)
            if order is not None:
                patch.setattr(module, "table_of", permuted(order))
            goal = Goal(target_bytes=BYTES, only=ONLY)
            return convert(TINY, root / "file.gguf", aim=Aim(goal=goal, tokens=2048), force=True)

    return make


@pytest.fixture(scope="module")
def right(made: Callable[[Order | None], Conversion]) -> Conversion:
    return made(None)


def kl(conversion: Conversion) -> Row:
    """Return the mean KL to the source on text that nothing was chosen on."""
    (row,) = [row for row in conversion.report.rows if row.name == "mean KL on text, nats"]
    return row


def shuffled(seed: int) -> Order:
    return lambda names: random.Random(seed).sample(names, len(names))


@pytest.mark.parametrize(
    "order", [lambda names: names[::-1], shuffled(1), shuffled(2)], ids=["reversed", "shuffled 1", "shuffled 2"]
)
def test_types_chosen_by_shuffled_sensitivities_make_a_worse_file_of_the_same_size(
    made: Callable[[Order | None], Conversion], right: Conversion, order: Order
) -> None:
    wrong = made(order)
    assert abs(wrong.bytes - right.bytes) < 0.02 * BYTES
    assert right.bytes <= BYTES
    good, bad = kl(right), kl(wrong)
    assert isinstance(good.value, float)
    assert isinstance(bad.value, float)
    assert bad.value > 1.2 * good.value
    assert good.interval is not None
    assert bad.interval is not None
    assert bad.interval[0] > good.interval[1]


def test_the_mutation_changes_nothing_but_the_choice(
    made: Callable[[Order | None], Conversion], right: Conversion
) -> None:
    assert made(list).sha256 == right.sha256
