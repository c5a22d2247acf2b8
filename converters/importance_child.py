"""The child process that runs a model over a text in torch and sums the squared inputs of its matrices.

Run by `converters.calibration` as a script: it imports nothing of this project. argv[1] is a folder with request.json; the sums go to
sums.npz and the answer to answer.json beside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

PIECE_CHARS = 1 << 14
CHARS_PER_TOKEN = 16
"""Of a text, at most so many characters for each wanted token are tokenized: four times what most tokenizers need."""


class NoText(Exception):
    """The text is too short to say anything."""


class Sums:
    """Sums of squared inputs by name: a (parts, columns) array and a count for each part."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.counts: dict[str, Any] = {}

    def add(self, name: str, inputs: Any, part: int = 0, parts: int = 1) -> None:
        """Add INPUTS, (…, columns), to PART of the matrix NAME; float64, so that the order of windows hardly matters."""
        import torch

        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        if name not in self.values:
            self.values[name] = torch.zeros(parts, rows.shape[1], dtype=torch.float64)
            self.counts[name] = torch.zeros(parts, dtype=torch.float64)
        self.values[name][part] += rows.square().sum(0, dtype=torch.float64)
        self.counts[name][part] += len(rows)


def windows(request: Mapping[str, Any]) -> tuple[list[list[int]], int]:
    """Return windows of token ids from all over the text, and how many tokens the text has in all."""
    from transformers import AutoTokenizer

    text = Path(request["text"]).read_bytes().decode("utf-8-sig")
    tokenizer = AutoTokenizer.from_pretrained(request["source"], local_files_only=True, trust_remote_code=False)
    before, after, size = request["before"], request["after"], request["window"]
    ids = list(before)
    for piece in pieces(text, request["tokens"] * CHARS_PER_TOKEN):
        ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]  # all of it is text
    cut = [ids[at : at + size] for at in range(0, len(ids), size)]
    whole = [window for window in cut if len(window) == size] or [cut[0]]
    if len(whole[0]) < max(16, len(before) + len(after) + 1):
        raise NoText(f"the text has {len(ids) - len(before)} tokens, and at least 16 are needed")
    count = min(len(whole), max(1, request["tokens"] // size))
    chosen = [whole[index * len(whole) // count] for index in range(count)]
    # as llama-imatrix does: what begins a text replaces the first token of each window (tools/imatrix/imatrix.cpp)
    return [[*before, *window[len(before) : len(window) - len(after)], *after] for window in chosen], len(ids)


def pieces(text: str, budget: int) -> list[str]:
    """Return TEXT, or where it is longer than BUDGET characters, pieces from all over it."""
    if len(text) <= budget:
        return [text]
    size = max(256, min(PIECE_CHARS, budget // 8))
    count = max(2, budget // size)
    starts = [index * (len(text) - size) // (count - 1) for index in range(count)]
    return [text[at : at + size] for at in starts]


def match(model: Any, sources: Mapping[str, str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return module → GGUF tensors whose input is that of the module, and the tensors that no module was found for.

    SOURCES is GGUF tensor → name of its weight in the checkpoint, which may begin with the name of the model around this one.
    """
    modules = {name for name, module in model.named_modules() if is_linear(module)}
    found: dict[str, list[str]] = {}
    missing = []
    for target, source in sources.items():
        parts = source.removesuffix(".weight").split(".")
        names = [".".join(parts[start:]) for start in range(len(parts))]
        names += [f"{prefix}.{names[0]}" for prefix in (getattr(model, "base_model_prefix", ""),) if prefix]
        name = next((name for name in names if name in modules), None)
        if name is None:
            missing.append(target)
        else:
            found.setdefault(name, []).append(target)
    return found, missing


def is_linear(module: Any) -> bool:
    """Whether MODULE multiplies its input with a matrix."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (Linear, Conv1D))


def match_experts(model: Any, missing: list[str]) -> dict[str, list[str]]:
    """Return module → the GGUF tensors of stacked experts that it computes, for those that transformers keeps stacked too."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "gate_up_proj", None)
        if getattr(weight, "ndim", 0) != 3 or getattr(getattr(module, "down_proj", None), "ndim", 0) != 3:
            continue
        layer = next((part for part in name.split(".") if part.isdecimal()), "")
        targets = [item for item in missing if item.startswith(f"blk.{layer}.ffn_") and item.endswith("_exps.weight")]
        if targets:
            found[name] = targets
    return found


@contextlib.contextmanager
def hooked(model: Any, plain: Mapping[str, list[str]], experts: Mapping[str, list[str]], sums: Sums) -> Iterator[None]:
    """Sum the inputs of the modules while the block runs."""
    handles = []
    modules = dict(model.named_modules())

    def listen(name: str) -> Callable[..., None]:
        return lambda _module, args: sums.add(name, args[0])

    def listen_experts(name: str) -> Callable[..., None]:
        return lambda module, args: add_experts(sums, name, module, *args[:2])

    for name in plain:
        handles.append(modules[name].register_forward_pre_hook(listen(name)))
    for name in experts:
        handles.append(modules[name].register_forward_pre_hook(listen_experts(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add_experts(sums: Sums, name: str, module: Any, hidden: Any, chosen: Any) -> None:
    """Sum the inputs of each expert's matrices: the tokens that CHOSEN, (tokens, experts per token), sends to it."""
    import torch

    hidden, count = hidden.reshape(-1, hidden.shape[-1]), len(module.gate_up_proj)
    for part in range(count):
        rows = hidden[(chosen == part).any(-1)]
        gate, up = torch.nn.functional.linear(rows, module.gate_up_proj[part]).chunk(2, dim=-1)
        sums.add(f"{name}|in", rows, part, count)
        sums.add(f"{name}|down", module.act_fn(gate) * up, part, count)


def calibrate(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run the model over the text; write the sums, and return which belong to which tensor."""
    import numpy as np
    import torch
    from transformers import AutoModel

    torch.set_num_threads(request["threads"])
    chosen, available = windows(request)
    model, info = AutoModel.from_pretrained(  # without the output matrix: its logits would be most of the memory
        request["source"], dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    model.eval()
    plain, missing = match(model, request["sources"])
    experts = match_experts(model, missing)
    random = sorted(name for name in info["missing_keys"] if name.removesuffix(".weight") in plain)
    if random:
        raise NoText(f"transformers finds no weights for {', '.join(random[:4])}")
    sums = Sums()
    with torch.inference_mode(), hooked(model, plain, experts, sums):
        for index, ids in enumerate(chosen):
            model(
                input_ids=torch.tensor([ids]), **({} if "use_cache" not in vars(model.config) else {"use_cache": False})
            )
            print(index + 1, len(chosen), flush=True)
    arrays = {f"v{index}": sums.values[name].float().numpy() for index, name in enumerate(sums.values)}
    arrays |= {f"c{index}": sums.counts[name].float().numpy() for index, name in enumerate(sums.values)}
    np.savez(folder / "sums.npz", **arrays)
    places = {name: index for index, name in enumerate(sums.values)}
    targets = {target: places[name] for name, items in plain.items() if name in places for target in items}
    for name, items in experts.items():
        targets |= {item: places[f"{name}|{'down' if 'ffn_down' in item else 'in'}"] for item in items}
    return {
        "targets": targets,
        "windows": len(chosen),
        "tokens": sum(map(len, chosen)),
        "available": available,
        "window": len(chosen[0]),
    }


def main() -> None:
    """Answer the request in the folder argv[1]."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: a parent that was killed takes this process along
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text())
    os.chdir(request["source"])  # safetensors opens no path that is not UTF-8, and "." always is
    request["source"] = "."
    try:
        answer = calibrate(request, folder)
    except (NoText, ImportError, OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        answer = {"error": str(error) if isinstance(error, NoText) else f"{type(error).__name__}: {error}", "log": []}
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the parent got the same Ctrl-C and says what there is to say
        sys.exit(130)
