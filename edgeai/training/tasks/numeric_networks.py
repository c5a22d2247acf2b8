"""The networks of what is given in numbers: pictures, tables and series."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import nn

from edgeai.declared import number

__all__ = ["MANY", "Cnn", "CnnShape", "Mlp", "MlpShape", "Tcn", "TcnShape"]

MANY = 2**24
"""More inputs, outputs or tokens than that are a mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CnnShape:
    """What a Cnn is built from."""

    channels: int = number(1, 3)
    height: int = number(1, 1024)
    width: int = number(1, 1024)
    features: int = number(1, 4096)
    stages: int = number(1, 8)
    outputs: int = number(1, MANY)
    dropout: float = number(0.0, 0.9)


class Cnn(nn.Module):
    """Stages of two 3x3 convolutions and a maximum over 2x2, then one linear layer on what is left of the picture."""

    def __init__(self, shape: CnnShape) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before, after = shape.channels, shape.features
        for _ in range(shape.stages):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            before, after = after, after * 2
        self.stages = nn.Sequential(*layers)
        self.dropout = nn.Dropout(shape.dropout)
        left = before * (shape.height >> shape.stages) * (shape.width >> shape.stages)
        self.head = nn.Linear(left, shape.outputs)
        _he_init(self, self.head)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, outputs) for IMAGE (batch, channels, height, width)."""
        left = self.stages(image).flatten(1)
        return self.head(self.dropout(left))


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpShape:
    """What an Mlp is built from."""

    inputs: int = number(1, MANY)
    hidden_size: int = number(1, 65536)
    layers: int = number(0, 64)
    outputs: int = number(1, MANY)
    dropout: float = number(0.0, 0.9)


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, shape: MlpShape) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = shape.inputs
        for _ in range(shape.layers):
            layers += [nn.Linear(before, shape.hidden_size), nn.ReLU(), nn.Dropout(shape.dropout)]
            before = shape.hidden_size
        head = nn.Linear(before, shape.outputs)
        self.layers = nn.Sequential(*layers, head)
        _he_init(self, head)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (batch, outputs) for FEATURES (batch, inputs)."""
        return self.layers(features)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcnShape:
    """What a Tcn is built from."""

    channels: int = number(1, 1024)
    width: int = number(1, 4096)
    blocks: int = number(1, 16)
    kernel: int = number(2, 64)
    outputs: int = number(1, MANY)
    dropout: float = number(0.0, 0.9)

    @property
    def sees(self) -> int:
        """How many steps back the last output looks, itself included."""
        return 1 + 2 * (self.kernel - 1) * ((1 << self.blocks) - 1)


class CausalBlock(nn.Module):
    """Two causal convolutions of one dilation beside a way around them."""

    def __init__(self, before: int, width: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.past = (kernel - 1) * dilation
        self.first = nn.Conv1d(before, width, kernel, dilation=dilation)
        self.second = nn.Conv1d(width, width, kernel, dilation=dilation)
        self.around = nn.Conv1d(before, width, 1) if before != width else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        """Return (batch, width, length); no output depends on a later step."""
        inner = self.dropout(F.relu(self.first(F.pad(series, (self.past, 0)))))
        inner = self.dropout(F.relu(self.second(F.pad(inner, (self.past, 0)))))
        return F.relu(inner + self.around(series))


class Tcn(nn.Module):
    """A temporal convolutional network (Bai, Kolter and Koltun 2018, section 3); the last step is what is judged by."""

    def __init__(self, shape: TcnShape) -> None:
        super().__init__()
        widths = [shape.channels] + [shape.width] * shape.blocks
        self.blocks = nn.Sequential(
            *(
                CausalBlock(before, shape.width, shape.kernel, 2**index, shape.dropout)
                for index, before in enumerate(widths[:-1])
            )
        )
        self.head = nn.Linear(shape.width, shape.outputs)
        _he_init(self, self.head)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        """Return (batch, outputs) for SERIES (batch, channels, length)."""
        return self.head(self.blocks(series)[:, :, -1])


def _he_init(module: nn.Module, head: nn.Linear) -> None:
    """Draw weights that keep the size of what goes through a ReLU (He et al. 2015); there is no normalisation here.

    HEAD, the last layer, begins close to saying nothing: large first answers would have to be unlearned.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    nn.init.normal_(head.weight, std=0.01)
