"""Networks with masks and a head: one that is added behind the logits, or the final layer that there is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule

from graphmod.errors import RefusedError
from graphmod.graph import final_features
from graphmod.methods.seam.head import with_head
from graphmod.methods.seam.masks import masked, masked_parameters
from graphmod.model import Model
from graphmod.pytorch import write_back
from graphmod.rewrite.region import find_region
from graphmod.train.loop import learning
from graphmod.train.weights import freeze_all_but, trained_weights

State = tuple[Tensor, tuple[Tensor, ...]]
"""What is kept, a bool for every masked value, and the head's weights and biases."""


class Network(ABC):
    """A network whose weights are frozen and have masks, all in one row, and a head, which learns.

    Parameters
    ----------
    net : torch.fx.GraphModule
    parameters : mapping of str to nn.Parameter
        Those of it that have masks.
    head : sequence of nn.Parameter
    """

    def __init__(self, net: GraphModule, parameters: Mapping[str, nn.Parameter], head: list[nn.Parameter]) -> None:
        if not parameters:
            raise RefusedError("there is nothing to mask: no Conv, Gemm or MatMul before the head has constant weights")
        self.net = net
        self.parameters = parameters
        self.head = head
        self.masks = torch.ones(sum(one.numel() for one in parameters.values()))

    @abstractmethod
    def __call__(self, inputs: list[Tensor], kept: Tensor) -> Tensor:
        """Return the target problem's logits of some samples."""

    @abstractmethod
    def written(self, model: Model, state: State) -> Model:
        """Return the model that this is the network of, zeros for what is not kept, with the head of a state."""

    def learning(self, masks: bool) -> None:
        """Let the network be as in training, but for its normalizations; masks learn or do not."""
        self.masks.requires_grad_(masks)
        learning(self.net, norms=())

    def state(self) -> State:
        """Return copies of what is kept, and of the head."""
        return self.masks.detach() > 0, tuple(value.detach().clone() for value in self.head)

    def _logits(self, inputs: list[Tensor], kept: Tensor) -> Tensor:
        logits: Tensor = functional_call(self.net, masked(self.parameters, kept), tuple(inputs))
        return logits.float()

    def _set_zeros(self, kept: Tensor) -> None:
        with torch.no_grad():
            for path, value in masked(self.parameters, kept.float()).items():
                self.parameters[path].copy_(torch.where(value == 0, 0, value))  # no zero is negative


class WithAddedHead(Network):
    """All that can be masked is, and a ReLU and a linear layer are put behind the logits: direct reuse."""

    def __init__(self, part: Model, net: GraphModule, n_original: int, n_classes: int) -> None:
        self._linear = nn.Linear(n_original, n_classes)
        super().__init__(net, masked_parameters(part, net.requires_grad_(False)), list(self._linear.parameters()))

    def __call__(self, inputs: list[Tensor], kept: Tensor) -> Tensor:
        """Return the target problem's logits of some samples."""
        found: Tensor = self._linear(self._logits(inputs, kept).relu())
        return found

    def written(self, model: Model, state: State) -> Model:
        """Return the model that this is the network of, zeros for what is not kept, with the head of a state."""
        kept, (weight, bias) = state
        self._set_zeros(kept)
        return with_head(write_back(model, self.net), weight.numpy(), bias.numpy())


class WithOwnHead(Network):
    """What comes after the features that the final layer reads is the head, and has no masks: indirect reuse."""

    def __init__(self, part: Model, net: GraphModule, n_original: int, n_classes: int) -> None:
        if n_original != n_classes:
            raise RefusedError(
                f"the final layer has {n_original} outputs, and the data have labels of {n_classes} classes; "
                "graphmod.new_head puts a layer for them in its place"
            )
        super().__init__(net, *without_head(part, net))

    def __call__(self, inputs: list[Tensor], kept: Tensor) -> Tensor:
        """Return the target problem's logits of some samples."""
        return self._logits(inputs, kept)

    def written(self, model: Model, state: State) -> Model:
        """Return the model that this is the network of, zeros for what is not kept, with the head of a state."""
        kept, head = state
        self._set_zeros(kept)
        with torch.no_grad():
            for parameter, value in zip(self.head, head, strict=True):
                parameter.copy_(value)
        return write_back(model, self.net)


def without_head(part: Model, net: GraphModule) -> tuple[dict[str, nn.Parameter], list[nn.Parameter]]:
    """Return what can be masked before the final layer, by path, frozen, and what comes behind the features."""
    region = find_region(part, (final_features(part), part.main_output))
    head = freeze_all_but(net, trained_weights(part, [region]))
    return {path: one for path, one in masked_parameters(part, net).items() if not one.requires_grad}, head
