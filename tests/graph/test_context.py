"""Context: what crosses a boundary without carrying activations is no boundary and spoils none."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
import zoo

import graphmod as gm

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'

ROTARY = """
agraph (float[batch, length, 4] x) => (float[batch, length, 4] out)
<float[4] frequencies = {1.0, 0.5, 0.25, 0.125}, int64 one = {1}, int64 zero = {0}, int64[1] last = {1}> {
    shape = Shape(x)
    length = Gather(shape, one)
    positions = Range(zero, length, one)
    as_float = Cast <to = 1> (positions)
    column = Unsqueeze(as_float, last)
    angles = Mul(column, frequencies)
    cos = Cos(angles)
    sin = Sin(angles)
    a = Mul(x, cos)
    b = Tanh(a)
    c = Mul(b, sin)
    d = Add(c, cos)
    out = Relu(d)
}"""

MASK_OF_IDS = """
agraph (int64[batch, length] ids) => (float[batch, length, 2] out)
<float[5, 2] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, int64 pad = {0}, int64[1] last = {2}, float penalty = {-100}> {
    e = Gather(table, ids)
    padded = Equal(ids, pad)
    as_float = Cast <to = 1> (padded)
    scaled = Mul(as_float, penalty)
    mask = Unsqueeze(scaled, last)
    a = Add(e, mask)
    b = Tanh(a)
    c = Add(b, mask)
    out = Relu(c)
}"""

POSITION_IDS = """
agraph (int64[batch, length] ids, int64[batch, length] position_ids) => (float[batch, length, 2] out)
<float[5, 2] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, float[3, 2] places = {1, 2, 3, 4, 5, 6}> {
    e = Gather(table, ids)
    p = Gather(places, position_ids)
    a = Add(e, p)
    b = Tanh(a)
    out = Add(b, p)
}"""


def parse(text: str) -> gm.Model:
    return gm.load(onnx.parser.parse_model(HEADER + text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ROTARY, ["a", "b", "c", "d", "out"]),
        (MASK_OF_IDS, ["e", "a", "b", "c", "out"]),
        (POSITION_IDS, ["e", "a", "b", "out"]),
    ],
    ids=["rotary tables of the shape", "mask of the ids", "position ids as input"],
)
def test_context_does_not_spoil_boundaries(text, expected):
    assert gm.boundaries(parse(text)) == expected


@pytest.mark.parametrize("text", [POSITION_IDS, MASK_OF_IDS])
def test_the_ids_are_the_primary_input(text):
    assert gm.graph.primary_input(parse(text)) == "ids"


def test_a_float_input_is_the_primary_one_wherever_it_stands():
    text = "agraph (int64[b, 2] ids, float[5, 2] side, float[b, 2, 2] x) => (float[b, 2, 2] out) "
    text += "{ e = Gather(side, ids) a = Tanh(x) b = Relu(a) c = Neg(b) out = Add(c, e) }"
    assert gm.graph.primary_input(parse(text)) == "x"


@pytest.mark.parametrize(("tensor", "carries"), [("a", True), ("cos", False), ("shape", False), ("length", False)])
def test_what_carries_activations(tensor, carries):
    assert gm.graph.carries_activations(parse(ROTARY), "x", tensor) is carries


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize(("name", "layer"), [("bert", "encoder.layer.{}"), ("gpt2", "h.{}")])
def test_every_encoder_layer_ends_at_a_boundary(zoo_network, name, layer, exporter):
    network = zoo_network(name, exporter)
    modules = dict(network.module.named_modules())
    outputs = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for path, module in modules.items()
        if path.endswith((layer.format(0), layer.format(1)))
    ]
    network.module(*network.inputs)
    for hook in hooks:
        hook.remove()
    assert len(outputs) == 2
    values = network.model.run(network.feeds, outputs=gm.boundaries(network.model)).values()
    for output in outputs:
        expected = output.detach().numpy()
        assert any(v.shape == expected.shape and np.allclose(v, expected, atol=1e-4) for v in values)


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
def test_the_attention_mask_stays_an_input_of_the_second_half(zoo_network, exporter):
    network = zoo_network("bert", exporter)
    ids, mask = network.model.inputs
    assert gm.graph.primary_input(network.model) == ids
    middle = gm.boundaries(network.model)[7]
    part = gm.graph.subgraph(network.model, [middle], list(network.model.outputs))
    assert mask in part.inputs


def test_a_model_without_data_flow_says_so():
    text = "agraph (bool[2] x) => (bool[2] out) { out = Not(x) }"
    with pytest.raises(gm.InvalidModelError, match="'x'"):
        gm.boundaries(parse(text))
