"""Blocks on images (N, C, H, W)."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from network_families.build import Builder, Trunk, family


@family("image")
def conv(b: Builder, x: Trunk) -> Trunk:
    c = b.width()
    return x.to(b.activation(b.conv(x.tensor, x.c, c, kernel=b.one_of(1, 3), dilation=b.one_of(1, 2))), c=c)


@family("image")
def conv_strided(b: Builder, x: Trunk) -> Trunk:
    c, stride = b.width(), 2 if min(x.h, x.w) >= 8 else 1
    made = b.batch_norm(b.conv(x.tensor, x.c, c, kernel=3, stride=stride), c)
    return x.to(b.op("Relu", made), c=c, h=x.h // stride, w=x.w // stride)


@family("image")
def conv_along_one_axis(b: Builder, x: Trunk) -> Trunk:
    """1 x 3 and 3 x 1, and a 1-d convolution over the flattened image."""
    c = b.width()
    rows = b.op("Conv", x.tensor, b.weight(c, x.c, 1, 3), pads=[0, 1, 0, 1])
    columns = b.op("Conv", rows, b.weight(c, c, 3, 1), auto_pad="SAME_UPPER")
    flat = b.reshape(b.activation(columns), c, x.length)
    line = b.op("Conv", flat, b.weight(c, c, 3), b.vector(c), pads=[1, 1])
    return x.to(b.reshape(line, c, x.h, x.w), c=c)


@family("image")
def conv_grouped(b: Builder, x: Trunk) -> Trunk:
    group = b.one_of(2, 4)
    x, c = b.multiple(x, group), b.width(group)
    return x.to(b.op("Relu", b.batch_norm(b.conv(x.tensor, x.c, c, kernel=3, group=group), c)), c=c)


@family("image")
def conv_depthwise(b: Builder, x: Trunk) -> Trunk:
    """Inverted residual: wider, one filter a channel (or two), narrower."""
    wide, times = b.width(), b.one_of(1, 1, 2)
    wider = b.op("Clip", b.batch_norm(b.conv(x.tensor, x.c, wide), wide), b.number(0), b.number(6))
    filtered = b.activation(b.conv(wider, wide, wide * times, kernel=3, group=wide))
    narrow = b.conv(filtered, wide * times, x.c)
    return x.to(b.op("Add", x.tensor, narrow) if b.flip() else narrow)


@family("image")
def conv_transposed(b: Builder, x: Trunk) -> Trunk:
    group = b.one_of(1, 1, 2)
    x, per_group = b.multiple(x, group), b.width() // group
    c, times = per_group * group, 2 if max(x.h, x.w) <= 4 else 1
    weights = [b.weight(x.c, per_group, 2, 2, fan=x.c), *([b.vector(c)] if b.flip() else [])]
    pads = [0, 0, 0, 0] if times == 2 else [0, 0, 1, 1]
    made = b.op("ConvTranspose", x.tensor, *weights, strides=[times] * 2, pads=pads, group=group)
    return x.to(b.activation(made), c=c, h=x.h * times, w=x.w * times)


@family("image")
def conv_shared(b: Builder, x: Trunk) -> Trunk:
    """One weight read twice."""
    weight, bias = b.weight(x.c, x.c, 1, 1), b.vector(x.c)
    first = b.activation(b.op("Conv", x.tensor, weight, bias))
    return x.to(b.op("Conv", first, weight, bias))


@family("image")
def conv_of_normalised_weight(b: Builder, x: Trunk) -> Trunk:
    """Weight normalisation that the graph computes: g v / |v|."""
    c = b.width()
    direction = b.weight(c, x.c, 1, 1)
    length = b.op("Sqrt", b.reduce("ReduceSum", b.op("Mul", direction, direction), [1, 2, 3]))
    scale = b.vector(c, 1, 1, 1, around=1)
    return x.to(b.op("Conv", x.tensor, b.op("Mul", b.op("Div", direction, length), scale), b.vector(c)), c=c)


@family("image")
def batch_norm(b: Builder, x: Trunk) -> Trunk:
    """Before the activation and before the convolution (as DenseNet has it)."""
    c = b.width()
    return x.to(b.conv(b.op("Relu", b.batch_norm(x.tensor, x.c)), x.c, c, kernel=3), c=c)


@family("image", since=21)  # onnx's checker refuses the operator of opset 18, which had a scale for each group
def group_norm(b: Builder, x: Trunk) -> Trunk:
    groups, c = b.one_of(2, 4), b.width(4)
    made = b.conv(x.tensor, x.c, c, kernel=3)
    normal = b.op("GroupNormalization", made, b.vector(c, around=1), b.vector(c), num_groups=groups)
    return x.to(b.op("Relu", normal), c=c)


@family("image")
def group_norm_by_instance_norm(b: Builder, x: Trunk) -> Trunk:
    """The form that torch exports: an InstanceNormalization between reshapes."""
    groups, c = 2, b.width(4)
    parts = b.reshape(b.conv(x.tensor, x.c, c), groups, -1)
    ones, zeros = b.constant(np.ones(groups, np.float32)), b.constant(np.zeros(groups, np.float32))
    normal = b.op("InstanceNormalization", parts, ones, zeros)
    whole = b.op("Reshape", normal, b.op("Shape", x.tensor)) if c == x.c else b.reshape(normal, c, x.h, x.w)
    scaled = b.op("Mul", whole, b.vector(c, 1, 1, around=1))
    return x.to(b.activation(b.op("Add", scaled, b.vector(c, 1, 1))), c=c)


@family("image")
def instance_norm(b: Builder, x: Trunk) -> Trunk:
    c = b.width()
    made = b.conv(x.tensor, x.c, c, kernel=3)
    return x.to(b.op("Relu", b.op("InstanceNormalization", made, b.vector(c, around=1), b.vector(c))), c=c)


@family("image")
def layer_norm_of_channels(b: Builder, x: Trunk) -> Trunk:
    """ConvNeXt's block: depthwise, channels last, LayerNormalization, two linear layers, a scale, channels first."""
    wide = b.width()
    last = b.transpose(b.conv(x.tensor, x.c, x.c, kernel=3, group=x.c), 0, 2, 3, 1)
    hidden = b.activation(b.linear(b.layer_norm(last, x.c), x.c, wide))
    scaled = b.op("Mul", b.linear(hidden, wide, x.c), b.vector(x.c, around=0.5))
    return x.to(b.op("Add", x.tensor, b.transpose(scaled, 0, 3, 1, 2)))


@family("image")
def lp_norm(b: Builder, x: Trunk) -> Trunk:
    c = b.width()
    unit = b.op("LpNormalization", b.conv(x.tensor, x.c, c), axis=1, p=2)
    return x.to(b.op("Mul", unit, b.vector(c, 1, 1, around=2)), c=c)


@family("image")
def residual(b: Builder, x: Trunk) -> Trunk:
    """Two convolutions beside the trunk, which is projected where the width changes."""
    c = b.one_of(x.c, b.width())
    first = b.op("Relu", b.batch_norm(b.conv(x.tensor, x.c, c, kernel=3), c))
    second = b.batch_norm(b.conv(first, c, c, kernel=3), c)
    both = [second, b.project(x, c).tensor]
    return x.to(b.op("Relu", b.op(b.one_of("Add", "Sum"), *(both if b.flip() else both[::-1]))), c=c)


@family("image")
def padded_shortcut(b: Builder, x: Trunk) -> Trunk:
    """Option A of ResNet: the trunk gets zeros for the channels that it lacks."""
    front, behind = b.one_of((2, 2), (0, 4), (1, 1))
    c = x.c + front + behind
    padded = b.op("Pad", x.tensor, b.ints(0, front, 0, 0, 0, behind, 0, 0))
    made = b.conv(b.activation(b.conv(x.tensor, x.c, c, kernel=3)), c, c)
    return b.project(x.to(b.op("Add", padded, made), c=c), b.width())


@family("image")
def gate_of_channels(b: Builder, x: Trunk) -> Trunk:
    """Squeeze and excite: by convolutions of the pooled image, or by linear layers."""
    small = b.one_of(2, 4)
    if b.flip():
        pooled = b.op("GlobalAveragePool", x.tensor) if b.flip() else b.reduce("ReduceMean", x.tensor, [2, 3])
        gate = b.conv(b.op("Relu", b.conv(pooled, x.c, small)), small, x.c)
    else:
        pooled = b.reduce("ReduceMean", x.tensor, [-1, -2], keepdims=0)
        flat = b.linear(b.op("Relu", b.linear(pooled, x.c, small)), small, x.c)
        gate = b.op("Unsqueeze", flat, b.ints(2, 3)) if b.flip() else b.reshape(flat, x.c, 1, 1)
    return x.to(b.op("Mul", x.tensor, b.op(b.one_of("Sigmoid", "HardSigmoid"), gate)))


@family("image")
def gate_of_places(b: Builder, x: Trunk) -> Trunk:
    """CBAM's gate: mean and maximum over channels, a convolution of the two."""
    both = b.op("Concat", *(b.reduce(what, x.tensor, [1]) for what in ("ReduceMean", "ReduceMax")), axis=1)
    return x.to(b.op("Mul", x.tensor, b.op("Sigmoid", b.conv(both, 2, 1, kernel=3))))


@family("image")
def broadcasts(b: Builder, x: Trunk) -> Trunk:
    """A scalar, a vector of channels, a map of places, a power."""
    scaled = b.op("Mul", b.op("Add", x.tensor, b.vector(x.c, 1, 1)), b.vector(1, x.c, 1, 1, around=1))
    scaled = b.op("Div", scaled, b.constant(np.exp(b.values((x.c, 1, 1), 10))))
    placed = b.op("Sub", b.op("Div", scaled, b.number(1.5)), b.vector(x.h, x.w))
    bounded = b.op("Max", b.op("Min", placed, b.number(3.0), b.vector(1, x.c, 1, 1, around=2)), b.number(-3.0))
    return x.to(b.op("Add", bounded, b.op("Pow", b.op("Abs", placed), b.number(0.5))))


@family("image")
def dense(b: Builder, x: Trunk) -> Trunk:
    """Two convolutions that each read all before them."""
    tensors, c = [x.tensor], x.c
    for _ in range(2):
        joined = b.op("Concat", *tensors, axis=1) if len(tensors) > 1 else tensors[0]
        tensors.append(b.conv(b.op("Relu", b.batch_norm(joined, c)), c, 4, kernel=3))
        c += 4
    return b.project(x.to(b.op("Concat", *tensors, axis=b.one_of(1, -3)), c=c), b.width())


@family("image")
def concat_of_slices(b: Builder, x: Trunk) -> Trunk:
    """Parts of two tensors, in another order."""
    c = b.width()
    other = b.activation(b.conv(x.tensor, x.c, c))
    parts = [b.slice(other, c // 2, c, 1), b.slice(x.tensor, 1, x.c, 1), b.slice(other, 0, c // 2, 1)]
    return b.project(x.to(b.op("Concat", *parts, axis=1), c=c + x.c - 1), b.width())


@family("image")
def split_gate(b: Builder, x: Trunk) -> Trunk:
    """One convolution makes values and gates."""
    c = b.width()
    values, gates = b.split(b.conv(x.tensor, x.c, 2 * c, kernel=3), [c, c], axis=1)
    return x.to(b.op("Mul", values, b.op("Sigmoid", gates)), c=c)


@family("image")
def split_chain(b: Builder, x: Trunk) -> Trunk:
    """Res2Net and C2f: parts that are convolved one after the other and joined with what passed by."""
    size = b.one_of(2, 3)
    first, second, third = b.split(b.activation(b.conv(x.tensor, x.c, 3 * size)), [size] * 3, axis=1)
    second = b.op("Relu", b.conv(second, size, size, kernel=3))
    third = b.op("Relu", b.conv(b.op("Add", second, third), size, size, kernel=3))
    return b.project(x.to(b.op("Concat", first, second, third, axis=1), c=3 * size), b.width())


@family("image")
def slice_of_channels(b: Builder, x: Trunk) -> Trunk:
    """A run of channels, or every second one."""
    x = b.multiple(x, 4)
    if b.flip():
        return b.project(x.to(b.slice(x.tensor, 0, x.c, 1, step=2), c=x.c // 2), b.width())
    return b.project(x.to(b.slice(x.tensor, 1, -1, 1), c=x.c - 2), b.width())


@family("image")
def slice_of_places(b: Builder, x: Trunk) -> Trunk:
    """Swin's shift (roll) along an axis."""
    axis, size = b.one_of((2, x.h), (3, x.w))
    rolled = b.op("Concat", b.slice(x.tensor, 1, size, axis), b.slice(x.tensor, 0, 1, axis), axis=axis)
    return x.to(b.op("Add", x.tensor, b.conv(rolled, x.c, x.c)))


@family("image")
def gather_of_channels(b: Builder, x: Trunk) -> Trunk:
    """Channels in another order, some of them twice or not at all."""
    order = b.numbers.permutation(x.c) if b.flip() else np.sort(b.numbers.integers(0, x.c, x.c))
    mixed = b.op("Gather", x.tensor, b.ints(*order), axis=1)
    return x.to(b.op("Add", mixed, b.conv(x.tensor, x.c, x.c)))


@family("image")
def pixel_shuffle(b: Builder, x: Trunk) -> Trunk:
    """DepthToSpace in either mode, or the same by a reshape."""
    c, h, w = b.one_of(2, 3), x.h, x.w
    wide = b.conv(x.tensor, x.c, 4 * c, kernel=3)
    if b.flip():
        made = b.op("DepthToSpace", wide, blocksize=2, mode=b.one_of("DCR", "CRD"))
    else:
        parts = b.transpose(b.reshape(wide, c, 2, 2, h, w), 0, 1, 4, 2, 5, 3)
        made = b.reshape(parts, c, 2 * h, 2 * w)
    made = b.op("AveragePool", made, kernel_shape=[2, 2], strides=[2, 2]) if max(h, w) > 4 else made
    times = 1 if max(h, w) > 4 else 2
    return b.project(x.to(made, c=c, h=h * times, w=w * times), b.width())


@family("image")
def space_to_depth(b: Builder, x: Trunk) -> Trunk:
    """By the operator, by slices as Focus does it, or back again where the image is small."""
    if b.flip():
        deep = b.op("SpaceToDepth", x.tensor, blocksize=2)
    else:
        rows = [b.slice(x.tensor, i, x.h, 2, step=2) for i in (0, 1)]
        deep = b.op("Concat", *(b.slice(row, i, x.w, 3, step=2) for row in rows for i in (0, 1)), axis=1)
    made = b.activation(b.conv(deep, 4 * x.c, 4))
    if min(x.h, x.w) >= 8:
        return x.to(made, c=4, h=x.h // 2, w=x.w // 2)
    up = b.op("DepthToSpace", b.conv(made, 4, 16), blocksize=2)
    return x.to(up, c=4)


@family("image")
def channel_shuffle(b: Builder, x: Trunk) -> Trunk:
    groups = b.one_of(2, 4)
    x = b.multiple(x, groups)
    grouped = b.conv(x.tensor, x.c, x.c, group=groups)
    parts = b.transpose(b.reshape(grouped, groups, x.c // groups, x.h, x.w), 0, 2, 1, 3, 4)
    return x.to(b.conv(b.reshape(parts, x.c, x.h, x.w), x.c, x.c, group=groups))


@family("image")
def windows(b: Builder, x: Trunk) -> Trunk:
    """Windows of 2 x 2 in the batch axis, linear layers along places and channels, and back."""
    rows, columns, c = x.h // 2, x.w // 2, b.width()
    last = b.transpose(x.tensor, 0, 2, 3, 1)
    parts = b.transpose(b.reshape(last, rows, 2, columns, 2, x.c), 0, 1, 3, 2, 4, 5)
    tokens = b.reshape_batch(parts, rows * columns, 4, x.c)
    mixed = b.transpose(b.linear(b.transpose(tokens, 0, 2, 1), 4, 4), 0, 2, 1)
    wide = b.activation(b.linear(mixed, x.c, c))
    back = b.transpose(b.reshape_batch(wide, 0, rows, columns, 2, 2, c), 0, 1, 3, 2, 4, 5)
    return x.to(b.transpose(b.reshape(back, x.h, x.w, c), 0, 3, 1, 2), c=c)


@family("image")
def resize(b: Builder, x: Trunk) -> Trunk:
    """Coarser by pooling, finer by Resize with scales or sizes, added to the trunk (a feature pyramid)."""
    small = b.conv(b.op("MaxPool", x.tensor, kernel_shape=[2, 2], strides=[2, 2]), x.c, x.c)
    scales = b.constant(np.array([1, 1, 2, 2], np.float32))
    mode = b.one_of({"mode": "nearest"}, {"mode": "linear", "coordinate_transformation_mode": "half_pixel"})
    if self_sized := b.flip():
        height_and_width = b.slice(b.op("Shape", x.tensor), 2, 4, 0)
        leading = b.slice(b.op("Shape", small), 0, 2, 0)
        sizes = b.op("Concat", leading, height_and_width, axis=0)
    reads = ["", "", sizes] if self_sized else ["", scales]
    return x.to(b.op("Add", x.tensor, b.op("Resize", small, *reads, **mode)))


@family("image")
def pooling(b: Builder, x: Trunk) -> Trunk:
    stride = 2 if min(x.h, x.w) >= 8 else 1
    op_type = b.one_of("MaxPool", "AveragePool", "LpPool")
    pooled = b.op(op_type, x.tensor, kernel_shape=[3, 3], strides=[stride] * 2, pads=[1, 1, 1, 1])
    scaled = b.op("Mul", pooled, b.number(0.4)) if op_type == "LpPool" else pooled
    return x.to(scaled, h=x.h // stride, w=x.w // stride)


@family("image")
def prelu(b: Builder, x: Trunk) -> Trunk:
    c = b.width()
    made = b.conv(x.tensor, x.c, c, kernel=3)
    return x.to(b.op("PRelu", made, b.vector(*b.one_of((c, 1, 1), (1,)), around=0.2)), c=c)


@family("image")
def where(b: Builder, x: Trunk) -> Trunk:
    c = b.width()
    left, right = b.conv(x.tensor, x.c, c), b.conv(x.tensor, x.c, c)
    condition = b.op(b.one_of("Greater", "LessOrEqual"), left, b.vector(c, 1, 1))
    return x.to(b.op("Where", condition, left, b.op("Mul", right, b.number(0.3))), c=c)


@family("image")
def quantized_conv(b: Builder, x: Trunk) -> Trunk:
    """Levels of activations (one scale) and of a weight (one scale for every channel)."""
    c = b.width()
    scales = np.exp(b.numbers.normal(-3, 0.3, c)).astype(np.float32)
    levels = b.constant(b.numbers.integers(-20, 21, (c, x.c, 3, 3)).astype(np.int8))
    points = b.constant(b.numbers.integers(-3, 4, c).astype(np.int8)) if b.flip() else b.constant(np.zeros(c, np.int8))
    weight = b.op("DequantizeLinear", levels, b.constant(scales / np.float32(x.c**0.5)), points, axis=0)
    bias = b.op("DequantizeLinear", b.constant(b.numbers.integers(-50, 51, c).astype(np.int32)), b.number(0.01))
    step = [b.number(0.03), b.constant(np.array(b.one_of(0, 11, 128), np.uint8))]
    rounded = b.op("DequantizeLinear", b.op("QuantizeLinear", x.tensor, *step), *step)
    return x.to(b.op("Relu", b.op("Conv", rounded, weight, bias, pads=[1] * 4)), c=c)


@family("image")
def quantized_channels(b: Builder, x: Trunk) -> Trunk:
    """Levels of activations with one scale for every channel."""
    c = b.width()
    step = [
        b.constant(np.exp(b.numbers.normal(-3, 0.2, c)).astype(np.float32)),
        b.constant(b.numbers.integers(-5, 5, c).astype(np.int8)),
    ]
    levels = b.op("QuantizeLinear", b.conv(x.tensor, x.c, c), *step, axis=1)
    # behind Neg, as ONNX Runtime mistakes the type of a DequantizeLinear of one channel that it moves past a Reshape
    return x.to(b.op("Neg", b.op("DequantizeLinear", levels, *step, axis=1)), c=c)


@family("image")
def passing(b: Builder, x: Trunk) -> Trunk:
    """Operators that pass data on: Identity, Dropout, Cast there and back."""
    same = b.op("Dropout", b.op("Identity", x.tensor), b.number(0.5))
    return x.to(b.op("Cast", b.op("Cast", same, to=TensorProto.DOUBLE), to=TensorProto.FLOAT))


@family("image")
def second_output(b: Builder, x: Trunk) -> Trunk:
    """A head of its own, as auxiliary classifiers are; or the trunk itself."""
    if b.flip():
        b.output(x.tensor, x.c, x.h, x.w)
    else:
        pooled = b.reduce("ReduceMean", b.conv(x.tensor, x.c, 6), [2, 3], keepdims=0)
        b.output(b.linear(pooled, 6, 3), 3)
    return x.to(b.conv(x.tensor, x.c, x.c))


@family("image")
def expand(b: Builder, x: Trunk) -> Trunk:
    """Pooled channels expanded to every place and joined, as ASPP does it."""
    pooled = b.op("GlobalMaxPool", b.conv(x.tensor, x.c, 4))
    if b.flip():
        wide = b.op("Tile", pooled, b.ints(1, 1, x.h, x.w))
    else:
        wide = b.op("Expand", pooled, b.ints(1, b.one_of(1, 4), x.h, x.w))
    return b.project(x.to(b.op("Concat", x.tensor, wide, axis=1), c=x.c + 4), b.width())


@family("image")
def tile_of_channels(b: Builder, x: Trunk) -> Trunk:
    """Channels repeated: all of them in turn (Tile), or each one (Expand and Reshape)."""
    c = b.one_of(2, 4)
    few = b.conv(x.tensor, x.c, c)
    if b.flip():
        many = b.op("Tile", few, b.ints(1, 2, 1, 1))
    else:
        each = b.op("Expand", b.op("Unsqueeze", few, b.ints(2)), b.ints(1, c, 2, x.h, x.w))
        many = b.reshape(each, 2 * c, x.h, x.w)
    return x.to(b.op("Mul", many, b.activation(b.conv(x.tensor, x.c, 2 * c))), c=2 * c)


@family("image")
def neighbours(b: Builder, x: Trunk) -> Trunk:
    """A norm over neighbouring channels: their order counts."""
    return x.to(b.conv(b.op("LRN", x.tensor, size=3, alpha=0.1), x.c, x.c))


@family("image")
def mean_variance_norm(b: Builder, x: Trunk) -> Trunk:
    """Each channel by itself, or all of them together; what is left of it has a mean other than zero."""
    made = b.conv(x.tensor, x.c, x.c)
    return x.to(b.op("Relu", b.op("MeanVarianceNormalization", made, axes=b.one_of([2, 3], [1, 2, 3]))))


@family("image")
def pad_of_places(b: Builder, x: Trunk) -> Trunk:
    """Mirrored at the borders, before a convolution that needs no padding."""
    if b.opset >= 18 and b.flip():
        padded = b.op("Pad", x.tensor, b.ints(1, 1, 1, 1), "", b.ints(2, 3), mode="reflect")
    else:
        padded = b.op("Pad", x.tensor, b.ints(0, 0, 1, 1, 0, 0, 1, 1), mode=b.one_of("reflect", "edge", "constant"))
    c = b.width()
    return x.to(b.op("Conv", padded, b.weight(c, x.c, 3, 3)), c=c)


@family("image")
def captured(b: Builder, x: Trunk) -> Trunk:
    """An If whose branches read the trunk from outside."""
    made = [f"{b.scope}then", f"{b.scope}else"]
    bodies = [
        helper.make_graph(
            [helper.make_node(op_type, [x.tensor], [name], name)], op_type, [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for op_type, name in zip(("Tanh", "Sigmoid"), made, strict=True)
    ]  # fmt: skip
    condition = b.constant(np.array(b.flip()))
    return x.to(b.conv(b.op("If", condition, then_branch=bodies[0], else_branch=bodies[1]), x.c, x.c))


@family("image")
def other_domain(b: Builder, x: Trunk) -> Trunk:
    """An operator of ONNX Runtime's own."""
    c = b.width()
    return x.to(b.op("QuickGelu", b.conv(x.tensor, x.c, c), domain="com.microsoft", alpha=1.7), c=c)


@family("image")
def response_norm(b: Builder, x: Trunk) -> Trunk:
    """Local response normalisation, written out as a moving average over channels as an axis of positions."""
    c, size = b.width(), b.one_of(2, 3, 5)
    made = b.conv(x.tensor, x.c, c)
    squares = b.op("Unsqueeze", b.op("Mul", made, made), b.ints(1))
    pads, attributes = [size // 2, (size - 1) // 2], {}
    if b.flip():
        squares = b.op("Pad", squares, b.ints(0, 0, pads[0], 0, 0, 0, 0, pads[1], 0, 0))
    else:
        attributes = {"pads": [pads[0], 0, 0, pads[1], 0, 0], "count_include_pad": 1}
    means = b.op("AveragePool", squares, kernel_shape=[size, 1, 1], **attributes)
    scale = b.op("Sqrt", b.op("Add", b.op("Squeeze", means, b.ints(1)), b.number(0.5)))
    return x.to(b.op("Div", made, scale), c=c)
