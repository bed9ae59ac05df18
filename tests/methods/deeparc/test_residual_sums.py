"""Residual sums and blocks: of residual networks, encoders with and without scopes, and plain networks."""

from __future__ import annotations

import numpy as np
import pytest
from networks import residual
from planted import net

import graphmod as gm
from graphmod.methods.deeparc import is_skippable, residual_blocks, residual_sums


def test_every_sum_of_a_residual_network():
    model = residual([1, 1, 1])
    assert residual_sums(model) == ("h1", "h2", "h3")
    assert [(block.entry, block.exit) for block in residual_blocks(model)] == [("h0", "h1"), ("h1", "h2"), ("h2", "h3")]


def test_the_demo_has_a_block_a_sum_and_two_change_the_shape():
    model = gm.load(gm.demo.model_path())
    blocks = residual_blocks(model)
    assert [block.path for block in blocks] == [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(7)]
    adds = {name for operator in model.operators if operator.op_type == "Add" for name in operator.output}
    assert set(residual_sums(model)) == adds
    assert [block.path for block in blocks if not is_skippable(model, block)] == ["layer2.0", "layer3.0"]
    exits = {name for operator in model.operators if operator.op_type == "Relu" for name in operator.output}
    assert {block.exit for block in blocks} <= exits  # the activation behind a sum belongs to its block, the last too


ENCODERS = """(float[n,4,8] x) => (float[n,3] y) {
    q0 = MatMul(x, p)
    n0 = LayerNormalization<axis=-1>(q0, g)  t0 = Softmax(n0)  a0 = Add(t0, q0)
    m0 = LayerNormalization<axis=-1>(a0, g)  u0 = MatMul(m0, w)  r0 = Relu(u0)  b0 = Add(r0, a0)
    n1 = LayerNormalization<axis=-1>(b0, g)  t1 = Softmax(n1)  a1 = Add(t1, b0)
    m1 = LayerNormalization<axis=-1>(a1, g)  u1 = MatMul(m1, w)  r1 = Relu(u1)  b1 = Add(r1, a1)
    z = LayerNormalization<axis=-1>(b1, g)  k = ReduceMean<axes=[1], keepdims=0>(z)  y = MatMul(k, h) }"""


def test_encoders_are_blocks_of_two_sums():
    model = net(ENCODERS, {"p": (8, 8), "w": (8, 8), "h": (8, 3), "g": np.ones(8, np.float32)})
    assert residual_sums(model) == ("b0", "b1")
    blocks = residual_blocks(model)
    assert [(block.entry, block.exit) for block in blocks] == [("q0", "b0"), ("b0", "b1")]  # the last norm is no part
    assert [len(block.operators) for block in blocks] == [7, 7]


def test_bias_gate_and_doubling_are_no_residual_sums():
    text = """(float[n,6] x) => (float[n,6] y) {
        a = MatMul(x, w)  b = Add(a, c)  d = Add(b, b)  s = Sigmoid(d)  g = Mul(s, d)  y = MatMul(g, w) }"""
    model = net(text, {"w": (6, 6), "c": (6,)})
    assert residual_sums(model) == ("g", "y")  # outputs of its two layers
    assert [(block.entry, block.exit) for block in residual_blocks(model)] == [("x", "g"), ("g", "y")]


def test_layers_of_a_plain_convolutional_network():
    text = """(float[n,2,8] x) => (float[n,3] y) {
        a = Conv<pads=[1,1]>(x, k)  r = Relu(a)  b = Conv<pads=[1,1]>(r, k)  s = Relu(b)
        p = GlobalAveragePool(s)  f = Flatten(p)  y = MatMul(f, h) }"""
    model = net(text, {"k": (2, 2, 3), "h": (2, 3)})
    blocks = residual_blocks(model)
    assert [(block.entry, block.exit) for block in blocks] == [("x", "r"), ("r", "f"), ("f", "y")]
    assert [is_skippable(model, block) for block in blocks] == [True, False, False]


def test_a_network_without_layers_is_refused():
    model = net("(float[n,3] x) => (float[n,3] y) { a = Relu(x)  y = Tanh(a) }", {})
    with pytest.raises(gm.RefusedError, match="no residual sums and no layers"):
        residual_sums(model)
