"""Signals: Fourier transforms, whole and of frames. Complex numbers are a last axis of two."""

from __future__ import annotations

import math

import torch
from onnx import TensorProto
from torch import Tensor, fx

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import operator


@operator("DFT", since=17)
def dft_along_attribute(op: Operator) -> fx.Node:
    """Convert DFT as it was before opset 20, with its axis as an attribute."""
    return _dft(op, op.attribute("axis", 1))


@operator("DFT", since=20)
def dft(op: Operator) -> fx.Node:
    """Convert DFT."""
    return _dft(op, op.scalar(2, -2))


def _dft(op: Operator, axis: object) -> fx.Node:
    inverse, one_sided = bool(op.attribute("inverse", 0)), bool(op.attribute("onesided", 0))
    return op.call(fourier, op.input(0), op.scalar(1, None), axis, inverse=inverse, one_sided=one_sided)


def fourier(x: Tensor, length: int | Tensor | None, axis: int | Tensor, *, inverse: bool, one_sided: bool) -> Tensor:
    """Transform along an axis; a real signal has a last axis of one, and half of its spectrum tells the rest.

    Examples
    --------
    >>> fourier(torch.ones(1, 4, 1), None, 1, inverse=False, one_sided=True).tolist()
    [[[4.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]
    """
    axis, n = int(axis) % x.ndim, None if length is None else int(length)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    signal = wide.squeeze(-1) if x.shape[-1] == 1 else torch.view_as_complex(wide.contiguous())
    if inverse and one_sided:
        real: Tensor = torch.fft.irfft(signal, n, axis)
        return real.unsqueeze(-1).to(x.dtype)
    if inverse:
        made = torch.fft.ifft(signal, n, axis)
    elif not one_sided:
        made = torch.fft.fft(signal, n, axis)
    elif signal.is_complex():
        made = torch.fft.fft(signal, n, axis)
        made = made.narrow(axis, 0, made.shape[axis] // 2 + 1)
    else:
        made = torch.fft.rfft(signal, n, axis)
    return torch.view_as_real(made.resolve_conj()).to(x.dtype)


@operator("STFT", since=17)
def stft(op: Operator) -> fx.Node:
    """Convert STFT."""
    one_sided = bool(op.attribute("onesided", 1))
    return op.call(
        fourier_of_frames, op.input(0), op.scalar(1, 1), op.optional(2), op.scalar(3, None), one_sided=one_sided
    )


def fourier_of_frames(
    x: Tensor, step: int | Tensor, window: Tensor | None, length: int | Tensor | None, *, one_sided: bool
) -> Tensor:
    """Transform every frame of signals (batch, length, 1 or 2), weighted by a window."""
    if length is None:
        length = x.shape[1] if window is None else window.shape[0]
    frames = x.unfold(1, int(length), int(step)).transpose(-1, -2)
    weighted = frames if window is None else frames * window[:, None]
    return fourier(weighted, None, 2, inverse=False, one_sided=one_sided)


@operator("MelWeightMatrix", since=17)
def mel_weight_matrix(op: Operator) -> fx.Node:
    """Convert MelWeightMatrix."""
    dtype = op.torch_dtype(op.attribute("output_datatype", int(TensorProto.FLOAT)))
    return op.call(mel_weights, *(op.scalar(index, 0) for index in range(5)), dtype, op.neighbour(1))


def mel_weights(
    n_mels: int | Tensor, length: int | Tensor, rate: int | Tensor, lower: float | Tensor, upper: float | Tensor,
    dtype: torch.dtype, like: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return triangles over frequencies (frequency, mel), equally wide on the mel scale; beside another tensor."""
    n, low, high = int(n_mels), *(2595 * math.log10(1 + float(edge) / 700) for edge in (lower, upper))
    mels = low + torch.arange(n + 2, dtype=torch.float64) * ((high - low) / (n + 2))
    bins = (700 * (10 ** (mels / 2595) - 1) * (int(length) + 1) / int(rate)).floor()
    begin, centre, end = bins[:-2], bins[1:-1], bins[2:]
    places = torch.arange(int(length) // 2 + 1, dtype=torch.float64)[:, None]
    rising = torch.where(begin == centre, (places == centre).double(), (places - begin) / (centre - begin))
    weights = torch.where(places <= centre, rising, (end - places) / (end - centre)).clamp(min=0)
    return (
        torch.where((places < begin) | (places > end), 0, weights).to(dtype).to(None if like is None else like.device)
    )
