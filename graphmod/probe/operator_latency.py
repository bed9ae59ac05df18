"""Latency of operators alone, in ONNX Runtime, at any shapes: measured once on a machine and kept on disk.

What is measured is a *signature*: operators that ONNX Runtime computes as one (mostly a single one), with their
attributes and the dtypes and shapes of what they read, whatever the values. A pruning budget asks for hypothetical
shapes thousands of times; each is measured once a machine.

Convolutions on the CPU run in a blocked layout, which ONNX Runtime enters and leaves once a chain of them. Here each
runs in that layout too, without the reordering before and after it: a whole network pays for few of these.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import cycle
from math import inf, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, perf_counter_ns, process_time_ns
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper
from rich.progress import Progress

from graphmod.errors import InvalidDataError, InvalidModelError, NotWritableError, RefusedError
from graphmod.graph.shape_values import shape_values
from graphmod.model import Model, TensorType, has_bodies, replace_file, run_bound
from graphmod.model.initializers import tensor_type
from graphmod.model.initializers import values as value_of
from graphmod.model.session import open_session

Array = NDArray[np.generic]

_VALUED = 64
"""Scalars up to which the values of integer constants belong to a signature: shapes, axes, pads."""

_ROUND_NS = 300_000
_ROUNDS = 5
_LONGEST_NS = 20_000_000
"""A round lasts about so long or one run, whichever is longer; there are so many, or fewer once they took that long."""

_PASSES = 2
"""All are measured so many times, one after the other: what slows the machine down for a second meets few twice."""

_LARGE = 1 << 17
_CACHE = 40 << 20
_MOST_COPIES = 16
"""Weights of so many bytes count as large; copies of them fill so many bytes, or there are so many of them."""

_BLOCKED = "com.microsoft.nchwc"
_REORDERED = frozenset({"Conv", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"})
"""Operators that run in the blocked layout even where nothing around them does."""


@dataclass(frozen=True)
class Operand:
    """A tensor that a signature reads from outside: its type; whether it is constant; its values where they matter."""

    dtype: str
    shape: tuple[int, ...]
    constant: bool = False
    values: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Step:
    """One operator of a signature; tensors are numbered, operands first, -1 is an absent one."""

    op_type: str
    domain: str
    attributes: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What the latency of operators depends on; equal for operators that take the same time.

    Parameters
    ----------
    operands : tuple of Operand
        The tensors read from outside.
    steps : tuple of Step
        The operators, in topological order.
    results : tuple of int
        Numbers of the tensors that they give to others.
    opsets : tuple of (str, int)
        The version of each operator set that they are of.
    """

    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    opsets: tuple[tuple[str, int], ...]

    @cached_property
    def key(self) -> str:
        """One line of JSON that two signatures share where they are equal."""
        operands = [[one.dtype, one.shape, one.constant, one.values] for one in self.operands]
        steps = [[one.op_type, one.domain, one.attributes, one.inputs, one.outputs] for one in self.steps]
        return json.dumps([operands, steps, self.results, self.opsets], separators=(",", ":"))

    def __str__(self) -> str:
        """Render as ``Conv+Relu(float32[1, 8, 4, 4], const float32[16, 8, 3, 3])``."""
        read = (f"{'const ' * one.constant}{one.dtype}{list(one.shape)}" for one in self.operands)
        return f"{'+'.join(step.op_type for step in self.steps)}({', '.join(read)})"


def signature(
    operators: NodeProto | Sequence[NodeProto],
    types: Mapping[str, TensorType],
    constants: Mapping[str, Array | None],
    opsets: int | Mapping[str, int],
    results: Iterable[str] | None = None,
) -> Signature:
    """Return what the latency of an operator, or of several that ONNX Runtime computes as one, depends on.

    Parameters
    ----------
    operators : NodeProto or sequence of NodeProto
        In topological order.
    types : mapping of str to TensorType
        The types of what they read; every dimension a number.
    constants : mapping of str to array or None
        Which of the inputs are constant. Values count of integers and single numbers, which are often shapes, axes or
        bounds; None where the value is unknown or does not matter. Those of weights never do: pass None.
    opsets : int or mapping of str to int
        Version of the default operator set, or of each by domain.
    results : iterable of str, optional
        Outputs that others read; all that none of the operators reads if None.

    Raises
    ------
    RefusedError
        A dimension is no number, a tensor holds no numbers, or an operator has bodies.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> relu = next(operator for operator in m.operators if operator.op_type == "Relu")
    >>> kind = gm.model.TensorType(np.dtype("float32"), (1, 16, 8, 8))
    >>> str(gm.probe.signature(relu, {relu.input[0]: kind}, {}, m.opset))
    'Relu(float32[1, 16, 8, 8])'
    """
    some = [operators] if isinstance(operators, NodeProto) else list(operators)
    versions = {"": opsets} if isinstance(opsets, int) else {_plain(domain): n for domain, n in opsets.items()}
    for operator in some:
        if has_bodies(operator):
            raise RefusedError(f"the latency of {_called(operator)} depends on what its bodies compute; inline them")
    made = {name for operator in some for name in operator.output if name}
    read = dict.fromkeys(name for operator in some for name in operator.input if name)
    outside = [name for name in read if name not in made]
    number = {name: i for i, name in enumerate([*outside, *dict.fromkeys(n for op in some for n in op.output if n)])}
    number[""] = -1
    wanted = [name for name in made if name not in read] if results is None else results
    return Signature(
        tuple(_operand(name, types.get(name), name in constants, constants.get(name)) for name in outside),
        tuple(
            Step(
                operator.op_type,
                _plain(operator.domain),
                tuple(sorted(map(_attribute, operator.attribute))),
                tuple(number[name] for name in operator.input),
                tuple(number[name] for name in operator.output),
            )
            for operator in some
        ),
        tuple(sorted(number[name] for name in wanted)),
        tuple(sorted({domain: versions.get(domain, 1) for domain in (_plain(op.domain) for op in some)}.items())),
    )


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _called(operator: NodeProto) -> str:
    return f"operator '{operator.name or operator.output[0]}' ({operator.op_type})"


def _attribute(attribute: AttributeProto) -> str:
    bare = AttributeProto.FromString(attribute.SerializeToString())
    bare.ClearField("doc_string")
    return bytes(bare.SerializeToString(deterministic=True)).hex()


def _operand(name: str, kind: TensorType | None, constant: bool, value: Array | None) -> Operand:
    if kind is None and value is not None:
        kind = TensorType(value.dtype, value.shape)
    if kind is None or kind.dtype is None or kind.shape is None or not _is_fixed(kind):
        raise RefusedError(f"tensor '{name}' is {kind or 'of unknown type'}; give its type, every dimension a number")
    if kind.dtype.kind in "OSU":
        raise RefusedError(f"tensor '{name}' holds text, of which no latency can be measured")
    shape = tuple(d for d in kind.shape if isinstance(d, int))
    counts = value is not None and value.shape == shape and _matters(kind)
    return Operand(
        kind.dtype.name, shape, constant, tuple(value.ravel().tolist()) if counts and value is not None else None
    )


def _matters(kind: TensorType) -> bool:
    """Whether a constant's values tell how long an operator takes: those of shapes, axes, pads, bounds."""
    return kind.dtype is not None and kind.size <= (_VALUED if kind.dtype.kind in "iub" else 1)


class LatencyTable:
    """Latencies of signatures in ONNX Runtime on this machine: measured when asked for, and kept on disk.

    There is one file a processor, version of ONNX Runtime and number of threads. Processes may share a folder: a save
    takes in what others saved in the meantime, and of two latencies of one signature the lesser. (Of two saves at the
    same instant one may be lost, and is measured again.) Ask for many at once: each call that measures saves.

    Parameters
    ----------
    path : path, optional
        Folder of the files; ``$GRAPHMOD_CACHE/latency`` if None, else ``$XDG_CACHE_HOME/graphmod/latency``, else
        ``~/.cache/graphmod/latency``.
    threads : int
        Threads within an operator. Of one, CPU time is measured; of several, time on the clock.

    Raises
    ------
    InvalidDataError
        The file is damaged.

    Examples
    --------
    >>> import graphmod as gm, tempfile
    >>> m = gm.load(gm.demo.model_path())
    >>> table = gm.probe.LatencyTable(tempfile.mkdtemp())
    >>> whole = gm.probe.clusters(m)
    >>> first = whole.signature(whole.clusters[0])
    >>> table.microseconds(first) == table.microseconds(first) > 0
    True
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, threads: int = 1) -> None:
        self.threads = threads
        folder = _cache_folder() if path is None else Path(path)
        self.file = folder / f"{_slug(processor())}_onnxruntime-{ort.__version__}_threads-{threads}.jsonl"
        self._known = _read(self.file)

    def __len__(self) -> int:
        """Return the number of signatures measured."""
        return len(self._known)

    def microseconds(self, signature: Signature) -> float:
        """Return the latency of a signature, measured now if it never was.

        Raises
        ------
        InvalidModelError, InvalidDataError
            ONNX Runtime cannot load the operators, or they fail.
        NotWritableError
            The file cannot be written.
        """
        known = self._known.get(signature.key)
        return self.many([signature])[0] if known is None else known

    def many(self, signatures: Iterable[Signature], *, progress: bool = False) -> list[float]:
        """Return the latencies of signatures; those never measured are, and the file is saved once.

        Parameters
        ----------
        signatures : iterable of Signature
        progress : bool
            Show a progress bar where measuring takes over a second.

        Raises
        ------
        InvalidModelError, InvalidDataError
            ONNX Runtime cannot load operators, or they fail; what was measured before is saved.
        NotWritableError
            The file cannot be written.
        """
        asked = list(signatures)
        missing = {one.key: one for one in asked if one.key not in self._known}
        if missing:
            try:
                self._measure(missing, progress)
            finally:
                self._save()
        return [self._known[one.key] for one in asked]

    def _measure(self, missing: Mapping[str, Signature], progress: bool) -> None:
        start = perf_counter()
        with Progress(transient=True, disable=not progress) as bar:
            task = bar.add_task("operator latency", total=_PASSES * len(missing), visible=False)
            for key, one in [*missing.items()] * _PASSES:
                self._known[key] = min(measured(one, self.threads), self._known.get(key, inf))
                bar.update(task, advance=1, visible=perf_counter() - start > 1)

    def _save(self) -> None:
        saved = _read(self.file)
        self._known = saved | {key: min(time, saved.get(key, inf)) for key, time in self._known.items()}
        lines = [f'{{"microseconds":{time!r},"signature":{key}}}\n' for key, time in self._known.items()]
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotWritableError(f"cannot make the folder '{self.file.parent}': {error.strerror}") from error
        replace_file(self.file, lambda stream: stream.write("".join(lines).encode()))


def _cache_folder() -> Path:
    if os.environ.get("GRAPHMOD_CACHE"):
        return Path(os.environ["GRAPHMOD_CACHE"]) / "latency"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphmod" / "latency"


def _read(file: Path) -> dict[str, float]:
    """Return what a file holds by signature key; nothing where there is no file."""
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidDataError(f"cannot read the latencies in '{file}': {error.strerror}") from error
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            found[json.dumps(entry["signature"], separators=(",", ":"))] = float(entry["microseconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidDataError(
                f"line {number} of '{file}' is no latency; delete the file, and all are measured again"
            ) from error
    return found


@cache
def processor() -> str:
    """Return the name of the processor, with the numbers that tell models of one name apart."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return f"{platform.processor()} {platform.machine()}"
    fields = dict(re.findall(r"^([^:\t]+?)\s*:\s*(.*)$", cpuinfo.read_text().split("\n\n")[0], re.MULTILINE))
    told = (fields.get(name, "") for name in ("model name", "cpu family", "model", "stepping", "CPU part"))
    return " ".join(filter(None, (*told, platform.machine())))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# -- whole networks


@dataclass(frozen=True)
class Cluster:
    """Operators of a model that ONNX Runtime computes as one, by place; the tensors that they give to others."""

    operators: tuple[int, ...]
    results: tuple[str, ...]


@dataclass(frozen=True)
class Clusters:
    """A model as ONNX Runtime computes it: clusters of operators, and all that their signatures need.

    Parameters
    ----------
    model : Model
        The model, its inputs' dimensions fixed.
    clusters : tuple of Cluster
        In topological order; operators that ONNX Runtime computes once, when it loads the model, are in none.
    types : mapping of str to TensorType
        The types of all tensors.
    constants : mapping of str to array or None
        The tensors that are constant; their values where they are short.
    """

    model: Model
    clusters: tuple[Cluster, ...]
    types: Mapping[str, TensorType]
    constants: Mapping[str, Array | None]

    def signature(
        self,
        cluster: Cluster,
        types: Mapping[str, TensorType] | None = None,
        constants: Mapping[str, Array | None] | None = None,
    ) -> Signature:
        """Return the signature of a cluster, at hypothetical types where all those that it reads are given.

        Constants are to be given with them where a shape's values are others too.
        """
        opsets = {entry.domain: entry.version for entry in self.model._proto.opset_import}
        operators = [self.model.operators[i] for i in cluster.operators]
        types, constants = types or self.types, constants or self.constants
        return signature(operators, types, constants, opsets, cluster.results)


def clusters(model: Model, types: Mapping[str, TensorType] | None = None) -> Clusters:
    """Return a model's operators in clusters: those that ONNX Runtime computes as one.

    It is asked which tensors are left when it has optimised the graph: operators whose results are not belong to the
    one that reads them. Normalisations and activations so become part of convolutions.

    Parameters
    ----------
    model : Model
    types : mapping of str to TensorType, optional
        Types of inputs; symbolic dimensions that are not given are 1.

    Returns
    -------
    Clusters
        Of which :meth:`Clusters.signature` gives each cluster's signature, at these or at hypothetical shapes.

    Raises
    ------
    RefusedError
        An operator calls a function of the model.
    InvalidModelError
        ONNX Runtime cannot load the model.
    InvalidDataError
        There is no such input.

    Examples
    --------
    >>> import graphmod as gm
    >>> whole = gm.probe.clusters(gm.load(gm.demo.model_path()))
    >>> [step.op_type for step in whole.signature(whole.clusters[0]).steps]
    ['Conv', 'Relu']
    """
    calls = {(_plain(function.domain), function.name) for function in model.functions}
    for operator in model.operators:
        if (_plain(operator.domain), operator.op_type) in calls:
            raise RefusedError(f"{_called(operator)} calls a function; inline it first")
    fixed = _fixed(model, types or {})
    with TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        open_session(fixed._proto, fixed.folder, 1, without=["NchwcTransformer"], written=written)
        graph = onnx.load(written, load_external_data=False).graph
        folded = {tensor.name: tensor for tensor in graph.initializer if tensor.name in fixed.producer}
        values = {name: _short(tensor, Path(folder)) for name, tensor in folded.items()}
    known = {name: _short(tensor, fixed.folder) for name, tensor in fixed.initializers.items()}
    known |= {op.output[0]: _constant(op, fixed.folder) for op in fixed.operators if op.op_type == "Constant"}
    known |= values
    asked = {op.input[0] for op in fixed.operators if op.op_type in ("Shape", "Size")}
    shown, _ = _observed(fixed, [name for name in fixed.producer if name in asked])
    arithmetic = {
        name: np.array(sizes.tolist(), fixed.tensors[name].dtype)
        for name, sizes in shape_values(fixed.operators, fixed.tensors | shown, known.get).items()
        if None not in sizes.ravel().tolist()
    }
    constants = arithmetic | known
    left = {name for node in graph.node for name in node.output} - {""}
    found = _clustered(fixed, left, constants)
    read = {name for cluster in found for place in cluster.operators for name in fixed.reads[place]} - set(constants)
    types, sizes = _observed(fixed, [name for name in fixed.producer if name in read])
    types |= {name: TensorType(*tensor_type(tensor)) for name, tensor in folded.items()}
    return Clusters(fixed, found, fixed.tensors | types, constants | sizes)


def network_latency(
    model: Model,
    types: Mapping[str, TensorType] | None = None,
    table: LatencyTable | None = None,
    *,
    progress: bool = False,
) -> float:
    """Return the sum of the latencies of a model's operators, in microseconds.

    The whole model takes somewhat longer, by a factor that one measurement of it calibrates.

    Parameters
    ----------
    model : Model
    types : mapping of str to TensorType, optional
        Types of inputs; symbolic dimensions that are not given are 1.
    table : LatencyTable, optional
        That in the cache folder, for one thread, if None.
    progress : bool
        Show a progress bar where measuring takes over a second.

    Raises
    ------
    RefusedError
        A tensor's type cannot be found, or an operator has bodies or calls a function.
    InvalidModelError, InvalidDataError
        ONNX Runtime cannot load or run the model or one of its operators, or there is no such input.

    Examples
    --------
    >>> import graphmod as gm, tempfile
    >>> m = gm.load(gm.demo.model_path())
    >>> gm.probe.network_latency(m, table=gm.probe.LatencyTable(tempfile.mkdtemp())) > 0
    True
    """
    whole = clusters(model, types)
    signatures = [whole.signature(cluster) for cluster in whole.clusters]
    return sum((LatencyTable() if table is None else table).many(signatures, progress=progress))


def _fixed(model: Model, types: Mapping[str, TensorType]) -> Model:
    """Return a model with a number for every dimension of its inputs, also where symbols recur in other tensors."""
    unknown = [name for name in types if name not in model.inputs]
    if unknown:
        raise InvalidDataError(f"there is no input '{unknown[0]}'; the model's inputs are {', '.join(model.inputs)}")
    proto = model.editable()
    sizes: dict[str, int] = {}
    for value in proto.graph.input:
        given = types[value.name].shape if value.name in types else None
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            size = given[axis] if given is not None else None
            if not dim.HasField("dim_value"):
                symbol = dim.dim_param
                dim.dim_value = size if isinstance(size, int) else sizes.get(symbol, 1)
                if symbol:
                    sizes.setdefault(symbol, dim.dim_value)
    for value in (*proto.graph.value_info, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    return Model(proto, model.folder)


def _observed(model: Model, tensors: Iterable[str]) -> tuple[dict[str, TensorType], dict[str, Array | None]]:
    """Return the types of tensors that inference leaves open and the values of sizes, as a run on ones shows them."""
    open_ = [name for name in tensors if not _is_fixed(model.tensors.get(name)) or _is_size(model.tensors[name])]
    if not open_:
        return {}, {}
    feeds = {
        name: np.ones([d for d in kind.shape or () if isinstance(d, int)], kind.dtype)
        for name, kind in model.inputs.items()
    }
    shown = model.run(feeds, open_)
    types = {name: TensorType(array.dtype, array.shape) for name, array in shown.items()}
    return types, {name: array for name, array in shown.items() if _is_size(types[name])}


def _is_size(kind: TensorType) -> bool:
    return kind.dtype in (np.int64, np.int32) and len(kind.shape or ()) < 2 and kind.size <= _VALUED


def _constant(operator: NodeProto, folder: Path | None) -> Array | None:
    """Return what a Constant operator makes, where it is short and made of numbers."""
    [attribute, *_] = operator.attribute
    if attribute.name == "value":
        return _short(attribute.t, folder)
    made = (
        np.array(helper.get_attribute_value(attribute)) if attribute.name.startswith(("value_i", "value_f")) else None
    )
    return made.astype(np.float32) if made is not None and made.dtype.kind == "f" else made


def _is_fixed(kind: TensorType | None) -> bool:
    return (
        kind is not None
        and kind.dtype is not None
        and kind.shape is not None
        and all(isinstance(d, int) for d in kind.shape)
    )


def _short(tensor: onnx.TensorProto, folder: Path | None) -> Array | None:
    return value_of(tensor, folder) if _matters(TensorType(*tensor_type(tensor))) else None


def _clustered(model: Model, left: set[str], constants: Mapping[str, Array | None]) -> tuple[Cluster, ...]:
    """Gather the operators behind every tensor that is left, up to others that are left."""
    taken: dict[int, int] = {}
    last = sorted({model.producer[name] for name in left if name in model.producer and name not in constants})
    for target in last:
        pending = [target]
        while pending:
            place = pending.pop()
            if place in taken:
                continue
            taken[place] = target
            read = (name for name in model.reads[place] if name not in constants and name not in left)
            pending.extend(model.producer[name] for name in read if name in model.producer)
    members: dict[int, list[int]] = {target: [] for target in last}
    for place in sorted(taken):
        members[taken[place]].append(place)
    read_by: dict[str, set[int]] = {}
    for place, target in taken.items():
        for name in model.reads[place]:
            read_by.setdefault(name, set()).add(target)
    found = []
    for target, places in members.items():
        made = [name for place in places for name in model.operators[place].output if name]
        given = (n for n in made if n in model.outputs or read_by.get(n, set()) - {target} or n in left)
        found.append(Cluster(tuple(places), tuple(given)))
    return tuple(cluster for cluster in found if cluster.operators)


# -- measuring


def measured(signature: Signature, threads: int = 1) -> float:
    """Return the latency of a signature in microseconds, measured now.

    The least of some rounds, as whatever else the machine does only adds; less what a run costs that computes nothing.
    Weights are random; copies of large ones take turns, so that they are read from memory, as in a network of many.

    Raises
    ------
    InvalidModelError, InvalidDataError
        ONNX Runtime cannot load the operators, or they fail.
    """
    rng = np.random.default_rng(0)
    try:
        proto = _in_network(_proto(signature, rng), threads)
        copies = [_bound(open_session(proto, None, threads), rng) for _ in range(_n_copies(signature))]
        run, idle = _least([_in_turn(copies), _copies(1, threads)], threads)
        return max(0.0, run - idle + _launch(threads))
    except (InvalidModelError, InvalidDataError) as error:
        raise type(error)(f"the latency of {signature} cannot be measured: {error}") from error


def _n_copies(signature: Signature) -> int:
    """Return how many copies of an operator run in turn, so that none finds its weights in the cache."""
    size = sum(np.dtype(one.dtype).itemsize * prod(one.shape) for one in signature.operands if one.constant)
    return min(_MOST_COPIES, -(-_CACHE // size)) if size >= _LARGE else 1


def _in_turn(runs: Sequence[Callable[[], None]]) -> Callable[[], None]:
    """Return a run that is the next of several each time; all have run once."""
    for run in runs:
        run()
    turns = cycle(runs)
    return lambda: next(turns)()


def _proto(signature: Signature, rng: np.random.Generator) -> ModelProto:
    """Return a model of the operators, constant operands as initializers, the others as inputs."""
    nodes = []
    for step in signature.steps:
        inputs, outputs = (["" if i < 0 else f"t{i}" for i in some] for some in (step.inputs, step.outputs))
        node = helper.make_node(step.op_type, inputs, outputs, domain=step.domain)
        node.attribute.extend(AttributeProto.FromString(bytes.fromhex(one)) for one in step.attributes)
        nodes.append(node)
    named = {f"t{i}": one for i, one in enumerate(signature.operands)}
    initializers = [numpy_helper.from_array(_filled(o, rng), name) for name, o in named.items() if o.constant]
    fed = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(one.dtype)), one.shape)
        for name, one in named.items()
        if not one.constant
    ]
    given = [onnx.ValueInfoProto(name=f"t{i}") for i in signature.results]
    graph = helper.make_graph(nodes, "signature", fed, given, initializers)
    opsets = [helper.make_opsetid(*one) for one in signature.opsets]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets)


def _filled(operand: Operand, rng: np.random.Generator) -> Array:
    """Return values for an operand: floats around 1, so that no denormal, root or logarithm slows anything down."""
    dtype = np.dtype(operand.dtype)
    if operand.values is not None:
        return np.array(operand.values, dtype).reshape(operand.shape)
    if dtype.kind in "iub":  # 0 is an index into anything
        return rng.integers(0, 100 if dtype.itemsize == 1 and dtype.kind != "b" else 1, operand.shape).astype(dtype)
    few = rng.uniform(0.5, 1.5, min(prod(operand.shape), 1 << 14)).astype(dtype)
    return np.resize(few, operand.shape)


def _in_network(proto: ModelProto, threads: int) -> ModelProto:
    """Return the operators as ONNX Runtime computes them within a network: in blocks, without reordering."""
    if not any(node.op_type in _REORDERED for node in proto.graph.node):
        return proto
    with TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        open_session(proto, None, threads, written=written)
        optimized = onnx.load(written)
    if not any(node.op_type.startswith("Reorder") for node in optimized.graph.node):
        return proto
    _drop_reordering(optimized.graph)
    return optimized


def _drop_reordering(graph: GraphProto) -> None:
    """Make blocked tensors the inputs and outputs of an optimised graph, in place of what is reordered."""
    inputs = {value.name: value for value in graph.input}
    outputs = {value.name: value for value in graph.output}
    kept = []
    for node in graph.node:
        if node.op_type == "ReorderInput" and node.input[0] in inputs:
            blocked = graph.input.add()
            blocked.CopyFrom(inputs[node.input[0]])
            blocked.name = node.output[0]
            channels = blocked.type.tensor_type.shape.dim[1]
            channels.dim_value += -channels.dim_value % _block_size()
        elif node.op_type == "ReorderOutput" and node.output[0] in outputs:
            outputs[node.output[0]].CopyFrom(onnx.ValueInfoProto(name=node.input[0]))
        else:
            kept.append(node)
    read = {name for node in kept for name in node.input}
    left = [value for value in graph.input if value.name in read]
    del graph.node[:], graph.value_info[:], graph.input[:]
    graph.node.extend(kept)
    graph.input.extend(left)


@cache
def _block_size() -> int:
    """Return to a multiple of how many channels ONNX Runtime's blocked layout rounds up here."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy")
    graph = helper.make_graph([helper.make_node("ReorderInput", ["x"], ["y"], domain=_BLOCKED)], "block", [x], [y])
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(_BLOCKED, 1)]
    session = open_session(helper.make_model(graph, ir_version=8, opset_imports=opsets), None, 1)
    size: int = session.run(None, {"x": np.ones((1, 4, 1, 1), np.float32)})[0].shape[1]
    return size


def _bound(session: ort.InferenceSession, rng: np.random.Generator) -> Callable[[], None]:
    binding = session.io_binding()
    for one in session.get_inputs():
        kind = onnx.TensorProto.DataType.Value(one.type[len("tensor(") : -1].upper())
        array = _filled(Operand(helper.tensor_dtype_to_np_dtype(kind).name, tuple(one.shape)), rng)
        bare: Any = array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")
        binding.bind_ortvalue_input(one.name, ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bare, kind))
    for one in session.get_outputs():
        binding.bind_output(one.name, "cpu")
    return lambda: run_bound(session, binding)


@cache
def _copies(n: int, threads: int) -> Callable[[], None]:
    """Return a run of a model that copies one number some times: what every run costs."""
    steps = tuple(Step("Identity", "", (), (i,), (i + 1,)) for i in range(n))
    proto = _proto(Signature((Operand("float32", (1,)),), steps, (n,), (("", 13),)), np.random.default_rng(0))
    return _bound(open_session(proto, None, threads, as_it_is=True), np.random.default_rng(0))


def _least(runs: Sequence[Callable[[], None]], threads: int) -> list[float]:
    """Return the microseconds that each run takes: the least of the means of some rounds over all of them."""
    clock = process_time_ns if threads == 1 else perf_counter_ns

    def mean(run: Callable[[], None], repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            run()
        return (clock() - start) / repeats

    collecting = gc.isenabled()
    gc.disable()
    try:
        repeats = [max(1, round(_ROUND_NS / max(1.0, min(mean(run, 1), mean(run, 1))))) for run in runs]
        found: list[list[float]] = []
        while len(found) < _ROUNDS and sum(map(np.dot, found, [repeats] * len(found))) < _LONGEST_NS:
            found.append([mean(run, n) for run, n in zip(runs, repeats, strict=True)])
    finally:
        if collecting:
            gc.enable()
    return [min(times) / 1000 for times in zip(*found, strict=True)]


@cache
def _launch(threads: int) -> float:
    """Return what one operator more costs a run that computes nothing, in microseconds."""
    one, nine = _least([_copies(1, threads), _copies(9, threads)], threads)
    return max(0.0, nine - one) / 8
