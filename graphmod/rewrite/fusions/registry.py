"""What a fusion is: a function that looks at one operator and says what to do, or why nothing can be done.

A new fusion is one function with the ``@fusion`` decorator in a file of this package. It gets the bench and an operator
of one of its types and returns

- ``None`` if there is nothing of its kind here,
- a sentence if there nearly is: why it cannot be done,
- a :class:`Plan` if it can. Looking changes nothing and reads no large weight; the plan does both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx import NodeProto

from graphmod.rewrite.fusions.bench import Bench


@dataclass(frozen=True)
class Plan:
    """What a fusion would do.

    Parameters
    ----------
    operators : tuple of NodeProto
        The operators that take part.
    apply : callable
        Does it, and returns the operators around which more may fuse now.

    Raises
    ------
    RefusedError
        From ``apply``: the fused values do not fit the weight's type; the draft is untouched then.
    """

    operators: tuple[NodeProto, ...]
    apply: Callable[[], list[NodeProto]]


Look = Callable[[Bench, NodeProto], Plan | str | None]


@dataclass(frozen=True)
class Fusion:
    """One kind of fusion, or a part of it, and the types of operator that it looks at."""

    kind: str
    op_types: tuple[str, ...]
    look: Look


FUSIONS: list[Fusion] = []
"""All fusions, in the order in which they are tried."""


def fusion(kind: str, *op_types: str) -> Callable[[Look], Look]:
    """Register a fusion."""

    def register(look: Look) -> Look:
        FUSIONS.append(Fusion(kind, op_types, look))
        return look

    return register


def kinds() -> tuple[str, ...]:
    """Return the kinds of fusion."""
    return tuple(dict.fromkeys(one.kind for one in FUSIONS))
