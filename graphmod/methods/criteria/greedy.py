"""Skipping blocks one after the other: each time those that the network, as it then is, misses least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from graphmod.data import as_data
from graphmod.errors import RefusedError
from graphmod.graph import Block
from graphmod.methods.criteria.rank import MOST, skippable
from graphmod.methods.criteria.registry import CRITERIA, Evidence
from graphmod.methods.drawing import drawn
from graphmod.methods.skipping import skip
from graphmod.model import Model
from graphmod.rewrite import Region


@dataclass(frozen=True, eq=False)
class Step:
    """The network without some blocks.

    Parameters
    ----------
    model : Model
    blocks : tuple of Block
        What is skipped, in the network's order.
    score : float
        What the criterion says of it.
    """

    model: Model = field(repr=False)
    blocks: tuple[Block, ...]
    score: float


def skip_greedily(model: Model, data: object, by: str = "kl", *, width: int = 1, seed: int = 0) -> Iterator[Step]:
    """Yield the network without one block, without two, and so on, as far as blocks can be skipped.

    What is left is measured anew after every block that goes, against the predictions of the whole network: what one
    block makes up for counts once it is gone.

    Parameters
    ----------
    model : Model
        A classifier.
    data : anything that :func:`graphmod.data.as_data` takes
        Samples with labels, of which at most 1,024 are looked at.
    by : str
        One of the criteria. Damage at the output ("kl", "margin", "loss") counts all that is skipped; the others tell
        what the last block to go is worth where it stands.
    width : int
        How many choices of equally many blocks are followed up (a beam search); 1 is greedy.
    seed : int
        Decides which samples are looked at.

    Raises
    ------
    RefusedError
        There is no such criterion, no block can be skipped, or ``width`` is below 1.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> steps = skip_greedily(m, gm.demo.splits().calibration[:100], "margin")
    >>> len(next(steps).blocks)
    1
    """
    if by not in CRITERIA or width < 1:
        what = f"there is no criterion '{by}'" if by not in CRITERIA else f"width={width} follows nothing up"
        raise RefusedError(f"{what}; choose of {', '.join(map(repr, CRITERIA))}, and a width of at least 1")
    blocks = skippable(model)
    samples = drawn(model, as_data(model, data, targets=True), MOST, seed)
    whole = Evidence(model, (), samples).predictions[0]
    kept: list[tuple[int, ...]] = [()]
    for _ in blocks:
        found: dict[tuple[int, ...], float] = {}
        for gone in kept:
            left = [place for place in range(len(blocks)) if place not in gone]
            regions = _as_left(blocks, gone)
            evidence = Evidence(
                skip(model, [blocks[place] for place in gone]), [regions[place] for place in left], samples, whole
            )
            choices = (tuple(sorted((*gone, place))) for place in left)
            found.update(zip(choices, map(float, CRITERIA[by](evidence)), strict=True))
        kept = sorted(found, key=lambda choice: (found[choice], choice))[:width]
        best = tuple(blocks[place] for place in kept[0])
        yield Step(skip(model, best), best, found[kept[0]])


def _as_left(blocks: Sequence[Block], gone: Sequence[int]) -> list[Region]:
    """Return where the blocks lie once some are skipped: what followed a skipped one reads what that one read."""
    instead: dict[str, str] = {}
    for place in gone:
        block = blocks[place]
        instead[block.exit] = instead.get(block.entry, block.entry)
    return [Region(instead.get(block.entry, block.entry), block.exit) for block in blocks]
