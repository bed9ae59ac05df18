"""Gradients of a loss with respect to weights, by unit, in the network that the importer makes of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from graphmod.data import Data, check_labels, fixed_batch
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import logits
from graphmod.model import Model
from graphmod.pruning.groups import Groups
from graphmod.pruning.importance.registry import Evidence, Scores, by_unit

if TYPE_CHECKING:
    from torch import Generator, Tensor, fx, nn

    from graphmod.pytorch.binding import Source

BATCH = 16
"""Samples of which a gradient is the mean."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """Sums over the weights of every unit, means over batches.

    Parameters
    ----------
    first : float64 array, shape (units of all groups,)
        Of the absolute value of ``sum(weight * gradient)``.
    second : float64 array, shape (units of all groups,)
        Of ``sum((weight * gradient) ** 2)``.
    """

    first: Scores
    second: Scores


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter, the constant that it stands for, and the axes of that along which units lie."""

    parameter: nn.Parameter
    source: Source
    axes: tuple[tuple[int, NDArray[np.int64]], ...]


def gradients(evidence: Evidence) -> Gradients:
    """Run all samples forward and backward.

    The loss is cross-entropy with the labels. Without labels they are drawn from the network's own predictions, with
    the seed (its predictions as soft targets would be a minimum, without a gradient): squares then estimate the Fisher
    information. Outputs that are no classes count by the squared error of targets of their shape, and without any as
    the means of normal variables, of which a value is drawn.

    Raises
    ------
    UnsupportedOperatorError, RefusedError
        The network cannot be imported into PyTorch, or an operator passes no gradient.
    InvalidDataError
        There are no samples, or the targets do not fit.
    """
    import torch

    from graphmod.pytorch import to_torch

    found, samples = evidence.found, evidence.samples
    fixed = _check(found.model, samples)
    net = to_torch(found.model, dtype=torch.float32)
    where = places(found, net)
    generator = torch.Generator().manual_seed(evidence.seed)
    first, second, n = np.zeros(found.n_units), np.zeros(found.n_units), 0
    size = fixed or BATCH
    batches = samples.batches(size, unit=fixed or 1)
    for batch in track(
        batches, "gradients", total=-(-len(samples) // size), disable=not evidence.progress, transient=True
    ):
        net.zero_grad()
        feeds = [torch.from_numpy(widened(batch.inputs[name])) for name in found.model.inputs]
        made = net(*feeds)
        loss = _loss(found.model, made if isinstance(made, tuple) else (made,), batch, generator)
        try:
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships this method without annotations
        except RuntimeError as error:
            raise RefusedError(f"the network has no gradient: {str(error).splitlines()[0]}") from error
        linear, squared = _sums(where, found.n_units)
        first, second, n = first + np.abs(linear), second + squared, n + 1
    return Gradients(first / n, second / n)


def widened(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return a copy that torch may have, in single precision where it is in half."""
    return np.array(array, np.float32 if array.dtype.kind not in "iub" and array.dtype.itemsize < 4 else array.dtype)


def _check(model: Model, samples: Data) -> int | None:
    """Return how many samples the model takes at a time, None if that is free, once the samples are known to fit."""
    fixed = fixed_batch(model)
    if fixed and len(samples) % fixed:
        raise InvalidDataError(
            f"the model takes {fixed} samples at a time and the data has {len(samples)}; leave "
            f"{len(samples) % fixed} out"
        )
    if samples.targets is not None and samples.targets.dtype.kind != "f":
        check_labels(model, samples)
    return fixed


def places(found: Groups, net: fx.GraphModule) -> list[Place]:
    """Return the parameters whose units are known; one that several operators share counts once."""
    from graphmod.pytorch import META

    parameters = dict(net.named_parameters())
    places: dict[tuple[str, str], Place] = {}
    for binding in net.meta[META]:
        source, axes = binding.source, found.analysis.axes.get(binding.tensor, [])
        in_graph = source.address is None or source.address[0] == "graph"
        if in_graph and binding.path in parameters and source.shape == tuple(map(len, axes)):
            units = [(axis, found.units(labels)) for axis, labels in enumerate(axes)]
            own = tuple((axis, of) for axis, of in units if (of >= 0).any())
            places[binding.path, binding.tensor] = Place(parameters[binding.path], source, own)
    return [place for place in places.values() if place.axes]


def _sums(places: Sequence[Place], n_units: int) -> tuple[Scores, Scores]:
    """Return sums of weight times gradient, and of its square, by unit."""
    from graphmod.pytorch.steps import Convert, Dequantize, backward

    linear, squared = np.zeros(n_units), np.zeros(n_units)
    for place in places:
        if place.parameter.grad is None:
            continue
        product = (place.parameter.detach() * place.parameter.grad).numpy()
        steps = tuple(step for step in place.source.steps if not isinstance(step, Convert | Dequantize))
        product = backward(steps, product, np.zeros(place.source.shape, product.dtype))
        for axis, units in place.axes:
            others = tuple(other for other in range(product.ndim) if other != axis)
            linear += by_unit(units, product.sum(others, dtype=np.float64), n_units)
            squared += by_unit(units, np.square(product).sum(others, dtype=np.float64), n_units)
    return linear, squared


def _loss(model: Model, outputs: Sequence[Tensor], batch: Data, generator: Generator) -> Tensor:
    losses = [
        _of_main(model, output, batch, generator) if name == model.main_output else _of_normal(output, generator)
        for name, output in zip(model.outputs, outputs, strict=True)
        if output.requires_grad
    ]
    if not losses:
        raise RefusedError("no output of the network depends on its weights in a way that has a gradient")
    return sum(losses[1:], losses[0])


def _of_main(model: Model, output: Tensor, batch: Data, generator: Generator) -> Tensor:
    """Return the loss of the main output."""
    import torch
    from torch.nn.functional import mse_loss, softmax

    from graphmod.train.losses import cross_entropy

    targets = batch.targets
    if targets is not None and targets.dtype.kind == "f":
        if targets.shape != tuple(output.shape):
            raise InvalidDataError(
                f"targets of shape {list(targets.shape)} do not fit output '{model.main_output}' of shape "
                f"{list(output.shape)}; pass targets of its shape, integer labels, or samples alone"
            )
        return mse_loss(output, torch.from_numpy(np.array(targets)).to(output.dtype))
    if targets is None and (output.ndim != 2 or output.shape[1] < 2):
        return _of_normal(output, generator)
    scores = output.flatten(1)
    if logits(model) != model.main_output:  # probabilities
        scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
    if targets is not None:
        return cross_entropy(scores, torch.from_numpy(targets.astype(np.int64)))
    drawn = torch.multinomial(softmax(scores.detach(), 1), 1, generator=generator)
    return cross_entropy(scores, drawn[:, 0])


def _of_normal(output: Tensor, generator: Generator) -> Tensor:
    """Return the negative log-likelihood of a value drawn from a unit normal around the output, up to a constant."""
    import torch

    noise = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    return (output * noise).sum() / (len(output) if output.ndim else 1)
