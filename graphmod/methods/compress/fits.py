"""Fits as parts: a linear map of channels as a model of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from graphmod.methods.compress.part import Part, as_model
from graphmod.methods.compress.site import Site
from graphmod.model import Model
from graphmod.rewrite import Region
from graphmod.rewrite.replacements import Fit, as_operators, fit


def fitted(site: Site, kind: str) -> Iterator[Part]:
    """Yield the fit of a kind that :mod:`graphmod.rewrite.replacements` knows, where it bridges the shapes."""
    seen = site.moments
    found = None if seen is None else fit(kind, seen)
    if found is not None and seen is not None:
        make = None if found.is_identity else partial(_model, site.original, site.entry, site.exit, found)
        yield Part(kind, site.entry, site.exit, found.error(seen), make)


def _model(host: Model, entry: str, exit_: str, found: Fit) -> Model:
    return as_model(host, entry, exit_, *as_operators(found, Region(entry, exit_), host.tensors[exit_]))
