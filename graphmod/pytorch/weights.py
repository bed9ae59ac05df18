"""Weights: which constants become parameters of the network, which buffers, and where they live."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper
from torch import fx, nn

from graphmod.errors import RefusedError
from graphmod.model import consumed
from graphmod.pytorch.address import attribute_array, marked
from graphmod.pytorch.binding import Binding, Source, Weight, digest_of
from graphmod.pytorch.constants import Constants
from graphmod.pytorch.dtypes import HALF, has_tensor, is_float, to_tensor, torch_dtype
from graphmod.pytorch.paths import Paths
from graphmod.pytorch.scope import Scope
from graphmod.pytorch.steps import (
    Convert,
    Dequantize,
    Reshape,
    Step,
    Steps,
    Take,
    forward,
    forward_shape,
    restep,
    without_identities,
)

Array = NDArray[np.generic]

MASKED = -1e4
"""What an additive mask adds, at most, where something is hidden."""

STOPPING = frozenset({"bool", "int32", "int64"})
"""Element types through which no gradient passes; quantized ones let it pass, straight through."""


@dataclass
class Held:
    """A constant's parameter, and the steps that led to it."""

    value: nn.Parameter
    source: Source


class Weights:
    """The parameters, buffers and submodules of one graph's network.

    Parameters
    ----------
    scope : Scope
    constants : Constants
    graph : fx.Graph
        Where nodes that read parameters and buffers go.
    paths : Paths
    widened : bool
        Whether half precision becomes single precision.
    around : Weights, optional
        Those of the graph around a body, with which it shares parameters.

    Attributes
    ----------
    root : nn.Module
        Holds everything.
    bindings : list of Binding
        Where constants live, relative to the root.
    """

    def __init__(
        self, scope: Scope, constants: Constants, graph: fx.Graph, paths: Paths, *, widened: bool,
        around: Weights | None,
    ) -> None:  # fmt: skip
        self.root = nn.Module()
        self.bindings: list[Binding] = []
        self._scope = scope
        self._constants = constants
        self._graph = graph
        self._paths = paths
        self._widened = widened
        self._places: dict[int, str] = {}
        self._buffers: dict[str, fx.Node] = {}
        self._held: dict[tuple[object, ...], list[Held]] = around._held if around is not None else defaultdict(list)
        self._fixed: set[tuple[object, ...]] = around._fixed if around is not None else set()

    def node(self, tensor: str) -> fx.Node:
        """Return the node of a constant: a parameter for a weight, else a buffer; an attribute for an array."""
        value = self._constants.value(tensor)
        if not has_tensor(value.dtype):
            path = self._paths.of_constant(tensor)
            container, name = self._container(path)
            setattr(container, name, value)
            return self._graph.get_attr(path)
        if not is_float(value.dtype):
            return self.buffer(tensor)
        weight = self._weight(tensor, ())
        known = bool(self._held[weight.source.key])
        if not known and (tensor in self._scales or not self._is_trainable(tensor, value)):
            self._fixed.add(weight.source.key)
            return self.buffer(tensor)
        held = self._find_held(weight.source)
        if held is None:
            if others := self._held[weight.source.key]:
                return self._restepped(tensor, weight, others)
            held = self._hold(weight)
        return self._graph.get_attr(self._path_of(held))

    @cached_property
    def _scales(self) -> set[str]:
        """The constants that multiply the scale of a dynamic quantization, and so are those of quantized weights."""
        dynamic = {
            operator.output[1] for operator in self._scope.operators if operator.op_type == "DynamicQuantizeLinear"
        }
        products = [operator for operator in self._scope.operators if operator.op_type == "Mul"]
        return {name for product in products if not dynamic.isdisjoint(product.input) for name in product.input}

    @cached_property
    def _whole(self) -> set[tuple[object, ...]]:
        """The constants that something else reads than recurrent operators, which take them apart into gates."""
        names = {
            name
            for operator in self._scope.operators
            if operator.op_type not in ("LSTM", "GRU", "RNN") and not self._constants.folds(operator)
            for name in consumed(operator)
            if name in self._constants and is_float(self._constants.value(name).dtype)
        }
        return {self._constants.source(name).key for name in names}

    def buffer(self, tensor: str) -> fx.Node:
        """Return the node of a constant that is not trained; numbers that PyTorch has no type for become floats."""
        if tensor not in self._buffers:
            value = self._constants.value(tensor)
            path = self._paths.of_constant(tensor)
            container, name = self._container(path)
            numbers = self._widen(value) if has_tensor(value.dtype) else value.astype(np.float32)
            container.register_buffer(name, to_tensor(numbers))
            self._buffers[tensor] = self._graph.get_attr(path)
        return self._buffers[tensor]

    def parameter(self, weight: Weight) -> fx.Node:
        """Return the node of a weight as a parameter of the network."""
        return self._graph.get_attr(self._path_of(self._find_held(weight.source) or self._hold(weight)))

    def _is_trainable(self, tensor: str, value: Array) -> bool:
        """Whether floats are a weight: more than one, no mask, and not only compared."""
        single = value.astype(np.float32, copy=False)
        if value.size < 2 or not np.isfinite(single).all():
            return False
        mask = bool((single <= MASKED).any() and ((single == 0) | (single <= MASKED)).all())
        return not mask and tensor in self._reached

    def is_number(self, tensor: str) -> bool:
        """Whether a constant of one element may stand in the code as a number: no layer trains it."""
        if not is_float(self._constants.value(tensor).dtype):
            return True
        key = self._constants.source(tensor).key
        if not self._held[key]:
            self._fixed.add(key)
        return key in self._fixed

    @cached_property
    def _reached(self) -> set[str]:
        """The tensors that a gradient of an output can reach: it stops where truths or indices are made of floats."""
        reached = set(self._scope.outputs)
        for operator in reversed(self._scope.operators):
            if any(name in reached and self._passes(name) for name in operator.output):
                reached.update(consumed(operator))
        return reached

    def _passes(self, tensor: str) -> bool:
        kind = self._scope.types.get(tensor)
        return kind is None or kind.dtype is None or kind.dtype.name not in STOPPING

    def _restepped(self, tensor: str, weight: Weight, others: list[Held]) -> fx.Node:
        """Return a constant that another reader holds in another form, made from that form."""
        source = weight.source
        for held in others:
            node = self._graph.get_attr(self._path_of(held))
            made = restep(
                self._graph, node, held.source.steps, source.steps, source.shape, torch_dtype(source.numpy_dtype)
            )
            if made is not None:
                return made
        raise RefusedError(
            f"constant '{tensor}' is read in forms that no single parameter can serve; give its readers initializers "
            "of their own in the graph first"
        )

    def _find_held(self, source: Source) -> Held | None:
        return next((held for held in self._held[source.key] if held.source.steps == source.steps), None)

    def _hold(self, weight: Weight) -> Held:
        held = Held(nn.Parameter(to_tensor(weight.value())), weight.source)
        self._held[weight.source.key].append(held)
        return held

    def _path_of(self, held: Held) -> str:
        """Return where a parameter lives in this graph's network; put it at its top if it does not yet."""
        if id(held) not in self._places:
            path = self._paths.of_constant(held.source.tensor)
            container, name = self._container(path)
            self._set_parameter(container, path, name, held)
        return self._places[id(held)]

    def _set_parameter(self, owner: nn.Module, path: str, name: str, held: Held) -> None:
        owner.register_parameter(name, held.value)
        self._places.setdefault(id(held), path)
        self.bindings.append(Binding(held.source, path))

    def weight(self, tensor: str, steps: Sequence[Step]) -> Weight | None:
        """Return a constant as a weight for a module, or None where it is no float or held in another form."""
        if tensor not in self._constants:
            return None
        if not is_float(self._constants.value(tensor).dtype) and not any(isinstance(s, Dequantize) for s in steps):
            return None
        weight = self._weight(tensor, steps)
        others = self._held[weight.source.key]
        if weight.source.key in self._fixed or (_is_part(weight.source.steps) and weight.source.key in self._whole):
            return None
        if others and self._find_held(weight.source) is None:
            parts = all(_is_part(held.source.steps) for held in others) and _is_part(weight.source.steps)
            return weight if parts else None
        return weight

    def of_attribute(self, operator: NodeProto, name: str, shape: tuple[int, ...] | None) -> Weight | None:
        """Return numbers of an attribute, or None where it is missing, as a weight for a module."""
        attribute = next((attribute for attribute in operator.attribute if attribute.name == name), None)
        if attribute is None:
            return None
        of_tensor, place = attribute.HasField("t"), marked(operator)
        value = numpy_helper.to_array(attribute.t) if of_tensor else attribute_array(attribute)
        assert value is not None, "only attributes that hold numbers are weights"
        made = value if shape is None else value.reshape(shape)
        address = None
        if place is not None and place[0] != "functions":  # there an attribute may come from the call
            address = (*place, "attribute", name, "t") if of_tensor else (*place, "attribute", name)
        steps = without_identities((Reshape(made.shape),), value.shape)
        tensor = f"{operator.output[0]}.{name}"
        source = Source(tensor, address, steps, value.shape, value.dtype.name, None, digest_of(value))
        return Weight(source, made.shape, lambda: made)

    def _weight(self, tensor: str, steps: Sequence[Step]) -> Weight:
        source, value = self._constants.source(tensor), self._constants.value(tensor)
        more = list(steps)
        if self._widened and value.dtype.name in HALF:
            more.append(Convert(np.dtype(np.float32)))
        all_steps = without_identities((*source.steps, *more), source.shape)

        def made() -> Array:
            return forward(tuple(more), self._constants.value(tensor))

        return Weight(replace(source, steps=all_steps), forward_shape(tuple(more), value.shape), made)

    def _widen(self, value: Array) -> Array:
        return value.astype(np.float32) if self._widened and value.dtype.name in HALF else value

    def place(self, operator: NodeProto, position: int, module: nn.Module, weights: Mapping[str, Weight | None]) -> str:
        """Put a submodule with its weights at an operator's place in the network; return its path."""
        path = self._paths.of_operator(operator, position)
        container, name = self._container(path)
        container.add_module(name, module)
        for slot, weight in weights.items():
            inner, _, leaf = slot.rpartition(".")
            owner = module.get_submodule(inner)
            if weight is None:
                owner.register_parameter(leaf, None)
            elif leaf in owner._buffers:
                owner.register_buffer(leaf, to_tensor(weight.value()))
                place = marked(operator)
                reader = None if place is None else (place, weight.index)
                self.bindings.append(Binding(weight.source, f"{path}.{slot}", reader))
            else:
                held = self._find_held(weight.source) or self._hold(weight)
                self._set_parameter(owner, f"{path}.{slot}", leaf, held)
        return path

    def _container(self, path: str) -> tuple[nn.Module, str]:
        """Return the submodule that is to hold a path's last part, and that part."""
        *containers, name = path.split(".")
        module = self.root
        for part in containers:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = cast(nn.Module, module._modules[part])
        return module, name


def _is_part(steps: Steps) -> bool:
    return any(isinstance(step, Take) for step in steps)
