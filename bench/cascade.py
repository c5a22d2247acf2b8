"""What a cascade brings: SmolLM2-135M answers, and what it is least sure of goes to a stronger model; accuracy against hand-off rate.

    python bench/cascade.py [--model smollm2] [--questions 500] [--json OUT]

The questions have answers by construction (sums, products, capitals, countries, opposites, kinds of things), are answered freely in at most
32 tokens, and a small model gets about half of them right. **The stronger model is a stand-in**: it is right in 95 % of them, drawn from a
seed whatever the question, and no model at all. The confidence is fitted on one half of the questions, drawn from a seed, and every figure
is of the other half. Intervals: percentiles of 1000 resamples of its questions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from measure import save

import edgeai
from edgeai.routing.calibration import answer_all, as_arrays, figures
from edgeai.routing.confidence import FEATURES, fit
from edgeai.routing.metrics import accuracy_at, auroc, estimate
from edgeai.routing.questions import Match, Question
from edgeai.types import Message

SEED = 20260102
STRONG = 0.95
MAX_TOKENS = 32
SYSTEM = "Answer with one word or one number, and nothing else."
SUMS = 120
SHARES = [round(0.05 * step, 2) for step in range(21)]

CAPITALS = """
France Paris Germany Berlin Italy Rome Spain Madrid Portugal Lisbon Greece Athens Japan Tokyo China Beijing India Delhi Egypt Cairo Russia
Moscow Poland Warsaw Austria Vienna Hungary Budapest Norway Oslo Sweden Stockholm Finland Helsinki Denmark Copenhagen Ireland Dublin
Canada Ottawa Cuba Havana Peru Lima Chile Santiago Kenya Nairobi Turkey Ankara Iran Tehran Iraq Baghdad Thailand Bangkok Vietnam Hanoi
Australia Canberra Ukraine Kyiv Romania Bucharest Bulgaria Sofia Serbia Belgrade Croatia Zagreb Latvia Riga Estonia Tallinn Nepal
Kathmandu Morocco Rabat Ghana Accra Nigeria Abuja Ethiopia Addis_Ababa Senegal Dakar Colombia Bogota Ecuador Quito Bolivia Sucre Uruguay
Montevideo Syria Damascus Jordan Amman Qatar Doha Oman Muscat Armenia Yerevan Mongolia Ulaanbaatar Philippines Manila Indonesia Jakarta
"""
OPPOSITES = """
hot cold big small fast slow light dark high low early late rich poor strong weak young old hard soft wet dry full empty loud quiet thick
thin wide narrow deep shallow near far clean dirty happy sad brave cowardly sharp blunt smooth rough sweet sour heavy light open closed
begin end buy sell win lose love hate push pull arrive depart accept refuse remember forget increase decrease expand shrink ascend descend
ancient modern scarce abundant rigid flexible victory defeat generous stingy humble arrogant transparent opaque temporary permanent
"""
KINDS = {
    "fruit": "apple pear plum cherry mango peach grape lemon banana apricot fig papaya",
    "bird": "sparrow eagle owl robin parrot swan crow heron falcon pigeon finch stork",
    "fish": "salmon trout tuna cod herring shark carp pike eel sardine mackerel halibut",
    "tool": "hammer saw drill wrench chisel pliers screwdriver axe shovel rake file clamp",
    "metal": "iron copper silver gold zinc nickel tin lead platinum titanium cobalt aluminium",
    "instrument": "violin piano flute drum guitar trumpet cello harp oboe clarinet banjo tuba",
    "garment": "shirt coat sock glove hat scarf skirt jacket sweater apron vest trousers",
    "insect": "ant bee wasp beetle moth fly mosquito cricket termite flea dragonfly butterfly",
}


def questions(count: int, draw: random.Random) -> list[Question]:
    """Return at most COUNT different questions, as many of each kind as there are; no fact is asked for twice."""
    few = draw.sample(sums(), SUMS)
    pools = [draw.sample(pool, len(pool)) for pool in (few, products(), capitals(), countries(), opposites(), things())]
    turns = [one for turn in itertools.zip_longest(*pools) for one in turn if one is not None]
    return turns[:count]


def made(text: str, answer: str, match: Match = "contains") -> Question:
    """Return one question."""
    messages = (Message(role="system", content=SYSTEM), Message(role="user", content=text))
    return Question(messages=messages, answers=(answer,), match=match)


def sums() -> list[Question]:
    """Return sums."""
    return [
        made(f"What is {first} + {second}?", str(first + second), "number")
        for first in range(2, 31)
        for second in range(2, 10)
    ]


def products() -> list[Question]:
    """Return products."""
    return [
        made(f"What is {first} times {second}?", str(first * second), "number")
        for first in range(2, 13)
        for second in range(first, 13)
    ]


def pairs_of(words: str) -> list[tuple[str, str]]:
    """Return the pairs in WORDS, `_` as a space."""
    listed = [word.replace("_", " ") for word in words.split()]
    return list(zip(listed[::2], listed[1::2], strict=True))


def capitals() -> list[Question]:
    """Return questions for the capitals of one half of the countries."""
    return [made(f"What is the capital of {country}?", city) for country, city in pairs_of(CAPITALS)[::2]]


def countries() -> list[Question]:
    """Return questions for the countries of the other capitals."""
    return [made(f"{city} is the capital of which country?", country) for country, city in pairs_of(CAPITALS)[1::2]]


def opposites() -> list[Question]:
    """Return questions for opposites."""
    return [made(f"What is the opposite of '{word}'?", other) for word, other in pairs_of(OPPOSITES)]


def things() -> list[Question]:
    """Return questions for the kinds of things."""
    return [made(f"What kind of thing is a {word}?", kind) for kind, words in KINDS.items() for word in words.split()]


def kind_of(question: Question) -> str:
    """Return which kind a question is of, by the words in it."""
    names = {
        " + ": "sum",
        " times ": "product",
        "the capital of which": "country",
        "capital": "capital",
        "opposite": "opposite",
    }
    return next((name for mark, name in names.items() if mark in question.text), "kind of thing")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what WORK returns, and how long it took in seconds."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def main() -> None:
    """Answer, fit, judge and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--samples", type=int, default=0, help="answers beside each, whose agreement is a feature")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here; results/ is then left alone")
    arguments = parser.parse_args()
    draw = random.Random(SEED)  # noqa: S311 - a fixed seed is wanted
    asked = questions(arguments.questions, draw)
    draw.shuffle(asked)
    with edgeai.load(arguments.model, ctx=512) as model:
        answered, took_s = timed(lambda: answer_all(model, asked, samples=arguments.samples, max_tokens=MAX_TOKENS))
        file, quant = model.artifact.path.name, model.artifact.quant
    names = (*FEATURES, "agreed") if arguments.samples else FEATURES
    x, right = as_arrays(answered, names)
    strong = (np.random.default_rng(SEED).random(len(right)) < STRONG).astype(np.float64)
    half = len(right) // 2
    head = fit(x[:half], right[:half])
    probability = np.array([head.probability(row) for row in x[half:]])
    weak, other = right[half:], strong[half:]
    kinds = np.array([kind_of(question) for question in asked])
    by_kind = {str(kind): right[:half][kinds[:half] == kind].mean() for kind in np.unique(kinds)}
    kind_alone = np.array([by_kind[kind] for kind in kinds[half:]])
    ended = x[half:, FEATURES.index("stopped")] > 0
    found: dict[str, Any] = {
        "model": file,
        "quant": quant,
        "questions": {"fitted on": half, "measured on": len(weak)},
        "stronger model": f"a stand-in that is right in {STRONG:.0%}, drawn from a seed: no model",
        "seconds per answer": round(took_s / len(right), 4),
        **figures(probability, weak, other),
        "auroc of single features": {
            name: round(auroc(x[half:, at], weak), 4) for at, name in enumerate(names)
        },
        "answers that ended by themselves": {
            "count": int(ended.sum()),
            "right": round(float(weak[ended].mean()), 4),
            "auroc": asdict(estimate(auroc, probability[ended], weak[ended])),
        },
        "auroc of the kind of question alone": round(auroc(kind_alone, weak), 4),
        "weights": dict(zip(names, (round(weight, 3) for weight in head.weights), strict=True)),
        "curve": {
            "share": SHARES,
            "confidence": [round(accuracy_at(share, probability, weak, other), 4) for share in SHARES],
            "random": [round(float((1 - share) * weak.mean() + share * other.mean()), 4) for share in SHARES],
            "oracle": [round(accuracy_at(share, weak - other, weak, other), 4) for share in SHARES],
        },
        "right by kind": {str(kind): round(float(right[kinds == kind].mean()), 3) for kind in np.unique(kinds)},
    }  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    save("cascade", found, keep=arguments.json is None)


if __name__ == "__main__":
    main()
