"""A Pad of zeros into the Conv, or the AveragePool, that reads it.

An AveragePool divides by the number of positions that it sees: those of a Pad count, its own only if
``count_include_pad`` says so. So the Pad fits where it does, or where the AveragePool pads nothing itself, and then the
attribute is set.
"""

from __future__ import annotations

from typing import Any

from onnx import NodeProto

from graphmod.rewrite.fusions.bench import Bench, is_a
from graphmod.rewrite.fusions.registry import Plan, fusion

_READERS = ("Conv", "AveragePool")


@fusion("pad", *_READERS)
def _pad(bench: Bench, operator: NodeProto) -> Plan | str | None:
    pad = bench.draft.producer(operator.input[0])
    if not is_a(pad, "Pad"):
        return None
    pads = _zeros(bench, pad)
    if isinstance(pads, str):
        return pads
    others = [op for op in bench.draft.readers(pad.output[0]) if not is_a(op, *_READERS)]
    if bench.is_output(pad.output[0]) or others:
        needed = bench.told(others[0]) if others else "the model's caller"
        return f"{bench.told(pad)} stays, as {needed} needs '{pad.output[0]}'"
    attributes = bench.attributes(operator)
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"the padding of {bench.told(operator)} depends on the size of what it reads"
    own = [0] * len(pads) if attributes.get("auto_pad") == "VALID" else attributes.get("pads", [0] * len(pads))
    total = [a + b for a, b in zip(own, pads, strict=True)]
    changed: dict[str, Any] = {"pads": total, "auto_pad": None}
    if operator.op_type == "AveragePool":
        counts = attributes.get("count_include_pad", 0)
        kernel = attributes["kernel_shape"]
        if attributes.get("ceil_mode", 0) or (any(own) and not counts) or set(attributes.get("dilations", ())) - {1}:
            return f"{bench.told(operator)} would divide by other numbers of positions"
        if any(size >= kernel[axis % len(kernel)] for axis, size in enumerate(total)):
            return f"{bench.told(operator)} cannot pad as much as its kernel is large"
        changed["count_include_pad"] = 1

    def apply() -> list[NodeProto]:
        bench.set_attributes(operator, **changed)
        bench.set_input(operator, 0, pad.input[0])
        return [operator]

    return Plan((pad, operator), apply)


def _zeros(bench: Bench, pad: NodeProto) -> list[int] | str:
    """Return how many zeros a Pad puts before and after each spatial axis, or why it does something else."""
    told, attributes = bench.told(pad), bench.attributes(pad)
    inputs = [*pad.input, "", "", ""]
    sizes = attributes.get("pads") if len(pad.input) < 2 else bench.constant(inputs[1])
    fill = bench.constant(inputs[2]) if inputs[2] else attributes.get("value", 0.0)
    axes = bench.constant(inputs[3]) if inputs[3] else None
    if sizes is None or fill is None or (inputs[3] and axes is None):
        return f"by how much {told} pads is no constant"
    if attributes.get("mode", "constant") != "constant" or float(fill) != 0:
        return f"{told} does not pad with zeros"
    given = [int(size) for size in sizes]
    rank = bench.rank(pad.output[0]) or bench.rank(pad.input[0]) or (None if axes is not None else len(given) // 2)
    if rank is None:
        return f"the number of axes that {told} reads is not known"
    padded = [int(axis) % rank for axis in (range(rank) if axes is None else axes)]
    begins, ends = ({axis: size for axis, size in zip(padded, half, strict=True)} for half in _halves(given))
    if any(size < 0 for size in given):
        return f"{told} crops"
    if any(side.get(axis, 0) for side in (begins, ends) for axis in (0, 1)):
        return f"{told} pads samples or channels"
    return [side.get(axis, 0) for side in (begins, ends) for axis in range(2, rank)]


def _halves(sizes: list[int]) -> tuple[list[int], list[int]]:
    middle = len(sizes) // 2
    return sizes[:middle], sizes[middle:]
