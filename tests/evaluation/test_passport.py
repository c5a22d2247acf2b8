"""Parity with torch for every layout of a Llama that is converted, and a mutation for each thing that could go wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.errors import EdgeAIError
from converters.families import ModelPlan
from converters.families import llama as family
from converters.tokenizer import Vocabulary
from edgeai import pipeline
from edgeai.errors import ProofFailed
from edgeai.evaluation import passport, tokens
from edgeai.evaluation.prove import prove
from edgeai.pipeline import convert
from edgeai.types import Report
from tests.checkpoints import edit_json, make

LAYOUTS: dict[str, dict[str, Any]] = {
    "tied, one head each": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "biases and a head size of its own": {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "bfloat16, another theta": {
        "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "float16, linear rope": {
        "dtype": "float16",
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    },
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "yarn rope": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "attention_factor": 1.3,
        },
    },
    "yarn rope with bounds of its own": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 4.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
    },
}


def value(report: Report, name: str) -> float | str:
    return next(row.value for row in report.rows if name in row.name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_export_has_the_logits_of_torch(tmp_path: Path, layout: str) -> None:
    done = convert(make(tmp_path / "m é", **LAYOUTS[layout]), None, "f32")
    assert done.report.ok
    assert float(value(done.report, "against torch: NMSE")) < 1e-9
    assert value(done.report, "first choice") == 1


def test_an_output_matrix_of_its_own_is_kept_although_config_ties_it(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = make(tmp_path / "m", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    for scale, codes in ((1, []), (2, ["untied"])):
        head = tensors["model.embed_tokens.weight"] * np.float32(scale)
        save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
        done = convert(folder, tmp_path / f"{scale}.gguf", "f32")
        assert done.report.ok
        assert [notice.code for notice in done.warnings] == codes


def without_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = tuple(replace(rule, transform=None) for rule in family.PER_LAYER)
    monkeypatch.setattr(family, "FAMILY", replace(family.FAMILY, per_layer=rules))


def swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
    rules = []
    for rule in family.PER_LAYER:
        part = rule.source.split(".")[-2]
        rules.append(replace(rule, source=rule.source.replace(part, other.get(part, part))))
    monkeypatch.setattr(family, "FAMILY", replace(family.FAMILY, per_layer=tuple(rules)))


def planned(monkeypatch: pytest.MonkeyPatch, change: Callable[[ModelPlan], ModelPlan]) -> None:
    original = pipeline.plan_model
    monkeypatch.setattr(pipeline, "plan_model", lambda checkpoint: change(original(checkpoint)))


def worded(monkeypatch: pytest.MonkeyPatch, change: Callable[[Vocabulary], Vocabulary]) -> None:
    original = pipeline.read_vocabulary
    monkeypatch.setattr(pipeline, "read_vocabulary", lambda checkpoint, size, **_: change(original(checkpoint, size)))


def norm_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    planned(
        monkeypatch,
        lambda plan: replace(plan, tensors=tuple(t for t in plan.tensors if t.name != "blk.1.ffn_norm.weight")),
    )


def norm_of_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(plan: ModelPlan) -> ModelPlan:
        ones = np.ones(64, np.float32)
        made = [replace(t, sources=(), constant=ones) if t.name == "output_norm.weight" else t for t in plan.tensors]
        return replace(plan, tensors=tuple(made))

    planned(monkeypatch, change)


def keys(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        changed = {name.replace("__", "."): item for name, item in changes.items()}
        planned(monkeypatch, lambda plan: replace(plan, keys={**plan.keys, **changed}))

    return mutate


def token_ids_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    worded(monkeypatch, lambda v: replace(v, tokens=(*v.tokens[1:], v.tokens[0]), types=(*v.types[1:], v.types[0])))


def other_pre(monkeypatch: pytest.MonkeyPatch) -> None:
    worded(monkeypatch, lambda v: replace(v, pre="gpt-2"))


def template_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> Any:
        header = header_of(path)
        return replace(header, kv={**header.kv, "tokenizer.chat_template": "x"})

    header_of = passport.read_header
    monkeypatch.setattr(passport, "read_header", read)


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no permutation": without_permutation,
    "two tensors swapped": swapped,
    "a norm dropped": norm_dropped,
    "a norm of ones": norm_of_ones,
    "wrong theta": keys(rope__freq_base=20000.0),
    "wrong epsilon": keys(attention__layer_norm_rms_epsilon=1e-2),
    "token ids shifted": token_ids_shifted,
    "wrong pre": other_pre,
    "wrong template": template_shortened,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_conversion_gone_wrong_is_found_and_leaves_nothing(
    llama: Path, tmp_path: Path, mutation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTATIONS[mutation](monkeypatch)
    with pytest.raises(EdgeAIError) as caught:
        convert(llama, tmp_path / "out.gguf", "f32")
    assert caught.value.exit_code == 9, caught.value
    assert list(tmp_path.iterdir()) == []


def test_a_broken_quantizer_is_found(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converters import quantize

    encode = quantize.encode
    monkeypatch.setattr(
        quantize, "encode", lambda rows, kind, *rest: encode(rows * (1 if kind == "F32" else -0.5), kind, *rest)
    )
    with pytest.raises(ProofFailed, match="NMSE"):
        convert(llama, tmp_path / "out.gguf", "q8_0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quant", ["f16", "bf16", "q8_0", "q4_k_m"])
def test_a_quantized_file_passes_and_says_how_far_it_is(llama: Path, tmp_path: Path, quant: str) -> None:
    done = convert(llama, tmp_path / "out.gguf", quant)
    assert done.report.ok
    assert 0 < float(value(done.report, "logits against torch")) < passport.LIMITS["Q2_K"].nmse


def test_prove_takes_a_finished_file(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "out.gguf", "q2_k")
    assert prove(llama, tmp_path / "out.gguf").report.ok


def test_prove_finds_a_file_of_another_model(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "out.gguf", "q8_0")
    other = Path(shutil.copytree(llama, tmp_path / "other"))
    edit_json(other / "config.json", lambda config: config["rope_parameters"].update(rope_theta=77.0))
    assert not prove(other, tmp_path / "out.gguf").report.ok


def test_without_torch_the_report_and_a_notice_say_so(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passport, "no_torch", lambda _plan: "torch is not installed")
    done = convert(llama, tmp_path / "out.gguf", "q8_0")
    assert "no-torch-reference" in [notice.code for notice in done.warnings]
    assert value(done.report, "logits against torch") == "not compared"
    assert float(value(done.report, "logits against the F32 export")) > 0


def test_without_torch_a_broken_quantizer_is_still_found(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converters import quantize

    monkeypatch.setattr(passport, "no_torch", lambda _plan: "torch is not installed")
    encode = quantize.encode
    monkeypatch.setattr(
        quantize, "encode", lambda rows, kind, *rest: encode(rows * (1 if kind == "F32" else -0.5), kind, *rest)
    )
    with pytest.raises(ProofFailed):
        convert(llama, tmp_path / "out.gguf", "q8_0")


def test_limits_are_there_for_every_type_that_can_be_asked_for() -> None:
    from converters.quantmap import QUANTS

    assert set(QUANTS.values()) <= passport.LIMITS.keys()


def test_a_crash_of_the_runtime_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    from converters.child import Child, ChildDied

    script = tmp_path / "crash.py"
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(ChildDied, match="SIGSEGV") as caught, Child(script, {}, what="running 'x.gguf'") as child:
        child.result()
    assert caught.value.exit_code == 7


LONG = {"max_position_embeddings": 131072, "head_dim": 64, "num_hidden_layers": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32768}
YARN_BOUNDS = YARN | {"beta_fast": 16.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
ROPES: dict[str, tuple[dict[str, Any], list[dict[str, float]]]] = {
    "llama3": (LLAMA3, [{"factor": 16.0}, {"factor": 24.0}, {"factor": 64.0}, {"low_freq_factor": 2.0}]),
    "yarn": (YARN, [{"factor": 4.1}, {"factor": 8.0}, {"original_max_position_embeddings": 16384}]),
    "yarn bounds": (YARN_BOUNDS, [{"factor": 5.0}, {"beta_fast": 32.0}]),
    "linear": (LINEAR, [{"factor": 4.01}, {"factor": 8.0}]),
    "default": (DEFAULT, [{"rope_theta": 11000.0}, {"rope_theta": 10010.0}]),
}


@pytest.mark.parametrize("kind", ROPES)
def test_a_wrong_rope_is_found_and_the_right_one_passes_at_the_context_of_real_models(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, mistakes = ROPES[kind]
    folder = make(tmp_path / "m é", rope_parameters=settings, **LONG)
    right = convert(folder, tmp_path / "right.gguf", "f32").report
    for row in right.rows:
        if "apart" in row.name:
            assert float(row.value) < float(row.limit.removeprefix("< ")) / 5, row
    original = family.rope
    for mistake in mistakes:
        wrong = {"rope_parameters": settings | mistake, "max_position_embeddings": 131072}
        monkeypatch.setattr(family, "rope", lambda _config, *args, wrong=wrong, **kw: original(wrong, *args, **kw))
        with pytest.raises(ProofFailed, match="tokens apart"):
            convert(folder, tmp_path / "wrong.gguf", "f32")
    assert not (tmp_path / "wrong.gguf").exists()


def test_a_gap_needs_no_cache_of_its_size() -> None:
    from converters.native_child import stretches

    assert stretches({"ids": [5, 6, 7, 8], "head": 2, "start": 90, "prefill": 0}) == [
        (0, 0, [5, 6]),
        (1, 90, [7]),
        (1, 91, [8]),
    ]
    assert stretches({"ids": [5, 6], "head": 0, "start": 0, "prefill": 0}) == [(0, 0, [5, 6])]


def with_template(folder: Path, template: str) -> Path:
    edit_json(folder / "tokenizer_config.json", lambda config: config.update(chat_template=template))
    return folder


@pytest.mark.parametrize("torch", [True, False], ids=["with torch", "without torch"])
def test_a_template_that_refuses_every_conversation_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: bool
) -> None:
    if not torch:
        monkeypatch.setattr(passport, "no_torch", lambda _plan: "torch is not installed")
    folder = with_template(make(tmp_path / "m é"), "{{ raise_exception('never') }}")
    with pytest.raises(ProofFailed, match=r"refuses all 3 test conversations.*never"):
        convert(folder, None, "f32")


def test_a_template_may_refuse_some_conversations(tmp_path: Path) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ eos_token }}"
    report = convert(with_template(make(tmp_path / "m é"), template), None, "f32").report
    assert "renders 2 conversations" in str(value(report, "chat template"))


def test_a_template_with_a_name_that_the_runtime_does_not_know_fails(tmp_path: Path) -> None:
    folder = with_template(make(tmp_path / "m é"), "{{ unk_token }}{{ messages[0]['content'] }}")
    edit_json(folder / "tokenizer_config.json", lambda config: config.update(unk_token="<|im_start|>"))
    with pytest.raises(ProofFailed, match="chat template"):
        convert(folder, None, "f32")


def test_prove_renders_the_template_of_a_quantized_file_too(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "out.gguf", "q8_0")
    assert "renders 3 conv" in str(value(prove(llama, tmp_path / "out.gguf").report, "chat template"))


def test_the_proof_renders_with_the_names_of_the_runtime(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeai import chat
    from edgeai.model import open_engine

    seen: list[dict[str, str]] = []
    render = chat.render

    def spy(*args: Any, special: dict[str, str], **options: Any) -> list[chat.Segment]:
        seen.append(special)
        return render(*args, special=special, **options)

    monkeypatch.setattr(chat, "render", spy)
    convert(llama, tmp_path / "out.gguf", "f32")
    engine = open_engine(tmp_path / "out.gguf", threads=1)
    engine.prompt_ids([{"role": "user", "content": "Hi"}])
    engine.close()
    assert seen[0] == seen[-1]
    assert set(seen[0]) >= {"bos_token", "eos_token", "pad_token"}


def test_memory_and_threads_are_those_that_the_container_leaves(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converters import quantize
    from edgeai.device import Memory, cpu_facts

    small = Memory(total=1 << 34, available=1000, limit=1000)
    monkeypatch.setattr(passport, "memory_facts", lambda: small)
    cpu = replace(cpu_facts(), physical=8, usable=3, cores=None)
    for module in (passport, pipeline):
        monkeypatch.setattr(module, "cpu_facts", lambda: cpu)
    monkeypatch.setattr(passport, "SMALL_BYTES", 0)
    seen: set[int] = set()
    slabs = quantize.encoded_slabs

    def spy(tensor: Any, kind: str, threads: int = 1, *rest: Any) -> Any:
        seen.add(threads)
        return slabs(tensor, kind, threads, *rest)

    monkeypatch.setattr(quantize, "encoded_slabs", spy)
    done = convert(llama, tmp_path / "out.gguf", "q8_0")
    assert "0.0 GB are free" in next(item.message for item in done.warnings if item.code == "no-torch-reference")
    assert seen == {3}
    assert passport.Proof._threads(None) == 1  # type: ignore[arg-type]


def shuffled(data: bytes, size: int) -> bytes:
    """Return DATA with two of its blocks of SIZE bytes in each other's place."""
    return data[size : 2 * size] + data[:size] + data[2 * size :]


@pytest.mark.parametrize(("quant", "size"), [("q8_0", 34), ("q4_0", 18)])
def test_two_blocks_in_each_others_place_are_found(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str, size: int
) -> None:
    from converters import quantize

    encode = quantize.encode

    def swap(rows: Any, kind: str, *rest: Any) -> bytes:
        data = bytes(encode(rows, kind, *rest))
        return shuffled(data, size) if kind == quant.upper() and len(rows) == 64 else data

    monkeypatch.setattr(quantize, "encode", swap)
    with pytest.raises(ProofFailed, match=r"worst block, NMSE in \w+"):
        convert(llama, tmp_path / "out.gguf", quant)
    assert list(tmp_path.iterdir()) == []


def test_a_dropped_bias_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "m", attention_bias=True)
    planned(
        monkeypatch,
        lambda plan: replace(plan, tensors=tuple(t for t in plan.tensors if t.name != "blk.1.attn_q.bias")),
    )
    with pytest.raises(ProofFailed, match="F32 logits against torch"):
        convert(folder, tmp_path / "out.gguf", "f32")


def test_an_end_token_that_torch_stops_at_and_the_file_does_not_is_found(llama: Path) -> None:
    from converters.checkpoint import open_checkpoint
    from converters.families import plan_model
    from converters.tokenizer import read_vocabulary

    checkpoint = open_checkpoint(llama)
    words = read_vocabulary(checkpoint, plan_model(checkpoint).vocab_size)
    steps = [{"ids": [7, 8], "logits": [3.0, 1.0], "spread": 1.0}] * 3
    said = {"ids": [7, 7, words.eos], "steps": steps}
    (row,) = tokens.continuation_rows(words, [said], [[7, 7, words.eos]], exact=True)
    assert row.ok
    assert "ending with" in str(row.value)
    (row,) = tokens.continuation_rows(words, [said], [[7, 7, words.eos, 9]], exact=True)
    assert not row.ok
    (row,) = tokens.continuation_rows(words, [said], [[7, 8, 9]], exact=True)
    assert not row.ok
    near = {"ids": [7, 7], "steps": [{"ids": [7, 8], "logits": [3.0, 2.99999], "spread": 1.0}] * 2}
    (row,) = tokens.continuation_rows(words, [near], [[7, 8]], exact=True)
    assert row.ok
    assert "tie" in str(row.value)


def test_the_rows_cover_cache_continuation_chats_and_the_end(llama: Path, tmp_path: Path) -> None:
    report = convert(llama, tmp_path / "out.gguf", "q8_0").report
    assert float(value(report, "with the cache")) < 1e-9
    assert "conversations" in str(value(report, "chat token ids"))
    assert float(value(report, "difference of log p")) < 1e-4
    assert "tokens" in str(value(report, "continues as torch"))
    low, high = next(row.interval for row in report.rows if "mean KL" in row.name) or (0, 0)
    assert 0 <= low < float(value(report, "mean KL")) < high


@pytest.mark.parametrize("quant", ["f16", "bf16"])
def test_halves_are_compared_with_torch_in_halves(llama: Path, tmp_path: Path, quant: str) -> None:
    report = convert(llama, tmp_path / "out.gguf", quant).report
    rounded = float(value(report, f"logits against torch in {quant.upper()}"))
    assert rounded < 1e-5
    plain = next(row.value for row in report.rows if row.name == "logits against torch: NMSE")
    assert rounded < float(plain)


def test_windows_end_where_logits_would_fill_the_memory(llama: Path) -> None:
    from converters.checkpoint import open_checkpoint
    from converters.families import plan_model
    from edgeai.evaluation.prompts import WINDOW_BYTES, window_tokens

    plan = plan_model(open_checkpoint(llama))
    for context, vocabulary, expected in (
        (32, 500, 32),
        (8192, 49152, 512),
        (32768, 262144, 128),
        (131072, 1 << 21, 32),
    ):
        found = window_tokens(replace(plan, context=context, vocab_size=vocabulary))
        assert found == expected
        assert found * vocabulary * 4 <= 2 * WINDOW_BYTES
