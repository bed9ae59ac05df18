"""Scopes: the source module that an exporter says an operator came from."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from onnx import NodeProto

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata key under which torch's current exporter keeps a list of scopes, the traced operation last."""

GRAPHMOD_SCOPE = "graphmod.scope"
"""Metadata key under which operators that graphmod puts into a graph keep the scope of what they replace."""


def scope(operator: NodeProto) -> str:
    """Return the dotted path of the module that an operator was exported from, "" where the file does not say.

    torch's current exporter keeps it in the operator's metadata, its TorchScript exporter in the operator's name.

    Examples
    --------
    >>> scope(NodeProto(name="/layer1/layer1.0/conv1/Conv"))
    'layer1.0.conv1'
    >>> scope(NodeProto(name="Conv_7"))
    ''
    """
    for entry in operator.metadata_props:
        if entry.key == GRAPHMOD_SCOPE:
            return str(entry.value)
        if entry.key == NAME_SCOPES:
            try:
                modules = ast.literal_eval(entry.value)[:-1]
            except (ValueError, SyntaxError, TypeError):  # not torch's: the name may still tell
                break
            return str(modules[-1]) if modules else ""
    path = ""
    if operator.name.startswith("/"):
        for part in operator.name.split("/")[1:-1]:
            owner = path.rpartition(".")[2]
            path = part if not path else path + part[len(owner) :] if part.startswith(f"{owner}.") else f"{path}.{part}"
    return path


def scope_parts(operator: NodeProto) -> tuple[str, ...]:
    """Return the parts of an operator's scope, the outermost first."""
    return tuple(part for part in scope(operator).split(".") if part)


def common_scope(scopes: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the innermost scope that all the scopes lie in.

    >>> common_scope([("layer1", "0", "conv1"), ("layer1", "0")])
    ('layer1', '0')
    """
    shared: list[str] = []
    for parts in zip(*scopes, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return tuple(shared)
