"""Adversarial samples, by the attacks of adversarial-robustness-toolbox on a model imported into PyTorch.

An attack is a function with ``@attack_method("name")``: from a classifier of the toolbox and settings to its attack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from rich.progress import track

from graphmod.data import Data, as_data, check_labels, fixed_batch
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import logits, subgraph
from graphmod.model import Model, check_model
from graphmod.pytorch import to_torch
from graphmod.registry import Registry
from graphmod.rewrite import rebatch

INSTALL = 'pip install "graphmod[attacks]"'

_EPS_SHARE = 0.1
"""What a value may change by, as a share of the data's range, where nothing else is said."""


_BEYOND = 1e-4
"""Share of ``eps`` by which a change is more than rounding says."""


@dataclass(frozen=True, eq=False)
class Attacked(Data):
    """Adversarial samples.

    Parameters
    ----------
    inputs, targets
        As in :class:`graphmod.Data`.
    n_cut : int
        Of the samples, those whose least change went beyond ``eps`` and was cut off there, so that it may not do.
    """

    n_cut: int = 0


@dataclass(frozen=True)
class Setting:
    """What an attack is made with.

    Parameters
    ----------
    eps : float
        What every value may change by, at most.
    steps : int
    batch_size : int
    n_classes : int
    """

    eps: float
    steps: int
    batch_size: int
    n_classes: int


Attack = Callable[[Any, Any, Setting], Any]
"""From the toolbox's module of attacks, a classifier and a setting to an attack of the toolbox."""

ATTACKS: Registry[Attack] = Registry("an attack")
"""All attacks by name."""

attack_method = ATTACKS.register


@attack_method("fgsm")
def _fgsm(art: Any, classifier: Any, setting: Setting) -> Any:
    """Goodfellow, Shlens & Szegedy 2015: one step along the gradient's sign."""
    return art.FastGradientMethod(classifier, eps=setting.eps, batch_size=setting.batch_size)


@attack_method("pgd")
def _pgd(art: Any, classifier: Any, setting: Setting) -> Any:
    """Madry et al. 2018: several steps along the gradient's sign, each projected back."""
    step = 2.5 * setting.eps / setting.steps
    return art.ProjectedGradientDescent(
        classifier, eps=setting.eps, eps_step=step, max_iter=setting.steps, batch_size=setting.batch_size, verbose=False
    )


@attack_method("deepfool")
def _deepfool(art: Any, classifier: Any, setting: Setting) -> Any:
    """Moosavi-Dezfooli, Fawzi & Frossard 2016: across the nearest of the linearised decision boundaries."""
    return art.DeepFool(
        classifier, max_iter=setting.steps, epsilon=0.02, nb_grads=min(setting.n_classes, 10),
        batch_size=setting.batch_size, verbose=False,
    )  # fmt: skip


@attack_method("cw")
def _cw(art: Any, classifier: Any, setting: Setting) -> Any:
    """Carlini & Wagner 2017: the least squared change that another class wins by, searched for by Adam."""
    return art.CarliniL2Method(
        classifier, max_iter=setting.steps, binary_search_steps=4, initial_const=0.1, learning_rate=0.05,
        batch_size=setting.batch_size, verbose=False,
    )  # fmt: skip


def attack(
    model: Model,
    data: object,
    method: str = "fgsm",
    *,
    eps: float | None = None,
    bounds: tuple[float, float] | None = None,
    steps: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> Attacked:
    """Change samples so that a model gets them wrong, by as little as no one would notice.

    Parameters
    ----------
    model : Model
        A classifier with one float input.
    data : anything that :func:`graphmod.data.as_data` takes
        Samples with labels.
    method : {"fgsm", "pgd", "deepfool", "cw"}
        DeepFool and Carlini & Wagner search for the least change; what goes beyond ``eps`` is cut off.
    eps : float, optional
        What every value of a sample may change by, in the data's units; a tenth of the range of values if None.
    bounds : (float, float), optional
        The least and the largest value that samples may have; those of the data if None. Give them where several parts
        of a data set are attacked one by one.
    steps : int
        Of PGD, DeepFool and Carlini & Wagner.
    batch_size : int
    seed : int
        Same seed, same result.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Attacked
        Data: as many samples, each in the row of the one that it is made of, with its label; and ``n_cut``, how many
        of them were cut off at ``eps``.

    Raises
    ------
    RefusedError
        There is no such attack, an argument is out of range, the model has another signature, no gradient
        reaches its input, or the package adversarial-robustness-toolbox is missing.
    InvalidDataError
        The data does not fit, all its values are the same, or some lie outside of the bounds.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods.deeparc import attack
    >>> m, test = gm.load(gm.demo.model_path()), gm.demo.splits().test
    >>> gm.accuracy(m, attack(m, test, "fgsm", eps=0.15)) < gm.accuracy(m, test) - 0.3
    True
    """
    _check(model, method, eps, steps, batch_size)
    samples = as_data(model, data, targets=True)
    labels = check_labels(model, samples)
    name = next(iter(model.inputs))
    x = np.asarray(samples.inputs[name], np.float32)
    low, high = bounds if bounds is not None else (float(x.min()), float(x.max()))
    if not low < high:
        raise InvalidDataError(f"values of the samples lie between {low} and {high}; give bounds=(low, high)")
    if x.min() < np.float32(low) or x.max() > np.float32(high):
        raise InvalidDataError(f"the samples have values from {x.min():g} to {x.max():g}, outside of bounds={bounds}")
    largest = _EPS_SHARE * (high - low) if eps is None else eps
    evasion, estimators = _toolbox()
    width = high - low
    net = _network(model, name, low, width)
    seen = net(torch.tensor((x[:1] - low) / width, requires_grad=True))
    if not seen.requires_grad:
        raise RefusedError(
            f"no gradient reaches input '{name}', and attacks follow it; an operator such as ArgMax or a tree has none"
        )
    n_classes = seen.shape[1]
    classifier = estimators.PyTorchClassifier(
        net, torch.nn.CrossEntropyLoss(), x.shape[1:], n_classes, clip_values=(0.0, 1.0), device_type="cpu"
    )
    setting = Setting(largest / width, steps, batch_size, n_classes)
    unit, one_hot, found = (x - low) / width, np.eye(n_classes)[labels], []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        way = ATTACKS[method](evasion, classifier, setting)
        starts = range(0, len(x), batch_size)
        for start in track(starts, method, disable=not progress, transient=True):
            rows = slice(start, start + batch_size)
            found.append(way.generate(unit[rows], one_hot[rows]))
    moved = np.concatenate(found) * width + low
    beyond = np.abs(moved - x).reshape(len(x), -1).max(1) > (1 + _BEYOND) * largest
    near = np.clip(moved, x - largest, x + largest).clip(low, high)
    return Attacked({name: near.astype(samples.inputs[name].dtype)}, samples.targets, int(beyond.sum()))


class _Classifier(torch.nn.Module):
    """A network that takes values from 0 to 1 in single precision and gives logits of shape (samples, classes) in it.

    So the toolbox wants it: steps of its DeepFool are too long by the width of another range.
    """

    def __init__(self, net: torch.nn.Module, dtype: torch.dtype, low: float, width: float) -> None:
        super().__init__()
        self._net, self._dtype, self._low, self._width = net, dtype, low, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._net((x * self._width + self._low).to(self._dtype))
        return found.flatten(1).float()


def _network(model: Model, name: str, low: float, width: float) -> _Classifier:
    """Return a model of one input, scaled to 0..1, for any number of samples, up to its logits."""
    free = model if fixed_batch(model) is None else rebatch(model)
    net = to_torch(subgraph(free, [name], [logits(free)]), dtype=torch.float32)
    dtype = torch.float64 if model.inputs[name].dtype == np.float64 else torch.float32
    return _Classifier(net, dtype, low, width).eval().requires_grad_(False)


def _check(model: Model, method: str, eps: float | None, steps: int, batch_size: int) -> None:
    check_model(model, "attack")
    if method not in ATTACKS:
        raise RefusedError(f"there is no attack '{method}'; there are {', '.join(sorted(ATTACKS))}")
    if eps is not None and not eps > 0:
        raise RefusedError(f"eps={eps} is out of range; what a value may change by is above 0")
    if steps < 1 or batch_size < 1:
        raise RefusedError("steps and batch_size must be at least 1")
    if len(model.inputs) != 1 or not next(iter(model.inputs.values())).is_float:
        told = ", ".join(f"'{name}' ({kind})" for name, kind in model.inputs.items())
        raise RefusedError(f"attacks change the values of one float input, and the model's inputs are {told}")


def _toolbox() -> tuple[Any, Any]:
    """Return the toolbox's attacks and classifiers.

    Raises
    ------
    RefusedError
        It is not installed.
    """
    try:
        return import_module("art.attacks.evasion"), import_module("art.estimators.classification")
    except ImportError as error:  # another package is called art, too
        raise RefusedError(f"attacks need the package adversarial-robustness-toolbox ({error}): {INSTALL}") from error
