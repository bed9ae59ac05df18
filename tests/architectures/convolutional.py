"""Convolutional classifiers that are not ResNets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.layers import Classifier, DropPath, LayerNorm2d, SqueezeExcite, conv_norm
from architectures.registry import architecture, real


class SamePadConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow does, from the size of the image."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class MBConv(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = n_in * expansion
        self.conv_pw, self.bn1 = nn.Conv2d(n_in, wide, 1, bias=False), nn.BatchNorm2d(wide, eps=1e-3)
        self.conv_dw = SamePadConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self.bn2, self.se = nn.BatchNorm2d(wide, eps=1e-3), SqueezeExcite(wide, max(1, n_in // 4), nn.SiLU)
        self.conv_pwl, self.bn3 = nn.Conv2d(wide, n_out, 1, bias=False), nn.BatchNorm2d(n_out, eps=1e-3)
        self.act, self.drop_path, self.skip = nn.SiLU(inplace=True), DropPath(), stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn2(self.conv_dw(self.act(self.bn1(self.conv_pw(x))))))
        y = self.bn3(self.conv_pwl(self.se(y)))
        return self.drop_path(y) + x if self.skip else y


@architecture()
def efficientnet():
    stem = [SamePadConv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.SiLU(inplace=True)]
    blocks = [MBConv(8, 8, 3, 1, 2), MBConv(8, 12, 5, 2, 4), MBConv(12, 12, 5, 1, 4), MBConv(12, 16, 3, 2, 4)]
    return Classifier(nn.Sequential(*stem, *blocks, *conv_norm(16, 32, 1, act=nn.SiLU)), 32), (real(3, 32, 32),)


class MobileV3Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, act: type, excite: bool):
        super().__init__()
        wide = 3 * n_in
        layers = [conv_norm(n_in, wide, 1, act=act), conv_norm(wide, wide, 3, stride, wide, act)]
        layers += [SqueezeExcite(wide, 4, nn.ReLU, nn.Hardsigmoid)] if excite else []
        self.block = nn.Sequential(*layers, conv_norm(wide, n_out, 1, act=None))
        self.skip = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        return result + x if self.skip else result


class MobileNetV3(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_norm(3, 8, 3, 2, act=nn.Hardswish), MobileV3Block(8, 8, 1, nn.ReLU, True),
            MobileV3Block(8, 12, 2, nn.ReLU, False), MobileV3Block(12, 12, 1, nn.Hardswish, True),
            conv_norm(12, 24, 1, act=nn.Hardswish),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(24, 32), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@architecture()
def mobilenetv3():
    return MobileNetV3(), (real(3, 32, 32),)


class RepVggBlock(nn.Module):
    """A 3x3 and a 1x1 convolution and the identity, normalised and added."""

    def __init__(self, n_in: int, n_out: int, stride: int, groups: int = 1):
        super().__init__()
        self.identity = nn.BatchNorm2d(n_in) if stride == 1 and n_in == n_out else None
        self.dense = nn.ModuleList(conv_norm(n_in, n_out, 3, stride, groups, act=None) for _ in range(2))
        self.point = conv_norm(n_in, n_out, 1, stride, groups, act=None)

    def forward(self, x: Tensor) -> Tensor:
        out = self.point(x) + (self.identity(x) if self.identity is not None else 0)
        for branch in self.dense:
            out += branch(x)
        return F.relu(out)


@architecture()
def mobileone():
    blocks = [RepVggBlock(3, 8, 2), RepVggBlock(8, 8, 1, 8), RepVggBlock(8, 12, 2), RepVggBlock(12, 12, 1, 12)]
    return Classifier(nn.Sequential(*blocks), 12), (real(3, 32, 32),)


class DenseLayer(nn.Module):
    def __init__(self, n_in: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    def __init__(self, depth: int, n_in: int, growth: int):
        super().__init__({f"denselayer{i + 1}": DenseLayer(n_in + i * growth, growth) for i in range(depth)})

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


@architecture()
def densenet():
    transition = [nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2, 2)]
    layers = [
        conv_norm(3, 8, 7, 2),
        DenseBlock(3, 8, 4),
        *transition,
        DenseBlock(3, 10, 4),
        nn.BatchNorm2d(22),
        nn.ReLU(),
    ]
    return Classifier(nn.Sequential(*layers), 22), (real(3, 32, 32),)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    n, width, height, columns = x.size()
    x = x.view(n, groups, width // groups, height, columns)
    return torch.transpose(x, 1, 2).contiguous().view(n, width, height, columns)


class ShuffleUnit(nn.Module):
    def __init__(self, width: int, stride: int):
        super().__init__()
        self.stride = stride
        half = width if stride > 1 else width // 2
        self.branch1 = nn.Sequential(conv_norm(half, half, 3, 2, half, None), conv_norm(half, half, 1))
        self.branch2 = nn.Sequential(
            conv_norm(half, half, 1), conv_norm(half, half, 3, stride, half, None), conv_norm(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            left, right = x.chunk(2, dim=1)
            return channel_shuffle(torch.cat((left, self.branch2(right)), dim=1), 2)
        return channel_shuffle(torch.cat((self.branch1(x), self.branch2(x)), dim=1), 2)


class ShuffleNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.maxpool = conv_norm(3, 8, 3, 2), nn.MaxPool2d(3, 2, 1)
        self.stage2 = nn.Sequential(ShuffleUnit(8, 2), ShuffleUnit(16, 1), ShuffleUnit(16, 1))
        for unit in self.stage2[1:]:
            del unit.branch1
        self.conv5, self.fc = conv_norm(16, 24, 1), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv5(self.stage2(self.maxpool(self.conv1(x)))).mean([2, 3]))


@architecture()
def shufflenetv2():
    return ShuffleNetV2(), (real(3, 32, 32),)


class Fire(nn.Module):
    def __init__(self, n_in: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze, self.act = nn.Conv2d(n_in, squeeze, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand3x3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.squeeze(x))
        return torch.cat([self.act(self.expand1x1(x)), self.act(self.expand3x3(x))], 1)


@architecture()
def squeezenet():
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    head = [nn.Dropout(), nn.Conv2d(24, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()]
    body = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), pool, Fire(8, 4, 8), Fire(16, 4, 8), pool, Fire(16, 6, 12)]
    for layer in (module for part in body for module in part.modules() if isinstance(module, nn.Conv2d)):
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*body, *head), (real(3, 40, 40),)


class InceptionBlock(nn.Module):
    def __init__(self, n_in: int, width: int, include_pad: bool):
        super().__init__()
        self.include_pad = include_pad
        self.branch1x1, self.branch5x5 = (
            conv_norm(n_in, width, 1),
            nn.Sequential(conv_norm(n_in, 4, 1), conv_norm(4, width, 5)),
        )
        self.rows = nn.Conv2d(n_in, width, (1, 7), padding=(0, 3), bias=False)
        self.columns = nn.Conv2d(width, width, (7, 1), padding=(3, 0), bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)
        self.branch_pool = conv_norm(n_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        factored = F.relu(self.bn(self.columns(self.rows(x))), inplace=True)
        pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=self.include_pad)
        return torch.cat([self.branch1x1(x), self.branch5x5(x), factored, self.branch_pool(pooled)], 1)


class InceptionReduction(nn.Module):
    def __init__(self, n_in: int, width: int):
        super().__init__()
        self.conv = nn.Conv2d(n_in, width, 3, 2, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        strided = F.avg_pool2d(x, 3, 2, ceil_mode=True, count_include_pad=False)
        return torch.cat([F.relu(self.bn(self.conv(x))), F.max_pool2d(x, kernel_size=3, stride=2), strided], 1)


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 8, 3, 2)
        self.mixed1, self.mixed2 = InceptionBlock(8, 6, True), InceptionBlock(24, 6, False)
        self.reduction, self.dropout, self.fc = InceptionReduction(24, 8), nn.Dropout(0.5), nn.Linear(56, 10)

    def forward(self, x: Tensor) -> Tensor:
        red = torch.unsqueeze(x[:, 0], 1) * 0.458 - 0.03
        green = torch.unsqueeze(x[:, 1], 1) * 0.448 - 0.09
        blue = torch.unsqueeze(x[:, 2], 1) * 0.45 - 0.19
        x = self.reduction(self.mixed2(self.mixed1(self.stem(torch.cat((red, green, blue), 1)))))
        return self.fc(torch.flatten(self.dropout(F.adaptive_avg_pool2d(x, (1, 1))), 1))


@architecture()
def inception():
    return Inception(), (real(3, 30, 30),)


class GhostModule(nn.Module):
    """Half of the channels by a convolution, the others from those by a cheaper one."""

    def __init__(self, n_in: int, n_out: int, act: type | None):
        super().__init__()
        self.n_out, half = n_out, math.ceil(n_out / 2)
        self.primary_conv = conv_norm(n_in, half, 1, act=act)
        self.cheap_operation = conv_norm(half, half, 3, groups=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary_conv(x)
        return torch.cat([x1, self.cheap_operation(x1)], dim=1)[:, : self.n_out, :, :]


class GhostBottleneck(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ghost1, self.ghost2 = GhostModule(width, 2 * width + 1, nn.ReLU), GhostModule(2 * width + 1, width, None)
        self.se = SqueezeExcite(2 * width + 1, 4, gate=nn.Hardsigmoid)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ghost2(self.se(self.ghost1(x)))


@architecture()
def ghostnet():
    layers = [conv_norm(3, 8, 3, 2), GhostBottleneck(8), conv_norm(8, 12, 3, 2), GhostBottleneck(12)]
    return Classifier(nn.Sequential(*layers), 12), (real(3, 32, 32),)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.gamma, self.drop_path = nn.Parameter(0.5 * torch.ones(width)), DropPath()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + self.drop_path(y.permute(0, 3, 1, 2))


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8, eps=1e-6))
        self.stage1 = nn.Sequential(ConvNeXtBlock(8), ConvNeXtBlock(8))
        self.downsample = nn.Sequential(LayerNorm2d(8, eps=1e-6), nn.Conv2d(8, 16, 2, 2))
        self.stage2 = nn.Sequential(ConvNeXtBlock(16), ConvNeXtBlock(16))
        self.norm, self.head = nn.LayerNorm(16, eps=1e-6), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.downsample(self.stage1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


@architecture()
def convnext():
    return ConvNeXt(), (real(3, 32, 32),)


@architecture()
def alexnet():
    features = [nn.Conv2d(3, 8, 7, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5, k=2.0), nn.MaxPool2d(3, 2)]
    features += [nn.Conv2d(8, 12, 5, padding=2, groups=2), nn.ReLU(), nn.LocalResponseNorm(3), nn.MaxPool2d(3, 2)]
    head = [nn.Flatten(), nn.Dropout(), nn.Linear(192, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10), nn.Softmax(-1)]
    return nn.Sequential(*features, *head), (real(3, 39, 39),)


class VideoNet(nn.Module):
    """Convolutions over space and over time in turn, as R(2+1)D has them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 8, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False), nn.BatchNorm3d(8), nn.ReLU()
        )
        self.space = nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.time = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn1, self.bn2 = nn.BatchNorm3d(8), nn.BatchNorm3d(8)
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.conv, self.fc = nn.Conv3d(8, 12, 3, 2, 1), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.pool(F.relu(x + self.bn2(self.time(F.relu(self.bn1(self.space(x)))))))
        x = F.avg_pool3d(F.elu(self.conv(x)), (2, 1, 1))
        return self.fc(F.adaptive_avg_pool3d(x, 1).flatten(1))


@architecture()
def video_conv3d():
    return VideoNet(), (real(3, 8, 16, 16),)
