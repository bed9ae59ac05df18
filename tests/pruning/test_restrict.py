"""Restricting classifiers: columns are those of the original, and the layer that makes them is smaller."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import zoo
from command_line import graphmod
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import feeds, net
from torch import nn

import graphmod as gm
from graphmod.errors import RefusedError

EXACT = 1e-5
VECTOR, IMAGE = "(float[n,5] x) => (float[n,6] y)", "(float[n,3,4,4] x) => (float[n,6] y)"
WIDE = {"w": (5, 6), "b": (6,)}


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


SLICED = {
    "gemm": (VECTOR, "y = Gemm(x, w, b)", WIDE),
    "gemm of a transposed weight": (VECTOR, "y = Gemm <transB=1> (x, w, b)", {"w": (6, 5), "b": (6,)}),
    "gemm with a scalar bias": (VECTOR, "y = Gemm(x, w, b)", {"w": (5, 6), "b": ()}),
    "gemm with a bias of zeros, which is shared": (
        VECTOR, "h = Gemm(x, v, z)  r = Relu(h)  y = Gemm(r, w, z)",
        {"v": (5, 6), "w": (6, 6), "z": np.zeros(6, np.float32)},
    ),
    "matmul and add": (VECTOR, "h = MatMul(x, w)  y = Add(h, b)", WIDE),
    "matmul": (VECTOR, "y = MatMul(x, w)", {"w": (5, 6)}),
    "a weight that is transposed": (VECTOR, "t = Transpose(w)  y = MatMul(x, t)", {"w": (6, 5)}),
    "a weight that is normalised": (
        VECTOR, "n = ReduceL2 <axes=[0]> (w)  v = Div(w, n)  s = Mul(v, g)  y = MatMul(x, s)", {"w": (5, 6), "g": (6,)}
    ),
    "convolution, pooled": (
        IMAGE, "c = Conv(x, w, b)  p = GlobalAveragePool(c)  y = Flatten(p)", {"w": (6, 3, 1, 1), "b": (6,)}
    ),
    "convolution, meaned": (
        IMAGE, "c = Conv(x, w)  r = Relu(c)  y = ReduceMean <axes=[2,3], keepdims=0> (r)", {"w": (6, 3, 1, 1)}
    ),
    "convolution, reshaped": (
        IMAGE, "c = Conv(x, w)  p = GlobalAveragePool(c)  y = Reshape(p, s)", {"w": (6, 3, 1, 1), "s": ints(-1, 6)}
    ),
    "convolution with batch normalization": (
        IMAGE, "c = Conv(x, w)  d = BatchNormalization(c, b, b2, b3, v)  p = GlobalMaxPool(d)  y = Flatten(p)",
        {"w": (6, 3, 1, 1), "b": (6,), "b2": (6,), "b3": (6,), "v": np.linspace(1, 2, 6, dtype=np.float32)},
    ),
    "layer normalization before": (
        VECTOR, "h = MatMul(x, v)  l = LayerNormalization(h, g, c)  y = Gemm(l, w, b)",
        {"v": (5, 5), "g": (5,), "c": (5,), **WIDE},
    ),
    "softmax within": (VECTOR, "h = MatMul(x, v)  s = Softmax(h)  y = Gemm(s, w, b)", {"v": (5, 5), **WIDE}),
    "two layers added": (
        VECTOR, "g = MatMul(x, w)  h = Gemm(x, v, b)  y = Add(g, h)", {**WIDE, "v": (5, 6)}
    ),
    "scaled and squashed": (VECTOR, "h = Gemm(x, w, b)  s = Div(h, t)  y = Tanh(s)", {**WIDE, "t": np.float32(2)}),
    "sigmoid": (VECTOR, "h = Gemm(x, w, b)  y = Sigmoid(h)", WIDE),
    "as wide as its input": ("(float[n,6] x) => (float[n,6] y)", "y = Gemm(x, w, b)", {"w": (6, 6), "b": (6,)}),
    "einsum by gemm of constants": (VECTOR, "c = Identity(w)  y = Gemm(x, c, b)", WIDE),
}  # fmt: skip
"""Heads of which classes can be cut out: signature, operators, weights."""

WHOLE = {
    "normalised by hand": (
        VECTOR, "h = Gemm(x, w, b)  e = Exp(h)  s = ReduceSum(e, a)  y = Div(e, s)", {**WIDE, "a": ints(1)}
    ),
    "softmax between": (VECTOR, "h = Gemm(x, w, b)  s = Softmax(h)  y = Mul(s, t)", {**WIDE, "t": np.float32(2)}),
    "layer normalization behind": (
        VECTOR, "h = MatMul(x, w)  y = LayerNormalization(h, g)", {"w": (5, 6), "g": (6,)}
    ),
    "lp normalization behind": (VECTOR, "h = MatMul(x, w)  y = LpNormalization <axis=1> (h)", {"w": (5, 6)}),
    "less the largest": (VECTOR, "h = MatMul(x, w)  m = ReduceMax <axes=[1]> (h)  y = Sub(h, m)", {"w": (5, 6)}),
    "neighbours in pairs": (
        VECTOR, "h = MatMul(x, w)  p = Reshape(h, s)  m = ReduceMean <axes=[1]> (p)  d = Sub(p, m)  y = Reshape(d, t)",
        {"w": (5, 6), "s": ints(0, 3, 2), "t": ints(0, 6)},
    ),
    "summed over and used again": (
        VECTOR, "h = MatMul(x, w)  t = Transpose(w)  g = MatMul(h, t)  y = MatMul(g, w)", {"w": (5, 6)}
    ),
    "added to its input": ("(float[n,6] x) => (float[n,6] y)", "h = MatMul(x, w)  y = Add(h, x)", {"w": (6, 6)}),
    "added to a hidden layer": (
        VECTOR, "h = MatMul(x, w)  r = Relu(h)  g = MatMul(r, v)  y = Add(g, r)", {"w": (5, 6), "v": (6, 6)}
    ),
    "entries that are looked up": (
        "(float[n,5] x, int64[n] id) => (float[n,6] y)", "e = Gather(w, id)  h = Add(e, x)  t = Transpose(w)  "
        "y = MatMul(h, t)", {"w": (6, 5)},
    ),
    "rounded to a scale of all": (
        VECTOR, "h = MatMul(x, w)  q, s, z = DynamicQuantizeLinear(h)  y = DequantizeLinear(q, s, z)", {"w": (5, 6)}
    ),
    "part of the input": ("(float[n,8] x) => (float[n,6] y)", "y = Slice(x, a, e, c)",
                          {"a": ints(1), "e": ints(7), "c": ints(1)}),
    "the other output is their largest": (
        "(float[n,5] x) => (float[n,6] y, float[n,1] m)", "y = Gemm(x, w, b)  m = ReduceMax <axes=[1]> (y)", WIDE
    ),
    "the other output shares the head": (
        "(float[n,5] x) => (float[n,6] y, float[n,6] z)", "h = Gemm(x, w, b)  y = Relu(h)  z = Tanh(h)", WIDE
    ),
    "the other output is the class": (
        "(float[n,5] x) => (float[n,6] y, int64[n,1] z)", "y = Gemm(x, w, b)  z = ArgMax <axis=1> (y)", WIDE
    ),
    "the output is read on": (
        "(float[n,5] x) => (float[n,6] y, float[n,6] z)", "y = Gemm(x, w, b)  z = Neg(y)", WIDE
    ),
}  # fmt: skip
"""Heads that have to stay whole."""

ENDS = {
    "gemm": (VECTOR, "h = Gemm(x, w, b)  y = {}", WIDE),
    "an axis counted from the start": (VECTOR, "h = Gemm(x, w, b)  y = {1}", WIDE),
    "convolution": (IMAGE, "h = Conv(x, w)  p = GlobalAveragePool(h)  q = Flatten(p)  y = {q}", {"w": (6, 3, 1, 1)}),
}

CLASSES = [[1, 4], [0, 1, 2], [5, 0], [3, 4, 1, 0, 2], [5, 4, 3, 2, 1, 0]]


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def logsumexp(values: np.ndarray) -> np.ndarray:
    top = values.max(1, keepdims=True)
    return np.log(np.exp(values - top).sum(1, keepdims=True)) + top


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    scale = max(1e-6, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT * scale)


def merged(logits: np.ndarray, columns: list) -> np.ndarray:
    """Return the log-sum-exp of the logits of every column."""
    return np.concatenate([logsumexp(logits[:, np.atleast_1d(one)].astype(np.float64)) for one in columns], 1).astype(
        logits.dtype
    )


def check_columns(model: gm.Model, classes: list, output: str = "y") -> gm.Model:
    """Check a restriction of logits at several sizes of the batch, and that other outputs stay."""
    made = gm.restrict(model, classes)
    assert made.outputs[output].shape[1] == len(classes)
    assert list(made.outputs) == list(model.outputs)
    is_merged = any(isinstance(one, list) for one in classes)
    for batch in (1, 3):
        given = feeds(model, batch, seed=batch)
        before, after = model.run(given), made.run(given)
        for name, value in before.items():
            wanted = value if name != output else merged(value, classes) if is_merged else value[:, classes]
            close(after[name], wanted)
    return made


# -- heads


@pytest.mark.parametrize("head", SLICED)
def test_classes_are_cut_out_of_the_weights(head):
    signature, text, weights = SLICED[head]
    model = net(f"{signature} {{ {text} }}", weights)
    own = [name for name in weights if 6 in model.initializer(name).shape]
    for classes in CLASSES:
        made = check_columns(model, classes)
        assert [one.op_type for one in made.operators] == [one.op_type for one in model.operators]
        assert made.n_weights < model.n_weights or len(classes) == 6
        if head == "gemm":
            assert made.initializer("w").shape == (5, len(classes))
            assert made.initializer("b").shape == (len(classes),)
        elif not ("shared" in head or "wide" in head):
            assert all(6 not in made.initializer(name).shape for name in own) or len(classes) == 6


@pytest.mark.parametrize("head", WHOLE)
def test_where_they_cannot_be_cut_out_they_are_picked(head):
    signature, text, weights = WHOLE[head]
    model = net(f"{signature} {{ {text} }}", weights)
    for classes in [*CLASSES, [[0, 3], [5]]]:
        made = check_columns(model, classes)
        assert made.n_weights == model.n_weights
        assert any(one.op_type == "Gather" for one in made.operators)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("columns", [[[0, 1, 2], [3]], [[5, 1], 0, 2, [4, 3]], [2, [1, 0]], [[4], 2, [0], 1]])
def test_superclasses_are_log_sum_exps(columns, opset):
    model = net(f"{VECTOR} {{ y = Gemm(x, w, b) }}", WIDE, opset)
    flat = [one if isinstance(one, int) or len(one) > 1 else one[0] for one in columns]
    made = check_columns(model, columns if flat == columns else flat)
    check_columns(model, columns)
    n_members = sum(np.size(one) for one in columns)
    assert made.initializer("w").shape == (5, n_members)
    assert sum(one.op_type == "ReduceLogSumExp" for one in made.operators) == sum(np.size(one) > 1 for one in columns)


def test_parts_of_a_concatenation():
    model = net(f"{VECTOR} {{ a = MatMul(x, v)  b = MatMul(x, w)  y = Concat <axis=1> (a, b) }}",
                {"v": (5, 2), "w": (5, 4)})  # fmt: skip
    made = check_columns(model, [1, 3, 4])
    assert (made.initializer("v").shape, made.initializer("w").shape) == ((5, 1), (5, 2))
    assert made.operators[-1].op_type == "Concat"
    assert check_columns(model, [4, 1, 3]).operators[-1].op_type == "Gather"  # no rows of one weight
    assert check_columns(model, [2, 4]).n_weights == model.n_weights  # nothing would be left of v


def test_a_slice_of_a_wider_layer():
    model = net(f"{VECTOR} {{ h = MatMul(x, w)  y = Slice(h, a, e, c) }}",
                {"w": (5, 8), "a": ints(1), "e": ints(7), "c": ints(1)})  # fmt: skip
    assert check_columns(model, [0, 2]).initializer("w").shape == (5, 4)
    assert check_columns(model, [2, 0]).initializer("w").shape == (5, 4)


def test_weights_in_a_constant_operator():
    constant = "w = Constant <value = float[2,3] {1, 2, 3, -1, 0, 4}> ()"
    model = net(f"(float[n,2] x) => (float[n,3] y) {{ {constant}  y = MatMul(x, w) }}", {})
    assert check_columns(model, [0, 2]).n_weights == 4
    assert check_columns(model, [2, 0]).n_weights == 4


def test_quantized_weights_are_cut_and_put_in_order():
    rng = np.random.default_rng(0)
    weights = {"q": rng.integers(-100, 100, (6, 5), np.int8), "s": rng.uniform(0.1, 1, 6).astype(np.float32),
               "z": rng.integers(-5, 5, 6, np.int8), "b": (6,)}  # fmt: skip
    model = net(f"{VECTOR} {{ w = DequantizeLinear <axis=0> (q, s, z)  y = Gemm <transB=1> (x, w, b) }}", weights)
    made = check_columns(model, [4, 0, 3])
    assert [made.initializer(name).shape for name in "qszb"] == [(3, 5), (3,), (3,), (3,)]
    assert len(made.operators) == 2


def test_half_precision():
    text = "(float16[n,5] x) => (float16[n,6] y) { y = MatMul(x, w) }"
    model = net(text, {"w": np.random.default_rng(0).normal(size=(5, 6)).astype(np.float16)})
    given = feeds(model, 3)
    made = gm.restrict(model, [[0, 1], 4])
    assert np.allclose(made.run(given)["y"], merged(model.run(given)["y"], [[0, 1], 4]), atol=1e-2)
    assert np.array_equal(gm.restrict(model, [4, 1]).run(given)["y"], model.run(given)["y"][:, [4, 1]])


# -- a softmax at the end


def probabilities(signature: str, text: str, weights: dict, kind: str, opset: int = 17) -> tuple[gm.Model, gm.Model]:
    """Return a network that ends in a softmax, and its logits."""
    tensor = "q" if "Flatten(p)" in text else "h"
    axis = "<axis=1>" if "1}" in text else ""
    body = text[: text.index("y =")]
    plain = net(f"{signature} {{ {body} y = Identity({tensor}) }}", weights, opset)
    return net(f"{signature} {{ {body} y = {kind} {axis} ({tensor}) }}", weights, opset), plain


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_a_softmax_gives_the_distribution_given_the_classes(end, kind, opset):
    model, plain = probabilities(*ENDS[end], kind, opset)
    given = feeds(model, 3)
    logits, before = plain.run(given)["y"], model.run(given)["y"]
    for classes in CLASSES:
        made = gm.restrict(model, classes)
        expected = softmax(logits[:, classes])
        found = made.run(given)["y"]
        close(found if kind == "Softmax" else np.exp(found), expected)
        if kind == "Softmax":
            close(found, before[:, classes] / before[:, classes].sum(1, keepdims=True))
        assert [one.op_type for one in made.operators] == [one.op_type for one in model.operators]
        assert 6 not in made.initializer("w").shape or len(classes) == 6
    for columns in ([[0, 1, 2], 3], [[0, 1, 2], [3, 4, 5]], [5, [4, 0], 1]):
        made = gm.restrict(model, columns)
        found = made.run(given)["y"]
        sums = np.stack([softmax(logits)[:, np.atleast_1d(one)].sum(1) for one in columns], 1)
        close(found if kind == "Softmax" else np.exp(found), sums / sums.sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("text", "weights", "opset"),
    [
        ("s = Softmax <axis=1> (p)  y = Flatten(s)", {}, 17),
        ("s = Softmax(p)  y = Reshape(s, t)", {"t": ints(-1, 6)}, 11),
        ("s = Softmax <axis=1> (p)  y = Reshape(s, t)", {"t": ints(0, 6)}, 17),
        ("s = Softmax <axis=1> (p)  y = Squeeze(s, t)", {"t": ints(2, 3)}, 17),
    ],
)
def test_a_softmax_before_the_output_has_its_shape(text, weights, opset):
    text = f"h = Conv(x, w)  p = GlobalAveragePool(h)  {text}"
    model = net(f"{IMAGE} {{ {text} }}", {"w": (6, 3, 1, 1), **weights}, opset)
    other = net(f"(float[n,3,4,4] x) => (float[n,6] y, float[n,6,1,1] p) {{ {text} }}",
                {"w": (6, 3, 1, 1), **weights}, opset)  # fmt: skip
    given = feeds(model, 3)
    before = model.run(given)["y"]
    for whole in (model, other):
        for columns in ([1, 4, 5], [5, 2], [[0, 5], 1], [*range(5, -1, -1)]):
            made = gm.restrict(whole, columns)
            sums = np.stack([before[:, np.atleast_1d(one)].sum(1) for one in columns], 1)
            close(made.run(given)["y"], sums / sums.sum(1, keepdims=True))
            assert made.n_weights == (3 * sum(map(np.size, columns)) if whole is model else model.n_weights)


def test_logits_that_are_an_output_too_stay():
    text = "(float[n,5] x) => (float[n,6] h, float[n,6] y) { h = Gemm(x, w, b)  y = Softmax(h) }"
    model = net(text, {"w": np.full((5, 6), 100, np.float32) * np.arange(6, dtype=np.float32), "b": (6,)})
    given = {"x": np.ones((2, 5), np.float32)}  # all but the last class are as good as impossible
    made = gm.restrict(model, [1, 0], output="y").run(given)
    close(made["h"], model.run(given)["h"])
    close(made["y"], softmax(made["h"][:, [1, 0]]))
    first = gm.restrict(model, [1, 0]).run(given)
    close(first["h"], made["h"][:, [1, 0]])
    close(first["y"], model.run(given)["y"])


def test_a_softmax_over_samples_is_no_distribution_of_classes():
    model = net(f"{VECTOR} {{ h = Gemm(x, w, b)  y = Softmax <axis=0> (h) }}", WIDE)
    check_columns(model, [4, 2])


# -- networks


def test_the_demo_is_a_classifier_of_some_digits():
    model, test = gm.load(gm.demo.model_path()), gm.demo.splits().test
    logits = model.run(test.inputs)["logits"]
    for classes in ([3, 5, 8], [8, 1]):
        made = gm.restrict(model, classes)
        close(made.run(test.inputs)["logits"], logits[:, classes])
        assert model.n_weights - made.n_weights == 41 * (10 - len(classes))
        assert len(made.operators) == len(model.operators)
    some, classes = np.isin(test.targets, [3, 5, 8]), np.array([3, 5, 8])
    found = gm.restrict(model, classes).run({"image": test.inputs["image"][some]})["logits"].argmax(1)
    is_right = classes[found] == test.targets[some]
    assert is_right[logits[some].argmax(1) == test.targets[some]].all()  # who won among ten wins among three


def networks() -> dict[str, nn.Module]:
    return {
        "convolutions": nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1),
                                      nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 6)),
        "weight norm": nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(192, 6))),
        "probabilities": nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Softmax(-1)),
        "log probabilities": nn.Sequential(nn.Flatten(), nn.Linear(192, 6, bias=False), nn.LogSoftmax(1)),
        "attention": Attention(),
    }  # fmt: skip


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(24, 2, 16, batch_first=True)
        self.head = nn.Linear(24, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x.flatten(2).reshape(-1, 8, 24)).mean(1))


def exported(module: nn.Module, exporter: str) -> gm.Model:
    example = torch.randn(2, 3, 8, 8)
    if exporter == "current":
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(module, (example,), dynamo=True, verbose=False, dynamic_shapes=shapes)
        return gm.load(program.model_proto)
    file = io.BytesIO()
    torch.onnx.export(module, (example,), file, dynamo=False, verbose=False, opset_version=17, input_names=["x"],
                      output_names=["y"], dynamic_axes={"x": {0: "n"}, "y": {0: "n"}})  # fmt: skip
    return gm.load(file.getvalue())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", networks())
def test_exports_of_torch(name, exporter):
    torch.manual_seed(0)
    module = networks()[name].eval()
    model = exported(module, exporter)
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = module(x).numpy()
    (source,) = model.inputs
    for classes in ([0, 2, 3], [4, 1]):
        made = gm.restrict(model, classes)
        wanted = expected[:, classes]
        if "probabilities" in name:
            shares = wanted if name == "probabilities" else np.exp(wanted)
            shares = shares / shares.sum(1, keepdims=True)
            wanted = shares if name == "probabilities" else np.log(shares)
        (found,) = made.run({source: x.numpy()}).values()
        close(found, wanted)
        assert made.n_weights < model.n_weights
        assert len(made.operators) == len(model.operators)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_classes_in_any_order_and_grouping(data):
    head = data.draw(st.sampled_from([*SLICED.values(), *WHOLE.values()]))
    order = data.draw(st.permutations(range(6)))[: data.draw(st.integers(2, 6))]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(order) - 1), min_size=1)))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    columns = [part[0] if len(part) == 1 else part for part in parts]
    model = net(f"{head[0]} {{ {head[1]} }}", head[2])
    if head is SLICED["sigmoid"] and any(len(part) > 1 for part in parts):
        columns = order
    made = gm.restrict(model, columns)
    given_values = feeds(model, 3, seed=1)
    before, after = model.run(given_values), made.run(given_values)
    whole = before["y"]
    close(after["y"], whole[:, columns] if columns == order else merged(whole, columns))


# -- the verb


def test_nothing_to_do():
    model = net(f"{VECTOR} {{ y = Gemm(x, w, b) }}", WIDE)
    assert gm.restrict(model, range(6)) is model
    assert gm.restrict(model, [[0], 1, 2, 3, 4, 5]) is model


@pytest.mark.parametrize("classes", [[3, 5, 1], [[0, 2], 5], np.array([4, 0]), range(1, 4), np.array([[0, 1], [2, 3]])])
def test_the_record_replays_to_the_same_bytes(classes):
    model = net(f"{VECTOR} {{ h = Gemm(x, w, b)  y = Softmax(h) }}", WIDE)
    made = gm.restrict(model, classes)
    again = gm.apply(gm.Recipe.of(made), model)
    assert again.proto().SerializeToString() == made.proto().SerializeToString()
    assert [edit.verb for edit in gm.Recipe.of(made)] == ["restrict"]


def test_a_restriction_is_restricted_and_pruned_further():
    model = net(f"{VECTOR} {{ h = MatMul(x, v)  r = Relu(h)  y = Gemm(r, w, b) }}",
                {"v": (5, 8), "w": (8, 6), "b": (6,)})  # fmt: skip
    given = feeds(model, 3)
    twice = gm.restrict(gm.restrict(model, [5, 2, 1, 0]), [3, 0])
    close(twice.run(given)["y"], model.run(given)["y"][:, [0, 5]])
    assert gm.prune(twice, 0.5).initializer("w").shape == (4, 2)


def test_names_metadata_and_annotations_stay():
    model = gm.load(gm.demo.model_path())
    made = gm.restrict(model, [9, 4])
    assert made.operator_names == model.operator_names
    assert made.inputs == model.inputs
    assert made.outputs["logits"].shape == ("batch", 2)
    assert model.metadata.items() <= made.metadata.items()


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (None, "no list of classes"), (3, "no list of classes"), ("35", "no list of classes"), ([], "is an empty list"),
        ([0, []], "a column of classes is an empty list"), ([0, 6], "there is no class 6; 'y' has 6 classes, 0 to 5"),
        ([-1, 2], "there is no class -1"), ([1, 2, 1], "class 1 is listed twice"),
        ([[1, 2], 2], "class 2 is listed twice"), ([4], "one column"), ([[1, 2]], "one column"),
        ([1, 2.5], "names 2.5"), ([True, 2], "names True"), ([[[1]], 2], "no class"), (["a", 1], "names 'a'"),
    ],
)  # fmt: skip
def test_classes_that_are_refused(classes, told):
    with pytest.raises(RefusedError, match=told):
        gm.restrict(net(f"{VECTOR} {{ y = Gemm(x, w, b) }}", WIDE), classes)


@pytest.mark.parametrize(
    ("signature", "text", "told"),
    [
        ("(float[n,3,4] x) => (float[n,3,4] y)", "y = Relu(x)", "output 'y' is float32"),
        ("(float[n,k] x) => (float[n,k] y)", "y = Relu(x)", "not the logits of a classifier"),
        ("(int64[n,4] x) => (int64[n,4] y)", "y = Neg(x)", "output 'y' is int64"),
        ("(float[n] x) => (float[n] y)", "y = Neg(x)", "not the logits"),
    ],
)
def test_outputs_of_no_classifier_are_refused(signature, text, told):
    with pytest.raises(RefusedError, match=told):
        gm.restrict(net(f"{signature} {{ {text} }}", {}), [0, 1])


def test_other_refusals():
    model = net(f"{VECTOR} {{ h = Gemm(x, w, b)  [squash] y = Sigmoid(h) }}", WIDE)
    with pytest.raises(RefusedError, match="the model has no output 'z'; the outputs are y"):
        gm.restrict(model, [0, 1], output="z")
    with pytest.raises(RefusedError, match="'y' comes from Sigmoid 'squash', so its classes do not exclude"):
        gm.restrict(model, [[0, 1], 2])


def test_the_command(tmp_path):
    out = tmp_path / "out.onnx"
    told = graphmod("restrict", gm.demo.model_path(), "--classes", "[3, 5, 8]", "--out", out)
    assert told.returncode == 0, told.stderr
    assert gm.load(out).outputs["logits"].shape == ("batch", 3)
    told = graphmod("restrict", gm.demo.model_path(), "--classes", "[[0, 1], 8]", "--out", out)
    assert told.returncode == 0, told.stderr
    assert gm.load(out).outputs["logits"].shape == ("batch", 2)
    refused = graphmod("restrict", gm.demo.model_path(), "--classes", "[3, 12]", "--out", tmp_path / "no.onnx")
    assert refused.returncode == 2
    assert "there is no class 12; 'logits' has 10 classes, 0 to 9" in refused.stderr
    assert graphmod("restrict", gm.demo.model_path(), "--out", tmp_path / "no.onnx").returncode == 2
