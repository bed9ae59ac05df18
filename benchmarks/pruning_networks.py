"""The networks that ``prune.py`` measures: of the tests, of the onnx package, the demo, and some of real size."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

import graphmod as gm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

import architectures  # noqa: E402  # the folder holds tests, not packages
import zoo  # noqa: E402  # the same
from architectures.registry import ARCHITECTURES  # noqa: E402  # the same

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
REFERENCE_OPSET = 17

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Subject:
    """A network and what it runs on.

    Parameters
    ----------
    name : str
    kind : str
        "architecture" or "zoo" (small ones, of the tests), "light", "demo", or "real size".
    exporter : str
        "current" or "torchscript"; "" where torch did not export it.
    model : gm.Model
    examples : tuple of Feeds
        Of several batch sizes and lengths, where the file allows it.
    one : Feeds
        The smallest batch that the file allows.
    """

    name: str
    kind: str
    exporter: str
    model: gm.Model
    examples: tuple[Feeds, ...]
    one: Feeds

    @property
    def title(self) -> str:
        """The name, and the exporter where there are two."""
        return f"{self.name}, {self.exporter}" if self.exporter else self.name


def small(exports: Path | None = None) -> Iterator[Subject]:
    """Yield the networks of the tests from both exporters; exports are kept in a folder if one is given."""
    for name, exporter in architectures.exports():
        model = _kept(exports, f"{name}-{exporter}", lambda: architectures.export(name, exporter))  # noqa: B023  # called at once
        drawn = architectures.examples(name, exporter)
        fixed = "batch" in ARCHITECTURES[name].fixed.get(exporter, set())
        one = drawn[0] if fixed else architectures.example(name, 1, 1)
        yield _subject(name, "architecture", exporter, model, drawn, one)
    for name in zoo.NETWORKS:
        for exporter in zoo.EXPORTERS:
            network = zoo.network(name, exporter)
            three = tuple(torch.cat([x, x[:1]]) for x in network.inputs)
            one = tuple(x[:1] for x in network.inputs)
            yield _subject(name, "zoo", exporter, network.model, [network.inputs, three], one)
    demo = gm.load(gm.demo.model_path())
    drawn = [tuple(map(torch.from_numpy, gm.data.noise(demo, n).inputs.values())) for n in (2, 3, 1)]
    yield _subject("demo", "demo", "", demo, drawn[:2], drawn[2])


def light(filled: bool = False) -> Iterator[Subject]:
    """Yield the models that the onnx package brings; their weights are one number, or drawn if ``filled``."""
    for path in sorted(LIGHT.glob("*.onnx")):
        model = gm.load(path)
        if filled:
            model = gm.load(_filled(_to_logits(onnx.load(path))))
        feeds = dict(gm.data.noise(model, 1).inputs)
        yield Subject(path.stem, "light", "", model, (feeds,), feeds)


def light_reference(name: str) -> ModelProto:
    """Return a light model, filled, in an operator set that the reference for masks can edit."""
    proto = _to_logits(onnx.load(LIGHT / f"{name}.onnx"))
    return _filled(onnx.version_converter.convert_version(proto, REFERENCE_OPSET))


def _to_logits(proto: ModelProto) -> ModelProto:
    """Drop the last softmax: of drawn weights it may let one class alone be seen."""
    last = proto.graph.node[-1]
    if last.op_type == "Softmax":
        proto.graph.output[0].name = last.input[0]
        proto.graph.node.pop()
    return proto


def _filled(proto: ModelProto) -> ModelProto:
    """Draw what ConstantOfShape fills with one number: channels that are all alike would hide a wrong one."""
    shapes = {tensor.name: tensor for tensor in proto.graph.initializer}
    rest = []
    for operator in proto.graph.node:
        if operator.op_type != "ConstantOfShape":
            rest.append(operator)
            continue
        shape = numpy_helper.to_array(shapes[operator.input[0]])
        rng = np.random.default_rng([*operator.output[0].encode()])
        fan_in = max(1, int(np.prod(shape[1:])))
        value = rng.normal(0, (2 / fan_in) ** 0.5, shape) if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), operator.output[0]))
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in stored]  # old files list initializers, too
    graph = helper.make_graph(rest, proto.graph.name, inputs, proto.graph.output, proto.graph.initializer)
    return helper.make_model(graph, opset_imports=proto.opset_import, ir_version=8)


def _kept(folder: Path | None, name: str, export: Callable[[], ModelProto]) -> gm.Model:
    if folder is None:
        return gm.load(export())
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(export(), path)
    return gm.load(path)


def _subject(
    name: str, kind: str, exporter: str, model: gm.Model, drawn: list[tuple[Tensor, ...]], one: tuple[Tensor, ...]
) -> Subject:
    def feeds(values: tuple[Tensor, ...]) -> Feeds:
        return {key: value.numpy() for key, value in zip(model.inputs, values, strict=True)}

    return Subject(name, kind, exporter, model, tuple(map(feeds, drawn)), feeds(one))


# -- of the size that people use: widths and depths of the papers, random weights

Built = tuple[nn.Module, tuple[Tensor, ...]]


class Output(nn.Module):
    """A model of transformers of which one output comes out."""

    def __init__(self, model: nn.Module, output: str = "logits"):
        super().__init__()
        self.model, self.output = model, output

    def forward(self, x: Tensor) -> Tensor:
        """Map the input to the output."""
        return getattr(self.model(x), self.output)


def resnet18() -> Built:
    return zoo.ResNet(zoo.BasicBlock, (2, 2, 2, 2), width=64, n_classes=1000), _image()


def resnet50() -> Built:
    return zoo.ResNet(zoo.Bottleneck, (3, 4, 6, 3), width=64, n_classes=1000), _image()


def vgg16() -> Built:
    layers: list[nn.Module] = []
    n_in = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers.append(zoo.conv_norm(n_in, width, 3, act=nn.ReLU))
            n_in = width
        layers.append(nn.MaxPool2d(2))
    head = (nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000))
    return nn.Sequential(*layers, nn.Flatten(), *head), _image()


def mobilenetv2() -> Built:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(num_labels=1000, tf_padding=False)
    return Output(MobileNetV2ForImageClassification(config)), _image()


def efficientnet_b0() -> Built:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        width_coefficient=1.0, depth_coefficient=1.0, image_size=224, hidden_dim=1280, num_labels=1000
    )
    return Output(EfficientNetForImageClassification(config)), _image()


def convnext_t() -> Built:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return Output(ConvNextForImageClassification(ConvNextConfig(num_labels=1000))), _image()


def vit_s() -> Built:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
    return Output(ViTForImageClassification(config)), _image()


def swin_t() -> Built:
    from transformers import SwinConfig, SwinForImageClassification

    return Output(SwinForImageClassification(SwinConfig(num_labels=1000, attn_implementation="eager"))), _image()


def segformer_b0() -> Built:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return Output(SegformerForSemanticSegmentation(SegformerConfig(num_labels=150))), _image()


def bert_small() -> Built:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048)
    return Output(BertForSequenceClassification(config)), _tokens(30522)


def gpt2_small() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=8192,
        n_embd=512,
        n_layer=6,
        n_head=8,
        n_positions=256,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=1,
    )
    return Output(GPT2LMHeadModel(config)), _tokens(8192)


def llama_small() -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=1376, use_cache=False,
    )  # fmt: skip
    return Output(LlamaForCausalLM(config)), _tokens(8192)


REAL: dict[str, Callable[[], Built]] = {
    build.__name__: build
    for build in (
        resnet18, resnet50, vgg16, mobilenetv2, efficientnet_b0, convnext_t, vit_s, swin_t, segformer_b0, bert_small,
        gpt2_small, llama_small,
    )
}  # fmt: skip


def _image() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 224, 224),)


def _tokens(vocabulary: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, vocabulary, (2, 128)),)


def real(exports: Path | None = None) -> Iterator[Subject]:
    """Yield networks of real size from the current exporter, of which the batch is dynamic."""
    for name in REAL:
        module, inputs = built(name)
        one = tuple(x[:1] for x in inputs)
        model = _kept(exports, f"real-{name}", lambda: exported(module, inputs))  # noqa: B023  # called at once
        yield _subject(name, "real size", "current", model, [inputs, one], one)


def built(name: str) -> Built:
    """Return a network of real size in evaluation mode, and two samples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, inputs = REAL[name]()
    return module.eval(), inputs


def exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> ModelProto:
    """Return what the current exporter makes of a network of real size."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch")
    dynamic = tuple({0: batch} for _ in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(module, inputs, dynamo=True, verbose=False, dynamic_shapes=dynamic).model_proto


# -- for growth: the same blocks again and again


def chain(n_operators: int) -> gm.Model:
    """Return convolutions and Relus in a row."""
    to = _Stack()
    x = to.stem()
    for _ in range(n_operators // 2):
        x = to.relu(to.conv(x))
    return to.classifier(to.operator("GlobalAveragePool", [x]))


def residual(n_operators: int) -> gm.Model:
    """Return residual blocks, all on one trunk: one group has a member in every block."""
    to = _Stack()
    x = to.stem()
    for _ in range(n_operators // 7):
        y = to.batch_norm(to.conv(to.relu(to.batch_norm(to.conv(x)))))
        x = to.relu(to.operator("Add", [x, y]))
    return to.classifier(to.operator("GlobalAveragePool", [x]))


def transformer(n_operators: int) -> gm.Model:
    """Return attention of four heads, and two linear layers, again and again."""
    to = _Stack()
    split, join = to.constant("split", [0, 0, 4, 2]), to.constant("join", [0, 0, to.width])
    x = to.operator("Reshape", [to.stem(), to.constant("flat", [0, to.width, 16])])
    x = to.operator("Transpose", [x], perm=[0, 2, 1])

    def heads(x: str, *perm: int) -> str:
        return to.operator("Transpose", [to.operator("Reshape", [to.linear(x), split])], perm=perm)

    for _ in range(n_operators // 21):
        y = to.layer_norm(x)
        scores = to.operator("MatMul", [heads(y, 0, 2, 1, 3), heads(y, 0, 2, 3, 1)])
        mixed = to.operator("MatMul", [to.operator("Softmax", [scores]), heads(y, 0, 2, 1, 3)])
        y = to.operator("Reshape", [to.operator("Transpose", [mixed], perm=[0, 2, 1, 3]), join])
        x = to.operator("Add", [x, to.linear(y)])
        x = to.operator("Add", [x, to.linear(to.relu(to.linear(to.layer_norm(x))))])
    return to.classifier(to.operator("ReduceMean", [x], axes=[1]))


GROWTH: dict[str, Callable[[int], gm.Model]] = {make.__name__: make for make in (chain, residual, transformer)}


class _Stack:
    """Operators in a row, and their weights."""

    def __init__(self, width: int = 8):
        self.width, self.nodes, self.weights = width, list[onnx.NodeProto](), list[onnx.TensorProto]()
        self.rng = np.random.default_rng(0)

    def operator(self, op_type: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def constant(self, name: str, values: list[int]) -> str:
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def weight(self, *shape: int) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(self.rng.uniform(0.5, 1, shape).astype(np.float32), name))
        return name

    def conv(self, x: str) -> str:
        return self.operator("Conv", [x, self.weight(self.width, self.width, 1, 1)], kernel_shape=[1, 1])

    def linear(self, x: str) -> str:
        return self.operator("MatMul", [x, self.weight(self.width, self.width)])

    def batch_norm(self, x: str) -> str:
        return self.operator("BatchNormalization", [x, *(self.weight(self.width) for _ in range(4))])

    def layer_norm(self, x: str) -> str:
        return self.operator("LayerNormalization", [x, self.weight(self.width), self.weight(self.width)])

    def relu(self, x: str) -> str:
        return self.operator("Relu", [x])

    def stem(self) -> str:
        return self.operator("Conv", ["image", self.weight(self.width, 3, 1, 1)], kernel_shape=[1, 1])

    def classifier(self, x: str) -> gm.Model:
        logits = self.operator("Gemm", [self.operator("Flatten", [x]), self.weight(self.width, 10)])
        image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, 4, 4])
        output = helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, ["batch", 10])
        graph = helper.make_graph(self.nodes, "stack", [image], [output], self.weights)
        return gm.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
