"""Run llama.cpp's reference converter on some folders, in a process of its own: its modules and gguf-py are not ours.

argv[1] is the folder of llama.cpp; stdin gets {name: [model folder, output path]} as JSON, and stdout {name: null or the error}.
The tokenizers here are trained on the spot, so its check of known tokenizers is answered, and every vocabulary is read as byte-level
BPE. What a family's own vocabulary would add is lost with that.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any


def convert(folder: Path, path: Path) -> None:
    """Write FOLDER to the GGUF file PATH in F32."""
    import gguf  # type: ignore[import-untyped]
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class  # type: ignore[import-not-found]

    hparams = ModelBase.load_hparams(folder, False)
    model_class = get_model_class(get_model_architecture(hparams, ModelType.TEXT), mmproj=False)
    with torch.inference_mode():
        model = model_class(folder, gguf.LlamaFileType.ALL_F32, path)
        model.get_vocab_base_pre = lambda _tokenizer: "llama-bpe"
        model.set_vocab = model._set_vocab_gpt2
        model.write()


def main() -> None:
    """Convert every folder of the request."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    llama_cpp = Path(sys.argv[1])
    sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
    request: dict[str, tuple[str, str]] = json.load(sys.stdin)
    answer: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        for name, (folder, path) in request.items():
            try:
                convert(Path(folder), Path(path))
                answer[name] = None
            except Exception as error:  # noqa: BLE001 - whatever it is, it becomes the message of the test
                answer[name] = f"{type(error).__name__}: {error}"
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
