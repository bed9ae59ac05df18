"""Sparsifying: weights become zero where a schedule says so."""

from __future__ import annotations

from graphmod.errors import RefusedError
from graphmod.methods.deeparc.sparsity.layers import layers, masked
from graphmod.methods.deeparc.sparsity.registry import SCHEDULES
from graphmod.model import Model


def sparsify(model: Model, share: float, schedule: str = "lamp") -> Model:
    """Set all but a share of the weights of convolutions and linear layers to zero.

    Parameters
    ----------
    model : Model
    share : float
        Of the weights of Conv, Gemm and MatMul, how many are left, above 0 and at most 1; weights that are zero already
        stay so and count as gone. Biases, normalizations and other constants are no part of it.
    schedule : str
        How the layers share that: "lamp", "global", "uniform_plus" or "erk".

    Returns
    -------
    Model
        The same graph, of which exactly so many weights, rounded to the next whole number, are not zero; the very same
        model where no more than that are left already.

    Raises
    ------
    RefusedError
        There is no such schedule or no such layer, or the share is out of range or less than the schedule keeps.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods.deeparc.sparsity import layers
    >>> sparse = sparsify(gm.load(gm.demo.model_path()), 0.25, "erk")
    >>> left = layers(sparse)
    >>> round(sum(one.n_left for one in left) / sum(one.size for one in left), 3)
    0.25
    """
    if not 0 < share <= 1:
        raise RefusedError(f"share={share} is out of range; it is what is left of the weights, above 0 and at most 1")
    return sparsified(model, round(share * sum(layer.size for layer in layers(model))), schedule)


def sparsified(model: Model, keep: int, schedule: str) -> Model:
    """Return a model of whose layers' weights so many are left."""
    if schedule not in SCHEDULES:
        raise RefusedError(f"there is no schedule '{schedule}'; there are {', '.join(sorted(SCHEDULES))}")
    found = layers(model)
    if not found:
        raise RefusedError(
            "there is nothing to sparsify: no Conv, Gemm or MatMul reads a float initializer of two or more axes"
        )
    if keep >= sum(layer.n_left for layer in found):
        return model
    masks = SCHEDULES[schedule](found, keep)
    return masked(model, {layer.tensor: mask for layer, mask in zip(found, masks, strict=True) if not mask.all()})
