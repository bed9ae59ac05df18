r"""Gates by sample: a network in which every sample of a batch has units and blocks of its own that are open.

A layer that sums over channels, a convolution or a product, reads :math:`g_{iu} x_{iu}` in place of :math:`x_{iu}`,
with the gate of sample i and unit u, and a block that computes f gives :math:`x_i + g_i (f(x_i) - x_i)`: for each
sample that is what the network computes once what is closed for it is gone. So one pass trains what is composed of as
many sets of modules as there are samples. A block computes those samples alone for which it is open. A tensor's first
axis has the samples, or for each of them a number of rows, one after another; what holds them otherwise is left as it
is, and gates that it would have to follow do not agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from graphmod.methods.gates import AGREE, Gated
from graphmod.methods.gates.left_norm import LeftNorm
from graphmod.methods.modular.conditions import Conditional, Tables, conditions
from graphmod.model import Model
from graphmod.pruning.widths import Alive
from graphmod.pytorch import META, to_torch
from graphmod.pytorch.steps import Convert

SUMMED = {"Conv": {0: 1}, "ConvTranspose": {0: 1}, "Gemm": {0: 1}, "MatMul": {0: -1, 1: -2}}
"""By type of operator, for the inputs by their places, the axis that is summed over."""

ROWS = 16
"""Samples that blocks compute are a multiple of this: convolutions prepare themselves for every number anew."""


class BySample:
    """A network with gates for every sample.

    Parameters
    ----------
    gated : Gated
        The same network with gates for all samples; its weights are what this one begins with.
    n_classes : int
    inputs : sequence of Tensor
        A few samples, three or more.

    Attributes
    ----------
    net : torch.fx.GraphModule
    """

    def __init__(self, gated: Gated, n_classes: int, inputs: Sequence[Tensor]) -> None:
        self.found, self.n_classes = gated.found, n_classes
        self.net = to_torch(gated.model, dtype=torch.float32)
        self.net.load_state_dict(gated.net.state_dict())
        graph = self.net.graph
        nodes = {node.meta["tensor"]: node for node in graph.nodes if "tensor" in node.meta}
        self._rows = rows_of_samples(self.net, inputs)
        with graph.inserting_before(next(iter(graph.nodes))):
            gates, sets = graph.placeholder("sample_gates"), graph.placeholder("sample_sets")
        self._mask_sums(nodes, gates)
        self._normalise(gates, sets)
        for number, block in enumerate(gated.blocks):
            entry, exit_ = nodes[block.entry], nodes[block.exit]
            if entry in self._rows:
                nodes[block.exit] = self._gate(entry, exit_, self.found.n_units + 1 + number, gates, sets)
                self._rows[nodes[block.exit]] = self._rows[entry]
        (end,) = graph.find_nodes(op="output")
        end.args = (nodes[gated.logits],)
        graph.eliminate_dead_code()
        graph.lint()
        self.net.recompile()

    def __call__(self, inputs: Sequence[Tensor], gates: Tensor, sets: Tensor) -> Tensor:
        """Return the logits of samples.

        Parameters
        ----------
        inputs : sequence of Tensor
        gates : Tensor, shape (samples, units + blocks)
            1 where open and 0 where closed.
        sets : Tensor, shape (samples, conditions)
            Of the :func:`graphmod.methods.modular.conditions.conditions` of each sample.
        """
        n = self.found.n_units
        every = torch.cat([gates[:, :n], gates.new_ones(len(gates), 1), gates[:, n:]], 1)
        made: Tensor = self.net(every, sets, *inputs)
        return made

    def composed(self, inputs: Sequence[Tensor], gates: Alive, classes: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits of samples by what is composed of some modules; ``gates`` are which are open for them."""
        among = np.isin(np.arange(self.n_classes), classes)
        sets = torch.from_numpy(conditions(np.tile(among, (len(inputs[0]), 1))))
        self.net.eval()
        with torch.no_grad():
            made: NDArray[np.float32] = self(
                inputs, torch.from_numpy(np.tile(gates.astype(np.float32), (len(inputs[0]), 1))), sets
            ).numpy()
        return made

    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the weights that are the same for all sets, and scales and shifts by conditions."""
        tables = [table for norm in self._conditional.values() for table in (norm.scales, norm.shifts)]
        own = {id(table) for table in tables}
        inside = {id(one) for norm in self._conditional.values() for one in norm.layer.parameters()}
        return [one for one in self.net.parameters() if id(one) not in own | inside], tables

    def state(self) -> dict[str, Tensor]:
        """Return the weights of the whole network, by their paths in the one with gates for all samples."""
        state = dict(self.net.state_dict())
        for path, norm in self._conditional.items():
            for own in [name for name in state if name.startswith(f"{path}.")]:
                value = state.pop(own)
                if own.startswith(f"{path}.layer."):
                    state[path + own.removeprefix(f"{path}.layer")] = value
            state |= {f"{path}.weight": norm.scales.detach()[-1], f"{path}.bias": norm.shifts.detach()[-1]}
        return state

    def tables(self) -> Tables:
        """Return scales and shifts of normalisations by conditions, by the constants that they stand for."""
        names = {binding.path: binding.tensor for binding in self.net.meta[META]}
        return {
            names[f"{path}.{kind}"]: table.detach().numpy().copy()
            for path, norm in self._conditional.items()
            for kind, table in (("weight", norm.scales), ("bias", norm.shifts))
        }

    def agreed(self, gated: Gated, inputs: Sequence[Tensor]) -> NDArray[np.bool_]:
        """Return which gates do here what they do for all samples: those of every group, and of every block, are tried.

        Parameters
        ----------
        gated : Gated
        inputs : sequence of Tensor
            A few samples; gates are closed for every second one.
        """
        n, n_gates = self.found.n_units, gated.n_gates
        agree = np.ones(n_gates, bool)
        rng = np.random.default_rng(0)
        n_samples = len(inputs[0])
        whole = torch.from_numpy(conditions(np.ones((n_samples, self.n_classes), bool)))
        is_closed = torch.arange(n_samples).unsqueeze(1) % 2 == 0
        parts = [np.arange(group.first, group.first + group.n_units) for group in self.found]
        parts += [np.array([number]) for number in range(n, n_gates)]
        self.net.eval()
        gated.net.eval()
        for part in parts:
            gates = torch.ones(n_gates)
            gates[rng.choice(part, -(-len(part) // 2), replace=False)] = 0
            with torch.no_grad():
                expected = torch.where(is_closed, gated(inputs, gates), gated(inputs, torch.ones(n_gates)))
                found = self(inputs, torch.where(is_closed, gates, 1.0), whole)
            agree[part] = float((found - expected).abs().max()) <= AGREE * float(expected.abs().max())
        return agree

    def _gate(self, entry: fx.Node, exit_: fx.Node, number: int, gates: fx.Node, sets: fx.Node) -> fx.Node:
        """Let a block compute the samples for which its gate is open, and return what it then gives for all."""
        graph = self.net.graph
        inside = _between(entry, exit_)
        every = some = [entry, gates, sets]
        varying = _descendants(graph.find_nodes(op="placeholder"))
        others = varying - inside - set(every)
        is_by_sample = self._rows[entry] == 1 and not any(
            one in others for node in inside for one in node.all_input_nodes
        )
        with graph.inserting_before(entry.next):
            if is_by_sample:
                rows = graph.call_function(open_rows, (gates, number))
                some = [graph.call_function(torch.index_select, (one, 0, rows)) for one in every]
        for node in inside:
            for one, of_rows in zip(every, some, strict=True):
                node.replace_input_with(one, of_rows)
        with graph.inserting_before(exit_.next):
            (own,) = self._for(entry, some[1])
            mixed = given = graph.call_function(faded, (some[0], exit_, own, number))
            if is_by_sample:
                mixed = graph.call_function(torch.index_copy, (entry, 0, rows, given))
        exit_.replace_all_uses_with(mixed, delete_user_cb=lambda user: user is not given)
        return mixed

    def _mask_sums(self, nodes: dict[str, fx.Node], gates: fx.Node) -> None:
        """Let layers that sum over channels read what gates let through."""
        for operator in self.found.model.operators:
            reader = self._node(nodes, operator.output[0])
            for tensor, axis in _summed(self.found.model, operator):
                units = self._units(tensor, axis)
                own = nodes.get(tensor)
                if reader is None or own not in self._rows or units is None:
                    continue
                name = f"units_of_gates_{len(self.net.graph.nodes)}"
                self.net.register_buffer(name, units, persistent=False)
                with self.net.graph.inserting_before(reader):
                    (every,) = self._for(own, gates)
                    let_through = self.net.graph.call_function(
                        masked, (own, every, self.net.graph.get_attr(name), axis)
                    )
                reader.replace_input_with(own, let_through)

    def _node(self, nodes: dict[str, fx.Node], tensor: str) -> fx.Node | None:
        """Return the node that makes a tensor, or what becomes of it where the importer has made one of several."""
        model = self.found.model
        while tensor not in nodes:
            readers = model.readers.get(tensor, ())
            if len(readers) != 1:
                return None
            tensor = model.operators[readers[0]].output[0]
        return nodes[tensor]

    def _normalise(self, gates: fx.Node, sets: fx.Node) -> None:
        """Let normalisations go over what is open, with scales and shifts by conditions where these are stored."""
        modules = dict(self.net.named_modules())
        bindings = self.net.meta[META]
        times = Counter(binding.tensor for binding in bindings)
        bound = {
            one.path
            for one in bindings
            if times[one.tensor] == 1 and all(isinstance(step, Convert) for step in one.source.steps)
        }
        self._conditional: dict[str, Conditional] = {}
        for node in list(self.net.graph.nodes):
            layer = modules.get(node.target) if node.op == "call_module" else None
            path = str(node.target)
            if layer is None or node.args[0] not in self._rows:
                continue
            with self.net.graph.inserting_before(node):
                own_gates, own_sets = self._for(node.args[0], gates, sets)
            if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
                units = self._units(node.args[0].meta.get("tensor", ""), -1)
                own = np.full(layer.normalized_shape[0], self.found.n_units) if units is None else units.numpy()
                layer = LeftNorm(layer, own)
                self.net.set_submodule(path, layer)
                node.args = (node.args[0], own_gates)
            if isinstance(layer, _BatchNorm | LeftNorm) and {f"{path}.weight", f"{path}.bias"} <= bound:
                self._conditional[path] = Conditional(layer, self.n_classes)
                self.net.set_submodule(path, self._conditional[path])
                node.args = (node.args[0], own_gates, own_sets)

    def _for(self, x: fx.Node, *every: fx.Node) -> list[fx.Node]:
        """Return what samples have, for each row of a tensor."""
        if self._rows[x] == 1:
            return list(every)
        return [self.net.graph.call_function(by_row, (one, x)) for one in every]

    def _units(self, tensor: str, axis: int) -> Tensor | None:
        """Return the unit of every index of an axis, the last for none; None where no unit lies along it."""
        axes = self.found.analysis.axes.get(tensor, [])
        if not axes or axis >= len(axes):
            return None
        units = self.found.units(axes[axis])
        return torch.from_numpy(np.where(units < 0, self.found.n_units, units)) if (units >= 0).any() else None


def _summed(model: Model, operator: NodeProto) -> Iterator[tuple[str, int]]:
    """Yield the inputs of an operator that it sums over several channels of, and their axes."""
    if operator.op_type == "Conv" and (model.tensors[operator.input[1]].shape or (0, 0))[1] == 1:
        return  # a depthwise one keeps channels apart
    for place, axis in SUMMED.get(operator.op_type, {}).items():
        yield operator.input[place], axis


def rows_of_samples(net: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, int]:
    """Return how many rows of its first axis a tensor has for every sample, where that depends on their number alone.

    Parameters
    ----------
    net : torch.fx.GraphModule
    inputs : sequence of Tensor
        Three samples or more.
    """
    net.eval()
    few, more = (_Lengths(net) for _ in range(2))
    with torch.no_grad():
        few.run(*(one[:2] for one in inputs))
        more.run(*(one[:3] for one in inputs))
    return {node: n // 2 for node, n in few.found.items() if n % 2 == 0 and 2 * more.found.get(node, 0) == 3 * n}


class _Lengths(fx.Interpreter):
    """Notes how long the first axis of every tensor is."""

    def __init__(self, net: fx.GraphModule) -> None:
        super().__init__(net)
        self.found: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node."""
        made = super().run_node(n)
        if isinstance(made, Tensor) and made.dim():
            self.found[n] = len(made)
        return made


def by_row(values: Tensor, x: Tensor) -> Tensor:
    """Return what samples have, shape (samples, ...), for every row of ``x``, of which each sample has as many."""
    return values.repeat_interleave(len(x) // len(values), 0)


def masked(x: Tensor, gates: Tensor, units: Tensor, axis: int) -> Tensor:
    """Return ``x`` times the gates, shape (samples, units), of what lies along an axis of it."""
    shape = [1] * x.dim()
    shape[0], shape[axis] = len(gates), len(units)
    return x * gates[:, units].reshape(shape)


def faded(entry: Tensor, exit_: Tensor, gates: Tensor, number: int) -> Tensor:
    """Return what a block gives, sample by sample: ``exit_`` where its gate is 1, ``entry`` where it is 0."""
    gate = gates[:, number].reshape(-1, *(1,) * (entry.dim() - 1))
    return entry + (exit_ - entry) * gate


def open_rows(gates: Tensor, number: int) -> Tensor:
    """Return the samples for which a gate is open, and others that make their number a multiple."""
    own = gates[:, number]
    n = -(-max(1, int(own.count_nonzero())) // ROWS) * ROWS
    return own.argsort(descending=True)[:n]


def _descendants(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return some nodes and all that are computed from them."""
    found = set(nodes)
    waiting = list(found)
    while waiting:
        users = waiting.pop().users.keys() - found
        found |= users
        waiting += users
    return found


def _between(entry: fx.Node, exit_: fx.Node) -> set[fx.Node]:
    """Return what is computed from one node on the way to another, the latter too."""
    after = _descendants([entry])
    found, waiting = {exit_}, [exit_]
    while waiting:
        read = (after & set(waiting.pop().all_input_nodes)) - found - {entry}
        found |= read
        waiting += read
    return found
