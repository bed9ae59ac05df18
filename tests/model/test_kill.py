"""A process that is killed while it saves leaves the old file or the new one, and nothing that looks like a model."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphmod as gm

SAVER = """
import sys
import graphmod as gm
models = [gm.load(path) for path in sys.argv[2:]]
print("ready", flush=True)
while True:
    for model in models:
        model.save(sys.argv[1])
"""


def model(value: float) -> onnx.ModelProto:
    """A sum of a few MB: long enough to be killed in the midst of it."""
    weight = numpy_helper.from_array(np.full((2**20,), value, np.float32), "w")
    nodes = [helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in "xy"]
    graph = helper.make_graph(nodes, "sum", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def kill_while_saving(folder, rounds: int) -> None:
    sources = []
    for number in (1, 2):
        (folder / str(number)).mkdir()
        sources.append(folder / str(number) / "model.onnx")
        onnx.save_model(model(number), sources[-1], save_as_external_data=True, location="w.bin", size_threshold=0)
    digests = {gm.load(path).digest: number for number, path in enumerate(sources, 1)}
    target = folder / "there" / "model.onnx"
    target.parent.mkdir()
    gm.load(sources[0]).save(target)
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        command = [sys.executable, "-c", SAVER, str(target), *map(str, sources)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as saver:
            assert saver.stdout is not None
            assert saver.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0, 0.1))
            saver.kill()
        assert saver.returncode == -signal.SIGKILL
        found = gm.load(target)
        number = digests[found.digest]
        assert found.run({"x": np.float32(0)})["y"] == number * 2.0**20
        assert list(target.parent.glob("*.onnx")) == [target]
        others = [path for path in target.parent.iterdir() if path != target and path.suffix != ".data"]
        assert all(path.name.startswith(".") and path.suffix == ".part" for path in others)


def test_killed_a_few_times(tmp_path):
    kill_while_saving(tmp_path, 8)


@pytest.mark.slow
def test_killed_fifty_times(tmp_path):
    kill_while_saving(tmp_path, 50)
