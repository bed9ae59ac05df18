"""What the tests of several packages share: one thread a process, and the zoo of networks, exported once a session."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import zoo

os.environ["OMP_NUM_THREADS"] = "1"  # tests run beside each other; threads that wait for a core take what they wait for
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zoo_network() -> Callable[..., zoo.Network]:
    """Return a network of the zoo by name and exporter, ``zoo_network("resnet18", "torchscript")``."""
    return zoo.network


@pytest.fixture(scope="session", params=list(zoo.NETWORKS))
def any_network(request) -> zoo.Network:
    """Every network of the zoo, as torch's current exporter makes it."""
    return zoo.network(request.param)


@pytest.fixture(
    scope="session", params=[(name, exporter) for name in zoo.NETWORKS for exporter in zoo.EXPORTERS], ids="-".join
)
def any_export(request) -> zoo.Network:
    """Every network of the zoo, as either exporter makes it."""
    return zoo.network(*request.param)
