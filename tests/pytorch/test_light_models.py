"""The networks of onnx's own test data: opset 9, weights made by ConstantOfShape."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from graphmod.model import load
from graphmod.pytorch import to_torch, write_back

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SMALL = ["inception_v1", "resnet50", "shufflenet", "squeezenet"]


def feeds_of(model):
    rng = np.random.default_rng(0)
    shapes = {name: [n if isinstance(n, int) else 1 for n in kind.shape] for name, kind in model.inputs.items()}
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


def compare(model, net):
    feeds = feeds_of(model)
    expected = next(iter(model.run(feeds).values()))
    with torch.no_grad():
        actual = net(*map(torch.from_numpy, feeds.values())).numpy()
    finite = np.isfinite(expected)
    assert (np.isfinite(actual) == finite).all()
    np.testing.assert_allclose(actual[finite], expected[finite], rtol=0, atol=1e-4 * np.abs(expected[finite]).max())
    return expected


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.onnx")), ids=lambda path: path.stem)
def test_computes_what_onnx_runtime_computes(path):
    model = load(path)
    net = to_torch(model)
    compare(model, net)
    if "vgg19" not in path.stem:  # 143 million weights
        assert write_back(model, net) is model


@pytest.mark.parametrize("name", SMALL)
def test_with_weights_that_are_not_all_the_same(name):
    """Every weight of these files is one number repeated: other ones show that no axis was mixed up."""
    model = load(FOLDER / f"light_{name}.onnx")
    net = to_torch(model)
    torch.manual_seed(0)
    for parameter in net.parameters():
        fan_in = math.prod(parameter.shape[1:])
        scale = math.sqrt(1 / fan_in) if parameter.ndim > 1 and fan_in > 1 else 0.1
        parameter.data = torch.randn(parameter.shape) * scale + 0.6 * (parameter.ndim == 1)
    for buffer_name, buffer in net.named_buffers():
        if buffer_name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
        elif buffer_name.endswith("running_mean"):
            buffer.normal_()
    changed = write_back(model, net)
    assert len({float(value) for value in compare(changed, net).reshape(-1)}) > 50
