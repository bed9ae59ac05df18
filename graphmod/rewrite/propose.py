"""What could replace a region, and how well each kind of replacement would do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphmod.data import as_data
from graphmod.errors import RefusedError
from graphmod.graph import channel_axis
from graphmod.model import Model
from graphmod.probe import Moments, moments
from graphmod.rewrite.parts import known_type
from graphmod.rewrite.region import Place, Region, find_region, put_in_place
from graphmod.rewrite.replacements import RIDGE, Fit, as_operators, fit, kinds


@dataclass(frozen=True)
class Proposal:
    """One way to replace a region.

    Parameters
    ----------
    region : Region
    fit : Fit
    error : float
        Root of the squared error at the region's exit over the variance there; 0 is perfect, 1 is a constant.
    """

    region: Region
    fit: Fit
    error: float

    @property
    def kind(self) -> str:
        """The kind of replacement."""
        return self.fit.kind

    def apply(self, model: Model) -> Model:
        """Return the model with the replacement in place.

        Raises
        ------
        RefusedError
            The region does not exist in this model, or is needed outside.
        """
        kind = known_type(model, self.region.exit)
        return put_in_place(model, self.region, *as_operators(self.fit, self.region, kind))


def propose(
    model: Model, place: Place, data: object, *, ridge: float = RIDGE, threads: int | None = None
) -> list[Proposal]:
    """Fit every kind of replacement for a region, the cheapest first.

    Parameters
    ----------
    model : Model
    place : Block, str or (str, str)
        A block, a block's path, or the tensors before and after the region.
    data : anything that :func:`graphmod.data.as_data` takes
        Samples to fit on; targets are not used.
    ridge : float
        Share of the mean variance of a channel.

    Raises
    ------
    RefusedError
        The shapes at entry and exit, or the axes of their channels, are such that no kind fits, or activations there
        are not finite.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> [p.kind for p in propose(m, "layer1.3", gm.demo.splits().train)]
    ['identity', 'affine', 'linear']
    """
    region = find_region(model, place)
    before, after = model.tensors.get(region.entry), model.tensors.get(region.exit)
    if before is not None and after is not None and before.dtype != after.dtype:
        raise RefusedError(f"'{region.entry}' is {before} and '{region.exit}' is {after}: no layer changes the type")
    pair = (region.entry, region.exit)
    seen = moments(model, as_data(model, data), [pair], threads=threads).get(pair)
    if seen is None:
        axes = [channel_axis(model, name) for name in pair]
        why = "" if axes[0] == axes[1] else ": channels are axis {} of one and axis {} of the other".format(*axes)
        raise RefusedError(
            f"no layer fits between '{region.entry}', {model.tensors.get(region.entry)}, and '{region.exit}', "
            f"{model.tensors.get(region.exit)}{why}"
        )
    found = proposals(region, seen, ridge=ridge)
    if not found:
        raise RefusedError(
            f"activations at '{region.entry}' or '{region.exit}' are not finite, so nothing can be fitted"
        )
    return found


def proposals(region: Region, seen: Moments, *, ridge: float = RIDGE) -> list[Proposal]:
    """Return every kind fitted on some statistics, with its error on them; none where they are not finite."""
    if not (np.isfinite(seen.xx).all() and np.isfinite(seen.xy).all() and np.isfinite(seen.yy).all()):
        return []
    found = (fit(kind, seen, ridge) for kind in kinds())
    return [Proposal(region, one, one.error(seen)) for one in found if one is not None]
