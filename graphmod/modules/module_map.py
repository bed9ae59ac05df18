"""The module map: the file that records modules, and of which model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from graphmod.errors import InvalidDataError, RefusedError
from graphmod.model import Model, replace_file

_FORMAT = "graphmod module map 1"


@dataclass(frozen=True)
class Module:
    """A run of consecutive boundaries whose representations are similar.

    Parameters
    ----------
    boundaries : tuple of str
        Names of tensors, in the network's order.
    blocks : tuple of str
        For each, the path of the block that ends there.
    similarity : float
        The lowest similarity of any pair of them (1 for a single boundary).
    """

    boundaries: tuple[str, ...]
    blocks: tuple[str, ...]
    similarity: float

    def __len__(self) -> int:
        """Return the number of boundaries."""
        return len(self.boundaries)


@dataclass(frozen=True)
class ModuleMap:
    """Modules of a model, and how they were found.

    Parameters
    ----------
    digest : str
        The model's hash.
    modules : tuple of Module
    method : str
        "greedy" or "optimal".
    threshold : float or None
    dissimilarity : float
        Sum of 1 - CKA over all pairs within modules.
    floor : float or None
        Similarity below which no pair within a module may lie.
    cuts : tuple of str
        Boundaries at which a module had to begin.
    """

    digest: str
    modules: tuple[Module, ...]
    method: str
    threshold: float | None
    dissimilarity: float
    floor: float | None = None
    cuts: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of modules."""
        return len(self.modules)

    def __iter__(self) -> Iterator[Module]:
        """Yield the modules in the network's order."""
        return iter(self.modules)

    def check(self, model: Model) -> None:
        """Raise RefusedError unless the map was made of this very model."""
        if model.digest != self.digest:
            raise RefusedError(
                f"the module map is of another model (its hash is {self.digest[:12]}, the model's is "
                f"{model.digest[:12]}); make the map again with 'graphmod modules'"
            )

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the map as JSON.

        Raises
        ------
        NotWritableError
            The path cannot be written.
        """
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2) + "\n"
        return replace_file(path, lambda stream: stream.write(text.encode()))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> ModuleMap:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InvalidDataError
            The file is missing or is no module map.
        """
        try:
            content = json.loads(Path(path).read_text())
            if content["format"] != _FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            modules = tuple(
                Module(tuple(m["boundaries"]), tuple(m["blocks"]), float(m["similarity"])) for m in content["modules"]
            )
            return cls(
                str(content["digest"]),
                modules,
                str(content["method"]),
                content["threshold"],
                float(content["dissimilarity"]),
                content.get("floor"),
                tuple(content.get("cuts", ())),
            )
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InvalidDataError(f"'{path}' is no module map: it is no JSON; graphmod modules writes one") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidDataError(f"'{path}' is no module map: {error}") from error
