r"""Weights of far fewer dimensions than they have room for.

The rank is found without an SVD of the weight (Halko, Martinsson & Tropp 2011, algorithm 4.1): with an orthonormal
basis :math:`Q` of :math:`W \Omega`, for a random :math:`\Omega` of :math:`k` columns, the singular values of
:math:`Q^T W` are at most those of :math:`W`, and so hold no more energy than the same rank of it does. Three passes
over the weight, a chunk of rows at a time, in :math:`O(mnk)`; one where the first rows alone have too many dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
from numpy.typing import NDArray

from graphmod.graph import find
from graphmod.graph.wiring import Constant
from graphmod.rewrite.fusions.maps import read_map
from graphmod.rewrite.recipe import Edit
from graphmod.rewrite.smells.evidence import Evidence, stored
from graphmod.rewrite.smells.registry import Finding, smell

Float = NDArray[np.float64]

HUGE = 2**14
"""Scalars from which a weight's rank is worth a look."""

ENERGY = 0.9999
"""Share of the sum of all squared singular values that a rank has to hold."""

RANKS = 64
"""Ranks that are looked for, at most; an eighth of a weight's smaller side if that is less."""

CHUNK = 2**17
"""Scalars read at a time, at least a row."""

_MAPS = ("Conv", "Gemm", "MatMul")
"""Operators of which the second input can be split."""


@smell("tiny_rank", weights=True)
def _tiny_ranks(evidence: Evidence) -> Iterator[Finding]:
    """Large weights of linear maps that two far smaller ones could stand for."""
    for number, constant in evidence.constants():
        shape = constant.shape
        if len(shape) < 2 or prod(shape) < HUGE or constant.indices is not None:
            continue
        readers = evidence.readers(number)
        names = tuple(name for name, op_type, slot in readers if op_type in _MAPS and slot == "1")
        if not names or (len(shape) > 2 and any(op_type == "MatMul" for _, op_type, _ in readers)):
            continue
        rows, columns = shape[0], prod(shape[1:])
        rank = tiny_rank(constant, rows, columns)
        if rank is not None:
            size = round(stored(constant) * (1 - rank * (rows + columns) / (rows * columns)))
            told = f"{rank} of {min(rows, columns)} dimensions hold {ENERGY:.2%} of the energy of '{constant.name}', "
            told += f"{constant}: two weights of that rank take {size:,} bytes less"
            yield Finding(told, names, (constant.name,), *_split(evidence, names, rank, len(readers)), n_bytes=size)


def _split(evidence: Evidence, names: tuple[str, ...], rank: int, n_readers: int) -> tuple[Edit | None, str]:
    """Return the edit that splits a weight, if all that read it are linear maps that can be split."""
    if n_readers > len(names):
        return None, "something other than a linear map reads it too"
    for name in names:
        if name not in evidence.model.position:
            return None, f"'{name}' lies in a body or a function"
        layer = read_map(evidence.bench, evidence.bench.draft.operator(name))
        if isinstance(layer, str):
            return None, layer
        if layer.groups > 1:
            return None, f"'{name}' has {layer.groups} groups"
    where = ", ".join(f'[name="{name}"]' for name in names)
    if {name for match in find(evidence.model, where) for name in match.operators} != set(names):
        return None, f"the selector {where} picks other operators too; rename them first"
    return Edit("low_rank", {"where": where, "rank": rank}), ""


def tiny_rank(constant: Constant, rows: int, columns: int) -> int | None:
    """Return the rank that holds nearly all of a matrix's energy, None where it is not tiny or there is no energy."""
    most = min(RANKS, min(rows, columns) // 8)
    step = max(1, CHUNK // columns) * columns
    energy = 0.0
    first = np.zeros((0, columns))
    with np.errstate(over="ignore", invalid="ignore"):
        for part in _rows(constant, columns, step):
            energy += float(np.vdot(part, part))
            if len(first) < 2 * most:
                first = np.concatenate([first, part])[: 2 * most]
    if not np.isfinite(energy) or not energy or _outside(first, most) > (1 - ENERGY) * energy:
        return None
    directions = np.random.default_rng(0).standard_normal((columns, most + 8))
    basis, _ = np.linalg.qr(np.concatenate([part @ directions for part in _rows(constant, columns, step)]))
    inside, start = np.zeros((basis.shape[1], columns)), 0
    for part in _rows(constant, columns, step):
        inside += basis[start : start + len(part)].T @ part
        start += len(part)
    held = np.cumsum(np.linalg.eigvalsh(inside @ inside.T)[::-1]) / energy
    rank = int(np.searchsorted(held, ENERGY)) + 1
    return rank if rank <= most else None


def _outside(some: Float, rank: int) -> float:
    """Return the energy of some rows that no space of that many dimensions holds: the whole matrix has no less."""
    return float(np.linalg.eigvalsh(some @ some.T)[:-rank].sum())


def _rows(constant: Constant, columns: int, step: int) -> Iterator[Float]:
    yield from (chunk.real.reshape(-1, columns) for chunk in constant.values.numbers(step))
