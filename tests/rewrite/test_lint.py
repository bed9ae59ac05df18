"""Every smell planted in a network that has none else, and found there alone, by its names; mended, it is gone."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper
from random_models import feeds, random_models

import graphmod as gm
from graphmod.graph.wiring import Constant
from graphmod.model.stored import Stored
from graphmod.rewrite.smells import SMELLS
from graphmod.rewrite.smells.evidence import counted
from graphmod.rewrite.smells.rank import ENERGY, tiny_rank
from graphmod.rewrite.verb import VERBS

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
SHAPE = ["n", 8, 6, 6]


def node(op_type, reads, made, name=None, **attributes):
    return helper.make_node(op_type, reads.split(), made.split(), name or f"{op_type}_{made.split()[0]}", **attributes)


def normal(*shape, seed=0):
    rng = np.random.default_rng([seed, *shape])
    return (rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)


class Plan:
    """A network without a smell, conv > relu > conv > sum, for a test to plant one in."""

    def __init__(self):
        self.operators = [
            node("Conv", "x w1 b1", "a", pads=[1] * 4),
            node("Relu", "a", "b"),
            node("Conv", "b w2 b2", "c", pads=[1] * 4),
            node("Add", "x c", "y"),
        ]
        self.weights = {
            "w1": normal(8, 8, 3, 3),
            "w2": normal(8, 8, 3, 3, seed=1),
            "b1": normal(8),
            "b2": normal(8, seed=1),
        }
        self.inputs = {"x": (TensorProto.FLOAT, SHAPE)}
        self.outputs = {"y": (TensorProto.FLOAT, SHAPE)}
        self.opset, self.ir_version = 17, 8
        self.declared = []

    def instead(self, tensor, *operators):
        """Let the operators read ``tensor:before``, made by what made the tensor, and make the tensor."""
        for operator in self.operators:
            for i, name in enumerate(operator.output):
                if name == tensor:
                    operator.output[i] = f"{tensor}:before"
                    break
        self.operators = sorted([*self.operators, *operators], key=lambda op: "abcy".find(op.output[0][0]) % 5)

    def model(self):
        values = [
            [helper.make_tensor_value_info(name, *kind) for name, kind in declared.items()]
            for declared in (self.inputs, self.outputs)
        ]
        initializers = [
            value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
            for name, value in self.weights.items()
        ]
        graph = helper.make_graph(self.operators, "planted", *values, initializers)
        graph.input.extend(self.declared)
        opsets = [helper.make_opsetid("", self.opset)]
        return gm.load(helper.make_model(graph, ir_version=self.ir_version, opset_imports=opsets))


PLANTED = {}
"""By name of a case: the smell, what plants it, the operators and tensors that it is about."""


def planted(smell, operators="", tensors=""):
    def register(plant):
        PLANTED[plant.__name__] = smell, plant, set(operators.split()), set(tensors.split())
        return plant

    return register


@planted("dead_operator", "Exp_dead Neg_deader")
def dead(plan):
    plan.operators[1:1] = [node("Exp", "a", "dead"), node("Neg", "dead", "deader")]


@planted("dead_operator", "Mul_dead")
def dead_with_a_weight(plan):
    plan.weights["large"] = normal(8, 6, 6)
    plan.operators.append(node("Mul", "b large", "dead"))


@planted("unused_constant", tensors="forgotten held")
def unread_constants(plan):
    plan.weights["forgotten"] = normal(8, 7)
    plan.operators.insert(0, node("Constant", "", "held", value_floats=[1.0, 2.0]))


@planted("unused_input", tensors="mask")
def unread_input(plan):
    plan.inputs["mask"] = TensorProto.FLOAT, ["n", 5]


@planted("unread_output", "Split_b1of2", "b2of2")
def unread_half(plan):
    plan.operators[1:4] = [
        node("Split", "a", "b1of2 b2of2", axis=1),
        node("Concat", "b1of2 b1of2", "b", axis=1),
        *plan.operators[2:4],
    ]


@planted("repeated_output", tensors="again")
def same_output_twice(plan):
    plan.operators.append(node("Identity", "y", "again"))
    plan.outputs["again"] = TensorProto.FLOAT, SHAPE


@planted("repeated_output", tensors="same")
def input_as_output(plan):
    plan.operators.append(node("Identity", "x", "same"))
    plan.outputs["same"] = TensorProto.FLOAT, SHAPE


@planted("overridable_initializer", tensors="b2")
def initializer_as_input(plan):
    plan.declared.append(helper.make_tensor_value_info("b2", TensorProto.FLOAT, [8]))


@planted("unfused_batchnorm", "BatchNormalization_c")
def batchnorm(plan):
    plan.weights |= {f"n{i}": np.abs(normal(8, seed=9 + i)) + np.float32(0.5) for i in range(4)}
    plan.instead("c", node("BatchNormalization", "c:before n0 n1 n2 n3", "c"))


@planted("unfused_batchnorm", "BatchNormalization_y")
def batchnorm_that_cannot_be_fused(plan):
    plan.weights |= {f"n{i}": np.abs(normal(8, seed=9 + i)) + np.float32(0.5) for i in range(4)}
    plan.instead("y", node("BatchNormalization", "y:before n0 n1 n2 n3", "y"))


@planted("unfused_map", "Mul_c")
def scale(plan):
    plan.weights["s"] = np.abs(normal(8, 1, 1)) + np.float32(0.5)
    plan.instead("c", node("Mul", "c:before s", "c"))


@planted("unfused_map", "Add_y2")
def side_by_side(plan):
    plan.weights |= {"w3": normal(16, 8, 3, 3), "w4": normal(16, 8, 1, 1), "w5": normal(8, 16, 1, 1)}
    plan.instead(
        "y",
        node("Conv", "y:before w3", "y0", pads=[1] * 4),
        node("Conv", "y:before w4", "y1"),
        node("Add", "y0 y1", "y2"),
        node("Relu", "y2", "y3"),
        node("Conv", "y3 w5", "y"),
    )


@planted("identity_operator", "Identity_b Dropout_c Cast_a")
def identities(plan):
    plan.instead("a", node("Cast", "a:before", "a", to=TensorProto.FLOAT))
    plan.instead("b", node("Identity", "b:before", "b"))
    plan.instead("c", node("Dropout", "c:before", "c"))


@planted("identity_operator", "Add_b Mul_c Pad_a Expand_y")
def neutral_arithmetic(plan):
    plan.weights |= {
        "nought": np.zeros((8, 1, 1), np.float32),
        "one": np.ones(1, np.float32),
        "pads": np.zeros(8, np.int64),
        "shape": np.array([1, 8, 1, 1]),
    }
    plan.instead("a", node("Pad", "a:before pads", "a"))
    plan.instead("b", node("Add", "b:before nought", "b"))
    plan.instead("c", node("Mul", "one c:before", "c"))
    plan.instead("y", node("Expand", "y:before shape", "y"))


@planted("repeated_layout", "Transpose_b")
def transposes(plan):
    there, back = [0, 2, 3, 1], [0, 3, 1, 2]
    plan.instead(
        "b", node("Transpose", "b:before", "b:middle", perm=there), node("Transpose", "b:middle", "b", perm=back)
    )


@planted("repeated_layout", "Reshape_b")
def reshape_to_the_same(plan):
    plan.weights["same"] = np.array([0, 8, 6, 6])
    plan.instead("b", node("Reshape", "b:before same", "b"))


@planted("cancelling_casts", "Cast_b")
def casts(plan):
    there, back = TensorProto.DOUBLE, TensorProto.FLOAT
    plan.instead("b", node("Cast", "b:before", "b:middle", to=there), node("Cast", "b:middle", "b", to=back))


@planted("constant_result", "Exp_a_1 Neg_a_2")
def constant_results(plan):
    plan.weights["held"] = normal(8, 1, 1)
    plan.instead("y", node("Exp", "held", "a_1"), node("Neg", "a_1", "a_2"), node("Div", "y:before a_2", "y"))


@planted("repeated_operator", "Tanh_b_2 Exp_b_4")
def repeated_operators(plan):
    plan.instead(
        "y",
        *(node("Tanh", "b", f"b_{i}") for i in (1, 2)),
        *(node("Exp", f"b_{i}", f"b_{i + 2}") for i in (1, 2)),
        node("Sum", "b_3 b_4 y:before", "y"),
    )


@planted("large_constant", "Constant_a0", "a0")
def large_constant(plan):
    value = numpy_helper.from_array(normal(8, 8, 5, 5))
    plan.operators[0].input[1] = "a0"
    del plan.operators[0].attribute[:]
    plan.operators[0].attribute.append(helper.make_attribute("pads", [2] * 4))
    plan.operators.insert(0, node("Constant", "", "a0", value=value))
    del plan.weights["w1"]


@planted("float64", "Cast_b_0 Exp_b_1 Mul_b_2", "d b_0 b_1 b_2")
def doubles(plan):
    plan.weights["d"] = normal(8, 1, 1).astype(np.float64)
    plan.instead(
        "b",
        node("Cast", "b:before", "b_0", to=TensorProto.DOUBLE),
        node("Exp", "b_0", "b_1"),
        node("Mul", "b_1 d", "b_2"),
        node("Cast", "b_2", "b", to=TensorProto.FLOAT),
    )


@planted("odd_channels", "Conv_a")
def ten_channels(plan):
    plan.weights |= {"w1": normal(10, 8, 3, 3), "b1": normal(10), "w2": normal(8, 10, 3, 3)}


@planted("fixed_batch", tensors="x")
def one_at_a_time(plan):
    plan.inputs["x"] = plan.outputs["y"] = TensorProto.FLOAT, [1, *SHAPE[1:]]


@planted("old_version")
def old_opset(plan):
    plan.opset = 11


@planted("operator_names", "Relu_1 Conv_2")
def names(plan):
    plan.operators[1].name = plan.operators[2].name = ""


@planted("repeated_constant", tensors="w1 w2")
def twins(plan):
    plan.weights["w2"] = plan.weights["w1"]


@planted("no_number", "Conv_c", "w2")
def not_a_number(plan):
    plan.weights["w2"] = plan.weights["w2"].copy()
    plan.weights["w2"].flat[7] = np.nan


@planted("no_number", "Conv_c", "b2")
def infinite(plan):
    plan.weights["b2"] = plan.weights["b2"].copy()
    plan.weights["b2"][0] = -np.inf


@planted("zero_channels", "Conv_a", "w1")
def zero_channels(plan):
    plan.weights["w1"] = plan.weights["w1"].copy()
    plan.weights["w1"][[2, 5]] = 0


@planted("zero_channels", "MatMul_y", "w3")
def zero_columns(plan):
    plan.weights["w3"] = normal(6, 6)
    plan.weights["w3"][:, 4] = 0
    plan.instead("y", node("MatMul", "y:before w3", "y"))


@planted("constant_channels", "BatchNormalization_y", "n3")
def degenerate_variance(plan):
    batchnorm_that_cannot_be_fused(plan)
    plan.weights["n3"][3] = 0


@planted("tiny_rank", "MatMul_y0", "low")
def tiny(plan):
    plan.weights |= {"low": normal(128, 3) @ normal(3, 256), "in": normal(6, 128), "out": normal(256, 6)}
    plan.instead(
        "y",
        node("MatMul", "y:before in", "yi"),
        node("Relu", "yi", "yj"),
        node("MatMul", "yj low", "y0"),
        node("Relu", "y0", "y1"),
        node("MatMul", "y1 out", "y"),
    )


ALSO = {"degenerate_variance": {"unfused_batchnorm"}, "casts": {"float64"}, "unread_half": set()}
"""Smells that cannot be planted without another."""


def found_in(case, **kwargs):
    smell, plant, operators, tensors = PLANTED[case]
    plan = Plan()
    plant(plan)
    model = plan.model()
    also = ALSO.get(case, set())
    return smell, model, operators, tensors, [f for f in gm.lint(model, **kwargs) if f.smell not in also]


def test_a_clean_network_has_no_smell():
    assert gm.lint(Plan().model()) == []


def test_every_smell_is_planted():
    assert {smell for smell, *_ in PLANTED.values()} | {"redundant_block"} == set(SMELLS)


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_smell_is_found_alone_and_by_its_names(case):
    smell, _, operators, tensors, found = found_in(case)
    assert {finding.smell for finding in found} == {smell}
    assert {name for finding in found for name in finding.operators} == operators
    assert {name for finding in found for name in finding.tensors} >= tensors
    for finding in found:
        assert (finding.edit is None) == bool(finding.reason)
        assert not re.search(r"\b1 (linear )?\w+ (compute|make|are|give|cast)\b", finding.message)


def test_one_and_several_are_told_in_the_right_number():
    told = [counted(number, "operator", "make") for number in (0, 1, 2)]
    assert told == ["0 operators make", "1 operator makes", "2 operators make"]


@pytest.mark.parametrize("case", PLANTED)
def test_mended_it_is_gone_and_the_outputs_are_the_same(case):
    _, model, _, _, found = found_in(case)
    edits = [finding.edit for finding in found if finding.edit]
    mended = gm.apply(edits, model)
    gone = {finding.smell for finding in found if finding.edit}
    assert gone.isdisjoint(finding.smell for finding in gm.lint(mended))
    samples = {name: normal(4, *kind.shape[1:]) for name, kind in model.inputs.items()}
    tolerance = 1e-5 if all(VERBS[edit.verb].exact for edit in edits) else 1e-3
    assert all(error.relative <= tolerance for error in gm.verify(model, mended, samples).outputs.values())


MENDED = {
    "dead_operator", "unused_constant", "unfused_batchnorm", "unfused_map", "identity_operator", "repeated_layout",
    "cancelling_casts", "constant_result", "repeated_operator", "operator_names", "large_constant", "float64",
    "fixed_batch", "repeated_constant", "tiny_rank",
}  # fmt: skip


@pytest.mark.parametrize("smell", sorted(MENDED))
def test_there_is_an_edit(smell):
    cases = [case for case in PLANTED if PLANTED[case][0] == smell and "cannot" not in case]
    assert all(finding.edit for case in cases for finding in found_in(case, only=[smell])[-1])


def test_edits_of_all_smells_at_once_can_be_applied_together():
    plan = Plan()
    for plant in (dead, unread_constants, batchnorm, transposes, names, tiny):
        plant(plan)
    model = plan.model()
    findings = gm.lint(model)
    samples = {"x": normal(4, *SHAPE[1:])}
    for recipe in ([finding.edit for finding in findings if finding.edit], gm.mending(findings)):
        mended = gm.apply(recipe, model)
        left = {finding.smell for finding in gm.lint(mended)}
        assert left.isdisjoint(finding.smell for finding in findings if finding.edit)
        assert gm.verify(model, mended, samples).outputs["y"].relative < 1e-3


def test_every_edit_is_in_the_recipe_once_and_new_names_come_last():
    plan = Plan()
    for plant in (dead, unread_constants, twins, names):
        plant(plan)
    findings = gm.lint(plan.model())
    assert sum(finding.edit == gm.Edit("simplify") for finding in findings) == 3
    assert [edit.verb for edit in gm.mending(findings)] == ["simplify", "rename"]


def test_a_name_that_two_operators_have_is_found_and_mended():
    plan = Plan()
    plan.operators[0].name = plan.operators[2].name = "twin"
    model = plan.model()
    (finding,) = gm.lint(model)
    assert finding.smell == "operator_names"
    assert set(finding.operators) == {"Conv_0", "Conv_2"}
    mended = gm.apply([finding.edit], model)
    assert gm.lint(mended) == []
    assert [operator.name for operator in mended.operators] == ["Conv_0", "Relu_b", "Conv_2", "Add_y"]


def test_figures_are_those_of_the_graph():
    plan = Plan()
    dead_with_a_weight(plan)
    (finding,) = gm.lint(plan.model())
    assert (finding.n_operators, finding.n_bytes) == (1, 4 * 8 * 6 * 6)
    assert "1,152 bytes" in finding.message
    plan = Plan()
    twins(plan)
    (finding,) = gm.lint(plan.model())
    assert finding.n_bytes == 4 * 8 * 8 * 9


def test_what_lies_in_a_body_is_found_there_and_left_alone():
    plan = Plan()
    branch = [
        helper.make_graph(
            [node("Exp", "b", f"{side}_dead"), node(op_type, "b", f"{side}_out")],
            side,
            [],
            [helper.make_tensor_value_info(f"{side}_out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(normal(5), f"{side}_forgotten")],
        )
        for side, op_type in (("yes", "Tanh"), ("no", "Relu"))
    ]
    plan.weights["choice"] = np.array(True)
    plan.operators[2].input[0] = "b_taken"
    plan.operators.insert(2, node("If", "choice", "b_taken", then_branch=branch[0], else_branch=branch[1]))
    found = gm.lint(plan.model())
    assert {finding.smell for finding in found} == {"dead_operator", "unused_constant"}
    names = {name for finding in found for name in (*finding.operators, *finding.tensors)}
    assert {name.rpartition("/")[2] for name in names} == {
        "Exp_yes_dead",
        "Exp_no_dead",
        "yes_forgotten",
        "no_forgotten",
    }
    assert all(finding.edit is None and "inline" in finding.reason for finding in found)


def test_a_mask_of_infinities_is_no_smell():
    plan = Plan()
    plan.weights["mask"] = np.triu(np.full((6, 6), -np.inf, np.float32), 1)
    plan.instead("y", node("Add", "y:before mask", "y"))
    assert "no_number" not in {finding.smell for finding in gm.lint(plan.model())}


@pytest.mark.parametrize(
    ("kind", "inner", "is_smell"),
    [
        ("FLOAT", "DOUBLE", True),
        ("FLOAT16", "FLOAT", True),
        ("INT32", "INT64", True),
        ("INT32", "DOUBLE", True),
        ("BOOL", "FLOAT", True),
        ("FLOAT", "FLOAT16", False),
        ("INT64", "DOUBLE", False),
        ("INT32", "FLOAT", False),
        ("INT32", "UINT64", False),
        ("FLOAT", "INT64", False),
    ],
)
def test_casts_cancel_where_the_type_between_has_every_value(kind, inner, is_smell):
    outer, between = (getattr(TensorProto, name) for name in (kind, inner))
    operators = [
        node("Cast", "x", "in", to=outer),
        node("Cast", "in", "there", to=between),
        node("Cast", "there", "back", to=outer),
        node("Cast", "back", "y", to=TensorProto.FLOAT),
    ]
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph(operators, "casts", declared[:1], declared[1:])
    model = gm.load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    found = {name for finding in gm.lint(model, only=["cancelling_casts"]) for name in finding.operators}
    assert ("Cast_back" in found) == is_smell
    fused = gm.fuse(model, kinds=["cast"])
    samples = {"x": np.array([[0, 1, -7, 16_777_217]], np.float32)}
    assert (fused.run(samples)["y"] == model.run(samples)["y"]).all()


def test_float64_that_is_meant_stays():
    plan = Plan()
    plan.inputs["x"] = plan.outputs["y"] = TensorProto.DOUBLE, SHAPE
    plan.weights = {name: value.astype(np.float64) for name, value in plan.weights.items()}
    (finding,) = gm.lint(plan.model())
    assert (finding.smell, finding.edit) == ("float64", None)
    assert "may be meant" in finding.reason


@pytest.mark.parametrize(("rows", "columns", "rank"), [(256, 512, 5), (512, 128, 16), (128, 128, 1), (1024, 64, 8)])
def test_the_rank_is_that_of_the_svd(rows, columns, rank):
    noise = normal(rows, columns, seed=5) * np.float32(1e-4)
    value = normal(rows, rank) @ normal(rank, columns) + noise
    sigma = np.linalg.svd(value.astype(np.float64), compute_uv=False) ** 2
    expected = int(np.searchsorted(np.cumsum(sigma) / sigma.sum(), ENERGY)) + 1
    assert tiny_rank(constant(value), rows, columns) == expected <= rank


@pytest.mark.parametrize("scale", [0, 1, np.nan])
def test_a_weight_of_full_rank_of_zeros_or_of_nan_has_no_tiny_rank(scale):
    assert tiny_rank(constant(normal(256, 256) * np.float32(scale)), 256, 256) is None


def constant(value):
    return Constant("w", Stored(numpy_helper.from_array(value)), None, value.shape)


def test_a_weight_that_something_else_reads_is_not_split():
    plan = Plan()
    tiny(plan)
    plan.weights["again"] = normal(8, 128)
    plan.operators.append(node("ReduceSum", "low", "sum", keepdims=0))
    plan.outputs["sum"] = TensorProto.FLOAT, []
    (finding,) = gm.lint(plan.model(), only=["tiny_rank"])
    assert finding.edit is None
    assert "something other" in finding.reason


def test_values_are_read_only_where_that_is_allowed():
    model = Plan().model()
    reading = [name for name, smell in SMELLS.items() if smell.needs_weights]
    plan = Plan()
    twins(plan)
    zero_channels(plan)
    assert gm.lint(plan.model(), weights=False) == []
    with pytest.raises(gm.RefusedError, match=f"'{reading[0]}' is found in the values of weights"):
        gm.lint(model, only=[reading[0]], weights=False)


def test_smells_that_are_none_or_need_data_are_refused():
    model = Plan().model()
    with pytest.raises(gm.RefusedError, match="did you mean 'dead_operator'"):
        gm.lint(model, only=["dead_operators"])
    with pytest.raises(gm.RefusedError, match="give data"):
        gm.lint(model, only=["redundant_block"])


def test_a_block_that_adds_next_to_nothing_is_found_on_data_and_taken_out():
    plan = Plan()
    plan.weights |= {"w3": normal(8, 8, 3, 3, seed=3) * np.float32(1e-4), "w4": normal(8, 8, 1, 1, seed=4)}
    plan.instead(
        "y",
        node("Conv", "y:before w3", "ya", pads=[1] * 4),
        node("Relu", "ya", "yb"),
        node("Add", "yb y:before", "yc"),
        node("Conv", "yc w4", "y"),
    )
    model = plan.model()
    samples = {"x": normal(64, *SHAPE[1:])}
    (finding,) = gm.lint(model, samples)
    assert finding.smell == "redundant_block"
    assert set(finding.operators) == {"Conv_ya", "Relu_yb", "Add_yc"}
    assert finding.edit == gm.Edit("remove", {"place": ["y:before", "yc"]})
    mended = gm.apply([finding.edit], model)
    assert gm.lint(mended, samples) == []
    assert gm.verify(model, mended, samples).outputs["y"].rms < 1e-3


def test_a_block_that_a_layer_can_stand_for_is_replaced_by_it():
    model, data = gm.load(gm.demo.model_path()), gm.demo.splits().train[:256]
    findings = gm.lint(model, data, only=["redundant_block"])
    assert {finding.edit.verb for finding in findings} == {"replace"}
    mended = gm.apply(gm.mending(findings), model, given=[data])
    assert gm.lint(mended, data, only=["redundant_block"]) == []
    assert gm.accuracy(mended, gm.demo.splits().test) > 0.98


# -- what the documentation says

PAGE = (Path(__file__).parents[2] / "docs" / "lint.md").read_text()


def test_the_page_lists_every_smell_and_the_verb_that_mends_it():
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", PAGE, re.MULTILINE))
    assert rows.keys() == SMELLS.keys()
    for case in PLANTED:
        smell, *_, found = found_in(case, only=[PLANTED[case][0]])
        for finding in found:
            assert finding.edit is None or f"`{finding.edit.verb}" in rows[smell]


def test_the_smell_that_the_page_adds_is_found_and_mended(monkeypatch):
    monkeypatch.setitem(SMELLS, "tanh", None)  # so that it is gone afterwards
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], {})
    plan = Plan()
    plan.instead("b", node("Tanh", "b:before", "b"))
    (finding,) = gm.lint(plan.model())
    assert (finding.smell, finding.operators) == ("tanh", ("Tanh_b",))
    assert gm.lint(gm.apply([finding.edit], plan.model())) == []
    assert SMELLS["tanh"].description == "Tanh, which some accelerators compute slowly."


# -- networks of others


QUICK = ("light_resnet50", "light_shufflenet", "light_squeezenet")
"""Light models that take a second or two; the others are left to the slow tests."""


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.slow)
        for path in sorted(LIGHT.glob("*.onnx"))
    ],
)
def test_light_models_are_linted_and_mended(path):
    model = gm.load(path)
    findings = gm.lint(model, weights=False)
    edits = [edit for edit in gm.mending(findings) if VERBS[edit.verb].exact]
    left = gm.lint(gm.apply(edits, model), weights=False)
    assert not {finding.edit for finding in left if finding.edit in edits}


def test_networks_of_the_zoo_are_linted_and_mended(any_network):
    check_mended(any_network.model, any_network.feeds)


def exact_edits(model):
    return [edit for edit in gm.mending(gm.lint(model)) if VERBS[edit.verb].exact]


def check_mended(model, samples):
    """Check that the exact edits leave the outputs as they are, and soon nothing that they mend."""
    mended = model
    for _ in range(3):  # an edit can make room for another
        mended = gm.apply(exact_edits(mended), mended)
    assert exact_edits(mended) == []
    before, after = model.run(samples), mended.run(samples)
    for name, value in before.items():
        scale = np.abs(value[np.isfinite(value)]).max(initial=0) if value.dtype.kind == "f" else 0
        np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-5 * scale)


@given(random_models())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_networks_are_linted_and_mended(proto):
    check_mended(gm.load(proto), feeds())


@pytest.mark.slow
@given(random_models())
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_random_networks_are_linted_and_mended(proto):
    check_mended(gm.load(proto), feeds())


def test_linting_takes_time_in_proportion_to_the_operators():
    model = long_chain(20_000)
    start = time.perf_counter()
    findings = gm.lint(model)
    assert time.perf_counter() - start < 20
    assert {finding.smell for finding in findings} == {"repeated_layout", "dead_operator", "repeated_operator"}


def long_chain(n_operators):
    """Return a model of Relus, Transposes that undo each other, and Exps that are dead."""
    operators, tensor = [], "x"
    for i in range(n_operators // 5):
        operators += [
            node("Transpose", tensor, f"a{i}", perm=[1, 0]),
            node("Transpose", f"a{i}", f"b{i}", perm=[1, 0]),
            node("Tanh", f"b{i}", f"c{i}"),
            node("Tanh", f"b{i}", f"d{i}"),
            node("Add", f"c{i} d{i}", f"e{i}"),
        ]
        tensor = f"e{i}"
    operators.append(node("Exp", tensor, "dead"))
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("x", tensor)]
    graph = helper.make_graph(operators, "long", declared[:1], declared[1:])
    return gm.load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
