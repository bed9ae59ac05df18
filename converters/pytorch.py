"""From PyTorch: a module becomes an ONNX model that keeps the names of its scopes and nothing of this machine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphmod.errors import GraphmodError, InvalidModelError
from graphmod.model import Model, load

Array = NDArray[np.generic]

KEPT_METADATA = frozenset({"namespace", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes"})
"""Metadata of operators that says where in the module they come from; all else is paths, source or debug prints."""

NEWEST_IR = 13
"""The newest version of the ONNX file format that ONNX Runtime reads."""

TOLERANCE = 1e-4
"""The largest difference from the torch module, in units of the output's largest magnitude."""


def to_onnx(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
    dynamic_batch: bool = True,
) -> Model:
    """Export a torch module in evaluation mode, and check that ONNX Runtime computes what torch does.

    Parameters
    ----------
    module : torch.nn.Module
        The module, on the CPU. Every submodule's training mode is afterwards what it was.
    example_inputs : torch.Tensor or sequence of torch.Tensor
        The positional arguments of ``forward``; axis 0 of each is the batch.
    input_names, output_names : sequence of str, optional
        Names for the graph's inputs and outputs; the exporter's if None.
    opset : int, optional
        Version of the operator set; the exporter's default if None.
    dynamic_batch : bool
        Whether axis 0 of every input is the symbol ``batch`` in place of the examples' size.

    Returns
    -------
    graphmod.Model
        Its operators carry the scopes of the submodules that they come from, and no path or source of this machine.

    Raises
    ------
    GraphmodError
        The package onnxscript is missing, or the module does not run on the inputs, or torch cannot export it.
    InvalidModelError
        On the example inputs an output differs from torch's by more than 1e-4 of its largest magnitude.

    Examples
    --------
    >>> import torch
    >>> from graphmod.converters.pytorch import to_onnx
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> m = to_onnx(net, torch.rand(2, 4), input_names=["x"], output_names=["logits"])
    >>> print(m.inputs["x"], m.outputs["logits"])
    float32[batch, 4] float32[batch, 3]
    """
    _require_onnxscript()
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    with _evaluating(module), torch.no_grad():
        expected = _run(module, inputs)
        proto = _export(module, inputs, input_names, output_names, opset, dynamic_batch)
    _strip(proto)
    proto.ir_version = min(proto.ir_version, NEWEST_IR)
    model = load(proto)
    _check_parity(model, inputs, expected)
    return model


def _run(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return what a module makes of copies of its inputs, since some modules write into their arguments."""
    try:
        made = pytree.tree_leaves(module(*(tensor.clone() for tensor in inputs)))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:  # what torch raises where inputs do not fit
        told = ", ".join(f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for tensor in inputs)
        reason = str(error).strip().splitlines()[0]
        raise GraphmodError(f"{type(module).__name__} does not run on inputs of {told}: {reason}") from error
    return [tensor for tensor in made if isinstance(tensor, Tensor)]


def _require_onnxscript() -> None:
    try:
        import onnxscript  # noqa: F401  # asked for by the exporter, not by name here
    except ImportError as error:
        raise GraphmodError(
            'torch exports to ONNX through the package onnxscript, which is missing; pip install "graphmod[pytorch]"'
        ) from error


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and give every submodule its own mode back: a frozen one may differ from its parent."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter logs about an absent torchvision, and what it warns about in its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", ".*axis name: batch will not be used")  # inputs share one batch
            yield
    finally:
        logger.setLevel(level)


def _export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    opset: int | None,
    dynamic_batch: bool,
) -> onnx.ModelProto:
    shapes = None
    if dynamic_batch:
        # torch.export takes an axis of size 1 for a constant, whatever it is told
        inputs = tuple(torch.cat([t, t]) if t.dim() and len(t) == 1 else t for t in inputs)
        batch = torch.export.Dim("batch")
        shapes = tuple({0: batch} if t.dim() else None for t in inputs)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                verbose=False,
                dynamic_shapes=shapes,
                input_names=input_names,
                output_names=output_names,
                opset_version=opset,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise GraphmodError(f"torch cannot export {type(module).__name__}: {reason}") from error
    assert program is not None
    return program.model_proto


def _strip(proto: onnx.ModelProto) -> None:
    """Drop all metadata but the scopes of operators."""
    graph = proto.graph
    for owner in (proto, graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *proto.functions):
        owner.ClearField("metadata_props")
    for operators in (graph.node, *(function.node for function in proto.functions)):
        _keep_scopes(operators)


def _keep_scopes(operators: Iterable[onnx.NodeProto]) -> None:
    for operator in operators:
        kept = [entry for entry in operator.metadata_props if entry.key in KEPT_METADATA]
        del operator.metadata_props[:]
        operator.metadata_props.extend(kept)
        for attribute in operator.attribute:
            for body in (attribute.g, *attribute.graphs):
                _keep_scopes(body.node)


def _check_parity(model: Model, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    feeds = {name: tensor.detach().numpy() for name, tensor in zip(model.inputs, inputs, strict=True)}
    for (name, got), wanted in zip(model.run(feeds).items(), expected, strict=True):
        error = _relative_error(got, wanted.detach().numpy())
        if not error <= TOLERANCE:
            raise InvalidModelError(
                f"output '{name}' of the exported model differs from torch's by {error:.2g} of its largest magnitude "
                f"(at most {TOLERANCE:g} is allowed); random numbers or state in the module would explain it"
            )


def _relative_error(got: Array, wanted: Array) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    difference = np.abs(np.subtract(a, b, out=np.zeros_like(a), where=a != b))
    scale = np.abs(b[np.isfinite(b)]).max(initial=0.0) or 1.0
    return float(difference.max(initial=0.0) / scale)
