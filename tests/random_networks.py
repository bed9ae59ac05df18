"""Random small networks of blocks from every coupling-rule family, for tests of channel groups and their removal."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from network_families import FAMILIES, Builder, Trunk, as_image, as_tokens
from onnx import ModelProto, TensorProto, helper

OPSETS = (17, 18, 19, 20, 21)
CLASSES = 5
STEPPED = frozenset({"where", "quantized_conv", "quantized_channels", "top_k"})
"""Blocks where a rounding error in what they read can change the output by a step."""


@dataclass(frozen=True)
class RandomNetwork:
    """A model of one input ``x`` and a first output ``logits``.

    Parameters
    ----------
    proto : ModelProto
    families : frozenset of str
        The blocks that it is made of.
    shape : tuple of int
        Of one sample.
    batch : int or None
        None where the batch is dynamic.
    """

    proto: ModelProto
    families: frozenset[str]
    shape: tuple[int, ...]
    batch: int | None

    def feeds(self, seed: int = 0, batch: int = 2) -> dict[str, np.ndarray]:
        """Draw samples, as many as the network's own batch where that is fixed."""
        rng = np.random.default_rng(seed)
        return {"x": rng.normal(size=(self.batch or batch, *self.shape)).astype(np.float32)}


def network(blocks: Sequence[str], seed: int = 0, opset: int = 17, batch: int | None = None) -> RandomNetwork:
    """Build a network of blocks in order, with a head; a block draws its options by its name and the seed alone.

    Parameters
    ----------
    blocks : sequence of str
        Names in ``FAMILIES``.
    seed : int
    opset : int
        Raised to the first that has all operators.
    batch : int or None
    """
    b = Builder(max([opset, *(FAMILIES[name].since for name in blocks)]), batch, FAMILIES[blocks[0]].form)
    b.enter("/stem/", [seed])
    x = Trunk("x", b.form, c=b.one_of(3, 4), h=b.one_of(4, 6, 8), w=b.one_of(4, 8))
    shape = (x.c, x.h, x.w) if x.form == "image" else (x.length, x.c)
    for i, name in enumerate(blocks):
        b.enter(f"/{i}.{name}/", [seed, zlib.crc32(name.encode()), list(blocks[:i]).count(name)])
        x = (as_image if FAMILIES[name].form == "image" else as_tokens)(b, x)
        x = FAMILIES[name].build(b, x)
    b.enter("/head/", [seed])
    b.nodes.append(helper.make_node("Identity", [_head(b, x)], ["logits"], "/head/logits"))
    return RandomNetwork(_model(b, shape), frozenset(blocks), shape, batch)


def _head(b: Builder, x: Trunk) -> str:
    """Return logits, of pooled channels, of the whole image or of the first token."""
    if x.form == "tokens":
        first = b.op("Gather", x.tensor, b.scalar(0), axis=1)
        pooled = first if b.flip() else b.reduce("ReduceMean", x.tensor, [1], keepdims=0)
        return b.linear(pooled, x.c, CLASSES)
    if b.flip():
        return b.linear(b.reduce("ReduceMean", x.tensor, [2, 3], keepdims=0), x.c, CLASSES)
    pooled, width = b.op("GlobalAveragePool", x.tensor), x.c
    if b.flip():
        pooled, width = x.tensor, x.c * x.length
    return b.op("Gemm", b.op("Flatten", pooled), b.weight(CLASSES, width), b.vector(CLASSES), transB=1)


def _model(b: Builder, shape: tuple[int, ...]) -> ModelProto:
    n = b.batch or "batch"
    graph = helper.make_graph(
        b.nodes, "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [n, *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [n, CLASSES]), *b.outputs],
        b.initializers,
    )  # fmt: skip
    domains = {node.domain for node in b.nodes} - {""}
    opsets = [helper.make_opsetid("", b.opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    ir_version = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    return helper.make_model(graph, ir_version=ir_version, opset_imports=opsets)


def networks(families: Sequence[str] = tuple(FAMILIES)) -> st.SearchStrategy[RandomNetwork]:
    """Draw networks of 3 to 8 blocks; most have a dynamic batch. They shrink to fewer blocks that stay as they are."""
    return st.builds(
        network,
        st.lists(st.sampled_from(families), min_size=3, max_size=8),
        st.integers(0, 2**16),
        st.sampled_from(OPSETS),
        st.sampled_from([None, None, None, 2]),
    )


def seeded(seed: int, families: Sequence[str] = tuple(FAMILIES)) -> RandomNetwork:
    """Return the network of a seed, as ``networks()`` would draw one."""
    rng = np.random.default_rng([seed, 2])
    blocks = [str(name) for name in rng.choice(families, size=rng.integers(3, 9))]
    return network(blocks, seed, int(rng.choice(OPSETS)), None if rng.random() < 0.75 else 2)
