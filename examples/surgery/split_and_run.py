"""Split a network into parts that run one after another, say on two machines, and join them again.

python split_and_run.py
"""

import graphmod as gm

model = gm.load(gm.demo.model_path())
images = gm.demo.splits().test.inputs["image"][:4]

first, second = gm.split(model, ["layer2"])  # or 2, for two parts of about equal cost
first.save("first.onnx")
second.save("second.onnx")
handed_over = first.run({"image": images})
print({name: value.shape for name, value in handed_over.items()})
logits = second.run({name: handed_over[name] for name in second.inputs})["logits"]

whole = gm.compose(first, second)
assert (whole.run({"image": images})["logits"] == logits).all()
assert gm.verify(model, whole, gm.data.noise(model)).exact
