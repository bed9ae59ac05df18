"""Compare two models by structure: what was added, removed, rewired, and which weights changed by how much.

python compare_two_models.py [a.onnx b.onnx]
"""

import sys

import graphmod as gm

if sys.argv[1:]:
    a, b = map(gm.load, sys.argv[1:])
else:
    a = gm.load(gm.demo.model_path())
    b = gm.remove(gm.retrain(a, gm.demo.splits(), ["layer3.6"], epochs=1), "layer1.3")

difference = gm.diff(a, b)
print("the same" if difference.same else "different")
for what in ("added", "removed", "changed", "rewired", "weights"):
    print(what, len(getattr(difference, what)))
