"""Random small networks with all that edits must carry along: subgraphs, functions, shared weights, annotations."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

SIZE = 6
SHAPE = ("batch", 4, SIZE, SIZE)

IMAGE_KINDS = (
    "relu", "conv", "conv", "norm", "residual", "residual", "concat", "split", "side", "pad", "scale", "dropout",
    "identity", "transposes", "if", "function", "repeat", "repeat", "constant", "twin", "captured weight", "cast",
)  # fmt: skip


class Builder:
    """Operators and initializers in the making; ``images`` maps tensors of shape (batch, c, 6, 6) to their channels."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.operators: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.images = {"x": 4, "side": 4}
        self.uses_function = False

    def weight(self, *shape: int, name: str = "w") -> str:
        scale = 1 / np.sqrt(max(1, np.prod(shape[1:])))
        return self.constant((self.rng.normal(size=shape) * scale).astype(np.float32), name)

    def constant(self, value: np.ndarray, name: str = "c") -> str:
        unique = f"{name}{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), unique))
        return unique

    def op(self, op_type: str, reads: list[str], n_outputs: int = 1, **attributes) -> list[str]:
        number = len(self.operators)
        made = [f"t{number}_{i}" for i in range(n_outputs)]
        operator = helper.make_node(op_type, reads, made, f"/stage{number // 4}/{op_type}_{number}", **attributes)
        operator.doc_string = f"operator {number}"
        operator.metadata_props.add(key="origin", value=f"line {number}")
        self.operators.append(operator)
        return made

    def image(self, op_type: str, reads: list[str], channels: int, **attributes) -> str:
        made = self.op(op_type, reads, **attributes)[0]
        self.images[made] = channels
        return made

    def conv(
        self, tensor: str, channels: int, kernel: int, *, bias: bool, group: int = 1, weight: str | None = None
    ) -> str:
        kernel_weight = weight or self.weight(channels, self.images[tensor] // group, kernel, kernel)
        reads = [tensor, kernel_weight, *([self.weight(channels)] if bias else [])]
        pads = [kernel // 2] * 4
        return self.image("Conv", reads, channels, kernel_shape=[kernel] * 2, pads=pads, group=group)

    def norm(self, tensor: str) -> str:
        c = self.images[tensor]
        names = [self.weight(c), self.weight(c), self.weight(c)]
        variance = self.constant((self.rng.random(c) + 0.5).astype(np.float32))
        return self.image("BatchNormalization", [tensor, *names, variance], c, epsilon=1e-3)

    def branches(self, tensor: str, weight: str | None) -> str:
        """Add an If whose branches read the tensor, and possibly a weight, from outside."""
        number = len(self.operators)
        bodies = []
        for op_type in ("Tanh", "Relu"):
            out = helper.make_tensor_value_info(f"b{number}_{op_type}", TensorProto.FLOAT, None)
            inner = [helper.make_node(op_type, [tensor], [f"i{number}_{op_type}"], f"inner_{number}_{op_type}")]
            second = weight or f"i{number}_{op_type}"
            inner.append(helper.make_node("Add", [f"i{number}_{op_type}", second], [out.name]))
            bodies.append(helper.make_graph(inner, f"{op_type}_{number}", [], [out]))
        condition = self.constant(np.array(bool(number % 2)))
        attributes = {"then_branch": bodies[0], "else_branch": bodies[1]}
        return self.image("If", [condition], self.images[tensor], **attributes)


@st.composite
def random_models(draw: st.DrawFn) -> ModelProto:
    """Draw convolutional networks of two inputs and one to three outputs, with everything a file may hold."""
    build = Builder(draw(st.integers(0, 2**16)))
    current = "x"
    for kind in draw(st.lists(st.sampled_from(IMAGE_KINDS), min_size=1, max_size=8)):
        current = _add(draw, build, kind, current)
    inner = draw(st.lists(st.sampled_from(list(build.images)[2:]), max_size=2, unique=True))
    pooled = build.op("GlobalAveragePool", [current])[0]
    flat = build.op("Flatten", [pooled], axis=1)[0]
    if draw(st.booleans()):
        last = build.op("Gemm", [flat, build.weight(3, build.images[current]), build.weight(3)], transB=1)[0]
    else:
        product = build.op("MatMul", [flat, build.weight(build.images[current], 3)])[0]
        last = build.op("Add", [product, build.weight(3)])[0]
    build.operators[-1].output[0] = "out"
    assert last.startswith("t")
    return _model(draw, build, inner)


def _add(draw: st.DrawFn, build: Builder, kind: str, current: str) -> str:
    c = build.images[current]
    earlier = draw(st.sampled_from(list(build.images)[-4:]))
    match kind:
        case "relu":
            return build.image(draw(st.sampled_from(["Relu", "Tanh", "Sigmoid"])), [current], c)
        case "conv":
            group = draw(st.sampled_from([1, 1, c]))
            channels = c if group > 1 else draw(st.sampled_from([4, 4, 8]))
            return build.conv(current, channels, draw(st.sampled_from([1, 3])), bias=draw(st.booleans()), group=group)
        case "norm":
            return build.norm(current)
        case "residual":
            other = earlier if build.images[earlier] == c else build.conv(earlier, c, 1, bias=True)
            return build.image("Add", [current, other], c)
        case "concat" if c + build.images[earlier] <= 16:
            return build.image("Concat", [current, earlier], c + build.images[earlier], axis=1)
        case "split" if c % 2 == 0:
            halves = build.op("Split", [current, build.constant(np.array([c // 2, c // 2]))], 2, axis=1)
            build.images.update(dict.fromkeys(halves, c // 2))
            return draw(st.sampled_from(halves))
        case "side" if c == 4:
            return build.image("Mul", [current, "side"], c)
        case "pad":
            padded = build.op("Pad", [current, build.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))])[0]
            reads = [padded, build.weight(c, c, 3, 3)]
            return build.image("Conv", reads, c, kernel_shape=[3, 3])
        case "scale":
            factor = build.constant(np.float32(build.rng.random((1, c, 1, 1)) + 0.5))
            return build.image(draw(st.sampled_from(["Mul", "Add", "Sub"])), [current, factor], c)
        case "dropout":
            return build.image("Dropout", [current], c)
        case "identity":
            return build.image("Identity", [current], c)
        case "transposes":
            turned = build.op("Transpose", [current], perm=[0, 2, 3, 1])[0]
            return build.image("Transpose", [turned], c, perm=[0, 3, 1, 2])
        case "if":
            return build.branches(current, None)
        case "captured weight":
            return build.branches(current, build.weight(1, c, 1, 1))
        case "function":
            build.uses_function = True
            return build.image("Swish", [current], c, domain="test.local")
        case "repeat":
            for _ in range(2):
                current = build.image("Relu", [build.norm(build.conv(current, c, 3, bias=False))], c)
            return current
        case "constant":
            value = numpy_helper.from_array(build.rng.normal(size=(1, c, 1, 1)).astype(np.float32))
            return build.image("Add", [current, build.op("Constant", [], value=value)[0]], c)
        case "twin":
            weight = build.weight(c, c, 3, 3)
            first = build.conv(current, c, 3, bias=False, weight=weight)
            return build.conv(first, c, 3, bias=False, weight=weight)
        case "cast":
            double = build.op("Cast", [current], to=TensorProto.DOUBLE)[0]
            return build.image("Cast", [double], c, to=TensorProto.FLOAT)
    return build.image("Relu", [current], c)


def _model(draw: st.DrawFn, build: Builder, inner: list[str]) -> ModelProto:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "side")]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 3])]
    shapes = {name: ["batch", channels, SIZE, SIZE] for name, channels in build.images.items()}
    outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in inner]
    graph = helper.make_graph(build.operators, "random", inputs, outputs, build.initializers, "a random graph")
    if draw(st.booleans()):
        shown = [name for name in list(build.images)[2:] if name not in inner]
        graph.value_info.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, shapes[n]) for n in shown)
    opsets = [helper.make_opsetid("", 17)]
    functions = []
    if build.uses_function:
        opsets.append(helper.make_opsetid("test.local", 1))
        body = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["b"])]
        functions.append(helper.make_function("test.local", "Swish", ["a"], ["b"], body, opsets[:1]))
    model = helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=functions, producer_name="tests")
    helper.set_model_props(model, {"author": "someone"})
    return model


def feeds(seed: int = 0, batch: int = 2) -> dict[str, np.ndarray]:
    """Return random values for both inputs."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(batch, *SHAPE[1:])).astype(np.float32) for name in ("x", "side")}
