"""Why operators nearly match: planted near misses of every kind, and what holds on random graphs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_graphs

import graphmod as gm


def load(operators, outputs=("y",), functions=(), **weights):
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 8, 8] if name == "x" else None)
        for name in ("x", *outputs)
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(operators, "g", values[:1], values[1:], initializers)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    return gm.load(helper.make_model(graph, ir_version=9, opset_imports=imports, functions=list(functions)))


def conv(reads: str, makes: str, name: str, **attributes):
    return helper.make_node("Conv", [reads, "w"], [makes], name, **attributes)


def norm(reads: str, makes: str, name: str, **attributes):
    return helper.make_node("BatchNormalization", [reads, "s", "s", "s", "s"], [makes], name, **attributes)


def op(op_type: str, reads: str, makes: str, name: str):
    return helper.make_node(op_type, reads.split(), makes.split(), name)


WEIGHTS = {"w": np.ones((4, 4, 1, 1), np.float32), "s": np.ones(4, np.float32)}


@pytest.fixture(scope="module")
def model() -> gm.Model:
    """Conv > BatchNormalization > Relu once whole, and five times with something in the way."""
    return load(
        [
            conv("x", "a1", "whole"), norm("a1", "a2", "whole_bn"), op("Relu", "a2", "a3", "whole_relu"),
            conv("a3", "b1", "c1"), norm("b1", "b2", "bn1"), op("Clip", "b2", "b3", "clip"),
            op("Add", "b2 b3", "b4", "add"),
            conv("b4", "c1", "c2"), norm("c1", "c2", "bn2"), op("Identity", "c2", "c3", "same"),
            op("Relu", "c3", "c4", "relu2"),
            conv("c4", "d1", "grouped", group=4), norm("d1", "d2", "bn3"), op("Relu", "d2", "d3", "relu3"),
            conv("d3", "e1", "c4"), norm("e1", "e2", "loose", epsilon=0.1), op("Relu", "e2", "e3", "relu4"),
            conv("e3", "y", "last"), conv("e3", "unread", "dangling"),
        ],
        **WEIGHTS,
    )  # fmt: skip


PLANTED = [
    (("c1", "bn1"), 3, "BatchNormalization 'bn1' matches, but its output 'b2' is read by Clip 'clip' and Add 'add', "
     "not by Relu or Neg"),
    (("c2", "bn2"), 3, "BatchNormalization 'bn2' matches, but its output 'c2' is read by Identity 'same', not by Relu "
     "or Neg; Identity 'same' is between it and Relu 'relu2'"),
    (("c4", "loose"), 2, "BatchNormalization 'loose' fails epsilon<1e-3: it is 0.1"),
    (("last",), 2, "Conv 'last' matches, but its output 'y' is read by no operator but put out by the model"),
    (("dangling",), 2, "Conv 'dangling' matches, but its output 'unread' is read by no operator"),
    (("grouped",), 1, "Conv 'grouped' fails group=1: it is 4"),
]  # fmt: skip


def test_every_planted_near_miss_is_told_the_furthest_first(model):
    selector = "Conv[group=1] > BatchNormalization[epsilon<1e-3] > Relu|Neg"
    told = [(miss.operators, miss.step, str(miss)) for miss in gm.explain(model, selector)]
    assert told == [(names, step, f"step {step} of '{selector}': {reason}") for names, step, reason in PLANTED]
    assert [match.operators for match in gm.find(model, selector)] == [("whole", "whole_bn", "whole_relu")]


def test_all_failing_predicates_are_told_the_fewest_first(model):
    told = [str(miss) for miss in gm.explain(model, "Conv[group=2,out.rank=3,in=d3]")]
    assert told[0].endswith("Conv 'c4' fails group=2: it is 1 and out.rank=3: it is 4")
    assert told[1].endswith("'whole' fails group=2: it is 1 and out.rank=3: it is 4 and in=d3: they are 'x', 'w'")


def test_of_several_kinds_the_nearest_is_told(model):
    told = gm.explain(model, "Conv[group=2,name=grouped]|Conv[group=4,name=*x,in=z]")
    assert "Conv 'grouped' fails group=2: it is 4" in str(told[0])


@pytest.mark.parametrize(
    ("selector", "reason"),
    [
        ("Relu[scope=layer1]", "Relu 'whole_relu' fails scope=layer1: it is none"),
        ("Relu[in.shape=[*,3,...]]", "fails in.shape=[*,3,...]: it is [n, 4, 8, 8]"),
        ("Relu[in1=*]", "fails in1=*: there is none, or it is not known"),
        ("Neg", "the model's main graph has no operator of type Neg"),
        ("LayerNormalization", "LayerNormalization; did you mean 'BatchNormalization'?"),
        ("Relu[between=x..a2]", "Relu 'whole_relu' fails between=x..a2: it is not between them"),
        ("Conv[between!=x..a2]", "Conv 'whole' fails between!=x..a2: it is between them"),
    ],
)
def test_reasons(model, selector, reason):
    assert any(reason in str(miss) for miss in gm.explain(model, selector))


@pytest.mark.parametrize("selector", ["Conv > BatchNormalization > Tanh[out=y]", "Conv > Tanh > Relu", "Tanh > Relu"])
def test_a_type_that_the_model_has_not_is_told_first(model, selector):
    first, *rest = map(str, gm.explain(model, selector))
    assert first.endswith("the model's main graph has no operator of type Tanh")
    assert rest or selector.startswith("Tanh")
    assert not any("has no operator of type" in line for line in rest)


def test_optional_steps_are_no_misses(model):
    assert gm.explain(model, "Conv[name=last] > BatchNormalization? > Relu?")[0].step == 1
    told = [str(miss) for miss in gm.explain(model, "Conv > Identity? > Relu")]
    assert any("'whole' matches, but" in line and "not by Identity or Relu" in line for line in told)


def test_operators_in_bodies_and_functions_are_counted():
    def body(name, *types):
        operators = [op(kind, "x", f"{name}{i}", f"{name}_{kind}") for i, kind in enumerate(types)]
        value = helper.make_tensor_value_info(f"{name}0", TensorProto.FLOAT, None)
        return helper.make_graph(operators, name, [], [value])

    inner = helper.make_node("If", ["yes"], ["deep0"], then_branch=body("p", "Relu"), else_branch=body("q", "Neg"))
    outer = body("else")
    outer.node.append(inner)
    outer.output[0].name = "deep0"
    branch = helper.make_node("If", ["yes"], ["t"], "if", then_branch=body("then", "Relu", "Relu"), else_branch=outer)
    function = helper.make_function("my", "F", ["a"], ["b"], [op("Relu", "a", "b", "r")], [helper.make_opsetid("", 17)])
    call = helper.make_node("F", ["t"], ["y"], "call", domain="my")
    model = load([branch, call], functions=[function], yes=np.array(True))
    told = [str(miss) for miss in gm.explain(model, "Relu")]
    assert gm.find(model, "Relu") == []
    assert "also in a body of If 'if' (3) and function 'my::F' (1), where find does not look" in told[1]
    assert not any("bodies" in str(miss) for miss in gm.explain(model, "If"))


def test_many_readers_are_only_counted():
    readers = [op("Neg", "a", f"n{i}", f"neg{i}") for i in range(9)]
    model = load([op("Relu", "x", "a", "r"), *readers, op("Max", " ".join(f"n{i}" for i in range(9)), "y", "max")])
    assert "Neg 'neg3' and 5 more, not by Tanh" in str(gm.explain(model, "Relu > Tanh")[1])


def test_two_that_end_at_one_operator_are_both_told():
    model = load([op("Neg", "x", "a", "n1"), op("Neg", "x", "b", "n2"), op("Add", "a b", "y", "sum")])
    told = {miss.operators for miss in gm.explain(model, "Neg > Add > Neg")}
    assert told == {("n1", "sum"), ("n2", "sum")}


TYPES = ("Tanh", "Sigmoid", "Neg", "MatMul", "Add", "Concat", "Split", "Mul", "Reshape", "If", "Exp", "Softmax")


@settings(max_examples=150, deadline=None)
@given(random_graphs(), st.lists(st.sampled_from(TYPES), min_size=1, max_size=4))
def test_every_operator_of_the_first_type_matches_or_is_explained(graph, types):
    model = gm.load(graph.proto)
    selector = " > ".join(types)
    misses = gm.explain(model, selector)
    assert misses == gm.explain(model, selector)
    started = {names.operators[0] for names in (*gm.find(model, selector), *misses) if names.operators}
    kinds = dict(model.graph.nodes(data="op_type"))
    assert started >= {name for name, kind in kinds.items() if kind == types[0]}
    for miss in misses:
        assert [kinds[name] for name in miss.operators] == types[: len(miss.operators)]
        readers = {kinds[reader] for reader in model.graph.successors(miss.operators[-1])} if miss.operators else set()
        assert types[miss.step - 1] not in readers
