"""Small trained networks of four kinds on the digits: what faults are planted in."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

import graphmod as gm
from graphmod.converters.pytorch import to_onnx

KINDS = ("residual", "plain", "sequence", "transformer")


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.second = nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.second(self.relu(self.first(x))))


class _Encoder(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out((q @ k.transpose(1, 2) / 32**0.5).softmax(-1) @ v)
        return x + self.mlp(x)


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(1, 32, 2, 2), nn.Sequential(*(_Encoder() for _ in range(3)))
        self.position, self.head = nn.Parameter(0.1 * torch.randn(1, 16, 32)), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2) + self.position).mean(1))


def _build(kind: str) -> nn.Module:
    if kind == "residual":
        stem = [nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU()]
        return nn.Sequential(*stem, *(_Residual() for _ in range(4)), nn.Flatten(), nn.Linear(512, 10))
    if kind == "plain":
        sizes = [(1, 16, 1), (16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2)]
        layers = [[nn.Conv2d(a, b, 3, s, 1), nn.ReLU()] for a, b, s in sizes]
        return nn.Sequential(*(one for layer in layers for one in layer), nn.Flatten(), nn.Linear(128, 10))
    if kind == "sequence":
        sizes = [(1, 16, 1), (16, 16, 2), (16, 24, 2), (24, 24, 2), (24, 32, 2)]
        layers = [[nn.Conv1d(a, b, 5, s, 2), nn.ReLU()] for a, b, s in sizes]
        return nn.Sequential(*(one for layer in layers for one in layer), nn.Flatten(), nn.Linear(128, 10))
    return _Transformer()


@cache
def samples(kind: str) -> gm.Splits:
    """Return the digits as a network of this kind takes them."""
    found = gm.demo.splits()

    def shaped(part: gm.Data) -> gm.Data:
        x = next(iter(part.inputs.values()))
        return gm.Data({"x": x.reshape(len(x), 1, 64) if kind == "sequence" else x}, part.targets)

    return gm.Splits(shaped(found.train), shaped(found.calibration), shaped(found.test))


@cache
def trained(kind: str) -> gm.Model:
    """Return a network of this kind that gets most digits right."""
    part = samples(kind).train
    x, y = torch.tensor(part.inputs["x"]), torch.tensor(np.asarray(part.targets, np.int64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = _build(kind)
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(20 if kind == "transformer" else 6 if kind == "residual" else 12):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
    return to_onnx(net.eval(), (x[:2],), input_names=["x"], output_names=["logits"])
