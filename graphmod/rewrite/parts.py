"""Parts: what a user can put into a graph: an operator expression, another model, or a torch module."""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, cast

from graphmod.errors import RefusedError
from graphmod.model import Model, TensorType, load
from graphmod.model.model import type_of
from graphmod.rewrite.expression import as_model, declared
from graphmod.rewrite.graft import adapted
from graphmod.rewrite.tensors import declarations
from graphmod.rewrite.verb import Reference

if TYPE_CHECKING:
    from torch import Tensor, nn


class Part(ABC):
    """Something with one input of activations and one output."""

    @abstractmethod
    def at(self, host: Model, kind: TensorType) -> Model:
        """Return it as a model in a host's operator sets, for an input of some type."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """A SHA-256 of it."""

    @property
    def takes(self) -> TensorType | None:
        """The one type that it declares to take; None where it takes several."""
        return None


@dataclass(frozen=True)
class Expression(Part):
    """Operators in a chain, see :mod:`graphmod.rewrite.expression`."""

    text: str

    def at(self, host: Model, kind: TensorType) -> Model:
        """Return the operators as a model."""
        return as_model(self.text, host, kind)

    @property
    def digest(self) -> str:
        """The SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class OtherModel(Part):
    """A model."""

    model: Model

    def at(self, host: Model, kind: TensorType) -> Model:  # noqa: ARG002  # a model fits one type or does not
        """Return the model in the host's operator sets."""
        return adapted(self.model, host)

    @property
    def digest(self) -> str:
        """The model's own."""
        return self.model.digest

    @property
    def takes(self) -> TensorType | None:
        """The type of the model's only input."""
        return next(iter(self.model.inputs.values())) if len(self.model.inputs) == 1 else None


@dataclass(frozen=True, eq=False)
class Module(Part):
    """A torch module, exported for the type of its input; its hash is of its printed structure and its weights."""

    module: nn.Module

    def at(self, host: Model, kind: TensorType) -> Model:
        """Export the module for an input of this type."""
        example, dynamic = _example(kind)
        converter = import_module("graphmod.converters.pytorch")  # needs torch, which is there: the module came from it
        exported: Model = converter.to_onnx(self.module, example, opset=host.opset or None, dynamic_batch=dynamic)
        return adapted(exported, host)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of structure and weights."""
        sha = hashlib.sha256(f"{type(self.module).__qualname__} {self.module}".encode())
        for name, value in self.module.state_dict().items():
            array = value.detach().cpu().contiguous().flatten()
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(array.view(_torch().uint8).numpy().data if array.numel() else b"")
        return sha.hexdigest()


def _torch() -> Any:
    return sys.modules["torch"]


def _example(kind: TensorType) -> tuple[Tensor, bool]:
    """Return an input to export a module with, and whether its first axis is dynamic."""
    torch = _torch()
    if kind.shape is None or kind.dtype is None:
        raise RefusedError("the type of the tensor is unknown, so no module can be exported for it")
    batch, *rest = kind.shape or (1,)
    if not all(isinstance(size, int) for size in rest):
        raise RefusedError(
            f"the tensor is {kind}, and a module can be exported in place only where no axis but the first is dynamic; "
            "export it yourself (graphmod.converters.pytorch.to_onnx) and give the model"
        )
    dtype = getattr(torch, kind.dtype.name, None)
    if dtype is None:
        raise RefusedError(f"the tensor is {kind}, and torch has no tensors of that type")
    shape = [batch if isinstance(batch, int) else 2, *rest] if kind.shape else []
    return torch.rand(shape).to(dtype), not isinstance(batch, int)


def _read(_: Model, value: Any) -> Part:
    if isinstance(value, Part):
        return value
    if "torch" in sys.modules and isinstance(value, _torch().nn.Module):
        return Module(value)
    return OtherModel(load(value))


def _digest(part: Part) -> str:
    return part.digest


OtherPart = Annotated[Any, Reference("model", _read, _digest)]
"""A parameter that takes all that :func:`graphmod.load` takes, or a torch module; the verb receives a :class:`Part`."""


def chosen(by: str | None, other: Part | None) -> Part:
    """Return the one part that a verb was given.

    Raises
    ------
    RefusedError
        It was given none or two.
    """
    if (by is None) == (other is None):
        raise RefusedError("say either 'by', an operator such as 'HardSwish', or 'other', a model or a torch module")
    return Expression(by) if by is not None else cast(Part, other)


@dataclass(frozen=True)
class Fitted:
    """A part as a model, and how it joins the tensors of a host.

    Parameters
    ----------
    model : Model
    entry, exit : str
        The part's input and output.
    context : mapping of str to str
        The part's other inputs, which are tensors of the host with the same names.
    kind : TensorType
        Of the output.
    """

    model: Model
    entry: str
    exit: str
    context: Mapping[str, str]
    kind: TensorType

    def reads(self, tensor: str) -> dict[str, str]:
        """Return which tensors of the host the part's inputs are, if its entry is ``tensor``."""
        return {**self.context, self.entry: tensor}


class Fitter:
    """Fits one part into several places of a host, anew for each type that it meets there.

    Parameters
    ----------
    part : Part
    host : Model
    """

    def __init__(self, part: Part, host: Model):
        self._part, self._host = part, host
        self._known: dict[tuple[TensorType, str, str], Fitted] = {}

    def at(self, kind: TensorType, entry: str = "", exit_: str = "") -> Fitted:
        """Return the part for an input of some type.

        Parameters
        ----------
        kind : TensorType
        entry, exit_ : str
            The tensors of the host that it comes between; of several inputs or outputs, those of these names are meant.

        Raises
        ------
        RefusedError
            The part takes another type, or has inputs that are no tensors of the host.
        """
        if isinstance(self._part, Expression | Module):
            entry = exit_ = ""
        key = (kind, entry, exit_)
        if key not in self._known:
            self._known[key] = self._fit(kind, entry, exit_)
        return self._known[key]

    def _fit(self, kind: TensorType, entry: str, exit_: str) -> Fitted:
        model = self._part.at(self._host, kind)
        source = _source(model, self._host, entry)
        context = {name: name for name in model.inputs if name != source}
        sink = exit_ if exit_ in model.outputs else next(iter(model.outputs))
        if len(model.outputs) > 1 and sink != exit_:
            raise RefusedError(
                f"the other model has {len(model.outputs)} outputs ({', '.join(model.outputs)}), not one"
            )
        given = {source: kind, **{name: self._host.tensors[name] for name in context}}
        return Fitted(model, source, sink, context, _output_type(model, given, sink))


def _source(model: Model, host: Model, entry: str) -> str:
    """Return the input that the activations go to: of several, the one that is no tensor of the host, or its entry."""
    own = [name for name in model.inputs if name == entry] or [n for n in model.inputs if n not in host.tensors]
    if len(model.inputs) == 1:
        own = list(model.inputs)
    if len(own) != 1 or not {*model.inputs} - {*own} <= host.tensors.keys():
        raise RefusedError(
            f"the other model has the inputs {', '.join(model.inputs) or 'none'}; it needs one, and every further one "
            "must have the name of a tensor that this model has"
        )
    return own[0]


def _output_type(model: Model, given: Mapping[str, TensorType], output: str) -> TensorType:
    """Return the type of an output, by shape inference, for inputs of some types."""
    symbols: dict[str, int | str | None] = {}
    for name, kind in given.items():
        if problem := misfit(model.inputs[name], kind, symbols):
            raise RefusedError(f"the other model takes {model.inputs[name]} and would get {kind}: {problem}")
    proto = model.editable()
    del proto.graph.value_info[:]
    for value in proto.graph.input:
        if value.name in given and given[value.name].dtype is not None and given[value.name].shape is not None:
            value.type.CopyFrom(declared(value.name, given[value.name]).type)
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    found = Model(proto, model.folder).tensors.get(output, TensorType(None, None))
    told = model.outputs[output]
    if found.shape is not None or told.shape is None:
        return found
    return TensorType(found.dtype, tuple(symbols.get(d) if isinstance(d, str) else d for d in told.shape))


def misfit(declared_type: TensorType, kind: TensorType, symbols: dict[str, int | str | None] | None = None) -> str:
    """Return why a tensor does not fit a declared input, "" where it does; symbols are bound on the way."""
    symbols = {} if symbols is None else symbols
    if kind.dtype is not None and declared_type.dtype is not None and declared_type.dtype != kind.dtype:
        return "the dtypes differ"
    if kind.shape is None or declared_type.shape is None:
        return ""
    if len(kind.shape) != len(declared_type.shape):
        return "the ranks differ"
    for axis, (wanted, got) in enumerate(zip(declared_type.shape, kind.shape, strict=True)):
        bound = symbols.setdefault(wanted, got) if isinstance(wanted, str) else wanted
        if isinstance(bound, int) and got != bound and got is not None:
            dynamic = "; graphmod.rebatch makes its batch dynamic" if axis == 0 and isinstance(got, str) else ""
            return f"axis {axis} is {bound} in one and {got} in the other{dynamic}"
    return ""


def contradict(a: TensorType, b: TensorType) -> bool:
    """Whether two types cannot be of one tensor; what is unknown contradicts nothing."""
    if a.dtype is not None and b.dtype is not None and a.dtype != b.dtype:  # numpy says that float64 equals None
        return True
    if a.shape is None or b.shape is None:
        return False
    return len(a.shape) != len(b.shape) or any(map(_differ, a.shape, b.shape))


def _differ(a: int | str | None, b: int | str | None) -> bool:
    unknown = a is None or b is None or any(isinstance(d, str) and d.startswith("unk__") for d in (a, b))
    return not unknown and a != b


def unified(kind: TensorType, wanted: TensorType) -> dict[str, int | str | None]:
    """Return what the symbols of one type that another does not have would be if it were the other."""
    pairs = zip(kind.shape or (), wanted.shape or (), strict=False)
    own = set(kind.shape or ()) - set(wanted.shape or ())
    return {a: b for a, b in pairs if isinstance(a, str) and a in own and b is not None}


def with_symbols(kind: TensorType, symbols: Mapping[str, int | str | None]) -> TensorType:
    """Return a type with other symbols."""
    if kind.shape is None:
        return kind
    return TensorType(kind.dtype, tuple(symbols.get(d, d) if isinstance(d, str) else d for d in kind.shape))


def known_type(model: Model, tensor: str) -> TensorType:
    """Return the type of a tensor, asking ONNX Runtime where shape inference does not find it.

    Raises
    ------
    RefusedError
        Neither knows it.
    """
    found = model.tensors.get(tensor)
    return found if found is not None and found.dtype is not None else type_of(declarations(model, [tensor])[0])
