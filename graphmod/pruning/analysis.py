"""The analysis: every operator's coupling rule, in the order of the graph, on the sizes of one concrete input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from graphmod.errors import InvalidDataError, RefusedError
from graphmod.model import Model, consumed
from graphmod.pruning import rules
from graphmod.pruning.copies import Copied, with_own_copies
from graphmod.pruning.labels import Couplings, Labels
from graphmod.pruning.merging import Merge, choose_carriers
from graphmod.pruning.registry import couples
from graphmod.pruning.site import Array, Axes, Site, Uncoupled
from graphmod.rewrite.element_types import STANDARD
from graphmod.rewrite.simplify import RANDOM
from graphmod.rewrite.sizing import Sizes

_ = rules  # importing them registers them

BATCH, OTHER_BATCH = 2, 3
FREE = (32, 64, 128, 256, 512, 224, 299, 16, 8)
"""Sizes of a dynamic axis 0, and sizes to try for other dynamic axes: a second one tells what follows from them."""


@dataclass(frozen=True, eq=False)
class Produced:
    """An axis that weights make.

    Parameters
    ----------
    operator : str
        The operator's name.
    labels : Labels
    """

    operator: str
    labels: Labels


@dataclass(frozen=True, eq=False)
class Analysis:
    """How all indices of a network are coupled.

    Parameters
    ----------
    model : Model
        With a copy for every reader of a constant whose entries are all alike.
    couplings : Couplings
    axes : dict of str to Axes
        The labels of every tensor whose shape is known.
    sites : tuple of Site or None
        One an operator, in the order of the graph; None where no rule applied, and all is kept.
    sizes : tuple of Sizes
        Shapes and small values at one size of the dynamic dimensions, and at another where there are any.
    produced : tuple of Produced
    originals : dict of str to str
        For every initializer that the file does not have, the one that it is a copy of.
    """

    model: Model
    couplings: Couplings
    axes: dict[str, Axes]
    sites: tuple[Site | None, ...]
    sizes: tuple[Sizes, ...]
    produced: tuple[Produced, ...]
    originals: Mapping[str, str]


def analyse(
    model: Model, shapes: Mapping[str, Sequence[int]] | None = None, free: Mapping[str, int] | None = None
) -> Analysis:
    """Couple all indices of a network.

    Parameters
    ----------
    model : Model
    shapes : mapping of str to sequence of int, optional
        Shapes of inputs that fit the network; where it leaves them open and none are given, the batch is 2 and other
        dynamic dimensions are 32, or another size that fits.
    free : mapping of str to int, optional
        An axis for each of some outputs, which may lose indices; all other axes of outputs are kept.

    Raises
    ------
    InvalidDataError
        A shape is that of no input, or has another number of axes.
    """
    for name, shape in (shapes or {}).items():
        if name not in model.inputs:
            raise InvalidDataError(f"there is no input '{name}'; the inputs are {', '.join(map(repr, model.inputs))}")
        expected = model.inputs[name].shape
        if expected is not None and len(shape) != len(expected):
            raise InvalidDataError(f"input '{name}' has {len(expected)} axes, not {len(shape)}")
    return _Analysing(with_own_copies(model), shapes, free or {}).analysed()


def start(model: Model, batch: int, free: int, shapes: Mapping[str, Sequence[int]] | None = None) -> Sizes:
    """Return the shapes of the inputs at some size of the dynamic dimensions."""
    sizes, symbols = Sizes(model), dict[str, int]()
    for name, kind in model.inputs.items():
        given = None if shapes is None else shapes.get(name)
        if kind.shape is None and given is not None:
            sizes.shapes[name] = tuple(given)
        elif kind.shape is not None:
            open_sizes = given or [free if axis else batch for axis in range(len(kind.shape))]
            sizes.shapes[name] = tuple(
                size if isinstance(size, int) else symbols.setdefault(size or f"{name} {axis}", known)
                for axis, (size, known) in enumerate(zip(kind.shape, open_sizes, strict=True))
            )
    return sizes


def follow(sizes: Sizes, operator: NodeProto) -> str:
    """Note what an operator makes, by what the file says of it where inference alone does not know; return why not."""
    why = sizes.follow(operator)
    model = sizes.model
    unknown = [name for name in operator.output if name and None in sizes.shapes.get(name, (None,))]
    declared = {name: kind.shape for name in unknown if (kind := model.tensors.get(name)) and kind.shape is not None}
    if declared:
        symbols = {
            dim: size
            for name, kind in model.inputs.items()
            for dim, size in zip(kind.shape or (), sizes.shapes.get(name, ()), strict=False)
            if isinstance(dim, str)
        }
        for name, shape in declared.items():
            sizes.shapes[name] = tuple(dim if isinstance(dim, int) else symbols.get(dim or "") for dim in shape)
    return why


class _Analysing:
    def __init__(self, copied: Copied, shapes: Mapping[str, Sequence[int]] | None, free: Mapping[str, int]):
        self.model = model = copied.model
        self.originals = copied.originals
        self.shapes = shapes
        self.free = free
        self.first, self.second = self._sizes()
        self.couplings = Couplings()
        self.axes: dict[str, Axes] = {}
        self.sparse = [tensor.values.name for tensor in model._proto.graph.sparse_initializer]
        self.constant = {*model.initializers, *self.sparse}
        self.merges: list[Merge] = []
        self.produced: list[Produced] = []
        self.functions = {(function.domain, function.name) for function in model._proto.functions}

    def _sizes(self) -> tuple[Sizes, Sizes | None]:
        """Return the shapes at one size of the dynamic dimensions, and at another of all or of the batch alone."""
        shapes = [kind.shape or () for kind in self.model.inputs.values()]
        batch_is_open = any(not isinstance(shape[0], int) for shape in shapes if shape)
        rest_is_open = any(not isinstance(size, int) for shape in shapes for size in shape[1:])
        tried = FREE if rest_is_open and self.shapes is None else FREE[:1]
        first, free = next(self._fitting(BATCH, tried), (None, FREE[0]))
        if first is None:
            first = start(self.model, BATCH, free, self.shapes)
            for operator in self.model.operators:
                follow(first, operator)
        if not (batch_is_open or rest_is_open):
            return first, None
        others = (*(size for size in tried if size != free), free)
        return first, next(self._fitting(OTHER_BATCH, others), (None, free))[0]

    def _fitting(self, batch: int, tried: Sequence[int]) -> Iterator[tuple[Sizes, int]]:
        """Yield the shapes at those sizes at which all fit together."""
        for free in tried:
            shapes = None if self.shapes is None else self._with_batch(batch)
            sizes = start(self.model, batch, free, shapes)
            if not any([follow(sizes, operator) for operator in self.model.operators]):  # all are to be followed
                yield sizes, free

    def _with_batch(self, batch: int) -> dict[str, Sequence[int]]:
        """Return the shapes that were given, of another number of samples."""
        given = self.shapes or {}
        return {name: (batch, *shape[1:]) if shape else shape for name, shape in given.items()}

    def analysed(self) -> Analysis:
        """Couple operator by operator, then choose what carries in merged axes."""
        for name in self.model.inputs:
            self._keep(name, f"input '{name}' of the network")
        for value in self.model._proto.graph.input:
            if value.name in self.model.initializers and self.model.ir_version >= 4:
                self._keep(value.name, f"'{value.name}' can be overridden as an input")
        for name in self.sparse:
            self._keep(name, f"'{name}' is stored sparsely")
        sites = tuple(map(self._couple, range(len(self.model.operators))))
        for name in self.model.outputs:
            self._keep(name, f"output '{name}' of the network", self.free.get(name))
        couplings = choose_carriers(self.couplings, self.merges, [made.labels for made in self.produced])
        sizes = (self.first,) if self.second is None else (self.first, self.second)
        return Analysis(self.model, couplings, self.axes, sites, sizes, tuple(self.produced), self.originals)

    def _shape(self, tensor: str) -> tuple[int, ...] | None:
        shape = self.first.shapes.get(tensor)
        return None if shape is None or None in shape else tuple(size for size in shape if size is not None)

    def _value(self, tensor: str) -> Array | None:
        return self.first.values.get(tensor)

    def _axes(self, tensor: str) -> Axes:
        if tensor not in self.axes:
            self.axes[tensor] = [self.couplings.fresh(size) for size in self._shape(tensor) or ()]
        return self.axes[tensor]

    def _keep(self, tensor: str, why: str, free: int | None = None) -> None:
        for axis, labels in enumerate(self._axes(tensor)):
            if axis != free:
                self.couplings.keep(labels, why)

    def _couple(self, position: int) -> Site | None:
        operator, name = self.model.operators[position], self.model.operator_names[position]
        domain = "" if operator.domain in STANDARD else operator.domain
        produced: list[Labels] = []
        site = Site(
            operator, name, self.model.opsets.get(domain, 1), self.couplings, self.model, self._shape, self._value,
            self._axes, self.constant.__contains__, self.merges, produced,
        )  # fmt: skip
        rule = None if (operator.domain, operator.op_type) in self.functions else couples.of(operator)
        applied: Site | None = site
        try:
            if rule is None:
                raise Uncoupled(f"{site} has no coupling rule")
            made = self._checked(site, rule(site))
        except Uncoupled as why:
            self._keep_all(operator, str(why))
            applied, made, produced = None, [], self._wide_axes(operator)
        for tensor, axes in zip(operator.output, made, strict=False):
            if tensor and axes is not None:
                self.axes[tensor] = list(axes)
        self.produced += [Produced(name, labels) for labels in produced]
        if operator.op_type not in RANDOM and all(tensor in self.constant for tensor in consumed(operator)):
            self.constant.update(operator.output)
        return applied

    def _checked(self, site: Site, made: Sequence[Axes | None]) -> Sequence[Axes | None]:
        """Return what a rule made.

        Raises
        ------
        RefusedError
            It is no list of labels, or they are of another number of axes than an output has.
        """
        if not isinstance(made, list):
            raise RefusedError(f"the coupling rule of {site} returned {made!r}, not a list of labels for every output")
        for tensor, axes in zip(site.operator.output, made, strict=False):
            shape = self._shape(tensor) if tensor else None
            if axes is not None and shape is not None and len(axes) != len(shape):
                raise RefusedError(
                    f"the coupling rule of {site} returned labels of {len(axes)} axes for output '{tensor}', which has "
                    f"{len(shape)}; it returns a list with the labels of every axis, for each output"
                )
        return made

    def _wide_axes(self, operator: NodeProto) -> list[Labels]:
        """Return an axis of each of an operator's weights: one may make channels, which would be reported as kept."""
        weights = [name for name in operator.input if (kind := self.model.constants.get(name)) and kind.is_float]
        return [max(axes, key=len) for name in weights if len(axes := self._axes(name)) > 1]

    def _keep_all(self, operator: NodeProto, why: str) -> None:
        for tensor in (*consumed(operator), *operator.output):
            if tensor:
                self._keep(tensor, why)
