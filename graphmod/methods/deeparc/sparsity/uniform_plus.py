"""Uniform+: all layers alike, but for the ends (Gale, Elsen & Hooker, The state of sparsity, 2019, section 5.2).

The first convolution stays as it is, and the last linear layer keeps at least a fifth of its weights; all others keep
one share, which makes up the number that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphmod.errors import RefusedError
from graphmod.methods.deeparc.sparsity.layers import Layer, Mask
from graphmod.methods.deeparc.sparsity.quotas import quotas
from graphmod.methods.deeparc.sparsity.registry import schedule


@schedule("uniform_plus")
def uniform_plus(layers: Sequence[Layer], keep: int) -> list[Mask]:
    """Keep one share of every layer, the first convolution whole and a fifth of the last linear layer at least."""
    convolutions = [i for i, layer in enumerate(layers) if layer.op_type == "Conv"][:1]
    linear = [i for i, layer in enumerate(layers) if layer.op_type != "Conv"][-1:]
    whole = {i: layers[i].n_left for i in convolutions}
    fifth = {i: min(layers[i].n_left, -(-layers[i].size // 5)) for i in linear}
    least = sum(whole.values()) + sum(fifth.values())
    if keep < least:
        raise RefusedError(
            f"Uniform+ keeps the first convolution and a fifth of the last linear layer, {least:,} weights, and only "
            f"{keep:,} of all are to be kept; keep more, or take another schedule"
        )
    counts = _counts(layers, whole, keep)
    if any(counts[i] < n for i, n in fifth.items()):
        counts = _counts(layers, whole | fifth, keep)
    return [layer.largest(n) for layer, n in zip(layers, counts, strict=True)]


def _counts(layers: Sequence[Layer], held: Mapping[int, int], keep: int) -> list[int]:
    """Return how many weights each layer keeps where some keep a number of their own."""
    limits = [0 if i in held else layer.n_left for i, layer in enumerate(layers)]
    shared = quotas([layer.size for layer in layers], limits, keep - sum(held.values()))
    return [held.get(i, n) for i, n in enumerate(shared)]
