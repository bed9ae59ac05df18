"""A region of a graph as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import ValueInfoProto

from graphmod.errors import RefusedError
from graphmod.model import Model, copy_without


def subgraph(model: Model, inputs: Sequence[str], outputs: Sequence[str]) -> Model:
    """Return the part of a model that computes ``outputs`` from ``inputs``, with the names and weights it has there.

    Graph inputs that the part still needs (context such as masks, or shapes of the primary input) stay its inputs.

    Parameters
    ----------
    model : Model
    inputs, outputs : sequence of str
        Names of tensors.

    Raises
    ------
    RefusedError
        A tensor does not exist, or its type is unknown.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> block = gm.blocks(m)["layer1.0"]
    >>> list(subgraph(m, [block.entry], [block.exit]).inputs) == [block.entry]
    True
    """
    whole = model._proto
    known = {*model.producer, *model.inputs, *model.initializers}
    for name in (*inputs, *outputs):
        if name not in known:
            raise RefusedError(f"the model has no tensor named '{name}'")
    cut = set(inputs)
    needed: set[int] = set()
    read: set[str] = set(outputs)
    pending = [name for name in outputs if name not in cut]
    while pending:
        position = model.producer.get(pending.pop())
        if position is None or position in needed:
            continue
        needed.add(position)
        fresh = set(model.reads[position]) - read
        read |= fresh
        pending.extend(name for name in fresh if name not in cut)
    part = copy_without(whole, "node", "initializer", "sparse_initializer", "input", "output", "value_info")
    graph = part.graph
    graph.node.extend(model.operators[position] for position in sorted(needed))
    for operator in graph.node:  # needed for another of its outputs: the one that is an input now gets another name
        for i, name in enumerate(operator.output):
            if name in cut:
                operator.output[i] = f"{name}/cut"
    graph.initializer.extend(t for t in whole.graph.initializer if t.name in read)
    graph.sparse_initializer.extend(t for t in whole.graph.sparse_initializer if t.values.name in read)
    graph.input.extend(_value(model, name) for name in inputs)
    graph.input.extend(v for v in whole.graph.input if v.name in read and v.name not in cut)
    graph.output.extend(_value(model, name) for name in outputs)
    inner = {tensor for op in graph.node for tensor in op.output} - set(outputs)
    graph.value_info.extend(v for v in whole.graph.value_info if v.name in inner)
    return Model(part, model.folder)


def _value(model: Model, name: str) -> ValueInfoProto:
    for value in (*model.proto_inputs, *model.proto_outputs):
        if value.name == name:
            return value
    kind = model.tensors.get(name)
    if kind is None or kind.dtype is None:
        raise RefusedError(f"the type of tensor '{name}' is unknown, so it cannot become an input or output")
    elem = onnx.helper.np_dtype_to_tensor_dtype(kind.dtype)
    return onnx.helper.make_tensor_value_info(name, elem, kind.shape)
