"""What all tests share: a home of their own, and models that are made or fetched once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from edgeai.model import Model, open_engine
from tests import ledger

# A suite that runs in the background inherits an ignored Ctrl-C, and the tests of Ctrl-C need the usual one.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no fault of the code: what must be fast is measured in bench/.
settings.register_profile("edgeai", deadline=None)
settings.load_profile("edgeai")

ROOT = Path(__file__).parents[1]
RECORDING = bool(os.environ.get("EDGEAI_RECORD_PROOFS"))
"""Set by `make table`."""
USER_HOME = os.environ.get("EDGEAI_HOME")


PROVED: list[ledger.Proved] = []
Record = Callable[..., None]


@pytest.fixture(scope="session")
def record_proof() -> Record:
    """Record that a conversion was proved: `record_proof(model=, source=, variant=, proof=, error=)`; README's table is drawn from it."""
    known = ledger.recorded()

    def record(*, model: str, source: str, variant: str, proof: str, error: float) -> None:
        found = ledger.Proved(
            model=model, source=source, variant=variant, proof=proof, worst=ledger.power_of_ten(error)
        )
        PROVED.append(found)
        if not RECORDING:
            assert any(found.same_as(item) for item in known), f"not in the table of README: {found}: run `make table`"

    return record


def pytest_sessionfinish(exitstatus: int) -> None:
    """Write the record of a passing `make table`."""
    if RECORDING and exitstatus == 0:
        ledger.write(PROVED)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's models, configuration and endpoints."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("EDGEAI_HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    for name in list(os.environ):
        if name.startswith(("EDGEAI_", "OPENAI_")) and name != "EDGEAI_HOME":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real SmolLM2-135M-Instruct from the user's own store, pulled if it is not there yet."""
    return pulled("smollm2")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The real all-MiniLM-L6-v2 in full precision, a folder in the user's own store, pulled if it is not there yet."""
    return pulled("minilm")


def pulled(name: str) -> Path:
    """Return where the model NAME of the catalogue is in the user's own store."""
    from edgeai.paths import home
    from edgeai.store import Store
    from edgeai.types import no_progress

    outer = os.environ.get("EDGEAI_HOME")
    try:
        if USER_HOME is None:
            os.environ.pop("EDGEAI_HOME", None)
        else:
            os.environ["EDGEAI_HOME"] = USER_HOME
        home().mkdir(parents=True, exist_ok=True)
        return Store.open().pull(name, no_progress)
    finally:
        if outer is not None:
            os.environ["EDGEAI_HOME"] = outer


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Iterator[Model]:
    """SmolLM2 loaded once, at a context of 512."""
    model = Model(open_engine(smollm2_path, ctx=512))
    yield model
    model.close()


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny converted to GGUF in F32 and proved."""
    from edgeai.pipeline import convert

    output = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    convert(ROOT / "models" / "tiny", output, "f32")
    return output


@pytest.fixture(scope="session")
def tiny(tiny_gguf: Path) -> Iterator[Model]:
    """The tiny base model, loaded once."""
    model = Model(open_engine(tiny_gguf, threads=1))
    yield model
    model.close()


@pytest.fixture(scope="session")
def tiny_onnx_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny converted to a folder of ONNX in F32 and proved; no test changes it."""
    return converted_to_onnx(tmp_path_factory.mktemp("tiny onnx é") / "tiny-f32", "f32")


@pytest.fixture(scope="session")
def tiny_onnx_int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny converted to a folder of ONNX in INT4 and proved; no test changes it."""
    return converted_to_onnx(tmp_path_factory.mktemp("tiny onnx é") / "tiny-int4", "int4")


def converted_to_onnx(output: Path, quant: str) -> Path:
    """Convert models/tiny to the folder OUTPUT; builder and torch run in this process, tests/cli runs them as users do."""
    from edgeai.evaluation import passport
    from edgeai.exporting import convert_onnx
    from tests.checkpoints import InProcessTorch
    from tests.genai import InProcessBuilder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("converters.onnx.language.Child", InProcessBuilder)
        patch.setattr(passport, "Child", InProcessTorch)
        convert_onnx(ROOT / "models" / "tiny", output, quant)
    return output


@pytest.fixture(scope="session")
def tiny_genai(tiny_onnx_f32: Path) -> Iterator[Model]:
    """The tiny base model in onnxruntime-genai, loaded once."""
    model = Model(open_engine(tiny_onnx_f32, threads=1))
    yield model
    model.close()
