"""Cut off the head of a classifier, and put another one on its backbone.

python cut_off_the_head.py
"""

import torch

import graphmod as gm

model = gm.load(gm.demo.model_path())

backbone = gm.extract(model, "image", "flatten")  # from the input to the exit of a block
(features,) = backbone.outputs
torch.manual_seed(0)
three_classes = gm.insert(backbone, features, other=torch.nn.Linear(40, 3))
three_classes.save("three_classes.onnx")
print(backbone.outputs, "->", three_classes.outputs)

# train the new head alone, and write the weights back into the same graph
net = gm.to_torch(three_classes)
print([name for name, _ in net.named_parameters()][-2:])
