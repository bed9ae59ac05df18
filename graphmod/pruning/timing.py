"""Timing: what a network would take once units are gone, from measured operators; nothing is cut for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

from onnx import NodeProto

from graphmod.model import TensorType
from graphmod.probe.operator_latency import Cluster, LatencyTable, Signature, clusters
from graphmod.pruning.change import adapted, at_other_size
from graphmod.pruning.groups import Groups
from graphmod.pruning.site import Array
from graphmod.pruning.widths import Alive, Widths, counting


class Timing:
    """The sum of the measured times of operators, for one sample, in microseconds.

    Operators with bodies and calls of functions are not in it: what they read and make is kept, and so is their time.

    Parameters
    ----------
    found : Groups
    widths : Widths
    table : LatencyTable
    progress : bool
        Show a progress bar where measuring takes over a second.
    """

    def __init__(self, found: Groups, widths: Widths, table: LatencyTable, progress: bool = False):
        self.found, self.widths, self.table, self.progress = found, widths, table, progress
        self.whole = clusters(found.model, self._one_sample())
        self._axes = [self._numbers(cluster) for cluster in self.whole.clusters]
        self._signatures: dict[tuple[int, ...], Signature] = {}

    def _one_sample(self) -> dict[str, TensorType]:
        """Return the types of the inputs for one sample, unless the file says of how many."""
        shapes = self.found.analysis.sizes[0].shapes
        inputs = self.found.model.inputs
        batches = {kind.shape[0] for kind in inputs.values() if kind.shape and isinstance(kind.shape[0], str)}
        return {
            name: TensorType(
                kind.dtype,
                tuple(
                    1 if not isinstance(dim, int) and (axis == 0 or dim in batches) else size
                    for axis, (dim, size) in enumerate(zip(kind.shape, shapes[name], strict=True))
                ),
            )
            for name, kind in inputs.items()
            if kind.shape is not None
        }

    def __call__(self, alive: Alive) -> float:
        """Return the time that is left, measuring what is not known."""
        return self._of(range(len(self._axes)), dict(enumerate(self.widths(alive).tolist())), alive)

    def part(self, place: int, alive: Alive) -> float:
        """Return the time of the operators that a group's units concern."""
        some = self._concerned[place]
        own = sorted({number for one in some for number in self._axes[one]})
        counts = counting([self.widths.units[number] for number in own])(alive).tolist()
        return self._of(some, dict(zip(own, counts[1:], strict=True)), alive)

    def among(self, operators: Collection[int], alive: Alive) -> float:
        """Return the time of what some operators alone make up, by their places in the graph."""
        some = [place for place, one in enumerate(self.whole.clusters) if set(one.operators) <= set(operators)]
        return self._of(some, dict(enumerate(self.widths(alive).tolist())), alive)

    @cached_property
    def _concerned(self) -> list[list[int]]:
        """The clusters that groups concern, in the order of the groups."""
        by_axis: dict[int, list[int]] = {}
        for place, numbers in enumerate(self._axes):
            for number in numbers:
                by_axis.setdefault(number, []).append(place)
        return [
            sorted({place for number in numbers.tolist() for place in by_axis.get(number, ())})
            for numbers in self.widths.axes_of
        ]

    def _of(self, some: Sequence[int], counts: Mapping[int, int], alive: Alive) -> float:
        """Return the time of some clusters, at the widths of their axes."""
        keys = [(place, *(counts[number] for number in self._axes[place])) for place in some]
        for key in keys:
            if key not in self._signatures:
                self._signatures[key] = self._signature(self.whole.clusters[key[0]], alive)
        return sum(self.table.many([self._signatures[key] for key in keys], progress=self.progress))

    def _numbers(self, cluster: Cluster) -> list[int]:
        """Return the axes with units that a cluster reads and makes."""
        axes = self.found.analysis.axes
        operators = [self.whole.model.operators[place] for place in cluster.operators]
        tensors = dict.fromkeys(name for operator in operators for name in (*operator.input, *operator.output) if name)
        numbers = {self.widths.number(labels) for name in tensors for labels in axes.get(name, ())}
        return sorted(numbers - {0})

    def _signature(self, cluster: Cluster, alive: Alive) -> Signature:
        analysis = self.found.analysis
        left = self.found.left(alive)
        operators: list[NodeProto] = []
        values: dict[str, Array | None] = {}
        for place in cluster.operators:
            operator = NodeProto()
            operator.CopyFrom(self.whole.model.operators[place])
            for at, need in adapted(operator, analysis.sites[place], analysis.axes, left).needs.items():
                tensor = operator.input[at] if at < len(operator.input) else ""
                first, other = analysis.sizes[0].values.get(tensor), self.whole.constants.get(tensor)
                if tensor and other is not None:
                    values[tensor] = at_other_size(need.value, first, other)
            operators.append(operator)
        read = dict.fromkeys(name for operator in operators for name in operator.input if name)
        types = {name: self._type(name, alive) for name in read if name in self.whole.types}
        types |= {name: TensorType(value.dtype, value.shape) for name, value in values.items() if value is not None}
        return self.whole.signature(cluster, types, values, operators)

    def _type(self, tensor: str, alive: Alive) -> TensorType:
        """Return the type of a tensor without the units that are gone."""
        kind = self.whole.types[tensor]
        axes = self.found.analysis.axes.get(tensor, [])
        if kind.shape is None or len(kind.shape) != len(axes):
            return kind
        left = self.found.left(alive)
        sizes = [
            size * int(left(labels).sum()) // len(labels) if isinstance(size, int) and len(labels) else size
            for size, labels in zip(kind.shape, axes, strict=True)
        ]
        return TensorType(kind.dtype, tuple(sizes))
