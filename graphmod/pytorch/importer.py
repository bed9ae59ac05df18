"""The importer: an ONNX graph becomes a torch.fx.GraphModule, operator by operator."""

from __future__ import annotations

import builtins
import keyword
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import getitem
from os import PathLike
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, ModelProto, NodeProto
from torch import Tensor, fx, nn

from graphmod.errors import RefusedError, UnsupportedOperatorError
from graphmod.model import Model, consumed, load, with_inner
from graphmod.pytorch.binding import Weight
from graphmod.pytorch.constants import Constants
from graphmod.pytorch.dtypes import HALF, has_tensor, numpy_dtype, torch_dtype
from graphmod.pytorch.levels import as_integers, levels_of, moves
from graphmod.pytorch.network import Network, structure_of
from graphmod.pytorch.operator import Operator
from graphmod.pytorch.paths import Paths, blocks_of
from graphmod.pytorch.patterns import Found, Rule, find_pattern
from graphmod.pytorch.program import Program
from graphmod.pytorch.reference import Reference, has_reference
from graphmod.pytorch.registry import Converter, Outputs, domain_of, find
from graphmod.pytorch.scope import Scope
from graphmod.pytorch.sizes import Dim, Expr, Ints, Item, Sizes
from graphmod.pytorch.weights import Weights

META = "graphmod"
"""Key of ``GraphModule.meta`` under which the bindings lie that :func:`graphmod.write_back` needs."""

STRUCTURE = "graphmod.structure"
"""Key of ``GraphModule.meta`` under which lies what the network computed when it was imported."""


def to_torch(
    model: Model | ModelProto | str | PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    max_iterations: int = 1_000_000,
) -> fx.GraphModule:
    """Bring a model into PyTorch, as a network that can be trained and whose weights can be written back.

    Submodules follow the network that was exported, as far as the exporter recorded it. Every float weight is one
    ``nn.Parameter``, shared where operators share it. What depends on constants alone is computed now; batch size and
    sequence length stay dynamic.

    An operator that PyTorch cannot say runs through onnx's reference implementation, with a warning: it is slow, and
    asking it for a gradient is an error.

    Parameters
    ----------
    model : Model, onnx.ModelProto or path
        The model; it stays as it is.
    dtype : torch.dtype, optional
        ``torch.float32`` brings a model of half precision in as single precision, its inputs included; by default
        every type stays.
    max_iterations : int
        How often a Loop may run before it is taken to be endless.

    Returns
    -------
    torch.fx.GraphModule
        In evaluation mode. Its parameters are the graph's inputs in order; it returns a tensor, or a tuple of tensors
        in the order of the graph's outputs. Sequences are lists; an empty optional is None; strings are NumPy arrays.

    Raises
    ------
    UnsupportedOperatorError
        Operators have no counterpart: all of them are listed, before any weight is read. Or an operator's attributes
        ask for something that would not be computed rightly.
    InvalidModelError
        The graph is cyclic or incomplete, an attribute has the wrong type, or an initializer has no data.

    Examples
    --------
    >>> from onnx import parser
    >>> net = to_torch(parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     agraph (float[n, 2] x) => (float[n, 3] y)
    ...     <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[3] b = {0, 0, 1}> {
    ...         h = Gemm(x, w, b)
    ...         y = Relu(h)
    ...     }'''))
    >>> print(net)  # doctest: +NORMALIZE_WHITESPACE
    GraphModule(
      (gemm_0): Linear(in_features=2, out_features=3, bias=True)
      (relu_1): ReLU()
    )
    ...
    >>> net(torch.ones(1, 2)).tolist()
    [[5.0, 7.0, 10.0]]
    """
    if dtype not in (None, torch.float32):
        raise RefusedError(
            f"a model is imported as it is or as torch.float32, not as {dtype}; convert the network then"
        )
    program = Program(load(model))
    _refuse_missing(program)
    options = Options(widened=dtype is not None, max_iterations=max_iterations)
    importer = Importer(program, program.main, options=options)
    net = importer.run()
    net.meta[META] = tuple(importer.weights.bindings)
    net.meta[STRUCTURE] = structure_of(net)
    if options.references:
        warnings.warn(
            f"PyTorch cannot compute {', '.join(options.references)}: onnx's reference implementation runs "
            "in its place, which is slow and has no gradient",
            stacklevel=2,
        )
    return net.eval()


def _refuse_missing(program: Program) -> None:
    """Raise if operators have no counterpart, naming all of them."""
    model = program.model
    if model._proto.graph.sparse_initializer:
        name = model._proto.graph.sparse_initializer[0].values.name
        raise UnsupportedOperatorError(
            f"initializer '{name}' is sparse, which is not supported; graphmod.unpack makes it dense"
        )
    missing = []
    known: dict[tuple[str, str], bool] = {}
    for operator in with_inner(program.main.operators):
        kind = (domain_of(operator.domain), operator.op_type)
        if kind not in known:
            opset = program.opset_of(operator)
            known[kind] = find(operator.op_type, operator.domain, opset) is not None or has_reference(operator, opset)
        if not known[kind]:
            missing.append(
                f"'{operator.name or operator.output[0]}' ({operator.op_type}, domain '{kind[0]}', "
                f"opset {program.opset_of(operator)})"
            )
    if missing:
        layout = any("nchwc" in name for name in missing)
        hint = (
            "; ONNX Runtime's optimizer up to ORT_ENABLE_EXTENDED keeps to operators that are known" if layout else ""
        )
        raise UnsupportedOperatorError(
            f"no PyTorch counterpart for {len(missing)} operator(s): {', '.join(missing)}{hint}"
        )


@dataclass
class Options:
    """What holds for a whole import, bodies included, and what it collects."""

    widened: bool = False
    max_iterations: int = 1_000_000
    references: list[str] = field(default_factory=list)


class Importer:
    """The import of one graph: the fx graph so far, the nodes of tensors, the parameters of weights.

    Parameters
    ----------
    program : Program
        The model.
    scope : Scope
        The graph: the main one, or an operator's body.
    parent : Importer, optional
        The import of the graph around a body.
    options : Options
        What the whole import shares.

    Attributes
    ----------
    weights : Weights
        The parameters, buffers and submodules of this graph's network.
    captured : dict of str to fx.Node
        The tensors of the graph around that this one reads, each a placeholder.
    """

    def __init__(
        self, program: Program, scope: Scope, parent: Importer | None = None, options: Options | None = None
    ) -> None:
        self.program = program
        self.scope = scope
        self.parent = parent
        self.options: Options = options or (parent.options if parent is not None else Options())
        self.constants: Constants = program.constants if parent is None else Constants(scope, parent.constants)
        self.sizes = program.sizes if parent is None else Sizes(scope, self.constants)
        self.graph = fx.Graph()
        self.captured: dict[str, fx.Node] = {}
        self._paths = Paths(scope.operators, blocks_of(program.model) if parent is None else None)
        self.weights: Weights = Weights(
            scope, self.constants, self.graph, self._paths, widened=self.options.widened,
            around=None if parent is None else parent.weights,
        )  # fmt: skip
        self._nodes: dict[str, fx.Node] = {}
        self._size_nodes: dict[Item, fx.Node] = {}
        self._absorbed: set[int] = set()
        self._taken: set[str] = set()
        self._makers: dict[str, int] = {}
        self._readers: dict[str, list[int]] = defaultdict(list)
        for position, operator in enumerate(scope.operators):
            for name in consumed(operator):
                self._readers[name].append(position)
            self._makers.update(dict.fromkeys(operator.output, position))

    def run(self) -> fx.GraphModule:
        """Convert every operator and return the network."""
        for name in self.scope.inputs:
            node = self.graph.placeholder(_identifier(name, self._taken))
            self._bind(name, node)
            kind = self.scope.types.get(name)
            if self.options.widened and kind is not None and kind.dtype is not None and kind.dtype.name in HALF:
                self._nodes[name] = self.graph.call_method("float", (node,))
        operators = [
            Operator(proto, position, self.program.opset_of(proto), self)
            for position, proto in enumerate(self.scope.operators)
            if not self.constants.folds(proto) and not all(name in self.sizes for name in proto.output)
        ]
        patterns = self._find_patterns(operators)
        for operator in operators:
            if operator.position in patterns:
                rule, found = patterns[operator.position]
                self._bind(operator.proto.output[0], rule.convert(operator, found))
            elif operator.position not in self._absorbed:
                self._convert(operator)
        results = tuple(self.node(name) for name in self.scope.outputs)
        whole = self.parent is not None or len(results) != 1
        self.graph.output(results if whole else results[0])
        self.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output", "call_module"))
        self.graph.lint()
        return Network(self.weights.root, self.graph, "GraphModule")

    def _find_patterns(self, operators: Sequence[Operator]) -> dict[int, tuple[Rule, Found]]:
        """Return the patterns by the positions of their roots; the operators inside them are absorbed."""
        patterns: dict[int, tuple[Rule, Found]] = {}
        for operator in reversed(operators):
            if operator.position in self._absorbed:
                continue
            match = find_pattern(operator)
            if match is not None:
                patterns[operator.position] = match
                self._absorbed |= match[1].inside - {operator.position}
        return patterns

    def _convert(self, operator: Operator) -> None:
        converter = find(operator.proto.op_type, operator.proto.domain, operator.opset)
        made: fx.Node | tuple[fx.Node | None, ...]
        levels = self._levels(operator.proto)
        if converter is None or not (levels or self._holds_tensors(operator)):
            made = self._reference(operator)
        else:
            try:
                made = self._move(operator, converter, levels) if levels else converter(operator)
                operator.requires_no_other_attribute()
            except UnsupportedOperatorError:
                if not has_reference(operator.proto, operator.opset):
                    raise
                made = self._reference(operator)
        for name, node in zip(operator.proto.output, (made,) if isinstance(made, fx.Node) else made, strict=False):
            if name and node is not None:
                self._bind(name, node)

    def _levels(self, operator: NodeProto) -> dict[str, fx.Node]:
        """Return the levels of the quantized tensors that an operator moves."""
        if not moves(operator):
            return {}
        nodes = {name: self._nodes[name] for name in operator.input if name in self._nodes}
        return {name: levels_of(node) for name, node in nodes.items() if levels_of(node) is not node}

    def _move(self, operator: Operator, converter: Converter, levels: Mapping[str, fx.Node]) -> Outputs:
        """Let an operator that only moves integers move the levels that they are made from."""
        integers = {name: self._nodes[name] for name in levels}
        self._nodes.update(levels)
        try:
            made = converter(operator)
        finally:
            self._nodes.update(integers)
        if operator.type == "Cast":
            return made
        dtype = next(iter(integers.values())).args[1]
        nodes = (made,) if isinstance(made, fx.Node) else made
        return tuple(None if node is None else self.graph.call_function(as_integers, (node, dtype)) for node in nodes)

    def _holds_tensors(self, operator: Operator) -> bool:
        """Whether PyTorch has the types of an operator's inputs and outputs, or the operator only hands them on."""
        if operator.type in HANDING_ON or operator.proto.domain in FOREIGN:
            return True
        for name in (*operator.proto.input, *operator.proto.output):
            kind = self.scope.types.get(name)
            if name and kind is not None and kind.dtype is not None and not has_tensor(kind.dtype):
                return False
        return True

    def _reference(self, operator: Operator) -> fx.Node | tuple[fx.Node, ...]:
        """Run an operator through onnx's reference implementation."""
        proto = operator.proto
        given = {name: self.constants.value(name) for name in proto.input if name and name in self.constants}
        module = Reference(proto, self.scope.opset_imports, given)
        self.options.references.append(f"'{proto.name or proto.output[0]}' ({proto.op_type})")
        computed = [self.node(name) for name in dict.fromkeys(proto.input) if name and name not in given]
        node = self.call_module(operator, module, computed, {})
        n = sum(bool(name) for name in proto.output)
        if n == 1:
            return node
        positions = {index: i for i, index in enumerate(i for i, name in enumerate(proto.output) if name)}
        return tuple(
            self.graph.call_function(getitem, (node, positions[index])) if index in positions else node
            for index in range(len(proto.output))
        )

    def _bind(self, tensor: str, node: fx.Node) -> None:
        self._nodes[tensor] = node
        node.meta.setdefault("tensor", tensor)

    # -- what converters ask, through Operator

    def n_readers(self, tensor: str) -> int:
        """Return how often a tensor is read, graph outputs included."""
        return len(self._readers[tensor]) + (tensor in self.scope.outputs)

    def sole_reader(self, tensor: str) -> Operator | None:
        """Return the operator that alone reads a tensor, if there is one."""
        readers = self._readers[tensor]
        if len(readers) != 1 or tensor in self.scope.outputs:
            return None
        proto = self.scope.operators[readers[0]]
        if tensor not in proto.input:  # a body captures it
            return None
        return Operator(proto, readers[0], self.program.opset_of(proto), self)

    def maker(self, tensor: str) -> Operator | None:
        """Return the operator of this graph that makes a tensor, if there is one."""
        position = self._makers.get(tensor)
        if position is None:
            return None
        proto = self.scope.operators[position]
        return Operator(proto, position, self.program.opset_of(proto), self)

    def read_only_by(self, tensor: str, positions: set[int]) -> bool:
        """Whether all readers of a tensor are among some operators."""
        return tensor not in self.scope.outputs and positions.issuperset(self._readers[tensor])

    def absorb(self, operator: Operator, node: fx.Node) -> None:
        """Let a node stand for an operator's output; the operator is not converted any more."""
        self._absorbed.add(operator.position)
        self._bind(operator.proto.output[0], node)

    def node(self, tensor: str) -> fx.Node:
        """Return the node of a tensor; a constant becomes a parameter or a buffer, an outer tensor a placeholder."""
        if tensor not in self._nodes:
            if tensor in self.constants:
                self._nodes[tensor] = self.weights.node(tensor)
            elif tensor in self.sizes:
                known = self.sizes.get(tensor)
                assert known is not None
                self._bind(tensor, self._tensor_of(known))
            else:
                self._capture(tensor)
        return self._nodes[tensor]

    def _capture(self, tensor: str) -> None:
        if self.parent is None:
            raise UnsupportedOperatorError(f"nothing makes tensor '{tensor}'")
        last = [node for node in self.graph.nodes if node.op == "placeholder"]
        with self.graph.inserting_after(last[-1]) if last else self.graph.inserting_before():
            node = self.graph.placeholder(_identifier(tensor, self._taken))
        self.captured[tensor] = node
        self._bind(tensor, node)

    def size(self, item: Item) -> int | fx.Node:
        """Return a size as a number, or as a node that computes it."""
        if isinstance(item, int):
            return item
        if item not in self._size_nodes:
            match item:
                case Dim(tensor, axis):
                    node = self.graph.call_method("size", (self.node(tensor), axis))
                case Expr(function, args):
                    node = self.graph.call_function(function, tuple(self.size(arg) for arg in args))
            self._size_nodes[item] = node
        return self._size_nodes[item]

    def _tensor_of(self, known: Ints) -> fx.Node:
        """Return the node of a tensor that holds sizes."""
        items = [self.size(item) for item in known.items]
        like = next((self.node(dim.tensor) for dim in _dims(known.items)), None)
        numbers = items if known.array.ndim else items[0]
        made = self.graph.call_function(as_tensor, (numbers, torch_dtype(known.dtype), like))
        return made if known.array.ndim < 2 else self.graph.call_method("reshape", (made, known.array.shape))

    def neighbour(self, tensor: str) -> fx.Node | None:
        """Return a node on whose device a tensor is: its own, or that which its sizes are of; None for constants."""
        if tensor in self.sizes:
            known = self.sizes.get(tensor)
            assert known is not None
            return next((self.node(dim.tensor) for dim in _dims(known.items)), None)
        return None if tensor in self.constants else self.node(tensor)

    def torch_dtype(self, dtype: np.dtype[Any]) -> torch.dtype | None:
        """Return PyTorch's name of an element type as the network has it, or None where it has none."""
        if not has_tensor(dtype):
            return None
        return torch.float32 if self.options.widened and dtype.name in HALF else torch_dtype(dtype)

    def dtype_of(self, code: int) -> torch.dtype | None:
        """Return PyTorch's name of an ONNX element type as the network has it, or None where it has none."""
        dtype = numpy_dtype(code)
        return None if dtype is None else self.torch_dtype(dtype)

    def call_module(
        self, operator: Operator, module: nn.Module, args: Sequence[Any], weights: Mapping[str, Weight | None]
    ) -> fx.Node:
        """Place a submodule with its weights and call it."""
        path = self.weights.place(operator.proto, operator.position, module, weights)
        return self.graph.call_module(path, tuple(args))

    def call_bodies(
        self, operator: Operator, build: Callable[..., nn.Module], bodies: Sequence[GraphProto], args: Sequence[Any]
    ) -> fx.Node:
        """Place a module that owns an operator's bodies; it is called with ``args`` and then all captured tensors."""
        imports = [Importer(self.program, self.program.body(body, self.scope), self) for body in bodies]
        nets = [importer.run() for importer in imports]
        captured = [[self.node(name) for name in importer.captured] for importer in imports]
        everything = list(dict.fromkeys(node for nodes in captured for node in nodes))
        places = [[everything.index(node) for node in nodes] for nodes in captured]
        module = build(nets, places)
        path = self.weights.place(operator.proto, operator.position, module, {})
        for index, importer in enumerate(imports):
            self.weights.bindings += [
                replace(binding, path=f"{path}.bodies.{index}.{binding.path}") for binding in importer.weights.bindings
            ]
        return self.graph.call_module(path, (*args, *everything))


FOREIGN = frozenset({"ai.onnx.ml", "com.microsoft"})
"""Domains whose converters know strings, or numbers below eight bits."""

HANDING_ON = frozenset({
    "DequantizeLinear", "Identity", "If", "Loop", "Scan", "Optional", "OptionalGetElement", "OptionalHasElement",
    "QuantizeLinear", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert",
    "SequenceLength", "Shape", "Size",
})  # fmt: skip
"""Operators that do not look into the values they are given, or whose converters know types that PyTorch has not."""


def as_tensor(numbers: int | list[int], dtype: torch.dtype, like: Tensor | None) -> Tensor:
    """Return sizes as a tensor, beside the tensor that they are sizes of."""
    return torch.tensor(numbers, dtype=dtype, device=None if like is None else like.device)


def _dims(items: Sequence[Item]) -> list[Dim]:
    found: list[Dim] = []
    for item in items:
        match item:
            case Dim():
                found.append(item)
            case Expr(_, args):
                found += _dims(args)
    return found


RESERVED = frozenset({*dir(builtins), "self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"})
"""Names that generated code uses for itself."""


def _identifier(name: str, taken: set[str]) -> str:
    """Return a Python identifier for a graph input."""
    plain = re.sub(r"\W", "_", name)
    if not plain.isidentifier() or keyword.iskeyword(plain) or plain in RESERVED:
        plain = f"input_{plain}"
    unique, n = plain, 0
    while unique in taken:
        n += 1
        unique = f"{plain}_{n}"
    taken.add(unique)
    return unique
