"""Verbs: what makes a function that edits a model a step that recipes can name, check, record and replay.

A new verb is a function with ``@verb(...)`` in a file of a package that :data:`PACKAGES` lists: its first parameter is
the model, it returns a new one. The recipe step, the command of the command line and the record in the result's
metadata follow from its signature.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from importlib import import_module
from os import PathLike, fspath
from typing import Annotated, Any, ParamSpec, TypeVar, cast, get_type_hints

import numpy as np

from graphmod.data import Data, as_data, part_of
from graphmod.errors import InvalidModelError, RefusedError
from graphmod.graph import Block
from graphmod.model import Model, check_model, edits_of, load, record

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Reference:
    """Marks a parameter that a recipe cannot hold, only point to: by a file, and by a hash of the content.

    Parameters
    ----------
    what : str
        What it is, in words.
    read : callable
        From the model that is edited and what the user gave, the object.
    identify : callable
        The SHA-256 of an object.
    many : bool
        Whether a list of such things may be given; the verb always receives a list then.
    """

    what: str
    read: Callable[[Model, Any], Any]
    identify: Callable[[Any], str]
    many: bool = False


def _hash_data(data: Data) -> str:
    """Return a hash of samples and targets; the name of a sole input is the model's, and says nothing of them."""
    sha = hashlib.sha256()
    inputs = data.inputs if len(data.inputs) > 1 else {"": next(iter(data.inputs.values()))}
    for name, array in {**inputs, **({} if data.targets is None else {"\0targets": data.targets})}.items():
        sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def _read_data(model: Model, value: Any) -> Data:
    return as_data(model, part_of(value, "train"))


Samples = Annotated[Any, Reference("data", _read_data, _hash_data)]
"""A parameter that takes all that :func:`graphmod.data.as_data` takes; the verb receives a :class:`graphmod.Data`.

Of data that has parts, :class:`graphmod.Splits` or an ``.npz`` with ``x_train, ...``, it is the training part."""


def _read_model(_: Model, value: Any) -> Model:
    return load(value)


def _hash_model(model: Model) -> str:
    return model.digest


OtherModel = Annotated[Any, Reference("model", _read_model, _hash_model)]
"""A parameter that takes all that :func:`graphmod.load` takes; the verb receives a :class:`graphmod.Model`."""

OtherModels = Annotated[Any, Reference("model", _read_model, _hash_model, many=True)]
"""The same for one model or a list of them; the verb receives a list."""


@dataclass(frozen=True)
class Verb:
    """One verb: its function, and what its signature says.

    Parameters
    ----------
    name : str
    function : callable
        Takes a model and parameters, returns a model or a list of them.
    exact : bool
        Whether the result computes what the model did.
    example : str
        A command line that uses it.
    """

    name: str
    function: Callable[..., Any] = field(repr=False)
    exact: bool
    example: str

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters of a recipe step: all but the model."""
        return dict(list(inspect.signature(self.function).parameters.items())[1:])

    @cached_property
    def types(self) -> dict[str, Any]:
        """The types of the parameters, marks included."""
        hints = get_type_hints(self.function, include_extras=True)
        return {name: hints[name] for name in self.parameters}

    def reference(self, parameter: str) -> Reference | None:
        """Return the mark of a parameter that points to something outside of the recipe, None for plain ones."""
        marks = getattr(self.types[parameter], "__metadata__", ())
        return next((mark for mark in marks if isinstance(mark, Reference)), None)


PACKAGES = ("graphmod.rewrite", "graphmod.pruning")
"""The packages whose files register verbs. They start without PyTorch, as the command line lists all verbs."""


class _Verbs(Mapping[str, Verb]):
    """All verbs by name; packages above this one are imported when somebody looks."""

    def __init__(self) -> None:
        self._registered: dict[str, Verb] = {}

    def add(self, verb: Verb) -> None:
        self._registered[verb.name] = verb

    @cached_property
    def _all(self) -> dict[str, Verb]:
        for package in PACKAGES:
            import_module(package)
        return self._registered

    def __getitem__(self, name: str) -> Verb:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


VERBS = _Verbs()
"""All verbs by name."""


def verb(*, exact: bool, example: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function as a verb, and let what it returns carry the record of the edit.

    A verb that finds nothing to do returns its argument, and nothing is recorded. Of a verb that returns several models
    every one is recorded with its number, ``part``.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        known = Verb(function.__name__, function, exact, example)
        signature = inspect.signature(function)

        @wraps(function)
        def edit(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            model, *_ = bound.arguments.values()
            check_model(model, known.name)
            told = _read_references(known, model, bound)
            del bound.arguments[next(iter(bound.arguments))]
            return cast(R, perform(known, model, bound.arguments, told))

        VERBS.add(known)
        return edit

    return register


def perform(known: Verb, model: Model, arguments: Mapping[str, Any], told: Mapping[str, Any]) -> Any:
    """Call a verb's function, and record the edit in what it returns.

    Parameters
    ----------
    known : Verb
    model : Model
    arguments : mapping
        The parameters, data and other models already read.
    told : mapping
        The same as a recipe holds them.
    """
    try:
        result = known.function(model, **arguments)
    except InvalidModelError:
        model.check()  # says so where the fault was there before the edit
        raise
    except RefusedError as error:
        sparse = len(model._proto.graph.sparse_initializer)
        if not sparse:
            raise
        those = f"{sparse} initializers are" if sparse > 1 else "an initializer is"
        raise RefusedError(f"{error} ({those} stored sparsely; if that is why, graphmod.unpack helps)") from error
    if result is model:
        model.check()
    history = edits_of(model)
    if isinstance(result, list):
        for part, one in enumerate(result):
            record(one, [*history, {known.name: {**told, "part": part}}])
    elif result is not model:
        record(result, [*history, {known.name: dict(told)}])
    return result


def _read_references(known: Verb, model: Model, bound: inspect.BoundArguments) -> dict[str, Any]:
    """Put the objects that parameters point to in their place, and return the parameters as a recipe holds them."""
    told = {}
    for name, value in list(bound.arguments.items())[1:]:
        mark = known.reference(name)
        if mark is None or value is None:
            told[name] = plain(value)
            continue
        given = value if mark.many and isinstance(value, list | tuple) else [value]
        found = [mark.read(model, one) for one in given]
        records = [_point(mark, one, read) for one, read in zip(given, found, strict=True)]
        bound.arguments[name] = found if mark.many else found[0]
        told[name] = records if mark.many else records[0]
    return told


def _point(mark: Reference, given: object, found: object) -> dict[str, str]:
    file = {"file": fspath(given)} if isinstance(given, str | PathLike) else {}
    return {**file, "sha256": mark.identify(found)}


def plain(value: object) -> Any:
    """Return a parameter as a recipe holds it: numbers, strings, lists and mappings."""
    if isinstance(value, Block):
        return [value.entry, value.exit]
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(one) for one in value]
    if callable(value):  # its name tells what was used, and replaying says that there is nothing of that name
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
    return value
