r"""LAMP: layer-adaptive magnitudes (Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, ICLR 2021).

Equation 4: with the weights of a layer sorted by magnitude, the score of weight :math:`u` is

.. math:: \mathrm{score}(u) = W[u]^2 \Big/ \sum_{v \ge u} W[v]^2,

the share of it in what would be left of the layer if all smaller ones were gone. The highest scores of the network
stay: every layer keeps its largest weight, as that has score 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphmod.methods.deeparc.sparsity.layers import Layer, Mask
from graphmod.methods.deeparc.sparsity.magnitude import highest
from graphmod.methods.deeparc.sparsity.registry import schedule


@schedule("lamp")
def lamp(layers: Sequence[Layer], keep: int) -> list[Mask]:
    """Keep the weights of the highest LAMP scores."""
    return highest([scores(layer) for layer in layers], keep)


def scores(layer: Layer) -> NDArray[np.float64]:
    """Return the LAMP score of every weight of a layer, in its shape; 0 for zeros."""
    squares = layer.magnitude.reshape(-1).astype(np.float64) ** 2
    falling = np.argsort(-squares, kind="stable")
    left = np.cumsum(squares[falling])
    found = np.zeros(squares.size)
    found[falling] = np.divide(squares[falling], left, out=np.zeros_like(left), where=left > 0)
    return found.reshape(layer.magnitude.shape)
