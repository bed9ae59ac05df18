r"""First order: by how much the loss would change, going by its gradient at a block's exit.

Skipping moves the exit from :math:`h_{exit}` to :math:`h_{entry}`; a Taylor series cut after its first term predicts
(Molchanov et al. 2017, with a block in the place of a channel)

.. math:: \frac1n \sum_i \Big| \Big\langle \frac{\partial L_i}{\partial h_{exit}},
          h_{entry} - h_{exit} \Big\rangle \Big|
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, check_labels, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import subgraph
from graphmod.methods.criteria.registry import Evidence, Scores, criterion
from graphmod.model import Model

if TYPE_CHECKING:
    from torch import Tensor, fx

_BATCH = 64


@criterion("gradient")
def gradient(evidence: Evidence) -> Scores:
    """Return the mean over samples of what the gradient says of each block, in nats.

    Raises
    ------
    UnsupportedOperatorError
        An operator cannot be imported into PyTorch.
    RefusedError
        The loss has no gradient at a block's exit.
    """
    import torch

    from graphmod.pytorch import to_torch

    labels = check_labels(evidence.model, evidence.data)
    tensors = dict.fromkeys(name for region in evidence.regions for name in (region.entry, region.exit))
    made = [name for name in tensors if name not in evidence.model.inputs]
    watched = subgraph(evidence.model, list(evidence.model.inputs), list(dict.fromkeys([*made, evidence.output])))
    net = to_torch(watched, dtype=torch.float32).eval()
    total = np.zeros(len(evidence.regions))
    unit = fixed_batch(evidence.model) or 1
    for batch in Data(evidence.data.inputs, labels).batches(max(unit, _BATCH), unit):
        total += _of_batch(evidence, watched, net, batch)
    return total / len(labels)


def _of_batch(evidence: Evidence, watched: Model, net: fx.GraphModule, batch: Data) -> Scores:
    """Return the sum over the samples of a batch."""
    import torch
    from torch.nn.functional import cross_entropy

    feeds = {name: _tensor(batch.inputs[name]) for name in watched.inputs}
    found = net(*feeds.values())
    values = dict(zip(watched.outputs, found if isinstance(found, tuple) else (found,), strict=True), **feeds)
    exits = list(dict.fromkeys(region.exit for region in evidence.regions))
    loss = cross_entropy(values[evidence.output].flatten(1), torch.from_numpy(batch.targets), reduction="sum")
    try:
        slopes = dict(zip(exits, torch.autograd.grad(loss, [values[name] for name in exits]), strict=True))
    except RuntimeError as error:
        raise RefusedError(f"the loss has no gradient at every block: {str(error).splitlines()[0]}") from error
    with torch.no_grad():
        told = [
            (slopes[region.exit] * (values[region.entry] - values[region.exit])).flatten(1).sum(1).abs().sum()
            for region in evidence.regions
        ]
    return np.array(torch.stack(told).double().numpy())


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return an input as the network takes it, half precision as single, with a gradient where it can have one."""
    from graphmod.pytorch.dtypes import HALF, to_tensor

    tensor = to_tensor(np.array(array))  # a copy: samples may lie in read-only memory
    tensor = tensor.float() if array.dtype.name in HALF else tensor
    return tensor.requires_grad_(tensor.is_floating_point())
