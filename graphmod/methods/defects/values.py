"""The one input of a data set whose values can be changed a little: its float input."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data
from graphmod.errors import InvalidDataError


def float_input(data: Data) -> tuple[str, NDArray[np.floating[Any]]]:
    """Return the only float input: its name and its values.

    Raises
    ------
    InvalidDataError
        There is none, or there are several.

    Examples
    --------
    >>> name, values = float_input(Data({"image": np.zeros((2, 1, 8, 8), np.float32), "id": np.arange(2)}))
    >>> name, values.shape
    ('image', (2, 1, 8, 8))
    """
    found = [name for name, array in data.inputs.items() if np.issubdtype(array.dtype, np.floating)]
    if len(found) != 1:
        told = ", ".join(f"'{name}' ({array.dtype})" for name, array in data.inputs.items())
        raise InvalidDataError(f"the values of one float input can be changed, and the data's inputs are {told}")
    return found[0], cast("NDArray[np.floating[Any]]", np.asarray(data.inputs[found[0]]))
