"""Retyping: the same network in another float type, with Casts only where islands in the old one begin and end.

ONNX Runtime's ``transformers.float16`` and onnxconverter-common's, from which it comes, work from lists of operators to
leave alone, know float16 only, surround each such operator with Casts of its own, take no functions or external data,
and clip weights without a word. Here schemas and kernels decide, and what does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.external_data_helper import uses_external_data
from onnx.helper import make_attribute, tensor_dtype_to_np_dtype

from graphmod.errors import RefusedError
from graphmod.graph import find
from graphmod.graph.scope import GRAPHMOD_SCOPE
from graphmod.graph.scope import scope as scope_of
from graphmod.model import Model, consumed, copy_without, own_bodies
from graphmod.model.initializers import embed_all, inner_tensors, values
from graphmod.rewrite.draft import claim
from graphmod.rewrite.element_types import FLOATS
from graphmod.rewrite.precision import Choice, Plan, Scope, element_of, with_types
from graphmod.rewrite.rounding import retyped
from graphmod.rewrite.verb import verb


@verb(exact=False, example="graphmod retype resnet.onnx float16 --out half.onnx")
def retype(
    model: Model,
    to: Literal["float16", "bfloat16", "float32"],
    keep: str | None = None,
    keep_io: bool = True,
    saturate: bool = False,
) -> Model:
    """Let a model hold its weights and compute in another float type.

    All floats of the graph and of its subgraphs change: weights, constants, Casts, declarations. An operator whose
    schema does not allow the type stays in its own, and so does one that ONNX Runtime cannot run in it. ONNX Runtime's
    CPU kernels hardly know bfloat16: there it saves space, matrices are kept in it and cast when the model is loaded.
    Positions computed from integers stay in their precision until they meet data. Calls of functions stay as they are
    (inline them first). From float16 or bfloat16 to float32 nothing is lost.

    Parameters
    ----------
    model : Model
    to : {"float16", "bfloat16", "float32"}
        The type to compute in.
    keep : str, optional
        A selector of operators that stay as they are.
    keep_io : bool
        Whether the model's inputs and outputs keep their types.
    saturate : bool
        Whether weights too large for the type become its largest number instead of a refusal.

    Returns
    -------
    Model

    Raises
    ------
    RefusedError
        A weight is too large for the type, or the selector fits nothing.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> half = gm.retype(m, "float16", keep="Gemm")
    >>> m.n_bytes / half.n_bytes > 1.7, [op.op_type for op in half.operators].count("Cast")
    (True, 2)
    """
    matches = find(model, keep) if keep is not None else []
    if keep is not None and not matches:
        raise RefusedError(f"no operator matches the selector '{keep}' ('graphmod find --explain' says why)")
    kept = {name for match in matches for name in match.operators}
    if to not in _ELEMENTS:
        raise RefusedError(f"'{to}' is no type to compute in; the types are {', '.join(_ELEMENTS)}")
    element = _ELEMENTS[to]
    if not any(_floats_beside(model, element)):
        return model
    held = _with_attributes_inside(model)
    return model.derive(_Writer(held, Plan(held, element, kept, keep_io), saturate).proto())


def _with_attributes_inside(model: Model) -> Model:
    """Return a model none of whose attributes lies in a file: converting them needs their values."""
    if not any(map(uses_external_data, inner_tensors(model._proto))):
        return model
    proto = model.editable()
    embed_all(inner_tensors(proto), model.folder)
    return Model(proto, model.folder)


def _floats_beside(model: Model, element: int) -> Iterator[bool]:
    """Yield whether there are floats of another type: a model without any is left alone."""
    pending = [model._inferred.graph]
    while pending:
        graph = pending.pop()
        kinds = (element_of(value.type) for value in (*graph.value_info, *graph.input, *graph.output))
        yield from (kind in FLOATS and kind != element for kind in kinds)
        yield from (tensor.data_type in FLOATS and tensor.data_type != element for tensor in graph.initializer)
        pending += [body for operator in graph.node for body in own_bodies(operator)]


_ELEMENTS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT}

Version = tuple[Scope, str, int]
"""A tensor in an element type: the scope that defines it, its name in the file, the type."""


class _Writer:
    """Writes the graph that a plan describes."""

    def __init__(self, model: Model, plan: Plan, saturate: bool):
        self.model = model
        self.scopes = plan.scopes
        self.saturate = saturate
        self.names: dict[Version, str] = {}
        self.makers: dict[Version, NodeProto] = {}
        self.made: set[Version] = set()
        self.taken = dict.fromkeys((name for scope in plan.scopes for name in scope.types), 1)
        self.taken_by_operators = dict.fromkeys((op.name for scope in plan.scopes for op in scope.graph.node), 1)
        for scope in plan.scopes:
            self._name_outputs(scope)
            self._name_casts(scope)

    def proto(self) -> ModelProto:
        """Return the model."""
        inside: dict[Scope, list[GraphProto]] = {}
        for scope in reversed(self.scopes):  # bodies before what holds them, the last one first
            graph = self._graph(scope, inside.pop(scope, [])[::-1])
            if scope.outer is not None:
                inside.setdefault(scope.outer, []).append(graph)
        proto = copy_without(self.model._proto, *(field.name for field, _ in self.model._proto.graph.ListFields()))
        proto.graph.CopyFrom(graph)
        return proto

    # -- names

    def _name_outputs(self, scope: Scope) -> None:
        """Let every output of a graph keep its name, in the type that it is needed in."""
        declared = {value.name for value in (*scope.graph.input, *scope.graph.output)}
        ends = list(zip(scope.graph.output, scope.ends, strict=True))
        for value, element in sorted(ends, key=lambda end: end[0].name in scope.casts):
            home, root = scope.root(value.name)
            if home is not scope:
                continue
            by_operator = root not in scope.constants and root not in declared
            if root == value.name or element != scope.native[root] or by_operator:
                self.names.setdefault((scope, root, element), value.name)

    def _name_casts(self, scope: Scope) -> None:
        """Let what a Cast of the file made keep its name, and the Cast its own, where one is needed still."""
        named = {name for (home, _, _), name in self.names.items() if home is scope}
        for name, operator in scope.casts.items():
            home, root = scope.root(name)
            for element in sorted(scope.wanted.get(name, ()), key=lambda kind: kind != scope.types[name]):
                version = (scope, root, element)
                if home is scope and root != name and element != scope.native[root] and version not in self.makers:
                    self.makers[version] = operator
                    if name not in named and version not in self.names:
                        self.names[version] = name
                    break

    def _version(self, scope: Scope, tensor: str, element: int) -> str:
        """Return the name under which a tensor can be read in an element type."""
        home, root = scope.root(tensor)
        if home is None or element not in FLOATS or home.types[root] not in FLOATS:
            return tensor
        version = (home, root, element)
        if version not in self.names:
            spoken_for = any(self.names.get((home, root, kind)) == root for kind in FLOATS)
            keeps = element == home.native[root] and not spoken_for
            kind = tensor_dtype_to_np_dtype(element).name
            self.names[version] = root if keeps else claim(f"{root}_{kind}", self.taken)
        return self.names[version]

    # -- operators

    def _graph(self, scope: Scope, inside: list[GraphProto]) -> GraphProto:
        """Write a graph, with the bodies of its operators as they were written."""
        graph = GraphProto()
        graph.CopyFrom(GraphProto(name=scope.graph.name, doc_string=scope.graph.doc_string))
        graph.metadata_props.extend(scope.graph.metadata_props)
        graph.quantization_annotation.extend(scope.graph.quantization_annotation)
        bodies_left = iter(inside)
        for operator, choice in zip(scope.graph.node, scope.choices, strict=True):
            for name in consumed(operator):
                graph.node.extend(self._casts_of(scope, name, scope_of(operator)))
            if operator.op_type == "Cast" and operator.output[0] in scope.casts:
                graph.node.extend(self._recast(scope, operator))
            else:
                graph.node.append(self._operator(scope, operator, choice, bodies_left))
        for value, element in zip(scope.graph.output, scope.ends, strict=True):
            last = graph.node[-1] if graph.node else NodeProto()
            graph.node.extend(self._casts_of(scope, value.name, scope_of(last)))
            graph.output.append(self._end(scope, value, element, graph))
        graph.input.extend(_declared(value, scope.native[value.name]) for value in scope.graph.input)
        for tensor in scope.graph.initializer:
            graph.initializer.append(self._weight(scope, tensor))
        for sparse in scope.graph.sparse_initializer:
            graph.sparse_initializer.append(self._sparse(scope, sparse))
        graph.value_info.extend(self._annotations(scope))
        return graph

    def _operator(
        self, scope: Scope, operator: NodeProto, choice: Choice, bodies_left: Iterator[GraphProto]
    ) -> NodeProto:
        old = [scope.type_of(name) for name in operator.output]
        makes = [
            kind if name not in scope.constants else scope.native[name]
            for name, kind in zip(operator.output, choice.makes, strict=True)
        ]
        fresh = with_types(operator, old, makes, self.saturate)
        for i, (name, element) in enumerate(zip(operator.input, choice.reads, strict=True)):
            fresh.input[i] = self._version(scope, name, element) if name else ""
        for i, (name, element) in enumerate(zip(operator.output, makes, strict=True)):
            fresh.output[i] = self._version(scope, name, element) if name else ""
        for body in own_bodies(fresh):
            body.CopyFrom(next(bodies_left))
        return fresh

    def _recast(self, scope: Scope, operator: NodeProto) -> Iterator[NodeProto]:
        """Yield what becomes of a Cast: nothing if it casts floats, else one for each type that is wanted."""
        source, made = operator.input[0], operator.output[0]
        if scope.root(made)[1] != made:
            return
        for number, element in enumerate(sorted(scope.wanted.get(made, {scope.native[made]}))):
            yield self._cast(source, self._version(scope, made, element), element, operator, again=number > 0)

    def _casts_of(self, scope: Scope, tensor: str, path: str) -> Iterator[NodeProto]:
        """Yield the Casts to the types in which a tensor that this scope defines is wanted, at its first reader."""
        home, root = scope.root(tensor)
        if home is not scope or scope.types[root] not in FLOATS or root in scope.casts:
            return
        for element in sorted(scope.wanted.get(root, set()) - {scope.native[root]}):
            version = (scope, root, element)
            if version not in self.made:
                self.made.add(version)
                source, made = self._version(scope, root, scope.native[root]), self._version(scope, root, element)
                yield self._cast(source, made, element, self.makers.get(version), scope=path)

    def _cast(
        self, source: str, made: str, element: int, like: NodeProto | None, again: bool = False, scope: str = ""
    ) -> NodeProto:
        fresh = NodeProto(op_type="Cast")
        if like is not None:
            fresh.CopyFrom(like)
            del fresh.input[:], fresh.output[:]
        elif scope:
            fresh.metadata_props.add(key=GRAPHMOD_SCOPE, value=scope)
        if like is None or again:
            fresh.name = claim(f"{made}_cast", self.taken_by_operators)
        fresh.input.append(source)
        fresh.output.append(made)
        kept = [attribute for attribute in fresh.attribute if attribute.name != "to"]
        del fresh.attribute[:]
        fresh.attribute.extend([*kept, make_attribute("to", element)])
        return fresh

    def _end(self, scope: Scope, value: ValueInfoProto, element: int, graph: GraphProto) -> ValueInfoProto:
        """Return the declaration of an output; where another has its tensor, let a Cast hand it over."""
        made = self._version(scope, value.name, element)
        if made != value.name and scope.types.get(value.name) in FLOATS:
            graph.node.append(self._cast(made, value.name, element, scope.casts.get(value.name)))
            made = value.name
        fresh = _declared(value, element)
        fresh.name = made
        return fresh

    # -- tensors

    def _weight(self, scope: Scope, tensor: TensorProto) -> TensorProto:
        element = scope.native[tensor.name]
        if element == tensor.data_type:
            fresh = TensorProto()
            fresh.CopyFrom(tensor)
        else:
            fresh = retyped(tensor, values(tensor, self.model.folder), element, self.saturate)
        fresh.name = self._version(scope, tensor.name, element)
        return fresh

    def _sparse(self, scope: Scope, tensor: SparseTensorProto) -> SparseTensorProto:
        fresh = SparseTensorProto()
        fresh.CopyFrom(tensor)
        element = scope.native[tensor.values.name]
        if element != tensor.values.data_type:
            fresh.values.CopyFrom(retyped(tensor.values, numpy_helper.to_array(tensor.values), element, self.saturate))
        return fresh

    def _annotations(self, scope: Scope) -> Iterator[ValueInfoProto]:
        """Yield what the file says of inner tensors, in their new types."""
        made = {name: kind for (home, _, kind), name in self.names.items() if home is scope}
        for value in scope.graph.value_info:
            if scope.types.get(value.name) not in FLOATS:
                yield value
            elif value.name in made:
                yield _declared(value, made[value.name])


def _declared(value: ValueInfoProto, element: int) -> ValueInfoProto:
    fresh = ValueInfoProto()
    fresh.CopyFrom(value)
    if fresh.type.tensor_type.elem_type in FLOATS:
        fresh.type.tensor_type.elem_type = element
    return fresh
