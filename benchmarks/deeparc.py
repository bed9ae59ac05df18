"""DeepArc's claims, reproduced and beaten: one table a claim, on ResNets of 44 layers and ViTs of 12 blocks.

    python benchmarks/deeparc.py                              # every table, each in less than 45 minutes on two cores
    python benchmarks/deeparc.py --only latency repair        # some of them
    python benchmarks/deeparc.py --quick                      # a first look, less than 3 minutes a table; not kept
    python benchmarks/deeparc.py --data cifar-10-batches-bin  # on CIFAR-10 instead of digits, mnist1d and MNIST
    python benchmarks/deeparc.py --table                      # the tables alone, from the results that are there

A table is a file ``deeparc_<name>.py``; what it measures on one network is a cell. Cells run beside each other, each in
a process with one thread that is bound to a core. Networks are trained when they are first needed, which takes about 10
minutes a seed for all six, and kept, see ``trained_networks.py``. Results go to ``benchmarks/results/deeparc.json``,
with machine and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from itertools import cycle, product
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import datasets
import torch
import trained_networks
from machine import machine

RESULTS = Path(__file__).resolve().parent / "results" / "deeparc.json"
SECTIONS = ("segmentation", "removal", "latency", "sparsity", "adapt", "repair")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Cell = tuple[str, str, int]
"""Architecture, data set and seed."""


def measure(section: str, cell: Cell, quick: bool) -> dict[str, Any]:
    """Return what a section finds on one network, and how long that took."""
    start = time.perf_counter()
    architecture, data, seed = cell
    found = import_module(f"deeparc_{section}").cell(architecture, data, seed, quick)
    took = {"minutes": (time.perf_counter() - start) / 60}
    return {"architecture": architecture, "data": data, "seed": seed, **took, **found}


def run(section: str, cells: list[Cell], quick: bool, processes: int) -> Iterator[dict[str, Any]]:
    """Measure all cells, as many beside each other as there are processes, and yield what each has found."""
    context = get_context("spawn")
    cores = context.Queue()
    for _, core in zip(range(processes), cycle(sorted(os.sched_getaffinity(0)))):
        cores.put(core)
    with ProcessPoolExecutor(processes, context, _begin, (cores, dict(datasets.PATHS), quick)) as pool:
        futures = {pool.submit(measure, section, cell, quick): cell for cell in cells}
        for future in as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            found = future.result()
            print(f"{section}: {futures[future]}, {found['minutes']:.1f} minutes", flush=True)
            yield found


def _begin(cores: Queue[int], paths: dict[str, Path], quick: bool) -> None:
    """Bind the process to a core of its own, with one thread for torch."""
    os.sched_setaffinity(0, {cores.get()})
    torch.set_num_threads(1)
    datasets.PATHS.update(paths)
    trained_networks.QUICK = quick


def main() -> None:
    """Run the sections, keep what they found, and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", help="such as resnet44-digits; all if not given")
    parser.add_argument("--data", type=Path, help="CIFAR-10's folder of .bin files, to measure on that alone")
    parser.add_argument("--mnist", type=Path, help="Keras' mnist.npz, if it is not in ../shared/data")
    parser.add_argument("--processes", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--missing", action="store_true", help="only what has no results yet")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    os.environ.update(ONE_THREAD)
    if arguments.mnist:
        datasets.PATHS["mnist"] = arguments.mnist
    if arguments.data:
        datasets.PATHS["cifar10"] = arguments.data
    names = ("cifar10",) if arguments.data else ("digits",) if arguments.quick else trained_networks.available()
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    cells = [
        (architecture, data, seed)
        for seed, data, architecture in product(seeds, names, trained_networks.ARCHITECTURES)
        if arguments.networks is None or f"{architecture}-{data}" in arguments.networks
    ]
    for section in arguments.only:
        found: list[dict[str, Any]] = []
        if arguments.table:
            found = _kept().get(section, {}).get("found", [])
        else:
            known = {_key(one) for one in _kept().get(section, {}).get("found", [])} if arguments.missing else set()
            wanted = [cell for cell in cells if cell not in known]
            for one in run(section, wanted, arguments.quick, arguments.processes):
                found = sorted([*found, one], key=_key) if arguments.quick else _keep(section, one)
        if found:
            print(f"\n### {section}\n\n{import_module(f'deeparc_{section}').table(found)}\n", flush=True)


def _kept() -> dict[str, Any]:
    """Return the results that are there."""
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def _keep(section: str, one: dict[str, Any]) -> list[dict[str, Any]]:
    """Write what was found on a network beside what is there of others, and return all of the section."""
    kept = _kept()
    others = [found for found in kept.get(section, {}).get("found", []) if _key(found) != _key(one)]
    found = sorted([*others, one], key=_key)
    kept[section] = {"machine": machine(), "found": found}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    return found


def _key(found: dict[str, Any]) -> Cell:
    return found["architecture"], found["data"], found["seed"]


if __name__ == "__main__":
    main()
