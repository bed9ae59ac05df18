"""The PyTorch converter: what it keeps, what it drops, what it refuses."""

import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from graphmod.converters.pytorch import to_onnx
from graphmod.errors import GraphmodError, InvalidModelError


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.bn(self.conv(x)))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Residual(4), Residual(4))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.dropout(self.layer1(self.stem(x)).mean((2, 3))))


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def model(net):
    return to_onnx(net, torch.rand(2, 1, 8, 8), input_names=["image"], output_names=["logits"])


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_same_as_torch_at_every_batch_size(net, model, batch):
    x = torch.rand(batch, 1, 8, 8)
    expected = net.eval()(x).detach().numpy()
    got = model.run({"image": x.numpy()})["logits"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("examples", [1, 2])
def test_batch_is_a_symbol(net, examples):
    model = to_onnx(net, torch.rand(examples, 1, 8, 8), input_names=["image"])
    assert model.inputs["image"].shape == ("batch", 1, 8, 8)
    (output,) = model.outputs.values()
    assert output.shape == ("batch", 10)


def test_batch_is_fixed_on_request(net):
    model = to_onnx(net, torch.rand(3, 1, 8, 8), dynamic_batch=False)
    (image,) = model.inputs.values()
    assert image.shape == (3, 1, 8, 8)


def test_several_inputs_and_outputs():
    class Pair(nn.Module):
        def forward(self, a, b):
            return {"sum": a + b, "larger": a > b}

    a, b = torch.rand(2, 3), torch.rand(2, 3)
    model = to_onnx(Pair(), (a, b), input_names=["a", "b"], output_names=["sum", "larger"])
    results = model.run({"a": a.numpy(), "b": b.numpy()})
    np.testing.assert_allclose(results["sum"], (a + b).numpy())
    np.testing.assert_array_equal(results["larger"], (a > b).numpy())


def test_every_submodule_gets_its_mode_back(net):
    net.train()
    net.layer1[0].bn.eval()
    before = {name: part.training for name, part in net.named_modules()}
    statistics = net.layer1[1].bn.running_mean.clone()
    to_onnx(net, torch.rand(2, 1, 8, 8))
    assert {name: part.training for name, part in net.named_modules()} == before
    assert torch.equal(net.layer1[1].bn.running_mean, statistics)


def test_mode_comes_back_after_a_failure(net):
    net.train()
    with pytest.raises(GraphmodError):
        to_onnx(net, torch.rand(2, 3, 8, 8))
    assert net.training


def test_operators_carry_scopes(model):
    metadata = [{e.key: e.value for e in operator.metadata_props} for operator in model.operators]
    scopes = " ".join(entry.get("pkg.torch.onnx.name_scopes", "") for entry in metadata)
    assert "'layer1', 'layer1.0', 'layer1.0.relu'" in scopes
    assert "'layer1.1'" in scopes
    assert "'fc'" in scopes


def test_nothing_of_this_machine_stays(model):
    content = model.proto().SerializeToString()
    for trace in (b"stack_trace", b"fx_node", b"pkg.torch.export", b"File ", str(Path(__file__).parent).encode()):
        assert trace not in content
    assert str(Path(sys.prefix)).encode() not in content


def test_file_is_readable_everywhere(model):
    onnx.checker.check_model(model.proto(), full_check=True)
    assert model.ir_version <= 13


def test_opset_is_as_asked(net):
    assert to_onnx(net, torch.rand(2, 1, 8, 8), opset=18).opset == 18


def test_a_difference_from_torch_is_an_error():
    with pytest.raises(InvalidModelError, match=r"output 'noisy' .* differs from torch's by [\d.]+ of its largest"):
        to_onnx(Noisy(), torch.rand(2, 3), output_names=["noisy"])


def test_infinite_outputs_are_no_difference():
    class Masked(nn.Module):
        def forward(self, x):
            return x.masked_fill(x > 0.5, -torch.inf)

    to_onnx(Masked(), torch.tensor([[0.1, 0.9], [0.7, 0.2]]))


def test_what_torch_cannot_export_is_one_line():
    with pytest.raises(GraphmodError, match="torch cannot export Branching: ") as caught:
        to_onnx(Branching(), torch.rand(2, 3))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_missing_onnxscript_names_the_mend(monkeypatch, net):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(GraphmodError, match=r'pip install "graphmod\[pytorch\]"') as caught:
        to_onnx(net, torch.rand(2, 1, 8, 8))
    assert "\n" not in str(caught.value)


def test_export_is_quiet(net, capfd, recwarn):
    level = logging.getLogger("torch.onnx").level
    to_onnx(net, torch.rand(2, 1, 8, 8))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not recwarn.list
    assert logging.getLogger("torch.onnx").level == level
