"""The child process that finds out in torch how much an error in each weight would change what the model says.

Run by `converters.curvature` as a script: it imports nothing of this project but its neighbour, by path. argv[1] is a folder with
request.json. Arrays go to request["folder"], the answer to answer.json.

For a matrix with inputs x and outputs y, an error E in the weights changes the output distribution of position t by about
½ Σ_i (g_ti · E_i x_t)² nats of KL, where g is the gradient of the log-likelihood of a token that is sampled from the model itself: the
Fisher information (Martens, New Insights and Perspectives on the Natural Gradient Method, JMLR 21, 2020). It is summed here as a
product, one number for each row, G_i = E[g_i²], and one matrix for the columns, H = E[w x xᵀ] / E[w] with w = |g|², so that positions
that hardly matter, such as the first with its huge activations, hardly count (Kronecker-factored approximations have the same form:
Martens and Grosse, arXiv 1503.05671, there without the weights).

A processor multiplies a quantized matrix W with inputs that it has rounded to 8 bits, in blocks that are as long as those of the
matrix's type. With δ for what that changes in x it costs ½ (Σ_i g_i W_i δ)², which is summed too: δ is known exactly.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

SPARE = 0.1
"""Of how many tokens in all the ones that no text has are taken to be."""
ROUNDED_IN = (32, 256)
"""Numbers of an input that have a scale together: 32 for the matrices whose own blocks are that long (Q8_0, Q8_1), 256 for the others
(Q8_K)."""
STEPS = 127
"""From zero to the largest number of such a block."""


def neighbour(name: str) -> ModuleType:
    """Return the script NAME beside this one as a module."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, name  # noqa: S101 - a path that ends in .py has one
    assert spec.loader is not None, name  # noqa: S101 - the same
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generate(model: Any, request: Mapping[str, Any], generator: Any, tell: Callable[[int], None]) -> list[list[int]]:
    """Return texts that MODEL writes when it samples freely: what it was trained on, as far as it knows."""
    import torch

    count, length = request["generated"], request["generated_length"]
    if not count:
        return []
    starts = [list(start) for start in request["starts"]][:count]
    ids = torch.tensor([starts[index % len(starts)] for index in range(count)])
    fresh, cache = ids, None
    with torch.inference_mode():
        while ids.shape[1] < length:
            out = model(fresh, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            fresh = draw(torch.softmax(out.logits[:, -1].float(), -1), generator)
            ids = torch.cat([ids, fresh], 1)
            tell(count)
    return [list(map(int, row)) for row in ids]


def draw(shares: Any, generator: Any) -> Any:
    """Return a token for each row of SHARES, (rows, vocab), with these probabilities, (rows, 1): torch.multinomial, ten times as fast."""
    import torch

    sums = shares.cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(
        sums, torch.rand(len(shares), 1, generator=generator, dtype=torch.float64) * sums[:, -1:]
    )
    return found.clamp_max_(shares.shape[-1] - 1)


def rounding(inputs: Any, block: int) -> Any:
    """Return what rounding the INPUTS, (positions, columns), to 8 bits in blocks of BLOCK adds to them: llama.cpp's Q8_0 and Q8_K."""
    import torch

    blocks = inputs.reshape(len(inputs), -1, block)
    step = blocks.abs().amax(-1, keepdim=True) / STEPS
    codes = torch.where(step > 0, blocks / step, 0).round_()
    return codes.mul_(step.half().float() if block == ROUNDED_IN[0] else step).sub_(blocks).reshape(inputs.shape)


class Rounding:
    """What rounding its inputs costs a matrix: the sum over positions of (g W δ)², by the length of the blocks."""

    def __init__(self) -> None:
        self.sums: dict[int, float] = {}

    def add(self, gradient: Any, changes: Mapping[int, Any]) -> None:
        """Take the GRADIENT at the inputs, (positions, columns), that comes through this matrix alone, and the CHANGES by block."""
        for block, change in changes.items():
            self.sums[block] = self.sums.get(block, 0.0) + float((gradient * change).sum(-1).square().sum())

    def nats(self, count: int) -> dict[str, float]:
        """Return block → the mean cost of one of COUNT predictions."""
        return {str(block): value / 2 / count for block, value in self.sums.items()}


def changes_of(inputs: Any) -> dict[int, Any]:
    """Return block → what rounding in blocks of that length changes in INPUTS, for those that fit into its columns."""
    return {block: rounding(inputs, block) for block in ROUNDED_IN if inputs.shape[-1] % block == 0}


class Group:
    """The matrices that see the same input: one sum of weighted products of columns, and one vector of rows for each of them.

    A text of which one prediction is made (`whole`) counts as one: what an error does to it is the sum of what it does at all positions,
    which mostly point the same way. The gradient of the whole matrix, D, then stands in for the pairs of g and x.
    `weights` is name → matrix, (rows, columns).
    """

    def __init__(self, weights: Mapping[str, Any], *, whole: bool = False) -> None:
        self.names, self.whole, self.weights = list(weights), whole, weights
        self.rounding = {name: Rounding() for name in weights}
        self.products: Any = 0
        self.plain: Any = 0
        self.weight = 0.0
        self.rows: dict[str, Any] = dict.fromkeys(weights, 0)
        self._inputs: Any = None
        self._changes: dict[int, Any] = {}
        self._weights: Any = None
        self._left = 0

    def see(self, inputs: Any) -> None:
        """Take the inputs of one batch, (…, columns)."""
        if not self._left:
            self._inputs = inputs.detach().reshape(-1, inputs.shape[-1])
            self._changes = changes_of(self._inputs)
            self._weights, self._left = 0, len(self.names)
            self.plain = self.plain + self._inputs.square().sum(0)

    def feel(self, name: str, gradient: Any) -> None:
        """Take the gradient at the output of the matrix NAME; with the last one of the batch the products are summed."""
        gradient = gradient.detach().reshape(-1, gradient.shape[-1])
        if self._changes:
            self.rounding[name].add(gradient @ self.weights[name], self._changes)
        if self.whole:
            matrix = gradient.T @ self._inputs  # (rows, columns)
            rows = matrix.square().sum(1)
            self.rows[name] = self.rows[name] + rows
            self.products = self.products + matrix.T @ matrix
            self.weight += float(rows.sum())
            self._left -= 1
            return
        square = gradient.square()
        self.rows[name] = self.rows[name] + square.sum(0)
        self._weights = self._weights + square.sum(1)
        self._left -= 1
        if not self._left:
            scaled = self._inputs * self._weights.sqrt()[:, None]
            self.products = self.products + scaled.T @ scaled
            self.weight += float(self._weights.sum())
            self._inputs, self._changes = None, {}


def grouped(modules: Mapping[str, Any], sample: Any, run: Callable[[Any], Any]) -> list[list[str]]:
    """Return the names of MODULES, those together whose input is the same tensor."""
    import torch

    seen: dict[int, list[str]] = {}
    kept: list[Any] = []

    def listen(name: str) -> Callable[..., None]:
        def hook(_module: Any, args: Any) -> None:
            kept.append(args[0])
            seen.setdefault(id(args[0]), []).append(name)

        return hook

    handles = [module.register_forward_pre_hook(listen(name)) for name, module in modules.items()]
    with torch.inference_mode():
        run(sample)
    for handle in handles:
        handle.remove()
    return list(seen.values())


class Ends:
    """The two ends of a language model: its embedding, its output matrix, or the one that is both."""

    def __init__(self, model: Any) -> None:
        self.embedding = model.get_input_embeddings()
        self.output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        size, width = self.embedding.weight.shape
        import torch

        self.seen = torch.zeros(size)
        self.chosen = torch.zeros(size)
        self.inner: Any = torch.zeros(width, width)
        self.outer: Any = 0
        self.weight = 0.0
        self.caught: Any = None
        self.hidden: Any = None
        self.pull: Any = None
        self.raw: Any = None
        self.rounding = Rounding()

    def hooks(self) -> Iterator[Any]:
        """Listen at both ends; the embedding's result becomes a leaf, so that gradients end there."""

        def catch(_module: Any, _args: Any, out: Any) -> Any:
            self.caught = out.detach().requires_grad_(True)
            return self.caught

        def feel(gradient: Any) -> None:
            self.pull = gradient

        def hold(_module: Any, args: Any, out: Any) -> None:
            self.hidden, self.raw = args[0].detach(), out.detach()
            args[0].register_hook(feel)

        yield self.embedding.register_forward_hook(catch)
        if self.output is not None:
            yield self.output.register_forward_hook(hold)

    def take_embedding(self, ids: Any) -> None:
        """Add the gradients at the embedding's result of one batch; an embedding may be scaled after it was looked up (Gemma)."""
        import torch

        scale = float(getattr(self.embedding, "embed_scale", 1.0))
        rows = self.caught.grad.reshape(-1, self.caught.shape[-1]) * scale
        self.inner += rows.T @ rows
        flat = ids.reshape(-1)
        self.seen.index_add_(0, flat, torch.ones(len(flat)))

    def take_output(self, logits: Any, shares: Any) -> None:
        """Add what an error in the output matrix would do; SHARES, (positions, vocab), are the probabilities of the LOGITS."""
        hidden = self.hidden.reshape(-1, self.hidden.shape[-1])
        self.rounding.add(self.pull.reshape(hidden.shape), changes_of(hidden))
        raw = self.raw.reshape(logits.shape)
        scale = float((logits * raw).sum() / raw.square().sum().clamp_min(1e-30))  # some families scale their logits
        spread = shares * (1 - shares)
        self.chosen += spread.sum(0) * scale**2
        weights = spread.sum(1) * scale**2
        scaled = hidden * weights.sqrt()[:, None]
        self.outer = self.outer + scaled.T @ scaled
        self.weight += float(weights.sum())

    def result(self, count: int) -> dict[str, tuple[Any, Any]]:
        """Return "embedding", "output" or "both" → (matrix of the columns, numbers of the rows); COUNT predictions were made."""
        size = len(self.seen)
        spread = (self.seen + SPARE / size) / (self.seen.sum() + SPARE)
        inner = self.inner / count
        if self.output is None:
            return {"embedding": (inner, spread)}
        outer, chosen = self.outer / count, self.chosen / count
        if self.output.weight is not self.embedding.weight:
            return {"embedding": (inner, spread), "output": (outer / chosen.sum(), chosen)}
        return {"both": (outer + inner, (chosen / chosen.sum() + spread) / 2)}


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Sum everything over the texts of REQUEST and those that the model writes; return where it is."""
    import torch
    import transformers

    torch.set_num_threads(request["threads"])
    model, info = getattr(transformers, request["class"]).from_pretrained(
        request["source"], dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    shared = neighbour("importance_child")
    model.eval().requires_grad_(False)
    plain, missing = shared.match(model, request["sources"])
    absent = sorted(name for name in info["missing_keys"] if name.removesuffix(".weight") in plain)
    if absent:
        raise ValueError(f"transformers finds no weights for {', '.join(absent[:4])}")
    generator = torch.Generator().manual_seed(request["seed"])
    total = len(request["texts"]) * 2 + request["generated"]

    def tell(done: float) -> None:
        print(int(done), total, flush=True)

    steps = 0

    def stepped(count: int) -> None:
        nonlocal steps
        steps += 1
        tell(count * steps / request["generated_length"] / 2)

    written = generate(model, request, generator, stepped)
    texts = [*request["texts"], *written]
    sums = Sums(model, request, plain)
    sums.take(texts, tell, total)
    return {
        "targets": sums.places,
        "rounding": sums.rounding,
        "missing": missing,
        "texts": len(texts),
        "tokens": sum(map(len, texts)),
        "written": written,
    }


class Sums:
    """All sums of a model, as they are saved: `places` is target → the number of its matrix, `rounding` target → block → nats."""

    def __init__(self, model: Any, request: Mapping[str, Any], plain: Mapping[str, Sequence[str]]) -> None:
        self.model, self.request, self.plain = model, request, plain
        self.modules = {name: module for name, module in model.named_modules() if name in plain}
        self.ends, self.folder = Ends(model), Path(request["folder"])
        self.places: dict[str, int] = {}
        self.rounding: dict[str, dict[str, float]] = {}
        self.made = 0

    def take(self, texts: Sequence[Sequence[int]], tell: Callable[[float], None], total: int) -> None:
        """Run the model over TEXTS, once for each part of it; TELL is told how much of TOTAL is done."""
        import torch

        request, pooled = self.request, self.request["pooling"]
        run = (lambda ids: self.model(ids)) if pooled else (lambda ids: self.model(ids, use_cache=False))
        groups = grouped(self.modules, torch.tensor([texts[0]]), run)
        parts, count = split(groups, self.modules, request["budget"]), 0
        for index, part in enumerate(parts):
            sums = [self.group(names) for names in part]
            handles = [handle for item in sums for handle in listen(item, self.modules)]
            handles += list(self.ends.hooks())
            count = 0
            for at, ids in enumerate(texts):
                count += learn(self.model, self.ends, torch.tensor([ids]), request, at, ends_too=index == 0)
                tell(total * (index + (at + 1) / len(texts)) / len(parts))
            for handle in handles:
                handle.remove()
            for item in sums:
                self.save_group(item, count, sum(map(len, texts)))
        self.save_ends(count)

    def group(self, names: Sequence[str]) -> Group:
        """Return the group of the modules NAMES."""
        weights = {name: weights_of(self.modules[name]) for name in names}
        return Group(weights, whole=bool(self.request["pooling"]))

    def save_group(self, item: Group, count: int, tokens: int) -> None:
        """Save what ITEM summed up over COUNT predictions and TOKENS."""
        save(self.folder / f"H{self.made}.f32", item.products / max(item.weight, 1e-30))
        save(self.folder / f"A{self.made}.f32", item.plain / tokens)
        for name in item.names:
            for target in self.plain[name]:
                self.places[target] = self.made
                self.rounding[target] = item.rounding[name].nats(count)
                save(self.folder / f"{target}.G.f32", item.rows[name] / count)
        self.made += 1

    def save_ends(self, count: int) -> None:
        """Save what the ends of the model summed up over COUNT predictions."""
        for name, (columns, rows) in self.ends.result(count).items():
            save(self.folder / f"H{self.made}.f32", columns)
            save(self.folder / f"A{self.made}.f32", columns.diagonal())
            for target in self.request["ends"].get(name, []):
                self.places[target] = self.made
                save(self.folder / f"{target}.G.f32", rows)
                if name != "embedding":
                    self.rounding[target] = self.ends.rounding.nats(count)
            self.made += 1


def weights_of(module: Any) -> Any:
    """Return the weights of MODULE, (rows, columns)."""
    weight = module.weight.detach()
    return weight if type(module).__name__ == "Linear" else weight.T


def split(groups: Sequence[Sequence[str]], modules: Mapping[str, Any], budget: int) -> list[list[Sequence[str]]]:
    """Return GROUPS in parts whose sums of products take at most BUDGET bytes each; each part is another pass over the texts."""
    parts: list[list[Sequence[str]]] = [[]]
    held = 0
    for names in groups:
        columns = int(weights_of(modules[names[0]]).shape[1])
        size = columns * columns * 4
        if parts[-1] and held + size > budget:
            parts.append([])
            held = 0
        parts[-1].append(names)
        held += size
    return parts


def listen(group: Group, modules: Mapping[str, Any]) -> Iterator[Any]:
    """Give GROUP the inputs and the gradients of its modules."""

    def hook(name: str) -> Callable[..., None]:
        def forward(_module: Any, args: Any, out: Any) -> None:
            group.see(args[0])
            out.register_hook(lambda gradient: group.feel(name, gradient))

        return forward

    for name in group.names:
        yield modules[name].register_forward_hook(hook(name))


def learn(model: Any, ends: Ends, ids: Any, request: Mapping[str, Any], at: int, *, ends_too: bool) -> int:
    """Run one text forward and backward; return how many predictions it made. The draws depend on the seed and the text's number AT
    only."""
    import torch

    generator = torch.Generator().manual_seed(request["seed"] * 1000003 + at + 1)
    if request["pooling"]:
        rows = model(ids).last_hidden_state[0].float()
        vector = {"mean": rows.mean(0), "cls": rows[0]}.get(request["pooling"], rows[-1])
        vector = vector / vector.norm()
        # E[(u·δ)²] = |δ|² for u of a standard normal distribution, and 1 - cosine of two unit vectors is half of their squared distance
        (vector * torch.randn(len(vector), generator=generator)).sum().backward()
        if ends_too:
            ends.take_embedding(ids)
        return 1
    logits = model(ids, use_cache=False).logits[0].float()
    said = torch.log_softmax(logits, -1)
    shares = said.detach().exp()
    said.gather(1, draw(shares, generator)).sum().backward()
    if ends_too:
        ends.take_embedding(ids)
        if ends.output is not None:
            ends.take_output(logits.detach(), shares)
    return int(ids.shape[1])


def save(path: Path, values: Any) -> None:
    """Write VALUES as float32."""
    values.detach().float().contiguous().numpy().tofile(path)


def keep_memory(library: Any) -> None:
    """Let glibc keep what is freed: the next text needs as much again, and new pages take a fifth of the time of a large vocabulary."""
    if hasattr(library, "mallopt"):  # musl has none
        library.mallopt(-4, 0)  # M_MMAP_MAX
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def main() -> None:
    """Answer the request in the folder argv[1]."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        library.prctl(1, 9)  # PR_SET_PDEATHSIG: a parent that was killed takes this process along
        keep_memory(library)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text())
    os.chdir(request["source"])  # safetensors opens no path that is not UTF-8, and "." always is
    request["source"] = "."
    try:
        answer = measure(request)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        answer = {"error": f"{type(error).__name__}: {error}", "log": []}
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the parent got the same Ctrl-C and says what there is to say
        sys.exit(130)
