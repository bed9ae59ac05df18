"""Contractions: MatMul, Gemm, Einsum; the summed axes of both sides are tied, the others go to the output."""

from __future__ import annotations

import string

from graphmod.pruning.labels import Labels
from graphmod.pruning.registry import MICROSOFT, couples
from graphmod.pruning.rules.convolution import per_channel
from graphmod.pruning.site import Axes, Site, Uncoupled


def contracted(site: Site, left: int, right: int, flipped: tuple[bool, bool] = (False, False)) -> Axes:
    """Couple the operands of a matrix product as numpy.matmul pairs them, and return the output's labels."""
    a, b = site.labels(left), site.labels(right)
    if not (a and b):
        raise Uncoupled(f"{site} multiplies a scalar")
    if flipped[0]:
        a = [*a[:-2], *a[:-3:-1]]
    if flipped[1]:
        b = [*b[:-2], *b[:-3:-1]]
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else []
    site.tie(a[-1], b[-2] if len(b) > 1 else b[0])
    constant = site.is_constant(left), site.is_constant(right)
    if not any(constant):
        site.discourage(a[-1], *rows, *columns)
    for made in (*(rows if constant[0] else ()), *(columns if constant[1] else ())):
        site.produce(made)
    shape = site.made()
    batch = site.broadcast([a[:-2], b[:-2]], shape[: len(shape) - len(rows) - len(columns)])
    return [*batch, *rows, *columns]


@couples("MatMul")
def matrix_product(site: Site) -> list[Axes]:
    """Tie the last axis of the left operand to the last but one of the right."""
    return [contracted(site, 0, 1)]


@couples("MatMulInteger")
def integer_matrix_product(site: Site) -> list[Axes]:
    """Tie as a matrix product does, with zero points by row of the left and column of the right."""
    made = contracted(site, 0, 1)
    left, right = site.labels(0), site.labels(1)
    if any(len(site.shape(place)) > 1 for place in (2, 3) if site.has(place)):
        raise Uncoupled(f"{site} has zero points for every row of a batch")
    if len(left) > 1:
        per_channel(site, left[-2], [2])
    if len(right) > 1:
        per_channel(site, right[-1], [3])
    return [made]


@couples("QLinearMatMul")
def quantised_matrix_product(site: Site) -> list[Axes]:
    """Tie as a matrix product does, with scales and zero points by row of the left and column of the right."""
    made = contracted(site, 0, 3)
    for place in (1, 2, 4, 5, 6, 7):
        if len(site.shape(place)) > 1 or (site.shape(place) not in ((), (1,)) and place not in (4, 5)):
            raise Uncoupled(f"{site} has scales for every row")
    right = site.labels(3)
    if len(right) > 1:
        per_channel(site, right[-1], [4, 5])
    return [made]


@couples("FusedMatMul", domain=MICROSOFT)
def fused_matrix_product(site: Site) -> list[Axes]:
    """Tie as a matrix product of operands that may be transposed."""
    if site.attribute("transBatchA", 0) or site.attribute("transBatchB", 0):
        raise Uncoupled(f"{site} transposes batches")
    return [contracted(site, 0, 1, (bool(site.attribute("transA", 0)), bool(site.attribute("transB", 0))))]


@couples("Gemm")
@couples("FusedGemm", domain=MICROSOFT)
def gemm(site: Site) -> list[Axes]:
    """Tie as a matrix product of operands that may be transposed; what is added broadcasts."""
    made = contracted(site, 0, 1, (bool(site.attribute("transA", 0)), bool(site.attribute("transB", 0))))
    site.broadcast_to(2, made)
    return [made]


@couples("Einsum")
def einsum(site: Site) -> list[Axes]:
    """Tie the axes that share a letter."""
    equation = site.attribute("equation").decode().replace(" ", "")
    terms, arrow, result = equation.partition("->")
    places = range(len(site.operator.input))
    operands = [site.labels(place) for place in places]
    n_dots = max(
        (len(axes) - len(term.replace("...", "")) for term, axes in zip(terms.split(","), operands, strict=True)
         if "..." in term), default=0,
    )  # fmt: skip
    dots = [letter for letter in reversed(string.printable[62:]) if letter not in ",.->"][:n_dots]

    def spelled(term: str, rank: int) -> list[str]:
        head, found, tail = term.partition("...")
        return [*head, *(dots[n_dots - (rank - len(head) - len(tail)) :] if found else []), *tail]

    known: dict[str, Labels] = {}
    spellings = []
    for term, axes in zip(terms.split(","), operands, strict=True):
        spelling = spelled(term, len(axes))
        spellings.append(spelling)
        for letter, labels in zip(spelling, axes, strict=True):
            if letter not in known or len(known[letter]) == 1 < len(labels):
                known[letter] = labels
            elif len(labels) == len(known[letter]):
                site.tie(known[letter], labels)
    if not arrow:
        every = [letter for spelling in spellings for letter in spelling]
        result = "".join(["..." if dots else "", *sorted(c for c in set(every) - set(dots) if every.count(c) == 1)])
    made = spelled(result, len(result.replace("...", "")) + n_dots)
    constants = [site.is_constant(place) for place in places]
    for letter, labels in known.items():
        of = [place for place in places if letter in spellings[place]]
        if not any(constants) and (letter not in made or len(of) < len(operands)):
            site.discourage(labels)
        elif letter in made and len(of) == 1 and constants[of[0]] and not all(constants):
            site.produce(labels)
    return [[known[letter] for letter in made]]
