"""Rules by operator: a decorator that registers functions by domain and type, and finds the one for an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from onnx import NodeProto

from graphmod.rewrite.element_types import STANDARD

Rule = TypeVar("Rule", bound=Callable[..., object])


class ByOperator(Generic[Rule]):
    """A registry of functions, one an operator type.

    Examples
    --------
    >>> from onnx import helper
    >>> names = ByOperator()
    >>> @names("Relu", "Elu")
    ... def clipped(operator):
    ...     return operator.op_type.lower()
    >>> names.of(helper.make_node("Relu", ["x"], ["y"])) is clipped, names.of(helper.make_node("Abs", ["x"], ["y"]))
    (True, None)
    """

    def __init__(self) -> None:
        self._rules: dict[tuple[str, str], Rule] = {}

    def __call__(self, *op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
        """Register a function for operators of a domain."""

        def register(rule: Rule) -> Rule:
            self._rules.update(dict.fromkeys([(domain, op_type) for op_type in op_types], rule))
            return rule

        return register

    def of(self, operator: NodeProto) -> Rule | None:
        """Return the function for an operator, None if there is none."""
        return self._rules.get(("" if operator.domain in STANDARD else operator.domain, operator.op_type))
