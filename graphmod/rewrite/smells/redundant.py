"""Blocks that hand on nearly what they were given: measured on data."""

from __future__ import annotations

from collections.abc import Iterator

from graphmod.errors import InvalidDataError, InvalidModelError, RefusedError
from graphmod.graph import Block, blocks, cost
from graphmod.probe import moments, similarity
from graphmod.rewrite.propose import Proposal, proposals
from graphmod.rewrite.recipe import Edit
from graphmod.rewrite.region import Region
from graphmod.rewrite.smells.evidence import Evidence
from graphmod.rewrite.smells.registry import Finding, smell

SIMILAR = 0.98
"""Linear CKA of the representations before and after a block, from which it is a candidate."""

ERROR = 0.2
"""Error of what replaces a block, over the deviation at its exit, up to which nobody will miss it."""


@smell("redundant_block", data=True)
def _redundant_blocks(evidence: Evidence) -> Iterator[Finding]:
    """Blocks whose representations before and after are nearly the same, so that nearly nothing can stand for them."""
    model, data = evidence.model, evidence.data
    if data is None:
        return
    try:
        tree = blocks(model)
        measured = similarity(model, data, threads=1)
    except (InvalidModelError, InvalidDataError, RefusedError) as error:
        yield Finding("redundant blocks cannot be looked for", reason=str(error))
        return
    place = {name: i for i, name in enumerate(measured.boundaries)}
    alike = [
        block
        for block in tree.walk()
        if block is not tree
        and block.entry in place
        and block.exit in place
        and measured.matrix[place[block.entry], place[block.exit]] >= SIMILAR
        and cost(model, block.operators).weights
    ]
    seen = moments(model, data, [(block.entry, block.exit) for block in alike], threads=1) if alike else {}
    taken: set[str] = set()
    found = []
    for block in alike:  # parents come first
        if taken.isdisjoint(block.operators) and (block.entry, block.exit) in seen:
            best = _cheapest(evidence, block, proposals(Region(block.entry, block.exit), seen[block.entry, block.exit]))
            if best is not None:
                taken.update(block.operators)
                found.append((block, best))
    for block, best in reversed(found):  # so that the entry of one is still there when the one behind it has gone
        cka = measured.matrix[place[block.entry], place[block.exit]]
        yield _finding(evidence, block, best, cka)


def _cheapest(evidence: Evidence, block: Block, fitted: list[Proposal]) -> Proposal | None:
    """Return the cheapest replacement that is good enough and holds at most half of the block's weights."""
    weights = cost(evidence.model, block.operators).weights
    good = (one for one in fitted if one.error <= ERROR and 2 * _n_weights(one) <= weights)
    return next(good, None)


def _n_weights(one: Proposal) -> int:
    rows, columns = one.fit.weight.shape
    return 0 if one.kind == "identity" else 2 * columns if one.kind == "affine" else int((rows + 1) * columns)


def _finding(evidence: Evidence, block: Block, best: Proposal, cka: float) -> Finding:
    whole = cost(evidence.model, block.operators)
    place = [block.entry, block.exit]
    told = f"what block '{block.path}' makes is what it gets, to a CKA of {cka:.3f}: "
    told += f"{'nothing' if best.kind == 'identity' else f'a layer ({best.kind})'} in its place has an error of "
    told += f"{best.error:.1%} and takes {whole.weights - _n_weights(best):,} weights less"
    edit = Edit("remove", {"place": place})
    if best.kind != "identity":
        edit = Edit("replace", {"place": place, "data": dict(evidence.data_record or {}), "kind": best.kind})
    try:
        best.apply(evidence.model)
        mends, reason = edit, ""
    except RefusedError as error:
        mends, reason = None, str(error)
    return Finding(
        told,
        block.operators,
        (block.entry, block.exit),
        mends,
        reason,
        n_bytes=whole.bytes,
        n_operators=len(block.operators),
    )
