"""Freeing a dimension: constants that hold its size become what follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.rewrite.draft import Draft, shared_scope
from graphmod.rewrite.element_types import STANDARD
from graphmod.rewrite.sizing import Sizes, reshaped

Array = NDArray[np.generic]

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""The inputs of recurrent operators that hold a state for every sample, along axis 1."""


@dataclass(frozen=True)
class Freed:
    """A graph in which a dimension of the inputs can have any size.

    Parameters
    ----------
    draft : Draft
        The graph, its inputs and outputs declared as before.
    old : int
        The size that the dimension had.
    before, after : Sizes
        All shapes at that size, and at another.
    holding : tuple of str
        Operators that read the dimension and do not hand it on, in words.
    ambiguous : bool
        Whether more than one reading of the file was possible.
    """

    draft: Draft
    old: int
    before: Sizes
    after: Sizes
    holding: tuple[str, ...]
    ambiguous: bool

    def factors(self, tensor: str, rank: int) -> list[float | None]:
        """Return how many times the dimension each axis of a tensor is; 0 if it does not depend, None if unknown."""
        before, after = self.before.shapes.get(tensor), self.after.shapes.get(tensor)
        if before is None or after is None or not len(before) == len(after) == rank:
            return [None] * rank
        return [
            None if old is None or new is None else 0 if old == new else old / self.old
            for old, new in zip(before, after, strict=True)
        ]


def free(model: Model, chosen: Sequence[str], axis: int, old: int, inner: bool) -> Freed:
    """Free a dimension of a model's inputs.

    Parameters
    ----------
    model : Model
    chosen : sequence of str
        The inputs that have the dimension.
    axis : int
        Where they have it.
    old : int
        Its size.
    inner : bool
        As in :func:`reshaped`.

    Raises
    ------
    RefusedError
        An operator, which is named, cannot do without the old size.
    """
    return _Freeing(model, chosen, axis, old, inner).freed()


class _Freeing:
    def __init__(self, model: Model, chosen: Sequence[str], axis: int, old: int, inner: bool):
        self.draft = Draft(model)
        self.old, self.inner = old, inner
        self.ambiguous = False
        taken = {size for kind in model.tensors.values() for size in kind.shape or () if isinstance(size, int)}
        new = next(prime for prime in (31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 10007) if prime not in taken)
        self.before, self.after = Sizes(model), Sizes(model)
        numbers: dict[str, int] = {}
        for name, kind in model.inputs.items():
            if kind.shape is None:
                continue
            known = [
                size if isinstance(size, int) else numbers.setdefault(size or name, 96 + 32 * len(numbers))
                for size in kind.shape
            ]
            self.before.shapes[name] = tuple(known)
            if name in chosen:
                known[axis] = new
            self.after.shapes[name] = tuple(known)
        self.has_names = bool(numbers)

    def freed(self) -> Freed:
        """Follow the dimension through the graph, and free what holds it."""
        holding = []
        for operator in self.draft.operators:
            self.before.follow(operator)
            why = self.after.follow(operator)
            reads = [name for name in operator.input if name and self._depends(name)]
            if reads:
                self._free(operator, why)
                known = all(name in self.after.shapes for name in operator.output if name)
                if known and operator.op_type not in ("Shape", "Size") and not any(map(self._depends, operator.output)):
                    holding.append(f"{operator.op_type} '{operator.name or operator.output[0]}'")
        self.draft.forget(
            value.name
            for value in self.draft.graph.value_info
            if self.before.shapes.get(value.name) != self.after.shapes.get(value.name)
            or value.name not in self.after.shapes
        )
        return Freed(self.draft, self.old, self.before, self.after, tuple(holding), self.ambiguous)

    def _depends(self, tensor: str) -> bool:
        """Whether shape or value of a tensor follow from the dimension."""
        if self.before.shapes.get(tensor) != self.after.shapes.get(tensor):
            return True
        old, new = self.before.values.get(tensor), self.after.values.get(tensor)
        return old is not new and (old is None or new is None or not np.array_equal(old, new))

    def _constant(self, operator: NodeProto, place: int) -> Array | None:
        """Return the value of an input that does not follow from the dimension."""
        name = operator.input[place] if place < len(operator.input) else ""
        return None if not name or self._depends(name) else self.before.values.get(name)

    def _free(self, operator: NodeProto, why: str) -> None:
        match operator.op_type if operator.domain in STANDARD else "":
            case "Reshape":
                self._free_reshape(operator)
            case "Expand":
                self._free_expand(operator)
            case "Resize" if self._constant(operator, 3) is not None:
                self._free_resize(operator)
            case "Slice":
                self._free_slice(operator)
            case "LSTM" | "GRU" | "RNN":
                for place in _STATES[operator.op_type]:
                    self._repeat(operator, place, 1, operator.input[0], 1)
            case _ if why:
                self._free_constants(operator, why)

    # -- targets

    def _free_reshape(self, operator: NodeProto) -> None:
        target = self._constant(operator, 1)
        source, made = operator.input[0], operator.output[0]
        shapes = [self.before.shapes.get(source), self.after.shapes.get(source), self.before.shapes.get(made)]
        if target is None or any(shape is None or None in shape for shape in shapes):
            return
        old, new, was = (tuple(size for size in shape or () if size is not None) for shape in shapes)
        wanted = reshaped(old, new, was, self.old, self.inner)
        if wanted is None:
            raise RefusedError(f"{_told(operator)} puts samples together in a way that only suits {self.old} of them")
        self.ambiguous |= wanted != reshaped(old, new, was, self.old, not self.inner)
        if wanted == self.after.shapes.get(made):
            return
        (place,) = (axis for axis, (a, b) in enumerate(zip(was, wanted, strict=True)) if a != b)
        fresh = target.astype(np.int64)
        copies = [axis < len(old) and (old[axis], new[axis]) == (was[axis], wanted[axis]) for axis in range(len(was))]
        for other in np.flatnonzero(fresh == -1):
            if not copies[place] and other != place:
                if self.has_names and not copies[other]:
                    raise RefusedError(f"{_told(operator)} leaves one size open, and would have to leave two")
                fresh[other] = 0 if copies[other] else was[other]
        fresh[place] = 0 if copies[place] else -1
        self._set_constant(operator, 1, fresh)
        kept = [attribute for attribute in operator.attribute if attribute.name != "allowzero"]
        del operator.attribute[:]
        operator.attribute.extend(kept)
        self.after.shapes[made] = wanted

    def _free_expand(self, operator: NodeProto) -> None:
        target = self._constant(operator, 1)
        old, new = self.before.shapes.get(operator.input[0]), self.after.shapes.get(operator.input[0])
        if target is None or old is None or new is None:
            return
        fresh = target.astype(np.int64)
        skipped = len(fresh) - len(old)
        for axis, (a, b) in enumerate(zip(old, new, strict=True)):
            if a != b and axis + skipped >= 0 and fresh[axis + skipped] == a:
                fresh[axis + skipped] = 1
        if not np.array_equal(fresh, target):
            self._set_constant(operator, 1, fresh)
            self._follow_again(operator)

    def _free_slice(self, operator: NodeProto) -> None:
        """Let a Slice that takes all of the dimension go to its end, whatever that is."""
        shapes = [
            sizes.shapes.get(name)
            for name in (operator.input[0], operator.output[0])
            for sizes in (self.before, self.after)
        ]
        if any(shape is None for shape in shapes):
            return
        old, new, was, made = (shape or () for shape in shapes)
        open_ = {
            axis
            for axis in range(len(old))
            if old[axis] != new[axis] and was[axis] == old[axis] and made[axis] != new[axis]
        }
        ends, axes = self._constant(operator, 2), self._constant(operator, 3)
        if not open_ or ends is None:
            return
        along = np.arange(len(ends)) if axes is None else axes
        all_ = 2 ** (8 * ends.dtype.itemsize - 1) - 1  # past which no Slice goes
        fresh = [all_ if int(axis) % len(old) in open_ else end for axis, end in zip(along, ends, strict=True)]
        self._set_constant(operator, 2, np.array(fresh, ends.dtype))
        self._follow_again(operator)

    def _free_resize(self, operator: NodeProto) -> None:
        """Let sizes of axes that are not resized be those of the input."""
        source = operator.input[0]
        old, new, sizes = self.before.shapes.get(source), self.after.shapes.get(source), self._constant(operator, 3)
        axes = [axis for attribute in operator.attribute if attribute.name == "axes" for axis in attribute.ints]
        if old is None or new is None or sizes is None or axes:
            return
        held = [axis for axis, (a, b) in enumerate(zip(old, new, strict=True)) if a != b and sizes[axis] == a]
        if held:
            parts: list[int | str] = [
                self._size_of(operator, source, axis) if axis in held else int(size) for axis, size in enumerate(sizes)
            ]
            reads = list(operator.input)
            reads[3] = self._joined(operator, parts)
            self.draft.set_inputs(operator, reads)
            wanted = tuple(new[axis] if axis in held else int(size) for axis, size in enumerate(sizes))
            self.after.shapes[operator.output[0]] = wanted

    # -- tensors that are repeated for every sample

    def _free_constants(self, operator: NodeProto, why: str) -> None:
        """Let constants that hold a row for every sample have one, or as many as there are."""
        moving = [
            name for name in operator.input if name and self.before.shapes.get(name) != self.after.shapes.get(name)
        ]
        still = [i for i, name in enumerate(operator.input) if name and not self._depends(name)]
        for name in moving:
            old, new = self.before.shapes.get(name), self.after.shapes.get(name)
            if old is None or new is None or len(old) != len(new):
                continue
            for axis in (axis for axis, (a, b) in enumerate(zip(old, new, strict=True)) if a != b):
                for place in still:
                    if operator.op_type == "Concat":
                        self._repeat(operator, place, axis, name, axis)
                    else:
                        rank = len(self.before.shapes.get(operator.input[place]) or ())
                        self._take_first(operator, place, axis - len(old) + rank)
        why = self._follow_again(operator)
        if why:
            raise RefusedError(f"{_told(operator)} holds on to the size {self.old}: {why}")

    def _repeat(self, operator: NodeProto, place: int, axis: int, like: str, along: int) -> None:
        """Let an input that is the same for every sample be repeated, as often as another tensor has an axis."""
        name = operator.input[place] if place < len(operator.input) else ""
        shape = self.before.shapes.get(name)
        if not name or self._depends(name) or shape is None or axis >= len(shape) or shape[axis] != self.old:
            return
        one = self._row(operator, name, axis)
        parts: list[int | str] = [1] * len(shape)
        parts[axis] = self._size_of(operator, like, along)
        repeated = self.draft.unused(f"{name}_repeated")
        self._add(operator, helper.make_node("Expand", [one, self._joined(operator, parts)], [repeated]))
        self._replace_input(operator, place, repeated)
        after, grown = list(shape), self.after.shapes.get(like)
        after[axis] = grown[along] if grown else None
        self.before.shapes[repeated], self.after.shapes[repeated] = shape, tuple(after)
        self.before.like[repeated] = self.after.like[repeated] = self.after.like.get(name, name)

    def _take_first(self, operator: NodeProto, place: int, axis: int) -> None:
        """Let an input that is the same for every sample be there once, to be broadcast."""
        name = operator.input[place]
        shape = self.before.shapes.get(name)
        if shape is None or not 0 <= axis < len(shape) or shape[axis] != self.old or self.old == 1:
            return
        one = self._row(operator, name, axis)
        self._replace_input(operator, place, one)
        for sizes in (self.before, self.after):
            sizes.shapes[one] = tuple(1 if i == axis else size for i, size in enumerate(shape))
            sizes.like[one] = sizes.like.get(name, name)

    def _row(self, operator: NodeProto, name: str, axis: int) -> str:
        """Return a tensor with the first row of another, all of whose rows are known to be equal."""
        if self.old == 1:
            return name
        value = self.before.values.get(name)
        if value is None:
            value = self.draft.constant(name)
        if value is None or not np.array_equal(value, np.repeat(value.take([0], axis), self.old, axis)):
            raise RefusedError(
                f"{_told(operator)} reads '{name}', which holds different values for each of {self.old} samples"
            )
        one = self.draft.unused(f"{name}_first")
        place = self.draft.weight(f"{one}_place", np.array([0]))
        self._add(operator, helper.make_node("Gather", [name, place], [one], axis=axis))
        return one

    # -- operators

    def _size_of(self, operator: NodeProto, tensor: str, axis: int) -> str:
        """Return a tensor with the size of an axis of another."""
        shape, size = self.draft.unused(f"{tensor}_shape"), self.draft.unused(f"{tensor}_size")
        place = self.draft.weight(f"{size}_axis", np.array([axis]))
        self._add(operator, helper.make_node("Shape", [tensor], [shape]))
        self._add(operator, helper.make_node("Gather", [shape, place], [size]))
        return size

    def _joined(self, operator: NodeProto, parts: Sequence[int | str]) -> str:
        """Return a tensor with sizes, numbers or tensors of one, in a row."""
        made = self.draft.unused(f"{operator.output[0]}_sizes")
        names = [
            part if isinstance(part, str) else self.draft.weight(f"{made}_{i}", np.array([part]))
            for i, part in enumerate(parts)
        ]
        self._add(operator, helper.make_node("Concat", names, [made], axis=0))
        return made

    def _add(self, operator: NodeProto, fresh: NodeProto) -> None:
        fresh.name = self.draft.unused_operator(f"{fresh.output[0]}_{fresh.op_type}")
        self.draft.add([fresh], operator, shared_scope([operator]) or None)

    def _replace_input(self, operator: NodeProto, place: int, name: str) -> None:
        self.draft.set_inputs(operator, [name if i == place else old for i, old in enumerate(operator.input)])

    def _set_constant(self, operator: NodeProto, place: int, value: Array) -> None:
        """Give an input of one operator another value: in its place if nobody else reads it."""
        name = operator.input[place]
        maker = self.draft.producer(name)
        if not self.draft.is_read_once(name) or (maker is not None and maker.op_type != "Constant"):
            name = self.draft.weight(name, value)
            self._replace_input(operator, place, name)
        elif maker is None:
            self.draft.set_initializer(name, value)
        else:
            del maker.attribute[:]
            maker.attribute.append(helper.make_attribute("value", numpy_helper.from_array(value, name)))
        for sizes in (self.before, self.after):
            sizes.values[name], sizes.shapes[name] = value, value.shape

    def _follow_again(self, operator: NodeProto) -> str:
        return self.after.follow(operator)


def _told(operator: NodeProto) -> str:
    return f"{operator.op_type} '{operator.name or operator.output[0]}'"
