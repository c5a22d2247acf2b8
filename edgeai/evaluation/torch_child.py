"""The child process that runs the source model in torch, through transformers and nothing of this project.

It reads the folder with transformers' own code, so that an error in reading it here cannot cancel out. Run as a script:
argv[1] is a folder with request.json; the answer goes to answer.json beside it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any


def templates(request: dict[str, Any], answer: dict[str, Any]) -> None:
    """Tokenize texts and render conversations with the tokenizer class that transformers chooses."""
    import jinja2
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(request["source"], local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, AttributeError, TypeError) as error:
        answer["tokenizer_error"] = f"{type(error).__name__}: {error}"
        return
    answer["ids"] = [tokenizer(text)["input_ids"] for text in request["texts"]]
    answer["rendered"] = []
    for messages in request["conversations"] if tokenizer.chat_template else []:
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, ValueError, TypeError):
            text = None  # a template may refuse a conversation
        answer["rendered"].append(text)


def logits(request: dict[str, Any], answer: dict[str, Any]) -> None:
    """Write the logits of every position of every prompt, (positions, vocab) float32, to request["logits"]."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(request["threads"])
    model, info = AutoModelForCausalLM.from_pretrained(
        request["source"],
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:  # transformers would go on with random numbers
        answer["error"] = f"transformers finds no weights for {', '.join(absent[:6])}"
        return
    model.eval()
    prompts: list[dict[str, Any]] = request["prompts"]
    total = sum(len(prompt["ids"]) for prompt in prompts)
    out = None
    at = 0
    with torch.inference_mode():
        for index, prompt in enumerate(prompts):
            rows = run(model, prompt).logits[0].float().numpy()  # (positions, vocab)
            if out is None:
                out = np.lib.format.open_memmap(request["logits"], "w+", np.float32, (total, rows.shape[1]))
            out[at : at + len(rows)] = rows
            at += len(rows)
            print(index + 1, len(prompts), flush=True)
    assert out is not None  # noqa: S101 - there is at least one prompt
    out.flush()


def run(model: Any, prompt: dict[str, Any]) -> Any:
    """Run PROMPT; where it has a gap, with positions that jump, and the token after the gap seeing only itself."""
    import torch

    ids, head, start = prompt["ids"], prompt["head"], prompt["start"]
    if not head:
        return model(torch.tensor([ids]))
    size, least = len(ids), torch.finfo(torch.float32).min
    mask = torch.full((size, size), least).triu(1)  # (query, key), added to the scores
    mask[head, :head] = least
    places = [*range(head), *range(start, start + size - head)]
    return model(torch.tensor([ids]), position_ids=torch.tensor([places]), attention_mask=mask[None, None])


def main() -> None:
    """Answer the request in the folder argv[1]."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: a parent that was killed takes this process along
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text())
    answer: dict[str, Any] = {}
    os.chdir(request["source"])  # safetensors opens no path that is not UTF-8, and "." always is
    request["source"] = "."
    try:
        if request["prompts"]:
            logits(request, answer)
        templates(request, answer)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        answer = {"error": f"{type(error).__name__}: {error}", "log": []}
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the parent got the same Ctrl-C and says what there is to say
        sys.exit(130)
