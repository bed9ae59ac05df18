"""Replacing a region by the cheapest layer that computes almost the same."""

from __future__ import annotations

from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.rewrite.propose import propose
from graphmod.rewrite.region import Place
from graphmod.rewrite.replacements import RIDGE, kinds


def replace(
    model: Model,
    place: Place,
    data: object,
    kind: str = "auto",
    *,
    max_error: float = 0.3,
    ridge: float = RIDGE,
) -> Model:
    """Replace a block by a fitted layer: identity, per-channel affine, or linear (a 1x1 convolution on images).

    The fit is a ridge regression in closed form, from statistics streamed through ONNX Runtime; activations are never
    stored.

    Parameters
    ----------
    model : Model
    place : Block, str or (str, str)
        A block, a block's path, or the tensors before and after the region.
    data : anything that :func:`graphmod.data.as_data` takes
        Samples to fit on; targets are not used.
    kind : {"auto", "identity", "affine", "linear"}
        "auto" takes the cheapest whose error is at most ``max_error``.
    max_error : float
        For "auto": root of the squared error at the block's exit over the variance there.
    ridge : float
        Share of the mean variance of a channel.

    Raises
    ------
    RefusedError
        There is no such region or kind, the kind cannot bridge the shapes, or no kind is good enough (the message says
        how good each is).

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> small = gm.replace(m, "layer3.5", gm.demo.splits().train, "linear")
    >>> list(small.outputs) == list(m.outputs)
    True
    """
    if kind != "auto" and kind not in kinds():
        raise RefusedError(f"there is no replacement '{kind}'; choose 'auto', {', '.join(map(repr, kinds()))}")
    found = propose(model, place, data, ridge=ridge)
    good = [one for one in found if (one.kind == kind if kind != "auto" else one.error <= max_error)]
    if not good:
        told = ", ".join(f"{one.kind} {one.error:.3g}" for one in found) or "none"
        wanted = f"of kind '{kind}'" if kind != "auto" else f"with an error of at most {max_error}"
        raise RefusedError(f"no replacement {wanted} fits here; what fits, with its error: {told}")
    return good[0].apply(model)
