"""Segmentation, detection, super-resolution and generation: networks whose output is an image or a grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.layers import conv_norm
from architectures.registry import architecture, integer, real


def double_conv(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm(n_in, n_out), *conv_norm(n_out, n_out))


class UNet(nn.Module):
    """Upsampled by transposed convolutions or bilinearly, then padded to the size of the skip connection."""

    def __init__(self, bilinear: bool):
        super().__init__()
        self.inc, self.pool = double_conv(3, 8), nn.MaxPool2d(2)
        self.down1, self.down2 = double_conv(8, 12), double_conv(12, 16)
        if bilinear:
            self.up1, self.up2 = (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True) for _ in range(2))
        else:
            self.up1, self.up2 = nn.ConvTranspose2d(16, 16, 2, 2), nn.ConvTranspose2d(12, 12, 2, 2)
        self.conv1, self.conv2, self.outc = double_conv(28, 12), double_conv(20, 8), nn.Conv2d(8, 2, 1)

    def merge(self, x: Tensor, skip: Tensor) -> Tensor:
        rows, columns = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return torch.cat([skip, x], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(self.pool(x1))
        x3 = self.down2(self.pool(x2))
        x = self.conv1(self.merge(self.up1(x3), x2))
        return self.outc(self.conv2(self.merge(self.up2(x), x1)))


@architecture()
def unet_transposed():
    return UNet(bilinear=False), (real(3, 22, 26),)


@architecture()
def unet_bilinear():
    return UNet(bilinear=True), (real(3, 23, 29),)


class FeaturePyramid(nn.Module):
    """Levels of a backbone, each added to the one above, upsampled to its size; a head that all share."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([conv_norm(3, 8, 3, 2), conv_norm(8, 12, 3, 2), conv_norm(12, 16, 3, 2)])
        self.inner = nn.ModuleList(nn.Conv2d(width, 8, 1) for width in (8, 12, 16))
        self.layer = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.classes, self.boxes = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        last = self.inner[-1](levels[-1])
        merged = [self.layer[-1](last)]
        for index in (1, 0):
            lateral = self.inner[index](levels[index])
            last = lateral + F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            merged.insert(0, self.layer[index](last))
        merged.append(F.max_pool2d(merged[-1], 1, 2, 0))
        classes = [self.classes(y).permute(0, 2, 3, 1).flatten(1, 2) for y in merged]
        boxes = [
            self.boxes(y).view(y.shape[0], 2, 4, -1).permute(0, 3, 1, 2).reshape(y.shape[0], -1, 4) for y in merged
        ]
        return torch.cat(classes, 1), torch.cat(boxes, 1)


@architecture(height=(32, 48), width=(48, 64))
def feature_pyramid():
    return FeaturePyramid(), (real(3, "height", "width"),)


class Aspp(nn.Module):
    """Dilated convolutions side by side, and the mean of the image."""

    def __init__(self, n_in: int, width: int):
        super().__init__()
        self.convs = nn.ModuleList(
            [conv_norm(n_in, width, 1), *(conv_norm(n_in, width, dilation=d) for d in (2, 3, 4))]
        )
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(n_in, width, 1, bias=False), nn.ReLU())
        self.project = nn.Sequential(*conv_norm(5 * width, width, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        branches = [conv(x) for conv in self.convs]
        pooled = F.interpolate(self.pooling(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*branches, pooled], dim=1))


class DeepLab(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.high = (
            conv_norm(3, 8, 3, 2),
            nn.Sequential(conv_norm(8, 12, 3, 2), conv_norm(12, 12, dilation=2)),
        )
        self.aspp, self.project = Aspp(12, 8), conv_norm(8, 6, 1)
        self.classifier = nn.Sequential(*conv_norm(14, 8), nn.Conv2d(8, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        y = self.aspp(self.high(low))
        y = F.interpolate(y, size=low.shape[2:], mode="bilinear", align_corners=False)
        y = self.classifier(torch.cat([self.project(low), y], dim=1))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


@architecture(height=(24, 32), width=(32, 40))
def deeplab():
    return DeepLab(), (real(3, "height", "width"),)


class SpatialPyramid(nn.Module):
    """One pooling three times over, all results side by side."""

    def __init__(self, width: int):
        super().__init__()
        self.cv1, self.cv2 = conv_norm(width, width // 2, 1, act=nn.SiLU), conv_norm(2 * width, width, 1, act=nn.SiLU)
        self.m = nn.MaxPool2d(kernel_size=5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class CrossStage(nn.Module):
    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        half = n_out // 2
        self.half, self.cv1 = half, conv_norm(n_in, n_out, 1, act=nn.SiLU)
        self.m = nn.Sequential(conv_norm(half, half, act=nn.SiLU), conv_norm(half, half, act=nn.SiLU))
        self.cv2 = conv_norm(3 * half, n_out, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.half, self.half), 1)
        return self.cv2(torch.cat((a, b, b + self.m(b)), 1))


class Yolo(nn.Module):
    """Two scales with anchors, decoded to boxes in pixels."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.values = classes + 5
        self.stem, self.c3 = conv_norm(3, 8, 6, 2, act=nn.SiLU), CrossStage(8, 8)
        self.down, self.c4, self.sppf = conv_norm(8, 16, 3, 2, act=nn.SiLU), CrossStage(16, 16), SpatialPyramid(16)
        self.upsample, self.fuse = nn.Upsample(None, 2, "nearest"), CrossStage(24, 8)
        self.m = nn.ModuleList(nn.Conv2d(width, 2 * self.values, 1) for width in (8, 16))
        self.register_buffer("anchors", torch.tensor([[[10.0, 13.0], [16.0, 30.0]], [[30.0, 61.0], [62.0, 45.0]]]))

    def decode(self, x: Tensor, anchors: Tensor, stride: int) -> Tensor:
        n, _, rows, columns = x.shape
        x = x.view(n, 2, self.values, rows, columns).permute(0, 1, 3, 4, 2).contiguous()
        ys, xs = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        grid = torch.stack((xs, ys), 2).expand(1, 2, rows, columns, 2).float() - 0.5
        xy, wh, rest = x.sigmoid().split((2, 2, self.values - 4), 4)
        xy = (xy * 2 + grid) * stride
        wh = (wh * 2) ** 2 * anchors.view(1, 2, 1, 1, 2)
        return torch.cat((xy, wh, rest), 4).view(n, 2 * rows * columns, self.values)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.c3(self.stem(x))
        coarse = self.sppf(self.c4(self.down(fine)))
        fine = self.fuse(torch.cat((self.upsample(coarse), fine), 1))
        levels = [
            self.decode(m(y), self.anchors[i], 2 << i)
            for i, (m, y) in enumerate(zip(self.m, (fine, coarse), strict=True))
        ]
        return torch.cat(levels, 1)


@architecture()
def yolo():
    return Yolo(), (real(3, 30, 30),)


@architecture(height=(16, 20), width=(12, 24))
def srcnn():
    upscale = nn.Upsample(scale_factor=3, mode="bicubic", align_corners=False)
    layers = [
        nn.Conv2d(1, 12, 9, padding=4),
        nn.ReLU(),
        nn.Conv2d(12, 8, 1),
        nn.PReLU(8),
        nn.Conv2d(8, 1, 5, padding=2),
    ]
    return nn.Sequential(upscale, *layers), (real(1, "height", "width"),)


class Espcn(nn.Module):
    """Upsampling by pixel shuffle of what a network on unshuffled pixels makes."""

    def __init__(self):
        super().__init__()
        self.unshuffle, self.shuffle = nn.PixelUnshuffle(2), nn.PixelShuffle(4)
        self.head, self.body = nn.Conv2d(12, 8, 5, padding=2), nn.Conv2d(8, 8, 3, padding=1)
        self.tail = nn.Conv2d(8, 48, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.head(self.unshuffle(x)))
        y = self.shuffle(self.tail(y + F.leaky_relu(self.body(y), 0.2)))
        return torch.clamp(y + F.interpolate(x, scale_factor=2.0, mode="nearest"), -3.0, 3.0)


@architecture(height=(12, 16), width=(16, 20))
def espcn():
    return Espcn(), (real(3, "height", "width"),)


class AutoEncoder(nn.Module):
    """A variational one; its code is the mean, unless in training."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2, 1), nn.InstanceNorm2d(8, affine=True), nn.LeakyReLU(0.2),
            nn.Conv2d(8, 12, 4, 2, 1), nn.InstanceNorm2d(12), nn.LeakyReLU(0.2), nn.Flatten(),
        )  # fmt: skip
        self.mu, self.log_var = nn.Linear(192, 6), nn.Linear(192, 6)
        self.decoder_input = nn.Linear(6, 192)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(12, 8, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(8, affine=True), nn.Softplus(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1, groups=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.encoder(x)
        mu, log_var = self.mu(y), self.log_var(y).clamp(-10, 10)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu) if self.training else mu
        return self.decoder(self.decoder_input(z).view(-1, 12, 4, 4)), mu, log_var


@architecture()
def vae():
    return AutoEncoder(), (real(3, 16, 16),)


class VectorQuantizer(nn.Module):
    """An autoencoder whose code is the nearest vector of a codebook at each place."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.encoder, self.codebook = nn.Conv2d(3, width, 4, 4), nn.Embedding(24, width)
        self.decoder = nn.ConvTranspose2d(width, 3, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, z.shape[-1])
        distances = (flat**2).sum(1, keepdim=True) + (self.codebook.weight**2).sum(1)
        distances = distances - 2 * torch.matmul(flat, self.codebook.weight.t())
        quantized = self.codebook(torch.argmin(distances, dim=1)).view(z.shape)
        return torch.sigmoid(self.decoder((z + (quantized - z).detach()).permute(0, 3, 1, 2)))


@architecture()
def vqvae():
    return VectorQuantizer(), (real(3, 16, 16),)


class StyleBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width, affine=True), nn.ReLU(True),
            nn.ReplicationPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width, affine=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


@architecture(height=(16, 24), width=(20, 16))
def cyclegan():
    down = [nn.ReflectionPad2d(3), nn.Conv2d(3, 6, 7), nn.InstanceNorm2d(6), nn.ReLU(), nn.Conv2d(6, 12, 3, 2, 1)]
    up = [nn.ConvTranspose2d(12, 6, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(6), nn.ReLU()]
    layers = [*down, StyleBlock(12), StyleBlock(12), *up, nn.ReflectionPad2d(3), nn.Conv2d(6, 3, 7), nn.Tanh()]
    return nn.Sequential(*layers), (real(3, "height", "width"),)


class HighResolution(nn.Module):
    """Parallel resolutions that are fused by strided convolutions and by upsampling."""

    def __init__(self):
        super().__init__()
        self.stem, self.transition = conv_norm(3, 8, 3, 2), conv_norm(8, 12, 3, 2)
        self.branches = nn.ModuleList([double_conv(8, 8), double_conv(12, 12)])
        self.down, self.up = conv_norm(8, 12, 3, 2, act=None), conv_norm(12, 8, 1, act=None)
        self.last = nn.Conv2d(20, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.stem(x)
        low = self.transition(high)
        high, low = self.branches[0](high), self.branches[1](low)
        fused = F.relu(high + F.interpolate(self.up(low), scale_factor=2, mode="nearest"))
        low = F.relu(low + self.down(high))
        low = F.interpolate(low, size=fused.shape[2:], mode="bilinear", align_corners=True)
        return self.last(torch.cat([fused, low], 1))


@architecture()
def hrnet():
    return HighResolution(), (real(3, 24, 32),)


class Detr(nn.Module):
    """Learnt queries that attend to a feature map by a transformer decoder."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.backbone, self.conv = conv_norm(3, 12, 3, 4), nn.Conv2d(12, width, 1)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(width, 2, 32, batch_first=True), 2)
        self.query_pos = nn.Parameter(torch.rand(5, width))
        self.row_embed, self.col_embed = nn.Parameter(torch.rand(20, 8)), nn.Parameter(torch.rand(20, 8))
        self.linear_class, self.linear_bbox = nn.Linear(width, 4), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.conv(self.backbone(x))
        rows, columns = h.shape[-2:]
        places = torch.cat(
            [
                self.col_embed[:columns].unsqueeze(0).repeat(rows, 1, 1),
                self.row_embed[:rows].unsqueeze(1).repeat(1, columns, 1),
            ],
            dim=-1,
        ).flatten(0, 1)
        memory = places.unsqueeze(0) + h.flatten(2).permute(0, 2, 1)
        h = self.decoder(self.query_pos.unsqueeze(0).expand(x.shape[0], -1, -1), memory)
        return self.linear_class(h), self.linear_bbox(h).sigmoid()


@architecture()
def detr():
    return Detr(), (real(3, 16, 24),)


class SpatialTransformer(nn.Module):
    """Sampling of the image at places that a small network chooses."""

    def __init__(self):
        super().__init__()
        self.localization = nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(216, 6)
        )
        self.conv, self.fc = nn.Conv2d(1, 6, 3, 2), nn.Linear(6 * 49, 10)
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
        self.register_buffer("base", torch.stack([xs, ys, torch.ones_like(xs)], -1).view(1, -1, 3))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.localization(x).view(-1, 2, 3)
        grid = torch.bmm(self.base.expand(x.size(0), -1, -1), theta.transpose(1, 2)).view(-1, 16, 16, 2)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return self.fc(F.relu(self.conv(x)).flatten(1))


@architecture()
def spatial_transformer():
    return SpatialTransformer(), (real(1, 16, 16),)


class Modulated(nn.Module):
    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, n_in), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.emb, self.norm2 = nn.Linear(16, 2 * n_out), nn.GroupNorm(4, n_out)
        self.conv2, self.skip = nn.Conv2d(n_out, n_out, 3, padding=1), nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return (self.skip(x) + self.conv2(F.silu(h))) / 2**0.5


class Diffusion(nn.Module):
    """A U-Net that predicts noise, given the time step."""

    def __init__(self):
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 16))
        self.inp, self.down, self.op = nn.Conv2d(3, 8, 3, padding=1), Modulated(8, 8), nn.Conv2d(8, 8, 3, 2, 1)
        self.middle, self.up, self.out = Modulated(8, 8), Modulated(16, 8), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        frequencies = torch.exp(-9.21 * torch.arange(0, 8, dtype=torch.float32) / 8)
        angles = timesteps[:, None].float() * frequencies[None]
        emb = self.time_embed(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        skip = self.down(self.inp(x), emb)
        h = self.middle(self.op(skip), emb)
        h = F.interpolate(h, (h.shape[2] * 2, h.shape[3] * 2), mode="nearest")
        return self.out(self.up(torch.cat([h, skip], dim=1), emb))


@architecture()
def diffusion_unet():
    return Diffusion(), (real(3, 16, 16), integer(1000))
