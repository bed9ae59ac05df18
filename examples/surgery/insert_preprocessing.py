"""Insert a preprocessing step: the model takes raw pixels as bytes, channels last, and gives probabilities.

python insert_preprocessing.py
"""

import numpy as np

import graphmod as gm

model = gm.load(gm.demo.model_path())

steps = "Cast(to='float32') > Div(B=16.0) > Transpose(perm=[0, 3, 1, 2])"
served = gm.insert(model, "image", steps, takes="uint8[batch, 8, 8, 1]")
served = gm.insert(served, "logits", "Softmax(axis=-1)")
served.save("served.onnx")
print(served)

pixels = np.random.default_rng(0).integers(0, 17, (5, 8, 8, 1), np.uint8)
by_hand = model.run({"image": (pixels / 16).transpose(0, 3, 1, 2).astype(np.float32)})["logits"]
probabilities = served.run({"image": pixels})["logits"]
assert (probabilities.argmax(1) == by_hand.argmax(1)).all()
