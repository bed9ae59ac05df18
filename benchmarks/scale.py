"""What size costs: commands and saving on large files, and how their time grows with the number of operators.

    python benchmarks/scale.py                   # all of it: about 15 minutes on two cores, 15 GB of disk for a while
    python benchmarks/scale.py --quick           # 1,000 operators and 200 MB, growth up to 10,000
    python benchmarks/scale.py --only growth     # one section: large, saving, growth
    python benchmarks/scale.py --at /disk/there  # where the generated models lie meanwhile

``large`` is a transformer of 20,000 operators with 4 GB of weights in external data, ``growth`` the same shape with
1,000 to 100,000 operators and small weights. Every figure is of a process of its own, which is refused torch: wall and
processor time, start of Python included, and the peak of resident memory. ``saving`` sets saving beside ``cp`` of the
same files, both down to the disk. ``session alone`` is the part of every edit that is ONNX Runtime's.

Results go to ``benchmarks/results/scale.json``, one entry a section, with machine and versions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from machine import machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scale.json"

MAX_SECONDS = 20.0
MAX_MB = 700.0

HEAD = "import sys; sys.modules['torch'] = None; import graphmod as gm; "
"""What every measured process begins with; importing torch would fail."""

COMMAND = HEAD + "from graphmod.cli import main; sys.argv[0] = 'graphmod'; main()"
STEPS: dict[str, tuple[str, str]] = {
    "start": (HEAD + "import onnx, onnxruntime, networkx", ""),
    "info": (COMMAND, "info {model}"),
    "blocks": (COMMAND, "blocks {model}"),
    "remove": (HEAD + "gm.remove(gm.load(sys.argv[1]), sys.argv[2])", "{model} {block}"),
    "remove and save": (
        HEAD + "gm.remove(gm.load(sys.argv[1]), sys.argv[2]).save(sys.argv[3])",
        "{model} {block} {out}",
    ),
    "session alone": (
        HEAD + "from graphmod.model.model import _open_once; m = gm.load(sys.argv[1]); _open_once(m._proto, m.folder)",
        "{model}",
    ),
    "fuse": (HEAD + "gm.fuse(gm.load(sys.argv[1]))", "{model}"),
    "find": (COMMAND, "find {model} MatMul>Add --json"),
    "diff": (HEAD + "a, b = map(gm.load, sys.argv[1:]); assert gm.diff(a, b)", "{model} {edited}"),
}
"""What is measured: a program, and its arguments."""


# -- the models


def transformer(path: Path, n_operators: int, width: int) -> None:
    """Write a transformer encoder of about so many operators, its weights in ``<path>.data``."""
    import onnx
    from onnx import TensorProto, helper

    heads = max(1, width // 64)
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "sequence"]),
    ]
    output = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "sequence", width])
    model = helper.make_model(
        helper.make_graph([], "transformer", inputs, [output]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    with Path(f"{path}.data").open("wb") as stream:
        writer = _Writer(model.graph, stream, f"{path.name}.data")
        writer.small("split", [0, 0, heads, width // heads])
        writer.small("join", [0, 0, width])
        writer.small("temperature", math.sqrt(width // heads))
        writer.small("root", math.sqrt(2))
        writer.small("half", 0.5)
        writer.small("one", 1.0)
        writer.small("hidden_score", -1e4)
        writer.small("axes", [1, 2])
        writer.weight("embedding.weight", (1000, width))
        kept = writer.operator(
            "mask", "Cast", writer.operator("mask", "Unsqueeze", "mask", "axes"), to=TensorProto.FLOAT
        )
        hidden = writer.operator("mask", "Mul", writer.operator("mask", "Sub", "one", kept), "hidden_score")
        last = writer.operator("embedding", "Gather", "embedding.weight", "ids")
        for number in range(max(1, round(n_operators / 34))):
            last = _layer(writer, f"layers.{number}", last, hidden, width)
        writer.operator("", "Identity", last, output="hidden")
    path.write_bytes(model.SerializeToString())
    assert onnx.external_data_helper.uses_external_data(model.graph.initializer[-1])


def _layer(to: _Writer, scope: str, x: str, mask: str, width: int) -> str:
    """Append one layer of 34 operators, as an exporter writes it out, and return its output."""

    def linear(name: str, x: str, n_in: int, n_out: int) -> str:
        to.weight(f"{scope}.{name}.weight", (n_in, n_out))
        to.weight(f"{scope}.{name}.bias", (n_out,))
        product = to.operator(f"{scope}.{name}", "MatMul", x, f"{scope}.{name}.weight")
        return to.operator(f"{scope}.{name}", "Add", product, f"{scope}.{name}.bias")

    def norm(name: str, x: str) -> str:
        to.weight(f"{scope}.{name}.weight", (width,))
        to.weight(f"{scope}.{name}.bias", (width,))
        weights = (f"{scope}.{name}.weight", f"{scope}.{name}.bias")
        return to.operator(f"{scope}.{name}", "LayerNormalization", x, *weights)

    step = partial(to.operator, f"{scope}.attention")
    normed = norm("norm1", x)
    heads = [step("Reshape", linear(f"attention.{name}", normed, width, width), "split") for name in ("q", "k", "v")]
    q, k, v = (step("Transpose", one, perm=perm) for one, perm in zip(heads, _PERMUTATIONS, strict=True))
    scores = step("Add", step("Div", step("MatMul", q, k), "temperature"), mask)
    seen = step("Transpose", step("MatMul", step("Softmax", scores, axis=-1), v), perm=(0, 2, 1, 3))
    x = to.operator(scope, "Add", x, linear("attention.out", step("Reshape", seen, "join"), width, width))
    step = partial(to.operator, f"{scope}.mlp.gelu")
    inner = linear("mlp.up", norm("norm2", x), width, 4 * width)
    gate = step("Add", step("Erf", step("Div", inner, "root")), "one")
    active = step("Mul", step("Mul", inner, gate), "half")
    return to.operator(scope, "Add", x, linear("mlp.down", active, 4 * width, width))


_PERMUTATIONS = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))


class _Writer:
    """Appends operators to a graph and weights to its data file."""

    def __init__(self, graph: Any, stream: IO[bytes], location: str) -> None:
        import numpy as np

        self._graph, self._stream, self._location, self._offset = graph, stream, location, 0
        noise = np.random.default_rng(0).normal(0, 0.02, 2**23).astype(np.float32)
        self._noise = memoryview(noise.tobytes())

    def small(self, name: str, value: Any) -> None:
        import numpy as np
        from onnx import numpy_helper

        array = np.asarray(value, np.int64 if isinstance(value, list) else np.float32)
        self._graph.initializer.append(numpy_helper.from_array(array, name))

    def weight(self, name: str, shape: tuple[int, ...]) -> None:
        from onnx import TensorProto

        length = 4 * math.prod(shape)
        start = 4 * (len(self._graph.initializer) * 7919 % (2**22))
        self._stream.write(bytes(-self._offset % 4096))
        self._offset += -self._offset % 4096
        for done in range(0, length, 2**24):
            self._stream.write(self._noise[start : start + min(2**24, length - done)])
        tensor = self._graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._location), ("offset", self._offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self._offset += length

    def operator(self, scope: str, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        position = len(self._graph.node)
        output = output or f"t{position}"
        node = helper.make_node(op_type, inputs, [output], f"node_{op_type}_{position}", **attributes)
        parts = scope.split(".") if scope else []
        scopes = ["", *(".".join(parts[: i + 1]) for i in range(len(parts))), op_type.lower()]
        helper.set_model_props(node, {"pkg.torch.onnx.name_scopes": str(scopes)})
        self._graph.node.append(node)
        return output


def generate(path: Path, n_operators: int, width: int) -> None:
    """Write a model in a process of its own, so that this one, and all that it starts, stays small."""
    _measured([sys.executable, __file__, "--generate", str(path), str(n_operators), str(width)])


# -- measuring


def _measured(command: list[str]) -> dict[str, float | str]:
    """Run a command and return wall and processor seconds and the peak of resident memory in MB."""
    with tempfile.TemporaryFile("w+") as told:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            told.seek(0)
            return {"failed": told.read().strip().splitlines()[-1][:300]}
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": round(used.ru_maxrss / 1024, 1),
    }


def _steps(folder: Path, model: Path, block: str) -> dict[str, Any]:
    """Measure every step on one model; ``diff`` takes the model that was saved without a block."""
    edited = folder / "edited" / "edited.onnx"
    edited.parent.mkdir()
    values = {"model": model, "block": block, "out": edited, "edited": edited}
    figures = {}
    for name, (program, arguments) in STEPS.items():
        given = [argument.format(**values) for argument in arguments.split()]
        figures[name] = _measured([sys.executable, "-c", program, *given])
        print(f"  {name}: {figures[name]}", flush=True)
    for file in edited.parent.iterdir():
        file.unlink()
    edited.parent.rmdir()
    return figures


def large(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure the commands on many operators and much data."""
    model = _large_model(folder, quick)
    figures: dict[str, Any] = {"bytes": Path(f"{model}.data").stat().st_size}
    figures |= _steps(folder, model, "layers.5")
    held = ("info", "blocks", "remove", "diff")
    figures["within"] = {
        name: figures[name].get("seconds", math.inf) <= MAX_SECONDS and figures[name].get("peak_mb", math.inf) <= MAX_MB
        for name in held
    }
    return figures


def _large_model(folder: Path, quick: bool) -> Path:
    path = folder / "large" / "model.onnx"
    if not path.exists():
        path.parent.mkdir()
        generate(path, 1000 if quick else 20_000, 384)
    return path


def saving(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure saving an edited model beside ``cp`` of the same files, in turn, each down to the disk."""
    model = _large_model(folder, quick)
    out = folder / "saved"
    edit = "m = gm.load(sys.argv[1]); p = m.editable(); p.doc_string = 'edited'; m = type(m)(p, m.folder); "
    timed = "import time; t = time.perf_counter(); m.save(sys.argv[2]); print(time.perf_counter() - t, file=sys.stderr)"
    figures: dict[str, Any] = {"bytes": Path(f"{model}.data").stat().st_size, "save": [], "cp": [], "peak_mb": []}
    for _ in range(3):
        for name in ("save", "cp"):
            out.mkdir()
            os.sync()
            if name == "save":
                command = [sys.executable, "-c", HEAD + edit + timed, str(model), str(out / "model.onnx")]
                figures["peak_mb"].append(_measured(command).get("peak_mb"))
                for file in out.iterdir():
                    file.unlink()
                os.sync()
                seconds = float(subprocess.run(command, capture_output=True, text=True, check=True).stderr)
            else:
                start = time.perf_counter()
                subprocess.run(["cp", str(model), f"{model}.data", str(out)], check=True)
                subprocess.run(["sync", *map(str, out.iterdir())], check=True)
                seconds = time.perf_counter() - start
            figures[name].append(round(seconds, 2))
            for file in out.iterdir():
                file.unlink()
            out.rmdir()
        print(f"  save {figures['save'][-1]} s, cp {figures['cp'][-1]} s", flush=True)
    return figures


def growth(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure every step from 1,000 to 100,000 operators, and fit the exponent of time beyond Python's start."""
    figures: dict[str, Any] = {}
    sizes = (1_000, 3_000, 10_000) if quick else (1_000, 3_000, 10_000, 30_000, 100_000)
    for n in sizes:
        path = folder / f"{n}.onnx"
        generate(path, n, 8)
        print(f"{n} operators", flush=True)
        figures[str(n)] = _steps(folder, path, "layers.5")
    figures["exponents"] = {}
    for name in STEPS:
        points = [
            (n, figures[str(n)][name]["cpu_seconds"] - figures[str(n)]["start"]["cpu_seconds"]) for n in sizes[1:]
        ]
        if name != "start":
            figures["exponents"][name] = round(_slope([(math.log(n), math.log(max(t, 0.01))) for n, t in points]), 2)
    print(figures["exponents"], flush=True)
    return figures


def _slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line."""
    x0, y0 = (sum(column) / len(points) for column in zip(*points, strict=True))
    return sum((x - x0) * (y - y0) for x, y in points) / sum((x - x0) ** 2 for x, _ in points)


SECTIONS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {"large": large, "saving": saving, "growth": growth}


def main() -> None:
    parser = argparse.ArgumentParser(description="What size costs.")
    parser.add_argument("--only", choices=SECTIONS, help="one section")
    parser.add_argument("--quick", action="store_true", help="small models; nothing is written to the results")
    parser.add_argument("--at", type=Path, help="where the generated models lie meanwhile")
    parser.add_argument("--generate", nargs=3, metavar=("PATH", "OPERATORS", "WIDTH"), help="write one model, no more")
    given = parser.parse_args()
    if given.generate:
        transformer(Path(given.generate[0]), int(given.generate[1]), int(given.generate[2]))
        return
    with tempfile.TemporaryDirectory(dir=given.at) as folder:
        found = {name: SECTIONS[name](Path(folder), given.quick) for name in ([given.only] if given.only else SECTIONS)}
    if given.quick:
        return
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    stamped = {name: {"machine": machine(), **figures} for name, figures in found.items()}
    RESULTS.write_text(json.dumps({**kept, **stamped}, indent=1) + "\n")


if __name__ == "__main__":
    main()
