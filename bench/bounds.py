"""Files of types chosen for a model against llama-quantize's presets with llama-imatrix, at the presets' exact sizes in bytes.

    python bench/bounds.py FOLDER … --other VERSE.txt [--text CALIBRATION] [--sizes q3_k_m …] [--speed] [--keep peer|all]

FOLDER is a Hugging Face checkpoint (an imported one has to be taken off its old grid first: off_grid.py). Both sides get the same
calibration text: llama-imatrix reads all of it, edgeai as much as it wants. edgeai runs as a process with a home of its own, so the
first size of a model pays for what the others find there. Both files are compared with torch by the same code on the same texts:
the bundled one, of the calibration's domain, and the end of OTHER. With --speed a second file is made with `--prefer speed`, and its
decoding is timed against the preset's in turns. Rows of sizes that are not asked for stay in the result; --keep takes the files of
an earlier run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peers
from measure import RESULTS, commit, pairs, save

from converters.checkpoint import Checkpoint, open_checkpoint
from converters.families import ModelPlan, plan_model
from converters.gguf import write_model
from converters.quantmap import plan_types
from converters.tokenizer import Vocabulary, read_vocabulary
from edgeai.bounds.calibration import bundled_text
from edgeai.evaluation import corpus, heldout
from edgeai.evaluation.heldout import HeldOut, Measured

SIZES = ("q3_k_m", "q4_0", "iq4_xs", "q4_k_m", "q5_k_m")
TOKENS = 4096
OTHER_BYTES = 100_000
CHUNK = 512
"""llama-imatrix's own default; a model of a shorter context has chunks of that."""
HELD_CHARS = 6000
"""Of the text that edgeai's own proof is on: about as many tokens as it takes of the bundled text where none is named."""
RECORDED_BYTES = 8 << 30
"""Of torch's logits, which are then computed once for each text."""
PIECES = 16
PATIENT = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait do not spin, which costs llama.cpp's programs most of their time where others work beside them."""
GOALS = {"geometric_mean": 0.42, "worst": 0.85, "decode": 0.9, "first_run_s": 300.0}
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model, and the folder for what is made of it."""

    checkpoint: Checkpoint
    plan: ModelPlan
    vocabulary: Vocabulary
    work: Path

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.checkpoint.path.resolve().name

    def file(self, side: str, size: str) -> Path:
        """Return the path of the file of SIZE by SIDE."""
        return self.work / f"{side}-{size}.gguf"


def open_source(folder: Path, work: Path) -> Source:
    """Read the model in FOLDER; what is made of it goes to a folder in WORK."""
    checkpoint = open_checkpoint(folder)
    plan = plan_model(checkpoint)
    place = work / folder.resolve().name
    place.mkdir(parents=True, exist_ok=True)
    return Source(checkpoint=checkpoint, plan=plan, vocabulary=read_vocabulary(checkpoint, plan.vocab_size), work=place)


def tool(*command: object) -> float:
    """Run a program of llama.cpp, its output on stderr, and return its seconds. Raises CalledProcessError."""
    began = time.perf_counter()
    subprocess.run(
        list(map(str, command)), check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, env={**os.environ, **PATIENT}
    )
    return time.perf_counter() - began


def processor_s() -> float:
    """Return the processor time of all children that have ended, and theirs: it hardly depends on what else runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def imatrix(source: Source, text: Path) -> Row:
    """Write the F32 file of SOURCE and llama-imatrix's matrix over TEXT; return the seconds that took."""
    export, matrix, plan = source.work / "f32.gguf", source.work / "imatrix.gguf", source.plan
    if not export.exists():
        write_model(export, plan, source.vocabulary, plan_types(plan, "F32"), {}, threads=2)
    if matrix.exists():
        return {}
    making = matrix.with_suffix(".part.gguf")
    chunk = min(CHUNK, plan.context)
    program = peers.llama_tool("llama-imatrix")
    seconds = tool(program, "-m", export, "-f", text, "-o", making, "-c", chunk, "-b", chunk, "-ngl", 0, "--no-ppl")
    making.rename(matrix)
    return {"imatrix_s": seconds}


def preset(source: Source, size: str) -> int:
    """Make the preset SIZE by llama-quantize, unless it is there, and return its bytes."""
    out = source.file("peer", size)
    if not out.exists():
        making = out.with_suffix(".part")
        matrix, export = source.work / "imatrix.gguf", source.work / "f32.gguf"
        tool(peers.llama_tool("llama-quantize"), "--imatrix", matrix, export, making, size, 2)
        making.rename(out)
    return out.stat().st_size


def chosen(source: Source, out: Path, nbytes: int, text: Path, held: Path, *more: str) -> Row:
    """Let `edgeai convert` make the best file OUT of at most NBYTES, and return what it says; `failed` has its error."""
    home = source.work / "home"
    first = not any((home / "cache" / "curvature").glob("*/curvature.json"))
    command = [sys.executable, "-m", "edgeai", "convert", str(source.checkpoint.path), "--target-size", str(nbytes),
               "--calibration", str(text), "--eval-text", str(held), "-o", str(out), *more, "--force", "--json", "-q"]  # fmt: skip
    began, used = time.perf_counter(), processor_s()
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "EDGEAI_HOME": str(home)},
    )
    row: Row = {"seconds": time.perf_counter() - began, "processor_s": processor_s() - used}
    row |= {"first": first, "commit": commit()}
    if done.returncode:
        out.unlink(missing_ok=True)
        return {**row, "failed": (done.stderr or done.stdout)[-2000:]}
    found = json.loads(done.stdout)
    row |= {"bytes": out.stat().st_size, "types": found["types"], "timings": found["timings"]}
    row |= {"peak_rss_bytes": max(found["peak_rss_bytes"], found["proof_peak_rss_bytes"])}
    row |= {"predicted": found["search"]["chosen"]["predicted"], "warnings": found["warnings"]}
    if row["bytes"] > nbytes:
        row["failed"] = f"the file has {row['bytes']} bytes, and the preset {nbytes}"
    return row


def figures(found: Measured) -> Row:
    """Return FOUND as plain numbers."""
    return {
        "mean_kl": asdict(found.quality),
        "p999_kl": found.p999,
        "top1": asdict(found.top1) if found.top1 else None,
    }


def compare(source: Source, name: str, text: str | None, wanted: Iterable[tuple[Row, str, Path]]) -> Iterable[None]:
    """Measure the files of WANTED on TEXT (None: the bundled one), into their rows; yields after each."""
    files = list(wanted)
    with HeldOut(
        checkpoint=source.checkpoint,
        plan=source.plan,
        vocabulary=source.vocabulary,
        base="Q8_0",
        exports=False,
        stores=False,
        torch=True,
        text=text,
        tokens=TOKENS,
        files=len(files),
    ) as held:
        for row, side, path in files:
            row.setdefault("quality", {}).setdefault(name, {})[side] = figures(held.measure(path))
            yield


def ratios(row: Row) -> Row:
    """Return text → our mean KL divided by the preset's, and that of the file made for speed."""
    found: Row = {}
    for name, sides in row.get("quality", {}).items():
        theirs = sides["peer"]["mean_kl"]["value"]
        found[name] = {side: sides[side]["mean_kl"]["value"] / theirs for side in ("ours", "fast") if side in sides}
    return found


def decode(path: Path, home: Path, answer: int) -> float:
    """Return the tok/s that PATH decodes with in a process of its own, the median of three runs."""
    command = [sys.executable, "-m", "edgeai", "bench", str(path), "--device", "cpu", "--pp", "0", "--tg", str(answer),
               "--repeat", "3", "--json", "-q"]  # fmt: skip
    env = {**os.environ, "EDGEAI_HOME": str(home)}
    done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env)
    return float(json.loads(done.stdout)[0]["tok_s_mean"])


def digest(text: str) -> str:
    """Return a short hash of TEXT, by which rows of other texts are told apart."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]


def earlier(name: str, texts: Mapping[str, str]) -> dict[str, Row]:
    """Return size → row of the result file NAME, where it was taken on the same TEXTS."""
    path = RESULTS / f"{name}.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    return {row["size"]: row for row in record.get("rows", [])} if record.get("texts") == texts else {}


def bench(source: Source, options: argparse.Namespace, texts: Mapping[str, str | None], held: Path) -> list[Row]:
    """Make and measure all sizes of SOURCE; return the rows, which are also saved as they come."""
    result = f"bounds_{source.name}"
    hashes = {
        "calibration": digest(options.text.read_text()),
        **{name: digest(text or corpus.default_text()) for name, text in texts.items()},
    }
    before = earlier(result, hashes)
    rows = dict(before)
    facts: Row = {"parameters": source.plan.parameters, "texts": hashes, "tokens": TOKENS, "busy": options.busy}

    def keep() -> None:
        ordered = sorted(rows.values(), key=lambda row: SIZES.index(row["size"]))
        save(result, {**facts, "rows": ordered}, show=False)

    facts |= imatrix(source, options.text)
    for size in options.sizes:
        nbytes = preset(source, size)
        row = rows[size] = {"size": size, "bytes": nbytes}
        for side, more in (("ours", ()), ("fast", ("--prefer", "speed")))[: 1 + options.speed]:
            out = source.file(side, size)
            if out.exists() and side in before.get(size, {}):
                row[side] = before[size][side]
            else:
                row[side] = chosen(source, out, nbytes, options.text, held, *more)
            said = {name: row[side].get(name) for name in ("seconds", "first", "bytes", "failed") if name in row[side]}
            print(f"{source.name} {size} {side}: {nbytes} bytes wanted, {said}", flush=True)
        keep()
    asked = [rows[size] for size in options.sizes]
    for name, text in texts.items():
        files = [(row, side, source.file(side, row["size"])) for row in asked for side in ("peer", "ours", "fast")]
        for _ in compare(source, name, text, [item for item in files if runs(*item)]):
            keep()
    for row in asked if options.speed else []:
        if runs(row, "fast", source.file("fast", row["size"])):
            mine, other = (source.file(side, row["size"]) for side in ("fast", "peer"))
            home = source.work / "home"
            row["decode"] = pairs(lambda: decode(mine, home, 64), lambda: decode(other, home, 64), options.rounds)  # noqa: B023 - called at once
            keep()
    for row in rows.values():
        row["ratio"] = ratios(row)
    keep()
    return list(rows.values())


def thinned(text: str, nbytes: int | None) -> str:
    """Return pieces from all over TEXT, NBYTES characters in all; all of it where it has no more, or for None."""
    if nbytes is None or len(text) <= nbytes:
        return text
    size = nbytes // PIECES
    return "\n".join(text[index * (len(text) - size) // (PIECES - 1) :][:size] for index in range(PIECES))


def runs(row: Row, side: str, path: Path) -> bool:
    """Whether the file PATH of SIDE was made for ROW and may be measured."""
    return path.exists() and (side == "peer" or (side in row and "failed" not in row[side]))


def show(name: str, rows: Sequence[Row]) -> None:
    """Print the ROWS of the model NAME as a table for bench/LOG.md."""
    print(f"\n{name}\n\n| size | bytes | text | preset: KL | p99.9 | top-1 | chosen: KL | p99.9 | top-1 | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        for text, sides in row.get("quality", {}).items():
            for side in ("ours", "fast"):
                if side in sides:
                    label = row["size"] + (", for speed" if side == "fast" else "")
                    cells = " | ".join(cell for each in ("peer", side) for cell in columns(sides[each]))
                    print(f"| {label} | {row[side]['bytes']} | {text} | {cells} | {row['ratio'][text][side]:.3f} |")
    for row in rows:
        for side in ("ours", "fast"):
            if side in row:
                extra = f", predicted {row[side]['predicted']:.4f}" if "predicted" in row[side] else ""
                first = " (first)" if row[side]["first"] else ""
                spent = f"{row[side]['seconds']:.0f} s, {row[side].get('processor_s', math.nan):.0f} s of processor"
                print(f"{row['size']} {side}: {spent}{first}{extra}")
        if "decode" in row:
            print(f"{row['size']} decode: {row['decode']['ratio']:.3f} of the preset's")


def columns(sides: Row) -> tuple[str, str, str]:
    """Return the mean KL with its interval, p99.9 and top-1 as text."""
    kl = sides["mean_kl"]
    return f"{kl['value']:.4f} [{kl['low']:.4f}, {kl['high']:.4f}]", f"{sides['p999_kl']:.3f}", f"{sides['top1']['value']:.3f}"  # fmt: skip


def conclude(every: Mapping[str, Sequence[Row]], texts: Iterable[str]) -> bool:
    """Print the geometric means and the worst ratios of all models, beside the goals; return whether these are met."""
    met = True
    print()
    for number, text in enumerate(texts):
        found = [
            (row["ratio"][text]["ours"], f"{name} {row['size']}")
            for name, rows in every.items()
            for row in rows
            if "ours" in row.get("ratio", {}).get(text, {})
        ]
        if not found:
            continue
        mean = math.exp(sum(math.log(value) for value, _ in found) / len(found))
        worst, where = max(found)
        wanted = f" (goal {GOALS['geometric_mean']})" if number == 0 else ""
        print(
            f"{text}: geometric mean {mean:.3f}{wanted}, worst {worst:.3f} in {where} (goal {GOALS['worst']}), of {len(found)}"
        )
        met &= worst <= GOALS["worst"] and (number > 0 or mean <= GOALS["geometric_mean"])
    slow = [row["decode"]["ratio"] for rows in every.values() for row in rows if "decode" in row]
    if slow:
        print(f"decoding with --prefer speed: at least {min(slow):.3f} of the preset's (goal {GOALS['decode']})")
    failed = [f"{name} {row['size']}" for name, rows in every.items() for row in rows if "failed" in row["ours"]]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return met and not failed and all(ratio >= GOALS["decode"] for ratio in slow)


def clear(work: Path, keep: str | None) -> None:
    """Remove what an earlier run left in WORK, but for what is to KEEP: the peer's files, or all."""
    if keep == "all":
        return
    shutil.rmtree(work / "home", ignore_errors=True)
    for path in work.glob("*.gguf"):
        if keep is None or path.name.startswith(("ours-", "fast-")):
            path.unlink()


def main() -> int:
    """Compare all models; the exit code says whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, help="the calibration text (default: the bundled one)")
    parser.add_argument("--text-bytes", type=int, help="give both sides only so much of it, from all over")
    parser.add_argument("--other", type=Path, help="a text of another domain, whose end is compared on too")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--keep", choices=("peer", "all"), help="take files of an earlier run: the presets, or ours too"
    )
    parser.add_argument("--work", type=Path, default=peers.folder() / "bounds")
    parser.add_argument("--busy", action="store_true", help="say in the result that other work ran beside it")
    options = parser.parse_args()
    heldout.RECORDED_BYTES = RECORDED_BYTES
    options.work.mkdir(parents=True, exist_ok=True)
    held = options.work / "held-out.txt"
    held.write_text(corpus.default_text()[:HELD_CHARS])
    text = bundled_text() if options.text is None else options.text.read_text()
    options.text = options.work / "calibration.txt"
    options.text.write_text(thinned(text, options.text_bytes))
    texts: dict[str, str | None] = {"held-out": None}
    if options.other:
        texts[options.other.stem] = options.other.read_bytes()[-OTHER_BYTES:].decode(errors="ignore")
    every: dict[str, list[Row]] = {}
    for folder in options.folders:
        source = open_source(folder, options.work)
        clear(source.work, options.keep)
        every[source.name] = bench(source, options, texts, held)
    for name, rows in every.items():
        show(name, rows)
    return 0 if conclude(every, texts) else 1


if __name__ == "__main__":
    sys.exit(main())
