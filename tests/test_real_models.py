"""Models that no one here wrote: info, blocks, similarity and the importer on each."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo

import graphmod as gm

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = ("resnet50", "densenet121", "inception_v1", "inception_v2", "shufflenet", "squeezenet", "vgg19")
PARAMETERS = {"resnet50": 25.6e6, "densenet121": 8.1e6, "squeezenet": 1.24e6, "vgg19": 143.7e6}
"""What the architectures are known to have, in float constants."""


@pytest.fixture(scope="module", params=NAMES)
def light(request):
    return request.param, gm.load(LIGHT / f"light_{request.param}.onnx")


def test_light_models_are_read_measured_and_imported(light):
    name, model = light
    if name in PARAMETERS:
        assert model.n_weights == pytest.approx(PARAMETERS[name], rel=0.02)
    tree = gm.blocks(model)
    on_trunk = gm.boundaries(model)
    assert tree.exit == on_trunk[-1]
    assert {block.exit for block in tree.walk()} >= {tree.exit}
    assert len({block.path for block in tree.walk()}) == sum(1 for _ in tree.walk())

    images = np.random.default_rng(0).normal(size=(4, 3, 224, 224)).astype(np.float32)
    every = max(1, len(on_trunk) // 6)
    chosen = on_trunk[::every]
    with warnings.catch_warnings():  # constant weights saturate a softmax: its activations may never change
        warnings.filterwarnings("ignore", "activations never change, or")
        found = gm.similarity(model, images, chosen, batch_size=4)
    finite = found.matrix[np.isfinite(found.matrix)]
    assert finite.size
    assert np.diag(found.matrix)[np.isfinite(np.diag(found.matrix))] == pytest.approx(1)

    net = gm.to_torch(model)
    held = sum(value.numel() for value in net.state_dict().values() if value.is_floating_point())
    assert held == pytest.approx(model.n_weights, rel=1e-3)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_transformers_are_read_measured_and_imported(name):
    import torch

    network = zoo.network(name, "current")
    model, feeds = network.model, network.feeds
    many = {key: np.concatenate([value] * 8) for key, value in feeds.items()}
    rng = np.random.default_rng(0)
    ids = next(iter(many))
    many[ids] = rng.integers(1, 50, many[ids].shape).astype(many[ids].dtype)
    found = gm.similarity(model, many, batch_size=8)
    assert found.boundaries[-1] == next(iter(model.outputs))
    assert np.diag(found.matrix) == pytest.approx(1)
    assert len(list(gm.blocks(model).walk())) > 10

    net = gm.to_torch(model)
    with torch.no_grad():
        ours = net(*(torch.from_numpy(many[key]) for key in model.inputs))
    first = ours[0] if isinstance(ours, tuple) else ours
    expected = next(iter(model.run(many).values()))
    np.testing.assert_allclose(first.numpy(), expected, atol=1e-4 * np.abs(expected).max())
