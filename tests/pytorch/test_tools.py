"""Tools for modules find what they look for: export, compile, LoRA, quantization, torch's own ONNX exporter."""

from __future__ import annotations

import copy
import io
import logging
import warnings

import architectures
import numpy as np
import pytest
import torch
from torch import nn

from graphmod.model import load
from graphmod.pytorch import to_torch

BATCH = torch.export.Dim.DYNAMIC


def imported(name):
    return to_torch(architectures.export(name, "torchscript"))


def single(made):
    return made[0] if isinstance(made, tuple) else made


@pytest.mark.parametrize("name", ["resnet_basic", "vit", "bert"])
def test_torch_export_with_a_dynamic_batch(name):
    net = imported(name)
    inputs, others = architectures.example(name), architectures.example(name, batch=3, seed=1)
    program = torch.export.export(net, inputs, dynamic_shapes=tuple({0: BATCH} for _ in inputs))
    with torch.no_grad():
        assert torch.allclose(single(program.module()(*others)), single(net(*others)), atol=1e-5)


@pytest.mark.parametrize("name", ["efficientnet", "gpt", "lstm_tagger"])
def test_the_network_leaves_by_torchs_own_exporter(name):
    net = imported(name)
    inputs, others = architectures.example(name), architectures.example(name, batch=3, seed=1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, inputs, dynamo=True, verbose=False, dynamic_shapes=tuple({0: BATCH} for _ in inputs)
        )
    again = load(program.model_proto)
    made = again.run({key: value.numpy() for key, value in zip(again.inputs, others, strict=True)})
    with torch.no_grad():
        expected = single(net(*others)).numpy()
    np.testing.assert_allclose(next(iter(made.values())), expected, atol=1e-4 * np.abs(expected).max())


def test_the_network_leaves_by_the_torchscript_exporter():
    net, inputs = imported("mobilenetv3"), architectures.example("mobilenetv3")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = nn.Sequential(net)  # with dynamic axes, that exporter takes no GraphModule
        torch.onnx.export(wrapped, inputs, file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    again = load(file.getvalue())
    others = architectures.example("mobilenetv3", batch=3, seed=1)
    with torch.no_grad():
        expected = net(*others).numpy()
    actual = next(iter(again.run({"x": others[0].numpy()}).values()))
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["squeezenet", "gpt"])
def test_torch_compile_finds_no_graph_break(name):
    net, inputs = imported(name), architectures.example(name)
    compiled = torch.compile(net, backend="eager", fullgraph=True, dynamic=True)
    for batch in (2, 3):
        inputs = architectures.example(name, batch=batch)
        assert torch.allclose(single(compiled(*inputs)), single(net(*inputs)), atol=1e-5)


def test_lora_of_peft_finds_the_linear_layers():
    import peft

    net, inputs = imported("bert"), architectures.example("bert")
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    assert len(linear) > 8
    before = single(net(*inputs)).detach()
    tuned = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=linear))
    assert torch.allclose(single(tuned(*inputs)), before, atol=1e-5)
    single(tuned(*inputs)).square().mean().backward()
    trained = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)


def test_dynamic_quantization_replaces_the_linear_layers():
    net, inputs = imported("vit"), architectures.example("vit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(net), {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in quantized.modules())
    expected = single(net(*inputs))
    assert torch.nn.functional.cosine_similarity(
        single(quantized(*inputs)).flatten(), expected.flatten(), dim=0
    ) > 0.98  # fmt: skip
