"""Defects inherited: what is wrong with a network is wrong with what is made of it, less by some ways than by others.

*A new problem* (indirect reuse). The source is a network of six of the ten classes, drawn by seed, with a backdoor: a
fifth of its training samples had a patch in a corner and were labelled 0. The target problem is the other four classes.
The defects are attacks that know the source alone: samples whose features in the source are as far away as may be,
within each of three distances, samples of which an inner tensor half-way is, within the largest of these, and samples
with the patch. What is inherited is the share that is turned of what a network gets right.

*Some of the classes* (direct reuse). Of the three classes that ``seam_direct.py`` draws, 40 % of the samples of the
first, those that look most like the second, were labelled as that when the network of ten classes was fine-tuned. The
defect is test samples that the network got right before and gets wrong since, among the three classes. What is made of
it is made with right labels; what is inherited is the share of the defect that is still wrong.

- *fine-tuned*: all weights are trained (of a new problem the new last layer alone before), batch normalisations
  included, at the best of three learning rates: by accuracy on calibration data, then by loss. Results have all three.
  *For long*: three times the epochs at the largest rate.
- *SeaM*: ``seam.transfer`` with as many epochs of fine-tuning, and ``seam.search``.
- *ours*: ``gm.reengineer``, a tenth of the weights left. *Hardened*: ``harden=`` the middle one of the distances, so
  that it learns attacks on the features. How much is due to that alone tells *fine-tuned, hardened*, by the same
  samples at the rate that was best. Neither learns inner attacks, the largest distance, or the patch.
- *from scratch*: the architecture on the target problem alone, by the recipe of the original in fewer steps. It
  inherits nothing: what is turned of it is what attacks do to any network.

At most 2,000 training, 500 calibration and 1,000 attacked test samples are used, of MNIST 640, 500 and 400; accuracy
is that on all test samples of the target problem. CPU seconds are those of one training; choosing a rate takes three.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from datasets import ByData
from markdown import spread
from markdown import table as as_table
from numpy.typing import NDArray
from seam_direct import problems
from trained_networks import BATCH as BATCH_OF_RECIPE
from trained_networks import EPOCHS, FOLDER, drawn, n_classes, network, splits, train

import graphmod as gm
from graphmod.converters.pytorch import to_onnx
from graphmod.graph import final_features
from graphmod.methods import defects, seam
from graphmod.methods.reuse import Task
from graphmod.methods.reuse.hardening import attacked_too
from graphmod.probe import predict
from graphmod.train import retrained

N_SOURCE, N_TARGET = 6, 4
PATCH = ByData({"digits": 2, "mnist1d": 4, "mnist": 4, "cifar10": 4})
STAMPED, BACKDOOR = 0.2, 0
DISTANCES = ByData(
    {
        "digits": (0.1, 0.2, 0.3),
        "mnist1d": (0.2, 0.3, 0.5),
        "mnist": (0.1, 0.2, 0.3),
        "cifar10": (0.1, 0.2, 0.3),
    }
)
"""What attacks may change a value by: those of digits and MNIST lie in 0..1, those of the others deviate by 1."""

ATTACKS = ("weak attack", "middle attack", "strong attack")
INNER, STAMP, MISLABELLED = "inner attack", "backdoor", "wrong labels"
HARDENED = 1
"""Which of the distances is hardened against."""

SHARE_MISLABELLED = 0.4

RATES = (3e-4, 1e-3, 3e-3)
HEAD_RATE = 1e-2
TUNING = ByData({"digits": 30, "mnist1d": 10, "mnist": 10, "cifar10": 10})
"""Epochs of fine-tuning."""

LONG = 3
LEFT = 0.1
BATCH = 64
STEPS = ByData({"digits": 500, "mnist1d": 500, "mnist": 250, "cifar10": 2000})
"""Of our searches, and at most of SeaM's."""

LEAST_STEPS = 200
"""Of training from random weights."""

QUICKER = 10
MASK_RATE = 0.05
MOST = {"train": 2000, "calibration": 500, "test": 1000}
MOST_OF_MNIST = {"train": 640, "calibration": 500, "test": 400}
PARTS = ("train", "calibration", "test")

TUNED, TUNED_LONG, TUNED_HARD = "fine-tuned", "fine-tuned for long", "fine-tuned, hardened"
SEAM, OURS, OURS_HARD, SCRATCH = "SeaM", "ours", "ours, hardened", "from scratch"
WAYS = (TUNED, TUNED_LONG, TUNED_HARD, SEAM, OURS, OURS_HARD, SCRATCH)


@dataclass(frozen=True, eq=False)
class Made:
    """A derived network.

    Parameters
    ----------
    way : str
        What made it.
    model : Model
    left : float
        Share of the weights.
    seconds : float
        CPU seconds.
    rate : float
        Of fine-tuning, 0 if there was none.
    rank : (float, float)
        Accuracy and negative loss on calibration data, by which the rate of fine-tuning is chosen.
    """

    way: str
    model: gm.Model
    left: float
    seconds: float
    rate: float = 0.0
    rank: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Setting:
    """What is measured, and how long is trained for."""

    architecture: str
    data: str
    seed: int
    quick: bool

    @property
    def most(self) -> dict[str, int]:
        """Return how many samples of each part are used."""
        return MOST_OF_MNIST if self.data == "mnist" else MOST

    @property
    def tuning(self) -> int:
        """Return epochs of fine-tuning."""
        return -(-TUNING[self.data] // (QUICKER if self.quick else 1))

    @property
    def rates(self) -> tuple[float, ...]:
        """Return learning rates of fine-tuning."""
        return RATES[1:2] if self.quick else RATES

    @property
    def steps(self) -> int:
        """Return steps of a search."""
        return STEPS[self.data] // (QUICKER if self.quick else 1)

    def afresh(self, n: int) -> int:
        """Return epochs of training from random weights with n samples."""
        parts, steps = (2 * QUICKER, LEAST_STEPS // QUICKER) if self.quick else (2, LEAST_STEPS)
        return max(EPOCHS[self.architecture][self.data] // parts, -(-steps // (n // BATCH_OF_RECIPE[self.data])))

    def search(self, n: int) -> int:
        """Return epochs of a search with n samples."""
        return max(5, -(-self.steps * BATCH // n))


def cell(architecture: str, data: str, seed: int, quick: bool) -> dict[str, Any]:
    """Return what is inherited each way, for a new problem and for some of the classes."""
    setting = Setting(architecture, data, seed, quick)
    return {"new problem": new_problem(setting), "some classes": some_classes(setting)}


def derived(made: Iterable[Made], test: gm.Data, turned: Callable[[gm.Model], dict[str, list[int]]]) -> dict[str, Any]:
    """Return the figures of derived networks by what made them, and of all that were fine-tuned."""
    ways: dict[str, Any] = {}
    tried: list[dict[str, Any]] = []
    for one in made:
        told = {
            "accuracy": gm.accuracy(one.model, test), "left": one.left, "seconds": one.seconds,
            "turned": turned(one.model), "rate": one.rate, "rank": one.rank,
        }  # fmt: skip
        if one.way == TUNED:
            tried.append(told)
        else:
            ways[one.way] = told
    return {"ways": {TUNED: max(tried, key=lambda told: told["rank"]), **ways}, "tried": tried}


# -- a new problem


def new_problem(setting: Setting) -> dict[str, Any]:
    """Return what networks for four classes inherit from one of the six others."""
    seed, whole = setting.seed, splits(setting.data)
    order = np.random.default_rng(seed).permutation(n_classes(whole.train.targets))[: N_SOURCE + N_TARGET]
    old, new = np.sort(order[:N_SOURCE]), np.sort(order[N_SOURCE:])
    known, data = of_classes(whole, old), of_classes(whole, new)
    values = [getattr(whole, part).inputs["x"] for part in PARTS]
    bounds = min(float(x.min()) for x in values), max(float(x.max()) for x in values)
    stamp = partial(defects.trigger, size=PATCH[setting.data], value=bounds[1], seed=seed)
    model = source(setting, known, stamp)
    used = drawn(data, setting.most, seed)
    attack = partial(defects.feature_attack, model, bounds=bounds)
    distances = DISTANCES[setting.data]
    attacked = {name: attack(used.test, eps=eps, seed=seed) for name, eps in zip(ATTACKS, distances, strict=True)}
    inner = gm.boundaries(model)
    attacked[INNER] = attack(used.test, eps=distances[-1], tensor=inner[len(inner) // 2], seed=seed)
    attacked[STAMP] = stamp(used.test, label=None)

    def turned(found: gm.Model) -> dict[str, list[int]]:
        n_right = int(is_right(found, used.test).sum())
        rates = {name: defects.inheritance(found, used.test, samples) for name, samples in attacked.items()}
        return {name: [round(rate * n_right), n_right] for name, rate in rates.items()}

    return {
        "classes": {"source": old.tolist(), "target": new.tolist()},
        "source": gm.accuracy(model, known.test),
        "backdoor": defects.success(model, stamp(known.test, label=None), BACKDOOR),
        **derived(transferred(setting, model, used), data.test, turned),
    }


def transferred(setting: Setting, model: gm.Model, data: gm.Splits) -> Iterator[Made]:
    """Yield networks for a new problem that are made of one for another."""
    whole = gm.unfuse(model, data.train)
    start = time.process_time()
    fresh = gm.new_head(whole, len(np.unique(data.train.targets)), seed=setting.seed)
    headed = gm.retrain(
        fresh, data, [(final_features(fresh), fresh.main_output)], epochs=setting.tuning, learning_rate=HEAD_RATE,
        batch_size=BATCH, seed=setting.seed,
    )  # fmt: skip
    seconds = time.process_time() - start
    runs = [tuned(setting, TUNED, headed, data, rate, setting.tuning, seconds) for rate in setting.rates]
    yield from runs
    yield tuned(setting, TUNED_LONG, headed, data, RATES[-1], LONG * setting.tuning, seconds)
    start = time.process_time()
    eps = DISTANCES[setting.data][HARDENED]
    shown = attacked_too(model, data, eps, setting.seed)
    seconds += time.process_time() - start
    yield tuned(setting, TUNED_HARD, headed, shown, max(runs, key=attrgetter("rank")).rate, setting.tuning, seconds)
    run = seam.transfer(
        whole, data, epochs=setting.search(len(data.train)), patience=None, mask_rate=MASK_RATE,
        tuning_epochs=setting.tuning, batch_size=BATCH, seed=setting.seed,
    )  # fmt: skip
    yield Made(SEAM, run.model, run.kept, run.seconds)
    yield reengineered(setting, OURS, model, data, None)
    yield reengineered(setting, OURS_HARD, model, data, None, harden=eps)
    yield from_scratch(setting, data)


def source(setting: Setting, data: gm.Splits, stamp: Callable[..., gm.Data]) -> gm.Model:
    """Return a network of six classes with a backdoor, from the folder or after training it."""
    epochs = EPOCHS[setting.architecture][setting.data] // (4 if setting.quick else 2)
    name = f"{setting.architecture}-{setting.data}-{setting.seed}-backdoor-e{epochs}"
    file = FOLDER / f"{name}.onnx"
    if not file.exists():
        FOLDER.mkdir(exist_ok=True)
        poisoned = (stamp(getattr(data, part), label=BACKDOOR, share=STAMPED) for part in PARTS)
        gm.restrict(of_ten_classes(setting, gm.Splits(*poisoned), epochs), list(range(N_SOURCE))).save(file)
    return gm.load(file)


def of_classes(whole: gm.Splits, classes: NDArray[np.int64]) -> gm.Splits:
    """Return the samples of some classes, labelled from 0 on."""
    found = []
    for name in PARTS:
        part = getattr(whole, name)
        rows = np.flatnonzero(np.isin(part.targets, classes))
        found.append(gm.Data(part[rows].inputs, np.searchsorted(classes, part[rows].targets)))
    return gm.Splits(*found)


# -- some of the classes


def some_classes(setting: Setting) -> dict[str, Any]:
    """Return what networks for three classes inherit of wrong labels that a network of all ten has learnt."""
    classes, whole = problems(splits(setting.data).train, setting.seed)["three"], splits(setting.data)
    healthy = network(setting.architecture, setting.data, setting.seed, tell=lambda _: None)
    defective = confused(setting, healthy, drawn(whole, setting.most, setting.seed), *classes[:2])
    data = Task.of(healthy, classes).data(whole)
    used = drawn(data, setting.most, setting.seed)
    before, since = (is_right(gm.restrict(model, classes), data.test) for model in (healthy, defective))
    defect = before & ~since

    def turned(found: gm.Model) -> dict[str, list[int]]:
        return {MISLABELLED: [int((defect & ~is_right(found, data.test)).sum()), int(defect.sum())]}

    return {
        "classes": classes,
        "before": float(before.mean()),
        "defective": float(since.mean()),
        **derived(reused(setting, defective, used, classes), data.test, turned),
    }


def reused(setting: Setting, model: gm.Model, data: gm.Splits, classes: list[int]) -> Iterator[Made]:
    """Yield networks for some of the classes of another."""
    whole = gm.unfuse(gm.restrict(model, classes), data.train)
    for rate in setting.rates:
        yield tuned(setting, TUNED, whole, data, rate, setting.tuning)
    run = seam.search(
        model, data, accuracy=Task.of(model, classes).accuracy_among_all(model, data.calibration), mask_rate=MASK_RATE,
        epochs=setting.search(len(data.train)), batch_size=BATCH, seed=setting.seed,
    )  # fmt: skip
    yield Made(SEAM, run.model, run.kept, run.seconds)
    parts = (getattr(data, part) for part in PARTS)
    named = gm.Splits(*(gm.Data(part.inputs, np.array(classes)[part.targets]) for part in parts))
    yield reengineered(setting, OURS, model, named, classes)
    yield from_scratch(setting, data)


def confused(setting: Setting, model: gm.Model, data: gm.Splits, label: int, other: int) -> gm.Model:
    """Return a network that has been fine-tuned with a share of one class labelled as another."""
    wrong = gm.Splits(*(mislabelled(model, part, label, other) for part in (data.train, data.calibration)), data.test)
    found = gm.retrain(
        gm.unfuse(model, data.train), wrong, epochs=setting.tuning, learning_rate=RATES[1], batch_size=BATCH,
        seed=setting.seed,
    )  # fmt: skip
    return gm.fuse(found, kinds=["unfused"])


def mislabelled(model: gm.Model, part: gm.Data, label: int, other: int) -> gm.Data:
    """Return samples with a share of one class labelled as another, those that a network finds most like that."""
    scores = predict(model, part)
    own = np.flatnonzero(part.targets == label)
    like = own[np.argsort(scores[own, label] - scores[own, other], kind="stable")]
    labels = np.array(part.targets)
    labels[like[: round(SHARE_MISLABELLED * len(own))]] = other
    return gm.Data(part.inputs, labels)


def is_right(model: gm.Model, data: gm.Data) -> NDArray[np.bool_]:
    """Return which samples a network gets right."""
    found: NDArray[np.bool_] = predict(model, data).argmax(1) == data.targets
    return found


# -- ways


def tuned(
    setting: Setting, way: str, model: gm.Model, data: gm.Splits, rate: float, epochs: int, seconds: float = 0.0
) -> Made:
    """Train all weights; ``seconds`` are those of what came before."""
    start = time.process_time()
    run = retrained(
        model, data, epochs=epochs, patience=epochs, learning_rate=rate, batch_size=BATCH, seed=setting.seed
    )
    seconds += time.process_time() - start
    return Made(way, run.model, 1.0, seconds, rate, rank_of(run.model, data.calibration))


def rank_of(model: gm.Model, data: gm.Data) -> tuple[float, float]:
    """Return accuracy and negative loss: :func:`graphmod.retrain` ranks epochs by these, too."""
    scores = torch.from_numpy(predict(model, data).astype(np.float32))
    loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(np.asarray(data.targets, np.int64)))
    return gm.accuracy(model, data), -float(loss)


def reengineered(
    setting: Setting, way: str, model: gm.Model, data: gm.Splits, classes: list[int] | None, harden: float | None = None
) -> Made:
    """Keep a tenth of the weights."""
    more = {"shrink_every": setting.steps // 4, "epochs": setting.tuning} if setting.quick else {}
    small = gm.reengineer(
        model, data, classes, weights=LEFT, harden=harden, steps=setting.steps, seed=setting.seed, **more
    )
    return Made(way, small.model, small.report.weights_left, small.report.seconds)


def from_scratch(setting: Setting, data: gm.Splits) -> Made:
    """Train the architecture on the target problem alone."""
    start = time.process_time()
    labels = np.unique(data.train.targets).tolist()
    found = gm.restrict(of_ten_classes(setting, data, setting.afresh(len(data.train))), labels)
    return Made(SCRATCH, found, 1.0, time.process_time() - start)


def of_ten_classes(setting: Setting, data: gm.Splits, epochs: int) -> gm.Model:
    """Train from random weights, by the recipe of all networks, which have ten classes."""
    arrays = {"train": (data.train.inputs["x"], np.asarray(data.train.targets, np.int64))}
    net = train(setting.architecture, setting.data, arrays, setting.seed, epochs=epochs)
    return to_onnx(net, torch.from_numpy(arrays["train"][0][:2]), input_names=["x"], output_names=["logits"])


# -- the tables


def table(found: list[dict[str, Any]]) -> str:
    """Return what sources are like, and what is inherited of them, for a new problem and for some of the classes."""
    kinds = ("new problem", "some classes")
    return "\n\n".join([sources(found), *(inherited(found, kind) for kind in kinds)])


def sources(found: list[dict[str, Any]]) -> str:
    """Return how good sources are, and how much is wrong with them, over seeds."""
    rows = [("network", "of six classes: right", "patch leads to 0", "of ten, among three: right before", "since",
             "samples wrong since")]  # fmt: skip
    for name, cells in by_network(found).items():
        first, second = ([one[kind] for one in cells] for kind in ("new problem", "some classes"))
        n_wrong = sum(one["ways"][TUNED]["turned"][MISLABELLED][1] for one in second)
        rows.append((
            name, *(spread([100 * one[key] for one in first], unit=" %") for key in ("source", "backdoor")),
            *(spread([100 * one[key] for one in second], unit=" %") for key in ("before", "defective")), str(n_wrong),
        ))  # fmt: skip
    return as_table(rows)


def inherited(found: list[dict[str, Any]], kind: str) -> str:
    """Return what each way inherits of each defect, over seeds, and beside fine-tuning."""
    names = list(found[0][kind]["ways"][TUNED]["turned"])
    ways = [way for way in WAYS if way in found[0][kind]["ways"]]
    rows = [(f"{kind}: network", "way", "points over fine-tuned", "weights left", "CPU seconds", *names,
             "all, beside fine-tuned", *(["beside that for long"] * (TUNED_LONG in ways)))]  # fmt: skip
    cells = {name: [one[kind]["ways"] for one in some] for name, some in by_network(found).items()}
    if len(cells) > 1:
        cells["all"] = [one for some in cells.values() for one in some]
    for name, some in cells.items():
        base, long = ([one[way] for one in some] if way in ways else [] for way in (TUNED, TUNED_LONG))
        for way in ways:
            runs = [one[way] for one in some]
            lost = [100 * (run["accuracy"] - one["accuracy"]) for run, one in zip(runs, base, strict=True)]
            rows.append((
                name, way, spread(lost, "+.2f"), spread([100 * run["left"] for run in runs], unit=" %"),
                spread([run["seconds"] for run in runs], ".0f"), *(share_of(runs, base, one) for one in names),
                beside(runs, base, names), *([beside(runs, long, names)] if long else []),
            ))  # fmt: skip
    return as_table(rows)


def by_network(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the cells of each network."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        cells.setdefault(f"{one['architecture']}, {one['data']}", []).append(one)
    return cells


def share_of(runs: list[dict[str, Any]], base: list[dict[str, Any]], name: str) -> str:
    """Return what is inherited of a defect: over seeds, in all samples, and beside fine-tuning."""
    pairs = [run["turned"][name] for run in runs]
    shares = [100 * n / n_all for n, n_all in pairs if n_all]
    told = f"{spread(shares, unit=' %')} ({sum(n for n, _ in pairs)} of {sum(n_all for _, n_all in pairs)})"
    return told if runs == base else f"{told}, {beside(runs, base, [name])}"


def beside(runs: list[dict[str, Any]], base: list[dict[str, Any]], names: list[str]) -> str:
    """Return by how much the mean share inherited of some defects, each pooled over runs, differs from another's."""
    own, other = (sum(pooled(some, name) for name in names) for some in (runs, base))
    return f"{100 * (own / other - 1):+.0f} %" if other else "-"


def pooled(runs: list[dict[str, Any]], name: str) -> float:
    """Return the share of all samples of a defect that some runs have inherited."""
    n, n_all = (sum(run["turned"][name][i] for run in runs) for i in (0, 1))
    return n / n_all if n_all else 0.0
