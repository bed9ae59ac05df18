"""Which element types an operator may read and make: by its schema, and by ONNX Runtime's kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper

from graphmod.errors import InvalidModelError
from graphmod.model.session import open_session

FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)
"""The element types of weights and activations."""

STANDARD = ("", "ai.onnx")

Formal = tuple[str, frozenset[str]]
"""What a schema says of one input or output: the name that its type shares with others, and the types admitted."""


def formals(operator: NodeProto, opsets: Mapping[str, int]) -> tuple[list[Formal], list[Formal]] | None:
    """Return what its schema says of every input and output of an operator, None where there is no schema.

    Schemas are ONNX's, and ONNX Runtime's own for the domains that ONNX does not know.
    """
    domain = "" if operator.domain in STANDARD else operator.domain
    version = opsets.get(domain, 1)
    if onnx.defs.has(operator.op_type, version, domain):
        schema = onnx.defs.get_schema(operator.op_type, version, domain)
        reads = [(f.type_str, frozenset(f.types)) for f in schema.inputs]
        makes = [(f.type_str, frozenset(f.types)) for f in schema.outputs]
    elif (domain, operator.op_type) in _runtime_schemas():
        reads, makes = _runtime_schemas()[domain, operator.op_type]
    else:
        return None
    return _spread(reads, len(operator.input)), _spread(makes, len(operator.output))


def _spread(declared: Sequence[Formal], count: int) -> list[Formal]:
    """Let the last one stand for all that a variadic operator has beyond it."""
    return [declared[min(i, len(declared) - 1)] for i in range(count)] if declared else []


@cache
def _runtime_schemas() -> dict[tuple[str, str], tuple[list[Formal], list[Formal]]]:
    """Return the schemas of ONNX Runtime's own operators, where its build tells them."""
    told: list[Any] = getattr(ort.capi.onnxruntime_pybind11_state, "get_all_operator_schema", list)()
    return {
        (schema.domain, schema.name): (
            [(f.typeStr, frozenset(f.types)) for f in schema.inputs],
            [(f.typeStr, frozenset(f.types)) for f in schema.outputs],
        )
        for schema in told
        if schema.domain not in STANDARD
    }


def type_name(element: int) -> str:
    """Return the name that schemas have for tensors of an element type.

    >>> type_name(TensorProto.FLOAT16), type_name(TensorProto.FLOAT)
    ('tensor(float16)', 'tensor(float)')
    """
    return f"tensor({TensorProto.DataType.Name(element).lower()})"


def runs(operator: NodeProto, reads: Sequence[int], makes: Sequence[int], opsets: Mapping[str, int]) -> bool:
    """Whether ONNX Runtime loads an operator that reads and makes tensors of these element types.

    Tried with a session of that operator alone, once for each type of operator and elements. Types of 0 are unknown:
    of inputs they count as left out.
    """
    bare = NodeProto(op_type=operator.op_type, domain=operator.domain, attribute=operator.attribute)
    bare.input.extend(f"in{i}" if name and reads[i] else "" for i, name in enumerate(operator.input))
    bare.output.extend(f"out{i}" if name else "" for i, name in enumerate(operator.output))
    key = (operator.domain, operator.op_type, tuple(reads), tuple(makes), tuple(sorted(opsets.items())))
    return _loads(_Trial(key, bare))


class _Trial:
    """An operator to try; two are equal if types and elements are, whatever their attributes."""

    def __init__(self, key: tuple[object, ...], operator: NodeProto):
        self.key = key
        self.operator = operator

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Trial) and self.key == other.key


@lru_cache(maxsize=4096)
def _loads(trial: _Trial) -> bool:
    _, _, reads, makes, opsets = trial.key
    operator = trial.operator
    declare = helper.make_tensor_value_info
    assert isinstance(reads, tuple)
    assert isinstance(makes, tuple)
    assert isinstance(opsets, tuple)
    graph = helper.make_graph(
        [operator],
        "trial",
        [declare(name, kind, None) for name, kind in zip(operator.input, reads, strict=True) if name],
        [declare(name, kind, None) for name, kind in zip(operator.output, makes, strict=True) if name and kind],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    try:
        open_session(helper.make_model(graph, opset_imports=imports, ir_version=10), None, 1)
    except InvalidModelError:
        return False
    return True
