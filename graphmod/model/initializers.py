"""Initializers: their values, wherever the file keeps them, without a copy until one is needed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from graphmod.errors import InvalidModelError

Array = NDArray[np.generic]

LARGE = 1024
"""Scalars above which shape inference does without an initializer's value."""

_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}

_VALUE_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "uint64_data",
    "double_data",
    "string_data",
    "external_data",
    "data_location",
)


def tensor_type(tensor: TensorProto) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    """Return dtype and shape of an initializer without reading its values."""
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)


def n_stored_bytes(tensor: TensorProto) -> int:
    """Return how many bytes an initializer's values take as raw data; types below eight bits are packed."""
    n_values = int(math.prod(tensor.dims))
    if tensor.data_type in _BITS:
        return -(-n_values * _BITS[tensor.data_type] // 8)
    return n_values * int(tensor_type(tensor)[0].itemsize)


def values(tensor: TensorProto, folder: Path | None) -> Array:
    """Return an initializer's values, read-only; external ones stay memory-mapped.

    Raises
    ------
    InvalidModelError
        The file with the values is missing or too short.
    """
    if not uses_external_data(tensor):
        array = numpy_helper.to_array(tensor)
        array.flags.writeable = False
        return array
    path, offset, length = external_place(tensor, folder)
    dtype, shape = tensor_type(tensor)
    if dtype.itemsize * int(np.prod(shape)) != length:  # 4-bit and string tensors are packed: no plain view of them
        return numpy_helper.to_array(tensor, base_dir=str(folder))
    if length == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def external_place(tensor: TensorProto, folder: Path | None) -> tuple[Path, int, int]:
    """Return file, offset and length in bytes of an external initializer, once it is known to be there.

    Raises
    ------
    InvalidModelError
        The file is missing, outside the model's folder, or too short.
    """
    if folder is None:
        raise InvalidModelError(
            f"initializer '{tensor.name}' lies in an external file, but the model was not read from a file; "
            "load it from its path"
        )
    info = ExternalDataInfo(tensor)
    path = (folder / info.location).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InvalidModelError(f"initializer '{tensor.name}' points outside the model's folder, at '{info.location}'")
    if not path.is_file():
        raise InvalidModelError(f"external data file '{path}' of initializer '{tensor.name}' is missing")
    dtype, shape = tensor_type(tensor)
    offset = int(info.offset or 0)
    length = int(info.length) if info.length else dtype.itemsize * int(np.prod(shape))
    if path.stat().st_size < offset + length:
        raise InvalidModelError(f"external data file '{path}' is too short for initializer '{tensor.name}'")
    return path, offset, length


def external_bytes(tensor: TensorProto) -> int:
    """Return how many bytes of an initializer lie in an external file."""
    if not uses_external_data(tensor):
        return 0
    dtype, shape = tensor_type(tensor)
    return int(ExternalDataInfo(tensor).length or dtype.itemsize * int(np.prod(shape)))


def embed(tensor: TensorProto, folder: Path | None) -> None:
    """Bring an external initializer's values into the tensor itself."""
    if uses_external_data(tensor):
        path, offset, length = external_place(tensor, folder)
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(length)
        clear(tensor)
        tensor.raw_data = data


def copy_without(proto: ModelProto, *fields: str) -> ModelProto:
    """Return a copy of a model without some fields of its graph."""
    bare = ModelProto()
    for field, value in proto.ListFields():
        if field.name != "graph":
            _assign(bare, field.name, value)
    for field, value in proto.graph.ListFields():
        if field.name not in fields:
            _assign(bare.graph, field.name, value)
    return bare


def without_values(proto: ModelProto, above: int = -1) -> ModelProto:
    """Return a copy of a model whose initializers of more than ``above`` scalars have no values."""
    bare = copy_without(proto, "initializer")
    for tensor in proto.graph.initializer:
        kept = bare.graph.initializer.add()
        if int(np.prod(tensor.dims)) > above:
            kept.name, kept.data_type = tensor.name, tensor.data_type
            kept.dims.extend(tensor.dims)
        else:
            kept.CopyFrom(tensor)
    return bare


def without_large_values(proto: ModelProto) -> ModelProto:
    """Return a copy of a model for checks: large initializers become inputs, so that no check asks for their values."""
    bare = without_values(proto, above=LARGE)
    declared = {value.name for value in bare.graph.input}
    kept = []
    for tensor in bare.graph.initializer:
        if int(np.prod(tensor.dims)) <= LARGE and not uses_external_data(tensor):
            kept.append(tensor)
        elif tensor.name not in declared:
            bare.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    kept = [TensorProto.FromString(t.SerializeToString()) for t in kept]
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(kept)
    return bare


def _assign(message: object, name: str, value: object) -> None:
    target = getattr(message, name)
    if hasattr(target, "extend"):
        target.extend(value)
    elif hasattr(target, "CopyFrom"):
        target.CopyFrom(value)
    else:
        setattr(message, name, value)


def clear(tensor: TensorProto) -> None:
    """Drop an initializer's values, or the reference to them."""
    for name in _VALUE_FIELDS:
        tensor.ClearField(name)
