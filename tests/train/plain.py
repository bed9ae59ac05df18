"""A chain of MatMul and Tanh (``handmade.fan``) trained by a plain loop in torch, to compare retraining with."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional


def forward(weights, x):
    """Return the activations t0, t1, ... of a chain."""
    found = []
    for weight in weights:
        x = torch.tanh(x @ weight)
        found.append(x)
    return found


def trained(
    network, learn, data, *, epochs, batch_size=16, lr=1e-3, seed=0, wanted=None, at=None, weight=0.0, zeros=False,
    steps=None,
):  # fmt: skip
    """Return the weights of a chain after training those in ``learn``; ``data`` is a list of views (x, y).

    The loss is weight * 0.5 MSE(t_at, wanted of the view) + (1 - weight) cross-entropy; ``steps`` ends training early.
    """
    names = sorted(network.initializers)
    weights = [torch.tensor(network.initializer(name)).requires_grad_(name in learn) for name in names]
    masks = [weight.detach() != 0 for weight in weights]
    optimizer = torch.optim.Adam([one for one in weights if one.requires_grad], lr=lr)
    n = len(data[0][0])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-n // batch_size))
    rng, done = np.random.default_rng(seed), 0
    for epoch in range(epochs):
        x, y = (torch.from_numpy(part) for part in data[epoch % len(data)])
        order = rng.permutation(n)
        for start in range(0, n, batch_size):
            if done == steps:
                break
            rows = torch.from_numpy(order[start : start + batch_size])
            found = forward(weights, x[rows])
            loss = torch.zeros(())
            if weight:
                goal = torch.from_numpy(wanted[epoch % len(data)])[rows]
                loss = loss + weight * 0.5 * ((found[at] - goal) ** 2).mean()
            if weight < 1:
                loss = loss + (1 - weight) * functional.cross_entropy(found[-1], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if zeros:
                with torch.no_grad():
                    for one, mask in zip(weights, masks, strict=True):
                        one.mul_(mask)
            done += 1
    return {name: one.detach().numpy() for name, one in zip(names, weights, strict=True)}
