"""The child process that runs the source model in torch, through transformers and nothing of this project.

It reads the folder with transformers' own code, so that an error in reading it here cannot cancel out. Run as a script:
argv[1] is a folder with request.json. What is known before the logits goes to facts.json there, the logits of each prompt to a file
of their own as far as stdin grants prompts, and an error to answer.json.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEAREST = 8
"""How many of the likeliest tokens of each step of a continuation are kept: a tie is between the first of them."""


def templates(request: dict[str, Any], facts: dict[str, Any]) -> None:
    """Tokenize texts and render conversations with the tokenizer class that transformers chooses."""
    import jinja2
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(request["source"], local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, AttributeError, TypeError) as error:
        facts["tokenizer_error"] = f"{type(error).__name__}: {error}"
        return
    facts["ids"] = [tokenizer(text)["input_ids"] for text in request["texts"]]
    facts["rendered"], facts["chat_ids"] = [], []
    for messages in request["conversations"] if tokenizer.chat_template else []:
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        except (jinja2.TemplateError, ValueError, TypeError):
            text = ids = None  # a template may refuse a conversation
        facts["rendered"].append(text)
        facts["chat_ids"].append(ids)


def load(request: dict[str, Any], facts: dict[str, Any]) -> Any:
    """Return the model in float32, or None where transformers would go on with random numbers in place of weights."""
    import torch
    import transformers

    torch.set_num_threads(request["threads"])
    model, info = getattr(transformers, request["class"]).from_pretrained(
        request["source"],
        config=configuration(request),
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True if request["safetensors"] else None,
        output_loading_info=True,
    )
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    absent = [name for name in absent if not any(part in name for part in request["optional"])]
    if absent:
        facts["error"] = f"transformers finds no weights for {', '.join(absent[:6])}"
        return None
    if request.get("adapter"):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, request["adapter"], local_files_only=True).merge_and_unload()
    return model.eval()


def configuration(request: dict[str, Any]) -> Any:
    """Return the configuration where transformers 5 does not read it: LongRoPE as the first Phi-3 named it; else None.

    `Phi3Config` knows that "su" is "longrope", and fails before it comes to that.
    """
    from transformers import Phi3Config

    config = json.loads((Path(request["source"]) / "config.json").read_text(encoding="utf-8"))
    scaling = config.get("rope_scaling")
    if config.get("model_type") != "phi3" or not isinstance(scaling, dict) or scaling.get("type") != "su":
        return None
    return Phi3Config.from_dict({**config, "rope_scaling": {**scaling, "type": "longrope"}})


def continuation(model: Any, item: dict[str, Any]) -> dict[str, Any]:
    """Continue item["ids"] with the likeliest tokens, by transformers' cache; say of each step what came near.

    Ends after item["count"] tokens, or with one of item["stop"], which is the last.
    """
    import torch

    ids, steps, cache = item["ids"], [], None
    found: list[int] = []
    while len(found) < item["count"]:
        out = model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
        cache, row = out.past_key_values, out.logits[0, -1].float()
        best = row.topk(min(NEAREST, len(row)))
        steps.append({"ids": best.indices.tolist(), "logits": best.values.tolist(), "spread": float(row.std())})
        found.append(steps[-1]["ids"][0])
        if found[-1] in item["stop"]:
            break
        ids = found[-1:]
    return {"ids": found, "steps": steps}


def logits(model: Any, request: dict[str, Any], wait: Callable[[], None]) -> None:
    """Write the logits of each prompt, (positions, vocab) float32, to a file; WAIT returns when there is room for the next."""
    index = 0
    for phase in request["phases"]:
        if phase["stored"]:
            store(model, phase["stored"])
        for prompt in phase["prompts"]:
            wait()
            rows = run(model, prompt, request["window"]).logits[0].float().numpy()  # (positions, vocab)
            rows.tofile(Path(request["folder"]) / f"{index}.f32")
            print("ready", index, flush=True)
            index += 1


def run(model: Any, prompt: dict[str, Any], window: int | None) -> Any:
    """Run PROMPT at once; where it has a gap, with positions that jump, and the token after the gap seeing only itself.

    In layers of sliding-window attention a token sees WINDOW tokens, itself included.
    """
    import torch

    ids, head, start = prompt["ids"], prompt["head"], prompt["start"]
    if not head:
        return model(torch.tensor([ids]), use_cache=False)
    size, least = len(ids), torch.finfo(torch.float32).min
    mask = torch.full((size, size), least).triu(1)  # (query, key), added to the scores
    mask[head, :head] = least
    places = torch.tensor([*range(head), *range(start, start + size - head)])
    masks: Any = mask[None, None]
    if window is not None:
        sliding = mask.masked_fill(places[:, None] - places[None, :] >= window, least)[None, None]
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["sliding_attention"])
        full = {"full_attention": masks, "sliding_attention": sliding}
        masks = full if len(kinds) > 1 else full[kinds.pop()]
    return model(torch.tensor([ids]), position_ids=places[None], attention_mask=masks, use_cache=False)


def store(model: Any, types: dict[str, str]) -> None:
    """Round weights to the types that a file stores them in, by name, and what these are multiplied with.

    ggml's products of an F16 or BF16 matrix round the other operand to the same type and add up in float32 (`vec_dot_type` in
    ggml-cpu.c): this does the same, so that what is left is an error of the file.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    kinds = {"F16": torch.float16, "BF16": torch.bfloat16}
    rounded = {}
    for name, parameter in model.named_parameters():
        kind = types.get(name) or next((types[key] for key in types if name.endswith(f".{key}")), None)
        if kind in kinds:
            parameter.copy_(parameter.to(kinds[kind]).float())
            rounded[id(parameter)] = kinds[kind]
    for module in model.modules():
        kind = rounded.get(id(getattr(module, "weight", None)))
        if kind is not None and isinstance(module, torch.nn.Linear | Conv1D):
            module.register_forward_pre_hook(lambda _module, args, kind=kind: (args[0].to(kind).float(), *args[1:]))


def embed(model: Any, request: dict[str, Any]) -> None:
    """Write hidden.f32, the last hidden state of every token of every list of ids, and pooled.f32, one vector or score for each list."""
    import torch

    folder = Path(request["folder"])
    kind = pooling(Path(request["source"]))
    with (folder / "hidden.f32").open("wb") as hidden, (folder / "pooled.f32").open("wb") as pooled:
        for ids in request["lists"]:
            if request["class"] == "AutoModelForSequenceClassification":
                found = model(torch.tensor([ids]), output_hidden_states=True)
                found.hidden_states[-1][0].float().numpy().tofile(hidden)
                found.logits[0].float().numpy().tofile(pooled)
                continue
            rows = model(torch.tensor([ids])).last_hidden_state[0].float()  # (positions, dim)
            rows.numpy().tofile(hidden)
            vector = {"mean": rows.mean(0), "cls": rows[0], "lasttoken": rows[-1]}[kind]
            vector.numpy().tofile(pooled)


def pooling(source: Path) -> str:
    """Return how sentence-transformers pools in the folder SOURCE; the mean of the tokens where it says nothing.

    Since its version 6 the configuration has one name, `pooling_mode`; before, a flag for each way.
    """
    modules = source / "modules.json"
    for module in json.loads(modules.read_text()) if modules.exists() else []:
        if str(module.get("type", "")).endswith("Pooling"):
            settings = json.loads((source / module["path"] / "config.json").read_text())
            flags = {"cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}
            flagged = next((kind for kind, name in flags.items() if settings.get(name)), "mean")
            named = settings.get("pooling_mode", flagged)
            return str(named[0] if isinstance(named, list) else named)
    return "mean"


def angles(model: Any, count: int, folder: Path) -> list[str]:
    """Write the cosines and sines of rope at the positions 0 to COUNT - 1, each (COUNT, half of a head) float32; return the files' names.

    A model with several kinds of layers has a table for each kind.
    """
    import inspect

    import torch

    found: list[str] = []
    for name, module in model.named_modules():
        if not name.endswith("rotary_emb") or "." in name.removesuffix("rotary_emb").removesuffix(".").replace(
            "model.", ""
        ):
            continue
        kinds: list[dict[str, str]] = [{}]
        if "layer_type" in inspect.signature(module.forward).parameters:
            kinds = [{"layer_type": kind} for kind in sorted(set(model.config.get_text_config().layer_types))]
        for kind in kinds:
            tables = module(torch.zeros(1, 1, 1), torch.arange(count)[None], **kind)
            stem = f"angles-{len(found)}"
            for what, table in zip(("cos", "sin"), tables, strict=True):
                half = table[0, :, : table.shape[-1] // 2].float().contiguous()
                half.numpy().tofile(folder / f"{stem}-{what}.f32")
            found.append(stem)
    return found


def answer(request: dict[str, Any], wait: Callable[[], None]) -> dict[str, Any]:
    """Do everything that REQUEST asks for; return the final answer."""
    import torch

    facts: dict[str, Any] = {}
    with torch.inference_mode():
        model = load(request, facts)
        if model is None:
            return {"error": facts["error"], "log": []}
        templates(request, facts)
        facts["continued"] = [continuation(model, item) for item in request["continue"]]
        if request["lists"]:
            embed(model, request)
        if request.get("angles"):
            facts["angles"] = angles(model, request["angles"], Path(request["folder"]))
        (Path(request["folder"]) / "facts.json").write_text(json.dumps(facts))
        print("facts", flush=True)
        logits(model, request, wait)
    return {}


def turns() -> Callable[[], None]:
    """Return a function that waits until the parent grants one more prompt; it grants some at a time on stdin."""
    left = 0

    def wait() -> None:
        nonlocal left
        while not left:
            line = sys.stdin.readline()
            if not line:
                sys.exit(0)
            left = int(line)
        left -= 1

    return wait


def failures() -> tuple[type[Exception], ...]:
    """Return what transformers raises for folders that it cannot run; the checks of its configurations have a class of their own."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    usual = (ImportError, OSError, ValueError, LookupError, RuntimeError, AttributeError, TypeError)
    return (*usual, ArithmeticError, AssertionError, StrictDataclassError, SafetensorError)


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
        result = answer(request, turns())
    except failures() as error:
        result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}", "log": []}
    (folder / "answer.json").write_text(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the parent got the same Ctrl-C and says what there is to say
        sys.exit(130)
