"""The way back: a trained network's weights go into the graph that it was imported from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, fx

from graphmod.errors import RefusedError
from graphmod.model import Model, initializers, load
from graphmod.model.view import consumed
from graphmod.pytorch.address import Address, Lookup, attribute_array, set_attribute
from graphmod.pytorch.binding import Binding, Source, digest_of
from graphmod.pytorch.constants import Constants
from graphmod.pytorch.dtypes import to_array
from graphmod.pytorch.importer import META, STRUCTURE
from graphmod.pytorch.network import structure_of
from graphmod.pytorch.program import Program
from graphmod.pytorch.steps import Dequantize, Steps, Take, backward, forward, forward_shape, saturated

Array = NDArray[np.generic]


def write_back(
    model: Model | ModelProto | str | PathLike[str], net: fx.GraphModule, *, saturate: bool = False
) -> Model:
    """Put a network's weights and running statistics back into the graph that it was imported from.

    Only the values of initializers that differ bit by bit are replaced; names, types, operators, metadata and all
    other bytes stay. A weight that constant operators made becomes an initializer of the same name.

    Parameters
    ----------
    model : Model, onnx.ModelProto or path
        The model that ``net`` was imported from.
    net : torch.fx.GraphModule
        What :func:`graphmod.to_torch` returned, or a copy of it, trained.
    saturate : bool
        Whether weights that are stored quantized, and that training has moved out of what their scale can say, are
        cut off there. By default that is refused.

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
    model = load(model)
    meta = net.meta if isinstance(net, fx.GraphModule) else {}
    bindings: Sequence[Binding] | None = meta.get(META)
    if bindings is None:
        raise RefusedError(
            f"this {type(net).__name__} has no record of its graph; give the network that to_torch returned, taken out "
            "of whatever wraps it"
        )
    _refuse_another_structure(meta[STRUCTURE], structure_of(net))
    values = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}
    edit = _Edit(model, saturate)
    for places in _by_tensor(bindings).values():
        shared = [place for place in places if place.reader is None]
        forms = _by_steps(shared or places)
        for form in forms.values():
            if any(not _same(_value(values, place), _value(values, form[0])) for place in form if place.reader is None):
                raise RefusedError(
                    f"tensor '{form[0].tensor}' is one weight in the graph, but '{form[0].path}' and another parameter "
                    "that shared it now differ; keep them tied in torch"
                )
            changed = edit.set(form[0], _value(values, form[0]))
            if changed and len(forms) > 1 and any(isinstance(step, Dequantize) for step in form[0].source.steps):
                raise RefusedError(
                    f"quantized weight '{form[0].tensor}' was trained, but the same values are dequantized in another "
                    "way too; give every DequantizeLinear an initializer of its own in the graph first"
                )
        for place in places:
            if place.reader is not None and place is not (shared or places)[0]:
                edit.set_own(place, _value(values, place))
    return edit.result()


def _refuse_another_structure(before: dict[str, str], now: dict[str, str]) -> None:
    """Raise if a network computes something else than when it was imported."""
    for path in dict.fromkeys((*before, *now)):
        if before.get(path) != now.get(path):
            what = f"submodule '{path}'" if path else "the network's code"
            was, became = (text[path] if path and path in text else "other" for text in (before, now))
            raise RefusedError(
                f"{what} is not what was imported ({was} became {became}); merge adapters and remove parametrizations, "
                "and change structure in the graph, with graphmod.replace"
            )


def _by_tensor(bindings: Sequence[Binding]) -> dict[object, list[Binding]]:
    places: dict[object, list[Binding]] = defaultdict(list)
    for binding in bindings:
        places[binding.source.address or binding.source.key].append(binding)
    return places


def _by_steps(places: Sequence[Binding]) -> dict[Steps, list[Binding]]:
    forms: dict[Steps, list[Binding]] = defaultdict(list)
    for place in places:
        forms[place.source.steps].append(place)
    return forms


def _value(values: dict[str, Tensor], binding: Binding) -> Array:
    value = values.get(binding.path)
    if value is None:
        raise RefusedError(f"the network has no parameter '{binding.path}' for tensor '{binding.tensor}'")
    source = binding.source
    expected = forward_shape(source.steps, source.shape)
    if tuple(value.shape) != expected:
        raise RefusedError(
            f"parameter '{binding.path}' has shape {list(value.shape)}, tensor '{binding.tensor}' needs "
            f"{list(expected)}; change the structure in the graph, with graphmod.replace, not in torch"
        )
    return to_array(value)


def _same(left: Array, right: Array) -> bool:
    """Whether two arrays have the same bits, not-a-numbers and signs of zero included."""
    return np.array_equal(
        np.ascontiguousarray(left).reshape(-1).view(np.uint8), np.ascontiguousarray(right).reshape(-1).view(np.uint8)
    )


class _Edit:
    """What changes in a model: nothing, as long as every value has the bits that it had."""

    def __init__(self, model: Model, saturate: bool) -> None:
        self._model = model
        self._saturate = saturate
        self._lookup = Lookup(model._proto)
        self._stored: dict[Address, Array] = {}
        self._made: dict[tuple[object, ...], _Made] = {}
        self._own: list[tuple[Address, int, str, Array]] = []

    def set(self, binding: Binding, value: Array) -> bool:
        """Let a constant take the value that a parameter has now; return whether an address's values change."""
        source = binding.source
        if source.address is None:
            self._set_made(binding, value)
            return False
        old = self._stored_value(source)
        current = forward(source.steps, old)
        value = value.astype(current.dtype, copy=False)
        changed = not _same(value, current)
        if changed:
            if self._saturate:
                value = saturated(source.steps, value, old)
            try:
                self._stored[source.address] = backward(source.steps, value, self._stored.get(source.address, old))
            except RefusedError as error:
                raise RefusedError(f"cannot write weight '{source.tensor}' back: {error}") from error
        return changed

    def _stored_value(self, source: Source) -> Array:
        assert source.address is not None
        message = self._lookup.find(source.address)
        value = values_of(message, self._model.folder)
        if value.shape != source.shape or value.dtype.name != source.dtype:
            raise RefusedError(
                f"tensor '{source.tensor}' is {value.dtype.name}{list(value.shape)} in the model but was "
                f"{source.dtype}{list(source.shape)} when it was imported; write back to the model that was imported"
            )
        return value

    def _set_made(self, binding: Binding, value: Array) -> None:
        source = binding.source
        if source.key not in self._made:
            self._made[source.key] = _Made(source, self._computed(source))
        made = self._made[source.key]
        current = forward(source.steps, made.value)
        made.value = backward(source.steps, value.astype(current.dtype, copy=False), made.value)

    def _computed(self, source: Source) -> Array:
        """Return what operators compute; where a parameter holds all of it, only shape and type matter."""
        if not any(isinstance(step, Take) for step in source.steps):
            return np.empty(source.shape, source.numpy_dtype)
        if source.tensor not in self._constants:
            raise RefusedError(f"weight '{source.tensor}' is computed inside a body and taken apart; inline it first")
        return self._constants.value(source.tensor)

    @cached_property
    def _constants(self) -> Constants:
        return Program(self._model).constants

    def set_own(self, binding: Binding, value: Array) -> None:
        """Let the reader of a running statistic have one of its own, if it differs from what the others have."""
        source = binding.source
        if source.address is None:
            made = self._made.get(source.key)
            old = np.empty(source.shape, source.numpy_dtype) if made is None else made.value
            value = backward(source.steps, value, old)
            same = digest_of(value) == source.digest if made is None else _same(value, old)
        else:
            old = self._stored.get(source.address, self._stored_value(source))
            value = backward(source.steps, value, old).astype(old.dtype, copy=False)
            same = _same(value, old)
        if not same:
            assert binding.reader is not None
            self._own.append((*binding.reader, source.tensor, value))

    def _add_made(self, proto: ModelProto, made: _Made) -> tuple[Address, str]:
        """Add an initializer for what an operator computed; return where, and its name."""
        maker = made.source.maker
        if maker is None or maker[0] == "functions":
            raise RefusedError(
                f"weight '{made.source.tensor}' is made inside a function or by its call, where no single initializer "
                "can take its place; inline the function in the graph first"
            )
        lookup = Lookup(proto)
        name = str(lookup.find(maker).output[made.source.output])
        _add(proto, lookup.find(maker[:-2]), name, made.value)
        return maker[:-2], name

    def result(self) -> Model:
        """Return the model with the changes; the very same one where there are none."""
        made_anew = [made for made in self._made.values() if digest_of(made.value) != made.source.digest]
        if not self._stored and not made_anew and not self._own:
            return self._model
        proto = self._model.editable()
        lookup = Lookup(proto)
        for address, value in self._stored.items():
            _store(lookup.find(address), value)
        for position, (reader, index, name, value) in enumerate(self._own):
            _untie(proto, Lookup(proto), reader, index, f"{name}_{position}", value)
        added = [self._add_made(proto, made) for made in made_anew]
        for address, name in added:
            _drop_maker(Lookup(proto).find(address), name)
        if not made_anew and not self._own:
            return Model(proto, self._model.folder)  # values alone have changed: what held of the graph still holds
        return self._model.derive(proto)


@dataclass
class _Made:
    """What operators compute from constants, and what its parameters make of it."""

    source: Source
    value: Array


def values_of(message: TensorProto | AttributeProto, folder: Path | None) -> Array:
    """Return the values that a tensor or an attribute of a file holds."""
    if isinstance(message, AttributeProto):
        value = attribute_array(message)
        assert value is not None, "only attributes that hold numbers have addresses"
        return value
    return initializers.values(message, folder)


def _store(message: TensorProto | AttributeProto, value: Array) -> None:
    if isinstance(message, AttributeProto):
        set_attribute(message, value)
        return
    stored = numpy_helper.from_array(np.ascontiguousarray(value).reshape(tuple(message.dims)))
    initializers.clear(message)
    message.raw_data = stored.raw_data


def _add(proto: ModelProto, graph: GraphProto, name: str, value: Array) -> None:
    tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
    graph.initializer.append(tensor)
    if proto.ir_version < 4:  # where every initializer has to be an input too
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


def _untie(proto: ModelProto, lookup: Lookup, reader: Address, index: int, name: str, value: Array) -> None:
    """Give an operator an initializer of its own: statistics that were equal at first need not stay so."""
    operator, graph = lookup.find(reader), lookup.find(reader[:-2])
    if not isinstance(graph, GraphProto):
        raise RefusedError(
            f"running statistics '{name}' inside a function have become different for its callers; inline it first"
        )
    taken = {tensor.name for tensor in graph.initializer} | {made for op in graph.node for made in op.output}
    while name in taken:
        name += "_"
    _add(proto, graph, name, value)
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
