"""Normalizations: over the batch, layers, instances, groups, channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import Outputs, operator

BATCH: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@operator("BatchNormalization")
def batch_norm(op: Operator) -> Outputs:
    """Convert BatchNormalization.

    Statistics of the graph become running statistics. A graph in training mode keeps its momentum, which ONNX counts
    the other way round, and train() and eval() decide which statistics count; one whose new statistics are read
    computes them always, as it does where weights are computed. One in inference mode has no momentum that means
    anything and gets torch's default.
    """
    op.requires(spatial=1)
    op.ignore("consumed_inputs", "is_test")
    epsilon, training = op.attribute("epsilon", 1e-5), bool(op.attribute("training_mode", 0))
    momentum = 1 - op.attribute("momentum", 0.9) if training else 0.1
    names = ("weight", "bias", "running_mean", "running_var")
    weights = {name: op.weight(index) for index, name in enumerate(names, 1)}
    shape, scale = op.shape(0), weights["weight"]
    layer = BATCH.get(len(shape)) if shape is not None else None
    read = op.uses_output(1) or op.uses_output(2)
    op.ignore("momentum")
    if not training:
        op.requires_single_output()
    if scale is not None and None not in weights.values():
        if read:
            normalize = BatchNormAndStatistics(scale.shape[0], epsilon, momentum)
            return op.items(op.module(normalize, op.input(), **weights), 3)
        if layer is not None:
            return op.module(
                layer(scale.shape[0], eps=epsilon, momentum=momentum, device="meta"), op.input(), **weights
            )
    x, gain, bias, *statistics = (op.input(index) for index in range(5))
    mean, var = (one if op.constant(i) is None else op.method("detach", one) for i, one in enumerate(statistics, 3))
    if training:
        return op.items(op.call(batch_norm_and_statistics, x, gain, bias, mean, var, epsilon, momentum), 3)
    return op.call(batch_norm_by, x, gain, bias, mean, var, epsilon)


def batch_norm_by(x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Normalize every channel by given statistics; unlike in torch's own function, computed ones get gradients."""
    wide, shape = torch.promote_types(torch.float32, x.dtype), (-1, *[1] * (x.ndim - 2))
    gain, bias, mean, var = (value.to(wide).reshape(shape) for value in (gain, bias, mean, var))
    return ((x - mean) * ((var + eps).rsqrt() * gain) + bias).to(x.dtype)


class BatchNormAndStatistics(nn.Module):
    """Normalizes by the statistics of the batch, and returns also the running statistics that come of it.

    Parameters
    ----------
    n_channels : int
    eps : float
    momentum : float
        The weight of the batch in the running statistics, which stay as they are in evaluation mode.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, n_channels: int, eps: float, momentum: float) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(n_channels)), nn.Parameter(torch.zeros(n_channels))
        self.register_buffer("running_mean", torch.zeros(n_channels))
        self.register_buffer("running_var", torch.ones(n_channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalized input, the running mean, the running variance."""
        y, mean, var = batch_norm_and_statistics(
            x, self.weight, self.bias, self.running_mean, self.running_var, self.eps, self.momentum
        )
        if self.training:
            self.running_mean, self.running_var = mean.detach(), var.detach()
        return y, mean, var


def batch_norm_and_statistics(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize by the statistics of the batch, and move running ones towards them; variances are those of all."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    new_mean, new_var = wide.mean(axes).to(mean.dtype), wide.var(axes, correction=0).to(var.dtype)
    y = torch.batch_norm(x, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)
    return y, mean.lerp(new_mean, momentum), var.lerp(new_var, momentum)


@operator("InstanceNormalization")
def instance_norm(op: Operator) -> fx.Node:
    """Convert InstanceNormalization."""
    epsilon, layers = op.attribute("epsilon", 1e-5), {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
    weight, bias, shape = op.weight(1), op.weight(2), op.shape(0)
    layer = layers.get(len(shape)) if shape is not None else None
    if layer is None or weight is None or bias is None or _is_point(shape):
        return op.call(instance_norm_of, op.input(0), op.input(1), op.input(2), epsilon)
    module = layer(weight.shape[0], eps=epsilon, affine=True, device="meta")
    return op.module(module, op.input(), weight=weight, bias=bias)


def _is_point(shape: Sequence[int | str | None] | None) -> bool:
    """Whether an image is known to have one value a channel, of which torch's modules may refuse statistics."""
    return shape is not None and all(size == 1 for size in shape[2:])


def instance_norm_of(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalize every channel of every sample, even if it is one value."""
    return torch.instance_norm(x, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)


@operator("LayerNormalization", since=17)
def layer_norm(op: Operator) -> Outputs:
    """Convert LayerNormalization; nn.LayerNorm where the scale has the shape of the normalized axes."""
    op.requires(stash_type=1)
    axis, epsilon, rank = op.attribute("axis", -1), op.attribute("epsilon", 1e-5), op.rank()
    n_axes = -axis if axis < 0 else rank - axis
    if op.uses_output(1) or op.uses_output(2):
        made = op.call(layer_norm_and_statistics, op.input(0), op.input(1), op.optional(2), n_axes, epsilon)
        y, *statistics = op.items(made, 3)
        if op.has_type(torch.float64):  # of which the standard has the statistics in single precision
            statistics = [op.method("float", value) for value in statistics]
        return y, *statistics
    weight, bias = op.weight(1), op.weight(2)
    whole = weight is not None and len(weight.shape) == n_axes and _matches(op, weight.shape)
    if weight is None or not whole or (op.has(2) and (bias is None or bias.shape != weight.shape)):
        return op.call(layer_norm_of, op.input(0), op.input(1), op.optional(2), n_axes, epsilon)
    module = nn.LayerNorm(weight.shape, eps=epsilon, bias=bias is not None, device="meta")
    return op.module(module, op.input(), weight=weight, bias=bias)


def _matches(op: Operator, normalized: tuple[int, ...]) -> bool:
    """Whether a scale has the size of the last axes: one that broadcasts is no module's weight."""
    shape = op.shape(0)
    last = shape[len(shape) - len(normalized) :] if shape is not None else ()
    return 1 not in normalized or tuple(last) == normalized


def layer_norm_of(x: Tensor, weight: Tensor, bias: Tensor | None, n_axes: int, eps: float) -> Tensor:
    """Normalize the last ``n_axes`` axes, then scale and shift by whatever broadcasts."""
    y = F.layer_norm(x, x.shape[x.ndim - n_axes :], eps=eps) * weight
    return y if bias is None else y + bias


def layer_norm_and_statistics(
    x: Tensor, weight: Tensor, bias: Tensor | None, n_axes: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize the last ``n_axes`` axes; return also their mean and the inverse of their standard deviation."""
    axes = list(range(x.ndim - n_axes, x.ndim))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = wide.mean(axes, keepdim=True)
    inverse = (wide.var(axes, correction=0, keepdim=True) + eps).rsqrt()
    return layer_norm_of(x, weight, bias, n_axes, eps), mean, inverse


@operator("RMSNormalization", since=23)
def rms_norm(op: Operator) -> fx.Node:
    """Convert RMSNormalization; nn.RMSNorm where the scale has the shape of the normalized axes."""
    op.requires(stash_type=1)
    axis, epsilon, rank = op.attribute("axis", -1), op.attribute("epsilon", 1e-5), op.rank()
    n_axes = -axis if axis < 0 else rank - axis
    weight = op.weight(1)
    if weight is None or len(weight.shape) != n_axes or not _matches(op, weight.shape):
        return op.call(rms_norm_of, op.input(0), op.input(1), n_axes, epsilon)
    return op.module(nn.RMSNorm(weight.shape, eps=epsilon, device="meta"), op.input(), weight=weight)


def rms_norm_of(x: Tensor, weight: Tensor, n_axes: int, eps: float) -> Tensor:
    """Divide the last ``n_axes`` axes by their root mean square, then scale."""
    return F.rms_norm(x, x.shape[x.ndim - n_axes :], eps=eps) * weight


@operator("GroupNormalization", since=18)
def group_norm_by_group(op: Operator) -> fx.Node:
    """Convert GroupNormalization of opset 18, whose scale has one value a group."""
    groups = op.attribute("num_groups", 1)
    return op.call(group_norm_per_group, op.input(0), op.input(1), op.input(2), groups, op.attribute("epsilon", 1e-5))


def group_norm_per_group(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Group normalization whose scale and shift are per group."""
    per_group = x.shape[1] // groups
    return torch.group_norm(x, groups, weight.repeat_interleave(per_group), bias.repeat_interleave(per_group), eps)


@operator("GroupNormalization", since=21)
def group_norm(op: Operator) -> fx.Node:
    """Convert GroupNormalization, whose scale has one value a channel."""
    op.requires(stash_type=1)
    groups, epsilon = op.attribute("num_groups", 1), op.attribute("epsilon", 1e-5)
    weight, bias = op.weight(1), op.weight(2)
    if weight is None or bias is None or (_is_point(op.shape(0)) and groups == weight.shape[0]):
        return op.call(torch.group_norm, op.input(0), groups, op.input(1), op.input(2), epsilon)
    module = nn.GroupNorm(groups, weight.shape[0], eps=epsilon, device="meta")
    return op.module(module, op.input(), weight=weight, bias=bias)


@operator("LRN")
def lrn(op: Operator) -> fx.Node:
    """Convert LRN; torch's module puts a window of even size elsewhere, and knows no half precision on a CPU."""
    size = op.attribute("size", 1)
    alpha, beta, bias = op.attribute("alpha", 1e-4), op.attribute("beta", 0.75), op.attribute("bias", 1.0)
    if size % 2 and not op.is_half():
        return op.module(nn.LocalResponseNorm(size, alpha, beta, bias), op.input())
    return op.call(local_response_norm, op.input(), size, alpha, beta, bias)


def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """Divide by a power of the sum of squares over channels from ``(size-1)//2`` before to ``size//2`` after."""
    squares = F.pad(x * x, [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size // 2])
    total = squares.unfold(1, size, 1).sum(-1)
    return x / (bias + alpha / size * total) ** beta


@operator("LpNormalization")
def lp_normalization(op: Operator) -> fx.Node:
    """Convert LpNormalization."""
    return op.call(normalize, op.input(), op.attribute("p", 2), op.attribute("axis", -1))


def normalize(x: Tensor, p: int, axis: int) -> Tensor:
    """Divide by the p-norm along an axis, where it is not zero."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, 1.0, norm)


@operator("MeanVarianceNormalization")
def mean_variance(op: Operator) -> fx.Node:
    """Convert MeanVarianceNormalization."""
    return op.call(mean_variance_of, op.input(), op.attribute("axes", [0, 2, 3]))


def mean_variance_of(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Subtract the mean and divide by the standard deviation over some axes."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    deviation, mean = torch.std_mean(wide, list(axes), correction=0, keepdim=True)
    return ((wide - mean) / (deviation + 1e-9)).to(x.dtype)
