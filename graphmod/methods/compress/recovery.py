"""Recovery: training what a point touched, then all that lies behind its first part, with the original as teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphmod.data import Splits
from graphmod.methods.compress.line import Line, touched
from graphmod.methods.compress.part import Part
from graphmod.model import Model
from graphmod.pruning.recovery import NORMALISED, OTHERS, trainable
from graphmod.rewrite import Region, fuse
from graphmod.train import Metric, Retrained, retrained, trained_weights

AT_THE_END = 1 << 30
"""Steps between looks at calibration data while training: the best of many epochs on the data that a point is judged on
then would be judged too well. As the learning rate falls to zero, the last epoch is about the best."""

LOCAL = 0.1
"""Metric below the goal up to which it is tried to train only what was touched."""


@dataclass(frozen=True, eq=False)
class Recovered:
    """A model after training.

    Parameters
    ----------
    model : Model
    score : float
        The metric on calibration data.
    trained : frozenset of str
        Constants that were ever trained.
    is_whole : bool
        Whether all behind the first part was trained, and not only what was touched.
    """

    model: Model = field(repr=False)
    score: float
    trained: frozenset[str] = field(repr=False)
    is_whole: bool = False


@dataclass(frozen=True, eq=False)
class Recovery:
    """How points are trained.

    Parameters
    ----------
    line : Line
    splits : Splits
    metric : callable, optional
    loss : callable, optional
    epochs, seed : int
    """

    line: Line
    splits: Splits
    metric: Metric | None
    loss: Any
    epochs: int
    seed: int

    def of(self, model: Model, score: float, parts: Sequence[Part], weighty: Collection[int], goal: float) -> Recovered:
        """Train what the parts touched; where that does not reach the goal, all behind the first part.

        This decides which point is taken, and gets half of the epochs.
        """
        now = Recovered(model, score, frozenset())
        half = -(-self.epochs // 2)
        if score >= goal or not parts or not half:
            return now
        places = touched(self.line, parts, weighty)
        if places and score >= goal - LOCAL:
            now = self._trained(now, places, half)
        return now if now.score >= goal else self._whole(now, parts, half)

    def finished(self, now: Recovered, parts: Sequence[Part], weighty: Collection[int], wanted: float) -> Recovered:
        """Train on what was trained so far; where that stays below what is wanted, all behind the first part."""
        if not self.epochs:
            return now
        places = touched(self.line, parts, weighty)
        if places and not now.is_whole:
            now = self._trained(now, places, self.epochs)
        return self._whole(now, parts, self.epochs) if now.is_whole or now.score < wanted else now

    def _trained(self, now: Recovered, places: Sequence[tuple[str, str]], epochs: int) -> Recovered:
        run = self._run(now.model, places, epochs, OTHERS, batch_statistics=False)
        trained = trained_weights(run.model, [Region(*place) for place in places])
        return Recovered(run.model, best_score(run), now.trained | trained)

    def _whole(self, now: Recovered, parts: Sequence[Part], epochs: int) -> Recovered:
        """Train all behind the first part, normalised by the batch where an exporter has fused normalisations."""
        place = {tensor: i for i, tensor in enumerate(self.line.tensors)}
        first = min(parts, key=lambda part: place[part.entry])
        region = (first.entry, self.line.tensors[-1])
        start = trainable(now.model, self.splits.train)
        types = Counter(operator.op_type for operator in start.operators)
        is_normalised = 2 * types["BatchNormalization"] >= types["Conv"] + types["Gemm"] + types["MatMul"]
        run = self._run(start, [region], epochs, NORMALISED if is_normalised else OTHERS, is_normalised)
        model = fuse(run.model, kinds=["unfused"])
        trained = trained_weights(model, [Region(*region)])
        return Recovered(_restored(model, now.model, trained), best_score(run), now.trained | trained, is_whole=True)

    def _run(
        self,
        model: Model,
        places: Sequence[tuple[str, str]],
        epochs: int,
        learning_rate: float,
        batch_statistics: bool,
    ) -> Retrained:
        return retrained(
            model, self.splits, places, teacher=self.line.original, loss=self.loss, metric=self.metric,
            epochs=epochs, patience=epochs, check_every=AT_THE_END, batch_statistics=batch_statistics,
            learning_rate=learning_rate, seed=self.seed,
        )  # fmt: skip


def best_score(run: Retrained) -> float:
    """Return the metric on calibration data of the weights that training kept."""
    return max(check.score for check in run.history)


def _restored(model: Model, source: Model, trained: Collection[str]) -> Model:
    """Return a model with the constants of another, bit by bit, where neither training nor an edit was about them."""
    proto = model.editable()
    for tensor in proto.graph.initializer:
        before = source.initializers.get(tensor.name)
        if before is not None and tensor.name not in trained and before.dims == tensor.dims:
            tensor.CopyFrom(before)
    return Model(proto, model.folder)
