"""The verbs: each takes a model and returns a new one, or refuses and says why."""

from graphmod.rewrite.diff import Difference, diff
from graphmod.rewrite.extract import extract
from graphmod.rewrite.inline import inline
from graphmod.rewrite.propose import Proposal, proposals, propose
from graphmod.rewrite.rebatch import rebatch
from graphmod.rewrite.recipe import Edit, Recipe, apply
from graphmod.rewrite.region import Region, find_region
from graphmod.rewrite.remove import remove
from graphmod.rewrite.replace import replace
from graphmod.rewrite.split import run_parts, split
from graphmod.rewrite.verify import OutputError, Verification, verify

__all__ = [
    "Difference",
    "Edit",
    "OutputError",
    "Proposal",
    "Recipe",
    "Region",
    "Verification",
    "apply",
    "diff",
    "extract",
    "find_region",
    "inline",
    "proposals",
    "propose",
    "rebatch",
    "remove",
    "replace",
    "run_parts",
    "split",
    "verify",
]
