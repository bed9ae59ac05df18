"""Module libraries: composed models against gates and ONNX Runtime, files, and what is refused."""

from __future__ import annotations

import json
import shutil
from itertools import combinations

import numpy as np
import pytest
from command_line import graphmod
from planted import net
from planted_answers import images, pairs, splits, trained

import graphmod as gm
from graphmod.errors import GraphmodError, InvalidDataError, InvalidModelError, RefusedError
from graphmod.methods.modular import Library, build
from graphmod.methods.modular import library as modular_library
from graphmod.methods.modular.conditions import conditions, with_own_scales
from graphmod.methods.modular.measuring import accuracy_among, forgotten, jaccard, report, samples_of
from graphmod.methods.modular.patching import scaled
from graphmod.methods.reuse import BudgetError
from graphmod.pruning.restrict import detector

SETTINGS = {"weights": 0.5, "epochs": 6, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def library():
    return gm.modular.extract(trained(), images(), **SETTINGS)


def test_modules_are_right_as_composed(library):
    test = images().test
    assert gm.accuracy(library.model, test) > 0.97
    for classes in ([0, 2], [1, 3, 4], [2, 3]):
        assert accuracy_among(library.compose(classes), test, classes) > 0.95
    for label in range(5):
        assert accuracy_among(library.compose([label]), test, [label]) > 0.85


def test_the_module_of_one_class_is_within_its_budget(library):
    sizes = [library.compose([label]).n_weights for label in range(5)]
    assert max(sizes) <= 0.5 * trained().n_weights


def test_the_same_seed_gives_the_same_library(library):
    again = gm.modular.extract(trained(), images(), **SETTINGS)
    assert again.backbone.digest == library.backbone.digest
    assert (again.modules.uses == library.modules.uses).all()


def test_training_from_the_start_learns_what_there_is():
    fresh = trained().editable()
    rng = np.random.default_rng(0)
    for tensor in fresh.graph.initializer:
        shape = tuple(tensor.dims)
        scale = (2 / max(1, int(np.prod(shape[1:])))) ** 0.5 if len(shape) > 1 else 0.0
        tensor.raw_data = (scale * rng.normal(size=shape)).astype(np.float32).tobytes()
    start = gm.load(fresh)
    assert gm.accuracy(start, images().test) < 0.6
    made = gm.modular.train(start, images(), weights=0.5, epochs=12, learning_rate=5e-3)
    assert gm.accuracy(made.model, images().test) > 0.95
    assert accuracy_among(made.compose([0, 1, 4]), images().test, [0, 1, 4]) > 0.93


def test_a_library_is_what_was_saved(library, tmp_path):
    library.save(tmp_path / "some" / "library")
    back = Library.load(tmp_path / "some" / "library")
    assert repr(back) == repr(library)
    assert back.manifest == json.loads(json.dumps(library.manifest))
    x = images().test.inputs["x"]
    for classes in ([1, 4], [0]):
        np.testing.assert_array_equal(
            back.compose(classes).run({"x": x})["y"], library.compose(classes).run({"x": x})["y"]
        )
    assert back.compose([1, 4]).metadata["graphmod.modular"] == library.compose([1, 4]).metadata["graphmod.modular"]


def test_files_that_do_not_belong_together_are_refused(library, tmp_path):
    folder = library.save(tmp_path / "library")
    with pytest.raises(InvalidModelError, match="is no module library"):
        Library.load(tmp_path)
    other = shutil.copytree(folder, tmp_path / "other")
    trained().save(other / "backbone.onnx")
    with pytest.raises(InvalidModelError, match="is not what the modules in"):
        Library.load(other)
    newer = {**json.loads((folder / "modules.json").read_text()), "format": 7}
    for text in ("{", "[]", '{"format": 1}', json.dumps(newer)):
        (folder / "modules.json").write_text(text)
        with pytest.raises(InvalidModelError, match=r"is no list of modules"):
            Library.load(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"core": [10_000]}, "is no list of modules"), ({"multiple of": "x"}, "is no list of modules"),
     ({"blocks": [1]}, "is no list of modules"), ({"groups": {"w": 3}}, "is of other channel groups")],
)  # fmt: skip
def test_modules_that_the_backbone_has_not_are_refused(library, tmp_path, changes, told):
    folder = library.save(tmp_path / "library")
    text = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps({**text, **changes}))
    with pytest.raises(InvalidModelError, match=told):
        Library.load(folder)


NORMALISED = (
    "a = Conv(x, w)  n1 = BatchNormalization(a, s, t, m1, v1)  r = Relu(n1)"
    "  d = Conv(r, u)  n2 = BatchNormalization(d, s, t, m2, v2)  q = Relu(n2)  f = Flatten(q)"
)


def normalised(end: str = "y = Gemm<transB=1>(f, h)") -> gm.Model:
    """Return a network of two normalisations with the same scales and shifts."""
    rng = np.random.default_rng(0)
    weights = {"w": (16, 1, 3, 3), "u": (16, 16, 3, 3), "h": (5, 64)} | dict.fromkeys(("t", "m1", "m2"), (16,))
    positive = {name: rng.uniform(0.5, 2, 16).astype(np.float32) for name in ("s", "v1", "v2")}
    return net(f"(float[n,1,6,6] x) => (float[n,5] y) {{ {NORMALISED}  {end} }}", weights | positive)


def test_normalisations_have_scales_of_their_own():
    model = normalised()
    own = with_own_scales(model)
    assert len(own.initializers) == len(model.initializers) + 2
    x = images().test.inputs["x"]
    np.testing.assert_array_equal(own.run({"x": x})["y"], model.run({"x": x})["y"])
    assert with_own_scales(own) is own
    assert len(gm.modular.extract(model, images(), **{**SETTINGS, "epochs": 1}).tables) == 4


def test_what_is_composed_is_compared_with_what_was_trained(monkeypatch):
    monkeypatch.setattr(modular_library, "conditions", lambda among: np.roll(conditions(among), 1, 1))
    with pytest.raises(RefusedError, match="differs from the one with closed gates"):
        gm.modular.extract(normalised(), images(), **SETTINGS)


def test_scales_of_another_library_are_refused(tmp_path):
    settings = {**SETTINGS, "epochs": 1}
    one, other = (
        gm.modular.extract(normalised(), images(), seed=seed, **settings).save(tmp_path / str(seed)) for seed in (0, 1)
    )
    mine = (one / "scales.npz").read_bytes()
    shutil.copy(other / "scales.npz", one / "scales.npz")
    with pytest.raises(InvalidModelError, match="is not what the modules in"):
        Library.load(one)
    (one / "scales.npz").write_bytes(mine[: len(mine) // 2])
    with pytest.raises(InvalidModelError, match="holds no scales of modules"):
        Library.load(one)
    (one / "scales.npz").unlink()
    with pytest.raises(InvalidModelError, match="holds no scales of modules"):
        Library.load(one)


def residual() -> tuple[gm.Model, gm.Splits]:
    """Return a trained network of three residual blocks."""
    blocks = "".join(
        f"  a{i} = MatMul(s{i}, u{i})  r{i} = Relu(a{i})  b{i} = MatMul(r{i}, v{i})  s{i + 1} = Add(s{i}, b{i})"
        for i in range(3)
    )
    weights = (
        {"w": (4, 16), "h": (16, 4)} | {f"u{i}": (16, 32) for i in range(3)} | {f"v{i}": (32, 16) for i in range(3)}
    )
    start = net(
        f"(float[n,4] x) => (float[n,4] y) {{ a = MatMul(x, w)  s0 = Relu(a){blocks}  y = MatMul(s3, h) }}", weights
    )
    return gm.retrain(start, splits(), epochs=4, learning_rate=3e-3), splits()


def test_a_latency_takes_blocks_from_modules(monkeypatch, tmp_path):
    model, parts = residual()

    def counted(models, _):
        return {name: float(len(one.operators)) for name, one in models.items()}

    monkeypatch.setattr(build, "least_latency", counted)
    deep = gm.modular.extract(model, parts, weights=0.7, epochs=1)
    shallow = gm.modular.extract(model, parts, weights=0.7, latency=0.6, epochs=1)
    assert len(shallow.blocks) == 3
    assert len(shallow.compose([0]).operators) <= 0.6 * len(model.operators) < len(deep.compose([0]).operators)
    assert shallow.modules.uses.all(0)[-3:].sum() >= 1, "as many blocks as there is time for"
    depth = [shallow.modules.opened(range(k))[-3:].sum() for k in range(1, 5)]
    assert depth == sorted(depth)
    assert depth[-1] == 3
    back = Library.load(shallow.save(tmp_path / "library"))
    x = parts.test.inputs["x"]
    for classes in ([0], [1, 2], [0, 1, 3]):
        np.testing.assert_array_equal(*(one.compose(classes).run({"x": x})["y"] for one in (back, shallow)))
    with pytest.raises(BudgetError, match=r"latency=0\.01 cannot be met"):
        gm.modular.extract(model, parts, weights=0.7, latency=0.01, epochs=1)


def test_a_library_is_not_written_where_a_file_is(library, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(GraphmodError, match="cannot write to folder"):
        library.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("classes", "told"),
    [([0, 5], "there is no module of class 5"), ([-1], "there is no module of class -1"), ([], "classes is empty"),
     ([1, 1], "class 1 is named twice"), ("3", "is no list of classes"), (3, "is no list of classes"),
     ([True], "is no list of classes"), ([1.0], "is no list of classes")],
)  # fmt: skip
def test_classes_that_are_not_in_the_library_are_refused(library, classes, told):
    with pytest.raises(RefusedError, match=told):
        library.compose(classes)


def test_a_class_is_taken_out_with_what_is_its_own(library):
    left = library.without([3])
    assert left.outputs["y"].shape == ("n", 4)
    assert left.n_weights < library.model.n_weights
    assert accuracy_among(left, images().test, [0, 1, 2, 4]) > 0.95
    with pytest.raises(RefusedError, match="would be left"):
        library.without([0, 1, 2, 3])


def test_a_weak_class_is_patched_by_a_stronger_library(library):
    parts = images()
    shuffled = np.where(parts.train.targets == 2, 4, parts.train.targets)
    rows = np.flatnonzero(parts.train.targets != 2)[:200]
    few = np.flatnonzero(parts.train.targets == 2)[:4]
    assert (shuffled[few] == 4).all()
    labels = parts.train.targets.copy()
    labels[few[:3]] = 4
    chosen = np.concatenate([rows, few])
    poor = gm.Splits(gm.Data(parts.train[chosen].inputs, labels[chosen]), parts.calibration, parts.test)
    blind = trained().editable()
    head = next(one for one in blind.graph.initializer if one.name == "g")
    bias = np.zeros(5, np.float32)
    bias[2] = -30.0
    head.raw_data = bias.tobytes()
    weak = gm.modular.extract(gm.load(blind), poor, weights=0.5, epochs=2)
    assert recall(weak.model, 2) < 0.5
    better = weak.patch(library, [2], parts)
    assert better.outputs["y"].shape == ("n", 5)
    assert recall(better, 2) > 0.9
    assert gm.accuracy(better, parts.test) > 0.93


def recall(model: gm.Model, label: int) -> float:
    test = images().test
    own = test[np.flatnonzero(test.targets == label)]
    return gm.accuracy(model, own)


def test_libraries_of_different_tasks_are_not_mixed(library):
    other = gm.modular.extract(pairs(), splits(), weights=0.9, epochs=1)
    with pytest.raises(RefusedError, match="the libraries are of different tasks"):
        library.patch(other, [0], images())
    with pytest.raises(RefusedError, match="not from a Model"):
        library.patch(trained(), [0], images())
    with pytest.raises(RefusedError, match="nearly all classes"):
        library.patch(library, [0, 1, 2, 3], images())


def test_scales_of_detectors_are_found():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 2000)
    scores = 2.0 * np.eye(3)[labels] + rng.gumbel(size=(2000, 3))
    labels = scores.argmax(1)  # a softmax regression whose truth is known: drawn by its own probabilities
    logits = scores - rng.gumbel(size=scores.shape)
    found = scaled(logits[:, :2], (logits[:, 2:] - 3.0) / 7.0, labels)
    before = scaled(logits[:, :2], logits[:, 2:], labels)
    np.testing.assert_allclose(found[0], 7.0 * before[0], rtol=1e-3)
    np.testing.assert_allclose(found[1], before[1] + 3.0 * before[0], rtol=1e-2, atol=1e-2)


def test_a_report_has_what_is_composed_of_one_to_all_modules(library):
    found = report(library, trained(), images(), [1, 3, 5], draws=2, epochs=1)
    assert [len(one.classes) for one in found.composed] == [1, 1, 3, 3, 5]
    assert found.mean(1, "weights") < found.mean(3, "weights") < found.mean(5, "weights") == pytest.approx(1.0)
    assert 0 < found.coupling < 1
    assert found.composed[-1].accuracy == pytest.approx(found.accuracy)
    assert found.composed[-1].tuned is not None
    assert found.original == pytest.approx(gm.accuracy(trained(), images().test))
    json.dumps(found.as_dict())


def test_a_report_is_of_the_model_that_the_library_is_of(library):
    with pytest.raises(RefusedError, match="the library is of another model"):
        report(library, normalised(), images(), [1])
    other = report(library, normalised(), images(), [4], draws=9, reference=trained())
    assert sorted(one.classes for one in other.composed) == list(combinations(range(5), 4))
    assert np.isnan(other.mean(4, "tuned"))


def test_samples_are_labelled_by_their_place():
    data = gm.Data({"x": np.arange(5, dtype=np.float32)[:, None]}, np.array([0, 3, 1, 3, 4]))
    some = samples_of(data, [4, 0, 3])
    assert some.inputs["x"].ravel().tolist() == [0, 1, 3, 4]
    assert some.targets.tolist() == [1, 2, 2, 0]


def test_what_is_still_known_of_a_class_is_measured(library):
    found = forgotten(library, images().test, 3)
    assert found["known before"] == pytest.approx(recall(library.model, 3))
    assert found["known after"] == pytest.approx(recall(library.without([3], keep_columns=True), 3))


def test_jaccard_is_what_sets_have_in_common():
    rng = np.random.default_rng(0)
    sets = rng.random((4, 30)) < 0.4
    indices = [(a & b).sum() / (a | b).sum() for a, b in combinations(sets, 2)]
    assert jaccard(sets) == pytest.approx(np.mean(indices))


LAST = ("y = Gemm(r, v)", "z = Gemm(r, v)  y = Softmax(z)", "z = Gemm(r, v)  y = LogSoftmax(z)")


@pytest.mark.parametrize("end", LAST)
def test_a_detector_is_one_column(end):
    model = pairs(end)
    plain = pairs()
    x = splits().test.inputs["x"][:16]
    column = plain.run({"x": x})["y"][:, 2]
    made = detector(model, 2).run({"x": x})["y"]
    assert made.shape == (16, 1)
    expected = 1 / (1 + np.exp(-column)) if "= Softmax" in end else column
    np.testing.assert_allclose(made[:, 0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RefusedError, match="there is no class 4"):
        detector(model, 4)


# -- what is refused


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"weights": 0}, "weights=0 is out of range"), ({"weights": 1.5}, "weights=1.5 is out of range"),
     ({"weights": None}, "weights=None is out of range"), ({"latency": 2}, "latency=2 is out of range"),
     ({"epochs": 0}, "epochs=0 is out of range"), ({"epochs": 1}, "epochs=1 is out of range"),
     ({"batch_size": 1}, "batch_size=1 is out of range"), ({"seed": -1}, "seed=-1 is out of range"),
     ({"learning_rate": 0}, "learning_rate=0 is out of range")],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(settings, told):
    with pytest.raises(RefusedError, match=told):
        gm.modular.train(trained(), images(), **settings)


def test_budgets_that_cannot_be_met_are_refused():
    with pytest.raises(BudgetError, match=r"weights=0.01 cannot be met: .* the largest module has"):
        gm.modular.extract(trained(), images(), weights=0.01)


def test_data_of_other_classes_is_refused():
    some = images().train

    def labelled(labels: np.ndarray) -> gm.Splits:
        return gm.Splits(*(gm.Data(some.inputs, labels),) * 3)

    with pytest.raises(InvalidDataError, match="all training samples are of one class"):
        gm.modular.extract(trained(), labelled(np.zeros(len(some), int)))
    with pytest.raises(InvalidDataError, match="without gaps"):
        gm.modular.extract(trained(), labelled(np.where(some.targets == 1, 2, some.targets)))
    with pytest.raises(InvalidDataError, match="has the classes 0 to 3 and the model 0 to 4"):
        gm.modular.extract(trained(), labelled(np.minimum(some.targets, 3)))


def test_what_is_no_classifier_is_refused():
    text = "(float[n,4] x) => (float[n,2,3] y) { a = MatMul(x, w)  y = Reshape(a, s) }"
    regression = net(text, {"w": (4, 6), "s": np.array([0, 2, 3])})
    with pytest.raises(RefusedError, match="not the logits of a classifier"):
        gm.modular.extract(regression, images())
    two = net("(float[n,4] x) => (float[n,2] y, float[n,2] z) { y = MatMul(x, w)  z = Relu(y) }", {"w": (4, 2)})
    with pytest.raises(RefusedError, match="would ruin the others"):
        gm.modular.extract(two, images())
    with pytest.raises(InvalidModelError):
        gm.modular.extract("model.onnx", images())


def test_a_network_of_which_nothing_can_go_is_refused():
    line = net("(float[n,5] x) => (float[n,4] y) { y = MatMul(x, w) }", {"w": (5, 4)})
    data = np.zeros((40, 5), np.float32), np.arange(40) % 4
    with pytest.raises(RefusedError, match="no channel, head or block"):
        gm.modular.extract(line, data)


# -- the command line


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modular")
    trained().save(folder / "model.onnx")
    parts = images()
    arrays = {
        f"{name}_{part}": array
        for part in ("train", "calibration", "test")
        for name, array in (("x", getattr(parts, part).inputs["x"]), ("y", getattr(parts, part).targets))
    }
    np.savez(folder / "data.npz", **arrays)
    ran = graphmod(
        "modular",
        "extract",
        folder / "model.onnx",
        folder / "data.npz",
        "--out",
        folder / "library",
        "--weights",
        0.5,
        "--epochs",
        2,
    )
    assert ran.returncode == 0, ran.stderr
    assert "5 modules" in ran.stdout
    return folder


def test_commands_compose_and_list(files):
    library, out = files / "library", files / "two.onnx"
    ran = graphmod("modular", "compose", library, "--classes", "[4, 0]", "--out", out, "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    two = gm.load(files / "two.onnx")
    assert two.outputs["y"].shape == ("n", 2)
    assert told["weights"] == two.n_weights
    ran = graphmod("modular", "compose", files / "library", "--without", "2", "--out", files / "four.onnx")
    assert ran.returncode == 0, ran.stderr
    assert gm.load(files / "four.onnx").outputs["y"].shape == ("n", 4)
    ran = graphmod("modular", "ls", files / "library")
    assert "class" in ran.stdout
    assert "weights 0.5" in ran.stdout
    told = json.loads(graphmod("modular", "ls", files / "library", "--json").stdout)
    assert [one["class"] for one in told["modules"]] == [0, 1, 2, 3, 4]


def test_train_is_a_command_too(files):
    given = files / "model.onnx", files / "data.npz"
    ran = graphmod("modular", "train", *given, "--out", files / "again", "--weights", 0.5, "--epochs", 2, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["classes"] == 5


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--classes", "[9]"], "there is no module of class 9"), ([], "give one"),
     (["--classes", "[1]", "--without", "[2]"], "give one"), (["--classes", "{"], "is no list of classes")],
)  # fmt: skip
def test_commands_refuse_in_one_line(files, arguments, told):
    ran = graphmod("modular", "compose", files / "library", *arguments, "--out", files / "no.onnx")
    assert ran.returncode == 2
    assert told in ran.stderr
    assert not (files / "no.onnx").exists()


def test_commands_write_over_nothing_that_they_read(files):
    library, data = files / "library", files / "data.npz"
    before = {file.name: file.read_bytes() for file in library.iterdir()}
    for arguments in (
        ("compose", library, "--classes", "[0, 1]"), ("patch", library, library, data, "--classes", "[1]"),
    ):  # fmt: skip
        ran = graphmod("modular", *arguments, "--out", library / "backbone.onnx")
        assert ran.returncode == 2
        assert "the command reads it" in ran.stderr
    ran = graphmod("modular", "extract", library / "backbone.onnx", data, "--out", library)
    assert ran.returncode == 2
    assert {file.name: file.read_bytes() for file in library.iterdir()} == before


def test_a_budget_that_cannot_be_met_leaves_no_folder(files):
    given = files / "model.onnx", files / "data.npz"
    ran = graphmod("modular", "extract", *given, "--weights", 0.01, "--out", files / "none")
    assert ran.returncode == 2
    assert "cannot be met" in ran.stderr
    assert not (files / "none").exists()


def test_patch_and_report_are_commands(files):
    library, data = files / "library", files / "data.npz"
    ran = graphmod("modular", "patch", library, library, data, "--classes", "[1]", "--out", files / "patched.onnx")
    assert ran.returncode == 0, ran.stderr
    assert "before" in ran.stdout
    assert gm.accuracy(gm.load(files / "patched.onnx"), images().test) > 0.9
    given = "modular", "report", library, files / "model.onnx", data, "--draws", 1
    ran = graphmod(*given, "--sizes", "[1, 3]", "--epochs", 1)
    assert ran.returncode == 0, ran.stderr
    assert "in common" in ran.stdout
    told = json.loads(graphmod(*given, "--sizes", "[2]", "--json").stdout)
    assert [len(one["classes"]) for one in told["composed"]] == [2]
    assert told["same data"] is True
    np.savez(files / "other.npz", x=images().test.inputs["x"], y=images().test.targets)
    ran = graphmod("modular", "report", library, files / "model.onnx", files / "other.npz", "--sizes", "[2]")
    assert "not the data" in " ".join(ran.stdout.split())
    assert graphmod(*given, "--sizes", "[6]").returncode == 2


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax"])
def test_classifiers_that_end_in_a_softmax_are_composed_with_one(end):
    ends = gm.insert(trained(), "y", f"{end}(axis=1)")
    made = gm.modular.extract(ends, images(), **SETTINGS)
    test = images().test
    x = test.inputs["x"]
    assert gm.accuracy(made.model, test) > 0.97
    three = made.compose([4, 0, 2]).run({"x": x})["y"]
    np.testing.assert_allclose((three if end == "Softmax" else np.exp(three)).sum(1), 1, rtol=1e-5)
    assert accuracy_among(made.compose([0, 2, 4]), test, [0, 2, 4]) > 0.95
    assert accuracy_among(made.compose([3]), test, [3]) > 0.85
    patched = made.patch(made, [1], images())
    every = patched.run({"x": x})["y"]
    np.testing.assert_allclose((every if end == "Softmax" else np.exp(every)).sum(1), 1, rtol=1e-5)
    assert gm.accuracy(patched, test) > 0.95
