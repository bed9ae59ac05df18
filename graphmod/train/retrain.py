"""Retraining a network, or some of its blocks with the rest frozen."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.modules.batchnorm import _BatchNorm

from graphmod.data import Data, as_splits, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import Block, data_flow
from graphmod.model import Model
from graphmod.probe import predict, share_correct
from graphmod.pytorch import META, to_torch, write_back
from graphmod.pytorch.dtypes import HALF, to_tensor
from graphmod.rewrite import Region, find_region, rebatch
from graphmod.rewrite.region import Place
from graphmod.train.losses import cross_entropy, distillation
from graphmod.train.prefix import Prefix

Loss = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[NDArray[Any], NDArray[Any]], float]


def retrain(
    model: Model,
    data: object,
    blocks: Place | Sequence[Place] | None = None,
    *,
    teacher: Model | None = None,
    distill: float = 0.5,
    temperature: float = 2.0,
    loss: Loss | None = None,
    metric: Metric | None = None,
    epochs: int = 30,
    patience: int = 8,
    batch_statistics: bool | None = None,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Model:
    """Train a model, or some of its blocks with everything else frozen.

    Activations at the entry of the first trained block are computed once with ONNX Runtime and kept on disk, so that
    an epoch runs only from there on. Adam with a cosine schedule; the epoch that does best on calibration data is
    kept, and the model as it was counts as epoch 0, so that training never makes it worse there. A model of half
    precision is trained in single precision; the weights are rounded when they are written back.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_splits` takes
        Its training part is learnt, its calibration part decides when to stop; its test part is not used.
    blocks : sequence of Block, str or (str, str), optional
        What may learn: a block or its path; or a sequence of blocks, their paths, or pairs of tensors. All weights
        that have a part in the first output if None.
    teacher : Model, optional
        The original; its predictions are learnt beside the targets.
    distill : float
        Share of the teacher in the loss, between 0 and 1; without a teacher there is none.
    temperature : float
        Of the distillation.
    loss : callable, optional
        ``loss(outputs, targets) -> scalar tensor``; cross-entropy with integer labels if None, on the logits before
        a softmax at the end of the model. With a loss of one's own the teacher's outputs are learnt by squared error.
    metric : callable, optional
        ``metric(outputs, targets) -> float``, larger is better; accuracy if None, or ``loss`` if that was given.
    epochs, patience : int
        At most so many; stop after so many without progress.
    batch_statistics : bool, optional
        Whether batch normalisation that may learn goes by the batch while training, and its running statistics follow,
        as when a network is trained from scratch: a last batch that is not full is left out then. Else they stay as
        they are. If None, so where the whole network learns.
    learning_rate : float
    batch_size : int
    seed : int
        Same seed, same result.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Model
        The same graph; only weights, and running statistics, of what may learn differ.

    Raises
    ------
    RefusedError
        A block does not exist, there are no weights in the blocks that have a part in the first output, or a model
        takes a fixed number of samples that cannot be freed.
    UnsupportedOperatorError
        An operator behind the first block's entry cannot be imported into PyTorch.
    InvalidDataError
        The data does not fit.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> better = gm.retrain(m, gm.demo.splits(), ["layer3.6"], epochs=1)
    >>> gm.verify(m, better, gm.demo.splits().test).outputs["logits"].rms < 1
    True
    """
    if not 0 <= distill <= 1:
        raise RefusedError(f"distill={distill} is out of range; it is a share between 0 and 1")
    if epochs < 0 or patience < 1 or batch_size < 1 or learning_rate <= 0 or seed < 0:
        raise RefusedError(
            "epochs and seed must be at least 0, patience and batch_size at least 1, learning_rate above 0"
        )
    places = [blocks] if isinstance(blocks, str | Block) else blocks
    told = "the model" if places is None else ", ".join(map(str, places)) or "no blocks"
    whole, model = model, _by_any_number(model)
    teacher = None if teacher is None else _by_any_number(teacher)
    splits = as_splits(model, data, seed, labels=loss is None)
    regions = None if places is None else [find_region(model, place) for place in places]
    weights = None if regions is None else trained_weights(model, regions)
    if weights is not None and not weights:
        raise RefusedError(f"there are no weights to train in {told}")
    classify = loss is None
    prefix = Prefix(model, regions, logits(model) if classify else model.main_output)
    net = to_torch(prefix.suffix, dtype=torch.float32)  # in half precision Adam divides by zero
    trained = _freeze_all_but(net, weights)
    if not trained:
        raise RefusedError(f"no weight of {told} has a part in output '{model.main_output}'")
    norms = _normalizations(net) if (places is None if batch_statistics is None else batch_statistics) else []
    if norms and min(batch_size, len(splits.train)) < 2:
        raise RefusedError(
            "a batch of one sample has no statistics; give batch_size=2 or more, or batch_statistics=False"
        )
    with tempfile.TemporaryDirectory(prefix="graphmod-") as folder, torch.random.fork_rng():
        torch.manual_seed(seed)
        train = prefix.cached(splits.train, Path(folder), "train")
        calibration = prefix.cached(splits.calibration, Path(folder), "calibration")
        soft = None
        if teacher is not None and distill > 0:
            taught = logits(teacher) if classify else teacher.main_output
            soft = _tensor(predict(teacher, splits.train, output=taught))
        _fit(
            net,
            trained,
            norms,
            list(prefix.suffix.inputs),
            train,
            calibration,
            objective=_objective(loss, soft, distill, temperature),
            score=_score(loss, metric),
            epochs=epochs,
            patience=patience,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    return write_back(whole, net)


def _by_any_number(model: Model) -> Model:
    """Return a model that takes any number of samples at a time, as training does, with the same weights."""
    return model if fixed_batch(model) is None else rebatch(model)


def trained_weights(model: Model, regions: Sequence[Region]) -> frozenset[str]:
    """Return the names of the float constants that the operators of some regions read."""
    inside = {
        name for region in regions for _, _, name in data_flow(model, region.entry, region.exit).edges(data="operator")
    }
    roots = _constant_roots(model)
    read = {
        root
        for position, name in enumerate(model.operator_names)
        if name in inside
        for tensor in model.reads[position]
        for root in roots.get(tensor, ())
    }
    return frozenset(name for name in read if model.tensors[name].is_float)


def _constant_roots(model: Model) -> dict[str, tuple[str, ...]]:
    """Return, for every tensor computed from constants alone, itself and the constants that it comes from."""
    roots: dict[str, tuple[str, ...]] = {name: (name,) for name in model.constants}
    for position, operator in enumerate(model.operators):
        reads = model.reads[position]
        if reads and all(name in roots for name in reads):
            known = tuple(dict.fromkeys(root for name in reads for root in roots[name]))
            roots.update((name, (name, *known)) for name in operator.output if name and name not in roots)
    return roots


def _freeze_all_but(net: torch.fx.GraphModule, weights: frozenset[str] | None) -> list[nn.Parameter]:
    """Let only these constants of the graph learn, all if None; return their parameters."""
    parameters = dict(net.named_parameters())
    if weights is None:
        return list(parameters.values())
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    trained: dict[str, nn.Parameter] = {}
    for binding in net.meta[META]:
        if binding.tensor in weights and binding.path in parameters:
            parameters[binding.path].requires_grad_(True)
            trained[binding.path] = parameters[binding.path]
    return list(trained.values())


def _normalizations(net: torch.fx.GraphModule) -> list[_BatchNorm]:
    """Return the batch normalisations that learn."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if any(parameter.requires_grad for parameter in norm.parameters())]


def logits(model: Model) -> str:
    """Return the tensor of a classifier's logits: its output, or what a softmax at its end reads."""
    output = model.main_output
    last = next((operator for operator in model.operators if output in operator.output), None)
    return last.input[0] if last is not None and last.op_type == "Softmax" else output


def _objective(
    loss: Loss | None, soft: Tensor | None, distill: float, temperature: float
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Mix the loss with what the teacher says: its softened predictions, or under a loss of one's own its outputs."""

    def objective(outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        hard = (loss or cross_entropy)(outputs, targets)
        if soft is None:
            return hard
        taught = distillation(outputs, soft[rows], temperature) if loss is None else mse_loss(outputs, soft[rows])
        return (1 - distill) * hard + distill * taught

    return objective


def _score(loss: Loss | None, metric: Metric | None) -> Callable[[Tensor, Tensor], tuple[float, float]]:
    """Rank epochs by the metric, and by the loss where there is none or it cannot tell them apart."""
    if metric is None and loss is None:
        metric = share_correct

    def score(outputs: Tensor, targets: Tensor) -> tuple[float, float]:
        value = -float((loss or cross_entropy)(outputs, targets))
        return (value if metric is None else metric(outputs.numpy(), targets.numpy()), value)

    return score


def _fit(
    net: torch.fx.GraphModule,
    trained: list[nn.Parameter],
    norms: list[_BatchNorm],
    names: list[str],
    train: Data,
    calibration: Data,
    *,
    objective: Callable[[Tensor, Tensor, Tensor], Tensor],
    score: Callable[[Tensor, Tensor], tuple[float, float]],
    epochs: int,
    patience: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    progress: bool,
) -> None:
    """Run the epochs and leave the network with the best one's weights; ``norms`` go by the statistics of batches."""
    order = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(trained, lr=learning_rate)
    whole = len(train) - len(train) % batch_size if norms and len(train) > batch_size else len(train)
    starts = range(0, whole, batch_size)
    steps = max(1, epochs * len(starts))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best_score = score(*_outputs(net, names, calibration, batch_size))
    state = [*trained, *(buffer for norm in norms for buffer in norm.buffers())]
    best = copy.deepcopy([tensor.detach() for tensor in state])
    waited = 0
    columns = (TextColumn("retraining"), BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn())
    with Progress(*columns, disable=not progress, transient=True) as bar:
        task = bar.add_task("", total=epochs, told=f"calibration {best_score[0]:.4f}")
        for _ in range(epochs):
            net.train()
            for module in net.modules():
                if isinstance(module, _BatchNorm):
                    module.train(module in norms)
            permuted = order.permutation(len(train))
            for start in starts:
                rows = permuted[start : start + batch_size]
                batch = train[rows]
                optimizer.zero_grad()
                value = objective(net(*_tensors(batch, names)), _targets(batch), torch.from_numpy(rows))
                value.backward()  # type: ignore[no-untyped-call]  # torch ships this method without annotations
                optimizer.step()
                schedule.step()
            now = score(*_outputs(net, names, calibration, batch_size))
            waited += 1
            if now > best_score:
                best_score, waited = now, 0
                best = copy.deepcopy([tensor.detach() for tensor in state])
            bar.update(task, advance=1, told=f"calibration {best_score[0]:.4f}")
            if waited >= patience:
                break
    with torch.no_grad():
        for tensor, value in zip(state, best, strict=True):
            tensor.copy_(value)
    net.eval()


def _outputs(net: torch.fx.GraphModule, names: list[str], data: Data, batch_size: int) -> tuple[Tensor, Tensor]:
    net.eval()
    with torch.no_grad():
        outputs = [net(*_tensors(batch, names)) for batch in data.batches(max(batch_size, 256))]
    return torch.cat(outputs), _targets(data)


def _tensors(data: Data, names: list[str]) -> list[Tensor]:
    return [_tensor(data.inputs[name]) for name in names]


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as the network takes it: half precision as single."""
    tensor = to_tensor(array)
    return tensor.float() if array.dtype.name in HALF else tensor


def _targets(data: Data) -> Tensor:
    assert data.targets is not None, "retrain asks as_splits for targets"
    return _tensor(data.targets)
