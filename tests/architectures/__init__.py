"""Architectures with random weights, written as model libraries write them, and what torch's exporters make of them.

``build(name)`` is the module, ``export(name, exporter)`` the ONNX model, ``examples(name, exporter)`` inputs of several
batch sizes and lengths that both must agree on. A new architecture is one more function in the file of its family.
"""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from functools import cache
from zlib import crc32

import onnx
import torch
from torch import Tensor, nn

from architectures import (
    convolutional,
    dense_prediction,
    huggingface,
    language,
    residual,
    sequences,
    vision_transformers,
)
from architectures.registry import ARCHITECTURES, Input

EXPORTERS = ("current", "torchscript")

FAMILIES = (residual, convolutional, vision_transformers, dense_prediction, sequences, language, huggingface)


@cache
def _built(name: str) -> tuple[nn.Module, tuple[Input, ...]]:
    with torch.random.fork_rng():
        torch.manual_seed(crc32(name.encode()))
        module, inputs = ARCHITECTURES[name].entry()
        _randomize(module, _draw(name, inputs, 16, 0, False))
    return module.eval(), inputs


def _randomize(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Give every weight a value of its own (exporters merge equal ones) and BatchNorm the statistics of the inputs."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        norms = [layer for layer in module.modules() if getattr(layer, "running_mean", None) is not None]
        for layer in norms:
            layer.momentum = None
        if norms:
            module.train()(*inputs)
        for layer in norms:
            layer.momentum = 0.1


def _draw(name: str, inputs: tuple[Input, ...], batch: int, seed: int, resized: bool) -> tuple[Tensor, ...]:
    sizes = {axis: pair[resized] for axis, pair in ARCHITECTURES[name].sizes.items()}
    generator = torch.Generator().manual_seed(crc32(name.encode()) + seed)
    return tuple(one.example({"batch": batch, **sizes}, generator) for one in inputs)


def build(name: str) -> nn.Module:
    """Return a network in evaluation mode; always the same one, shared."""
    return _built(name)[0]


def example(name: str, batch: int = 2, seed: int = 0, resized: bool = False) -> tuple[Tensor, ...]:
    """Return inputs of a network; ``resized`` takes the other size of every dynamic axis but the batch."""
    return _draw(name, _built(name)[1], batch, seed, resized)


def examples(name: str, exporter: str) -> list[tuple[Tensor, ...]]:
    """Return inputs that the exported model can take: of 2 and 3 samples, and of another length, unless hard-coded."""
    architecture = ARCHITECTURES[name]
    fixed = architecture.fixed.get(exporter, set())
    batch = 2 if "batch" in fixed else 3
    drawn = [example(name, 2, 1), example(name, batch, 2)]
    if architecture.sizes and not fixed & set(architecture.sizes):
        drawn.append(example(name, batch, 3, resized=True))
    return drawn


def exports() -> list[tuple[str, str]]:
    """Return all pairs of an architecture and an exporter that can export it."""
    return [
        (a.name, exporter) for a in ARCHITECTURES.values() for exporter in EXPORTERS if exporter not in a.unsupported
    ]


@cache
def _exported(name: str, exporter: str) -> bytes:
    module, inputs = _built(name)
    fixed = ARCHITECTURES[name].fixed.get(exporter, set())
    axes = [one.dynamic(fixed) for one in inputs]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if exporter == "current":
                return _current(module, example(name), axes)
            return _torchscript(module, example(name), axes)
    finally:
        logger.setLevel(level)


def _current(module: nn.Module, inputs: tuple[Tensor, ...], axes: list[dict[int, str]]) -> bytes:
    shapes = tuple(dict.fromkeys(names, torch.export.Dim.DYNAMIC) for names in axes)
    program = torch.onnx.export(module, inputs, dynamo=True, verbose=False, dynamic_shapes=shapes)
    return program.model_proto.SerializeToString()


def _torchscript(module: nn.Module, inputs: tuple[Tensor, ...], axes: list[dict[int, str]]) -> bytes:
    with torch.no_grad():
        results = module(*inputs)
    names = list(inspect.signature(module.forward).parameters)[: len(inputs)]
    outputs = [f"output{i}" for i in range(len(results))] if isinstance(results, tuple) else ["output"]
    batch = {0: "batch"} if "batch" in axes[0].values() else {}
    file = io.BytesIO()
    torch.onnx.export(
        module, inputs, file, dynamo=False, verbose=False, opset_version=17, input_names=names, output_names=outputs,
        dynamic_axes=dict(zip(names, axes, strict=True)) | dict.fromkeys(outputs, batch),
    )  # fmt: skip
    return file.getvalue()


def export(name: str, exporter: str = "current") -> onnx.ModelProto:
    """Return a network as an ONNX model: a copy that may be changed."""
    return onnx.ModelProto.FromString(_exported(name, exporter))
