"""Operator expressions: ``LeakyRelu(alpha=0.1)``, ``Cast(to="float32") > Div(B=255)``, as models of one input."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.defs import OpSchema

from graphmod.errors import RefusedError
from graphmod.model import Model, TensorType
from graphmod.rewrite.element_types import STANDARD

_FORM = "an operator expression is 'Relu', 'LeakyRelu(alpha=0.1)', or several, 'Cast(to=\"float32\") > Div(B=255)'"


def as_model(text: str, host: Model, kind: TensorType) -> Model:
    """Return the model of an expression: operators in a chain, in the operator sets that another model imports.

    Parameters
    ----------
    text : str
        Operators joined by ``>``, each with the attributes and constant inputs that it needs, by ONNX's names for them.
        The tensor is the first input that is not given.
    host : Model
        The model that it is for; its functions are operators too.
    kind : TensorType
        Of the tensor that the first operator reads.

    Raises
    ------
    RefusedError
        The expression is malformed, or names an operator, attribute or input that the model's operator set has not.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> made = as_model("Clip(min=0, max=6)", m, m.inputs["image"])
    >>> [(name, float(made.initializer(name))) for name in made.initializers]
    [('Clip.min', 0.0), ('Clip.max', 6.0)]
    """
    proto = ModelProto(ir_version=host.ir_version)
    proto.opset_import.extend(host._proto.opset_import)
    calls = list(_calls(text))
    if {(domain, op_type) for domain, op_type, _ in calls} & {(one.domain, one.name) for one in host.functions}:
        proto.functions.extend(host.functions)
    graph = proto.graph
    graph.name = "expression"
    graph.input.append(declared("x", kind))
    current = "x"
    for number, (domain, op_type, given) in enumerate(calls):
        name = op_type if number == 0 else f"{op_type}_{number}"
        operator, constants = _operator(proto, domain, op_type, name, current, given, kind)
        graph.node.append(operator)
        graph.initializer.extend(constants)
        current = operator.output[0]
        graph.output.append(ValueInfoProto(name=current))
        del graph.output[:-1]
        kind = Model(proto).tensors.get(current, TensorType(None, None))
    return Model(proto)


def declared(name: str, kind: TensorType) -> ValueInfoProto:
    """Return the declaration of a tensor."""
    if kind.dtype is None:
        raise RefusedError("the type of the tensor is unknown, so nothing can be put there")
    elem = onnx.helper.np_dtype_to_tensor_dtype(kind.dtype)
    return onnx.helper.make_tensor_value_info(name, elem, kind.shape)


def as_type(text: str) -> TensorType:
    """Return the type that a text such as ``uint8[batch, 224, 224, 3]`` tells; ``?`` is an unknown dimension.

    Raises
    ------
    RefusedError
        It tells none.
    """
    found = re.fullmatch(r"\s*(\w+)\s*\[([^\[\]]*)\]\s*", text)
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(_elem(found[1] if found else text))
    except (ValueError, KeyError) as error:  # a KeyError of "undefined"
        raise RefusedError(f"'{text}' is no type; write it as 'uint8[batch, 224, 224, 3]'") from error
    words = [word.strip() for word in found[2].split(",")] if found and found[2].strip() else []
    return TensorType(dtype, tuple(None if w == "?" else int(w) if w.isdecimal() else w for w in words))


def _calls(text: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield domain, type and parameters of each operator; Python's own parser reads them."""
    try:
        parsed = ast.parse(text.replace("::", "."), mode="eval").body
        links = [parsed.left, *parsed.comparators] if isinstance(parsed, ast.Compare) else [parsed]
        if isinstance(parsed, ast.Compare) and not all(isinstance(op, ast.Gt) for op in parsed.ops):
            raise ValueError
        for link in links:
            called = link.func if isinstance(link, ast.Call) else link
            path = ast.unparse(called)
            if not re.fullmatch(r"[\w.]+", path) or (isinstance(link, ast.Call) and link.args):
                raise ValueError
            keywords = link.keywords if isinstance(link, ast.Call) else []
            domain, _, op_type = path.rpartition(".")
            yield domain, op_type, {str(one.arg): ast.literal_eval(one.value) for one in keywords}
    except (SyntaxError, ValueError, TypeError) as error:
        raise RefusedError(f"'{text}' cannot be read; {_FORM}") from error


def _operator(
    proto: ModelProto, domain: str, op_type: str, name: str, tensor: str, given: Mapping[str, Any], kind: TensorType
) -> tuple[NodeProto, list[TensorProto]]:
    schema = _schema(proto, domain, op_type)
    operator = NodeProto(
        op_type=op_type, name=name, domain="" if domain in STANDARD else domain, output=[f"{name}.out"]
    )
    constants: list[TensorProto] = []
    inputs = [] if schema is None else list(schema.inputs)
    known = {} if schema is None else dict(schema.attributes)
    for key, value in given.items():
        if key in known:
            operator.attribute.append(_attribute(key, value, known[key].type))
        elif schema is None:
            operator.attribute.append(_attribute(key, value))
        elif key not in {one.name for one in inputs}:
            names = ", ".join((*known, *(one.name for one in inputs))) or "none"
            raise RefusedError(f"{op_type} has no parameter '{key}' in this model's operator set; it has {names}")
    read = [f"{name}.{one.name}" if one.name in given else "" for one in inputs]
    place = next((i for i, one in enumerate(inputs) if one.name not in given), None)
    if schema is not None and place is None:
        raise RefusedError(f"all inputs of {op_type} are given, so it has none for the tensor")
    for one in inputs:
        if one.name in given:
            value = _constant(op_type, one, inputs[place or 0], given[one.name], kind, schema)
            constants.append(numpy_helper.from_array(value, f"{name}.{one.name}"))
    missing = [
        f"'{one.name}'"
        for i, one in enumerate(inputs)
        if one.name not in given and i != place and one.option == OpSchema.FormalParameterOption.Single
    ]
    missing += [f"'{key}'" for key, one in known.items() if one.required and key not in given]
    if missing:
        raise RefusedError(f"{op_type} also needs {' and '.join(missing)}: write '{op_type}({missing[0][1:-1]}=...)'")
    read[place or 0 : (place or 0) + 1] = [tensor]
    while not read[-1]:
        read.pop()
    operator.input.extend(read)
    return operator, constants


def _schema(proto: ModelProto, domain: str, op_type: str) -> OpSchema | None:
    """Return what ONNX says of an operator; None for functions and for operators that only the runtime knows."""
    standard = domain in STANDARD
    if any(one.name == op_type and one.domain == domain for one in proto.functions):
        return None
    imported = {"" if one.domain in STANDARD else one.domain: one.version for one in proto.opset_import}
    domain = "" if standard else domain
    if domain not in imported:
        newest = [one.since_version for one in onnx.defs.get_all_schemas() if one.domain == domain]
        imported[domain] = max(newest, default=1)
        proto.opset_import.append(onnx.helper.make_opsetid(domain, imported[domain]))
    if not onnx.defs.has(op_type, domain):
        if standard or domain.startswith("ai.onnx"):
            raise RefusedError(f"ONNX has no operator '{op_type}' in domain '{domain or 'ai.onnx'}'")
        return None
    version = imported[domain]
    if not onnx.defs.has(op_type, version, domain):
        first = min(
            one.since_version
            for one in onnx.defs.get_all_schemas_with_history()
            if (one.name, one.domain) == (op_type, domain)
        )
        raise RefusedError(
            f"{op_type} came with operator set {first}, and the model has {version}; convert the model with "
            "onnx.version_converter first"
        )
    schema = onnx.defs.get_schema(op_type, version, domain)
    if schema.deprecated:
        raise RefusedError(f"{op_type} is deprecated since operator set {schema.since_version}")
    return schema


def _attribute(key: str, value: Any, kind: OpSchema.AttrType | None = None) -> AttributeProto:
    """Return an attribute, of the type that the value suggests where ONNX says none."""
    name = "" if kind is None else str(kind).rpartition(".")[2]
    wanted = AttributeProto.AttributeType.Value(name) if name else None
    try:
        if wanted == AttributeProto.INT and isinstance(value, str):
            value = _elem(value)
        if wanted in (AttributeProto.FLOAT, AttributeProto.FLOATS):  # 1 is a number as good as 1.0
            value = [float(one) for one in value] if wanted == AttributeProto.FLOATS else float(value)
        if wanted == AttributeProto.TENSOR:
            value = numpy_helper.from_array(_array(value))
        return onnx.helper.make_attribute(key, value, attr_type=wanted)
    except (TypeError, ValueError) as error:
        told = f"is of type {name}, and {value!r} is none" if name else f"cannot be {value!r}"
        raise RefusedError(f"'{key}' {told}") from error


def _elem(name: str) -> int:
    """Return ONNX's number of a type of scalars by its name, ``float32`` or ``FLOAT``."""
    if name.upper() in dict(TensorProto.DataType.items()):
        return int(TensorProto.DataType.Value(name.upper()))
    try:
        return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name)))
    except TypeError as error:
        raise ValueError(name) from error


def _array(value: Any) -> np.ndarray[Any, np.dtype[np.generic]]:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _constant(
    op_type: str,
    one: OpSchema.FormalParameter,
    main: OpSchema.FormalParameter,
    value: Any,
    kind: TensorType,
    schema: OpSchema | None,
) -> np.ndarray[Any, np.dtype[np.generic]]:
    """Return a constant input in the type that the operator asks for: the tensor's own where they share it."""
    if one.type_str == main.type_str:
        if kind.dtype is None:
            raise RefusedError(f"the type of what {op_type} reads is unknown, so '{one.name}' cannot be made")
        return _exactly(f"'{one.name}' of {op_type}", value, kind.dtype)
    try:
        found = _array(value)
    except ValueError as error:
        raise RefusedError(f"'{one.name}' of {op_type} is a tensor, and {value!r} is none") from error
    variables = schema.type_constraints if schema else []
    allowed = next((list(v.allowed_type_strs) for v in variables if v.type_param_str == one.type_str), [one.type_str])
    named = onnx.helper.tensor_dtype_to_string(onnx.helper.np_dtype_to_tensor_dtype(found.dtype))
    wanted = f"tensor({named.removeprefix('TensorProto.').lower()})"
    if wanted not in allowed:
        raise RefusedError(
            f"'{one.name}' of {op_type} is one of {', '.join(allowed)}, and {value!r} is {wanted}; "
            "use a model of its own for this"
        )
    return found


def _exactly(what: str, value: Any, dtype: np.dtype[np.generic]) -> np.ndarray[Any, np.dtype[np.generic]]:
    """Return numbers in a type that holds them, rounded where that is a float type; strings as they are."""
    try:
        given = np.asarray(value)
        with np.errstate(over="ignore", invalid="ignore"):  # looked at below
            found = given.astype(dtype)
    except (ValueError, TypeError) as error:
        raise RefusedError(f"{what} is a tensor of {dtype}, and {value!r} is none") from error
    if dtype.kind == "O":
        fits = given.dtype.kind in "US"
    elif given.dtype.kind not in "iufb":
        fits = given.dtype.kind == dtype.kind
    elif TensorType(dtype, ()).is_float:
        fits = bool((np.isfinite(found.astype(np.float64)) | ~np.isfinite(given)).all())
    else:
        fits = bool((found.astype(np.complex128) == given).all())
    if not fits:
        raise RefusedError(f"{what} is a tensor of {dtype}, which cannot hold {value!r}")
    return found
