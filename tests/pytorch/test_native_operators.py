"""Operators that torch has in another form, or not in one call, against ONNX Runtime or onnx's reference."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from graphmod.model import load
from graphmod.pytorch import to_torch, unsigned
from graphmod.pytorch.dtypes import to_array, to_tensor
from graphmod.pytorch.operators.attention import attend
from graphmod.pytorch.operators.convolution import fold_of
from graphmod.pytorch.operators.elementwise import cumulative_product
from graphmod.pytorch.operators.indexing import unique_of, write_from
from graphmod.pytorch.operators.layout import pad_of
from graphmod.pytorch.operators.normalization import BatchNormAndStatistics, batch_norm_and_statistics
from graphmod.pytorch.operators.pooling import average_pool_of, lp_pool_of, max_pool_with_positions, max_unpool_of
from graphmod.pytorch.operators.random import DropoutAndMask
from graphmod.pytorch.operators.resize import resize_of
from graphmod.pytorch.operators.signal import fourier, fourier_of_frames
from graphmod.pytorch.operators.vision import deformed_convolution, roi_align_of

rng = np.random.default_rng(0)


def f(*shape):
    return rng.normal(size=shape).astype(np.float32)


def i(*values):
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """One operator and all its inputs; those at ``held`` are constants. ``reference`` where ONNX Runtime has none."""

    op_type: str
    inputs: tuple[np.ndarray | None, ...]
    opset: int = 22
    held: tuple[int, ...] = ()
    n_outputs: int = 1
    reference: bool = False
    attributes: dict[str, object] = field(default_factory=dict)

    def __str__(self):
        shown = [f"{key}={value}" for key, value in self.attributes.items()]
        return "-".join([self.op_type, str(self.opset), *shown]).replace(" ", "")


def c(op_type, *inputs, opset=22, held=(), n=1, reference=False, **attributes):
    return Case(op_type, inputs, opset, held, n, reference, attributes)


def model_of(case):
    names = ["" if value is None else f"i{index}" for index, value in enumerate(case.inputs)]
    outputs = [f"o{index}" for index in range(case.n_outputs)]
    operator = helper.make_node(case.op_type, names, outputs, **case.attributes)
    inputs, constants = [], []
    for index, (name, value) in enumerate(zip(names, case.inputs, strict=True)):
        if index in case.held:
            constants.append(numpy_helper.from_array(np.asarray(value), name))
        elif name:
            kind = helper.np_dtype_to_tensor_dtype(np.asarray(value).dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, np.shape(value)))
    values = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph([operator], "g", inputs, values, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=10)


def natively(model):
    """Import a model; that an operator falls back to onnx's reference is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return to_torch(model)


def check(case, tolerance=1e-5):
    model = model_of(case)
    feeds = {
        f"i{index}": np.asarray(value)
        for index, value in enumerate(case.inputs)
        if value is not None and index not in case.held
    }
    expected = ReferenceEvaluator(model).run(None, feeds) if case.reference else [*load(model).run(feeds).values()]
    with torch.no_grad():
        made = natively(model)(*map(to_tensor, feeds.values()))
    for actual, value in zip(made if isinstance(made, tuple) else (made,), expected, strict=True):
        array = to_array(actual)
        assert array.dtype == value.dtype
        assert array.shape == value.shape
        if array.dtype.kind in "fc":
            np.testing.assert_allclose(array, value, rtol=1e-4, atol=tolerance * max(1, np.abs(value).max(initial=0)))
        else:
            np.testing.assert_array_equal(array, value)


IMAGE, LINE, VOLUME = f(2, 3, 9, 8), f(2, 3, 11), f(1, 2, 6, 7, 5)
BYTES = rng.integers(-128, 128, (2, 3, 9, 8))
POOLS = [
    dict(kernel_shape=[3, 3], pads=[2, 2, 2, 2]),
    dict(kernel_shape=[3, 2], pads=[2, 0, 1, 1], strides=[2, 3], ceil_mode=1),
    dict(kernel_shape=[3, 2], dilations=[2, 3], strides=[1, 2], pads=[1, 1, 0, 1], ceil_mode=1),
    dict(kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1),
    dict(kernel_shape=[4, 3], strides=[2, 3], auto_pad="SAME_LOWER"),
    dict(kernel_shape=[4, 3], strides=[2, 3], auto_pad="SAME_UPPER"),
    dict(kernel_shape=[4, 3], strides=[2, 3], auto_pad="VALID", ceil_mode=1),
]
CASES = [
    *(c("MaxPool", IMAGE, **pool) for pool in POOLS),
    *(c("MaxPool", IMAGE, n=2, storage_order=k, **pool) for pool in POOLS for k in (0, 1)),
    *(c("MaxPool", x, n=2, storage_order=k, kernel_shape=[2] * (x.ndim - 2), dilations=[2] * (x.ndim - 2),
        pads=[1, 0] * (x.ndim - 2)) for x in (LINE, VOLUME) for k in (0, 1)),
    *(c("MaxPool", BYTES.astype(kind), kernel_shape=[2, 3], pads=[1, 1, 1, 2]) for kind in (np.int8, np.uint8)),
    c("MaxPool", rng.integers(-128, 128, (1, 2, 9)).astype(np.int8), kernel_shape=[2]),
    *(c("AveragePool", IMAGE, count_include_pad=k, **pool) for pool in POOLS for k in (0, 1)),
    *(c("AveragePool", x, kernel_shape=[3] * (x.ndim - 2), dilations=[2] * (x.ndim - 2), ceil_mode=1)
      for x in (LINE, VOLUME)),
    *(c("AveragePool", x, kernel_shape=[2] * (x.ndim - 2), strides=[3] * (x.ndim - 2), auto_pad="SAME_LOWER")
      for x in (LINE, VOLUME)),
    *(c("LpPool", IMAGE, p=p, **pool) for pool in POOLS for p in (1, 2, 3)),
    c("MaxUnpool", f(1, 1, 2, 2), i(5, 7, 13, 15).reshape(1, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2], opset=11),
    c("MaxUnpool", f(1, 1, 2, 2), i(5, 7, 13, 15).reshape(1, 1, 2, 2), i(1, 1, 5, 5), kernel_shape=[2, 2],
      strides=[2, 2], opset=11, reference=True),
    *(c("Resize", f(2, 3, 6, 7), None, None, i(2, 3, 4, 9), held=(3,), opset=19, mode=mode, antialias=1,
        exclude_outside=k) for mode in ("linear", "cubic") for k in (0, 1)),
    *(c("Resize", f(2, 3, 6, 7), np.float32([0, 0, 0.2, -0.1, 1, 1, 0.7, 1.15]), None, i(2, 3, 4, 9), held=(1, 3),
        opset=13, mode=mode, coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=7.0)
      for mode in ("nearest", "linear")),
    *(c("Resize", f(2, 3, 6, 7), None, None, i(9, 8), held=(3,), opset=19, mode=mode, axes=[2, 3],
        keep_aspect_ratio_policy=policy)
      for mode in ("nearest", "linear", "cubic") for policy in ("not_larger", "not_smaller")),
    *(c("Resize", f(1, 2, 10, 9), None, np.float32([1, 1, scale, 1.3]), held=(2,), opset=13, mode=mode,
        coordinate_transformation_mode=place) for mode in ("nearest", "linear") for scale in (0.7, 2, 0.5)
      for place in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")),
    *(c("Resize", np.where(f(2, 1, 5, 4) > 0, *ends).astype(kind), None, np.float32([1, 1, 2, 2]), held=(2,),
        opset=19, reference=True, mode="cubic")
      for kind, ends in ((np.uint8, (255, 0)), (np.int8, (127, -128)), (np.int32, (1000, 0)))),
    *(c("Resize", np.arange(2 * old, dtype=np.float32).reshape(1, 1, 2, old), None, None, i(1, 1, 2, new), held=held,
        opset=19, mode="nearest", coordinate_transformation_mode=place, nearest_mode=nearest)
      for old, new in ((28, 16), (49, 7), (10, 30), (27, 33)) for held in ((), (3,))
      for place, nearest in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))),
    *(c("Resize", f(0, 2, 4, 5), None, None, i(0, 2, 7, 6), held=(3,), opset=19, reference=True, mode=mode,
        coordinate_transformation_mode="asymmetric") for mode in ("linear", "nearest")),
    *(c("GridSample", f(1, 2, 5, 6), (rng.random((1, 3, 4, 2)) * 3 - 1.5).astype(np.float32), opset=20, mode=mode,
        padding_mode=pad, align_corners=k)
      for mode in ("linear", "nearest", "cubic") for pad in ("zeros", "border", "reflection") for k in (0, 1)),
    c("SpaceToDepth", f(1, 2, 4, 6), blocksize=2, mode="CRD", opset=28, reference=True),
    *(c("Col2Im", f(2, 12, n), i(5, 6), i(2, 3), held=held, opset=18, pads=pads, strides=[2, 1])
      for n, pads in ((8, [0, 0, 0, 0]), (10, [0, 1, 0, 0])) for held in ((), (1, 2))),
    c("Col2Im", f(1, 8, 18), i(4, 4, 3), i(2, 2, 2), opset=18, dilations=[1, 1, 1]),
    *(c("CumProd", f(3, 4), np.int64(axis), opset=26, reference=True, exclusive=e, reverse=r)
      for axis in (0, -1) for e in (0, 1) for r in (0, 1)),
    c("BitCast", f(3), opset=26, reference=True, to=TensorProto.INT32),
    *(c("DFT", f(2, 6, 5, n), *more, opset=20, reference=True, inverse=inverse, onesided=half)
      for n, inverse, half in ((1, 0, 0), (1, 0, 1), (2, 0, 0), (2, 1, 0), (2, 1, 1), (1, 1, 0))
      for more in ((), (np.int64(4),), (np.int64(8), np.int64(1)))),
    c("DFT", f(2, 6, 5, 1), opset=17, axis=2), c("DFT", f(2, 6, 5, 1), opset=17, onesided=1),
    *(c("STFT", f(2, 15, 1), np.int64(3), *more, opset=17, onesided=k)
      for k in (0, 1) for more in ((f(6),), (None, np.int64(5)), (f(5), np.int64(5)))),
    *(c("Unique", x, n=4, opset=11, sorted=k, **axis)
      for x in (np.float32([[2, 1, 1], [2, 1, 1], [0, 3, 3]]), np.round(f(3, 4, 2)))
      for k in (0, 1) for axis in ({}, {"axis": 0}, {"axis": -1})),
    *(c("TensorScatter", f(2, 3, 5, 4), f(2, 3, 2, 4), *begin, opset=24, reference=True, mode=mode)
      for mode, begin in (("linear", ()), ("linear", (i(1, 3),)), ("circular", (i(4, 3),)))),
    *(c("NonMaxSuppression", rng.random((2, 9, 4)).astype(np.float32),
        np.round(rng.random((2, 3, 9)), 1).astype(np.float32), i(most), np.float32([0.3]), np.float32([0.4]),
        opset=11, center_point_box=k) for most in (0, 2, 9) for k in (0, 1)),
    *(c("RoiAlign", f(2, 3, 7, 9), np.float32([[0, 1, 6, 5], [-3, 2, 4, 12], [5, 5, 5, 5]]), i(0, 1, 1), opset=opset,
        mode=mode, output_height=2, output_width=3, sampling_ratio=k, spatial_scale=0.8)
      for mode in ("avg", "max") for k in (0, 2) for opset in (10, 16)),
    *(c("RoiAlign", f(1, 3, 7, 9), np.float32([0, 0, 3, 2]) + np.abs(f(40, 4)), np.zeros(40, np.int64), opset=16,
        sampling_ratio=k) for k in (0, 2)),
    *(c("RoiAlign", f(2, 3, 7, 9), np.zeros((0, 4), np.float32), i(), opset=16, mode=mode) for mode in ("avg", "max")),
    *(c("DeformConv", f(2, 4, 7, 6), f(6, 4 // groups, 3, 2), f(2, 6 * 2 * k, 6, 5), f(6), mask, opset=19,
        group=groups, offset_group=k, strides=[1, 2], pads=[1, 2, 2, 2], dilations=[2, 1])
      for groups in (1, 2) for k in (1, 2) for mask in (None, f(2, 6 * k, 6, 5))),
    *(c("BatchNormalization", x, f(3), f(3), f(3), np.abs(f(3)) + 0.1, n=3, opset=15, held=held, training_mode=1,
        momentum=0.8) for x in (IMAGE, f(6, 3)) for held in ((), (1, 2, 3, 4))),
    *(c(name, np.abs(f(2, 3)), held, opset=18, held=(1,), noop_with_empty_axes=1)
      for name in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare", "ReduceSum")
      for held in (i(), i(0))),
    *(c("Slice", f(4, 5), i(*starts), i(*ends), i(0, 1), i(*steps), held=held, opset=13) for held in ((), (1, 2, 3, 4))
      for starts, ends, steps in (
          ((-7, 2**40), (-7, 9), (-2, 1)), ((1, 0), (-(2**63), -(2**63)), (1, 2)), ((9, -9), (-9, 9), (-3, 2)))),
    *(c("Dropout", f(2, 3), *ratio, n=2, opset=13) for ratio in ((), (np.float32(0.3),))),
    c("Dropout", f(2, 3), np.float32(0.3), np.array(False), held=(1, 2), n=2, opset=13),
    *(c("MelWeightMatrix", np.int64(8), np.int64(n), np.int64(8192), np.float32(low), np.float32(4000), opset=17)
      for n in (16, 128) for low in (0, 300)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


Q = f(2, 4, 3, 8)
MASKS = {
    "none": None, "matrix": f(3, 5), "rows": rng.random((3, 5)) < 0.6, "heads": f(4, 3, 5),
    "batch": rng.random((2, 1, 3, 5)) < 0.6, "blind": np.zeros((3, 5), bool), "short": f(3, 4),
}  # fmt: skip
FORMS = [
    {}, dict(is_causal=1), dict(softcap=2.0), dict(scale=0.3), dict(softmax_precision=TensorProto.DOUBLE),
    dict(left_window_size=1), dict(is_causal=1, left_window_size=2, right_window_size=1),
]  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_attention(mask, form):
    check(c("Attention", Q, f(2, 2, 5, 8), f(2, 2, 5, 6), MASKS[mask], opset=25, reference=True, **form))
    past = f(2, 2, 2, 8), f(2, 2, 2, 6)
    check(c("Attention", Q, f(2, 2, 3, 8), f(2, 2, 3, 6), MASKS[mask], *past, opset=25, n=3, reference=True, **form))
    given = c("Attention", Q, f(2, 2, 5, 8), f(2, 2, 5, 6), MASKS[mask], None, None, i(2, 5), opset=25, reference=True)
    check(Case(**{**vars(given), "attributes": form}))


def test_attention_with_a_negative_scale():
    query, key, value = to_tensor(Q), to_tensor(f(2, 4, 5, 8)), to_tensor(f(2, 4, 5, 6))
    made = attend(
        query, key, value, None, None, None, None, heads=(0, 0), causal=False, window=(-1, -1), scale=-0.3, softcap=2.0,
        precision=None, products=0,
    )  # fmt: skip
    logits = -0.3 * query @ key.transpose(2, 3)
    torch.testing.assert_close(made[3], logits)
    torch.testing.assert_close(made[0], (2 * torch.tanh(logits / 2)).softmax(-1) @ value)


@pytest.mark.parametrize("mode", range(4))
@pytest.mark.parametrize("opset", [23, 24, 25])
def test_products_of_attention(mode, opset):
    mask = MASKS["blind"] if mode == 3 else MASKS["matrix"]
    check(c("Attention", Q, f(2, 4, 5, 8), f(2, 4, 5, 6), mask, opset=opset, n=4, reference=True,
            qk_matmul_output_mode=mode, **({} if mode == 0 else {"softcap": 1.5})))  # fmt: skip


@pytest.mark.parametrize("form", [{}, {"is_causal": 1}], ids=str)
def test_attention_of_flat_heads(form):
    check(c("Attention", f(2, 3, 8), f(2, 5, 4), f(2, 5, 6), opset=24, reference=True, q_num_heads=4, kv_num_heads=2,
            **form))  # fmt: skip


@pytest.mark.parametrize(("causal", "n_queries"), [(True, 3), (True, 7), (False, 3)])
def test_torch_limits_plain_attention_of_flat_heads(monkeypatch, causal, n_queries):
    query, key, value = to_tensor(f(2, n_queries, 8)), to_tensor(f(2, 5, 8)), to_tensor(f(2, 5, 8))
    seen, original = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **more: seen.append((args[3], more)) or original(*args, **more)
    )
    made = attend(
        query, key, value, None, None, None, None, heads=(2, 2), causal=causal, window=(-1, -1), scale=None,
        softcap=0.0, precision=None, products=None,
    )[0]  # fmt: skip
    ((mask, more),) = seen
    assert mask is None
    assert more["is_causal"] == causal
    heads = [x.reshape(2, -1, 2, 4).transpose(1, 2) for x in (query, key, value)]
    hidden = torch.ones(n_queries, 5).triu(1).bool() & causal
    weights = (heads[0] @ heads[1].transpose(2, 3) / 2).masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(made, (weights @ heads[2]).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("inputs", "form"),
    [((Q, Q, Q), {}), ((Q, Q, Q), {"is_causal": 1}),
     ((Q, Q[:, :2], Q[:, :2]), {}), ((Q, Q, Q, f(3, 3)), {"scale": 1.0})],
)  # fmt: skip
def test_plain_attention_is_one_call_of_torch(inputs, form):
    net = natively(model_of(c("Attention", *inputs, opset=24, **form)))
    assert [node.target for node in net.graph.nodes if node.op == "call_function"] == [F.scaled_dot_product_attention]


def test_attention_of_a_row_that_sees_nothing_has_a_gradient():
    inputs = [to_tensor(f(1, 2, 3, 4)).requires_grad_() for _ in range(3)]
    mask = torch.tensor([[True, False, True], [False] * 3, [True] * 3])
    settings = dict(heads=(0, 0), causal=False, window=(-1, -1), scale=None, precision=None)
    for products, softcap in ((None, 0.0), (3, 0.0), (None, 1.0)):
        made = attend(*inputs, mask, None, None, None, softcap=softcap, products=products, **settings)[0]
        assert not made[0, :, 1].any()
        for gradient in torch.autograd.grad(made.square().sum(), inputs):
            assert gradient.isfinite().all()
            assert gradient.any()


WIDE = (np.uint16, np.uint32, np.uint64)


def pairs(kind):
    most = np.iinfo(kind).max
    x, y = (rng.integers(0, most, 40, dtype=kind, endpoint=True) for _ in range(2))
    x[:4], y[:4], y[4:9] = most, [1, 2, most, most - 1], [1, 2, 3, 7, most // 2 + 1]
    y[9:12] = x[9:12]
    return x, np.maximum(y, 1)


@pytest.mark.parametrize("kind", WIDE)
@pytest.mark.parametrize("op_type", sorted(unsigned.BINARY))
def test_unsigned_arithmetic(op_type, kind):
    check(c(op_type, *pairs(kind), opset=18, reference=True))
    check(c(op_type, *pairs(kind), opset=18, reference=True, held=(1,)))


@pytest.mark.parametrize("kind", WIDE)
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_unsigned_shifts(direction, kind):
    x, _ = pairs(kind)
    places = np.arange(len(x)).astype(kind) % kind(8 * x.itemsize)
    check(c("BitShift", x, places, opset=18, reference=True, direction=direction))
    check(c("BitwiseNot", x, opset=18, reference=True))


@pytest.mark.parametrize(
    ("op_type", "more", "attributes"),
    [("ReduceSum", [i(0)], {}), ("ArgMax", [], {}), ("CumSum", [np.int64(0)], {}), ("NonZero", [], {}),
     ("ScatterND", [i(0).reshape(1, 1), np.ones((1, 3))], {}), ("Unique", [], {}), ("Trilu", [], {})],
)  # fmt: skip
def test_what_torch_does_not_do_with_unsigned_integers_falls_back(op_type, more, attributes):
    x = np.array([[5, 0, 2**32 - 1], [1, 7, 7]], np.uint32)
    given = [value.astype(np.uint32) if value.dtype.kind == "f" else value for value in more]
    model = model_of(c(op_type, x, *given, opset=18, **attributes))
    with pytest.warns(UserWarning, match=op_type):
        net = to_torch(model)
    feeds = {f"i{index}": value for index, value in enumerate([x, *given])}
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_array_equal(to_array(net(*map(to_tensor, feeds.values()))), expected)


DOUBLES = torch.Generator().manual_seed(0)


def d(*shape):
    return torch.randn(*shape, generator=DOUBLES, dtype=torch.float64).requires_grad_()


WINDOW = dict(kernel=[3, 2], stride=[2, 1], dilation=[1, 2], begin=[2, 0], end=[1, 1], auto="NOTSET")
GRADIENTS = {
    "max_pool": (lambda x: max_pool_with_positions(x, **WINDOW, ceil=True, column_major=True)[0], [d(1, 2, 6, 5)]),
    "average_pool": (lambda x: average_pool_of(x, **WINDOW, ceil=True, counted=False), [d(1, 2, 6, 5)]),
    **{
        f"lp_pool_without_gaps_{n}": (
            lambda x, n=n: lp_pool_of(
                x, 3, kernel=[2] * n, stride=[1] * n, dilation=[1] * n, begin=[1] * n, end=[0] * n, auto="NOTSET",
                ceil=False,
            ), [d(1, 2, 3, 2, 3)[(..., *[0] * (3 - n))].detach().requires_grad_()],
        )
        for n in (1, 2, 3)
    },
    "lp_pool": (lambda x: lp_pool_of(x, 3, **WINDOW, ceil=True), [d(1, 2, 6, 5)]),
    "max_unpool": (
        lambda x: max_unpool_of(x, torch.tensor([[[1, 4, 5]]]), [1, 1, 8], [2], [2], [0], [0]), [d(1, 1, 3)]
    ),
    "resize": (
        lambda x: resize_of(
            x, scales=None, sizes=[3, 9], axes=[2, 3], roi=None, policy="stretch", outside=0.0, mode="cubic",
            coordinates="half_pixel", nearest="floor", cubic=-0.5, exclude_outside=True, antialias=True,
        ), [d(1, 1, 5, 6)],
    ),
    "fourier": (lambda x: fourier(x, None, 1, inverse=False, one_sided=True), [d(2, 5, 1)]),
    "inverse_fourier": (lambda x: fourier(x, None, 1, inverse=True, one_sided=True), [d(2, 4, 2)]),
    "frames": (lambda x, w: fourier_of_frames(x, 2, w, None, one_sided=True), [d(2, 9, 1), d(4)]),
    "product": (lambda x: cumulative_product(x, 1, True, True), [d(2, 4)]),
    "fold": (lambda x: fold_of(x, [5], [2], [2], [1], [1, 0]), [d(1, 4, 4)]),
    "unique": (lambda x: unique_of(x, 0, False)[0], [d(3, 2)]),
    "scatter": (lambda x, y: write_from(x, y, torch.tensor([1, 3]), -1, True), [d(2, 3, 4), d(2, 3, 2)]),
    "roi_align": (
        lambda x, r: roi_align_of(
            x, r, torch.tensor([0, 1]), size=(2, 2), n_samples=2, scale=1.0, half_pixel=True, largest=False
        ), [d(2, 2, 5, 6), torch.tensor([[0.3, 1.2, 4.1, 3.3], [1.1, 0.2, 3.9, 4.4]]).double().requires_grad_()],
    ),
    "deformed_convolution": (
        lambda *inputs: deformed_convolution(
            *inputs, stride=[1, 1], begin=[1, 0], dilation=[1, 1], groups=2, offset_groups=1
        ), [d(1, 2, 4, 4), d(2, 1, 2, 2), d(1, 8, 4, 3), d(2), d(1, 4, 4, 3)],
    ),
    "batch_norm": (
        lambda x, w, b: batch_norm_and_statistics(x, w, b, torch.zeros(3).double(), torch.ones(3).double(), 1e-5, 0.2),
        [d(4, 3, 2), d(3), d(3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_finite_differences(name):
    function, inputs = GRADIENTS[name]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("p", [0, 1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_norms_of_windows(p, dilation):
    x = torch.tensor([[[0.0, 0, 0, -2, 1, 0.5, -3]]])
    window = dict(kernel=[2], stride=[1], dilation=[dilation], begin=[1], end=[0], auto="NOTSET")
    windows = F.pad(x, [1, 0]).unfold(2, dilation + 1, 1)[..., ::dilation]
    torch.testing.assert_close(lp_pool_of(x, p, **window, ceil=False), torch.linalg.vector_norm(windows, p, -1))


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    ("shape", "pads"),
    [((5,), [(2, 1)]), ((3, 4), [(0, 0), (1, 3)]), ((3, 4), [(2, 1), (1, 3)]), ((2, 3, 4), [(0, 0), (2, 0), (1, 3)]),
     ((2, 3, 4), [(1, 0), (2, 0), (1, 3)]), ((1, 2, 5, 4), [(0, 0), (0, 0), (4, 3), (0, 2)]),
     ((1, 2, 5, 4), [(0, 0), (1, 1), (4, 3), (0, 2)]), ((1, 2, 3, 4, 5), [(0, 0), (0, 0), (2, 1), (1, 3), (0, 4)]),
     ((2, 3, 4, 5, 6), [(1, 0), (0, 2), (0, 0), (0, 0), (0, 0)]), ((1, 2, 3), [(0, 0), (0, 0), (7, 5)])],
)  # fmt: skip
def test_pads(shape, pads, mode):
    x = torch.from_numpy(rng.normal(size=shape)).requires_grad_()
    amounts = [begin for begin, _ in pads] + [end for _, end in pads]
    np.testing.assert_array_equal(pad_of(x, amounts, 0, None, mode).detach(), np.pad(x.detach().numpy(), pads, mode))
    assert torch.autograd.gradcheck(lambda x: pad_of(x, amounts, 0, None, mode), x)


@pytest.mark.parametrize(("pads", "at_once"), [((2, 1), True), ((4, 0), False), ((-1, 2), False)])
def test_reflection_is_torchs_where_the_axis_is_long_enough(monkeypatch, pads, at_once):
    modes, original = [], F.pad
    monkeypatch.setattr(
        F, "pad", lambda *args, **more: modes.append([*args[2:], "constant"][0]) or original(*args, **more)
    )
    pad_of(torch.zeros(1, 2, 4), [0, 0, pads[0], 0, 0, pads[1]], 0, None, "reflect")
    assert ("reflect" in modes) == at_once


def test_the_norm_of_a_window_of_zeros_has_a_gradient():
    x = torch.zeros(1, 1, 4).requires_grad_()
    window = dict(kernel=[2], stride=[1], dilation=[1], begin=[0], end=[0], auto="NOTSET")
    (gradient,) = torch.autograd.grad(lp_pool_of(x, 2, **window, ceil=False).sum(), x)
    assert not gradient.any()


PLAIN = [
    ("nearest", "asymmetric", "floor", dict(mode="nearest")),
    ("nearest", "half_pixel", "round_prefer_ceil", dict(mode="nearest-exact")),
    ("nearest", "half_pixel", "round_prefer_floor", dict(mode="nearest-exact")),
    ("linear", "half_pixel", "floor", dict(mode="bilinear", align_corners=False)),
    ("linear", "pytorch_half_pixel", "floor", dict(mode="bilinear", align_corners=False)),
    ("linear", "align_corners", "floor", dict(mode="bilinear", align_corners=True)),
    ("cubic", "half_pixel", "floor", dict(mode="bicubic", align_corners=False)),
    ("cubic", "align_corners", "floor", dict(mode="bicubic", align_corners=True)),
]


@pytest.mark.parametrize(("mode", "place", "nearest", "expected"), PLAIN)
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_resizing_as_torch_does_is_one_call_of_torch(mode, place, nearest, expected, by):
    given = [None, np.float32([1, 1, 2, 3])] if by == "scales" else [None, None, i(2, 3, 8, 15)]
    case = c("Resize", f(2, 3, 4, 5), *given, held=(len(given),), opset=19, mode=mode, nearest_mode=nearest,
             coordinate_transformation_mode=place)  # fmt: skip
    (node,) = [node for node in natively(model_of(case)).graph.nodes if node.op == "call_function"]
    assert node.target is F.interpolate
    sizes = {"scale_factor": [2.0, 3.0]} if by == "scales" else {"size": [8, 15]}
    assert node.kwargs == {**sizes, **expected}
    check(case)


OTHERS = [
    dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="ceil"),
    dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="round_prefer_floor"),
    dict(mode="linear", coordinate_transformation_mode="asymmetric"),
    dict(mode="cubic", coordinate_transformation_mode="half_pixel", cubic_coeff_a=-0.5),
    dict(mode="cubic", coordinate_transformation_mode="half_pixel", exclude_outside=1),
]


@pytest.mark.parametrize("attributes", OTHERS, ids=str)
def test_other_ways_of_resizing_are_not_torchs(attributes):
    case = c("Resize", f(2, 3, 4, 5), None, np.float32([1, 1, 2, 3]), held=(2,), opset=19, **attributes)
    assert all(node.target is not F.interpolate for node in natively(model_of(case)).graph.nodes)
    check(case)


@pytest.mark.parametrize("scale", [0.6, 1.1, 1 / 3])
def test_scales_that_round_and_channels_that_change_are_not_torchs(scale):
    for mode, scales in (("linear", [1, 1, scale, 2]), ("nearest", [1, 1, scale, 2]), ("nearest", [1, 2, 2, 2])):
        case = c("Resize", f(1, 3, 10, 5), None, np.float32(scales), held=(2,), opset=19, mode=mode,
                 coordinate_transformation_mode="asymmetric" if mode == "nearest" else "half_pixel",
                 nearest_mode="floor")  # fmt: skip
        assert all(node.target is not F.interpolate for node in natively(model_of(case)).graph.nodes)
        check(case)


@pytest.mark.parametrize(
    ("mode", "place", "torchs"),
    [("linear", "half_pixel", True), ("linear", "align_corners", True), ("linear", "pytorch_half_pixel", False),
     ("cubic", "half_pixel", True), ("nearest", "asymmetric", False), ("nearest", "half_pixel", False)],
)  # fmt: skip
def test_sizes_of_another_tensor_are_followed(mode, place, torchs):
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 18]>
        agraph (float[n, 3, h, w] x, float[m, k, a, b] y) => (float[n, 3, a, b] z) {{
            own = Shape<start = 0, end = 2>(x)
            wanted = Shape<start = 2>(y)
            sizes = Concat<axis = 0>(own, wanted)
            z = Resize<mode = "{mode}", coordinate_transformation_mode = "{place}", nearest_mode = "floor">
                (x, , , sizes)
        }}""")
    net = natively(proto)
    assert (F.interpolate in [node.target for node in net.graph.nodes]) == torchs
    for n, h, w, a, b in ((1, 4, 5, 8, 3), (2, 3, 3, 1, 7), (1, 28, 49, 16, 7)):
        x, y = f(n, 3, h, w), f(1, 1, a, b)
        (expected,) = load(proto).run({"x": x, "y": y}).values()
        np.testing.assert_allclose(net(to_tensor(x), to_tensor(y)).numpy(), expected, atol=1e-4)


def test_train_decides_about_dropout_and_its_mask():
    case = c("Dropout", np.ones((40, 50), np.float32), np.float32(0.25), np.array(True), held=(1, 2), n=2, opset=13)
    net = natively(model_of(case))
    assert isinstance(next(net.children()), DropoutAndMask)
    x = torch.ones(40, 50)
    y, mask = net(x)
    assert mask.all()
    assert torch.equal(y, x)
    y, mask = net.train()(x)
    assert 0.65 < mask.float().mean() < 0.85
    torch.testing.assert_close(y, mask / 0.75)


def test_dropout_without_a_mask_is_torchs():
    case = c("Dropout", f(2, 3), np.float32(0.3), np.array(True), held=(1, 2), opset=13)
    net = natively(model_of(case))
    assert isinstance(next(net.children()), nn.Dropout)
    x = torch.ones(2, 3)
    assert torch.equal(net(x), x)


def test_batch_normalization_that_returns_statistics_can_be_trained():
    weights = f(3), f(3), f(3), np.abs(f(3)) + 0.1
    case = c("BatchNormalization", IMAGE, *weights, held=(1, 2, 3, 4), n=3, opset=15, training_mode=1, momentum=0.8)
    net = natively(model_of(case))
    layer = next(net.children())
    assert isinstance(layer, BatchNormAndStatistics)
    assert [name for name, _ in net.named_parameters()] == ["batchnormalization_0.weight", "batchnormalization_0.bias"]
    x = to_tensor(IMAGE)
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict({**layer.state_dict(), "num_batches_tracked": torch.tensor(0)})
    made = net.train()(x)
    torch.testing.assert_close(made[0], plain(x))
    torch.testing.assert_close(layer.running_mean, made[1])
    for ours, theirs in zip(
        torch.autograd.grad(made[0].square().sum(), list(layer.parameters())),
        torch.autograd.grad(plain(x).square().sum(), list(plain.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6), (2, 3, 4, 5)])
def test_computed_statistics_of_a_batch_normalization_have_gradients(shape):
    """As where a weight is shared or derived; torch's own function has none of them."""
    scale, bias, mean, var = f(3), f(3), f(3), np.abs(f(3)) + 0.1
    net = natively(model_of(c("BatchNormalization", f(*shape), scale, bias, mean, var, epsilon=1e-2)))
    inputs = [to_tensor(v).double().requires_grad_() for v in (f(*shape), scale, bias, mean, var)]
    made = net(*inputs)
    expected = torch.batch_norm(inputs[0], *inputs[1:3], *(v.detach() for v in inputs[3:]), False, 0.0, 1e-2, False)
    torch.testing.assert_close(made, expected)
    assert torch.autograd.gradcheck(net, inputs)


def test_a_transposed_convolution_that_does_not_reach_its_size_has_its_bias_there():
    case = c("ConvTranspose", f(1, 2, 4), f(2, 3, 2), f(3), held=(1, 2), opset=11, strides=[3], output_shape=[12])
    check(case)


CASTS = (
    np.float16,
    np.float32,
    np.float64,
    np.int8,
    np.int32,
    np.int64,
    np.uint8,
    np.uint16,
    np.uint32,
    np.uint64,
    bool,
)


@pytest.mark.parametrize("kind", CASTS)
def test_casts_between_ordinary_types_are_torchs(kind):
    for other in CASTS:
        code = helper.np_dtype_to_tensor_dtype(np.dtype(other))
        check(c("Cast", np.array([0, 1, 3]).astype(kind), opset=19, reference=True, to=code))
        check(c("CastLike", np.array([0, 1, 3]).astype(kind), np.zeros(1, other), opset=19, reference=True))


ELSEWHERE = [
    c("MaxPool", IMAGE, n=2, **POOLS[2]), c("AveragePool", IMAGE, **POOLS[2]), c("LpPool", IMAGE, **POOLS[2]),
    c("MaxUnpool", f(1, 1, 2, 2), i(5, 7, 13, 15).reshape(1, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2]),
    c("Resize", f(1, 2, 4, 5), None, np.float32([1, 1, 0.6, 3]), held=(2,), opset=19, mode="cubic", antialias=1),
    c("Col2Im", f(2, 12, 10), i(5, 6), i(2, 3), held=(1, 2), pads=[0, 1, 0, 0], strides=[2, 1]),
    c("CumProd", f(3, 4), np.int64(1), held=(1,), opset=26, exclusive=1),
    c("DFT", f(2, 6, 1), onesided=1), c("STFT", f(2, 9, 1), np.int64(2), f(4), held=(1,), opset=17),
    c("TensorScatter", f(2, 5, 4), f(2, 2, 4), i(1, 3), opset=24, mode="circular"),
    c("RoiAlign", IMAGE, np.float32([[0, 1, 6, 5]]), i(0), opset=16, sampling_ratio=2),
    c("DeformConv", f(2, 2, 4, 4), f(2, 2, 2, 2), f(2, 8, 3, 3)),
    c("BatchNormalization", IMAGE, f(3), f(3), f(3), f(3), n=3, opset=15, training_mode=1),
    c("Attention", Q, Q, Q, None, None, None, i(2, 3), opset=25, is_causal=1, left_window_size=1, softcap=2.0),
    c("Add", *pairs(np.uint32), opset=18), c("BitShift", *pairs(np.uint64), opset=18, direction="RIGHT"),
]  # fmt: skip


@pytest.mark.parametrize("case", ELSEWHERE, ids=str)
def test_tensors_are_made_where_the_input_is(case):
    net = natively(model_of(case)).to("meta")
    fed = [value for index, value in enumerate(case.inputs) if value is not None and index not in case.held]
    made = net(*(to_tensor(value).to("meta") for value in fed))
    assert all(value.device.type == "meta" for value in (made if isinstance(made, tuple) else (made,)))
