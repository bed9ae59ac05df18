"""Operators that ONNX Runtime's quantizers and optimiser write, domain com.microsoft.

Every one computes with floats what the integers stand for, and rounds where ONNX Runtime rounds; gradients pass, see
:mod:`graphmod.pytorch.operators.quantization`. A quantized weight is one parameter of floats, which goes back into the
file as integers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from torch import Tensor, fx, nn

from graphmod.pytorch.binding import Weight
from graphmod.pytorch.levels import as_integers, levels_of, name_of
from graphmod.pytorch.operator import Operator
from graphmod.pytorch.operators.convolution import CONV
from graphmod.pytorch.operators.microsoft_attention import self_attention
from graphmod.pytorch.operators.microsoft_fused import MICROSOFT, embed, lengths_of, without
from graphmod.pytorch.operators.normalization import layer_norm_of
from graphmod.pytorch.operators.pooling import MAX, average_pool_of, pad_windows
from graphmod.pytorch.operators.quantization import dequantize, dynamic_quantize, limits_of, quantize
from graphmod.pytorch.packed import Scaled, Unpack
from graphmod.pytorch.padding import Window, window_of
from graphmod.pytorch.registry import Outputs, operator
from graphmod.pytorch.stand_ins import like_input, placeholder, stand_in
from graphmod.pytorch.steps import Permute, Step

Array = NDArray[np.generic]


# -- what is common to them


def _dequantized(op: Operator, x: int, scale: int, zero: int, axis: int = 0) -> fx.Node:
    """Return the floats that an input stands for; the arguments are positions of inputs."""
    return op.call(dequantize, levels_of(op.input(x)), op.fixed(scale), op.fixed(zero), axis)


def _levels(op: Operator, node: fx.Node, scale: int, zero: int, like: int | None = None, axis: int = 0) -> fx.Node:
    """Return floats as integers of the type that the zero point has, or an input like it, or unsigned bytes."""
    given = zero if op.has(zero) else like
    dtype = np.dtype(np.uint8) if given is None else op.dtype(given)
    made = op.call(quantize, node, op.fixed(scale), op.fixed(zero), axis, 0, limits_of(dtype))
    return op.call(as_integers, made, name_of(dtype))


def _scale(op: Operator, index: int) -> Array:
    """Return a constant scale, in the precision that the network has."""
    value = op.required(index)
    single = value.dtype.kind != "f" or op.importer.torch_dtype(value.dtype) == torch.float32
    return value.astype(np.float32) if single else value


def _weight(op: Operator, x: int, scale: int, zero: int, axis: int, *more: Step) -> Weight | None:
    """Return a quantized constant as a trainable weight; None where something of it is computed."""
    if op.constant(x) is None or op.constant(scale) is None or (op.has(zero) and op.constant(zero) is None):
        return None
    return op.weight_by(x, (Scaled(_scale(op, scale), op.constant(zero), axis, 0), *more))


def _product(
    op: Operator, a: fx.Node, b: tuple[int, int, int], bias: Weight | None, *, turned: bool = False
) -> fx.Node:
    """Return a product with a quantized matrix, by the positions of its levels, scale and zero point."""
    right = op.constant(b[0])
    if right is not None and right.ndim == 2:
        weight = _weight(op, *b, 0) if turned else _weight(op, *b, 1, Permute((1, 0)))
        if weight is not None:
            n_out, n_in = weight.shape
            return op.module(nn.Linear(n_in, n_out, bias=bias is not None, device="meta"), a, weight=weight, bias=bias)
    matrix = _dequantized(op, *b, axis=0 if turned else -1)
    made = op.call(torch.matmul, a, op.method("t", matrix) if turned else matrix)
    return made if bias is None else op.call(torch.add, made, op.importer.weights.parameter(bias))


def nhwc_to_nchw(x: Tensor) -> Tensor:
    """Move the channels from the last axis to the second."""
    return x.movedim(-1, 1)


def nchw_to_nhwc(x: Tensor) -> Tensor:
    """Move the channels from the second axis to the last."""
    return x.movedim(1, -1)


def _channels_first(op: Operator, x: fx.Node) -> fx.Node:
    return op.call(nhwc_to_nchw, x) if op.attribute("channels_last", 0) else x


def _channels_back(op: Operator, x: fx.Node) -> fx.Node:
    return op.call(nchw_to_nhwc, x) if op.attribute("channels_last", 0) else x


# -- quantization


@operator("QuantizeLinear", domain=MICROSOFT)
def quantize_linear(op: Operator) -> fx.Node:
    """Convert QuantizeLinear, of any integers at any operator set."""
    return _levels(op, op.input(0), 1, 2, axis=op.attribute("axis", 1))


@operator("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(op: Operator) -> fx.Node:
    """Convert DequantizeLinear, of any integers at any operator set."""
    return _dequantized(op, 0, 1, 2, axis=op.attribute("axis", 1))


@stand_in("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def _standard(operator: NodeProto) -> list[NodeProto]:
    return [without(operator, operator.op_type, 3)]


# -- element by element, and what moves elements


@operator("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_binary(op: Operator) -> fx.Node:
    """Convert QLinearAdd or QLinearMul."""
    function = torch.add if op.type == "QLinearAdd" else torch.mul
    return _levels(op, op.call(function, _dequantized(op, 0, 1, 2), _dequantized(op, 3, 4, 5)), 6, 7, like=0)


@stand_in("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def _sum(operator: NodeProto) -> list[NodeProto]:
    return [helper.make_node("Add", [operator.input[0], operator.input[3]], operator.output)]


@operator("QLinearSigmoid", domain=MICROSOFT)
def qlinear_sigmoid(op: Operator) -> fx.Node:
    """Convert QLinearSigmoid."""
    return _levels(op, op.call(torch.sigmoid, _dequantized(op, 0, 1, 2)), 3, 4, like=0)


@operator("QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_leaky_relu(op: Operator) -> fx.Node:
    """Convert QLinearLeakyRelu."""
    made = op.call(F.leaky_relu, _dequantized(op, 0, 1, 2), op.attribute("alpha", 0.01))
    return _levels(op, made, 3, 4, like=0)


@operator("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(op: Operator) -> fx.Node:
    """Convert QLinearSoftmax; of an operator set before 13 over the last axis."""
    axis, opset = op.attribute("axis", -1), op.attribute("opset", 13)
    if opset < 13 and axis % op.rank() != op.rank() - 1:
        raise op.unsupported("a softmax over several axes has no counterpart")
    return _levels(op, op.call(softmax_of_levels, levels_of(op.input()), op.fixed(1), axis), 3, 4, like=0)


def softmax_of_levels(levels: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Softmax of quantized numbers, by their distances to the greatest: it may stand for more than floats can say."""
    wide = levels.to(scale.dtype)
    return torch.softmax((wide - wide.detach().amax(axis, keepdim=True)) * scale, axis)


stand_in("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", domain=MICROSOFT)(like_input(0))


@operator("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(op: Operator) -> fx.Node:
    """Convert QLinearConcat, whose inputs come in threes."""
    parts = [_dequantized(op, i, i + 1, i + 2) for i in range(2, len(op.proto.input), 3)]
    return _levels(op, op.call(torch.cat, parts, op.attribute("axis", 0)), 0, 1, like=2)


@stand_in("QLinearConcat", domain=MICROSOFT)
def _concat(operator: NodeProto) -> list[NodeProto]:
    made = without(operator, "Concat", 0)
    made.input.extend(operator.input[2::3])
    return [made]


@operator("QLinearWhere", domain=MICROSOFT)
def qlinear_where(op: Operator) -> fx.Node:
    """Convert QLinearWhere."""
    made = op.call(torch.where, op.input(0), _dequantized(op, 1, 2, 3), _dequantized(op, 4, 5, 6))
    return _levels(op, made, 7, 8, like=1)


@stand_in("QLinearWhere", domain=MICROSOFT)
def _where(operator: NodeProto) -> list[NodeProto]:
    return [helper.make_node("Where", [operator.input[0], operator.input[1], operator.input[4]], operator.output)]


# -- means and pooling


@operator("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool(op: Operator) -> fx.Node:
    """Convert QLinearGlobalAveragePool."""
    axes = [axis - (1 if op.attribute("channels_last", 0) else 0) for axis in range(2, op.rank())]
    return _levels(op, op.call(torch.mean, _dequantized(op, 0, 1, 2), axes, keepdim=True), 3, 4, like=0)


@operator("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(op: Operator) -> fx.Node:
    """Convert QLinearAveragePool."""
    window = window_of(op, op.attribute("kernel_shape", []))
    made = op.call(
        average_pool_of, _channels_first(op, _dequantized(op, 0, 1, 2)), kernel=window.kernel, stride=window.stride,
        dilation=window.dilation, begin=window.begin, end=window.end, auto=window.auto,
        ceil=bool(op.attribute("ceil_mode", 0)), counted=bool(op.attribute("count_include_pad", 0)),
    )  # fmt: skip
    return _levels(op, _channels_back(op, made), 3, 4, like=0)


@operator("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(op: Operator) -> fx.Node:
    """Convert NhwcMaxPool of bytes."""
    window = window_of(op, op.attribute("kernel_shape", []))
    if len(window.kernel) not in MAX:
        raise op.unsupported(f"it has {len(window.kernel)} spatial axes; there are modules for 1 to 3")
    x = op.call(nhwc_to_nchw, op.method("float", levels_of(op.input())))
    padded = op.call(
        pad_windows, x, kernel=window.kernel, stride=window.stride, dilation=window.dilation, begin=window.begin,
        end=window.end, auto=window.auto, ceil=bool(op.attribute("ceil_mode", 0)), value=-math.inf,
    )  # fmt: skip
    pool = MAX[len(window.kernel)](window.kernel, window.stride, dilation=window.dilation)
    return op.call(as_integers, op.call(nchw_to_nhwc, op.module(pool, padded)), name_of(op.dtype()))


def _pooled(op_type: str, channels_last: bool | None = None) -> None:
    """Register the stand-in of a pooling whose channels may be the last axis; by an attribute, if None."""

    def pooled(operator: NodeProto) -> list[NodeProto]:
        last = channels_last or any(a.name == "channels_last" and a.i for a in operator.attribute)
        made = without(operator, op_type, 1, "channels_last")
        return _turned_around(made) if last else [made]

    name = "NhwcMaxPool" if channels_last else f"QLinear{op_type}"
    stand_in(name, domain=MICROSOFT)(pooled)


def _turned_around(made: NodeProto) -> list[NodeProto]:
    """Return an operator between two that put the channels of an image second and back."""
    x, y = made.input[0], made.output[0]
    before = helper.make_node("Einsum", [x], [f"{y}/before"], equation="n...c->nc...")
    after = helper.make_node("Einsum", [f"{y}/after"], [y], equation="nc...->n...c")
    made.input[0], made.output[0] = before.output[0], after.input[0]
    return [before, made, after]


_pooled("AveragePool")
_pooled("GlobalAveragePool")
_pooled("MaxPool", channels_last=True)


# -- layers with weights


@operator("QLinearConv", domain=MICROSOFT)
def qlinear_conv(op: Operator) -> fx.Node:
    """Convert QLinearConv, whose channels may be the last axis."""
    kernel, groups = op.attribute("kernel_shape", [*op.required(3).shape[2:]]), op.attribute("group", 1)
    window: Window = window_of(op, kernel)
    if len(kernel) not in CONV:
        raise op.unsupported(f"it has {len(kernel)} spatial axes; there are modules for 1 to 3")
    weight, bias = _weight(op, 3, 4, 5, 0), _integer_bias(op, 8, 1, 4)
    if weight is None or (op.has(8) and bias is None):
        raise op.unsupported("a kernel that is computed has no counterpart")
    n_out, n_in = weight.shape[:2]
    module = CONV[len(kernel)][0](
        n_in * groups, n_out, window.kernel, window.stride, window.padding, window.dilation, groups,
        bias=bias is not None, device="meta",
    )  # fmt: skip
    x = window.pad(op, of=_channels_first(op, _dequantized(op, 0, 1, 2)))
    return _levels(op, _channels_back(op, op.module(module, x, weight=weight, bias=bias)), 6, 7, like=0)


def _integer_bias(op: Operator, index: int, *scales: int, factor: float = 1.0) -> Weight | None:
    """Return a bias of integers, whose scale is the product of others, as a trainable weight."""
    value = op.constant(index)
    if value is None or value.ndim != 1 or any(op.constant(scale) is None for scale in scales):
        return None
    scale = np.asarray(factor, np.float32)
    for other in scales:
        scale = scale * _scale(op, other).astype(np.float32).reshape(-1)
    return op.weight_by(index, (Scaled(np.broadcast_to(scale, value.shape).copy(), None, 0, 0),))


@stand_in("QLinearConv", domain=MICROSOFT)
def _conv(operator: NodeProto) -> list[NodeProto]:
    made = without(operator, "QLinearConv", len(operator.input), "channels_last")
    last = any(a.name == "channels_last" and a.i for a in operator.attribute)
    return _turned_around(made) if last else [made]


@operator("QGemm", domain=MICROSOFT)
def qgemm(op: Operator) -> fx.Node:
    """Convert QGemm, whose result is quantized or not."""
    alpha, turned = op.attribute("alpha", 1.0), bool(op.attribute("transB", 0))
    a = _dequantized(op, 0, 1, 2)
    a = op.method("t", a) if op.attribute("transA", 0) else a
    bias = _integer_bias(op, 6, 1, 4)
    made = _product(op, a, (3, 4, 5), bias, turned=turned)
    if op.has(6) and bias is None:
        scale = op.call(torch.mul, op.fixed(1), op.fixed(4))
        made = op.call(torch.add, made, op.call(torch.mul, op.input(6), scale))
    if alpha != 1.0:
        made = op.call(torch.mul, made, alpha)
    return _levels(op, made, 7, 8) if op.has(7) else made


@stand_in("QGemm", domain=MICROSOFT)
def _gemm(operator: NodeProto) -> list[NodeProto]:
    name, inputs = operator.output[0], [*operator.input, *[""] * 9]
    product = without(operator, "Gemm", 0)
    product.input.extend([inputs[0], inputs[3]])
    product.output[0] = f"{name}/levels"
    if inputs[7]:
        return [product, helper.make_node("QuantizeLinear", [product.output[0], inputs[7], inputs[8]], [name])]
    return [product, helper.make_node("DequantizeLinear", [product.output[0], inputs[1]], [name])]


@operator("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(op: Operator) -> fx.Node:
    """Convert DynamicQuantizeMatMul: the left factor is rounded to 256 levels in its range."""
    return _with_bias(op, op.call(rounded_to_bytes, op.input(0)), (1, 2, 3), 4)


def rounded_to_bytes(x: Tensor) -> Tensor:
    """Round to 256 levels between the least and the greatest value; gradients pass."""
    levels, scale, zero = dynamic_quantize(x)
    return dequantize(levels, scale, zero)


@operator("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(op: Operator) -> fx.Node:
    """Convert MatMulIntegerToFloat."""
    return _with_bias(op, _dequantized(op, 0, 2, 4, axis=-1), (1, 3, 5), 6)


def _with_bias(op: Operator, a: fx.Node, b: tuple[int, int, int], index: int) -> fx.Node:
    bias = op.weight(index)
    made = _product(op, a, b, bias)
    return op.call(torch.add, made, op.input(index)) if op.has(index) and bias is None else made


@stand_in("DynamicQuantizeMatMul", domain=MICROSOFT)
def _matmul(operator: NodeProto) -> list[NodeProto]:
    return [helper.make_node("MatMul", operator.input[:2], operator.output)]


@stand_in("MatMulIntegerToFloat", domain=MICROSOFT)
def _dequantized_matmul(operator: NodeProto) -> list[NodeProto]:
    name = operator.output[0]
    return [
        helper.make_node("MatMul", operator.input[:2], [f"{name}/levels"]),
        helper.make_node("DequantizeLinear", [f"{name}/levels", operator.input[2]], [name]),
    ]


# -- what is fused from several


@operator("QAttention", domain=MICROSOFT)
def qattention(op: Operator) -> Outputs:
    """Convert QAttention, whose projection to queries, keys and values is one quantized linear layer."""
    op.requires(do_rotary=0, past_present_share_buffer=0)
    bias = op.weight(2)
    if bias is None:
        raise op.unsupported("a bias that is computed has no counterpart")
    projected = _product(op, _dequantized(op, 0, 3, 6), (1, 4, 7), bias)
    return self_attention(op, projected, mask=5, past=8, bias=9)


@operator("QEmbedLayerNormalization", domain=MICROSOFT)
def qembed_layer_norm(op: Operator) -> Outputs:
    """Convert QEmbedLayerNormalization: rows of up to three quantized tables are added, the sum normalized."""
    words, places, segments, scale, shift = (
        _table(op, table, table + 6, table + 11) if op.has(table) else None for table in range(2, 7)
    )
    total = op.call(embed, op.input(0), op.optional(1), words, places, segments, None)
    lengths = op.call(lengths_of, op.input(0), op.optional(7)) if op.uses_output(1) else None
    return op.call(layer_norm_of, total, scale, shift, 1, op.attribute("epsilon", 1e-12)), lengths


def _table(op: Operator, x: int, scale: int, zero: int) -> fx.Node:
    weight = _weight(op, x, scale, zero, 0)
    return _dequantized(op, x, scale, zero) if weight is None else op.importer.weights.parameter(weight)


@stand_in("QEmbedLayerNormalization", domain=MICROSOFT)
def _embedded(operator: NodeProto) -> list[NodeProto]:
    name = operator.output[0]
    return [
        helper.make_node("Gather", [operator.input[2], operator.input[0]], [f"{name}/levels"]),
        helper.make_node("DequantizeLinear", [f"{name}/levels", operator.input[8]], [name]),
    ]


# -- weights of few bits


@operator("MatMulNBits", domain=MICROSOFT)
def matmul_nbits(op: Operator) -> fx.Node:
    """Convert MatMulNBits, whose matrix has a scale for every block of every row, to a linear layer."""
    op.requires(weight_prepacked=0)
    op.ignore("accuracy_level")
    n_in, n_out = op.attribute("K", 0), op.attribute("N", 0)
    if op.has(4):
        raise op.unsupported("an order of its groups has no counterpart")
    weight = _packed(op, 1, 2, 3, n_in)
    bias = op.weight(5)
    if weight is None or (op.has(5) and bias is None):
        raise op.unsupported("a matrix that is computed or read in another form has no counterpart")
    module = nn.Linear(n_in, n_out, bias=bias is not None, device="meta")
    return op.module(module, op.input(0), weight=weight, bias=bias)


def _packed(op: Operator, x: int, scale: int, zero: int, n: int) -> Weight | None:
    """Return packed rows of ``n`` levels as a trainable weight; a zero point that is missing is half of the range."""
    bits, block = op.attribute("bits", 4), op.attribute("block_size", 128)
    if bits not in (2, 4, 8):
        raise op.unsupported(f"levels of {bits} bits have no counterpart")
    n_blocks = -(-n // block)
    rows = op.required(x).shape[0]
    scales = _scale(op, scale).reshape(rows, n_blocks)
    given = op.constant(zero)
    if given is None:
        if op.has(zero):
            raise op.unsupported("its zero points have to be constant")
        zeros: Array = np.full(scales.shape, 2 ** (bits - 1), np.float32)
    elif given.dtype == np.uint8:
        zeros = Unpack(bits, n_blocks).there(given.reshape(rows, -1)).astype(np.float32)
    else:
        zeros = given.reshape(scales.shape).astype(np.float32)
    return op.weight_by(x, (Unpack(bits, n), Scaled(scales, zeros, 1, block)))


@stand_in("MatMulNBits", domain=MICROSOFT)
def _matmul_nbits(operator: NodeProto) -> list[NodeProto]:
    sizes, name = {a.name: int(a.i) for a in operator.attribute}, f"{operator.output[0]}/weight"
    product = helper.make_node("MatMul", [operator.input[0], name], operator.output)
    return [*placeholder(name, [sizes["K"], sizes["N"]]), product]


@operator("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(op: Operator) -> fx.Node:
    """Convert GatherBlockQuantized of rows, which have a scale for every block, to an embedding."""
    table, block, bits = op.required(0), op.attribute("block_size", 128), op.attribute("bits", 4)
    if table.ndim != 2 or op.attribute("gather_axis", 0) or op.attribute("quantize_axis", 1) not in (1, -1):
        raise op.unsupported("anything but rows of blocks has no counterpart")
    if table.dtype == np.uint8:
        weight = _packed(op, 0, 2, 3, table.shape[1] * 8 // bits)
    else:
        weight = op.weight_by(0, (Scaled(_scale(op, 2), op.constant(3), 1, block),))
    if weight is None:
        raise op.unsupported("a table that is read in another form has no counterpart")
    n_rows, width = weight.shape
    return op.module(nn.Embedding(n_rows, width, device="meta"), op.input(1), weight=weight)


@stand_in("GatherBlockQuantized", domain=MICROSOFT)
def _rows(operator: NodeProto) -> list[NodeProto]:
    """Return operators that give the rows' number and type; how many numbers a byte holds is not known here."""
    name = operator.output[0]
    return [
        *placeholder(f"{name}/some", [1], TensorProto.BOOL),
        helper.make_node("Gather", [operator.input[2], operator.input[1]], [f"{name}/scales"]),
        helper.make_node("Compress", [f"{name}/scales", f"{name}/some"], [name], axis=-1),
    ]
