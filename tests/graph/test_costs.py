"""Costs against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
import zoo
from torch import nn

import graphmod as gm

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def macs_and_weights(network: zoo.Network) -> tuple[int, int]:
    """Count convolutions and linear layers from the shapes that hooks see; a folded BatchNorm leaves one bias."""
    counted = [0, 0]

    def count(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        counted[0] += output[0].numel() * module.weight[0].numel()
        counted[1] += module.weight.numel() + module.weight.shape[0]

    layers = [m for m in network.module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network.module(*network.inputs)
    for hook in hooks:
        hook.remove()
    return counted[0], counted[1]


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg"])
def test_costs_of_a_convolutional_network(zoo_network, name, exporter):
    network = zoo_network(name, exporter)
    macs, weights = macs_and_weights(network)
    assert gm.graph.cost(network.model) == gm.graph.Cost(weights, 4 * weights, macs)
    assert network.model.n_weights == weights


def test_a_depthwise_convolution_costs_one_channel_each(zoo_network):
    network = zoo_network("mobilenetv2", "torchscript")
    assert gm.graph.cost(network.model).macs == macs_and_weights(network)[0]


def test_costs_of_blocks_add_up(zoo_network):
    model = zoo_network("resnet18").model
    parts = [gm.graph.cost(model, child.operators) for child in gm.blocks(model).children]
    whole = gm.graph.cost(model)
    assert sum(part.macs for part in parts) == whole.macs
    assert sum(part.weights for part in parts) == whole.weights
    assert sum(part.bytes for part in parts) == whole.bytes


def test_weights_made_by_constant_of_shape_count():
    """ResNet-50 has 25,557,032 trained parameters, and a mean and a variance for each of 26,560 channels."""
    model = gm.load(LIGHT / "light_resnet50.onnx")
    assert gm.graph.cost(model).weights == 25_557_032 + 2 * 26_560
    assert round(gm.graph.cost(model).macs / 1e9, 1) == pytest.approx(4.0, abs=0.15)


def test_a_shared_weight_counts_once():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[batch, 4] x) => (float[batch, 4] out) <float[4, 4] w> { a = MatMul(x, w) out = MatMul(a, w) }"""
    proto = onnx.parser.parse_model(text)
    del proto.graph.initializer[:]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    assert gm.graph.cost(gm.load(proto)) == gm.graph.Cost(weights=16, bytes=64, macs=32)


@pytest.mark.parametrize(("transposed", "macs"), [(0, 3 * 5 * 7), (1, 3 * 5 * 7)])
def test_gemm_with_a_transposed_input(transposed, macs):
    shape = "5, 3" if transposed else "3, 5"
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[{shape}] x, float[5, 7] w) => (float[3, 7] out) {{ out = Gemm <transA = {transposed}> (x, w) }}"""
    assert gm.graph.cost(gm.load(onnx.parser.parse_model(text))).macs == macs


def test_a_transposed_convolution_costs_its_kernel_for_each_input_pixel():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[b, 2, 5, 5] x, float[2, 3, 4, 4] w) => (float[b, 3, 8, 8] out) { out = ConvTranspose(x, w) }"""
    assert gm.graph.cost(gm.load(onnx.parser.parse_model(text))).macs == 2 * 5 * 5 * 3 * 4 * 4
