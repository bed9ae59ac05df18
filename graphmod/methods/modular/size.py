"""Size: how many weights a network has left when some of its units and blocks are gone."""

from __future__ import annotations

from collections.abc import Sequence

from graphmod.graph import Block
from graphmod.pruning.groups import Groups
from graphmod.pruning.widths import Alive, Widths


class Size:
    """The weights of a network by its gates, without those of what :func:`graphmod.unfuse` put in for training.

    Parameters
    ----------
    found : Groups
    blocks : sequence of Block
        None within another.

    Examples
    --------
    >>> import numpy as np
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> size = Size(gm.groups(m), [])
    >>> size(np.ones(size.n_gates, bool)) == m.n_weights
    True
    """

    def __init__(self, found: Groups, blocks: Sequence[Block]) -> None:
        self._widths = Widths(found)
        self.n_gates = found.n_units + len(blocks)
        inside = {name: number for number, block in enumerate(blocks) for name in block.operators}
        model = found.model
        parts: dict[int, list[str]] = {}
        for name in model.constants:
            owners = {inside.get(model.operator_names[place], -1) for place in model.readers.get(name, ())}
            parts.setdefault(owners.pop() if len(owners) == 1 else -1, []).append(name)
        self._parts = {block: self._widths.weights_of(names) for block, names in parts.items()}
        self._n_units = found.n_units

    def __call__(self, gates: Alive) -> int:
        """Return what is left; ``gates`` of units and then blocks, True where open."""
        widths, blocks = self._widths(gates[: self._n_units]), gates[self._n_units :]
        return round(sum(part(widths) for block, part in self._parts.items() if block < 0 or blocks[block]))
