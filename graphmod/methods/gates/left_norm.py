"""Normalization over the channels that are left: what layer normalisation is once the others are gone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphmod.pruning.groups import Units


class LeftNorm(nn.Module):
    """Layer normalisation over the last axis, with gates: closed channels count for neither mean nor variance.

    Parameters
    ----------
    layer : nn.LayerNorm
        Its weight and bias are this module's, under the same names.
    units : array of int
        The unit of every channel; one that belongs to none is always open.
    """

    units: Tensor

    def __init__(self, layer: nn.LayerNorm, units: Units) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.register_buffer("units", torch.from_numpy(units), persistent=False)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Normalize ``x``; ``gates`` has one value a unit, and 1 for what is none, or a row of such for each sample."""
        y = self.normalised(x, gates)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias

    def normalised(self, x: Tensor, gates: Tensor) -> Tensor:
        """Return ``x`` of mean 0 and variance 1 over what is open."""
        mask = gates[..., self.units]
        if gates.dim() > 1:
            mask = mask.reshape(len(mask), *(1,) * (x.dim() - 2), -1)
        n = mask.sum(-1, keepdim=True)
        # a constant may be left where a channel is closed; a closed gate that learns has a gradient all the same
        x = x - (x * (mask == 0)).detach() if gates.requires_grad else x.masked_fill(mask == 0, 0)
        mean = x.sum(-1, keepdim=True) / n
        apart = (x - mean) * mask
        return apart * (apart.square().sum(-1, keepdim=True) / n + self.eps).rsqrt()
