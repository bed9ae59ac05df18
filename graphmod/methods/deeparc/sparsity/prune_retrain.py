"""Prune, retrain, repeat: until few enough parameters are left and the network is as good as it has to be."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

from graphmod.data import as_splits
from graphmod.errors import RefusedError
from graphmod.methods.deeparc.sparsity.layers import layers, n_parameters
from graphmod.methods.deeparc.sparsity.sparsify import sparsified
from graphmod.model import Model
from graphmod.probe import accuracy as share_correct
from graphmod.train import retrain
from graphmod.train.loop import Settings

EVERY = 10**9
"""Patience of training that only ends at its target or with its last epoch."""


@dataclass(frozen=True)
class Iteration:
    """One round of pruning and retraining.

    Parameters
    ----------
    remaining : float
        Parameters left, as a share of the original's.
    pruned, retrained : float
        Accuracy on calibration data behind each step; the same where there was no need to train.
    seconds : float
        CPU time of the round.
    """

    remaining: float
    pruned: float
    retrained: float
    seconds: float


@dataclass(frozen=True, eq=False)
class SparseRun:
    """What prune and retrain came to.

    Parameters
    ----------
    model : Model
        The last iteration's.
    iterations : tuple of Iteration
    reached : bool
        Whether both targets are met.
    """

    model: Model
    iterations: tuple[Iteration, ...]
    reached: bool

    @cached_property
    def seconds(self) -> float:
        """CPU time of all iterations."""
        return sum(one.seconds for one in self.iterations)


def prune_retrain(
    model: Model,
    data: object,
    schedule: str = "lamp",
    *,
    remaining: float,
    accuracy: float,
    of: Model | None = None,
    rate: float = 0.2,
    epochs: int = 5,
    attempts: int = 4,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    check_every: int | None = None,
    seed: int = 0,
) -> SparseRun:
    """Set weights to zero and train the others, again and again, to a target of parameters and accuracy.

    An iteration prunes a share of the parameters that are left, down to the target at most, and trains the others only
    where accuracy has fallen below the target, until it is back or the epochs are over. Once the target of parameters
    is met, iterations only train.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_splits` takes
        Its training part is learnt, its calibration part tells the accuracy.
    schedule : str
        "lamp", "global", "uniform_plus" or "erk".
    remaining : float
        Target of parameters, as a share of the original's: weights of Conv, Gemm and MatMul that are not zero, and all
        other float constants.
    accuracy : float
        Target on calibration data.
    of : Model, optional
        The original, where ``model`` is one that has been shortened.
    rate : float
        Share of the parameters left that an iteration prunes, one at least.
    epochs : int
        Of training an iteration, at most.
    attempts : int
        Iterations at the target of parameters, at most.
    learning_rate, batch_size, check_every, seed
        As for :func:`graphmod.retrain`.

    Raises
    ------
    RefusedError
        An argument is out of range, there is no such schedule or no layer, or the target is less than the constants
        that are never pruned, or than the schedule keeps.

    Examples
    --------
    >>> import graphmod as gm
    >>> m, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> run = prune_retrain(m, data, "lamp", remaining=0.5, accuracy=0.97)
    >>> run.reached, len(run.iterations)
    (True, 4)
    """
    if not 0 < rate < 1 or not 0 < remaining <= 1 or not 0 <= accuracy <= 1 or attempts < 1:
        raise RefusedError(
            f"rate={rate} lies between 0 and 1, remaining={remaining} above 0 and at most at 1, accuracy={accuracy} "
            f"is a share between 0 and 1, and attempts={attempts} at least 1"
        )
    # refuses what is out of range before any work
    Settings(epochs, EVERY, accuracy, check_every, learning_rate, batch_size, "adam", True, seed, False)
    splits = as_splits(model, data, seed, labels=True)
    whole = (of or model).n_weights
    goal = round(remaining * whole)
    fixed = model.n_weights - sum(layer.size for layer in layers(model))
    if goal < fixed:
        raise RefusedError(
            f"{fixed:,} parameters are never pruned, {fixed / whole:.1%} of the original's: no schedule leaves "
            f"{remaining:.1%}"
        )
    sparsified(model, goal - fixed, schedule)  # what the schedule refuses it refuses before anything is trained
    done: list[Iteration] = []
    left = n_parameters(model)
    while True:
        start = time.process_time()
        left = min(left, max(goal, min(left - 1, round((1 - rate) * left))))
        model = sparsified(model, left - fixed, schedule)
        score = before = share_correct(model, splits.calibration)
        if score < accuracy:
            model = retrain(
                model, splits, keep_zeros=True, until=accuracy, epochs=epochs, patience=EVERY,
                learning_rate=learning_rate, batch_size=batch_size, check_every=check_every, seed=seed + len(done),
            )  # fmt: skip
            score = share_correct(model, splits.calibration)
        done.append(Iteration(left / whole, before, score, time.process_time() - start))
        attempts -= left <= goal
        if left <= goal and (score >= accuracy or not attempts):
            return SparseRun(model, tuple(done), score >= accuracy)
