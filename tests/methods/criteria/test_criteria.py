"""Criteria: planted identities, plain formulas on removed blocks, and scipy's rank correlation."""

from __future__ import annotations

import io
import json
import sys
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import graphmod
from planted import net
from rich.console import Console
from scipy.stats import entropy, spearmanr

import graphmod as gm
from graphmod.cli.rank import _table
from graphmod.methods import deeparc
from graphmod.methods.criteria import CRITERIA, Ranking, criterion, skip_greedily
from graphmod.methods.criteria.kl import divergence
from graphmod.methods.skipping import skip
from graphmod.rewrite import Region

sys.path.append(str(Path(__file__).parent.parent / "deeparc"))
from networks import residual, samples

IDENTITIES = {1, 4}


@pytest.fixture(scope="module", params=[False, True], ids=["vectors", "sequences"])
def planted(request):
    scales = [0.0 if place in IDENTITIES else 0.6 for place in range(6)]
    model = residual(scales, channels_first=request.param)
    return model, samples(model)


@pytest.fixture(scope="module")
def ranking(planted):
    return gm.rank_blocks(*planted)


@pytest.mark.parametrize("name", ["kl", "norm_ratio", "gradient", "cka"])
def test_identities_are_missed_least(ranking, name):
    assert set(ranking.scores[name].argsort()[:2]) == IDENTITIES
    assert ranking.scores[name][list(IDENTITIES)] == pytest.approx([0, 0], abs=1e-5)
    assert set(ranking.order(name)[:2]) == {ranking.blocks[place] for place in IDENTITIES}


def test_identities_lose_nothing(ranking):
    assert ranking.loss[list(IDENTITIES)] == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("by", ["kl", "margin", "loss"])
def test_removal_finds_the_identities_first(planted, by):
    model, data = planted
    steps = skip_greedily(model, data.calibration, by)
    blocks = deeparc.residual_blocks(model)
    assert {blocks.index(next(steps).blocks[0])} <= IDENTITIES
    both = next(steps)
    assert {blocks.index(block) for block in both.blocks} == IDENTITIES
    assert gm.verify(model, both.model, data.test).exact
    assert [len(step.blocks) for step in steps] == [3, 4, 5, 6]


def test_a_beam_of_all_choices_finds_the_best():
    model = residual([0.6, 0.9, 0.7, 0.8], seed=3)
    data = samples(model, n=60).calibration
    blocks = deeparc.residual_blocks(model)
    whole = torch.from_numpy(model.run(data.inputs)["y"]).log_softmax(1)
    damage = {}
    for pair in combinations(blocks, 2):
        without = torch.from_numpy(skip(model, pair).run(data.inputs)["y"]).log_softmax(1)
        damage[pair] = float(torch.nn.functional.kl_div(without, whole, log_target=True, reduction="batchmean"))
    _, found, *_ = islice(skip_greedily(model, data, "kl", width=4), 2)
    assert found.blocks == min(damage, key=damage.get)
    assert found.score == pytest.approx(min(damage.values()), rel=1e-4)


def test_scores_are_the_formulas_on_removed_blocks(planted, ranking):
    model, data = planted
    part = data.calibration
    labels = torch.from_numpy(part.targets)
    whole = torch.from_numpy(model.run(part.inputs)["y"]).double().log_softmax(1)
    for place, region in enumerate(ranking.regions):
        smaller = gm.remove(model, (region.entry, region.exit))
        other = torch.from_numpy(smaller.run(part.inputs)["y"]).double().log_softmax(1)
        wanted = {
            "kl": torch.nn.functional.kl_div(other, whole, log_target=True, reduction="batchmean"),
            "loss": torch.nn.functional.nll_loss(other, labels) - torch.nn.functional.nll_loss(whole, labels),
            "margin": _hinge(other, labels) - _hinge(whole, labels),
        }
        for name, value in wanted.items():
            assert ranking.scores[name][place] == pytest.approx(float(value), abs=1e-6), name
        seen = model.run(part.inputs, [region.exit, region.entry])
        added = seen[region.exit] - seen[region.entry]
        ratio = np.linalg.norm(added) / np.linalg.norm(seen[region.entry])
        assert ranking.scores["norm_ratio"][place] == pytest.approx(ratio, rel=1e-5, abs=1e-7)


def _hinge(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean hinge loss, a sample after the other."""
    losses = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        others = [value for place, value in enumerate(row) if place != label]
        losses.append(max(0.0, 1 - row[label] + max(others)))
    return sum(losses) / len(losses)


def test_the_gradient_is_the_loss_curve_at_its_start():
    """Along the way from a block's exit to its entry the loss starts with the slope that the criterion sums up."""
    model = residual([0.5, 0.5])
    data = samples(model)
    one = data.calibration[:1]
    ranking = gm.rank_blocks(model, gm.Splits(data.train, one, data.test), ["gradient"])
    for place, region in enumerate(ranking.regions):
        seen = model.run(one.inputs, [region.entry, region.exit])
        behind = gm.extract(model, region.exit, "y")

        def loss(share, seen=seen, region=region, behind=behind):
            moved = (1 - share) * seen[region.exit] + share * seen[region.entry]
            scores = torch.from_numpy(behind.run({region.exit: moved.astype(np.float32)})["y"]).double()
            return float(torch.nn.functional.cross_entropy(scores, torch.from_numpy(one.targets)))

        slope = (loss(0.01) - loss(-0.01)) / 0.02
        assert ranking.scores["gradient"][place] == pytest.approx(abs(slope), rel=0.02, abs=1e-5)


def test_correlation_is_spearmans(ranking):
    for name, scores in ranking.scores.items():
        assert ranking.correlation[name] == pytest.approx(spearmanr(scores, ranking.loss).statistic)


def test_loss_is_of_other_samples_than_the_scores(planted):
    model, data = planted
    one = gm.rank_blocks(model, data, ["kl", "loss"])
    other = gm.rank_blocks(model, gm.Splits(data.train, data.calibration, data.train), ["kl", "loss"])
    np.testing.assert_array_equal(one.scores["kl"], other.scores["kl"])
    np.testing.assert_array_equal(one.scores["loss"], other.scores["loss"])
    assert (one.loss != other.loss).any()


@pytest.mark.parametrize("way", ["by fours", "half precision"])
def test_the_form_of_the_model_changes_nothing(way):
    model = residual([0.5, 0.0, 0.5])
    data = samples(model, n=40)
    if way == "by fours":
        other, tolerance = gm.rank_blocks(gm.rebatch(model, 4), data), 1e-6
    else:
        parts = (data.train, data.calibration, data.test)
        halves = (gm.Data({"x": part.inputs["x"].astype(np.float16)}, part.targets) for part in parts)
        other, tolerance = gm.rank_blocks(gm.retype(model, "float16", keep_io=False), gm.Splits(*halves)), 1e-2
    one = gm.rank_blocks(model, data)
    for name in CRITERIA:
        np.testing.assert_allclose(one.scores[name], other.scores[name], atol=tolerance)


def test_samples_beyond_what_the_model_takes_at_a_time_are_left_out():
    model = residual([0.5, 0.0, 0.5])
    data = samples(model, n=42)
    by_fours = gm.rebatch(model, 4)
    for values in gm.rank_blocks(by_fours, data).scores.values():
        assert np.isfinite(values).all()
    assert len(next(skip_greedily(by_fours, data.test)).blocks) == 1
    few = gm.Splits(data.train, data.calibration[:3], data.test)
    with pytest.raises(gm.InvalidDataError, match="takes 4 samples at a time, and the data has 3"):
        gm.rank_blocks(by_fours, few)


def test_a_class_that_is_ruled_out_costs_nothing():
    with np.errstate(divide="ignore"):
        p, q = np.log([[0.5, 0.5, 0.0]]), np.log([[0.25, 0.75, 0.0]])
    assert divergence(p, q) == pytest.approx(float(entropy([0.5, 0.5], [0.25, 0.75])))


MASKED = """(float[n,4,6] x, float[n,4,1] mask) => (float[n,3] y) {
    h0 = MatMul(x, p)
    u0 = MatMul(h0, a)  r0 = Relu(u0)  v0 = Mul(r0, mask)  h1 = Add(v0, h0)
    u1 = MatMul(h1, b)  r1 = Relu(u1)  v1 = Mul(r1, mask)  h2 = Add(v1, h1)
    g = ReduceMean<axes=[1], keepdims=0>(h2)  y = MatMul(g, q) }"""


def test_masks_reach_what_lies_behind_a_block():
    model = net(MASKED, {"p": (6, 6), "a": (6, 6), "b": (6, 6), "q": (6, 3)})
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(50, 4, 6)), "mask": rng.random((50, 4, 1)) > 0.5}
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    data = gm.Data(inputs, model.run(inputs)["y"].argmax(1))
    ranking = gm.rank_blocks(model, gm.Splits(data, data, data), ["loss"])
    labels = torch.from_numpy(data.targets)

    def loss(one):
        return float(torch.nn.functional.cross_entropy(torch.from_numpy(one.run(inputs)["y"]), labels))

    wanted = [loss(gm.remove(model, (region.entry, region.exit))) - loss(model) for region in ranking.regions]
    assert ranking.scores["loss"] == pytest.approx(wanted, abs=1e-5)


def test_a_softmax_at_the_end_changes_nothing():
    model = residual([0.5, 0.0, 0.5])
    data = samples(model)
    soft = gm.insert(model, "y", "Softmax(axis=1)")
    one, other = gm.rank_blocks(model, data), gm.rank_blocks(soft, data)
    for name in CRITERIA:
        np.testing.assert_allclose(one.scores[name], other.scores[name], atol=1e-6)


def test_named_blocks(planted):
    model, data = planted
    found = gm.rank_blocks(model, data, ["kl"], ["h0..h2", ("h4", "h5")])
    assert found.blocks == ("h0..h2", "h4..h5")
    assert found.order()[0] == "h4..h5"


def test_one_criterion_may_be_a_plain_string(planted):
    assert list(gm.rank_blocks(*planted, "kl", ["h0..h2"]).scores) == ["kl"]


def test_the_table_is_whole_on_80_columns():
    model, scores = gm.load(gm.demo.model_path()), np.array([0.1234, 1234.5678])
    names = ("layer1.1", "encoder.layers.layer1.2.residual")
    regions = tuple(Region(block.entry, block.exit) for block in gm.blocks(model)["layer1"].children[1:3])
    found = Ranking(names, regions, dict.fromkeys(CRITERIA, scores), scores)
    streams = io.StringIO()
    Console(width=80, file=streams).print(_table(found, names, {names[0]: 0.016, names[1]: 0.5}))
    shown = streams.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("1235") == len(CRITERIA) + 1
    assert "1.6%" in shown


def test_refusals(planted):
    model, data = planted
    few = gm.Splits(data.train, data.calibration[:2], data.test)
    with pytest.raises(gm.InvalidDataError, match=r"the calibration part, .*at least 4 samples"):
        gm.rank_blocks(model, few, "cka")
    with pytest.raises(gm.RefusedError, match="there is no criterion 'size'"):
        gm.rank_blocks(model, data, ["size"])
    with pytest.raises(gm.RefusedError, match="no criterion is given"):
        gm.rank_blocks(model, data, [])
    with pytest.raises(gm.RefusedError, match="seed=-1 is out of range"):
        gm.rank_blocks(model, data, seed=-1)
    with pytest.raises(gm.RefusedError, match="no blocks are given"):
        gm.rank_blocks(model, data, blocks=[])
    demo = gm.load(gm.demo.model_path())
    with pytest.raises(gm.RefusedError, match="changes the type, so it cannot be skipped"):
        gm.rank_blocks(demo, gm.demo.splits(), ["kl"], ["layer2.0"])
    with pytest.raises(gm.RefusedError, match="follows nothing up"):
        next(skip_greedily(model, data.calibration, width=0))


def test_a_network_in_which_nothing_can_be_skipped_is_refused():
    model = net("(float[n,4] x) => (float[n,3] y) { a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, u) }",
                {"w": (4, 5), "u": (5, 3)})  # fmt: skip
    data = samples(model)
    with pytest.raises(gm.RefusedError, match="none can be skipped"):
        gm.rank_blocks(model, data)
    with pytest.raises(gm.RefusedError, match="none can be skipped"):
        next(skip_greedily(model, data.calibration))


def test_the_command_tells_what_blocks_weigh_and_which_cannot_be_skipped():
    told = json.loads(
        graphmod(
            "rank",
            gm.demo.model_path(),
            gm.demo.data_path(),
            "--by",
            "norm_ratio",
            "--criterion",
            "norm_ratio",
            "--json",
        ).stdout
    )
    assert told["not_skippable"] == ["layer2.0", "layer3.0"]
    model = gm.load(gm.demo.model_path())
    own = gm.graph.cost(model, gm.blocks(model)["layer1.3"].operators).weights
    assert told["weights"]["layer1.3"] == own / model.n_weights


def test_a_name_is_registered_once():
    with pytest.raises(gm.RefusedError, match="there is a criterion 'kl'"):
        criterion("kl")(lambda evidence: np.zeros(len(evidence.regions)))
    assert CRITERIA["kl"].__module__ == "graphmod.methods.criteria.kl"


def test_the_command(tmp_path):
    model = residual([0.6, 0.0, 0.6])
    data = samples(model)
    model.save(tmp_path / "net.onnx")
    parts = {name: getattr(data, name) for name in ("train", "calibration", "test")}
    arrays = {f"x_{name}": part.inputs["x"] for name, part in parts.items()}
    np.savez(tmp_path / "data.npz", **arrays, **{f"y_{name}": part.targets for name, part in parts.items()})
    given = (tmp_path / "net.onnx", tmp_path / "data.npz")
    done = graphmod("rank", *given)
    assert done.returncode == 0, done.stderr
    assert "rank correlation with loss" in done.stdout
    assert all(part in done.stdout for name in CRITERIA for part in name.split("_"))
    told = json.loads(graphmod("rank", *given, "--by", "margin", "--criterion", "cka", "--json").stdout)
    assert set(told["correlation"]) == {"margin", "cka"}
    assert set(told["weights"]) == set(told["order"])
    assert told["order"] == list(gm.rank_blocks(model, data, ["margin"]).order("margin"))
    assert graphmod("rank", *given, "--by", "size").returncode == 2
