"""Linear models and support vector machines of ai.onnx.ml, with their coefficients as parameters.

Where the standard leaves a choice, what ONNX Runtime computes is computed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from onnx import NodeProto
from torch import Tensor, fx, nn

from graphmod.pytorch.binding import Weight
from graphmod.pytorch.operator import Operator
from graphmod.pytorch.operators.machine_learning import DOMAIN, as_float, class_labels, labels_at, rows_of, stated
from graphmod.pytorch.registry import operator
from graphmod.pytorch.stand_ins import stand_in

TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def post_transform(op: Operator) -> str:
    """Return the name of the function that scores go through in the end."""
    name = op.attribute("post_transform", "NONE")
    if name not in TRANSFORMS:
        raise op.unsupported(f"post_transform {name} is none that there is")
    return name


def transformed(scores: Tensor, transform: str) -> Tensor:
    """Return scores as the operator hands them out; a single one a row is changed by the probit function alone."""
    if transform == "PROBIT":
        return probit(scores)
    if scores.shape[-1] == 1 or transform == "NONE":
        return scores
    if transform == "LOGISTIC":
        return scores.sigmoid()
    return scores.softmax(-1) if transform == "SOFTMAX" else softmax_zero(scores)


def softmax_zero(scores: Tensor) -> Tensor:
    """Softmax in which scores of zero stay zero."""
    largest = scores.amax(-1, keepdim=True)
    powers = torch.where(scores.abs() > 1e-7, (scores - largest).exp(), scores * (-largest).exp())
    return powers / powers.sum(-1, keepdim=True)


def probit(p: Tensor) -> Tensor:
    """Quantile of the normal distribution, by Winitzki's approximation (2008) as ONNX Runtime has it."""
    x = 2 * p - 1
    logarithm = torch.log1p(-x * x)
    half = 2 / (math.pi * 0.147) + 0.5 * logarithm
    root = (half * half - logarithm / 0.147).sqrt()
    square = torch.where(half > 0, -logarithm / 0.147 / (root + half), root - half)  # without cancellation
    middle = square == 0  # where a square root has no slope
    return math.sqrt(2) * x.sign() * torch.where(middle, 0.0, torch.where(middle, 1.0, square).sqrt())


def with_first_class(score: Tensor, transform: str, complement: bool) -> Tensor:
    """Return the scores of two classes, made from the second one's: they add up to one, or to zero."""
    if complement or transform == "PROBIT":
        return transformed(torch.cat([1 - score, score], -1), transform if transform == "PROBIT" else "NONE")
    both = torch.cat([-score, score], -1)
    return both.sigmoid() if transform == "LOGISTIC" else both


@stand_in("LinearRegressor", "SVMRegressor", domain=DOMAIN)
def _scores(proto: NodeProto) -> list[NodeProto]:
    return rows_of(proto, stated(proto, "targets", 1))


@operator("LinearRegressor", domain=DOMAIN)
def linear_regressor(op: Operator) -> fx.Node:
    """Convert LinearRegressor: a linear layer."""
    scores = _linear(op, op.attribute("targets", 1))
    transform = post_transform(op)
    return scores if transform == "NONE" else op.call(transformed, scores, transform)


def _linear(op: Operator, n: int) -> fx.Node:
    weight = op.attribute_weight("coefficients", (n, -1))
    if weight is None:
        raise op.unsupported("it needs coefficients")
    bias = op.attribute_weight("intercepts")
    if bias is not None and bias.shape != (n,):
        raise op.unsupported(f"it has {bias.shape[0]} intercepts for {n} rows of coefficients")
    module = nn.Linear(weight.shape[1], n, bias=bias is not None, device="meta")
    return op.module(module, as_float(op), weight=weight, bias=bias)


@operator("LinearClassifier", domain=DOMAIN)
def linear_classifier(op: Operator) -> tuple[fx.Node, ...]:
    """Convert LinearClassifier: a linear layer, the label of its largest output, and scores made from the outputs."""
    op.ignore("multi_class")
    labels = class_labels(op, "classlabels_ints", "classlabels_strings")
    intercepts: list[float] = op.attribute("intercepts", [])
    n = len(intercepts) or len(labels)
    if not labels or len(labels) != max(n, 2):
        raise op.unsupported(f"it has {len(labels)} labels for {n} rows of coefficients")
    scores, transform = _linear(op, n), post_transform(op)
    label = op.call(labels_at, op.call(best, scores), labels)
    if n == 1:
        return label, op.call(with_first_class, scores, transform, transform != "LOGISTIC")
    return label, op.call(transformed, scores, transform)


def best(scores: Tensor) -> Tensor:
    """Return the position of the largest score; of a single one, whether it is positive."""
    return scores.argmax(-1) if scores.shape[-1] > 1 else (scores[..., 0] > 0).long()


@dataclass(frozen=True)
class Kernel:
    """How similar samples are to support vectors.

    Parameters
    ----------
    kind : str
        LINEAR, POLY, RBF or SIGMOID.
    gamma, offset, degree : float
        What the kernel is made with.
    """

    kind: str
    gamma: float = 0.0
    offset: float = 0.0
    degree: float = 0.0

    def __call__(self, x: Tensor, vectors: Tensor) -> Tensor:
        """Return one column for every support vector."""
        if self.kind == "RBF":
            distance = torch.cdist(x, vectors, compute_mode="donot_use_mm_for_euclid_dist")
            return (-self.gamma * distance.square()).exp()
        product = x @ vectors.t()
        if self.kind == "LINEAR":
            return product
        product = self.gamma * product + self.offset
        return product**self.degree if self.kind == "POLY" else product.tanh()


class SupportVectorMachine(nn.Module):
    """Sums over support vectors, or over features where there are none, each with a coefficient.

    The importer brings the weights: ``vectors`` or None, ``coefficients`` with one row for every sum, ``rho``.

    Parameters
    ----------
    kernel : Kernel
    """

    vectors: Tensor | None
    coefficients: Tensor
    rho: Tensor

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Any:
        """Return one score for every row of coefficients."""
        return self.similarity(x) @ self.coefficients.t() + self.rho[0]

    def similarity(self, x: Tensor) -> Tensor:
        """Return how similar samples are to the support vectors, if there are any."""
        return x if self.vectors is None else self.kernel(x, self.vectors)

    def extra_repr(self) -> str:
        """Return the kernel."""
        return str(self.kernel)


class PairwiseMachine(SupportVectorMachine):
    """A machine for every pair of classes; all share the support vectors.

    ``slope`` and ``intercept``, one for every pair, make probabilities of scores, where they are not None.

    Parameters
    ----------
    kernel : Kernel
    sizes : list of int
        How many support vectors every class has.
    """

    slope: Tensor | None
    intercept: Tensor | None
    rows: Tensor
    used: Tensor
    pairs: Tensor

    def __init__(self, kernel: Kernel, sizes: list[int]) -> None:
        super().__init__(kernel)
        self.n = len(sizes)
        owner = torch.arange(self.n).repeat_interleave(torch.tensor(sizes))
        first, second = pairs = torch.triu_indices(self.n, self.n, 1)
        of_first, of_second = owner == first[:, None], owner == second[:, None]
        self.register_buffer("rows", torch.where(of_first, second[:, None] - 1, first[:, None]))
        self.register_buffer("used", of_first | of_second)
        self.register_buffer("pairs", pairs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of pairs or the probabilities of classes, and the class that wins most pairs."""
        scores = self.similarity(x) @ (self.coefficients.gather(0, self.rows) * self.used).t() + self.rho
        first, second = self.pairs
        winners = torch.where(scores > 0, first, second)
        votes = scores.new_zeros(len(x), self.n).scatter_add(1, winners, torch.ones_like(scores))
        if self.slope is None or self.intercept is None:
            return scores, votes.argmax(-1)
        chances = (-(scores * self.slope + self.intercept)).sigmoid().clamp(1e-7, 1 - 1e-7)
        return coupled(chances, self.pairs, self.n), votes.argmax(-1)


def coupled(chances: Tensor, pairs: Tensor, n: int) -> Tensor:
    """Return probabilities of ``n`` classes from those of the first class of pairs.

    As in LIBSVM: Wu, Lin and Weng, Probability estimates for multi-class classification by pairwise coupling (2004),
    algorithm 2, with its rule for when to stop.
    """
    (first, second), rows = pairs, torch.arange(len(chances), device=chances.device)[:, None]
    table = chances.new_zeros(len(chances), n, n).index_put((rows, first, second), chances)
    table = table.index_put((rows, second, first), 1 - chances)
    matrix = torch.diag_embed(table.square().sum(1)) - table * table.mT
    p = chances.new_full((len(chances), n), 1 / n)
    for _ in range(max(100, n)):
        product = (matrix @ p[..., None])[..., 0]
        total = (p * product).sum(-1, keepdim=True)
        going = (product - total).abs().amax(-1, keepdim=True) >= 0.005 / n
        if not going.any():
            break
        p = torch.where(going, _swept(p, product, total, matrix), p)
    return p


def _swept(p: Tensor, product: Tensor, total: Tensor, matrix: Tensor) -> Tensor:
    """Return the probabilities after every class in turn has been brought closer to where it has to be."""
    for t, unit in enumerate(torch.eye(p.shape[1], dtype=p.dtype, device=p.device)):
        weight = matrix[:, t, t, None]
        step = (total - product[:, t, None]) / weight
        total = (total + step * (step * weight + 2 * product[:, t, None])) / (1 + step) ** 2
        product = (product + step * matrix[:, t]) / (1 + step)
        p = (p + step * unit) / (1 + step)
    return p


def _machine(op: Operator, n_vectors: int, n_rows: int) -> tuple[Kernel, dict[str, Weight | None]]:
    """Return the kernel and the weights that all machines have."""
    kernel = Kernel(op.attribute("kernel_type", "LINEAR"), *op.attribute("kernel_params", []))
    op.ignore("support_vectors")
    weights = {
        "vectors": op.attribute_weight("support_vectors", (n_vectors, -1)) if n_vectors else None,
        "coefficients": op.attribute_weight("coefficients", (n_rows, -1)),
        "rho": op.attribute_weight("rho"),
    }
    if weights["coefficients"] is None or weights["rho"] is None or (n_vectors and weights["vectors"] is None):
        raise op.unsupported("it needs coefficients, rho, and as many support vectors as it says")
    return kernel, weights


@operator("SVMRegressor", domain=DOMAIN)
def svm_regressor(op: Operator) -> fx.Node:
    """Convert SVMRegressor; ONNX Runtime does not look at its post_transform."""
    op.ignore("post_transform")
    kernel, weights = _machine(op, op.attribute("n_supports", 0), 1)
    made = op.module(SupportVectorMachine(kernel), as_float(op), **weights)
    return op.call(one_class, made) if op.attribute("one_class", 0) else made


def one_class(scores: Tensor) -> Tensor:
    """Return 1 for what belongs to the class, else -1."""
    return torch.where(scores > 0, 1.0, -1.0)


@operator("SVMClassifier", domain=DOMAIN)
def svm_classifier(op: Operator) -> tuple[fx.Node, ...]:
    """Convert SVMClassifier, with or without a kernel, with or without probabilities."""
    labels, transform = class_labels(op, "classlabels_ints", "classlabels_strings"), post_transform(op)
    sizes: list[int] = op.attribute("vectors_per_class", [])
    op.ignore("prob_a", "prob_b")
    if not labels or len(sizes) not in (0, len(labels)):
        raise op.unsupported("it needs as many labels as classes")
    if not sum(sizes):
        kernel, weights = _machine(op, 0, len(labels))
        scores = op.module(SupportVectorMachine(kernel), as_float(op), **weights)
        winner = op.call(torch.argmax, scores, -1)
        if len(labels) == 2:
            coefficients: list[float] = op.attribute("coefficients", [])
            winner = op.call(second_if_enough, scores, 0.0 if min(coefficients) < 0 else 0.5)
        return op.call(labels_at, winner, labels), op.call(transformed, scores, transform)
    kernel, weights = _machine(op, sum(sizes), len(sizes) - 1)
    weights |= {"slope": op.attribute_weight("prob_a"), "intercept": op.attribute_weight("prob_b")}
    scores, winner = op.items(op.module(PairwiseMachine(kernel, sizes), as_float(op), **weights), 2)
    if len(labels) == 2 and weights["slope"] is None:
        made = op.call(with_first_class, scores, transform, transform not in ("NONE", "LOGISTIC"))
    else:
        made = op.call(transformed, scores, transform)
    return op.call(labels_at, winner, labels), made


def second_if_enough(scores: Tensor, enough: float) -> Tensor:
    """Return the class of two: the second where the larger score is enough, else the one that has it."""
    largest, place = scores.max(-1)
    reached = largest > 0 if enough == 0 else largest >= enough
    return torch.where(reached, 1, place)
