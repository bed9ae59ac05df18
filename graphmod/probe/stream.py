"""Activations streamed out of one ONNX Runtime session, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import lcm

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.errors import InvalidDataError
from graphmod.model import Model

Array = NDArray[np.generic]


def stream(
    model: Model,
    data: Data,
    tensors: Sequence[str],
    batch_size: int = 64,
    threads: int | None = None,
    *,
    unit: int = 1,
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
    """
    made = [name for name in tensors if name not in model.inputs]
    session = model.session(threads, outputs=made)
    binding = session.io_binding()
    fixed = fixed_batch(model)
    if fixed and len(data) % fixed:
        raise InvalidDataError(
            f"the model takes {fixed} samples at a time and the data has {len(data)}; leave {len(data) % fixed} out"
        )

    def values_for(part: Data) -> list[Array]:
        for name, array in part.inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in made:  # bound to the device, not to a buffer: the runtime's arena hands memory back and forth
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]

    for batch in data.batches(batch_size, unit=lcm(unit, fixed or 1)):
        if fixed and len(batch) > fixed:
            pieces = [values_for(piece) for piece in batch.batches(fixed)]
            values = [np.concatenate(column) for column in zip(*pieces, strict=True)]
        else:
            values = values_for(batch)
        computed = dict(zip(made, values, strict=True))
        yield batch, {name: computed[name] if name in computed else batch.inputs[name] for name in tensors}
