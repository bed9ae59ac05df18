"""Classes whose modules are asked for."""

from __future__ import annotations

from graphmod.arguments import is_whole
from graphmod.errors import RefusedError
from graphmod.pruning.head import is_list


def chosen(classes: object, n_classes: int) -> list[int]:
    """Return classes as numbers.

    Parameters
    ----------
    classes : sequence of int
    n_classes : int
        How many there are.

    Raises
    ------
    RefusedError
        They are no list of classes that there are, each once.

    Examples
    --------
    >>> chosen((3, 5), 10)
    [3, 5]
    """
    told = f"there are modules of the classes 0 to {n_classes - 1}"
    if not is_list(classes) or not all(is_whole(one) for one in classes):
        raise RefusedError(f"classes={classes!r} is no list of classes, such as [3, 5, 8]; {told}")
    found = [int(one) for one in classes]
    if not found:
        raise RefusedError(f"classes is empty; {told}")
    wrong = next((one for one in found if not 0 <= one < n_classes), None)
    if wrong is not None:
        raise RefusedError(f"there is no module of class {wrong}; {told}")
    twice = next((one for one in found if found.count(one) > 1), None)
    if twice is not None:
        raise RefusedError(f"class {twice} is named twice; name each once")
    return found
