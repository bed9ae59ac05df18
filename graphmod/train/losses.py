"""Losses: classification, and distillation from the original network."""

from __future__ import annotations

import torch
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


def corrected(teacher: Tensor, labels: Tensor) -> Tensor:
    """Return logits, shape (n, classes, ...), set right by labels, shape (n,).

    Where another class than the label has the largest, the two are exchanged: "probability shift" (Wen, Lai & Qian,
    *Preparing Lessons: Improve Knowledge Distillation with Better Supervision*, Neurocomputing 2021, section 3.2).

    Examples
    --------
    >>> import torch
    >>> corrected(torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), torch.tensor([0, 2])).tolist()
    [[3.0, 1.0, 2.0], [2.0, 1.0, 3.0]]
    """
    logits = teacher.flatten(1)
    own, best = labels.long().unsqueeze(1), logits.argmax(1, keepdim=True)
    right = logits.scatter(1, best, logits.gather(1, own)).scatter(1, own, logits.gather(1, best))
    return torch.where(logits.gather(1, own) == logits.gather(1, best), logits, right).reshape(teacher.shape)
