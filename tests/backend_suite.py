"""ONNX's own backend suite: models with inputs and the outputs that are expected of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto, TypeProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

KINDS = ("node", "pytorch-operator", "pytorch-converted", "simple")


@dataclass(frozen=True)
class Case:
    """A model, sets of inputs and outputs, and how far outputs may be off."""

    name: str
    model: ModelProto
    data: Sequence[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float

    def check(self, expected: list[Any], actual: list[Any]) -> None:
        """Compare outputs in shape, type and value as the suite does."""
        Runner.assert_similar_outputs(expected, actual, self.rtol, self.atol)


def cases(kind: str) -> Iterator[Case]:
    """Yield the cases of a kind."""
    if kind == "node":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = collect_testcases(None)
        for case in found:
            data = [([_value(v) for v in inputs], [_value(v) for v in outputs]) for inputs, outputs in case.data_sets]
            yield Case(case.name, case.model, data, case.rtol, case.atol)
        return
    for case in load_model_tests(kind=kind):
        folder = Path(case.model_dir)
        model = onnx.load(folder / "model.onnx")
        types = [value.type for value in model.graph.input], [value.type for value in model.graph.output]
        data = [
            (_stored(place, "input", types[0]), _stored(place, "output", types[1]))
            for place in sorted(folder.glob("test_data_set_*"))
        ]
        yield Case(case.name, model, data, case.rtol, case.atol)


def _value(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


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
                values.append(numpy_helper.to_array(TensorProto.FromString(content)))
    return values
