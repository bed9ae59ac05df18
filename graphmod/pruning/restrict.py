"""``restrict``: a classifier of some of its classes, from a smaller last layer.

Logits of other classes leave the softmax of those that stay as it is up to a factor: softmax over a subset S is the
distribution given that the class is in S. A superclass of the members M has the logit log sum_{c in M} exp(z_c), with
which a softmax gives it the sum of their probabilities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.pruning.groups import Groups, Units, groups
from graphmod.pruning.head import Head, check_exclusive, head_of, is_list
from graphmod.pruning.independence import is_independent
from graphmod.pruning.removal import cut
from graphmod.rewrite.draft import Draft, shared_scope
from graphmod.rewrite.verb import verb


@verb(exact=True, example="graphmod restrict in.onnx --classes '[3, 5, 8]' --out out.onnx")
def restrict(model: Model, classes: list[int | list[int]] | None = None, *, output: str | None = None) -> Model:
    """Keep only some classes of a classifier, or merge classes, by slicing the layer that makes the logits.

    Column j of the result is the logit of ``classes[j]``. Where several classes are listed for a column they become
    one, and it is the log-sum-exp of their logits. A model that ends in Softmax or LogSoftmax gives the distribution,
    or its logarithm, given that the class is one of these: the probabilities of a column are summed, and the columns
    sum to 1. What else a model ends in is taken for logits.

    Where classes cannot be cut out of the weights, because another output needs them or an operator mixes them, such as
    a normalisation over classes that is written out, the whole layer stays and a Gather picks them: the values are the
    same. Other outputs stay as they are.

    Parameters
    ----------
    model : Model
    classes : list of int or list of int
        The classes in the order of the columns, each once; a list within is a column for several: ``[[0, 1, 2], 3]``.
    output : str, optional
        The output of shape [n, N] to restrict; the first float one if None.

    Raises
    ------
    RefusedError
        The output is no classifier's, less than two columns are listed, a class does not exist or is listed twice, or
        classes are merged that a sigmoid makes.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> three = gm.restrict(m, [3, 5, 8])
    >>> three.outputs["logits"].shape, m.n_weights - three.n_weights
    (('batch', 3), 287)
    >>> odd_or_even = gm.restrict(m, [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]])
    >>> odd_or_even.outputs["logits"].shape
    ('batch', 2)
    """
    head = head_of(model, model.main_output if output is None else output)
    columns = _columns(classes, head)
    members = [one for column in columns for one in column]
    is_merged = len(members) > len(columns)
    if not is_merged and members == [*range(head.n_classes)]:
        return model
    if is_merged:
        check_exclusive(model, head)
    small = _sliced(model, head, members)
    draft = Draft(model if small is None else small.model)
    there = _there(draft, head, members, small, not is_merged)
    place = {one: place for place, one in enumerate(there)}
    if is_merged:
        _merged(draft, head, [[place[one] for one in column] for column in columns])
    elif there != members:
        _picked(draft, head, _free(draft, head), [place[one] for one in members], head.output)
    _declare(draft, head, len(columns))
    return draft.finish()


DETECTS = {"Softmax": "Sigmoid", "LogSoftmax": "Identity"}
"""What a model of one class ends in, by what that of all ends in."""


def detector(model: Model, label: int) -> Model:
    """Keep one class of a classifier, by slicing the layer that makes the logits, as :func:`restrict` does.

    The column of the result is the logit; its sigmoid where the model ends in Softmax.

    Raises
    ------
    RefusedError
        The first float output is no classifier's, or the class does not exist.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> three = detector(m, 3)
    >>> three.outputs["logits"].shape, m.n_weights - three.n_weights
    (('batch', 1), 369)
    """
    head = head_of(model, model.main_output)
    member = _class(label, head.n_classes, f"'{head.output}' has {head.n_classes} classes, 0 to {head.n_classes - 1}")
    small = _sliced(model, head, [member])
    draft = Draft(model if small is None else small.model)
    if small is not None and head.softmax is not None:
        _maker(draft, head.softmax).op_type = DETECTS[head.softmax.op_type]
    elif small is None and head.softmax is not None:
        _chosen_before(draft, head, [member], DETECTS[head.softmax.op_type])
    elif small is None:
        _picked(draft, head, _free(draft, head), [member], head.output)
    _declare(draft, head, 1)
    return draft.finish()


def _there(draft: Draft, head: Head, members: Sequence[int], small: _Sliced | None, ordered: bool) -> list[int]:
    """Bring the draft to where the output has the members at least, in their order if easy; return its columns."""
    if small is None:
        return [*range(head.n_classes)] if head.softmax is None else _chosen_before(draft, head, members)
    if head.softmax is not None:
        _put_back(draft, head.softmax)
    return _reordered(draft, small, members) if small.rows and ordered else small.classes


# -- what is asked


def _columns(classes: object, head: Head) -> list[list[int]]:
    """Return the classes of every column.

    Raises
    ------
    RefusedError
        They are no such list, or a class does not exist or is there twice.
    """
    told = f"'{head.output}' has {head.n_classes} classes, 0 to {head.n_classes - 1}"
    if not is_list(classes):
        raise RefusedError(f"classes={classes!r} is no list of classes, such as [3, 5, 8] or [[0, 1, 2], 3]; {told}")
    columns = [[*column] if is_list(column) else [column] for column in classes]
    if not columns or not all(columns):
        raise RefusedError(f"{'a column of classes' if columns else 'classes'} is an empty list; {told}")
    numbers = [[_class(one, head.n_classes, told) for one in column] for column in columns]
    members = [one for column in numbers for one in column]
    twice = [one for one, n in Counter(members).items() if n > 1]
    if twice:
        raise RefusedError(f"class {twice[0]} is listed twice; list each once")
    if len(columns) < 2:
        raise RefusedError("a classifier of one column says nothing; list two classes or superclasses at least")
    return numbers


def _class(one: object, n_classes: int, told: str) -> int:
    """Return a class as a number, once it is known that there is one of it."""
    if not isinstance(one, int | np.integer) or isinstance(one, bool):
        raise RefusedError(f"classes names {one!r}, which is no class; {told}")
    if not 0 <= one < n_classes:
        raise RefusedError(f"there is no class {one}; {told}")
    return int(one)


# -- slicing


@dataclass(frozen=True, eq=False)
class _Sliced:
    """A classifier without some classes.

    Parameters
    ----------
    model : Model
        With an Identity in place of the softmax at its end.
    classes : list of int
        Those that are left, ascending.
    rows : list of (str, int)
        The initializers and their axes along which the classes lie; empty where they have to stay in this order.
    """

    model: Model
    classes: list[int]
    rows: list[tuple[str, int]]


def _sliced(model: Model, head: Head, members: Sequence[int]) -> _Sliced | None:
    """Return the classifier of some classes, None where others cannot be taken out of the weights."""
    opened = _opened(model, head)
    found = groups(opened, free={head.output: 1})
    axes = found.analysis.axes[head.output]
    if len(axes) != 2 or len(axes[1]) != head.n_classes:
        return None
    units, stays = found.units(axes[1]), np.isin(np.arange(head.n_classes), members)
    gone = units[~stays]
    removed = np.isin(np.arange(found.n_units), gone)
    if (gone < 0).any() or np.isin(gone, units[stays]).any() or not is_independent(found, removed):
        return None
    try:
        small = cut(found, removed, leftovers=False) if removed.any() else opened
    except RefusedError:  # nothing would be left of one part of a concatenation, or a size cannot follow
        return None
    return _Sliced(small, np.flatnonzero(stays).tolist(), _rows(found, units))


def _opened(model: Model, head: Head) -> Model:
    """Return the model with logits at its end, of a width that is not declared."""
    draft = Draft(model)
    if head.softmax is not None:
        last = _maker(draft, head.softmax)
        last.op_type = "Identity"
        del last.attribute[:]
    for value in draft.graph.output:
        if value.name == head.output and value.type.tensor_type.shape.dim:
            dim = value.type.tensor_type.shape.dim[1]
            dim.ClearField("dim_value")
            dim.ClearField("dim_param")
    return Model(draft.unchecked(), model.folder)


def _maker(draft: Draft, softmax: NodeProto) -> NodeProto:
    """Return the operator that makes what a softmax makes in the model."""
    maker = draft.producer(softmax.output[0])
    assert maker is not None, "the output depends on it"
    return maker


def _put_back(draft: Draft, softmax: NodeProto) -> None:
    last = _maker(draft, softmax)
    last.op_type = softmax.op_type
    last.attribute.extend(softmax.attribute)


def _rows(found: Groups, units: Units) -> list[tuple[str, int]]:
    """Return the initializers along which all classes lie in their order, if they lie so in every tensor."""
    own = np.isin(np.arange(found.n_units), units)
    if (units < 0).any() or own.sum() < len(units) or not is_independent(found, own):
        return []
    alive, model = found.left(~own), found.model
    places = [
        (tensor, axis, labels)
        for tensor, axes in found.analysis.axes.items()
        for axis, labels in enumerate(axes)
        if not alive(labels).all()
    ]
    in_order = all(np.array_equal(found.units(labels), units) for *_, labels in places)
    stored = [(tensor, axis) for tensor, axis, _ in places if tensor in model.constants]
    return stored if in_order and all(tensor in model.initializers for tensor, _ in stored) else []


def _reordered(draft: Draft, small: _Sliced, members: Sequence[int]) -> list[int]:
    """Put the classes in another order wherever they are stored, and return it."""
    order = np.searchsorted(small.classes, members)
    for tensor, axis in small.rows:
        value = draft.constant(tensor)
        if value is not None and [*members] != small.classes:
            draft.set_initializer(tensor, np.take(value, order, axis))
    return [*members]


# -- what comes after


def _chosen_before(draft: Draft, head: Head, members: Sequence[int], instead: str | None = None) -> list[int]:
    """Let a softmax of some logits make the output, where all logits stay; return the classes of its columns.

    ``instead`` is an operator in the softmax's place.
    """
    assert head.softmax is not None, "there is a softmax"
    before, after = draft.model.tensors[head.softmax.output[0]], draft.model.tensors[head.output]
    _free(draft, head)
    tensor = head.softmax.input[0]
    if len(before.shape or ()) > 2:
        tensor = _add(draft, head, "Flatten", [tensor], axis=1)
    tensor = _picked(draft, head, tensor, members)
    made = head.output if before.dtype == after.dtype else None
    how = {} if instead else {"axis": 1}
    tensor = _add(draft, head, instead or head.softmax.op_type, [tensor], made, **how)
    if made is None and after.dtype is not None:
        _add(draft, head, "Cast", [tensor], head.output, to=helper.np_dtype_to_tensor_dtype(after.dtype))
    return [*members]


def _merged(draft: Draft, head: Head, columns: Sequence[Sequence[int]]) -> None:
    """Let every column of the output be made of one or several that it has now."""
    every, parts = _free(draft, head), []
    for is_single, run in groupby(columns, lambda column: len(column) == 1):
        if is_single:
            parts.append(_picked(draft, head, every, [one for (one,) in run]))
        else:
            parts += [_summed(draft, head, _picked(draft, head, every, column)) for column in run]
    _add(draft, head, "Concat", parts, head.output, axis=1)


def _summed(draft: Draft, head: Head, tensor: str) -> str:
    """Add up the columns of a tensor, probabilities of which it has the logarithms unless a softmax made them."""
    is_plain = head.softmax is not None and head.softmax.op_type == "Softmax"
    op_type, first = ("ReduceSum", 13) if is_plain else ("ReduceLogSumExp", 18)
    if draft.model.opset < first:
        return _add(draft, head, op_type, [tensor], axes=[1], keepdims=1)
    axes = draft.weight(f"{head.output}/axes", np.array([1], np.int64))
    return _add(draft, head, op_type, [tensor, axes], keepdims=1)


def _picked(draft: Draft, head: Head, tensor: str, places: Sequence[int], made: str | None = None) -> str:
    """Take some columns of a tensor."""
    indices = draft.weight(f"{head.output}/columns", np.array(places, np.int64))
    return _add(draft, head, "Gather", [tensor, indices], made, axis=1)


def _free(draft: Draft, head: Head) -> str:
    """Give what makes the output, and is read as such, another name, and return that."""
    name = draft.unused(f"{head.output}/all")
    draft.make_as(head.output, name)
    draft.redirect(head.output, name)
    return name


def _add(draft: Draft, head: Head, op_type: str, reads: Sequence[str], made: str | None = None, **how: Any) -> str:
    """Add an operator, and return what it makes."""
    name = f"{head.output}/{op_type}"
    made = draft.unused(name) if made is None else made
    node = helper.make_node(op_type, reads, [made], name=draft.unused_operator(name), **how)
    before = draft.producer(reads[0])
    draft.add([node], at=before, scope=None if before is None else shared_scope([before]) or None)
    return made


def _declare(draft: Draft, head: Head, n_columns: int) -> None:
    for value in draft.graph.output:
        if value.name == head.output and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[1].dim_value = n_columns
    draft.forget([head.output])
