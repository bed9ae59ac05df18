"""Every verb on random networks: what comes out is whole, exact where that is promised, and can be replayed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_models import feeds, random_models

import graphmod as gm
from graphmod.model import RECORD
from graphmod.rewrite.verb import VERBS

Step = dict[str, Any]
STEPS: dict[str, Callable[[st.DrawFn, gm.Model], Step]] = {}
"""For each verb, how to draw its parameters for a model; those that :data:`CHANGES` lists may change the signature."""

TAIL = gm.load(
    helper.make_model(
        helper.make_graph(
            [helper.make_node("Softmax", ["out"], ["t0_0"], "softmax"), helper.make_node("Neg", ["t0_0"], ["more"])],
            "tail",
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 3])],
            [helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 3])],
        ),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)],
    )
)
"""A model to put behind a random one; a tensor of its has a name that the other may have too."""

SAMPLES = {name: np.concatenate([feeds(seed)[name] for seed in range(8)]) for name in feeds()}


def step(function: Callable[[st.DrawFn, gm.Model], Step]) -> Callable[[st.DrawFn, gm.Model], Step]:
    STEPS[function.__name__] = function
    return function


def tensors(draw: st.DrawFn, model: gm.Model) -> str:
    return draw(st.sampled_from(sorted(model.producer)))


def places(draw: st.DrawFn, model: gm.Model) -> str:
    names = [block.path for block in gm.blocks(model).walk() if block.path]
    return draw(st.sampled_from([*names, *model.operator_names, "Relu", "Conv > BatchNormalization"]))


@step
def remove(draw: st.DrawFn, model: gm.Model) -> Step:
    return {"place": places(draw, model)}


@step
def extract(draw: st.DrawFn, model: gm.Model) -> Step:
    return {"inputs": ["x", "side"], "outputs": [tensors(draw, model)]}


@step
def expose(draw: st.DrawFn, model: gm.Model) -> Step:
    return {"tensors": draw(st.lists(st.sampled_from(sorted(model.producer)), min_size=1, max_size=3))}


@step
def hide(draw: st.DrawFn, model: gm.Model) -> Step:
    return {"outputs": draw(st.lists(st.sampled_from(list(model.outputs)), min_size=1, unique=True))}


@step
def split(draw: st.DrawFn, model: gm.Model) -> Step:
    return {
        "at": draw(
            st.one_of(st.integers(2, 3), st.lists(st.sampled_from(sorted(model.producer)), min_size=1, max_size=2))
        )
    }


@step
def compose(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return {"others": [TAIL], "prefix": draw(st.sampled_from([None, ["b/"]]))}


@step
def merge_weights(draw: st.DrawFn, model: gm.Model) -> Step:
    other = model.proto()
    for tensor in other.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name))
    method = draw(st.sampled_from([{}, {"method": "task-arithmetic", "base": model}]))
    return {"others": [gm.load(other)], **method}


@step
def new_head(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return {"n_classes": draw(st.integers(2, 5))}


@step
def replace(draw: st.DrawFn, model: gm.Model) -> Step:
    by = draw(st.sampled_from(["HardSwish", "LeakyRelu(alpha=0.1)", "Clip(min=0, max=6)", "Identity", None]))
    if by is None:
        return {"place": places(draw, model), "data": SAMPLES, "max_error": 10.0}
    return {"place": places(draw, model), "by": by}


@step
def insert(draw: st.DrawFn, model: gm.Model) -> Step:
    where = draw(st.sampled_from([*sorted(model.producer), *model.inputs, "Relu"]))
    return {"tensor": where, "by": draw(st.sampled_from(["Tanh", "Mul(B=2.0) > Neg"])), "before": draw(st.booleans())}


@step
def duplicate(draw: st.DrawFn, model: gm.Model) -> Step:
    return {"place": places(draw, model), "times": draw(st.integers(1, 2)), "share_weights": draw(st.booleans())}


@step
def reorder(draw: st.DrawFn, model: gm.Model) -> Step:
    def fits(block: gm.Block) -> bool:
        return model.tensors[block.entry] == model.tensors[block.exit]

    chains = [block.children for block in gm.blocks(model).walk()]
    runs = [list(run) for chain in chains for same, run in groupby(chain, fits) if same]
    runs = [run for run in runs if len(run) > 1 and all(a.exit == b.entry for a, b in pairwise(run))]
    chosen = [block.path for block in draw(st.sampled_from(runs))[:3]] if runs else ["layer", "none"]
    return {"places": chosen, "order": draw(st.permutations(range(len(chosen))))}


@step
def collapse(draw: st.DrawFn, model: gm.Model) -> Step:
    matches = gm.find(model, "Conv > BatchNormalization > Relu")
    pairs = [(a, b) for a, b in pairwise(matches) if a.exit == b.entry]
    chosen = draw(st.sampled_from(pairs)) if pairs else ()
    blocks = [f"{match.entry}..{match.exit}" for match in chosen] or [block.path for block in gm.blocks(model).children]
    return {"blocks": blocks, "data": draw(st.sampled_from([None, SAMPLES]))}


@step
def fuse(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return {"where": draw(st.sampled_from(["*", "Conv", "BatchNormalization"]))}


@step
def low_rank(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return draw(st.sampled_from([{"rank": 1}, {"rank": 2}, {"energy": 0.6}]))


@step
def simplify(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return {}


@step
def outline(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return {"size": draw(st.integers(2, 4))}


@step
def inline(draw: st.DrawFn, model: gm.Model) -> Step:
    return {"functions": draw(st.sampled_from([None, ["test.local::Swish"]])) if model.functions else None}


@step
def rename(draw: st.DrawFn, model: gm.Model) -> Step:
    if draw(st.booleans()):
        return {"from_scopes": True}
    tensor = draw(st.sampled_from([*sorted(model.producer), *model.initializers]))
    return {"names": {tensor: "another/name"}, "dims": {"batch": "n"}}


@step
def retype(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return {"to": draw(st.sampled_from(["float16", "bfloat16"])), "keep": draw(st.sampled_from([None, "Conv"]))}


@step
def pack(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return {}


@step
def unpack(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return {}


@step
def rebatch(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return {"size": draw(st.sampled_from([2, "n"]))}


@step
def quantize(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return {"data": draw(st.sampled_from([None, SAMPLES])), "exclude": draw(st.sampled_from([None, "Gemm"]))}


@step
def recalibrate(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return {"data": SAMPLES, **draw(st.sampled_from([{}, {"batch_size": 4}, {"batch_size": 3, "batches": 1}]))}


@step
def unfuse(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    return {"data": SAMPLES, "where": draw(st.sampled_from(["*", "Conv"]))}


@step
def prune(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    goal = draw(st.sampled_from([{"ratio": 0.5}, {"ratio": 0.3, "ranking": "global"}, {"weights": 0.7}, {"macs": 0.8}]))
    rest = draw(st.sampled_from([{}, {"data": SAMPLES}, {"leftovers": False}, {"where": "Conv"}, {"steps": 2}]))
    return {**goal, **rest}


@step
def restrict(draw: st.DrawFn, model: gm.Model) -> Step:  # noqa: ARG001  # every step has the same signature
    order = draw(st.permutations(range(3)))
    return {"classes": draw(st.sampled_from([order, order[:2], [order[:2], order[2]]])), "output": "out"}


def test_no_verb_is_left_out():
    assert set(STEPS) == set(VERBS)


def check(verb: str, proto: onnx.ModelProto, draw: st.DrawFn) -> None:
    model = gm.load(proto)
    before = model.proto().SerializeToString(deterministic=True)
    parameters = STEPS[verb](draw, model)
    try:
        made = getattr(gm, verb)(model, **parameters)
    except gm.RefusedError:
        event(f"{verb}: refused")
        return
    finally:
        assert model.proto().SerializeToString(deterministic=True) == before
    if made is model:
        event(f"{verb}: nothing to do")
        return
    event(f"{verb}: done")
    for one in made if isinstance(made, list) else [made]:
        whole(model, one)
    if VERBS[verb].exact and not isinstance(made, list):
        same_outputs(model, made, parameters.get("classes"))
    replays(model, made, parameters)


def whole(model: gm.Model, made: gm.Model) -> None:
    """Check that an edited model is valid, runs, and still says where it comes from."""
    proto = made.proto()
    is_sparse = len(proto.graph.sparse_initializer) > 0  # these onnx's shape inference takes for another type
    onnx.checker.check_model(proto, full_check=not is_sparse)
    found = gm.load(proto.SerializeToString())
    values = feeds(batch=batch_of(made, 2))
    known = {**values, **model.run(values, [name for name in model.producer if name in made.inputs])}
    assert found.run({name: known[name] for name in found.inputs}).keys() == found.outputs.keys()
    assert proto.producer_name == "tests"
    assert made.metadata["author"] == "someone"
    assert {o.domain: o.version for o in model.proto().opset_import if o.domain == "test.local"}.items() <= {
        o.domain: o.version for o in proto.opset_import
    }.items() or not any(op.domain == "test.local" for op in proto.graph.node)
    kept = {operator.doc_string: list(operator.metadata_props) for operator in model.operators}
    for operator in made.operators:
        if operator.doc_string in kept and operator.doc_string:
            assert any(entry.key == "origin" for entry in operator.metadata_props)


def batch_of(model: gm.Model, otherwise: int) -> int:
    """Return the batch that a model fixes, if it does."""
    sizes = [kind.shape[0] for kind in model.inputs.values() if kind.shape]
    return next((size for size in sizes if isinstance(size, int)), otherwise)


def same_outputs(model: gm.Model, made: gm.Model, classes: list[Any] | None = None) -> None:
    """Check that the outputs that both have agree to 1e-5 of their scale; of the classes that are left, if some are."""
    values = feeds(seed=1, batch=batch_of(made, 3))
    expected = model.run(values)
    if classes is not None:
        columns = [expected["out"][:, np.atleast_1d(one)] for one in classes]
        expected["out"] = np.stack([np.log(np.exp(column).sum(1)) for column in columns], 1)
    found = made.run({name: values[name] for name in made.inputs})
    for name in expected.keys() & found.keys():
        scale = max(1e-6, float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5 * scale)


def replays(model: gm.Model, made: gm.Model | list[gm.Model], parameters: Step) -> None:
    """Check that the record in the metadata makes the same bytes again."""
    given_too = [value for value in parameters.values() if isinstance(value, gm.Model | dict)]
    given_too += [
        one for value in parameters.values() if isinstance(value, list) for one in value if isinstance(one, gm.Model)
    ]
    for one in made if isinstance(made, list) else [made]:
        assert RECORD in one.metadata
        again = gm.apply(gm.Recipe.of(one), model, given=given_too)
        assert again.proto().SerializeToString() == one.proto().SerializeToString()


@pytest.mark.parametrize("verb", VERBS)
def test_on_random_networks(verb):
    run(verb, 25)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_on_many_random_networks(verb):
    run(verb, 2000)


def run(verb: str, n_graphs: int) -> None:
    @settings(max_examples=n_graphs, deadline=None, suppress_health_check=list(HealthCheck))
    @given(random_models(), st.data())
    def on_random_networks(proto, data):
        check(verb, proto, data.draw)

    on_random_networks()
