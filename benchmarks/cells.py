"""Cells: what a benchmark measures on one network and one seed, each in a process of its own, kept with the machine.

A benchmark ``<name>.py`` has sections, each a file ``<name>_<section>.py`` with ``cell(architecture, data, seed,
quick)``, which returns what is found on one network, ``table(found)`` and, where it measures on data sets that others
leave out, their names in ``ALSO``. Cells run beside each other, each in a process with one thread that is bound to a
core. Results go to ``results/<name>.json``, with machine and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
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

RESULTS = Path(__file__).resolve().parent / "results"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Cell = tuple[str, str, int]
"""Architecture, data set and seed."""


def measure(module: str, cell: Cell, quick: bool) -> dict[str, Any]:
    """Return what a section finds on one network, and how long that took."""
    start = time.perf_counter()
    architecture, data, seed = cell
    found = import_module(module).cell(architecture, data, seed, quick)
    took = {"minutes": (time.perf_counter() - start) / 60}
    return {"architecture": architecture, "data": data, "seed": seed, **took, **found}


def run(module: str, cells: list[Cell], quick: bool, processes: int) -> Iterator[dict[str, Any]]:
    """Measure all cells, as many beside each other as there are processes, and yield what each has found."""
    context = get_context("spawn")
    cores = context.Queue()
    for _, core in zip(range(processes), cycle(sorted(os.sched_getaffinity(0)))):
        cores.put(core)
    with ProcessPoolExecutor(processes, context, _begin, (cores, dict(datasets.PATHS), quick)) as pool:
        futures = {pool.submit(measure, module, cell, quick): cell for cell in cells}
        for future in as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            found = future.result()
            print(f"{module}: {futures[future]}, {found['minutes']:.1f} minutes", flush=True)
            yield found


def _begin(cores: Queue[int], paths: dict[str, Path], quick: bool) -> None:
    """Bind the process to a core of its own, with one thread for torch."""
    os.sched_setaffinity(0, {cores.get()})
    torch.set_num_threads(1)
    datasets.PATHS.update(paths)
    trained_networks.QUICK = quick


def main(name: str, sections: Sequence[str], architectures: Sequence[str], description: str | None) -> None:
    """Run the sections of a benchmark, keep what they found, and print their tables."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sections, default=sections, metavar="SECTION")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", help="such as resnet44-digits; all if not given")
    parser.add_argument("--data", type=Path, help="CIFAR-10's, CIFAR-100's or SVHN's folder, for that alone")
    parser.add_argument("--mnist", type=Path, help="Keras' mnist.npz, if it is not in ../shared/data")
    parser.add_argument("--processes", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--missing", action="store_true", help="only what has no results yet")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    os.environ.update(ONE_THREAD)
    if arguments.mnist:
        datasets.PATHS["mnist"] = arguments.mnist
    images = (datasets.find_images(arguments.data),) if arguments.data else ()
    names = images or (("digits",) if arguments.quick else trained_networks.available())
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    for section in arguments.only:
        also = () if arguments.data or arguments.quick else getattr(import_module(f"{name}_{section}"), "ALSO", ())
        cells = [
            (architecture, data, seed)
            for seed, data, architecture in product(seeds, (*names, *also), architectures)
            if arguments.networks is None or f"{architecture}-{data}" in arguments.networks
        ]
        found: list[dict[str, Any]] = []
        if arguments.table:
            found = _kept(name).get(section, {}).get("found", [])
        else:
            known = {_key(one) for one in _kept(name).get(section, {}).get("found", [])} if arguments.missing else set()
            wanted = [cell for cell in cells if cell not in known]
            for one in run(f"{name}_{section}", wanted, arguments.quick, arguments.processes):
                found = sorted([*found, one], key=_key) if arguments.quick else _keep(name, section, one)
        if found:
            print(f"\n### {section}\n\n{import_module(f'{name}_{section}').table(found)}\n", flush=True)


def _kept(name: str) -> dict[str, Any]:
    """Return the results that are there."""
    file = RESULTS / f"{name}.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _keep(name: str, section: str, one: dict[str, Any]) -> list[dict[str, Any]]:
    """Write what was found on a network beside what is there of others, and return all of the section."""
    kept = _kept(name)
    others = [found for found in kept.get(section, {}).get("found", []) if _key(found) != _key(one)]
    found = sorted([*others, one], key=_key)
    kept[section] = {"machine": machine(), "found": found}
    beside = RESULTS / f"{name}.json.part"
    beside.write_text(json.dumps(kept, indent=1) + "\n")
    beside.replace(RESULTS / f"{name}.json")
    return found


def _key(found: dict[str, Any]) -> Cell:
    return found["architecture"], found["data"], found["seed"]
