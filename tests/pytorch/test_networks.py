"""Whole architectures, exported by both exporters: outputs, gradients, weights, the way back."""

from __future__ import annotations

import copy
import pickle
import warnings

import architectures
import numpy as np
import pytest
import torch
from gradients import gradients, matched, outputs, widened
from torch import nn

from graphmod.model import load
from graphmod.pytorch import to_torch, write_back

NO_GRADIENT_IN_THE_GRAPH = {"vqvae": "its straight-through estimator detaches, which a graph cannot say"}
"""Networks whose gradients an export changes."""
IN_SINGLE_PRECISION = {"diffusion_unet", "graph_network", "mixture_of_experts", "vanilla_rnn"}
"""Networks that make float32 tensors inside, themselves or in their graph, and so cannot be computed in float64."""


def check(name, exporter):
    model = load(architectures.export(name, exporter))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing here needs the reference implementation
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        net = to_torch(model)
    for inputs in architectures.examples(name, exporter):
        with torch.no_grad():
            made = outputs(net(*inputs))
        expected = model.run({key: x.numpy() for key, x in zip(model.inputs, inputs, strict=True)})
        for actual, wanted in zip(made, expected.values(), strict=True):
            np.testing.assert_allclose(actual.numpy(), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert write_back(model, net) is model
    if name not in NO_GRADIENT_IN_THE_GRAPH:
        first = architectures.examples(name, exporter)[0]
        check_gradients(net, architectures.build(name), first, wide=name not in IN_SINGLE_PRECISION)


def check_gradients(net, original, inputs, *, wide):
    """Compare with the original's weight by weight, in float64 (``wide``) or in float32."""
    original = copy.deepcopy(original)
    nets = net, original
    if wide:
        inputs, nets = widened(inputs), tuple(copy.deepcopy(one).double() for one in nets)
    found, wanted = (gradients(one, inputs) for one in nets)
    assert all(grad.isfinite().all() for grad in found.values())
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    compared = 0
    for name, actual, grad in matched(net, original, found, wanted):
        assert float((actual - grad).abs().max()) <= 1e-4 * (float(grad.abs().max()) + 1e-2 * largest), name
        compared += 1
    assert compared


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_of_the_torchscript_exporter(name):
    check(name, "torchscript")


QUICK = ("resnet_basic", "lstm_tagger", "gpt", "swin", "yolo")


@pytest.mark.parametrize("name", QUICK)
def test_of_the_current_exporter(name):
    check(name, "current")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in architectures.ARCHITECTURES if name not in QUICK])
def test_others_of_the_current_exporter(name):
    check(name, "current")


@pytest.mark.parametrize("name", ["efficientnet", "swin", "crnn", "t5_encoder"])
def test_a_pickled_network_is_the_same_network(name):
    net = to_torch(architectures.export(name, "torchscript"))
    twin = pickle.loads(pickle.dumps(net))
    inputs = architectures.example(name)
    with torch.no_grad():
        for left, right in zip(outputs(net(*inputs)), outputs(twin(*inputs)), strict=True):
            assert torch.equal(left, right)
    assert twin.code == net.code
    assert twin.meta == net.meta


MODULES = {
    "vit": {nn.Conv2d, nn.Linear, nn.LayerNorm, nn.GELU},
    "convnext": {nn.Conv2d, nn.Linear, nn.LayerNorm, nn.GELU},
    "efficientnet": {nn.Conv2d, nn.SiLU, nn.Sigmoid, nn.Linear},
    "mobilenetv3": {nn.Conv2d, nn.Hardswish, nn.Hardsigmoid},
    "poolformer": {nn.Conv2d, nn.GroupNorm, nn.GELU},
    "llama": {nn.Linear, nn.Embedding, nn.RMSNorm, nn.SiLU},
    "lstm_tagger": {nn.LSTM, nn.Embedding, nn.Linear},
    "gru_classifier": {nn.GRU, nn.Linear},
    "vanilla_rnn": {nn.RNN, nn.Linear},
    "unet_transposed": {nn.Conv2d, nn.ConvTranspose2d},
    "cyclegan": {nn.Conv2d, nn.InstanceNorm2d},
    "wavenet": {nn.Conv1d},
    "video_conv3d": {nn.Conv3d},
}
"""What a person would have written these networks with."""


@pytest.mark.parametrize("name", MODULES)
def test_made_of_the_modules_that_one_would_write(name):
    net = to_torch(architectures.export(name, "torchscript"))
    assert MODULES[name] <= {type(module) for module in net.modules()}
