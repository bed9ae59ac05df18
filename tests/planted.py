"""Networks written as text, whose channel groups are known: equal letters go together, and dots stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_letters

import numpy as np
import onnx.parser
from onnx import helper, numpy_helper

import graphmod as gm
from graphmod.pruning import Groups


def graph(text: str, weights: Mapping[str, object], seed: int = 0) -> onnx.GraphProto:
    """Return a graph in ONNX's textual syntax, with weights: values, or shapes that are filled with random numbers."""
    rng = np.random.default_rng(seed)
    made = onnx.parser.parse_graph(f"net {text}")
    for name, value in weights.items():
        if isinstance(value, tuple):
            value = (rng.normal(size=value) / max(1, int(np.prod(value[1:]))) ** 0.5).astype(np.float32)
        made.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return made


def net(text: str, weights: Mapping[str, object], opset: int = 17, ir_version: int = 8, **more: object) -> gm.Model:
    """Return the model of a text; ``more`` goes to ``onnx.helper.make_model``."""
    parsed = graph(text, weights)
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in parsed.node} - {""})]
    return gm.load(helper.make_model(parsed, ir_version=ir_version, opset_imports=opsets, **more))


def feeds(model: gm.Model, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw inputs: floats, or integers below 4; open dimensions are the batch."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, kind in model.inputs.items():
        shape = [size if isinstance(size, int) else batch for size in kind.shape]
        drawn = rng.normal(size=shape) if kind.dtype.kind == "f" else rng.integers(0, 4, shape)
        made[name] = drawn.astype(kind.dtype)
    return made


def spelled(found: Groups, places: Sequence[str]) -> list[str]:
    """Return a letter for every index of axes such as ``w.0``: equal ones go together, and dots stay."""
    letters: dict[int, str] = {}

    def letter(unit: int) -> str:
        return "." if unit < 0 else letters.setdefault(unit, ascii_letters[len(letters)])

    words = []
    for place in places:
        tensor, _, axis = place.rpartition(".")
        words.append("".join(letter(int(unit)) for unit in found.unit_of[found.analysis.axes[tensor][int(axis)]]))
    return words
