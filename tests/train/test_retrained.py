"""The course of retraining: checks, when it stops, masks, views and selectors, against a plain loop in torch."""

import pickle
import sys
import time

import numpy as np
import plain
import pytest
import torch
from handmade import fan
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from planted import net
from random_networks import networks
from torch.nn.functional import cross_entropy, mse_loss

import graphmod as gm
from graphmod.graph import scope
from graphmod.rewrite import find_region
from graphmod.rewrite.region import find_regions
from graphmod.train import Cache, Prefix, retrain, retrained, trained_weights

torch.set_num_threads(1)


def chain(seed=0):
    return fan([8, 6, 6, 3], np.random.default_rng(seed))


def parts(n=40, seed=0, size=(7,), classes=3, name="x"):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(3, n, *size)).astype(np.float32), rng.integers(0, classes, (3, n))
    return gm.Splits(*(gm.Data({name: one}, targets) for one, targets in zip(x, y, strict=True)))


class Scores:
    """A metric that gives the scores it was told, and counts on where they end."""

    def __init__(self, *scores):
        self.scores, self.calls = scores, 0

    def __call__(self, outputs, targets):  # noqa: ARG002  # the signature is that of a metric
        self.calls += 1
        return self.scores[self.calls - 1] if self.calls <= len(self.scores) else float(self.calls)


def pairs(data):
    return [(data.train.inputs["x"], data.train.targets)]


def changed(before, after):
    return {n for n in before.initializers if before.initializer(n).tobytes() != after.initializer(n).tobytes()}


def test_the_history_is_what_calibration_says():
    network, data = chain(), parts()
    seen = []

    def metric(outputs, targets):
        seen.append(float((outputs.argmax(1) == targets).mean()))
        return seen[-1]

    started = time.process_time()
    run = retrained(network, data, [("t1", "t2")], epochs=4, metric=metric, learning_rate=0.02, patience=9)
    took = time.process_time() - started
    assert [check.epoch for check in run.history] == [0, 1, 2, 3, 4]
    assert [check.score for check in run.history] == seen
    assert gm.accuracy(run.model, data.calibration) == pytest.approx(max(seen))
    seconds = [check.seconds for check in run.history]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] <= took
    assert set(run.seconds) == {"import", "caching", "training"}
    assert seconds[-1] <= sum(run.seconds.values()) <= took
    again = retrain(network, data, [("t1", "t2")], epochs=4, learning_rate=0.02, patience=9)
    assert again.digest == run.model.digest


@pytest.mark.parametrize(
    ("every", "epochs"), [(1, [0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2]), (4, [0, 4 / 3, 2]), (9, [0, 2])]
)
def test_checks_every_so_many_steps(every, epochs):
    network, data = chain(), parts()
    run = retrained(
        network, data, [("t1", "t2")], epochs=2, batch_size=16, check_every=every, metric=Scores(), patience=99
    )
    assert [check.epoch for check in run.history] == pytest.approx(epochs)
    expected = plain.trained(network, {"w2"}, pairs(data), epochs=2)  # looking changes nothing
    np.testing.assert_allclose(run.model.initializer("w2"), expected["w2"], atol=1e-6)


def test_the_best_check_between_epochs_is_kept_and_patience_counts_checks():
    network, data = chain(), parts()
    metric = Scores(0, 1, 5, 4, 3)
    run = retrained(
        network, data, [("t1", "t2")], epochs=9, batch_size=16, check_every=1, metric=metric, patience=2
    )  # fmt: skip
    assert [check.score for check in run.history] == [0, 1, 5, 4, 3]
    expected = plain.trained(network, {"w2"}, pairs(data), epochs=9, steps=2)
    np.testing.assert_allclose(run.model.initializer("w2"), expected["w2"], atol=1e-6)


def test_it_stops_as_soon_as_the_score_is_reached():
    network, data = chain(), parts()
    options = {"epochs": 9, "batch_size": 16}
    run = retrained(network, data, [("t1", "t2")], until=0.7, metric=Scores(0.1, 0.5, 0.7, 0.9), **options)
    assert [check.score for check in run.history] == [0.1, 0.5, 0.7]
    expected = plain.trained(network, {"w2"}, pairs(data), epochs=9, steps=6)
    np.testing.assert_allclose(run.model.initializer("w2"), expected["w2"], atol=1e-6)
    early = retrained(
        network, data, [("t1", "t2")], until=0.7, metric=Scores(*[0.1] * 4, 0.8), check_every=1, **options
    )
    assert [check.epoch for check in early.history] == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3])


def test_what_is_good_enough_is_not_trained_and_nothing_is_cached():
    network, data = chain(), parts()
    unusable = gm.Splits(gm.Data({"x": data.train.inputs["x"]}, data.train.targets), data.calibration, data.test)
    run = retrained(network, unusable, [("t1", "t2")], until=0.5, metric=Scores(0.5))
    assert run.model is network
    assert [(check.epoch, check.score) for check in run.history] == [(0, 0.5)]


def with_zeros(network, share, seed=0):
    """Return a network in which a share of each weight is zero, some of it negative zero."""
    proto, rng = network.proto(), np.random.default_rng(seed)
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        value = np.frombuffer(tensor.raw_data, np.float32).copy()
        value[rng.random(value.size) < share] = 0
        value[rng.random(value.size) < share / 4] = -0.0
        tensor.raw_data = value.tobytes()
    return gm.load(proto)


@pytest.mark.parametrize("blocks", [None, [("t0", "t2")]])
def test_zeros_stay_zero(blocks):
    network, data = with_zeros(chain(), 0.5), parts()
    learn = {"w1", "w2"} if blocks else set(network.initializers)
    options = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "metric": Scores()}
    after = retrain(network, data, blocks, keep_zeros=True, **options)
    expected = plain.trained(network, learn, pairs(data), epochs=3, lr=0.01, zeros=True)
    assert changed(network, after) == learn
    for name in learn:
        before, now = network.initializer(name), after.initializer(name)
        np.testing.assert_array_equal(now[before == 0], 0)
        assert (now != before).sum() > (before != 0).sum() / 2
        np.testing.assert_allclose(now, expected[name], atol=1e-5)
    free = retrain(network, data, blocks, **options)
    assert (free.initializer("w1") != 0).all()


def test_zeros_stay_zero_in_half_precision_and_under_transposed_weights():
    network = gm.retype(with_zeros(chain(), 0.5), "float16")
    after = retrain(network, parts(), keep_zeros=True, epochs=2, learning_rate=0.01, metric=Scores())
    demo = gm.load(gm.demo.model_path())
    sparse = with_zeros(demo, 0.3)
    data = gm.demo.splits()
    small = gm.Splits(data.train[:64], data.calibration[:64], data.test)
    trained = retrain(sparse, small, ["layer3.6", ("mean", "logits")], keep_zeros=True, epochs=1, metric=Scores())
    for start, end, learnt in ((network, after, 4), (sparse, trained, 6)):
        names = changed(start, end)
        assert len(names) == learnt
        for name in names:
            np.testing.assert_array_equal(end.initializer(name)[start.initializer(name) == 0], 0)


def test_views_are_gone_through_in_turn():
    network, data = chain(), parts()
    made = []

    def augment(part, rng):
        x = part.inputs["x"] + rng.normal(size=part.inputs["x"].shape).astype(np.float32)
        made.append((x, part.targets[::-1].copy()))
        return gm.Data({"x": x}, made[-1][1])

    options = {"epochs": 5, "batch_size": 16, "learning_rate": 0.01, "seed": 2}
    after = retrain(network, data, [("t1", "t2")], augment=augment, views=3, metric=Scores(), **options)
    assert len(made) == 2
    assert np.abs(made[0][0] - made[1][0]).max() > 0.5
    expected = plain.trained(network, {"w2"}, [*pairs(data), *made], epochs=5, lr=0.01, seed=2)
    np.testing.assert_allclose(after.initializer("w2"), expected["w2"], atol=1e-5)
    again = retrain(network, data, [("t1", "t2")], augment=augment, views=3, metric=Scores(), **options)
    assert again.digest == after.digest
    np.testing.assert_array_equal(made[0][0], made[2][0])
    other = retrain(
        network, data, [("t1", "t2")], augment=augment, views=3, metric=Scores(), **{**options, "seed": 3}
    )  # fmt: skip
    assert other.digest != after.digest


def test_what_belongs_together_is_augmented_alike():
    """Teacher and model to imitate see the same views; the latter's own data are changed as the training's are."""
    network, other, data = chain(), chain(1), parts()
    shown = parts(seed=4)

    def augment(part, rng):
        factor = rng.uniform(0.5, 2, (len(part), 1)).astype(np.float32)
        return gm.Data({"x": part.inputs["x"] * factor}, part.targets)

    rng = np.random.default_rng((2, 1))
    factor = rng.uniform(0.5, 2, (40, 1)).astype(np.float32)
    inputs = [shown.train.inputs["x"], shown.train.inputs["x"] * factor]
    after = retrain(
        network, data, [("t1", "t2")], imitate=gm.Imitation("t2", other, shown, 1), augment=augment, views=2, epochs=4,
        batch_size=16, learning_rate=0.01, seed=2,
    )  # fmt: skip
    x = data.train.inputs["x"]
    expected = plain.trained(
        network, {"w2"}, [(x, data.train.targets), (x * factor, data.train.targets)], epochs=4, lr=0.01, seed=2, at=2,
        wanted=[other.run({"x": one}, ["t2"])["t2"] for one in inputs], weight=1,
    )  # fmt: skip
    np.testing.assert_allclose(after.initializer("w2"), expected["w2"], atol=1e-5)


def test_all_matches_of_a_selector_learn():
    network = gm.load(gm.demo.model_path())
    data = gm.demo.splits()
    small = gm.Splits(data.train[:32], data.calibration[:32], data.test)
    after = retrain(network, small, ["Conv[scope=layer3.0]", "layer3.6"], epochs=1, metric=Scores())
    convs = [op for op in network.operators if op.op_type == "Conv" and scope(op).startswith("layer3.0")]
    wanted = {name for op in convs for name in op.input[1:]}
    wanted |= trained_weights(network, [find_region(network, "layer3.6")])
    assert convs
    assert changed(network, after) == wanted


def test_what_lies_in_files_is_learnt_alike(monkeypatch, tmp_path):
    network, data = chain(), parts()
    for key, array in {"x": data.train.inputs["x"], "y": data.train.targets}.items():
        np.save(tmp_path / f"{key}.npy", array)
    mapped = gm.Data({"x": np.load(tmp_path / "x.npy", mmap_mode="r")}, np.load(tmp_path / "y.npy", mmap_mode="r"))
    on_disk = gm.Splits(mapped, data.calibration, data.test)
    options = {"epochs": 2, "batch_size": 16, "teacher": chain(1), "metric": Scores()}
    for blocks in (None, [("t1", "t2")]):
        expected = retrain(network, data, blocks, **options)
        assert retrain(network, on_disk, blocks, **options).digest == expected.digest
        with monkeypatch.context() as patched:
            patched.setattr(sys.modules["graphmod.train.retrain"], "Cache", lambda folder: Cache(folder, room=0))
            assert retrain(network, on_disk, blocks, **options).digest == expected.digest


def test_the_callers_data_stay_as_they_are():
    network, data = chain(), parts()
    before = [part.inputs["x"].copy() for part in (data.train, data.calibration)]

    def greedy(outputs, targets):
        targets[:] = 0
        return float(outputs.sum())

    retrain(network, data, epochs=2, metric=greedy)
    for part, was in zip((data.train, data.calibration), before, strict=True):
        np.testing.assert_array_equal(part.inputs["x"], was)
        assert part.targets.max() > 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"check_every": 0}, "check_every"),
        ({"temperature": 0}, "temperature=0 is out of range"),
        ({"optimizer": "sgd"}, "there is no optimizer 'sgd'"),
        ({"optimizer": ["adam"]}, "there is no optimizer"),
        ({"views": 0}, "views"),
        ({"views": 2}, "views must be 2 or more with augment"),
        ({"augment": lambda part, rng: part}, "views must be 2 or more with augment"),  # noqa: ARG005  # its signature
    ],
)
def test_refusals(options, match):
    with pytest.raises(gm.RefusedError, match=match):
        retrain(chain(), parts(), [("t1", "t2")], **options)


@pytest.mark.parametrize(
    ("view", "match"),
    [
        (lambda part: part[:3], "3 samples of 40"),
        (lambda part: gm.Data({"x": part.inputs["x"] * np.nan}, part.targets), "NaN"),
        (lambda part: gm.Data(part.inputs, part.targets + 3), "out of range"),
        (lambda part: part.inputs["x"], "no targets"),
        (lambda _: None, "what augment returned is no view of the data: cannot read data from a NoneType"),
    ],
)
def test_views_that_do_not_fit(view, match):
    with pytest.raises(gm.InvalidDataError, match=match):
        retrain(chain(), parts(), [("t1", "t2")], augment=lambda part, rng: view(part), views=2)  # noqa: ARG005


SHARED = """
(float[n,7] x) => (float[n,3] y) {
    h = MatMul (x, w0)
    a = MatMul (h, w)
    b = Tanh (a)
    wt = Transpose (w)
    c = MatMul (b, wt)
    d = Tanh (c)
    e = MatMul (d, w)
    f = Tanh (e)
    y = MatMul (f, w1)
}
"""
"""w has a part in a, and transposed in c, before it has one in e."""


@pytest.mark.parametrize("blocks", [[("d", "f")], [("b", "d")]])
def test_a_shared_weight_learns_wherever_it_is_read(blocks):
    network, data = net(SHARED, {"w0": (7, 6), "w": (6, 6), "w1": (6, 3)}), parts()
    prefix = Prefix(network, [find_region(network, blocks[0])], "y", weights=["w", "wt"])
    assert prefix.cut == "h"
    options = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05}
    run = retrained(network, data, blocks, metric=Scores(), **options)
    weights = {name: torch.tensor(network.initializer(name)) for name in ("w0", "w", "w1")}
    w = weights["w"].requires_grad_()
    x, y = torch.from_numpy(data.train.inputs["x"]), torch.from_numpy(data.train.targets)
    optimizer = torch.optim.Adam([w], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    order = np.random.default_rng(0)
    for _ in range(2):
        permuted = order.permutation(40)
        for start in (0, 16, 32):
            rows = permuted[start : start + 16]
            d = torch.tanh(torch.tanh(x[rows] @ weights["w0"] @ w) @ w.T)
            optimizer.zero_grad()
            cross_entropy(torch.tanh(d @ w) @ weights["w1"], y[rows]).backward()
            optimizer.step()
            schedule.step()
    assert changed(network, run.model) == {"w"}
    np.testing.assert_allclose(run.model.initializer("w"), w.detach(), atol=1e-5)


def test_what_is_no_score_is_less_than_any():
    """As a correlation is none with outputs that are all alike."""
    network, data = chain(), parts()
    run = retrained(network, data, [("t1", "t2")], metric=Scores(np.nan, -3, np.nan), epochs=2, batch_size=16)
    expected = plain.trained(network, {"w2"}, pairs(data), epochs=2, steps=3)
    np.testing.assert_allclose(run.model.initializer("w2"), expected["w2"], atol=1e-6)


@pytest.mark.parametrize("dtype", [">i8", "uint16", "uint32", "int8"])
def test_labels_of_any_integer_type(dtype):
    network, data = chain(), parts()
    other = gm.Splits(*(gm.Data(p.inputs, p.targets.astype(dtype)) for p in (data.train, data.calibration, data.test)))
    options = {"epochs": 1, "metric": Scores()}
    expected = retrain(network, data, [("t1", "t2")], **options)
    assert retrain(network, other, [("t1", "t2")], **options).digest == expected.digest


def test_arrays_that_were_pickled():
    data = parts()
    other = pickle.loads(pickle.dumps(data))
    assert not other.train.targets.dtype.isbuiltin
    expected = retrain(chain(), data, [("t1", "t2")], epochs=1, metric=Scores())
    assert retrain(chain(), other, [("t1", "t2")], epochs=1, metric=Scores()).digest == expected.digest


def test_targets_that_pytorch_has_no_type_for():
    data = parts()
    words = gm.Splits(*[gm.Data(data.train.inputs, data.train.targets.astype(str))] * 3)
    with pytest.raises(gm.InvalidDataError, match="no tensors of type <U"):
        retrain(chain(), words, [("t1", "t2")], loss=mse_loss)


def test_the_weights_of_many_regions():
    """A selector may match every layer: what lies in each is found without a look at all that follows it."""
    n = 3000
    layers = "".join(f"t{i + 1} = Mul (t{i}, w{i})\n" for i in range(n))
    text = f"(float[n,2] t0) => (float[n,2] t{n}) {{ {layers} }}"
    network = net(text, {f"w{i}": np.ones(2, np.float32) for i in range(n)})
    regions = find_regions(network, "Mul")
    started = time.process_time()
    assert trained_weights(network, regions) == set(network.initializers)
    assert time.process_time() - started < 2


UNKNOWN = """
(float[n,7] x) => (float[n,3] y) {
    m = MatMul (x, w0)
    q = com.microsoft.QuickGelu (m)
    f = Hardmax (q)
    y = MatMul (f, w1)
}
"""
"""Shape inference knows nothing of q and f, and Hardmax has no gradient."""


def test_behind_tensors_of_unknown_type_and_not_through_what_has_no_gradient():
    network, data = net(UNKNOWN, {"w0": (7, 4), "w1": (4, 3)}), parts()
    assert network.tensors.get("f") is None
    after = retrain(network, data, [("f", "y")], epochs=1, metric=Scores())
    assert changed(network, after) == {"w1"}
    with pytest.raises(gm.RefusedError, match="no gradient reaches"):
        retrain(network, data, [("x", "m")], epochs=1)


@pytest.mark.filterwarnings("ignore:PyTorch cannot compute")
@settings(max_examples=15, deadline=None)
@given(networks(), st.data())
def test_only_what_may_learn_changes(drawn, data):
    """Whatever the network and the block, frozen weights keep their bits and the graph stays as it is."""
    network = gm.load(drawn.proto)
    found = [b for b in gm.blocks(network).walk() if b.path and trained_weights(network, [find_region(network, b)])]
    block = data.draw(st.sampled_from(found))
    x = np.random.default_rng(0).normal(size=(8, *drawn.shape)).astype(np.float32)
    part = gm.Data({"x": x}, np.arange(8) % 5)
    try:
        run = retrained(network, gm.Splits(part, part, part), [block], epochs=1, batch_size=4, metric=Scores())
    except (gm.RefusedError, gm.UnsupportedOperatorError) as error:
        event(f"{type(error).__name__}: {error}"[:60])
        return
    kept = network.initializers.keys() & run.model.initializers.keys()  # a weight that was computed becomes its own
    may = trained_weights(network, [find_region(network, block)])
    assert {n for n in kept if network.initializer(n).tobytes() != run.model.initializer(n).tobytes()} <= may
    assert not run.model.initializers.keys() - network.initializers.keys() - may
