"""Write edits down as a recipe, replay it on another model, and undo its last step.

python replay_a_recipe.py
"""

import graphmod as gm

model = gm.load(gm.demo.model_path())
edited = gm.replace(gm.remove(model, "layer1.3"), "Relu[scope=layer3]", by="HardSwish")
edited.save("edited.onnx")  # carries the record of what was done to it

recipe = gm.Recipe.of(gm.load("edited.onnx"))
recipe.save("recipe.yaml")
for edit in recipe:
    print(edit)

assert gm.apply("recipe.yaml", model).digest == edited.digest
before = gm.apply(recipe[:-1], model)  # undo: replay less
assert gm.diff(before, gm.remove(model, "layer1.3")).same
