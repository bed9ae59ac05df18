"""Networks in torch, each exported by both of torch's exporters."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from graphmod.model import Model, load


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.Dropout(0.3),
        )  # fmt: skip
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Residual(4, 4, 1), Residual(4, 4, 1))
        self.layer2 = nn.Sequential(Residual(4, 8, 2), Residual(8, 8, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(torch.relu(self.conv1(x))))), 1))


class Inverted(nn.Module):
    def __init__(self, n, n_wide):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(n, n_wide, 1, bias=False), nn.BatchNorm2d(n_wide), nn.ReLU6(),
            nn.Conv2d(n_wide, n_wide, 3, padding=1, groups=n_wide, bias=False), nn.BatchNorm2d(n_wide), nn.ReLU6(),
            nn.Conv2d(n_wide, n, 1, bias=False), nn.BatchNorm2d(n),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv(x)


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU6(), Inverted(4, 12), Inverted(4, 12))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 5))

    def forward(self, x):
        return self.classifier(nn.functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class Encoder(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x):
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.scale * self.proj(y.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.ModuleList([Encoder(width, 2), Encoder(width, 2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Language(nn.Module):
    """A language model that takes tokens and their mask and returns one tensor."""

    def __init__(self, model, output):
        super().__init__()
        self.model, self.output = model, output

    def forward(self, ids, mask):
        return getattr(self.model(input_ids=ids, attention_mask=mask), self.output)


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    return Language(BertModel(config, add_pooling_layer=False), "last_hidden_state")


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, use_cache=False, bos_token_id=1, eos_token_id=1
    )
    return Language(GPT2LMHeadModel(config), "logits")


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convnet": ConvNet, "resnet": ResNet, "mobilenet": MobileNet, "vit": ViT, "bert": bert, "gpt2": gpt2
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """A network, the model that an exporter made of it, and example inputs."""

    name: str
    module: nn.Module
    model: Model

    def inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        return _inputs(self.name, batch, seed)

    def feeds(self, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in zip(self.model.inputs, inputs, strict=True)}

    def runtime(self, inputs: tuple[Tensor, ...], model: Model | None = None) -> np.ndarray:
        return next(iter((model or self.model).run(self.feeds(inputs)).values()))


def _inputs(name: str, batch: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    if name not in ("bert", "gpt2"):
        return (torch.randn(batch, 3, 8, 8, generator=generator),)
    mask = torch.ones(batch, 3 + 2 * batch, dtype=torch.long)
    mask[0, -1] = name == "gpt2"
    return torch.randint(0, 50, mask.shape, generator=generator), mask


def _randomize(module: nn.Module) -> nn.Module:
    """Give every weight values of its own: the exporter merges weights that are equal."""
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return module


@cache
def _export(name: str, exporter: str) -> Exported:
    torch.manual_seed(0)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    module = _randomize(NETWORKS[name]()).eval()
    inputs = _inputs(name, 2, 0)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "current":
            axes = dict.fromkeys(range(inputs[0].ndim if len(inputs) > 1 else 1), torch.export.Dim.DYNAMIC)
            program = torch.onnx.export(
                module, inputs, dynamo=True, dynamic_shapes=tuple(axes for _ in inputs), verbose=False
            )
            return Exported(name, module, load(program.model_proto))
        names = ["ids", "mask"][: len(inputs)]
        torch.onnx.export(
            module, inputs, file, dynamo=False, opset_version=17, input_names=names, output_names=["out"],
            dynamic_axes={key: {0: "n", 1: "s"} if len(inputs) > 1 else {0: "n"} for key in names},
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        )  # fmt: skip
    return Exported(name, module, load(onnx.ModelProto.FromString(file.getvalue())))


@pytest.fixture(params=[(name, exporter) for name in NETWORKS for exporter in ("current", "torchscript")], ids="-".join)
def exported(request) -> Exported:
    """Every network, from either exporter."""
    return _export(*request.param)


@pytest.fixture
def export() -> Callable[[str, str], Exported]:
    """Export one network by name, by one exporter."""
    return _export
