"""Removing random regions of random graphs, against an interpreter of a few lines that skips the region."""

import numpy as np
import onnx
import pytest
from handmade import model
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import graphmod as gm
from graphmod.model import RECORD

UNARY = {
    "Relu": lambda v: np.maximum(v, 0),
    "Tanh": np.tanh,
    "Sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "Neg": np.negative,
}


def weight(name):
    """Return a weight that its name decides, so that equal names are shared weights."""
    n_in, n_out, number = map(int, name[1:].split("_"))
    return np.random.default_rng([n_in, n_out, number]).normal(size=(n_in, n_out)).astype(np.float32) * 0.5


@st.composite
def programs(draw):
    """Draw steps (kind, inputs, outputs, parameter) on tensors of width 4 or 8, and the names of graph outputs."""
    widths, steps = {"x": 4}, []
    for number in range(draw(st.integers(2, 14))):
        names = list(widths)
        recent = st.sampled_from(names[-3:] if draw(st.booleans()) else names)
        a, b = draw(recent), draw(recent)
        kind = draw(st.sampled_from(["unary", "linear", "linear", "add", "concat", "split", "if"]))
        out = f"t{number}"
        if kind == "add" and widths[a] == widths[b]:
            steps.append(("add", (a, b), (out,), None))
            widths[out] = widths[a]
        elif kind == "concat" and widths[a] == widths[b] == 4:
            steps.append(("concat", (a, b), (out,), None))
            widths[out] = 8
        elif kind == "split" and widths[a] == 8:
            steps.append(("split", (a,), (out, f"{out}s"), None))
            widths[out] = widths[f"{out}s"] = 4
        elif kind == "if" and widths[a] == widths[b]:
            steps.append(("if", (a, b), (out,), draw(st.booleans())))
            widths[out] = widths[a]
        elif kind == "linear":
            width = draw(st.sampled_from([4, 4, 8]))
            steps.append(("linear", (a,), (out,), f"w{widths[a]}_{width}_{draw(st.integers(0, 2))}"))
            widths[out] = width
        else:
            steps.append(("unary", (a,), (out,), draw(st.sampled_from(list(UNARY)))))
            widths[out] = widths[a]
    last = steps[-1][2][0]
    extra = draw(st.lists(st.sampled_from(list(widths)[1:]), max_size=2))
    return steps, widths, list(dict.fromkeys([last, *extra]))


def interpret(steps, x, skipped=(None, None)):
    """Return all tensors; in the place of the second skipped tensor stands the first."""
    values = {"x": x}
    for kind, read, made, parameter in steps:
        a, b = values[read[0]], values[read[-1]]
        results = {
            "unary": lambda: (UNARY[parameter](a),),  # noqa: B023  # called at once
            "linear": lambda: (a @ weight(parameter),),  # noqa: B023  # called at once
            "add": lambda: (a + b,),  # noqa: B023  # called at once
            "concat": lambda: (np.concatenate([a, b], 1),),  # noqa: B023  # called at once
            "split": lambda: np.split(a, 2, 1),  # noqa: B023  # called at once
            "if": lambda: (a + np.tanh(b) if parameter else np.maximum(a, 0),),  # noqa: B023  # called at once
        }[kind]()
        values.update(zip(made, results, strict=True))
        if skipped[1] in made:
            values[skipped[1]] = values[skipped[0]]
    return values


def build(steps, widths, outputs):
    """Return the same program as a model with names, annotations and metadata everywhere."""
    operators, weights = [], {}
    for number, (kind, read, made, parameter) in enumerate(steps):
        name = f"op{number}"
        if kind == "unary":
            operators.append(helper.make_node(parameter, read, made, name=name))
        elif kind == "linear":
            weights[parameter] = weight(parameter)
            operators.append(helper.make_node("MatMul", [read[0], parameter], made, name=name))
        elif kind == "add":
            operators.append(helper.make_node("Add", read, made, name=name))
        elif kind == "concat":
            operators.append(helper.make_node("Concat", read, made, name=name, axis=1))
        elif kind == "split":
            weights["halves"] = np.array([4, 4])
            operators.append(helper.make_node("Split", [read[0], "halves"], made, name=name, axis=1))
        else:
            flag = f"flag{number}"
            weights[flag] = np.array(parameter)
            result = [helper.make_tensor_value_info(f"{name}_r", TensorProto.FLOAT, ["n", widths[read[0]]])]
            inner = [
                helper.make_node("Tanh", [read[1]], [f"{name}_h"]),
                helper.make_node("Add", [read[0], f"{name}_h"], [f"{name}_r"]),
            ]
            yes = helper.make_graph(inner, f"{name}_yes", [], result)
            no = helper.make_graph([helper.make_node("Relu", [read[0]], [f"{name}_r"])], f"{name}_no", [], result)
            operators.append(helper.make_node("If", [flag], made, name=name, then_branch=yes, else_branch=no))
    weights["unused"] = np.arange(3, dtype=np.float32)
    proto = model(operators, {"x": ["n", 4]}, {name: ["n", widths[name]] for name in outputs}, weights).proto()
    for number, operator in enumerate(proto.graph.node):
        operator.doc_string = f"doc {number}"
        entry = operator.metadata_props.add()
        entry.key, entry.value = "origin", f"line {number}"
    shown = [name for name in list(widths)[1:] if name not in outputs]
    proto.graph.value_info.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", widths[n]]) for n in shown)
    proto.producer_name, proto.doc_string, proto.graph.doc_string = "tests", "a model", "a graph"
    helper.set_model_props(proto, {"author": "someone"})
    return gm.load(proto)


def reaches(steps, avoided):
    """Return the tensors that data from x reaches without ``avoided``."""
    found = {"x"} - {avoided}
    for _, read, made, _ in steps:
        if found & set(read):
            found.update(set(made) - {avoided})
    return found


def needed(steps, outputs):
    live = set(outputs)
    for _, read, made, _ in reversed(list(steps)):
        if live & set(made):
            live.update(read)
    return live


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), st.data())
def test_a_region_of_a_random_graph(program, data):
    steps, widths, outputs = program
    names = list(widths)
    assume("x" in needed(steps, outputs))
    entry, exit_ = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
    if data.draw(st.integers(0, 3)):  # mostly regions that can go
        pairs = [
            (a, b)
            for i, b in enumerate(names)
            for a in names[:i]
            if widths[a] == widths[b] and b not in reaches(steps, a)
        ]
        assume(pairs)
        entry, exit_ = data.draw(st.sampled_from(pairs))
    before = build(steps, widths, outputs)
    content = before.proto().SerializeToString(deterministic=True)
    single_entry = exit_ not in reaches(steps, entry) and entry != exit_ and exit_ != "x"
    if not single_entry or widths[entry] != widths[exit_]:
        event("refused")
        with pytest.raises(gm.RefusedError):
            gm.remove(before, (entry, exit_))
        assert before.proto().SerializeToString(deterministic=True) == content
        return
    made_with = next(made for _, _, made, _ in steps if exit_ in made)
    beside = (set(made_with) - {exit_}) & {name for _, read, _, _ in steps for name in read}.union(outputs)
    if exit_ in outputs and beside:  # the one thing that a bridge cannot do
        event("refused: another output")
        with pytest.raises(gm.RefusedError, match="also makes"):
            gm.remove(before, (entry, exit_))
        return
    after = gm.remove(before, (entry, exit_))
    event("removed")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    expected = interpret(steps, x, (entry, exit_))
    found = gm.load(after.proto().SerializeToString()).run({"x": x})
    assert list(found) == outputs
    for name in outputs:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=1e-4)
    onnx.checker.check_model(after.proto(), full_check=True)
    assert before.proto().SerializeToString(deterministic=True) == content
    assert_the_rest_is_kept(before.proto(), after.proto(), steps, entry, exit_, outputs)


def assert_the_rest_is_kept(old, new, steps, entry, exit_, outputs):
    for field in ("input", "output", "doc_string", "name"):
        assert getattr(old.graph, field) == getattr(new.graph, field)
    for field in ("opset_import", "producer_name", "doc_string", "ir_version"):
        assert getattr(old, field) == getattr(new, field)
    assert [entry for entry in new.metadata_props if entry.key != RECORD] == list(old.metadata_props)
    was = needed(steps, outputs)
    idle = {name for _, _, made, _ in steps if not was & set(made) for name in made}
    now = needed(bridge(steps, entry, exit_), {*outputs, *idle})
    renamed = {exit_: entry} if exit_ not in outputs else {}
    kept = [made[0] for _, _, made, _ in steps if (now - {exit_} | idle) & set(made)]
    expected = [op for op in old.graph.node if op.output[0] in kept]
    operators = [op for op in new.graph.node if op.op_type != "Identity"]
    assert [op.name for op in operators] == [op.name for op in expected]
    for one, other in zip(expected, operators, strict=True):
        assert (one.op_type, one.output, one.doc_string, one.metadata_props) == (
            other.op_type, other.output, other.doc_string, other.metadata_props
        )  # fmt: skip
        assert [renamed.get(name, name) for name in one.input] == list(other.input)
    old_weights = {t.name: t.SerializeToString() for t in old.graph.initializer}
    new_weights = {t.name: t.SerializeToString() for t in new.graph.initializer}
    assert len(new_weights) == len(new.graph.initializer)
    read = {name for op in operators for name in op.input}
    assert set(new_weights) == {name for name in old_weights if name in read or name == "unused"}
    assert all(old_weights[name] == content for name, content in new_weights.items())
    tensors = {name for op in new.graph.node for name in op.output}
    assert {v.name for v in new.graph.value_info} == {v.name for v in old.graph.value_info if v.name in tensors}


def bridge(steps, entry, exit_):
    """Return the steps with another one that makes the exit from the entry."""
    for kind, read, made, parameter in steps:
        yield kind, read, tuple(name for name in made if name != exit_), parameter
        if exit_ in made:
            yield "bridge", (entry,), (exit_,), None
