"""The importer: an ONNX graph becomes a torch.fx.GraphModule, operator by operator."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, cast

import numpy as np
from onnx import ModelProto, NodeProto
from torch import fx, nn

from graphmod.errors import UnsupportedOperatorError
from graphmod.model import Model, load
from graphmod.model.view import consumed
from graphmod.pytorch.binding import Binding, Weight
from graphmod.pytorch.constants import Constants
from graphmod.pytorch.dtypes import has_tensor, is_float, to_tensor
from graphmod.pytorch.operator import Operator
from graphmod.pytorch.paths import Paths
from graphmod.pytorch.registry import domain_of, find

META = "graphmod"
"""Key of ``GraphModule.meta`` under which the bindings lie that :func:`graphmod.write_back` needs."""


def to_torch(model: Model | ModelProto | str | PathLike[str]) -> fx.GraphModule:
    """Bring a model into PyTorch, as a network that can be trained and whose weights can be written back.

    Submodules follow the network that was exported, as far as the exporter recorded it. Every float weight is one
    ``nn.Parameter``, shared where operators share it. What depends on constants alone is computed now; batch size and
    sequence length stay dynamic.

    Parameters
    ----------
    model : Model, onnx.ModelProto or path
        The model; it stays as it is.

    Returns
    -------
    torch.fx.GraphModule
        In evaluation mode. Its parameters are the graph's inputs in order; it returns a tensor, or a tuple of tensors
        in the order of the graph's outputs.

    Raises
    ------
    UnsupportedOperatorError
        Operators have no counterpart: all of them are listed, before any weight is read. Or an operator's attributes
        ask for something that would not be computed rightly.

    Examples
    --------
    >>> from onnx import parser
    >>> net = to_torch(parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     agraph (float[n, 2] x) => (float[n, 3] y)
    ...     <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[3] b = {0, 0, 1}> {
    ...         h = Gemm(x, w, b)
    ...         y = Relu(h)
    ...     }'''))
    >>> print(net)  # doctest: +NORMALIZE_WHITESPACE
    GraphModule(
      (gemm_0): Linear(in_features=2, out_features=3, bias=True)
      (relu_1): ReLU()
    )
    ...
    >>> import torch
    >>> net(torch.ones(1, 2)).tolist()
    [[5.0, 7.0, 10.0]]
    """
    return Importer(load(model)).run()


@dataclass(frozen=True)
class _Held:
    """A parameter or buffer of the network, where it lives, and how its axes were permuted on the way."""

    path: str
    value: nn.Parameter
    permutation: tuple[int, ...]


class Importer:
    """One import: the fx graph so far, the nodes of tensors, the parameters of weights.

    Parameters
    ----------
    model : Model
        The model to import.

    Raises
    ------
    UnsupportedOperatorError
        At least one operator has no converter.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.constants = Constants(model)
        self.graph = fx.Graph()
        self._opsets = {domain_of(o.domain): o.version for o in model._proto.opset_import}
        self._refuse_unsupported()
        self._root = nn.Module()
        self._paths = Paths(model)
        self._nodes: dict[str, fx.Node] = {}
        self._constant_nodes: dict[str, fx.Node] = {}
        self._held: dict[str, _Held] = {}
        self._bindings: list[Binding] = []
        self._absorbed: set[int] = set()
        self._readers = Counter(name for operator in model.operators for name in consumed(operator))
        self._readers.update(list(model.outputs))

    def _refuse_unsupported(self) -> None:
        if self.model._proto.graph.sparse_initializer:
            name = self.model._proto.graph.sparse_initializer[0].values.name
            raise UnsupportedOperatorError(f"initializer '{name}' is sparse, which is not supported; make it dense")
        missing = [
            f"'{operator.name or operator.output[0]}' ({operator.op_type}, domain '{domain_of(operator.domain)}', "
            f"opset {self._opset(operator)})"
            for operator in self.model.operators
            if not self.constants.folds(operator)
            and find(operator.op_type, operator.domain, self._opset(operator)) is None
        ]
        if missing:
            raise UnsupportedOperatorError(
                f"no PyTorch counterpart for {len(missing)} operator(s): {', '.join(missing)}"
            )

    def _opset(self, operator: NodeProto) -> int:
        return int(self._opsets.get(domain_of(operator.domain), 1))

    def run(self) -> fx.GraphModule:
        """Convert every operator and return the network."""
        taken: set[str] = set()
        for name, kind in self.model.inputs.items():
            if kind.dtype is None or not has_tensor(kind.dtype):
                raise UnsupportedOperatorError(f"input '{name}' is {kind}, which no PyTorch tensor holds")
            node = self.graph.placeholder(_identifier(name, taken))
            self._bind(name, node)
        for position, proto in enumerate(self.model.operators):
            if position not in self._absorbed and not self.constants.folds(proto):
                self._convert(Operator(proto, position, self._opset(proto), self))
        results = tuple(self.node(name) for name in self.model.outputs)
        self.graph.output(results[0] if len(results) == 1 else results)
        self.graph.lint()
        net = fx.GraphModule(self._root, self.graph)
        net.meta[META] = tuple(self._bindings)
        return net.eval()

    def _convert(self, operator: Operator) -> None:
        converter = find(operator.proto.op_type, operator.proto.domain, operator.opset)
        assert converter is not None, "unsupported operators are refused first"
        made = converter(operator)
        operator.requires_no_other_attribute()
        nodes = (made,) if isinstance(made, fx.Node) else made
        for name, node in zip(operator.proto.output, nodes, strict=False):
            if name and node is not None:
                self._bind(name, node)

    def _bind(self, tensor: str, node: fx.Node) -> None:
        self._nodes[tensor] = node
        node.meta.setdefault("tensor", tensor)

    # -- what converters ask, through Operator

    def n_readers(self, tensor: str) -> int:
        """Return how often a tensor is read, graph outputs included."""
        return self._readers[tensor]

    def sole_reader(self, tensor: str) -> Operator | None:
        """Return the operator that alone reads a tensor, if there is one."""
        if self._readers[tensor] != 1 or tensor in self.model.outputs:
            return None
        for position, proto in enumerate(self.model.operators):
            if tensor in proto.input:
                return Operator(proto, position, self._opset(proto), self)
        return None

    def absorb(self, operator: Operator, node: fx.Node) -> None:
        """Let a node stand for an operator's output; the operator is not converted any more."""
        self._absorbed.add(operator.position)
        self._bind(operator.proto.output[0], node)

    def node(self, tensor: str) -> fx.Node:
        """Return the node of a tensor; a constant becomes a parameter or a buffer at the top of the network."""
        if tensor in self._nodes:
            return self._nodes[tensor]
        if tensor not in self._constant_nodes:
            self._constant_nodes[tensor] = self._constant_node(tensor)
        return self._constant_nodes[tensor]

    def _constant_node(self, tensor: str) -> fx.Node:
        value = self.constants.value(tensor)
        if not has_tensor(value.dtype):
            raise UnsupportedOperatorError(f"constant '{tensor}' is of type {value.dtype}, which PyTorch does not have")
        if not is_float(value.dtype) or value.size < 2 or not np.isfinite(value.astype(np.float32)).all():
            path = self._paths.of_constant(tensor)
            container, name = self._container(path)
            container.register_buffer(name, to_tensor(value))
            return self.graph.get_attr(path)
        source = self.constants.source(tensor)
        if source.tensor not in self._held:
            weight = self._weight(source.tensor, tuple(range(value.ndim)))
            path = self._paths.of_constant(source.tensor)
            container, name = self._container(path)
            self._set_parameter(container, path, name, weight)
        held = self._held[source.tensor]
        node = self.graph.get_attr(held.path)
        order = tuple(held.permutation.index(axis) for axis in source.permutation)
        return node if order == tuple(range(len(order))) else self.graph.call_method("permute", (node, *order))

    def weight(self, tensor: str, permutation: Sequence[int] | None) -> Weight | None:
        """Return a constant as a weight for a module; see :meth:`Operator.weight`."""
        if not is_float(self.constants.value(tensor).dtype):
            return None
        source = self.constants.source(tensor)
        order = source.permutation if permutation is None else tuple(source.permutation[axis] for axis in permutation)
        if source.tensor in self._held and self._held[source.tensor].permutation != order:
            return None
        return self._weight(source.tensor, order)

    def _weight(self, tensor: str, permutation: tuple[int, ...]) -> Weight:
        value = self.constants.value(tensor)
        return Weight(tensor, permutation, value.shape, value.dtype, lambda: value.transpose(permutation))

    def call_module(
        self, operator: Operator, module: nn.Module, args: Sequence[Any], weights: Mapping[str, Weight | None]
    ) -> fx.Node:
        """Place a submodule with its weights and call it."""
        path = self._paths.of_operator(operator.proto, operator.position)
        container, name = self._container(path)
        container.add_module(name, module)
        for slot, weight in weights.items():
            if weight is None:
                module.register_parameter(slot, None)
            elif slot in module._buffers:
                module.register_buffer(slot, to_tensor(weight.value()))
                reader = (operator.proto.output[0], weight.index)
                self._bindings.append(replace(_binding(weight, f"{path}.{slot}"), reader=reader))
            else:
                self._set_parameter(module, f"{path}.{slot}", slot, weight)
        return self.graph.call_module(path, tuple(args))

    def _set_parameter(self, owner: nn.Module, path: str, name: str, weight: Weight) -> None:
        held = self._held.get(weight.tensor)
        if held is None:
            held = _Held(path, nn.Parameter(to_tensor(weight.value())), weight.permutation)
            self._held[weight.tensor] = held
        owner.register_parameter(name, held.value)
        self._bindings.append(_binding(weight, path))

    def _container(self, path: str) -> tuple[nn.Module, str]:
        """Return the submodule that is to hold a path's last part, and that part."""
        *containers, name = path.split(".")
        module = self._root
        for part in containers:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = cast(nn.Module, module._modules[part])
        return module, name


def _binding(weight: Weight, path: str) -> Binding:
    return Binding(weight.tensor, path, weight.permutation, weight.shape, weight.dtype.name)


def _identifier(name: str, taken: set[str]) -> str:
    """Return a Python identifier for a graph input."""
    plain = re.sub(r"\W", "_", name)
    if not plain.isidentifier() or keyword.iskeyword(plain) or plain == "self":
        plain = f"input_{plain}"
    unique, n = plain, 0
    while unique in taken:
        n += 1
        unique = f"{plain}_{n}"
    taken.add(unique)
    return unique
