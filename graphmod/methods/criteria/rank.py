"""Ranking blocks by how much a network would miss them, and how far each criterion can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from graphmod.arguments import check_whole
from graphmod.data import as_splits
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import Block
from graphmod.methods.criteria.registry import CRITERIA, Evidence, Scores
from graphmod.methods.deeparc.residual_sums import is_skippable, residual_blocks
from graphmod.methods.drawing import drawn
from graphmod.model import Model
from graphmod.rewrite import Region
from graphmod.rewrite.region import Place, check_passes_through, find_region

MOST = 1024
"""Samples that criteria look at, at most: more of them hardly change an order, and take their time."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """How much a network would miss each of its blocks, by several criteria.

    Parameters
    ----------
    blocks : tuple of str
        Paths, or ``entry..exit``, in the network's order.
    regions : tuple of Region
        Where they lie.
    scores : dict of str to float64 array, shape (blocks,)
        By criterion, larger for blocks that are missed more; on calibration data.
    loss : float64 array, shape (blocks,)
        By how much cross-entropy rises without the block, in nats; on test data.
    """

    blocks: tuple[str, ...]
    regions: tuple[Region, ...] = field(repr=False)
    scores: dict[str, Scores] = field(repr=False)
    loss: Scores = field(repr=False)

    @cached_property
    def correlation(self) -> dict[str, float]:
        """Spearman's rank correlation of each criterion with the true loss; NaN where either is constant."""
        return {name: _spearman(scores, self.loss) for name, scores in self.scores.items()}

    def order(self, by: str = "kl") -> tuple[str, ...]:
        """Return the blocks, what is missed least first.

        Raises
        ------
        RefusedError
            The ranking has no such criterion.
        """
        if by not in self.scores:
            raise RefusedError(f"the ranking has no criterion '{by}', only {', '.join(self.scores)}")
        return tuple(self.blocks[place] for place in np.argsort(self.scores[by], kind="stable"))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them: None for NaN."""
        rows = [
            {
                "block": name,
                "entry": region.entry,
                "exit": region.exit,
                "scores": {by: float(scores[place]) for by, scores in self.scores.items()},
                "loss": float(self.loss[place]),
            }
            for place, (name, region) in enumerate(zip(self.blocks, self.regions, strict=True))
        ]
        told = {name: None if np.isnan(value) else value for name, value in self.correlation.items()}
        return {"blocks": rows, "correlation": told}


def rank_blocks(
    model: Model,
    data: object,
    criteria: str | Sequence[str] | None = None,
    blocks: Sequence[Place] | None = None,
    *,
    seed: int = 0,
) -> Ranking:
    """Rank blocks by how much the network would miss them, were an identity in their place.

    Scores come from at most 1,024 samples of the calibration part, the true loss from as many of the test part, so that
    a criterion's correlation with it is not one of shared samples.

    Parameters
    ----------
    model : Model
        A classifier.
    data : anything that :func:`graphmod.data.as_splits` takes
        With labels; its training part is not used.
    criteria : str or sequence of str, optional
        Of ``cka``, ``norm_ratio``, ``gradient``, ``kl``, ``margin``, ``loss``, and what else is registered; all if
        None.
    blocks : sequence of Block, str or (str, str), optional
        What to rank; all residual blocks, or layers of a network without any, that keep the type if None.
    seed : int
        Decides which samples are looked at.

    Returns
    -------
    Ranking

    Raises
    ------
    RefusedError
        There is no such criterion or block, a block changes the type, or none does not; or the seed is negative.
    InvalidDataError
        The data does not fit, or has no labels of the model's classes.
    UnsupportedOperatorError
        For ``gradient``: an operator cannot be imported into PyTorch.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> ranking = gm.rank_blocks(m, gm.demo.splits(), ["kl", "cka"], ["layer1.1", "layer1.2", "layer3.1"])
    >>> len(ranking.order("kl")), sorted(ranking.correlation)
    (3, ['cka', 'kl'])
    """
    check_whole(0, seed=seed)
    given = (criteria,) if isinstance(criteria, str) else criteria
    wanted = tuple(dict.fromkeys(CRITERIA if given is None else given))
    unknown = [name for name in wanted if name not in CRITERIA]
    if unknown or not wanted:
        what = f"there is no criterion '{unknown[0]}'" if unknown else "no criterion is given"
        raise RefusedError(f"{what}; choose of {', '.join(map(repr, CRITERIA))}")
    if blocks is None:
        found = {Region(block.entry, block.exit): block.path for block in skippable(model)}
    else:
        found = _named(model, blocks)
    splits = as_splits(model, data, seed, labels=True)
    regions = tuple(found)
    evidence = Evidence(model, regions, drawn(model, splits.calibration, MOST, seed))
    try:
        scores = {name: CRITERIA[name](evidence) for name in wanted}
    except InvalidDataError as error:
        raise InvalidDataError(f"the calibration part, which criteria look at: {error}") from error
    held_out = Evidence(model, regions, drawn(model, splits.test, MOST, seed))
    return Ranking(tuple(found.values()), regions, scores, CRITERIA["loss"](held_out))


def skippable(model: Model) -> list[Block]:
    """Return the blocks that keep the type, so that an identity can take their place.

    Raises
    ------
    RefusedError
        There are none.
    """
    found = [block for block in residual_blocks(model) if is_skippable(model, block)]
    if not found:
        raise RefusedError(
            "no block of the network is known to make the type that it reads, so none can be skipped; graphmod.replace "
            "fits a layer in a block's place"
        )
    return found


def _named(model: Model, places: Sequence[Place]) -> dict[Region, str]:
    if not places:
        raise RefusedError("no blocks are given to rank; leave blocks out for all that can be skipped")
    found = {}
    for place in [places] if isinstance(places, str | Block) else places:
        region = find_region(model, place)
        check_passes_through(model, region, ", so it cannot be skipped; graphmod.replace fits a layer in its place")
        told = (
            place.path if isinstance(place, Block) else place if isinstance(place, str) else f"{place[0]}..{place[1]}"
        )
        found[region] = told
    return found


def _spearman(scores: Scores, loss: Scores) -> float:
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(loss) == 0:
        return float("nan")
    return float(spearmanr(scores, loss).statistic)
