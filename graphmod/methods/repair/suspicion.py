"""Suspicion: which unit is at fault, as far as labelled samples tell without a healthy network.

Two signs, neither of which needs training:

- *relative gradient*: the norm of a weight's gradient times the norm of the weight, by which the loss falls, to first
  order, for a step as long as the weight (You, Gitman & Ginsburg, Large batch training of convolutional networks, 2017,
  step in this proportion), summed over the unit's weights. Values that were replaced make the loss steep there.
- *skipping*: a healthy unit costs accuracy when activations pass it by; a broken one costs less, or brings some back.

A unit's score is its relative gradient, 1 for the largest, plus the share of the loss that skipping it saves, if any.
One with weights that are no numbers is at fault for certain, and scores higher than both signs together can.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from graphmod.data import Data
from graphmod.errors import RefusedError
from graphmod.graph import subgraph
from graphmod.methods.repair.patching import Array, Values, between
from graphmod.methods.repair.units import Unit
from graphmod.methods.tuning import Candidate
from graphmod.model import Model
from graphmod.pytorch import META, to_torch
from graphmod.pytorch.dtypes import HALF, to_tensor
from graphmod.train.retrain import Loss

_SKIPPED = 4
"""Units, those of the largest relative gradients, that are skipped to see what that does; all where no
output is a number, so that no gradient tells anything."""

_CERTAIN = 3.0
"""What the score of a unit is more for weights that are no numbers; both signs together are 2 at most."""


def suspects(
    model: Model,
    data: Data,
    parts: Sequence[Unit],
    output: str,
    loss: Loss,
    known: Values,
    certain: Collection[Unit] = (),
) -> tuple[Candidate, ...]:
    """Rank the units of a model by how likely they are at fault.

    Parameters
    ----------
    model : Model
        It takes any number of samples.
    data : Data
        A hundred samples or more, with targets.
    parts : sequence of Unit
        Those that may be at fault, in the order of the trunk.
    output : str
        The tensor that the loss reads.
    loss : callable
        ``loss(outputs, targets) -> scalar tensor``.
    known : mapping of str to array
        What the model makes of the data at the units' entries and in the output.
    certain : collection of Unit
        Those that had weights which are no numbers.

    Returns
    -------
    tuple of Candidate
        Best first; the figures are both signs.

    Raises
    ------
    RefusedError
        No gradient reaches a weight.
    """
    steep = _relative_gradients(model, data, parts, output, loss)
    most = max(steep) or 1.0
    whole = loss_of(known[output], data, loss)
    n_tested = _SKIPPED if np.isfinite(whole) else len(parts)
    tested = sorted(range(len(parts)), key=lambda place: -steep[place])[:n_tested]
    saved = _saved_by_skipping(model, data, [parts[place] for place in tested], output, loss, known, whole)
    savings = dict(zip(tested, saved, strict=True))
    found = []
    for place, unit in enumerate(parts):
        figures = {"gradient": steep[place] / most, "skipping": savings.get(place, 0.0)}
        score = figures["gradient"] + max(0.0, figures["skipping"]) + (_CERTAIN if unit in certain else 0.0)
        found.append(Candidate((unit.path,), *unit.place, unit.weights, score, figures))
    return tuple(sorted(found, key=lambda one: -one.score))


def loss_of(outputs: Array, data: Data, loss: Loss) -> float:
    """Return the loss of outputs; not a number counts as infinite."""
    assert data.targets is not None, "as_splits is asked for targets"
    value = float(loss(_tensor(outputs), _tensor(data.targets)))
    return value if np.isfinite(value) else np.inf


def _relative_gradients(model: Model, data: Data, parts: Sequence[Unit], output: str, loss: Loss) -> list[float]:
    """Return for every unit the sum over its weights of the norm of the gradient times that of the weight.

    What is not finite tells nothing and counts as 0.
    """
    part = subgraph(model, list(model.inputs), [output])
    net = to_torch(part, dtype=torch.float32).eval()
    assert data.targets is not None, "as_splits is asked for targets"
    outputs = net(*(_tensor(data.inputs[name]) for name in part.inputs))
    value = loss(outputs, _tensor(data.targets))
    if not value.requires_grad:
        raise RefusedError(
            "no gradient reaches a weight of the model, so labels do not tell what is at fault: an operator such as "
            "Hardmax or ArgMax has none; give a healthy model, or the model without it"
        )
    value.backward()  # type: ignore[no-untyped-call]  # torch ships it without annotations
    found: dict[str, float] = {}
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        for binding in net.meta[META]:
            weight = parameters.get(binding.path)
            if weight is not None and weight.grad is not None:
                found[binding.tensor] = float(weight.grad.norm() * weight.norm())
    known = {name: steep for name, steep in found.items() if np.isfinite(steep)}
    return [sum(known.get(name, 0.0) for name in unit.tensors) for unit in parts]


def _saved_by_skipping(
    model: Model, data: Data, parts: Sequence[Unit], output: str, loss: Loss, known: Values, whole: float
) -> list[float]:
    """Return the share of the whole loss that skipping each unit saves, 0 for those that change the shape."""
    found = []
    for unit in parts:
        if unit.exit == output or model.tensors.get(unit.entry) != model.tensors.get(unit.exit):
            found.append(0.0)
            continue
        skipped = between(model, unit.exit, [output], data, known[unit.entry])[output]
        left = loss_of(skipped, data, loss)
        found.append(1 - left / whole if 0 < whole < np.inf else float(left < whole == np.inf))
    return found


def _tensor(array: Array) -> Tensor:
    """Return an array as the network takes it: half precision as single."""
    tensor = to_tensor(array)
    return tensor.float() if array.dtype.name in HALF else tensor
