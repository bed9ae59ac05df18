"""Recovery: training what a point touched, then all that lies behind its first part, with the original as teacher.

Before either, parts that are not in closed form are trained for themselves, see :mod:`.distillation`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from graphmod.data import Splits
from graphmod.methods.compress.distillation import EPOCHS
from graphmod.methods.compress.line import Line, touched
from graphmod.methods.compress.part import Part
from graphmod.methods.compress.points import Built, build, fused
from graphmod.methods.compress.search import Search
from graphmod.model import Model
from graphmod.probe import predict, share_correct
from graphmod.pruning.recovery import NORMALISED, OTHERS, is_normalised, trainable
from graphmod.rewrite import Region
from graphmod.train import Metric, retrain, trained_weights

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

    def of(self, search: Search, built: Built, weighty: Collection[int], goal: float) -> Recovered:
        """Train parts by themselves, then what they touched; where that does not do, all behind the first part.

        This decides which point is taken; training end to end gets half of the epochs.
        """
        now = Recovered(built.model, built.score, frozenset())
        half = -(-self.epochs // 2)
        if now.score >= goal or not half:
            return now
        if not all(part.is_exact for part in built.parts):
            now = self._distilled(search, built)
        if now.score >= goal:
            return now
        places = touched(self.line, built.parts, weighty)
        if places and now.score >= goal - LOCAL:
            now = self._trained(now, places, half)
        return now if now.score >= goal else self._whole(now, built.parts, half)

    def finished(self, now: Recovered, parts: Sequence[Part], weighty: Collection[int], wanted: float) -> Recovered:
        """Train on what was trained so far; where that stays below what is wanted, all behind the first part."""
        if not self.epochs:
            return now
        places = touched(self.line, parts, weighty)
        if places and not now.is_whole:
            now = self._trained(now, places, self.epochs)
        return self._whole(now, parts, self.epochs) if now.is_whole or now.score < wanted else now

    def final(self, now: Recovered) -> Recovered:
        """Make one of linear layers in a row, and leave no record of the edits that training needed."""
        model = fused(now.model, "chain")
        floats = {name for name, kind in model.constants.items() if kind.is_float}
        changed = {name for name in floats if model.initializers.get(name) != now.model.initializers.get(name)}
        proto = model.editable()
        proto.ClearField("metadata_props")
        proto.metadata_props.extend(self.line.original.editable().metadata_props)
        model = Model(proto, model.folder)
        return replace(now, model=model, score=self._score(model), trained=now.trained | changed)

    def _distilled(self, search: Search, built: Built) -> Recovered:
        """Build a point anew, its parts trained for a few epochs, those in closed form fitted behind them."""
        parts, model = build(search, built.route, min(EPOCHS, self.epochs), self.seed)
        learnt = {part.exit for part in parts if not part.is_exact}
        regions = [Region(*place) for place in touched(self.line, parts, ()) if place[1] in learnt]
        return Recovered(model, self._score(model), trained_weights(model, regions))

    def _trained(self, now: Recovered, places: Sequence[tuple[str, str]], epochs: int) -> Recovered:
        model = self._run(now.model, places, epochs, OTHERS, batch_statistics=False)
        trained = trained_weights(model, [Region(*place) for place in places])
        return Recovered(model, self._score(model), now.trained | trained)

    def _whole(self, now: Recovered, parts: Sequence[Part], epochs: int) -> Recovered:
        """Train all behind the first part, normalised by the batch where an exporter has fused normalisations."""
        place = {tensor: i for i, tensor in enumerate(self.line.tensors)}
        first = min(parts, key=lambda part: place[part.entry])
        region = (first.entry, self.line.tensors[-1])
        start = trainable(now.model, self.splits.train)
        by_batch = is_normalised(start)
        after = self._run(start, [region], epochs, NORMALISED if by_batch else OTHERS, by_batch)
        model = fused(after, "unfused")
        trained = trained_weights(model, [Region(*region)])
        model = _restored(model, now.model, trained)
        return Recovered(model, self._score(model), now.trained | trained, is_whole=True)

    def _score(self, model: Model) -> float:
        """Return the metric on calibration data, by ONNX Runtime: training and rounding may tell ties differently."""
        calibration = self.splits.calibration
        return (self.metric or share_correct)(predict(model, calibration), np.asarray(calibration.targets))

    def _run(
        self,
        model: Model,
        places: Sequence[tuple[str, str]],
        epochs: int,
        learning_rate: float,
        batch_statistics: bool,
    ) -> Model:
        return retrain(
            model, self.splits, places, teacher=self.line.original, loss=self.loss, metric=self.metric,
            epochs=epochs, patience=epochs, check_every=AT_THE_END, batch_statistics=batch_statistics,
            learning_rate=learning_rate, seed=self.seed,
        )  # fmt: skip


def _restored(model: Model, source: Model, trained: Collection[str]) -> Model:
    """Return a model with the constants of another, bit by bit, where neither training nor an edit was about them."""
    proto = model.editable()
    for tensor in proto.graph.initializer:
        before = source.initializers.get(tensor.name)
        if before is not None and tensor.name not in trained and before.dims == tensor.dims:
            tensor.CopyFrom(before)
    return Model(proto, model.folder)
