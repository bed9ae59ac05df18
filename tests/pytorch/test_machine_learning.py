"""Operators of ai.onnx.ml against ONNX Runtime; gradients and the way back of weights that live in attributes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from graphmod.model import load
from graphmod.pytorch import to_torch, write_back
from graphmod.pytorch.operators.machine_learning_models import Kernel, coupled, probit, softmax_zero
from graphmod.pytorch.values import to_value

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def floats(*shape):
    return normal(*shape).reshape(-1).tolist()


def strings(*names):
    return np.array(names, object)


def model_of(op_type, *xs, n=1, opset=1, **attributes):
    names = [f"x{index}" for index in range(len(xs))]
    operator = helper.make_node(op_type, names, [f"y{i}" for i in range(n)], domain="ai.onnx.ml", **attributes)
    kinds = [TensorProto.STRING if x.dtype == object else helper.np_dtype_to_tensor_dtype(x.dtype) for x in xs]
    graph = helper.make_graph(
        [operator],
        "g",
        [helper.make_tensor_value_info(*given) for given in zip(names, kinds, [x.shape for x in xs], strict=True)],
        [helper.make_empty_tensor_value_info(name) for name in operator.output],
    )
    imports = [helper.make_opsetid("ai.onnx.ml", opset), helper.make_opsetid("", 17)]
    return load(helper.make_model(graph, opset_imports=imports, ir_version=8))


def compare(model, *xs):
    """Hold what torch computes against ONNX Runtime; nothing may run in onnx's reference implementation."""
    net = to_torch(model)
    made = net(*[to_value(x) for x in xs])
    expected = model.run({f"x{index}": x for index, x in enumerate(xs)})
    for actual, value in zip(made if isinstance(made, tuple) else (made,), expected.values(), strict=True):
        if value.dtype == object:
            assert actual.tolist() == value.tolist()
            continue
        actual = actual.detach().numpy()
        assert actual.dtype == value.dtype
        np.testing.assert_allclose(actual, value, rtol=2e-5, atol=2e-5)
    return net


X = normal(5, 3)
GAPS = np.where(X < 0, np.float32(np.nan), X)
WHOLE = np.array([[0, 5, 7], [5, 1, 0]])
TENSOR = numpy_helper.from_array


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("op_type", "xs", "attributes"),
    [
        ("Scaler", [X], {"offset": [0.1, 0.2, 0.3], "scale": [2.0, 3.0, -1.0]}),
        ("Scaler", [X], {"offset": [0.1], "scale": [2.0]}),
        ("Scaler", [WHOLE], {"offset": [0.1], "scale": [2.0]}),
        ("Scaler", [X.astype(np.float64)], {"offset": [0.1], "scale": [2.0]}),
        *(("Normalizer", [x], {"norm": norm}) for norm in ("MAX", "L1", "L2") for x in (X, X[0], WHOLE, 0 * X)),
        ("Binarizer", [X], {"threshold": 0.2}),
        ("Imputer", [GAPS], {"imputed_value_floats": [1.0, 2.0, 3.0], "replaced_value_float": math.nan}),
        ("Imputer", [X.round()], {"imputed_value_floats": [7.0], "replaced_value_float": 0.0}),
        ("Imputer", [WHOLE], {"imputed_value_int64s": [7, 8, 9], "replaced_value_int64": 5}),
        *(
            ("ArrayFeatureExtractor", [x, np.array(at)], {})
            for x in (X, X[0], np.stack([X, X]), np.stack([strings("a", "b", "c")] * 2))
            for at in ([2, 0], [[2, 0]])
        ),
        ("FeatureVectorizer", [X, X[:, :1]], {"inputdimensions": [2, 3]}),
        ("FeatureVectorizer", [X[0], X[1]], {"inputdimensions": [3, 1]}),
        ("OneHotEncoder", [WHOLE], {"cats_int64s": [5, 0, 9]}),
        ("OneHotEncoder", [X], {"cats_int64s": [0, -1]}),
        ("OneHotEncoder", [np.array([["a", "z"], ["b", "a"]], object)], {"cats_strings": ["a", "b"]}),
        ("CategoryMapper", [strings("a", "b", "z")], {"cats_strings": ["a", "b"], "cats_int64s": [3, 4]}),
        ("CategoryMapper", [np.array([4, 5])], {"cats_strings": ["a", "b"], "cats_int64s": [3, 4]}),
        ("LabelEncoder", [strings("b", "z")], {"classes_strings": ["a", "b"], "default_int64": -5}),
        ("LabelEncoder", [np.array([0, 1, 9])], {"classes_strings": ["a", "b"], "default_string": "D"}),
        *(
            ("LabelEncoder", [x], {"opset": opset, **attributes})
            for opset in (2, 4)
            for x, attributes in [
                (WHOLE, {"keys_int64s": [5, 0], "values_int64s": [7, 8], "default_int64": -5}),
                (WHOLE, {"keys_int64s": [5, 0], "values_floats": [0.7, 0.8]}),
                (WHOLE, {"keys_int64s": [5, 0], "values_strings": ["five", "none"]}),
                (GAPS, {"keys_floats": [float(GAPS.flat[0]), math.nan, 9.0], "values_floats": [1.0, 2.0, 3.0]}),
                (GAPS, {"keys_floats": [9.0, math.nan], "values_strings": ["nine", "none"]}),
                (GAPS, {"keys_floats": [math.nan], "values_floats": [3.0]}),
                (strings("a", "z"), {"keys_strings": ["a", "b"], "values_strings": ["A", "B"]}),
                (strings("a", "z"), {"keys_strings": ["a", "b"], "values_int64s": [1, 2], "default_int64": 9}),
                (strings("a", "z"), {"keys_strings": ["a", "b"], "values_floats": [0.1, 0.2]}),
            ]
        ),
        (
            "LabelEncoder",
            [np.array([1.5, 2.5])],
            {
                "opset": 4,
                "keys_tensor": TENSOR(np.array([1.5, 3])),
                "values_tensor": TENSOR(np.array([10, 20])),
                "default_tensor": TENSOR(np.array([-7])),
            },
        ),
    ],
)
def test_features_and_labels(op_type, xs, attributes):
    compare(model_of(op_type, *xs, **attributes), *xs)


def test_a_category_that_is_none_is_an_error_where_the_encoder_says_so():
    net = to_torch(model_of("OneHotEncoder", WHOLE, cats_int64s=[5, 0], zeros=0))
    with pytest.raises(ValueError, match="none of the categories"):
        net(torch.from_numpy(WHOLE))


def test_of_equal_keys_the_last_counts():
    net = to_torch(model_of("LabelEncoder", WHOLE, opset=4, keys_int64s=[5, 5], values_int64s=[1, 2]))
    assert net(torch.tensor([[5, 6]])).tolist() == [[2, -1]]


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("LabelEncoder", {"opset": 2, "keys_strings": ["a", "b"], "values_floats": [0.1, 0.2]}),
        ("CategoryMapper", {"cats_strings": ["a", "b"], "cats_int64s": [3, 4]}),
        ("OneHotEncoder", {"cats_strings": ["a", "b"]}),
    ],
)
def test_strings_become_numbers_where_the_network_is(op_type, attributes):
    net = to_torch(model_of(op_type, strings("a", "z"), **attributes)).to("meta")
    assert net(strings("a", "z")).device.type == "meta"


def test_values_keep_their_type():
    tensors = {"keys_tensor": TENSOR(strings("a", "b")), "values_tensor": TENSOR(np.int16([4, 5]))}
    tensors["default_tensor"] = TENSOR(np.int16([-1]))
    made = to_torch(model_of("LabelEncoder", strings("b", "z"), opset=4, **tensors))(strings("b", "z"))
    assert (made.dtype, made.tolist()) == (torch.int16, [5, -1])


@pytest.mark.parametrize("labels", [{"classlabels_int64s": [7, 8, 9]}, {"classlabels_strings": ["a", "b", "c"]}])
def test_zip_map_gives_dictionaries(labels):
    model = model_of("ZipMap", X, **labels)
    names = next(iter(labels.values()))
    made = to_torch(model)(torch.from_numpy(X))
    assert [{name: float(score) for name, score in row.items()} for row in made] == [
        dict(zip(names, row.tolist(), strict=True)) for row in X
    ]


POST = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")
LABELS = {"ints": [7, 9, 4], "strings": ["a", "b", "c"]}


def small(n):
    """Coefficients and intercepts for which scores are probabilities, away from a half, where the runtime rounds."""
    return {"coefficients": (normal(n, 3) * 0.03).reshape(-1).tolist(), "intercepts": [0.25] * n}


def test_probit_is_near_the_quantile_of_the_normal_distribution():
    p = torch.tensor([0.0, 1e-5, 0.3, 0.4999, 0.5, 0.9, 1.0])
    np.testing.assert_allclose(probit(p), torch.special.ndtri(p), rtol=5e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("multi_class", [0, 1])
@pytest.mark.parametrize(
    ("n", "n_labels", "post"), [(n, max(n, 2), post) for n in (1, 2, 3) for post in POST if (n, post) != (1, "PROBIT")]
)
def test_linear_classifier(n, n_labels, post, kind, multi_class):
    labels = {f"classlabels_{kind}": LABELS[kind][:n_labels]}
    weights = small(n) if post == "PROBIT" else {"coefficients": floats(n, 3), "intercepts": floats(n)}
    net = compare(
        model_of("LinearClassifier", X, n=2, post_transform=post, multi_class=multi_class, **labels, **weights), X
    )
    assert any(isinstance(module, torch.nn.Linear) for module in net.children())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("post", POST)
@pytest.mark.parametrize("n", [1, 3])
def test_linear_regressor(n, post):
    compare(model_of("LinearRegressor", X, targets=n, post_transform=post, **small(n)), X)


def test_a_linear_regressor_needs_no_intercepts_and_takes_integers():
    net = to_torch(model_of("LinearRegressor", WHOLE, coefficients=[1.0, 2.0, 3.0]))
    assert net(torch.from_numpy(WHOLE)).tolist() == [[31.0], [7.0]]


KERNELS = [("LINEAR", 1.0), ("POLY", 2.0), ("RBF", 0.3), ("SIGMOID", 0.3)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kernel", "gamma"), KERNELS)
@pytest.mark.parametrize("one_class", [0, 1])
@pytest.mark.parametrize("n_supports", [0, 4])
def test_svm_regressor(kernel, gamma, one_class, n_supports):
    vectors = {"support_vectors": floats(4, 3)} if n_supports else {}
    model = model_of(
        "SVMRegressor", X, coefficients=floats(n_supports or 3), rho=[0.2], n_supports=n_supports, one_class=one_class,
        kernel_type=kernel if n_supports else "LINEAR", kernel_params=[gamma, 0.1, 3.0], **vectors,
    )  # fmt: skip
    compare(model, X)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kernel", "gamma"), KERNELS)
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("sizes", [[2, 3], [2, 1, 3]])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("post", POST[:4])
def test_svm_classifier(kernel, gamma, kind, sizes, probabilities, post):
    n, n_pairs = len(sizes), len(sizes) * (len(sizes) - 1) // 2
    chances = {"prob_a": floats(n_pairs), "prob_b": floats(n_pairs)} if probabilities else {}
    model = model_of(
        "SVMClassifier", X, n=2, coefficients=floats(n - 1, sum(sizes)), support_vectors=floats(sum(sizes), 3),
        rho=floats(n_pairs), vectors_per_class=sizes, kernel_type=kernel, kernel_params=[gamma, 0.1, 2.0],
        post_transform=post, **{f"classlabels_{kind}": LABELS[kind][:n]}, **chances,
    )  # fmt: skip
    compare(model, X)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("sign", [-1, 1])
def test_linear_svm_classifier(n, sign):
    coefficients = (sign * np.abs(normal(n, 3))).reshape(-1).tolist()
    model = model_of(
        "SVMClassifier", X, n=2, coefficients=coefficients, rho=floats(n), classlabels_ints=LABELS["ints"][:n],
        kernel_params=[0.0, 0.0, 0.0],
    )  # fmt: skip
    compare(model, X)


@pytest.mark.parametrize("function", [probit, softmax_zero])
def test_gradients_of_transforms(function):
    scores = torch.rand(4, 3, dtype=torch.float64) * 0.8 + 0.1
    assert torch.autograd.gradcheck(function, scores.requires_grad_())


@pytest.mark.parametrize(("kernel", "gamma"), KERNELS)
def test_gradients_of_kernels(kernel, gamma):
    made = Kernel(kernel, gamma, 0.1, 3.0)
    x, vectors = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (2, 4))
    assert torch.autograd.gradcheck(made, (x, vectors))


def test_gradients_of_coupled_probabilities():
    chances = (torch.rand(4, 3, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda given: coupled(given, torch.triu_indices(3, 3, 1), 3), chances)


# -- trees


MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


def grow(depth, n_features, modes):
    """Return a random tree: (feature, threshold, mode, missing, if true, if false), or None for a leaf."""
    if depth == 0 or rng.random() < 0.2:
        return None
    node = int(rng.integers(n_features)), float(normal()), str(rng.choice(modes)), int(rng.integers(2))
    return (*node, grow(depth - 1, n_features, modes), grow(depth - 1, n_features, modes))


def forest(n_trees, depth, modes=MODES, n_features=3):
    """Return the attributes of random trees, and the trees and numbers of their leaves."""
    rows, leaves = [], []

    def number(node, tree):
        place = len(rows)
        rows.append(None)
        nid = place - start
        if node is None:
            leaves.append((tree, nid))
            rows[place] = (tree, nid, 0, 0.0, "LEAF", 0, 0, 0)
        else:
            feature, threshold, mode, missing, truth, falsehood = node
            below = number(truth, tree), number(falsehood, tree)
            rows[place] = (tree, nid, feature, threshold, mode, *below, missing)
        return nid

    for tree in range(n_trees):
        start = len(rows)
        number(grow(depth, n_features, modes), tree)
    names = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    columns = zip((*names, "missing_value_tracks_true"), zip(*rows, strict=True), strict=True)
    return {f"nodes_{name}": list(values) for name, values in columns}, leaves


def samples(nodes, n=40, n_features=3):
    """Return samples of which every one has a feature that equals a threshold, and some have gaps."""
    x = normal(n, n_features)
    for row in x:
        node = rng.integers(len(nodes["nodes_values"]))
        row[nodes["nodes_featureids"][node]] = nodes["nodes_values"][node]
    x[rng.random(x.shape) < 0.05] = np.nan
    return x


def leaf_weights(what, leaves, ids, weights):
    owners = [leaf for leaf in leaves for _ in ids]
    return {
        f"{what}_treeids": [tree for tree, _ in owners],
        f"{what}_nodeids": [node for _, node in owners],
        f"{what}_ids": list(ids) * len(leaves),
        f"{what}_weights": weights[: len(owners)],
    }


FORESTS = [(1, 0, MODES), (1, 3, MODES[:1]), (5, 4, MODES[:1]), (4, 5, MODES)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("n_trees", "depth", "modes"), FORESTS)
@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("double", [False, True])
def test_tree_regressor(n_trees, depth, modes, aggregate, base, n, double):
    nodes, leaves = forest(n_trees, depth, modes)
    x = samples(nodes)
    attributes = nodes | leaf_weights("target", leaves, range(n), floats(len(leaves) * n))
    attributes |= {"base_values": floats(n)} if base else {}
    if double:
        x = x.astype(np.float64)
        for name in ("nodes_values", "target_weights", *(["base_values"] if base else [])):
            attributes[f"{name}_as_tensor"] = TENSOR(np.array(attributes.pop(name), np.float64) + 1e-12)
    compare(model_of("TreeEnsembleRegressor", x, opset=3, n_targets=n, aggregate_function=aggregate, **attributes), x)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("post", POST[:4])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("kind", ["int64s", "strings"])
@pytest.mark.parametrize(("ids", "n_labels", "n_base"), [
    ((0, 1, 2), 3, 0), ((0, 1, 2), 3, 3), ((0,), 2, 0), ((0,), 2, 1), ((1,), 2, 0),
])  # fmt: skip
def test_tree_classifier(post, positive, kind, ids, n_labels, n_base):
    nodes, leaves = forest(4, 4)
    x = samples(nodes)
    weights = normal(len(leaves) * len(ids)) / 4
    weights = leaf_weights("class", leaves, ids, (np.abs(weights) if positive else weights).tolist())
    weights |= {"base_values": floats(n_base)} if n_base else {}
    labels = {f"classlabels_{kind}": LABELS[kind.removesuffix("64s").removesuffix("s") + "s"][:n_labels]}
    compare(model_of("TreeEnsembleClassifier", x, n=2, opset=3, post_transform=post, **nodes, **weights, **labels), x)


def test_a_tree_of_scikit_learn():
    from sklearn.tree import DecisionTreeClassifier

    x, y = normal(200, 3), rng.integers(0, 3, 200)
    fitted = DecisionTreeClassifier(max_depth=5, random_state=0).fit(x, y)
    tree = fitted.tree_
    leaf, n = tree.children_left < 0, tree.node_count
    model = model_of(
        "TreeEnsembleClassifier", x, n=2, nodes_treeids=[0] * n, nodes_nodeids=list(range(n)),
        nodes_featureids=np.maximum(tree.feature, 0).tolist(), nodes_values=tree.threshold.tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_truenodeids=np.maximum(tree.children_left, 0).tolist(),
        nodes_falsenodeids=np.maximum(tree.children_right, 0).tolist(), classlabels_int64s=[0, 1, 2],
        **leaf_weights("class", [(0, int(i)) for i in np.flatnonzero(leaf)], range(3),
                       tree.value[leaf, 0].reshape(-1).tolist()),
    )  # fmt: skip
    label, scores = to_torch(model)(torch.from_numpy(x))
    assert label.tolist() == fitted.predict(x).tolist()
    np.testing.assert_allclose(scores.detach(), fitted.predict_proba(x), atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("aggregate", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tree_ensemble_whose_leaves_are_apart(aggregate, dtype):
    members = np.array([0.0, 2.0, np.nan, 5.0, np.nan], dtype)
    model = model_of(
        "TreeEnsemble", X.astype(dtype), opset=5, n_targets=2, aggregate_function=aggregate, tree_roots=[0, 3],
        nodes_featureids=[0, 1, 2, 1], nodes_splits=TENSOR(np.array([0, 0.25, 0, -0.5], dtype)),
        nodes_modes=TENSOR(np.uint8([6, 0, 6, 3])), membership_values=TENSOR(members),
        nodes_truenodeids=[1, 0, 3, 1], nodes_falsenodeids=[2, 1, 4, 4], nodes_trueleafs=[0, 1, 1, 1],
        nodes_falseleafs=[0, 1, 1, 1], leaf_targetids=[0, 1, 0, 0, 1],
        leaf_weights=TENSOR(np.array([1, 2, 4, 8, 16], dtype)),
    )  # fmt: skip
    x = np.concatenate([X, [[0, 0.25, 5], [2, 1, 5], [1, -0.5, 5], [1, 0, 2], [5, 0, 0]]]).astype(dtype)
    compare(load(without_sizes(model.proto())), x)


def without_sizes(proto):
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].Clear()
    return proto


# -- types that inference does not find


LEAVES = leaf_weights("target", [(0, 0)], range(2), [0.5, 2.0])
STUMP = {
    "nodes_treeids": [0], "nodes_nodeids": [0], "nodes_featureids": [0], "nodes_values": [0.0],
    "nodes_modes": ["LEAF"], "nodes_truenodeids": [0], "nodes_falsenodeids": [0],
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("standard", [7, 9, 17])
@pytest.mark.parametrize(
    ("op_type", "opset", "attributes", "n"),
    [
        ("Scaler", 1, {"offset": [0.1], "scale": [2.0]}, 3),
        ("Normalizer", 1, {"norm": "L2"}, 3),
        ("Imputer", 1, {"imputed_value_floats": [1.0], "replaced_value_float": 0.0}, 3),
        ("Binarizer", 1, {"threshold": 0.1}, 3),
        ("FeatureVectorizer", 1, {"inputdimensions": [2]}, 2),
        ("LinearRegressor", 1, {"targets": 2, "coefficients": floats(2, 3), "intercepts": floats(2)}, 2),
        ("SVMRegressor", 1, {"coefficients": floats(3), "rho": [0.1], "kernel_params": [0.0, 0.0, 0.0]}, 1),
        *(("TreeEnsembleRegressor", opset, {"n_targets": 2, **STUMP, **LEAVES}, 2) for opset in (1, 3)),
    ],
)
def test_operators_follow_each_other(op_type, opset, attributes, n, standard):
    nodes = [
        helper.make_node(op_type, ["x0"], ["a"], domain="ai.onnx.ml", **attributes),
        helper.make_node("Softmax", ["a"], ["b"], axis=1),
        helper.make_node("LinearClassifier", ["b"], ["label", "score"], domain="ai.onnx.ml", coefficients=floats(3, n),
                         intercepts=floats(3), classlabels_strings=["p", "q", "r"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", 3])],
        [helper.make_empty_tensor_value_info(name) for name in ("label", "score")],
    )
    imports = [helper.make_opsetid("ai.onnx.ml", opset), helper.make_opsetid("", standard)]
    compare(load(helper.make_model(graph, opset_imports=imports, ir_version=8)), X)


def test_a_classifier_of_operator_set_5_has_types():
    nodes, leaves = forest(2, 3)
    x = samples(nodes)
    weights = leaf_weights("class", leaves, range(3), floats(3 * len(leaves)))
    made = [
        to_torch(model_of("TreeEnsembleClassifier", x, n=2, opset=opset, **nodes, **weights, **labels))(
            torch.from_numpy(x)
        )
        for opset in (3, 5)
        for labels in ({"classlabels_int64s": [7, 8, 9]}, {"classlabels_strings": ["a", "b", "c"]})
    ]
    for before, now in zip(made[:2], made[2:], strict=True):
        assert now[0].tolist() == before[0].tolist()
        assert torch.equal(now[1], before[1])


# -- weights in attributes


def regressor():
    nodes, leaves = forest(3, 3)
    weights = leaf_weights("target", leaves, range(2), floats(2 * len(leaves)))
    return model_of("TreeEnsembleRegressor", X, opset=3, n_targets=2, base_values=[0.5, 1.0], **nodes, **weights)


WITH_WEIGHTS = {
    "Scaler": lambda: model_of("Scaler", X, offset=[0.1, 0.2, 0.3], scale=[2.0, 1.0, -0.5]),
    "LinearRegressor": lambda: model_of(
        "LinearRegressor", X, targets=2, coefficients=floats(2, 3), intercepts=floats(2)
    ),
    "LinearClassifier": lambda: model_of(
        "LinearClassifier", X, n=2, coefficients=floats(3, 3), intercepts=floats(3), classlabels_ints=[1, 2, 3],
        post_transform="SOFTMAX",
    ),
    "SVMClassifier": lambda: model_of(
        "SVMClassifier", X, n=2, coefficients=floats(2, 6), support_vectors=floats(6, 3), rho=floats(3),
        vectors_per_class=[2, 1, 3], kernel_type="RBF", kernel_params=[0.3, 0.0, 0.0], classlabels_ints=[7, 8, 9],
        prob_a=floats(3), prob_b=floats(3),
    ),
    "TreeEnsembleRegressor": regressor,
    "TreeEnsemble": lambda: model_of(
        "TreeEnsemble", X, opset=5, n_targets=1, tree_roots=[0], nodes_featureids=[0],
        nodes_splits=TENSOR(np.float32([0])), nodes_modes=TENSOR(np.uint8([0])), nodes_truenodeids=[0],
        nodes_falsenodeids=[1], nodes_trueleafs=[1], nodes_falseleafs=[1], leaf_targetids=[0, 0],
        leaf_weights=TENSOR(np.float32([1, 2])),
    ),
}  # fmt: skip


def declared(model):
    """Return the model with the types of its outputs, which an edited one has to have."""
    proto = model.proto()
    for value, array in zip(proto.graph.output, model.run({"x0": X}).values(), strict=True):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, array.shape))
    return load(proto)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_in_attributes_are_trained_and_written_back(name):
    model = declared(WITH_WEIGHTS[name]())
    net = to_torch(model)
    assert write_back(model, net) is model
    made = net(torch.from_numpy(X))
    (made[-1] if isinstance(made, tuple) else made).square().sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0
        with torch.no_grad():
            parameter -= 0.01 * parameter.grad
    back = write_back(model, net)
    assert back.digest != model.digest
    compare(back, X)
    made, expected = net(torch.from_numpy(X)), list(back.run({"x0": X}).values())
    np.testing.assert_allclose(
        (made[-1] if isinstance(made, tuple) else made).detach().numpy(), expected[-1], rtol=2e-5, atol=2e-5
    )


def test_gradients_of_leaves_are_how_often_samples_fall_into_them():
    model = model_of(
        "TreeEnsembleRegressor", X, opset=3, n_targets=1, nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2],
        nodes_featureids=[1, 0, 0], nodes_values=[0.0, 0.0, 0.0], nodes_modes=["BRANCH_LT", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0], target_treeids=[0, 0], target_nodeids=[1, 2],
        target_ids=[0, 0], target_weights=[1.0, 2.0],
    )  # fmt: skip
    net = to_torch(model)
    net(torch.from_numpy(X)).sum().backward()
    (parameter,) = net.parameters()
    n = int((X[:, 1] < 0).sum())
    assert parameter.grad.tolist() == [n, len(X) - n]


def test_weights_in_attributes_of_functions_are_refused_when_they_change():
    from onnx import parser

    proto = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 1, "local" : 1]>
        agraph (float[n, 2] x) => (float[n, 1] y) { y = local.score (x) }
        <domain: "local", opset_import: ["" : 17, "ai.onnx.ml" : 1]>
        score (a) => (b) { b = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0], intercepts = [0.5]> (a) }
    """)
    model = load(proto)
    net = to_torch(model)
    assert write_back(model, net) is model
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    with pytest.raises(Exception, match="inside a function"):
        write_back(model, net)
