"""Modularization and the module map."""

import json

import numpy as np
import pytest
from handmade import model
from onnx import helper

import graphmod as gm
from graphmod.modules import ModuleMap, modularize
from graphmod.probe import Similarity

STAIRS = np.array(
    [
        [1.00, 0.95, 0.90, 0.30, 0.20],
        [0.95, 1.00, 0.92, 0.35, 0.25],
        [0.90, 0.92, 1.00, 0.60, 0.40],
        [0.30, 0.35, 0.60, 1.00, 0.85],
        [0.20, 0.25, 0.40, 0.85, 1.00],
    ]
)


def similarity(matrix, digest="d"):
    names = tuple(f"t{i}" for i in range(len(matrix)))
    return Similarity(np.asarray(matrix, float), names, tuple(f"b{i}" for i in range(len(matrix))), digest, 100, 64)


def lengths(modules):
    return [len(module) for module in modules]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"threshold": 0.8}, [3, 2]),
        ({"threshold": 0.91}, [2, 1, 1, 1]),
        ({"threshold": 1.0}, [1] * 5),
        ({"threshold": 0.0}, [5]),
        ({"n_modules": 1}, [5]),
        ({"n_modules": 2}, [3, 2]),
        ({"n_modules": 3}, [2, 1, 2]),
        ({"n_modules": 5}, [1] * 5),
        ({"method": "greedy", "threshold": 0.8}, [3, 2]),
        ({"method": "greedy", "threshold": 0.59}, [5]),
        ({"method": "greedy", "threshold": 0.6}, [3, 2]),
        ({"method": "greedy", "threshold": 0.92}, [2, 1, 1, 1]),
        ({"n_modules": 4, "floor": 0.92}, [2, 1, 1, 1]),
        ({"n_modules": 3, "floor": 0.8}, [2, 1, 2]),
        ({"n_modules": 3, "cuts": ["t1"]}, [1, 2, 2]),
        ({"n_modules": 5, "cuts": ["t1", "t3"]}, [1] * 5),
        ({"threshold": 0.8, "cuts": ["t0", "t4"]}, [3, 1, 1]),
        ({"method": "greedy", "threshold": 0.8, "cuts": ["t1"]}, [1, 2, 2]),
        ({"method": "greedy", "n_modules": 2, "cuts": ["t1"]}, [1, 4]),
        ({"method": "greedy", "n_modules": 3, "cuts": ["t1"]}, [1, 2, 2]),
        ({"method": "greedy", "n_modules": 4, "cuts": ["t0", "t1"]}, [1, 2, 1, 1]),
        *(({"method": "greedy", "n_modules": n}, e) for n, e in enumerate(([5], [3, 2], [3, 1, 1], [2, 1, 1, 1]), 1)),
    ],
)
def test_modules_by_hand(options, expected):
    found = modularize(similarity(STAIRS), **options)
    assert lengths(found) == expected
    assert [name for module in found for name in module.boundaries] == [f"t{i}" for i in range(5)]
    assert [path for module in found for path in module.blocks] == [f"b{i}" for i in range(5)]
    start = 0
    for module in found:
        inside = STAIRS[start : start + len(module), start : start + len(module)]
        assert module.similarity == inside.min()
        start += len(module)


def test_the_threshold_that_greedy_finds_gives_the_same_modules_again():
    for count in range(1, 6):
        found = modularize(similarity(STAIRS), "greedy", n_modules=count)
        assert modularize(similarity(STAIRS), "greedy", threshold=found.threshold).modules == found.modules


def test_greedy_says_when_no_threshold_gives_the_number():
    tied = np.where(np.eye(4), 1, 0.7)
    with pytest.raises(gm.RefusedError, match="optimal"):
        modularize(similarity(tied), "greedy", n_modules=2)
    assert lengths(modularize(similarity(tied), "greedy", n_modules=4)) == [1] * 4
    assert len(modularize(similarity(tied), n_modules=2)) == 2


def test_a_dead_boundary_is_alone():
    matrix = STAIRS.copy()
    matrix[1], matrix[:, 1] = np.nan, np.nan
    for options in ({"threshold": 0.5}, {"method": "greedy", "threshold": 0.5}):
        found = modularize(similarity(matrix), **options)
        assert ("t1",) in [module.boundaries for module in found]
        assert np.isfinite(found.dissimilarity)
        assert json.loads(json.dumps([m.similarity for m in found], allow_nan=False))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 0.5, "n_modules": 2},
        {"threshold": -0.1},
        {"threshold": 1.1},
        {"threshold": float("nan")},
        {"n_modules": 0},
        {"n_modules": 6},
        {"n_modules": 2, "method": "best"},
        {"n_modules": 6, "method": "greedy"},
        {"n_modules": 2, "floor": 1.5},
        {"n_modules": 2, "floor": -0.5},
        {"threshold": 0.5, "floor": 0.5},
        {"n_modules": 2, "floor": 0.5, "method": "greedy"},
        {"n_modules": 2, "cuts": ["nowhere"]},
        {"n_modules": 1, "cuts": ["t2"], "method": "greedy"},
        {"n_modules": 1, "cuts": ["t1", "t2", "t3", "t4"], "method": "greedy"},
        {"threshold": 0.5, "method": "best"},
    ],
)
def test_refusals(options):
    with pytest.raises(gm.RefusedError):
        modularize(similarity(STAIRS), **options)


def test_a_refusal_says_how_many_modules_would_do():
    with pytest.raises(gm.RefusedError, match=r"less similar than 0\.92; the fewest that will do are 4$"):
        modularize(similarity(STAIRS), n_modules=2, floor=0.92)
    with pytest.raises(gm.RefusedError, match=r"a module at every cut; the fewest that will do are 3$"):
        modularize(similarity(STAIRS), n_modules=2, cuts=["t1", "t4"])


def test_shapes_that_change_are_cuts():
    def operator(op_type, reads, made, **attributes):
        return helper.make_node(op_type, reads.split(), [made], **attributes)

    operators = [
        operator("Conv", "x w", "a", pads=[1] * 4),
        operator("Relu", "a", "b"),
        operator("MaxPool", "b", "c", kernel_shape=[2, 2], strides=[2, 2]),
        operator("Relu", "c", "d"),
        operator("Conv", "d v", "e"),
        operator("Flatten", "e", "f"),
        operator("Relu", "f", "y"),
    ]
    weights = {"w": np.ones((3, 3, 3, 3), np.float32), "v": np.ones((5, 3, 1, 1), np.float32)}
    for size in (8, "size"):  # how large half of an open size is nobody knows
        network = model(operators, {"x": ["n", 3, size, size]}, {"y": ["n", "m"]}, weights)
        found = gm.modules.shape_cuts(network, gm.boundaries(network))
        assert found == {8: ("c", "e", "f"), "size": ("e", "f")}[size]
    pooled = [*operators[:3], operator("GlobalMaxPool", "c", "y")]
    network = model(pooled, {"x": ["n", 3, "h", "w"]}, {"y": ["n", 3, 1, 1]}, weights)
    assert gm.modules.shape_cuts(network, gm.boundaries(network)) == ("y",)
    assert gm.modules.shape_cuts(network, ["b", "a"]) == ()
    with pytest.raises(gm.RefusedError, match="the shape of 'nothing' is not known"):
        gm.modules.shape_cuts(network, ["a", "nothing"])


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.8},
        {"n_modules": 3},
        {"n_modules": 3, "method": "greedy"},
        {"n_modules": 4, "floor": 0.8, "cuts": ["t2"]},
    ],
)
def test_map_round_trip(options, tmp_path):
    found = modularize(similarity(STAIRS), **options)
    path = found.save(tmp_path / "map.json")
    assert ModuleMap.load(path) == found
    strict = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert strict["digest"] == "d"


def test_a_map_of_an_older_version(tmp_path):
    found = modularize(similarity(STAIRS), threshold=0.8)
    content = json.loads(found.save(tmp_path / "map.json").read_text())
    del content["floor"], content["cuts"]
    (tmp_path / "map.json").write_text(json.dumps(content))
    assert ModuleMap.load(tmp_path / "map.json") == found


def test_a_map_belongs_to_one_model():
    network = gm.load(gm.demo.model_path())
    modularize(similarity(STAIRS, network.digest), threshold=0.8).check(network)
    with pytest.raises(gm.RefusedError, match="another model"):
        modularize(similarity(STAIRS, "0" * 64), threshold=0.8).check(network)
    with pytest.raises(gm.RefusedError, match="another model"):
        modularize(similarity(STAIRS, network.digest), threshold=0.8).check(gm.remove(network, "layer1.3"))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b'{"format": "graphmod module map 1"}', b'{"format": "other"}',
        b'{"format": "graphmod module map 1", "digest": "d", "modules": [3], "method": "m", "threshold": 1, '
        b'"dissimilarity": 0}',
        b'{"format": "graphmod module map 1", "digest": "d", "modules": 3, "method": "m", "threshold": 1, '
        b'"dissimilarity": 0}',
        b'{"format": "graphmod module map 1", "digest": "d", "modules": [], "method": "m", "threshold": 1, '
        b'"dissimilarity": "x"}',
    ],
)  # fmt: skip
def test_broken_files(content, tmp_path):
    path = tmp_path / "map.json"
    path.write_bytes(content)
    with pytest.raises(gm.InvalidDataError, match="no module map"):
        ModuleMap.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(gm.InvalidDataError, match="no module map"):
        ModuleMap.load(tmp_path / "nothing.json")
    with pytest.raises(gm.NotWritableError):
        modularize(similarity(STAIRS), threshold=0.8).save(tmp_path / "none" / "map.json")
