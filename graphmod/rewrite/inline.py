"""Inlining: calls of a model's functions become the operators of their bodies.

onnx's own inliner does the work. Around it this file keeps weights out of its copies, mends functions that hand an
input on as an output (the inliner loses it), and carries over what belongs to the call: its scope and, where
:func:`graphmod.outline` made the function, the names, doc strings and metadata that the operators had before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
import onnx.inliner
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from graphmod.errors import RefusedError
from graphmod.graph.scope import GRAPHMOD_SCOPE, scope
from graphmod.model import Model, copy_without, own_bodies, with_inner
from graphmod.rewrite.names import Call, key_of, rename_tensors
from graphmod.rewrite.verb import verb

ORIGINALS = "graphmod.outlined"
"""Metadata key under which a call made by ``outline`` keeps what is its own of the operators that it stands for."""

Key = tuple[str, str]
Graph = GraphProto | FunctionProto


@verb(exact=True, example="graphmod inline outlined.onnx --out flat.onnx")
def inline(model: Model, functions: list[str] | None = None) -> Model:
    """Put the bodies of model-local functions in the place of their calls.

    Parameters
    ----------
    model : Model
    functions : list of str, optional
        The functions to inline, as ``domain::name``; all if None.

    Returns
    -------
    Model
        Without these functions. The operators take on the scopes of their calls. What ``outline`` made has its names,
        doc strings and metadata back.

    Raises
    ------
    RefusedError
        There is no such function, functions call each other in a circle, or one is written for another version of an
        operator set, under which its operators mean something else.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> flat = gm.inline(gm.outline(m))
    >>> len(flat.operators) == len(m.operators), len(flat.functions)
    (True, 0)
    """
    chosen = _chosen(model, functions)
    if not chosen:
        return model
    bare = copy_without(model._proto, "initializer")
    bare.graph.initializer.extend(
        TensorProto(name=t.name, data_type=t.data_type, dims=t.dims) for t in model._proto.graph.initializer
    )
    _unify_versions(bare, chosen)
    for function in bare.functions:
        _part_outputs_from_inputs(function)
    try:
        flat = onnx.inliner.inline_selected_functions(bare, sorted(chosen))
    except (RuntimeError, onnx.checker.ValidationError) as error:
        raise RefusedError(f"the functions cannot be inlined: {' '.join(str(error).split())}") from error
    edited = copy_without(model._proto, "node", "value_info")
    _carry(bare, flat.graph, chosen)
    edited.graph.node.extend(flat.graph.node)
    edited.graph.value_info.extend(flat.graph.value_info)
    for field in (edited.functions, edited.opset_import):
        del field[:]
    edited.functions.extend(flat.functions)
    edited.opset_import.extend(_imports(flat, {domain for domain, _ in chosen}))
    return model.derive(edited)


def _chosen(model: Model, functions: Sequence[str] | None) -> set[Key]:
    there = {f"{function.domain}::{function.name}": (function.domain, function.name) for function in model.functions}
    for name in functions or ():
        if name not in there:
            raise RefusedError(f"the model has no function '{name}'; it has {', '.join(there) or 'none'}")
    return set(there.values()) if functions is None else {there[name] for name in functions}


def _unify_versions(proto: ModelProto, chosen: set[Key]) -> None:
    """Let functions import the versions that the model imports, where that changes none of their operators."""
    opsets = {_domain(entry.domain): entry.version for entry in proto.opset_import}
    for function in proto.functions:
        if (function.domain, function.name) not in chosen:
            continue
        for entry in function.opset_import:
            domain = _domain(entry.domain)
            if domain not in opsets:
                opsets[domain] = entry.version
                proto.opset_import.add(domain=entry.domain, version=entry.version)
            if opsets[domain] == entry.version:
                continue
            for operator in with_inner(function.node):
                if _domain(operator.domain) == domain and not _means_the_same(
                    operator, entry.version, opsets[domain], (operator.domain, operator.op_type) in chosen
                ):
                    raise RefusedError(
                        f"function '{function.domain}::{function.name}' uses {operator.op_type} of version "
                        f"{entry.version} of operator set '{domain or 'ai.onnx'}', and the model imports "
                        f"{opsets[domain]}; convert the function first"
                    )
            entry.version = opsets[domain]


def _means_the_same(operator: NodeProto, old: int, new: int, is_call: bool) -> bool:
    domain = _domain(operator.domain)
    known = [onnx.defs.has(operator.op_type, version, domain) for version in (old, new)]
    if not all(known):
        return is_call
    versions = {onnx.defs.get_schema(operator.op_type, version, domain).since_version for version in (old, new)}
    return len(versions) == 1


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _part_outputs_from_inputs(function: FunctionProto) -> None:
    """Let an operator make every output, each once."""
    taken = {*function.input, *(name for operator in with_inner(function.node) for name in operator.output)}
    seen = set(function.input)
    for i, name in enumerate(function.output):
        if name in seen:
            fresh = f"{name}_out"
            while fresh in taken:
                fresh += "_"
            taken.add(fresh)
            function.node.add(op_type="Identity", input=[name], output=[fresh])
            function.output[i] = fresh
            if not any(_domain(entry.domain) == "" for entry in function.opset_import):
                function.opset_import.add(domain="", version=onnx.defs.onnx_opset_version())
        seen.add(name)


def _imports(proto: ModelProto, domains: set[str]) -> Iterable[onnx.OperatorSetIdProto]:
    """Yield what the model imports, without domains that only the functions inlined belonged to."""
    used = {_domain(op.domain) for graph in (proto.graph, *proto.functions) for op in with_inner(graph.node)}
    return [entry for entry in proto.opset_import if entry.domain not in domains or _domain(entry.domain) in used]


# -- what belongs to the call


def _carry(bare: ModelProto, flat: GraphProto, chosen: set[Key]) -> None:
    """Give operators that came from a call what the call knows about them; the inliner keeps the order of operators."""
    functions = {(f.domain, f.name, f.overload): f for f in bare.functions if (f.domain, f.name) in chosen}
    sizes = _sizes(functions)
    names = _Names(flat)
    pending: list[tuple[Graph, Graph]] = [(bare.graph, flat)]
    while pending:
        before, after = pending.pop()
        made = iter(after.node)
        for operator in before.node:
            size = sizes.get(key_of(operator))
            if size is None:
                pending.extend(zip(own_bodies(operator), own_bodies(next(made)), strict=True))
                continue
            inlined = [next(made) for _ in range(size)]
            told = _originals(operator, inlined)
            for i, one in enumerate(inlined):
                _scope_within(one, scope(operator))
                if told:
                    names.restore(one, told[i])
    names.apply()


def _sizes(functions: Mapping[Call, FunctionProto]) -> dict[Call, int]:
    """Return how many operators a call of each function becomes."""
    sizes: dict[Call, int] = {}
    pending = list(functions)
    while pending:
        key = pending[-1]
        calls = [key_of(op) for op in functions[key].node if key_of(op) in functions]
        unknown = [callee for callee in calls if callee not in sizes]
        pending.extend(unknown)
        if not unknown:
            sizes[key] = len(functions[key].node) - len(calls) + sum(sizes[callee] for callee in calls)
            pending.pop()
    return sizes


def _scope_within(operator: NodeProto, outer: str) -> None:
    """Note the scope of an operator of a body, which is either the exporter's or relative to that of the call."""
    inner = scope(operator)
    if not outer or inner == outer or inner.startswith(f"{outer}."):
        return
    entry = next((e for e in operator.metadata_props if e.key == GRAPHMOD_SCOPE), None)
    entry = entry or operator.metadata_props.add(key=GRAPHMOD_SCOPE)
    entry.value = f"{outer}.{inner}" if inner else outer


def _originals(call: NodeProto, inlined: Sequence[NodeProto]) -> list[dict[str, Any]]:
    """Return what the call keeps of the operators it stands for, nothing where it is of another origin."""
    text = next((entry.value for entry in call.metadata_props if entry.key == ORIGINALS), None)
    if text is None:
        return []
    try:
        told = json.loads(text)
        fits = [len(one["outputs"]) for one in told] == [len(operator.output) for operator in inlined]
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(
            f"the metadata '{ORIGINALS}' of operator '{call.name}' is none of outline's; remove that entry"
        ) from error
    return list(told) if fits else []


class _Names:
    """Names of tensors that go back to what they were, where nothing else has taken the name since."""

    def __init__(self, graph: GraphProto):
        self.graph = graph
        self.instead: dict[str, str] = {}
        fixed = {value.name for value in (*graph.input, *graph.output)}
        fixed |= {tensor.name for tensor in graph.initializer}
        fixed |= {tensor.values.name for tensor in graph.sparse_initializer}
        self.taken = fixed | {name for operator in with_inner(graph.node) for name in operator.output}
        self.fixed = fixed

    def restore(self, operator: NodeProto, told: Mapping[str, Any]) -> None:
        """Give an operator its name, doc string and metadata back, and plan the names of what it makes."""
        for field in ("name", "doc_string"):
            operator.ClearField(field)
            if told.get(field):
                setattr(operator, field, told[field])
        del operator.metadata_props[:]
        for key, value in told.get("metadata_props", {}).items():
            operator.metadata_props.add(key=key, value=value)
        for now, then in zip(operator.output, told["outputs"], strict=True):
            if now and then and now != then and then not in self.taken and now not in self.fixed:
                self.instead[now] = then
                self.taken.add(then)

    def apply(self) -> None:
        """Rename tensors wherever they stand."""
        rename_tensors(self.graph, self.instead)
