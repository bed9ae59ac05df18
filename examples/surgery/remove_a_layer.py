"""Remove a layer: what came before it feeds what came after.

python remove_a_layer.py [model.onnx block]
"""

import sys

import graphmod as gm

path, block = sys.argv[1:] or (gm.demo.model_path(), "layer1.3")

model = gm.load(path)
shorter = gm.remove(model, block)  # a refusal says why where the shapes before and after differ
shorter.save("shorter.onnx")
print(f"{len(model.operators)} operators before, {len(shorter.operators)} after")
errors = gm.verify(model, shorter, gm.data.noise(model)).outputs
print({name: f"largest difference {error.largest:.3g}" for name, error in errors.items()})
