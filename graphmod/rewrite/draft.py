"""The draft: a copy of a model's graph that one verb changes, with who makes and who reads every tensor."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.helper import make_tensor_value_info

from graphmod.errors import RefusedError
from graphmod.graph.scope import GRAPHMOD_SCOPE, common_scope, scope_parts
from graphmod.model import Model, bodies, consumed, copy_without
from graphmod.model.initializers import values

Array = NDArray[np.generic]


class Draft:
    """A copy of a model's main graph in the making.

    Operators are protos that the draft owns: a verb may change their attributes in place, and changes what they read
    and make through the draft's methods, so that the index stays true. :meth:`finish` drops what the outputs depended
    on before and no longer do, operators, initializers and annotations; what nobody read in the first place stays.

    Parameters
    ----------
    model : Model

    Examples
    --------
    >>> import graphmod as gm
    >>> draft = Draft(gm.load(gm.demo.model_path()))
    >>> draft.readers("image")[0].op_type
    'Conv'
    """

    def __init__(self, model: Model):
        self.model = model
        self.proto = copy_without(model._proto, "node")
        self._operators: dict[int, NodeProto] = {}
        self._place: dict[int, tuple[int, int]] = {}
        self._age = count()
        self._producer: dict[str, NodeProto] = {}
        self._readers: dict[str, dict[int, NodeProto]] = {}
        self._named: dict[str, NodeProto] = {}
        self._initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self._changed: set[str] = set()
        for position, (name, operator) in enumerate(zip(model.operator_names, model.operators, strict=True)):
            self._named[name] = self._enter(operator, position)
        live = self._live(self.outputs)
        self._idle = [name for op in self.operators if live.isdisjoint(op.output) for name in op.output if name]
        self._before = self._live([*self.outputs, *self._idle])

    # -- what it holds

    @property
    def graph(self) -> GraphProto:
        """Inputs, outputs, initializers and annotations; the operators join them at the end."""
        return self.proto.graph

    @property
    def outputs(self) -> list[str]:
        """The names of the graph's outputs."""
        return [value.name for value in self.graph.output]

    @property
    def operators(self) -> list[NodeProto]:
        """The operators, in the order of the file, new ones where they were put."""
        return sorted(self._operators.values(), key=lambda operator: self._place[id(operator)])

    def operator(self, name: str) -> NodeProto:
        """Return the operator that has this name in the model's :attr:`Model.operator_names`."""
        return self._named[name]

    def __contains__(self, operator: NodeProto) -> bool:
        """Whether an operator is still part of the draft."""
        return id(operator) in self._operators

    def producer(self, tensor: str) -> NodeProto | None:
        """Return the operator that makes a tensor; None for graph inputs and initializers."""
        return self._producer.get(tensor)

    def readers(self, tensor: str) -> list[NodeProto]:
        """Return the operators that read a tensor, those whose subgraphs capture it included."""
        return list(self._readers.get(tensor, {}).values())

    def is_read_once(self, tensor: str) -> bool:
        """Whether one operator reads a tensor, at one input and in no subgraph, and nothing else needs it."""
        readers = self.readers(tensor)
        return len(readers) == 1 and list(consumed(readers[0])).count(tensor) == 1 and tensor not in self.outputs

    def constant(self, tensor: str) -> Array | None:
        """Return the value of an initializer, or of what a Constant makes; None for any other tensor."""
        if tensor in self._initializers:
            return values(self._initializers[tensor], self.model.folder)
        operator = self._producer.get(tensor)
        if operator is None or operator.op_type != "Constant":
            return None
        return next((values(a.t, self.model.folder) for a in operator.attribute if a.name == "value"), None)

    # -- names

    @cached_property
    def _taken(self) -> dict[str, int]:
        return dict.fromkeys(tensor_names(self.graph, self._operators.values()), 1)

    @cached_property
    def _taken_by_operators(self) -> dict[str, int]:
        return dict.fromkeys((*self._named, *(operator.name for operator in self._operators.values())), 1)

    def unused(self, name: str) -> str:
        """Return a name that no tensor of the graph or of its subgraphs has: this one, or numbered."""
        return claim(name, self._taken)

    def unused_operator(self, name: str) -> str:
        """Return a name that no operator has: this one, or numbered."""
        return claim(name, self._taken_by_operators)

    # -- initializers

    def weight(self, name: str, value: Array) -> str:
        """Add an initializer, and return the name that it got: this one, or numbered."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), self.unused(name))
        self.add_initializer(tensor)
        return tensor.name

    def add_initializer(self, tensor: TensorProto) -> None:
        """Add an initializer under its own name, which no tensor may have."""
        self._taken.setdefault(tensor.name, 1)
        if self.proto.ir_version < 4:  # such files list initializers among the inputs
            self.graph.input.append(make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        own = self.graph.initializer.add()
        own.CopyFrom(tensor)
        self._initializers[own.name] = own
        self._changed.add(own.name)

    def set_initializer(self, name: str, value: Array) -> None:
        """Give an initializer another value, for all that read it."""
        fresh = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
        own = self._initializers[name]
        fresh.doc_string = own.doc_string
        fresh.metadata_props.extend(own.metadata_props)
        own.CopyFrom(fresh)
        self._changed.add(name)

    # -- operators

    def _enter(self, operator: NodeProto, position: int) -> NodeProto:
        own = NodeProto()
        own.CopyFrom(operator)
        self._operators[id(own)] = own
        self._place[id(own)] = (position, next(self._age))
        self._index(own)
        return own

    def _index(self, operator: NodeProto) -> None:
        for tensor in consumed(operator):
            self._readers.setdefault(tensor, {})[id(operator)] = operator
        self._producer.update((tensor, operator) for tensor in operator.output if tensor)

    def _unindex(self, operator: NodeProto) -> None:
        for tensor in consumed(operator):
            self._readers.get(tensor, {}).pop(id(operator), None)
        for tensor in operator.output:
            if self._producer.get(tensor) is operator:
                del self._producer[tensor]

    def add(
        self, operators: Iterable[NodeProto], at: NodeProto | None = None, scope: str | None = None
    ) -> list[NodeProto]:
        """Add copies of operators, and return the copies.

        Parameters
        ----------
        operators : iterable of NodeProto
        at : NodeProto, optional
            The operator in whose place of the file they come; the end if None. Order is mended where data needs it.
        scope : str, optional
            The scope to note in their metadata, so that blocks keep their names.
        """
        position = len(self.model.operators) if at is None else self._place[id(at)][0]
        entered = [self._enter(operator, position) for operator in operators]
        for operator in entered:
            if operator.name:
                self._taken_by_operators.setdefault(operator.name, 1)
            for name in filter(None, operator.output):
                self._taken.setdefault(name, 1)
            if scope is not None:
                entry = operator.metadata_props.add()
                entry.key, entry.value = GRAPHMOD_SCOPE, scope
        return entered

    def discard(self, operator: NodeProto) -> None:
        """Take an operator out; what it made must have another producer by the end, or no reader."""
        self._unindex(operator)
        del self._operators[id(operator)]

    def set_inputs(self, operator: NodeProto, inputs: Sequence[str]) -> None:
        """Let an operator read other tensors."""
        self._unindex(operator)
        del operator.input[:]
        operator.input.extend(inputs)
        self._index(operator)

    def set_outputs(self, operator: NodeProto, outputs: Sequence[str]) -> None:
        """Let an operator make other tensors."""
        self._unindex(operator)
        del operator.output[:]
        operator.output.extend(outputs)
        self._index(operator)

    def make_as(self, tensor: str, name: str) -> None:
        """Let the operator that makes a tensor, if one does, make it under another name; readers stay."""
        operator = self.producer(tensor)
        if operator is not None:
            self.set_outputs(operator, [name if made == tensor else made for made in operator.output])

    def redirect(self, old: str, new: str, readers: Iterable[NodeProto] | None = None) -> None:
        """Let operators, all readers if None, read another tensor instead, in their subgraphs too."""
        for operator in self.readers(old) if readers is None else list(readers):
            self._unindex(operator)
            _rename_reads(operator, old, new)
            self._index(operator)

    def forget(self, tensors: Iterable[str] | None = None) -> None:
        """Drop the file's annotations of tensors whose type the edit may change, all if None; inference finds them."""
        names = None if tensors is None else set(tensors)
        _drop(self.graph.value_info, lambda value: names is None or value.name in names)

    # -- the end

    def prune(self) -> None:
        """Drop operators and weights that the outputs needed before, or that the edit brought, and nothing needs now.

        :meth:`finish` does it too; called earlier, it makes their names free again.
        """
        live = self._live([*self.outputs, *self._idle])
        dead = (self._before | self._changed) - live
        for operator in list(self._operators.values()):
            if any(operator.output) and live.isdisjoint(operator.output):
                self.discard(operator)
        _drop(self.graph.initializer, lambda tensor: tensor.name in dead)
        _drop(self.graph.sparse_initializer, lambda tensor: tensor.values.name in dead)
        weights = {*self._initializers, *(tensor.name for tensor in self.model._proto.graph.initializer)}
        _drop(self.graph.input, lambda value: value.name in dead & weights)  # files of IR version 3 list both
        self._initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        there = {*self._producer, *self._initializers, *(value.name for value in self.graph.input)}
        _drop(self.graph.value_info, lambda value: value.name not in there)
        self.__dict__.pop("_taken", None)

    def sweep(self) -> bool:
        """Let the end also drop what nothing needed in the first place; return whether there is any."""
        self._idle = []
        live = self._live(self.outputs)
        overridable = {value.name for value in self.graph.input} if self.proto.ir_version >= 4 else set()
        sparse = {tensor.values.name for tensor in self.graph.sparse_initializer}
        unread = (self._initializers.keys() | sparse) - live - overridable
        self._before |= unread
        return bool(unread) or any(live.isdisjoint(op.output) for op in self.operators if any(op.output))

    def finish(self) -> Model:
        """Return the model that the draft describes, once it has passed all checks.

        Raises
        ------
        RefusedError
            The edit made a circle: what an operator reads depends on what it makes.
        InvalidModelError
            The edited graph fails the checker, shape inference or the loading of a session.
        """
        return self.model.derive(self.unchecked())

    def unchecked(self) -> ModelProto:
        """Return what the draft describes, which may not be valid where the model was not; the draft ends.

        Raises
        ------
        RefusedError
            The edit made a circle.
        """
        self.prune()
        self.graph.node.extend(self._sorted(list(self._operators.values())))
        return self.proto

    def _live(self, roots: Iterable[str]) -> set[str]:
        """Return the tensors on which the roots depend, initializers included, and what else their operators make."""
        live = set(roots)
        pending = list(live)
        while pending:
            operator = self._producer.get(pending.pop())
            if operator is not None:
                fresh = {name for name in (*consumed(operator), *operator.output) if name} - live
                live |= fresh
                pending.extend(fresh)
        return live

    def _sorted(self, operators: Sequence[NodeProto]) -> Iterator[NodeProto]:
        """Yield operators so that each comes after those it reads from, otherwise in the order of their places."""
        place = {id(operator): self._place[id(operator)] for operator in operators}
        waits: dict[int, int] = {}
        for operator in operators:
            makers = {id(self._producer[name]) for name in consumed(operator) if name in self._producer}
            waits[id(operator)] = len(makers)
        ready = [(place[key], key) for key, n_makers in waits.items() if not n_makers]
        heapq.heapify(ready)
        n_sorted = 0
        while ready:
            operator = self._operators[heapq.heappop(ready)[1]]
            n_sorted += 1
            yield operator
            for key in {key for name in operator.output for key in self._readers.get(name, ())} & waits.keys():
                waits[key] -= 1
                if not waits[key]:
                    heapq.heappush(ready, (place[key], key))
        if n_sorted < len(operators):
            culprit = next(op for op in operators if waits[id(op)])
            raise RefusedError(f"{culprit.op_type} '{culprit.name}' would depend on what it makes itself")


def shared_scope(operators: Iterable[NodeProto]) -> str:
    """Return the innermost exporter scope that all the operators lie in, as a dotted path."""
    return ".".join(common_scope(scope_parts(operator) for operator in operators))


def claim(name: str, taken: dict[str, int]) -> str:
    """Return a name that is not taken; of names that are, the dict has the numbers given out last."""
    fresh = name
    while fresh in taken:
        taken[name] += 1
        fresh = f"{name}_{taken[name]}"
    taken[fresh] = 1
    return fresh


def _drop(entries: Any, is_dead: Callable[[Any], bool]) -> None:
    """Delete entries of a repeated field in place, a run of neighbours at once, without copying the others."""
    stop = len(entries)
    flags = [is_dead(entry) for entry in entries]
    for start in reversed(range(len(flags))):
        if flags[start] and (start == 0 or not flags[start - 1]):
            del entries[start:stop]
        if not flags[start]:
            stop = start


def _rename_reads(operator: NodeProto, old: str, new: str) -> None:
    """Let an operator read another tensor, its subgraphs too."""
    inside = list(bodies(operator))
    for reads in (operator.input, *(inner.input for body in inside for inner in body.node)):
        for i, name in enumerate(reads):
            if name == old:
                reads[i] = new
    for value in (value for body in inside for value in body.output if value.name == old):
        value.name = new


def tensor_names(graph: GraphProto, operators: Collection[NodeProto]) -> Iterator[str]:
    """Yield the names of all tensors of a graph and of the subgraphs of its operators."""
    inside = [body for operator in operators for body in bodies(operator)]
    for one in (graph, *inside):
        yield from (value.name for value in (*one.input, *one.output))
        yield from (tensor.name for tensor in one.initializer)
        yield from (tensor.values.name for tensor in one.sparse_initializer)
    for operator in chain(operators, *(body.node for body in inside)):
        yield from (name for name in operator.output if name)
