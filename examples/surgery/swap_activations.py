"""Swap an activation everywhere: every ReLU, or only some of them, becomes a Hardswish.

python swap_activations.py
"""

import graphmod as gm

model = gm.load(gm.demo.model_path())

swapped = gm.replace(model, "Relu", by="HardSwish")
swapped.save("swapped.onnx")
print(len(gm.find(model, "Relu")), "ReLUs before,", len(gm.find(swapped, "Relu")), "after")

# a selector chooses: those of one stage, those after a Conv, ...
some = gm.replace(model, "Relu[scope=layer3]", by="LeakyRelu(alpha=0.1)")
print(len(gm.find(some, "LeakyRelu")), "of them in layer3")
