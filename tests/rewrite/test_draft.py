"""The draft: names that are free, constants wherever they lie, and what subgraphs capture."""

import numpy as np
from handmade import model
from onnx import NodeProto, TensorProto, helper, numpy_helper

import graphmod as gm
from graphmod.model import consumed
from graphmod.rewrite.draft import Draft


def adding(names):
    operators = [helper.make_node("Relu", [a], [b]) for a, b in zip(["x", *names], [*names, "y"], strict=True)]
    return model(operators, {"x": [4]}, {"y": [4]})


def test_names_are_numbered_past_those_that_are_taken():
    draft = Draft(adding(["a", "a_3"]))
    assert [draft.unused(name) for name in ("a", "a", "b", "b", "a", "a_2")] == [
        "a_2",
        "a_4",
        "b",
        "b_2",
        "a_5",
        "a_2_2",
    ]


def test_twenty_thousand_names_are_no_matter_of_time():
    draft = Draft(adding(["a"]))
    assert len({draft.unused("a") for _ in range(20_000)}) == 20_000


def test_constants_that_an_edit_brought_are_read_from_files_too(tmp_path):
    weight = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    held = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    held.external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").write_bytes(weight.raw_data)
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [4]}, {"y": [4]}).editable()
    proto.graph.initializer.append(held)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    draft = Draft(gm.load(tmp_path / "m.onnx"))
    held.name = "copy"
    draft.add_initializer(held)
    for name in ("w", "copy"):
        np.testing.assert_array_equal(draft.constant(name), np.arange(4))
    draft.set_initializer("copy", np.ones(4, np.float32))
    np.testing.assert_array_equal(draft.constant("copy"), np.ones(4))
    assert draft.constant("x") is None


def test_a_sparse_constant_of_a_body_is_not_captured():
    values = numpy_helper.from_array(np.ones(2, np.float32), "s")
    indices = numpy_helper.from_array(np.array([0, 2]), "at")
    made = helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])
    body = helper.make_graph([helper.make_node("Add", ["x", "s"], ["z"])], "body", [], [made])
    body.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    operator = helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=body)
    assert set(consumed(operator)) == {"yes", "x"}


def test_new_operators_keep_the_order_in_which_they_came():
    """Whatever memory those that are gone again leave to others."""
    draft = Draft(adding(["a"]))
    last = draft.producer("y")
    names = []
    room = [NodeProto() for _ in range(300)]
    while room:
        del room[0]  # what is taken next lies the further back, the later it is taken
    for number in range(90):
        (fresh,) = draft.add([helper.make_node("Relu", ["x"], [f"r{number}"])], last)
        if number % 3:
            names.append(f"r{number}")
        else:
            draft.discard(fresh)
        del fresh
    draft.add([helper.make_node("Sum", names, ["y"])], last)
    draft.discard(last)
    assert [operator.output[0] for operator in draft.finish().operators] == [*names, "y"]
