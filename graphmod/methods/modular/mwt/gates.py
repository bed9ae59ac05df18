r"""Gates that look at the sample: behind every convolution but the first, one for each of its kernels.

With the convolution's input :math:`x`, the mean :math:`\bar x` of it over positions, and two small linear layers,

.. math:: y = \mathrm{BN}(\mathrm{conv}(x)) \cdot \mathrm{ReLU}(\tanh(W_2 \, \mathrm{ReLU}(W_1 \bar x))) .
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.pytorch import to_torch
from graphmod.rewrite.draft import Draft

WIDE = 128
"""Kernels from which on there are half as many values between the two linear layers as kernels; as many else."""


@dataclass(frozen=True)
class Layer:
    """A convolution that has gates.

    Parameters
    ----------
    operator : str
    weight : str
        Its weight tensor, one row a kernel.
    entry, exit : str
        What it reads, and what its gates are multiplied with: what it makes, or the batch normalisation behind it.
    zeroed : tuple of str
        The constants of which the entries of a kernel are zero when it is gone.
    n_in, n_kernels : int
    """

    operator: str
    weight: str
    entry: str
    exit: str
    zeroed: tuple[str, ...]
    n_in: int
    n_kernels: int


def layers_of(model: Model) -> tuple[Layer, ...]:
    """Return the convolutions of a model with constant weights, but the first one.

    Raises
    ------
    RefusedError
        There are none.
    """
    draft, found = Draft(model), []
    for operator, name in zip(model.operators, model.operator_names, strict=True):
        weight = draft.constant(operator.input[1]) if operator.op_type == "Conv" else None
        if weight is None:
            continue
        exit_, zeroed = operator.output[0], list(operator.input[1:3])
        readers = model.readers.get(exit_, ())
        behind = model.operators[readers[0]] if len(readers) == 1 else None
        if behind is not None and behind.op_type == "BatchNormalization":
            exit_, zeroed = behind.output[0], [*zeroed, *behind.input[1:3]]
        n_kernels, n_in, *_ = weight.shape
        groups = next((one.i for one in operator.attribute if one.name == "group"), 1)
        found.append(Layer(name, operator.input[1], operator.input[0], exit_, tuple(zeroed), n_in * groups, n_kernels))
    if len(found) < 2:
        raise RefusedError(
            "MwT puts gates behind the convolutions after the first one, and the model has no second; "
            "graphmod.modular.train takes networks of any kind"
        )
    return tuple(found[1:])


class Gate(nn.Module):
    """Gates of the kernels of one convolution, most of them open at first.

    Attributes
    ----------
    opened : Tensor, shape (samples, kernels)
        What the gates were for the last samples, 0 to 1.
    """

    opened: Tensor

    def __init__(self, n_in: int, n_kernels: int) -> None:
        super().__init__()
        n_hidden = n_kernels if n_kernels < WIDE else n_kernels // 2
        self.first, self.second = nn.Linear(n_in, n_hidden, bias=False), nn.Linear(n_hidden, n_kernels)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.ones_(self.second.bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``y``, shape (n, kernels, ...), each channel times its gate for ``x``, shape (n, channels, ...)."""
        self.opened = self.second(self.first(x.flatten(2).mean(2)).relu()).tanh().relu()
        return y * self.opened.reshape(*self.opened.shape, *(1,) * (y.dim() - 2))


def with_gates(model: Model, layers: tuple[Layer, ...]) -> tuple[torch.fx.GraphModule, list[Gate]]:
    """Return a network in PyTorch, with gates behind some convolutions, and these."""
    net = to_torch(model, dtype=torch.float32)
    nodes = {node.meta["tensor"]: node for node in net.graph.nodes if "tensor" in node.meta}
    gates = []
    for number, layer in enumerate(layers):
        gate = Gate(layer.n_in, layer.n_kernels)
        net.add_submodule(f"mwt_gate_{number}", gate)
        made = nodes[layer.exit]
        with net.graph.inserting_after(made):
            gated = net.graph.call_module(f"mwt_gate_{number}", (nodes[layer.entry], made))
        made.replace_all_uses_with(gated, delete_user_cb=lambda user, own=gated: user is not own)
        nodes[layer.exit] = gated
        gates.append(gate)
    net.graph.lint()
    net.recompile()
    return net, gates
