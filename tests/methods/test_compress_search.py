"""The search: planted blocks are found, what is said of edges and points is what happens when they are run."""

import importlib
from itertools import pairwise

import numpy as np
import pytest
from counted_clock import set_clock
from handmade import model
from onnx import helper
from scipy.special import softmax

import graphmod as gm
from graphmod.methods.compress.activations import Activations
from graphmod.methods.compress.clock import Clock
from graphmod.methods.compress.damage import Damage, divergence, squared_error
from graphmod.methods.compress.kinds import CLOSED_FORM, SEARCHED, kinds
from graphmod.methods.compress.line import Line
from graphmod.methods.compress.points import build, drops, fused, verified
from graphmod.methods.compress.search import Edge, Search, route_latency, spread
from graphmod.methods.compress.site import ROWS
from graphmod.probe import share_correct

CHANNELS, CLASSES, BLOCKS = 6, 5, 5


def network(planted, seed):
    """Return a convolution, residual blocks (h1, h2, ...) and a classifier; planted blocks add next to nothing."""
    rng = np.random.default_rng(seed)

    def kernel(n_in, n_out, size, gain):
        return (gain * rng.normal(size=(n_out, n_in, size, size)) / np.sqrt(n_in * size**2)).astype(np.float32)

    weights = {"stem": kernel(2, CHANNELS, 3, 1.0)}
    operators = [helper.make_node("Conv", ["x", "stem"], ["h0"], pads=[1] * 4, name="stem")]
    for i in range(1, BLOCKS + 1):
        weights[f"a{i}"] = kernel(CHANNELS, CHANNELS, 3, 1.5)
        weights[f"b{i}"] = kernel(CHANNELS, CHANNELS, 3, 1e-4 if i in planted else 1.0)
        operators += [
            helper.make_node("Conv", [f"h{i - 1}", f"a{i}"], [f"c{i}"], pads=[1] * 4, name=f"a{i}"),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"),
            helper.make_node("Conv", [f"r{i}", f"b{i}"], [f"d{i}"], pads=[1] * 4, name=f"b{i}"),
            helper.make_node("Add", [f"h{i - 1}", f"d{i}"], [f"h{i}"], name=f"add{i}"),
        ]
    weights["head"] = (2 * rng.normal(size=(CHANNELS, CLASSES))).astype(np.float32)
    operators += [
        helper.make_node("GlobalAveragePool", [f"h{BLOCKS}"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "head"], ["logits"], name="head"),
    ]
    return model(operators, {"x": ["n", 2, 6, 6]}, {"logits": ["n", CLASSES]}, weights)


@pytest.fixture(scope="module", autouse=True)
def clock():
    """Let operators take as long as they have multiply-accumulates, so that no choice depends on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patched(patch)
        yield


def patched(monkeypatch):

    def ratios(clock, models):
        whole = gm.graph.cost(clock.line.original).macs
        return [gm.graph.cost(one).macs / whole for one in models]

    set_clock(monkeypatch, 500.0, ratios, spread=8)


def samples(n, seed):
    return gm.Data({"x": np.random.default_rng(seed).normal(size=(n, 2, 6, 6)).astype(np.float32)})


def search_of(original, folder):
    line = Line.of(original)
    held = []
    for number, n in enumerate((200, 120)):
        (folder / str(number)).mkdir()
        held.append(Activations.stream(original, samples(n, number), line.tensors, folder / str(number), n))
    damage = Damage(original, "logits", True, held[1])
    pairs = [(a, b) for a in range(len(line)) for b in range(a + 1, len(line))]
    return Search(line, Clock(line, held[0].data, (1,)), held[0], damage, pairs, lambda _: None)


@pytest.fixture(scope="module")
def search(tmp_path_factory, clock):  # noqa: ARG001  # the clock must be there first
    return search_of(network({2, 4}, 0), tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def routes(search):
    return search.fronts()


@pytest.mark.parametrize(("seed", "planted"), [(1, {1}), (2, {2, 3}), (3, {1, 3, 5}), (4, set())])
def test_planted_blocks_are_found_and_no_others(tmp_path, seed, planted):
    found = search_of(network(planted, seed), tmp_path)
    harmless = [route for route in found.fronts() if sum(edge.error for edge in route) < 1e-6]
    fastest = min(harmless, key=route_latency)
    gone = [(edge.start, edge.stop) for edge in fastest if edge.part is not None and edge.part.kind == "identity"]
    tensors = found.line.tensors
    removed = {tensors[i] for start, stop in gone for i in range(start + 1, stop + 1)}
    assert {int(name[1:]) for name in removed if name.startswith("h") and name != "h0"} == planted


def test_every_edge_of_a_front_does_the_damage_that_it_is_said_to_do(search, routes):
    x = search.damage.samples.data.inputs["x"]
    wanted = search.line.original.run({"x": x})["logits"]
    edges = {id(edge): edge for route in routes for edge in route if edge.part is not None}
    assert len(edges) > 5
    for edge in list(edges.values())[::3]:
        found = search.line.build([edge.part]).run({"x": x})["logits"]
        assert edge.is_measured
        assert edge.error == pytest.approx(divergence(found, wanted), rel=1e-3, abs=1e-7)


def test_fronts_trade_latency_for_damage(search, routes):
    latencies = [route_latency(route) for route in routes]
    damages = [sum(edge.error for edge in route) for route in routes]
    assert all(a <= b + 1e-3 for a, b in pairwise(latencies))
    assert all(a > b for a, b in pairwise(damages))
    assert damages[-1] == 0
    for route in routes:
        assert [edge.start for edge in route] == [0, *(edge.stop for edge in route)][:-1]
        assert route[-1].stop == len(search.line) - 1
    few = spread(routes, 5)
    assert len(few) <= 5
    assert (few[0], few[-1]) == (routes[0], routes[-1])


def test_points_are_what_they_are_said_to_be(search, routes):
    original, data = search.line.original, search.damage.samples.data
    labels = original.run(dict(data.inputs))["logits"].argmax(axis=1)
    calibration = gm.Data(data.inputs, labels)
    points = verified(search, spread(routes, 4), calibration, share_correct)
    assert [point.latency for point in points] == sorted(point.latency for point in points)
    for point in points:
        logits = point.model.run(dict(data.inputs))["logits"]
        assert point.score == pytest.approx((logits.argmax(axis=1) == labels).mean())
        assert point.error == pytest.approx(divergence(logits, original.run(dict(data.inputs))["logits"]), abs=1e-7)
        scores = drops(search, point.parts, share_correct, labels)
        for n, score in enumerate(scores, 1):
            partly = search.line.build(point.parts[:n]).run(dict(data.inputs))["logits"]
            assert score == pytest.approx((partly.argmax(axis=1) == labels).mean(), abs=0.009)


def test_parts_are_fitted_behind_those_before_them(search):
    """A second linear map sees what the first makes, and is the better for it."""
    x = search.fitted_on.data.inputs["x"]
    linear = next(kind for kind in kinds(CLOSED_FORM) if kind.name == "linear")
    route = []
    for i in range(len(search.line) - 1):
        (part,) = linear.make(search.site(i, i + 1, ROWS)) if i in (1, 3) else (None,)
        route.append(Edge(i, i + 1, 0.1, 0.0, linear if part else None, part))
    parts, _ = build(search, tuple(route))
    exit_ = parts[-1].exit

    def error(parts):
        found = search.line.build(parts).run({"x": x}, [exit_])[exit_]
        return ((found - search.fitted_on.of[exit_]) ** 2).mean()

    assert parts[0].error == pytest.approx(route[1].part.error)
    assert error(parts) < 0.99 * error([edge.part for edge in route if edge.part is not None])


def test_data_in_the_order_of_their_classes(tmp_path):
    original, data = network(set(), 0), samples(200, 4)
    held = Activations.stream(original, gm.Data(data.inputs, np.repeat([0, 1], 100)), ["h0"], tmp_path, 60)
    assert len(held) == 60
    assert 15 < held.data.targets.sum() < 45


def test_parts_that_were_searched_for_are_trained_by_themselves(search):
    """Behind another part too, whose activations differ from the original's: what they give comes nearer."""
    kept = {kind.name: kind for kind in (*kinds(CLOSED_FORM), *kinds(SEARCHED))}
    first = next(kept["linear"].make(search.site(1, 2, ROWS)))
    second = next(kept["pruned"].make(search.site(2, 3, ROWS)))
    route = [Edge(i, i + 1, 0.1, 0.0) for i in range(len(search.line) - 1)]
    route[1] = Edge(1, 2, 0.1, 0.0, kept["linear"], first)
    route[2] = Edge(2, 3, 0.1, 0.0, kept["pruned"], second)
    (plain, _), (trained, whole) = build(search, tuple(route)), build(search, tuple(route), epochs=20)
    x = search.fitted_on.data.inputs["x"]
    wanted = search.fitted_on.of[second.exit]

    def error(parts):
        return ((search.line.build(parts).run({"x": x}, [second.exit])[second.exit] - wanted) ** 2).mean()

    assert error(trained) < 0.9 * error(plain)
    assert plain[1] is second
    assert trained[0].error == pytest.approx(plain[0].error)
    np.testing.assert_allclose(whole.run({"x": x})["logits"], search.line.build(trained).run({"x": x})["logits"])


def test_linear_layers_in_a_row_become_one(search):
    linear = next(kind for kind in kinds(CLOSED_FORM) if kind.name == "linear")
    both = search.line.build([next(linear.make(search.site(i, i + 1, ROWS))) for i in (1, 2)])
    one = fused(both, "chain")
    x = search.fitted_on.data.inputs["x"]
    assert len(one.operators) == len(both.operators) - 2  # the convolution before them is the third
    np.testing.assert_allclose(one.run({"x": x})["logits"], both.run({"x": x})["logits"], atol=1e-4)


def test_divergence_and_squared_error():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 4))
    p, q = softmax(b, axis=1), softmax(a, axis=1)
    assert divergence(a, b) == pytest.approx((p * np.log(p / q)).sum(axis=1).mean())
    assert squared_error(a, b) == pytest.approx(((a - b) ** 2).sum() / (b**2).sum())
    assert divergence(np.full((2, 3), np.nan), np.ones((2, 3))) == squared_error(np.array([np.inf]), b) == np.inf
    assert squared_error(np.ones(3), np.zeros(3)) == 1


def test_activations_take_bounded_room(tmp_path, monkeypatch):
    module = importlib.import_module("graphmod.methods.compress.activations")
    original = network(set(), 0)
    tensors = Line.of(original).tensors
    data = samples(90, 3)
    whole = Activations.stream(original, data, tensors, tmp_path, 1000)
    assert len(whole) == 90
    assert all(isinstance(value, np.memmap) for value in whole.of.values())
    np.testing.assert_allclose(whole.of["h3"], original.run(dict(whole.data.inputs), ["h3"])["h3"], atol=1e-5)
    each = sum(value[0].nbytes for value in whole.of.values())
    monkeypatch.setattr(module, "BYTES", 50 * each)
    (tmp_path / "few").mkdir()
    assert len(Activations.stream(original, data, tensors, tmp_path / "few", 1000)) == 50
    monkeypatch.setattr(module, "BYTES", 1)
    (tmp_path / "least").mkdir()
    assert len(Activations.stream(original, data, tensors, tmp_path / "least", 1000)) == module.LEAST
