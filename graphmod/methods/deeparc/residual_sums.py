"""Residual sums: the tensors behind residual blocks, at which the method looks; layer outputs where there are none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from graphmod.errors import RefusedError
from graphmod.graph import Block, blocks, boundaries, data_flow, primary_input, scope
from graphmod.graph.blocks import LAYER_STARTS
from graphmod.model import Model
from graphmod.rewrite import Region

_SUMS = frozenset({"Add", "Sum", "QLinearAdd"})


@dataclass(frozen=True)
class _Sum:
    """A boundary at which branches of the trunk are added up.

    Parameters
    ----------
    tensor : str
    split : str
        The boundary before it, from which the branches part.
    scope : str
        The exporter's scope of the addition.
    op_types : tuple of str
        Of the operators between the two.
    """

    tensor: str
    split: str
    scope: str
    op_types: tuple[str, ...]


def residual_sums(model: Model) -> tuple[str, ...]:
    """Return the tensors that residual blocks end in, in the network's order.

    Those are the boundaries that an addition of two activations makes. Where different parts of one scope have a sum
    each, as attention and multilayer perceptron of an encoder do, the last of them ends the block. A network without
    residual sums has the outputs of its trunk's layers: each last boundary before another convolution, matrix product
    or recurrent layer.

    Parameters
    ----------
    model : Model

    Raises
    ------
    InvalidModelError
        The model has no trunk.
    RefusedError
        The trunk has neither residual sums nor layers.

    References
    ----------
    Ren et al., DeepArc, ICSE 2023: representations are compared behind each residual block.

    Examples
    --------
    >>> import graphmod as gm
    >>> len(residual_sums(gm.load(gm.demo.model_path())))
    21
    """
    return tuple(ends for ends, _ in _found(model))


def residual_blocks(model: Model) -> tuple[Block, ...]:
    """Return the block that ends in each of the :func:`residual_sums`.

    A block reaches from where its branches part to where those of the next one do, so that what stands behind every
    sum, an activation or a normalisation, belongs to it; without residual sums from one layer's output to the next.

    Parameters
    ----------
    model : Model

    Examples
    --------
    >>> import graphmod as gm
    >>> found = residual_blocks(gm.load(gm.demo.model_path()))
    >>> found[1].path, found[1].entry, found[1].exit
    ('layer1.1', 'relu_2', 'relu_4')
    """
    return tuple(block for _, block in _found(model))


def is_skippable(model: Model, block: Block | Region) -> bool:
    """Whether a block's exit is known to have the type of its entry, so that an identity can take its place."""
    entry, exit_ = model.tensors.get(block.entry), model.tensors.get(block.exit)
    return entry is not None and entry == exit_ and entry.shape is not None and None not in entry.shape


class _Line:
    """The trunk as a line: its tensors, the primary input first, and the operators on paths of data between them."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.tensors = (primary_input(model), *boundaries(model))
        self.flow = data_flow(model, self.tensors[0], self.tensors[-1])

    def operators(self, entry: str, exit_: str) -> list[int]:
        """Return the places of the operators between two tensors of the trunk.

        All of the flow runs through both, so in the file's order these are those on it between the two.
        """
        producer = self.model.producer
        places = range(producer.get(entry, -1) + 1, producer[exit_] + 1)
        return [i for i in places if any(name in self.flow for name in self.model.operators[i].output)]

    def op_types(self, entry: str, exit_: str) -> tuple[str, ...]:
        """Return the types of the operators between two tensors of the trunk."""
        return tuple(self.model.operators[i].op_type for i in self.operators(entry, exit_))


def _found(model: Model) -> list[tuple[str, Block]]:
    """Return the residual sums, or layer outputs, each with its block."""
    line = _Line(model)
    runs = _runs(model, _sums(line))
    spans = list(_spans(line, runs) if runs else _layers(line))
    if not spans:
        raise RefusedError(
            "the trunk has no residual sums and no layers, so there are no blocks to compare; 'graphmod blocks' shows "
            "what it has"
        )
    ends = [run[-1].tensor for run in runs] or [exit_ for _, exit_ in spans]
    return list(zip(ends, _named(line, spans), strict=True))


def _sums(line: _Line) -> Iterator[_Sum]:
    for split, tensor in pairwise(line.tensors):
        operator = line.model.operators[line.model.producer[tensor]]
        if operator.op_type in _SUMS and len({name for name in operator.input if name in line.flow}) > 1:
            yield _Sum(tensor, split, scope(operator), line.op_types(split, tensor))


def _runs(model: Model, sums: Iterable[_Sum]) -> list[list[_Sum]]:
    """Group neighbouring sums of one scope and shape between which different things happen: the parts of a block."""
    runs: list[list[_Sum]] = []
    for one in sums:
        parts = runs[-1] if runs else []
        seen = any(part.op_types == one.op_types for part in parts)
        same = parts and parts[0].scope == one.scope
        if same and not seen and model.tensors.get(parts[0].split) == model.tensors.get(one.tensor):
            parts.append(one)
        else:
            runs.append([one])
    return runs


def _spans(line: _Line, runs: list[list[_Sum]]) -> Iterator[tuple[str, str]]:
    """Yield entry and exit of the block of every run; behind the last sum stands what stands behind the one before."""
    behind: tuple[str, ...] = ()
    for run, after in pairwise(runs):
        sum_, exit_ = run[-1].tensor, after[0].split
        behind = line.op_types(sum_, exit_) if sum_ != exit_ else ()
        yield run[0].split, exit_
    first, last = runs[-1][0].split, runs[-1][-1].tensor
    start = line.tensors.index(last) + 1
    follow = line.tensors[start : start + len(behind)]
    yield first, next((tensor for tensor in follow if line.op_types(last, tensor) == behind), last)


def _layers(line: _Line) -> Iterator[tuple[str, str]]:
    """Yield entry and exit of every layer with what follows it; what comes before the first is none."""
    steps = pairwise(line.tensors)
    starts = [entry for entry, exit_ in steps if not LAYER_STARTS.isdisjoint(line.op_types(entry, exit_))]
    yield from pairwise([*starts, line.tensors[-1]] if starts else [])


def _named(line: _Line, spans: list[tuple[str, str]]) -> Iterator[Block]:
    """Yield the blocks between pairs of tensors: those of the tree where it has them."""
    known: dict[tuple[str, str], Block] = {}
    ends: dict[str, str] = {}
    for block in blocks(line.model).walk():
        if block.path:
            known.setdefault((block.entry, block.exit), block)
            ends.setdefault(block.exit, block.path)
    names = line.model.operator_names
    for entry, exit_ in spans:
        own = tuple(names[place] for place in line.operators(entry, exit_))
        yield known.get((entry, exit_)) or Block(ends.get(exit_, exit_), entry, exit_, own)
