"""The trend of modularity: a straight line through networks of various depths, amounts of data or classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scipy.stats import linregress

from graphmod.errors import InvalidDataError


@dataclass(frozen=True)
class Trend:
    """A line fitted by least squares.

    Parameters
    ----------
    slope, intercept : float
    correlation : float
        Pearson's, between -1 and 1.
    p_value : float
        Of a slope of 0, by a two-sided t test.
    n : int
        Networks.
    """

    slope: float
    intercept: float
    correlation: float
    p_value: float
    n: int

    def as_dict(self) -> dict[str, float]:
        """Return plain values."""
        return asdict(self)


def trend(variable: Sequence[float], modularities: Sequence[float]) -> Trend:
    """Fit modularity by depth, amount of data or number of classes: the paper's univariate regression.

    Parameters
    ----------
    variable : sequence of float
        What a network was made with.
    modularities : sequence of float
        What :func:`modularity` finds, a value a network.

    Raises
    ------
    InvalidDataError
        There are fewer than 3 networks, not as many values as networks, or all are made alike.

    Examples
    --------
    >>> found = trend([14, 44, 110], [0.5, 0.7, 0.9])
    >>> found.slope > 0, round(found.correlation, 2)
    (True, 0.98)
    """
    if len(variable) != len(modularities) or len(variable) < 3 or len(set(variable)) < 2:
        raise InvalidDataError(
            f"a trend needs 3 networks or more that are not made alike, with a modularity each; there are "
            f"{len(variable)} values and {len(modularities)} modularities"
        )
    line = linregress(variable, modularities)
    return Trend(float(line.slope), float(line.intercept), float(line.rvalue), float(line.pvalue), len(variable))
