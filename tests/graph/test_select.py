"""Selectors: what they find on models made by hand, on random graphs against brute force, and how they refuse."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_graphs

import graphmod as gm

PAGE = (Path(__file__).parents[2] / "docs" / "selectors.md").read_text()


def lines(fence: str) -> list[str]:
    return re.search(rf"```{fence}\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()


def opsets(**versions: int):
    return [helper.make_opsetid(domain.replace("_", ".").removeprefix("ai.onnx"), v) for domain, v in versions.items()]


@pytest.fixture(scope="module")
def model() -> gm.Model:
    """A convolution three times over, a gate read twice, an If that captures, a call of a function, odd names."""
    body = [
        helper.make_graph(
            [helper.make_node(op_type, ["g"], [f"b_{op_type}"], f"in_{op_type}")],
            op_type,
            [],
            [helper.make_tensor_value_info(f"b_{op_type}", TensorProto.FLOAT, None)],
        )
        for op_type in ("Tanh", "Conv")
    ]
    operators = [
        helper.make_node("Conv", ["x", "w"], ["a"], "/stem/conv/Conv"),
        helper.make_node("BatchNormalization", ["a", "s", "s", "s", "s"], ["b"], "/stem/bn/BN"),
        helper.make_node("Relu", ["b"], ["c"], "/stem/Relu"),
        helper.make_node("Conv", ["c", "w"], ["d"], "grouped", group=4, strides=[2, 1], pads=[0, 0, 0, 0]),
        helper.make_node("BatchNormalization", ["d", "s", "s", "s", "s"], ["e"], "tight", epsilon=1e-6),
        helper.make_node("Clip", ["e", "", "six"], ["f"], "a, b [c]"),
        helper.make_node("Sigmoid", ["f"], ["g"]),
        helper.make_node("Mul", ["f", "g"], ["h"]),
        helper.make_node("If", ["yes"], ["i"], "if", then_branch=body[0], else_branch=body[1]),
        helper.make_node("FusedConv", ["h", "w"], ["j"], "fused", domain="com.microsoft", activation="Relu", name_="x"),
        helper.make_node("Block", ["j"], ["k"], "call", domain="my", alpha=2.0),
        helper.make_node("Shape", ["k"], ["shape"]),
        helper.make_node("Reshape", ["i", "shape"], ["y"], "re", allowzero=1),
        helper.make_node("Neg", ["x"], ["dead"], "dead"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in {"x": ["batch", 4, 8, 8], "y": None}.items()
    ]
    weights = {"w": np.ones((4, 4, 1, 1), np.float32), "s": np.ones(4, np.float32), "six": np.float32(6), "yes": True}
    graph = helper.make_graph(
        operators, "g", values[:1], values[1:], [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    )
    function = helper.make_function(
        "my", "Block", ["p"], ["q"], [helper.make_node("Relu", ["p"], ["q"])], opsets(ai_onnx=17), ["beta"],
        [helper.make_attribute("alpha", 1.0)],
    )  # fmt: skip
    imports = opsets(ai_onnx=17, com_microsoft=1, my=1)
    return gm.load(helper.make_model(graph, ir_version=9, opset_imports=imports, functions=[function]))


CASES = {
    # types
    "Conv": ["/stem/conv/Conv", "grouped"],
    "Conv*": ["/stem/conv/Conv", "grouped"],
    "*Conv": ["/stem/conv/Conv", "grouped", "fused"],
    "FusedConv": ["fused"],
    "com.microsoft::FusedConv": ["fused"],
    "com.*::*": ["fused"],
    "ai.onnx::*Conv": ["/stem/conv/Conv", "grouped"],
    "my::Block": ["call"],
    "other::Conv": [],
    "Clip|Mul": ["a, b [c]", "Mul_7"],
    "MaxPool": [],
    # attributes, given and left out
    "Conv[group=1]": ["/stem/conv/Conv"],
    "Conv[group==4]": ["grouped"],
    "Conv[group!=1]": ["grouped"],
    "Conv[group>1, group<=4]": ["grouped"],
    "Conv[group>1][group>=5]": [],
    "Conv[@group=4]": ["grouped"],
    "Conv[group=1e0]": ["/stem/conv/Conv"],
    "Conv[strides=[2,1]]": ["grouped"],
    "Conv[strides=[1,1]]": ["/stem/conv/Conv"],
    "Conv[strides!=[1,*]]": ["grouped"],
    "Conv[pads=[0,0,0,0]]": ["/stem/conv/Conv", "grouped"],
    "Conv[dilations!=[1,1]]": [],
    "Conv[pads=[0,...]]": ["/stem/conv/Conv", "grouped"],
    "Conv[kernel_shape=[1,1]]": ["/stem/conv/Conv", "grouped"],
    "Conv[strides=2]": [],
    "Conv[auto_pad=NOTSET]": ["/stem/conv/Conv", "grouped"],
    "BatchNormalization[epsilon=1e-5]": ["/stem/bn/BN"],
    "BatchNormalization[epsilon<1e-5]": ["tight"],
    "BatchNormalization[epsilon=0.000001]": ["tight"],
    "[activation=Re*]": ["fused"],
    "[activation!=Re*]": [],
    "Block[alpha=2]": ["call"],
    "Block[beta=2]": [],
    "FusedConv[gamma!=1]": [],
    "Reshape[allowzero>0]": ["re"],
    # names, scopes
    "[name=/stem/*]": ["/stem/conv/Conv", "/stem/bn/BN", "/stem/Relu"],
    "[name=/stem/conv/Conv]": ["/stem/conv/Conv"],
    '[name="a, b [c]"]': ["a, b [c]"],
    "Sigmoid[name=Sigmoid_6]": ["Sigmoid_6"],
    "[scope=stem]": ["/stem/conv/Conv", "/stem/bn/BN", "/stem/Relu"],
    "[scope=stem.*]": ["/stem/conv/Conv", "/stem/bn/BN"],
    "[scope=ste]": [],
    "Conv[scope=*]": ["/stem/conv/Conv"],
    'Conv[scope=""]': ["grouped"],
    "Neg[block=*]": [],
    "Conv[scope!=stem]": ["grouped"],
    # tensors
    "[in=x]": ["/stem/conv/Conv", "dead"],
    "[in0=w]": [],
    "[in1=w]": ["/stem/conv/Conv", "grouped", "fused"],
    "[in=g]": ["Mul_7", "if"],
    "[in2=six]": ["a, b [c]"],
    "Clip[in1=*]": [],
    "[in9=*]": [],
    "[out=y]": ["re"],
    "[in=w,in!=x]": ["grouped", "fused"],
    "[out.shape=[batch,4,8,8]]": ["/stem/conv/Conv", "/stem/bn/BN", "/stem/Relu", "dead"],
    "Conv[out0.shape=[?,4,4,*]]": ["grouped"],
    "Conv[out.shape=[...,4,8]]": ["grouped"],
    "Conv[out.shape!=[...,8,8]]": ["grouped"],
    "Conv[out.shape=[?,...,?]]": [],
    "Conv[in.shape=[4,4,1,1]]": ["/stem/conv/Conv", "grouped"],
    "Conv[in.rank=3]": [],
    "FusedConv[out.rank>=0]": [],
    "FusedConv[out.rank!=4]": [],
    "[out.dtype=int*]": ["Shape_11"],
    "Conv[out.dtype!=float16]": ["/stem/conv/Conv", "grouped"],
    # costs, readers
    "[weights=16]": ["/stem/conv/Conv", "grouped", "fused"],
    "[bytes>=64]": ["/stem/conv/Conv", "grouped", "fused"],
    "[macs>1e3]": ["/stem/conv/Conv"],
    "[readers=0]": ["dead"],
    "[readers>1]": ["a, b [c]", "Sigmoid_6"],
    "Reshape[readers=1]": ["re"],
    # paths
    "[between=a..c]": ["/stem/bn/BN", "/stem/Relu"],
    '[between="a".."c"]': ["/stem/bn/BN", "/stem/Relu"],
    '[between=a.."c"]': ["/stem/bn/BN", "/stem/Relu"],
    "[between=f..h]": ["Sigmoid_6", "Mul_7"],
    "[between=..b]": ["/stem/conv/Conv", "/stem/bn/BN"],
    "[between=g..]": ["if", "re"],
    "Conv[between!=..b]": ["grouped"],
    "[block=stem]": ["/stem/conv/Conv", "/stem/bn/BN", "/stem/Relu"],
}


@pytest.mark.parametrize("selector", CASES)
def test_operators(model, selector):
    assert [match.operators for match in gm.find(model, selector)] == [(name,) for name in CASES[selector]]


PATTERNS = {
    "Conv > BatchNormalization": [("/stem/conv/Conv", "/stem/bn/BN"), ("grouped", "tight")],
    "Conv>BatchNormalization>Relu": [("/stem/conv/Conv", "/stem/bn/BN", "/stem/Relu")],
    "Conv > BatchNormalization > (Relu|Clip)": [
        ("/stem/conv/Conv", "/stem/bn/BN", "/stem/Relu"),
        ("grouped", "tight", "a, b [c]"),
    ],
    "BatchNormalization > Relu|Clip[name=b]": [("/stem/bn/BN", "/stem/Relu")],
    "(Conv|FusedConv)[group=1]": [("/stem/conv/Conv",)],
    "(Conv[strides=[2,*]]|FusedConv)[weights=16]": [("grouped",), ("fused",)],
    "(Conv[strides=[2,*]]|FusedConv)[weights=17]": [],
    "Clip > *": [("a, b [c]", "Sigmoid_6"), ("a, b [c]", "Mul_7")],
    "Clip[readers=1] > *": [],
    "Clip > Sigmoid? > Mul": [("a, b [c]", "Sigmoid_6", "Mul_7")],
    "Conv > Relu? > BatchNormalization > Relu?": [
        ("/stem/conv/Conv", "/stem/bn/BN", "/stem/Relu"),
        ("grouped", "tight"),
    ],
    "Relu? > Conv": [("/stem/conv/Conv",), ("/stem/Relu", "grouped")],
    "Sigmoid > If > Reshape": [("Sigmoid_6", "if", "re")],
    "Neg, Relu , Neg": [("/stem/Relu",), ("dead",)],
    "Relu > Relu": [],
}


@pytest.mark.parametrize("selector", PATTERNS)
def test_patterns(model, selector):
    assert [match.operators for match in gm.find(model, selector)] == PATTERNS[selector]


def test_match_has_the_tensors_before_and_after(model):
    match = gm.find(model, "Conv > BatchNormalization > Relu")[0]
    assert (match.entry, match.exit) == ("x", "c")
    assert gm.find(model, "If")[0].entry == ""


REFUSED = {
    "": "at its start: expected an operator type",
    "Conv[": "at its end: expected a predicate",
    "Conv[group]": "after 'Conv[group': expected '='",
    "Conv[group=": "at its end: expected a value",
    "Conv[group=1": "at its end: expected ',' or ']'",
    "Conv[group=1 2]": "after 'Conv[group=1': expected ',' or ']'",
    "Conv > > Relu": "after 'Conv >': expected an operator type",
    "Conv Relu": "after 'Conv': expected '>'",
    "(Conv|Relu": "at its end: expected '|' or ')'",
    "Conv?": "'Conv?' consists of optional steps only",
    "Conv,": "at its end: expected an operator type",
    '[name="x]': "expected a value",
    "[between=a]": "expected two tensors as in between=A..B",
    "[between=a..b..c]": "expected two tensors",
    "Conv[grup=1]": "'grup' is neither a predicate nor an attribute of Conv; did you mean 'group'?",
    "*[grup=1]": "'grup' is neither a predicate nor an attribute of *; did you mean 'group'?",
    "Block[gamma=1]": "'gamma' is neither a predicate nor an attribute of Block",
    "Conv[weight>1]": "did you mean 'weights'?",
    "Conv[@name=1]": "'name' is neither",
    "conv": "has an operator of type 'conv'; did you mean 'Conv'?",
    "ai.onnx::FusedConv": "has an operator of type 'ai.onnx::FusedConv'",
    "[weights=many]": "'weights' is compared with a number",
    "[group>x]": "'group' is compared with a number",
    "[name>1]": "'name' is compared with = or !=, not with >",
    "[name=[a]]": "'name' is compared with one word",
    "[out.shape=4]": "'out.shape' is compared with a list",
    "[out.rank=[4]]": "'out.rank' is compared with a number",
    "[between<a..b]": "'between' is compared with = or !=",
    "[between=a..zz]": "no input and no operator's output is named 'zz'",
    "[between=c..a]": "no path of data joins",
    "[block=stemm]": "there is no block 'stemm'; did you mean 'stem'?",
}


@pytest.mark.parametrize("selector", REFUSED)
def test_refusals_quote_the_selector_and_point_at_the_fault(model, selector):
    with pytest.raises(gm.RefusedError) as refused:
        gm.find(model, selector)
    assert str(refused.value).startswith(f"in selector '{selector}'")
    assert REFUSED[selector] in str(refused.value)


def test_blocks_of_a_model_without_a_trunk_are_refused():
    value = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    strings = gm.load(helper.make_model(graph, ir_version=8, opset_imports=opsets(ai_onnx=17)))
    assert len(gm.find(strings, "Identity[out=y]")) == 1
    with pytest.raises(gm.RefusedError, match="the model has no blocks"):
        gm.find(strings, "[block=a]")


def test_defaults_are_those_of_the_models_opset():
    for version, axis in ((11, 1), (13, -1)):
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
        graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "g", values[:1], values[1:])
        softmax = gm.load(helper.make_model(graph, ir_version=7, opset_imports=opsets(ai_onnx=version)))
        assert gm.find(softmax, f"Softmax[axis={axis}]")
        assert not gm.find(softmax, f"Softmax[axis!={axis}]")


@pytest.mark.parametrize("line", lines("selectors"))
def test_the_examples_of_the_manual_find_what_it_says(line):
    selector, count = re.match(r"(.+?)\s{2,}(\d+)  ", line).groups()
    assert len(gm.find(gm.load(gm.demo.model_path()), selector)) == int(count)


@pytest.mark.parametrize("line", lines("refused"))
def test_the_refusals_of_the_manual_read_as_it_says(line):
    selector, message = re.split(r"\s{2,}", line)
    with pytest.raises(gm.RefusedError) as refused:
        gm.find(gm.load(gm.demo.model_path()), selector)
    assert str(refused.value) == message


def test_the_snippet_of_the_manual_runs(capsys):
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], {})
    assert "fails" in capsys.readouterr().out


TYPES = ("Tanh", "Sigmoid", "Neg", "MatMul", "Add", "Concat", "Split", "Mul", "Reshape", "If", "Exp", "Softmax")
STEPS = st.lists(
    st.tuples(st.sets(st.sampled_from(TYPES), min_size=1, max_size=8), st.booleans()), min_size=1, max_size=4
).filter(lambda steps: not all(optional for _, optional in steps))


def brute_force(model: gm.Model, steps: list[tuple[set[str], bool]]) -> set[tuple[str, ...]]:
    """Try every choice of optional steps and every tuple of operators; keep what no other match contains."""
    types = dict(model.graph.nodes(data="op_type"))
    found = set()
    for taken in itertools.product((True, False), repeat=len(steps)):
        if any(not take and not optional for take, (_, optional) in zip(taken, steps, strict=True)):
            continue
        wanted = [kinds for take, (kinds, _) in zip(taken, steps, strict=True) if take]
        for names in itertools.product(*([n for n in types if types[n] in kinds] for kinds in wanted)):
            if all(model.graph.has_edge(*pair) for pair in itertools.pairwise(names)):
                found.add(names)
    return {match for match in found if not any(set(match) < set(other) for other in found)}


@settings(max_examples=150, deadline=None)
@given(random_graphs(), STEPS)
def test_patterns_are_what_brute_force_finds(graph, steps):
    model = gm.load(graph.proto)
    selector = " > ".join("|".join(sorted(kinds)) + "?" * optional for kinds, optional in steps)
    found = [match.operators for match in gm.find(model, selector)]
    assert len(found) == len(set(found))
    if any(optional for _, optional in steps):
        assert set(found) == brute_force(model, steps)
    else:
        position = {name: i for i, name in enumerate(model.operator_names)}
        assert found == sorted(brute_force(model, steps), key=lambda names: [position[name] for name in names])


@settings(max_examples=100, deadline=None)
@given(random_graphs(), st.data())
def test_between_is_what_lies_on_paths(graph, data):
    model = gm.load(graph.proto)
    tensors = list(dict.fromkeys(["x", *(made for _, made, _ in graph.links)]))
    first, last = data.draw(st.tuples(st.sampled_from(tensors), st.sampled_from(tensors)))
    wanted = graph.between(first, last)
    if first == last or not wanted:
        return
    assert {match.operators[0] for match in gm.find(model, f"[between={first}..{last}]")} == wanted
    outside = {match.operators[0] for match in gm.find(model, f"[between!={first}..{last}]")}
    assert outside == set(model.operator_names) - wanted


PIECES = (
    *("Conv", "*", " ", ">", "|", ",", "?", "[", "]", "(", ")", "=", "!=", "<=", '"', "..", "@", "::", "\\", ".", "é"),
    *(
        "name",
        "group",
        "between",
        "block",
        "scope",
        "in",
        "in0.shape",
        "out.rank",
        "weights",
        "1",
        "1e999",
        "-3",
        "a..b",
    ),
)


@settings(max_examples=600, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.text(max_size=20)))
def test_any_text_is_a_selector_or_a_refusal(model, text):
    try:
        assert all(match.operators for match in gm.find(model, text))
    except gm.RefusedError as error:
        quoted = str(error)
        with pytest.raises(gm.RefusedError, match=re.escape(quoted)):
            gm.explain(model, text)
        assert text in quoted
    else:
        assert all(miss.reason for miss in gm.explain(model, text))


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_characters="*", exclude_categories=["Cs"]), min_size=1))
def test_any_name_can_be_quoted(name):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    operators = [helper.make_node("Neg", ["x"], ["t"], name), helper.make_node("Neg", ["t"], ["y"], name + "'")]
    graph = helper.make_graph(operators, "g", values[:1], values[1:])
    quoted = re.sub(r'(["\\])', r"\\\1", name)
    model = gm.load(helper.make_model(graph, ir_version=8, opset_imports=opsets(ai_onnx=17)))
    assert [match.operators for match in gm.find(model, f'Neg[name="{quoted}"]')] == [(name,)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=4), st.lists(st.sampled_from(["0", "1", "2", "*", "..."]), max_size=5))
def test_lists_fit_as_regular_expressions_do(found, asked):
    operator = helper.make_node("Op", ["x"], ["y"], domain="my")
    operator.attribute.append(helper.make_attribute("axes", found, attr_type=7))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([operator], "g", values[:1], values[1:])
    model = gm.load(helper.make_model(graph, ir_version=8, opset_imports=opsets(ai_onnx=17, my=1)))
    expression = "".join({"*": ".", "...": ".*"}.get(item, item) for item in asked)
    fits = re.fullmatch(expression, "".join(map(str, found))) is not None
    assert bool(gm.find(model, f"Op[axes=[{','.join(asked)}]]")) == fits
    assert bool(gm.find(model, f"Op[axes!=[{','.join(asked)}]]")) != fits


def test_only_paths_that_lead_to_the_end_are_followed():
    """Thirty diamonds in a row have 2 ** 30 paths."""
    operators, before = [], "x"
    for i in range(30):
        operators += [helper.make_node("Neg", [before], [f"{side}{i}"]) for side in "ab"]
        operators += [helper.make_node("Add", [f"a{i}", f"b{i}"], [f"c{i}"])]
        before = f"c{i}"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", before)]
    graph = helper.make_graph(operators, "g", values[:1], values[1:])
    ladder = gm.load(helper.make_model(graph, ir_version=8, opset_imports=opsets(ai_onnx=17)))
    selector = " > ".join(["Neg > Add"] * 30)
    assert gm.find(ladder, f"{selector} > Tanh") == []
    assert gm.explain(ladder, f"{selector} > Tanh")[0].step == 61
    assert len(gm.find(ladder, "Neg > Add > Neg > Add")) == 29 * 4


@pytest.mark.slow
def test_a_hundred_thousand_operators_take_seconds():
    names = [f"t{i}" for i in range(100_001)]
    operators = [
        helper.make_node(("Relu", "Neg")[i % 2], [before], [after])
        for i, (before, after) in enumerate(itertools.pairwise(names))
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in (names[0], names[-1])]
    graph = helper.make_graph(operators, "g", values[:1], values[1:])
    model = gm.load(helper.make_model(graph, ir_version=8, opset_imports=opsets(ai_onnx=17)))
    start = time.perf_counter()
    assert len(gm.find(model, "Relu > Neg")) == 50_000
    assert time.perf_counter() - start < 10
    assert len(gm.find(model, "[between=t10..t99990]")) == 99_980
    assert len(gm.explain(model, "Relu > Relu")) == 50_000


def test_an_operator_that_ten_thousand_read_is_no_matter_of_time():
    names = [f"y{i}" for i in range(10_000)]
    operators = [helper.make_node("Relu", ["x"], ["r"]), *(helper.make_node("Neg", ["r"], [name]) for name in names)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", names[-1])]
    graph = helper.make_graph(operators, "star", values[:1], values[1:])
    m = gm.load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    assert len(gm.find(m, "Relu > Neg?")) == len(names)
    assert len(gm.find(m, "Relu? > Neg")) == len(names)
