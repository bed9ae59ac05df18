"""ONNX Runtime sessions: opening one for a graph in memory, with its weights where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from google.protobuf.message import EncodeError
from numpy.typing import NDArray
from onnx import ModelProto

from graphmod.errors import InvalidDataError, InvalidModelError

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


def open_session(proto: ModelProto, folder: Path | None, threads: int | None) -> ort.InferenceSession:
    """Open a session on the CPU; external initializers are read from ``folder``.

    Raises
    ------
    InvalidModelError
        ONNX Runtime cannot load the graph; the message carries its reason.
    """
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY + 1
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except EncodeError as error:
        raise InvalidModelError(
            "the model holds over 2 GB in one message; save it with its weights beside it and load that"
        ) from error
    except _RUNTIME_ERRORS as error:
        raise InvalidModelError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error


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
