"""The way back: a trained network's weights go into the graph that it was imported from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, helper, numpy_helper
from torch import Tensor, fx

from graphmod.errors import RefusedError
from graphmod.model import Model, initializers
from graphmod.model.view import consumed
from graphmod.pytorch.binding import Binding
from graphmod.pytorch.constants import Constants
from graphmod.pytorch.importer import META

Array = NDArray[np.generic]


def write_back(model: Model, net: fx.GraphModule) -> Model:
    """Put a network's weights and running statistics back into the graph that it was imported from.

    Only the values of initializers that differ bit by bit are replaced; names, types, operators, metadata and all
    other bytes stay. A weight that constant operators made becomes an initializer of the same name.

    Parameters
    ----------
    model : Model
        The model that ``net`` was imported from.
    net : torch.fx.GraphModule
        What :func:`graphmod.to_torch` returned, or a copy of it, trained.

    Returns
    -------
    Model
        The very same model where no weight has changed.

    Raises
    ------
    RefusedError
        The network was not imported by :func:`graphmod.to_torch`; a parameter is missing, has another shape, or is no
        longer shared; or the model is not the one that it was imported from.

    Examples
    --------
    >>> from graphmod.demo import model_path
    >>> from graphmod.model import load
    >>> from graphmod.pytorch import to_torch
    >>> model = load(model_path())
    >>> net = to_torch(model)
    >>> write_back(model, net) is model
    True
    """
    bindings: Sequence[Binding] | None = net.meta.get(META)
    if bindings is None:
        raise RefusedError("the network has no record of its graph; import it with to_torch")
    values = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}
    constants = Constants(model)
    changed: dict[str, Array] = {}
    own: dict[tuple[str, int], tuple[str, Array]] = {}
    for tensor, places in _by_tensor(bindings).items():
        old = _old_value(constants, tensor, places[0])
        new = {place: place.original(_value(values, place)) for place in places}
        shared = [place for place in places if place.reader is None] or places
        first = new[shared[0]]
        if any(not _same(new[place], first) for place in shared if place.reader is None):
            raise RefusedError(
                f"tensor '{tensor}' is one weight in the graph, but '{shared[0].path}' and another parameter that "
                "shared it now differ; keep them tied in torch"
            )
        if not _same(first, old):
            changed[tensor] = first
        for place in places:
            if place.reader is not None and not _same(new[place], first):
                own[place.reader] = (tensor, new[place])
    if not changed and not own:
        return model
    proto = model.editable()
    for position, ((output, index), (tensor, value)) in enumerate(own.items()):
        _untie(proto, output, index, f"{tensor}_{position}", value)
    for tensor, value in changed.items():
        _write(proto, tensor, value)
    return model.derive(proto)


def _by_tensor(bindings: Sequence[Binding]) -> dict[str, list[Binding]]:
    places: dict[str, list[Binding]] = defaultdict(list)
    for binding in bindings:
        places[binding.tensor].append(binding)
    return places


def _old_value(constants: Constants, tensor: str, binding: Binding) -> Array:
    if tensor not in constants:
        raise RefusedError(f"the model has no constant tensor '{tensor}'; write back to the model that was imported")
    value = constants.value(tensor)
    if value.shape != binding.shape or value.dtype.name != binding.dtype:
        raise RefusedError(
            f"tensor '{tensor}' is {value.dtype.name}{list(value.shape)} in the model but was {binding.dtype}"
            f"{list(binding.shape)} when it was imported; write back to the model that was imported"
        )
    return value


def _value(values: dict[str, Tensor], binding: Binding) -> Tensor:
    value = values.get(binding.path)
    if value is None:
        raise RefusedError(f"the network has no parameter '{binding.path}' for tensor '{binding.tensor}'")
    expected = tuple(binding.shape[axis] for axis in binding.permutation)
    if tuple(value.shape) != expected:
        raise RefusedError(
            f"parameter '{binding.path}' has shape {list(value.shape)}, tensor '{binding.tensor}' needs "
            f"{list(expected)}; change the structure in the graph, not in torch"
        )
    return value


def _same(left: Array, right: Array) -> bool:
    """Whether two arrays have the same bits, not-a-numbers and signs of zero included."""
    return np.array_equal(
        np.ascontiguousarray(left).reshape(-1).view(np.uint8), np.ascontiguousarray(right).reshape(-1).view(np.uint8)
    )


def _write(proto: ModelProto, name: str, value: Array) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            initializers.clear(tensor)
            tensor.raw_data = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
            return
    _add(proto, name, value)
    _drop_maker(proto.graph, name)


def _add(proto: ModelProto, name: str, value: Array) -> None:
    tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
    proto.graph.initializer.append(tensor)
    if proto.ir_version < 4:  # where every initializer has to be an input too
        proto.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


def _untie(proto: ModelProto, output: str, index: int, name: str, value: Array) -> None:
    """Give an operator an initializer of its own: statistics that were equal at first need not stay so."""
    graph = proto.graph
    taken = {tensor.name for tensor in graph.initializer} | {made for op in graph.node for made in op.output}
    while name in taken:
        name += "_"
    _add(proto, name, value)
    operator = next((op for op in graph.node if output in op.output), None)
    if operator is None:
        raise RefusedError(f"no operator makes '{output}'; write back to the model that was imported")
    operator.input[index] = name


def _drop_maker(graph: GraphProto, name: str) -> None:
    """Drop the operator that made a tensor, and what only it needed."""
    for position, operator in enumerate(graph.node):
        if name not in operator.output:
            continue
        others = [made for made in operator.output if made and made != name]
        if any(_is_read(graph, made) for made in others):
            operator.output[list(operator.output).index(name)] = f"{name}_before"
            return
        sources = set(consumed(operator))
        del graph.node[position]
        made = {output for op in graph.node for output in op.output}
        for source in sources & made:
            if not _is_read(graph, source):
                _drop_maker(graph, source)
        unread = {source for source in sources - made if not _is_read(graph, source)}
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name in unread:
                del graph.initializer[index]
        for index in reversed(range(len(graph.input))):
            if graph.input[index].name in unread:
                del graph.input[index]
        return


def _is_read(graph: GraphProto, name: str) -> bool:
    return any(name in consumed(op) for op in graph.node) or any(value.name == name for value in graph.output)
