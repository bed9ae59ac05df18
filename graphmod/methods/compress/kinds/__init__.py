"""Kinds of parts, one file each: a function that makes parts for a site, registered by ``@kind``."""

from graphmod.methods.compress.kinds.registry import CLOSED_FORM, SEARCHED, Kind, kind, kinds

__all__ = ["CLOSED_FORM", "SEARCHED", "Kind", "kind", "kinds"]
