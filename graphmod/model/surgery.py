"""Surgery: a model as an onnx-graphsurgeon Graph to edit by hand, and back, with all that it does not know put back.

onnx-graphsurgeon keeps neither metadata nor the documentation of operators and tensors, nor some kinds of attributes
and declarations. So every object of its Graph is remembered together with what it was read from: what was not touched
is written as it was, and what was touched keeps the rest of itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
    numpy_helper,
)

from graphmod.errors import RefusedError
from graphmod.model import initializers
from graphmod.model.bodies import with_inner
from graphmod.model.initializers import copy_without
from graphmod.model.model import Model
from graphmod.model.record import edits_of, record
from graphmod.model.view import consumed

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


class Surgery:
    """A context that hands out a model's graph, and takes it back as a new model.

    Parameters
    ----------
    before : Model
    """

    def __init__(self, before: Model):
        self._before = before
        self.model: Model | None = None
        self._graph: Any = None

    def __enter__(self) -> gs.Graph:
        """Return the graph; afterwards the edited model is its attribute ``model``."""
        import onnx_graphsurgeon as gs
        from onnx_graphsurgeon.logger import G_LOGGER
        from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

        proto = self._before.editable()
        try:
            with G_LOGGER.suppress(G_LOGGER.ERROR):  # what it warns of is put back
                self._graph = gs.import_onnx(proto)
        except (OnnxGraphSurgeonException, UnicodeDecodeError, ValueError, TypeError) as error:
            raise RefusedError(f"onnx-graphsurgeon cannot hold the model: {_first_line(error)}") from error
        self._memory = _Memory(proto, self._graph, self._before.folder)
        return self._graph

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Check the edited graph and make a model of it, unless the block raised."""
        if kind is not None:
            return
        from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

        try:
            proto = _Writer(self._memory, self._graph).model()
        except (OnnxGraphSurgeonException, TypeError, ValueError, AttributeError, NotImplementedError) as failure:
            raise RefusedError(f"the edited graph cannot be written: {_first_line(failure)}") from failure
        if proto == self._before._proto:
            self.model = self._before
        else:
            self.model = self._before.derive(proto)
            record(self.model, [*edits_of(self._before), {"surgery": {}}])
        self._graph.model = self.model


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class _Tensor:
    """A tensor of onnx-graphsurgeon as it was handed out."""

    held: Any
    name: str
    told: tuple[Any, Any]
    constant: TensorProto | SparseTensorProto | None


def _told(tensor: Any) -> tuple[Any, Any]:
    """Return what a Variable says of its type."""
    shape = getattr(tensor, "shape", None)
    return getattr(tensor, "dtype", None), None if shape is None else tuple(shape)


class _Memory:
    """What each object of a graph was read from. It holds the objects, so that their ids stay theirs."""

    def __init__(self, proto: ModelProto, graph: Any, folder: Path | None):
        from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

        self.proto, self.graph, self.folder = proto, graph, folder
        self.opset = graph.opset
        self.functions = {id(one): (one, was) for one, was in zip(graph.functions, proto.functions, strict=True)}
        self.operators: dict[int, tuple[Any, NodeProto, frozenset[str]]] = {}
        self.graphs: dict[int, tuple[Any, GraphProto]] = {}
        self.tensors: dict[int, _Tensor] = {}
        self._lazy, self._sparse, self._stored = LazyValues, SparseValues, _stored_values()
        pending: list[tuple[Any, GraphProto]] = [(graph, proto.graph)]
        for function, known in self.functions.values():
            pending += self._remember_operators(function.nodes, known.node)
        while pending:
            one, was = pending.pop()
            self.graphs[id(one)] = (one, was)
            for tensor in (*one.inputs, *one.outputs):
                self._remember(tensor)
            pending += self._remember_operators(one.nodes, was.node)

    def _remember_operators(self, nodes: Iterable[Any], protos: Iterable[NodeProto]) -> list[tuple[Any, GraphProto]]:
        """Remember operators and their tensors, and return their subgraphs."""
        bodies = []
        for node, was in zip(nodes, protos, strict=True):
            self.operators[id(node)] = (node, was, frozenset(node.attrs))
            for tensor in (*node.inputs, *node.outputs):
                self._remember(tensor)
            for attribute in was.attribute:
                value = node.attrs.get(attribute.name)
                if attribute.type == AttributeProto.TENSOR and not attribute.ref_attr_name:
                    self._remember(value)
                elif attribute.type == AttributeProto.GRAPH and not attribute.ref_attr_name:
                    bodies.append((value, attribute.g))
        return bodies

    def _remember(self, tensor: Any) -> None:
        if id(tensor) in self.tensors:
            return
        values = getattr(tensor, "_values", None)
        constant = values.tensor if isinstance(values, self._lazy) else None
        if constant is not None and not isinstance(values, self._sparse):
            tensor._values = self._stored(constant, self.folder)
        self.tensors[id(tensor)] = _Tensor(tensor, tensor.name, (None, None) if constant else _told(tensor), constant)

    def is_untouched(self, tensor: Any) -> bool:
        """Whether nobody has looked at a constant's values."""
        return isinstance(tensor._values, self._lazy)


def _stored_values() -> Any:
    """Return a kind of LazyValues that finds values in external files."""
    from onnx_graphsurgeon.ir.tensor import LazyValues

    class StoredValues(LazyValues):  # type: ignore[misc]  # onnx-graphsurgeon has no types
        """Values that are read when they are asked for, from wherever they lie."""

        def __init__(self, tensor: TensorProto, folder: Path | None):
            super().__init__(tensor)
            self._folder = folder

        def load(self) -> np.ndarray[Any, Any]:
            return np.array(initializers.values(self.tensor, self._folder))

    return StoredValues


class _Writer:
    """Writes a graph of onnx-graphsurgeon, with what is remembered of it."""

    def __init__(self, memory: _Memory, graph: Any):
        self._memory, self._graph = memory, graph

    def model(self) -> ModelProto:
        """Return the whole model."""
        was, graph = self._memory.proto, self._graph
        proto = copy_without(was, *_GRAPH_FIELDS)
        self._write_graph(proto.graph, graph, was.graph, is_main=True)
        del proto.functions[:]
        proto.functions.extend(self._function(one) for one in graph.functions)
        for name in ("producer_name", "producer_version", "ir_version"):
            if getattr(graph, name) not in (None, getattr(proto, name)):
                setattr(proto, name, getattr(graph, name))
        self._write_opsets(proto)
        return proto

    def _write_opsets(self, proto: ModelProto) -> None:
        versions = {one.domain: one.version for one in proto.opset_import}
        versions |= {one.domain: one.version for one in self._graph.import_domains or ()}
        if self._graph.opset != self._memory.opset:
            versions["ai.onnx" if "ai.onnx" in versions else ""] = self._graph.opset
        for domain in {one.domain for one in with_inner(proto.graph.node)}:
            if domain not in versions and not (domain in ("", "ai.onnx") and {"", "ai.onnx"} & versions.keys()):
                versions[domain] = 1
        for one in proto.opset_import:
            one.version = versions.pop(one.domain)
        proto.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())

    # -- graphs

    def _write_graph(self, own: GraphProto, graph: Any, was: GraphProto, *, is_main: bool) -> None:
        """Write operators, constants and declarations; ``own`` has all else of what the graph was."""
        if graph.name != was.name:
            own.name = graph.name
        if graph.doc_string != was.doc_string:
            own.doc_string = graph.doc_string
        own.node.extend(_in_order([self._operator(node) for node in graph.nodes]))
        self._write_constants(own, graph, was, is_main)
        self._write_values(own, graph, was, is_main)
        names = self._new_names(graph)
        made = {*names.values(), *(name for one in own.node for name in one.output)}
        made |= {value.name for value in (*own.input, *own.initializer)}
        for annotation in was.quantization_annotation:
            name = names.get(annotation.tensor_name, annotation.tensor_name)
            if name in made:
                copy = own.quantization_annotation.add()
                copy.CopyFrom(annotation)
                copy.tensor_name = name
                for entry in copy.quant_parameter_tensor_names:
                    entry.value = names.get(entry.value, entry.value)

    def _tensors_of(self, graph: Any) -> Iterator[Any]:
        """Yield the tensors of a graph that have a name, each once."""
        nodes = graph.nodes
        listed = (*graph.inputs, *(t for node in nodes for t in (*node.inputs, *node.outputs)), *graph.outputs)
        seen = set()
        for tensor in listed:
            if id(tensor) not in seen and tensor.name:
                seen.add(id(tensor))
                yield tensor

    def _new_names(self, graph: Any) -> dict[str, str]:
        """Return the present names of the tensors that a graph had, by their former ones."""
        names = {}
        for tensor in self._tensors_of(graph):
            known = self._memory.tensors.get(id(tensor))
            if known is not None:
                names[known.name] = tensor.name
        return names

    def _write_constants(self, own: GraphProto, graph: Any, was: GraphProto, is_main: bool) -> None:
        """Write the initializers that a graph had and that are still read, and to the main graph those that are new."""
        held = {id(t): t for one in (graph, *graph.subgraphs(recursive=True)) for t in self._tensors_of(one)}
        held = {key: tensor for key, tensor in held.items() if _is_constant(tensor)}
        known = {key: self._memory.tensors[key] for key in held if key in self._memory.tensors}
        now = {one.name: held[key] for key, one in known.items() if one.constant is not None}
        read_before = {name for operator in was.node for name in consumed(operator)} | {v.name for v in was.output}
        for tensor in (*was.initializer, *was.sparse_initializer):
            name = tensor.values.name if isinstance(tensor, SparseTensorProto) else tensor.name
            if name in now:
                self._add_constant(own, self._constant(now[name]))
            elif name not in read_before:
                self._add_constant(own, tensor)
        for key, tensor in held.items() if is_main else ():
            if key not in known or known[key].constant is None:
                self._add_constant(own, self._constant(tensor))

    @staticmethod
    def _add_constant(own: GraphProto, tensor: TensorProto | SparseTensorProto) -> None:
        if isinstance(tensor, SparseTensorProto):
            own.sparse_initializer.append(tensor)
        else:
            own.initializer.append(tensor)

    def _write_values(self, own: GraphProto, graph: Any, was: GraphProto, is_main: bool) -> None:
        constant = {t.name for t in own.initializer} | {t.values.name for t in own.sparse_initializer}
        inputs = {value.name: value for value in was.input}
        given = {self._known_name(t): self._value(t, inputs.get(self._known_name(t)), is_main) for t in graph.inputs}
        own.input.extend(given.values())
        # defaults, and all initializers of old files, are inputs too, which onnx-graphsurgeon leaves out
        own.input.extend(value for value in was.input if value.name in constant and value.name not in given)
        if self._memory.proto.ir_version < _LISTED_UNTIL and is_main:
            listed = {value.name for value in own.input}
            own.input.extend(
                onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
                for t in own.initializer
                if t.name not in listed
            )
        _in_order_of(own.input, was.input)
        outputs = {value.name: value for value in was.output}
        own.output.extend(self._value(t, outputs.get(self._known_name(t)), is_main) for t in graph.outputs)
        annotated = {value.name: value for value in was.value_info}
        shown = {value.name for value in (*own.input, *own.output)}
        before = {name: position for position, name in enumerate(annotated)}
        values = []
        for tensor in self._tensors_of(graph):
            known = annotated.get(self._known_name(tensor))
            changed = id(tensor) not in self._memory.tensors or _told(tensor) != self._memory.tensors[id(tensor)].told
            if tensor.name in shown or (
                known is None and (_is_constant(tensor) or not changed or tensor.dtype is None)
            ):
                continue
            shown.add(tensor.name)
            values.append((before.get(self._known_name(tensor), len(before)), self._value(tensor, known, False)))
        own.value_info.extend(value for _, value in sorted(values, key=lambda pair: pair[0]))

    def _known_name(self, tensor: Any) -> str:
        known = self._memory.tensors.get(id(tensor))
        return str(tensor.name if known is None else known.name)

    def _value(self, tensor: Any, was: ValueInfoProto | None, is_main: bool) -> ValueInfoProto:
        """Return a declaration: the file's own where the type is what it was."""
        from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

        known = self._memory.tensors.get(id(tensor))
        own = ValueInfoProto()
        if was is not None:
            own.CopyFrom(was)
            own.name = tensor.name
            if known is not None and (_is_constant(tensor) or _told(tensor) == known.told):
                return own
        own.name = tensor.name
        own.type.CopyFrom(OnnxExporter.export_value_info_proto(tensor, is_main).type)
        return own

    # -- constants

    def _constant(self, tensor: Any) -> TensorProto | SparseTensorProto:
        """Return a constant: the file's own where its values are what they were, whether they were looked at or not."""
        known = self._memory.tensors.get(id(tensor))
        was = known.constant if known is not None else None
        if self._memory.is_untouched(tensor):
            return _named(tensor._values.tensor, tensor.name)
        values = np.ascontiguousarray(tensor._values).reshape(np.shape(tensor._values))
        if isinstance(was, TensorProto) and self._is_same(was, values):
            return _named(was, tensor.name)
        if tensor._export_dtype is not None:
            from onnx_graphsurgeon.exporters.onnx_exporter import constant_to_onnx_tensor

            fresh: TensorProto = constant_to_onnx_tensor(tensor)
        else:
            fresh = numpy_helper.from_array(values, tensor.name)
        if isinstance(was, TensorProto):
            fresh.doc_string = was.doc_string
            fresh.metadata_props.extend(was.metadata_props)
        return fresh

    def _is_same(self, was: TensorProto, values: np.ndarray[Any, Any]) -> bool:
        stored = initializers.values(was, self._memory.folder)
        if (stored.dtype, stored.shape) != (values.dtype, values.shape):
            return False
        if values.dtype == object:
            return bool((stored == values).all())
        return bool((stored.reshape(-1).view(np.uint8) == values.reshape(-1).view(np.uint8)).all())

    # -- operators

    def _operator(self, node: Any) -> NodeProto:
        own = NodeProto()
        known = self._memory.operators.get(id(node))
        if known is not None:
            own.CopyFrom(known[1])
        for field, value in (("op_type", node.op), ("name", node.name), ("domain", node.domain or "")):
            if getattr(own, field) != value:
                setattr(own, field, value)
        for field, tensors in (("input", node.inputs), ("output", node.outputs)):
            names = [tensor.name for tensor in tensors]
            if list(getattr(own, field)) != names:
                getattr(own, field)[:] = names
        attributes = list(self._attributes(node, known))
        del own.attribute[:]
        own.attribute.extend(attributes)
        return own

    def _attributes(self, node: Any, known: tuple[Any, NodeProto, frozenset[str]] | None) -> Iterator[AttributeProto]:
        was = {} if known is None else {attribute.name: attribute for attribute in known[1].attribute}
        handed_out = frozenset() if known is None else known[2]
        for name, attribute in was.items():
            if name not in handed_out:  # of a kind that onnx-graphsurgeon has not
                yield attribute
            elif name in node.attrs:
                yield self._attribute(name, node.attrs[name], attribute)
        for name, value in node.attrs.items():
            if name not in was:
                yield self._attribute(name, value, None)

    def _attribute(self, name: str, value: Any, was: AttributeProto | None) -> AttributeProto:
        import onnx_graphsurgeon as gs
        from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

        own = AttributeProto(name=name)
        if was is not None and was.doc_string:
            own.doc_string = was.doc_string
        if isinstance(value, gs.Graph):
            own.type = AttributeProto.GRAPH
            _, body = self._memory.graphs.get(id(value), (value, GraphProto()))
            own.g.CopyFrom(_graph_without(body, _GRAPH_FIELDS))
            self._write_graph(own.g, value, body, is_main=False)
        elif isinstance(value, gs.Constant):
            own.type = AttributeProto.TENSOR
            constant = self._constant(value)
            if isinstance(constant, SparseTensorProto):
                raise TypeError(f"attribute '{name}' is a sparse constant; give its dense values")
            own.t.CopyFrom(constant)
        elif was is not None and _is_same_value(was, value):
            return was
        else:
            (fresh,) = OnnxExporter.export_attributes({name: value})
            fresh.MergeFrom(AttributeProto(doc_string=own.doc_string) if own.doc_string else AttributeProto())
            return fresh  # type: ignore[no-any-return]  # onnx-graphsurgeon has no types
        return own

    # -- functions

    def _function(self, function: Any) -> FunctionProto:
        from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

        known = self._memory.functions.get(id(function))
        if known is None:
            return OnnxExporter.export_function(function)  # type: ignore[no-any-return]  # it has no types
        own = FunctionProto()
        own.CopyFrom(known[1])
        for field, value in (("name", function.name), ("domain", function.domain or "")):
            if getattr(own, field) != value:
                setattr(own, field, value)
        for field, tensors in (("input", function.inputs), ("output", function.outputs)):
            getattr(own, field)[:] = [tensor.name for tensor in tensors]
        held = {id(t): t for node in function.nodes for t in node.inputs if _is_constant(t)}
        constants = [
            onnx.helper.make_node("Constant", [], [tensor.name], value=self._constant(tensor))
            for tensor in held.values()
        ]
        operators = [*constants, *map(self._operator, function.nodes)]
        del own.node[:]
        own.node.extend(operators)
        return own


_GRAPH_FIELDS = (
    "node", "initializer", "sparse_initializer", "input", "output", "value_info", "quantization_annotation",
)  # fmt: skip

_LISTED_UNTIL = 4
"""The version of the file format from which initializers need not be listed among the inputs."""


def _is_constant(tensor: Any) -> bool:
    import onnx_graphsurgeon as gs

    return isinstance(tensor, gs.Constant)


def _named(tensor: TensorProto | SparseTensorProto, name: str) -> TensorProto | SparseTensorProto:
    """Return a constant under a name, itself if it has it."""
    if isinstance(tensor, SparseTensorProto):
        sparse = SparseTensorProto()
        sparse.CopyFrom(tensor)
        sparse.values.name = name
        return sparse
    if tensor.name == name:
        return tensor
    own = TensorProto()
    own.CopyFrom(tensor)
    own.name = name
    return own


def _is_same_value(was: AttributeProto, value: Any) -> bool:
    """Whether an attribute's value is what it was handed out as."""
    if was.ref_attr_name:
        return getattr(value, "name", None) == was.ref_attr_name
    held: Any = onnx.helper.get_attribute_value(was)
    if isinstance(held, bytes):
        held = held.decode()
    elif was.type == AttributeProto.STRINGS:
        held = [one.decode() for one in held]
    elif was.type in (AttributeProto.INTS, AttributeProto.FLOATS):
        held = list(held)
    return type(value) is type(held) and bool(value == held)


def _graph_without(graph: GraphProto, fields: Iterable[str]) -> GraphProto:
    return copy_without(ModelProto(graph=graph), *fields).graph


def _in_order_of(values: Any, was: Iterable[ValueInfoProto]) -> None:
    """Sort declarations as they were, new ones last."""
    place = {value.name: position for position, value in enumerate(was)}
    ordered = sorted(values, key=lambda value: place.get(value.name, len(place)))
    copies = [ValueInfoProto.FromString(value.SerializeToString()) for value in ordered]
    del values[:]
    values.extend(copies)


def _in_order(operators: list[NodeProto]) -> list[NodeProto]:
    """Return operators so that each comes after those it reads from, otherwise as they are; in a circle all are."""
    maker = {name: place for place, operator in enumerate(operators) for name in operator.output if name}
    needs = [{maker[name] for name in consumed(operator) if name in maker} for operator in operators]
    readers: list[list[int]] = [[] for _ in operators]
    for place, makers in enumerate(needs):
        for one in makers:
            readers[one].append(place)
    waits = [len(makers) for makers in needs]
    ready = [place for place, count in enumerate(waits) if not count]
    found = []
    while ready:
        place = heapq.heappop(ready)
        found.append(operators[place])
        for reader in readers[place]:
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, reader)
    return found if len(found) == len(operators) else operators
