"""The figures of the importer: ONNX's backend suite, whole networks, gradients, memory, and time.

    python benchmarks/importer.py                    # all of it
    python benchmarks/importer.py --only suite       # one section
    python benchmarks/importer.py --only suite --list  # and name the cases that fail

Results go to ``benchmarks/results/importer.json``, one entry a section, with machine and versions.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TypeProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

import graphmod as gm
from graphmod.pytorch.values import to_numpy, to_value

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks")]

from machine import machine  # noqa: E402  # the folder holds scripts, not a package

RESULTS = ROOT / "benchmarks" / "results" / "importer.json"


# -- ONNX's backend suite


def suite(listed: bool) -> dict[str, Any]:
    """Import every case of ONNX's backend suite and compare outputs as the suite does."""
    figures = {}
    for kind in ("node", "pytorch-operator", "pytorch-converted", "simple"):
        failures = {}
        n_cases = 0
        for name, model, data_sets, tolerance in _cases(kind):
            n_cases += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    _check(model, data_sets, *tolerance)
            except Exception as error:  # noqa: BLE001 - every failure is counted, of whatever kind
                failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                if listed:
                    print(f"{name}: {failures[name]}", flush=True)
        figures[kind] = {"cases": n_cases, "passed": n_cases - len(failures), "failures": failures}
        print(f"{kind}: {n_cases - len(failures)} of {n_cases}", flush=True)
    return figures


Case = tuple[str, ModelProto, list[tuple[list[Any], list[Any]]], tuple[float, float]]


def _cases(kind: str) -> Iterator[Case]:
    if kind == "node":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cases = collect_testcases(None)
        for case in cases:
            data = [([_value(v) for v in inputs], [_value(v) for v in outputs]) for inputs, outputs in case.data_sets]
            yield case.name, case.model, data, (case.rtol, case.atol)
        return
    for case in load_model_tests(kind=kind):
        folder = Path(case.model_dir)
        model = onnx.load(folder / "model.onnx")
        data = []
        for place in sorted(folder.glob("test_data_set_*")):
            inputs = _stored(place, "input", [value.type for value in model.graph.input])
            data.append((inputs, _stored(place, "output", [value.type for value in model.graph.output])))
        yield case.name, model, data, (case.rtol, case.atol)


def _stored(folder: Path, stem: str, types: Sequence[TypeProto]) -> list[Any]:
    values = []
    for index, kind in enumerate(types[: len(list(folder.glob(f"{stem}_*.pb")))]):
        content = (folder / f"{stem}_{index}.pb").read_bytes()
        match kind.WhichOneof("value"):
            case "sequence_type":
                values.append(numpy_helper.to_list(onnx.SequenceProto.FromString(content)))
            case "optional_type":
                values.append(numpy_helper.to_optional(onnx.OptionalProto.FromString(content)))
            case _:
                values.append(numpy_helper.to_array(onnx.TensorProto.FromString(content)))
    return values


def _value(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _check(model: ModelProto, data_sets: list[tuple[list[Any], list[Any]]], rtol: float, atol: float) -> None:
    net = gm.to_torch(model)
    for inputs, expected in data_sets:
        made = net(*(to_value(value) for value in inputs))
        made = list(made) if isinstance(made, tuple) else [made]
        Runner.assert_similar_outputs(expected, [to_numpy(value) for value in made], rtol, atol)


SECTIONS: dict[str, Callable[[bool], dict[str, Any]]] = {"suite": suite}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--list", action="store_true", help="print every failure")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, section in SECTIONS.items():
        if arguments.only in (None, name):
            results[name] = {"machine": machine(), **section(arguments.list)}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
