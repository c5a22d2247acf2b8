"""What the detectors of private text find, what they find where nothing is, and how long they take.

    python bench/privacy.py SYNTH.json --maths GSM8K.jsonl [--docs FOLDER …] [--json OUT]

SYNTH.json is presidio-research's data/synth_dataset_v2.json (MIT): recall of each type that has a form, and hits on the texts without any
entity. Code is Python's standard library without its tests, logs are generated without addresses, maths are the questions and answers of
GSM8K and the sources in the folders --docs (SymPy's package, say). A hit there is false unless it is an address that really stands in the
text, of which the standard library has some: so all hits are given by kind, and `false` leaves out e-mail and IP addresses.
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from measure import commit, machine, save

from edgeai.routing.privacy.structured import find_structured

KINDS = {
    "EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "CREDIT_CARD": "card", "IBAN_CODE": "iban", "US_SSN": "national_id",
    "IP_ADDRESS": "ip",
}  # fmt: skip
"""The types of the data set that have a form, and what we call them."""
TRUE_IN_CODE = ("email", "ip")
HOSTILE = {
    "digits": "1", "a@": "a@", "a.": "a.", "addresses": "a@a.aa ", "spaces": " ", "single digits": "1 ", "dashes": "1-", "colons": "::",
    "urls": "a://a:b@", "passwords": "password=", "keys": "-----BEGIN PRIVATE KEY-----\n", "tokens": "sk-", "groups of four": "4111 ",
    "nine digits": "123456789 ", "brackets": "((((", "invisible": "1\u200b", "wide": "４１１１", "trunk": "0341 83871 ",
}  # fmt: skip


def recall(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return found of all by type, and the texts without an entity that have a hit."""
    there: Counter[str] = Counter()
    found: Counter[str] = Counter()
    exact = clean = flagged = 0
    for record in records:
        findings = find_structured(record["full_text"])
        for span in record["spans"]:
            kind = KINDS.get(span["entity_type"])
            if kind is None:
                continue
            start, end = span["start_position"], span["end_position"]
            hits = [
                finding for finding in findings if finding.kind == kind and finding.start < end and finding.end > start
            ]
            there[span["entity_type"]] += 1
            found[span["entity_type"]] += bool(hits)
            exact += any((hit.start, hit.end) == (start, end) for hit in hits)
        if not record["spans"]:
            clean += 1
            flagged += bool(findings)
    total = sum(there.values())
    return {
        "by_type": {name: {"found": found[name], "of": there[name]} for name in sorted(there)},
        "recall": sum(found.values()) / total,
        "exact_places": exact / total,
        "clean_texts": clean,
        "clean_texts_with_a_hit": flagged,
    }


def hits(texts: Iterable[str]) -> dict[str, Any]:
    """Return the hits of TEXTS by kind, and per 10,000 words."""
    words = 0
    kinds: Counter[str] = Counter()
    for text in texts:
        words += len(text.split())
        kinds.update(finding.kind for finding in find_structured(text))
    wrong = sum(count for kind, count in kinds.items() if kind not in TRUE_IN_CODE)
    return {
        "words": words, "hits": dict(kinds), "per_10k_words": 1e4 * kinds.total() / words, "false_per_10k_words": 1e4 * wrong / words,
    }  # fmt: skip


def logs(lines: int, seed: int = 7) -> Iterator[str]:
    """Yield lines of access, system, build and application logs without addresses."""
    draw = random.Random(seed)  # noqa: S311

    def hexadecimal(digits: int) -> str:
        return f"{draw.getrandbits(4 * digits):0{digits}x}"

    for _ in range(lines):
        clock = f"{draw.randrange(24):02}:{draw.randrange(60):02}:{draw.randrange(60):02}"
        day = f"2026-{draw.randrange(1, 13):02}-{draw.randrange(1, 29):02}"
        size, took, number = draw.randrange(10**8), draw.randrange(10**6), draw.randrange(10**10)
        uuid = "-".join(map(hexadecimal, (8, 4, 4, 4, 12)))
        third, sha = draw.randrange(10**6), hexadecimal(40)
        lines_of = (
            f'- - [{day}:{clock} +0000] "GET /items/{number}?page={third % 99} HTTP/1.1" {draw.choice((200, 404, 500))} {size}',
            f"{day[5:]} {clock} node{third % 64} kernel: [{took}.{third:06}] usb 1-{third % 9}: device {number}",
            f"{day}T{clock}.{third:06}Z INFO [pid {third % 99_999}] request {uuid} took {took} us, {size} bytes",
            f"[{third % 900}/900] Building CXX object src/{sha[:8]}.o  ({took % 9999} ms) sha1 {sha}",
            f"job {number} step {third}: loss {draw.random():.16f} lr {draw.random():.3e} tokens {size}",
            f"{draw.randrange(10**9, 2 * 10**9)} commit {sha} +{third % 999} -{took % 999} v{took % 9}.{took % 99}.{took % 7}",
            f"epoch_ms={draw.randrange(10**12, 2 * 10**12)} offset={number} partition={took % 64} key={sha[:16]} crc={sha[-8:]}",
        )
        yield draw.choice(lines_of)


def speed(text: str, sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)) -> dict[str, float]:
    """Return milliseconds of processor time per 1,000 characters at SIZES of TEXT, the least of three."""
    found = {}
    for size in sizes:
        piece = (text * (size // len(text) + 1))[:size]
        best = float("inf")
        for _ in range(3 if size < 10**6 else 1):
            began = time.process_time()
            find_structured(piece)
            best = min(best, time.process_time() - began)
        found[str(size)] = round(1e6 * best / size, 4)
    return found


def sources(folders: Iterable[Path]) -> Iterator[str]:
    """Yield the Python sources and documents in FOLDERS, without tests and what pip installed."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).parts
            if path.suffix in (".py", ".rst", ".md") and not {"test", "tests", "site-packages", "idle_test"} & set(
                inside
            ):
                yield path.read_text(encoding="utf-8", errors="replace")


def main() -> None:
    """Measure and print; --json writes the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("synth", type=Path)
    parser.add_argument("--maths", type=Path, help="GSM8K as lines of JSON with question and answer")
    parser.add_argument("--docs", type=Path, nargs="*", default=[], help="folders of more maths")
    parser.add_argument("--json", type=Path, help="write the results there; bench/results/privacy.json is kept")
    wanted = parser.parse_args()
    library = [*sources([Path(sysconfig.get_path("stdlib"))])]
    results: dict[str, Any] = {"synth": recall(json.loads(wanted.synth.read_text(encoding="utf-8")))}
    results["code"] = hits(library)
    results["logs"] = hits("\n".join(logs(1000, seed)) for seed in range(30))
    maths: list[str] = []
    if wanted.maths is not None:
        rows = map(json.loads, wanted.maths.read_text(encoding="utf-8").splitlines())
        maths = [f"{row['question']}\n{row['answer']}" for row in rows]
        results["maths"] = hits(maths)
    if wanted.docs:
        results["maths_sources"] = hits(sources(wanted.docs))
    prose = "\n".join(maths) or library[0]
    texts = {"prose": prose, "code": "\n".join(library[:80]), "logs": "\n".join(logs(20_000))}
    results["ms_per_1000_characters"] = {name: speed(text) for name, text in texts.items()}
    results["hostile_ms_per_1000_characters"] = {
        name: speed(piece, (100_000, 1_000_000)) for name, piece in HOSTILE.items()
    }
    save("privacy", results, keep=False)
    if wanted.json is not None:
        record = {
            "command": "privacy.py SYNTH.json --maths GSM8K.jsonl --docs SYMPY",
            "commit": commit(),
            "machine": machine(),
            **results,
        }
        wanted.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
