r"""ERK: the Erdős-Rényi kernel (Evci et al., Rigging the lottery: making all tickets winners, ICML 2020, section 3).

The share of a layer's weights that stay is proportional to

.. math:: \frac{n_{in} + n_{out} + k_w + k_h}{n_{in} \, n_{out} \, k_w \, k_h},

so that large layers become sparser than small ones; a layer whose share would be more than all stays dense, and the
others share what is left. (The paper scales the sparsity with 1 minus that fraction; its code, and everyone since, the
density with the fraction, as the text around it says.)
"""

from __future__ import annotations

from collections.abc import Sequence

from graphmod.methods.deeparc.sparsity.layers import Layer, Mask
from graphmod.methods.deeparc.sparsity.quotas import quotas
from graphmod.methods.deeparc.sparsity.registry import schedule


@schedule("erk")
def erk(layers: Sequence[Layer], keep: int) -> list[Mask]:
    """Keep as many weights of each layer as its shape says, the largest ones."""
    wanted = [float(sum(layer.magnitude.shape)) for layer in layers]  # density times size
    counts = quotas(wanted, [layer.n_left for layer in layers], keep)
    return [layer.largest(n) for layer, n in zip(layers, counts, strict=True)]
