"""Learning another network's activations, against a plain loop in torch."""

from dataclasses import replace

import numpy as np
import plain
import pytest
import torch
from handmade import fan
from onnx import helper
from planted import net
from torch import nn
from torch.nn import functional

import graphmod as gm
from graphmod.data import as_splits
from graphmod.train import Imitation, retrain, retrained

torch.set_num_threads(1)

OPTIONS = {"epochs": 3, "batch_size": 16, "seed": 5, "patience": 99}


def chain(seed, batch="n"):
    return fan([8, 6, 6, 3], np.random.default_rng(seed), batch=batch)


def parts(n=40, seed=0, size=(7,), classes=3, name="x"):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(3, n, *size)).astype(np.float32), rng.integers(0, classes, (3, n))
    return gm.Splits(*(gm.Data({name: one}, targets) for one, targets in zip(x, y, strict=True)))


def activations(network, data, tensor):
    return network.run(data.inputs, [tensor])[tensor]


def never_worse(outputs, targets):  # noqa: ARG001  # the signature is that of a metric
    never_worse.calls += 1
    return never_worse.calls


never_worse.calls = 0


def changed(before, after):
    return {n for n in before.initializers if before.initializer(n).tobytes() != after.initializer(n).tobytes()}


@pytest.mark.parametrize("weight", [0.25, 1])
@pytest.mark.parametrize("shown", [None, 7], ids=["same samples", "others"])
@pytest.mark.parametrize(("learn", "blocks"), [("w1", ("t0", "t1")), ("w0", ("x", "t0"))])
def test_the_same_as_a_plain_loop(weight, shown, learn, blocks):
    network, other, data = chain(0), chain(1), parts()
    seen = data if shown is None else parts(seed=shown)
    imitate = Imitation("t2", other, None if shown is None else seen, weight=weight)
    metric = {} if weight == 1 else {"metric": never_worse}
    run = retrained(network, data, [blocks], imitate=imitate, learning_rate=0.01, **metric, **OPTIONS)
    if weight == 1:  # no metric makes the last epoch the best one
        assert [check.score for check in run.history] == sorted(check.score for check in run.history)
    wanted = activations(other, seen.train, "t2")
    pairs = [(data.train.inputs["x"], data.train.targets)]
    expected = plain.trained(
        network, {learn}, pairs, epochs=3, lr=0.01, seed=5, wanted=[wanted], at=2, weight=weight
    )  # fmt: skip
    assert changed(network, run.model) == {learn}
    assert np.abs(run.model.initializer(learn) - network.initializer(learn)).max() > 0.01
    np.testing.assert_allclose(run.model.initializer(learn), expected[learn], atol=1e-5)


def test_alone_it_ranks_epochs_by_the_squared_error_on_calibration_data():
    network, other, data = chain(0), chain(1), parts()
    seen = parts(seed=3)
    run = retrained(
        network, data, [("t0", "t1")], imitate=Imitation("m2", other, seen, 1, of="t1"), learning_rate=0.3, **OPTIONS
    )

    def score(one):
        error = activations(one, data.calibration, "m2") - activations(other, seen.calibration, "t1")
        return -float((error.astype(np.float64) ** 2).mean())

    scores = [check.score for check in run.history]
    assert scores[0] == pytest.approx(score(network), rel=1e-4)
    assert max(scores) == pytest.approx(score(run.model), rel=1e-4)
    assert len(scores) == 4


def mysterious(network):
    """Return a network with an operator at its end that nothing here knows."""
    proto = network.proto()
    proto.graph.node.append(helper.make_node("Mystery", ["t3"], ["y"], domain="com.example"))
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    proto.graph.output[0].name = "y"
    return gm.load(proto)


def test_what_lies_behind_the_tensor_is_neither_run_nor_imported():
    network, other = chain(0), chain(1)
    strange = mysterious(network)
    data = parts()
    bare = gm.Splits(*(gm.Data(part.inputs) for part in (data.train, data.calibration, data.test)))  # nor targets
    with pytest.raises(gm.InvalidModelError):
        strange.run(data.train.inputs)
    options = {"imitate": Imitation("t2", mysterious(other), weight=1), "learning_rate": 0.01, **OPTIONS}
    after = retrain(strange, bare, [("t0", "t1")], **options)
    expected = retrain(network, data, [("t0", "t1")], **{**options, "imitate": Imitation("t2", other, weight=1)})
    assert changed(strange, after) == {"w1"}
    assert after.initializer("w1").tobytes() == expected.initializer("w1").tobytes()
    with pytest.raises(gm.GraphmodError):
        retrain(strange, data, [("t0", "t1")], epochs=1)


def test_a_broken_layer_is_brought_back():
    network, data = chain(0), parts(400)
    proto = network.proto()
    rng = np.random.default_rng(9)
    broken = rng.normal(size=(8, 6)).astype(np.float32)
    next(t for t in proto.graph.initializer if t.name == "w1").raw_data = broken.tobytes()
    start = gm.load(proto)
    after = retrain(
        start, data, [("t0", "m1")], imitate=Imitation("m1", network, weight=1), learning_rate=0.1, epochs=60
    )
    wanted, before, found = (activations(one, data.test, "t3") for one in (network, start, after))
    assert np.square(found - wanted).mean() < 0.01 * np.square(before - wanted).mean()


def test_the_output_itself_may_be_imitated_beside_the_loss():
    network, other, data = chain(0), chain(1), parts()
    options = {"learning_rate": 0.01, "metric": never_worse, **OPTIONS}
    after = retrain(network, data, [("t2", "t3")], imitate=Imitation("t3", other, weight=0.5), **options)
    wanted = activations(other, data.train, "t3")
    expected = plain.trained(
        network, {"w3"}, [(data.train.inputs["x"], data.train.targets)], epochs=3, lr=0.01, seed=5, wanted=[wanted],
        at=3, weight=0.5,
    )  # fmt: skip
    np.testing.assert_allclose(after.initializer("w3"), expected["w3"], atol=1e-5)


@pytest.mark.parametrize("batch", [1, 8])
def test_networks_of_a_fixed_batch(batch):
    data = parts()
    free = retrain(chain(0), data, [("t0", "t1")], imitate=Imitation("t2", chain(1), weight=1), **OPTIONS)
    fixed = retrain(
        chain(0, batch), data, [("t0", "t1")], imitate=Imitation("t2", chain(1, batch), weight=1), **OPTIONS
    )
    np.testing.assert_allclose(fixed.initializer("w1"), free.initializer("w1"), atol=1e-5)
    assert changed(chain(0, batch), fixed) == {"w1"}


@pytest.mark.parametrize("weight", [0.5, 1])
def test_half_precision_is_trained_in_single(weight):
    half, other = (gm.retype(chain(seed), "float16") for seed in (0, 1))
    wide, wide_other = (gm.retype(one, "float32") for one in (half, other))
    data = parts()
    metric = {} if weight == 1 else {"metric": never_worse}
    after = retrain(half, data, [("x", "t1")], imitate=Imitation("t1", other, weight=weight), **metric, **OPTIONS)
    expected = retrain(
        wide, data, [("x", "t1")], imitate=Imitation("t1", wide_other, weight=weight), **metric, **OPTIONS
    )
    assert changed(half, after) == {"w0", "w1"}
    for name in ("w0", "w1"):
        np.testing.assert_allclose(after.initializer(name), expected.initializer(name), atol=2e-3)


CONVOLUTIONAL = """
(float[n,2,16] x) => (float[n,4] y) {
    a = Conv <kernel_shape = [3], pads = [1, 1]> (x, w0, b0)
    r = Relu (a)
    c = Conv <kernel_shape = [3], strides = [2], pads = [1, 1]> (r, w1, b1)
    s = Relu (c)
    p = GlobalAveragePool (s)
    f = Flatten (p)
    y = Gemm (f, w2, b2)
}
"""


def convolutional(seed):
    shapes = {"w0": [5, 2, 3], "b0": [5], "w1": [6, 5, 3], "b1": [6], "w2": [6, 4], "b2": [4]}
    rng = np.random.default_rng(seed)
    return net(CONVOLUTIONAL, {name: rng.normal(size=shape).astype(np.float32) / 2 for name, shape in shapes.items()})


def test_a_convolutional_network_over_time():
    network, other = convolutional(0), convolutional(1)
    data = parts(size=(2, 16), classes=4)
    after = retrain(
        network, data, [("r", "c")], imitate=Imitation("s", other, weight=0.5), metric=never_worse,
        learning_rate=0.01, **OPTIONS,
    )  # fmt: skip
    fixed = {name: torch.tensor(network.initializer(name)) for name in network.initializers}
    learnt = {name: nn.Parameter(fixed[name].clone()) for name in ("w1", "b1")}
    x, y = torch.from_numpy(data.train.inputs["x"]), torch.from_numpy(data.train.targets)
    wanted = torch.from_numpy(activations(other, data.train, "s"))
    optimizer = torch.optim.Adam(learnt.values(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    rng = np.random.default_rng(5)
    for _ in range(3):
        order = rng.permutation(40)
        for start in (0, 16, 32):
            rows = order[start : start + 16]
            before = functional.conv1d(x[rows], fixed["w0"], fixed["b0"], padding=1).relu()
            s = functional.conv1d(before, learnt["w1"], learnt["b1"], stride=2, padding=1).relu()
            logits = s.mean(dim=2) @ fixed["w2"] + fixed["b2"]
            optimizer.zero_grad()
            (0.25 * ((s - wanted[rows]) ** 2).mean() + 0.5 * functional.cross_entropy(logits, y[rows])).backward()
            optimizer.step()
            schedule.step()
    assert changed(network, after) == {"w1", "b1"}
    for name, value in learnt.items():
        np.testing.assert_allclose(after.initializer(name), value.detach(), atol=1e-5)


TRANSFORMER = """
(float[n,5,8] x) => (float[n,4] y) {
    h = LayerNormalization (x, g0, c0)
    q = MatMul (h, wq)
    k = MatMul (h, wk)
    v = MatMul (h, wv)
    kt = Transpose <perm = [0, 2, 1]> (k)
    a = MatMul (q, kt)
    s = Softmax (a)
    o = MatMul (s, v)
    z = MatMul (o, wo)
    r = Add (x, z)
    e = LayerNormalization (r, g1, c1)
    u = MatMul (e, w1)
    t = Relu (u)
    d = MatMul (t, w2)
    out = Add (r, d)
    m = ReduceMean <axes = [1], keepdims = 0> (out)
    y = MatMul (m, wy)
}
"""


def transformer(seed):
    square = {name: [8, 8] for name in ("wq", "wk", "wv", "wo")}
    shapes = {"g0": [8], "c0": [8], "g1": [8], "c1": [8], **square, "w1": [8, 12], "w2": [12, 8], "wy": [8, 4]}
    rng = np.random.default_rng(seed)
    return net(TRANSFORMER, {name: rng.normal(size=shape).astype(np.float32) / 2 for name, shape in shapes.items()})


def attended(w, x):
    """Return the tensors out and y of the transformer."""
    h = functional.layer_norm(x, (8,), w["g0"], w["c0"])
    scores = (h @ w["wq"]) @ (h @ w["wk"]).transpose(1, 2)
    r = x + scores.softmax(dim=-1) @ (h @ w["wv"]) @ w["wo"]
    e = functional.layer_norm(r, (8,), w["g1"], w["c1"])
    out = r + (e @ w["w1"]).relu() @ w["w2"]
    return out, out.mean(dim=1) @ w["wy"]


@pytest.mark.parametrize(
    ("blocks", "learn"),
    [
        (["LayerNormalization"], {"g0", "c0", "g1", "c1"}),
        ([("r", "out")], {"g1", "c1", "w1", "w2"}),
        (["MatMul > Relu", "MatMul > Transpose"], {"w1", "wk"}),
    ],
)
def test_a_transformer(blocks, learn):
    network, other = transformer(0), transformer(1)
    data = parts(size=(5, 8), classes=4)
    after = retrain(
        network, data, blocks, imitate=Imitation("out", other, weight=0.5), metric=never_worse, learning_rate=0.01,
        **OPTIONS,
    )  # fmt: skip
    weights = {n: torch.tensor(network.initializer(n)).requires_grad_(n in learn) for n in network.initializers}
    x, y = torch.from_numpy(data.train.inputs["x"]), torch.from_numpy(data.train.targets)
    wanted = torch.from_numpy(activations(other, data.train, "out"))
    optimizer = torch.optim.Adam([weights[name] for name in sorted(learn)], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    rng = np.random.default_rng(5)
    for _ in range(3):
        order = rng.permutation(40)
        for start in (0, 16, 32):
            rows = order[start : start + 16]
            out, logits = attended(weights, x[rows])
            optimizer.zero_grad()
            (0.25 * ((out - wanted[rows]) ** 2).mean() + 0.5 * functional.cross_entropy(logits, y[rows])).backward()
            optimizer.step()
            schedule.step()
    assert changed(network, after) == learn
    for name in learn:
        np.testing.assert_allclose(after.initializer(name), weights[name].detach(), atol=2e-5)


def test_refusals():
    network, other, data = chain(0), chain(1), parts()
    like = Imitation("t2", other, weight=1)
    for options, blocks, match in [
        ({"imitate": like, "teacher": other}, [("t0", "t1")], "no effect"),
        ({"imitate": like, "metric": never_worse}, [("t0", "t1")], "no effect"),
        ({"imitate": like, "loss": functional.mse_loss}, [("t0", "t1")], "no effect"),
        ({"imitate": like}, [("t2", "t3")], "no weight of .* has a part in tensor 't2'"),
        ({"imitate": replace(like, weight=0.5)}, [("t2", "t3")], "no weight of .* has a part in tensor 't2'"),
        ({"imitate": Imitation("t9", other, of="t2")}, [("t0", "t1")], "the model has no tensor named 't9'"),
    ]:
        with pytest.raises(gm.RefusedError, match=match):
            retrain(network, data, blocks, **options, epochs=1)
    for wrong in (0, -0.5, 1.5, float("nan")):
        with pytest.raises(gm.RefusedError, match="out of range"):
            Imitation("t2", other, weight=wrong)
    with pytest.raises(gm.RefusedError, match="the model to imitate has no tensor named 't9'"):
        Imitation("t9", other)
    with pytest.raises(gm.InvalidDataError, match=r"shape \[8\] .* \[6\]"):
        retrain(network, data, [("t0", "t1")], imitate=Imitation("t2", other, of="t0"), epochs=1)
    with pytest.raises(gm.InvalidDataError, match=r"train part .* 41 samples .* 40"):
        retrain(network, data, [("t0", "t1")], imitate=Imitation("t2", other, parts(41)), epochs=1)
    bare = gm.Splits(*(gm.Data(part.inputs) for part in (data.train, data.calibration, data.test)))
    with pytest.raises(gm.InvalidDataError, match="targets"):
        retrain(network, bare, [("t0", "t1")], imitate=replace(like, weight=0.5))


def test_rows_belong_together_however_the_data_are_given():
    """What is not split already is split by its labels: without them, or by others, rows would be mixed up."""
    network, other = chain(0), chain(1)
    x, y = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32), np.arange(50) % 3
    options = {**OPTIONS, "learning_rate": 0.01}
    expected = retrain(network, (x, y), [("t0", "t1")], imitate=Imitation("t2", other, weight=1), **options)
    retrain(network, x, [("t0", "t1")], imitate=Imitation("t2", other, x, weight=1), **options)
    same = retrain(network, (x, y), [("t0", "t1")], imitate=Imitation("t2", other, (x, y), weight=1), **options)
    assert same.digest == expected.digest
    split = as_splits(network, (x, y), OPTIONS["seed"])
    for data, shown in [((x, y), x), (x, (x, y)), ((x, y), (x, y[::-1])), (split, (x, y)), (x, split)]:
        with pytest.raises(gm.InvalidDataError, match="would not belong together"):
            retrain(network, data, [("t0", "t1")], imitate=Imitation("t2", other, shown, weight=1), **options)


def test_a_block_in_a_tensors_place_is_told():
    model = gm.load(gm.demo.model_path())
    told = gm.blocks(model)["layer2"].exit
    with pytest.raises(gm.RefusedError, match=f"'layer2'; that is a block, whose activations are tensor '{told}'"):
        Imitation("layer2", model)
