"""Extract a feature extractor: the part of a network up to a layer, as a model that runs.

python extract_features.py
"""

import graphmod as gm

model = gm.load(gm.demo.model_path())
test = gm.demo.splits().test

features = gm.extract(model, "image", "layer3")  # a block, an operator, a tensor
features.save("features.onnx")
(name,) = features.outputs
print(name, features.run({"image": test.inputs["image"][:4]})[name].shape)
