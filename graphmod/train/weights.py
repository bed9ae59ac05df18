"""Which weights learn, and what of them stays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from graphmod.graph import data_flow
from graphmod.model import Model
from graphmod.pytorch import META
from graphmod.rewrite import Region


def trained_weights(model: Model, regions: Sequence[Region]) -> frozenset[str]:
    """Return the names of the float constants that the operators of some regions read."""
    inside = {
        name for region in regions for _, _, name in data_flow(model, region.entry, region.exit).edges(data="operator")
    }
    roots = constant_roots(model)
    read = {
        root
        for position, name in enumerate(model.operator_names)
        if name in inside
        for tensor in model.reads[position]
        for root in roots.get(tensor, ())
    }
    return frozenset(name for name in read if model.tensors[name].is_float)


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
    """Return those parameters in which there are zeros, each with the factor that keeps gradients from these."""
    return [(one, (one != 0).to(one.dtype)) for one in parameters if not one.all()]
