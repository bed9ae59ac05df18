"""Operators of domain com.microsoft against ONNX Runtime, which writes them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from torch import nn

from graphmod.errors import RefusedError, UnsupportedOperatorError
from graphmod.model import load
from graphmod.pytorch import to_torch, write_back
from graphmod.pytorch.dtypes import to_array, to_tensor
from graphmod.pytorch.operators import microsoft_attention
from graphmod.pytorch.packed import Scaled, Unpack
from graphmod.pytorch.stand_ins import infer_types
from graphmod.pytorch.steps import backward, forward

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def u8(*shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def i8(*shape):
    return rng.integers(-128, 128, shape).astype(np.int8)


def i32(*values):
    return np.array(values, np.int32)


@dataclass(frozen=True)
class Case:
    """One operator: its inputs, of which some are computed and the others constant, and its attributes."""

    op_type: str
    inputs: tuple[np.ndarray | None, ...]
    fed: tuple[int, ...] = (0,)
    outputs: tuple[int, ...] = (0,)
    module: type[nn.Module] | None = None
    domain: str = "com.microsoft"
    version: int = 17
    loose: float = 1e-5
    attributes: dict[str, object] = field(default_factory=dict)

    def __str__(self):
        given = "".join("-" if x is None else "x" if i in self.fed else "c" for i, x in enumerate(self.inputs))
        return "-".join([self.op_type, given, *(f"{key}={value}" for key, value in self.attributes.items())])


def case_of(
    op_type, *inputs, fed=(0,), outputs=(0,), module=None, domain="com.microsoft", version=17, loose=1e-5, **attributes
):
    return Case(op_type, inputs, fed, outputs, module, domain, version, loose, attributes)


def batch_axis(value):
    """Return the axis of the batch: the second of keys and values that were kept, which come in pairs."""
    return int(value.ndim == 5)


def model_of(case: Case, dynamic: bool = True):
    """Return a model of the one operator, whose fed inputs have a dynamic batch and whose outputs have no type."""
    feeds, constants, names = {}, [], []
    for index, value in enumerate(case.inputs):
        names.append("" if value is None else f"x{index}")
        if value is not None and index in case.fed:
            feeds[names[-1]] = value
        elif value is not None:
            constants.append(numpy_helper.from_array(value, names[-1]))
    outputs = [f"y{index}" if index in case.outputs else "" for index in range(max(case.outputs) + 1)]
    node = helper.make_node(
        case.op_type,
        names,
        outputs,
        domain=case.domain,
        **{key: value for key, value in case.attributes.items() if value != []},
    )
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype),
            [f"{name}_n" if dynamic and axis == batch_axis(value) else size for axis, size in enumerate(value.shape)],
        )
        for name, value in feeds.items()
    ]  # fmt: skip
    results = [onnx.ValueInfoProto(name=name) for name in outputs if name]
    graph = helper.make_graph([node], "g", inputs, results, constants)
    imports = [helper.make_opsetid("", case.version), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10), feeds


def typed(proto, feeds):
    """Return a model with the types of its outputs, which ONNX Runtime knows."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made = session.run(None, feeds)
    for output, value in zip(proto.graph.output, made, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind, [None] * value.ndim))
    return load(proto)


def run(net, feeds):
    made = net(*(to_tensor(value) for value in feeds.values()))
    return [made] if isinstance(made, torch.Tensor) else list(made)


def agree(model, net, feeds, loose=1e-5):
    with torch.no_grad():
        made = run(net, feeds)
    expected = list(model.run(feeds).values())
    for actual, wanted in zip(made, expected, strict=True):
        assert actual.shape == wanted.shape
        assert to_array(actual).dtype == wanted.dtype
        if wanted.dtype.kind in "iu":  # one level, where ONNX Runtime rounds half of one the other way
            assert np.abs(to_array(actual).astype(int) - wanted.astype(int)).max(initial=0) <= 1
            assert (to_array(actual) != wanted).mean() < 0.02
        else:
            scale = np.abs(wanted.astype(np.float32)).max(initial=1e-9)
            np.testing.assert_allclose(actual.float().numpy(), wanted.astype(np.float32), rtol=0, atol=loose * scale)


def perturb(net):
    """Make every weight smaller by a few hundredths."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 1 - 0.05 * torch.rand(parameter.shape)
    return net


def with_another_sample(case, feeds):
    """Return inputs for a larger batch; nothing where they, or constants beside them, have no batch in common."""
    sizes = {value.shape[batch_axis(value)] if value.ndim else 0 for value in feeds.values()}
    constants = (value for i, value in enumerate(case.inputs) if value is not None and i not in case.fed)
    if len(sizes) > 1 or any(value.ndim > 1 and value.shape[0] in sizes for value in constants):
        return {}
    return {
        name: np.concatenate([value, value.take([0], batch_axis(value))], batch_axis(value))
        for name, value in feeds.items()
    }


def with_floats_at_the_end(model):
    """Return a model whose outputs that are bytes are dequantized, so that there is a gradient."""
    proto = model.proto()
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "end"))
    for output in proto.graph.output:
        if output.type.tensor_type.elem_type in (TensorProto.UINT8, TensorProto.INT8):
            levels, output.name = output.name, f"{output.name}/float"
            output.type.tensor_type.elem_type = TensorProto.FLOAT
            proto.graph.node.append(helper.make_node("DequantizeLinear", [levels, "end"], [output.name]))
    return load(proto)


def check(case: Case):
    proto, feeds = model_of(case)
    model = typed(proto, feeds)
    net = to_torch(model)
    agree(model, net, feeds, case.loose)
    if more := with_another_sample(case, feeds):
        agree(model, net, more, case.loose)
    if case.module is not None:
        assert [type(m) for m in net.modules() if list(m.parameters(recurse=False))] == [case.module]
    assert write_back(model, net) is model
    if not list(net.parameters()):
        return
    trained = to_torch(with_floats_at_the_end(model))
    sum(value.square().sum() for value in run(trained, feeds) if value.requires_grad).backward()
    for parameter in trained.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
    changed = write_back(model, perturb(net))
    assert changed is not model
    again = to_torch(changed)
    agree(changed, again, feeds, case.loose)
    for (name, was), now in zip(net.named_parameters(), again.parameters(), strict=True):
        assert (was - now).abs().max() <= 0.5 * step_of(case), name


INTEGER = {"MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "GatherBlockQuantized"}


def step_of(case: Case) -> float:
    """Return the largest scale that weights have in this file, where they are integers, and a little for rounding."""
    return 0.02001 if case.op_type.startswith("Q") or case.op_type in INTEGER else 1e-12


IMAGE, BATCH, HEADS = normal(2, 4, 7, 7), normal(2, 3, 8), normal(2, 2, 3, 4)
W, B = normal(6, 4, 3, 3), normal(6)

FUSED = [
    *(case_of("FusedConv", IMAGE, W, B, module=nn.Conv2d, activation=name, activation_params=params, strides=[2, 2],
        pads=[1, 1, 1, 1])
      for name, params in {"Relu": [], "Tanh": [], "Sigmoid": [], "LeakyRelu": [0.2], "Clip": [-0.5, 1.5],
                           "HardSigmoid": [0.3, 0.4]}.items()),
    case_of("FusedConv", IMAGE, W, module=nn.Conv2d, activation="Relu", dilations=[2, 2]),
    case_of("FusedConv", IMAGE, W, B, normal(2, 6, 7, 7), module=nn.Conv2d, fed=(0, 3), activation="Relu",
        auto_pad="SAME_UPPER"),
    case_of("FusedConv", IMAGE, normal(8, 1, 3, 3), None, normal(2, 8, 5, 5), fed=(0, 3), module=nn.Conv2d, group=4),
    *(case_of("FusedGemm", normal(3, 8), normal(8, 5), normal(5), module=nn.Linear, activation=name,
        **{f"activation_{key}": value for key, value in numbers.items()})
      for name, numbers in {"Relu": {}, "Tanh": {}, "Sigmoid": {}, "Softplus": {}, "Softsign": {},
                            "LeakyRelu": {"alpha": 0.3}, "Elu": {"alpha": 0.7}, "Selu": {"alpha": 1.5, "gamma": 0.9},
                            "HardSigmoid": {"alpha": 0.3, "beta": 0.4}}.items()),
    case_of("FusedGemm", normal(3, 8), normal(5, 8), normal(3, 5), transB=1, alpha=0.5, beta=2.0, activation="Relu"),
    *(case_of(name, BATCH, normal(8, 5), module=nn.Linear, alpha=0.5) for name in ("FusedMatMul", "TransposeMatMul")),
    case_of("FusedMatMul", BATCH, normal(5, 8), module=nn.Linear, transB=1),
    case_of("FusedMatMul", normal(2, 8, 3), normal(8, 5), module=nn.Linear, transA=1),
    *(case_of("FusedMatMul", normal(*((2, 3, 5, 4) if a else (2, 3, 4, 5))),
        normal(*((2, 3, 6, 5) if b else (2, 3, 5, 6))), fed=(0, 1),
        transA=a, transB=b, alpha=0.3) for a in (0, 1) for b in (0, 1)),
    case_of("FusedMatMul", normal(4, 2, 3, 5), normal(2, 3, 5, 6), fed=(0, 1), transBatchA=1),
    case_of("FusedMatMul", normal(2, 3, 4, 5), normal(5, 2, 3, 6), fed=(0, 1), transBatchB=1),
    case_of("FusedMatMul", normal(5, 2, 3, 4), normal(6, 2, 3, 5), fed=(0, 1), transA=1, transB=1, transBatchA=1,
        transBatchB=1),
    case_of("Gelu", BATCH, module=None), case_of("BiasGelu", BATCH, normal(8)), case_of("FastGelu", BATCH),
    case_of("FastGelu", BATCH, normal(8)),
    case_of("QuickGelu", BATCH), case_of("QuickGelu", BATCH, alpha=1.0),
    case_of("Inverse", normal(2, 3, 3) + 3 * np.eye(3, dtype=np.float32)),
    *(case_of("LayerNormalization", BATCH, normal(8), normal(8), domain="", version=version, module=nn.LayerNorm,
        epsilon=1e-3)
      for version in (11, 15, 17)),
    *(case_of("SimplifiedLayerNormalization", BATCH, normal(8), domain="", version=version, module=nn.RMSNorm,
        epsilon=1e-3)
      for version in (13, 17)),
    case_of("SkipLayerNormalization", BATCH, normal(2, 3, 8), normal(8), normal(8), normal(8), fed=(0, 1),
        outputs=(0, 3), epsilon=1e-5),
    case_of("SkipLayerNormalization", BATCH, normal(2, 3, 8), normal(8), normal(8), fed=(0, 1), module=nn.LayerNorm),
    case_of("SkipLayerNormalization", BATCH, normal(3, 8), normal(8), normal(8), fed=(0, 1), module=nn.LayerNorm),
    case_of("SkipLayerNormalization", BATCH, normal(2, 3, 8), normal(8), fed=(0, 1), module=nn.LayerNorm, epsilon=1e-3),
    case_of("SkipSimplifiedLayerNormalization", BATCH, normal(2, 3, 8), normal(8), fed=(0, 1), outputs=(0, 3),
        module=nn.RMSNorm),
    case_of("SkipSimplifiedLayerNormalization", BATCH, normal(2, 3, 8), normal(8), normal(8), fed=(0, 1), epsilon=1e-3),
]  # fmt: skip


@pytest.mark.parametrize("case", FUSED, ids=str)
def test_fused_layers(case):
    check(case)


IDS = rng.integers(0, 9, (2, 5)).astype(np.int32)
SEGMENTS = rng.integers(0, 2, (2, 5)).astype(np.int32)
PADDED = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 0]], np.int32)
TABLES = (normal(9, 8), normal(6, 8), normal(2, 8), normal(8), normal(8))

EMBEDDINGS = [
    case_of("EmbedLayerNormalization", IDS, SEGMENTS, *TABLES, fed=(0, 1), mask_index_type=0),
    case_of("EmbedLayerNormalization", IDS, SEGMENTS, *TABLES, PADDED, fed=(0, 1, 7), outputs=(0, 1), epsilon=1e-5),
    case_of("EmbedLayerNormalization", IDS, SEGMENTS, *TABLES, PADDED, fed=(0, 1, 7), outputs=(0, 1, 2)),
    case_of("EmbedLayerNormalization", IDS, None, *TABLES[:2], None, *TABLES[3:], outputs=(0, 1)),
    case_of(
        "EmbedLayerNormalization",
        IDS,
        None,
        *TABLES[:2],
        None,
        *TABLES[3:],
        None,
        IDS[:, ::-1] % 6,
        fed=(0, 8),
        mask_index_type=0,
    ),
]


@pytest.mark.parametrize("case", EMBEDDINGS, ids=str)
def test_embeddings(case):
    check(case)


X, QKV, BIAS = normal(2, 5, 8), normal(8, 24), normal(24)
MASKS = {
    "lengths": i32(5, 3),
    "ends and starts": i32(5, 4, 1, 2),
    "padding": PADDED,
    "matrix": rng.integers(0, 2, (2, 5, 5)).astype(np.int32),
    "all hidden": np.zeros((2, 5), np.int32),
}
"""Of two sequences of five."""

FURTHER = rng.integers(0, 2, (2, 5, 8)).astype(np.int32)

ATTENTION = [
    case_of("Attention", X, QKV, BIAS, module=nn.Linear, num_heads=2),
    case_of("Attention", X, QKV, BIAS, module=nn.Linear, num_heads=4, scale=0.3),
    *(case_of("Attention", X, QKV, BIAS, mask, fed=(0, 3), module=nn.Linear, num_heads=2, unidirectional=causal)
      for mask in MASKS.values() for causal in (0, 1)),
    case_of("Attention", X, QKV, BIAS, PADDED, fed=(0, 3), module=nn.Linear, num_heads=2, mask_filter_value=-3.0),
    case_of("Attention", X, QKV, BIAS, None, None, normal(2, 2, 5, 5), fed=(0, 5), module=nn.Linear, num_heads=2),
    case_of("Attention", X, QKV, BIAS, PADDED, None, normal(1, 1, 5, 5), fed=(0, 3, 5), module=nn.Linear, num_heads=2),
    case_of("Attention", X, normal(8, 20), normal(20), module=nn.Linear, num_heads=2, qkv_hidden_sizes=[8, 8, 4]),
    *(case_of("Attention", X, QKV, BIAS, mask, normal(2, 2, 2, 3, 4), fed=(0, 3, 4), outputs=(0, 1), module=nn.Linear,
        num_heads=2,
        unidirectional=causal)
      for mask in (None, np.ones((2, 8), np.int32), FURTHER) for causal in (0, 1)),
    case_of("Attention", X, QKV, BIAS, outputs=(0, 1), module=nn.Linear, num_heads=2, unidirectional=1),
    case_of("Attention", X, QKV, BIAS, fed=(0, 1, 2), num_heads=2),
]  # fmt: skip


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention(case):
    check(case)


Q, K, V = normal(2, 5, 8), normal(2, 4, 8), normal(2, 4, 6)
CROSS = rng.integers(0, 2, (2, 5, 4)).astype(np.int32)

HEADS_CASES = [
    case_of("MultiHeadAttention", Q, K, V, fed=(0, 1, 2), num_heads=2),
    case_of("MultiHeadAttention", Q, K, V, normal(22), fed=(0, 1, 2), num_heads=2, scale=0.3),
    *(case_of("MultiHeadAttention", Q, K, V, normal(22), mask, fed=(0, 1, 2, 4), num_heads=2)
      for mask in (i32(4, 3), i32([1, 1, 1, 0], [1, 0, 0, 0]), CROSS)),
    *(case_of("MultiHeadAttention", Q, K, V, None, None, normal(*shape), fed=(0, 1, 2, 5), num_heads=2)
      for shape in ((2, 2, 5, 4), (1, 2, 5, 4), (1, 1, 5, 4))),
    case_of("MultiHeadAttention", Q, normal(2, 5, 8), normal(2, 5, 8), fed=(0, 1, 2), num_heads=2, unidirectional=1),
    case_of("MultiHeadAttention", Q, normal(2, 5, 8), normal(2, 5, 8), None, None, None, normal(2, 2, 3, 4),
        normal(2, 2, 3, 4),
      fed=(0, 1, 2, 6, 7), outputs=(0, 1, 2), num_heads=2, unidirectional=1),
    case_of("MultiHeadAttention", Q, normal(2, 5, 8), normal(2, 5, 8), normal(24), None, normal(2, 2, 5, 8),
        normal(2, 2, 3, 4), normal(2, 2, 3, 4),
      fed=(0, 1, 2, 5, 6, 7), outputs=(0, 1, 2), num_heads=2),
    case_of("MultiHeadAttention", Q, normal(2, 2, 4, 4), normal(2, 2, 4, 4), fed=(0, 1, 2), num_heads=2),
    case_of("MultiHeadAttention", Q, normal(2, 2, 4, 4), normal(2, 2, 4, 4), normal(24), fed=(0, 1, 2), num_heads=2),
]  # fmt: skip


@pytest.mark.parametrize("case", HEADS_CASES, ids=str)
def test_multi_head_attention(case):
    check(case)


ANGLES = normal(16, 4)
COS, SIN = np.cos(ANGLES), np.sin(ANGLES)
PLACES = np.array([[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]])

ROTARY = [
    *(case_of("RotaryEmbedding", x, places, COS, SIN, fed=(0, 1), interleaved=interleaved)
      for x in (normal(2, 5, 16), normal(2, 2, 5, 8)) for places in (PLACES, np.array([3])) for interleaved in (0, 1)),
    case_of("RotaryEmbedding", normal(2, 5, 32), PLACES, COS, SIN, fed=(0, 1), num_heads=2, rotary_embedding_dim=8),
]  # fmt: skip


@pytest.mark.parametrize("case", ROTARY, ids=str)
def test_rotary_embedding(case):
    proto, feeds = model_of(case)
    model = typed(proto, feeds)
    agree(model, to_torch(model), feeds)


def gqa(n_rows, n_past, lengths, *, packed=False, capacity=None, rotary=False, bias=False, sink=False, **attributes):
    """Return a case of four heads in two groups, whose sequences have ``lengths`` tokens once the new ones are in."""
    batch, total = len(lengths), n_rows + n_past
    size = capacity or n_past
    given = (
        [normal(batch, n_rows, 128), None, None]
        if packed
        else [normal(batch, n_rows, 64), normal(batch, n_rows, 32), normal(batch, n_rows, 32)]
    )
    past = [normal(batch, 2, size, 16), normal(batch, 2, size, 16)] if size else [None, None]
    angles = normal(32, 8)
    tables = [np.cos(angles), np.sin(angles)] if rotary else [None, None]
    inputs = [
        *given, *past, np.array(lengths, np.int32) - 1, np.array(total, np.int32), *tables, None,
        normal(1, 4, n_rows, total) if bias else None, normal(4) if sink else None,
    ]  # fmt: skip
    while inputs[-1] is None:
        inputs.pop()
    fed = tuple(index for index in (0, 1, 2, 3, 4, 5, 10) if index < len(inputs) and inputs[index] is not None)
    return case_of("GroupQueryAttention", *inputs, fed=fed, outputs=(0, 1, 2), num_heads=4, kv_num_heads=2,
             do_rotary=int(rotary), **attributes)  # fmt: skip


GROUPS = [
    gqa(5, 0, (5, 5)), gqa(5, 0, (5, 3)), gqa(5, 0, (5, 5), packed=True), gqa(5, 0, (5, 5), scale=0.2, softcap=2.0),
    gqa(5, 0, (5, 5), local_window_size=2), gqa(5, 0, (5, 5), smooth_softmax=1), gqa(5, 0, (5, 5), sink=True),
    gqa(5, 0, (5, 5), bias=True), gqa(5, 0, (5, 5), causal=0), gqa(5, 0, (5, 3), causal=0),
    gqa(5, 0, (5, 3), causal=0, rotary=True, bias=True), gqa(1, 4, (5, 3), causal=0),
    gqa(5, 0, (5, 3), local_window_size=2),
    *(gqa(5, 0, (5, 5), rotary=True, packed=packed, rotary_interleaved=turn) for packed in (0, 1) for turn in (0, 1)),
    gqa(1, 4, (5, 5)), gqa(1, 4, (5, 3), rotary=True), gqa(1, 4, (5, 3), rotary=True, capacity=8),
    gqa(5, 0, (5, 5), capacity=8), gqa(1, 4, (5, 4), local_window_size=2), gqa(3, 4, (7,), rotary=True),
]  # fmt: skip


@pytest.mark.parametrize("case", GROUPS, ids=str)
def test_group_query_attention(case):
    """What belongs to padding differs: nothing reads it."""
    proto, feeds = model_of(case, dynamic=False)
    model = typed(proto, feeds)
    with torch.no_grad():
        made = run(to_torch(model), feeds)
    lengths, n_rows = case.inputs[5] + 1, case.inputs[0].shape[1]
    prompt = n_rows == case.inputs[6]
    for actual, wanted in zip(made, model.run(feeds).values(), strict=True):
        assert actual.shape == wanted.shape
        for sample, length in enumerate(lengths):
            parts = [
                part[sample] if part.ndim == 3 else part[sample].swapaxes(0, 1) for part in (actual.numpy(), wanted)
            ]
            n = length if prompt or wanted.ndim == 4 else n_rows
            np.testing.assert_allclose(parts[0][:n], parts[1][:n], atol=1e-5)


SCALE, ZERO_U8, ZERO_I8 = np.float32(0.02), np.uint8(120), np.int8(-5)
"""A scale and two zero points."""


def scale_and_zero(value):
    """Return a scale and a zero point of the value's type."""
    return np.float32(rng.uniform(0.01, 0.03)), value.dtype.type(
        rng.integers(*((100, 150) if value.dtype == np.uint8 else (-20, 20)))
    )


def ternary(op_type, *values, out=np.uint8, scale=0.02, fed=None, **attributes):
    """Return a case whose inputs come with scale and zero point each, and then those of the output."""
    inputs = [part for value in values for part in (value, *scale_and_zero(value))]
    fed = range(len(values)) if fed is None else fed
    zero = [] if out is None else [np.float32(scale), out(ZERO_U8 if out is np.uint8 else ZERO_I8)]
    return case_of(op_type, *inputs, *zero, fed=tuple(3 * index for index in fed), **attributes)


BYTES, SIGNED, PICTURE = u8(2, 3, 8), i8(2, 3, 8), u8(2, 4, 7, 7)

ELEMENTS = [
    *(ternary(name, x, y, out=x.dtype.type) for name in ("QLinearAdd", "QLinearMul")
      for x, y in ((BYTES, u8(2, 3, 8)), (SIGNED, i8(8)), (u8(3, 1), u8(2, 1, 8)))),
    ternary("QLinearAdd", BYTES, u8(8), fed=(0,)),
    *(ternary("QLinearSigmoid", x, out=x.dtype.type, scale=1 / 256) for x in (BYTES, SIGNED)),
    *(ternary("QLinearLeakyRelu", x, out=x.dtype.type, alpha=0.2) for x in (BYTES, SIGNED)),
    *(ternary("QLinearSoftmax", x, out=x.dtype.type, scale=1 / 256, axis=axis, opset=13)
      for x in (BYTES, SIGNED) for axis in (1, -1)),
    case_of("QLinearConcat", SCALE, ZERO_U8, BYTES, *scale_and_zero(BYTES), u8(2, 2, 8), *scale_and_zero(BYTES),
        fed=(2, 5), axis=1),
    case_of("QLinearWhere", BYTES > 128, BYTES, *scale_and_zero(BYTES), u8(8), *scale_and_zero(BYTES), SCALE, ZERO_U8,
        fed=(0, 1, 4)),
    *(ternary("QLinearGlobalAveragePool", x, out=x.dtype.type, channels_last=last)
      for x in (PICTURE, i8(2, 4, 5, 5)) for last in (0, 1)),
    *(ternary("QLinearAveragePool", PICTURE, channels_last=last, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
              count_include_pad=count) for last in (0, 1) for count in (0, 1)),
    ternary("QLinearAveragePool", PICTURE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    *(case_of("NhwcMaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
      for x in (PICTURE, i8(2, 7, 7, 4))),
    case_of("NhwcMaxPool", PICTURE, kernel_shape=[2, 2], strides=[1, 2], pads=[0, 1, 0, 0], dilations=[2, 1]),
    case_of("NhwcMaxPool", u8(1, 8, 7, 3), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], ceil_mode=1),
    *(case_of("NhwcMaxPool", i8(2, 7, 6, 3), kernel_shape=[3, 2], strides=[2, 1], auto_pad=pad)
      for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    *(case_of("QuantizeLinear", BATCH, SCALE, np.array(z), domain="com.microsoft")
      for z in (ZERO_U8, ZERO_I8, np.int16(7), np.uint16(9))),
    case_of("QuantizeLinear", BATCH, SCALE), case_of("DequantizeLinear", SIGNED, SCALE, ZERO_I8),
    case_of("DequantizeLinear", i8(2, 3, 8), SCALE),
    case_of("DequantizeLinear", BYTES, np.abs(normal(3)), u8(3), axis=1),
    case_of("QuantizeLinear", BATCH, np.abs(normal(8)) + 0.1, u8(8), axis=2),
    case_of("DequantizeLinear", rng.integers(-999, 999, (2, 3)).astype(np.int16), SCALE, np.int16(3)),
]  # fmt: skip


@pytest.mark.parametrize("case", ELEMENTS, ids=str)
def test_quantized_elements(case):
    check(case)


def test_a_window_that_begins_in_the_padding_does_not_count():
    """Though onnx's shape inference says so."""
    check(case_of("NhwcMaxPool", u8(1, 4, 4, 3), kernel_shape=[2, 2], strides=[4, 4], pads=[0, 0, 1, 1], ceil_mode=1))


def weight_of(*shape):
    return rng.integers(-64, 64, shape).astype(np.int8)


def some(n):
    return rng.uniform(0.01, 0.02, n).astype(np.float32)


COLUMNS, ROWS = weight_of(8, 6), weight_of(6, 8)
INTS = rng.integers(-500, 500, 6).astype(np.int32)
KERNEL = weight_of(6, 4, 3, 3)

LAYERS = [
    *(case_of("QLinearConv", x, *scale_and_zero(x), KERNEL, scale, zero, np.float32(0.1), x.dtype.type(3), INTS,
        channels_last=last, pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3], module=nn.Conv2d)
      for scale, zero in ((SCALE, np.int8(3)), (some(6), np.zeros(6, np.int8)))
      for x, last in ((PICTURE, 0), (u8(2, 7, 7, 4), 1), (i8(2, 7, 7, 4), 1))),
    case_of("QLinearConv", u8(2, 7, 7, 4), *scale_and_zero(BYTES), weight_of(4, 1, 3, 3), SCALE, np.int8(0),
        np.float32(0.1), ZERO_U8, group=4,
      channels_last=1, module=nn.Conv2d),
    case_of("QLinearConv", u8(2, 7, 7, 4), *scale_and_zero(BYTES), KERNEL, SCALE, np.int8(0), np.float32(0.1), ZERO_U8,
        channels_last=1,
      pads=[0, 1, 2, 0], module=nn.Conv2d),
    case_of("QGemm", u8(3, 8), *scale_and_zero(BYTES), COLUMNS, SCALE, np.int8(2), INTS, np.float32(0.1), ZERO_U8,
        module=nn.Linear),
    case_of("QGemm", u8(3, 8), *scale_and_zero(BYTES), ROWS, some(6), np.zeros(6, np.int8), INTS, np.float32(0.1),
        ZERO_U8, transB=1,
      module=nn.Linear),
    case_of("QGemm", u8(3, 8), *scale_and_zero(BYTES), COLUMNS, some(6), np.zeros(6, np.int8), INTS, module=nn.Linear),
    case_of("QGemm", u8(8, 3), *scale_and_zero(BYTES), COLUMNS, SCALE, np.int8(2), None, np.float32(0.1), ZERO_U8,
        transA=1, module=nn.Linear),
    case_of("QGemm", u8(3, 8), *scale_and_zero(BYTES), COLUMNS, SCALE, np.int8(2), INTS, module=nn.Linear, alpha=0.5),
    case_of("QGemm", u8(3, 8), *scale_and_zero(BYTES), COLUMNS, SCALE, np.int8(2), np.stack([INTS] * 3),
        module=nn.Linear),
    case_of("DynamicQuantizeMatMul", BATCH, COLUMNS, SCALE, np.int8(0), module=nn.Linear, loose=1e-4),
    case_of("DynamicQuantizeMatMul", BATCH, COLUMNS, some(6), np.zeros(6, np.int8), normal(6), module=nn.Linear,
        loose=1e-4),
    case_of("DynamicQuantizeMatMul", BATCH, u8(8, 6) // 2, SCALE, np.uint8(60), normal(6), module=nn.Linear,
        loose=1e-4),
    case_of("DynamicQuantizeMatMul", BATCH, COLUMNS, SCALE, module=nn.Linear, loose=1e-4),
    case_of("DynamicQuantizeMatMul", BATCH, weight_of(2, 8, 6), SCALE, np.int8(0), loose=1e-4),
    case_of("MatMulIntegerToFloat", BYTES, COLUMNS, SCALE, some(6), ZERO_U8, np.zeros(6, np.int8), normal(6),
        module=nn.Linear),
    case_of("MatMulIntegerToFloat", SIGNED, COLUMNS, SCALE, SCALE, ZERO_I8, np.int8(3), module=nn.Linear),
    case_of("MatMulIntegerToFloat", BYTES, COLUMNS, np.array(SCALE), SCALE, fed=(0, 2), module=nn.Linear),
    case_of("MatMulIntegerToFloat", BYTES, weight_of(2, 8, 6), SCALE, SCALE, ZERO_U8, np.int8(0), fed=(0, 1)),
    *(case_of("QAttention", u8(2, 5, 8), weight_of(8, 24), BIAS, SCALE, scale, mask, ZERO_U8, zero,
        fed=(0,) if mask is None else (0, 5), num_heads=2, unidirectional=causal, module=nn.Linear)
      for scale, zero in ((SCALE, np.int8(2)), (some(24), np.zeros(24, np.int8)))
      for mask, causal in ((None, 1), (PADDED, 0), (i32(5, 3), 0))),
    case_of("QAttention", u8(2, 5, 8), weight_of(8, 24), BIAS, SCALE, SCALE, None, ZERO_U8, np.int8(2),
        normal(2, 2, 2, 3, 4), fed=(0, 8),
      outputs=(0, 1), num_heads=2, unidirectional=1, module=nn.Linear),
    case_of("QEmbedLayerNormalization", IDS, SEGMENTS, u8(9, 8), u8(6, 8), u8(2, 8), u8(8), u8(8), PADDED, *some(5),
      *rng.integers(110, 140, 5).astype(np.uint8), fed=(0, 1, 7), outputs=(0, 1)),
    case_of("QEmbedLayerNormalization", IDS, None, u8(9, 8), u8(6, 8), None, u8(8), u8(8), None, some(1)[0],
        some(1)[0], None,
      some(1)[0], some(1)[0], ZERO_U8, ZERO_U8, None, ZERO_U8, ZERO_U8, outputs=(0, 1)),
]  # fmt: skip


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_quantized_layers(case):
    check(case)


def packed(n, k, block, bits, zeros="", bias=False, dtype=np.float32, **attributes):
    """Return a MatMulNBits with a matrix of ``n`` rows and ``k`` columns, as ONNX Runtime packs it."""
    blocks = -(-k // block)
    scales = rng.uniform(0.01, 0.02, (n, blocks)).astype(dtype)
    given = {
        "": None,
        "packed": u8(n, -(-blocks * bits // 8)),
        "float": rng.uniform(0, 2**bits, (n, blocks)).astype(dtype),
    }[zeros]
    inputs = [
        normal(2, 3, k).astype(dtype),
        u8(n, blocks, block * bits // 8),
        scales,
        given,
        None,
        normal(n) if bias else None,
    ]
    while inputs[-1] is None:
        inputs.pop()
    return case_of(
        "MatMulNBits",
        *inputs,
        K=k,
        N=n,
        bits=bits,
        block_size=block,
        module=nn.Linear,
        loose=1e-4 if dtype == np.float32 else 2e-3,
        **attributes,
    )


PACKED = [
    *(packed(6, k, block, bits, zeros) for bits in (4, 8) for zeros in ("", "packed")
      for k, block in ((32, 16), (64, 32), (40, 16), (48, 32), (128, 128))),
    packed(6, 64, 32, 4, "float"), packed(6, 64, 32, 4, bias=True), packed(6, 64, 32, 2, "packed"),
    packed(6, 64, 32, 8, "packed", bias=True), packed(6, 64, 32, 4, dtype=np.float16),
]  # fmt: skip


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_matrices_of_few_bits(case):
    check(case)


def optimised(model, folder, level):
    """Return a model as ONNX Runtime's optimiser writes it, for no processor in particular."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(
        model.proto().SerializeToString(), options, providers=["CPUExecutionProvider"],
        disabled_optimizers=["NchwcTransformer"],
    )  # fmt: skip
    return load(folder / "optimised.onnx")


LEVELS = onnxruntime.GraphOptimizationLevel

NETWORKS = {
    "convnet": set(), "resnet": {"FusedConv"}, "mobilenet": {"FusedConv"}, "vit": {"BiasGelu"},
    "bert": {"FusedMatMul", "BiasGelu"}, "gpt2": {"FastGelu"},
}  # fmt: skip


@pytest.mark.parametrize("level", [LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL], ids=["extended", "all"])
@pytest.mark.parametrize("name", NETWORKS)
def test_optimised_networks_come_back(name, level, export, tmp_path):
    exported = export(name, "torchscript")
    model = optimised(exported.model, tmp_path, level)
    assert {op.op_type for op in model.operators if op.domain == "com.microsoft"} >= NETWORKS[name]
    net = to_torch(model)
    assert write_back(model, net) is model
    for batch in (2, 3):
        inputs = exported.inputs(batch)
        expected = torch.from_numpy(exported.runtime(inputs, model))
        made = net(*inputs)
        torch.testing.assert_close(made, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    made.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    changed = write_back(model, perturb(net))
    with torch.no_grad():
        made = net(*inputs)
    expected = torch.from_numpy(exported.runtime(inputs, changed))
    torch.testing.assert_close(made, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


class Batches(CalibrationDataReader):
    """One batch of example inputs."""

    def __init__(self, feeds):
        self._batches = iter([feeds])

    def get_next(self):
        return next(self._batches, None)


@pytest.mark.parametrize("how", ["dynamic", QuantFormat.QOperator, QuantFormat.QDQ], ids=str)
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_quantized_networks_come_back(name, how, export, tmp_path):
    exported = export(name, "torchscript")
    inputs = exported.inputs(4)
    folded = optimised(exported.model, tmp_path, LEVELS.ORT_ENABLE_BASIC)
    folded.save(tmp_path / "plain.onnx")
    if how == "dynamic":
        quantize_dynamic(tmp_path / "plain.onnx", tmp_path / "q.onnx", op_types_to_quantize=["MatMul", "Gemm"])
    else:
        quantize_static(tmp_path / "plain.onnx", tmp_path / "q.onnx", Batches(exported.feeds(inputs)), quant_format=how)
    model = optimised(load(tmp_path / "q.onnx"), tmp_path, LEVELS.ORT_ENABLE_ALL)
    net = to_torch(model)
    assert write_back(model, net) is model
    expected = torch.from_numpy(exported.runtime(inputs, model))
    made = net(*inputs)
    torch.testing.assert_close(made, expected, atol=0.02 * expected.abs().max().item(), rtol=0)
    made.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_gradients_pass_through_quantized_operators():
    """They are those of the same network without rounding, as nothing is cut off."""
    steps = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("QGemm", ["a", "s", "z", "w", "s", "o", "", "t", "z"], ["b"], domain="com.microsoft"),
        helper.make_node("QLinearAdd", ["a", "s", "z", "b", "t", "z", "t", "z"], ["c"], domain="com.microsoft"),
        helper.make_node("QLinearSigmoid", ["c", "t", "z", "v", "o8"], ["d"], domain="com.microsoft"),
        helper.make_node("DequantizeLinear", ["d", "v", "o8"], ["y"]),
    ]
    matrix = rng.integers(-60, 60, (4, 4)).astype(np.int8)
    values = {
        "s": SCALE,
        "t": np.float32(0.05),
        "v": np.float32(1 / 256),
        "z": ZERO_U8,
        "o": np.int8(0),
        "o8": np.uint8(0),
    }
    graph = helper.make_graph(
        steps, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in {**values, "w": matrix}.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = load(helper.make_model(graph, opset_imports=imports, ir_version=10))
    net = to_torch(model)
    x = torch.from_numpy(0.5 * np.tanh(normal(3, 4))).requires_grad_()
    made = net(x)
    agree(model, net, {"x": x.detach().numpy()})
    (weight,) = net.parameters()
    plain = torch.sigmoid(x + x @ weight.t())
    upstream = torch.from_numpy(normal(3, 4))
    for actual, wanted in zip(*(torch.autograd.grad(y, (x, weight), upstream) for y in (made, plain)), strict=True):
        torch.testing.assert_close(actual, wanted, atol=0.03, rtol=0.05)


def test_shared_integers_are_one_parameter():
    """Each operator brings the scale; ALBERT's layers share their matrices."""
    steps = [
        helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s", "z"], ["h"], domain="com.microsoft"),
        helper.make_node("DynamicQuantizeMatMul", ["h", "w", "s", "z"], ["y"], domain="com.microsoft"),
    ]
    values = {"w": weight_of(4, 4), "s": SCALE, "z": np.int8(0)}
    graph = helper.make_graph(
        steps, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = load(helper.make_model(graph, opset_imports=imports, ir_version=10))
    net = to_torch(model)
    assert len(list(net.parameters())) == 1
    agree(model, net, {"x": normal(3, 4)}, loose=1e-3)
    changed = write_back(model, perturb(net))
    assert set(changed.initializers) == set(values)
    assert write_back(changed, to_torch(changed)) is changed


@pytest.mark.parametrize(("bits", "n"), [(2, 11), (4, 7), (8, 3)])
def test_packed_integers(bits, n):
    data = u8(3, 2, 2)
    step = Unpack(bits, n)
    levels = step.there(data)
    assert levels.shape == step.shape_there(data.shape) == (3, n)
    bytes_of_row = int.from_bytes(data[1].tobytes(), "little")
    assert [int(level) for level in levels[1]] == [(bytes_of_row >> bits * i) % 2**bits for i in range(n)]
    np.testing.assert_array_equal(step.back(levels, data), data)
    steps = (step, Scaled(np.full((3, 1), 0.5, np.float32), None, 1, n))
    changed = forward(steps, data)
    changed[0, 0] = 0.5 * (levels[0, 0].astype(int) // 2)
    new = backward(steps, changed, data)
    np.testing.assert_array_equal(forward(steps, new), changed)
    np.testing.assert_array_equal(new[1:], data[1:])


def test_a_weight_beyond_its_levels_is_refused():
    case = packed(6, 64, 32, 4)
    proto, feeds = model_of(case)
    model = typed(proto, feeds)
    net = to_torch(model)
    with torch.no_grad():
        next(net.parameters()).mul_(10)
    with pytest.raises(RefusedError, match="0 to 15"):
        write_back(model, net)


def test_half_precision_widens():
    case = packed(6, 64, 32, 4, "packed", dtype=np.float16)
    proto, feeds = model_of(case)
    model = typed(proto, feeds)
    net = to_torch(model, dtype=torch.float32)
    (weight,) = net.parameters()
    assert weight.dtype == torch.float32
    expected = next(iter(model.run(feeds).values())).astype(np.float32)
    np.testing.assert_allclose(run(net, feeds)[0].detach().numpy(), expected, atol=5e-3 * np.abs(expected).max())
    assert write_back(model, net) is model


@pytest.mark.parametrize(("form", "bias"), [((2, 5, 2, 3, 4), None), ((2, 4, 2, 2, 4), None), ((2, 5, 2, 3, 4), 24)])
def test_packed_heads_are_the_unpacked_ones(form, bias):
    """ONNX Runtime has these on other processors only."""
    whole = torch.from_numpy(normal(*form))
    b = None if bias is None else torch.from_numpy(normal(bias))
    parts = [part.flatten(2) for part in whole.unbind(3)]
    query = torch.from_numpy(normal(2, 5, 8))
    settings = {"n_heads": 2, "causal": False, "scale": None, "masked": -1e4}
    nothing = (None,) * 4
    given = (whole, None, None) if form[3] == 3 else (query, whole, None)
    made = microsoft_attention.attend_heads(*given, b, *nothing, **settings)
    wanted = microsoft_attention.attend_heads(*(parts if form[3] == 3 else (query, *parts)), b, *nothing, **settings)
    for actual, expected in zip(made, wanted, strict=True):
        torch.testing.assert_close(actual, expected)


def test_gradients_of_grouped_attention():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, dtype=torch.float64, requires_grad=True) for n in (16, 8, 8))
    past = [torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    angles = torch.randn(8, 2, dtype=torch.float64)

    def attend(query, key, value, *past):
        return microsoft_attention.attend_in_groups(
            query, key, value, *past, torch.tensor([4, 6]), 7, angles.cos(), angles.sin(), None, None, None,
            n_heads=4, n_groups=2, causal=True, scale=None, window=3, softcap=1.5, smooth=True, interleaved=False,
        )  # fmt: skip

    assert torch.autograd.gradcheck(attend, (query, key, value, *past))


def test_bias_softmax_adds_before():
    """ONNX Runtime has it on other processors only."""
    x, bias = normal(2, 2, 3, 5), normal(2, 1, 1, 5)
    case = case_of("BiasSoftmax", x, bias, fed=(0, 1), axis=3, is_inner_broadcast=1)
    proto, feeds = model_of(case)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y0", TensorProto.FLOAT, [None] * 4))
    made = run(to_torch(proto), feeds)[0]
    torch.testing.assert_close(made, torch.softmax(torch.from_numpy(x + bias), -1))


REFUSED = [
    (case_of("Attention", X, QKV, BIAS, num_heads=2, do_rotary=1), "do_rotary"),
    (case_of("Attention", X, QKV, BIAS, num_heads=2, past_present_share_buffer=1), "share_buffer"),
    (case_of("MultiHeadAttention", Q, K, V, fed=(0, 1, 2), outputs=(0, 3), num_heads=2), "products"),
    (case_of("GroupQueryAttention", normal(2, 3, 32), normal(2, 3, 16), normal(2, 3, 16), None, None, i32(2, 2),
    i32(3), num_heads=4,
       kv_num_heads=2, sliding_window_cache=1, local_window_size=2), "sliding_window_cache"),
    (case_of("RotaryEmbedding", normal(2, 5, 16), PLACES, COS, SIN, scale=2.0), "scale"),
    (case_of("FusedConv", IMAGE, W, B, activation="Erf"), "activation Erf"),
    (case_of("MatMulNBits", normal(3, 32), u8(6, 2, 8), normal(6, 2), None, i32(*range(32)), K=32, N=6, block_size=16),
    "order"),
    (case_of("SkipLayerNormalization", BATCH, BATCH, normal(8), outputs=(0, 1)), "statistics"),
    (case_of("BiasSoftmax", BATCH, normal(3, 8), axis=1, is_inner_broadcast=0), "several axes"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=str)
def test_refusals(case, reason):
    proto, _ = model_of(case)
    with pytest.raises(UnsupportedOperatorError, match=reason):
        to_torch(proto)


KNOWN = [
    *FUSED, *ATTENTION, *(case for case in HEADS_CASES if case.inputs[2].ndim == 3), *ROTARY, *GROUPS, *ELEMENTS,
    *LAYERS, *PACKED,
]  # fmt: skip


@pytest.mark.parametrize("case", KNOWN, ids=str)
def test_stand_ins_have_the_types_that_onnx_runtime_finds(case):
    """Where nothing is known of a state that is kept, that is no error."""
    proto, feeds = model_of(case, dynamic=False)
    expected = list(load(proto).run(feeds).values())
    graph = infer_types(proto, {"": case.version, "com.microsoft": 1})
    for output, wanted in zip(graph.output, expected, strict=True):
        kind = output.type.tensor_type
        if not kind.HasField("shape"):
            assert output.name != "y0"
            continue
        assert kind.elem_type == helper.np_dtype_to_tensor_dtype(wanted.dtype)
        assert [dim.dim_value or size for dim, size in zip(kind.shape.dim, wanted.shape, strict=True)] == [
            *wanted.shape
        ]


def table(dtype, bits=4, zeros=False):
    """Return a case of nine rows of 32 numbers, with a scale for every 16."""
    packs = 8 // bits if dtype == np.uint8 else 1
    low, high = (0, 256) if dtype == np.uint8 else (-8, 8) if dtype == ml_dtypes.int4 else (0, 16)
    data = rng.integers(low, high, (9, 32 // packs)).astype(dtype)
    zero = rng.integers(max(low, 0), min(high, 8), (9, max(2 // packs, 1))).astype(dtype) if zeros else None
    inputs = [data, IDS, some((9, 2)), *([zero] if zeros else [])]
    return case_of("GatherBlockQuantized", *inputs, fed=(1,), version=21, module=nn.Embedding, block_size=16, bits=bits,
             gather_axis=0, quantize_axis=1)  # fmt: skip


TABLES_OF_FEW_BITS = [
    *(table(dtype, zeros=zeros) for dtype in (ml_dtypes.int4, ml_dtypes.uint4) for zeros in (False, True)),
    *(table(np.uint8, bits, zeros) for bits in (4, 8) for zeros in (False, True)),
]


@pytest.mark.parametrize("case", TABLES_OF_FEW_BITS, ids=str)
def test_tables_of_few_bits(case):
    check(case)


@pytest.mark.parametrize("levels", [np.int16, ml_dtypes.int4])
def test_a_dequantized_weight_is_folded(levels):
    steps = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"], domain="com.microsoft", axis=0),
        helper.make_node("Gemm", ["x", "v"], ["y"], transB=1),
    ]
    values = {"w": rng.integers(-7, 8, (6, 8)).astype(levels), "s": some(6), "z": np.zeros(6, levels)}
    graph = helper.make_graph(
        steps, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = load(helper.make_model(graph, opset_imports=imports, ir_version=10))
    net = to_torch(model)
    assert [type(module) for module in net.children()] == [nn.Linear]
    agree(model, net, {"x": normal(3, 8)})
    assert write_back(model, net) is model
    changed = write_back(model, perturb(net))
    agree(changed, to_torch(changed), {"x": normal(3, 8)})


class Layer(nn.Module):
    """An encoder's layer, written as the patterns of ONNX Runtime's optimiser of transformers expect it."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 32), nn.Linear(32, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def _split(self, x):
        return x.view(x.size(0), x.size(1), self.heads, x.size(2) // self.heads).permute(0, 2, 1, 3)

    def forward(self, x, hidden):
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.transpose(-1, -2) / query.size(-1) ** 0.5 + hidden, -1)
        y = (weights @ value).permute(0, 2, 1, 3).contiguous()
        x = self.norm1(self.out(y.view(x.size(0), x.size(1), 16)) + x)
        return self.norm2(self.narrow(nn.functional.gelu(self.wide(x))) + x)


class Bert(nn.Module):
    """Two layers behind embeddings of words, places and segments."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.segments = nn.Embedding(50, 16), nn.Embedding(8, 16), nn.Embedding(2, 16)
        self.norm = nn.LayerNorm(16)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.register_buffer("positions", torch.arange(8)[None])

    def forward(self, input_ids, attention_mask, token_type_ids):
        hidden = (1.0 - attention_mask[:, None, None].to(torch.float32)) * -10000.0
        places = self.places(self.positions[:, : input_ids.shape[1]])
        x = self.norm(self.words(input_ids) + places + self.segments(token_type_ids))
        for layer in self.layers:
            x = layer(x, hidden)
        return x


@pytest.mark.parametrize("how", ["attention", "heads", "quantized"])
def test_optimised_transformers_come_back(how, tmp_path):
    torch.manual_seed(0)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = (torch.randint(0, 50, (2, 5)), mask, torch.randint(0, 2, (2, 5)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Bert().eval(), inputs, tmp_path / "m.onnx", dynamo=False, opset_version=17, input_names=names,
            dynamic_axes={name: {0: "n", 1: "s"} for name in names},
        )  # fmt: skip
    options = FusionOptions("bert")
    options.use_multi_head_attention = how == "heads"
    optimize_model(
        str(tmp_path / "m.onnx"), "bert", num_heads=2, hidden_size=16, opt_level=0, optimization_options=options
    ).save_model_to_file(str(tmp_path / "o.onnx"))
    if how == "quantized":
        quantize_dynamic(
            tmp_path / "o.onnx", tmp_path / "o.onnx", op_types_to_quantize=["Attention", "EmbedLayerNormalization"],
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )  # fmt: skip
    model = load(tmp_path / "o.onnx")
    expected = {
        "attention": {"Attention", "EmbedLayerNormalization", "SkipLayerNormalization"},
        "heads": {"MultiHeadAttention"},
        "quantized": {"QAttention", "QEmbedLayerNormalization"},
    }[how]
    assert expected <= {op.op_type for op in model.operators}
    net = to_torch(model)
    assert write_back(model, net) is model
    types = {value.name: value.type.tensor_type.elem_type for value in model.proto().graph.input}
    kinds = {name: helper.tensor_dtype_to_np_dtype(code) for name, code in types.items()}
    agree(model, net, {name: value.numpy().astype(kinds[name]) for name, value in zip(names, inputs, strict=True)})
    net(*inputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
