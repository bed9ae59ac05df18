"""Where submodules live: dotted paths that follow the structure of the network that was exported."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence

from onnx import NodeProto
from torch import fx, nn

from graphmod.errors import InvalidModelError, RefusedError
from graphmod.graph import blocks
from graphmod.graph.scope import NAME_SCOPES, scope
from graphmod.model import Model


class Paths:
    """Hands out a unique dotted path for every submodule, parameter and buffer.

    Two things that want one name get ``relu`` and ``relu_1``, in the graph's order. Where an operator's scope is a
    container of other modules, the operator goes inside it, under its type: ``layer1.0`` holds ``layer1.0.relu``.

    Parameters
    ----------
    operators : sequence of onnx.NodeProto
        Their scopes and the names of their weights say which paths are containers.
    blocks : mapping of str to str
        Where no operator has a scope: the paths of the blocks that operators lie in, by first output.
    """

    def __init__(self, operators: Sequence[NodeProto], blocks: Mapping[str, str] | None = None) -> None:
        self._blocks = blocks or {}
        self._leaves: set[str] = set()
        self._containers: set[str] = set()
        self._readers: dict[str, int] = {}
        for operator in operators:
            self._contain(_scope(operator))
            for name in set(operator.input):
                self._readers[name] = self._readers.get(name, 0) + 1

    def of_operator(self, operator: NodeProto, position: int) -> str:
        """Claim a path for the module that an operator becomes."""
        kind = operator.op_type.lower()
        wanted = self._owned(operator) or _scope(operator)
        if not wanted:
            exported = operator.name.startswith("/") or any(e.key == NAME_SCOPES for e in operator.metadata_props)
            block = self._blocks.get(operator.output[0], "")
            wanted = kind if exported or block else f"{kind}_{position}"
            if not exported and (own := re.sub(r"\W", "_", operator.name)):
                wanted = own
            wanted = f"{block}.{wanted}" if block else wanted
        return self.claim(f"{wanted}.{kind}" if wanted in self._containers else wanted)

    def of_constant(self, tensor: str) -> str:
        """Claim a path for a tensor that no module holds: its name, where that is a path already."""
        if re.fullmatch(r"val_\d+", tensor):  # torch's exporter gives such names itself, when the network leaves by it
            return self.claim(f"constant_{tensor.removeprefix('val_')}")
        if re.fullmatch(r"[\w.]+", tensor):
            return self.claim(tensor)
        return self.claim(re.sub(r"\W+", "_", tensor).strip("_") or "constant")

    def claim(self, wanted: str) -> str:
        """Claim a path as it is wanted, or the next free one like it."""
        parts: list[str] = []
        *containers, leaf = clean(wanted).split(".")
        for part in containers:
            parts.append(_free(parts, part, self._leaves))
        parts.append(_free(parts, leaf, self._leaves | self._containers))
        path = ".".join(parts)
        self._leaves.add(path)
        self._contain(path)
        return path

    def _owned(self, operator: NodeProto) -> str:
        """Return X where an operator is the only reader of a weight named X.weight.

        An exporter that folds a batch normalization into a convolution labels the result with the former's scope.
        """
        for name in operator.input[1:]:
            if name.endswith(".weight") and self._readers[name] == 1 and ":" not in name:
                return clean(name.removesuffix(".weight"))
        return ""

    def _contain(self, path: str) -> None:
        parts = path.split(".")
        self._containers.update(".".join(parts[:n]) for n in range(1, len(parts)))


def blocks_of(model: Model) -> dict[str, str]:
    """Return the path of the innermost block that each operator lies in, by first output; empty where scopes tell.

    A block of one operator is that operator, and one of all operators is the network, so neither counts.
    """
    if any(_scope(operator) for operator in model.operators):
        return {}
    try:
        tree = blocks(model)
    except (InvalidModelError, RefusedError):  # no float input, or no trunk from it to an output
        return {}
    outputs = {name: op.output[0] for name, op in zip(model.operator_names, model.operators, strict=True)}
    return {
        outputs[name]: f"block{block.path}"
        for block in tree.walk()
        if block.path and 1 < len(block.operators) < len(tree.operators)
        for name in block.operators
    }


def _scope(operator: NodeProto) -> str:
    path = scope(operator)
    return "" if path.startswith("_empty_nn_module_stack") else clean(path)


def clean(path: str) -> str:
    """Return a path of which every part can be an attribute's name.

    Examples
    --------
    >>> clean("encoder.layer.0.onnx::MatMul_7")
    'encoder.layer.0.onnx_MatMul_7'
    """
    parts = (re.sub(r"\W+", "_", part) for part in path.split("."))
    return ".".join(part for part in parts if part)


RESERVED = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
"""Names that a network has already."""


def _free(before: list[str], part: str, taken: set[str]) -> str:
    candidate, n = part, 0
    while ".".join([*before, candidate]) in taken or candidate in RESERVED or keyword.iskeyword(candidate):
        n += 1
        candidate = f"{part}_{n}"
    return candidate
