"""Joining models: outputs of one feed inputs of the next.

onnx.compose joins graphs too, but does not do here: it wants equal IR versions and operator sets, refuses two inputs or
weights of one name even where they are the same, takes equal symbols of dimensions for equal sizes, has no answer to
functions of one name, knows nothing of external data, and checks everything with all weights in one message.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from graphmod.errors import RefusedError
from graphmod.graph.scope import GRAPHMOD_SCOPE, scope
from graphmod.model import RECORD, Model, consumed, with_inner
from graphmod.model.initializers import tensors
from graphmod.model.model import type_of
from graphmod.rewrite.draft import Draft, tensor_names
from graphmod.rewrite.graft import raise_format
from graphmod.rewrite.names import Call, graphs, key_of, rename_calls, rename_tensors
from graphmod.rewrite.opsets import with_one_opset
from graphmod.rewrite.split import any_random
from graphmod.rewrite.tensors import tensor_type_of
from graphmod.rewrite.verb import OtherModels, verb


@verb(exact=True, example="graphmod compose backbone.onnx head.onnx --connect position --out whole.onnx")
def compose(
    model: Model,
    others: OtherModels,
    connect: str | dict[str, str] = "name",
    prefix: list[str] | None = None,
    outputs: list[str] | None = None,
) -> Model:
    """Join models into one: outputs of those before feed inputs of the next.

    Inputs that nothing feeds are inputs of the whole. Weights, constants and functions that a model shares with one
    before it, name and content, are held once. Where other names clash, all inner names of the later model get a
    prefix: ``b/`` for the second model, ``c/`` for the third.

    Parameters
    ----------
    model : Model
    others : Model or list of Model
        The models that follow, in order.
    connect : str or dict
        ``name``: an input is fed by the output of that name of any model before, and inputs of one name are one;
        ``position``: the first outputs of the model right before feed the first inputs of the next; or which output
        feeds which input, ``{input: output}``.
    prefix : list of str, optional
        A prefix for all names of each other model, inputs and outputs too ("": where names clash, as by default).
    outputs : list of str, optional
        The outputs of the whole, in order; by default all that feed nothing.

    Returns
    -------
    Model
        Of the highest IR version and operator set; metadata that say something else of a later model have its prefix.

    Raises
    ------
    RefusedError
        Nothing connects two models, an output does not fit the input that it feeds, there is no such input or output,
        or the operator sets differ and a model cannot be converted.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> head, *rest = gm.split(m, ["layer1", "layer2"])
    >>> gm.compose(head, rest)
    Model(image: float32[batch, 1, 8, 8] -> logits: float32[batch, 10]; 112 operators, 302,042 weights)
    """
    if not isinstance(connect, str | Mapping):
        raise RefusedError(
            f"models are connected by 'name', 'position' or a mapping, not by a {type(connect).__name__}; pass several "
            "other models as a list"
        )
    if not others:
        return model
    if prefix is not None and len(prefix) != len(others):
        raise RefusedError(f"each other model takes a prefix: give {len(others)}, not {len(prefix)}")
    if isinstance(connect, str) and connect not in ("name", "position"):
        raise RefusedError(f"models are connected by 'name', 'position' or a mapping, not by '{connect}'")
    models = with_one_opset([model, *others])
    folder = _common_folder(models)
    whole = _Whole(models[0], folder)
    used: set[str] = set()
    for number, other in enumerate(models[1:]):
        used |= whole.append(other, number, connect, None if prefix is None else prefix[number])
    unused = [name for name in connect if name not in used] if not isinstance(connect, str) else []
    if unused:
        known = ", ".join(name for other in others for name in other.inputs)
        raise RefusedError(f"no other model has an input '{unused[0]}'; they have {known}")
    return whole.finish(outputs)


class _Whole:
    """The models joined so far."""

    def __init__(self, model: Model, folder: Path | None):
        self.proto = model.editable()
        self.folder = folder
        _move_external(self.proto, model.folder, folder)
        self.taken = set(tensor_names(self.proto.graph, self.proto.graph.node))
        self.operator_names = set(_operator_names(self.proto.graph.node))
        self.symbols = set(_symbols(self.proto.graph))
        self.constants = _constants(self.proto)
        self.inputs = {value.name: value for value in model.proto_inputs}
        self.outputs = {value.name: value for value in self.proto.graph.output}
        self.last = list(self.outputs)
        self.feeding: set[str] = set()

    def append(self, model: Model, number: int, connect: str | Mapping[str, str], prefix: str | None) -> set[str]:
        """Join the next model, and return the keys of ``connect`` that it has used."""
        proto = model.editable()
        _move_external(proto, model.folder, self.folder)
        for one, other in ((self.proto, proto), (proto, self.proto)):
            raise_format(one, other.ir_version)
        graph = proto.graph
        fed = self._connections(model, connect, prefix or "")
        shared = self._shared_inputs(model, fed) if connect == "name" and not prefix else set()
        if not fed and not shared:
            raise RefusedError(
                f"nothing connects model {number + 2} ({', '.join(model.inputs)} -> {', '.join(model.outputs)}) to "
                f"those before it, whose outputs are {', '.join(self.outputs)}; name both in 'connect', or connect by "
                "position"
            )
        for name in model.inputs:
            if name in fed or name in shared:
                _check_fit(self.outputs[fed[name]] if name in fed else self.inputs[name], model, name)
        known = _constants(proto)
        equal = {name for name, content in known.items() if self.constants.get(name) == content and not prefix}
        mark = prefix or _free_prefix(number, set(tensor_names(graph, graph.node)), self.taken)
        apart = bool(prefix) or self._clashes(model, equal)
        names = self._names_for(model, {**fed, **{name: name for name in shared}}, equal, mark, apart, bool(prefix))
        symbols = self._symbols_for(model, fed, shared, mark)
        calls = self._join_functions(proto, mark)
        self._join_graph(proto, names, symbols, calls, equal, mark if apart else "")
        _join_metadata(self.proto, proto, mark)
        self.feeding |= set(fed.values())
        self.last = [names.get(value.name, value.name) for value in graph.output]
        return set(fed) | {f"{prefix or ''}{name}" for name in fed}

    def _connections(self, model: Model, connect: str | Mapping[str, str], prefix: str) -> dict[str, str]:
        """Return the outputs so far by the inputs of the next model that they feed."""
        if isinstance(connect, str):
            last = zip(model.inputs, self.last, strict=False)  # as many as both have
            return {name: name for name in model.inputs if name in self.outputs} if connect == "name" else dict(last)
        found: dict[str, str] = {}
        for name in model.inputs:
            output = connect.get(prefix + name, connect.get(name))
            if output is None:
                continue
            if output not in self.outputs:
                raise RefusedError(
                    f"no output '{output}' is there to feed input '{name}'; there are {', '.join(self.outputs)}"
                )
            found[name] = output
        return found

    def _shared_inputs(self, model: Model, fed: Mapping[str, str]) -> set[str]:
        return {name for name in model.inputs if name in self.inputs and name not in fed}

    def _clashes(self, model: Model, equal: set[str]) -> bool:
        """Whether a name inside of the next model is taken: of a tensor other than its ends, or of an operator."""
        ends = {*model.inputs, *model.outputs, *equal}
        makers = {op.name for op in model.operators if equal.intersection(op.output)}
        inner = (name for name in tensor_names(model._proto.graph, model._proto.graph.node) if name not in ends)
        operators = (name for name in _operator_names(model.operators) if name not in makers)
        return not (self.taken.isdisjoint(inner) and self.operator_names.isdisjoint(operators))

    def _names_for(
        self, model: Model, joined: Mapping[str, str], equal: set[str], mark: str, apart: bool, ends_too: bool
    ) -> dict[str, str]:
        """Return what tensors of the next model are called in the whole: by a new name, or one that is meant."""
        own = [
            name
            for name in dict.fromkeys(tensor_names(model._proto.graph, model._proto.graph.node))
            if name not in joined and name not in equal
        ]
        clash = [name for name in own if mark + name in self.taken]
        if clash:
            raise RefusedError(f"with prefix '{mark}' tensor '{clash[0]}' still clashes; take another prefix")
        ends = {*model.inputs, *model.outputs}
        fresh = (name for name in own if (ends_too or name in self.taken if name in ends else apart))
        return {**joined, **{name: mark + name for name in fresh}}

    def _symbols_for(self, model: Model, fed: Mapping[str, str], shared: set[str], mark: str) -> dict[str, int | str]:
        """Return what dimensions of the next model are called in the whole: as what feeds them, or by a new symbol."""
        found: dict[str, int | str] = {}
        for name in model.inputs:
            if name not in fed and name not in shared:
                continue
            before = type_of(self.outputs[fed[name]] if name in fed else self.inputs[name]).shape or ()
            for size, symbol in zip(before, model.inputs[name].shape or (), strict=False):
                if isinstance(symbol, str) and size is not None:
                    found[symbol] = size if found.get(symbol, size) == size else ""  # no symbol where two would be one
        for symbol in _symbols(model._proto.graph):
            if symbol not in found and symbol in self.symbols:
                found[symbol] = mark + symbol
        return found

    def _join_functions(self, proto: ModelProto, mark: str) -> dict[Call, str]:
        """Add the functions of the next model, and return the names of those that had to be renamed."""
        there = {key_of(function): function for function in self.proto.functions}
        word = "".join(c if c.isalnum() else "_" for c in mark.strip("/"))
        renamed: dict[Call, str] = {}
        changed = True
        while changed:  # what calls a renamed function is another function too
            changed = False
            for function in proto.functions:
                key = key_of(function)
                calls = {key_of(operator) for operator in with_inner(function.node)}
                if key in there and key not in renamed and (there[key] != function or calls & renamed.keys()):
                    names = (f"{key[1]}_{word}{i if i > 1 else ''}" for i in count(1))
                    renamed[key] = next(name for name in names if (key[0], name, key[2]) not in there)
                    changed = True
        for function in proto.functions:
            if key_of(function) not in there or key_of(function) in renamed:
                own = self.proto.functions.add()
                own.CopyFrom(function)
                own.name = renamed.get(key_of(function), own.name)
                rename_calls(own.node, renamed)
        return renamed

    def _join_graph(
        self,
        proto: ModelProto,
        names: Mapping[str, str],
        symbols: Mapping[str, int | str],
        calls: Mapping[Call, str],
        equal: set[str],
        mark: str,
    ) -> None:
        graph, whole = proto.graph, self.proto.graph
        if mark:
            _prefix_operators(graph.node, mark)
        rename_calls(graph.node, calls)
        _rename(graph, names, symbols)
        whole.node.extend(op for op in graph.node if equal.isdisjoint(op.output))
        whole.initializer.extend(t for t in graph.initializer if t.name not in equal)
        whole.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name not in equal)
        whole.input.extend(value for value in graph.input if value.name not in self.taken)
        annotated = {value.name for value in (*whole.value_info, *whole.output)}
        whole.value_info.extend(value for value in graph.value_info if value.name not in annotated)
        noted = {value.tensor_name for value in whole.quantization_annotation}
        whole.quantization_annotation.extend(v for v in graph.quantization_annotation if v.tensor_name not in noted)
        whole.output.extend(value for value in graph.output if value.name not in self.outputs)
        weights = {tensor.name for tensor in whole.initializer}
        self.inputs = {value.name: value for value in whole.input if value.name not in weights}
        self.outputs = {value.name: value for value in whole.output}
        self.taken.update(tensor_names(graph, graph.node))
        self.operator_names.update(_operator_names(graph.node))
        self.symbols.update(_symbols(graph))
        self.constants |= _constants(proto)

    def finish(self, outputs: list[str] | None) -> Model:
        """Return the whole, once it has passed all checks."""
        kept = [name for name in self.outputs if name not in self.feeding] if outputs is None else outputs
        unknown = [name for name in kept if name not in self.outputs]
        if unknown:
            raise RefusedError(f"no model has an output '{unknown[0]}'; there are {', '.join(self.outputs)}")
        if not kept:
            raise RefusedError("the whole would have no output; name some in 'outputs'")
        draft = Draft(Model(self.proto, self.folder))
        del draft.graph.output[:]
        draft.graph.output.extend(self.outputs[name] for name in kept)
        inputs = {value.name for value in draft.graph.input}
        inner = (value for name, value in self.outputs.items() if name not in kept and name not in inputs)
        draft.graph.value_info.extend(inner)
        return draft.finish()


def _check_fit(before: ValueInfoProto, model: Model, name: str) -> None:
    """Refuse unless a tensor fits the input that it is to feed, as far as their types tell."""
    after = next(value for value in model.proto_inputs if value.name == name)
    kinds = type_of(before), type_of(after)
    fits = before.type.WhichOneof("value") == after.type.WhichOneof("value")
    fits = fits and tensor_type_of(before.type).elem_type == tensor_type_of(after.type).elem_type
    if fits and kinds[0].shape is not None and kinds[1].shape is not None:
        fits = len(kinds[0].shape) == len(kinds[1].shape) and all(
            a == b or not (isinstance(a, int) and isinstance(b, int))
            for a, b in zip(kinds[0].shape, kinds[1].shape, strict=True)
        )
    if not fits:
        told = [
            str(kind) if value.type.HasField("tensor_type") else f"a {value.type.WhichOneof('value')}"
            for kind, value in zip(kinds, (before, after), strict=True)
        ]
        raise RefusedError(
            f"'{before.name}' is {told[0]} and input '{name}' is {told[1]}, so the one cannot feed the other; connect "
            "other tensors, or put what converts them in between"
        )


def _common_folder(models: Sequence[Model]) -> Path | None:
    """Return the innermost folder that holds the external data of all the models, so that none has to be copied."""
    folders = {model.folder for model in models if model.folder is not None}
    try:
        return Path(os.path.commonpath(folders)) if folders else None
    except ValueError as error:
        raise RefusedError("the models have external data on different drives; copy one beside the other") from error


def _move_external(proto: ModelProto, old: Path | None, new: Path | None) -> None:
    """Let external tensors of a model say where their values are as seen from another folder."""
    if old is None or new is None or old == new:
        return
    for tensor in tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = Path(os.path.relpath(old / entry.value, new)).as_posix()


def _free_prefix(number: int, own: set[str], taken: set[str]) -> str:
    """Return the first of ``b/``, ``b2/``, ... (for the second model) under which no tensor would clash."""
    letter = chr(ord("b") + number) if number < 25 else f"m{number + 2}."
    candidates = (f"{letter}{i if i > 1 else ''}/" for i in count(1))
    return next(mark for mark in candidates if not any(name.startswith(mark) for name in (*own, *taken)))


def _operator_names(operators: Iterable[NodeProto]) -> Iterator[str]:
    return (operator.name for operator in with_inner(operators) if operator.name)


def _values(graph: GraphProto) -> Iterator[ValueInfoProto]:
    for scope_ in graphs(graph):
        yield from (*scope_.input, *scope_.output, *scope_.value_info)


def _symbols(graph: GraphProto) -> Iterator[str]:
    """Yield the symbols of dimensions."""
    for value in _values(graph):
        yield from (dim.dim_param for dim in tensor_type_of(value.type).shape.dim if dim.dim_param)


def _constants(proto: ModelProto) -> dict[str, bytes]:
    """Return a hash of what each constant tensor of the main graph holds or is made by."""
    graph, functions = proto.graph, {key_of(function) for function in proto.functions}
    found = {tensor.name: _hash(tensor) for tensor in graph.initializer}
    found |= {tensor.values.name: _hash(tensor) for tensor in graph.sparse_initializer}
    if proto.ir_version >= 4:  # such inputs have defaults that who runs the model may change
        for value in graph.input:
            found.pop(value.name, None)
    for operator in graph.node:
        read = list(consumed(operator))
        steady = all(name in found for name in read) and not any_random([operator])
        if steady and functions.isdisjoint(key_of(inner) for inner in with_inner([operator])):
            content = _hash(operator, *(found[name] for name in read))
            found.update((name, content) for name in operator.output if name)
    return found


def _hash(message: Message, *read: bytes) -> bytes:
    return hashlib.sha256(b"".join((message.SerializeToString(deterministic=True), *read))).digest()


def _prefix_operators(operators: Iterable[NodeProto], mark: str) -> None:
    """Put a prefix in front of operators' names and scopes."""
    for operator in with_inner(operators):
        path = scope(operator)
        if path:
            others = [entry for entry in operator.metadata_props if entry.key != GRAPHMOD_SCOPE]
            del operator.metadata_props[:]
            operator.metadata_props.add(key=GRAPHMOD_SCOPE, value=f"{mark.strip('/')}.{path}")
            operator.metadata_props.extend(others)
        if operator.name:
            operator.name = mark + operator.name


def _rename(graph: GraphProto, names: Mapping[str, str], symbols: Mapping[str, int | str]) -> None:
    """Give tensors other names and dimensions other symbols, bodies included."""
    for value in _values(graph):
        for dim in tensor_type_of(value.type).shape.dim:
            match symbols.get(dim.dim_param):
                case int(size):
                    dim.dim_value = size
                case "":
                    dim.ClearField("dim_param")
                case str(symbol):
                    dim.dim_param = symbol
    rename_tensors(graph, names)


def _join_metadata(whole: ModelProto, proto: ModelProto, mark: str) -> None:
    """Add operator sets and metadata; what says something else than the whole's goes under a prefixed key."""
    domains = {entry.domain or "ai.onnx" for entry in whole.opset_import}
    whole.opset_import.extend(entry for entry in proto.opset_import if (entry.domain or "ai.onnx") not in domains)
    there = {entry.key: entry.value for entry in whole.metadata_props}
    for entry in proto.metadata_props:
        if entry.key == RECORD or there.get(entry.key, entry.value) != entry.value:
            whole.metadata_props.add(key=mark + entry.key, value=entry.value)
        elif entry.key not in there:
            whole.metadata_props.append(entry)
