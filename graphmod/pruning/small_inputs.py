"""Small inputs: sizes and places that operators need once indices are gone, as constants or by factors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

import numpy as np
from onnx import NodeProto, helper

from graphmod.errors import RefusedError
from graphmod.pruning.change import Need, at_other_size
from graphmod.pruning.cutting import Cutting
from graphmod.pruning.site import Array
from graphmod.rewrite.sizing import Sizes


def meet_needs(cutting: Cutting, operator: NodeProto, needs: Mapping[int, Need]) -> None:
    """Let inputs of an operator have the values that it needs, at all sizes of dynamic dimensions."""
    for place, need in needs.items():
        tensor = operator.input[place] if place < len(operator.input) else ""
        others = [_at_other_size(cutting, tensor, need, sizes) for sizes in cutting.before[1:]]
        _meet(cutting, operator, place, [need, *others])


def _at_other_size(cutting: Cutting, tensor: str, need: Need, sizes: Sizes) -> Need | None:
    """Return what is needed at another size of dynamic dimensions; None where the value there is not known."""
    first, other = cutting.before[0].values.get(tensor), sizes.values.get(tensor)
    if first is not None and other is None:
        return None
    return need if other is None else Need(at_other_size(need.value, first, other), need.serves)


def state_values(cutting: Cutting, operator: NodeProto, stated: Collection[int]) -> None:
    """Let what was computed from sizes, and goes into an operator on data, have the value that it had."""
    values = cutting.before[0].values
    if all(name in values for name in operator.output if name):
        if not cutting.shrunk.isdisjoint(operator.input):
            cutting.shrunk.update(operator.output)
        return
    made = cutting.found.model.producer
    for place, name in enumerate(operator.input):
        if name in values and name in made and not (place in stated or name in cutting.shrunk):
            held = [sizes.values.get(name) for sizes in cutting.before]
            needs = [None if value is None else Need(cutting.sliced(name, value)) for value in held]
            _meet(cutting, operator, place, needs)


def _meet(cutting: Cutting, operator: NodeProto, place: int, needs: Sequence[Need | None]) -> None:
    """Let an input have the value that it needs, at all sizes of dynamic dimensions where it is known."""
    tensor = operator.input[place] if place < len(operator.input) else ""
    found = [sizes.values.get(tensor) for sizes in cutting.after]
    pairs = [(need, value) for need, value in zip(needs, found, strict=True) if need is not None]
    if all(value is not None and need.is_met(value) for need, value in pairs):
        return
    wanted = [need.value for need, _ in pairs]
    if len(pairs) == len(needs) and all(np.array_equal(value, wanted[0]) for value in wanted):
        known = cutting.before[0].values.get(tensor)
        value = wanted[0].astype(np.int64 if known is None else known.dtype)
        name = tensor or f"{next(filter(None, operator.output))}_{place}"
        cutting.read(operator, place, cutting.store(name, value, tensor))
    else:
        _scale(cutting, operator, place, [value for _, value in pairs], wanted)


def _scale(
    cutting: Cutting, operator: NodeProto, place: int, found: Sequence[Array | None], wanted: Sequence[Array]
) -> None:
    """Multiply and divide sizes that are computed from dynamic dimensions; add to what has become zero."""
    tensor = operator.input[place] if place < len(operator.input) else ""
    ratios = [_ratios(value, want) for value, want in zip(found, wanted, strict=True)]
    if ratios[0] is None or any(ratio != ratios[0] for ratio in ratios):
        raise RefusedError(
            f"{cutting.told(operator)} reads '{tensor}', which is computed from dynamic dimensions in a way that "
            "cannot follow; fix them with graphmod.rebatch"
        )
    (known, *_), reads = found, tensor
    assert known is not None, "there are ratios"
    parts = {
        "Mul": (1, [ratio.numerator for ratio, _ in ratios[0]]),
        "Div": (1, [ratio.denominator for ratio, _ in ratios[0]]),
        "Add": (0, [offset for _, offset in ratios[0]]),
    }
    for op_type, (neutral, entries) in parts.items():
        if any(entry != neutral for entry in entries):
            made = cutting.draft.unused(f"{reads}_{op_type.lower()}")
            stored = cutting.store(reads, np.array(entries, known.dtype).reshape(known.shape), tensor)
            node = helper.make_node(op_type, [reads, stored], [made], name=cutting.draft.unused_operator(made))
            (added,) = cutting.draft.add([node], at=operator)
            for sizes in cutting.after:
                sizes.like[made] = tensor
                sizes.follow(added)
            reads = made
    cutting.read(operator, place, reads)


def _ratios(value: Array | None, want: Array) -> list[tuple[Fraction, int]] | None:
    """Return what a value must be multiplied by, and what added where it is zero; None if it is not known."""
    if value is None or value.shape != want.shape or value.dtype.kind != "i":
        return None
    pairs = zip(want.ravel().tolist(), value.ravel().tolist(), strict=True)
    return [(Fraction(wanted, had), 0) if had else (Fraction(1), wanted) for wanted, had in pairs]
