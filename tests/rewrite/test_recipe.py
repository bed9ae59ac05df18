"""Recipes: what edits leave in the metadata replays to the same bytes, and a bad recipe runs not at all."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import graphmod as gm
from graphmod.model import RECORD
from graphmod.rewrite.verb import VERBS


@pytest.fixture(scope="module")
def demo():
    return gm.load(gm.demo.model_path())


@pytest.fixture(scope="module")
def fitted(demo):
    return gm.replace(gm.remove(demo, "layer1.3"), "layer3.5", gm.demo.splits().train, "linear")


def content(model):
    return model.proto().SerializeToString(deterministic=True)


def test_the_record_replays_to_the_same_bytes(demo, fitted, tmp_path):
    fitted.save(tmp_path / "fitted.onnx")
    recipe = gm.Recipe.of(gm.load(tmp_path / "fitted.onnx"))
    assert [edit.verb for edit in recipe] == ["remove", "replace"]
    again = gm.apply(recipe, demo, given=[gm.demo.splits().test, gm.demo.splits().train])
    again.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "fitted.onnx").read_bytes()


def test_it_replays_from_a_file_too_and_undo_is_replaying_less(demo, tmp_path):
    twice = gm.remove(gm.remove(demo, "layer1.3"), "layer2.3")
    path = gm.Recipe.of(twice).save(tmp_path / "recipe.yaml")
    assert content(gm.apply(path, demo)) == content(twice)
    assert content(gm.apply(gm.Recipe.load(path)[:1], demo)) == content(gm.remove(demo, "layer1.3"))
    assert content(gm.apply(gm.Recipe.load(path)[:0], demo)) == content(demo)


def test_only_the_outermost_verb_is_recorded(demo, fitted):
    edits = json.loads(fitted.metadata[RECORD])["edits"]
    assert [next(iter(edit)) for edit in edits] == ["remove", "replace"]
    assert RECORD not in demo.metadata


@pytest.mark.parametrize("step", [{"remove": {"place": "layer1.3"}}, {"remove": "layer1.3"}])
def test_short_and_long_forms_leave_the_same_record(demo, step):
    assert content(gm.apply([step], demo)) == content(gm.remove(demo, "layer1.3"))


def test_recipes_by_hand_may_be_spelled_as_on_the_command_line(demo):
    made = gm.apply([{"expose": "layer1"}, {"low-rank": {"rank": 4}}, "simplify"], demo)
    assert list(made.outputs) == ["logits", "relu_14"]
    with pytest.raises(gm.InvalidRecipeError, match="a colon is missing after 'remove'"):
        gm.apply(["remove layer1.1"], demo)


def test_data_from_a_file_is_named_by_file_and_hash(demo, tmp_path):
    images = gm.demo.splits().train.inputs["image"][:200]
    np.savez(tmp_path / "images.npz", x=images)
    (tmp_path / "recipe.yaml").write_text("- replace: {place: layer3.5, data: images.npz, kind: affine}\n")
    made = gm.apply(tmp_path / "recipe.yaml", demo)
    data = json.loads(made.metadata[RECORD])["edits"][0]["replace"]["data"]
    assert data["file"] == "images.npz"
    assert len(data["sha256"]) == 64
    recorded = gm.Recipe.of(made).save(tmp_path / "recorded.yaml")
    assert content(gm.apply(recorded, demo)) == content(made)
    in_memory = gm.replace(demo, "layer3.5", images, "affine")
    assert json.loads(in_memory.metadata[RECORD])["edits"][0]["replace"]["data"] == {"sha256": data["sha256"]}
    np.savez(tmp_path / "images.npz", x=images[:100])
    with pytest.raises(gm.InvalidRecipeError, match=r"'images\.npz' is not the data that the recipe was made with"):
        gm.apply(recorded, demo)
    (tmp_path / "images.npz").unlink()
    with pytest.raises(gm.InvalidRecipeError, match=rf"there is no file '{tmp_path}/images\.npz'; give it, .*--given"):
        gm.apply(recorded, demo)
    assert content(gm.apply(recorded, demo, given=[images])) == content(made)


def test_data_of_a_sole_input_is_the_same_whatever_the_input_is_called(demo, tmp_path):
    images = gm.demo.splits().train.inputs["image"][:200]
    np.savez(tmp_path / "images.npz", x=images)
    recorded = gm.Recipe.of(gm.replace(demo, "layer3.5", tmp_path / "images.npz", "affine"))
    renamed = gm.rename(demo, {"image": "input"})
    made = gm.apply(recorded, renamed)
    assert [edit.verb for edit in gm.Recipe.of(made)] == ["rename", "replace"]
    assert gm.Recipe.of(made)[-1] == recorded[-1]
    (tmp_path / "images.npz").unlink()
    assert content(gm.apply(recorded, renamed, given=[images])) == content(made)
    with pytest.raises(gm.InvalidRecipeError, match=r"nothing given has it \(.*inputs are input, the data has image"):
        gm.apply(recorded, renamed, given=[{"image": images}])


def test_data_that_a_recipe_by_hand_names_is_looked_for_beside_it(demo, tmp_path):
    (tmp_path / "recipe.yaml").write_text("- replace: {place: layer3.5, data: images.npz, kind: affine}\n")
    with pytest.raises(gm.InvalidRecipeError, match=rf"no data at '{tmp_path}/images.npz'; .* sha256 .*--given"):
        gm.apply(tmp_path / "recipe.yaml", demo)


def test_of_data_in_parts_verbs_take_the_training_part(demo):
    splits = gm.demo.splits()
    expected = content(gm.replace(demo, "layer3.5", splits.train, "affine"))
    assert content(gm.replace(demo, "layer3.5", splits, "affine")) == expected
    parts = {"train": splits.train, "test": splits.test}
    assert content(gm.replace(demo, "layer3.5", parts, "affine")) == expected


def test_data_in_memory_has_to_be_given(demo, fitted):
    with pytest.raises(gm.InvalidRecipeError, match=r"step 2 \(replace\): the data with hash .* is needed"):
        gm.apply(gm.Recipe.of(fitted), demo)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ([{"remve": "x"}], r"step 1 \(remve\): there is no verb 'remve'; did you mean 'remove'\?"),
        ([{"remove": {"plce": "x"}}], "parameter 'place' is missing.*no parameter 'plce'; did you mean 'place'"),
        (["remove"], "parameter 'place' is missing"),
        ([{"remove": {"place": 3}}], "'place' is 3: input should be a valid string"),
        ([{"remove": {"place": ["a"]}}], "'place' is \\['a'\\]"),
        ([{"replace": {"place": "x", "data": "nowhere.npz"}}], f"there is no data at '{Path.cwd()}/nowhere.npz'$"),
        ([{"replace": {"place": "x", "data": 4}}], "'data' is the path of a data, not 4"),
        ([{"replace": {"place": "x", "data": {"hash": "0"}}}], "'data' names a data by 'sha256'"),
        ([{"remove": "x", "replace": "y"}], "step 1 is no step"),
        ([3], "step 1 is no step"),
    ],
)
def test_a_bad_recipe_says_what_is_wrong(demo, recipe, told):
    with pytest.raises(gm.InvalidRecipeError, match=told):
        gm.apply(recipe, demo)


def test_nothing_runs_unless_all_steps_are_valid(demo, monkeypatch):
    ran = []
    monkeypatch.setitem(VERBS["remove"].__dict__, "function", lambda *args, **kwargs: ran.append((args, kwargs)))
    with pytest.raises(gm.InvalidRecipeError, match=r"step 2 .*; step 3 "):
        gm.apply([{"remove": "layer1.3"}, "nothing", {"remove": {"where": 1}}], demo)
    assert not ran


def test_a_refusal_names_the_step(demo):
    with pytest.raises(gm.RefusedError, match=r"step 2 \(remove\): there is no block or operator 'layer9'"):
        gm.apply([{"remove": "layer1.3"}, {"remove": "layer9"}], demo)


@pytest.mark.parametrize("text", ["a: [1", "", "just text", "graphmod: 2\nedits: []", "edits: 3"])
def test_a_file_that_is_no_recipe(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(gm.InvalidRecipeError):
        gm.Recipe.load(tmp_path / "recipe.yaml")


def test_a_missing_file_and_a_damaged_record(demo, tmp_path):
    with pytest.raises(gm.InvalidRecipeError, match="cannot read"):
        gm.Recipe.load(tmp_path / "none.yaml")
    proto = demo.proto()
    proto.metadata_props.add(key=RECORD, value="{")
    with pytest.raises(gm.InvalidModelError, match="no record of edits"):
        gm.remove(gm.load(proto), "layer1.3")


def test_a_recipe_reads_what_it_writes(fitted, tmp_path):
    recipe = gm.Recipe.of(fitted)
    assert gm.Recipe.load(recipe.save(tmp_path / "a.yaml")) == recipe
    (tmp_path / "a.json").write_text(json.dumps(recipe.as_dict()))
    assert gm.Recipe.load(tmp_path / "a.json") == recipe
    assert yaml.safe_load((tmp_path / "a.yaml").read_text())["edits"][0] == {"remove": {"place": "layer1.3"}}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_every_verb_can_stand_in_a_recipe(verb):
    """Its parameters have types that a recipe can hold and texts that --help can show."""
    import docstring_parser

    assert next(iter(verb.function.__annotations__)) == "model"
    described = {
        name.strip() for one in docstring_parser.parse(verb.function.__doc__).params for name in one.arg_name.split(",")
    }
    assert set(verb.parameters) <= described
    assert verb.example.startswith(f"graphmod {verb.name.replace('_', '-')} ")


@pytest.mark.parametrize("text", ['{"edits": 3}', '{"edits": "remove"}', "[]"])
def test_what_is_no_list_of_edits_is_no_record(demo, text):
    proto = demo.proto()
    proto.metadata_props.add(key=RECORD, value=text)
    with pytest.raises(gm.InvalidModelError, match="no record of edits"):
        gm.remove(gm.load(proto), "layer1.3")


def test_a_step_may_hold_a_block_and_a_recipe_be_a_mapping(demo):
    block = gm.blocks(demo)["layer1.3"]
    expected = gm.remove(demo, block)
    assert content(gm.apply({"edits": [{"remove": {"place": block}}]}, demo)) == content(expected)
    assert content(gm.apply(gm.Recipe.of(expected), demo)) == content(expected)


@pytest.mark.parametrize(("recipe", "message"), [(None, "is a list of steps"), ([{"fuse": {}, "hide": {}}], "no step")])
def test_what_is_no_recipe_is_refused(demo, recipe, message):
    with pytest.raises(gm.InvalidRecipeError, match=message):
        gm.apply(recipe, demo)


def test_a_file_is_named_by_text(demo):
    step = {"replace": {"place": "layer3.5", "data": {"file": 3, "sha256": "0"}}}
    with pytest.raises(gm.InvalidRecipeError, match="'data' names a data by 'sha256'"):
        gm.apply([step], demo)
