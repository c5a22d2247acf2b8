"""The checks of gpu.py, each a function from the bench to rows with limits. What they compute runs in gpu_tasks.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from edgeai.types import Row

TIMEOUT_S = 300.0
TASKS = Path(__file__).with_name("gpu_tasks.py")

NMSE = 5e-3
"""Limit of the normalised squared error of logits, GPU against CPU. Quantized activations (q8_1 on both) differ in their rounding;
llama.cpp's test-backend-ops allows 5e-4 for one product of matrices."""
CLEAR = 0.5
"""Where the CPU's first two logits are further apart than this, both must choose the same token."""
PREDICTED, SMALL = 0.10, 2_000_000
"""How far the predicted memory may be from the buffers that were allocated: this part of them, or these bytes for a tiny model."""
SPEED = 0.95
"""Of the speed of llama_decode in a bare loop, which samples nothing and makes no text."""
GROWTH = 2_000_000
"""Bytes that the memory may grow in a cycle of loading and unloading, on average after the first five."""


class Skipped(Exception):
    """A check that cannot be made here; its text says what it needs."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured with which model on which device."""

    device: str
    model: Path
    llama_bench: Path | None
    cpu_library: Path | None
    folder: Path
    known: dict[str, Any] = field(default_factory=dict)

    def task(self, name: str, environment: Mapping[str, str] | None = None, **given: Any) -> dict[str, Any]:
        """Run the task NAME in a process of its own and return what it found. Raises RuntimeError with its last words."""
        done = subprocess.run(
            self.command(name, **given), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"{name} ended with {done.returncode}: {' '.join(done.stderr.split())[-600:]}")
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def command(self, name: str, **given: Any) -> list[str]:
        """Return the command of the task NAME."""
        return [
            sys.executable,
            str(TASKS),
            name,
            json.dumps({"device": self.device, "model": str(self.model), **given}),
        ]

    def begin(self, name: str, **given: Any) -> subprocess.Popen[str]:
        """Start the task NAME and return it when it says that it is ready; a line on its stdin lets it go on."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(self.command(name, **given), stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert process.stderr is not None
        said = []
        for text in process.stderr:
            if text.strip() == "ready":
                return process
            said.append(text)
        raise RuntimeError(f"{name} ended before it was ready: {' '.join(said)[-600:]}")

    def edgeai(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line with ARGUMENTS."""
        command = [sys.executable, "-m", "edgeai", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )  # fmt: skip

    def answers(self, options: Mapping[str, Any] | None = None, device: str | None = None) -> dict[str, Any]:
        """Return what the task `generate` finds, asked once for the same OPTIONS and DEVICE."""
        given = {"options": dict(options or {}), "device": device or self.device}
        key = json.dumps(given, sort_keys=True)
        if key not in self.known:
            self.known[key] = self.task("generate", **given)
        return self.known[key]  # type: ignore[no-any-return]

    def need_gpu(self) -> None:
        """Raise Skipped in a rehearsal."""
        if self.device != "cuda":
            raise Skipped("needs a GPU")

    @cached_property
    def variants(self) -> dict[str, dict[str, Any]]:
        """Return the options that put all, half and none of the layers on the GPU; on a CPU there is one way."""
        if self.device == "cpu":
            return {"cpu": {}}
        total = self.answers()["layers"][1]
        return {"all": {}, "half": {"gpu_layers": total // 2}, "none": {"device": "cpu"}}


def check_backend(bench: Bench) -> list[Row]:
    """Say what really runs, read back from the buffers."""
    rows = []
    for name, options in bench.variants.items():
        found = bench.answers(options)
        on_gpu, total = found["layers"]
        wanted = {"cpu": 0, "all": total, "none": 0}.get(name, options.get("gpu_layers"))
        backend = "cuda" if wanted else "cpu"
        rows += [
            Row(
                name=f"{name}: layers on the GPU",
                value=f"{on_gpu} of {total}",
                limit=f"= {wanted}",
                ok=on_gpu == wanted,
            ),
            Row(name=f"{name}: backend", value=found["backend"], limit=f"= {backend}", ok=found["backend"] == backend),
            Row(name=f"{name}: notices", value=", ".join(found["notices"]) or "none"),
        ]
        if name in {"none", "cpu"}:
            taken = sum(found["taken"].values())
            rows.append(Row(name=f"{name}: GPU memory taken, MB", value=taken / 1e6, limit="= 0", ok=taken <= 0))
    return rows


def check_parity(bench: Bench) -> list[Row]:
    """Compare logits and greedy texts with those of the CPU."""
    import numpy as np

    def saved(name: str, device: str, options: Mapping[str, Any]) -> Any:
        file = str(bench.folder / f"{name}.npy")
        bench.task("logits", device=device, options=dict(options), file=file)
        return np.load(file).astype(np.float64)

    reference = saved("reference", "cpu", {})
    texts = bench.answers(device="cpu")["texts"]
    first, second = np.sort(reference, axis=1)[:, [-1, -2]].T
    rows = []
    for name, options in bench.variants.items():
        found = saved(name, bench.device, options)
        nmse = _nmse(reference, found)
        same = found.argmax(axis=1) == reference.argmax(axis=1)
        clear = same[first - second > CLEAR]
        mine = bench.answers(options)["texts"]
        rows += [
            Row(name=f"{name}: NMSE of logits", value=nmse, limit=f"≤ {NMSE}", ok=nmse <= NMSE),
            Row(name=f"{name}: KL to the CPU, nats", value=_kl(reference, found)),
            Row(
                name=f"{name}: same choice where it is clear",
                value=float(clear.mean()),
                limit="= 1",
                ok=bool(clear.all()),
            ),
            Row(name=f"{name}: same choice anywhere", value=float(same.mean()), limit="≥ 0.97", ok=same.mean() >= 0.97),
            _same_texts(f"{name}: same greedy text", texts, mine),
        ]
    return rows


def _nmse(reference: Any, found: Any) -> float:
    return float(((found - reference) ** 2).sum() / (reference**2).sum())


def _kl(reference: Any, found: Any) -> float:
    """Return the mean KL(reference ‖ found) of (positions, vocabulary) logits, in nats."""
    import numpy as np

    def log_softmax(rows: Any) -> Any:
        rows = rows - rows.max(axis=1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _same_texts(name: str, wanted: Sequence[str], found: Sequence[str]) -> Row:
    """Hold the greedy texts against the CPU's; two that part do so after a beginning they share, which a near tie explains."""
    alike = [
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
        for one, other in zip(wanted, found, strict=True)
    ]
    same = sum(one == other for one, other in zip(wanted, found, strict=True))
    ok = all(length >= min(20, len(text)) for length, text in zip(alike, wanted, strict=True))
    return Row(
        name=name, value=f"{same} of {len(wanted)}; {min(alike)} characters", limit="≥ 20 characters each", ok=ok
    )


def check_memory(bench: Bench) -> list[Row]:
    """Hold the predicted memory of each device against the buffers and against what CUDA says was taken."""
    rows = []
    for name, options in bench.variants.items():
        found = bench.answers(options)
        predicted = {share["device"]: share["total_bytes"] for share in found["predicted"]}
        for share in found["placement"]:
            device, measured = share["device"], share["total_bytes"]
            if device not in predicted:
                rows.append(Row(name=f"{name}: {device} predicted", value="not predicted", limit="a number", ok=False))
                continue
            off = predicted[device] / measured - 1
            title = f"{name}: {device} predicted / {measured / 1e6:.0f} MB - 1"
            rows.append(
                Row(
                    name=title, value=off, limit=f"within ±{PREDICTED}", ok=abs(off) <= max(PREDICTED, SMALL / measured)
                )
            )
            if found["taken"].get(device):
                more = (found["taken"][device] - measured) / 1e6
                rows.append(Row(name=f"{name}: {device} MB taken beside buffers", value=more))
    return rows


def check_speed(bench: Bench) -> list[Row]:
    """Compare tok/s with llama_decode in a bare loop, and with llama-bench where there is one."""
    rows = []
    for name, options in bench.variants.items():
        ours, bare = bench.task("speed", options=options)["ours"], bench.task("bare", options=options)
        theirs = _llama_bench(bench, _gpu_layers(bench, options))
        for test in ("pp512", "tg128"):
            ratio = ours[test] / bare[test]
            rows += [
                Row(name=f"{name} {test}: tok/s", value=ours[test]),
                Row(name=f"{name} {test}: tok/s of the bare loop", value=bare[test]),
                Row(name=f"{name} {test}: ratio to it", value=ratio, limit=f"≥ {SPEED}", ok=ratio >= SPEED),
            ]
            if theirs:
                rows.append(Row(name=f"{name} {test}: llama-bench tok/s", value=theirs[test]))
                rows.append(Row(name=f"{name} {test}: ratio to it", value=ours[test] / theirs[test]))
    return rows


def _gpu_layers(bench: Bench, options: Mapping[str, Any]) -> int:
    if options.get("device", bench.device) == "cpu":
        return 0
    return int(options.get("gpu_layers", 999))


def _llama_bench(bench: Bench, layers: int) -> dict[str, float]:
    if bench.llama_bench is None:
        return {}
    libraries = bench.known.setdefault("library_dir", bench.task("facts")["library_dir"])
    paths = [libraries, str(bench.llama_bench.parent), os.environ.get("LD_LIBRARY_PATH", "")]
    where = ["-ngl", str(layers)] if layers else ["-dev", "none"]  # or a GPU would compute with weights in main memory
    command = [
        str(bench.llama_bench),
        "-m",
        str(bench.model),
        "-p",
        "512",
        "-n",
        "128",
        "-r",
        "3",
        "-o",
        "json",
        *where,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S, env={**os.environ, "LD_LIBRARY_PATH": ":".join(paths)}
    )  # fmt: skip
    found = json.loads(done.stdout)
    return {
        "pp512": next(row["avg_ts"] for row in found if row["n_prompt"]),
        "tg128": next(row["avg_ts"] for row in found if row["n_gen"]),
    }


def check_streams(bench: Bench) -> list[Row]:
    """Answer eight prompts side by side."""
    free, fixed = bench.task("streams"), bench.task("streams", options={"deterministic": True})
    ratio = free["together_tok_s"] / max(free["alone_tok_s"], 1e-9)
    same = sum(fixed["same"])
    least = 2.0 if bench.device == "cuda" else 0.5
    return [
        Row(name="8 streams: tok/s", value=free["together_tok_s"]),
        Row(name="8 streams / 1 stream", value=ratio, limit=f"≥ {least}", ok=ratio >= least),
        Row(name="same text as alone", value=f"{sum(free['same'])} of 8"),
        Row(name="same text as alone, deterministic", value=f"{same} of 8", limit="= 8", ok=same == 8),
    ]


def check_cancel(bench: Bench) -> list[Row]:
    """Cancel in the middle of a prompt and of an answer."""
    found = bench.task("cancel")
    return [
        Row(name="a prompt of 3800 tokens takes, s", value=found["prompt_s"]),
        Row(name="cancelled in it, ends after s", value=found["prefill_cancel_s"], limit="≤ 0.5", ok=found["prefill_cancel_s"] <= 0.5),
        Row(name="finish reason", value=found["reason"], limit="= cancelled", ok=found["reason"] == "cancelled"),
        Row(name="cancelled in an answer, ends after s", value=found["answer_cancel_s"], limit="≤ 0.5", ok=found["answer_cancel_s"] <= 0.5),
        Row(name="tokens of the next answer", value=found["after"], limit="= 4", ok=found["after"] == 4),
    ]  # fmt: skip


def check_refusal(bench: Bench) -> list[Row]:
    """Ask for what does not fit and for what is not there: each is refused at once and in words."""
    model = str(bench.model)
    big = bench.edgeai("run", model, "hi", "--device", bench.device, "--ctx", "500000000")
    hidden = bench.edgeai("run", model, "hi", "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    rows = [
        _refused("context of 500 million", big, 5),
        _refused("device cuda, hidden by CUDA_VISIBLE_DEVICES", hidden, 6),
    ]
    if bench.cpu_library is not None:
        built = bench.edgeai("run", model, "hi", "--device", "cuda", LLAMA_CPP_LIB_PATH=str(bench.cpu_library))
        rows.append(_refused("device cuda with a build for the CPU", built, 6))
    return rows


def _refused(name: str, done: subprocess.CompletedProcess[str], code: int) -> Row:
    said = "hint: " in done.stderr
    value = f"exit {done.returncode}, {'hint' if said else 'no hint: ' + done.stderr[-80:]}"
    return Row(name=name, value=value, limit=f"exit {code} and a hint", ok=done.returncode == code and said)


def check_full(bench: Bench) -> list[Row]:
    """Load beside a process that has taken nearly all memory of the GPU: something smaller or a refusal, never a crash."""
    bench.need_gpu()
    balloon = bench.begin("balloon", leave=60_000_000)
    try:
        model = str(bench.model)
        auto = bench.edgeai("run", model, "hi", "--device", "auto", "--max-tokens", "4")
        cuda = bench.edgeai("run", model, "hi", "--device", "cuda", "--max-tokens", "4")
    finally:
        balloon.communicate("\n", timeout=60)
    warned = "warning" in auto.stderr
    value = f"exit {auto.returncode}, {'warned' if warned else 'silent'}"
    return [
        Row(name="auto", value=value, limit="exit 0, warned", ok=auto.returncode == 0 and warned),
        Row(name="device cuda", value=f"exit {cuda.returncode}", limit="0, 5 or 6", ok=cuda.returncode in {0, 5, 6}),
    ]  # fmt: skip


def check_sharing(bench: Bench) -> list[Row]:
    """Let two processes use the device at once."""
    alone = bench.answers()["texts"]
    both = [bench.begin("share"), bench.begin("share")]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = [json.loads(process.communicate(timeout=TIMEOUT_S)[0]) for process in both]
    right = [all(text.startswith(start[:20]) for text, start in zip(one["texts"], alone, strict=True)) for one in found]
    wanted = "cuda" if bench.device == "cuda" else "cpu"
    backends = [one["backend"] for one in found]
    return [
        Row(name="answers as alone", value=f"{sum(right)} of 2", limit="= 2", ok=all(right)),
        Row(name="backends", value=" ".join(backends), limit=f"both {wanted}", ok=backends == [wanted, wanted]),
        Row(name="seconds of the slower one", value=max(one["seconds"] for one in found)),
    ]


def check_split(bench: Bench) -> list[Row]:
    """Split the layers over two GPUs, which libggml makes of one where there is one (GGML_CUDA_DEVICES)."""
    import numpy as np

    bench.need_gpu()
    one, two = bench.folder / "one.npy", bench.folder / "two.npy"
    bench.task("logits", file=str(one))
    found = bench.task("logits", {"GGML_CUDA_DEVICES": "2"}, file=str(two), split=True)
    named = [share["device"] for share in found["placement"] if share["layers"] and share["device"] != "CPU"]
    nmse = _nmse(np.load(one).astype(np.float64), np.load(two).astype(np.float64))
    return [
        Row(name="devices with layers", value=" ".join(named), limit="= 2", ok=len(named) == 2),
        Row(name="NMSE of logits to one device", value=nmse, limit=f"≤ {NMSE}", ok=nmse <= NMSE),
    ]


def check_reload(bench: Bench) -> list[Row]:
    """Load and unload twenty times in one process."""
    found = bench.task("cycles", times=20)
    rows = []
    for name in ("gpu", "rss"):
        tail = found[name][5:]
        growth = (tail[-1] - tail[0]) / max(1, len(tail) - 1)
        rows.append(
            Row(
                name=f"{name}: growth in a cycle, kB",
                value=growth / 1e3,
                limit=f"≤ {GROWTH / 1e3:.0f}",
                ok=growth <= GROWTH,
            )
        )
    return rows


def check_lost(bench: Bench) -> list[Row]:
    """Lose the device in the middle of an answer: a typed error with CUDA's words, then the CPU with a notice, or a refusal."""
    environment = _shim(bench) if bench.device == "cuda" else {}
    given = {"device": "cuda"} if bench.device == "cuda" else {}
    found = bench.task("lost", environment, **given)
    rows = [
        Row(
            name="error", value=found["error"] or "none", limit="= EngineCrashed", ok=found["error"] == "EngineCrashed"
        ),
        Row(name="seconds until it", value=found["seconds"], limit="≤ 30", ok=found["seconds"] <= 30),
        Row(name="it says", value=found["said"][:120]),
    ]
    if bench.device == "cpu":
        return [
            *rows,
            Row(
                name="tokens of the next answer",
                value=found["after"].get("tokens", 0),
                limit="= 4",
                ok=found["after"].get("tokens") == 4,
            ),
        ]
    rows.append(
        Row(
            name="names the CUDA error",
            value=str("CUDA error" in found["said"]),
            limit="= True",
            ok="CUDA error" in found["said"],
        )
    )
    after = found["after"].get("error", "an answer")
    rows.append(
        Row(name="then, device cuda", value=after, limit="= DeviceUnavailable", ok=after == "DeviceUnavailable")
    )
    Path(environment["EDGEAI_BENCH_LOST"]).unlink(missing_ok=True)
    auto = bench.task("lost", environment, options={"device": "auto"})["after"]
    fell = auto.get("backend") == "cpu" and "cpu-fallback" in auto.get("warnings", [])
    return [*rows, Row(name="then, device auto", value=json.dumps(auto)[:80], limit="cpu and cpu-fallback", ok=fell)]


def _shim(bench: Bench) -> dict[str, str]:
    """Return the environment in which CUDA fails once a file is there. Raises Skipped without a C compiler."""
    from gpu_tasks import SHIM

    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Skipped("needs a C compiler, to make CUDA fail")
    source, library = bench.folder / "lost.c", bench.folder / "lost.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True, timeout=60)
    return {"LD_PRELOAD": str(library), "EDGEAI_BENCH_LOST": str(bench.folder / "lost")}


def check_doctor(bench: Bench) -> list[Row]:
    """Ask the doctor, who has nothing to say against CUDA on a machine where it runs."""
    found = json.loads(bench.edgeai("doctor", "--json").stdout)
    about = [problem["what"] for problem in found["problems"] if "CUDA" in problem["what"] or "GPU" in problem["what"]]
    rows = [
        Row(
            name="problems with the GPU",
            value="; ".join(about)[:80] or "none",
            limit="none",
            ok=not about or bench.device == "cpu",
        )
    ]
    return [*rows, Row(name="cuda", value=found["native library"].get("cuda", "a build without"))]


def check_training(bench: Bench) -> list[Row]:
    """Train a few steps where torch has a GPU."""
    bench.need_gpu()
    try:
        import torch
    except ImportError as error:
        raise Skipped("needs torch") from error
    if not torch.cuda.is_available():
        raise Skipped(f"torch {torch.__version__} sees no GPU")
    found = bench.task("training")
    return [
        Row(name="torch sees", value=f"{found['gpu']}, torch {found['torch']}"),
        Row(name="bf16", value=str(found["bf16"]), limit="= True", ok=bool(found["bf16"])),
        Row(name="training ends", value=f"exit {found['exit']} {found['stderr'][-60:]}", limit="exit 0", ok=found["exit"] == 0),
        Row(name="tok/s of the tiny recipe", value=found["tok_s"] or 0.0),
    ]  # fmt: skip


class Check(NamedTuple):
    """A check: its name, what it does in a line, and the function."""

    name: str
    what: str
    run: Callable[[Bench], list[Row]]


CHECKS = tuple(
    Check(function.__name__.removeprefix("check_"), (function.__doc__ or "").splitlines()[0], function)
    for function in (
        check_doctor, check_backend, check_parity, check_memory, check_speed, check_streams, check_cancel, check_refusal, check_full,
        check_sharing, check_split, check_reload, check_lost, check_training,
    )
)  # fmt: skip
