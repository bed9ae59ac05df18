"""Views of the training data: as it is, and augmented; with what a model to imitate gets to see beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from graphmod.data import Data, Splits, as_data, as_splits, check_labels, is_split
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.model import Model
from graphmod.train.imitation import Imitation

Augment = Callable[[Data, np.random.Generator], Data]


@dataclass(frozen=True, eq=False)
class Views:
    """How views are made.

    Parameters
    ----------
    augment : callable, optional
    number : int
        Of all views, the data as it is included.
    seed : int
    """

    augment: Augment | None
    number: int
    seed: int

    def __post_init__(self) -> None:
        if self.number < 1 or (self.number > 1) != (self.augment is not None):
            raise RefusedError("views must be 2 or more with augment, and 1 without it")

    def of(self, model: Model, data: Data, *, labels: bool = False) -> Iterator[Data]:
        """Yield the views of a model's data; the same random numbers come with every call.

        Raises
        ------
        InvalidDataError
            What ``augment`` returns does not fit the model, or not in its number of samples.
        """
        yield data
        for number in range(1, self.number):
            assert self.augment is not None, "there is one view without it"
            changed = self.augment(data, np.random.default_rng((self.seed, number)))
            try:
                view = as_data(model, changed, targets=data.targets is not None)
            except InvalidDataError as error:
                raise InvalidDataError(f"what augment returned is no view of the data: {error}") from error
            if len(view) != len(data):
                raise InvalidDataError(
                    f"augment made {len(view)} samples of {len(data)}; a view has as many as the data"
                )
            if labels:
                check_labels(model, view)
            yield view


def shown_to(imitate: Imitation, data: object, splits: Splits, seed: int) -> Splits:
    """Return what the model to imitate gets to see, row by row beside the training's own data.

    Parameters
    ----------
    imitate : Imitation
    data : anything that :func:`graphmod.data.as_splits` takes
        That of the training.
    splits : Splits
        What was made of it.
    seed : int

    Raises
    ------
    InvalidDataError
        It has data of its own, and not as many samples, or rows that cannot be told to belong together: calibration
        data is split off at random, by label, from one of both alone or by other labels.
    """
    if imitate.data is None:
        return splits
    shown = as_splits(imitate.model, imitate.data, seed, targets=False)
    for name in ("train", "calibration"):
        given, own = len(getattr(shown, name)), len(getattr(splits, name))
        if given != own:
            raise InvalidDataError(
                f"the {name} part of the data to imitate has {given} samples and that of the data {own}; row i of one "
                "belongs to row i of the other"
            )
    if is_split(imitate.data) != is_split(data) or not (is_split(data) or _are_alike(splits.train, shown.train)):
        raise InvalidDataError(
            "calibration data is split off at random, by label, so that rows of the data to imitate and of the data "
            "would not belong together; give both as Splits, or both with the same labels"
        )
    return shown


def _are_alike(one: Data, other: Data) -> bool:
    """Whether two data have the same targets, or both none."""
    if one.targets is None or other.targets is None:
        return one.targets is other.targets
    return np.array_equal(one.targets, other.targets)
