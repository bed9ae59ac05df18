"""ONNX Runtime sessions: opening one for a graph in memory, with its weights where they are."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf.message import EncodeError
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import uses_external_data

from graphmod.errors import InvalidDataError, InvalidModelError
from graphmod.model import initializers

ERRORS_ONLY = 3

_RUNTIME_ERRORS = (
    ort.capi.onnxruntime_pybind11_state.Fail,
    ort.capi.onnxruntime_pybind11_state.InvalidArgument,
    ort.capi.onnxruntime_pybind11_state.InvalidGraph,
    ort.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    ort.capi.onnxruntime_pybind11_state.NoSuchFile,
    ort.capi.onnxruntime_pybind11_state.NotImplemented,
    ort.capi.onnxruntime_pybind11_state.RuntimeException,
)


class _Session(ort.InferenceSession):  # type: ignore[misc]  # onnxruntime has no types
    """A session, with the memory of the values that it was given beside the graph."""

    def __init__(
        self, content: bytes, options: ort.SessionOptions, values: Mapping[str, ort.OrtValue], without: Sequence[str]
    ) -> None:
        self._values = values
        if values:
            options.add_external_initializers(list(values), list(values.values()))
        super().__init__(content, options, ["CPUExecutionProvider"], disabled_optimizers=list(without))


def open_session(
    proto: ModelProto,
    folder: Path | None,
    threads: int | None,
    *,
    as_it_is: bool = False,
    without: Sequence[str] = (),
    written: Path | None = None,
) -> ort.InferenceSession:
    """Open a session on the CPU; external values are read from ``folder``.

    Parameters
    ----------
    proto : onnx.ModelProto
        Of any size: what one message cannot hold is handed to ONNX Runtime beside it.
    folder : pathlib.Path, optional
    threads : int, optional
        Threads within an operator; see :func:`usual_threads` if None.
    as_it_is : bool
        Without optimising the graph or packing weights: weights in external files stay mapped, and are not read.
    without : sequence of str
        Names of ONNX Runtime's optimisers that are left out.
    written : pathlib.Path, optional
        Where the optimised graph is written to, with its values in a file beside it.

    Raises
    ------
    InvalidModelError
        ONNX Runtime cannot load the graph; the message carries its reason.
    """
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY + 1
    options.intra_op_num_threads = usual_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if as_it_is:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_mem_pattern = False  # planning memory takes time that grows faster than the graph
    if written is not None:
        options.optimized_model_filepath = str(written)
        beside = f"{written.name}.data"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", beside)
    message = proto
    values: dict[str, ort.OrtValue] = {}
    if initializers.stored_bytes(initializers.tensors(proto)) > initializers.SAFE:
        message, values = _apart(proto)
    try:
        return _Session(message.SerializeToString(), options, values, without)
    except EncodeError as error:
        raise InvalidModelError(
            "over 2 GB of the model lie in attributes, bodies or packed initializers, which ONNX Runtime takes from a "
            "file only; save it and load that"
        ) from error
    except _RUNTIME_ERRORS as error:
        raise InvalidModelError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error


def usual_threads() -> int:
    """Return what ``OMP_NUM_THREADS`` says, as for torch, or as many threads as there are cores for this process.

    ONNX Runtime's own default looks at neither, and keeps its threads spinning on cores that others were given.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told):
        return int(told)
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _apart(proto: ModelProto) -> tuple[ModelProto, dict[str, ort.OrtValue]]:
    """Return a model without the values of its large initializers, and these."""
    bare = initializers.copy_without(proto, "initializer")
    values = {}
    for tensor in proto.graph.initializer:
        if uses_external_data(tensor) or prod(tensor.dims) <= initializers.LARGE or initializers.is_packed(tensor):
            bare.graph.initializer.add().CopyFrom(tensor)
            continue
        place = initializers.without_value(tensor)
        place.data_location = TensorProto.EXTERNAL
        place.external_data.add(key="location", value="memory")
        bare.graph.initializer.append(place)
        values[tensor.name] = _ort_value(tensor)
    return bare, values


def _ort_value(tensor: TensorProto) -> ort.OrtValue:
    array: Any = initializers.values(tensor, None)
    if array.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.dtype.itemsize}"), tensor.data_type)


def run(
    session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, NDArray[np.generic]]
) -> list[NDArray[np.generic]]:
    """Run a session.

    Raises
    ------
    InvalidDataError
        An operator fails on this data; the message carries ONNX Runtime's reason.
    """
    try:
        results: list[NDArray[np.generic]] = session.run(list(outputs), dict(feeds))
    except _RUNTIME_ERRORS as error:
        raise InvalidDataError(f"the model fails on this data: {_first_line(error)}") from error
    return results


def run_bound(session: ort.InferenceSession, binding: ort.IOBinding) -> None:
    """Run a session on bound inputs and outputs.

    Raises
    ------
    InvalidDataError
        An operator fails on this data; the message carries ONNX Runtime's reason.
    """
    try:
        session.run_with_iobinding(binding)
    except (*_RUNTIME_ERRORS, RuntimeError) as error:
        raise InvalidDataError(f"the model fails on this data: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
