"""The network that the importer makes: a GraphModule that can be pickled whatever functions its graph calls."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.fx.node import map_aggregate


@dataclass(frozen=True)
class _Reference:
    """A node's name, in the place of the node."""

    name: str


class Network(fx.GraphModule):
    """A torch.fx.GraphModule of which pickle keeps the graph itself.

    torch's own way is to trace the code again, which fails where a function looks at the sizes that it is given.
    """

    def __reduce__(self) -> tuple[Callable[..., Network], tuple[Any, ...]]:
        nodes = [
            (node.op, node.name, node.target, _referring(node.args), _referring(node.kwargs), node.meta.get("tensor"))
            for node in self.graph.nodes
        ]
        state = {key: value for key, value in self.__dict__.items() if key not in ("_graph", "_code", "_lineno_map")}
        return _rebuilt, (state, nodes)


def structure_of(net: nn.Module) -> dict[str, str]:
    """Return what a network computes beside its weights: the code of its graphs, the settings of its submodules.

    How much Dropout drops and how fast running statistics move is training's own affair.
    """
    described = {}
    for path, module in net.named_modules():
        if isinstance(module, fx.GraphModule):
            described[path] = module.code
        elif not list(module.children()):
            settings = re.sub(r"\b(p|momentum)=[^,)]+", "", module.extra_repr())
            described[path] = f"{type(module).__name__}({settings})"
    return described


def _referring(args: Any) -> Any:
    def refer(item: Any) -> Any:
        return _Reference(item.name) if isinstance(item, fx.Node) else item

    return map_aggregate(args, refer)


def _rebuilt(state: dict[str, Any], nodes: list[tuple[Any, ...]]) -> Network:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}

    def resolve(args: Any) -> Any:
        return map_aggregate(args, lambda item: made[item.name] if isinstance(item, _Reference) else item)

    for op, name, target, args, kwargs, tensor in nodes:
        made[name] = graph.create_node(op, target, resolve(args), resolve(kwargs), name)
        if tensor is not None:
            made[name].meta["tensor"] = tensor
    net = Network({}, fx.Graph(), "GraphModule")
    net.__dict__.update(state)
    net.graph = graph
    return net
