"""The module library: one backbone and, for every class, which units and blocks of it the class's module has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from graphmod.data import as_splits
from graphmod.errors import InvalidModelError, RefusedError
from graphmod.methods.gates import without
from graphmod.methods.modular.assignment import Modules
from graphmod.methods.modular.chosen import chosen
from graphmod.methods.modular.conditions import Tables, conditions
from graphmod.methods.modular.patching import patched
from graphmod.model import Model, load, open_folder, replace_file
from graphmod.pruning.groups import groups
from graphmod.pruning.restrict import detector, restrict
from graphmod.pruning.widths import Alive
from graphmod.rewrite import Region, rebatch
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.fuse import fuse

BACKBONE, MODULES, TABLES = "backbone.onnx", "modules.json", "scales.npz"
"""The files of a library."""

MANIFEST = "graphmod.modular"
"""The metadata entry that tells from which library, and for which classes, a model was composed."""

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Library:
    """Modules of a classifier's classes, that can be composed to a classifier of any of them.

    Parameters
    ----------
    backbone : Model
        All units and blocks, with the weights that modules share; it takes any number of samples.
    blocks : tuple of (str, str)
        Entry and exit of the blocks that modules may be without.
    modules : Modules
        What the module of each class has, of the backbone's units and then the blocks.
    tables : dict of str to float32 array, shape (conditions, channels)
        Scales and shifts of normalisations, by the constant that they stand for: see :mod:`.conditions`.
    manifest : dict
        What it was made of and how: "original" (digest), "data" (digest), "seed", "settings", "accuracy" by class.
    """

    backbone: Model = field(repr=False)
    blocks: tuple[tuple[str, str], ...] = field(repr=False)
    modules: Modules = field(repr=False)
    tables: Tables = field(repr=False)
    manifest: dict[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        return f"Library(classes: {self.n_classes}, units: {self.modules.found.n_units:,}, blocks: {len(self.blocks)})"

    @property
    def n_classes(self) -> int:
        """How many modules there are."""
        return len(self.modules)

    @cached_property
    def model(self) -> Model:
        """The whole classifier."""
        return self._finished(fuse(self.backbone, kinds=["unfused"]), range(self.n_classes))

    def compose(self, classes: Sequence[int]) -> Model:
        """Return a classifier of some classes, made of their modules alone.

        Parameters
        ----------
        classes : sequence of int
            In the order of the columns. Of a single class it is a detector: its logit is above 0 where it takes a
            sample for one of the class (its probability above 0.5, where the original ends in a softmax).

        Raises
        ------
        RefusedError
            A class is not in the library or is named twice, or none is named.

        Examples
        --------
        >>> import graphmod as gm
        >>> m, data = gm.load(gm.demo.model_path()), gm.demo.splits()
        >>> library = gm.modular.extract(m, data, epochs=1)
        >>> three = library.compose([3, 5, 8])
        >>> three.outputs["logits"].shape, three.n_weights < 0.4 * m.n_weights
        (('batch', 3), True)
        """
        some = self.checked(classes)
        return self._composed(some, self.modules.opened(some))

    def without(self, classes: Sequence[int], *, keep_columns: bool = False) -> Model:
        """Return the classifier of all classes but some, without what belongs to their modules alone.

        Parameters
        ----------
        classes : sequence of int
            Those that go.
        keep_columns : bool
            Whether their columns stay, to see what is still known of them.

        Raises
        ------
        RefusedError
            A class is not in the library or is named twice, or fewer than two are left.
        """
        gone = self.checked(classes)
        left = [label for label in range(self.n_classes) if label not in gone]
        if len(left) < 2:
            raise RefusedError(f"of {self.n_classes} classes {len(left)} would be left; a classifier has two or more")
        uses = self.modules.uses
        own = uses[gone].any(0) & ~uses[left].any(0)
        return self._composed([*range(self.n_classes)] if keep_columns else left, self.modules.opened(left) & ~own)

    def patch(self, strong: Library, classes: Sequence[int], data: object) -> Model:
        """Return the whole classifier with the modules of some classes replaced by those of another library.

        They run beside it as detectors, brought to its logits' scale by two numbers each, which are fitted to data.

        Parameters
        ----------
        strong : Library
            Of the same classes, of models with the same inputs.
        classes : sequence of int
            Those that this library is weak in.
        data : anything that :func:`graphmod.data.as_splits` takes
            Its calibration part is what the numbers are fitted to.

        Raises
        ------
        RefusedError
            The libraries are of different classes or inputs, a class is not in them, or none would be left.
        """
        if not isinstance(strong, Library):
            raise RefusedError(f"a module comes from another Library, not from a {type(strong).__name__}")
        if strong.n_classes != self.n_classes or _signature(strong.backbone) != _signature(self.backbone):
            raise RefusedError(
                f"the libraries are of different tasks: one has {self.n_classes} classes and takes "
                f"{_told(self.backbone)}, the other has {strong.n_classes} and takes {_told(strong.backbone)}"
            )
        replaced = self.checked(classes)
        rest = [label for label in range(self.n_classes) if label not in replaced]
        if len(rest) < 2:
            raise RefusedError("modules of nearly all classes would be replaced; compose them from the other library")
        parts = as_splits(self.backbone, data, self.manifest.get("seed", 0), labels=True)
        first = self.cut(rest, self.modules.opened(rest))
        others = [strong.cut([label], strong.modules.opened([label])) for label in replaced]
        sources = [*rest, *replaced]
        order = [sources.index(label) for label in range(self.n_classes)]
        return self._finished(patched(first, others, order, parts.calibration), range(self.n_classes))

    def _composed(self, classes: list[int], gates: Alive) -> Model:
        return self._finished(self.cut(classes, gates), classes)

    def cut(self, classes: Sequence[int], gates: Alive) -> Model:
        """Return a classifier of some classes, with some gates open, that takes any number of samples."""
        among = np.isin(np.arange(self.n_classes), classes)[None]
        draft = Draft(self.backbone)
        for tensor, table in self.tables.items():
            value = (conditions(among) @ table)[0]
            draft.set_initializer(tensor, value.astype(self.backbone.tensors[tensor].dtype))
        small = without(draft.finish(), [Region(*block) for block in self.blocks], gates)
        part = detector(small, classes[0]) if len(classes) == 1 else restrict(small, [*classes])
        return fuse(part, kinds=["unfused"])

    def checked(self, classes: object) -> list[int]:
        """Return classes as numbers.

        Raises
        ------
        RefusedError
            They are no list of classes that the library has.
        """
        return chosen(classes, self.n_classes)

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write the library to a folder, which is made if it does not exist.

        Raises
        ------
        NotWritableError
            The folder cannot be written.
        """
        path = open_folder(folder, MODULES)
        uses = self.modules.uses
        told = {
            "format": FORMAT,
            "backbone": self.backbone.digest,
            "groups": {group.name: group.n_units for group in self.modules.found},
            "blocks": self.blocks,
            "core": _listed(np.asarray(uses.all(0))),
            "own": [_listed(own & ~uses.all(0)) for own in uses],
            "scales": [*self.tables],
            "digest of scales": _digest(self.tables),
            "rank": self.modules.rank.tolist(),
            "multiple of": self.modules.multiple_of,
            "manifest": self.manifest,
        }
        text = json.dumps(told, default=lambda one: one.item()) + "\n"
        self.backbone.save(path / BACKBONE)
        replace_file(path / TABLES, lambda stream: np.savez(stream, *self.tables.values()))
        replace_file(path / MODULES, lambda stream: stream.write(text.encode()))
        return path

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Library:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InvalidModelError
            The folder holds no library, or files of two.
        """
        path = Path(folder)
        if not (path / MODULES).is_file():
            raise InvalidModelError(f"'{path}' is no module library: there is no {MODULES} in it")
        backbone = load(path / BACKBONE)
        told = _read(path / MODULES)
        if told["backbone"] != backbone.digest:
            raise InvalidModelError(
                f"'{path / BACKBONE}' is not what the modules in '{path / MODULES}' are of: its hash is "
                f"{backbone.digest[:12]}, theirs {told['backbone'][:12]}; make the library again"
            )
        tables = _read_tables(path / TABLES, told["scales"])
        if told["digest of scales"] != _digest(tables):
            raise InvalidModelError(
                f"'{path / TABLES}' is not what the modules in '{path / MODULES}' were trained with; make the library "
                "again"
            )
        found = groups(backbone)
        if told["groups"] != {group.name: group.n_units for group in found}:
            raise InvalidModelError(
                f"'{path / MODULES}' is of other channel groups than this version of graphmod finds in "
                f"'{path / BACKBONE}'; make the library again"
            )
        try:
            uses = np.zeros((len(told["own"]), found.n_units + len(told["blocks"])), bool)
            uses[:, told["core"]] = True
            for own, some in zip(uses, told["own"], strict=True):
                own[some] = True
            modules = Modules(found, uses, np.asarray(told["rank"], np.float64), int(told["multiple of"]))
            blocks = tuple((str(entry), str(exit_)) for entry, exit_ in told["blocks"])
        except (IndexError, TypeError, ValueError) as error:
            raise InvalidModelError(f"'{path / MODULES}' is no list of modules: {error}") from error
        return cls(backbone, blocks, modules, tables, told["manifest"])

    def _finished(self, model: Model, classes: Sequence[int]) -> Model:
        """Return a model that takes as many samples as the original, with a note of what it is."""
        size = self.manifest.get("batch")
        model = model if size is None else rebatch(model, size)
        proto = model.editable()
        entry = next((one for one in proto.metadata_props if one.key == MANIFEST), None)
        entry = entry or proto.metadata_props.add(key=MANIFEST)
        told = {name: self.manifest[name] for name in ("original", "data", "seed") if name in self.manifest}
        entry.value = json.dumps({"library": self.backbone.digest, "classes": list(classes), **told})
        return model.derive(proto)


def _signature(model: Model) -> list[tuple[object, ...]]:
    """Return what data for a model have to be: names, types, and lengths of axes that are not free."""
    return [
        (name, kind.dtype, *(size if isinstance(size, int) else None for size in kind.shape or ()))
        for name, kind in model.inputs.items()
    ]


def _digest(tables: Tables) -> str:
    """Return a digest of scales and shifts."""
    found = hashlib.sha256()
    for name, table in sorted(tables.items()):
        found.update(f"{name}{table.dtype}{table.shape}".encode() + np.ascontiguousarray(table).tobytes())
    return found.hexdigest()


def _read_tables(path: Path, names: Sequence[str]) -> Tables:
    """Return the scales and shifts in a file, which has them in this order.

    Raises
    ------
    InvalidModelError
        There are none.
    """
    try:
        with np.load(path) as content:
            return dict(zip(names, (content[name] for name in content.files), strict=True))
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InvalidModelError(f"'{path}' holds no scales of modules: {error}") from error


def _told(model: Model) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in model.inputs.items())


def _listed(gates: np.ndarray) -> list[int]:
    found: list[int] = np.flatnonzero(gates).tolist()
    return found


def _read(path: Path) -> dict[str, Any]:
    """Return what a file of modules tells.

    Raises
    ------
    InvalidModelError
        It is none.
    """
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"'{path}' is no list of modules: {error}") from error
    wanted = {
        "format", "backbone", "groups", "blocks", "core", "own", "scales", "digest of scales", "rank", "multiple of",
        "manifest",
    }  # fmt: skip
    if not isinstance(told, dict) or not wanted <= told.keys() or told["format"] != FORMAT:
        raise InvalidModelError(f"'{path}' is no list of modules of format {FORMAT}; make the library again")
    return told
