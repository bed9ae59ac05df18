r"""Collapsing similar blocks in a row into one.

Blocks are similar if they are wired alike, from exit to entry: the same operators with the same attributes, and weights
of the same shapes. Their weights :math:`\theta_0, \ldots, \theta_m` are merged by one of three rules.

``residual`` averages them all, but adds up those of the linear maps whose output is added to the trunk. The residual
blocks :math:`x + W_j g(x; \phi_j)` add :math:`\sum_j W_j g(x; \phi_j)` to it as long as :math:`x` changes little, and

.. math:: \sum_j W_j g(x; \phi_j) = \Big(\sum_j W_j\Big) g\Big(x; \frac{1}{m + 1} \sum_j \phi_j\Big) + O(\delta^2)

where weights differ by :math:`\delta` from their mean: the terms of first order cancel. ``differences`` is the rule of
LaCo (Yang et al. 2024, "LaCo: Large language model pruning via layer collapse"),

.. math:: \theta = \theta_0 + \sum_{j=1}^m (\theta_j - \theta_0),

which for two blocks is the second one. ``average`` is the mean.

BatchNormalizations are merged as the scale and shift that they are in inference, so that no variance becomes negative;
with data, mean and variance are then measured anew on what the merged block passes to them, as in REPAIR (Jordan et al.
2023). What error remains is corrected by a linear map behind the block, fitted in closed form to the exit of the last
block (:mod:`graphmod.rewrite.replacements`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto

from graphmod.data import Data
from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.probe import moments
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.fusions.bench import Array, Bench
from graphmod.rewrite.fusions.maps import Map, read_map, read_map_of
from graphmod.rewrite.parts import known_type
from graphmod.rewrite.region import Place, Region, check_passes_through, find_regions, inside, put_in_place
from graphmod.rewrite.replacements import RIDGE, as_operators, fit
from graphmod.rewrite.verb import Samples, verb

Float = NDArray[np.float64]
Merge = Callable[[Sequence[Float]], Float]


def _differences(values: Sequence[Float]) -> Float:
    first, *others = values
    return np.asarray(first + sum(other - first for other in others))


def _average(values: Sequence[Float]) -> Float:
    return _sum(values) / len(values)


def _sum(values: Sequence[Float]) -> Float:
    return np.asarray(sum(values))


_RULES: dict[str, tuple[Merge, Merge]] = {
    "residual": (_average, _sum),
    "differences": (_differences, _differences),
    "average": (_average, _average),
}
"""By method, how weights are merged, and how those that are added to the trunk are."""


@verb(exact=False, example="graphmod collapse resnet.onnx layer3.1 layer3.2 --data images/ --out shorter.onnx")
def collapse(
    model: Model,
    blocks: list[Place],
    data: Samples = None,
    method: Literal["residual", "differences", "average"] = "residual",
    correction: Literal["linear", "affine", "none"] = "linear",
    ridge: float = RIDGE,
) -> Model:
    """Collapse similar blocks that follow each other into one, by merging their weights.

    Blocks that were not trained to be alike may lose less where one of them is kept and ``replace`` fits a layer in the
    place of the others; ``verify`` tells.

    Parameters
    ----------
    model : Model
    blocks : list of Block, str or (str, str)
        Two or more blocks, their paths, or pairs of tensors; a selector gives all of its matches.
    data : anything that :func:`graphmod.data.as_data` takes, optional
        Samples on which normalizations are calibrated and the correction is fitted; targets are not used.
    method : {"residual", "differences", "average"}
        How weights are merged: averaged, with those that are added to the trunk added up; the first block's plus how
        the others differ from it (LaCo); or averaged.
    correction : {"linear", "affine", "none"}
        What follows the merged block, if there are data: a linear map of channels, one number a channel, or nothing.
    ridge : float
        Share of the mean variance of a channel.

    Returns
    -------
    Model
        The merged block has the operators and names of the first.

    Raises
    ------
    RefusedError
        There are not two such blocks in a row, they differ (the message says where), a tensor inside of them is needed
        elsewhere, or the correction cannot be fitted.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> shorter = gm.collapse(m, ["layer1.2", "layer1.3"], gm.demo.splits().train)
    >>> len(shorter.operators) < len(m.operators)
    True
    """
    if method not in _RULES:
        raise RefusedError(f"there is no method '{method}'; choose one of {', '.join(map(repr, _RULES))}")
    if correction not in ("linear", "affine", "none"):
        raise RefusedError(f"there is no correction '{correction}'; choose 'linear', 'affine' or 'none'")
    regions = _in_a_row(model, [region for place in blocks for region in find_regions(model, place)])
    rest = Region(regions[0].exit, regions[-1].exit)
    draft = Draft(model)
    _check_private(draft, regions)
    alike = [_compare(draft, regions[0], other) for other in regions[1:]]
    norms = _merge(Bench(draft), alike, *_RULES[method])
    merged = draft.finish()
    if data is None:
        return put_in_place(merged, rest, [])
    for name in norms:
        merged = _calibrate(merged, rest, name, data)
    shorter = put_in_place(merged, rest, [])
    if correction == "none":
        return shorter
    return _corrected(model, merged, shorter, rest, data, correction, ridge)


# -- which blocks


def _in_a_row(model: Model, found: Sequence[Region]) -> list[Region]:
    """Return regions in the order in which data run through them."""
    if len(found) < 2:
        told = "1 block" if len(found) == 1 else f"{len(found)} blocks"
        raise RefusedError(f"{told} cannot be collapsed into one; name two or more in a row")
    by_entry = {region.entry: region for region in found}
    followers = {region.exit for region in found}
    first = [region for region in found if region.entry not in followers]
    if len(first) != 1 or len(by_entry) != len(found):
        told = ", ".join(f"'{region.entry}' to '{region.exit}'" for region in found)
        raise RefusedError(f"the blocks do not follow each other: {told}")
    chain = first
    while chain[-1].exit in by_entry:
        chain.append(by_entry[chain[-1].exit])
    for region in chain[1:]:
        check_passes_through(model, region)
    return chain


def _check_private(draft: Draft, regions: Sequence[Region]) -> None:
    """Raise RefusedError if something else needs a tensor whose value the collapse changes or takes away."""
    known = {id(operator): operator for region in regions for operator in inside(draft, region)}
    outputs = set(draft.outputs)
    for tensor in (name for operator in known.values() for name in operator.output if name != regions[-1].exit):
        others = [one for one in draft.readers(tensor) if id(one) not in known]
        if others or tensor in outputs:
            what = f"{others[0].op_type} '{others[0].name}' reads it" if others else "it is an output of the model"
            raise RefusedError(f"'{tensor}' lies inside of the blocks, and {what}")


# -- how they correspond


@dataclass
class _Alike:
    """What of one block is what of another: constants by name, and the operators of the first."""

    constants: dict[str, str] = field(default_factory=dict)
    operators: dict[int, tuple[NodeProto, NodeProto]] = field(default_factory=dict)


def _compare(draft: Draft, a: Region, b: Region) -> _Alike:
    """Walk two blocks side by side from exit to entry.

    Raises
    ------
    RefusedError
        They differ; the message says where.
    """
    found = _Alike()
    partner: dict[str, str] = {}
    pending = [(a.exit, b.exit)]
    while pending:
        left, right = pending.pop()
        if partner.setdefault(left, right) != right or (left == a.entry) != (right == b.entry):
            raise RefusedError(
                f"the blocks are wired differently: '{left}' is '{right}' in one place and not in another"
            )
        if left == a.entry:
            continue
        values = draft.constant(left), draft.constant(right)
        if values[0] is not None and values[1] is not None:
            _check_constants(left, right, values[0], values[1])
            found.constants[left] = right
            continue
        if left == right:
            continue
        first, second = draft.producer(left), draft.producer(right)
        if first is None or second is None:
            raise RefusedError(f"the blocks differ: one reads '{left}' where the other reads '{right}'")
        _check_operators(first, second, left, right)
        if id(first) not in found.operators:
            found.operators[id(first)] = first, second
            pending += [pair for pair in zip(first.input, second.input, strict=True) if pair[0]]
    return found


def _check_constants(left: str, right: str, a: Array, b: Array) -> None:
    if a.shape != b.shape or a.dtype != b.dtype:
        told = f"'{left}' is {a.dtype}{list(a.shape)} and '{right}' {b.dtype}{list(b.shape)}"
        raise RefusedError(f"the blocks differ: {told}")
    if not _is_float(a) and not np.array_equal(a, b):
        raise RefusedError(f"the blocks differ: the constants '{left}' and '{right}', which cannot be merged")


def _is_float(value: Array) -> bool:
    return value.dtype.kind == "f" or value.dtype.name == "bfloat16"


def _check_operators(a: NodeProto, b: NodeProto, left: str, right: str) -> None:
    told = f"{a.op_type} '{a.name}' and {b.op_type} '{b.name}'"
    if (a.op_type, a.domain) != (b.op_type, b.domain):
        raise RefusedError(f"the blocks differ: {told}")
    first, second = _attributes(a), _attributes(b)
    differing = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    if differing:
        raise RefusedError(f"the blocks differ: {told} in '{differing[0]}'")
    same_inputs = [bool(name) for name in a.input] == [bool(name) for name in b.input]
    if not same_inputs or list(a.output).index(left) != list(b.output).index(right):
        raise RefusedError(f"the blocks are wired differently: {told}")


def _attributes(operator: NodeProto) -> dict[str, bytes]:
    found = {}
    for attribute in operator.attribute:
        bare = AttributeProto.FromString(attribute.SerializeToString())
        bare.ClearField("doc_string")
        found[attribute.name] = bare.SerializeToString(deterministic=True)
    return found


# -- merging


def _merge(bench: Bench, alike: Sequence[_Alike], rule: Merge, rule_of_added: Merge) -> list[str]:
    """Give the first block the merged weights, and return what its BatchNormalizations read, in order."""
    first = alike[0]
    # each block's statistics must be read before a weight changes: blocks may share some
    norms = [maps for key in first.operators if (maps := _norms(bench, [one.operators[key] for one in alike]))]
    affine = [([one.weight() for one in maps], [_bias(one) for one in maps]) for maps in norms]
    of_norms = {name for maps in norms for name in maps[0].operator.input[1:5]}
    added = set(_added(bench, first))
    values = [(name, list(_values(bench.draft, name, alike))) for name in first.constants if name not in of_norms]
    readers = [pair[0] for pair in first.operators.values()]
    for name, held in values:
        if _is_float(held[0]) and (name in added or any(not np.array_equal(held[0], other) for other in held[1:])):
            merged = (rule_of_added if name in added else rule)([value.astype(np.float64) for value in held])
            _set(bench.draft, name, merged.astype(held[0].dtype), readers)
    for maps, (weights, biases) in zip(norms, affine, strict=True):
        one = rule_of_added if maps[0].operator.input[1] in added else rule
        maps[0].store(one(weights), one(biases))
    order = {id(operator): place for place, operator in enumerate(bench.draft.operators)}
    norms.sort(key=lambda maps: order[id(maps[0].operator)])
    return [maps[0].operator.output[0] for maps in norms]


def _added(bench: Bench, block: _Alike) -> Iterator[str]:
    """Yield the constants of linear maps whose output is added to what is no linear map's: to the trunk."""
    for operator in (pair[0] for pair in block.operators.values() if pair[0].op_type in ("Add", "Sum")):
        maps = [read_map_of(bench, name) for name in operator.input]
        trunk = [name for name, one in zip(operator.input, maps, strict=True) if isinstance(one, str)]
        if any(bench.constant(name) is None for name in trunk):
            for one in (one for one in maps if isinstance(one, Map)):
                yield from (name for part in one.operators for name in part.input if name in block.constants)


def _norms(bench: Bench, pairs: Sequence[tuple[NodeProto, NodeProto]]) -> list[Map]:
    """Return the maps that are one BatchNormalization in every block, none for other operators."""
    operators = [pairs[0][0], *(second for _, second in pairs)]
    if operators[0].op_type != "BatchNormalization":
        return []
    found = [read_map(bench, operator) for operator in operators]
    for one in found:
        if isinstance(one, str):
            raise RefusedError(f"{one}, so it cannot be merged")
    return [one for one in found if isinstance(one, Map)]


def _bias(one: Map) -> Float:
    bias = one.bias()
    return np.zeros(one.n_out) if bias is None else bias


def _values(draft: Draft, name: str, alike: Sequence[_Alike]) -> Iterator[Array]:
    """Yield a constant's values in all blocks; what a block shares with the first has the first's."""
    for key in (name, *(one.constants.get(name, name) for one in alike)):
        value = draft.constant(key)
        assert value is not None
        yield value


def _set(draft: Draft, name: str, value: Array, readers: Sequence[NodeProto]) -> None:
    """Give a constant another value for some operators; others that need it keep the old one."""
    own = {id(operator) for operator in readers}
    inside = [one for one in draft.readers(name) if id(one) in own]
    is_private = len(inside) == len(draft.readers(name)) and name not in draft.outputs
    if is_private and name in draft.model.initializers:
        draft.set_initializer(name, value)
    else:
        draft.redirect(name, draft.weight(f"{name}/merged", value), inside)


# -- fitting


def _calibrate(merged: Model, rest: Region, normed: str, data: Data) -> Model:
    """Give a BatchNormalization the mean and variance of what it reads once the other blocks are gone."""
    bench = Bench(Draft(merged))
    operator = bench.draft.producer(normed)
    assert operator is not None
    read = operator.input[0]
    seen = moments(put_in_place(merged, rest, []), data, [(read, read)], axis=1)[read, read]
    mean = seen.x_sum / seen.n
    variance = np.maximum(np.diag(seen.xx) / seen.n - mean**2, 0)
    if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        raise RefusedError(f"activations at '{read}' are not finite, so nothing can be calibrated")
    for place, value in ((3, mean), (4, variance)):
        held = bench.held(operator.input[place])
        assert held is not None
        name = bench.store(operator.input[place], value.astype(held.dtype), operator)
        bench.set_input(operator, place, name)
    return bench.draft.finish()


def _corrected(model: Model, merged: Model, shorter: Model, rest: Region, data: Data, kind: str, ridge: float) -> Model:
    """Return the merged model with a linear map in the place of the other blocks."""
    seen = moments(shorter, data, [(rest.entry, rest.exit)], reference=model).get((rest.entry, rest.exit))
    sums = () if seen is None else (seen.xx, seen.xy, seen.yy)
    if seen is None or not all(np.isfinite(value).all() for value in sums):
        raise RefusedError(
            f"no linear map fits between '{rest.entry}' and '{rest.exit}': shapes differ, channels lie on different "
            "axes, or values are not finite; choose no correction"
        )
    found = fit(kind, seen, ridge)
    if found is None:
        raise RefusedError(f"no {kind} map fits between '{rest.entry}' and '{rest.exit}'")
    return put_in_place(merged, rest, *as_operators(found, rest, known_type(model, rest.exit)))
