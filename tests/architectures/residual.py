"""Residual networks for images, plain, grouped, preactivated and with attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.layers import Classifier, DropPath, SqueezeExcite, conv_norm
from architectures.registry import architecture, real


class BasicBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv_norm(n_in, n_out, 1, stride, act=None) if stride > 1 or n_in != n_out else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


@architecture()
def resnet_basic():
    stem = [*conv_norm(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1)]
    blocks = [BasicBlock(8, 8), BasicBlock(8, 8), BasicBlock(8, 16, 2), BasicBlock(16, 16), BasicBlock(16, 24, 2)]
    return Classifier(nn.Sequential(*stem, *blocks), 24), (real(3, 32, 32),)


class Bottleneck(nn.Module):
    """With groups, squeeze-and-excitation and a pooled shortcut as options."""

    def __init__(
        self, n_in: int, n_out: int, stride: int = 1, groups: int = 1, excite: bool = False, pool: bool = False
    ):
        super().__init__()
        width = n_out // 2
        self.conv1 = conv_norm(n_in, width, 1)
        self.conv2 = conv_norm(width, width, 3, stride, groups)
        self.conv3 = conv_norm(width, n_out, 1, act=None)
        self.se = SqueezeExcite(n_out, 4) if excite else nn.Identity()
        self.drop_path, self.act = DropPath(), nn.ReLU(inplace=True)
        if pool:
            pooled = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            self.downsample = nn.Sequential(pooled, *conv_norm(n_in, n_out, 1, act=None))
        else:
            self.downsample = conv_norm(n_in, n_out, 1, stride, act=None) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop_path(self.se(self.conv3(self.conv2(self.conv1(x))))) + self.downsample(x))


@architecture()
def resnet_d():
    stem = [conv_norm(3, 4, 3, 2), conv_norm(4, 4), conv_norm(4, 8), nn.MaxPool2d(3, 2, 1)]
    blocks = [Bottleneck(8, 16, pool=True), Bottleneck(16, 32, 2, pool=True), Bottleneck(32, 32, 2, pool=True)]
    return Classifier(nn.Sequential(*stem, *blocks), 32), (real(3, 36, 36),)


@architecture()
def resnext():
    blocks = [Bottleneck(8, 16, groups=4), Bottleneck(16, 16, groups=4), Bottleneck(16, 32, 2, groups=4)]
    return Classifier(nn.Sequential(*conv_norm(3, 8, 3, 2), *blocks), 32), (real(3, 32, 32),)


@architecture()
def se_resnet():
    blocks = [Bottleneck(8, 16, excite=True), Bottleneck(16, 16, excite=True), Bottleneck(16, 24, 2, excite=True)]
    return Classifier(nn.Sequential(*conv_norm(3, 8, 3, 2), *blocks), 24), (real(3, 32, 32),)


class Preactivated(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(n_out), nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.shortcut = None if n_in == n_out else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = F.dropout(F.relu(self.bn2(self.conv1(out))), 0.3, self.training)
        return torch.add(self.conv2(out), shortcut)


class WideResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(Preactivated(8, 16, 1), Preactivated(16, 16, 1), Preactivated(16, 32, 2))
        self.bn = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.bn(self.blocks(self.conv1(x)))), 8)
        return F.log_softmax(self.fc(x.view(-1, 32)), dim=1)


@architecture()
def wide_resnet():
    return WideResNet(), (real(3, 16, 16),)


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0 and, times their size, variance 1."""

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(
            x,
            (self.weight - mean) / (std + 1e-6) / math.sqrt(self.weight[0].numel()),
            self.bias,
            self.stride,
            self.padding,
        )


class GroupNormBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, width), StandardizedConv2d(width, width, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.GroupNorm(4, width), StandardizedConv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


@architecture()
def big_transfer():
    stem = [nn.ConstantPad2d(3, 0.0), StandardizedConv2d(3, 12, 7, 2, bias=False), nn.MaxPool2d(3, 2, 1)]
    head = [nn.GroupNorm(4, 12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 10, 1), nn.Flatten()]
    return nn.Sequential(*stem, GroupNormBlock(12), GroupNormBlock(12), *head), (real(3, 32, 32),)


class Res2Block(nn.Module):
    """A hierarchy of convolutions over chunks of the channels."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv3 = conv_norm(width, width, 1), conv_norm(width, width, 1, act=None)
        self.convs = nn.ModuleList(conv_norm(width // 4, width // 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = torch.chunk(self.conv1(x), 4, 1)
        done = [first]
        for index, (conv, part) in enumerate(zip(self.convs, rest, strict=True)):
            done.append(conv(part + done[-1] if index else part))
        return F.relu(self.conv3(torch.cat(done, 1)) + x)


@architecture()
def res2net():
    return Classifier(nn.Sequential(conv_norm(3, 16, 3, 2), Res2Block(16), Res2Block(16)), 16), (real(3, 32, 32),)


class BlockAttention(nn.Module):
    """Attention over channels, then over places."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width))
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mlp(F.adaptive_avg_pool2d(x, 1))
        peak = self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(mean + peak).unsqueeze(2).unsqueeze(3).expand_as(x)
        pooled = torch.cat([torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)], dim=1)
        return x * torch.sigmoid(self.conv(pooled))


@architecture()
def cbam():
    layers = [conv_norm(3, 8, 3, 2), BlockAttention(8), conv_norm(8, 12, 3, 2), BlockAttention(12)]
    return Classifier(nn.Sequential(*layers), 12), (real(3, 32, 32),)
