"""The local loss: a tensor inside the network is to have the activations that another network has there."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import mse_loss

from graphmod.errors import InvalidDataError, InvalidModelError, RefusedError
from graphmod.graph import blocks
from graphmod.model import Model, check_model


@dataclass(frozen=True, eq=False)
class Imitation:
    """Activations that a tensor is to have: those of a model, computed once.

    The loss is ``weight * 0.5 * MSE(tensor, wanted) + (1 - weight) * loss``, as in the re-adaption of DeepArc (Ren et
    al., ICSE 2023) with 0.5. With ``weight=1`` what lies behind the tensor is neither run nor imported, targets are not
    needed, and epochs are ranked by the squared error on calibration data.

    Parameters
    ----------
    tensor : str
        Of the model that is trained, behind what may learn.
    model : Model
        The one to imitate.
    data : anything that :func:`graphmod.data.as_splits` takes, optional
        What ``model`` gets to see: row i of each part belongs to row i of that part of the training's data. The same
        samples if None.
    weight : float
        Share of the squared error in the loss, above 0 and at most 1.
    of : str, optional
        The tensor of ``model``, if it has another name there.

    Raises
    ------
    RefusedError
        The weight is out of range, or ``model`` has no such tensor of floats.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> block = gm.blocks(m)["layer3.5"]
    >>> fitted = gm.replace(m, block, gm.demo.splits().train)
    >>> like = Imitation(gm.blocks(fitted)["layer3.6"].exit, m, weight=1)
    >>> nearer = gm.retrain(fitted, gm.demo.splits(), "layer3.6", imitate=like, epochs=1)
    """

    tensor: str
    model: Model = field(repr=False)
    data: object = field(default=None, repr=False)
    weight: float = 0.5
    of: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise RefusedError(f"weight={self.weight} is out of range; it is a share above 0 and at most 1")
        check_model(self.model, "Imitation")
        check_float(self.model, self.source, "the model to imitate")

    @property
    def source(self) -> str:
        """The tensor of the model to imitate."""
        return self.of or self.tensor

    @property
    def is_local(self) -> bool:
        """Whether nothing but the tensor counts."""
        return self.weight == 1


def check_float(model: Model, tensor: str, told: str) -> None:
    """Raise RefusedError unless a model, called so, has this tensor, and it is made of floats."""
    if tensor not in model.producer and tensor not in model.inputs:
        raise RefusedError(f"{told} has no tensor named '{tensor}'{_hint(model, tensor)}")
    kind = model.tensors.get(tensor)
    if kind is None or not kind.is_float:
        raise RefusedError(f"tensor '{tensor}' of {told} is {kind or 'of unknown type'}, and only floats are imitated")


def _hint(model: Model, name: str) -> str:
    """Return what to say instead of a block's path; nothing where it is none."""
    try:
        exits = {block.path: block.exit for block in blocks(model).walk()}
    except InvalidModelError:  # it has no trunk, so no blocks
        return ""
    return f"; that is a block, whose activations are tensor '{exits[name]}'" if name in exits else ""


def half_squared_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return 0.5 MSE of activations.

    Raises
    ------
    InvalidDataError
        Their shapes differ.

    Examples
    --------
    >>> import torch
    >>> float(half_squared_error(torch.ones(2, 3), torch.zeros(2, 3)))
    0.5
    """
    if found.shape != wanted.shape:
        raise InvalidDataError(
            f"the activations to imitate have shape {list(wanted.shape[1:])} a sample and those of the network "
            f"{list(found.shape[1:])}; name tensors of the same shape"
        )
    return 0.5 * mse_loss(found, wanted.to(found.dtype))
