r"""Conditions: normalisations whose scale and shift depend on which modules are composed.

With the sets' matrix s, shape (samples, conditions), and a table T of a scale (or shift) for every condition, a
normalisation has

.. math:: \gamma_i = \sum_q s_{iq} T_q .

Conditions are the set of all n classes, counting t = (k - 1) / (n - 1) in a set of k; the classes, each of the set
counting (1 - t) / k; and the size of a set that is not all. So the whole network has scales of its own, and the larger
a set the nearer its scales are to those. What is composed has one set, so that its scales are constants as any
network's: they cost nothing. Slimmable networks (Yu et al., ICLR 2019) have a normalisation for each width for the same
reason: what is summed over fewer channels has other statistics.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from graphmod.methods.gates.left_norm import LeftNorm
from graphmod.model import Model
from graphmod.rewrite.draft import Draft

NORMALISATIONS = ("BatchNormalization", "LayerNormalization")
"""Operators that read their scale and shift second and third."""

Tables = dict[str, NDArray[np.float32]]
"""By the constant that it stands for, a row for every condition."""


def conditions(classes: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return how much each condition counts, for sets of classes as rows.

    Examples
    --------
    >>> conditions(np.array([[True, False, True], [True, True, True]])).tolist()
    [[0.25, 0.0, 0.25, 0.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
    """
    n = classes.shape[1]
    sizes = classes.sum(1, keepdims=True)
    among = (sizes - 1) / (n - 1)
    return np.hstack([classes * (1 - among) / sizes, sizes == np.arange(1, n), among]).astype(np.float32)


def with_own_scales(model: Model) -> Model:
    """Return a model of which no normalisation shares its scale or shift: exporters store equal ones once.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> with_own_scales(m) is m
    True
    """
    draft, is_changed = Draft(model), False
    for operator in list(draft.operators):
        inputs = list(operator.input)
        for place in (1, 2) if operator.op_type in NORMALISATIONS else ():
            value = draft.constant(inputs[place]) if len(inputs) > place else None
            if value is not None and not draft.is_read_once(inputs[place]):
                inputs[place] = draft.weight(f"{operator.name or operator.output[0]}/{inputs[place]}", value)
        if inputs != list(operator.input):
            draft.set_inputs(operator, inputs)
            is_changed = True
    return draft.finish() if is_changed else model


class Conditional(nn.Module):
    """A normalisation over channels with a scale and a shift by conditions.

    Parameters
    ----------
    layer : batch normalisation or LeftNorm
        Whose scale and shift all classes begin with.
    n_classes : int
    """

    layer: _BatchNorm | LeftNorm
    mean: Tensor
    rate: Tensor

    def __init__(self, layer: _BatchNorm | LeftNorm, n_classes: int) -> None:
        super().__init__()
        self.layer = layer
        self.scales, self.shifts = (nn.Parameter(_table(given, n_classes)) for given in (layer.weight, layer.bias))
        if isinstance(layer, _BatchNorm):
            assert isinstance(layer.running_mean, Tensor), "what is imported has statistics"
            assert isinstance(layer.running_var, Tensor), "as above"
            self.register_buffer("mean", layer.running_mean, persistent=False)
            self.register_buffer("rate", (layer.running_var + layer.eps).rsqrt(), persistent=False)

    def forward(self, x: Tensor, gates: Tensor, sets: Tensor) -> Tensor:
        """Normalise ``x``; ``sets``, shape (samples, conditions)."""
        layer, scale, shift = self.layer, sets @ self.scales, sets @ self.shifts
        if isinstance(layer, LeftNorm):
            shape = (len(x), *(1,) * (x.dim() - 2), -1)
            return torch.addcmul(shift.reshape(shape), layer.normalised(x, gates), scale.reshape(shape))
        shape = (len(x), -1, *(1,) * (x.dim() - 2))
        rate = scale * self.rate
        shift = torch.addcmul(shift, rate, self.mean, value=-1)
        return torch.addcmul(shift.reshape(shape), x, rate.reshape(shape))


def _table(given: object, n_classes: int) -> Tensor:
    """Return a row for every class, one for every size, which counts beside those, and one for all classes."""
    assert isinstance(given, Tensor), "who makes a conditional one has looked for it"
    value = given.detach()
    sizes = torch.zeros(n_classes - 1, len(value))
    return torch.cat([value.repeat(n_classes, 1), sizes, value[None]])
