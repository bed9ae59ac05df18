"""Recovery of pruned networks of half precision."""

import numpy as np
import pytest
import torch
from handmade import fan

import graphmod as gm

torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_network_of_half_precision_recovers(kind):
    rng = np.random.default_rng(0)
    start = gm.retype(fan([32, 32, 4], rng), kind)
    x = rng.normal(size=(300, 7)).astype(np.float32)
    data = gm.Data({"x": x}, start.run({"x": x})["t2"].argmax(axis=1))
    cut, recovered = (gm.prune(start, 0.8, data=data, **o) for o in ({}, {"epochs": 40, "learning_rate": 0.02}))
    assert {str(op.op_type) for op in recovered.operators} == {str(op.op_type) for op in cut.operators}
    assert [cut.tensors[name] for name in cut.constants] == [recovered.tensors[name] for name in recovered.constants]
    assert gm.accuracy(recovered, data) > gm.accuracy(cut, data) + 0.05
