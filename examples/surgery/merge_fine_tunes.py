"""Merge two fine-tunes of one network: average their weights, or add up what each has learnt.

python merge_fine_tunes.py
"""

import graphmod as gm

base = gm.load(gm.demo.model_path())
data = gm.demo.splits()
tunes = [gm.retrain(base, data, ["layer3.6"], epochs=1, seed=seed) for seed in (1, 2)]

soup = gm.merge_weights(tunes[0], tunes[1:])
soup.save("soup.onnx")
for name, model in {"base": base, "first": tunes[0], "second": tunes[1], "average": soup}.items():
    print(f"{name:8} {gm.accuracy(model, data.test):.1%}")
