"""Train the demo network: a residual network of 44 layers that tells 8x8 images of handwritten digits apart."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from graphmod import Model
from graphmod.converters.pytorch import to_onnx

ACCURACY_NEEDED = 0.98


@dataclass(frozen=True)
class Split:
    """Images ``x``, float32 [n, 1, 8, 8] in 0..1, and their digits ``y``, int64 [n]."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


class RandomAffine:
    """Turn by up to 14 degrees, scale by up to 15 % and shift by up to one pixel, each image on its own."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images [n, c, h, w], each transformed."""
        angle, scale, right, down = (torch.rand(4, len(images)) - 0.5) * torch.tensor([[0.5], [0.3], [0.5], [0.5]])
        cos, sin = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
        rows = torch.stack([cos, -sin, right], 1), torch.stack([sin, cos, down], 1)
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, and a shortcut around them that is projected where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, c_in, h, w] to [n, c_out, h / stride, w / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


class Stage(nn.Sequential):
    """A run of residual blocks of one width; the first of them changes width and resolution."""

    def __init__(self, c_in: int, c_out: int, stride: int, blocks: int) -> None:
        first = ResidualBlock(c_in, c_out, stride)
        super().__init__(first, *(ResidualBlock(c_out, c_out) for _ in range(blocks - 1)))


class ResNet(nn.Module):
    """A CIFAR-style residual network (He et al., 2016, section 4.2): 6 ``blocks`` + 2 layers, 44 by default."""

    def __init__(self, blocks: int = 7, widths: tuple[int, int, int] = (16, 24, 40), classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = Stage(widths[0], widths[0], 1, blocks)
        self.layer2 = Stage(widths[0], widths[1], 2, blocks)
        self.layer3 = Stage(widths[1], widths[2], 2, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(widths[2], classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [n, 1, 8, 8] to logits [n, classes]."""
        x = self.relu(self.bn(self.conv(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.flatten(self.pool(x)))


def splits() -> dict[str, Split]:
    """Return the stratified splits train (899 images), calibration (400) and test (498), always the same ones."""
    digits = load_digits()
    x = (digits.images / 16).astype(np.float32)[:, None]
    y = digits.target.astype(np.int64)
    train, rest = train_test_split(np.arange(len(x)), test_size=898, stratify=y, random_state=0)
    calibration, test = train_test_split(rest, test_size=498, stratify=y[rest], random_state=0)
    parts = {"train": train, "calibration": calibration, "test": test}
    return {name: Split(x[rows], y[rows]) for name, rows in parts.items()}


def train(seed: int = 0, *, epochs: int = 80, batch_size: int = 64, progress: bool = False) -> nn.Module:
    """Train a network on the train split.

    The same seed gives the same weights on the same machine with the same number of threads. The caller's own
    random state is left alone.
    """
    data = splits()["train"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ResNet()
        _fit(net, torch.from_numpy(data.x), torch.from_numpy(data.y), epochs, batch_size, progress)
    return net.eval()


def _fit(net: nn.Module, x: Tensor, y: Tensor, epochs: int, batch_size: int, progress: bool) -> None:
    augment = RandomAffine()
    steps = len(x) // batch_size  # whole batches only: batch statistics of a few images are noise
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * steps)
    net.train()
    for _ in track(range(epochs), "training", disable=not progress):
        for rows in torch.randperm(len(x))[: steps * batch_size].split(batch_size):
            loss = F.cross_entropy(net(augment(x[rows])), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def export(net: nn.Module) -> Model:
    """Return the network as an ONNX model: ``image`` [batch, 1, 8, 8] in, ``logits`` [batch, 10] out."""
    example = torch.linspace(0, 1, 2 * 8 * 8).reshape(2, 1, 8, 8)
    return to_onnx(net, example, input_names=["image"], output_names=["logits"])


def accuracy(model: Model, data: Split) -> float:
    """Return the share of images whose digit the model finds, computed by ONNX Runtime."""
    return float((model.run({"image": data.x})["logits"].argmax(1) == data.y).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights, batches and augmentation")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the network and its data")
    args = parser.parse_args()

    parts = splits()
    model = export(train(args.seed, epochs=args.epochs, progress=True))
    for name, part in parts.items():
        print(f"{name:12} {len(part.y):4} images  accuracy {accuracy(model, part):.2%}")
    if accuracy(model, parts["test"]) < ACCURACY_NEEDED:
        sys.exit(f"the accuracy on the test split is below {ACCURACY_NEEDED:.0%}: nothing was written")

    args.out.mkdir(parents=True, exist_ok=True)
    model.save(args.out / "digits_resnet44.onnx")
    arrays = {f"{axis}_{name}": getattr(part, axis) for name, part in parts.items() for axis in "xy"}
    np.savez_compressed(args.out / "digits.npz", **arrays)


if __name__ == "__main__":
    main()
