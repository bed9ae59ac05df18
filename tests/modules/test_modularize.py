"""Modularization and the module map."""

import json

import numpy as np
import pytest

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
    ],
)
def test_refusals(options):
    with pytest.raises(gm.RefusedError):
        modularize(similarity(STAIRS), **options)


@pytest.mark.parametrize("options", [{"threshold": 0.8}, {"n_modules": 3}, {"n_modules": 3, "method": "greedy"}])
def test_map_round_trip(options, tmp_path):
    found = modularize(similarity(STAIRS), **options)
    path = found.save(tmp_path / "map.json")
    assert ModuleMap.load(path) == found
    strict = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert strict["digest"] == "d"


def test_a_map_belongs_to_one_model():
    model = gm.load(gm.demo.model_path())
    modularize(similarity(STAIRS, model.digest), threshold=0.8).check(model)
    with pytest.raises(gm.RefusedError, match="another model"):
        modularize(similarity(STAIRS, "0" * 64), threshold=0.8).check(model)
    with pytest.raises(gm.RefusedError, match="another model"):
        modularize(similarity(STAIRS, model.digest), threshold=0.8).check(gm.remove(model, "layer1.3"))


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
