"""The verbs: each takes a model and returns a new one, or refuses and says why."""

from graphmod.rewrite.extract import extract
from graphmod.rewrite.propose import Proposal, proposals, propose
from graphmod.rewrite.rebatch import rebatch
from graphmod.rewrite.region import Region, find_region
from graphmod.rewrite.remove import remove
from graphmod.rewrite.replace import replace
from graphmod.rewrite.verify import OutputError, Verification, verify

__all__ = [
    "OutputError",
    "Proposal",
    "Region",
    "Verification",
    "extract",
    "find_region",
    "proposals",
    "propose",
    "rebatch",
    "remove",
    "replace",
    "verify",
]
