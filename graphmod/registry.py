"""Functions by name: how a new importance, criterion, schedule, attack or optimizer joins those that there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from graphmod.errors import RefusedError

Entry = TypeVar("Entry", bound=Callable[..., object])


class Registry(dict[str, Entry]):
    """Functions of one kind by name.

    Parameters
    ----------
    kind : str
        What they are, with its article.

    Examples
    --------
    >>> means = Registry("a mean")
    >>> @means.register("arithmetic")
    ... def arithmetic(values):
    ...     return sum(values) / len(values)
    >>> means["arithmetic"]([1.0, 2.0])
    1.5
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that enters a function under a name; a module may enter its own anew.

        Raises
        ------
        RefusedError
            Another module has entered one of that name.
        """

        def enter(function: Entry) -> Entry:
            known = self.get(name, function)
            if known.__module__ != function.__module__:
                raise RefusedError(f"there is {self._kind} '{name}' in {known.__module__}; choose another name")
            self[name] = function
            return function

        return enter
