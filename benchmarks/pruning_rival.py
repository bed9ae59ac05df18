"""Torch-Pruning on the networks of ``prune.py``; the networks, the recovery and the measures that both sides share.

Needs ``pip install -c constraints.txt torch-pruning`` (1.6.1) beside graphmod, and for MNIST Keras' ``mnist.npz``,
whose path is a parameter. Torch-Pruning prunes a torch module, graphmod the ONNX model that holds the same weights;
both results pass through :func:`measure`. Figures repeat for a seed under the same number of threads.
"""

from __future__ import annotations

import copy
import io
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import graphmod as gm
from graphmod.probe.accuracy import predict, share_correct
from graphmod.train.losses import distillation

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "examples" / "train_digits_resnet"), str(ROOT / "tests")]

import train as digits  # noqa: E402  # the folders hold scripts and tests, not packages
from zoo import Bottleneck, ResNet, conv_norm  # noqa: E402  # the same

MNIST_PARTS = {"train": slice(5_000, 60_000), "calibration": slice(0, 5_000)}
"""Rows of Keras' training part; its test part is the test part."""

SAMPLES = 1024
"""Samples of the training part that gradients are taken over."""

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Network:
    """A trained classifier as torch and as ONNX hold it, its data, and the budget of its recovery.

    Parameters
    ----------
    name : str
    seed : int
    module : nn.Module
        In evaluation mode; one tensor in, logits out.
    model : gm.Model
        The same network.
    data : gm.Splits
        A pruned network is recovered on the training part and reported on the test part.
    epochs : int
        Of recovery.
    """

    name: str
    seed: int
    module: nn.Module
    model: gm.Model
    data: gm.Splits
    epochs: int

    @cached_property
    def teacher(self) -> Tensor:
        """The original's logits of the training part."""
        return torch.from_numpy(predict(self.model, self.data.train))

    @property
    def example(self) -> Tensor:
        """Two samples."""
        return _images(self.data.test)[:2]


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(width, width, 3, act=nn.ReLU)
        self.conv2 = conv_norm(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, width, h, w] to the same shape."""
        return torch.relu(x + self.conv2(self.conv1(x)))


class MnistNet(nn.Sequential):
    """Eight convolutions, two residual stages: 126,000 weights, 3.8 million multiply-accumulates."""

    def __init__(self) -> None:
        wide = [conv_norm(1, 16, 3, 2, act=nn.ReLU), conv_norm(16, 32, 3, act=nn.ReLU)]
        stages = [
            conv_norm(32, 32, 3, 2, act=nn.ReLU),
            Residual(32),
            conv_norm(32, 64, 3, 2, act=nn.ReLU),
            Residual(64),
        ]
        super().__init__(*wide, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class FoldedBlock(nn.Module):
    """A residual block whose BatchNorms are folded into the convolutions, named as in the demo network."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1)
        self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride)) if stride > 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, c_in, h, w] to [n, c_out, h / stride, w / stride]."""
        y = self.conv2(torch.relu(self.conv1(x)))
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class FoldedResNet(nn.Module):
    """The demo network as it is shipped: ResNet-44 with its BatchNorms folded."""

    def __init__(self, blocks: int = 7, widths: tuple[int, int, int] = (16, 24, 40)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, widths[0], 3, 1, 1)
        c_in = widths[0]
        for stage, c_out in enumerate(widths):
            strides = [2 if stage and not block else 1 for block in range(blocks)]
            pairs = [(c_out if block else c_in, stride) for block, stride in enumerate(strides)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*(FoldedBlock(n, c_out, stride) for n, stride in pairs)))
            c_in = c_out
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [n, 1, 8, 8] to logits [n, 10]."""
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.conv(x)))))
        return self.fc(torch.flatten(self.pool(x), 1))


def mnist(path: str | Path) -> gm.Splits:
    """Return MNIST from Keras' archive, 55,000, 5,000 and 10,000 images: float32 [n, 1, 28, 28] in 0..1, and digits."""
    with np.load(path) as archive:
        images = {part: archive[f"x_{part}"].astype(np.float32)[:, None] / 255 for part in ("train", "test")}
        labels = {part: archive[f"y_{part}"].astype(np.int64) for part in ("train", "test")}
    parts = {
        name: gm.Data({"image": images["train"][rows]}, labels["train"][rows]) for name, rows in MNIST_PARTS.items()
    }
    return gm.Splits(**parts, test=gm.Data({"image": images["test"]}, labels["test"]))


def mnist_network(path: str | Path, seed: int = 0, *, epochs: int = 3) -> Network:
    """Train the MNIST network; about a minute on one core. Its BatchNorms stay, in torch and in ONNX."""
    data = mnist(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = MnistNet()
    _fit(module, data.train, epochs, seed)
    return Network("mnist", seed, module, export(module, _images(data.test)[:2]), data, epochs=1)


def demo_network(seed: int = 0) -> Network:
    """Return the network that graphmod ships (seed 0) or one trained like it, and torch of the same weights."""
    model = gm.load(gm.demo.model_path()) if seed == 0 else digits.export(digits.train(seed))
    module, values = FoldedResNet(), {t.name: onnx.numpy_helper.to_array(t) for t in model.proto().graph.initializer}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            path, _, kind = name.rpartition(".")
            held = f"{path}.weight_bias" if kind == "bias" and path != "fc" else name
            parameter.copy_(torch.from_numpy(values[held].copy()))
    network = Network("demo", seed, module.eval(), model, gm.demo.splits(), epochs=30)
    _check_same(network.model, network.module, network.data.test)
    return network


def _check_same(model: gm.Model, module: nn.Module, data: gm.Data) -> None:
    """Refuse a model and a module of which ONNX Runtime and torch do not compute the same to 1e-4 of scale."""
    expected, found = predict(model, data), _logits(module, data).numpy()
    if np.abs(expected - found).max() > 1e-4 * np.abs(expected).max():
        raise ValueError("the torch module does not compute what the ONNX model does")


def export(module: nn.Module, example: Tensor) -> gm.Model:
    """Return a module as ONNX, its BatchNorms unfolded."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (example,), file, dynamo=False, opset_version=17, input_names=["image"],
            output_names=["logits"], dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        )  # fmt: skip
    return gm.load(onnx.ModelProto.FromString(file.getvalue()))


def _fit(module: nn.Module, data: gm.Data, epochs: int, seed: int, batch_size: int = 64) -> None:
    steps = epochs * (len(data) // batch_size)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    images, labels = _images(data), torch.from_numpy(data.targets)
    module.train()
    for rows in _rows(len(data), epochs, batch_size, seed):
        _step(optimizer, schedule, cross_entropy(module(images[rows]), labels[rows]))
    module.eval()


def recover(
    module: nn.Module, data: gm.Data, teacher: Tensor, epochs: int, seed: int, *, learning_rate: float = 3e-3
) -> None:
    """Train a pruned module in place: half cross-entropy, half distillation from the original, by Adam.

    The learning rate rises over the first 15 % of the steps and gradients are clipped: deep networks whose BatchNorms
    are folded die without. The last step's weights are kept: nothing is chosen.

    Parameters
    ----------
    module : nn.Module
        A rival's, or what ``gm.to_torch`` makes of a pruned model. BatchNorms train, too.
    data : gm.Data
        With labels.
    teacher : Tensor
        The original's logits of the data, shape (n, classes).
    epochs, seed : int
    """
    steps = epochs * (len(data) // 64)
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.15, cycle_momentum=False
    )
    images, labels = _images(data), torch.from_numpy(data.targets)
    module.train()
    for rows in _rows(len(data), epochs, 64, seed):
        logits = module(images[rows])
        loss = 0.5 * cross_entropy(logits, labels[rows]) + 0.5 * distillation(logits, teacher[rows], 2.0)
        _step(optimizer, schedule, loss, largest=1.0)
    module.eval()


def _rows(n: int, epochs: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield the rows of whole batches only: batch statistics of a few images are noise."""
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        yield from torch.from_numpy(order.permutation(n)[: n // batch_size * batch_size]).split(batch_size)


def _step(optimizer: torch.optim.Optimizer, schedule: Any, loss: Tensor, largest: float = math.inf) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], largest)
    optimizer.step()
    schedule.step()


def _images(data: gm.Data) -> Tensor:
    return torch.from_numpy(data.inputs["image"])


def _logits(module: nn.Module, data: gm.Data) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(images) for images in _images(data).split(500)])


def accuracy(module: nn.Module, data: gm.Data) -> float:
    """Return the share of samples that a module in evaluation mode gets right."""
    return share_correct(_logits(module, data).numpy(), data.targets)


def _no_gradients(module: nn.Module, data: gm.Data) -> None:
    """What reads weights alone needs none."""


def _gradients(module: nn.Module, data: gm.Data) -> None:
    module.zero_grad()
    for batch in data.batches(64):
        cross_entropy(module(_images(batch)), torch.from_numpy(batch.targets), reduction="sum").backward()


def _squared_gradients(module: nn.Module, data: gm.Data) -> None:
    """Leave the mean squared gradient in ``grad``.

    That is what Torch-Pruning's own accumulation is for, but 1.6.1 looks gradients up by name that it keeps by
    parameter, and so keeps those of the last sample only.
    """
    squares = [torch.zeros_like(parameter) for parameter in module.parameters()]
    for image, label in zip(_images(data), torch.from_numpy(data.targets), strict=True):
        module.zero_grad()
        cross_entropy(module(image[None]), label[None]).backward()
        for square, parameter in zip(squares, module.parameters(), strict=True):
            square += parameter.grad**2 / len(data)
    for square, parameter in zip(squares, module.parameters(), strict=True):
        parameter.grad = square


Gradients = Callable[[nn.Module, gm.Data], None]

IMPORTANCES: dict[str, tuple[Callable[[], tp.importance.Importance], Gradients]] = {
    "l1": (lambda: tp.importance.GroupMagnitudeImportance(p=1), _no_gradients),
    "l2": (lambda: tp.importance.GroupMagnitudeImportance(p=2), _no_gradients),
    "bn_scale": (tp.importance.BNScaleImportance, _no_gradients),
    "taylor": (tp.importance.GroupTaylorImportance, _gradients),
    "hessian": (tp.importance.GroupHessianImportance, _squared_gradients),
    "lamp": (tp.importance.LAMPImportance, _no_gradients),
    "random": (tp.importance.RandomImportance, _no_gradients),
}


def rival_prune(
    module: nn.Module,
    example: Tensor,
    ratio: float,
    importance: str,
    *,
    data: gm.Data,
    global_: bool = False,
    round_to: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of a classifier that Torch-Pruning has pruned; its classes stay.

    Parameters
    ----------
    module : nn.Module
    example : Tensor
        What the module is traced with.
    ratio : float
        Share of channels that go.
    importance : str
        A key of ``IMPORTANCES``.
    data : gm.Data
        Labelled samples, for gradients.
    global_ : bool
        Rank channels of the whole network, or of each group.
    round_to : int, optional
        Widths are multiples of this.
    seed : int
        Of the random importance.
    """
    pruned = copy.deepcopy(module).eval()
    make, gradients = IMPORTANCES[importance]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pruner = tp.BasePruner(
            pruned, example, importance=make(), pruning_ratio=ratio, global_pruning=global_, round_to=round_to,
            ignored_layers=[_classifier(pruned)],
        )  # fmt: skip
        gradients(pruned, data[:SAMPLES])
        pruner.step()
    pruned.zero_grad()
    return pruned.eval()


def _classifier(module: nn.Module) -> nn.Module:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]


def measure(network: Network, model: gm.Model, module: nn.Module) -> Row:
    """Return what a pruned network costs, and its accuracy on test data before and after recovery.

    Parameters
    ----------
    network : Network
        The original.
    model : gm.Model
        The pruned network, whose costs these are.
    module : nn.Module
        The same network; trained in place.
    """
    _check_same(model, module.eval(), network.data.test[:200])
    cost, whole = gm.graph.cost(model), gm.graph.cost(network.model)
    row: Row = {"macs": cost.macs, "weights": cost.weights}
    row |= {"macs share": cost.macs / whole.macs, "weights share": cost.weights / whole.weights}
    row["accuracy before"] = accuracy(module, network.data.test)
    recover(module, network.data.train, network.teacher, network.epochs, network.seed)
    return row | {"accuracy after": accuracy(module, network.data.test)}


def line(row: Row) -> str:
    """Return a row of either side as a line of text."""
    costs = f"MACs {row['macs share']:6.1%} weights {row['weights share']:6.1%}"
    found = f"accuracy {row['accuracy before']:7.2%} -> {row['accuracy after']:7.2%}"
    who = f"{row['network']:6}{row['tool']:14}{row['importance']:10}{row['scope']:7}{row['round_to'] or '-':>2}"
    return f"{who} {row['ratio']:.2f}  {costs}  {found}"


def resnet50_seconds(width: int = 64, size: int = 224, ratio: float = 0.5) -> dict[str, float]:
    """Time Torch-Pruning on a ResNet-50 of real size: tracing into groups, then L2 and removal; CPU time of both."""
    torch.manual_seed(0)
    module, image = ResNet(Bottleneck, (3, 4, 6, 3), width=width, n_classes=1000).eval(), torch.rand(1, 3, size, size)
    start, cpu = time.perf_counter(), time.process_time()
    pruner = tp.BasePruner(
        module, image, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=ratio,
        ignored_layers=[_classifier(module)],
    )  # fmt: skip
    traced = time.perf_counter()
    pruner.step()
    end = time.perf_counter()
    seconds = {"groups": traced - start, "L2 and removal": end - traced}
    return {**seconds, "wall": end - start, "cpu": time.process_time() - cpu}
