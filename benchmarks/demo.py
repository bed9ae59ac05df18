"""The figures of the README's table: the demo network compressed, the price of similarity, two ways to segment.

    python benchmarks/demo.py                 # all of it: about 15 minutes on two cores
    python benchmarks/demo.py --only segmentation
    python benchmarks/demo.py --table         # the README's table, from the results that are there

The C library's allocator is told to keep freed memory: a virtual machine can take seconds to hand out gigabytes that no
process has touched lately, which would be timed as similarity's.

Results go to ``benchmarks/results/demo.json``, one entry a section, with machine and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import graphmod as gm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples" / "train_digits_resnet")]

from machine import machine  # noqa: E402  # both folders hold scripts, not packages
from train import export, train  # noqa: E402  # the same

RESULTS = ROOT / "benchmarks" / "results" / "demo.json"
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def compression(seeds: list[int]) -> dict[str, Any]:
    """Train the demo network with several seeds, compress each, and report on test data."""
    runs = []
    for seed in seeds:
        original = gm.load(gm.demo.model_path()) if seed == 0 else export(train(seed))
        start = time.perf_counter()
        report = gm.compress(original, gm.demo.splits(), seed=seed).report
        run = {"seed": seed, "seconds": time.perf_counter() - start, **report.as_dict()}
        runs.append(run)
        print(f"seed {seed}: {report.speedup}, test {report.before.test:.4f} -> {report.after.test:.4f}", flush=True)
    figures = {
        "speedup at batch 1": [run["speedup"][1] for run in runs],
        "speedup at batch 64": [run["speedup"][64] for run in runs],
        "share of parameters left": [run["after"]["weights"] / run["before"]["weights"] for run in runs],
        "points of test accuracy gained": [100 * (run["after"]["test"] - run["before"]["test"]) for run in runs],
        "share of weights ever trained": [run["trained_share"] for run in runs],
        "seconds": [run["seconds"] for run in runs],
    }
    return {"summary": {name: _spread(values) for name, values in figures.items()}, "runs": runs}


def _spread(values: list[float]) -> dict[str, float]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "deviation": spread, "least": min(values), "largest": max(values)}


def similarity(rounds: int) -> dict[str, Any]:
    """Time similarity of all boundaries against bare inference over the same data, in turns."""
    resnet = gm.rebatch(gm.load(LIGHT / "light_resnet50.onnx"))
    relus = [operator.output[0] for operator in resnet.operators if operator.op_type == "Relu"]
    images = np.random.default_rng(0).random((1024, 3, 224, 224), np.float32)
    demo = gm.load(gm.demo.model_path())
    digits = np.concatenate([part.inputs["image"] for part in _parts(gm.demo.splits())])
    return {
        "light_resnet50, every ReLU": _against_inference(resnet, images, relus, rounds),
        "demo network, all boundaries": _against_inference(demo, digits, gm.boundaries(demo), 10 * rounds),
    }


def _parts(splits: gm.Splits) -> tuple[gm.Data, ...]:
    return splits.train, splits.calibration, splits.test


def _against_inference(model: gm.Model, samples: Any, boundaries: list[str], rounds: int) -> dict[str, Any]:
    data = gm.data.as_data(model, samples)

    def infer() -> None:
        for _ in gm.probe.stream(model, data, list(model.outputs), 64, threads=1):
            pass

    def measure() -> None:
        gm.similarity(model, data, boundaries, batch_size=64, threads=1)

    infer()
    measure()
    times = {"inference": [], "similarity": []}
    for _ in range(rounds):
        for name, run in (("inference", infer), ("similarity", measure)):
            times[name].append(_timed(run))
    wall = {name: statistics.median(wall for wall, _ in values) for name, values in times.items()}
    cpu = {name: statistics.median(cpu for _, cpu in values) for name, values in times.items()}
    found = {
        "boundaries": len(boundaries),
        "samples": len(data),
        "rounds": rounds,
        "wall seconds": wall,
        "CPU seconds": cpu,
        "wall ratio": wall["similarity"] / wall["inference"],
        "CPU ratio": cpu["similarity"] / cpu["inference"],
    }
    print(found, flush=True)
    return found


def _timed(run: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def segmentation() -> dict[str, Any]:
    """Compare DeepArc's greedy rule with the exact optimum at the same number of modules."""
    model = gm.load(gm.demo.model_path())
    found = gm.similarity(model, gm.demo.splits().train)
    return {
        f"{n} modules": {
            method: gm.modularize(found, method, n_modules=n).dissimilarity for method in ("greedy", "optimal")
        }
        for n in range(2, 9)
    }


def table(kept: dict[str, Any]) -> str:
    """Return the results as the table of the README."""
    found = {name: section["found"] for name, section in kept.items()}
    summary = found["compression"]["summary"]
    n = len(found["compression"]["runs"])

    def mean(name: str, form: str, scale: float = 1.0) -> str:
        values = summary[name]
        middle, spread = (format(values[key] * scale, form) for key in ("mean", "deviation"))
        return f"{middle} ± {spread.lstrip('+')}"

    def ratios(name: str) -> str:
        values = found["similarity"][name]
        return f"{values['wall ratio']:.2f}x time, {values['CPU ratio']:.2f}x CPU time"

    cuts = [
        f"{values['greedy']:.1f} / {values['optimal']:.1f}"
        for values in map(found["segmentation"].get, _SHOWN)
        if values
    ]
    left = mean("share of parameters left", ".0f", 100)
    rows = [
        ("demo network, ONNX Runtime, one thread, batch 1", f"{mean('speedup at batch 1', '.2f')}x faster"),
        ("the same, batch 64", f"{mean('speedup at batch 64', '.2f')}x faster"),
        ("parameters left", f"{left} %"),
        ("accuracy on test data", f"{mean('points of test accuracy gained', '+.2f')} points"),
        ("weights ever trained, of the original's", f"{mean('share of weights ever trained', '.0f', 100)} %"),
        ("time for all of it", f"{mean('seconds', '.0f')} s"),
        (
            "similarity of the 49 ReLUs of `light_resnet50`, 1,024 images, against bare inference",
            ratios("light_resnet50, every ReLU"),
        ),
        ("the same, 47 boundaries of the demo network", ratios("demo network, all boundaries")),
        (f"within-module dissimilarity, greedy / optimal, at {', '.join(_SHOWN)}", "; ".join(cuts)),
    ]
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([f"| what ({n} seeds: mean ± deviation) | figure |", "| --- | --- |", *lines])


_SHOWN = ("2 modules", "4 modules", "8 modules")


def main() -> None:
    """Run the sections and keep what they found."""
    if not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("compression", "similarity", "segmentation"))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(RESULTS.read_text())))
        return
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "segmentation": segmentation,
        "similarity": lambda: similarity(arguments.rounds),
        "compression": lambda: compression(arguments.seeds),
    }
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in _chosen(sections, arguments.only):
        print(name, flush=True)
        kept[name] = {"machine": machine(), "found": sections[name]()}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
    print(json.dumps({name: kept[name]["found"].get("summary", kept[name]["found"]) for name in kept}, indent=2))


def _chosen(sections: dict[str, Any], only: str | None) -> Iterator[str]:
    yield from (name for name in sections if only in (None, name))


if __name__ == "__main__":
    main()
