"""Linting: what about a model costs time, space or trust for nothing, and the edits that mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath

from graphmod.data import Data
from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.rewrite.recipe import Edit, Recipe
from graphmod.rewrite.replace import replace as replace_verb
from graphmod.rewrite.smells import SMELLS, Evidence, Finding, Smell
from graphmod.rewrite.verb import VERBS

_NAMING = ("place", "where")
"""Parameters of edits that name operators, which edits of the whole model may take out or rename."""


def lint(
    model: Model,
    data: object = None,
    *,
    only: Sequence[str] | None = None,
    weights: bool = True,
) -> list[Finding]:
    """Look for smells: what costs time, space or trust for nothing; each with the edit that mends it, or why none does.

    The smells and their edits are in ``docs/lint.md``. ``gm.apply([f.edit for f in findings if f.edit], model)`` mends
    all that can be mended; :func:`mending` is that recipe, every edit once.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_data` takes, optional
        Samples, to look for blocks that hardly change what they pass on.
    only : sequence of str, optional
        Names of smells, all if None.
    weights : bool
        Whether to read the values of weights, a chunk at a time; smells that need them are left out if not.

    Returns
    -------
    list of Finding
        In the order in which their edits can be applied.

    Raises
    ------
    RefusedError
        There is no such smell, or it needs data and there is none.
    InvalidModelError
        An operator reads a tensor that nothing makes, or the data of an external initializer is missing.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> gm.lint(m)
    []
    """
    chosen = _chosen(only, data is not None, weights)
    evidence = Evidence(model, *_read(model, data))
    found = [replace(finding, smell=one.name) for one in chosen for finding in one.sniff(evidence)]
    return sorted(found, key=_turn)


def mending(findings: Iterable[Finding]) -> Recipe:
    """Return the recipe that mends what can be mended, every edit once.

    Parameters
    ----------
    findings : iterable of Finding
        As :func:`lint` gives them.

    Examples
    --------
    >>> import graphmod as gm
    >>> len(mending(gm.lint(gm.load(gm.demo.model_path()))))
    0
    """
    edits: list[Edit] = []
    for finding in findings:
        if finding.edit is not None and finding.edit not in edits:
            edits.append(finding.edit)
    return Recipe(tuple(edits))


def _chosen(only: Sequence[str] | None, with_data: bool, weights: bool) -> list[Smell]:
    for name in only or ():
        if name not in SMELLS:
            near = difflib.get_close_matches(name, SMELLS, 1)
            told = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(SMELLS)}"
            raise RefusedError(f"there is no smell '{name}'; {told}")
        if SMELLS[name].needs_data and not with_data:
            raise RefusedError(f"'{name}' is found by running the model; give data")
        if SMELLS[name].needs_weights and not weights:
            raise RefusedError(f"'{name}' is found in the values of weights; allow to read them")
    return [
        one
        for one in SMELLS.values()
        if (only is None or one.name in only)
        and (with_data or not one.needs_data)
        and (weights or not one.needs_weights)
    ]


def _read(model: Model, data: object) -> tuple[Data | None, Mapping[str, str] | None]:
    """Return the samples, and how a recipe points to them."""
    mark = VERBS[replace_verb.__name__].reference("data")
    if data is None or mark is None:
        return None, None
    samples = mark.read(model, data)
    file = {"file": fspath(data)} if isinstance(data, str | PathLike) else {}
    return samples, {**file, "sha256": mark.identify(samples)}


def _turn(finding: Finding) -> int:
    """Return when an edit has its turn: after those that name operators what shows others more to do, names at last."""
    if finding.edit is None or any(name in finding.edit.parameters for name in _NAMING):
        return 0
    return {"simplify": 1, "rename": 3}.get(finding.edit.verb, 2)
