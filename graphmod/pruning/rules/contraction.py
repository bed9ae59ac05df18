"""Contractions: MatMul, Gemm, Einsum; the summed axes of both sides are tied, the others go to the output."""

from __future__ import annotations

import string

from graphmod.pruning.change import Change, adapts
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


@couples("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
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


@couples("QGemm", domain=MICROSOFT)
def quantised_gemm(site: Site) -> list[Axes]:
    """Tie as Gemm does, with scales and zero points by column."""
    made = contracted(site, 0, 3, (bool(site.attribute("transA", 0)), bool(site.attribute("transB", 0))))
    site.broadcast_to(6, made)
    per_channel(site, made[1], [4, 5])
    return [made]


@couples("DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain=MICROSOFT)
def rescaled_matrix_product(site: Site) -> list[Axes]:
    """Tie as a matrix product does, with scales and zero points, and what is added, by column."""
    by_column = [2, 3, 4]
    if site.operator.op_type == "MatMulIntegerToFloat":
        by_column = [3, 5, 6]
        if any(site.shape(place) not in ((), (1,)) for place in (2, 4) if site.has(place)):
            raise Uncoupled(f"{site} has scales for every row")
    made = contracted(site, 0, 1)
    per_channel(site, made[-1], by_column)
    return [made]


@couples("MatMulNBits", domain=MICROSOFT)
def packed_matrix_product(site: Site) -> list[Axes]:
    """Tie rows of packed weights to what they make; of what they read, whole blocks can go."""
    data, weight, scales = (site.labels(place) for place in range(3))
    n_bits, size = site.attribute("bits", 4), site.attribute("block_size")
    if site.has(4) or len(scales) != 2 or len(data[-1]) != len(weight[1]) * size:
        raise Uncoupled(f"{site} has blocks that are not laid out in rows of whole ones")
    made, blocks = weight[0], weight[1]
    site.merge(data[-1], [blocks, site.kept(size, f"a block of weights of {site}")])
    site.keep([weight[2]], f"a block of weights of {site}")
    for theirs, ours in zip(scales, (made, blocks), strict=True):
        site.tie(theirs, ours)
    if site.has(3):
        points = site.labels(3)
        site.tie(points[0], made)
        if n_bits == 8 or site.shape(3) == site.shape(2):
            site.tie(points[1], blocks)
        else:
            site.keep([blocks, points[1]], f"{site} holds zero points of several blocks in one byte")
    per_channel(site, made, [5])
    site.produce(made)
    site.note(made=made, read=data[-1])
    return [[*data[:-1], made]]


@adapts("MatMulNBits", domain=MICROSOFT)
def smaller_packed_weights(site: Site, change: Change) -> None:
    """Count the rows and columns that are left."""
    change.set("N", change.count(site.notes["made"]))
    change.set("K", change.count(site.notes["read"]))


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
