"""Multiply-accumulates of operators, against closed forms."""

import pytest
from planted import net

import graphmod as gm

STEPS, BATCH, WIDTH, HIDDEN = 5, 2, 3, 4


@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent(op_type, gates, directions):
    how = ', direction = "bidirectional"' if directions == 2 else ""
    text = (
        f"(float[{STEPS}, {BATCH}, {WIDTH}] x) => (float[{STEPS}, {directions}, {BATCH}, {HIDDEN}] y) "
        f"{{ y = {op_type} <hidden_size = {HIDDEN}{how}> (x, w, r) }}"
    )
    rows = gates * HIDDEN
    model = net(text, {"w": (directions, rows, WIDTH), "r": (directions, rows, HIDDEN)})
    assert gm.graph.cost(model).macs == STEPS * BATCH * directions * rows * (WIDTH + HIDDEN)


@pytest.mark.parametrize(
    ("equation", "first", "second", "made", "macs"),
    [
        ("bij,jk->bik", (2, 3, 4), (4, 5), (2, 3, 5), 2 * 3 * 4 * 5),
        ("...ij,...jk->...ik", (2, 6, 3, 4), (2, 6, 4, 5), (2, 6, 3, 5), 2 * 6 * 3 * 4 * 5),
        ("ij,jk", (3, 4), (4, 5), (3, 5), 3 * 4 * 5),
        ("bhd,bhd->bh", (2, 3, 4), (2, 3, 4), (2, 3), 2 * 3 * 4),
    ],
)
def test_einsum(equation, first, second, made, macs):
    shapes = [", ".join(map(str, shape)) for shape in (first, made)]
    text = f'(float[{shapes[0]}] x) => (float[{shapes[1]}] y) {{ y = Einsum <equation = "{equation}"> (x, w) }}'
    model = net(text, {"w": second})
    assert gm.graph.cost(model).macs == macs


def test_attention():
    text = (
        "(float[2, 3, 5, 8] q, float[2, 3, 7, 8] k, float[2, 3, 7, 6] v) => (float[2, 3, 5, 6] y) "
        "{ y = Attention (q, k, v) }"
    )
    assert gm.graph.cost(net(text, {}, opset=23, ir_version=11)).macs == 2 * 3 * 5 * 7 * (8 + 6)
