"""Networks that benchmarks transform: a ResNet, a VGG, a ViT, a MobileNet, trained once a data set and seed.

    python benchmarks/trained_networks.py                      # of digits, mnist1d, MNIST; kept in networks
    python benchmarks/trained_networks.py --only resnet44-digits --seeds 0

A network is trained when a benchmark first asks for it and kept as ONNX, so that all benchmarks measure the same ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from datasets import DATASETS, LIKE, PATHS, ByData, Parts
from torch import Tensor, nn
from torch.nn import functional as F

import graphmod as gm
from graphmod.converters.pytorch import to_onnx

FOLDER = Path(__file__).resolve().parent / "networks"
ARCHITECTURES = ("resnet44", "vit12", "vgg10")
OWN_DATA = ("digits", "mnist1d", "mnist")
EPOCHS = {
    "resnet44": ByData({"digits": 80, "mnist1d": 30, "mnist": 12, "cifar10": 60}),
    "vit12": ByData({"digits": 200, "mnist1d": 30, "mnist": 15, "cifar10": 60}),
    "vgg10": ByData({"digits": 80, "mnist1d": 30, "mnist": 8, "cifar10": 60}),
    "mobile11": ByData({"digits": 80, "mnist1d": 30, "mnist": 12, "cifar10": 60}),
}
N_CLASSES = 10
"""That networks have at least."""

QUICK = False
"""Whether networks are trained for a quarter of the time, for a first look at a benchmark; those are kept apart."""

BATCH = ByData({"digits": 64, "mnist1d": 128, "mnist": 128, "cifar10": 128})


def conv(n_axes: int, n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Module:
    """Return a convolution along so many axes, as large as its input but for the stride."""
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[n_axes]
    return kind(n_in, n_out, size, stride, padding=size // 2, bias=False)


def norm(n_axes: int, width: int) -> nn.Module:
    """Return a batch normalisation of so many axes."""
    return {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[n_axes](width)


class ResidualBlock(nn.Module):
    """Two convolutions of 3, and a shortcut around them that is projected where the shape changes."""

    def __init__(self, n_axes: int, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(n_axes, n_in, n_out, 3, stride), norm(n_axes, n_out)
        self.conv2, self.bn2 = conv(n_axes, n_out, n_out, 3), norm(n_axes, n_out)
        self.relu = nn.ReLU()
        same = stride == 1 and n_in == n_out
        projection = nn.Sequential(conv(n_axes, n_in, n_out, 1, stride), norm(n_axes, n_out))
        self.shortcut: nn.Module = nn.Identity() if same else projection

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, n_in, ...] to [n, n_out, ... / stride]."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network of 6 ``blocks`` + 2 layers (He et al. 2016, section 4.2) on sequences or images."""

    def __init__(
        self,
        n_axes: int,
        channels: int,
        blocks: int = 7,
        widths: tuple[int, ...] = (16, 24, 40),
        stride: int = 1,
        *,
        classes: int,
    ) -> None:
        super().__init__()
        self.conv, self.bn = conv(n_axes, channels, widths[0], 3, stride), norm(n_axes, widths[0])
        self.relu = nn.ReLU()
        before = (widths[0], *widths)
        for number, (n_in, n_out) in enumerate(zip(before, widths, strict=False), 1):
            first = ResidualBlock(n_axes, n_in, n_out, 1 if number == 1 else 2)
            rest = (ResidualBlock(n_axes, n_out, n_out, 1) for _ in range(blocks - 1))
            setattr(self, f"layer{number}", nn.Sequential(first, *rest))
        self.pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}[n_axes](1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map samples to logits."""
        x = self.relu(self.bn(self.conv(x)))
        return self.fc(self.flatten(self.pool(self.layer3(self.layer2(self.layer1(x))))))


class InvertedResidual(nn.Module):
    """A pointwise convolution to more channels, a depthwise one, and a pointwise one back; added where shapes agree."""

    def __init__(self, n_axes: int, n_in: int, n_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d}[n_axes]
        wide = expansion * n_in
        self.expand, self.bn1 = conv(n_axes, n_in, wide, 1), norm(n_axes, wide)
        self.depthwise, self.bn2 = kind(wide, wide, 3, stride, 1, groups=wide, bias=False), norm(n_axes, wide)
        self.project, self.bn3 = conv(n_axes, wide, n_out, 1), norm(n_axes, n_out)
        self.relu = nn.ReLU6()
        self.is_added = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, n_in, ...] to [n, n_out, ... / stride]."""
        y = self.relu(self.bn2(self.depthwise(self.relu(self.bn1(self.expand(x))))))
        y = self.bn3(self.project(y))
        return x + y if self.is_added else y


class MobileNet(nn.Module):
    """A depthwise network of 3 ``blocks`` inverted residuals (Sandler et al. 2018) on sequences or images."""

    def __init__(
        self,
        n_axes: int,
        channels: int,
        blocks: int = 3,
        widths: tuple[int, ...] = (24, 32, 48),
        stride: int = 1,
        expansion: int = 4,
        *,
        classes: int,
    ) -> None:
        super().__init__()
        self.conv, self.bn = conv(n_axes, channels, widths[0], 3, stride), norm(n_axes, widths[0])
        layers = []
        for number, (n_in, n_out) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            layers += [InvertedResidual(n_axes, n_in, n_out, 1 if number == 0 else 2, expansion)]
            layers += [InvertedResidual(n_axes, n_out, n_out, 1, expansion) for _ in range(blocks - 1)]
        self.blocks = nn.Sequential(*layers)
        self.last, self.bn_last = conv(n_axes, widths[-1], 2 * widths[-1], 1), norm(n_axes, 2 * widths[-1])
        self.relu = nn.ReLU6()
        self.pool, self.flatten = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}[n_axes](1), nn.Flatten()
        self.fc = nn.Linear(2 * widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map samples to logits."""
        x = self.blocks(self.relu(self.bn(self.conv(x))))
        return self.fc(self.flatten(self.pool(self.relu(self.bn_last(self.last(x))))))


class VGG(nn.Module):
    """A plain network of 8 convolutions and 2 linear layers (Simonyan & Zisserman 2015) on sequences or images."""

    def __init__(
        self,
        n_axes: int,
        channels: int,
        widths: tuple[int, ...] = (32, 64, 128, 128),
        hidden: int = 64,
        *,
        classes: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d}[n_axes]
        for n_in, n_out in zip((channels, *widths), widths, strict=False):
            for before in (n_in, n_out):
                layers += [conv(n_axes, before, n_out, 3), norm(n_axes, n_out), nn.ReLU()]
            layers += [pool(2)] * (n_out != widths[-1])
        self.features = nn.Sequential(*layers)
        self.pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}[n_axes](1)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(widths[-1], hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map samples to logits."""
        logits: Tensor = self.classifier(self.pool(self.features(x)))
        return logits


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens to tokens."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).reshape(n, tokens, width))


class Encoder(nn.Module):
    """Attention, then two linear layers, each behind a layer normalisation and added to the trunk."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens to tokens."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) on patches of sequences or images; tokens are averaged."""

    def __init__(
        self,
        shape: tuple[int, ...],
        patch: int,
        depth: int = 12,
        width: int = 48,
        heads: int = 4,
        hidden: int = 96,
        *,
        classes: int,
    ) -> None:
        super().__init__()
        channels, *sizes = shape
        kind = {1: nn.Conv1d, 2: nn.Conv2d}[len(sizes)]
        self.patches = kind(channels, width, patch, patch)
        self.flatten = nn.Flatten(2)
        self.position = nn.Parameter(torch.randn(1, int(np.prod([size // patch for size in sizes])), width) * 0.02)
        self.blocks = nn.Sequential(*(Encoder(width, heads, hidden) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map samples to logits."""
        x = self.flatten(self.patches(x)).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


PATCH = ByData({"digits": 2, "mnist1d": 4, "mnist": 7, "cifar10": 4})


def build(architecture: str, data: str, shape: tuple[int, ...], classes: int, depth: int | None = None) -> nn.Module:
    """Return an untrained network; ``depth`` is blocks a stage, or of the transformer; a VGG has one depth."""
    if architecture in ("resnet44", "mobile11"):
        n_axes, stride = len(shape) - 1, 2 if shape[-1] > 32 or data == "mnist" else 1
        if architecture == "mobile11":
            return MobileNet(n_axes, shape[0], depth or 3, stride=stride, classes=classes)
        return ResNet(n_axes, shape[0], depth or 7, stride=stride, classes=classes)
    if architecture == "vgg10":
        return VGG(len(shape) - 1, shape[0], classes=classes)
    return ViT(shape, PATCH[data], depth or 12, classes=classes)


def untrained(architecture: str, data: str, seed: int) -> gm.Model:
    """Return a network as it is before any training: ``x`` in, ``logits`` out."""
    samples, labels = _loaded(data)["train"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(architecture, data, samples.shape[1:], max(N_CLASSES, n_classes(labels))).eval()
    return to_onnx(net, torch.from_numpy(samples[:2]), input_names=["x"], output_names=["logits"])


def augment(data: str, x: Tensor) -> Tensor:
    """Return samples shifted, those of images turned and scaled too, each on its own."""
    n = len(x)
    if x.dim() == 3:
        shift = torch.randint(-2, 3, (n, 1, 1))
        at = (torch.arange(x.shape[-1]) + shift) % x.shape[-1]
        return x.gather(2, at.expand_as(x)) + 0.02 * torch.randn_like(x)
    if LIKE.get(data, data) == "cifar10":
        flipped = x if data == "svhn" else torch.where(torch.rand(n, 1, 1, 1) < 0.5, x.flip(3), x)
        grid = F.affine_grid(_affine(n, 0.0, 0.0, 0.25), list(x.shape), align_corners=False)
        return F.grid_sample(flipped, grid, align_corners=False)
    grid = F.affine_grid(_affine(n, 0.5, 0.3, 0.5 if data == "digits" else 0.2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _affine(n: int, turned: float, scaled: float, shifted: float) -> Tensor:
    angle, scale, right, down = (torch.rand(4, n) - 0.5) * torch.tensor([[turned], [scaled], [shifted], [shifted]])
    cos, sin = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
    return torch.stack([torch.stack([cos, -sin, right], 1), torch.stack([sin, cos, down], 1)], 1)


def train(
    architecture: str, data: str, parts: Parts, seed: int, *, epochs: int | None = None, depth: int | None = None
) -> nn.Module:
    """Train a network on the training part."""
    samples, labels = parts["train"]
    x, y = torch.from_numpy(samples), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(architecture, data, samples.shape[1:], max(N_CLASSES, n_classes(labels)), depth)
        epochs, batch = epochs or EPOCHS[architecture][data], BATCH[data]
        steps = len(x) // batch
        if architecture != "vit12":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(
                net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
            )
            peak = 0.1
        else:
            optimizer, peak = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05), 2e-3
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=epochs * steps)
        net.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(x))[: steps * batch].split(batch):
                loss = F.cross_entropy(net(augment(data, x[rows])), y[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return net.eval()


def n_classes(labels: npt.ArrayLike) -> int:
    """Return how many classes labels from 0 on have."""
    return int(np.max(labels)) + 1


def splits(data: str) -> gm.Splits:
    """Return the data of a data set, for models whose input is called ``x``."""
    parts = _loaded(data)
    return gm.Splits(*(gm.Data({"x": parts[name][0]}, parts[name][1]) for name in ("train", "calibration", "test")))


def drawn(parts: gm.Splits, most: Mapping[str, int], seed: int) -> gm.Splits:
    """Return at most so many samples of each part, parts in the order of ``most``."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, n in most.items():
        part = getattr(parts, name)
        found[name] = part[np.sort(rng.permutation(len(part))[:n])]
    return gm.Splits(**found)


@cache
def _loaded(data: str) -> Parts:
    return DATASETS[data]()


def network(
    architecture: str,
    data: str,
    seed: int,
    *,
    epochs: int | None = None,
    depth: int | None = None,
    tell: Callable[[str], None] = print,
) -> gm.Model:
    """Return a trained network, from the folder or after training it: ``x`` in, ``logits`` out.

    Parameters
    ----------
    architecture : {"resnet44", "vit12", "vgg10"}
    data : str
        A name of ``datasets.DATASETS``.
    seed : int
        Of weights, batches and augmentation.
    epochs, depth : int, optional
        Fewer epochs than usual, and another depth; such networks are kept under names of their own.
    tell : callable
        What is told of training.
    """
    if QUICK:
        epochs = epochs or EPOCHS[architecture][data] // 4
    marks = [f"e{epochs}"] * (epochs is not None) + [f"d{depth}"] * (depth is not None)
    file = FOLDER / ("-".join([architecture, data, str(seed), *marks]) + ".onnx")
    if not file.exists():
        FOLDER.mkdir(exist_ok=True)
        parts = _loaded(data)
        start = time.perf_counter()
        net = train(architecture, data, parts, seed, epochs=epochs, depth=depth)
        example = torch.from_numpy(parts["train"][0][:2])
        model = to_onnx(net, example, input_names=["x"], output_names=["logits"])
        scores = {name: gm.accuracy(model, (x, y)) for name, (x, y) in parts.items()}
        tell(f"{file.stem}: {scores}, {time.perf_counter() - start:.0f} s")
        model.save(file)
    return gm.load(file)


def available() -> tuple[str, ...]:
    """Return the data sets that all benchmarks measure on: digits, mnist1d, and MNIST where its file is."""
    return tuple(name for name in OWN_DATA if name != "mnist" or PATHS["mnist"].exists())


def main() -> None:
    """Train what is not there yet, of the data sets that all benchmarks measure on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="such as resnet44-digits")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for data in available():
            for architecture in ARCHITECTURES:
                if arguments.only is None or f"{architecture}-{data}" in arguments.only:
                    network(architecture, data, seed)


if __name__ == "__main__":
    main()
