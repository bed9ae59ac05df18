"""Script what no verb does, with onnx-graphsurgeon, between graphmod's checks.

python script_the_rest.py
"""

import graphmod as gm

model = gm.load(gm.demo.model_path())

with model.surgery() as graph:  # an onnx_graphsurgeon.Graph
    for node in graph.nodes:
        if node.op == "Relu":
            node.op = "Elu"
            node.attrs["alpha"] = 0.5

print(len(gm.find(graph.model, "Elu[alpha=0.5]")), "operators changed; names, scopes and metadata are kept")
graph.model.save("elu.onnx")
