"""What an entry is: a function that gives a module and what its inputs look like, registered under its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class Input:
    """An input whose shape names its dynamic axes, and a function from shape and generator to values."""

    shape: tuple[int | str, ...]
    values: Callable[[tuple[int, ...], Generator], Tensor]

    def example(self, sizes: Mapping[str, int], generator: Generator) -> Tensor:
        return self.values(tuple(sizes[n] if isinstance(n, str) else n for n in self.shape), generator)

    def dynamic(self, fixed: set[str]) -> dict[int, str]:
        """Return the names of the dynamic axes by their positions, those left out that are fixed."""
        return {axis: n for axis, n in enumerate(self.shape) if isinstance(n, str) and n not in fixed}


def real(*shape: int | str) -> Input:
    """Standard normal values; the first axis is the batch."""
    return Input(("batch", *shape), lambda sizes, generator: torch.randn(sizes, generator=generator))


def integer(high: int, *shape: int | str) -> Input:
    """Integers from 0 to below ``high``; the first axis is the batch."""
    return Input(("batch", *shape), lambda sizes, generator: torch.randint(high, sizes, generator=generator))


def _padding(sizes: tuple[int, ...], generator: Generator) -> Tensor:
    lengths = torch.randint(1, sizes[1], (sizes[0], 1), generator=generator)
    lengths[0] = sizes[1]
    return (torch.arange(sizes[1]) < lengths).long()


def mask() -> Input:
    """Ones followed by zeros; of the first sample ones only."""
    return Input(("batch", "length"), _padding)


Entry = Callable[[], tuple[nn.Module, tuple[Input, ...]]]


@dataclass(frozen=True)
class Architecture:
    """A network of random weights.

    Parameters
    ----------
    name : str
    entry : callable
        Makes the module and its inputs.
    sizes : dict of str to (int, int)
        For each dynamic axis but the batch: the size it is exported with, and another that the network can take.
    fixed : dict of str to set of str
        The axes that an exporter hard-codes although they should be dynamic, by exporter.
    unsupported : dict of str to str
        Why an exporter cannot export it, by exporter.
    """

    name: str
    entry: Entry
    sizes: Mapping[str, tuple[int, int]]
    fixed: Mapping[str, set[str]] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(
    fixed: Mapping[str, set[str]] | None = None,
    unsupported: Mapping[str, str] | None = None,
    **sizes: tuple[int, int],
) -> Callable[[Entry], Entry]:
    """Register a function under its name; see `Architecture` for the parameters."""

    def register(entry: Entry) -> Entry:
        name = entry.__name__
        assert name not in ARCHITECTURES, name
        ARCHITECTURES[name] = Architecture(name, entry, sizes, fixed or {}, unsupported or {})
        return entry

    return register
