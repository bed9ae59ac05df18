"""The verbs: each takes a model and returns a new one, or refuses and says why."""

from graphmod.rewrite.collapse import collapse
from graphmod.rewrite.compose import compose
from graphmod.rewrite.diff import Difference, diff
from graphmod.rewrite.duplicate import duplicate
from graphmod.rewrite.expose import expose, hide
from graphmod.rewrite.extract import extract
from graphmod.rewrite.fuse import Candidate, candidates, fuse, why_not
from graphmod.rewrite.inline import inline
from graphmod.rewrite.insert import insert
from graphmod.rewrite.lint import lint, mending
from graphmod.rewrite.low_rank import low_rank
from graphmod.rewrite.merge_weights import merge_weights
from graphmod.rewrite.new_head import new_head
from graphmod.rewrite.outline import outline
from graphmod.rewrite.pack import pack, unpack
from graphmod.rewrite.propose import Proposal, proposals, propose
from graphmod.rewrite.quantize import quantize
from graphmod.rewrite.rebatch import rebatch
from graphmod.rewrite.recalibrate import recalibrate
from graphmod.rewrite.recipe import Edit, Recipe, apply
from graphmod.rewrite.region import Region, find_region
from graphmod.rewrite.remove import remove
from graphmod.rewrite.rename import rename
from graphmod.rewrite.reorder import reorder
from graphmod.rewrite.replace import replace
from graphmod.rewrite.retype import retype
from graphmod.rewrite.simplify import simplify
from graphmod.rewrite.smells import Finding
from graphmod.rewrite.split import run_parts, split
from graphmod.rewrite.unfuse import unfuse
from graphmod.rewrite.verify import OutputError, Verification, verify

__all__ = [
    "Candidate",
    "Difference",
    "Edit",
    "Finding",
    "OutputError",
    "Proposal",
    "Recipe",
    "Region",
    "Verification",
    "apply",
    "candidates",
    "collapse",
    "compose",
    "diff",
    "duplicate",
    "expose",
    "extract",
    "find_region",
    "fuse",
    "hide",
    "inline",
    "insert",
    "lint",
    "low_rank",
    "mending",
    "merge_weights",
    "new_head",
    "outline",
    "pack",
    "proposals",
    "propose",
    "quantize",
    "rebatch",
    "recalibrate",
    "remove",
    "rename",
    "reorder",
    "replace",
    "retype",
    "run_parts",
    "simplify",
    "split",
    "unfuse",
    "unpack",
    "verify",
    "why_not",
]
