"""Target problems: some of a classifier's classes, one against the rest, or several that count as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphmod.data import Data, Splits
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import logits
from graphmod.model import Model
from graphmod.probe import predict
from graphmod.pruning.head import head_of, is_list

Classes = Sequence[int | Sequence[int]]
"""What is wanted: classes, or several of them that are to be one."""


@dataclass(frozen=True)
class Task:
    """A target problem.

    Parameters
    ----------
    members : tuple of tuple of int
        For every label of the target problem, in order, the original's classes that have it.
    """

    members: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: Model, classes: Classes) -> Task:
        """Return the problem that some classes make; a single one stands against all others, which are label 0.

        Raises
        ------
        RefusedError
            The model is no classifier, classes are no such list, one does not exist or is named twice, or all are one.

        Examples
        --------
        >>> import graphmod as gm
        >>> m = gm.load(gm.demo.model_path())
        >>> Task.of(m, [3, 5]).members, Task.of(m, [[0, 1, 2], 9]).members
        (((3,), (5,)), ((0, 1, 2), (9,)))
        >>> Task.of(m, [3]).members
        ((0, 1, 2, 4, 5, 6, 7, 8, 9), (3,))
        """
        n = n_classes(model)
        groups = _groups(classes)
        named = [one for group in groups for one in group]
        wrong = next((one for one in named if not 0 <= one < n), None)
        if wrong is not None:
            raise RefusedError(f"'{model.main_output}' has no class {wrong}; its {n} classes are 0 to {n - 1}")
        if not named or not all(groups):
            raise RefusedError("classes is empty, or a group of them is; name what the target problem is about")
        twice = next((one for one in named if named.count(one) > 1), None)
        if twice is not None:
            raise RefusedError(f"class {twice} is named twice; each one belongs to one label")
        if len(groups) == 1:
            rest = tuple(one for one in range(n) if one not in named)
            if not rest:
                raise RefusedError(f"all {n} classes would be one label; leave some out, or give several groups")
            groups = (rest, *groups)
        return cls(groups)

    def __len__(self) -> int:
        """Return the number of labels."""
        return len(self.members)

    @property
    def is_plain(self) -> bool:
        """Whether every label is one class."""
        return all(len(group) == 1 for group in self.members)

    @property
    def columns(self) -> list[int | list[int]]:
        """What :func:`graphmod.restrict` is asked for."""
        return [group[0] if len(group) == 1 else list(group) for group in self.members]

    def data(self, whole: Splits) -> Splits:
        """Return the samples of the target problem, with its labels.

        Raises
        ------
        InvalidDataError
            A label has no sample in one of the parts.
        """
        return Splits(*(self._part(name, getattr(whole, name)) for name in ("train", "calibration", "test")))

    def _part(self, name: str, part: Data) -> Data:
        labels = np.full(len(part), -1)
        for label, group in enumerate(self.members):
            labels[np.isin(np.asarray(part.targets), group)] = label
        rows = np.flatnonzero(labels >= 0)
        missing = [group for label, group in enumerate(self.members) if not (labels == label).any()]
        if missing:
            why = "is told what to keep" if name == "train" else "is judged"
            raise InvalidDataError(
                f"the {name} data has no samples of classes {list(missing[0])}; a network {why} by samples of every "
                "label, also of the rest where one class stands against it"
            )
        return Data(part[rows].inputs, labels[rows])

    def accuracy_among_all(self, model: Model, part: Data) -> float:
        """Return the share of samples that the original's argmax over all of its classes gives their label.

        The literature's baseline (SeaM, section 4): a sample that is taken for a class outside of the problem is wrong.
        """
        label_of = np.full(n_classes(model), -1)
        for label, group in enumerate(self.members):
            label_of[list(group)] = label
        found = predict(model, part, output=logits(model)).reshape(len(part), -1).argmax(1)
        return float((label_of[found] == np.asarray(part.targets)).mean())


def _groups(classes: object) -> tuple[tuple[int, ...], ...]:
    """Return the classes of every label.

    Raises
    ------
    RefusedError
        They are no list of numbers and lists of numbers.
    """
    if is_list(classes):
        lists = [tuple(one) if is_list(one) else (one,) for one in classes]
        if all(isinstance(one, int | np.integer) and not isinstance(one, bool) for group in lists for one in group):
            return tuple(tuple(int(one) for one in group) for group in lists)
    raise RefusedError(f"classes={classes!r} is no list of classes, such as [3, 5, 8], [[0, 1, 2], 9] or [3]")


def n_classes(model: Model) -> int:
    """Return how many classes a classifier knows.

    Raises
    ------
    RefusedError
        Its output is no classifier's.
    """
    n = head_of(model, model.main_output).n_classes
    if n < 2:
        raise RefusedError(
            f"'{model.main_output}' has one column, which is no classifier's; it needs one for each class"
        )
    return n
