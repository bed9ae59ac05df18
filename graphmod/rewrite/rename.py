"""Renaming: by name, by regular expression, or from the scopes that an exporter noted.

Names of tensors are mapped one to one over the main graph and all subgraphs at once, so that whatever reads, captures
or shadows a tensor still does. Functions have names of their own, which stay.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto

from graphmod.errors import RefusedError
from graphmod.graph.scope import GRAPHMOD_SCOPE, scope
from graphmod.model import Model, with_inner
from graphmod.rewrite.draft import claim, tensor_names
from graphmod.rewrite.names import graphs, rename_tensors
from graphmod.rewrite.verb import verb

Mapped = dict[str, str]

ANONYMOUS = re.compile(r"\d+|onnx::.*|val_\d+|[A-Z]\w*_\d+(_output_\d+)?")
"""What exporters call tensors for which the source has no name."""

ROLES = {
    "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var"),
    "Add": ("bias", "bias"),
    **dict.fromkeys(("MatMul", "Gather", "Embedding"), ("weight", "weight")),
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), ("", "weight", "bias")),
    **dict.fromkeys(
        ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization"),
        ("", "weight", "bias"),
    ),
}
"""What PyTorch calls the constants that an operator reads, by input."""


@verb(exact=True, example='graphmod rename resnet.onnx --names \'{"input.1": "image"}\' --out named.onnx')
def rename(
    model: Model,
    names: dict[str, str] | None = None,
    only: Literal["tensors", "operators"] | None = None,
    dims: dict[str, str] | None = None,
    from_scopes: bool = False,
    missing: bool = False,
) -> Model:
    r"""Give tensors, operators and symbolic dimensions other names.

    Parameters
    ----------
    model : Model
    names : dict of str to str, optional
        New names by old ones. A key between slashes that is no name is a regular expression, all of whose matches in a
        name are replaced, ``{"/layer([0-9]+)/": "stage\\1"}``.
    only : str, optional
        What ``names`` is about, ``tensors`` or ``operators``; both if None.
    dims : dict of str to str, optional
        New names of symbolic dimensions, by old ones.
    from_scopes : bool
        Whether operators are called after the module that they come from (``layer1.0.conv1``), and tensors and
        weights whose names say nothing (``onnx::Conv_123``) after their operator (``layer1.0.conv1.weight``).
    missing : bool
        Whether operators without a name, or with one that another has, are first called after their type and position.

    Returns
    -------
    Model
        The same model by other names; operators whose old name told their scope keep it as metadata.

    Raises
    ------
    RefusedError
        There is nothing of an old name, an expression is none or matches nothing, or two things would share a name.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.rename(gm.load(gm.demo.model_path()), {"image": "pixels", r"/^layer(\d)\b/": r"stage\1"})
    >>> list(m.inputs)
    ['pixels']
    """
    unnamed, model = model, _with_names(model) if missing else model
    tensors = list(dict.fromkeys(tensor_names(model._proto.graph, model._proto.graph.node)))
    operators = list(dict.fromkeys(name for name in _operator_names(model._proto.graph) if name))
    by_tensor: Mapped = {}
    by_operator = _operators_from_scopes(model) if from_scopes else {}
    if from_scopes:
        by_tensor = _tensors_from_scopes(model, by_operator)
    if names:
        chosen = {"tensors": tensors, "operators": operators}
        pools = [chosen[only]] if only else [tensors, operators]
        fresh = _mapped(names, pools)
        by_tensor |= fresh if only != "operators" else {}
        by_operator |= fresh if only != "tensors" else {}
    by_tensor = _changes(by_tensor, tensors, "tensors")
    by_operator = _changes(by_operator, operators, "operators")
    by_dim = _changes(_known_dims(model, dims or {}), list(_dims(model._proto)), "dimensions")
    if model is unnamed and not (by_tensor or by_operator or by_dim):
        return model
    if model._proto.training_info:
        raise RefusedError("the model carries training information, which refers to tensors by name; remove it first")
    edited = model.editable()
    _apply(edited.graph, by_tensor, by_operator)
    for dim in _dimensions(edited):
        if dim.dim_param in by_dim:
            dim.dim_param = by_dim[dim.dim_param]
    return model.derive(edited)


def _with_names(model: Model) -> Model:
    """Return the model with the names by which :attr:`Model.operator_names` knows its operators."""
    if all(op.name == name for op, name in zip(model.operators, model.operator_names, strict=True)):
        return model
    edited = model.editable()
    for operator, name in zip(edited.graph.node, model.operator_names, strict=True):
        operator.name = name
    return Model(edited, model.folder)


# -- which names


def _mapped(names: Mapping[str, str], pools: Iterable[Iterable[str]]) -> Mapped:
    """Return the new names that a user's mapping gives to some of the pools' names."""
    there = [name for pool in pools for name in pool]
    known = set(there)
    exact = {old: new for old, new in names.items() if old in known}
    patterns = {old: new for old, new in names.items() if old not in known}
    found = dict(exact)
    for old, new in patterns.items():
        if len(old) < 3 or old[0] != "/" or old[-1] != "/":
            raise RefusedError(f"there is no tensor or operator '{old}'; a regular expression stands between slashes")
        try:
            expression = re.compile(old[1:-1])
            changed = {
                name: fresh
                for name in there
                if name not in exact and (fresh := expression.sub(new, found.get(name, name))) != found.get(name, name)
            }
        except (re.error, IndexError) as error:
            raise RefusedError(f"'{old}' with '{new}' is no regular expression and replacement: {error}") from error
        if not changed and not any(expression.search(name) for name in there):
            raise RefusedError(f"the expression '{old}' matches no name")
        found |= changed
    return found


def _changes(wanted: Mapped, there: list[str], what: str) -> Mapped:
    """Return what a mapping changes, once no two names become one."""
    known = set(there)
    changed = {old: new for old, new in wanted.items() if old in known and old != new}
    owner: Mapped = {}
    for old in there:
        new = changed.get(old, old)
        if not new:
            raise RefusedError(f"'{old}' of the {what} would have no name")
        if new in owner:
            raise RefusedError(f"{what} '{owner[new]}' and '{old}' would both be called '{new}'")
        owner[new] = old
    return changed


def _known_dims(model: Model, wanted: Mapped) -> Mapped:
    there = set(_dims(model._proto))
    for old in wanted:
        if old not in there:
            raise RefusedError(f"there is no dimension '{old}'; the model has {', '.join(sorted(there)) or 'none'}")
    return wanted


# -- names from scopes


def _operators_from_scopes(model: Model) -> Mapped:
    """Return for the operators of modules the dotted path, with the operator's type where the module has several."""
    scopes = [scope(operator) for operator in model.operators]
    n_within: Counter[str] = Counter()
    for path in scopes:
        parts = path.split(".")
        n_within.update(".".join(parts[: i + 1]) for i in range(len(parts)))
    free = [op.name for op, path in zip(model.operators, scopes, strict=True) if not path]
    taken = dict.fromkeys((*free, *_inner_operator_names(model._proto.graph)), 1)
    found = {}
    for operator, path in zip(model.operators, scopes, strict=True):
        if path and operator.name:
            own = path if n_within[path] == 1 else f"{path}.{operator.op_type}"
            found[operator.name] = claim(own, taken)
    return found


def _tensors_from_scopes(model: Model, by_operator: Mapped) -> Mapped:
    """Return for tensors whose names say nothing names after the operator that makes or first reads them."""
    signature = {*model.inputs, *model.outputs}
    names = tensor_names(model._proto.graph, model.operators)
    taken = {name: 1 for name in names if name in signature or not ANONYMOUS.fullmatch(name)}
    found: Mapped = {}
    for operator in model.operators:
        path = scope(operator)
        if not path or operator.name not in by_operator:
            continue
        for i, name in enumerate(operator.input):
            if name in model.initializers and name not in found and name not in taken:
                found[name] = claim(f"{path}.{_role(operator, i, model.opset)}", taken)
        for i, name in enumerate(operator.output):
            if name and name not in taken:
                number = f".{i}" if len(operator.output) > 1 else ""
                found[name] = claim(f"{by_operator[operator.name]}{number}", taken)
    return found


def _role(operator: NodeProto, i: int, opset: int) -> str:
    """Return what a constant is to its operator: PyTorch's word, else the standard's."""
    roles = ROLES.get(operator.op_type, ())
    if i < len(roles) and roles[i] and not operator.domain:
        return roles[i]
    if not onnx.defs.has(operator.op_type, opset, operator.domain):
        return f"input{i}"
    formal = onnx.defs.get_schema(operator.op_type, opset, operator.domain).inputs
    return formal[i].name.lower() if i < len(formal) else f"{formal[-1].name.lower()}{i}" if formal else f"input{i}"


# -- where names stand


def _operator_names(graph: GraphProto) -> Iterator[str]:
    return (operator.name for operator in with_inner(graph.node))


def _inner_operator_names(graph: GraphProto) -> Iterator[str]:
    return (operator.name for one in graphs(graph) if one is not graph for operator in one.node)


def _apply(graph: GraphProto, by_tensor: Mapped, by_operator: Mapped) -> None:
    """Rename tensors and operators of a graph and its subgraphs in place."""
    rename_tensors(graph, by_tensor)
    for operator in with_inner(graph.node):
        if operator.name in by_operator:
            _rename_operator(operator, by_operator[operator.name])


def _rename_operator(operator: NodeProto, name: str) -> None:
    """Give an operator another name; a scope that only the old one told goes into the metadata."""
    before = scope(operator)
    operator.name = name
    if before and not scope(operator):
        operator.metadata_props.add(key=GRAPHMOD_SCOPE, value=before)


def _dims(proto: ModelProto) -> Iterator[str]:
    return iter(dict.fromkeys(dim.dim_param for dim in _dimensions(proto) if dim.dim_param))


def _dimensions(proto: ModelProto) -> Iterator[TensorShapeProto.Dimension]:
    """Yield the dimensions in the declarations of a model's tensors, those of its functions included."""
    values: list[ValueInfoProto] = [value for function in proto.functions for value in function.value_info]
    for one in graphs(proto.graph):
        values += [*one.input, *one.output, *one.value_info]
    pending = [value.type for value in values]
    while pending:
        kind = pending.pop()
        inner, own = _inside(kind)
        if own is not None:
            yield from own
        pending += inner


def _inside(kind: TypeProto) -> tuple[list[TypeProto], Iterable[TensorShapeProto.Dimension] | None]:
    """Return the types that a type is made of, and its own dimensions."""
    match kind.WhichOneof("value"):
        case "tensor_type":
            return [], kind.tensor_type.shape.dim
        case "sparse_tensor_type":
            return [], kind.sparse_tensor_type.shape.dim
        case "sequence_type":
            return [kind.sequence_type.elem_type], None
        case "optional_type":
            return [kind.optional_type.elem_type], None
        case "map_type":
            return [kind.map_type.value_type], None
    return [], None
