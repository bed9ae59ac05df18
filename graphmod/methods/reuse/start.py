"""Where a search begins: from some of the original's classes, or from its features with a new last layer on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil

from graphmod.data import Splits
from graphmod.graph import final_features, up_to_logits
from graphmod.methods.reuse.search import Plan
from graphmod.methods.reuse.task import Task
from graphmod.model import Model
from graphmod.pruning.recovery import trainable
from graphmod.pruning.restrict import restrict
from graphmod.rewrite.fuse import fuse
from graphmod.rewrite.new_head import new_head
from graphmod.train import retrain


@dataclass(frozen=True, eq=False)
class Start:
    """What a search begins with.

    Parameters
    ----------
    baseline : Model
        What the result is compared with: what there is of the original for the task without a search.
    teacher : Model
        Whose predictions are to be kept.
    student : Model
        What units and blocks are removed from, batch normalisations as operators of their own.
    """

    baseline: Model
    teacher: Model
    student: Model


def among_classes(model: Model, task: Task, parts: Splits, plan: Plan, epochs: int) -> Start:
    """Return the original among the classes of the target problem; it is its own teacher.

    Where classes are merged the teacher gives logits, as their probabilities are no softmax's any more, and one row of
    the last layer is trained to stand for several.
    """
    baseline = restrict(model, task.columns)
    if task.is_plain:
        return Start(baseline, baseline, trainable(baseline, parts.train))
    teacher = restrict(up_to_logits(model), task.columns)
    first = restrict(model, [group[0] for group in task.members])
    student = retrain(
        first, parts, [(final_features(first), first.main_output)], teacher=teacher,
        correct_teacher=True, epochs=max(1, epochs), learning_rate=plan.learning_rate, batch_size=plan.batch_size,
        seed=plan.seed, progress=plan.progress,
    )  # fmt: skip
    return Start(baseline, teacher, trainable(student, parts.train))


def of_features(model: Model, n_labels: int, parts: Splits, plan: Plan) -> Start:
    """Return the original with a new last layer, trained alone, taught by the same after standard fine-tuning.

    That is training of the last layer and then of all weights, each for about as many steps as the search takes, the
    state that is best on calibration data kept.
    """
    epochs = ceil(plan.steps * plan.batch_size / len(parts.train))
    train = partial(
        retrain, data=parts, epochs=epochs, patience=epochs, batch_size=plan.batch_size, seed=plan.seed,
        progress=plan.progress,
    )  # fmt: skip
    headed = trainable(new_head(model, n_labels, seed=plan.seed), parts.train)
    place = (final_features(headed), headed.main_output)
    student = train(headed, blocks=[place], learning_rate=plan.learning_rate)
    tuned = fuse(train(student, learning_rate=plan.learning_rate / 2), kinds=["unfused"])
    return Start(tuned, tuned, student)
