"""The registry of converters: which function turns which ONNX operator, of which version, into PyTorch.

A converter is a function that takes an :class:`~graphmod.pytorch.operator.Operator` and returns the node of its
output, or a tuple of nodes where it has several. To support one more operator, put a decorated function into a file
of :mod:`graphmod.pytorch.operators`; every file there is imported, and nothing else has to be edited::

    @operator("Celu", since=12)
    def celu(op: Operator) -> fx.Node:
        return op.module(nn.CELU(op.attribute("alpha", 1.0)), op.input(0))

``since`` is the operator set in which a revision of the operator appeared. A model gets the newest converter that is
not newer than the operator set it imports, so one function serves all revisions that mean the same.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from torch import fx

if TYPE_CHECKING:
    from graphmod.pytorch.operator import Operator

Outputs = fx.Node | tuple[fx.Node | None, ...]
Converter = Callable[["Operator"], Outputs]
C = TypeVar("C", bound=Converter)

_CONVERTERS: dict[tuple[str, str], dict[int, Converter]] = {}


def domain_of(name: str) -> str:
    """Return a domain's canonical name: the default domain has two.

    Examples
    --------
    >>> domain_of("ai.onnx"), domain_of("com.microsoft")
    ('', 'com.microsoft')
    """
    return "" if name == "ai.onnx" else name


def operator(*op_types: str, since: int = 1, domain: str = "") -> Callable[[C], C]:
    """Register a function as the converter of one or more operator types, from version ``since`` on."""

    def register(function: C) -> C:
        for op_type in op_types:
            revisions = _CONVERTERS.setdefault((domain, op_type), {})
            if since in revisions:
                raise ValueError(f"operator '{op_type}' has two converters since version {since}")
            revisions[since] = function
        return function

    return register


def find(op_type: str, domain: str, opset: int) -> Converter | None:
    """Return the newest converter that is not newer than ``opset``, or None where there is none.

    Examples
    --------
    >>> find("Relu", "", 17) is not None, find("Gelu", "", 17)
    (True, None)
    """
    _discover()
    revisions = _CONVERTERS.get((domain_of(domain), op_type), {})
    newest = max((since for since in revisions if since <= opset), default=None)
    return None if newest is None else revisions[newest]


def supported_operators() -> tuple[str, ...]:
    """Return the operators that :func:`graphmod.to_torch` knows, sorted; those of other domains as 'domain::type'.

    Examples
    --------
    >>> "Conv" in supported_operators()
    True
    """
    _discover()
    return tuple(sorted(f"{domain}::{op_type}" if domain else op_type for domain, op_type in _CONVERTERS))


@cache
def _discover() -> None:
    package = importlib.import_module("graphmod.pytorch.operators")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
