"""The trunk with some of its runs replaced, against the replacements computed one after the other."""

import numpy as np
import pytest
from handmade import fan

import graphmod as gm
from graphmod.methods.trunk import Run, Trunk

LAYERS = 5


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(2)


@pytest.fixture(scope="module")
def network(rng):
    return fan([6] * LAYERS, rng, (6,))


@pytest.fixture(scope="module")
def trunk(network):
    full = Trunk.of(network)
    keep = [i for i, name in enumerate(full.tensors) if name == "x" or name.startswith("t")]
    return Trunk(network, tuple(full.tensors[i] for i in keep), tuple(full.paths[i] for i in keep))


def test_all_boundaries_are_on_it(network):
    assert Trunk.of(network).tensors == ("x", *gm.boundaries(network))
    assert Trunk.of(network).build() is network


@pytest.mark.parametrize(
    "runs",
    [
        [(1, 2, "linear")],
        [(1, 2, "identity"), (2, 3, "linear")],
        [(1, 2, "linear"), (2, 4, "identity")],
        [(0, 1, "identity"), (1, 2, "identity"), (2, 3, "affine")],
        [(1, 2, "identity"), (3, 5, "affine")],
        [(0, 1, "affine"), (4, 5, "identity")],
        [(0, 1, "linear"), (1, 2, "linear"), (2, 3, "affine"), (3, 4, "identity"), (4, 5, "linear")],
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_built_is_what_the_runs_say(network, trunk, rng, runs, backwards):
    x = rng.normal(size=(30, 6)).astype(np.float32)
    fits, changed = {}, trunk
    for start, stop, kind in runs[::-1] if backwards else runs:
        place = (trunk.tensors[start], trunk.tensors[stop])
        found = next(p for p in gm.propose(network, place, gm.Data({"x": x})) if p.kind == kind)
        fits[stop] = (start, found.fit)
        changed = changed.with_run(Run(start, stop, found))
    value, position = x, 0
    while position < LAYERS:
        stop = next((end for end, (start, _) in fits.items() if start == position), None)
        if stop is None:
            position += 1
            value = np.tanh(value @ network.initializer(f"w{position - 1}"))
        else:
            value, position = value @ fits[stop][1].weight + fits[stop][1].bias, stop
    built = changed.build()
    np.testing.assert_allclose(built.run({"x": x})[f"t{LAYERS - 1}"], value, atol=1e-5)
    for start in range(LAYERS):
        for name in (changed.entry(start), changed.region(start, LAYERS).exit):
            assert name in {*built.tensors, *built.inputs} or any(s < start < e for e, (s, _) in fits.items())


def test_a_run_takes_the_place_of_those_that_it_overlaps(network, trunk, rng):
    data = gm.Data({"x": rng.normal(size=(30, 6)).astype(np.float32)})

    def run(start, stop):
        return Run(start, stop, gm.propose(network, (trunk.tensors[start], trunk.tensors[stop]), data)[2])

    two = trunk.with_run(run(1, 2)).with_run(run(3, 4))
    assert [(r.start, r.stop) for r in two.with_run(run(0, 1)).runs] == [(0, 1), (1, 2), (3, 4)]
    assert [(r.start, r.stop) for r in two.with_run(run(1, 3)).runs] == [(1, 3), (3, 4)]
    assert [(r.start, r.stop) for r in two.with_run(run(0, 5)).runs] == [(0, 5)]
    assert [(r.start, r.stop) for r in two.without(1, 2).runs] == [(3, 4)]
