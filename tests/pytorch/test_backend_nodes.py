"""onnx's own cases of every operator, with the outputs that it expects."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from graphmod.errors import UnsupportedOperatorError
from graphmod.pytorch import to_torch
from graphmod.pytorch.dtypes import to_array, to_tensor
from graphmod.pytorch.registry import find

EXCEPTIONS = {
    r"test_bernoulli.*": "random",
    r"test_training_dropout.*": "random; and it is the network, not the graph, that says whether it is trained",
    r"test_reduce_(max|min)_empty_set.*": "torch raises for the extreme of nothing, which is no wrong tensor",
    r"test_resize_downsample_scales_(linear|cubic)_align_corners": "ONNX Runtime rounds the output's size first, too",
}
"""Cases whose expected outputs are not met, by the reason."""

LEAST = {"as inputs": 1200, "as constants": 850}
"""Cases that pass, at least: a converter that starts to refuse shows here."""


@cache
def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(case for case in collect_testcases(None) if registered(case.model))


def registered(model: ModelProto) -> bool:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    return all(find(op.op_type, op.domain, opsets.get(op.domain, 1)) is not None for op in model.graph.node)


def array(value):
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def with_constants(model, inputs):
    """Make all inputs but the first initializers: converters then build modules and read their numbers early."""
    proto = ModelProto()
    proto.CopyFrom(model)
    for value, info in list(zip(inputs, model.graph.input, strict=True))[1:]:
        proto.graph.initializer.append(numpy_helper.from_array(array(value), info.name))
    del proto.graph.input[1:]
    return proto, inputs[:1]


def check(model, inputs, outputs, tolerance):
    net = to_torch(model)
    made = net(*(to_tensor(array(value)) for value in inputs))
    for expected, actual in zip(map(array, outputs), made if isinstance(made, tuple) else (made,), strict=True):
        actual = to_array(actual)
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        half = expected.dtype.itemsize == 2 and expected.dtype.kind not in "iu"
        if expected.dtype.kind != "c":
            actual, expected = actual.astype(np.float64), expected.astype(np.float64)
        np.testing.assert_allclose(actual, expected, rtol=2e-2 if half else tolerance, atol=2e-4 if half else 1e-5)


@pytest.mark.parametrize("how", LEAST)
def test_expected_outputs(how, capfd):
    results, failures = Counter(), []
    for case in cases():
        if any(re.fullmatch(pattern, case.name) for pattern in EXCEPTIONS):
            continue
        for inputs, outputs in case.data_sets:
            if how == "as constants" and len(inputs) < 2:
                continue
            try:
                model, given = with_constants(case.model, inputs) if how == "as constants" else (case.model, inputs)
                check(model, given, outputs, max(case.rtol, 1e-3))
                results["passed"] += 1
            except UnsupportedOperatorError:
                results["refused"] += 1
            except Exception as error:  # noqa: BLE001 - every failure is listed, of whatever kind
                failures.append(f"{case.name}: {type(error).__name__}: {str(error).strip()[:200]}")
    capfd.readouterr()  # what torch.fx prints of the code around a failure
    assert not failures, "\n".join(failures)
    assert results["passed"] >= LEAST[how], results


def test_exceptions_are_still_needed():
    names = [case.name for case in cases()]
    assert all(any(re.fullmatch(pattern, name) for name in names) for pattern in EXCEPTIONS)


def test_onnx_is_new_enough_for_these_cases():
    assert onnx.defs.onnx_opset_version() >= 23
