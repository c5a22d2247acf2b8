"""A network that knows digits, trained once, and its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from converters.onnx import export_module
from tests.converters.onnx.networks import DIGITS, Cnn, train


@dataclass(frozen=True)
class Digits:
    """The network, its file in float32, and what it was trained and is tested on."""

    module: Cnn
    path: Path
    calibration: np.ndarray
    test: np.ndarray
    labels: np.ndarray


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    inputs = (found.images[order, None] / 16).astype(np.float32)
    labels = found.target[order].astype(np.int64)
    module = Cnn()
    train(module, inputs[:1200], labels[:1200])
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    export_module(module, torch.from_numpy(inputs[:1]), path, schema=DIGITS, metadata={"edgeai.tokenizer": "kept"})
    return Digits(module=module, path=path, calibration=inputs[:300], test=inputs[1200:], labels=labels[1200:])
