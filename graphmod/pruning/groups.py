"""Channel groups: the units that go or stay as a whole, where they are, and why others are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from graphmod.model import Model
from graphmod.pruning.analysis import Analysis, analyse
from graphmod.pruning.labels import Labels
from graphmod.pruning.site import Array

Units = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Member:
    """One axis along which units of a group lie.

    Parameters
    ----------
    tensor : str
    axis : int
    units : array of int
        For every index of the axis the unit of the group that it belongs to, -1 if to none.
    operator : str
        The first operator that reads the constant, or the one that makes the activation.
    is_constant : bool
        Whether the tensor is stored in the model: an initializer or a Constant.
    makes : bool
        Whether it is the axis of a weight that makes the channels, as the first of a convolution's.
    """

    tensor: str
    axis: int
    units: Units
    operator: str
    is_constant: bool
    makes: bool

    def __repr__(self) -> str:
        return f"Member({self.tensor!r}, axis {self.axis}, {int((self.units >= 0).sum())} of {len(self.units)} indices)"


@dataclass(frozen=True, eq=False)
class Group:
    """Units that the same weights make.

    Parameters
    ----------
    name : str
        The operator that makes them; the first of several.
    n_units : int
        Channels, heads or query groups: what goes as a whole.
    first : int
        The number of its first unit among those of all groups.
    members : tuple of Member
    """

    name: str
    n_units: int
    first: int
    members: tuple[Member, ...]

    @property
    def own(self) -> slice:
        """Where its units are among those of all groups."""
        return slice(self.first, self.first + self.n_units)

    def __repr__(self) -> str:
        return f"Group({self.name!r}, units: {self.n_units}, members: {len(self.members)})"

    @property
    def weights(self) -> tuple[Member, ...]:
        """The members that are stored in the model."""
        return tuple(member for member in self.members if member.is_constant)

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators whose weights make the units, in the order of the graph."""
        return tuple(dict.fromkeys(member.operator for member in self.members if member.makes))


@dataclass(frozen=True)
class Kept:
    """Channels that cannot be removed.

    Parameters
    ----------
    operator : str
        The operator that makes them.
    n_channels : int
        How many of its channels are kept.
    of : int
        How many it makes.
    reason : str
    """

    operator: str
    n_channels: int
    of: int
    reason: str


@dataclass(frozen=True, eq=False)
class Groups:
    """All channel groups of a network.

    Parameters
    ----------
    analysis : Analysis
    groups : tuple of Group
        What can be pruned.
    kept : tuple of Kept
        What cannot, and why.
    unit_of : array of int
        The number of the unit of every label, -1 if it belongs to none.
    """

    analysis: Analysis
    groups: tuple[Group, ...]
    kept: tuple[Kept, ...]
    unit_of: Units

    def __repr__(self) -> str:
        return f"Groups(groups: {len(self)}, units: {self.n_units:,}, operators that keep channels: {len(self.kept)})"

    @property
    def model(self) -> Model:
        """The network, with a copy for every reader of a constant whose entries are all alike."""
        return self.analysis.model

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.groups)

    def __iter__(self) -> Iterator[Group]:
        """Yield the groups."""
        return iter(self.groups)

    def __getitem__(self, name: str) -> Group:
        """Return a group by its name."""
        return self._named[name]

    def __contains__(self, name: object) -> bool:
        """Whether a group has this name."""
        return name in self._named

    def only(self, names: Collection[str]) -> Groups:
        """Return some of the groups; the units of the others count as kept."""
        chosen = [group for group in self.groups if group.name in names]
        number = np.full(self.n_units + 1, -1, np.int64)  # the last one is what no unit has
        first = 0
        groups = []
        for group in chosen:
            number[group.own] = np.arange(first, first + group.n_units)
            groups.append(replace(group, first=first))
            first += group.n_units
        return replace(self, groups=tuple(groups), unit_of=number[self.unit_of])

    @cached_property
    def _named(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def weight(self, tensor: str) -> Array | None:
        """Return the value of a float constant; None of others, and of what is stored sparsely."""
        kind = self.model.constants.get(tensor)
        if kind is None or not kind.is_float:
            return None
        if tensor in self.model.initializers:
            return self.model.initializer(tensor)
        if tensor not in self.model.producer:  # a sparse initializer
            return None
        operator = self.model.operators[self.model.producer[tensor]]
        given = next((numpy_helper.to_array(a.t) for a in operator.attribute if a.name == "value"), None)
        if operator.op_type == "Constant" and given is None:
            (attribute,) = operator.attribute
            is_sparse = attribute.name == "sparse_value"  # otherwise value_float or value_floats
            return None if is_sparse else np.array(helper.get_attribute_value(attribute), kind.dtype)
        if operator.op_type == "ConstantOfShape":
            shape = [len(labels) for labels in self.analysis.axes.get(tensor, ())]
            return np.broadcast_to(np.zeros(1, kind.dtype) if given is None else given, shape)
        return given

    @property
    def n_units(self) -> int:
        """Units of all groups."""
        return sum(group.n_units for group in self.groups)

    @cached_property
    def group_of(self) -> NDArray[np.int64]:
        """The place of every unit's group among the groups."""
        return np.repeat(np.arange(len(self.groups)), [group.n_units for group in self.groups])

    def units(self, labels: Labels) -> Units:
        """Return the number of the unit of every index of an axis, -1 if it belongs to none."""
        return self.unit_of[labels]

    def left(self, alive: NDArray[np.bool_]) -> Callable[[Labels], NDArray[np.bool_]]:
        """Return a function that says which indices of an axis are left when some units are."""
        kept = np.append(alive, True)  # -1 is always left
        return lambda labels: np.asarray(kept[self.unit_of[labels]])


def groups(
    model: Model, shapes: Mapping[str, Sequence[int]] | None = None, free: Mapping[str, int] | None = None
) -> Groups:
    """Find the channel groups of a network.

    Parameters
    ----------
    model : Model
    shapes : mapping of str to sequence of int, optional
        Shapes of inputs that fit the network, where its dynamic dimensions cannot be 2 (axis 0) and 32.
    free : mapping of str to int, optional
        An axis for each of some outputs, which may lose indices, as the classes of ``{"logits": 1}``; all other axes of
        outputs are kept.

    Returns
    -------
    Groups

    Raises
    ------
    InvalidDataError
        A shape is that of no input, or has another number of axes.

    Examples
    --------
    >>> import graphmod as gm
    >>> found = gm.groups(gm.load(gm.demo.model_path()))
    >>> len(found), found.groups[0].n_units
    (24, 16)
    """
    analysis = analyse(model, shapes, free)
    couplings = analysis.couplings
    n_labels = len(couplings)
    roots = couplings.find(np.arange(n_labels))
    is_free = ~couplings.is_kept(np.arange(n_labels))
    group_of, n_groups = _joined(analysis, roots, is_free)
    order = np.argsort(group_of[roots], kind="stable")
    order = order[(roots[order] == order) & (group_of[order] >= 0)]  # roots that are units, group by group
    unit_of_root = np.full(n_labels, -1, np.int64)
    unit_of_root[order] = np.arange(len(order))
    unit_of = unit_of_root[roots]
    sizes = np.bincount(group_of[order], minlength=n_groups)
    found = _with_members(analysis, unit_of, sizes)
    return Groups(analysis, found, _kept(analysis, unit_of), unit_of)


def _joined(analysis: Analysis, roots: Labels, is_free: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """Number the groups: free classes that lie along one axis that weights make; -1 for classes along none."""
    chains = [np.unique(own) for made in analysis.produced if (own := roots[made.labels][is_free[made.labels]]).size]
    group_of = np.full(len(roots), -1, np.int64)
    if not chains:
        return group_of, 0
    left = np.concatenate([chain[:-1] for chain in chains])
    right = np.concatenate([chain[1:] for chain in chains])
    links = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(roots), len(roots)))
    _, component = connected_components(links, directed=False)
    firsts = np.array([component[chain[0]] for chain in chains])
    order = {int(one): number for number, one in enumerate(dict.fromkeys(firsts.tolist()))}
    for chain, first in zip(chains, firsts, strict=True):
        group_of[chain] = order[int(first)]
    return group_of, len(order)


def _with_members(analysis: Analysis, unit_of: Units, sizes: NDArray[np.int64]) -> tuple[Group, ...]:
    model = analysis.model
    starts = np.cumsum(sizes) - sizes
    group_of_unit = np.repeat(np.arange(len(sizes)), sizes)
    makers = {id(made.labels): made.operator for made in analysis.produced}
    members: list[list[Member]] = [[] for _ in sizes]
    for tensor, axes in analysis.axes.items():
        is_constant = tensor in model.constants
        for axis, labels in enumerate(axes):
            units = unit_of[labels]
            if not (units >= 0).any():
                continue
            maker = makers.get(id(labels)) if is_constant else None
            for number in np.unique(group_of_unit[units[units >= 0]]).tolist():
                own = (units >= starts[number]) & (units < starts[number] + sizes[number])
                local = np.where(own, units - starts[number], -1)
                operator = maker or _operator(model, tensor, is_constant)
                members[number].append(Member(tensor, axis, local, operator, is_constant, maker is not None))
    names: dict[int, str] = {}
    taken: set[str] = set()
    for made in analysis.produced:
        for number in np.unique(group_of_unit[(units := unit_of[made.labels])[units >= 0]]).tolist():
            if number not in names:
                name = made.operator
                while name in taken:
                    name += "'"
                names[number] = name
                taken.add(name)
    return tuple(
        Group(names[number], int(size), int(first), tuple(own))
        for number, (size, first, own) in enumerate(zip(sizes, starts, members, strict=True))
    )


def _operator(model: Model, tensor: str, is_constant: bool) -> str:
    position = model.readers.get(tensor, (None,))[0] if is_constant else model.producer.get(tensor)
    return "" if position is None else model.operator_names[position]


def _kept(analysis: Analysis, unit_of: Units) -> tuple[Kept, ...]:
    found = []
    for made in analysis.produced:
        kept = made.labels[unit_of[made.labels] < 0]
        if len(kept):
            reason = analysis.couplings.reason(kept)
            found.append(Kept(made.operator, len(kept), len(made.labels), reason))
    return tuple(found)
