"""Grafting: the operators of another model put into a draft, under names, functions and operator sets of the draft."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from graphmod.errors import RefusedError
from graphmod.graph.scope import GRAPHMOD_SCOPE, scope
from graphmod.model import Model, with_inner
from graphmod.rewrite.draft import Draft, tensor_names
from graphmod.rewrite.names import Call, key_of, rename_calls, rename_tensors
from graphmod.rewrite.opsets import converted
from graphmod.rewrite.tensors import tensor_type_of

FUNCTIONS_SINCE = 8
"""The version of the file format that brought functions."""

_LISTED_UNTIL = 4
"""The version of the file format from which initializers among the inputs are defaults, and no constants."""


def graft(
    draft: Draft,
    part: Model,
    reads: Mapping[str, str],
    makes: Mapping[str, str],
    *,
    prefix: str,
    at: NodeProto | None = None,
    within: str = "",
) -> None:
    """Put copies of all operators of a model into a draft, with what they need.

    Parameters
    ----------
    draft : Draft
    part : Model
        In the draft's operator sets, see :func:`adapted`.
    reads : mapping of str to str
        For every input of the part, the tensor of the draft that it becomes.
    makes : mapping of str to str
        For outputs of the part, the tensor of the draft that they become; it must have no other producer by the end.
    prefix : str
        What names of new operators and tensors begin with.
    at : NodeProto, optional
        As for :meth:`Draft.add`.
    within : str
        The scope of what the operators replace; their own follows it.

    Raises
    ------
    RefusedError
        The two import different versions of an operator set.
    """
    source = part.proto() if part.folder not in (None, draft.model.folder) else part._proto
    graph = source.graph
    passed = {name: tensor for name, tensor in makes.items() if name not in part.producer}
    names = {**reads, **{name: tensor for name, tensor in makes.items() if name not in passed}, "": ""}
    for name in tensor_names(graph, graph.node):
        if name not in names:
            names[name] = draft.unused(f"{prefix}/{name}")
    _import_sets(draft, part)
    calls = _adopt_functions(draft.proto, source.functions)
    for tensor in graph.initializer:
        if tensor.name not in reads:
            draft.add_initializer(_renamed_tensor(tensor, names))
    for sparse in graph.sparse_initializer:
        own = draft.graph.sparse_initializer.add()
        own.CopyFrom(sparse)
        own.values.name = names[sparse.values.name]
    operators = [renamed(operator, names, calls) for operator in graph.node]
    operators += [
        NodeProto(op_type="Identity", input=[names[name]], output=[tensor]) for name, tensor in passed.items()
    ]
    for operator in operators:
        operator.name = draft.unused_operator(f"{prefix}/{operator.name or operator.op_type}")
        set_scope(operator, ".".join(part for part in (within, scope(operator)) if part))
    draft.add(operators, at)
    annotate(draft, graph, names, symbols=False)


def annotate(draft: Draft, graph: GraphProto, names: Mapping[str, str], *, symbols: bool) -> None:
    """Say of tensors of a draft what a graph says of those that they are copies of.

    Parameters
    ----------
    draft : Draft
    graph : GraphProto
    names : mapping of str to str
        From the graph's tensors to their copies.
    symbols : bool
        Whether symbols mean the same sizes in both.
    """
    for value in [value for value in graph.value_info if value.name in names]:
        own = draft.graph.value_info.add()
        own.CopyFrom(value)
        own.name = names[value.name]
        for dim in () if symbols else tensor_type_of(own.type).shape.dim:
            if dim.HasField("dim_param"):
                dim.ClearField("dim_param")
    for annotation in [one for one in graph.quantization_annotation if one.tensor_name in names]:
        copy = draft.graph.quantization_annotation.add()
        copy.CopyFrom(annotation)
        copy.tensor_name = names[annotation.tensor_name]
        for entry in copy.quant_parameter_tensor_names:
            entry.value = names.get(entry.value, entry.value)


def renamed(operator: NodeProto, names: Mapping[str, str], calls: Mapping[Call, str] | None = None) -> NodeProto:
    """Return a copy of an operator, subgraphs included, with other names of tensors and of the functions it calls."""
    around = GraphProto(node=[operator])
    rename_tensors(around, names)
    rename_calls(around.node, calls or {})
    own: NodeProto = around.node[0]
    return own


def set_scope(operator: NodeProto, path: str) -> None:
    """Note in an operator's metadata the scope that it lies in."""
    if path == scope(operator):
        return
    others = [(entry.key, entry.value) for entry in operator.metadata_props if entry.key != GRAPHMOD_SCOPE]
    del operator.metadata_props[:]
    for key, value in ((GRAPHMOD_SCOPE, path), *others):
        operator.metadata_props.add(key=key, value=value)


def raise_format(proto: ModelProto, version: int) -> None:
    """Bring a model to a version of the file format, or leave it at a higher one; constants stay constants."""
    if proto.ir_version < _LISTED_UNTIL <= version:
        graph = proto.graph
        constant = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        inputs = [value for value in graph.input if value.name not in constant]
        graph.ClearField("input")
        graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, version)


def adapted(part: Model, host: Model) -> Model:
    """Return a model in the version of ONNX's own operator set that another model imports.

    A model whose operators mean the same in both versions is returned as it is; onnx's converter changes others.

    Raises
    ------
    RefusedError
        The converter cannot.
    """
    if host.opset in (0, part.opset) or not _changed(part, host.opset):
        return part
    told = f"the other model has operator set {part.opset}, this one {host.opset}"
    if part.functions or part._proto.graph.sparse_initializer:
        raise RefusedError(f"{told}, and models with functions or sparse initializers cannot be converted")
    return converted(part, host.opset, told)


def _changed(part: Model, opset: int) -> list[str]:
    """Return the types of operators whose definition differs between a model's operator set and another version."""
    types = {one.op_type for one in with_inner(part.operators) if one.domain in ("", "ai.onnx")}
    return sorted(name for name in types if _definition(name, part.opset) != _definition(name, opset))


def _definition(op_type: str, opset: int) -> int:
    known = onnx.defs.has(op_type, opset, "")
    return int(onnx.defs.get_schema(op_type, opset, "").since_version) if known else 0


def _import_sets(draft: Draft, part: Model) -> None:
    imported = {_domain(one.domain): one.version for one in draft.proto.opset_import}
    for one in part._proto.opset_import:
        domain = _domain(one.domain)
        if domain not in imported:
            draft.proto.opset_import.append(one)
        elif (
            domain
            and imported[domain] != one.version
            and any(op.domain == one.domain for op in with_inner(part.operators))
        ):
            raise RefusedError(
                f"the other model uses version {one.version} of operator set '{one.domain}', this one "
                f"{imported[domain]}; bring both to the same version"
            )


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _adopt_functions(proto: ModelProto, functions: Iterable[FunctionProto]) -> dict[Call, str]:
    """Add functions to a model, and return the new names of those whose name another function has there."""
    there = {key_of(one): _content(one) for one in proto.functions}
    coming = {key_of(one): one for one in functions}
    if not coming:
        return {}
    clashing = {key for key, one in coming.items() if key in there and there[key] != _content(one)}
    grown = True
    while grown:  # what calls a renamed function is another function than the one of its name
        calling = {key for key, one in coming.items() if _calls(one) & clashing} - clashing
        grown = bool(calling)
        clashing |= calling
    calls: dict[Call, str] = {}
    for key in sorted(clashing):
        domain, name, overload = key
        free = (f"{name}_{number}" for number in count(2))
        same = _content(coming[key])
        calls[key] = next(
            n for n in free if (domain, n, overload) not in coming and there.get((domain, n, overload), same) == same
        )
    for key, one in coming.items():
        if (key[0], calls.get(key, key[1]), key[2]) in there:
            continue
        own = proto.functions.add()
        own.CopyFrom(one)
        own.name = calls.get(key, own.name)
        rename_calls(own.node, calls)
    raise_format(proto, FUNCTIONS_SINCE)
    return calls


def _calls(function: FunctionProto) -> set[Call]:
    return set(map(key_of, with_inner(function.node)))


def _content(function: FunctionProto) -> bytes:
    """Return all of a function but its name."""
    unnamed = FunctionProto()
    unnamed.CopyFrom(function)
    unnamed.ClearField("name")
    return bytes(unnamed.SerializeToString(deterministic=True))


def _renamed_tensor(tensor: TensorProto, names: Mapping[str, str]) -> TensorProto:
    own = TensorProto()
    own.CopyFrom(tensor)
    own.name = names[tensor.name]
    return own
