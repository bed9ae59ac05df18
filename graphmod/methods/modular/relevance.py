r"""Relevance: how much the loss on samples of a class would grow if a unit or a block were gone.

For every class it is the Fisher information of the gate, the mean over batches of samples of that class alone of the
squared gradient of their loss with respect to it (Theis et al., 2018; Molchanov et al., CVPR 2019),

.. math:: r_c(g) = \mathrm{E}_{B \subset c} \left( \partial L_B / \partial g \right)^2 .
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from graphmod.data import Data
from graphmod.methods.gates import Gated, feeds
from graphmod.train.losses import cross_entropy

Relevance = NDArray[np.float64]

BATCHES, BATCH_SIZE = 4, 16
"""Of samples of a class."""


def relevance(gated: Gated, data: Data, n_classes: int, seed: int) -> Relevance:
    """Return how relevant gates are for classes.

    Parameters
    ----------
    gated : Gated
    data : Data
        With labels.
    n_classes : int
    seed : int
        Of the samples that are drawn.

    Returns
    -------
    float64 array, shape (classes, gates)
        Nowhere negative; classes that the network is surer of have smaller values.
    """
    inputs, labels = feeds(gated, data), np.asarray(data.targets)
    rng = np.random.default_rng(seed)
    found = np.zeros((n_classes, gated.n_gates))
    gated.net.eval()
    for label in range(n_classes):
        own = np.flatnonzero(labels == label)
        for _ in range(BATCHES):
            rows = torch.from_numpy(rng.choice(own, min(BATCH_SIZE, len(own)), replace=False))
            gates = torch.ones(gated.n_gates, requires_grad=True)
            outputs = gated([one[rows] for one in inputs], gates)
            loss = cross_entropy(outputs, torch.full((len(rows),), label))
            (gradient,) = torch.autograd.grad(loss, gates, materialize_grads=True)
            found[label] += gradient.double().numpy() ** 2 / BATCHES
    return found
