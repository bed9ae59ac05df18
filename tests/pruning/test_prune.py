"""The verb: what it takes, what it refuses and why, and that what it makes is smaller, whole and recorded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import zoo
from planted import feeds, net

import graphmod as gm
from graphmod.errors import GraphmodError, InvalidDataError, RefusedError
from graphmod.pruning import groups
from graphmod.rewrite.recipe import Recipe


@pytest.fixture(scope="module")
def demo() -> gm.Model:
    return gm.load(gm.demo.model_path())


@pytest.fixture(scope="module")
def samples() -> dict[str, np.ndarray]:
    data = gm.demo.splits().calibration
    return {**{name: value[:64] for name, value in data.inputs.items()}, "y": data.targets[:64]}


@pytest.fixture(scope="module")
def small() -> gm.Model:
    """Return a network of three convolutions, of which two make groups."""
    return net("(float[n,3,4,4] x) => (float[n,2,4,4] y) { [conv1] a = Conv(x, w)  [act1] r = Relu(a)"
               "  [conv2] b = Conv(r, u)  [act2] s = Relu(b)  [conv3] y = Conv(s, v) }",
               {"w": (8, 3, 1, 1), "u": (6, 8, 1, 1), "v": (2, 6, 1, 1)})  # fmt: skip


def widths(model: gm.Model) -> list[int]:
    return [group.n_units for group in groups(model)]


def made(model: gm.Model) -> Counter[str]:
    """Return how many channels with units each operator makes."""
    channels: Counter[str] = Counter()
    for group in groups(model):
        channels.update({m.operator: int((m.units >= 0).sum()) for m in group.members if m.makes})
    return channels


def shape(model: gm.Model, operator: str) -> tuple[int, ...]:
    return model.initializer(model.operators[model.position[operator]].input[1]).shape


# -- how much


def test_a_ratio_of_all_groups(small):
    assert widths(small) == [8, 6]
    assert widths(gm.prune(small, 0.5)) == [4, 3]
    assert widths(gm.prune(small, 0.75, multiple_of=2)) == [2, 2]


def test_ratios_by_group(small):
    assert widths(gm.prune(small, {"conv2": 0.5})) == [8, 3]
    assert widths(gm.prune(small, {"conv1": 0.25, "conv2": 0.5})) == [6, 3]


def test_only_where_a_selector_says(small):
    assert widths(gm.prune(small, 0.5, where="[name=conv1]")) == [4, 6]
    assert widths(gm.prune(small, weights=0.8, where="[name=conv2]"))[0] == 8


def test_a_global_ranking_takes_the_least_of_all(small):
    worth = {"conv1": np.arange(8.0) + 1, "conv2": np.full(6, 100.0)}
    assert widths(gm.prune(small, 4 / 14, importance=worth, ranking="global")) != [8, 6]
    equal = np.concatenate([[0.1] * 4, np.ones(4), np.ones(6)])
    assert widths(gm.prune(small, 4 / 14, importance=equal, ranking="global")) == [4, 6]


@pytest.mark.parametrize("ranking", ["local", "global"])
@pytest.mark.parametrize("budget", ["weights", "macs"])
def test_budgets_as_shares_and_as_numbers(demo, budget, ranking):
    before = getattr(gm.graph.cost(demo), budget)
    share = gm.prune(demo, **{budget: 0.4}, ranking=ranking)
    number = gm.prune(demo, **{budget: float(int(0.4 * before))}, ranking=ranking)
    for one in (share, number):
        assert 0.3 * before < getattr(gm.graph.cost(one), budget) <= 0.4 * before
        assert one.outputs == demo.outputs


def test_a_budget_above_what_there_is_removes_nothing(small):
    assert gm.prune(small, weights=1.0).n_weights == small.n_weights
    assert gm.prune(small, macs=1e9).n_weights == small.n_weights


def test_steps_reach_the_same_share(small):
    assert widths(gm.prune(small, 0.5, steps=3)) == widths(gm.prune(small, 0.5)) == [4, 3]


def test_steps_know_operators_without_names_again_where_others_are_put_before_them():
    model = net("(float[n,3] x) => (float[n,2] y) { n = Shape <start=0, end=1> (x)  s = Concat <axis=0> (n, eight)"
                "  z = Expand(o, s)  a = MatMul(x, w)  b = Add(a, z)  c = MatMul(b, u)  d = Tanh(c)"
                "  y = MatMul(d, v) }",
                {"w": (3, 8), "u": (8, 8), "v": (8, 2), "o": np.zeros((1, 1), np.float32),
                 "eight": np.array([8])})  # fmt: skip
    assert len(gm.prune(model, 0.5).operators) > len(model.operators)
    again = gm.prune(model, 0.5, steps=2)
    assert widths(again) == [4, 4]
    assert not any(operator.name for operator in again.operators if operator.output[0] in model.producer)
    assert gm.prune(model, 0.01, steps=2) is model


def test_recovery_knows_operators_without_names_where_normalisations_are_put_between_them(demo, samples):
    proto = demo.editable()
    for operator in proto.graph.node:
        operator.name = ""
    model = gm.load(proto)
    *others, last = groups(model)
    small = gm.prune(model, 0.5, where=f"[name={last.operators[0]}]", data=samples, epochs=1)
    assert widths(small) == [*(group.n_units for group in others), last.n_units // 2]
    assert small.operator_names == model.operator_names


@pytest.mark.parametrize("name", ["vit12", "bert"])
def test_steps_reach_the_same_share_where_units_change_on_the_way(name):
    """Once a single head is left, its channels are units, and groups have other names."""
    model = zoo.network(name).model
    before, after = made(model), made(gm.prune(model, 0.6, steps=3))
    assert before.keys() == after.keys()
    assert all(0.36 < after[name] / n < 0.44 for name, n in before.items())


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("parameters", [{"ratio": 0.9, "ranking": "global"}, {"weights": 0.36}, {"macs": 0.36}])
def test_no_group_loses_more_than_its_largest_share_in_all_steps_together(small, parameters, steps):
    assert min(np.divide(widths(gm.prune(small, **parameters, at_most=0.5, steps=steps)), [8, 6])) >= 0.5


def test_a_selector_is_of_the_network_as_it_was(demo, samples):
    made = gm.prune(demo, 0.5, where="Conv[name=node_Conv_642] > Relu", data=samples, epochs=1)
    assert gm.graph.cost(made).weights < gm.graph.cost(demo).weights


# -- what goes


@pytest.mark.parametrize("how", ["name", "mapping", "callable", "array"])
def test_what_units_are_worth(small, how):
    first, second = np.array([5, 1, 4, 2, 8, 3, 7, 6.0]), np.arange(6.0)
    given = {
        "name": "l2", "mapping": {"conv1": first, "conv2": second}, "array": np.concatenate([first, second]),
        "callable": lambda group, _: {"conv1": first, "conv2": second}[group.name],
    }[how]  # fmt: skip
    pruned = gm.prune(small, 0.5, importance=given, leftovers=False)
    w, u = small.initializer("w"), small.initializer("u")
    if how != "name":
        assert np.array_equal(pruned.initializer("w"), w[[0, 4, 6, 7]])
        assert np.array_equal(pruned.initializer("u"), u[3:][:, [0, 4, 6, 7]])
    assert pruned.initializer("u").shape == (3, 4, 1, 1)


def test_a_function_is_recorded_by_its_name_and_cannot_be_replayed(small):
    def largest(group, _):
        return np.arange(group.n_units, dtype=float)

    made = gm.prune(small, 0.5, importance=largest)
    with pytest.raises(RefusedError, match=r"there is no importance '.*largest'"):
        gm.apply(Recipe.of(made), small)


def test_steps_and_recovery_need_samples_and_use_them(demo, samples):
    made = gm.prune(demo, 0.3, data=samples, steps=2, epochs=1)
    assert made.outputs == demo.outputs
    assert made.n_weights < 0.6 * demo.n_weights
    assert made.n_weights == pytest.approx(gm.prune(demo, 0.3).n_weights, rel=0.05)


def test_recovery_with_targets_of_the_outputs_shape(small):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3, 4, 4)).astype(np.float32)
    data = {"x": x, "y": small.run({"x": x})["y"]}
    rough = gm.prune(small, 0.5, data=data, leftovers=False)
    better = gm.prune(small, 0.5, data=data, leftovers=False, epochs=20, learning_rate=0.01)
    assert gm.verify(small, better, x).outputs["y"].rms < 0.9 * gm.verify(small, rough, x).outputs["y"].rms
    with pytest.raises(InvalidDataError, match="do not fit outputs"):
        gm.prune(small, 0.5, data={"x": x, "y": data["y"][:, 0]}, epochs=1)


# -- what stays


@pytest.mark.parametrize("importance", ["l2", "random"])
def test_same_seed_same_bytes(demo, importance):
    first, again, other = (gm.prune(demo, 0.3, importance=importance, seed=seed) for seed in (1, 1, 2))
    assert first.digest == again.digest
    assert (first.digest == other.digest) == (importance == "l2")


def test_names_shapes_and_classes_of_outputs_stay(demo, samples):
    before = demo.proto().SerializeToString()
    made = gm.prune(demo, 0.7)
    assert demo.proto().SerializeToString() == before
    assert (made.inputs, made.outputs) == (demo.inputs, demo.outputs)
    assert made.operator_names == demo.operator_names
    inputs = {name: samples[name] for name in demo.inputs}
    for name, value in demo.run(inputs).items():
        assert made.run(inputs)[name].shape == value.shape


def test_samples_where_the_batch_is_fixed():
    """Shapes of samples must not take the place of sizes that the file fixes."""
    model = net("(float[1,3,4,4] x) => (float[1,2] y) { a = Conv(x, w)  r = Reshape(a, s)  y = MatMul(r, v) }",
                {"w": (6, 3, 1, 1), "s": np.array([1, 96]), "v": (96, 2)})  # fmt: skip
    data = {"x": np.random.default_rng(0).normal(size=(8, 3, 4, 4)).astype(np.float32)}
    made = gm.prune(model, 0.5, data=data)
    assert shape(made, "Conv_0") == (3, 3, 1, 1)
    assert made.run(feeds(model))["y"].shape == (1, 2)
    trained = gm.prune(model, 0.5, data={**data, "y": np.arange(8) % 2}, epochs=1)
    assert shape(trained, "Conv_0") == (3, 3, 1, 1)
    assert trained.run(feeds(model))["y"].shape == (1, 2)


def test_the_record_replays_to_the_same_bytes(small, demo, samples):
    for model, parameters in (
        (small, {"ratio": 0.5}), (small, {"ratio": {"conv1": 0.5}, "leftovers": False}),
        (small, {"weights": 0.5, "multiple_of": 2}),
        (small, {"ratio": 0.4, "ranking": "global", "where": "[name=conv*]"}),
        (demo, {"ratio": 0.5, "importance": "activation_norm", "data": samples}),
    ):  # fmt: skip
        made = gm.prune(model, **parameters)
        given = [parameters["data"]] if "data" in parameters else []
        again = gm.apply(Recipe.of(made), model, given=given)
        assert again.proto().SerializeToString() == made.proto().SerializeToString()


# -- what is refused


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({}, "nothing says how much to remove; give one of ratio, weights, macs, latency"),
        ({"ratio": 0.5, "macs": 0.5}, "ratio and macs both say how much to remove"),
        ({"ratio": {}}, "ratio is empty"),
        ({"ratio": 0.0}, "ratio=0.0 is out of range"),
        ({"ratio": 1.0}, "ratio=1.0 is out of range"),
        ({"ratio": -0.1}, "ratio=-0.1 is out of range"),
        ({"ratio": float("nan")}, "ratio=nan is out of range"),
        ({"ratio": {"conv1": 1.5}}, "ratio of conv1=1.5 is out of range"),
        ({"weights": 0.0}, "weights=0.0 is out of range"),
        ({"macs": float("nan")}, "macs=nan is out of range"),
        ({"ratio": 0.5, "at_most": 0.0}, "at_most=0.0 is out of range"),
        ({"ratio": 0.5, "steps": 0}, "steps=0 is out of range; it is a whole number from 1 on"),
        ({"ratio": 0.5, "steps": 2.5}, "steps=2.5"),
        ({"ratio": 0.5, "seed": -1}, "seed=-1"),
        ({"ratio": 0.5, "learning_rate": 0}, "learning_rate=0"),
        ({"ratio": "0.5"}, "ratio='0.5' is no number"),
        ({"ratio": {"conv1": "half"}}, "ratio of conv1='half' is no number"),
        ({"ratio": {"conv1": 0.5}, "ranking": "global"}, "nothing to rank across groups"),
        ({"ratio": 0.5, "ranking": "globl"}, "ranking='globl' is neither local nor global"),
        ({"ratio": 0.5, "multiple_of": 0}, "multiple_of=0"),
        ({"ratio": 0.5, "multiple_of": 2.5}, "multiple_of=2.5"),
        ({"ratio": {"conv7": 0.5}}, "no group of channels is named 'conv7'; did you mean 'conv"),
        ({"ratio": {"conv3": 0.5}}, "no group of channels is named 'conv3'"),
        ({"ratio": {"nothing": 0.5}}, "no group of channels is named 'nothing'; graphmod groups lists them"),
        ({"ratio": 0.5, "where": "Relu"}, "no operator that 'Relu' selects makes a group"),
        ({"ratio": 0.5, "where": "conv1"}, r"to pick by name, write \[name=conv1\]"),
        ({"ratio": {"conv1": 0.5}, "where": "[name=conv2]"}, "group 'conv1', which .* does not select"),
        ({"ratio": 0.5, "importance": "my.own"}, r'registered it, by @importance\("name"\)'),
        ({"ratio": 0.5, "learning_rate": 0.1}, "give epochs, too"),
        ({"ratio": 0.5, "importance": "tailor"}, "there is no importance 'tailor'; did you mean 'taylor'"),
        ({"weights": 0.01}, r"weights=0.01 cannot be met: with as much gone as at_most=0.9 and multiple_of=1 allow, "
                            r"\d+ of 84 weights \(.*%\) are left; "
                            r"what stays: conv3 \(2 channels\): output 'y' of the network"),
    ],
)  # fmt: skip
def test_refusals_say_what_is_wrong(small, parameters, told):
    digest = small.digest
    with pytest.raises(RefusedError, match=told):
        gm.prune(small, **parameters)
    assert small.digest == digest


@pytest.mark.parametrize(
    ("importance", "told"),
    [
        (np.ones(13), r"of the 2 groups together has shape \[13\]; it needs one number for each of 14 units"),
        ({"conv1": np.ones(8)}, "no importance is given for 1 of 2 groups, the first one is 'conv2'"),
        ({"conv1": np.ones(8), "conv2": np.ones(5)}, r"group 'conv2' has shape \[5\]"),
        ({"conv1": np.ones(8), "conv2": np.ones(6), "conv4": np.ones(1)}, "no group 'conv4'.*did you mean 'conv"),
        (lambda group, _: np.full(group.n_units, np.nan), "nan for unit 0"),
        ("taylor", "sample"),
    ],
)  # fmt: skip
def test_importances_that_do_not_fit(small, importance, told):
    with pytest.raises(InvalidDataError, match=told):
        gm.prune(small, 0.5, importance=importance)


def test_scores_are_needed_for_what_is_pruned_alone(small):
    both = {"conv1": np.arange(8.0), "conv2": np.arange(6.0)}
    by_share = gm.prune(small, {"conv1": 0.5}, importance={"conv1": both["conv1"]})
    by_where = gm.prune(small, 0.5, where="[name=conv1]", importance=both)
    assert by_share.proto().graph == by_where.proto().graph


def test_scores_that_are_given_are_of_one_step(small):
    with pytest.raises(InvalidDataError, match="name an importance"):
        gm.prune(small, 0.5, importance=np.ones(14), steps=2)


def test_recovery_without_samples(small):
    with pytest.raises(InvalidDataError, match="pass data="):
        gm.prune(small, 0.5, epochs=1)


def test_a_network_without_groups_says_why_of_each():
    model = net("(float[n,3,4,4] x) => (float[n,2,4,4] y) { [one] a = Conv(x, w)  [two] b = Softmax <axis=1> (a)"
                "  [three] y = Conv(b, v) }", {"w": (4, 3, 1, 1), "v": (2, 4, 1, 1)})  # fmt: skip
    with pytest.raises(RefusedError) as refused:
        gm.prune(model, 0.5)
    assert str(refused.value) == (
        "no group of channels can be pruned: one (4 channels): Softmax 'two' compares the values along the axis; "
        "three (2 channels): output 'y' of the network"
    )
    plain = net("(float[n,3] x) => (float[n,3] y) { y = Relu(x) }", {})
    with pytest.raises(GraphmodError, match="no other operator makes channels by its weights"):
        gm.prune(plain, 0.5)
