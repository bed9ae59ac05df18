"""A zoo of small networks with random weights, written out in torch and exported by both of torch's exporters."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from graphmod.model import Model, load

EXPORTERS = ("current", "torchscript")


def conv_norm(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1, act: type | None = None):
    layers = [nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(n_out)]
    return nn.Sequential(*layers, *([act()] if act else []))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, n_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = conv_norm(n_in, width, 1, stride) if stride > 1 or n_in != width else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, n_in: int, width: int, stride: int):
        super().__init__()
        n_out = width * self.expansion
        self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU()
        self.downsample = conv_norm(n_in, n_out, 1, stride) if stride > 1 or n_in != n_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, block: type, depths: tuple[int, ...], width: int = 8, n_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        n_in = width
        for stage, depth in enumerate(depths):
            layers = []
            for index in range(depth):
                layers.append(block(n_in, width << stage, 2 if stage and not index else 1))
                n_in = (width << stage) * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class InvertedResidual(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int):
        super().__init__()
        wide = n_in * expansion
        layers = [] if expansion == 1 else [*conv_norm(n_in, wide, 1, act=nn.ReLU6)]
        layers += [*conv_norm(wide, wide, 3, stride, wide, act=nn.ReLU6), *conv_norm(wide, n_out, 1)]
        self.conv = nn.Sequential(*layers)
        self.skip = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNetV2(nn.Module):
    """Expansion, width, depth and stride of the stages are the paper's; widths are a quarter of them."""

    STAGES = ((1, 4, 1, 1), (6, 6, 2, 2), (6, 8, 3, 2), (6, 16, 4, 2), (6, 24, 3, 1), (6, 40, 3, 2), (6, 80, 1, 1))

    def __init__(self, n_classes: int = 10):
        super().__init__()
        layers, n_in = [conv_norm(3, 8, 3, 2, act=nn.ReLU6)], 8
        for expansion, width, depth, stride in self.STAGES:
            for index in range(depth):
                layers.append(InvertedResidual(n_in, width, 1 if index else stride, expansion))
                n_in = width
        self.features = nn.Sequential(*layers, conv_norm(n_in, 160, 1, act=nn.ReLU6))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(160, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


class Encoder(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(y.transpose(1, 2).reshape(n, length, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, depth: int, width: int = 16, heads: int = 2, n_classes: int = 10):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 8, 8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Logits(nn.Module):
    """A language model of which nothing but the logits comes out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


class Branching(nn.Module):
    """Two branches that are concatenated, then a split whose halves gate each other."""

    def __init__(self, width: int = 6, n_classes: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.left, self.right = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.mix = nn.Conv2d(2 * width, 2 * width, 1)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.mix(torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1))
        value, gate = torch.split(x, x.shape[1] // 2, 1)
        return self.head((value * torch.sigmoid(gate)).mean((2, 3)))


class TwoInputs(nn.Module):
    """An image and a vector that are added half-way."""

    def __init__(self, width: int = 6, n_classes: int = 10):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, width, 3, 2, 1)
        self.side = nn.Linear(4, width)
        self.fc1, self.fc2 = nn.Linear(width, 12), nn.Linear(12, n_classes)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(image)))).mean((2, 3))
        return self.fc2(torch.relu(self.fc1(x + self.side(vector))))


class TwoOutputs(nn.Module):
    """A trunk with a classifier and, from half-way, a decoder."""

    def __init__(self, width: int = 6, n_classes: int = 10):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, width, 3, 2, 1)
        self.fc = nn.Linear(width, n_classes)
        self.decoder = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.conv1(x))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3))), self.decoder(x)


def images(size: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, size, size),)


def tokens() -> tuple[Tensor, ...]:
    """Return token ids and a mask that hides the end of the second sentence."""
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return torch.randint(1, 50, (2, 7)), mask


def resnet18():
    return ResNet(BasicBlock, (2, 2, 2, 2)), images(64)


def resnet50():
    return ResNet(Bottleneck, (3, 4, 6, 3), width=4), images(64)


def mobilenetv2():
    return MobileNetV2(), images(64)


def vit12():
    return ViT(depth=12), images(32)


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=10,
    )  # fmt: skip
    return Logits(BertForSequenceClassification(config)), tokens()


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, use_cache=False, bos_token_id=1, eos_token_id=1
    )
    return Logits(GPT2LMHeadModel(config)), tokens()


def vgg():
    plan = ((3, 6), (6, 6), None, (6, 8), (8, 8), None, (8, 12), None)
    layers = [nn.MaxPool2d(2) if pair is None else conv_norm(*pair, 3, act=nn.ReLU) for pair in plan]
    head = (nn.Flatten(), nn.Linear(12 * 16, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 10))
    return nn.Sequential(*layers, *head), images(32)


def branching():
    return Branching(), images(16)


def two_inputs():
    return TwoInputs(), (*images(16), torch.randn(2, 4))


def two_outputs():
    return TwoOutputs(), images(16)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    f.__name__: f for f in (resnet18, resnet50, mobilenetv2, vit12, bert, gpt2, vgg, branching, two_inputs, two_outputs)
}


@cache
def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network in evaluation mode and example inputs, two samples each; always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(sorted(NETWORKS).index(name))
        module, inputs = NETWORKS[name]()
        _randomize(module, inputs)
    return module.eval(), inputs


def _randomize(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Give every weight a value of its own (exporters merge equal ones) and BatchNorm the statistics of real data."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for layer in norms:
            layer.momentum = None
        module.train()
        if norms:
            module(torch.randn(16, *inputs[0].shape[1:]))
        for layer in norms:
            layer.momentum = 0.1


@cache
def _exported(name: str, exporter: str) -> bytes:
    module, inputs = build(name)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "current":
            batch = torch.export.Dim("batch")
            program = torch.onnx.export(
                module, inputs, dynamo=True, verbose=False, dynamic_shapes=tuple({0: batch} for _ in inputs)
            )
            return program.model_proto.SerializeToString()
        outputs = ["output", "second"][: 2 if name == "two_outputs" else 1]
        names = [f"input{i}" if i else "input" for i in range(len(inputs))]
        file = io.BytesIO()
        torch.onnx.export(
            module, inputs, file, dynamo=False, verbose=False, opset_version=17, input_names=names,
            output_names=outputs, dynamic_axes={key: {0: "batch"} for key in (*names, *outputs)},
        )  # fmt: skip
        return file.getvalue()


def export(name: str, exporter: str = "current") -> onnx.ModelProto:
    """Return a network as an ONNX model: a copy that may be changed."""
    return onnx.ModelProto.FromString(_exported(name, exporter))


@dataclass(frozen=True, eq=False)
class Network:
    """A network of the zoo, as torch and as ONNX hold it.

    Parameters
    ----------
    name, exporter : str
    module : nn.Module
        In evaluation mode; shared, so not to be trained.
    inputs : tuple of Tensor
        Two samples.
    model : Model
        What the exporter made of it; shared, as models do not change.
    """

    name: str
    exporter: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    model: Model

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        """The example inputs by the model's names for them."""
        return {name: value.numpy() for name, value in zip(self.model.inputs, self.inputs, strict=True)}


@cache
def network(name: str, exporter: str = "current") -> Network:
    """Return a network and the model that an exporter makes of it."""
    return Network(name, exporter, *build(name), load(export(name, exporter)))
