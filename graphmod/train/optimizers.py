r"""How a gradient becomes a step: Adam, and Muon for what is a matrix.

Muon (Jordan et al., 2024) steps along the orthogonal matrix nearest to the momentum :math:`M = \mu M + G`,

.. math:: W \leftarrow W - \eta \sqrt{\max(1, n_{out} / n_{in})} \; U V^T, \qquad G + \mu M = U \Sigma V^T,

so that all directions move alike and not just those in which gradients are large: fewer steps lead as far. Five
iterations of Newton and Schulz come near to :math:`U V^T` without a decomposition: :math:`X \leftarrow a X + (b A +
c A^2) X` with :math:`A = X X^T`. Weights of more axes are matrices with a row for each entry of the first one, which is
that of output channels in a convolution (of input channels in a transposed one, and of the batch in a batch of
matrices: their steps are less even). (``torch.optim.Muon`` takes matrices alone, one after the other and in bfloat16,
which costs small networks more than it saves.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from graphmod.registry import Registry

OPTIMIZERS: Registry[Callable[[Sequence[nn.Parameter], float], list[Optimizer]]] = Registry("an optimizer")
"""By name: ``(parameters, learning rate) -> optimizers`` that share the parameters among them."""

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b and c: steepest at zero, so that small singular values rise to somewhere about 1 in five iterations."""

_ITERATIONS = 5


@OPTIMIZERS.register("adam")
def adam(parameters: Sequence[nn.Parameter], learning_rate: float) -> list[Optimizer]:
    """Return Adam (Kingma and Ba, 2015) for all parameters."""
    dense = all(one.is_contiguous() for one in parameters)  # fused steps are faster, and wrong for others
    return [Adam(parameters, lr=learning_rate, fused=dense)] if parameters else []


@OPTIMIZERS.register("muon")
def muon(parameters: Sequence[nn.Parameter], learning_rate: float) -> list[Optimizer]:
    """Return Muon for matrices and convolutions, and Adam for the rest: vectors, and filters of one channel each.

    Tables of embeddings count as matrices, for which a step along tens of thousands of rows is expensive.
    """
    matrices = [one for one in parameters if one.ndim >= 2 and min(one.shape[:2]) > 1 and one.numel()]
    chosen = set(map(id, matrices))
    rest = adam([one for one in parameters if id(one) not in chosen], learning_rate)
    return [Muon(matrices, learning_rate), *rest] if matrices else rest


class Muon(Optimizer):
    """Momentum made orthogonal, for parameters of two or more axes; all of one shape are worked on together.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
    lr : float
        The spectral norm of a step, about; more by the root of rows over columns where a matrix is tall.
    momentum : float

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(2, 3))
    >>> weight.grad = torch.tensor([[5.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> _ = Muon([weight], lr=0.1).step()
    >>> bool((weight[[0, 1], [0, 1]] < -0.05).all())
    True
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no loss is evaluated again, so there is no closure
        """Make one step for all parameters that have a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for one in group["params"]:
                if one.grad is not None:
                    alike.setdefault(one.shape, []).append(one)
            for shape, parameters in alike.items():
                steps = orthogonal(torch.stack([self._momentum(one, group["momentum"]) for one in parameters]))
                rows, columns = shape[0], shape[1:].numel()
                for one, along in zip(parameters, steps, strict=True):
                    one.add_(along.reshape(shape), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Return the gradient and the momentum that it adds to, as a matrix."""
        gradient = parameter.grad
        assert gradient is not None, "step looks at nothing else"
        state = self.state[parameter]
        state["momentum"] = gradient.clone() if not state else state["momentum"].mul_(momentum).add_(gradient)
        return gradient.add(state["momentum"], alpha=momentum).flatten(1)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return about U V' of each matrix U S V': singular values between about 0.7 and 1.2 instead of S.

    Those below a hundredth of the matrix's norm rise as well, but not so far.

    Parameters
    ----------
    matrices : Tensor
        Of shape (matrices, rows, columns).
    """
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
