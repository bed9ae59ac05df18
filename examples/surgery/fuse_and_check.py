"""Fuse what can be fused without changing what is computed, and check that.

python fuse_and_check.py
"""

import torch
from torch import nn

import graphmod as gm
from graphmod.converters import pytorch


class RepVGG(nn.Module):
    """Three parallel branches that are one convolution in disguise."""

    def __init__(self):
        super().__init__()
        self.conv3, self.conv1 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))

    def forward(self, x):
        return torch.relu(self.norms[0](self.conv3(x)) + self.norms[1](self.conv1(x)) + self.norms[2](x))


torch.manual_seed(0)
net = nn.Sequential(RepVGG(), RepVGG()).eval()
for module in net.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2)

model = pytorch.to_onnx(net, torch.randn(2, 8, 16, 16))
fused = gm.fuse(model)
fused.save("fused.onnx")
print([operator.op_type for operator in fused.operators])
assert gm.verify(model, fused, gm.data.noise(model)).exact
