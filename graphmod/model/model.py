"""The model: an immutable ONNX graph whose large weights stay on disk until they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from graphmod.errors import InvalidDataError, InvalidModelError
from graphmod.model import files, initializers, session
from graphmod.model.bodies import with_inner
from graphmod.model.view import as_networkx, consumed, operator_names

if TYPE_CHECKING:
    import onnxruntime

    from graphmod.model.surgery import Surgery

Array = NDArray[np.generic]

RECORD = "graphmod.recipe"
"""Key of the metadata under which the edits that made a model are kept."""

UNKNOWN = "graphmod.unknown"
"""Domain of what onnx does not know, while it checks the rest."""


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a tensor; a dimension is an int, a symbol, or None where nothing is known."""

    dtype: np.dtype[np.generic] | None
    shape: tuple[int | str | None, ...] | None

    @property
    def size(self) -> int:
        """Number of scalars; a dimension that is no number counts as 1."""
        return prod(d for d in self.shape or () if isinstance(d, int))

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers, of whatever precision."""
        return self.dtype is not None and (self.dtype.kind == "f" or self.dtype.name.startswith(("bfloat", "float")))

    def __str__(self) -> str:
        """Render as ``float32[batch, 3, 8, 8]``."""
        dims = "..." if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype or 'unknown'}[{dims}]"


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network as an ONNX graph.

    A model never changes: every verb returns a new one. Make one with :func:`graphmod.load`.

    Parameters
    ----------
    _proto : onnx.ModelProto
        The graph. Owned by the model; use :meth:`proto` for a copy that may be changed.
    folder : pathlib.Path, optional
        Where the files of external initializers lie.
    source : bytes, optional
        The bytes that an unchanged model was read from, where writing it again would not give the same ones.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> m.inputs
    {'image': TensorType(dtype=dtype('float32'), shape=('batch', 1, 8, 8))}
    >>> m.run({"image": np.zeros((2, 1, 8, 8), np.float32)})["logits"].shape
    (2, 10)
    """

    _proto: ModelProto = field(repr=False)
    folder: Path | None = None
    source: bytes | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        signature = ", ".join(f"{name}: {kind}" for name, kind in self.inputs.items())
        results = ", ".join(f"{name}: {kind}" for name, kind in self.outputs.items())
        return f"Model({signature} -> {results}; {len(self.operators)} operators, {self.n_weights:,} weights)"

    # -- what it is made of

    @cached_property
    def operators(self) -> tuple[NodeProto, ...]:
        """The operators of the main graph, in the file's (topological) order. Not to be changed."""
        return tuple(self._proto.graph.node)

    @cached_property
    def operator_names(self) -> tuple[str, ...]:
        """One unique name an operator: its own, or its type and position where it has none."""
        return operator_names(self._proto.graph)

    @cached_property
    def position(self) -> dict[str, int]:
        """The place of every operator in :attr:`operators`, by the name that it has in :attr:`operator_names`."""
        return {name: i for i, name in enumerate(self.operator_names)}

    @cached_property
    def producer(self) -> dict[str, int]:
        """For every tensor that an operator of the main graph makes, the place of that operator."""
        return {tensor: i for i, operator in enumerate(self.operators) for tensor in operator.output if tensor}

    @cached_property
    def readers(self) -> dict[str, tuple[int, ...]]:
        """For every tensor that operators read, the places of these operators, subgraphs that capture it included."""
        found: dict[str, list[int]] = {}
        for i, names in enumerate(self.reads):
            for name in dict.fromkeys(names):
                found.setdefault(name, []).append(i)
        return {name: tuple(places) for name, places in found.items()}

    @cached_property
    def graph(self) -> nx.MultiDiGraph:
        """The networkx view: operators, graph inputs and outputs are nodes, tensors are edges (key = tensor name)."""
        return as_networkx(self._proto.graph)

    @cached_property
    def initializers(self) -> Mapping[str, TensorProto]:
        """The initializers of the main graph by name. Not to be changed; see :meth:`initializer` for values."""
        return {t.name: t for t in self._proto.graph.initializer}

    @cached_property
    def inputs(self) -> dict[str, TensorType]:
        """The inputs that a caller feeds: graph inputs that no initializer provides a default for."""
        return {v.name: type_of(v) for v in self.proto_inputs}

    @cached_property
    def outputs(self) -> dict[str, TensorType]:
        """The graph's outputs."""
        return {v.name: type_of(v) for v in self._proto.graph.output}

    @property
    def proto_inputs(self) -> tuple[ValueInfoProto, ...]:
        """The declarations of the graph's inputs, with their metadata. Not to be changed."""
        sparse = {tensor.values.name for tensor in self._proto.graph.sparse_initializer}
        return tuple(v for v in self._proto.graph.input if v.name not in self.initializers and v.name not in sparse)

    @property
    def proto_outputs(self) -> tuple[ValueInfoProto, ...]:
        """The declarations of the graph's outputs, with their metadata. Not to be changed."""
        return tuple(self._proto.graph.output)

    @cached_property
    def main_output(self) -> str:
        """The first float output: the logits of a classifier. The first output of a model that has no float one."""
        return next((name for name, kind in self.outputs.items() if kind.is_float), next(iter(self.outputs)))

    @property
    def n_classes(self) -> int | None:
        """The size of axis 1 of the main output: a classifier's classes. None where it is dynamic or there is none."""
        size = (self.outputs[self.main_output].shape or ())[1:2]
        if size and not isinstance(size[0], int):  # declared by a symbol, which the weights may tell the value of
            size = (self.tensors[self.main_output].shape or ())[1:2]
        return size[0] if size and isinstance(size[0], int) else None

    @cached_property
    def tensors(self) -> dict[str, TensorType]:
        """Every tensor of the main graph whose type shape inference finds, initializers included."""
        found = {name: initializers.tensor_type(t) for name, t in self.initializers.items()}
        types = {name: TensorType(dtype, shape) for name, (dtype, shape) in found.items()}
        graph = self._inferred.graph
        for value in (*graph.value_info, *graph.output, *graph.input):
            types.setdefault(value.name, type_of(value))
        return types

    @cached_property
    def _inferred(self) -> ModelProto:
        """The graph after shape inference, without the values of large initializers (inference needs small ones)."""
        bare = initializers.without_large_values(self._proto, self.folder)
        initializers.declare_sparse(bare)
        initializers.drop_large_inner_values(bare, dims=True)
        try:
            return onnx.shape_inference.infer_shapes(bare, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise InvalidModelError(f"shape inference fails: {str(error).strip().splitlines()[0]}") from error

    @property
    def opset(self) -> int:
        """The version of the default operator set that the model imports (0 if it imports none)."""
        return self.opsets.get("", 0)

    @cached_property
    def opsets(self) -> dict[str, int]:
        """The version of every operator set that the model imports, by domain; that of the default one is ""."""
        imported = reversed(self._proto.opset_import)  # of two versions the first counts
        return {"" if one.domain == "ai.onnx" else str(one.domain): int(one.version) for one in imported}

    @property
    def ir_version(self) -> int:
        """The version of the ONNX file format."""
        return self._proto.ir_version

    @property
    def functions(self) -> tuple[onnx.FunctionProto, ...]:
        """The model-local functions. Not to be changed."""
        return tuple(self._proto.functions)

    @property
    def metadata(self) -> dict[str, str]:
        """The model's ``metadata_props``."""
        return {entry.key: entry.value for entry in self._proto.metadata_props}

    @cached_property
    def reads(self) -> tuple[tuple[str, ...], ...]:
        """The tensors that each operator reads, those that its subgraphs capture included."""
        return tuple(tuple(consumed(operator)) for operator in self._proto.graph.node)

    @cached_property
    def constants(self) -> dict[str, TensorType]:
        """The tensors that are constant at their root: initializers, outputs of Constant and ConstantOfShape.

        Sparse initializers are among them, by the type of the dense tensor that they stand for.
        """
        made = [
            operator.output[0]
            for operator in self._proto.graph.node
            if operator.op_type == "Constant"
            or (operator.op_type == "ConstantOfShape" and operator.input[0] in self.initializers)
        ]
        names = (*self.initializers, *initializers.sparse_types(self._proto), *made)
        return {name: self.tensors[name] for name in names if name in self.tensors}

    @cached_property
    def n_weights(self) -> int:
        """Number of scalars in float constants."""
        return sum(kind.size for kind in self.constants.values() if kind.is_float)

    @cached_property
    def n_bytes(self) -> int:
        """Size of the file, with the external values that belong to it."""
        beside = sum(map(initializers.external_bytes, initializers.tensors(self._proto)))
        if self.source is not None:
            return len(self.source) + beside
        inside = initializers.stored_bytes(initializers.tensors(self._proto))
        if inside > initializers.SAFE:  # more than protobuf counts
            return int(initializers.without_values(self._proto).ByteSize()) + inside + beside
        return int(self._proto.ByteSize()) + beside

    @cached_property
    def digest(self) -> str:
        """SHA-256 of graph and weights; the same whether the weights lie inside the file or beside it.

        What the metadata record of past edits does not count: two ways to the same graph give the same hash.
        """
        bare = initializers.without_values(self._proto)
        kept = [entry for entry in self._proto.metadata_props if entry.key != RECORD]
        del bare.metadata_props[:]
        bare.metadata_props.extend(kept)
        sha = hashlib.sha256(bare.SerializeToString(deterministic=True))
        for chunk in initializers.all_raw_chunks(list(initializers.tensors(self._proto)), self.folder):
            sha.update(chunk)
        return sha.hexdigest()

    # -- values

    def initializer(self, name: str) -> Array:
        """Return the value of an initializer, memory-mapped and read-only where it lies in a file of its own.

        Raises
        ------
        InvalidModelError
            No initializer has that name, or its data is missing.
        """
        if name not in self.initializers:
            is_sparse = name in initializers.sparse_types(self._proto)
            raise InvalidModelError(
                f"initializer '{name}' is stored sparsely; graphmod.unpack makes it dense"
                if is_sparse
                else f"the model has no initializer named '{name}'"
            )
        return initializers.values(self.initializers[name], self.folder)

    def proto(self) -> ModelProto:
        """Return a copy of the whole model with every weight inside it; the caller may change it."""
        copy = ModelProto()
        copy.CopyFrom(self._proto)
        initializers.embed_all(initializers.tensors(copy), self.folder)
        return copy

    def editable(self) -> ModelProto:
        """Return a copy of the graph for a verb to change; external weights stay where they are."""
        copy = ModelProto()
        copy.CopyFrom(self._proto)
        return copy

    def derive(self, proto: ModelProto) -> Model:
        """Return the model that an edit of this one's :meth:`editable` copy describes, once it has passed all checks.

        The result has passed onnx.checker, shape inference and the loading of an ONNX Runtime session.

        Raises
        ------
        InvalidModelError
            The edited graph fails one of them.
        """
        edited = Model(proto, self.folder)
        edited._check("the edited graph is invalid")
        return edited

    def check(self) -> None:
        """Check the model as every edit is checked: onnx.checker, shape inference, the loading of a session.

        Raises
        ------
        InvalidModelError
            It fails one of them.

        Examples
        --------
        >>> import graphmod as gm
        >>> gm.load(gm.demo.model_path()).check()
        """
        self._check("the model is invalid")

    def _check(self, verdict: str) -> None:
        try:
            onnx.checker.check_model(_checkable(self._proto, self.folder), full_check=False)
        except onnx.checker.ValidationError as error:
            raise InvalidModelError(f"{verdict}: {' '.join(str(error).split('==>')[0].split())}") from error
        _ = self.tensors
        _open_once(self._proto, self.folder)

    def surgery(self) -> Surgery:
        """Return a context that hands out the graph as an onnx-graphsurgeon Graph, to be edited by hand.

        At its end operators are put in order, the graph is checked as after every edit, and the edited model is its
        attribute ``model``. What onnx-graphsurgeon drops (metadata, doc strings, annotations, values in files) is put
        back. This model stays as it is; if the block raises, there is no new one.

        Raises
        ------
        RefusedError
            onnx-graphsurgeon cannot hold the model, or what became of its graph cannot be written.
        InvalidModelError
            The edited graph fails the checker, shape inference or the loading of a session.

        Examples
        --------
        >>> import graphmod as gm
        >>> m = gm.load(gm.demo.model_path())
        >>> with m.surgery() as g:
        ...     for node in g.nodes:
        ...         if node.op == "Relu":
        ...             node.op = "HardSwish"
        >>> len(gm.find(g.model, "HardSwish"))
        43
        """
        from graphmod.model.surgery import Surgery  # a surgery ends in a model

        return Surgery(self)

    # -- running

    def session(self, threads: int | None = None, outputs: Iterable[str] = ()) -> onnxruntime.InferenceSession:
        """Open an ONNX Runtime session.

        Parameters
        ----------
        threads : int, optional
            Threads within an operator; if None as many as ``OMP_NUM_THREADS`` says, or as cores this process may use.
        outputs : iterable of str
            Inner tensors to add to the graph's outputs.

        Raises
        ------
        InvalidModelError
            ONNX Runtime cannot load the model, or a tensor does not exist.
        """
        proto = self._with_outputs(outputs)
        if proto is self._proto and threads is None:
            return self._session
        return session.open_session(proto, self.folder, threads)

    def _with_outputs(self, names: Iterable[str]) -> ModelProto:
        extra = [name for name in names if name not in self.outputs]
        if not extra:
            return self._proto
        missing = [name for name in extra if name not in self.producer]
        if missing:
            raise InvalidModelError(f"no operator makes a tensor named '{missing[0]}'")
        proto = self.editable()
        for name in extra:
            kind = self.tensors.get(name)
            elem = onnx.helper.np_dtype_to_tensor_dtype(kind.dtype) if kind and kind.dtype else TensorProto.UNDEFINED
            value = onnx.helper.make_tensor_value_info(name, elem, None) if elem else ValueInfoProto(name=name)
            proto.graph.output.append(value)
        return proto

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        return session.open_session(self._proto, self.folder, None)

    def run(self, feeds: Mapping[str, Array], outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Compute outputs with ONNX Runtime.

        Parameters
        ----------
        feeds : mapping of str to array
            One array an input.
        outputs : iterable of str, optional
            Tensors to return, inner ones included; the graph's outputs if None.

        Returns
        -------
        dict of str to array

        Raises
        ------
        InvalidDataError
            An array is missing, or does not fit its input in shape or dtype.
        """
        feeds = {name: np.asarray(value) for name, value in feeds.items()}
        self.check_feeds(feeds)
        wanted = list(dict.fromkeys(self.outputs if outputs is None else outputs))
        opened = self._session if set(wanted) <= set(self.outputs) else self.session(outputs=wanted)
        return dict(zip(wanted, session.run(opened, wanted, feeds) if wanted else [], strict=True))

    def check_feeds(self, feeds: Mapping[str, Array]) -> None:
        """Raise InvalidDataError, naming both sides, unless the arrays fit the inputs."""
        missing = [name for name in self.inputs if name not in feeds]
        unknown = [name for name in feeds if name not in self.inputs]
        if missing or unknown:
            what = f"input '{missing[0]}' has no data" if missing else f"there is no input '{unknown[0]}'"
            told = f"the model's inputs are {', '.join(self.inputs)}, the data has {', '.join(feeds) or 'none'}"
            raise InvalidDataError(f"{what}; {told}")
        for name, array in feeds.items():
            kind = self.inputs[name]
            if kind.dtype is not None and array.dtype != kind.dtype:
                raise InvalidDataError(
                    f"data of dtype {array.dtype} does not fit input '{name}', which is {kind}; convert it, with "
                    "values scaled as they were in training"
                )
            if not _fits(array.shape, kind.shape):
                raise InvalidDataError(
                    f"data of shape {list(array.shape)} does not fit input '{name}', which is {kind}"
                )

    # -- writing

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the model to a file, beside it first and then renamed, so that no reader sees half of it.

        A model of which nothing was changed is written byte for byte as it was read, unless its weights lie in files
        of their own: these, and any over 2 GB, go to one data file beside the model, which
        never takes the place of other data.

        Raises
        ------
        NotWritableError
            The path cannot be written; an older file there is left as it was.
        """
        return files.save(self._proto, self.folder, self.source, Path(path))


def type_of(value: ValueInfoProto) -> TensorType:
    """Return the type that a declaration gives a tensor."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return TensorType(None, None)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else None
    if not kind.HasField("shape"):
        return TensorType(dtype, None)
    return TensorType(dtype, tuple(_dimension(d) for d in kind.shape.dim))


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    match dim.WhichOneof("value"):
        case "dim_value":
            return int(dim.dim_value)
        case "dim_param":
            return str(dim.dim_param) or None
    return None


def _fits(shape: tuple[int, ...], declared: tuple[int | str | None, ...] | None) -> bool:
    if declared is None:
        return True
    return len(shape) == len(declared) and all(
        not isinstance(d, int) or n == d for n, d in zip(shape, declared, strict=True)
    )


def check_model(model: object, taker: str = "graphmod") -> None:
    """Raise InvalidModelError unless what a function was given as its model is one."""
    if not isinstance(model, Model):
        raise InvalidModelError(
            f"{taker} takes a graphmod.Model, not a {type(model).__name__}; graphmod.load makes one of a path or an "
            "onnx.ModelProto"
        )


def _open_once(proto: ModelProto, folder: Path | None) -> None:
    """Raise InvalidModelError unless a session loads.

    Without optimisation it loads in little time and memory, whatever the weights; some operators load only with it.
    """
    try:
        session.open_session(proto, folder, 1, as_it_is=True)
    except InvalidModelError:
        session.open_session(proto, folder, 1)


def _checkable(proto: ModelProto, folder: Path | None) -> ModelProto:
    """Return a copy for onnx.checker, without large values and with operators that onnx does not know set apart.

    ONNX Runtime's optimiser writes operators into the default domain that are none of the standard's, or of a later
    one's; whether they are valid a session tells.
    """
    bare = initializers.without_large_values(proto, folder)
    initializers.drop_large_inner_values(bare, dims=False)
    opset = max((entry.version for entry in bare.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    unknown = [
        operator
        for operator in with_inner(bare.graph.node)
        if operator.domain in ("", "ai.onnx") and not onnx.defs.has(operator.op_type, opset, "")
    ]
    for operator in unknown:
        operator.domain = UNKNOWN
    if unknown:
        bare.opset_import.append(onnx.helper.make_opsetid(UNKNOWN, 1))
    return bare
