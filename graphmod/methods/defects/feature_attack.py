r"""Adversarial samples made on a public network alone, by what its features are.

Whoever attacks a derived network may know nothing but the public network it was made of. With :math:`g` the public
network up to its features, samples are sought that maximise :math:`\|g(x') - g(x)\|^2` within
:math:`\|x' - x\|_\infty \le \epsilon`, by projected gradient descent (Madry et al. 2018): no labels are needed, and
what reads the features later has no part in it. ReMoS (Zhang et al., ICSE 2022) and SeaM (Qi et al., ICSE 2023)
measure by attacks on the public network what a derived one inherits.

The feature adversaries of adversarial-robustness-toolbox lead towards the features of other samples, which must be
given; these lead away from the sample's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graphmod.arguments import check_whole, is_real
from graphmod.data import Data, as_data, fixed_batch
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import final_features
from graphmod.methods.defects.values import float_input
from graphmod.model import Model, check_model
from graphmod.pytorch import to_torch
from graphmod.rewrite import extract, rebatch

Floats = NDArray[np.floating[Any]]

Features = Callable[[Tensor], Tensor]
"""From a batch of the float input to the features."""

_EPS_SHARE = 0.1
"""What a value may change by, as a share of the data's range, where nothing else is said."""

_REACH = 2.5
"""Length of all steps together, in eps, so that each end of the ball can be reached from everywhere in it."""


def feature_attack(
    source: Model,
    data: object,
    *,
    tensor: str | None = None,
    eps: float | None = None,
    steps: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Data:
    """Change samples so that a network's features of them are as far as possible from what they were.

    Parameters
    ----------
    source : Model
        The public network, with one float input; others may be integers, and stay as they are.
    data : anything that :func:`graphmod.data.as_data` takes
        Samples; labels are not looked at.
    tensor : str, optional
        The features: a tensor, a block's path, an operator or a selector of one. The last boundary before the final
        layer's weights (:func:`graphmod.graph.final_features`) if None.
    eps : float, optional
        What every value of a sample may change by, in the data's units; a tenth of the range of values if None.
    steps : int
        Steps along the gradient's sign, each of ``2.5 * eps / steps``.
    batch_size : int
    seed : int
        Of where in the ball a sample starts. Same seed, same result.
    bounds : (float, float), optional
        The least and the largest value that samples may have; those of the data if None. Give them where several parts
        of a data set are attacked one by one.

    Returns
    -------
    Data
        As many samples of the same dtype, each in the row of the one that it is made of, with its target.

    Raises
    ------
    RefusedError
        An argument is out of range, the tensor does not exist, or no gradient leads from it to the input.
    UnsupportedOperatorError
        An operator before the features cannot be imported into PyTorch, or has no gradient there.
    InvalidDataError
        The data does not fit, there is not just one float input, all its values are the same, or some lie outside of
        the bounds.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods import defects
    >>> public, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> test = data.test[:100]
    >>> attacked = defects.feature_attack(public, test, eps=0.15)
    >>> derived = gm.retrain(public, data, "fc", epochs=1)  # another head on the same features
    >>> defects.inheritance(derived, test, attacked) > 0.5
    True
    """
    check_model(source, "feature_attack")
    if eps is not None and not (is_real(eps) and 0 < eps < np.inf):
        raise RefusedError(f"eps={eps!r} is out of range; what a value may change by is above 0")
    check_whole(1, steps=steps, batch_size=batch_size)
    samples = as_data(source, data)
    name, x = float_input(samples)
    low, high = _range(x, bounds)
    largest = _EPS_SHARE * (high - low) if eps is None else eps
    lower, upper = _box(x, largest, low, high)
    check_whole(0, seed=seed)
    drawn = np.random.default_rng(seed).uniform(-largest, largest, x.shape)
    begun = (x + drawn).astype(x.dtype).clip(lower, upper)
    net = _network(source, tensor)
    found = np.empty_like(x)
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        features = _of_one_input(net, source, samples[rows], name)
        at, clean, least, most = (_tensor(values[rows]) for values in (begun, x, lower, upper))
        found[rows] = _furthest(features, at, clean, (least, most), _REACH * largest / steps, steps).numpy()
    return Data({**samples.inputs, name: found}, samples.targets)


def _furthest(features: Features, at: Tensor, x: Tensor, box: tuple[Tensor, Tensor], step: float, steps: int) -> Tensor:
    """Return where gradient ascent on the features' squared distance ends, every step of it projected into a box."""
    clean = features(x)
    for _ in range(steps):
        at.requires_grad_()
        distance = (features(at) - clean).square().sum()  # a sample's gradient is its own: nothing joins samples
        if not distance.requires_grad:
            raise RefusedError(
                "no gradient leads from the features to the float input; name another tensor with tensor="
            )
        (gradient,) = torch.autograd.grad(distance, at)
        at = torch.clamp(at.detach() + step * gradient.sign(), *box)
    return at


def _range(x: Floats, bounds: tuple[float, float] | None) -> tuple[float, float]:
    """Return the least and the largest value that samples may have, as they are in the samples' precision."""
    low, high = (float(x.dtype.type(end)) for end in (bounds if bounds is not None else (x.min(), x.max())))
    if not low < high:
        raise InvalidDataError(f"values of the samples lie between {low:g} and {high:g}; give bounds=(low, high)")
    if x.min() < low or x.max() > high:
        raise InvalidDataError(f"the samples have values from {x.min():g} to {x.max():g}, outside of bounds={bounds}")
    return low, high


def _box(x: Floats, eps: float, low: float, high: float) -> tuple[Floats, Floats]:
    """Return the least and the largest value of each entry, rounded inwards: none changes by more than eps."""
    exact = x.astype(np.float64)
    least, most = np.maximum(exact - eps, low), np.minimum(exact + eps, high)
    lower, upper = least.astype(x.dtype), most.astype(x.dtype)
    lower = np.where(lower < least, np.nextafter(lower, x), lower)
    return lower, np.where(upper > most, np.nextafter(upper, x), upper)


def _network(source: Model, tensor: str | None) -> nn.Module:
    """Return the network up to its features, for any number of samples, in single precision or double."""
    free = source if fixed_batch(source) is None else rebatch(source)
    part = extract(free, list(free.inputs), final_features(free) if tensor is None else tensor)
    if len(part.outputs) != 1:
        raise RefusedError(f"tensor='{tensor}' names {len(part.outputs)} tensors, {', '.join(part.outputs)}; name one")
    return to_torch(part, dtype=torch.float32).eval().requires_grad_(False)


def _of_one_input(net: nn.Module, source: Model, batch: Data, name: str) -> Features:
    """Return the network as a function of one of its inputs, the others being those of a batch."""
    others = {key: torch.tensor(array) for key, array in batch.inputs.items() if key != name}
    return lambda x: net(*(x if key == name else others[key] for key in source.inputs))


def _tensor(values: Floats) -> Tensor:
    """Return values in a precision that the network computes in."""
    return torch.tensor(values.astype(np.promote_types(values.dtype, np.float32), copy=False))
