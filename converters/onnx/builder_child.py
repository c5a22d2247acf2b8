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
    settle_phi(config)
    settle_window(config)
    mend_smollm()
    share_bytes()
    place_types(request["nodes"])
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
    """Write the settings of rope as the builder reads them: transformers 5 keeps those of Gemma 3 by kind of layer.

    Of all types but the plain one the builder gets transformers' own tables: its families know some types each, and LlamaModel takes
    yarn and linear for plain ones without a word.
    """
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    kinds: list[str | None] = [
        kind for kind in ("full_attention", "sliding_attention") if isinstance(rope.get(kind), dict)
    ]
    parts = [rope[kind] for kind in kinds] or [rope]
    types = {part.get("rope_type", "default") for part in parts}
    if types != {"default"}:
        use_tables([frequencies(config, part, kind) for part, kind in zip(parts, kinds or [None], strict=True)])
    if len(kinds) == 2:
        config.rope_local_base_freq = parts[1]["rope_theta"]
        config.rope_theta = parts[0]["rope_theta"]
    config.rope_parameters = {**parts[0], "rope_type": "default"}


def frequencies(config: Any, rope: dict[str, Any], kind: str | None) -> tuple[Any, float]:
    """Return the angle of each pair of dimensions per position, and what cosines and sines are multiplied with."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if rope.get("rope_type", "default") != "default":
        named: dict[str, Any] = {} if kind is None else {"layer_type": kind}
        if rope["rope_type"] == "longrope":  # of short texts: longer ones do not fit into the context of the folder
            named["seq_len"] = config.original_max_position_embeddings
        found: tuple[Any, float] = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"), **named)
        return found
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size), 1.0


def use_tables(found: list[tuple[Any, float]]) -> None:
    """Let the builder take the tables of rope that it makes, in their order, from FOUND."""
    import torch

    model: Any = importlib.import_module("builders.base").Model  # the builder puts its own folder into sys.path
    left = iter(found)

    def make(self: Any) -> tuple[Any, Any]:
        step, scale = next(left)
        angles = torch.outer(torch.arange(self.rope_attrs["cache_length"]).float(), step)
        both = torch.cat((angles, angles), dim=-1)
        return both.cos() * scale, both.sin() * scale

    model.make_rotary_embedding_caches_from_scratch = make


def settle_window(config: Any) -> None:
    """Say which layers have the window of attention: none, where none does, and all, where the source does not say it layer by layer.

    The builder would write a window into its configuration that no layer of the graph has, and the runtime make caches for it.
    """
    size, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if size is None:
        return
    if size >= config.max_position_embeddings or (kinds and "sliding_attention" not in kinds):
        config.sliding_window = -1
    elif not kinds:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers


def settle_phi(config: Any) -> None:
    """Say of Phi 3 what the builder asks: it takes a model for one with two sets of frequencies where two lengths differ.

    Such a graph would choose by the tokens that are there so far: the folder has the context in which there is one set.
    """
    if config.architectures[0] != "Phi3ForCausalLM":
        return
    if config.rope_parameters.pop("short_factor", None) is not None:
        shortest = min(config.max_position_embeddings, config.original_max_position_embeddings)
        config.max_position_embeddings = shortest
        config.rope_parameters.pop("long_factor", None)
    config.original_max_position_embeddings = config.max_position_embeddings


def mend_smollm() -> None:
    """Leave rope out of the layers of SmolLM 3 that have none: the builder (0.18) looks for positions there that the graph does not get."""
    model: Any = importlib.import_module("builders.smollm").SmolLM3Model
    original = model.make_attention

    def make_attention(self: Any, layer_id: int, *arguments: Any, **named: Any) -> None:
        rope = self.attention_attrs["rope"]
        self.attention_attrs["rope"] = bool(self.no_rope_layers[layer_id])
        try:
            original(self, layer_id, *arguments, **named)
        finally:
            self.attention_attrs["rope"] = rope

    model.make_attention = make_attention


def mend_gemma() -> None:
    """Scale Gemma's embeddings by the square root of their width: the builder (0.18) rounds it to two decimals, 25.3 in place of 25.298."""
    model: Any = importlib.import_module("builders.gemma").GemmaModel  # the builder puts its own folder into sys.path
    original = model.make_embedding

    def make_embedding(self: Any, embedding: Any) -> None:
        self.embed_attrs["scale"] = float(self.hidden_size) ** 0.5
        original(self, embedding)

    model.make_embedding = make_embedding


def share_bytes() -> None:
    """Let one matrix in 8 bits be both ends of a model that has them tied: the builder (0.18) shares those in 4 bits only.

    onnxruntime reads rows of both (GatherBlockQuantized, bits 4 and 8); a second copy in float32 was two thirds of SmolLM2's file.
    """
    import onnx_ir as ir

    model: Any = importlib.import_module("builders.base").Model  # the builder puts its own folder into sys.path
    original = model.make_tied_embeddings_init

    def make_tied_embeddings_init(self: Any, config: Any) -> None:
        original(self, config)
        wanted = self.extra_options.get("shared_embeddings") and not (self.exclude_embeds or self.exclude_lm_head)
        in_bytes = self.onnx_dtype in {ir.DataType.INT8, ir.DataType.UINT8} and self.is_lm_head_quantized()
        if wanted and in_bytes:
            self.tied_quantized_embeddings, self.tied_unquantized_embeddings = True, False

    def names(self: Any) -> tuple[int, str, str, str]:
        found: tuple[int, str, str, str] = named(self)
        if found[0] == 8 and self.quantization_algo == "default":  # it expects those of another quantizer
            return 8, "lm_head.MatMul.weight_Q8", "lm_head.MatMul.weight_scales", ""
        return found

    named = model.make_tied_quantized_embedding_input_names
    model.make_tied_embeddings_init = make_tied_embeddings_init
    model.make_tied_quantized_embedding_input_names = names


def place_types(nodes: dict[str, int]) -> None:
    """Give matrices types of their own: NODES is node → bits, 32 for float32; a name that the graph does not have is passed over.

    The builder (0.18) has a table of them, which its options fill for some groups of nodes only. Query, key and value are one matrix in
    most families, and none of their own where they are to have different types.
    """
    model: Any = importlib.import_module("builders.base").Model  # the builder puts its own folder into sys.path
    packable, quantize = model.is_qkv_projection_packable, model.to_nbits

    def is_qkv_projection_packable(self: Any, layer: int, attention: Any) -> bool:
        attn = f"/model/layers.{layer}/attn"
        apart = any(f"{attn}/{part}_proj/MatMul" in nodes for part in "qkv")
        if apart and f"{attn}/qkv_proj/MatMul" not in nodes:
            return False
        return bool(packable(self, layer, attention))

    def to_nbits(self: Any) -> Any:
        have = {node.name for node in self.model.graph} & nodes.keys()
        kept = {name for name in have if nodes[name] == 32}
        rows = {name for name in have if name.endswith("/Gather")}
        self.quant_attrs["nodes_to_exclude"] = sorted({*self.quant_attrs["nodes_to_exclude"], *kept, *rows})
        # the second of its passes takes whatever the first has left
        self.int4_customized_weight_config = {name: {"bits": nodes[name]} for name in sorted(have - kept - rows)}
        made = quantize(self)
        for name in sorted(rows - kept):
            quantize_rows(made, name, nodes[name], self.quant_attrs["matmul_block_size"])
        return made

    model.is_qkv_projection_packable, model.to_nbits = is_qkv_projection_packable, to_nbits


def quantize_rows(made: Any, name: str, bits: int, block: int) -> None:
    """Put the embedding of the node NAME in MADE into blocks of BLOCK numbers of BITS bits, rounded as the matrices are.

    onnxruntime's own quantizer (1.32: quantize_gather) does so in 4 bits only.
    """
    import numpy as np
    import onnx_ir as ir
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

    graph = made.graph
    node = next(node for node in graph if node.name == name)
    weights, ids = node.inputs
    values = weights.const_value.numpy()
    if values.shape[1] % block:
        raise ValueError(f"rows of {values.shape[1]} numbers are no whole blocks of {block}")
    rule = DefaultWeightOnlyQuantizer(DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, bits=bits))
    codes, scales, _ = rule.qbits_block_quant(np.ascontiguousarray(values.T))
    codes = codes.reshape(len(values), -1)
    inputs = []
    for ending, array in ((f"Q{bits}", codes), ("scales", scales)):
        tensor = ir.tensor(array, name=f"{weights.name}_{ending}")
        value = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        graph.register_initializer(value)
        inputs.append(value)
    attributes = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    blocks = ir.Node(
        "com.microsoft", "GatherBlockQuantized", [inputs[0], ids, inputs[1]],
        [ir.AttrInt64(key, value) for key, value in attributes.items()], name=f"{name}_Q{bits}", num_outputs=1,
    )  # fmt: skip
    ir.convenience.replace_nodes_and_values(graph, node, [node], [blocks], node.outputs, blocks.outputs)
    graph.initializers.pop(weights.name)


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
