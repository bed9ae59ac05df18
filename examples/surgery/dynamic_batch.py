"""Make the batch dynamic in a model that was exported for one sample, or fix it again.

python dynamic_batch.py [model.onnx]
"""

import sys

import graphmod as gm

model = gm.load(sys.argv[1]) if len(sys.argv) > 1 else gm.rebatch(gm.load(gm.demo.model_path()), 1)

dynamic = gm.rebatch(model, "batch")  # a refusal names the operator that holds on to the old size
dynamic.save("dynamic.onnx")
print({name: str(kind) for name, kind in model.inputs.items()}, "->", {n: str(k) for n, k in dynamic.inputs.items()})
for size in (1, 3, 8):
    outputs = dynamic.run(dict(gm.data.noise(dynamic, size).inputs))
    print(size, {name: value.shape for name, value in outputs.items()})
