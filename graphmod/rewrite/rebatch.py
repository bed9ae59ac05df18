"""Making the batch dimension dynamic, or fixing it."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, numpy_helper

from graphmod.data import fixed_batch
from graphmod.errors import InvalidModelError, RefusedError
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
    if old is None and any(not kind.shape or isinstance(kind.shape[0], int) for kind in model.inputs.values()):
        raise RefusedError("the inputs have no batch dimension in common along axis 0")
    proto = model.editable()
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in model.inputs or value.name in model.outputs:
            _set_batch(value, batch)
    del proto.graph.value_info[:]
    if old is not None:
        _free_reshapes(model, proto, old)
        _check_freed(proto, old, batch)
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
    readers: dict[str, list[NodeProto]] = {}
    for operator, reads in zip(proto.graph.node, model.reads, strict=True):
        for name in reads:
            readers.setdefault(name, []).append(operator)
    constants = (op for op in proto.graph.node if op.op_type == "Constant")
    made = {op.output[0]: a.t for op in constants for a in op.attribute if a.name == "value"}
    for tensor_name, tensor in (*made.items(), *((tensor.name, tensor) for tensor in proto.graph.initializer)):
        reshapes = readers.get(tensor_name, [])
        if not reshapes or not all(_reshapes_batch(model, operator, tensor_name, old) for operator in reshapes):
            continue
        shape = np.array(numpy_helper.to_array(tensor) if tensor_name in made else model.initializer(tensor_name))
        if shape.size and shape[0] == old:
            shape[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
            for operator in reshapes:
                _copy_zeros(operator)


def _reshapes_batch(model: Model, operator: NodeProto, target: str, old: int) -> bool:
    source = model.tensors.get(operator.input[0]) if operator.op_type == "Reshape" else None
    return bool(source and source.shape and source.shape[0] == old and operator.input[1] == target)


def _copy_zeros(operator: NodeProto) -> None:
    """Let a 0 in the target shape mean the input's size, whatever ``allowzero`` said before."""
    for i in reversed(range(len(operator.attribute))):
        if operator.attribute[i].name == "allowzero":
            del operator.attribute[i]


def _check_freed(proto: ModelProto, old: int, batch: int | str) -> None:
    bare = ModelProto()
    bare.CopyFrom(proto)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = Model(bare).tensors
    for value in proto.graph.output:
        kind = inferred.get(value.name)
        if kind and kind.shape and kind.shape[0] == old != batch:
            raise InvalidModelError(
                f"output '{value.name}' still has {old} samples; a constant in the graph other than a Reshape's holds "
                "on to them"
            )
