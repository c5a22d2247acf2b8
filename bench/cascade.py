"""What a cascade brings: SmolLM2-135M answers, and what it is least sure of goes to a stronger model; accuracy against hand-off rate.

    python bench/cascade.py [--model smollm2] [--questions 800] [--json OUT]

The questions have answers by construction (sums, comparisons, capitals, opposites, kinds of things, the odd one out), each with four choices
that the answer is held to, and a small model gets about half of them right. **The stronger model is a stand-in**: it is right in 95 % of
them, drawn from a seed whatever the question, and no model at all. The confidence is fitted on one half of the questions, drawn from a seed,
and every figure is of the other half. Intervals: percentiles of 1000 resamples of its questions.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import save

import edgeai
from edgeai.routing.calibration import answer_all, as_arrays, figures
from edgeai.routing.confidence import FEATURES, fit
from edgeai.routing.metrics import accuracy_at, auroc
from edgeai.routing.questions import Question
from edgeai.types import Message

SEED = 20260102
STRONG = 0.95
SHARES = [round(0.05 * step, 2) for step in range(21)]

CAPITALS = [
    "France",
    "Paris",
    "Germany",
    "Berlin",
    "Italy",
    "Rome",
    "Spain",
    "Madrid",
    "Portugal",
    "Lisbon",
    "Greece",
    "Athens",
    "Japan",
    "Tokyo",
    "China",
    "Beijing",
    "India",
    "Delhi",
    "Egypt",
    "Cairo",
    "Russia",
    "Moscow",
    "Poland",
    "Warsaw",
    "Austria",
    "Vienna",
    "Hungary",
    "Budapest",
    "Norway",
    "Oslo",
    "Sweden",
    "Stockholm",
    "Finland",
    "Helsinki",
    "Denmark",
    "Copenhagen",
    "Ireland",
    "Dublin",
    "Canada",
    "Ottawa",
    "Cuba",
    "Havana",
    "Peru",
    "Lima",
    "Chile",
    "Santiago",
    "Kenya",
    "Nairobi",
    "Turkey",
    "Ankara",
    "Iran",
    "Tehran",
    "Iraq",
    "Baghdad",
    "Thailand",
    "Bangkok",
    "Vietnam",
    "Hanoi",
    "Australia",
    "Canberra",
    "Ukraine",
    "Kyiv",
    "Romania",
    "Bucharest",
    "Bulgaria",
    "Sofia",
    "Serbia",
    "Belgrade",
    "Croatia",
    "Zagreb",
    "Latvia",
    "Riga",
    "Estonia",
    "Tallinn",
    "Nepal",
    "Kathmandu",
    "Morocco",
    "Rabat",
    "Ghana",
    "Accra",
    "Nigeria",
    "Abuja",
    "Ethiopia",
    "Addis_Ababa",
    "Senegal",
    "Dakar",
    "Colombia",
    "Bogota",
    "Ecuador",
    "Quito",
    "Bolivia",
    "Sucre",
    "Uruguay",
    "Montevideo",
    "Syria",
    "Damascus",
    "Jordan",
    "Amman",
    "Qatar",
    "Doha",
    "Oman",
    "Muscat",
    "Armenia",
    "Yerevan",
    "Mongolia",
    "Ulaanbaatar",
    "Philippines",
    "Manila",
    "Indonesia",
    "Jakarta",
]
OPPOSITES = [
    "hot",
    "cold",
    "big",
    "small",
    "fast",
    "slow",
    "light",
    "dark",
    "high",
    "low",
    "early",
    "late",
    "rich",
    "poor",
    "strong",
    "weak",
    "young",
    "old",
    "hard",
    "soft",
    "wet",
    "dry",
    "full",
    "empty",
    "loud",
    "quiet",
    "thick",
    "thin",
    "wide",
    "narrow",
    "deep",
    "shallow",
    "near",
    "far",
    "clean",
    "dirty",
    "happy",
    "sad",
    "brave",
    "cowardly",
    "sharp",
    "blunt",
    "smooth",
    "rough",
    "sweet",
    "sour",
    "heavy",
    "light",
    "open",
    "closed",
    "begin",
    "end",
    "buy",
    "sell",
    "win",
    "lose",
    "love",
    "hate",
    "push",
    "pull",
    "arrive",
    "depart",
    "accept",
    "refuse",
    "remember",
    "forget",
    "increase",
    "decrease",
    "expand",
    "shrink",
    "ascend",
    "descend",
    "ancient",
    "modern",
    "scarce",
    "abundant",
    "rigid",
    "flexible",
    "victory",
    "defeat",
    "generous",
    "stingy",
    "humble",
    "arrogant",
    "transparent",
    "opaque",
    "temporary",
    "permanent",
]
KINDS = {
    "fruit": [
        "apple",
        "pear",
        "plum",
        "cherry",
        "mango",
        "peach",
        "grape",
        "lemon",
        "banana",
        "apricot",
        "fig",
        "papaya",
    ],
    "bird": [
        "sparrow",
        "eagle",
        "owl",
        "robin",
        "parrot",
        "swan",
        "crow",
        "heron",
        "falcon",
        "pigeon",
        "finch",
        "stork",
    ],
    "fish": [
        "salmon",
        "trout",
        "tuna",
        "cod",
        "herring",
        "shark",
        "carp",
        "pike",
        "eel",
        "sardine",
        "mackerel",
        "halibut",
    ],
    "tool": [
        "hammer",
        "saw",
        "drill",
        "wrench",
        "chisel",
        "pliers",
        "screwdriver",
        "axe",
        "shovel",
        "rake",
        "file",
        "clamp",
    ],
    "metal": [
        "iron",
        "copper",
        "silver",
        "gold",
        "zinc",
        "nickel",
        "tin",
        "lead",
        "platinum",
        "titanium",
        "cobalt",
        "aluminium",
    ],
    "instrument": [
        "violin",
        "piano",
        "flute",
        "drum",
        "guitar",
        "trumpet",
        "cello",
        "harp",
        "oboe",
        "clarinet",
        "banjo",
        "tuba",
    ],
    "garment": [
        "shirt",
        "coat",
        "sock",
        "glove",
        "hat",
        "scarf",
        "skirt",
        "jacket",
        "sweater",
        "apron",
        "vest",
        "trousers",
    ],
    "insect": [
        "ant",
        "bee",
        "wasp",
        "beetle",
        "moth",
        "fly",
        "mosquito",
        "cricket",
        "termite",
        "flea",
        "dragonfly",
        "butterfly",
    ],
}


def questions(count: int, draw: random.Random) -> list[Question]:
    """Return COUNT different questions, as many of each kind as can be."""
    made: dict[str, Question] = {}
    makers = (add, multiply, compare, capital, opposite, kind_of, odd_one)
    while len(made) < count:
        text, answer, choices = makers[len(made) % len(makers)](draw)
        shuffled = draw.sample(choices, len(choices))
        text = f"{text} Choose one: {', '.join(shuffled)}."
        message = Message(role="user", content=text)
        made[text] = Question(messages=(message,), answers=(answer,), match="choice", choices=tuple(shuffled))
    return list(made.values())


Made = tuple[str, str, list[str]]


def near(value: int, draw: random.Random) -> list[str]:
    """Return VALUE and three numbers close to it."""
    others = draw.sample([value + step for step in (-10, -3, -2, -1, 1, 2, 3, 10) if value + step >= 0], 3)
    return [str(value), *map(str, others)]


def add(draw: random.Random) -> Made:
    """Make a sum."""
    first, second = draw.randint(2, 60), draw.randint(2, 39)
    return f"What is {first} + {second}?", str(first + second), near(first + second, draw)


def multiply(draw: random.Random) -> Made:
    """Make a product."""
    first, second = draw.randint(2, 12), draw.randint(2, 12)
    return f"What is {first} times {second}?", str(first * second), near(first * second, draw)


def compare(draw: random.Random) -> Made:
    """Make a question for the largest of four numbers."""
    four = draw.sample(range(10, 999), 4)
    return "Which number is the largest?", str(max(four)), [str(number) for number in four]


def capital(draw: random.Random) -> Made:
    """Make a question for a capital."""
    names = [name.replace("_", " ") for name in CAPITALS]
    at = draw.randrange(len(names) // 2)
    others = draw.sample([city for city in names[1::2] if city != names[2 * at + 1]], 3)
    return f"What is the capital of {names[2 * at]}?", names[2 * at + 1], [names[2 * at + 1], *others]


def opposite(draw: random.Random) -> Made:
    """Make a question for an opposite."""
    at = draw.randrange(len(OPPOSITES) // 2)
    word, answer = OPPOSITES[2 * at], OPPOSITES[2 * at + 1]
    others = draw.sample([other for other in OPPOSITES if other not in (word, answer)], 3)
    return f"Which word means the opposite of '{word}'?", answer, [answer, *others]


def kind_of(draw: random.Random) -> Made:
    """Make a question for the kind of a thing."""
    kind = draw.choice(list(KINDS))
    others = draw.sample([other for other in KINDS if other != kind], 3)
    return f"What kind of thing is '{draw.choice(KINDS[kind])}'?", kind, [kind, *others]


def odd_one(draw: random.Random) -> Made:
    """Make a question for the odd one out."""
    kind, other = draw.sample(list(KINDS), 2)
    odd = draw.choice(KINDS[other])
    return "Which word does not belong with the others?", odd, [odd, *draw.sample(KINDS[kind], 3)]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what WORK returns, and how long it took in seconds."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def main() -> None:
    """Answer, fit, judge and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--questions", type=int, default=800)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here; results/ is then left alone")
    arguments = parser.parse_args()
    draw = random.Random(SEED)  # noqa: S311 - a fixed seed is wanted
    asked = questions(arguments.questions, draw)
    draw.shuffle(asked)
    with edgeai.load(arguments.model, ctx=512) as model:
        answered, took_s = timed(lambda: answer_all(model, asked, max_tokens=16))
        file, quant = model.artifact.path.name, model.artifact.quant
    x, right = as_arrays(answered, FEATURES)
    strong = (np.random.default_rng(SEED).random(len(right)) < STRONG).astype(np.float64)
    half = len(right) // 2
    head = fit(x[:half], right[:half])
    probability = np.array([head.probability(row) for row in x[half:]])
    weak, other = right[half:], strong[half:]
    kinds = [question.text.split("?")[0].rstrip("0123456789 +'").split(" '")[0][:28] for question in asked]
    found: dict[str, Any] = {
        "model": file,
        "quant": quant,
        "questions": {"fitted on": half, "measured on": len(weak)},
        "stronger model": f"a stand-in that is right in {STRONG:.0%}, drawn from a seed: no model",
        "seconds per answer": round(took_s / len(right), 4),
        **figures(probability, weak, other),
        "auroc of single features": {
            name: round(auroc(x[half:, at], weak), 4) for at, name in enumerate(FEATURES)
        },
        "weights": dict(zip(FEATURES, (round(weight, 3) for weight in head.weights), strict=True)),
        "curve": {
            "share": SHARES,
            "confidence": [round(accuracy_at(share, probability, weak, other), 4) for share in SHARES],
            "random": [round((1 - share) * weak.mean() + share * other.mean(), 4) for share in SHARES],
            "oracle": [round(accuracy_at(share, weak - other, weak, other), 4) for share in SHARES],
        },
        "right by kind": {
            kind: round(float(np.mean([r for r, k in zip(right, kinds, strict=True) if k == kind])), 3)
            for kind in sorted(set(kinds)) if kinds.count(kind) > 20
        },
    }  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    save("cascade", found, keep=arguments.json is None)


if __name__ == "__main__":
    main()
