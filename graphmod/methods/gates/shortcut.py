"""Shortcuts: a network with blocks that fade is run without computing anything of those that are closed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn


def faded(entry: Tensor, exit_: Tensor, gates: Tensor, number: int) -> Tensor:
    """Return what a block gives of which a gate lets through a part: ``exit_`` at 1, ``entry`` at 0."""
    return entry + (exit_ - entry) * gates[number]


@dataclass(frozen=True, eq=False)
class Path:
    """What is run of a network.

    Parameters
    ----------
    nodes : tuple of fx.Node
        In their order.
    instead : dict of fx.Node to fx.Node
        What stands for the exits of blocks that are not run.
    parameters : dict of str to tuple of str
        Those that have a part in it, by path, and all paths of each: layers may share it.
    """

    nodes: tuple[fx.Node, ...]
    instead: dict[fx.Node, fx.Node]
    parameters: dict[str, tuple[str, ...]]


class Shortcut(nn.Module):
    """A network some of whose blocks may be left out.

    Parameters
    ----------
    net : torch.fx.GraphModule
        With calls of :func:`faded` at the blocks' exits.
    """

    def __init__(self, net: fx.GraphModule) -> None:
        super().__init__()
        self.net = net
        self._modules_of = dict(net.named_modules())
        self._paths: dict[frozenset[int], Path] = {}

    def path(self, closed: frozenset[int]) -> Path:
        """Return what is run when some blocks, by their numbers, are closed."""
        if closed not in self._paths:
            self._paths[closed] = self._found(closed)
        return self._paths[closed]

    def _found(self, closed: frozenset[int]) -> Path:
        nodes = list(self.net.graph.nodes)
        instead: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            if node.target is faded and node.args[3] in closed:
                entry = node.args[0]
                assert isinstance(entry, fx.Node), "a block begins with a tensor"
                instead[node] = instead.get(entry, entry)
        needed: set[fx.Node] = set()
        pending = [node for node in nodes if node.op == "output"]
        while pending:
            node = instead.get(node := pending.pop(), node)
            if node not in needed:
                needed.add(node)
                pending += node.all_input_nodes
        kept = tuple(node for node in nodes if node in needed or node.op == "placeholder")
        return Path(kept, instead, self._read(kept))

    def _read(self, nodes: tuple[fx.Node, ...]) -> dict[str, tuple[str, ...]]:
        """Return the parameters that nodes read, by their first paths, with all of these."""
        paths: dict[int, list[str]] = {}
        every = dict(self.net.named_parameters(remove_duplicate=False))
        for name, parameter in every.items():
            paths.setdefault(id(parameter), []).append(name)
        read: list[nn.Parameter] = []
        for node in nodes:
            if node.op == "call_module":
                read += self._modules_of[str(node.target)].parameters()
            elif node.op == "get_attr" and str(node.target) in every:
                read.append(every[str(node.target)])
        found = [paths[number] for number in dict.fromkeys(map(id, read))]
        return {own[0]: tuple(own) for own in found}

    def forward(self, path: Path, *inputs: Tensor) -> Any:
        """Return what the network gives on a path."""
        made: dict[fx.Node, Any] = {}
        given = iter(inputs)

        def value(node: fx.Node) -> Any:
            return made[path.instead.get(node, node)]

        for node in path.nodes:
            if node.op == "placeholder":
                made[node] = next(given)
                continue
            if node.op == "get_attr":
                made[node] = _attribute(self.net, str(node.target))
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
            if node.op == "output":
                return args[0]
            if node.op == "call_module":
                made[node] = self._modules_of[str(node.target)](*args, **kwargs)
            elif node.op == "call_method":
                made[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                assert callable(node.target), "call_function calls one"
                made[node] = node.target(*args, **kwargs)
        raise AssertionError("a graph has an output")


def _attribute(net: nn.Module, path: str) -> Any:
    """Return an attribute of a network by its path."""
    *folders, name = path.split(".")
    return getattr(net.get_submodule(".".join(folders)), name)
