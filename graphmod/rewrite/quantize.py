"""Quantizing: weights, and activations where data tell their range, in eight bits or four, by ONNX Runtime's tools."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from graphmod.data import Data, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import find
from graphmod.graph.scope import GRAPHMOD_SCOPE, scope
from graphmod.model import Model, load
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.verb import Samples, verb

BATCH = 32
"""Samples that calibration sees at a time, where the model leaves it open."""

OLDEST = {"static": 13, "dynamic": 11, "weights": 13}
"""The first operator set in which ONNX Runtime's tools write what each mode needs."""

_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
"""ONNX Runtime's names for the ways to calibrate."""

_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, OSError),
    *(RuntimeError, TypeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError),
    ort.capi.onnxruntime_pybind11_state.Fail,
    ort.capi.onnxruntime_pybind11_state.InvalidArgument,
    ort.capi.onnxruntime_pybind11_state.InvalidGraph,
    ort.capi.onnxruntime_pybind11_state.NotImplemented,
)
"""What ONNX Runtime's tools raise where they cannot quantize a model."""

Mode = Literal["static", "dynamic", "weights"]
WeightType = Literal["int8", "uint8", "int4"]


@verb(exact=False, example="graphmod quantize resnet.onnx --data digits.npz --out int8.onnx")
def quantize(
    model: Model,
    data: Samples = None,
    mode: Mode | None = None,
    weight_type: WeightType | None = None,
    exclude: str | None = None,
    per_channel: bool = True,
    calibrate: Literal["minmax", "entropy", "percentile"] = "minmax",
) -> Model:
    """Let a model hold its weights as small integers, and compute with integers where that is faster.

    ``static`` measures the range of every activation on data and quantizes both, as QuantizeLinear and
    DequantizeLinear, which ONNX Runtime fuses with what stands between; it suits convolutions. ``dynamic`` measures
    ranges while it runs; it suits transformers. ``weights`` keeps the matrices of MatMuls in blocks of 32 with a scale
    each, and computes in float. BatchNormalization should be fused before.

    Parameters
    ----------
    model : Model
    data : array, mapping, path or data set, optional
        Some hundred samples of what the model will see; ``static`` needs them.
    mode : {"static", "dynamic", "weights"}, optional
        What to quantize, and when; with data ``static``, else ``dynamic``.
    weight_type : {"int8", "uint8", "int4"}, optional
        The integers that hold the weights: int8, or int4 for ``weights``.
    exclude : str, optional
        A selector of operators that stay as they are.
    per_channel : bool
        Whether each channel of a weight has a scale of its own.
    calibrate : {"minmax", "entropy", "percentile"}
        How ``static`` gets a range from what it saw.

    Returns
    -------
    Model

    Raises
    ------
    RefusedError
        ``static`` has no data, the model is quantized already, nothing can be quantized, or ONNX Runtime's tools fail;
        the message has their reason.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> small = gm.quantize(m, gm.demo.splits().calibration)
    >>> round(m.n_bytes / small.n_bytes, 1)
    2.9
    """
    mode = mode or ("dynamic" if data is None else "static")
    if mode not in OLDEST:
        raise RefusedError(f"'{mode}' is no mode; the modes are {', '.join(OLDEST)}")
    weight_type = weight_type or ("int4" if mode == "weights" else "int8")
    known = ("int4", "int8") if mode == "weights" else ("int8", "uint8")
    if weight_type not in known:
        raise RefusedError(f"mode '{mode}' knows no {weight_type}; it knows {' and '.join(known)}")
    if calibrate not in _METHODS:
        raise RefusedError(f"'{calibrate}' is no way to calibrate; the ways are {', '.join(_METHODS)}")
    if mode == "static" and data is None:
        raise RefusedError(
            "to quantize statically takes data that show the range of activations; pass data, or 'dynamic'"
        )
    already = next(_integers(model._proto), None)
    if already is not None:
        raise RefusedError(
            f"the model is already quantized ({already.op_type} '{already.name}'); quantize the one that it was made "
            "from"
        )
    if model.opset < OLDEST[mode]:
        raise RefusedError(
            f"the model is of operator set {model.opset}, and '{mode}' takes {OLDEST[mode]} or later; convert it first "
            "with onnx.version_converter"
        )
    kept = {name for match in find(model, exclude) for name in match.operators} if exclude is not None else set()
    if exclude is not None and not kept:
        raise RefusedError(f"no operator matches the selector '{exclude}' ('graphmod find --explain' says why)")
    write = _writer(model, mode, weight_type, sorted(kept), per_channel, calibrate, data)
    proto = _restored(model, _written(model, write))
    if not any(_integers(proto)):
        raise RefusedError(
            f"nothing in the model can be quantized in mode '{mode}': no operator that it knows has a weight"
        )
    return Draft(Model(proto)).finish()  # which sorts: the tools forget what bodies capture


Write = Callable[[Path, Path], None]
"""Reads a model from one file and writes it quantized to another."""


def _writer(
    model: Model, mode: Mode, weight_type: WeightType, kept: list[str], per_channel: bool, calibrate: str, data: Any
) -> Write:
    """Return the one of ONNX Runtime's tools that a mode takes, with its settings."""
    from onnxruntime import quantization  # it takes longer to import than all of this package

    if mode == "weights":
        return _weights_writer(weight_type, kept)
    kind = {"int8": quantization.QuantType.QInt8, "uint8": quantization.QuantType.QUInt8}[weight_type]
    shared = {
        "per_channel": per_channel,
        "weight_type": kind,
        "nodes_to_exclude": kept,
        "use_external_data_format": True,
    }
    if mode == "dynamic":
        return lambda source, target: quantization.quantize_dynamic(source, target, **shared)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
        batches: Iterator[Data] = _batches(model, data)

        def get_next(self) -> dict[str, NDArray[np.generic]] | None:
            batch = next(self.batches, None)
            return None if batch is None else dict(batch.inputs)

    return lambda source, target: quantization.quantize_static(
        source,
        target,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8 if weight_type == "uint8" else quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[_METHODS[calibrate]],
        **shared,
    )


def _weights_writer(weight_type: WeightType, kept: list[str]) -> Write:
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    except ImportError as error:
        raise RefusedError(f"mode 'weights' takes a package that is not installed: {error}") from error

    def write(source: Path, target: Path) -> None:
        tool = MatMulNBitsQuantizer(
            onnx.load(source),
            bits=4 if weight_type == "int4" else 8,
            block_size=32,
            is_symmetric=True,
            nodes_to_exclude=kept,
        )
        tool.process()
        tool.model.save_model_to_file(str(target), use_external_data_format=True)

    return write


def _batches(model: Model, data: Data) -> Iterator[Data]:
    """Yield full batches: the tools stack what they saw, and all must be of one length."""
    unit = fixed_batch(model)
    if unit is not None and len(data) < unit:
        raise RefusedError(f"the model takes {unit} samples at a time, and the data has {len(data)}")
    size = unit or min(BATCH, len(data))
    return (data[slice(start, start + size)] for start in range(0, len(data) - size + 1, size))


def _written(model: Model, write: Write) -> ModelProto:
    """Let a tool write a model in a folder of its own, and return it."""
    proto = model.editable()
    for operator, name in zip(proto.graph.node, model.operator_names, strict=True):
        operator.name = name
    del proto.graph.value_info[:]  # the tools transpose weights, and trip over what the file says of these
    proto.graph.value_info.extend(v for v in model._inferred.graph.value_info if v.name in model.producer)
    with TemporaryDirectory(prefix="graphmod-") as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        Model(proto, model.folder).save(source)
        try:
            with _quiet():
                write(source, target)
            return load(target).proto()
        except _FAILURES as error:
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RefusedError(f"ONNX Runtime's tools cannot quantize the model: {told}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the tools print and log from the user: all that matters they raise."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _restored(model: Model, proto: ModelProto) -> ModelProto:
    """Give a model that a tool wrote back what the tool dropped: metadata, declarations, names, scopes."""
    before = model._proto
    old = dict(zip(model.operator_names, model.operators, strict=True))
    for entries, fresh in (
        (before.metadata_props, proto.metadata_props),
        (before.graph.metadata_props, proto.graph.metadata_props),
    ):
        del fresh[:]
        fresh.extend(entries)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(proto, field, getattr(before, field))
    proto.graph.name, proto.graph.doc_string = before.graph.name, before.graph.doc_string
    del proto.graph.input[:], proto.graph.output[:], proto.graph.value_info[:]
    there = {t.name for t in proto.graph.initializer if (was := model.initializers.get(t.name)) and was.dims == t.dims}
    gone = model.initializers.keys() - there
    proto.graph.input.extend(value for value in before.graph.input if value.name not in gone)
    if proto.ir_version < 4:  # such files list initializers among the inputs
        fresh = (tensor for tensor in proto.graph.initializer if tensor.name not in there)
        proto.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in fresh)
    proto.graph.output.extend(before.graph.output)
    made = {*there, *(name for operator in proto.graph.node for name in operator.output)}
    proto.graph.value_info.extend(value for value in before.graph.value_info if value.name in made)
    del proto.functions[:]
    proto.functions.extend(before.functions)
    _restore_operators(old, list(proto.graph.node))
    return proto


def _restore_operators(old: dict[str, NodeProto], operators: list[NodeProto]) -> None:
    """Give operators that are still there their metadata and names, new ones the scope of what is beside them."""
    paths: dict[str, str] = {}
    fresh = []
    for operator in operators:
        source = old.get(operator.name.removesuffix("_quant"))
        if source is None:
            fresh.append(operator)
            continue
        del operator.metadata_props[:]
        operator.metadata_props.extend(source.metadata_props)
        operator.doc_string = source.doc_string
        if operator.name in old:
            operator.name = source.name
        paths.update(dict.fromkeys((*operator.input, *operator.output), scope(source)))
    for operator in (*reversed(fresh), *fresh):  # backwards from readers, then forwards from what was read
        path = next((paths[name] for name in (*operator.output, *operator.input) if paths.get(name)), "")
        if path:
            paths.update((name, path) for name in (*operator.input, *operator.output) if name not in paths)
            if not operator.metadata_props:
                operator.metadata_props.add(key=GRAPHMOD_SCOPE, value=path)


def _integers(proto: ModelProto) -> Iterator[NodeProto]:
    """Yield the operators of a graph that compute with quantized values."""
    return (op for op in proto.graph.node if "Quantize" in op.op_type or op.op_type in _QUANTIZED)


_QUANTIZED = ("ConvInteger", "MatMulInteger", "MatMulNBits", "QLinearConv", "QLinearMatMul")
