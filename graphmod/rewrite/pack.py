"""Packing: weights that are mostly zeros written as ONNX sparse initializers, and back.

A ``SparseTensorProto`` holds the values that are not zero and their places. It is the same constant in fewer bytes of
the file, and nothing else: ONNX Runtime makes it dense when it loads it, so memory and time stay what they were.

What onnx 1.23 and ONNX Runtime 1.31 make of it, for weights of Conv, Gemm, MatMul, Gather and elementwise operators,
with all optimisations and with none:

- Both take places as flat positions ``[n]`` or as coordinates ``[n, rank]``. onnx.checker asks for 64-bit integers in
  ascending order, a rank above 0 and dimensions above 0; ONNX Runtime would also load narrower integers and any order.
- Places may stand in ``raw_data``, 8 bytes each, or in ``int64_data``, where protobuf writes 7 bits of an integer into
  a byte. The second is used here: of a tensor of up to 2 million scalars a place takes 3 bytes at most. Packing pays
  from 43 % of zeros in float32, 60 % in float16, 28 % in float64 and 75 % in types of a byte; with ``raw_data`` it
  would be 67, 80, 50 and 89 %.
- Floats of 16, 32 and 64 bits, bfloat16, float8, int8 and uint8 load; integers below 8 bits do not.
- Values may lie in an external file, places may not (onnx.checker). Both are written into the model's message here.
- onnx's shape inference, and with it ``check_model(full_check=True)``, takes such an initializer for one of a sparse
  type, which no operator reads. ONNX Runtime and :class:`graphmod.Model` take it for the dense one that it stands for.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import SparseTensorProto, TensorProto, numpy_helper

from graphmod.errors import InvalidModelError
from graphmod.model import Model, copy_without
from graphmod.model.initializers import SAFE, SHAPE_LIKE, external_bytes, n_stored_bytes, values, without_value
from graphmod.rewrite.verb import verb

Places = NDArray[np.int64]

PACKED = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.DOUBLE,
        TensorProto.BFLOAT16,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.FLOAT8E4M3FNUZ,
        TensorProto.FLOAT8E5M2,
        TensorProto.FLOAT8E5M2FNUZ,
        TensorProto.INT8,
        TensorProto.UINT8,
    }
)
"""Element types that are packed: wider integers are shapes and indices, which tools look into."""

BITS_A_BYTE = 7
"""Bits of an integer that protobuf writes into a byte."""


@verb(exact=True, example="graphmod pack pruned.onnx --out packed.onnx")
def pack(model: Model) -> Model:
    """Store weights that are mostly zeros as sparse initializers, where that takes fewer bytes of the file.

    Initializers of the main graph of more than 64 scalars, floats and integers of 8 bits, keep their names, types and
    values to the bit; a negative zero is a value. In float32 it pays from 43 % of zeros, or 50 % where there are over 2
    million scalars. What is packed lies in the model's own file, up to 1 GB, also if it lay in an external one. Other
    verbs leave packed weights as they are, or refuse: :func:`unpack` comes before them.

    Parameters
    ----------
    model : Model

    Returns
    -------
    Model
        The model itself where no initializer would be smaller.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods.deeparc.sparsity import sparsify
    >>> sparse = sparsify(gm.load(gm.demo.model_path()), 0.1)
    >>> round(gm.pack(sparse).n_bytes / sparse.n_bytes, 1)
    0.2
    """
    outputs = set(model.outputs)  # these ONNX Runtime would hand out as sparse tensors
    room = SAFE - sum(one.ByteSize() for one in model._proto.graph.sparse_initializer)
    packed: dict[str, SparseTensorProto] = {}
    for name, tensor in model.initializers.items():
        sparse = None if name in outputs else _sparse(tensor, model)
        if sparse is not None and (taken := sparse.ByteSize()) <= room:
            packed[name] = sparse
            room -= taken
    if not packed:
        return model
    edited = copy_without(model._proto, "initializer")
    edited.graph.initializer.extend(tensor for tensor in model._proto.graph.initializer if tensor.name not in packed)
    edited.graph.sparse_initializer.extend(packed.values())
    return model.derive(edited)


@verb(exact=True, example="graphmod unpack packed.onnx --out dense.onnx")
def unpack(model: Model) -> Model:
    """Store the sparse initializers of the main graph as dense ones, so that every verb knows their values.

    Parameters
    ----------
    model : Model

    Returns
    -------
    Model
        The model itself where none is sparse. Those that were are the last initializers.

    Raises
    ------
    InvalidModelError
        Values and places of a sparse initializer do not fit each other or its shape.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods.deeparc.sparsity import sparsify
    >>> sparse = sparsify(gm.load(gm.demo.model_path()), 0.1)
    >>> again = gm.unpack(gm.pack(sparse))
    >>> all((again.initializer(name) == sparse.initializer(name)).all() for name in sparse.initializers)
    True
    """
    if not model._proto.graph.sparse_initializer:
        return model
    edited = copy_without(model._proto, "sparse_initializer")
    edited.graph.initializer.extend(_dense(sparse, model) for sparse in model._proto.graph.sparse_initializer)
    return model.derive(edited)


def _sparse(tensor: TensorProto, model: Model) -> SparseTensorProto | None:
    """Return an initializer without its zeros; None where that is not fewer bytes, or not legal."""
    if tensor.data_type not in PACKED or prod(tensor.dims) <= SHAPE_LIKE:  # onnx.checker takes no empty one, no scalar
        return None
    array = values(tensor, model.folder).reshape(-1)
    bits = array.view(f"u{array.itemsize}")  # of a negative zero one is set
    if np.count_nonzero(bits) * (array.itemsize + 1) >= n_stored_bytes(tensor):
        return None
    places = np.flatnonzero(bits)
    if places.size * array.itemsize + _varint_bytes(places) >= n_stored_bytes(tensor):
        return None
    sparse = SparseTensorProto(values=without_value(tensor), dims=tensor.dims)
    sparse.values.dims[:] = [places.size]
    sparse.values.raw_data = bits[places].tobytes()
    sparse.indices.data_type = TensorProto.INT64
    sparse.indices.dims[:] = [places.size]
    sparse.indices.int64_data.extend(places.tolist())
    return sparse if sparse.ByteSize() < tensor.ByteSize() + external_bytes(tensor) else None


def _varint_bytes(places: Places) -> int:
    """Return how many bytes ascending integers take as protobuf writes them: one, and one more from 128, 16384, ..."""
    limits = 2 ** np.arange(BITS_A_BYTE, 63, BITS_A_BYTE)
    return int(places.size + (places.size - np.searchsorted(places, limits)).sum())


def _dense(sparse: SparseTensorProto, model: Model) -> TensorProto:
    """Return a sparse initializer with its zeros."""
    dims = tuple(sparse.dims)
    found = values(sparse.values, model.folder).reshape(-1)
    places = values(sparse.indices, model.folder).astype(np.int64)
    if places.shape not in ((found.size,), (found.size, len(dims))):
        raise InvalidModelError(
            f"sparse initializer '{sparse.values.name}' has {found.size} values, and places of shape {places.shape}"
        )
    array = np.zeros(prod(dims), found.dtype)
    try:
        array[places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), dims)] = found
    except (IndexError, ValueError) as error:
        raise InvalidModelError(f"sparse initializer '{sparse.values.name}' has a place outside of it") from error
    dense = without_value(sparse.values)
    dense.dims[:] = dims
    dense.raw_data = numpy_helper.from_array(array).raw_data
    return dense
