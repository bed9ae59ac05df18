"""Clusters: the operators of a network that ONNX Runtime computes as one, and what their signatures need."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper

from graphmod.errors import InvalidDataError
from graphmod.graph.shape_values import shape_values
from graphmod.graph.wiring import domain_of
from graphmod.model import Model, TensorType, has_bodies
from graphmod.model.initializers import tensor_type
from graphmod.model.initializers import values as value_of
from graphmod.model.session import open_session
from graphmod.probe.operator_latency.signature import VALUED, Signature, is_fixed, matters, signature

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Cluster:
    """Operators of a model that ONNX Runtime computes as one, by place; the tensors that they give to others."""

    operators: tuple[int, ...]
    results: tuple[str, ...]


@dataclass(frozen=True)
class Clusters:
    """A model as ONNX Runtime computes it: clusters of operators, and all that their signatures need.

    Parameters
    ----------
    model : Model
        The model, its inputs' dimensions fixed.
    clusters : tuple of Cluster
        In topological order. Operators that ONNX Runtime computes once, when it loads the model, are in none, nor
        are those with bodies and calls of functions, whose latency depends on what they compute inside.
    types : dict of str to TensorType
        The types of all tensors.
    constants : dict of str to array or None
        The tensors that are constant; their values where they are short.
    """

    model: Model
    clusters: tuple[Cluster, ...]
    types: dict[str, TensorType]
    constants: dict[str, Array | None]

    def signature(
        self,
        cluster: Cluster,
        types: dict[str, TensorType] | None = None,
        constants: dict[str, Array | None] | None = None,
        operators: Sequence[NodeProto] = (),
    ) -> Signature:
        """Return the signature of a cluster.

        Parameters
        ----------
        cluster : Cluster
        types : dict of str to TensorType, optional
            Hypothetical types, in place of the model's own.
        constants : dict of str to array or None, optional
            Hypothetical values, which are to be given where types make shapes others.
        operators : sequence of NodeProto, optional
            In place of those of the cluster, where attributes are others too.
        """
        some = operators or [self.model.operators[i] for i in cluster.operators]
        opsets = self.model.opsets
        all_types, all_constants = ChainMap(types or {}, self.types), ChainMap(constants or {}, self.constants)
        return signature(some, all_types, all_constants, opsets, cluster.results)


def clusters(model: Model, types: Mapping[str, TensorType] | None = None) -> Clusters:
    """Return a model's operators in clusters: those that ONNX Runtime computes as one.

    It is asked which tensors are left when it has optimised the graph: operators whose results are not belong to the
    one that reads them. Normalisations and activations so become part of convolutions.

    Parameters
    ----------
    model : Model
    types : mapping of str to TensorType, optional
        Types of inputs; symbolic dimensions that are not given are 1.

    Returns
    -------
    Clusters
        Of which :meth:`Clusters.signature` gives each cluster's signature, at these or at hypothetical shapes.

    Raises
    ------
    InvalidModelError
        ONNX Runtime cannot load the model.
    InvalidDataError
        There is no such input, or it cannot have that shape.

    Examples
    --------
    >>> import graphmod as gm
    >>> whole = gm.probe.clusters(gm.load(gm.demo.model_path()))
    >>> [step.op_type for step in whole.signature(whole.clusters[0]).steps]
    ['Conv', 'Relu']
    """
    fixed = _fixed(model, types or {})
    with TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        open_session(fixed._proto, fixed.folder, 1, without=["NchwcTransformer"], written=written)
        graph = onnx.load(written, load_external_data=False).graph
        folded = {tensor.name: tensor for tensor in graph.initializer if tensor.name in fixed.producer}
        values = {name: _short(tensor, Path(folder)) for name, tensor in folded.items()}
    known = {name: _short(tensor, fixed.folder) for name, tensor in fixed.initializers.items()}
    known |= {op.output[0]: _constant(op, fixed.folder) for op in fixed.operators if op.op_type == "Constant"}
    known |= values
    asked = {op.input[0] for op in fixed.operators if op.op_type in ("Shape", "Size")}
    shown, _ = _observed(fixed, [name for name in fixed.producer if name in asked])
    told = fixed.tensors | shown
    arithmetic = {
        name: np.array(sizes.tolist(), told[name].dtype)
        for name, sizes in shape_values(fixed.operators, told, known.get).items()
        if None not in sizes.ravel().tolist()
    }
    constants = arithmetic | known
    left = {name for node in graph.node for name in node.output} - {""}
    calls = {(domain_of(function), function.name) for function in model.functions}
    nests = [has_bodies(op) or (domain_of(op), op.op_type) in calls for op in fixed.operators]
    every = _clustered(fixed, left, constants)
    found = tuple(cluster for cluster in every if not any(nests[place] for place in cluster.operators))
    read = {name for cluster in found for place in cluster.operators for name in fixed.reads[place]} - set(constants)
    types, sizes = _observed(fixed, [name for name in fixed.producer if name in read])
    types |= {name: TensorType(*tensor_type(tensor)) for name, tensor in folded.items()}
    return Clusters(fixed, found, fixed.tensors | types, constants | sizes)


def _fixed(model: Model, types: Mapping[str, TensorType]) -> Model:
    """Return a model with a number for every dimension of its inputs, also where symbols recur in other tensors."""
    for name, kind in types.items():
        if name not in model.inputs:
            raise InvalidDataError(f"there is no input '{name}'; the model's inputs are {', '.join(model.inputs)}")
        if not _fits(kind, model.inputs[name]):
            raise InvalidDataError(f"input '{name}' is {model.inputs[name]}, which cannot be {kind}")
    proto = model.editable()
    sizes = {
        symbol: size
        for name, kind in types.items()
        for symbol, size in zip(model.inputs[name].shape or (), kind.shape or (), strict=False)
        if isinstance(symbol, str) and isinstance(size, int)
    }
    for value in proto.graph.input:
        declared = value.type.tensor_type
        given = types[value.name].shape if value.name in types else None
        if given is not None and not declared.HasField("shape"):
            declared.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in given)
        for axis, dim in enumerate(declared.shape.dim):
            if not dim.HasField("dim_value"):
                size, symbol = given[axis] if given is not None else None, dim.dim_param
                known = sizes.setdefault(symbol, 1) if symbol else 1
                dim.dim_value = size if isinstance(size, int) else known
    for value in (*proto.graph.value_info, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    return Model(proto, model.folder)


def _fits(kind: TensorType, declared: TensorType) -> bool:
    """Whether an input may have a shape."""
    if kind.shape is None or declared.shape is None:
        return True
    return len(kind.shape) == len(declared.shape) and all(
        one == other or not (isinstance(one, int) and isinstance(other, int))
        for one, other in zip(kind.shape, declared.shape, strict=True)
    )


def _observed(model: Model, tensors: Iterable[str]) -> tuple[dict[str, TensorType], dict[str, Array | None]]:
    """Return the types of tensors that inference leaves open and the values of sizes, as a run on ones shows them."""
    open_ = [name for name in tensors if not is_fixed(model.tensors.get(name)) or _is_size(model.tensors[name])]
    if not open_:
        return {}, {}
    feeds = {
        name: np.ones([d for d in kind.shape or () if isinstance(d, int)], kind.dtype)
        for name, kind in model.inputs.items()
    }
    shown = {name: array for name, array in model.run(feeds, open_).items() if isinstance(array, np.ndarray)}
    types = {name: TensorType(array.dtype, array.shape) for name, array in shown.items()}
    return types, {name: array for name, array in shown.items() if _is_size(types[name])}


def _is_size(kind: TensorType) -> bool:
    return kind.dtype in (np.int64, np.int32) and len(kind.shape or ()) < 2 and kind.size <= VALUED


def _constant(operator: NodeProto, folder: Path | None) -> Array | None:
    """Return what a Constant operator makes, where it is short and made of numbers."""
    [attribute, *_] = operator.attribute
    if attribute.name == "value":
        return _short(attribute.t, folder)
    made = (
        np.array(helper.get_attribute_value(attribute)) if attribute.name.startswith(("value_i", "value_f")) else None
    )
    return made.astype(np.float32) if made is not None and made.dtype.kind == "f" else made


def _short(tensor: onnx.TensorProto, folder: Path | None) -> Array | None:
    return value_of(tensor, folder) if matters(TensorType(*tensor_type(tensor))) else None


def _clustered(model: Model, left: set[str], constants: Mapping[str, Array | None]) -> tuple[Cluster, ...]:
    """Gather the operators behind every tensor that is left, up to others that are left."""
    taken: dict[int, int] = {}
    last = sorted({model.producer[name] for name in left if name in model.producer and name not in constants})
    for target in last:
        pending = [target]
        while pending:
            place = pending.pop()
            if place in taken:
                continue
            taken[place] = target
            read = (name for name in model.reads[place] if name not in constants and name not in left)
            pending.extend(model.producer[name] for name in read if name in model.producer)
    members: dict[int, list[int]] = {target: [] for target in last}
    for place in sorted(taken):
        members[taken[place]].append(place)
    read_by: dict[str, set[int]] = {}
    for place, target in taken.items():
        for name in model.reads[place]:
            read_by.setdefault(name, set()).add(target)
    found = []
    for target, places in members.items():
        made = [name for place in places for name in model.operators[place].output if name]
        given = (n for n in made if n in model.outputs or read_by.get(n, set()) - {target} or n in left)
        found.append(Cluster(tuple(places), tuple(given)))
    return tuple(cluster for cluster in found if cluster.operators)
