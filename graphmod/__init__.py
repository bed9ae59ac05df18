"""graphmod: decompose, rewrite, compress and retrain trained networks through ONNX.

Everything public is reached from here; a part is imported when it is first used, so that what needs no PyTorch starts
without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphmod.errors import (
    GraphmodError,
    InvalidDataError,
    InvalidModelError,
    InvalidRecipeError,
    NotWritableError,
    RefusedError,
    UnsupportedOperatorError,
)
from graphmod.model import Model, load

if TYPE_CHECKING:
    from graphmod import data, demo, graph, methods, model, modules, probe, pruning, pytorch, report, rewrite, train
    from graphmod.data import Data, Splits
    from graphmod.graph import Block, Match, NearMiss, blocks, boundaries, explain, find
    from graphmod.methods import Result, compress, modular
    from graphmod.methods.adapt import adapt
    from graphmod.methods.criteria import Ranking, rank_blocks
    from graphmod.methods.repair import repair
    from graphmod.methods.reuse import Reengineered, reengineer
    from graphmod.modules import Module, ModuleMap, modularize
    from graphmod.probe import Similarity, accuracy, latency, similarity
    from graphmod.pruning import Group, Groups, groups, prune, restrict
    from graphmod.pytorch import to_torch, write_back
    from graphmod.rewrite import (
        Difference,
        Edit,
        Finding,
        Recipe,
        apply,
        collapse,
        compose,
        diff,
        duplicate,
        expose,
        extract,
        fuse,
        hide,
        inline,
        insert,
        lint,
        low_rank,
        mending,
        merge_weights,
        new_head,
        outline,
        pack,
        propose,
        quantize,
        rebatch,
        recalibrate,
        remove,
        rename,
        reorder,
        replace,
        retype,
        run_parts,
        simplify,
        split,
        unfuse,
        unpack,
        verify,
    )
    from graphmod.train import Imitation, Retrained, retrain, retrained

_HOME = {
    "Block": "graph",
    "Data": "data",
    "Difference": "rewrite",
    "Edit": "rewrite",
    "Finding": "rewrite",
    "Group": "pruning",
    "Groups": "pruning",
    "Imitation": "train",
    "Match": "graph",
    "Module": "modules",
    "ModuleMap": "modules",
    "NearMiss": "graph",
    "Ranking": "methods.criteria",
    "Recipe": "rewrite",
    "Result": "methods",
    "Retrained": "train",
    "Similarity": "probe",
    "Splits": "data",
    "accuracy": "probe",
    "adapt": "methods.adapt",
    "Reengineered": "methods.reuse",
    "reengineer": "methods.reuse",
    "apply": "rewrite",
    "blocks": "graph",
    "boundaries": "graph",
    "collapse": "rewrite",
    "compose": "rewrite",
    "compress": "methods",
    "diff": "rewrite",
    "duplicate": "rewrite",
    "explain": "graph",
    "expose": "rewrite",
    "extract": "rewrite",
    "find": "graph",
    "fuse": "rewrite",
    "groups": "pruning",
    "hide": "rewrite",
    "inline": "rewrite",
    "insert": "rewrite",
    "latency": "probe",
    "lint": "rewrite",
    "low_rank": "rewrite",
    "mending": "rewrite",
    "merge_weights": "rewrite",
    "new_head": "rewrite",
    "modularize": "modules",
    "outline": "rewrite",
    "pack": "rewrite",
    "propose": "rewrite",
    "prune": "pruning",
    "quantize": "rewrite",
    "rank_blocks": "methods.criteria",
    "rebatch": "rewrite",
    "recalibrate": "rewrite",
    "remove": "rewrite",
    "rename": "rewrite",
    "repair": "methods.repair",
    "reorder": "rewrite",
    "replace": "rewrite",
    "restrict": "pruning",
    "retrain": "train",
    "retrained": "train",
    "retype": "rewrite",
    "run_parts": "rewrite",
    "similarity": "probe",
    "simplify": "rewrite",
    "split": "rewrite",
    "to_torch": "pytorch",
    "unfuse": "rewrite",
    "unpack": "rewrite",
    "verify": "rewrite",
    "write_back": "pytorch",
}
_PARTS = {
    name: name
    for name in (
        "data",
        "demo",
        "graph",
        "methods",
        "model",
        "modules",
        "probe",
        "pruning",
        "pytorch",
        "report",
        "rewrite",
        "train",
    )
} | {"modular": "methods.modular"}


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"graphmod.{_PARTS[name]}")
    if name in _HOME:
        return getattr(import_module(f"graphmod.{_HOME[name]}"), name)
    raise AttributeError(f"module 'graphmod' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_PARTS})


__all__ = [
    "Block",
    "Data",
    "Difference",
    "Edit",
    "Finding",
    "GraphmodError",
    "Group",
    "Groups",
    "Imitation",
    "InvalidDataError",
    "InvalidModelError",
    "InvalidRecipeError",
    "Match",
    "Model",
    "Module",
    "ModuleMap",
    "NearMiss",
    "NotWritableError",
    "Ranking",
    "Recipe",
    "Reengineered",
    "RefusedError",
    "Result",
    "Retrained",
    "Similarity",
    "Splits",
    "UnsupportedOperatorError",
    "accuracy",
    "adapt",
    "apply",
    "blocks",
    "boundaries",
    "collapse",
    "compose",
    "compress",
    "data",
    "demo",
    "diff",
    "duplicate",
    "explain",
    "expose",
    "extract",
    "find",
    "fuse",
    "graph",
    "groups",
    "hide",
    "inline",
    "insert",
    "latency",
    "lint",
    "load",
    "low_rank",
    "mending",
    "merge_weights",
    "methods",
    "model",
    "modular",
    "modularize",
    "modules",
    "new_head",
    "outline",
    "pack",
    "probe",
    "propose",
    "prune",
    "pruning",
    "pytorch",
    "quantize",
    "rank_blocks",
    "rebatch",
    "recalibrate",
    "reengineer",
    "remove",
    "rename",
    "reorder",
    "repair",
    "replace",
    "report",
    "restrict",
    "retrain",
    "retrained",
    "retype",
    "rewrite",
    "run_parts",
    "similarity",
    "simplify",
    "split",
    "to_torch",
    "train",
    "unfuse",
    "unpack",
    "verify",
    "write_back",
]
