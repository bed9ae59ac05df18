r"""Gates: a network in PyTorch of which units and blocks are open or closed.

With :math:`g` in place of ones, a weight :math:`W` whose axes lie along units :math:`u(i), v(j)` is
:math:`W_{ij} g_{u(i)} g_{v(j)}`, and a block that computes :math:`f` gives :math:`x + g (f(x) - x)`. What is closed is
zero wherever it is read, so that the network computes what it will once that is removed; gradients with respect to
gates are those of the loss when a unit or block fades.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import is_not

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, nn
from torch.func import functional_call

from graphmod.errors import RefusedError
from graphmod.graph import Block, raw_logits
from graphmod.methods.gates.left_norm import LeftNorm
from graphmod.model import Model
from graphmod.pruning.groups import Groups, Units
from graphmod.pruning.importance.gradients import places
from graphmod.pytorch import to_torch, write_back
from graphmod.pytorch.steps import Convert, Dequantize, forward

_NORMALIZED = frozenset(
    {"GroupNormalization", "LRN", "LayerNormalization", "LpNormalization", "MeanVarianceNormalization",
     "RMSNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
)  # fmt: skip
"""Operators that compare channels with each other, besides reductions: what is closed is not as if it were gone."""


class Gated:
    """A network whose units and blocks have gates.

    Parameters
    ----------
    found : Groups
    blocks : sequence of Block
        On the trunk, in its order, each of the same units at both ends, none within another.

    Attributes
    ----------
    model : Model
        That of the groups: a constant whose entries are all alike is there once for every reader, each trained apart.
    blocks : tuple of Block
        Without those that begin or end in a tensor that PyTorch does not make by itself.
    logits : str
        The tensor that the network gives: the main output, or what a softmax at its end reads.
    net : torch.fx.GraphModule
    fixed : array of bool, shape (units,)
        Units that have to stay open, as something normalises them together with others in a way that gates do not know.
    """

    def __init__(self, found: Groups, blocks: Sequence[Block]) -> None:
        self.model, self.found = found.model, found
        self.logits = raw_logits(self.model)
        self.net = to_torch(self.model, dtype=torch.float32)
        nodes = {node.meta["tensor"]: node for node in self.net.graph.nodes if "tensor" in node.meta}
        self.blocks = tuple(block for block in blocks if block.entry in nodes and block.exit in nodes)
        self._units = self._units_of_parameters()
        gates = self._add_gates(nodes)
        self._end_in(nodes)
        normalised = self._let_norms_follow(gates)
        self.fixed = self._fixed(normalised)
        self.net.graph.lint()
        self.net.recompile()

    @property
    def n_gates(self) -> int:
        """Units, then blocks."""
        return self.found.n_units + len(self.blocks)

    def __call__(self, inputs: Sequence[Tensor], gates: Tensor) -> Tensor:
        """Return the logits, with a gate for each unit and then each block."""
        n = self.found.n_units
        units = torch.cat([gates[:n], gates.new_ones(1)])
        weights = {}
        for name, parameter in self.net.named_parameters():
            weight: Tensor = parameter
            for own in self._units.get(name, ()):
                weight = weight * units[own]
            weights[name] = weight
        made: Tensor = functional_call(self.net, weights, (units, gates[n:], *inputs))
        return made

    def written(self) -> Model:
        """Return the model with the weights and statistics that the network has now, all gates open."""
        plain = to_torch(self.model, dtype=torch.float32)
        plain.load_state_dict(self.net.state_dict())
        return write_back(self.model, plain)

    def _units_of_parameters(self) -> dict[str, list[Tensor]]:
        """Return for every axis of every parameter along which units lie the unit of each entry, last for none."""
        names = {id(parameter): name for name, parameter in self.net.named_parameters()}
        found: dict[str, list[Tensor]] = {}
        for place in places(self.found, self.net):
            steps = tuple(step for step in place.source.steps if not isinstance(step, Convert | Dequantize))
            for axis, units in place.axes:
                shape = [-1 if other == axis else 1 for other in range(len(place.source.shape))]
                own = np.where(units < 0, self.found.n_units, units).reshape(shape)
                every = np.broadcast_to(own, place.source.shape)
                found.setdefault(names[id(place.parameter)], []).append(torch.from_numpy(forward(steps, every).copy()))
        return found

    def _add_gates(self, nodes: dict[str, torch.fx.Node]) -> torch.fx.Node:
        """Let the network take gates first, and blocks fade by theirs; return the node of the units' gates."""
        graph = self.net.graph
        first = next(iter(graph.nodes))
        with graph.inserting_before(first):
            units, blocks = graph.placeholder("unit_gates"), graph.placeholder("block_gates")
        for number, block in enumerate(self.blocks):
            entry, exit_ = nodes[block.entry], nodes[block.exit]
            with graph.inserting_after(exit_):
                mixed = graph.call_function(faded, (entry, exit_, blocks, number))
            exit_.replace_all_uses_with(mixed, delete_user_cb=partial(is_not, mixed))
            nodes[block.exit] = mixed
        return units

    def _end_in(self, nodes: dict[str, torch.fx.Node]) -> None:
        """Let the network give the logits alone.

        Raises
        ------
        RefusedError
            PyTorch does not make them by themselves.
        """
        if self.logits not in nodes:
            raise RefusedError(
                f"the network in PyTorch does not make the logits '{self.logits}' by themselves; take out what makes "
                "them with gm.extract"
            )
        (end,) = self.net.graph.find_nodes(op="output")
        end.args = (nodes[self.logits],)
        self.net.graph.eliminate_dead_code()

    def _let_norms_follow(self, gates: torch.fx.Node) -> set[str]:
        """Put layer normalisations over what is left where units are normalised; return the tensors that they read."""
        modules, read = dict(self.net.named_modules()), set()
        for node in list(self.net.graph.nodes):
            layer = modules.get(node.target) if node.op == "call_module" else None
            if not isinstance(layer, nn.LayerNorm) or len(layer.normalized_shape) != 1:
                continue
            tensor = _tensor(node.args[0])
            axes = self.found.analysis.axes.get(tensor, [])
            units = self.found.units(axes[-1]) if axes else np.empty(0, np.int64)
            if len(units) == layer.normalized_shape[0]:
                read.add(tensor)
                if (units >= 0).any():
                    own = np.where(units < 0, self.found.n_units, units)
                    self.net.set_submodule(str(node.target), LeftNorm(layer, own))
                    node.args = (node.args[0], gates)
        return read

    def _fixed(self, normalised: set[str]) -> np.ndarray:
        """Return which units something compares with others, other than the normalisations of these tensors."""
        fixed = np.zeros(self.found.n_units, bool)
        for operator in self.model.operators:
            for tensor in set(operator.input) - normalised - self.model.constants.keys():
                for units in self._compared(operator, tensor):
                    fixed[units[units >= 0]] = True
        return fixed

    def _compared(self, operator: NodeProto, tensor: str) -> list[Units]:
        """Return the units along axes of a tensor that an operator compares with each other."""
        before, after = (
            [self.found.units(labels) for labels in self.found.analysis.axes.get(name, [])]
            for name in (tensor, operator.output[0])
        )
        if operator.op_type.startswith("Reduce"):
            return [units for units in before if not any(np.array_equal(units, one) for one in after)]
        if operator.op_type == "InstanceNormalization":  # what writes out a group normalisation has channels there
            return before[2:]
        return before if operator.op_type in _NORMALIZED else []


def faded(entry: Tensor, exit_: Tensor, gates: Tensor, number: int) -> Tensor:
    """Return what a block gives of which a gate lets through a part: ``exit_`` at 1, ``entry`` at 0."""
    return entry + (exit_ - entry) * gates[number]


def _tensor(node: object) -> str:
    """Return the name in the graph of what a node gives, behind the gate of a block too."""
    if not isinstance(node, torch.fx.Node):
        return ""
    return node.meta.get("tensor", "") or (_tensor(node.args[1]) if node.target is faded else "")
