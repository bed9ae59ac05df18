"""Giving a dimension of the inputs another size, or a name: what holds on to the old size in the graph is freed.

The graph is followed at two sizes of the dimension, the file's and one that occurs nowhere
(:mod:`graphmod.rewrite.sizing`). Where a constant stops the dimension (the target of a Reshape, the end of a Slice, a
state or a token repeated for every sample) it is replaced by what follows the dimension; samples are run to prove it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ValueInfoProto

from graphmod.errors import InvalidDataError, RefusedError
from graphmod.model import Model
from graphmod.rewrite.freeing import Freed, free
from graphmod.rewrite.verb import verb

Array = NDArray[np.generic]

_NAME = r"[^\W\d][\w.]*"
"""A name of a dimension, alone or in an expression of several."""


@verb(exact=True, example="graphmod rebatch resnet.onnx --size batch --out dynamic.onnx")
def rebatch(model: Model, size: int | str = "batch", axis: int = 0, inputs: list[str] | None = None) -> Model:
    """Give a dimension of the inputs another size, or a name to make it dynamic.

    Constants that hold the old size are freed: targets of Reshape, Expand and Resize, ends of Slice, tensors repeated
    for every sample. Where the dimension is the batch, samples are run through both models to prove that they are
    computed as before, each by itself. A dimension that has a name already gets the new one wherever it stands.

    Parameters
    ----------
    model : Model
    size : int or str
        A number, or the name of a dynamic dimension.
    axis : int
        Where the dimension stands in each input.
    inputs : list of str, optional
        The inputs that have it; all of them if None.

    Returns
    -------
    Model

    Raises
    ------
    RefusedError
        The size is none, the inputs do not share the dimension, or an operator, which is named, cannot do without its
        old size.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> gm.rebatch(m, 4).outputs["logits"].shape
    (4, 10)
    >>> gm.rebatch(gm.rebatch(m, 4), "n").outputs["logits"].shape
    ('n', 10)
    """
    _check(size)
    chosen = list(model.inputs) if inputs is None else inputs
    old = _shared(model, chosen, axis)
    if old == {size}:
        return model
    (fixed,) = old if len(old) == 1 and all(isinstance(one, int) for one in old) else (None,)
    if not isinstance(fixed, int):
        return _renamed(model, chosen, axis, {one for one in old if isinstance(one, str)}, size)
    for inner in (False, True):  # of two axes that the dimension may be in, the file does not say which
        freed = free(model, chosen, axis, fixed, inner)
        _declare(freed.draft.graph, freed, chosen, axis, "batch" if isinstance(size, int) else size)
        result = freed.draft.finish()
        wrong = _differs(model, result, freed, chosen, axis)
        if not wrong or not freed.ambiguous:
            break
    if wrong:
        raise RefusedError(wrong)
    if isinstance(size, int):
        proto = result.editable()
        _declare(proto.graph, freed, chosen, axis, size)
        result = result.derive(proto)
    return result


def _check(size: int | str) -> None:
    if isinstance(size, str) and not re.fullmatch(_NAME, size):
        raise RefusedError(f"'{size}' is no name of a dimension; use letters, digits and _, such as 'batch'")
    if isinstance(size, int) and size < 1:
        raise RefusedError(f"a size of {size} is none; give a number above 0, or a name such as 'batch'")


def _shared(model: Model, chosen: Sequence[str], axis: int) -> set[int | str | None]:
    unknown = [name for name in chosen if name not in model.inputs]
    if unknown:
        raise RefusedError(f"there is no input '{unknown[0]}'; the inputs are {', '.join(model.inputs)}")
    shapes = {name: model.inputs[name].shape or () for name in chosen}
    short = [name for name, shape in shapes.items() if not -len(shape) <= axis < len(shape)]
    sizes = {shape[axis] for name, shape in shapes.items() if name not in short}
    if short or not sizes or (len(sizes) > 1 and any(isinstance(one, int) for one in sizes)):
        told = ", ".join(f"'{name}' is {model.inputs[name]}" for name in chosen)
        raise RefusedError(
            f"the inputs have no batch dimension in common along axis {axis}: {told}; name those to change"
        )
    return sizes


# -- dimensions that have a name


def _renamed(model: Model, chosen: Sequence[str], axis: int, symbols: set[str], size: int | str) -> Model:
    """Replace names of dimensions wherever they stand, in expressions too; numbers made of them are for inference."""
    proto = model.editable()
    elsewhere = {
        dim
        for name, kind in model.inputs.items()
        for place, dim in enumerate(kind.shape or ())
        if name not in chosen or place != axis % len(kind.shape or ())
    }
    everywhere = symbols - elsewhere
    for value in proto.graph.input:
        if value.name in chosen:
            _set(value, axis, size)
    for value in (*proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            words = set(re.findall(_NAME, dim.dim_param)) & everywhere
            if dim.dim_param in everywhere and isinstance(size, int):
                dim.dim_value = size
            elif words and isinstance(size, int):
                dim.Clear()
            elif words:
                dim.dim_param = re.sub(_NAME, lambda m: str(size) if m[0] in everywhere else m[0], dim.dim_param)
    if not symbols:
        for value in proto.graph.output:
            shape = model.outputs[value.name].shape
            if shape and shape[axis:][:1] == (None,):
                _set(value, axis, size)
    return model.derive(proto)


def _set(value: ValueInfoProto, axis: int, size: int | str) -> None:
    dim = value.type.tensor_type.shape.dim[axis]
    if isinstance(size, int):
        dim.dim_value = size
    else:
        dim.dim_param = size


# -- dimensions that are numbers


def _declare(graph: GraphProto, freed: Freed, chosen: Sequence[str], axis: int, size: int | str) -> None:
    """Declare a dimension wherever it stands in inputs and outputs; what inference must find is left open."""
    for value in graph.input:
        if value.name in chosen:
            _set(value, axis, size)
    for value in graph.output:
        dims = value.type.tensor_type.shape.dim
        for place, factor in enumerate(freed.factors(value.name, len(dims))):
            taken = factor is None and place == axis == 0 and dims[place].dim_value == freed.old  # samples will tell
            if factor == 1 or taken:
                _set(value, place, size)
            elif (factor is None and axis != 0) or (factor and isinstance(size, str)):
                dims[place].Clear()
            elif factor and isinstance(size, int):
                _set(value, place, round(factor * size))


def _differs(model: Model, result: Model, freed: Freed, chosen: Sequence[str], axis: int) -> str:
    """Run samples through both models; return what is wrong with the second, "" if nothing is."""
    old = freed.old
    factors = {name: freed.factors(name, len(kind.shape or ())) for name, kind in model.outputs.items()}
    by_sample = axis == 0 and len(chosen) == len(model.inputs)
    if by_sample:
        stuck = [
            name
            for name, kind in factors.items()
            if kind and kind[0] == 0 and (model.outputs[name].shape or ())[0] == old
        ]
        holding = f"; {freed.holding[-1]} holds on to them" if freed.holding else ""
        if stuck:
            return f"output '{stuck[0]}' still has {old} samples{holding}"
        by_sample = all(kind[:1] != [0] and not any(kind[1:]) for kind in factors.values() if None not in kind)
    count = 3 if by_sample else 1
    feeds = _made_up(model, chosen, axis, old * count)
    try:
        parts = [model.run(_part(feeds, chosen, axis, i * old, old)) for i in range(count)]
    except InvalidDataError:  # nothing can be told from made-up inputs
        return ""
    larger = feeds if by_sample else _made_up(model, chosen, axis, old + 1)
    try:
        found = result.run(feeds)
        result.run(larger)
    except InvalidDataError as error:
        return f"it would not run at another size than {old}: {error}"
    for name, value in found.items():
        if not isinstance(value, np.ndarray):  # which parts of a sequence or a map are samples nothing tells
            continue
        if not _is_close(_together([part[name] for part in parts]), value):
            told = (
                f"; the last to read the dimension and not to hand it on is {freed.holding[-1]}"
                if freed.holding
                else ""
            )
            return f"output '{name}' of several samples is not that of each by itself{told}"
    return ""


def _together(found: Sequence[Array]) -> Array:
    """Return what several runs gave as one run would: samples in a row; what has no samples is always the same."""
    alike = found[0].ndim > 0 and len({value.shape[1:] for value in found}) == 1
    return np.concatenate(found) if alike else found[0]


def _is_close(expected: Array, found: Array) -> bool:
    if expected.shape != found.shape or expected.dtype.kind not in "fiu":
        return expected.shape == found.shape and bool(np.array_equal(expected, found))
    scale = float(np.abs(expected, where=np.isfinite(expected), out=np.zeros_like(expected)).max(initial=0))
    return bool(np.allclose(found, expected, rtol=0, atol=1e-4 * scale, equal_nan=True))


def _made_up(model: Model, chosen: Sequence[str], axis: int, size: int) -> dict[str, Array]:
    """Return random inputs: floats of deviation 1, and integers of 0 and 1, which are good indices almost anywhere."""
    rng = np.random.default_rng(0)
    numbers: dict[str | None, int] = {}
    feeds = {}
    for name, kind in model.inputs.items():
        shape = [dim if isinstance(dim, int) else numbers.setdefault(dim, 32) for dim in kind.shape or ()]
        if name in chosen:
            shape[axis] = size
        dtype = kind.dtype or np.dtype(np.float32)
        drawn = rng.normal(size=shape) if kind.is_float else rng.integers(0, 2, shape)
        feeds[name] = np.asarray(drawn).astype(dtype)
    return feeds


def _part(feeds: dict[str, Array], chosen: Sequence[str], axis: int, start: int, size: int) -> dict[str, Array]:
    return {
        name: value.take(range(start, start + size), axis) if name in chosen else value for name, value in feeds.items()
    }
