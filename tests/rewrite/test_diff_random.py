"""Differences planted into random graphs are found, and nothing else is."""

from __future__ import annotations

import numpy as np
from disguise import disguise
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, helper, numpy_helper
from random_graphs import RandomGraph, random_graphs

import graphmod as gm
from graphmod.model import consumed

SOME = settings(max_examples=40, deadline=None)


def diff(a: ModelProto, b: ModelProto) -> gm.Difference:
    return gm.diff(gm.load(a), gm.load(b))


def copied(proto: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def only(found: gm.Difference, *kinds: str) -> bool:
    """Whether the difference has entries of these kinds and of no others that count."""
    counted = ("added", "removed", "changed", "rewired", "weights", "signature", "opsets", "functions")
    return {kind for kind in counted if getattr(found, kind)} == set(kinds)


def readers(proto: ModelProto, tensor: str) -> set[tuple[str, str]]:
    """Return the operators and slots, and the outputs, at which a tensor is read; bodies' own operators included."""
    found = {(value.name, "0") for value in proto.graph.output if value.name == tensor}
    pending = [("", operator) for operator in proto.graph.node]
    while pending:
        path, operator = pending.pop()
        name = f"{path}{operator.name}"
        found |= {(name, str(slot)) for slot, read in enumerate(operator.input) if read == tensor}
        for attribute in operator.attribute:
            if attribute.HasField("g"):
                inner = f"{name}/{attribute.name}/"
                for number, body in enumerate(attribute.g.node):
                    named = NodeProto()
                    named.CopyFrom(body)
                    named.name = body.name or f"{body.op_type}_{number}"
                    pending.append((inner, named))
    return found


def redirect(proto: ModelProto, old: str, new: str, without: NodeProto | None = None) -> None:
    pending = [operator for operator in proto.graph.node if operator is not without]
    while pending:
        operator = pending.pop()
        for slot, read in enumerate(operator.input):
            if read == old:
                operator.input[slot] = new
        pending += [body for a in operator.attribute if a.HasField("g") for body in a.g.node]


@SOME
@given(random_graphs(), st.integers(0, 99))
def test_a_model_in_disguise_is_the_same(graph: RandomGraph, seed: int):
    hidden = disguise(graph.proto, seed)
    assert diff(graph.proto, graph.proto).as_dict() == diff(hidden, hidden).as_dict()
    found = diff(graph.proto, hidden)
    assert found.same, found
    assert any("operators are renamed" in note for note in found.notes)


@SOME
@given(random_graphs(), st.data(), st.booleans())
def test_an_inserted_operator(graph: RandomGraph, data: st.DataObject, hidden: bool):
    made = [name for op in graph.proto.graph.node for name in op.output if readers(graph.proto, name)]
    tensor = data.draw(st.sampled_from([name for name in made if name != "out"] or ["x"]))
    assume(tensor != "x")
    edited = copied(graph.proto)
    expected = readers(edited, tensor)
    redirect(edited, tensor, "inserted")
    place = next(i for i, op in enumerate(edited.graph.node) if tensor in op.output)
    edited.graph.node.insert(place + 1, helper.make_node("HardSwish", [tensor], ["inserted"], "planted"))
    found = diff(graph.proto, disguise(edited) if hidden else edited)
    assert only(found, "added", "rewired"), found
    assert [op.op_type for op in found.added] == ["HardSwish"]
    assert {(change.name, change.slot) for change in found.rewired} == expected
    assert hidden or {(change.before, change.after) for change in found.rewired} == {(tensor, "inserted")}


@SOME
@given(random_graphs(), st.data(), st.booleans())
def test_a_removed_operator(graph: RandomGraph, data: st.DataObject, hidden: bool):
    kinds = ("Tanh", "Sigmoid", "Neg", "MatMul")
    chosen = [op.name for op in graph.proto.graph.node if op.op_type in kinds and op.output[0] != "out"]
    assume(chosen)
    name = data.draw(st.sampled_from(chosen))
    edited = copied(graph.proto)
    place = next(i for i, op in enumerate(edited.graph.node) if op.name == name)
    gone = copied(graph.proto).graph.node[place]
    expected = readers(edited, gone.output[0])
    redirect(edited, gone.output[0], gone.input[0])
    del edited.graph.node[place]
    found = diff(graph.proto, disguise(edited) if hidden else edited)
    assert only(found, "removed", *(["rewired"] if expected else [])), found
    assert [op.op_type for op in found.removed] == [gone.op_type]
    if not hidden:
        assert found.removed[0].name == name
        assert {(change.name, change.slot) for change in found.rewired} == expected


@SOME
@given(random_graphs(), st.data(), st.booleans())
def test_a_changed_attribute(graph: RandomGraph, data: st.DataObject, hidden: bool):
    edited = copied(graph.proto)
    operator = data.draw(st.sampled_from(list(edited.graph.node)))
    name = operator.name
    operator.attribute.append(helper.make_attribute("planted", 0.5))
    found = diff(graph.proto, disguise(edited) if hidden else edited)
    assert only(found, "changed"), found
    (change,) = found.changed
    assert change.attributes == {"planted": (None, 0.5)}
    twins = [op for op in graph.proto.graph.node if op.op_type == operator.op_type]
    assert change.name == name or (hidden and len(twins) > 1)


def formula(proto: ModelProto, tensor: str) -> tuple:
    """Return how a tensor is computed: operators that do the same to the same make one value under two names."""
    maker = next((op for op in proto.graph.node if tensor in op.output), None)
    if maker is None:
        return (tensor,)
    attributes = sorted(one.SerializeToString() for one in maker.attribute)
    return (maker.op_type, attributes, list(maker.output).index(tensor), *(formula(proto, one) for one in maker.input))


@SOME
@given(random_graphs(), st.data())
def test_a_rewired_operator(graph: RandomGraph, data: st.DataObject):
    edited = copied(graph.proto)
    numbers = [i for i, op in enumerate(edited.graph.node) if op.op_type != "Shape"]
    number = data.draw(st.sampled_from(numbers))
    operator = edited.graph.node[number]
    made = {name for op in edited.graph.node[:number] for name in op.output} | {"x", "side"}
    slots = [i for i, name in enumerate(operator.input) if name in made]
    assume(slots)
    slot = data.draw(st.sampled_from(slots))
    before = operator.input[slot]
    after = data.draw(st.sampled_from(sorted(made - {before}) or ["x"]))
    assume(after != before)
    assume(formula(graph.proto, before) != formula(graph.proto, after))  # else one may be the other by another name
    operator.input[slot] = after
    found = diff(graph.proto, edited)
    assert only(found, "rewired"), found
    assert [(r.name, r.slot, r.before, r.after) for r in found.rewired] == [(operator.name, str(slot), before, after)]


@SOME
@given(random_graphs(), st.data(), st.booleans())
def test_a_changed_weight(graph: RandomGraph, data: st.DataObject, hidden: bool):
    edited = copied(graph.proto)
    tensor = data.draw(st.sampled_from([t for t in edited.graph.initializer if t.data_type == 1] or [None]))
    assume(tensor is not None)
    old = numpy_helper.to_array(tensor)
    new = old + np.random.default_rng(0).normal(size=old.shape).astype(np.float32)
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(new, name))
    read = [op.name for op in graph.proto.graph.node if name in set(consumed(op))]
    found = diff(graph.proto, disguise(edited) if hidden else edited)
    assert only(found, "weights"), found
    (change,) = found.weights
    assert (change.name, list(change.operators)) == (name, read)
    exact = new.astype(np.float64) - old
    np.testing.assert_allclose(change.l2, np.linalg.norm(exact), rtol=1e-12)
    np.testing.assert_allclose(
        change.relative, np.linalg.norm(exact) / np.linalg.norm(old.astype(np.float64)), rtol=1e-12
    )
    assert change.largest == np.abs(exact).max()


@SOME
@given(random_graphs())
def test_another_opset(graph: RandomGraph):
    edited = copied(graph.proto)
    edited.opset_import[0].version = 18
    found = diff(graph.proto, disguise(edited))
    assert only(found, "opsets"), found
    assert found.opsets == {"ai.onnx": (17, 18)}


@SOME
@given(random_graphs(), random_graphs(), st.booleans())
def test_any_two_models_add_up(one: RandomGraph, other: RandomGraph, hidden: bool):
    a, b = gm.load(one.proto), gm.load(disguise(other.proto) if hidden else other.proto)
    found = gm.diff(a, b)
    inner = [sum(1 for op in m.operators if op.op_type == "If") * 2 for m in (a, b)]  # one operator a branch
    kept = [len(m.operators) + n for m, n in zip((a, b), inner, strict=True)]
    assert kept[0] - len(found.removed) == kept[1] - len(found.added)
    if found.same:
        left, right = (m.run(one.feeds())["out"] for m in (a, b))
        np.testing.assert_allclose(left, right, rtol=1e-6)
