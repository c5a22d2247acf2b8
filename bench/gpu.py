"""Every check that needs a GPU, in one command: a table on stdout, a JSON file with the device's name, exit code 1 when a check fails.

    python bench/gpu.py                          on a machine with an NVIDIA GPU and a CUDA build of llama-cpp-python
    python bench/gpu.py --device cpu             a rehearsal without one: what runs on a CPU runs, the rest says what it needs
    python bench/gpu.py --dry-run                what would be done
    python bench/gpu.py --only parity,memory     some of it

    --llama-bench PATH   compare speeds with it too. A llama-bench that was built for the CPU does: it is started with the libraries that
                         edgeai uses, which must be of the same version of llama.cpp
    --cpu-library DIR    the lib folder of a build without CUDA, to see `--device cuda` refused by it

What is computed where is compared with the CPU of the same machine. Each task has a process of its own (gpu_tasks.py), so that memory is
counted from zero and a crash is a failed check. The limits stand beside the checks (gpu_checks.py).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_checks import CHECKS, Bench, Skipped
from measure import RESULTS, commit, machine

from edgeai.types import Report, Row


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--model", type=Path, help="a GGUF file; default: the pulled smollm2, else models/tiny, converted"
    )
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--cpu-library", type=Path)
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of checks, with commas")
    parser.add_argument("--skip", type=lambda text: text.split(","), default=[], help="names of checks, with commas")
    parser.add_argument("--output", type=Path, help="default: bench/results/gpu_DEVICE.json, and none for a rehearsal")
    parser.add_argument("--dry-run", action="store_true")
    found = parser.parse_args()
    names = [check.name for check in CHECKS]
    if unknown := [name for name in [*(found.only or []), *found.skip] if name not in names]:
        parser.error(f"no check is called {unknown[0]!r}; there are {', '.join(names)}")
    return found


def default_model(folder: Path) -> Path:
    """Return the pulled smollm2, or the tiny model of this repository, converted into FOLDER."""
    from edgeai.errors import EdgeAIError
    from edgeai.pipeline import convert
    from edgeai.store import Store

    try:
        return Path(Store.open().find("smollm2"))
    except EdgeAIError:
        output = folder / "tiny.gguf"
        convert(Path(__file__).parents[1] / "models" / "tiny", output, "f16")
        return output


def run(bench: Bench, chosen: argparse.Namespace) -> tuple[dict[str, Report], list[str]]:
    """Run the checks that were CHOSEN, print each row as it comes, and return all of them and what was skipped."""
    reports: dict[str, Report] = {}
    skipped: list[str] = []
    for check in CHECKS:
        if (chosen.only and check.name not in chosen.only) or check.name in chosen.skip:
            continue
        began = time.perf_counter()
        try:
            rows = check.run(bench)
        except Skipped as reason:
            skipped.append(f"{check.name}: {reason}")
            print(f"{check.name:<10} skipped: {reason}", flush=True)
            continue
        except Exception as error:  # noqa: BLE001 - a check that cannot be made has failed, and the others go on
            rows = [Row(name="ran to its end", value=f"{type(error).__name__}: {error}", ok=False)]
        reports[check.name] = Report(rows=tuple(rows))
        for row in rows:
            print(line(check.name, row), flush=True)
        print(f"{check.name:<10} {time.perf_counter() - began:.0f} s", flush=True)
    return reports, skipped


def line(check: str, row: Row) -> str:
    """Return ROW of CHECK as a line of the table."""
    value = f"{row.value:.5g}" if isinstance(row.value, float) else str(row.value)
    mark = "ok" if row.ok and row.limit else "FAILED" if not row.ok else ""
    return f"{check:<10} {row.name:<46} {value:>24} {row.limit or '':<22} {mark}"


def main() -> int:
    """Run, save, and return the exit code."""
    chosen = options()
    if chosen.dry_run:
        for check in CHECKS:
            print(f"{check.name:<10} {check.what}")
        return 0
    with tempfile.TemporaryDirectory(prefix="edgeai-gpu-") as folder:
        bench = Bench(
            device=chosen.device,
            model=chosen.model or default_model(Path(folder)),
            llama_bench=chosen.llama_bench,
            cpu_library=chosen.cpu_library,
            folder=Path(folder),
        )
        facts = bench.task("facts")
        print(f"{facts['name']} · {facts['features']} · {bench.model.name}\n", flush=True)
        reports, skipped = run(bench, chosen)
    ok = bool(reports) and all(report.ok for report in reports.values())
    save(chosen, facts, reports, skipped, ok=ok)
    failed = [f"{name}: {row.name}" for name, report in reports.items() for row in report.failed]
    print(
        f"\n{sum(len(report.rows) for report in reports.values())} rows, {len(failed)} failed, {len(skipped)} checks skipped"
    )
    print("\n".join(failed))
    return 0 if ok else 1


def save(
    chosen: argparse.Namespace, facts: dict[str, Any], reports: dict[str, Report], skipped: list[str], *, ok: bool
) -> None:
    """Write the JSON file; a rehearsal leaves none unless it is told where."""
    output = chosen.output
    if output is None:
        if chosen.device == "cpu":
            return
        output = RESULTS / f"gpu_{re.sub(r'[^a-z0-9]+', '_', facts['name'].lower()).strip('_')}.json"
    record = {
        "command": " ".join(Path(part).name for part in sys.argv), "commit": commit(), "machine": machine(), "device": facts, "ok": ok,
        "skipped": skipped, "checks": {name: report.to_dict() for name, report in reports.items()},
    }  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nwrote {output}")


if __name__ == "__main__":
    sys.exit(main())
