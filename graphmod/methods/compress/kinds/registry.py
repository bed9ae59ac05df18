"""The registry of kinds of parts: a new kind is one file of this package with a function under ``@kind``."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from graphmod.methods.compress.part import Part
from graphmod.methods.compress.site import Site

Maker = Callable[[Site], Iterator[Part]]
Cost = Literal["closed form", "searched"]

CLOSED_FORM: Cost = "closed form"
SEARCHED: Cost = "searched"


@dataclass(frozen=True)
class Kind:
    """A kind of part.

    Parameters
    ----------
    name : str
    make : callable
        ``make(site)`` yields parts, none where the kind does not fit the site.
    cost : str
        ``closed form``: made from statistics alone, so cheap that every run is tried; ``searched``: for some runs only.
    """

    name: str
    make: Maker
    cost: Cost


_KINDS: dict[str, Kind] = {}


def kind(name: str, cost: Cost) -> Callable[[Maker], Maker]:
    """Register a kind of part."""

    def register(make: Maker) -> Maker:
        _KINDS[name] = Kind(name, make, cost)
        return make

    return register


def kinds(cost: Cost) -> tuple[Kind, ...]:
    """Return the kinds that cost so much, by name.

    Examples
    --------
    >>> [kind.name for kind in kinds(CLOSED_FORM)]
    ['affine', 'identity', 'linear', 'low_rank', 'pooled']
    """
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        import_module(f"{__package__}.{module.name}")
    return tuple(_KINDS[name] for name in sorted(_KINDS) if _KINDS[name].cost == cost)
