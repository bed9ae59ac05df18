"""Making the batch dimension dynamic, or fixing it."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, ValueInfoProto, numpy_helper

from graphmod.data import fixed_batch
from graphmod.errors import RefusedError
from graphmod.model import Model


def rebatch(model: Model, batch: int | str = "batch") -> Model:
    """Give the batch dimension of every input and output another size, or a name to make it dynamic.

    Constants that fix the batch in Reshape operators are set to copy it from their input.

    Parameters
    ----------
    model : Model
    batch : int or str
        A number of samples, or the name of a dynamic dimension.

    Raises
    ------
    RefusedError
        The inputs have no batch dimension in common.
    InvalidModelError
        Something else in the graph holds on to the old batch.
    """
    old = fixed_batch(model)
    if (
        old is None
        and isinstance(batch, str)
        and any(not kind.shape or isinstance(kind.shape[0], int) for kind in model.inputs.values())
    ):
        raise RefusedError("the inputs have no batch dimension in common along axis 0")
    proto = model.editable()
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in model.inputs or value.name in model.outputs:
            _set_batch(value, batch)
    del proto.graph.value_info[:]
    if old is not None:
        _free_reshapes(model, proto, old)
    return model.derive(proto)


def _set_batch(value: ValueInfoProto, batch: int | str) -> None:
    shape = value.type.tensor_type.shape
    if shape.dim:
        if isinstance(batch, int):
            shape.dim[0].dim_value = batch
        else:
            shape.dim[0].dim_param = batch


def _free_reshapes(model: Model, proto: ModelProto, old: int) -> None:
    """Let every Reshape whose constant starts with the old batch copy it from its input instead."""
    targets = {}
    for operator in proto.graph.node:
        if operator.op_type != "Reshape" or operator.input[1] not in model.initializers:
            continue
        source = model.tensors.get(operator.input[0])
        shape = np.array(model.initializer(operator.input[1]))
        if shape.size and shape[0] == old and source and source.shape and source.shape[0] == old:
            targets[operator.input[1]] = np.concatenate([[0], shape[1:]]).astype(np.int64)
    for tensor in proto.graph.initializer:
        if tensor.name in targets:
            tensor.CopyFrom(numpy_helper.from_array(targets[tensor.name], tensor.name))
