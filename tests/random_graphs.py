"""Random graphs with a record, kept apart from graphmod, of which tensor is made from which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

KINDS = ("chain", "chain", "matmul", "residual", "concat", "split", "side", "shape", "capture", "unused")


@dataclass(frozen=True)
class RandomGraph:
    """A model of two inputs ``x`` and ``side`` and an output ``out``.

    Parameters
    ----------
    proto : ModelProto
    links : tuple of (str, str, str)
        Data of ``x``: tensor read, tensor made, name of the operator; in topological order.
    """

    proto: ModelProto
    links: tuple[tuple[str, str, str], ...]

    def between(self, entry: str, exit_: str, without: str | None = None) -> set[str]:
        """Return the operators on paths from one tensor to another that avoid a third."""
        after, before = {entry}, {exit_}
        for origin, made, _ in self.links:
            if origin in after and made != without:
                after.add(made)
        for origin, made, _ in reversed(self.links):
            if made in before and origin != without:
                before.add(origin)
        return {name for origin, made, name in self.links if {origin, made} <= after & before - {without}}

    @property
    def cuts(self) -> list[str]:
        """The tensors without which nothing of ``x`` reaches ``out``, in order: the definition, taken literally."""
        tensors = list(dict.fromkeys(made for _, made, _ in self.links))
        inner = [t for t in tensors if t != "out" and not self.between("x", "out", without=t)]
        return [*inner, "out"]

    def feeds(self, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {name: rng.normal(size=(2, 4)).astype(np.float32) for name in ("x", "side")}


class _Builder:
    def __init__(self):
        self.nodes, self.weights, self.links = [], [], []
        self.widths = {"x": 4}

    def op(self, op_type: str, reads: list[str], width: int, n_outputs: int = 1, **attributes) -> str:
        number = len(self.nodes)
        made = [f"t{number}_{i}" for i in range(n_outputs)]
        self.nodes.append(helper.make_node(op_type, reads, made, f"op{number}", **attributes))
        data = [name for name in dict.fromkeys(reads) if name in self.widths]
        self.record(data, made, f"op{number}", width)
        return made[0]

    def record(self, data: list[str], made: list[str], name: str, width: int) -> None:
        for tensor in made:
            self.links += [(origin, tensor, name) for origin in data]
            self.widths[tensor] = width

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def matmul(self, tensor: str, width: int) -> str:
        rng = np.random.default_rng(len(self.nodes))
        weight = self.weight((rng.normal(size=(self.widths[tensor], width)) / 2).astype(np.float32))
        return self.op("MatMul", [tensor, weight], width)

    def reshaped_by_its_own_shape(self, tensor: str) -> str:
        number = len(self.nodes)
        self.nodes.append(helper.make_node("Shape", [tensor], [f"shape{number}"], f"shape_op{number}"))
        return self.op("Reshape", [tensor, f"shape{number}"], self.widths[tensor])

    def captured(self, tensor: str) -> str:
        """Add an If whose branches read the tensor from outside."""
        number = len(self.nodes)
        bodies = [
            helper.make_graph(
                [helper.make_node(op_type, [tensor], [f"b{number}_{op_type}"])],
                op_type,
                [],
                [helper.make_tensor_value_info(f"b{number}_{op_type}", TensorProto.FLOAT, None)],
            )
            for op_type in ("Tanh", "Sigmoid")
        ]
        made = f"t{number}_0"
        condition = self.weight(np.array(True))
        branches = {"then_branch": bodies[0], "else_branch": bodies[1]}
        self.nodes.append(helper.make_node("If", [condition], [made], f"op{number}", **branches))
        self.record([tensor], [made], f"op{number}", self.widths[tensor])
        return made


@st.composite
def random_graphs(draw: st.DrawFn) -> RandomGraph:
    """Draw chains, residual connections, concat and split, a second input, captures and branches nobody reads."""
    build = _Builder()
    current = "x"
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=9)):
        earlier = draw(st.sampled_from(list(build.widths)[-5:]))
        width = build.widths[current]
        match kind:
            case "chain":
                current = build.op(draw(st.sampled_from(["Tanh", "Sigmoid", "Neg"])), [current], width)
            case "matmul":
                current = build.matmul(current, 4)
            case "residual":
                same = earlier if build.widths[earlier] == width else build.matmul(earlier, width)
                current = build.op("Add", [current, same], width)
            case "concat" if width + build.widths[earlier] <= 16:
                current = build.op("Concat", [current, earlier], width + build.widths[earlier], axis=1)
            case "split" if width % 2 == 0:
                half = build.op("Split", [current], width // 2, n_outputs=2, axis=1)
                current = draw(st.sampled_from([half, half[:-1] + "1"]))
            case "side" if width == 4:
                current = build.op("Mul", [current, "side"], width)
            case "shape":
                current = build.reshaped_by_its_own_shape(current)
            case "capture":
                current = build.captured(current)
            case "unused":
                build.op("Exp", [current], width)
    last = build.op("Softmax", [current], build.widths[current], axis=-1)
    build.nodes[-1].output[0] = "out"
    links = tuple((origin, "out" if made == last else made, name) for origin, made, name in build.links)
    graph = helper.make_graph(
        build.nodes, "random",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "side")],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", build.widths[current]])],
        build.weights,
    )  # fmt: skip
    return RandomGraph(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), links)
