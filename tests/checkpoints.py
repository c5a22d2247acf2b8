"""Tiny checkpoints made on the spot, and a torch reference in this process."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from converters import pretokenizer
from converters.child import Child, ChildFailed
from converters.stress import PROSE, STRESS

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPLITS = {
    "llama3": pretokenizer.LLAMA3,
    "qwen2": pretokenizer.QWEN2,
    "qwen35": pretokenizer.QWEN35,
    "foreign": r"\p{L}{1,4}|\s+|.",
}
SMALL: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


@functools.cache
def tokenizer_json(split: str = "llama3", size: int = 500) -> str:
    """Return the tokenizer.json of a byte-level BPE trained on the stress list."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split == "gpt2":
        tokenizer.pre_tokenizer = plain
    elif split == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    else:
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        cut = pre_tokenizers.Split(Regex(SPLITS[split]), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*STRESS, *PROSE], trainer)
    return str(tokenizer.to_str())


def make(
    folder: Path,
    *,
    split: str = "llama3",
    dtype: str = "float32",
    padding: int = 8,
    template: bool = True,
    **config: Any,
) -> Path:
    """Write a random Llama model with its tokenizer into FOLDER; CONFIG goes to LlamaConfig. The seed is fixed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    text = tokenizer_json(split)
    spec = json.loads(text)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        size = len(spec["model"]["vocab"]) + padding
        model = LlamaForCausalLM(LlamaConfig(**{**SMALL, "vocab_size": size, **config})).to(getattr(torch, dtype))
        with torch.no_grad():
            for parameter in model.parameters():  # random enough that every tensor matters
                parameter.add_(torch.randn_like(parameter) * 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    facts: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    if template:
        facts["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply CHANGE to the JSON object in PATH."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


class InProcessTorch(Child):
    """The torch child without the child: its functions in this process, where torch and transformers are imported once."""

    def __init__(self, script: Path, request: Mapping[str, Any], *, what: str, feed: bool = False) -> None:
        self.real = script.name != "torch_child.py"
        if self.real:
            super().__init__(script, request, what=what, feed=feed)
            return
        self.what = what
        self.request = {**request, "threads": 1}
        self.lines: list[str] | None = None

    def send(self, line: str) -> None:
        if self.real:
            super().send(line)

    def line(self) -> str:
        if self.real:
            return super().line()
        if self.lines is None:
            from edgeai.evaluation import torch_child

            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                answer = torch_child.answer(self.request, lambda: None)
            if "error" in answer:
                raise ChildFailed(answer["error"], reason=answer["error"], log=[])
            self.lines = said.getvalue().splitlines()
        return self.lines.pop(0)

    def close(self) -> None:
        if self.real:
            super().close()
