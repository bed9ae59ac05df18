"""Running a model, and errors that name both sides."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch
import zoo

import graphmod as gm
from graphmod.model.session import usual_threads


def test_outputs_are_those_of_torch(any_export):
    with torch.no_grad():
        expected = any_export.module(*any_export.inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = any_export.model.run(any_export.feeds)
    assert list(found) == list(any_export.model.outputs)
    for actual, wanted in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(actual, wanted.numpy(), rtol=0, atol=1e-3 * float(wanted.abs().max()))


def test_inner_tensors_come_in_the_order_asked(zoo_network):
    network = zoo_network("vgg")
    names = gm.boundaries(network.model)[::-3]
    found = network.model.run(network.feeds, outputs=[*names, names[0]])
    assert list(found) == names
    every = network.model.run(network.feeds, outputs=gm.boundaries(network.model))
    for name in names:
        np.testing.assert_array_equal(found[name], every[name])
    assert names[1] not in network.model.outputs


@pytest.fixture
def network():
    return zoo.network("two_inputs", "torchscript")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"input1": None}, ("'input1'", "input, input1")),
        ({"other": np.zeros(2)}, ("'other'", "input, input1")),
        ({"input1": np.zeros((2, 4))}, ("float64", "'input1'", "float32[batch, 4]")),
        ({"input1": np.zeros((2, 5), np.float32)}, ("[2, 5]", "'input1'", "float32[batch, 4]")),
        ({"input": np.zeros((2, 3, 16), np.float32)}, ("[2, 3, 16]", "'input'", "float32[batch, 3, 16, 16]")),
        ({"input1": np.zeros((3, 4), np.float32)}, ("fails",)),
    ],
    ids=["missing", "unknown", "dtype", "shape", "rank", "batch"],
)
def test_data_that_does_not_fit_is_told_with_what_is_needed(network, change, told):
    feeds = {name: array for name, array in {**network.feeds, **change}.items() if array is not None}
    with pytest.raises(gm.InvalidDataError) as caught:
        network.model.run(feeds)
    assert all(part in str(caught.value) for part in told), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_tensor_is_named(network):
    with pytest.raises(gm.InvalidModelError, match="'nothing'"):
        network.model.run(network.feeds, outputs=["nothing"])


def test_types_of_tensors(network):
    model = network.model
    kind = model.inputs["input"]
    assert str(kind) == "float32[batch, 3, 16, 16]"
    assert (kind.size, kind.is_float) == (3 * 16 * 16, True)
    values = model.run(network.feeds, outputs=gm.boundaries(model))
    for name, value in values.items():
        declared = model.tensors[name]
        assert declared.dtype == value.dtype
        assert all(not isinstance(d, int) or d == n for d, n in zip(declared.shape, value.shape, strict=True))


def test_threads_do_not_change_the_output(network):
    session = network.model.session(threads=1)
    np.testing.assert_allclose(session.run(None, network.feeds)[0], network.model.run(network.feeds)["output"], 1e-5)


def test_sessions_take_the_threads_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert usual_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert usual_threads() == (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count())
