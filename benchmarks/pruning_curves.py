"""Accuracy against multiply-accumulates and against latency, with recovery: graphmod beside Torch-Pruning.

    python benchmarks/pruning_curves.py --mnist mnist.npz --seeds 0 1 2   # hours; rows are kept as they come
    python benchmarks/pruning_curves.py --mnist mnist.npz --latency       # seconds; on a machine that does nothing else
    python benchmarks/pruning_curves.py --table                           # the tables of the rows that are there
    python benchmarks/pruning_curves.py --plot docs/pruning.png           # the curves as a picture

Needs what ``pruning_rival.py`` needs. For every network, seed and ratio Torch-Pruning prunes by each of its
importances; graphmod prunes by each of its own to at most the multiply-accumulates that Torch-Pruning's L2 leaves, so
that points of the curves stand above each other. Rankings are local on both sides, and Torch-Pruning's global ones
stand beside them. Both recover by the same function, for the same number of steps, with the original as the teacher
(``recover`` in ``pruning_rival.py``); gradients and activations of importances are of the training part; nothing is
chosen on test data. graphmod's networks have their batch normalisation put back for the recovery where an exporter
fused it (``gm.unfuse``) and fused again, as ``gm.prune(..., epochs=...)`` does; rows of tool ``graphmod, fused`` do
without. Latency depends on widths alone, which local rankings share, so it is measured once for each of them, all in
turn with the original, on one thread. ``round_to`` 8 is what ONNX Runtime lays convolutions out in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import graphmod as gm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks")]

import pruning_rival as rival  # noqa: E402  # the folder holds scripts
from machine import machine  # noqa: E402  # the same

RESULTS = ROOT / "benchmarks" / "results" / "pruning_curves.json"
RATIOS = (0.5, 0.7, 0.8, 0.9)
OURS = (
    "l1", "l2", "l2_all", "bn_scale", "taylor", "fisher", "activation_norm", "activation_variance", "similarity",
    "random",
)  # fmt: skip
THEIRS = ("l1", "l2", "bn_scale", "taylor", "hessian", "random")
GLOBAL = ("taylor", "lamp")
BATCHES = (1, 16)
AT_MOST = 0.97
"""Share that a group may lose: narrow groups reach the fewest multiply-accumulates only so."""

Row = dict[str, Any]


def rows(network: rival.Network, done: set[tuple[Any, ...]]) -> Iterator[Row]:
    """Yield the rows of a network that are not there yet."""
    whole = gm.graph.cost(network.model).macs
    for ratio in RATIOS:
        budget = None
        for importance, scope, round_to in (
            *((name, "local", None) for name in ("l2", *(one for one in THEIRS if one != "l2"))),
            *((name, "global", None) for name in GLOBAL),
            ("l2", "local", 8),
        ):
            head = _head(network, "torch-pruning", importance, scope, round_to, ratio)
            if importance == "l2" and round_to is None:
                module = _theirs(network, ratio, importance, scope, round_to)
                budget = gm.graph.cost(rival.export(module, network.example)).macs / whole
            if key(head) not in done:
                module = _theirs(network, ratio, importance, scope, round_to)
                model = rival.export(module, network.example)
                if gm.graph.cost(model).macs < whole:
                    yield {**head, **rival.measure(network, model, module)}
        assert budget is not None
        for importance, tool, round_to in (
            *((name, "graphmod", None) for name in OURS),
            ("l2", "graphmod, fused", None),
            ("l2", "graphmod", 8),
            ("taylor", "graphmod", 8),
        ):
            head = _head(network, tool, importance, "local", round_to, ratio)
            if key(head) not in done:
                pruned = _ours(network, budget, importance, tool, round_to)
                if pruned is not None:
                    model = gm.fuse(pruned, kinds=["unfused"])
                    yield {**head, **rival.measure(network, model, gm.to_torch(pruned))}


def _head(network: rival.Network, tool: str, importance: str, scope: str, round_to: int | None, ratio: float) -> Row:
    who = {"network": network.name, "seed": network.seed, "tool": tool, "importance": importance}
    return {**who, "scope": scope, "round_to": round_to, "ratio": ratio}


def key(row: Row) -> tuple[Any, ...]:
    """Return what makes a row different from others."""
    return tuple(row[name] for name in ("network", "seed", "tool", "importance", "scope", "round_to", "ratio"))


def _theirs(network: rival.Network, ratio: float, importance: str, scope: str, round_to: int | None) -> torch.nn.Module:
    return rival.rival_prune(
        network.module, network.example, ratio, importance, data=network.data.train, global_=scope == "global",
        round_to=round_to, seed=network.seed,
    )  # fmt: skip


def _ours(network: rival.Network, macs: float, importance: str, tool: str, round_to: int | None) -> gm.Model | None:
    """Return graphmod's network at the same cost; None where the importance does not apply, or cannot reach it."""
    data = network.data.train[: rival.SAMPLES]
    model = gm.unfuse(network.model, data)
    if tool.endswith("fused"):
        if len(model.operators) == len(network.model.operators):
            return None  # nothing was fused
        model = network.model
    try:
        return gm.prune(
            model, macs=macs, importance=importance, ranking="local", data=data, at_most=AT_MOST,
            multiple_of=round_to, seed=network.seed,
        )  # fmt: skip
    except gm.RefusedError as refusal:
        print(f"{network.name}: {importance} to {macs:.1%}: {refusal}"[:200], flush=True)
        return None


def latencies(network: rival.Network) -> Iterator[Row]:
    """Yield what the networks of a seed take in ONNX Runtime that local rankings leave, by tool and multiple."""
    whole = gm.graph.cost(network.model).macs
    models: dict[tuple[str, int | None, float], gm.Model] = {}
    for ratio in RATIOS:
        for round_to in (None, 8):
            module = _theirs(network, ratio, "l2", "local", round_to)
            models["torch-pruning", round_to, ratio] = rival.export(module, network.example)
        budget = gm.graph.cost(models["torch-pruning", None, ratio]).macs / whole
        for round_to in (None, 8):
            pruned = _ours(network, budget, "l2", "graphmod", round_to)
            if pruned is not None:
                models["graphmod", round_to, ratio] = gm.fuse(pruned, kinds=["unfused"])
    named = {"original": network.model, **{str(key): model for key, model in models.items()}}
    for batch in BATCHES:
        times = gm.latency(named, {"image": network.data.test.inputs["image"][:batch]})
        for key, model in models.items():
            tool, round_to, ratio = key
            yield {
                "network": network.name, "tool": tool, "round_to": round_to, "ratio": ratio, "batch": batch,
                "macs share": gm.graph.cost(model).macs / whole, "us": times[str(key)].median,
                "share": times[str(key)].median / times["original"].median,
            }  # fmt: skip


def _latency(times: list[Row], row: Row, batch: int) -> float | None:
    """Return the share of the original's time that a row's network takes; None where it was not measured."""
    same = ("network", "tool", "round_to", "ratio")
    found = [one["share"] for one in times if one["batch"] == batch and all(one[key] == row[key] for key in same)]
    return found[0] if found and row["scope"] == "local" else None


def summary(found: list[Row], times: list[Row]) -> Row:
    """Return, for each network, ratio and side, mean accuracies and costs over the seeds."""
    told: Row = {}
    for network in dict.fromkeys(row["network"] for row in found):
        for ratio in RATIOS:
            own = [row for row in found if (row["network"], row["ratio"]) == (network, ratio)]
            sides: dict[str, Any] = {}
            for name in dict.fromkeys((row["tool"], row["importance"], row["scope"], row["round_to"]) for row in own):
                same = [row for row in own if (row["tool"], row["importance"], row["scope"], row["round_to"]) == name]
                label = f"{name[0]}, {name[1]}, {name[2]}" + (f", multiples of {name[3]}" if name[3] else "")
                sides[label] = {
                    measure: round(statistics.fmean(row[measure] for row in same), 4)
                    for measure in ("macs share", "weights share", "accuracy before", "accuracy after")
                } | {"seeds": len(same)}
                for batch in BATCHES:
                    if (share := _latency(times, same[0], batch)) is not None:
                        sides[label][f"latency share, batch {batch}"] = round(share, 4)
            told[f"{network}, ratio {ratio}"] = sides
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="Keras' mnist.npz; without it only the demo network is pruned")
    parser.add_argument("--networks", nargs="+", choices=("mnist", "demo"), default=("mnist", "demo"))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--latency", action="store_true", help="only time the networks of the first seed")
    parser.add_argument("--table", action="store_true", help="only print the tables of the rows that are there")
    parser.add_argument("--plot", type=Path, help="only draw the curves of the rows that are there")
    given = parser.parse_args()
    content = json.loads(given.results.read_text()) if given.results.exists() else {"rows": [], "latencies": []}
    found, times = content["rows"], content["latencies"]
    if given.table or given.plot:
        _show(found, times, given.plot)
        return

    def save() -> None:
        told = {"machine": machine(), "summary": summary(found, times), "latencies": times, "rows": found}
        given.results.write_text(json.dumps(told, indent=1) + "\n")

    torch.set_num_threads(1)
    names = [name for name in given.networks if name == "demo" or given.mnist is not None]
    for seed in given.seeds[:1] if given.latency else given.seeds:
        for name in names:
            network = rival.mnist_network(given.mnist, seed) if name == "mnist" else rival.demo_network(seed)
            if given.latency:
                times[:] = [row for row in times if row["network"] != name] + list(latencies(network))
                save()
                continue
            for row in rows(network, {key(row) for row in found}):
                found.append(row)
                print(rival.line(row), flush=True)
                save()


def table(told: Row) -> str:
    """Return a summary as Markdown: a table a network, a line a side, accuracies before and after recovery."""
    lines: list[str] = []
    for network in dict.fromkeys(where.split(",")[0] for where in told):
        at = {ratio: told[f"{network}, ratio {ratio}"] for ratio in RATIOS if f"{network}, ratio {ratio}" in told}
        sides = dict.fromkeys(side for own in at.values() for side in own)
        costs = [f"{own['torch-pruning, l2, local']['macs share']:.1%}" for own in at.values()]
        lines += [f"| {network}: before → after recovery at | " + " | ".join(f"{one} of MACs" for one in costs) + " |"]
        lines += ["| --- |" + " --- |" * len(at)]
        for side in sides:
            cells = [_cell(own.get(side), own["torch-pruning, l2, local"]["macs share"]) for own in at.values()]
            lines.append(f"| {side} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(figures: Row | None, macs: float) -> str:
    if figures is None:
        return "-"
    told = f"{100 * figures['accuracy before']:.1f} → {100 * figures['accuracy after']:.1f}"
    is_same = 0.9 * macs <= figures["macs share"] <= 1.001 * macs
    return told if is_same else f"{told} ({figures['macs share']:.1%})"


def _show(found: list[Row], times: list[Row], plot: Path | None) -> None:
    if plot is None:
        print(table(summary(found, times)))
        return
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["network"] for row in found))
    figure, axes = plt.subplots(len(names), 2, figsize=(11, 4 * len(names)), squeeze=False)
    by_macs = [(tool, name, None) for tool in ("graphmod", "torch-pruning") for name in ("l2", "taylor")]
    by_latency = [(tool, "l2", round_to) for tool in ("graphmod", "torch-pruning") for round_to in (None, 8)]
    for line, name in enumerate(names):
        for axis, sides, cost in (
            (axes[line][0], by_macs, "multiply-accumulates left"),
            (axes[line][1], by_latency, "time left in ONNX Runtime, one sample"),
        ):
            for color, (tool, importance, round_to) in enumerate(sides):
                points = []
                for ratio in RATIOS:
                    wanted = (tool, importance, "local", round_to, ratio)
                    same = [row for row in found if row["network"] == name and key(row)[2:] == wanted]
                    share = _latency(times, same[0], BATCHES[0]) if same else None
                    if axis is axes[line][0] and same:
                        share = statistics.fmean(row["macs share"] for row in same)
                    if share is not None:
                        points.append((share, 100 * statistics.fmean(row["accuracy after"] for row in same)))
                label = f"{tool}, {importance}" + (f", multiples of {round_to}" if round_to else "")
                if points:
                    axis.plot(*zip(*sorted(points), strict=True), "o-", color=f"C{color}", label=label)
            axis.set(xlabel=cost, ylabel="test accuracy after recovery, %", title=name, xscale="log")
            axis.grid(alpha=0.3)
            axis.legend()
    figure.tight_layout()
    figure.savefig(plot, dpi=110)


if __name__ == "__main__":
    main()
