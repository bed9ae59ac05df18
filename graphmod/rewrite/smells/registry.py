"""What a smell is: a function that looks at the evidence and yields what it finds, each with the edit that mends it.

A new smell is one function with the ``@smell`` decorator in a file of this package. It yields a :class:`Finding` for
each edit that would mend something, and one for each place that no edit mends, with the reason. The first line of its
docstring says what is wrong with such a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from graphmod.rewrite.recipe import Edit
from graphmod.rewrite.smells.evidence import Evidence

Sniff = Callable[[Evidence], Iterable["Finding"]]


@dataclass(frozen=True)
class Finding:
    """Something about a model that costs time, space or trust for nothing.

    Parameters
    ----------
    message : str
        One sentence with figures.
    operators, tensors : tuple of str
        Which ones it is about; operators by :attr:`Model.operator_names`, those of bodies with what holds them in
        front; among the tensors are initializers.
    edit : Edit, optional
        The step of a recipe that mends it.
    reason : str
        Why no edit does, "" where one does.
    n_bytes, n_operators : int
        How many bytes of values and how many operators there are for nothing; 0 where that is not known.
    smell : str
        The smell's name.
    """

    message: str
    operators: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    edit: Edit | None = None
    reason: str = ""
    n_bytes: int = 0
    n_operators: int = 0
    smell: str = ""

    def __str__(self) -> str:
        """Render as one line: smell, sentence, and the edit or why there is none."""
        return f"{self.smell}: {self.message}; {self.edit if self.edit else self.reason}"


@dataclass(frozen=True)
class Smell:
    """One kind of finding.

    Parameters
    ----------
    name : str
    sniff : callable
        From the evidence to findings.
    needs_weights, needs_data : bool
        Whether it reads the values of weights, or runs the model.
    """

    name: str
    sniff: Sniff = field(repr=False)
    needs_weights: bool = False
    needs_data: bool = False

    @property
    def description(self) -> str:
        """What is wrong with a model that has it."""
        return (inspect.getdoc(self.sniff) or "").partition("\n")[0]


SMELLS: dict[str, Smell] = {}
"""All smells by name, in the order in which what they find is mended."""


def smell(name: str, *, weights: bool = False, data: bool = False) -> Callable[[Sniff], Sniff]:
    """Register a smell; ``weights`` and ``data`` say what it needs beside the graph."""

    def register(sniff: Sniff) -> Sniff:
        SMELLS[name] = Smell(name, sniff, weights, data)
        return sniff

    return register
