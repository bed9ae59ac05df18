"""Measuring one signature: its operators in a session of their own, repeated until nothing else of the machine counts.

Convolutions on the CPU run in a blocked layout, which ONNX Runtime enters and leaves once a chain of them. Here each
runs in that layout too, without the reordering before and after it: a whole network pays for few of these.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns, process_time_ns
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, helper, numpy_helper

from graphmod.errors import InvalidDataError, InvalidModelError
from graphmod.model import run_bound
from graphmod.model.session import open_session
from graphmod.probe.operator_latency.signature import Operand, Signature, Step

Array = NDArray[np.generic]

ROUND_NS = 300_000
ROUNDS = 5
FEWEST = 2
LONGEST_NS = 20_000_000
"""A round lasts about so long or one run, whichever is longer; there are so many, or fewer once they took that long."""

LARGE = 1 << 17
CACHE = 40 << 20
MOST_COPIES = 16
"""Weights of so many bytes count as large; copies of them fill so many bytes, or there are so many of them."""

BLOCKED = "com.microsoft.nchwc"
REORDERED = frozenset({"Conv", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"})
"""Operators that run in the blocked layout even where nothing around them does."""


def timed(signature: Signature, threads: int = 1) -> tuple[float, float]:
    """Return what a run of a signature takes now, in microseconds, and one in between that computes nothing.

    The least of some rounds, as whatever else the machine does only adds. Weights are random; copies of large ones take
    turns, so that they are read from memory, as in a network of many.

    Raises
    ------
    InvalidModelError, InvalidDataError
        ONNX Runtime cannot load the operators, or they fail.
    """
    rng = np.random.default_rng(0)
    try:
        proto = _in_network(_proto(signature, rng), threads)
        copies = [_bound(open_session(proto, None, threads), rng) for _ in range(_n_copies(signature))]
        run, idle = _least([_in_turn(copies), _copies(1, threads)], threads)
    except (InvalidModelError, InvalidDataError) as error:
        raise type(error)(f"the latency of {signature} cannot be measured: {error}") from error
    return run, idle


@cache
def launch(threads: int) -> float:
    """Return what one operator more costs a run that computes nothing, in microseconds."""
    one, nine = _least([_copies(1, threads), _copies(9, threads)], threads, rounds=4 * ROUNDS)
    return max(0.0, nine - one) / 8


def _n_copies(signature: Signature) -> int:
    """Return how many copies of an operator run in turn, so that none finds its weights in the cache."""
    size = sum(np.dtype(one.dtype).itemsize * prod(one.shape) for one in signature.operands if one.constant)
    return min(MOST_COPIES, -(-CACHE // size)) if size >= LARGE else 1


def _in_turn(runs: Sequence[Callable[[], None]]) -> Callable[[], None]:
    """Return a run that is the next of several each time; all have run once."""
    for run in runs:
        run()
    turns = cycle(runs)
    return lambda: next(turns)()


def _proto(signature: Signature, rng: np.random.Generator) -> ModelProto:
    """Return a model of the operators, constant operands as initializers, the others as inputs."""
    nodes = []
    for step in signature.steps:
        inputs, outputs = (["" if i < 0 else f"t{i}" for i in some] for some in (step.inputs, step.outputs))
        node = helper.make_node(step.op_type, inputs, outputs, domain=step.domain)
        node.attribute.extend(AttributeProto.FromString(bytes.fromhex(one)) for one in step.attributes)
        nodes.append(node)
    named = {f"t{i}": one for i, one in enumerate(signature.operands)}
    initializers = [numpy_helper.from_array(_filled(o, rng), name) for name, o in named.items() if o.constant]
    fed = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(one.dtype)), one.shape)
        for name, one in named.items()
        if not one.constant
    ]
    given = [onnx.ValueInfoProto(name=f"t{i}") for i in signature.results]
    graph = helper.make_graph(nodes, "signature", fed, given, initializers)
    opsets = [helper.make_opsetid(*one) for one in signature.opsets]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets)


def _filled(operand: Operand, rng: np.random.Generator) -> Array:
    """Return values for an operand: floats around 1, so that no denormal, root or logarithm slows anything down."""
    dtype = np.dtype(operand.dtype)
    if operand.values is not None:
        return np.array(operand.values, dtype).reshape(operand.shape)
    if dtype.kind in "iub":  # 0 is an index into anything
        return rng.integers(0, 100 if dtype.itemsize == 1 and dtype.kind != "b" else 1, operand.shape).astype(dtype)
    few = rng.uniform(0.5, 1.5, min(prod(operand.shape), 1 << 14)).astype(dtype)
    return np.resize(few, operand.shape)


def _in_network(proto: ModelProto, threads: int) -> ModelProto:
    """Return the operators as ONNX Runtime computes them within a network: in blocks, without reordering."""
    if not any(node.op_type in REORDERED for node in proto.graph.node):
        return proto
    with TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        open_session(proto, None, threads, written=written)
        optimized = onnx.load(written)
    if not any(node.op_type.startswith("Reorder") for node in optimized.graph.node):
        return proto
    _drop_reordering(optimized.graph)
    return optimized


def _drop_reordering(graph: GraphProto) -> None:
    """Make blocked tensors the inputs and outputs of an optimised graph, in place of what is reordered."""
    inputs = {value.name: value for value in graph.input}
    outputs = {value.name: value for value in graph.output}
    kept = []
    for node in graph.node:
        if node.op_type == "ReorderInput" and node.input[0] in inputs:
            blocked = graph.input.add()
            blocked.CopyFrom(inputs[node.input[0]])
            blocked.name = node.output[0]
            channels = blocked.type.tensor_type.shape.dim[1]
            channels.dim_value += -channels.dim_value % _block_size()
        elif node.op_type == "ReorderOutput" and node.output[0] in outputs:
            outputs[node.output[0]].CopyFrom(onnx.ValueInfoProto(name=node.input[0]))
        else:
            kept.append(node)
    read = {name for node in kept for name in node.input}
    left = [value for value in graph.input if value.name in read]
    del graph.node[:], graph.value_info[:], graph.input[:]
    graph.node.extend(kept)
    graph.input.extend(left)


@cache
def _block_size() -> int:
    """Return to a multiple of how many channels ONNX Runtime's blocked layout rounds up here."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy")
    graph = helper.make_graph([helper.make_node("ReorderInput", ["x"], ["y"], domain=BLOCKED)], "block", [x], [y])
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(BLOCKED, 1)]
    session = open_session(helper.make_model(graph, ir_version=8, opset_imports=opsets), None, 1)
    size: int = session.run(None, {"x": np.ones((1, 4, 1, 1), np.float32)})[0].shape[1]
    return size


def _bound(session: ort.InferenceSession, rng: np.random.Generator) -> Callable[[], None]:
    binding = session.io_binding()
    for one in session.get_inputs():
        kind = onnx.TensorProto.DataType.Value(one.type[len("tensor(") : -1].upper())
        array = _filled(Operand(helper.tensor_dtype_to_np_dtype(kind).name, tuple(one.shape)), rng)
        bare: Any = array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")
        binding.bind_ortvalue_input(one.name, ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bare, kind))
    for one in session.get_outputs():
        binding.bind_output(one.name, "cpu")
    return lambda: run_bound(session, binding)


@cache
def _copies(n: int, threads: int) -> Callable[[], None]:
    """Return a run of a model that copies one number some times: what every run costs."""
    steps = tuple(Step("Identity", "", (), (i,), (i + 1,)) for i in range(n))
    proto = _proto(Signature((Operand("float32", (1,)),), steps, (n,), (("", 13),)), np.random.default_rng(0))
    return _bound(open_session(proto, None, threads, as_it_is=True), np.random.default_rng(0))


def _least(runs: Sequence[Callable[[], None]], threads: int, rounds: int = ROUNDS) -> list[float]:
    """Return the microseconds that each run takes: the least of the means of some rounds over all of them."""
    clock = process_time_ns if threads == 1 else perf_counter_ns

    def mean(run: Callable[[], None], repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            run()
        return (clock() - start) / repeats

    collecting = gc.isenabled()
    gc.disable()
    try:
        repeats = [max(1, round(ROUND_NS / max(1.0, min(mean(run, 1), mean(run, 1))))) for run in runs]
        found: list[list[float]] = []
        spent = 0.0
        while len(found) < FEWEST or (len(found) < rounds and spent < LONGEST_NS):
            found.append([mean(run, n) for run, n in zip(runs, repeats, strict=True)])
            spent += float(np.dot(found[-1], repeats))
    finally:
        if collecting:
            gc.enable()
    return [min(times) / 1000 for times in zip(*found, strict=True)]
