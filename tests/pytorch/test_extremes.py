"""Operators where a plain formula fails: one value per statistic, zeros, ties, half and double precision."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from graphmod.model import load
from graphmod.pytorch import to_torch
from graphmod.pytorch.dtypes import to_array, to_tensor
from graphmod.pytorch.operators.elementwise import cumulative_sum
from graphmod.pytorch.operators.linear import det_of_halves
from graphmod.pytorch.operators.normalization import mean_variance_of, normalize
from graphmod.pytorch.operators.random import DropoutAndMask
from graphmod.pytorch.operators.reduction import first_k

rng = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


@dataclass(frozen=True)
class Case:
    """One operator, whose first input is fed and whose others are constants unless ``computed``."""

    op_type: str
    inputs: tuple[np.ndarray, ...]
    opset: int = 22
    n_outputs: int = 1
    computed: bool = False
    reference: bool = False
    attributes: dict[str, object] = field(default_factory=dict)

    def __str__(self):
        x = self.inputs[0]
        return f"{self.op_type}-{self.opset}-{x.dtype}-{'x'.join(map(str, x.shape))}-{'fed' * self.computed}"


def case(op_type, *inputs, opset=22, n=1, computed=False, reference=False, **attributes):
    return Case(op_type, inputs, opset, n, computed, reference, attributes)


def model_of(given: Case):
    names = [f"x{index}" for index in range(len(given.inputs))]
    n_fed = len(names) if given.computed else 1
    operator = helper.make_node(given.op_type, names, [f"y{i}" for i in range(given.n_outputs)], **given.attributes)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in zip(names[:n_fed], given.inputs, strict=False)
    ]
    constants = [
        numpy_helper.from_array(x, name) for name, x in zip(names[n_fed:], given.inputs[n_fed:], strict=True)
    ]  # fmt: skip
    outputs = [helper.make_empty_tensor_value_info(name) for name in operator.output]
    graph = helper.make_graph([operator], "g", infos, outputs, constants)
    feeds = dict(zip(names[:n_fed], given.inputs, strict=False))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", given.opset)], ir_version=10), feeds


IMAGES = normal(2, 4, 1, 1), normal(1, 4, 1, 1)
CHANNELS = normal(4), normal(4)
STATISTICS = *CHANNELS, normal(4), np.abs(normal(4))
HALVES = normal(2, 4, 3, 3, dtype=np.float16)
TIES = np.float32([[1, 3, 3, 0, 3], [2, 2, 2, 2, 2]])

CASES = [
    *(case("InstanceNormalization", x, *CHANNELS, computed=fed) for x in IMAGES for fed in (False, True)),
    *(case("GroupNormalization", x, *CHANNELS, opset=21, computed=fed, reference=True, num_groups=4)
      for x in IMAGES for fed in (False, True)),
    case("GroupNormalization", IMAGES[1], *CHANNELS, opset=18, reference=True, num_groups=4),
    *(case("BatchNormalization", x, *STATISTICS, opset=15, n=3, computed=True, training_mode=1)
      for x in (normal(1, 4), IMAGES[1])),
    *(case("LpNormalization", 0 * x, p=p, axis=axis, reference=x.dtype == np.float16)
      for x in (HALVES, HALVES.astype(np.float32)) for p in (1, 2) for axis in (0, -1)),
    case("LpNormalization", normal(3, 4), p=1, axis=0), case("LpNormalization", 1e-20 * normal(3, 4), p=2),
    *(case("LRN", HALVES, size=size, reference=True) for size in (2, 3)),
    case("MeanVarianceNormalization", normal(2, 3, 4, 4), opset=13),
    *(case("CumSum", np.float32([x, x[::-1]]), np.array(1), exclusive=1, reverse=reverse)
      for x in ([0.1, 1e8, 0.2], [1, np.inf, 2]) for reverse in (0, 1)),
    case("CumSum", np.zeros((2, 0), np.float32), np.array(1), exclusive=1, reference=True),
    *(case("TopK", TIES, opset=1, n=2, reference=True, k=k) for k in (1, 3)),
    *(case("TopK", TIES, np.array([k]), opset=11, n=2, axis=axis, largest=largest)
      for k in (1, 2) for axis in (0, 1) for largest in (0, 1)),
    case("Mul", HALVES, np.float16([0.1]), reference=True), case("Add", 1000 * HALVES, np.float16(0.1), reference=True),
    *(case("LayerNormalization", normal(3, 4, dtype=kind), *(x.astype(kind) for x in CHANNELS), n=3)
      for kind in (np.float32, np.float64)),
]  # fmt: skip


@pytest.mark.filterwarnings("error:.*reference")
@pytest.mark.parametrize("given", CASES, ids=str)
def test_operator(given):
    proto, feeds = model_of(given)
    expected = ReferenceEvaluator(proto).run(None, feeds) if given.reference else [*load(proto).run(feeds).values()]
    made = to_torch(proto)(*map(to_tensor, feeds.values()))
    close = 2e-3 if given.inputs[0].dtype == np.float16 else 1e-4
    for actual, value in zip(made if isinstance(made, tuple) else (made,), expected, strict=True):
        array = to_array(actual.detach())
        assert (array.dtype, array.shape) == (value.dtype, value.shape)
        np.testing.assert_allclose(array, value, rtol=close, atol=close)


@pytest.mark.parametrize("op_type", ["InstanceNormalization", "GroupNormalization"])
def test_images_of_any_size_are_normalized_by_torchs_modules(op_type):
    groups = {"num_groups": 4} if op_type == "GroupNormalization" else {}
    proto, _ = model_of(case(op_type, normal(1, 4, 2, 1), *CHANNELS, **groups))
    assert type(next(to_torch(proto).children())) in (nn.InstanceNorm2d, nn.GroupNorm)


@pytest.mark.parametrize("op_type", ["RandomNormal", "RandomUniform"])
def test_random_tensors_are_drawn_where_the_network_is(op_type):
    proto, _ = model_of(case("Neg", normal(3)))
    drawn = helper.make_node(op_type, [], ["noise"], shape=[2, 3])
    proto.graph.node[0].CopyFrom(helper.make_node("Add", ["x0", "noise"], ["y0"]))
    proto.graph.node.insert(0, drawn)
    net = to_torch(proto)
    assert not torch.equal(net(torch.zeros(3)), net(torch.zeros(3)))
    assert not net.state_dict()
    assert net.to("meta")(torch.zeros(3, device="meta")).device.type == "meta"


def test_dropping_everything_leaves_zeros_and_no_gradient():
    x = torch.randn(3, 4, requires_grad=True)
    made, kept = DropoutAndMask()(x, 1.0)
    made.sum().backward()
    assert not made.any()
    assert not kept.any()
    assert not x.grad.any()


@pytest.mark.parametrize(
    "function",
    [lambda x: mean_variance_of(x, [0, 2]), lambda x: normalize(x, 1, 1), lambda x: normalize(x, 2, 1)],
)
def test_what_does_not_vary_has_a_gradient(function):
    for value in (0.0, 0.1):
        x = torch.full((2, 3, 4), value, requires_grad=True)
        made = function(x)
        (made * torch.randn(2, 3, 4)).sum().backward()
        assert made.isfinite().all()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: mean_variance_of(x, [0, 2]),
        lambda x: normalize(x, 2, 1),
        lambda x: cumulative_sum(x, 1, True, True),
        lambda x: first_k(x, 1, 1, True)[0],
        lambda x: torch.det(x),
    ],
)
def test_gradients_are_those_of_finite_differences(function):
    x = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(function, x)


def test_determinants_of_half_precision_have_a_gradient():
    proto, _ = model_of(case("Det", HALVES))
    expected = np.linalg.det(HALVES.astype(np.float32))
    np.testing.assert_allclose(to_torch(proto)(to_tensor(HALVES)), expected, rtol=1e-3, atol=1e-3)
    x = torch.randn(2, 3, 3, dtype=torch.float16, requires_grad=True)
    det_of_halves(x).sum().backward()
    cofactors = torch.det(x.detach().float())[:, None, None] * torch.linalg.inv(x.detach().float()).mT
    torch.testing.assert_close(x.grad.float(), cofactors, rtol=1e-2, atol=1e-2)
