"""Activations streamed out of one ONNX Runtime session, a batch at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from math import lcm

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.model import Model, run_bound

Array = NDArray[np.generic]

_PROBE = 5
"""Samples that are run once to learn shapes, at least: a number that hardly any axis but the batch has."""


def stream(
    model: Model,
    data: Data,
    tensors: Sequence[str],
    batch_size: int = 64,
    threads: int | None = None,
    *,
    unit: int = 1,
    reuse: int = 0,
    by_sample: bool = False,
) -> Iterator[tuple[Data, dict[str, Array]]]:
    """Yield every batch of the data with the values of some tensors.

    One session serves all batches, with the tensors as extra outputs; memory is bounded by the batches that the
    caller still holds. A model whose inputs fix the number of samples is run as often as a batch needs.

    Parameters
    ----------
    model : Model
    data : Data
        Samples for the model's inputs.
    tensors : sequence of str
        Names of tensors: graph inputs, graph outputs or inner ones.
    batch_size : int
        Samples a batch, at most.
    threads : int, optional
        Threads of ONNX Runtime; all cores if None.
    unit : int
        Samples of which every batch has a multiple.
    reuse : int
        Batches whose values are valid at a time, in memory that is taken once and used again; fresh memory for every
        batch, valid as long as the caller holds it, if 0.
    by_sample : bool
        Leave out tensors whose first axis is not the batch, as some samples tell that are run before.

    Yields
    ------
    batch : Data
        The samples.
    values : dict of str to array
        The tensors' values for them.

    Raises
    ------
    InvalidDataError
        The number of samples is no multiple of what the model's inputs fix.
    InvalidModelError
        A tensor does not exist.
    RefusedError
        An input, or an output that is wanted, is of a type that NumPy does not share with ONNX Runtime: bfloat16.
    """
    _refuse_foreign(model, tensors)
    made = [name for name in dict.fromkeys(tensors) if name not in model.inputs]
    session = model.session(threads, outputs=made)
    binding = session.io_binding()
    fixed = fixed_batch(model)
    if fixed and len(data) % fixed:
        raise InvalidDataError(
            f"the model takes {fixed} samples at a time and the data has {len(data)}; leave {len(data) % fixed} out"
        )

    memory: deque[dict[str, Array]] = deque({} for _ in range(reuse))

    def run(part: Data, targets: dict[str, Array]) -> list[Array]:
        if not made:
            return []
        for name, array in part.inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in made:
            if name in targets:
                target = targets[name]
                binding.bind_output(name, "cpu", 0, target.dtype, target.shape, target.ctypes.data)
            else:
                binding.bind_output(name, "cpu")
        run_bound(session, binding)
        filled = zip(made, binding.get_outputs(), strict=True)
        return [targets[name] if name in targets else value.numpy() for name, value in filled]

    kinds: dict[str, Array] = {}
    if reuse or by_sample:
        sample = data[: fixed or _few(data)]
        probed = zip(made, run(sample, {}), strict=True)
        kinds = {name: value for name, value in probed if value.ndim and len(value) == len(sample)}
    wanted = [name for name in tensors if not by_sample or name in kinds or name in model.inputs]

    def take(n: int) -> dict[str, Array]:
        """Return memory for n samples, larger where it was too small.

        numpy asks for large pages, which the runtime's own arena does not: faults on small ones can cost more than
        the inference itself.
        """
        memory.rotate()
        for name, value in kinds.items():
            if name not in memory[0] or len(memory[0][name]) < n:
                memory[0][name] = np.empty((n, *value.shape[1:]), value.dtype)
        return {name: memory[0][name][:n] for name in kinds}

    for batch in data.batches(batch_size, unit=lcm(unit, fixed or 1)):
        targets = take(len(batch)) if reuse else {}
        if fixed and len(batch) > fixed:
            rows = [slice(start, start + fixed) for start in range(0, len(batch), fixed)]
            pieces = [run(batch[part], {name: target[part] for name, target in targets.items()}) for part in rows]
            columns = zip(made, zip(*pieces, strict=True), strict=True)
            values = [targets[name] if name in targets else np.concatenate(column) for name, column in columns]
        else:
            values = run(batch, targets)
        computed = dict(zip(made, values, strict=True))
        yield batch, {name: computed[name] if name in computed else batch.inputs[name] for name in wanted}


def gathered(model: Model, data: Data, tensors: Sequence[str], batch_size: int = 256) -> dict[str, Array]:
    """Return tensors for all samples, each of shape (samples, ...).

    Raises
    ------
    RefusedError
        The first axis of one is not the batch.
    """
    batches = [values for _, values in stream(model, data, tensors, batch_size, by_sample=True)]
    folded = next((name for name in tensors if name not in batches[0]), None)
    if folded is not None:
        raise RefusedError(
            f"the first axis of '{folded}' is not the batch, so samples have no values of their own there"
        )
    return {name: np.concatenate([batch[name] for batch in batches]) for name in tensors}


def _few(data: Data) -> int:
    """Return a small number of samples that no other axis of the inputs has, if there are so many."""
    sizes = {size for array in data.inputs.values() for size in array.shape[1:]}
    numbers = chain(range(_PROBE, len(data) + 1), range(min(_PROBE - 1, len(data)), 1, -1))
    return next((n for n in numbers if n not in sizes), len(data))


def _refuse_foreign(model: Model, tensors: Sequence[str]) -> None:
    """Raise RefusedError for inputs and outputs that no array can be handed over for."""
    for name, kind in {**model.inputs, **{one: model.outputs[one] for one in tensors if one in model.outputs}}.items():
        if kind.dtype is not None and kind.dtype.name == "bfloat16":
            raise RefusedError(
                f"'{name}' is {kind}, which ONNX Runtime exchanges no NumPy arrays of; "
                "graphmod.retype(model, 'float32', keep_io=False) helps"
            )
