"""Fusing random networks of convolutions, branches, shared weights and extra outputs, against ONNX Runtime."""

import numpy as np
import onnx
import pytest
from handmade import model
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from random_graphs import random_graphs

import graphmod as gm
from graphmod.rewrite import why_not

IMAGE = ["n", 4, 6, 6]


class Builder:
    """A network in the making; ``shapes`` are the tensors so far."""

    def __init__(self, draw):
        self.draw, self.nodes, self.weights = draw, [], {}
        self.shapes = {"x": (4, 6, 6)}

    def pick(self, *values):
        return self.draw(st.sampled_from(values))

    def weight(self, *shape, low=-1.0, high=1.0):
        """Return a constant, an initializer or a Constant, now and then one that is used already."""
        same = [name for name, value in self.weights.items() if value.shape == shape and name.startswith(f"w{low}")]
        if same and self.pick(True, False, False):
            return same[-1]
        name = f"w{low}_{len(self.weights) + len(self.nodes)}"
        seed = self.draw(st.integers(0, 1000))
        value = np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)
        if self.pick(True, True, True, False):
            self.weights[name] = value
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value)))
        return name

    def op(self, op_type, reads, shape, **attributes):
        made = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, reads, [made], name=f"op{len(self.nodes)}", **attributes))
        self.shapes[made] = shape
        return made

    def tensor(self, like=None):
        fits = [name for name, shape in self.shapes.items() if like is None or shape == like]
        return self.draw(st.sampled_from(fits[-4:]))

    # -- steps

    def conv(self, x, width=None, same=False):
        channels, height, _ = self.shapes[x]
        kernel = self.pick(1, 1, 3) if height >= 3 else 1
        groups = self.pick(1, 1, 1, 2, channels) if channels % 2 == 0 else 1
        width = width or self.pick(2, 4, 4, 8) // groups * groups or groups
        dilation = self.pick(1, 1, 2) if kernel == 3 and height >= 5 else 1
        stride = 1 if same else self.pick(1, 1, 1, 2)
        reach = dilation * (kernel - 1)
        begin = self.pick(0, reach // 2, reach) if not same else self.pick(reach // 2, reach)
        end = self.pick(0, reach // 2) if not same else reach - begin
        size = (height + begin + end - reach - 1) // stride + 1
        attributes = {"pads": [begin, begin, end, end]} if begin + end or self.pick(True, False) else {}
        if same and dilation == 1 and self.pick(True, False, False):
            attributes = {"auto_pad": self.pick("SAME_UPPER", "SAME_LOWER")}
        scale = (channels // groups * kernel**2) ** -0.5
        reads = [x, self.weight(width, channels // groups, kernel, kernel, low=-2 * scale, high=2 * scale)]
        reads += [self.weight(width)] if self.pick(True, False) else []
        attributes |= {"strides": [stride] * 2, "dilations": [dilation] * 2, "group": groups}
        return self.op("Conv", reads, (width, size, size), **attributes)

    def norm(self, x):
        shape = self.shapes[x]
        n = shape[0]
        reads = [x, *(self.weight(n) for _ in range(3)), self.weight(n, low=0.3, high=2.0)]
        return self.op("BatchNormalization", reads, shape, epsilon=self.pick(1e-5, 0.1))

    def arithmetic(self, x):
        n = self.shapes[x][0]
        rank = len(self.shapes[x])
        shape = self.pick((), (1,), (n, *(1,) * (rank - 1)), (1, n, *(1,) * (rank - 1)))
        op_type = self.pick("Mul", "Add", "Sub", "Div")
        constant = self.weight(*shape, low=0.5, high=2.0)
        reads = [x, constant] if op_type == "Div" or self.pick(True, False) else [constant, x]
        return self.op(op_type, reads, self.shapes[x])

    def transposed(self, x):
        channels, height, _ = self.shapes[x]
        groups = self.pick(1, 2) if channels % 2 == 0 else 1
        reads = [x, self.weight(channels, 4 // groups, 2, 2, low=-0.5, high=0.5)]
        reads += [self.weight(4)] if self.pick(True, False) else []
        return self.op("ConvTranspose", reads, (4, height * 2, height * 2), strides=[2, 2], group=groups)

    def pad(self, x):
        channels, height, width = self.shapes[x]
        begin, end = self.pick(0, 1), self.pick(0, 1)
        sizes = np.array([0, 0, begin, begin, 0, 0, end, end])
        name = f"p{len(self.nodes)}"
        self.weights[name] = sizes
        mode = self.pick("constant", "constant", "edge")
        return self.op("Pad", [x, name], (channels, height + begin + end, width + begin + end), mode=mode)

    def pool(self, x):
        channels, height, _ = self.shapes[x]
        if height < 2:
            return self.norm(x)
        shape = (channels, height - 1, height - 1)
        return self.op("AveragePool", [x], shape, kernel_shape=[2, 2], count_include_pad=self.pick(0, 1))

    def branches(self, x):
        """Add up several linear maps of one tensor, in Adds or a Sum, a stranger among them."""
        shape = self.shapes[x]
        terms = [self.pick(self.norm, lambda t: self.conv(t, shape[0], same=True), lambda t: t)(x) for _ in range(3)]
        terms.append(self.tensor(shape))
        terms = self.draw(st.permutations(terms))
        if self.pick(True, False):
            return self.op("Sum", terms, shape)
        total = terms[0]
        for term in terms[1:]:
            total = self.op("Add", self.pick([total, term], [term, total]), shape)
        return total

    def concat(self, x):
        height = self.shapes[x][1]
        parts = [self.conv(x, same=True) for _ in range(2)]
        parts += [name for name in (self.tensor(),) if (self.shapes[name] or [0, 0])[1] == height]
        parts = self.draw(st.permutations(parts))
        width = sum(self.shapes[name][0] for name in parts)
        return self.op("Concat", parts, (width, height, height), axis=self.pick(1, -3))

    def layout(self, x):
        channels, height, width = self.shapes[x]
        if self.pick(True, False):
            y = self.op("Transpose", [x], None, perm=[0, 3, 2, 1])
            return self.op("Transpose", [y], (channels, height, width), perm=[0, 3, 2, 1])
        self.weights["flat"] = np.array([0, -1])
        name = f"s{len(self.nodes)}"
        self.weights[name] = np.array([-1, channels, height, width])
        return self.op("Reshape", [self.op("Reshape", [x, "flat"], None), name], (channels, height, width))

    def captured(self, x):
        """Add an If that reads the tensor from outside."""
        made = f"t{len(self.nodes)}"
        bodies = {
            branch: helper.make_graph(
                [helper.make_node(op_type, [x], [f"{made}{op_type}"])], op_type, [],
                [helper.make_tensor_value_info(f"{made}{op_type}", TensorProto.FLOAT, None)],
            )
            for branch, op_type in (("then_branch", "Tanh"), ("else_branch", "Relu"))
        }  # fmt: skip
        self.weights["flag"] = np.array(self.pick(True, False))
        self.nodes.append(helper.make_node("If", ["flag"], [made], **bodies))
        self.shapes[made] = self.shapes[x]
        return made


STEPS = (
    "conv", "conv", "conv", "norm", "norm", "arithmetic", "arithmetic", "transposed", "pad", "pool", "branches",
    "branches", "concat", "layout", "captured", "Relu", "Identity", "Dropout",
)  # fmt: skip


@st.composite
def networks(draw):
    """Draw a network of images; the last tensor and some inner ones are outputs."""
    build = Builder(draw)
    current = "x"
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=9)):
        x = current if draw(st.integers(0, 5)) else build.tensor()
        if build.shapes[x] is None or (step == "transposed" and build.shapes[x][1] > 12):
            continue
        made = getattr(build, step, None)
        current = build.op(step, [x], build.shapes[x]) if made is None else made(x)
    kept = [name for name, shape in build.shapes.items() if shape is not None and name != "x"]
    outputs = dict.fromkeys([kept[-1], *draw(st.lists(st.sampled_from(kept), max_size=1))])
    declared = {name: ["n", *build.shapes[name]] for name in outputs}
    return model(build.nodes, {"x": IMAGE}, declared, build.weights)


def difference(before, after, feeds):
    """Return the largest difference over the output's scale, by output."""
    a, b = before.run(feeds), after.run(feeds)
    assert list(a) == list(b)
    return {name: np.abs(a[name] - b[name]).max() / max(np.abs(a[name]).max(), 1e-3) for name in a}


def check(network):
    content = network.proto().SerializeToString(deterministic=True)
    found = gm.fuse(network)
    assert network.proto().SerializeToString(deterministic=True) == content
    assert len(found.operators) <= len(network.operators)
    assert gm.fuse(found) is found  # nothing is left to fuse
    feeds = {
        name: np.random.default_rng(1).normal(size=[2 if isinstance(d, str) else d for d in kind.shape]).astype("f4")
        for name, kind in network.inputs.items()
    }
    try:
        network.run(feeds)
    except gm.InvalidModelError as error:  # its optimiser puts two Pads into one AveragePool, and then refuses that
        assume("Pad should be smaller than kernel" not in str(error))
        raise
    errors = difference(network, found, feeds)
    assert max(errors.values()) <= 1e-5, errors
    assert all(one.reason for one in why_not(found))


@given(networks())
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_images(network):
    check(network)


@given(random_graphs())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_matrices(graph):
    check(gm.load(graph.proto))


@pytest.mark.slow
@given(networks())
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_images(network):
    check(network)
