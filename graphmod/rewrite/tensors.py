"""Inner tensors: how users name them, and how a graph declares them as inputs or outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx
from onnx import TensorProto, TypeProto, ValueInfoProto

from graphmod.errors import InvalidModelError, RefusedError
from graphmod.graph import Block, blocks, find
from graphmod.model import Model, inner_operators

_WRAPPED = re.compile(r"(seq|optional)\((.*)\)")
_TENSOR = re.compile(r"tensor\((\w+)\)")


def named_tensors(model: Model, place: str | Block) -> list[str]:
    """Return the tensors of the main graph that a user named.

    Parameters
    ----------
    model : Model
    place : str or Block
        A tensor, a block or its path (the block's exit), an operator (its first output), or a selector (the first
        outputs of the last operators of all its matches).

    Raises
    ------
    RefusedError
        There is nothing of that name, or nothing matches.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> named_tensors(m, "layer1.0") == [gm.blocks(m)["layer1.0"].exit]
    True
    """
    if isinstance(place, Block):
        return [place.exit]
    if place in model.producer or place in model.inputs or place in model.constants:
        return [place]
    exit_ = _exit(model, place)
    if exit_ is not None:
        return [exit_]
    if place in model.position:
        return [_first_output(model, place)]
    if place in _inside(model):
        raise RefusedError(
            f"tensor '{place}' is made in a subgraph of operator '{_inside(model)[place]}', out of reach of the main "
            "graph; name the output of that operator"
        )
    nothing = f"there is no tensor, block or operator '{place}'"
    try:
        matches = find(model, place)
    except RefusedError as error:
        raise RefusedError(f"{nothing}; and as a selector: {error}") from error
    if not matches:
        raise RefusedError(f"{nothing}, and no operator matches it as a selector ('graphmod find --explain' says why)")
    return list(dict.fromkeys(_first_output(model, match.operators[-1]) for match in matches))


def _exit(model: Model, path: str) -> str | None:
    try:
        return next((block.exit for block in blocks(model).walk() if block.path == path and path), None)
    except InvalidModelError:  # the model has no trunk
        return None


def _first_output(model: Model, operator: str) -> str:
    made = model.operators[model.position[operator]].output
    return str(next(name for name in made if name))


def _inside(model: Model) -> dict[str, str]:
    """Return the tensors that subgraphs make, and the operator of the main graph that each is in."""
    found: dict[str, str] = {}
    for name, operator in zip(model.operator_names, model.operators, strict=True):
        found.update((made, name) for inner in inner_operators(operator) for made in inner.output if made)
    return found


def declarations(model: Model, names: Iterable[str]) -> list[ValueInfoProto]:
    """Return how a graph declares tensors of the main graph as its inputs or outputs.

    Types are those of shape inference, else those that ONNX Runtime finds; symbols of dimensions that only inference
    made up are left out, because equal ones need not be equal sizes.

    Raises
    ------
    RefusedError
        The type of a tensor, or how many axes it has, is unknown.
    """
    graph = model._proto.graph
    declared = {value.name: value for value in (*graph.input, *graph.output)}
    annotated = {value.name: value for value in graph.value_info}
    names = list(names)
    inferred: dict[str, ValueInfoProto] = {}
    if any(name not in declared for name in names):
        inferred = {value.name: value for value in model._inferred.graph.value_info}
    symbols = {
        dim.dim_param
        for value in (*declared.values(), *annotated.values())
        for dim in tensor_type_of(value.type).shape.dim
    }
    found: dict[str, ValueInfoProto] = {}
    for name in names:
        value = ValueInfoProto()
        if name in declared:
            value.CopyFrom(declared[name])
        elif name in model.initializers:
            tensor = model.initializers[name]
            value = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        else:
            value.CopyFrom(annotated.get(name, ValueInfoProto(name=name)))
            if name in inferred:
                value.type.CopyFrom(inferred[name].type)
        found[name] = value
    unknown = [name for name, value in found.items() if name not in declared and not _is_known(value.type)]
    for name, kind in _types_at_runtime(model, unknown).items():
        found[name].type.CopyFrom(kind)
    for name in found.keys() - declared.keys():
        _drop_other_symbols(found[name].type, symbols)
    return list(found.values())


def tensor_type_of(kind: TypeProto) -> TypeProto.Tensor:
    """Return the type of a tensor, or of the tensors in a sequence or an optional."""
    while True:
        match kind.WhichOneof("value"):
            case "sequence_type":
                kind = kind.sequence_type.elem_type
            case "optional_type":
                kind = kind.optional_type.elem_type
            case _:
                return kind.tensor_type


def _is_known(kind: TypeProto) -> bool:
    """Whether a type is complete enough for onnx.checker, which wants to know the axes of tensors."""
    if kind.WhichOneof("value") in (None, "tensor_type"):
        return kind.tensor_type.elem_type != 0 and kind.tensor_type.HasField("shape")
    return kind.WhichOneof("value") not in ("sequence_type", "optional_type") or tensor_type_of(kind).elem_type != 0


def _drop_other_symbols(kind: TypeProto, symbols: set[str]) -> None:
    for dim in tensor_type_of(kind).shape.dim:
        if dim.dim_param and dim.dim_param not in symbols:
            dim.ClearField("dim_param")


def _types_at_runtime(model: Model, names: list[str]) -> dict[str, TypeProto]:
    """Return the types that ONNX Runtime gives tensors of which shape inference knows too little."""
    if not names:
        return {}
    found = {}
    for made in model.session(threads=1, outputs=names).get_outputs():
        if made.name in names:
            kind = TypeProto()
            _parse(made.type, kind, made.name)
            if kind.HasField("tensor_type"):
                if not made.shape:  # it says so of scalars as well, but those inference knows
                    raise RefusedError(
                        f"how many axes tensor '{made.name}' has is unknown, so it cannot become an input or output; "
                        "take another tensor, or annotate its shape in the graph's value_info"
                    )
                for size in made.shape:
                    dim = kind.tensor_type.shape.dim.add()
                    if isinstance(size, int):
                        dim.dim_value = size
                    elif size:
                        dim.dim_param = size
            found[made.name] = kind
    return found


def _parse(text: str, kind: TypeProto, name: str) -> None:
    """Write what ONNX Runtime calls a type, such as ``seq(tensor(float))``, into a declaration."""
    while wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[2]
        kind = (kind.sequence_type if wrapped[1] == "seq" else kind.optional_type).elem_type
    plain = _TENSOR.fullmatch(text)
    if plain is None:
        raise RefusedError(f"tensor '{name}' is a {text}, which cannot become an input or output here")
    kind.tensor_type.elem_type = TensorProto.DataType.Value(plain[1].upper())
