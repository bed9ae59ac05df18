"""Get intermediate outputs: of one run, or as outputs that the model has from now on.

python intermediate_outputs.py
"""

import graphmod as gm

model = gm.load(gm.demo.model_path())
images = gm.demo.splits().test.inputs["image"][:4]

blocks = gm.blocks(model)
values = model.run({"image": images}, outputs=[blocks["layer1"].exit, blocks["layer2"].exit])
print({name: value.shape for name, value in values.items()})

exposed = gm.expose(model, ["layer1", "layer2", "Conv[scope=layer3.0]"])
exposed.save("exposed.onnx")
print(list(exposed.outputs))
assert list(gm.hide(exposed, [name for name in exposed.outputs if name != "logits"]).outputs) == ["logits"]
