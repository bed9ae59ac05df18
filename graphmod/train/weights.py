"""Which weights learn, and what of them stays."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from graphmod.graph import data_flow
from graphmod.model import Model
from graphmod.pytorch import META
from graphmod.rewrite import Region
from graphmod.rewrite.region import carrying_tensors


def trained_weights(model: Model, regions: Sequence[Region]) -> frozenset[str]:
    """Return the names of the float constants that the operators of some regions read."""
    carrying, roots = carrying_tensors(model), constant_roots(model)
    inside = {position for region in regions for position in _inside(model, region, carrying)}
    return weights_read(model, inside, roots)


def weights_read(model: Model, positions: Iterable[int], roots: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Return the names of the float constants that operators read, with the :func:`constant_roots` of the model."""
    read = {root for position in positions for tensor in model.reads[position] for root in roots.get(tensor, ())}
    return frozenset(name for name in read if model.tensors[name].is_float)


def n_trained(model: Model, regions: Sequence[Region]) -> int:
    """Return how many scalars :func:`trained_weights` hold that are in the file."""
    return sum(model.constants[name].size for name in trained_weights(model, regions) if name in model.constants)


def _inside(model: Model, region: Region, carrying: Container[str]) -> set[int]:
    """Return the positions of a region's operators: those met on the way back from its exit to its entry.

    Where that way runs past the entry (another input's part of the network), they are those that the data flow from
    entry to exit has, which takes the whole model to tell.
    """
    inside: set[int] = set()
    pending = [region.exit]
    while pending:
        tensor = pending.pop()
        if tensor == region.entry or model.producer.get(tensor) in inside:
            continue
        if tensor not in carrying or tensor not in model.producer:
            flow = data_flow(model, region.entry, region.exit)
            return {model.position[name] for _, _, name in flow.edges(data="operator")}
        inside.add(model.producer[tensor])
        pending += [name for name in model.reads[model.producer[tensor]] if name in carrying]
    return inside


def constant_roots(model: Model) -> dict[str, tuple[str, ...]]:
    """Return, for every tensor computed from constants alone, itself and the constants that it comes from."""
    roots: dict[str, tuple[str, ...]] = {name: (name,) for name in model.constants}
    for position, operator in enumerate(model.operators):
        reads = model.reads[position]
        if reads and all(name in roots for name in reads):
            known = tuple(dict.fromkeys(root for name in reads for root in roots[name]))
            roots.update((name, (name, *known)) for name in operator.output if name and name not in roots)
    return roots


def freeze_all_but(net: torch.fx.GraphModule, weights: frozenset[str] | None) -> list[nn.Parameter]:
    """Let only these constants of the graph learn, all if None; return their parameters."""
    parameters = dict(net.named_parameters())
    if weights is None:
        return list(parameters.values())
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    trained: dict[str, nn.Parameter] = {}
    for binding in net.meta[META]:
        if binding.tensor in weights and binding.path in parameters:
            parameters[binding.path].requires_grad_(True)
            trained[binding.path] = parameters[binding.path]
    return list(trained.values())


def normalizations(net: torch.fx.GraphModule) -> list[_BatchNorm]:
    """Return the batch normalisations that learn."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if any(parameter.requires_grad for parameter in norm.parameters())]


def zeros(parameters: Sequence[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
    """Return those parameters in which there are zeros, each with the mask of these."""
    return [(one, one == 0) for one in parameters if not one.all()]
