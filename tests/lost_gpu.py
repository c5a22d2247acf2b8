"""A worker whose first process says that it runs on a GPU, and dies as libggml does when that is lost; later ones have none.

`python -m tests.lost_gpu IN OUT PARENT`; EDGEAI_LOST names a file that is there from the second process on, and SIGUSR1 is the loss.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeai import device, native
from edgeai.engines import opening
from edgeai.engines.worker import child
from edgeai.options import LoadOptions

BROKEN = "CUDA-capable device(s) is/are busy or unavailable"


def lose_it(*_: object) -> None:
    """Log and abort as ggml-cuda.cu does (ggml_cuda_error)."""
    library: Any = native.library()
    native._keep_log(4, b"CUDA error: unspecified launch failure\n", None)
    library._lib.ggml_abort(b"ggml-cuda.cu", 109, b"CUDA error")


def main() -> None:
    """Serve as a worker does."""
    mark, load = Path(os.environ["EDGEAI_LOST"]), opening.load_engine
    if mark.exists():
        from tests.test_cuda import ADA, machine

        device.probe = lambda **_: machine(gpus=(ADA,), error=BROKEN)  # type: ignore[assignment]
    else:
        mark.touch()
        signal.signal(signal.SIGUSR1, lose_it)

        def on_a_gpu(path: Path, wanted: LoadOptions, *, vetted: bool) -> Any:
            engine: Any = load(path, wanted, vetted=vetted)
            engine.plan = replace(engine.plan, device="cuda")
            return engine

        opening.load_engine = on_a_gpu  # type: ignore[assignment]
    child.main(sys.argv[1:])


if __name__ == "__main__":
    main()
