"""Splitting a model into parts that run one after another.

The operators are cut in the order of the file, which no data runs against: all up to the one that makes the tensor are
before the cut. What was made before and is read after it is handed along, context too. What depends on no input is
copied into each part that reads it instead. The shape of a tensor is taken in the part that makes the tensor, so that
shapes cross, and not what they are of.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import Block, boundaries
from graphmod.graph.costs import cost
from graphmod.model import Model, copy_without, with_inner
from graphmod.model.session import run
from graphmod.rewrite.simplify import RANDOM
from graphmod.rewrite.tensors import declarations, named_tensors
from graphmod.rewrite.verb import verb

_SHAPE_READERS = frozenset({"Shape", "Size"})

_UNSTEADY = frozenset(RANDOM | {"Dropout"})
"""Operators that may give something else each time, and so must not run twice."""


@verb(exact=True, example="graphmod split resnet.onnx layer2 layer3 --out part.onnx")
def split(model: Model, at: int | list[str | Block], part: int | None = None) -> list[Model] | Model:
    """Cut a model into parts that, run one after another, give the original's outputs.

    Any tensor can be a cut: a part's outputs are all that later parts read of it, and the graph's outputs that it
    makes. At a boundary only one tensor of the trunk crosses, with its context (masks, rotary tables, shapes). Names
    stay, so that ``compose`` joins the parts again and :func:`run_parts` runs them.

    Parameters
    ----------
    model : Model
    at : int or list of str
        Where to cut: tensors, blocks (after them), operators (after them) or selectors; or a number of parts of about
        equal cost, cut at boundaries.
    part : int, optional
        Return this part only, counted from 0.

    Returns
    -------
    list of Model
        In the order in which they run; inputs and outputs begin with the tensor of the cut.

    Raises
    ------
    RefusedError
        There is no such place, no operator comes before or after it, or there are too few boundaries.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> parts = gm.split(m, ["layer1", "layer2"])
    >>> [len(one.operators) for one in parts]
    [37, 36, 39]
    """
    cuts = _equal_cuts(model, at) if isinstance(at, int) else _cuts([at] if isinstance(at, str | Block) else at, model)
    plan = _Plan(model, cuts)
    if part is None:
        return [plan.part(number) for number in range(plan.n_parts)]
    if not 0 <= part < plan.n_parts:
        raise RefusedError(f"there is no part {part}; the parts are 0 to {plan.n_parts - 1}")
    return plan.part(part)


def run_parts(parts: Sequence[Model], feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, Any]:
    """Run models one after another, each on the inputs given and on what those before it made, by name.

    Parameters
    ----------
    parts : sequence of Model
        As :func:`split` returns them.
    feeds : mapping of str to array
        The inputs of the whole.

    Returns
    -------
    dict of str to array
        All outputs of all parts.

    Raises
    ------
    InvalidDataError
        An input is neither given nor made by a part before.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> run_parts(gm.split(m, 3), {"image": np.zeros((2, 1, 8, 8), np.float32)})["logits"].shape
    (2, 10)
    """
    made: dict[str, Any] = {}
    for number, part in enumerate(parts):
        known = {**feeds, **made}
        missing = [name for name in part.inputs if name not in known]
        if missing:
            raise InvalidDataError(
                f"input '{missing[0]}' of part {number} is neither given nor made by a part before it"
            )
        found = run(part.session(), list(part.outputs), {name: known[name] for name in part.inputs})
        made.update(zip(part.outputs, found, strict=True))
    return made


def _cuts(at: Iterable[str | Block], model: Model) -> dict[int, list[str]]:
    """Return the tensors at which to cut, by the place of the operator that makes them."""
    found: dict[int, list[str]] = {}
    for tensor in (tensor for place in at for tensor in named_tensors(model, place)):
        if tensor not in model.producer:
            what = "an input" if tensor in model.inputs else "a constant"
            raise RefusedError(f"'{tensor}' is {what}, so no operator comes before it; cut at what an operator makes")
        made = found.setdefault(model.producer[tensor], [])
        if tensor not in made:
            made.append(tensor)
    if not found:
        raise RefusedError("no place to cut at is given; graphmod.boundaries lists those where one tensor crosses")
    return dict(sorted(found.items()))


def _equal_cuts(model: Model, n_parts: int) -> dict[int, list[str]]:
    """Return the boundaries nearest to equal shares of the multiply-accumulates, of the weights if there are none."""
    if n_parts < 2:
        raise RefusedError(f"a model can be split into 2 parts or more, not into {n_parts}")
    places = sorted({model.producer[tensor]: tensor for tensor in boundaries(model)[:-1]}.items())
    if len(places) < n_parts - 1:
        noun = "boundary" if len(places) == 1 else "boundaries"
        raise RefusedError(f"the model has {len(places)} {noun} to cut at, too few for {n_parts} parts")
    costs = [cost(model, [name]) for name in model.operator_names]
    spent = list(accumulate(one.macs for one in costs))
    if not spent[-1]:
        spent = list(accumulate(one.weights or 1 for one in costs))
    reached = [spent[place] for place, _ in places]
    chosen: list[int] = []
    for number in range(1, n_parts):
        first = chosen[-1] + 1 if chosen else 0
        last = len(places) - (n_parts - 1 - number) - 1
        share = spent[-1] * number / n_parts
        after = min(max(bisect_left(reached, share), first), last)
        before = max(after - 1, first)
        chosen.append(before if abs(reached[before] - share) <= abs(reached[after] - share) else after)
    return {places[i][0]: [places[i][1]] for i in chosen}


class _Plan:
    """What each part holds, reads and makes."""

    def __init__(self, model: Model, cuts: dict[int, list[str]]):
        self.model, self.n_parts = model, len(cuts) + 1
        self.constant = _constant_operators(model)
        named = [tensor for made in cuts.values() for tensor in made]
        for tensor in named:
            if model.producer[tensor] in self.constant:
                raise RefusedError(f"'{tensor}' depends on no input, so no data crosses it; cut at a boundary")
        self.stage = self._stages(list(cuts))
        self.operators: list[set[int]] = [set() for _ in range(self.n_parts)]
        self.read: list[dict[str, None]] = [{} for _ in range(self.n_parts)]
        self.handed: list[dict[str, None]] = [{} for _ in range(self.n_parts)]
        self._place_operators()
        for number, own in enumerate(self.operators):
            if own <= self.constant:
                where = (
                    f"between '{named[number - 1]}' and '{named[number]}'"
                    if number < len(cuts)
                    else f"after '{named[-1]}'"
                )
                raise RefusedError(f"no operator comes {where}, so the part there would be empty; take one place away")
        self.cuts = list(cuts.values())
        crossing = dict.fromkeys(name for handed in self.handed for name in handed)
        self.declared = {value.name: value for value in declarations(model, crossing)}
        graph = model._proto.graph
        self.inputs = list(graph.input)
        self.sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self.annotated = {value.name: value for value in graph.value_info}

    def _stages(self, cuts: list[int]) -> list[int]:
        """Return the part of each operator."""
        model = self.model
        stages: list[int] = []
        for place, operator in enumerate(model.operators):
            stage = bisect_left(cuts, place)
            if operator.op_type in _SHAPE_READERS and not operator.domain:
                maker = model.producer.get(operator.input[0])
                stage = 0 if maker is None else stages[maker]
            stages.append(stage)
        return stages

    def _place_operators(self) -> None:
        """Note what each part reads, and copy constants to where they are read."""
        model = self.model
        for place, operator in enumerate(model.operators):
            if place not in self.constant or not any(n in model.readers or n in model.outputs for n in operator.output):
                self.operators[self.stage[place]].add(place)
                self._read(model.reads[place], self.stage[place])
        for name in model.outputs:
            self._read([name], self._home(name))
        unread = model.initializers.keys() | {value.name for value in model._proto.graph.input}
        self.read[0].update(dict.fromkeys(sorted(unread.difference(*self.read))))

    def _home(self, tensor: str) -> int:
        """Return the part that makes a tensor of the main graph."""
        maker = self.model.producer.get(tensor)
        return 0 if maker is None or maker in self.constant else self.stage[maker]

    def _read(self, names: Iterable[str], stage: int) -> None:
        """Note that a part needs tensors, and let the constant operators that make them come with it."""
        pending = list(names)
        while pending:
            name = pending.pop()
            self.read[stage][name] = None
            maker = self.model.producer.get(name)
            if maker in self.constant:
                if maker not in self.operators[stage]:
                    self.operators[stage].add(maker)
                    pending.extend(self.model.reads[maker])
            elif maker is not None and self.stage[maker] < stage:
                self.handed[self.stage[maker]][name] = None

    def _in_order(self, tensors: Iterable[str], cut: int) -> list[str]:
        """Sort tensors that cross cuts: those that one cut was named by, then as they are made."""
        first = self.cuts[cut] if 0 <= cut < len(self.cuts) else []
        return sorted(tensors, key=lambda name: (name not in first, self.model.producer[name]))

    def part(self, number: int) -> Model:
        """Return one part, once it has passed all checks."""
        whole = self.model._proto.graph
        proto = copy_without(
            self.model._proto,
            *("node", "initializer", "sparse_initializer", "input", "output", "value_info", "quantization_annotation"),
        )
        graph, read = proto.graph, self.read[number]
        graph.node.extend(self.model.operators[place] for place in sorted(self.operators[number]))
        made = {name for operator in graph.node for name in operator.output}
        received = [name for name in read if name in self.declared and name not in made]
        graph.input.extend(self.declared[name] for name in self._in_order(received, number - 1))
        graph.input.extend(value for value in self.inputs if value.name in read)
        handed = self._in_order(self.handed[number], number)
        graph.output.extend(self.declared[name] for name in handed)
        own = [value for value in whole.output if self._home(value.name) == number and value.name not in handed]
        graph.output.extend(own)
        if not graph.output:
            raise RefusedError(f"nothing that part {number} makes is read later or a graph output; cut elsewhere")
        there = made | read.keys()
        graph.initializer.extend(self.model.initializers[name] for name in read if name in self.model.initializers)
        graph.sparse_initializer.extend(self.sparse[name] for name in read if name in self.sparse)
        shown = {value.name for value in (*graph.input, *graph.output)}
        graph.value_info.extend(self.annotated[name] for name in sorted((there - shown) & self.annotated.keys()))
        graph.quantization_annotation.extend(v for v in whole.quantization_annotation if v.tensor_name in there)
        return self.model.derive(proto)


def _constant_operators(model: Model) -> set[int]:
    """Return the places of operators that depend on no input and give the same each time."""
    calls = (
        [function.name for function in model.functions]
        if any_random(op for f in model.functions for op in f.node)
        else []
    )
    known = model.initializers.keys() | {t.values.name for t in model._proto.graph.sparse_initializer}
    found = set()
    for place, operator in enumerate(model.operators):
        steady = not any_random([operator], calls)
        if steady and all(name in known or model.producer.get(name) in found for name in model.reads[place]):
            found.add(place)
    return found


def any_random(operators: Iterable[NodeProto], calls: Iterable[str] = ()) -> bool:
    """Whether an operator, or one in a subgraph, may give something else each time, as functions in ``calls`` do."""
    unsteady = _UNSTEADY.union(calls)
    return any(operator.op_type in unsteady for operator in with_inner(operators))
