"""A clock for compression that counts multiply-accumulates, so that no choice depends on the machine."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import graphmod as gm


def set_clock(patch: pytest.MonkeyPatch, overhead: float, ratios: Callable[..., list[float]], spread: int) -> None:
    """Let a block take its multiply-accumulates and an overhead, networks the ratios; and let the search try little."""

    def timed(
        model: gm.Model, blocks: Sequence[Any], _: gm.Data, *, batch_size: int = 1, **__: Any
    ) -> dict[str, float]:
        parts = {block.path: gm.graph.subgraph(model, [block.entry], [block.exit]) for block in blocks}
        return {path: batch_size * (gm.graph.cost(part).macs + overhead) for path, part in parts.items()}

    clock = importlib.import_module("graphmod.methods.compress.clock")
    patch.setattr(clock, "block_latency", timed)
    patch.setattr(clock.Clock, "ratios", ratios)
    search = importlib.import_module("graphmod.methods.compress.search")
    for name, value in {"BLOCKS": 2, "RUNS": 1, "SPREAD": spread}.items():
        patch.setattr(search, name, value)
