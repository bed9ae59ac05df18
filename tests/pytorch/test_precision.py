"""Half-precision models: as they are, or as single precision on request."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from graphmod.model import load
from graphmod.pytorch import to_torch, write_back

rng = np.random.default_rng(0)


def half_model(code=TensorProto.FLOAT16):
    """Return a model that computes in half precision, with a Cast in the middle and a constant made in the graph."""
    dtype = helper.tensor_dtype_to_np_dtype(code)
    weights = {"w": rng.normal(size=(4, 6)), "b": rng.normal(size=6), "v": rng.normal(size=(6, 3))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["s"]),
        helper.make_node("Cast", ["s"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["wide"], ["p"], axis=-1),
        helper.make_node("Cast", ["p"], ["narrow"], to=code),
        helper.make_node("MatMul", ["narrow", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", code, ["n", 4])],
        [helper.make_tensor_value_info("y", code, ["n", 3])],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("code", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_stays(code):
    model = half_model(code)
    net = to_torch(model)
    dtype = {TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16}[code]
    assert {p.dtype for p in net.parameters()} == {dtype}
    x = torch.randn(5, 4).to(dtype)
    y = net(x)
    assert y.dtype == dtype
    wide = to_torch(model, dtype=torch.float32)(x)
    assert torch.allclose(y.float(), wide, atol=3e-2, rtol=3e-2)
    assert write_back(model, net) is model


def test_half_precision_equals_onnx_runtime():
    model = half_model()
    x = rng.normal(size=(5, 4)).astype(np.float16)
    with torch.no_grad():
        actual = to_torch(model)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(actual, model.run({"x": x})["y"], rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("code", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_single_precision_on_request_trains_and_goes_back_as_half(code):
    model = half_model(code)
    net = to_torch(model, dtype=torch.float32)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    x = torch.randn(5, 4)
    y = net(x)
    assert y.dtype == torch.float32
    w, b, v = (torch.from_numpy(model.initializer(name).astype(np.float32)) for name in "wbv")
    assert torch.allclose(y, torch.softmax(x @ w + b, -1) @ v, atol=1e-6)
    assert write_back(model, net) is model

    y.square().mean().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    trained = write_back(model, net)
    assert {t.data_type for t in trained.initializers.values()} == {code}
    assert trained.operators == model.operators
    values = {value.dtype.name for value in map(trained.initializer, "wbv")}
    assert values == {model.initializer("w").dtype.name}
    again = to_torch(trained, dtype=torch.float32)
    assert torch.allclose(again(x), net(x), atol=2e-2)
