"""Gradients of an imported network beside those of the module that it was exported from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def outputs(made: Any) -> list[Tensor]:
    """Return what a network returns as a list."""
    return list(made) if isinstance(made, tuple) else [made]


def gradients(net: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the gradients of the mean squares of all float outputs, by parameter."""
    net.zero_grad()
    sum(value.square().mean() for value in outputs(net(*inputs)) if value.is_floating_point()).backward()
    return {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}


def widened(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return inputs with floats in double precision."""
    return tuple(value.double() if value.is_floating_point() else value for value in inputs)


def matched(
    net: nn.Module, original: nn.Module, found: dict[str, Tensor], wanted: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each weight of the original that the network has, the gradient there and the one that is wanted.

    Weights are matched by their values, so those are left out that an exporter folded into others. Rows of an embedding
    that is told to have no gradient are set to zero: the graph does not say so.
    """
    held, originals = dict(net.named_parameters()), dict(original.named_parameters())
    silent = {
        f"{path}.weight": layer.padding_idx
        for path, layer in original.named_modules()
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None
    }
    for name, grad in wanted.items():
        parts = [
            turn(found[key])
            for key, value in held.items()
            if key in found and (turn := _turn(value, originals[name])) is not None
        ]
        if parts:  # an exporter may have split a tied weight in two: its gradient is their sum
            total = torch.stack(parts).sum(0)
            if name in silent:
                total[silent[name]] = 0
            yield name, total, grad


def _turn(held: Tensor, original: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return what turns a parameter into the original's, if they hold the same values."""
    if held.numel() != original.numel():
        return None
    if held.ndim == original.ndim and sorted(held.shape) == sorted(original.shape):
        for order in itertools.permutations(range(held.ndim)):
            turned = held.permute(order)
            if turned.shape == original.shape and torch.equal(turned, original):
                return lambda grad: grad.permute(order)
    if torch.equal(held.reshape(-1), original.reshape(-1)):
        return lambda grad: grad.reshape(original.shape)
    return None
