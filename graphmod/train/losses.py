"""Losses: classification, and distillation from the original network."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits, shape (n, classes, ...), with labels, shape (n,)."""
    return functional.cross_entropy(logits.flatten(1), labels.long())


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) of softened predictions (Hinton, Vinyals & Dean 2015, section 2.1).

    Examples
    --------
    >>> import torch
    >>> float(distillation(torch.zeros(2, 3), torch.zeros(2, 3), 2.0))
    0.0
    """
    student = functional.log_softmax(logits.flatten(1) / temperature, dim=1)
    target = functional.log_softmax(teacher.flatten(1) / temperature, dim=1)
    return functional.kl_div(student, target, log_target=True, reduction="batchmean") * temperature**2
