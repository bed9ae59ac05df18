"""Ensembles of decision trees of ai.onnx.ml: all samples walk through all trees at once, a level at a time.

The leaves' weights are parameters; thresholds are not, since nothing depends smoothly on them. Where the standard
leaves a choice, what ONNX Runtime computes is computed here.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from graphmod.pytorch.dtypes import to_tensor
from graphmod.pytorch.operator import Operator
from graphmod.pytorch.operators.machine_learning import DOMAIN, class_labels, labels_at, rows_of, stated
from graphmod.pytorch.operators.machine_learning_models import (
    TRANSFORMS,
    best,
    post_transform,
    transformed,
    with_first_class,
)
from graphmod.pytorch.registry import operator
from graphmod.pytorch.stand_ins import stand_in

Array = NDArray[Any]

TAKES: dict[str, tuple[bool, bool, bool]] = {
    "BRANCH_LEQ": (True, True, False),
    "BRANCH_LT": (True, False, False),
    "BRANCH_GTE": (False, True, True),
    "BRANCH_GT": (False, False, True),
    "BRANCH_EQ": (False, True, False),
    "BRANCH_NEQ": (True, False, True),
}
"""Whether a feature that is less than, equal to, or greater than the threshold goes the way of truth."""
MODES = (*TAKES, "BRANCH_MEMBER")
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")


class TreeEnsemble(nn.Module):
    """Adds up, averages, or takes the extreme of what the leaves say that a sample falls into.

    The importer brings ``weights``, and ``base`` or None.

    Parameters
    ----------
    features, thresholds : array of shape (n_nodes,)
        What a node compares.
    successors : array of shape (n_nodes, 4)
        Where a feature goes that is less than, equal to, greater than the threshold, or not a number. A leaf comes
        after itself.
    roots : array of shape (n_trees,)
        Their nodes.
    leaves, targets : array of shape (n_weights,)
        The node and the output that a weight belongs to.
    n_targets : int
    aggregate : str
        One of AVERAGE, SUM, MIN and MAX.
    """

    weights: Tensor
    base: Tensor | None
    features: Tensor
    thresholds: Tensor
    successors: Tensor
    roots: Tensor
    row: Tensor
    slots: Tensor

    def __init__(
        self,
        features: Array,
        thresholds: Array,
        successors: Array,
        roots: Array,
        leaves: Array,
        targets: Array,
        n_targets: int,
        aggregate: str,
    ) -> None:
        super().__init__()
        self.n_targets, self.aggregate = n_targets, aggregate
        self.depth = depth_of(successors, roots)
        self.register_buffer("features", to_tensor(features))
        self.register_buffer("thresholds", to_tensor(thresholds))
        self.register_buffer("successors", to_tensor(successors))
        self.register_buffer("roots", to_tensor(roots))
        is_leaf = (successors == np.arange(len(successors))[:, None]).all(1)
        row = np.argsort(np.argsort(~is_leaf, kind="stable"))
        slots = row[leaves] * n_targets + targets
        self.is_whole = np.array_equal(slots, np.arange(is_leaf.sum() * n_targets))
        self.register_buffer("row", to_tensor(row))
        self.register_buffer("slots", to_tensor(slots))

    def forward(self, x: Tensor) -> Tensor:
        """Return one column a target, in the precision of ``x`` or of the weights, whichever is higher."""
        x = x if x.is_floating_point() else x.float()
        node = self.roots.expand(len(x), -1)
        for _ in range(self.depth):
            value, threshold = x.gather(1, self.features[node]), self.thresholds[node]
            way = (value == threshold) + 2 * (value > threshold) + 3 * value.isnan()
            node = self.successors[node, way]
        made = self._aggregated(node, self.weights.to(torch.promote_types(x.dtype, self.weights.dtype)))
        return made if self.base is None else made + self.base

    def _aggregated(self, node: Tensor, weights: Tensor) -> Tensor:
        row = self.row[node]
        if self.aggregate in ("SUM", "AVERAGE"):
            return F.embedding_bag(row, self._table(weights, 0.0), mode="sum" if self.aggregate == "SUM" else "mean")
        sign = 1 if self.aggregate == "MAX" else -1
        extreme = F.embedding_bag(row, self._table(sign * weights, -torch.inf), mode="max")
        return torch.where(extreme == -torch.inf, 0.0, sign * extreme)

    def _table(self, weights: Tensor, empty: float) -> Tensor:
        """Return a row for every leaf: the weights as they are, where there is one for every leaf and target."""
        if self.is_whole:
            return weights.reshape(-1, self.n_targets)
        table = weights.new_full((len(self.features) * self.n_targets,), empty)
        made = table.index_put((self.slots,), weights) if empty else table.index_add(0, self.slots, weights)
        return made.reshape(-1, self.n_targets)

    def extra_repr(self) -> str:
        """Return the size."""
        return f"{len(self.roots)} trees, {len(self.features)} nodes, depth {self.depth}, {self.aggregate}"


def depth_of(successors: Array, roots: Array) -> int:
    """Return the number of comparisons on the longest way from a root to a leaf.

    Raises
    ------
    ValueError
        The nodes form a cycle.
    """
    level = np.unique(roots)
    for depth in range(len(successors)):
        level = level[(successors[level] != level[:, None]).any(1)]
        if not len(level):
            return depth
        level = np.unique(successors[level])
    raise ValueError("the nodes of a tree form a cycle")


def _successors(mode: str, missing: bool, truth: int, falsehood: int) -> list[int]:
    takes = (*TAKES[mode], missing or mode == "BRANCH_NEQ")
    return [truth if taken else falsehood for taken in takes]


def _ensemble(op: Operator, what: str, n_targets: int, aggregate: str) -> tuple[TreeEnsemble, Array]:
    """Return the module of an operator that lists nodes by tree and number, and its weights."""
    trees: list[int] = op.attribute("nodes_treeids", [])
    numbers: list[int] = op.attribute("nodes_nodeids", [])
    truths: list[int] = op.attribute("nodes_truenodeids", [])
    falsehoods: list[int] = op.attribute("nodes_falsenodeids", [])
    features: list[int] = op.attribute("nodes_featureids", [])
    modes: list[str] = op.attribute("nodes_modes", [])
    missing = op.attribute("nodes_missing_value_tracks_true", list[int]()) or [0] * len(trees)
    op.ignore("nodes_hitrates", "nodes_hitrates_as_tensor")
    place = {key: index for index, key in enumerate(zip(trees, numbers, strict=True))}
    successors: list[list[int]] = []
    below: set[int] = set()
    for index, (tree, mode) in enumerate(zip(trees, modes, strict=True)):
        if mode == "LEAF":
            successors.append([index] * 4)
            continue
        if mode not in TAKES:
            raise op.unsupported(f"nodes_modes {mode} is none that there is")
        children = place[tree, truths[index]], place[tree, falsehoods[index]]
        below.update(children)
        successors.append(_successors(mode, bool(missing[index]), *children))
    roots = {tree: index for index, tree in reversed(list(enumerate(trees))) if index not in below}
    at_tree: list[int] = op.attribute(f"{what}_treeids", [])
    at_node: list[int] = op.attribute(f"{what}_nodeids", [])
    module = TreeEnsemble(
        np.array(features, np.int64),
        _numbers(op, "nodes_values"),
        np.array(successors, np.int64),
        np.array(sorted(roots.values()), np.int64),
        np.array([place[key] for key in zip(at_tree, at_node, strict=True)], np.int64),
        np.array(op.attribute(f"{what}_ids", []), np.int64),
        n_targets,
        aggregate,
    )
    return module, _numbers(op, f"{what}_weights")


def _numbers(op: Operator, name: str) -> Array:
    """Return numbers that are in one of two attributes, in their precision."""
    tensor: TensorProto | None = op.attribute(f"{name}_as_tensor", None)
    floats: list[float] = op.attribute(name, [])
    return np.array(floats, np.float32) if tensor is None else numpy_helper.to_array(tensor)


def _call(op: Operator, module: TreeEnsemble, weights: str, base: str) -> fx.Node:
    found = {
        slot: op.attribute_weight(name) or op.attribute_weight(f"{name}_as_tensor")
        for slot, name in (("weights", weights), ("base", base))
    }
    if found["weights"] is None:
        raise op.unsupported("its leaves have no weights")
    made = op.module(module, op.input(), **found)
    return op.method("float", made) if op.dtype() == np.float64 else made


@stand_in("TreeEnsembleRegressor", domain=DOMAIN)
def _targets(proto: NodeProto) -> list[NodeProto]:
    return rows_of(proto, stated(proto, "n_targets", 1))


@stand_in("TreeEnsembleClassifier", domain=DOMAIN)
def _classes(proto: NodeProto) -> list[NodeProto]:
    names = stated(proto, "classlabels_strings", [])
    labels, place = proto.output[0], f"{proto.output[0]}/place"
    to = TensorProto.STRING if names else TensorProto.INT64
    n = max(len(names or stated(proto, "classlabels_int64s", [])), 1)
    return [
        helper.make_node("ArgMax", [proto.input[0]], [place], axis=1, keepdims=0),
        helper.make_node("Cast", [place], [labels], to=to),
        *(rows_of(proto, n, output=1) if len(proto.output) > 1 else []),
    ]


@operator("TreeEnsembleRegressor", domain=DOMAIN)
def tree_regressor(op: Operator) -> fx.Node:
    """Convert TreeEnsembleRegressor."""
    module, _ = _ensemble(op, "target", op.attribute("n_targets", 1), op.attribute("aggregate_function", "SUM"))
    return _transformed(op, _call(op, module, "target_weights", "base_values"), post_transform(op))


def _transformed(op: Operator, scores: fx.Node, transform: str) -> fx.Node:
    return scores if transform == "NONE" else op.call(transformed, scores, transform)


@operator("TreeEnsembleClassifier", domain=DOMAIN)
def tree_classifier(op: Operator) -> tuple[fx.Node, ...]:
    """Convert TreeEnsembleClassifier.

    Where all weights belong to the first of two classes, they speak for the second: then a score, which is a
    probability unless some weights are negative, decides.
    """
    labels, transform = class_labels(op, "classlabels_int64s", "classlabels_strings"), post_transform(op)
    ids, n_base = set(op.attribute("class_ids", list[int]())), len(_numbers(op, "base_values"))
    single = len(labels) <= 2 and len(ids) == 1
    if not labels or n_base not in (0, 1 if single and ids == {0} else len(labels)) or (ids == {1} and n_base):
        raise op.unsupported(f"{n_base} base values for {len(labels)} labels mean nothing certain")
    module, weights = _ensemble(op, "class", 1 if single and ids == {0} else len(labels), "SUM")
    scores = _call(op, module, "class_weights", "base_values")
    if not single:
        return op.call(labels_at, op.call(best, scores), labels), _transformed(op, scores, transform)
    positive = bool((weights >= 0).all())
    if len(labels) == 1:
        if isinstance(labels[0], str):
            raise op.unsupported("a single label that is a string has no opposite")
        return op.call(labels_at, op.call(best, scores), [0, 1]), _transformed(op, scores, transform)
    label = op.call(labels_at, op.call(last_above, scores, 0.5 if positive else 0.0), labels)
    if ids == {1}:
        return label, _transformed(op, scores, transform)
    return label, op.call(with_first_class, scores, transform, positive and transform != "LOGISTIC")


def last_above(scores: Tensor, enough: float) -> Tensor:
    """Return 1 where the last score is more than enough, else 0."""
    return (scores[:, -1] > enough).long()


@operator("TreeEnsemble", since=5, domain=DOMAIN)
def tree_ensemble(op: Operator) -> fx.Node:
    """Convert TreeEnsemble, whose leaves are apart from its nodes; testing for members is testing one by one."""
    op.ignore("nodes_hitrates")
    splits = _tensor(op, "nodes_splits")
    truths, falsehoods = _children(op, "true", len(splits)), _children(op, "false", len(splits))
    missing = op.attribute("nodes_missing_value_tracks_true", list[int]()) or [0] * len(splits)
    targets: list[int] = op.attribute("leaf_targetids", [])
    features: list[int] = op.attribute("nodes_featureids", [])
    leaves = range(len(splits), len(splits) + len(targets))
    thresholds, successors = [*splits, *[0] * len(targets)], [[0] * 4] * len(splits) + [[leaf] * 4 for leaf in leaves]
    features = [*features, *[0] * len(targets)]
    members = iter(_sets(_tensor(op, "membership_values")))
    for index, mode in enumerate(_tensor(op, "nodes_modes").tolist()):
        ways = bool(missing[index]), truths[index], falsehoods[index]
        if MODES[mode] != "BRANCH_MEMBER":
            successors[index] = _successors(MODES[mode], *ways)
            continue
        first, *others = next(members)
        chain = [index, *range(len(features), len(features) + len(others))]
        features += [features[index]] * len(others)
        thresholds[index] = first
        thresholds += others
        successors += [[]] * len(others)
        for here, after in pairwise([*chain, falsehoods[index]]):
            successors[here] = _successors("BRANCH_EQ", ways[0], truths[index], after)
    module = TreeEnsemble(
        np.array(features, np.int64),
        np.array(thresholds, splits.dtype),
        np.array(successors, np.int64),
        np.array(op.attribute("tree_roots", []), np.int64),
        np.array(leaves, np.int64),
        np.array(targets, np.int64),
        op.attribute("n_targets", 1),
        AGGREGATES[op.attribute("aggregate_function", 1)],
    )
    made = op.module(module, op.input(), weights=op.attribute_weight("leaf_weights"), base=None)
    return _transformed(op, made, TRANSFORMS[op.attribute("post_transform", 0)])


def _tensor(op: Operator, name: str) -> Array:
    tensor: TensorProto | None = op.attribute(name, None)
    return np.zeros(0, np.float32) if tensor is None else numpy_helper.to_array(tensor)


def _children(op: Operator, side: str, n_nodes: int) -> list[int]:
    """Return the node, or the leaf, that comes after every node on one side; leaves come after nodes."""
    indices: list[int] = op.attribute(f"nodes_{side}nodeids", [])
    are_leaves: list[int] = op.attribute(f"nodes_{side}leafs", [])
    return [index + n_nodes * bool(is_leaf) for index, is_leaf in zip(indices, are_leaves, strict=True)]


def _sets(values: Array) -> list[list[float]]:
    """Return the sets of members, which not-a-numbers separate."""
    ends = np.flatnonzero(np.isnan(values))
    return [part[~np.isnan(part)].tolist() for part in np.split(values, ends + 1)[: len(ends)]]
