"""What a softmax at the end reads, looked for behind operators that only reshape or cast."""

from __future__ import annotations

import pytest
from planted import net

from graphmod.graph import logits
from graphmod.graph.softmax import closing_softmax

IMAGE = "(float[n,3,4,4] x) => (%s y) { h = GlobalAveragePool(x)  c = Conv(h, w)  %s }"
ROWS = "(float[n,3] x) => (float[n,5] y) { h = MatMul(x, w)  %s }"


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("y = Identity(h)", "y"),
        ("y = Softmax(h)", "h"),
        ("y = Softmax<axis=1>(h)", "h"),
        ("y = LogSoftmax(h)", "y"),  # logarithms of probabilities are logits as well
        ("s = Softmax(h)  y = Identity(s)", "h"),
        ("s = Softmax(h)  t = Cast<to=11>(s)  y = Cast<to=1>(t)", "h"),
        ("s = Softmax(h)  y = Relu(s)", "y"),  # not behind what changes values
        ("s = Softmax<axis=0>(h)  y = Identity(s)", "y"),  # over samples, not over classes
    ],
)
def test_of_rows(end: str, expected: str) -> None:
    assert logits(net(ROWS % end, {"w": (3, 5)})) == expected


def test_logarithms_of_probabilities_are_a_softmaxs_too() -> None:
    last = closing_softmax(net(ROWS % "s = LogSoftmax(h)  y = Identity(s)", {"w": (3, 5)}))
    assert last is not None
    assert list(last.input) == ["h"]


@pytest.mark.parametrize(
    ("kind", "end", "expected"),
    [
        ("float[n,5,1,1]", "y = Softmax<axis=1>(c)", "c"),
        ("float[n,5]", "s = Softmax<axis=1>(c)  y = Flatten(s)", "y"),
        ("float[n,5]", "f = Flatten(c)  y = Softmax(f)", "f"),
        ("float[n,5]", "s = Softmax<axis=3>(c)  y = Flatten(s)", "y"),
    ],
)
def test_of_images(kind: str, end: str, expected: str) -> None:
    assert logits(net(IMAGE % (kind, end), {"w": (5, 3, 1, 1)})) == expected
