"""What kind of number an argument is: one of another kind would fail late, or not at all."""

from __future__ import annotations

import numbers
from math import inf
from typing import TypeGuard

from graphmod.errors import RefusedError


def is_real(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, Python's or NumPy's; booleans are none.

    Examples
    --------
    >>> import numpy as np
    >>> [is_real(value) for value in (1, 0.5, np.float32(0.5), True, 1j, "1", None)]
    [True, True, True, False, False, False, False]
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is an integer by its type, Python's or NumPy's; booleans are none.

    Examples
    --------
    >>> import numpy as np
    >>> [is_whole(value) for value in (1, np.int64(1), 1.0, True, "1")]
    [True, True, False, False, False]
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_whole(least: int, **values: object) -> None:
    """Raise RefusedError unless every argument is an integer, and at least ``least``.

    Examples
    --------
    >>> check_whole(1, steps=100, epochs=0)
    Traceback (most recent call last):
    graphmod.errors.RefusedError: epochs=0 is out of range; it is a whole number from 1 on
    """
    for name, value in values.items():
        if not is_whole(value) or value < least:
            raise RefusedError(f"{name}={value!r} is out of range; it is a whole number from {least} on")


def check_rates(**rates: object) -> None:
    """Raise RefusedError unless every argument is a finite number above 0.

    Examples
    --------
    >>> check_rates(learning_rate=0)
    Traceback (most recent call last):
    graphmod.errors.RefusedError: learning_rate=0 is out of range; it is a number above 0
    """
    for name, value in rates.items():
        if not (is_real(value) and 0 < value < inf):
            raise RefusedError(f"{name}={value!r} is out of range; it is a number above 0")
