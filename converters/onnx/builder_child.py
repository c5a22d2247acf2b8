"""The child process that runs onnxruntime-genai's model builder: a Hugging Face folder → a folder that onnxruntime-genai runs.

Run by `converters.child` as a script: it imports nothing of this project. argv[1] is a folder with request.json; the answer goes to
answer.json beside it. Everything that the builder, torch and tqdm print stays here.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

LAST_LINES = 6


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Build the folder request["output"] from the folder request["source"]; return what the builder is, and what it had to be told."""
    import onnxruntime_genai as og
    import torch

    og.disable_telemetry_events()
    torch.set_num_threads(request["threads"])
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    place = ("", request["source"], request["output"], request["precision"], request["provider"], request["cache"])
    options = parse_extra_options(*place, [f"{key}={value}" for key, value in request["options"].items()])
    config = options["hf_details"]["hf_config"]
    flatten_rope(config)
    mend_gemma()
    load_in_float32()
    config.update({"eos_token_id": request["stop"], "bos_token_id": request["bos"]})
    create_model(*place, **options)
    check(Path(request["output"]) / "model.onnx")
    return {"version": og.__version__}


def check(path: Path) -> None:
    """Run onnx's checker, which does not know that onnxruntime has SimplifiedLayerNormalization in the standard domain."""
    import onnx

    if not onnx.defs.has("SimplifiedLayerNormalization"):
        teach()
    onnx.checker.check_model(str(path))


def teach() -> None:
    """Tell the checker of SimplifiedLayerNormalization, once in a process."""
    import onnx

    kind = onnx.defs.OpSchema
    numbers = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
    onnx.defs.register_schema(
        kind(
            "SimplifiedLayerNormalization",
            "",
            1,
            inputs=[kind.FormalParameter("X", "T"), kind.FormalParameter("scale", "T")],
            outputs=[
                kind.FormalParameter("Y", "T"),
                kind.FormalParameter("inv_std_var", "T", param_option=kind.FormalParameterOption.Optional),
            ],
            type_constraints=[("T", numbers, "")],
            attributes=[
                kind.Attribute("axis", kind.AttrType.INT, required=False, description=""),
                kind.Attribute("epsilon", kind.AttrType.FLOAT, required=False, description=""),
                kind.Attribute("stash_type", kind.AttrType.INT, required=False, description=""),
            ],
        )
    )


def flatten_rope(config: Any) -> None:
    """Write the settings of rope as the builder reads them: transformers 5 keeps those of Gemma 3 by kind of layer."""
    rope = getattr(config, "rope_parameters", None)
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(rope, dict) or not all(isinstance(rope.get(kind), dict) for kind in kinds):
        return
    whole, local = (rope[kind] for kind in kinds)
    if local.get("rope_type", "default") != "default" or whole.get("rope_type", "default") not in ("default", "linear"):
        raise NotImplementedError(f"rope types {whole.get('rope_type')!r} and {local.get('rope_type')!r} together")
    if whole.get("rope_type") == "linear":
        raise NotImplementedError("linear scaling of rope in some layers only: the builder would scale all")
    config.rope_local_base_freq = local["rope_theta"]
    config.rope_theta = whole["rope_theta"]
    config.rope_parameters = dict(whole)


def mend_gemma() -> None:
    """Scale Gemma's embeddings by the square root of their width: the builder (0.18) rounds it to two decimals, 25.3 in place of 25.298."""
    model: Any = importlib.import_module("builders.gemma").GemmaModel  # the builder puts its own folder into sys.path
    original = model.make_embedding

    def make_embedding(self: Any, embedding: Any) -> None:
        self.embed_attrs["scale"] = float(self.hidden_size) ** 0.5
        original(self, embedding)

    model.make_embedding = make_embedding


def load_in_float32() -> None:
    """Have the builder read weights in float32: it adds and multiplies them in the type that they are stored in.

    Gemma's norms are 1 + w, which bfloat16 rounds by up to 0.4 %: the NMSE of the logits of Gemma-3-270M was 3e-5.
    """
    import torch
    from transformers import AutoModelForCausalLM

    original = AutoModelForCausalLM.from_pretrained
    AutoModelForCausalLM.from_pretrained = functools.partial(original, dtype=torch.float32)


def main() -> None:
    """Answer the request in the folder argv[1]."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: a parent that was killed takes this process along
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
    }
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text())
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            result = build(request)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 - the builder raises whatever it meets, Exception itself included
        result = {
            "error": f"{type(error).__name__}: {' '.join(str(error).split())}",
            "log": said.getvalue().splitlines()[-LAST_LINES:],
        }
    (folder / "answer.json").write_text(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the parent got the same Ctrl-C and says what there is to say
        sys.exit(130)
