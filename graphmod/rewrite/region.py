"""A region with one entry and one exit, and how other operators take its place."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from graphmod.errors import InvalidModelError, RefusedError
from graphmod.graph import Block, activations, blocks, carries_activations, data_flow, find, primary_input
from graphmod.graph.boundaries import dominators
from graphmod.model import Model, consumed
from graphmod.rewrite.draft import Draft, shared_scope

Place = str | tuple[str, str] | Block
"""What names a region: a block, its path, an operator's name, a pair of tensors, or a selector."""


@dataclass(frozen=True)
class Region:
    """All that lies between two tensors.

    Parameters
    ----------
    entry, exit : str
        Names of tensors: every path of data from the model's input to ``exit`` runs through ``entry``.
    """

    entry: str
    exit: str


def find_region(model: Model, place: Place) -> Region:
    """Return the one region that a user named.

    Parameters
    ----------
    model : Model
    place : Block, str or (str, str)
        A block, a block's path, an operator's name, the tensors before and after the region (``"before..after"``
        too), or a selector that one place of the graph matches.

    Raises
    ------
    RefusedError
        There is no such block, operator or tensor, or several; or activations reach the exit past the entry.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> find_region(m, "layer1.3") == find_region(m, gm.blocks(m)["layer1.3"])
    True
    """
    found = find_regions(model, place)
    if len(found) > 1:
        raise RefusedError(f"'{place}' matches {len(found)} places, and one is needed; 'graphmod find' lists them")
    return found[0]


def find_regions(model: Model, place: Place) -> list[Region]:
    """Return all the regions that a user named: one, unless a selector matches several places.

    Parameters
    ----------
    model : Model
    place : Block, str or (str, str)
        As in :func:`find_region`.

    Raises
    ------
    RefusedError
        There is no such block, operator or tensor; or activations reach an exit past its entry.

    Examples
    --------
    >>> import graphmod as gm
    >>> len(find_regions(gm.load(gm.demo.model_path()), "Conv > Relu"))
    22
    """
    if isinstance(place, Block):
        return [_between(model, place.entry, place.exit)]
    if not isinstance(place, str):
        if not isinstance(place, Sequence) or len(place) != 2:
            raise RefusedError(f"{place!r} is no place: a block, a path, a name, a selector or a pair of tensors is")
        return [_between(model, *place)]
    block = next((block for block in _blocks(model) if block.path == place and block.path), None)
    if block is not None:
        return [_between(model, block.entry, block.exit)]
    if place in model.position:
        return [_around(model, [place], carrying_tensors(model))]
    entry, dots, exit_ = place.partition("..")
    if dots and {entry, exit_} <= model.tensors.keys():
        return [_between(model, entry, exit_)]
    return _selected(model, place)


def _selected(model: Model, selector: str) -> list[Region]:
    try:
        matches = find(model, selector)
    except RefusedError as error:
        raise RefusedError(f"{_nothing(model, selector)}; and as a selector: {error}") from error
    if not matches:
        raise RefusedError(
            f"{_nothing(model, selector)}; as a selector it matches no operator ('graphmod find --explain' says why)"
        )
    carrying = carrying_tensors(model)
    return [_around(model, match.operators, carrying) for match in matches]


def _nothing(model: Model, name: str) -> str:
    tops = ", ".join(block.path for block in _blocks(model) if block.path and "." not in block.path) or "none"
    return f"there is no block or operator '{name}'; blocks at the top are {tops}"


def _blocks(model: Model) -> Iterator[Block]:
    """Yield the blocks of a model, none where it has no trunk."""
    try:
        yield from blocks(model).walk()
    except InvalidModelError:
        return


def _between(model: Model, entry: str, exit_: str) -> Region:
    for name in (entry, exit_):
        if name not in model.producer and name not in model.inputs:
            raise RefusedError(f"no input and no operator's output is named '{name}'")
    if entry == exit_:
        raise RefusedError(f"the region from '{entry}' to itself is empty")
    source = _source(model, exit_)
    if entry != source and entry not in dominators(data_flow(model, source, exit_), source, exit_):
        if carries_activations(model, exit_, entry):
            raise RefusedError(f"'{exit_}' comes before '{entry}', not after it; name them the other way round")
        raise RefusedError(
            f"activations reach '{exit_}' past '{entry}'; take a region that begins where all paths meet "
            "('graphmod blocks' lists them)"
        )
    return Region(entry, exit_)


def _source(model: Model, exit_: str) -> str:
    """Return the input whose activations reach a tensor: the primary one if it does."""
    if exit_ in model.inputs:
        raise RefusedError(f"activations begin at '{exit_}', so no region ends there")
    found = next((name for name in _sources(model) if carries_activations(model, name, exit_)), None)
    if found is None:
        raise RefusedError(f"no activations reach tensor '{exit_}'")
    return found


def _sources(model: Model) -> list[str]:
    """Return the inputs, the primary one first if there is one."""
    try:
        primary = primary_input(model)
    except InvalidModelError:
        return list(model.inputs)
    return sorted(model.inputs, key=lambda name: name != primary)


def carrying_tensors(model: Model) -> Container[str]:
    """Return the tensors that carry data: activations, or all that is no constant where there is no trunk."""
    try:
        return activations(model, primary_input(model))
    except InvalidModelError:
        return (model.producer.keys() | model.inputs.keys()) - model.constants.keys()


def _around(model: Model, names: Sequence[str], carrying: Container[str]) -> Region:
    """Return the region of operators that follow each other."""
    places = [model.position[name] for name in names]
    made = {tensor for place in places for tensor in model.operators[place].output}
    read = dict.fromkeys(tensor for place in places for tensor in model.reads[place])
    entries = [tensor for tensor in read if tensor in carrying and tensor not in made]
    beside = [
        tensor for tensor in read if tensor not in carrying and tensor not in made and _from_inputs(model, tensor)
    ]
    lost = [tensor for tensor in beside if set(model.readers[tensor]) <= set(places)]
    if not entries:  # another input's part of the network
        entries, lost = beside, []
    if len(entries) != 1 or lost:
        joined = [*entries, *lost]
        told = " > ".join(
            f"{model.operators[place].op_type} '{name}'" for place, name in zip(places, names, strict=True)
        )
        raise RefusedError(
            f"{told} joins {len(joined)} tensors of activations ({', '.join(joined) or 'none'}); name the two "
            "tensors to connect instead"
        )
    return Region(entries[0], next(name for name in model.operators[places[-1]].output if name))


def _from_inputs(model: Model, tensor: str) -> bool:
    """Whether a float tensor carries activations of any input."""
    kind = model.tensors.get(tensor)
    known = kind is not None and kind.is_float
    return known and any(carries_activations(model, name, tensor) for name in model.inputs)


def bridge(draft: Draft, region: Region) -> None:
    """Connect a region's exit to its entry; what only the region needed goes when the draft is finished.

    Raises
    ------
    RefusedError
        The exit is a graph output, and its operator makes other tensors that are needed elsewhere.
    """
    if region.exit in draft.outputs:
        _make_instead(draft, region, [NodeProto(op_type="Identity", input=[region.entry], output=[region.exit])])
    else:
        draft.redirect(region.exit, region.entry)


def put_in_place(
    model: Model,
    region: Region,
    operators: Sequence[NodeProto],
    initializers: Sequence[TensorProto] = (),
) -> Model:
    """Return the model with other operators in a region's place.

    The operators read ``region.entry`` and make ``region.exit``; none at all connect the two tensors directly. What
    only the region needed is dropped: its operators, weights and type annotations, and nothing else.

    Raises
    ------
    RefusedError
        The operator at the exit makes other tensors that are needed elsewhere.
    """
    draft = Draft(model)
    if operators:
        scope = shared_scope(operators_between(model, region))
        _make_instead(draft, region, [NodeProto(op_type="Identity", input=[region.entry], output=[region.exit])])
        draft.prune()  # so that names of an earlier replacement are free again
        for tensor in initializers:
            draft.add_initializer(tensor)
        _make_instead(draft, region, operators, scope)
    else:
        bridge(draft, region)
    return draft.finish()


def _make_instead(draft: Draft, region: Region, operators: Sequence[NodeProto], scope: str | None = None) -> None:
    """Let other operators make the exit."""
    old = sole_producer(draft, region.exit)
    draft.add(operators, old, scope)
    draft.discard(old)


def sole_producer(draft: Draft, tensor: str) -> NodeProto:
    """Return the operator that makes a tensor and nothing else that is needed.

    Raises
    ------
    RefusedError
        There is none, or it makes other tensors that operators read or that are outputs.
    """
    old = draft.producer(tensor)
    if old is None:
        raise RefusedError(f"no operator makes tensor '{tensor}'")
    outputs = set(draft.outputs)
    others = [name for name in old.output if name and name != tensor and (draft.readers(name) or name in outputs)]
    if others:
        raise RefusedError(f"operator '{old.name}' also makes '{min(others)}', which is needed outside of the region")
    return old


def operators_between(model: Model, region: Region) -> list[NodeProto]:
    """Return the operators on paths of data from a region's entry to its exit."""
    flow = data_flow(model, region.entry, region.exit)
    inside = {model.position[name] for _, _, name in flow.edges(data="operator")}
    return [model.operators[place] for place in sorted(inside)]


def inside(draft: Draft, region: Region) -> list[NodeProto]:
    """Return the operators that the exit needs and that need the entry, shape arithmetic included, in the file's order.

    What the exit needs besides is context: it is there whatever the entry is.
    """
    after: dict[int, NodeProto] = {}
    pending = [region.entry]
    while pending:
        for operator in draft.readers(pending.pop()):
            if id(operator) not in after:
                after[id(operator)] = operator
                pending.extend(name for name in operator.output if name)
    found: set[int] = set()
    pending = [region.exit]
    while pending:
        maker = draft.producer(pending.pop())
        if maker is not None and id(maker) in after and id(maker) not in found:
            found.add(id(maker))
            pending.extend(name for name in consumed(maker) if name != region.entry)
    return [operator for operator in draft.operators if id(operator) in found]


def check_passes_through(model: Model, region: Region, hint: str = "") -> None:
    """Raise RefusedError, with a hint at its end, unless a region's exit is known to have the type of its entry."""
    entry, exit_ = model.tensors.get(region.entry), model.tensors.get(region.exit)
    if entry is None or exit_ is None or entry.shape is None or exit_.shape is None:
        raise RefusedError(f"the shapes of '{region.entry}' and '{region.exit}' are not both known")
    if entry != exit_ or None in entry.shape:
        told = f"'{region.entry}' is {entry} and '{region.exit}' is {exit_}"
        raise RefusedError(f"{told}: the region changes the type{hint}")
