"""Layers that several families build on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_norm(
    n_in: int,
    n_out: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    act: type | None = nn.ReLU,
    dilation: int = 1,
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), *([act()] if act else []))


class Classifier(nn.Module):
    """Features, their mean over the image, and a linear layer."""

    def __init__(self, features: nn.Module, width: int):
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))


class DropPath(nn.Module):
    """Stochastic depth."""

    def __init__(self, probability: float = 0.1):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.probability
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, reduced: int, act: type = nn.ReLU, gate: type = nn.Sigmoid):
        super().__init__()
        self.conv_reduce, self.act = nn.Conv2d(width, reduced, 1), act()
        self.conv_expand, self.gate = nn.Conv2d(reduced, width, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.conv_expand(self.act(self.conv_reduce(x.mean((2, 3), keepdim=True)))))


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, act: type = nn.GELU):
        super().__init__()
        self.fc1, self.act, self.drop = nn.Linear(width, hidden), act(), nn.Dropout(0.1)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Attention(nn.Module):
    """Multi-head attention of tokens with each other, its scores spelt out or fused."""

    def __init__(self, width: int, heads: int, fused: bool = False):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.scale = (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = self.drop((q * self.scale @ k.transpose(-2, -1)).softmax(-1)) @ v
        return self.proj(x.transpose(1, 2).reshape(n, length, width))


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each behind a normalisation and beside a skip connection."""

    def __init__(self, width: int, heads: int, fused: bool = False):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads, fused)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width, 2 * width)
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
