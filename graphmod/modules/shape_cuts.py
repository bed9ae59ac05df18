"""Where activations change their shape: no module should reach across."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from graphmod.errors import RefusedError
from graphmod.model import Model


def shape_cuts(model: Model, boundaries: Sequence[str]) -> tuple[str, ...]:
    """Return the boundaries whose shape is not that of the one before, for ``modularize(..., cuts=)``.

    The first axis is the batch and does not count. Two open dimensions are taken to be the same: shape inference gives
    every size that it cannot compute a name of its own.

    Parameters
    ----------
    model : Model
    boundaries : sequence of str
        Tensors in the network's order.

    Raises
    ------
    RefusedError
        The number of axes of one is not known.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> found = shape_cuts(m, gm.boundaries(m))
    >>> [m.tensors[name].shape[1:] for name in found]
    [(24, 4, 4), (40, 2, 2), (40, 1, 1), (40,), (10,)]
    """
    return tuple(
        after for before, after in pairwise(boundaries) if _changes(_shape(model, before), _shape(model, after))
    )


def _shape(model: Model, tensor: str) -> tuple[int | str | None, ...]:
    kind = model.tensors.get(tensor)
    if kind is None or kind.shape is None:
        raise RefusedError(f"the shape of '{tensor}' is not known; name the cuts yourself, or leave it out")
    return kind.shape


def _changes(before: tuple[int | str | None, ...], after: tuple[int | str | None, ...]) -> bool:
    if len(before) != len(after):
        return True
    pairs = zip(before[1:], after[1:], strict=True)
    return any(a != b and (isinstance(a, int) or isinstance(b, int)) for a, b in pairs)
