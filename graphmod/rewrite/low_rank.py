r"""Splitting linear layers and convolutions into two thinner ones.

A weight as a matrix :math:`W` with a row an output channel, and a column an input channel (of a convolution: an input
channel at a position of the kernel), is cut to the rank :math:`r` by its singular value decomposition,

.. math:: W \approx (U_r \Sigma_r^{1/2}) (\Sigma_r^{1/2} V_r^T), \qquad
    \lVert W - W_r \rVert_F^2 = \sum_{i > r} \sigma_i^2,

which no other matrix of that rank betters (Eckart & Young 1936). A linear layer becomes two, a convolution one with its
own kernel to :math:`r` channels and a 1x1 convolution (the channel decomposition of Zhang et al. 2016, "Accelerating
very deep convolutional networks", section 2.1, of the weight alone). The bias goes to the second.

The cut is found from the smaller of :math:`W W^T` and :math:`W^T W`, in double precision: its leading eigenvectors
:math:`U_r` alone are computed, and :math:`W_r = U_r (U_r^T W)` has no division by what may be small. Squaring costs
half of the digits of the singular values: those below about 1e-6 of the largest count as 0 where a rank is chosen by
energy, of which each holds 1e-12.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import NodeProto
from rich.console import Console
from rich.progress import track
from scipy.linalg import eigh

from graphmod.errors import RefusedError
from graphmod.graph import find
from graphmod.model import Model
from graphmod.rewrite.draft import Draft, shared_scope
from graphmod.rewrite.fusions.bench import Bench
from graphmod.rewrite.fusions.maps import Float, Map, read_map
from graphmod.rewrite.verb import verb

_LAYERS = ("Conv", "Gemm", "MatMul")

_TOLD = 3
"""Reasons that a refusal tells."""

_LONG = 5e9
"""Multiplications, of all the splits together, that take about longer than a second: more show a progress bar."""


@verb(exact=False, example="graphmod low-rank bert.onnx --where MatMul --energy 0.9 --out thinner.onnx")
def low_rank(model: Model, where: str = "*", rank: int | None = None, energy: float | None = None) -> Model:
    """Split linear layers and convolutions into two thinner ones, where that takes fewer weights.

    A weight is replaced by its best approximation of the rank, from the leading singular vectors: those of its smaller
    Gram matrix, in double precision, of which singular values below about 1e-6 of the largest count as 0. Where this
    takes longer than about a second, a terminal shows a progress bar.

    Parameters
    ----------
    model : Model
    where : str
        A selector of operators; MatMul and Gemm by constants and Conv without groups are split, others stay.
    rank : int, optional
        Channels between the two.
    energy : float, optional
        Instead of a rank: the share of the weight's squared singular values to keep, above 0, at most 1; each layer
        gets the least rank that does.

    Returns
    -------
    Model
        With the factors in place; layers that would not shrink are as they were.

    Raises
    ------
    RefusedError
        Neither or both of ``rank`` and ``energy`` are given, or one is out of range; or no layer would shrink (the
        message says by how much they would grow).

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> gm.low_rank(m, "Conv[scope=layer3]", energy=0.9).n_weights < m.n_weights
    True
    """
    _check(rank, energy)
    bench = Bench(Draft(model))
    chosen = {id(own): own for own in map(bench.draft.operator, _names(model, where)) if own.op_type in _LAYERS}
    split: dict[tuple[object, ...], _Split] = {}  # operators that share a weight share its factors
    needed: dict[tuple[str, str], str] = {}
    reasons: list[str] = []
    for operator in _shown(bench, chosen.values()):
        layer = _layer(bench, operator)
        if isinstance(layer, str):
            reasons.append(layer)
            continue
        weight = operator.input[1], operator.op_type
        if weight not in needed:
            needed[weight] = _why_stays(bench, operator, chosen)
        if needed[weight]:
            told = f"the weight '{weight[0]}' of {bench.told(operator)}"
            reasons.append(f"{told} would stay, as {needed[weight]}")
            continue
        attributes = bench.attributes(operator)
        key = (operator.input[1], operator.op_type, attributes.get("transB"), attributes.get("alpha"))
        if key not in split:
            found = _factors(layer, rank, energy)
            if isinstance(found, str):
                reasons.append(found)
                continue
            split[key] = _store(bench, layer, *found)
        _put_in_place(bench, layer, split[key])
    if not split:
        told = "; ".join(reasons[:_TOLD]) or "there is no Conv, Gemm or MatMul among these operators"
        rest = f"; and {len(reasons) - _TOLD} more" if len(reasons) > _TOLD else ""
        raise RefusedError(f"no layer that '{where}' picks would shrink: {told}{rest}")
    return bench.draft.finish()


def _check(rank: int | None, energy: float | None) -> None:
    if (rank is None) == (energy is None):
        raise RefusedError("give either a rank or an energy")
    if rank is not None and rank < 1:
        raise RefusedError(f"a rank of {rank} is none; it is at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise RefusedError(f"an energy of {energy} is no share above 0 and at most 1")


def _names(model: Model, where: str) -> list[str]:
    if where == "*":
        return list(model.operator_names)
    return list(dict.fromkeys(name for match in find(model, where) for name in match.operators))


def _shown(bench: Bench, layers: Iterable[NodeProto]) -> Iterable[NodeProto]:
    """Return the layers, with a progress bar as they are taken where they are long work and a terminal reads along."""
    layers = list(layers)
    console = Console(stderr=True)
    read = {own.input[1]: bench.held(own.input[1]) for own in layers}
    shapes = [held.shape for held in read.values() if held is not None and held.shape]
    work = sum(prod(shape) * min(shape[0], prod(shape[1:])) for shape in shapes)
    return track(layers, "low rank", console=console, disable=work < _LONG or not console.is_terminal, transient=True)


def _layer(bench: Bench, operator: NodeProto) -> Map | str:
    """Return an operator as a linear map that can be split, or why it is none."""
    told = bench.told(operator)
    layer = read_map(bench, operator)
    if isinstance(layer, str):
        return layer
    if layer.groups > 1:
        return f"{told} has {layer.groups} groups"
    return layer


def _why_stays(bench: Bench, operator: NodeProto, chosen: Container[int]) -> str:
    """Return what needs an operator's weight besides operators of its type that are split, "" if nothing does."""
    name = operator.input[1]
    others = [
        one
        for one in bench.draft.readers(name)
        if id(one) not in chosen or one.op_type != operator.op_type or one.input[1] != name
    ]
    while not others and (maker := bench.draft.producer(name)) is not None and maker.input:
        name = maker.input[0]  # a weight that is transposed or cast before it is used
        others = [one for one in bench.draft.readers(name) if one is not maker]
    if others:
        what = "it" if name == operator.input[1] else f"'{name}', of which it is made"
        return f"{bench.told(others[0])} reads {what}"
    return "it is an output of the model" if bench.is_output(name) else ""


def _factors(layer: Map, rank: int | None, energy: float | None) -> tuple[Float, Float] | str:
    """Return the two factors of a layer's weight, shapes (out, r) and (r, in * kernel); why they are not worth it."""
    told = layer.bench.told(layer.operator)
    matrix = layer.weight()[0].reshape(layer.n_out, -1)
    n_out, n_in = matrix.shape
    if not np.isfinite(matrix).all():
        return f"the weight of {told} is not finite"
    if (rank or 1) * (n_out + n_in) >= matrix.size:
        return _figures(told, rank or 1, matrix)
    wide = matrix if n_out <= n_in else matrix.T
    gram = wide @ wide.T
    if energy is not None:
        squares = eigh(gram, eigvals_only=True)[::-1]
        noise = len(squares) * np.finfo(np.float64).eps * squares[0]
        kept = np.cumsum(np.where(squares > noise, squares, 0))
        rank = min(int(np.searchsorted(kept, energy * kept[-1])) + 1, len(kept))
        if rank * (n_out + n_in) >= matrix.size:
            return _figures(told, rank, matrix)
    n_kept = rank or 1
    _, vectors = eigh(gram, subset_by_index=(len(gram) - n_kept, len(gram) - 1))
    rest = vectors.T @ wide
    root = np.sqrt(np.linalg.norm(rest, axis=1))
    root[root == 0] = 1
    left, right = vectors * root, rest / root[:, None]
    return (left, right) if wide is matrix else (right.T, left.T)


def _figures(told: str, rank: int, matrix: Float) -> str:
    return f"at rank {rank}, {told} would have {rank * sum(matrix.shape):,} weights instead of {matrix.size:,}"


@dataclass(frozen=True)
class _Split:
    """The names of the two factors of a weight."""

    first: str
    second: str


def _store(bench: Bench, layer: Map, second: Float, first: Float) -> _Split:
    """Add both factors to the graph in the layout that the layer's operators need."""
    name, dtype, rank = layer.operator.input[1], layer.held.dtype, len(first)
    if layer.is_dense:
        values = first.T, second.T
    else:
        kernel = layer.kernel
        values = first.reshape(rank, -1, *kernel), second.reshape(-1, rank, *(1,) * len(kernel))
    names = [
        bench.weight(f"{name}/{role}", value.astype(dtype))
        for role, value in zip(("first", "second"), values, strict=True)
    ]
    return _Split(*names)


def _put_in_place(bench: Bench, layer: Map, split: _Split) -> None:
    """Let a new operator read what the layer read, and the layer the new one."""
    operator = layer.operator
    made = bench.draft.unused(f"{operator.output[0]}/low_rank")
    first = NodeProto(op_type="MatMul", domain=operator.domain, input=[operator.input[0], split.first], output=[made])
    first.name = bench.draft.unused_operator(f"{operator.name or operator.output[0]}/low_rank")
    if not layer.is_dense:
        first.op_type = operator.op_type
        first.attribute.extend(operator.attribute)
        bench.set_attributes(
            operator, kernel_shape=[1] * len(layer.kernel), strides=None, pads=None, dilations=None, auto_pad=None
        )
    elif layer.op_type == "Gemm":
        bench.set_attributes(operator, transB=None, alpha=None)
    bench.draft.add([first], at=operator, scope=shared_scope([operator]))
    bench.draft.set_inputs(operator, [made, split.second, *operator.input[2:]])
