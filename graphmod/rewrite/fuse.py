"""Fusing operators that can be one, exactly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from graphmod.errors import RefusedError
from graphmod.graph import find
from graphmod.model import Model
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.fusions import FUSIONS, Bench, Fusion, Plan
from graphmod.rewrite.fusions import kinds as known_kinds
from graphmod.rewrite.verb import verb

OPSET = 7
"""The oldest operator set whose operators are read: before it Add and Mul broadcast by attributes."""


@dataclass(frozen=True)
class Candidate:
    """Operators that could be one, or nearly could.

    Parameters
    ----------
    operator : str
        The operator at which it was found (:attr:`Model.operator_names`).
    kind : str
        The kind of fusion.
    reason : str
        Why it cannot be done; "" if it can.
    """

    operator: str
    kind: str
    reason: str


@verb(exact=True, example="graphmod fuse resnet.onnx --out fused.onnx")
def fuse(model: Model, where: str = "*", kinds: list[str] | None = None) -> Model:
    """Fuse operators that can be one, until nothing changes; the result computes the same.

    The kinds: ``batchnorm`` and ``scale`` (BatchNormalization; Mul, Div, Add, Sub by constants) into the linear map
    before or after them; ``chain``, two linear maps in a row into one where that is no more work; ``sum`` and
    ``concat``, linear maps of one tensor side by side into one (RepVGG); ``gemm``, MatMul + Add; ``pad``, Pad into Conv
    and AveragePool; ``layout``, Transposes and Reshapes in a row; ``cast``, Casts to a wider type and back;
    ``identity``, operators that change nothing; ``unfused``, of ``batchnorm`` what :func:`graphmod.unfuse` put in.
    Values are computed in float64 and stored in the weight's type. Tensors that are outputs, or that something else
    reads, stay.

    Parameters
    ----------
    model : Model
    where : str
        A selector of operators; a fusion needs one of them.
    kinds : list of str, optional
        The kinds of fusion, all if None.

    Returns
    -------
    Model
        The model itself if nothing fuses; :func:`graphmod.rewrite.why_not` says why.

    Raises
    ------
    RefusedError
        There is no such kind, the selector is malformed, or the opset is below 7.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> gm.fuse(m) is m  # its exporter has fused every BatchNormalization
    True
    """
    fusions = _chosen(model, kinds)
    bench = Bench(Draft(model))
    if not _fuse(bench, fusions, _selected(model, bench, where)):
        return model
    return bench.draft.finish()


def candidates(model: Model, where: str = "*", kinds: list[str] | None = None) -> list[Candidate]:
    """Return what could be fused in a model as it is, and what nearly could, without changing anything.

    Parameters
    ----------
    model : Model
    where, kinds
        As in :func:`fuse`; ``where`` picks the operators that are looked at.

    Raises
    ------
    RefusedError
        As :func:`fuse`.

    Examples
    --------
    >>> import graphmod as gm
    >>> candidates(gm.load(gm.demo.model_path()))
    []
    """
    fusions = _chosen(model, kinds)
    bench = Bench(Draft(model))
    chosen = _selected(model, bench, where)
    found = []
    for name in model.operator_names:
        operator = bench.draft.operator(name)
        for one in _fusions_of(operator, fusions) if chosen is None or id(operator) in chosen else ():
            outcome = one.look(bench, operator)
            if outcome is not None:
                found.append(Candidate(name, one.kind, "" if isinstance(outcome, Plan) else outcome))
    return found


def why_not(model: Model, where: str = "*", kinds: list[str] | None = None) -> list[Candidate]:
    """Return what nearly fuses, each with its reason.

    Parameters
    ----------
    model : Model
    where, kinds
        As in :func:`fuse`; ``where`` picks the operators that are looked at.

    Raises
    ------
    RefusedError
        As :func:`fuse`.

    Examples
    --------
    >>> import graphmod as gm
    >>> why_not(gm.load(gm.demo.model_path()))
    []
    """
    return [one for one in candidates(model, where, kinds) if one.reason]


def _chosen(model: Model, kinds: Sequence[str] | None) -> dict[str, list[Fusion]]:
    """Return the fusions of some kinds by the types of operator that they look at."""
    unknown = [kind for kind in kinds or () if kind not in known_kinds()]
    if unknown:
        raise RefusedError(f"there is no kind of fusion '{unknown[0]}'; there are {', '.join(known_kinds())}")
    if model.opset < OPSET:
        raise RefusedError(
            f"the model uses opset {model.opset}, and operators are fused from {OPSET} on; convert it with "
            "onnx.version_converter"
        )
    by_type: defaultdict[str, list[Fusion]] = defaultdict(list)
    for one in FUSIONS:
        for op_type in one.op_types if kinds is None or one.kind in kinds else ():
            by_type[op_type].append(one)
    return by_type


def _selected(model: Model, bench: Bench, where: str) -> dict[int, NodeProto] | None:
    """Return the operators that a selector picks, by identity; None for all."""
    if where == "*":
        return None
    names = dict.fromkeys(name for match in find(model, where) for name in match.operators)
    return {id(own): own for own in map(bench.draft.operator, names)}


def _fusions_of(operator: NodeProto, fusions: dict[str, list[Fusion]]) -> Iterable[Fusion]:
    return fusions.get(operator.op_type, ()) if operator.domain in ("", "ai.onnx") else ()


def _fuse(bench: Bench, fusions: dict[str, list[Fusion]], chosen: dict[int, NodeProto] | None) -> int:
    """Fuse from operator to operator, then look again at what fusions changed, and at its neighbours.

    These are gathered until all were looked at: one may be a neighbour of many.
    """
    pending = bench.draft.operators
    n_fused = 0
    while pending:
        touched: dict[int, NodeProto] = {}
        for operator in pending:
            changed = _fuse_at(bench, operator, fusions, chosen) if operator in bench.draft else None
            if changed is not None:
                n_fused += 1
                touched.update((id(one), one) for one in changed)
                if chosen is not None:
                    chosen.update((id(one), one) for one in changed)
        touched.update((id(one), one) for one in [*_neighbours(bench, touched.values())])
        pending = [one for one in touched.values() if one in bench.draft]
    return n_fused


def _fuse_at(
    bench: Bench, operator: NodeProto, fusions: dict[str, list[Fusion]], chosen: dict[int, NodeProto] | None
) -> list[NodeProto] | None:
    """Carry out the first fusion that fits an operator, and return what it changed."""
    for one in _fusions_of(operator, fusions):
        plan = one.look(bench, operator)
        if isinstance(plan, Plan) and (chosen is None or any(id(part) in chosen for part in plan.operators)):
            try:
                return plan.apply()
            except RefusedError:  # values would overflow: the next kind may do
                continue
    return None


def _neighbours(bench: Bench, operators: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for operator in operators:
        for name in operator.input:
            maker = bench.draft.producer(name)
            if maker is not None:
                yield maker
        for name in operator.output:
            yield from bench.draft.readers(name)
