"""Merged weights, against the formulas of the papers written out in numpy, and against torch."""

import copy

import numpy as np
import onnx
import pytest
import torch
import zoo
from handmade import fan, model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_graphs

import graphmod as gm
from graphmod.converters import pytorch

RNG = np.random.default_rng(17)
make = helper.make_node


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def perturbed(network, seed):
    """Return a model with other float initializers; variances stay positive."""
    rng = np.random.default_rng(seed)
    proto = network.proto()
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.dims:
            value = numpy_helper.to_array(tensor)
            other = (value * np.exp(rng.normal(scale=0.1, size=value.shape))).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))
    return gm.load(proto)


def floats(network):
    return {
        name: network.initializer(name).astype(np.float64)
        for name, tensor in network.initializers.items()
        if tensor.data_type == TensorProto.FLOAT
    }


def linear(weight, bias):
    operators = [make("MatMul", ["x", "w"], ["p"]), make("Add", ["p", "b"], ["y"])]
    return model(operators, {"x": ["n", 4]}, {"y": ["n", 3]}, {"w": weight, "b": bias})


@pytest.mark.parametrize("coefficients", [None, [3, 1]])
def test_of_linear_models_outputs_are_averaged(coefficients):
    one, two = (linear(normal(4, 3), normal(3)) for _ in range(2))
    x = normal(5, 4)
    share = 0.5 if coefficients is None else 0.75
    expected = share * one.run({"x": x})["y"] + (1 - share) * two.run({"x": x})["y"]
    merged = gm.merge_weights(one, [two], coefficients=coefficients)
    np.testing.assert_allclose(merged.run({"x": x})["y"], expected, atol=1e-6)


def test_fine_tunes_from_torch():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    tuned = []
    for seed in range(3):
        net = copy.deepcopy(base)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))
        for _ in range(10):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs), inputs.argmax(1) % 3).backward()
            optimizer.step()
        tuned.append(net)
    example = (torch.zeros(2, 4),)
    first, *others = [pytorch.to_onnx(net, example) for net in tuned]
    start = pytorch.to_onnx(base, example)
    x = torch.randn(2, 4)
    (name,) = first.inputs
    states = [net.state_dict() for net in tuned]
    soup, arithmetic = copy.deepcopy(base), copy.deepcopy(base)
    soup.load_state_dict({key: sum(s[key].double() for s in states) / 3 for key in states[0]})
    arithmetic.load_state_dict({
        key: value + sum(0.3 * (s[key].double() - value) for s in states) for key, value in base.state_dict().items()
    })  # fmt: skip
    for merged, expected in (
        (gm.merge_weights(first, others), soup),
        (gm.merge_weights(first, others, "task-arithmetic", [0.3], base=start), arithmetic),
    ):
        found = merged.run({name: x.numpy()})[next(iter(merged.outputs))]
        np.testing.assert_allclose(found, expected(x).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
def test_a_network_weight_by_weight(exporter):
    base = zoo.network("resnet18", exporter).model
    tuned = [perturbed(base, seed) for seed in range(3)]
    theta, start = [floats(one) for one in tuned], floats(base)
    variances = {op.input[4] for op in base.operators if op.op_type == "BatchNormalization"}
    shares = np.array([0.5, 0.3, 0.2])
    average = gm.merge_weights(tuned[0], tuned[1:], coefficients=list(shares))
    arithmetic = gm.merge_weights(tuned[0], tuned[1:], "task-arithmetic", [0.5, -0.2, 0.1], base=base)
    for name in start:
        to, back = (np.sqrt, np.square) if name in variances else (np.asarray, np.asarray)
        mean = back(sum(c * to(one[name]) for c, one in zip(shares, theta, strict=True)))
        np.testing.assert_allclose(average.initializer(name), mean, rtol=1e-6)
        moved = sum(c * (to(one[name]) - to(start[name])) for c, one in zip((0.5, -0.2, 0.1), theta, strict=True))
        np.testing.assert_allclose(arithmetic.initializer(name), back(to(start[name]) + moved), rtol=1e-5, atol=1e-7)
    assert len(variances & start.keys()) == len(variances) or exporter == "torchscript"
    onnx.checker.check_model(average.proto(), full_check=True)


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_ties_by_brute_force(density):
    base = fan([50, 30, 5], RNG)
    tuned = [perturbed(base, seed) for seed in range(3)]
    start = np.concatenate([value.ravel() for value in floats(base).values()])
    change = np.stack([np.concatenate([v.ravel() for v in floats(one).values()]) for one in tuned]) - start
    kept = np.zeros_like(change)
    for own, trimmed in zip(change, kept, strict=True):
        largest = np.argsort(-np.abs(own))[: round(density * own.size)]
        trimmed[largest] = own[largest]
    sign = np.sign(kept.sum(0))
    expected = start.copy()
    for i in range(start.size):
        agreeing = [one[i] for one in kept if one[i] and np.sign(one[i]) == sign[i]]
        expected[i] += 0.7 * (sum(agreeing) / len(agreeing) if agreeing else 0)
    merged = gm.merge_weights(tuned[0], tuned[1:], "ties", [0.7], base=base, density=density)
    found = np.concatenate([value.ravel() for value in floats(merged).values()])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_what_a_base_and_factors_mean():
    base = fan([5, 4], RNG)
    one, two = perturbed(base, 0), perturbed(base, 1)
    none = gm.merge_weights(one, two, "task-arithmetic", [0, 0], base=base)
    assert all((none.initializer(name) == base.initializer(name)).all() for name in base.initializers)
    same = gm.merge_weights(one, [], "task-arithmetic", [1], base=base)
    for name in base.initializers:
        np.testing.assert_allclose(same.initializer(name), one.initializer(name), rtol=1e-6)
    half = gm.merge_weights(one, two, "task-arithmetic", [0.5], base=base)
    mean = gm.merge_weights(one, two)
    for name in base.initializers:
        np.testing.assert_allclose(half.initializer(name), mean.initializer(name), rtol=1e-6)
    assert gm.merge_weights(one, [one, one]) is one


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.lists(st.floats(0.1, 5), min_size=3, max_size=3))
def test_random_graphs(graph, coefficients):
    networks = [perturbed(gm.load(graph.proto), seed) for seed in range(3)]
    contents = [one.proto().SerializeToString(deterministic=True) for one in networks]
    merged = gm.merge_weights(networks[0], networks[1:], coefficients=coefficients)
    shares = np.array(coefficients) / sum(coefficients)
    expected = networks[0].proto()
    for tensor in expected.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            mean = sum(c * floats(one)[tensor.name] for c, one in zip(shares, networks, strict=True))
            tensor.CopyFrom(numpy_helper.from_array(mean.astype(np.float32), tensor.name))
    value = gm.load(expected).run(graph.feeds())["out"]
    np.testing.assert_allclose(merged.run(graph.feeds())["out"], value, atol=1e-5)
    assert [one.proto().SerializeToString(deterministic=True) for one in networks] == contents
    assert (merged is networks[0]) == (len({str(floats(one)) for one in networks}) == 1)


def test_statistics_of_layers_that_differ_by_a_factor():
    """The merged network normalizes what it computes exactly as its parts do."""
    x, weight = normal(400, 4), normal(4, 3)
    networks = []
    for factor in (1, 3):
        product = x @ (factor * weight)
        weights = {"w": factor * weight, "s": np.ones(3, np.float32), "b": np.zeros(3, np.float32),
                   "mean": product.mean(0), "var": product.var(0)}  # fmt: skip
        operators = [make("MatMul", ["x", "w"], ["p"]),
                     make("BatchNormalization", ["p", "s", "b", "mean", "var"], ["y"], epsilon=1e-9)]  # fmt: skip
        networks.append(model(operators, {"x": ["n", 4]}, {"y": ["n", 3]}, weights))
    found = gm.merge_weights(networks[0], networks[1:]).run({"x": x})["y"]
    np.testing.assert_allclose(found, networks[0].run({"x": x})["y"], atol=1e-4)
    np.testing.assert_allclose(found.var(0), 1, rtol=1e-4)
    tiny = [networks[0], gm.merge_weights(networks[1], networks[1])]
    with pytest.raises(gm.RefusedError, match="standard deviation 'var' is below 0"):
        gm.merge_weights(tiny[1], [], "task-arithmetic", [-2.0], base=tiny[0])


def everywhere(value, prefix=""):
    """Return a model that holds one number in an initializer, an operator, a body, a function, and sparsely."""
    scalar = numpy_helper.from_array(np.float32([value]), f"{prefix}held")
    sparse = helper.make_sparse_tensor(numpy_helper.from_array(np.float32([value]), f"{prefix}sparse"),
                                       numpy_helper.from_array(np.array([1]), "places"), [2])  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    function = helper.make_function(
        "own", "add", ["i"], ["o"],
        [make("Constant", [], ["c"], value=scalar), make("Add", ["i", "c"], ["o"])], opsets,
    )  # fmt: skip
    result = [helper.make_tensor_value_info(f"{prefix}r", TensorProto.FLOAT, None)]
    body = helper.make_graph([make("Add", [f"{prefix}a3", f"{prefix}held"], [f"{prefix}r"])], "b", [], result, [scalar])
    operators = [
        make("Constant", [], [f"{prefix}c"], value=scalar),
        make("Add", ["x", f"{prefix}c"], [f"{prefix}a1"], f"{prefix}op"),
        make("Add", [f"{prefix}a1", f"{prefix}w"], [f"{prefix}a2"]),
        make("Add", [f"{prefix}a2", f"{prefix}sparse"], [f"{prefix}a3"]),
        make("If", [f"{prefix}yes"], [f"{prefix}a4"], then_branch=body, else_branch=body),
        make("add", [f"{prefix}a4"], ["y"], domain="own"),
    ]
    weights = {f"{prefix}w": np.float32([value]), f"{prefix}yes": np.array(True), "unread": np.float32([value])}
    proto = model(operators, {"x": [2]}, {"y": [2]}, weights).proto()
    proto.graph.sparse_initializer.append(sparse)
    proto.functions.append(function)
    proto.opset_import.append(opsets[1])
    return gm.load(proto)


def test_weights_wherever_they_are_and_other_names():
    merged = gm.merge_weights(everywhere(1), [everywhere(4, "other.")])
    x = np.zeros(2, np.float32)
    np.testing.assert_allclose(merged.run({"x": x})["y"], [2.5 * 4, 2.5 * 5])
    assert merged.initializer("unread") == 1


@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_that_the_file_lists_among_inputs(ir_version):
    plain = [linear(normal(4, 3), normal(3)) for _ in range(2)]
    listed = []
    for one in plain:
        proto = one.proto()
        proto.ir_version = ir_version
        for tensor in proto.graph.initializer:
            kind = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.insert(0, kind)
        listed.append(gm.load(proto))
    x = normal(5, 4)
    expected = gm.merge_weights(plain[0], plain[1:]).run({"x": x})["y"]
    for first, other in (listed, (listed[0], plain[1])):
        np.testing.assert_array_equal(gm.merge_weights(first, [other]).run({"x": x})["y"], expected)


def branches(then, otherwise, around, swap=False):
    """Return a model whose branches call their weights by one name, and both read one from outside."""
    bodies = [
        helper.make_graph(
            [make("Mul", ["x", "w"], ["p"]), make("Add", ["p", "q" if swap and i else "b"], ["r"])], "body", [],
            [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)], [numpy_helper.from_array(value, "w")],
        )
        for i, value in enumerate((then, otherwise))
    ]  # fmt: skip
    operators = [
        make("ReduceMax", ["x"], ["m"], keepdims=0),
        make("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        make("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1]),
    ]
    return model(operators, {"x": [2]}, {"y": [2]}, {"b": around, "q": around})


def test_branches_with_weights_of_one_name():
    values = normal(2, 3, 2)
    one, two = (branches(*value) for value in values)
    merged = gm.merge_weights(one, [two])
    expected = branches(*values.mean(0))
    for x in (np.zeros(2, np.float32), normal(2) ** 2 + 1):
        np.testing.assert_allclose(merged.run({"x": x})["y"], expected.run({"x": x})["y"], atol=1e-6)
    with pytest.raises(gm.RefusedError, match="is 'b' in one and 'q' in the other"):
        gm.merge_weights(one, [branches(*values[1], swap=True)])


def test_variances_in_functions():
    rng = np.random.default_rng(0)
    networks = []
    for _ in range(2):
        operators, weights, before = [], {}, "x"
        for i in range(3):
            weights |= {f"{name}{i}": np.float32(rng.uniform(1, 9, 4)) for name in "sbmv"}
            operators += [make("BatchNormalization", [before, *(f"{n}{i}" for n in "sbmv")], [f"n{i}"]),
                          make("Relu", [f"n{i}"], [f"r{i}"]), make("Neg", [f"r{i}"], [f"g{i}"]),
                          make("Exp", [f"g{i}"], [f"e{i}"])]  # fmt: skip
            before = f"e{i}"
        networks.append(model(operators, {"x": ["n", 4]}, {before: ["n", 4]}, weights))
    outlined = [gm.outline(one) for one in networks]
    assert outlined[0].functions
    merged, expected = gm.merge_weights(outlined[0], outlined[1:]), gm.merge_weights(networks[0], networks[1:])
    for name in expected.initializers:
        np.testing.assert_array_equal(merged.initializer(name), expected.initializer(name))


def test_a_weight_that_is_an_output():
    networks = []
    for value in (1, 3):
        proto = linear(np.full((4, 3), value, np.float32), normal(3)).proto()
        proto.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
        del proto.graph.node[:]
        proto.graph.node.append(make("Neg", ["x"], ["y"]))
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]))
        networks.append(gm.load(proto))
    merged = gm.merge_weights(networks[0], networks[1:])
    np.testing.assert_array_equal(merged.run({"x": normal(1, 4)})["w"], np.full((4, 3), 2))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_types(kind):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    networks = []
    for values in ([1, 3, 6], [2, 4, 6]):
        proto = linear(normal(4, 3), normal(3)).proto()
        del proto.graph.node[:], proto.graph.initializer[:]
        proto.graph.node.extend([make("Cast", ["w"], ["c"], to=TensorProto.FLOAT), make("MatMul", ["x", "c"], ["y"])])
        array = np.array([values] * 4).astype(dtype)
        proto.graph.initializer.append(numpy_helper.from_array(array, "w"))
        networks.append(gm.load(proto))
    merged = gm.merge_weights(networks[0], networks[1:])
    assert merged.initializer("w").dtype == dtype
    np.testing.assert_array_equal(merged.initializer("w").astype(np.float32), [[1.5, 3.5, 6]] * 4)
    if kind == TensorProto.FLOAT16:
        with pytest.raises(gm.RefusedError, match="'w' is outside the range of float16"):
            gm.merge_weights(networks[0], [], "task-arithmetic", [1e6], base=networks[1])


def test_infinities_stay():
    masks = [linear(np.float32([[-np.inf, value, 1]] * 4), normal(3)) for value in (1, 2)]
    merged = gm.merge_weights(masks[0], [], "task-arithmetic", [0.5], base=masks[1])
    np.testing.assert_array_equal(merged.initializer("w"), [[-np.inf, 1.5, 1]] * 4)


def test_external_weights(tmp_path):
    networks = []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        path = tmp_path / str(i) / "m.onnx"
        onnx.save_model(fan([600, 600], np.random.default_rng(i), (600,)).proto(), path,
                        save_as_external_data=True, location="w", size_threshold=0)  # fmt: skip
        networks.append(gm.load(path))
    merged = gm.merge_weights(networks[0], networks[1:])
    for name in ("w0", "w1"):
        mean = (networks[0].initializer(name) + networks[1].initializer(name)) / 2
        np.testing.assert_allclose(merged.initializer(name), mean, rtol=1e-6, atol=1e-7)
    x = normal(2, 600)
    again = gm.load(merged.save(tmp_path / "merged.onnx"))
    np.testing.assert_allclose(again.run({"x": x})["t1"], merged.run({"x": x})["t1"])


def changed(edit):
    proto = everywhere(2).proto()
    edit(proto.graph)
    return gm.load(proto)


def set_value(graph, name, array):
    next(t for t in graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(array, name))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda g: setattr(g.node[1], "op_type", "Mul"), "Add 'op' stands where the other has Mul 'op'"),
        (lambda g: g.node[2].input.__setitem__(0, "x"), "input 0 of Add 'a2' is 'a1' in one and 'x'"),
        (lambda g: set_value(g, "w", np.float32([1, 2])), r"'w' is float32\[1\] and float32\[2\]"),
        (lambda g: set_value(g, "yes", np.array(False)), "'yes' of type bool is not the same"),
        (lambda g: g.node.append(make("Relu", ["y"], ["z"], "late")), "only one model has Relu 'late'"),
        (lambda g: g.output.append(g.output[0]), "one has 1 outputs, the other 2"),
        (lambda g: setattr(g.input[0].type.tensor_type.shape.dim[0], "dim_value", 3), r"input 'x' is float32\[2\]"),
        (lambda g: g.node[4].attribute[0].g.node[0].input.__setitem__(1, "w"), "input 1 of Add 'r'"),
    ],
)  # fmt: skip
def test_graphs_that_differ(edit, reason):
    with pytest.raises(gm.RefusedError, match=reason):
        gm.merge_weights(everywhere(1), [everywhere(2), changed(edit)])


def test_attributes_and_functions_that_differ():
    leaks = [model([make("LeakyRelu", ["x"], ["y"], "leak", alpha=a)], {"x": [2]}, {"y": [2]}) for a in (0.1, 0.2)]
    with pytest.raises(gm.RefusedError, match="attribute 'alpha' of LeakyRelu 'leak'"):
        gm.merge_weights(leaks[0], leaks[1:])
    proto = everywhere(1).proto()
    del proto.functions[:]
    with pytest.raises(gm.RefusedError, match="only one model has function 'add'"):
        gm.merge_weights(everywhere(1), proto)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"method": "task-arithmetic"}, "needs the model before fine-tuning"),
        ({"base": True}, "has no use for a base"),
        ({"coefficients": [1, 2, 3]}, "takes 2 coefficients here, and 3"),
        ({"coefficients": [1, -1]}, "a sum above 0"),
        ({"coefficients": [1, float("nan")]}, "coefficients are numbers"),
        ({"method": "ties", "base": True, "density": 0.0}, "density"),
    ],
)
def test_refusals(arguments, reason):
    one, two, base = (linear(normal(4, 3), normal(3)) for _ in range(3))
    if "base" in arguments:
        arguments = {**arguments, "base": base}
    with pytest.raises(gm.RefusedError, match=reason):
        gm.merge_weights(one, two, **arguments)
