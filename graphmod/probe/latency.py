"""Latency in ONNX Runtime: models side by side, and every block of one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from time import process_time_ns

import numpy as np
import onnx
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import Block, subgraph
from graphmod.model import Model, run_bound

Feeds = Mapping[str, NDArray[np.generic]]

_ROUND_NS = 2_000_000
"""Runs are repeated within a round until it lasts about this long, so that the clock's resolution does not matter."""

TOLERANCE = 1.02
"""By how much measuring twice differs."""

_STEADY_ROUNDS = 15
_REPEATS = 8


@dataclass(frozen=True)
class Latency:
    """CPU time of one run, in microseconds: median, quartiles and least over rounds."""

    median: float
    lower: float
    upper: float
    least: float


def latency(
    models: Mapping[str, Model],
    feeds: Feeds | Mapping[str, Feeds],
    *,
    rounds: int = 30,
    threads: int = 1,
) -> dict[str, Latency]:
    """Time models against each other: one round of each in turn, CPU time, medians.

    Parameters
    ----------
    models : mapping of str to Model
    feeds : mapping of str to array, or mapping of str to such a mapping
        Arrays for the inputs that all models share; or one such mapping a model, under the model's key.
    rounds : int
        Rounds over all models.
    threads : int
        Threads within an operator.

    Returns
    -------
    dict of str to Latency
        Microseconds a run.

    Raises
    ------
    RefusedError
        ``models`` is no mapping.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> gm.latency({"m": m}, {"image": np.zeros((1, 1, 8, 8), np.float32)}, rounds=3)["m"].median > 0
    True
    """
    if not isinstance(models, Mapping):
        raise RefusedError('latency compares models by name; give a mapping such as {"m": m}')
    runs: dict[str, Callable[[], object]] = {}
    repeats: dict[str, int] = {}
    for key, model in models.items():
        own = feeds[key] if key in feeds and not isinstance(feeds[key], np.ndarray) else feeds
        runs[key] = _bound(model, own, threads)  # type: ignore[arg-type]  # a mapping of one kind or the other
        for _ in range(3):
            runs[key]()
        repeats[key] = max(1, round(_ROUND_NS / max(1, _time(runs[key], 3))))
    times: dict[str, list[float]] = {key: [] for key in models}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for key, run in runs.items():
                times[key].append(_time(run, repeats[key]) / 1000)
    finally:
        if collecting:
            gc.enable()
    return {key: Latency(*(float(np.percentile(values, q)) for q in (50, 25, 75, 0))) for key, values in times.items()}


def least_latency(models: Mapping[str, Model], feeds: Feeds) -> dict[str, float]:
    """Time models against each other: the least of some rounds, and of as many again until these change nothing.

    What else the machine does only adds to it.

    Parameters
    ----------
    models : mapping of str to Model
    feeds : mapping of str to array
        Arrays for the inputs that all models share.

    Returns
    -------
    dict of str to float
        Microseconds a run.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> gm.probe.least_latency({"m": m}, {"image": np.zeros((1, 1, 8, 8), np.float32)})["m"] > 0
    True
    """
    least = dict.fromkeys(models, inf)
    for _ in range(_REPEATS):
        found = latency(models, feeds, rounds=_STEADY_ROUNDS)
        before, least = least, {name: min(time, found[name].least) for name, time in least.items()}
        if all(time * TOLERANCE >= before[name] for name, time in least.items()):
            break
    return least


def block_latency(
    model: Model, blocks: Sequence[Block], data: Data, *, batch_size: int = 1, rounds: int = 9
) -> dict[str, float]:
    """Time blocks as models of their own, less what a run costs that computes nothing.

    The least of the rounds counts: what else the machine does can only add to a block's time, and small blocks show it
    most.

    Parameters
    ----------
    model : Model
    blocks : sequence of Block
        Blocks of the model.
    data : Data
        Samples, of which the first ``batch_size`` are used: blocks are fed their real activations.

    Returns
    -------
    dict of str to float
        Microseconds by the block's path.
    """
    fixed = fixed_batch(model)
    sample = data[np.arange(fixed or batch_size) % len(data)]
    parts = {block.path: subgraph(model, [block.entry], [block.exit]) for block in blocks}
    needed = dict.fromkeys(name for part in parts.values() for name in part.inputs if name not in model.inputs)
    feeds = {**sample.inputs, **(model.run(sample.inputs, list(needed)) if needed else {})}
    own = {path: {name: feeds[name] for name in part.inputs} for path, part in parts.items()}
    entries = {f"entry {block.entry}": block.entry for block in blocks}
    idle = {key: _identity(feeds[name]) for key, name in entries.items()}
    timed = latency(
        {**parts, **idle}, {**own, **{key: {"x": feeds[name]} for key, name in entries.items()}}, rounds=rounds
    )
    return {block.path: max(0.0, timed[block.path].least - timed[f"entry {block.entry}"].least) for block in blocks}


def _bound(model: Model, feeds: Feeds, threads: int) -> Callable[[], object]:
    model.check_feeds({name: feeds[name] for name in model.inputs if name in feeds})
    session = model.session(threads)
    binding = session.io_binding()
    for name in model.inputs:
        binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
    for name in model.outputs:
        binding.bind_output(name, "cpu")
    return lambda: run_bound(session, binding)


def _time(run: Callable[[], object], repeats: int) -> float:
    start = process_time_ns()
    for _ in range(repeats):
        run()
    return (process_time_ns() - start) / repeats


def _identity(value: NDArray[np.generic]) -> Model:
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    made = [onnx.helper.make_tensor_value_info(name, kind, list(value.shape)) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "identity", made[:1], made[1:])
    return Model(onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 13)]))
