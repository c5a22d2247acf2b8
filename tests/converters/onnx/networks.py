"""Small networks of every shape that is exported, and a folder as the trainer leaves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

DIGITS = {
    "version": 1,
    "name": "digits",
    "task": "classification",
    "inputs": [
        {
            "kind": "image",
            "name": "image",
            "channels": 1,
            "height": 8,
            "width": 8,
            "resize": "bilinear",
            "scale": 1 / 16,
            "invert": False,
            "mean": [0.0],
            "std": [1.0],
        }
    ],
    "output": {"name": "logits", "kind": "logits"},
    "labels": [f"digit {index}" for index in range(10)],
}


class Cnn(nn.Module):
    """Convolutions, a normalization that is folded away, a residual addition, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.third, self.head = nn.Conv2d(16, 32, 3, padding=1), nn.Linear(128, 10)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.max_pool2d(torch.relu(x + self.second(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.third(x)), 2)
        return self.head(x.flatten(1))


class Mlp(nn.Module):
    def __init__(self, columns: int = 6, outputs: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(columns, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, outputs))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)


class Tcn(nn.Module):
    """Causal convolutions over time, each of twice the reach."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(2 if i == 0 else 16, 16, 3, dilation=2**i) for i in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            series = torch.relu(layer(nn.functional.pad(series, (2 * 2**index, 0))))
        return self.head(series[..., -1])


class Encoder(nn.Module):
    """A transformer of one layer over tokens, with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 32), nn.Embedding(64, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, activation="gelu")
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.tokens(input_ids) + self.places.weight[: input_ids.shape[1]]  # a length of 64 at most
        x = self.layer(x, src_key_padding_mask=attention_mask == 0)
        weight = attention_mask.unsqueeze(-1).float()
        return self.head((x * weight).sum(1) / weight.sum(1))


class Tied(nn.Module):
    """An embedding and a head that are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(300, 32), nn.Linear(32, 300, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.tokens(ids))


class Two(nn.Module):
    """Two outputs, and one that is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return nn.functional.gelu(self.left(x)), self.right(x), x


def train(module: nn.Module, inputs: np.ndarray, labels: np.ndarray, *, epochs: int = 5, loss: Any = None) -> None:
    """Train MODULE in place, for seconds: with one thread, because others wait long for each other where cores are shared."""
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    module.train()
    for _ in range(epochs):
        for at in range(0, len(x), 64):
            optimizer.zero_grad()
            (loss or nn.functional.cross_entropy)(module(x[at : at + 64]), y[at : at + 64]).backward()
            optimizer.step()
    torch.set_num_threads(threads)
    module.eval()


def write_folder(
    folder: Path,
    module: nn.Module,
    schema: dict[str, Any],
    calibration: dict[str, np.ndarray],
    test: dict[str, np.ndarray],
    labels: np.ndarray,
) -> Path:
    """Write the FOLDER of a trained classifier."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "edgeai-classifier", "architecture": "cnn", "network": {}, "schema": schema}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "edgeai.json").write_text("{}")
    save_file({name: value.clone() for name, value in module.state_dict().items()}, folder / "model.safetensors")
    tensors = {"test.labels": torch.from_numpy(labels)}
    for part, arrays in (("calibration", calibration), ("test", test)):
        for name, values in arrays.items():
            tensors[part if len(arrays) == 1 else f"{part}.{name}"] = torch.from_numpy(values.copy())
    save_file(tensors, folder / "data.safetensors")
    return folder
