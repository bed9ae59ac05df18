"""Scores: the importance of every unit of a network, by name, from a function or as given, checked and comparable."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

import numpy as np
from numpy.typing import ArrayLike, NDArray

from graphmod.errors import InvalidDataError, RefusedError
from graphmod.pruning.groups import Group, Groups
from graphmod.pruning.importance.registry import IMPORTANCE, Evidence, Importance, Scores


def scores(
    found: Groups, how: str | Importance | Mapping[str, ArrayLike] | ArrayLike, evidence: Evidence | None = None
) -> Scores:
    """Return what every unit is worth.

    Parameters
    ----------
    found : Groups
    how : str, callable, mapping or array
        The name of an importance; a function of a group and the evidence that returns an array of shape (n_units,);
        such an array for every group, by name; or one array for all units, in the order of the groups.
    evidence : Evidence, optional
        What an importance may look at; the groups and their weights alone if None.

    Returns
    -------
    float64 array, shape (found.n_units,)
        Larger for units that matter more; comparable within a group.

    Raises
    ------
    RefusedError
        There is no importance of that name, or it cannot be found for a group.
    InvalidDataError
        An array has another length than there are units, or holds what is no number; groups are missing or unknown; or
        the importance needs samples and there are none.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.pruning import groups
    >>> found = groups(gm.load(gm.demo.model_path()))
    >>> scores(found, "l2").shape
    (640,)
    """
    evidence = evidence or Evidence(found)
    if isinstance(how, str):
        how = _named(how)
    if callable(how):
        parts = [_of_group(group, how(group, evidence)) for group in found]
    elif isinstance(how, Mapping):
        parts = _of_mapping(found, how)
    else:
        whole = _checked(how, found.n_units, f"the {len(found)} groups together")
        parts = [whole]
    return np.concatenate([np.zeros(0), *parts])


def normalised(found: Groups, values: Scores) -> Scores:
    """Return scores that can be compared across groups: divided by the mean of their group.

    Six importances (l2, taylor, fisher, similarity, activation norm and variance) ranked the units of the demo network
    and three small ones (digits, plain and residual, and MNIST), which were cut to 50 to 95 % of their
    multiply-accumulates and not retrained. On calibration data this kept 71 % accuracy on average; the maximum as
    divisor 69 %, none 68 %, LAMP's share of what is left 68 %, the root of the sum of squares 66 %, the sum 65 %.

    Parameters
    ----------
    found : Groups
    values : float64 array, shape (found.n_units,)
        What :func:`scores` returns. Where some are negative, the mean is of absolute values.

    Returns
    -------
    float64 array, shape (found.n_units,)
        Zeros for groups of zeros.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.pruning import groups
    >>> found = groups(gm.load(gm.demo.model_path()))
    >>> float(normalised(found, scores(found, "l2")).mean().round(6))
    1.0
    """
    sizes = [group.n_units for group in found]
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    means = np.bincount(group_of, np.abs(values), len(sizes)) / np.array(sizes, np.float64)
    divisor: Scores = np.where(means > 0, means, 1)[group_of]
    return values / divisor


def _named(name: str) -> Importance:
    if name not in IMPORTANCE:
        close = get_close_matches(name, IMPORTANCE, 1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(sorted(IMPORTANCE))}"
        raise RefusedError(
            f"there is no importance '{name}'{hint} (one's own is known once a script has registered it, by "
            '@importance("name"))'
        )
    return IMPORTANCE[name]


def _of_mapping(found: Groups, given: Mapping[str, ArrayLike]) -> list[Scores]:
    names = [group.name for group in found]
    for name in given:
        if name not in names:
            close = get_close_matches(name, names, 1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(names)}"
            raise InvalidDataError(f"there is no group '{name}' to have an importance{hint}")
    missing = [group for group in found if group.name not in given]
    if missing:
        raise InvalidDataError(
            f"no importance is given for {len(missing)} of {len(found)} groups, the first one is '{missing[0].name}' "
            f"with {missing[0].n_units} units"
        )
    return [_of_group(group, given[group.name]) for group in found]


def _of_group(group: Group, given: ArrayLike) -> Scores:
    return _checked(given, group.n_units, f"group '{group.name}'")


def _checked(given: ArrayLike, n_units: int, where: str) -> Scores:
    """Return an importance as an array, once it is known to have a finite number for every unit."""
    try:
        values: NDArray[np.float64] = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidDataError(f"the importance of {where} is no array of {n_units} numbers: {error}") from error
    if values.shape != (n_units,):
        raise InvalidDataError(
            f"the importance of {where} has shape {list(values.shape)}; it needs one number for each of {n_units} units"
        )
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise InvalidDataError(
            f"the importance of {where} is {values[wrong[0]]} for unit {wrong[0]}, and not finite for {len(wrong)} of "
            f"{n_units}; give every unit a number"
        )
    return values
