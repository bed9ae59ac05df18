"""Bringing models to one version of each operator set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx
from onnx import ModelProto, NodeProto

from graphmod.errors import InvalidModelError, RefusedError
from graphmod.model import Model, inner_operators, with_inner
from graphmod.model.initializers import without_large_values
from graphmod.rewrite.element_types import STANDARD


def with_one_opset(models: Sequence[Model]) -> list[Model]:
    """Return the models at the highest version of each operator set that one of them imports.

    Where no operator of a model means something else in the higher version, only the number changes; else
    onnx.version_converter rewrites the operators that do. Weights are not touched.

    Raises
    ------
    RefusedError
        The converter cannot do it, or the set is none that it knows.
    """
    highest: dict[str, int] = {}
    for model in models:
        for domain, version in _imports(model._proto).items():
            highest[domain] = max(version, highest.get(domain, 0))
    return [_raised(model, highest) for model in models]


def _imports(proto: ModelProto) -> dict[str, int]:
    return {"" if entry.domain in STANDARD else entry.domain: entry.version for entry in proto.opset_import}


def _raised(model: Model, highest: dict[str, int]) -> Model:
    lower = {domain: version for domain, version in _imports(model._proto).items() if version < highest[domain]}
    if not lower:
        return model
    for domain, version in lower.items():
        inner = [op for operator in model.operators for op in inner_operators(operator)]
        inner += [op for function in model.functions for op in with_inner(function.node)]
        changed = _changed(inner, domain, version, highest[domain])
        main = _changed(model.operators, domain, version, highest[domain])
        told = f"a model has version {version} of operator set '{domain or 'ai.onnx'}', another {highest[domain]}"
        if changed or (main and domain):
            culprit = (changed or main)[0]
            where = "a subgraph or function, where onnx.version_converter does not convert" if changed else "it"
            raise RefusedError(
                f"{told}, and {culprit.op_type} '{culprit.name}' in {where}, means something else in it; export both "
                "with one version"
            )
        if main:
            model = converted(model, highest[domain], told)
    proto = model.editable()
    for entry in proto.opset_import:
        entry.version = highest["" if entry.domain in STANDARD else entry.domain]
    return Model(proto, model.folder)


def _changed(operators: Iterable[NodeProto], domain: str, low: int, high: int) -> list[NodeProto]:
    """Return the operators that are defined anew between two versions, or that ONNX has no definition of."""
    own = (op for op in operators if ("" if op.domain in STANDARD else op.domain) == domain)
    return [op for op in own if not _means_the_same(op.op_type, domain, low, high)]


def _means_the_same(op_type: str, domain: str, low: int, high: int) -> bool:
    if not onnx.defs.has(op_type, low, domain) or not onnx.defs.has(op_type, high, domain):
        return False
    before, after = (onnx.defs.get_schema(op_type, version, domain) for version in (low, high))
    return bool(before.since_version == after.since_version)


def converted(model: Model, to: int, told: str) -> Model:
    """Let onnx bring a model to a version of ONNX's own operator set.

    It rewrites the operators that mean something else in it; all others stay as they are, metadata included.

    Parameters
    ----------
    model : Model
    to : int
    told : str
        What a refusal begins with.

    Raises
    ------
    RefusedError
        The converter cannot do it.
    """
    bare = without_large_values(model._proto, model.folder)
    try:
        found = onnx.version_converter.convert_version(bare, to)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RefusedError(
            f"{told}, and onnx.version_converter fails: {reason}; export both with one version"
        ) from error
    proto = model.editable()
    before = {tuple(operator.output): operator for operator in model.operators}
    named = {operator.name: operator for operator in model.operators if operator.name}
    taken: set[str] = set()
    del proto.graph.node[:]
    for operator in found.graph.node:
        old = before.get(tuple(operator.output))
        own = proto.graph.node.add()
        if old is not None and old.op_type == operator.op_type and _means_the_same(old.op_type, "", model.opset, to):
            own.CopyFrom(old)
        else:
            own.CopyFrom(operator)
            _annotate(own, old or named.get(operator.name))
        while own.name in taken:
            own.name += "_"
        taken |= {own.name} - {""}
    known = {*model.initializers, *(value.name for value in bare.graph.input)}
    proto.graph.initializer.extend(t for t in found.graph.initializer if t.name not in known)
    for entry in proto.opset_import:
        if entry.domain in STANDARD:
            entry.version = to
    try:
        return model.derive(proto)
    except InvalidModelError as error:
        raise RefusedError(f"{told}, and what onnx.version_converter makes of it fails: {error}") from error


def _annotate(operator: NodeProto, old: NodeProto | None) -> None:
    """Give what the converter made the annotations of the operator that it was made from."""
    if old is not None:
        operator.name, operator.doc_string = old.name, old.doc_string
        del operator.metadata_props[:]
        operator.metadata_props.extend(old.metadata_props)
