"""Single weights instead of units: zeros in a network that keeps its shape, for a smaller file (:func:`graphmod.pack`).

Weights of the lowest LAMP scores become zero (Lee et al., ICLR 2021), a part at a time, and what is left is trained on
the teacher's predictions in between, as :mod:`graphmod.methods.deeparc.sparsity` does with labels alone.
"""

from __future__ import annotations

from math import ceil, log

from graphmod.data import Splits
from graphmod.errors import BudgetError, RefusedError
from graphmod.methods.deeparc.sparsity import layers, sparsify
from graphmod.methods.reuse.search import Plan
from graphmod.model import Model
from graphmod.rewrite.fuse import fuse
from graphmod.train import retrain

KEPT_AT_ONCE = 0.6
"""Of the weights that are left, about what a step leaves."""


def zeroed(model: Model, teacher: Model, parts: Splits, plan: Plan, of: Model, epochs: int) -> Model:
    """Return a network of which so few scalars are left as a budget of weights allows, the others zero.

    Parameters
    ----------
    model : Model
    teacher : Model
        A network of the same output, whose predictions are to be kept, but for those that labels say are wrong.
    parts : Splits
    plan : Plan
        Its target, learning rate, batch size and seed count.
    of : Model
        What the target is a share of.
    epochs : int
        Of training after each step.

    Raises
    ------
    RefusedError
        Biases and normalisations alone, which stay, are more than that, or there are no other weights.
    """
    whole = fuse(model, kinds=["unfused"])
    pruned = layers(whole)
    n_weights, left = sum(layer.size for layer in pruned), sum(layer.n_left for layer in pruned)
    if not n_weights:
        raise RefusedError("no Conv, Gemm or MatMul of the network has weights of its own that could be zero")
    n_others = whole.n_weights - n_weights
    target = plan.targets["weights"]
    wanted = int(target * of.n_weights) - n_others
    if wanted < 1:
        raise BudgetError(
            f"weights={target:g} cannot be met: {n_others:,} of the {of.n_weights:,} scalars are biases and "
            "normalisations, which stay; give a larger budget"
        )
    n_steps = max(1, ceil(log(max(1.0, left / wanted)) / -log(KEPT_AT_ONCE)))
    for step in range(1, n_steps + 1):
        share = left / n_weights * (wanted / left) ** (step / n_steps) if wanted < left else left / n_weights
        model = retrain(
            sparsify(model, share, "lamp"), parts, teacher=teacher, correct_teacher=True, epochs=epochs,
            patience=max(1, epochs), learning_rate=plan.learning_rate / 2, batch_size=plan.batch_size,
            keep_zeros=True, seed=plan.seed, progress=plan.progress,
        )  # fmt: skip
    return model
