"""Removal: units are taken out of every weight, and what counts or names them follows, in one pass over the graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, ValueInfoProto, helper, numpy_helper

from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.model.initializers import LARGE
from graphmod.pruning.change import Need, adapted, at_other_size
from graphmod.pruning.groups import Groups
from graphmod.pruning.labels import Labels
from graphmod.pruning.leftovers import Fold, Leftovers, Mix, settle
from graphmod.pruning.site import Array, Site
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.sizing import Sizes


def cut(found: Groups, removed: NDArray[np.bool_], leftovers: bool | Leftovers = True) -> Model:
    """Remove units from a network.

    Parameters
    ----------
    found : Groups
    removed : array of bool, shape (n_units,)
        Which units go, in the order of the groups.
    leftovers : bool or Leftovers
        Whether biases take in what removed channels would hold without the weights that make them, wherever that is
        exact; or what they take in instead.

    Returns
    -------
    Model
        Names, metadata, inputs and outputs as before; the same operators, with smaller weights.

    Raises
    ------
    RefusedError
        All units of an axis would go, or a size is computed in a way that cannot follow.
    """
    if not isinstance(leftovers, Leftovers):
        leftovers = settle(found, removed) if leftovers else Leftovers()
    return _Cutting(found, removed, leftovers).cut()


class _Cutting:
    def __init__(self, found: Groups, removed: NDArray[np.bool_], leftovers: Leftovers):
        self.found, self.analysis, self.leftovers = found, found.analysis, leftovers
        self.axes = dict(found.analysis.axes)  # and of new constants
        self.folded: dict[str, Array] = {}  # initializers that take in what is left of removed units
        self.removed = np.append(removed, False)  # so that -1 is never removed
        self.draft = Draft(found.model)
        self.before = found.analysis.sizes
        self.after = tuple(self._start(sizes) for sizes in self.before)
        self.shrunk: set[str] = set()  # constants that lost indices, and small values that are computed from them

    def _start(self, before: Sizes) -> Sizes:
        sizes = Sizes(self.found.model)
        sizes.shapes.update({name: before.shapes[name] for name in self.found.model.inputs if name in before.shapes})
        return sizes

    def alive(self, labels: Labels) -> NDArray[np.bool_]:
        """Return which indices of an axis are left."""
        return ~self.removed[self.found.unit_of[labels]]

    def cut(self) -> Model:
        """Slice the weights, then let operator by operator follow."""
        model = self.found.model
        for fold in self.leftovers.folds:
            self._fold(fold)
        for mix in self.leftovers.mixes:
            self._mix(mix)
        for name in model.initializers:
            self._slice_initializer(name)
        for position, (operator, name) in enumerate(zip(model.operators, model.operator_names, strict=True)):
            own = self.draft.operator(name)
            if operator.op_type == "Constant":
                self._slice_constant(own)
            self._follow(own, self.analysis.sites[position])
        for declared in (
            *self.draft.graph.value_info,
            *self.draft.graph.input,
        ):  # old files list initializers as inputs
            self._declare(declared)
        return self.draft.finish()

    def _declare(self, value: ValueInfoProto) -> None:
        """Let the file's annotation of a tensor tell what is left."""
        dims = value.type.tensor_type.shape.dim
        for dim, labels in zip(dims, self.analysis.axes.get(value.name, ()), strict=False):
            n_left = int(self.alive(labels).sum())
            if n_left < len(labels) and dim.HasField("dim_value"):
                dim.dim_value = n_left
            elif n_left < len(labels):
                dim.Clear()  # a symbol that stood for a product

    # -- weights

    def _fold(self, fold: Fold) -> None:
        """Let a constant take a value in, a new one where others read it too, or there is none."""
        operator = self.draft.operator(fold.operator)
        tensor = operator.input[fold.place] if fold.place < len(operator.input) else ""
        before = self.found.weight(tensor) if tensor else None
        made = next(filter(None, operator.output))
        like = self.found.weight(operator.input[1]) if before is None else before  # a bias is like the weights
        assert like is not None, "operators of stored weights alone take values in"
        value = (fold.value if before is None else before.astype(np.float64) + fold.value).astype(like.dtype)
        if before is not None and value.shape == before.shape and self._is_own(tensor):
            self.folded[tensor] = value
            return
        labels = [*self.axes.get(tensor, [])[:-1], fold.labels]
        self._replace(operator, fold.place, tensor or f"{made}_bias", value, labels)

    def _mix(self, mix: Mix) -> None:
        """Let the weights of a contraction take in what they read of removed channels."""
        operator = self.draft.operator(mix.operator)
        tensor = operator.input[mix.place]
        before = self.found.weight(tensor)
        assert before is not None, "it is stored"
        value = mix.applied(before)
        if self._is_own(tensor):
            self.folded[tensor] = value
        else:
            self._replace(operator, mix.place, tensor, value, self.axes[tensor])

    def _replace(self, operator: NodeProto, place: int, name: str, value: Array, labels: Sequence[Labels]) -> None:
        """Let an operator read a new constant, of which only what is left is stored."""
        for axis, one in enumerate(labels):
            value = np.compress(self.alive(one), value, axis)
        name = self.draft.weight(name, value)
        self.axes[name] = list(labels)
        self._note(name, value)
        for sizes in self.after:
            sizes.like[name] = next(filter(None, operator.output))
        self._read(operator, place, name)

    def _is_own(self, tensor: str) -> bool:
        """Whether an initializer can have another value, because one operator alone reads it."""
        return tensor in self.found.model.initializers and self.draft.is_read_once(tensor)

    def _masks(self, tensor: str) -> list[NDArray[np.bool_]]:
        return [self.alive(labels) for labels in self.axes.get(tensor, ())]

    def _sliced(self, tensor: str, value: Array) -> Array:
        """Return a tensor's value without the indices that are gone; itself if none are."""
        for axis, mask in enumerate(self._masks(tensor)):
            if not mask.all():
                value = np.compress(mask, value, axis)
        return value

    def _slice_initializer(self, name: str) -> None:
        is_whole = all(mask.all() for mask in self._masks(name))
        if is_whole and name not in self.folded:
            return
        value = self._sliced(name, self.folded[name] if name in self.folded else self.found.model.initializer(name))
        self.draft.set_initializer(name, value)
        self._note(name, value)
        if not is_whole:
            self.shrunk.add(name)

    def _slice_constant(self, operator: NodeProto) -> None:
        name = operator.output[0]
        if all(mask.all() for mask in self._masks(name)):
            return
        for attribute in operator.attribute:
            if attribute.name == "value":
                value = self._sliced(name, numpy_helper.to_array(attribute.t))
                attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))
            else:  # value_floats, value_ints or value_strings
                value = self._sliced(name, np.array(helper.get_attribute_value(attribute)))
                attribute.CopyFrom(helper.make_attribute(attribute.name, value.tolist()))
            self.shrunk.add(name)

    def _note(self, name: str, value: Array) -> None:
        """Let sizes follow a constant's new value."""
        for sizes in self.after:
            sizes.shapes[name] = value.shape
            sizes.values.pop(name, None)
            if value.size <= LARGE:
                sizes.values[name] = value

    # -- operators

    def _follow(self, operator: NodeProto, site: Site | None) -> None:
        told = f"{operator.op_type} '{operator.name or operator.output[0]}'"
        read, written = list(operator.input), list(operator.output)
        change = adapted(operator, site, self.axes, self.alive)
        for name, axes in zip((*read, *written), (*change.read, *change.written), strict=True):
            if any(len(labels) and not change.count(labels) for labels in axes):
                raise RefusedError(f"all units along an axis of '{name}', which {told} reads or makes, would go")
        for place, need in change.needs.items():
            tensor = read[place] if place < len(read) else ""
            self._meet(operator, place, [need, *(self._at_other_size(tensor, need, one) for one in self.before[1:])])
        self._state_values(operator, change.needs)
        for sizes, before in zip(self.after, self.before, strict=True):
            why = sizes.follow(operator)
            if why:
                raise RefusedError(f"{told} does not fit what is left: {why}")
            if site is None:  # all that it reads and makes stays
                sizes.shapes.update({name: before.shapes[name] for name in written if name in before.shapes})
        for name, expected in zip(written, change.written, strict=True):
            shape = self.after[0].shapes.get(name)
            if name and shape is not None and expected and shape != tuple(change.count(labels) for labels in expected):
                raise RefusedError(f"{told} makes {list(shape)} of what is left")

    def _state_values(self, operator: NodeProto, stated: Collection[int]) -> None:
        """Let what was computed from sizes, and goes into an operator on data, have the value that it had."""
        values = self.before[0].values
        if all(name in values for name in operator.output if name):
            if not self.shrunk.isdisjoint(operator.input):
                self.shrunk.update(operator.output)
            return
        for place, name in enumerate(operator.input):
            if name in values and name in self.found.model.producer and not (place in stated or name in self.shrunk):
                held = [sizes.values.get(name) for sizes in self.before]
                self._meet(operator, place, [None if v is None else Need(self._sliced(name, v)) for v in held])

    def _meet(self, operator: NodeProto, place: int, needs: Sequence[Need | None]) -> None:
        """Let an input have the value that it needs, at all sizes of dynamic dimensions where it is known."""
        tensor = operator.input[place] if place < len(operator.input) else ""
        found = [sizes.values.get(tensor) for sizes in self.after]
        pairs = [(need, value) for need, value in zip(needs, found, strict=True) if need is not None]
        if all(value is not None and need.is_met(value) for need, value in pairs):
            return
        wanted = [need.value for need, _ in pairs]
        if len(pairs) == len(needs) and all(np.array_equal(value, wanted[0]) for value in wanted):
            self._read(operator, place, self._constant(operator, place, tensor, wanted[0]))
        else:
            self._scale(operator, place, [value for _, value in pairs], wanted)

    def _at_other_size(self, tensor: str, need: Need, sizes: Sizes) -> Need | None:
        """Return what is needed at another size of dynamic dimensions; None where the value there is not known."""
        first, other = self.before[0].values.get(tensor), sizes.values.get(tensor)
        if first is not None and other is None:
            return None
        return need if other is None else Need(at_other_size(need.value, first, other), need.serves)

    def _constant(self, operator: NodeProto, place: int, tensor: str, value: Array) -> str:
        known = self.before[0].values.get(tensor)
        dtype: Any = np.int64 if known is None else known.dtype
        name = self.draft.weight(tensor or f"{operator.output[0]}_{place}", value.astype(dtype))
        self._note(name, value.astype(dtype))
        return name

    def _read(self, operator: NodeProto, place: int, tensor: str) -> None:
        inputs = [*operator.input, *([""] * (place + 1 - len(operator.input)))]
        inputs[place] = tensor
        self.draft.set_inputs(operator, inputs)

    def _scale(self, operator: NodeProto, place: int, found: list[Array | None], wanted: list[Array]) -> None:
        """Multiply and divide sizes that are computed from dynamic dimensions and constants."""
        tensor = operator.input[place]
        ratios = []
        for value, want in zip(found, wanted, strict=True):
            if value is None or value.shape != want.shape or value.dtype.kind != "i" or not value.all():
                raise RefusedError(
                    f"{operator.op_type} '{operator.name or operator.output[0]}' reads '{tensor}', which is computed "
                    "from dynamic dimensions in a way that cannot follow; fix them with graphmod.rebatch"
                )
            ratios.append([Fraction(int(a), int(b)) for a, b in zip(want.ravel(), value.ravel(), strict=True)])
        if any(ratio != ratios[0] for ratio in ratios):
            raise RefusedError(
                f"{operator.op_type} '{operator.name or operator.output[0]}' reads '{tensor}', which is computed "
                "from dynamic dimensions in a way that cannot follow; fix them with graphmod.rebatch"
            )
        for op_type, part in (("Mul", "numerator"), ("Div", "denominator")):
            factors = np.array([getattr(ratio, part) for ratio in ratios[0]], wanted[0].dtype).reshape(wanted[0].shape)
            if (factors != 1).any():
                made = self.draft.unused(f"{operator.input[place]}_{op_type.lower()}")
                factor = self._constant(operator, place, operator.input[place], factors)
                node = helper.make_node(op_type, [operator.input[place], factor], [made], name=made)
                (added,) = self.draft.add([node], at=operator)
                for sizes in self.after:
                    sizes.like[made] = tensor
                    sizes.follow(added)
                self._read(operator, place, made)
