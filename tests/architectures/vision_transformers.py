"""Transformers, perceptrons and hybrids for images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.layers import Attention, DropPath, LayerNorm2d, Mlp, SqueezeExcite, TransformerBlock, conv_norm
from architectures.registry import architecture, real


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int = 8):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, width, patch, patch), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class ViT(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.patch_embed = PatchEmbed(width)
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.pos_drop = nn.Dropout(0.1)
        self.blocks = nn.Sequential(*(TransformerBlock(width, 4) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.norm(self.blocks(self.pos_drop(x + self.pos_embed)))
        return self.head(x[:, 0])


@architecture()
def vit():
    return ViT(), (real(3, 32, 32),)


class DistilledViT(nn.Module):
    """A class token and a distillation token, each with a head."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.patch_embed, self.pos_embed = PatchEmbed(width), nn.Parameter(torch.randn(1, 18, width))
        self.cls_token, self.dist_token = (nn.Parameter(torch.randn(1, 1, width)) for _ in range(2))
        self.blocks = nn.ModuleList(TransformerBlock(width, 2, fused=True) for _ in range(2))
        self.norm, self.head, self.head_dist = nn.LayerNorm(width), nn.Linear(width, 10), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patch_embed(x)
        n = x.shape[0]
        x = torch.cat((self.cls_token.repeat(n, 1, 1), self.dist_token.repeat(n, 1, 1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0]), self.head_dist(x[:, 1])


@architecture()
def deit_distilled():
    return DistilledViT(), (real(3, 32, 32),)


def relative_index(size: int) -> Tensor:
    """Return for each pair of places of a window the row of their offset in a table."""
    places = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
    offset = places[:, :, None] - places[:, None, :] + size - 1
    return offset[0] * (2 * size - 1) + offset[1]


class WindowAttention(nn.Module):
    def __init__(self, width: int, size: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_index(size), persistent=False)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, length, width = x.shape
        q, k, v = self.qkv(x).reshape(windows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(length, length, -1)
        scores = q * self.scale @ k.transpose(-2, -1) + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            count = mask.shape[0]
            scores = scores.view(-1, count, self.heads, length, length) + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.heads, length, length)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(windows, length, width))


def window_partition(x: Tensor, size: int) -> Tensor:
    n, height, columns, width = x.shape
    x = x.view(n, height // size, size, columns // size, size, width)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size * size, width)


def window_reverse(windows: Tensor, size: int, height: int, columns: int) -> Tensor:
    width = windows.shape[-1]
    x = windows.view(-1, height // size, columns // size, size, size, width)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, columns, width)


class SwinBlock(nn.Module):
    def __init__(self, width: int, resolution: int, shift: int, size: int = 4):
        super().__init__()
        self.shift, self.size = shift, size
        self.norm1, self.attn = nn.LayerNorm(width), WindowAttention(width, size, 2)
        self.norm2, self.mlp, self.drop_path = nn.LayerNorm(width), Mlp(width, 2 * width), DropPath()
        mask = None
        if shift:
            regions = torch.zeros(1, resolution, resolution, 1)
            parts = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
            for i, rows in enumerate(parts):
                for j, columns in enumerate(parts):
                    regions[:, rows, columns, :] = 3 * i + j
            regions = window_partition(regions, size).squeeze(-1)
            mask = torch.where(regions.unsqueeze(1) == regions.unsqueeze(2), 0.0, -100.0)
        self.register_buffer("attn_mask", mask, persistent=False)

    def attend(self, x: Tensor) -> Tensor:
        _, height, columns, _ = x.shape
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = self.attn(window_partition(x, self.size), self.attn_mask)
        x = window_reverse(x, self.size, height, columns)
        return torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2)) if self.shift else x

    def forward(self, x: Tensor) -> Tensor:
        n, height, columns, width = x.shape
        x = x + self.drop_path(self.attend(self.norm1(x)))
        x = x.reshape(n, -1, width)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.reshape(n, height, columns, width)


class PatchMerging(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2, :]]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.patch_embed, self.norm0 = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        self.stage1 = nn.Sequential(SwinBlock(width, 8, 0), SwinBlock(width, 8, 2))
        self.merge = PatchMerging(width)
        self.stage2 = nn.Sequential(SwinBlock(2 * width, 4, 0))
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.patch_embed(x).permute(0, 2, 3, 1))
        x = self.norm(self.stage2(self.merge(self.stage1(x))))
        return self.head(x.mean(dim=(1, 2)))


@architecture()
def swin():
    return Swin(), (real(3, 32, 32),)


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norm1, self.mlp_tokens = nn.LayerNorm(width), Mlp(tokens, 8)
        self.norm2, self.mlp_channels = nn.LayerNorm(width), Mlp(width, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class MeanTokens(nn.Module):
    """Blocks over tokens of patches, and a linear layer on their mean."""

    def __init__(self, width: int, *blocks: nn.Module):
        super().__init__()
        self.stem, self.blocks = PatchEmbed(width), nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).mean(dim=1))


@architecture()
def mlp_mixer():
    return MeanTokens(16, MixerBlock(16, 16), MixerBlock(16, 16)), (real(3, 32, 32),)


class SpatialGating(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norm, self.proj_in = nn.LayerNorm(width), nn.Linear(width, 4 * width)
        self.gate_norm, self.spatial = nn.LayerNorm(2 * width), nn.Linear(tokens, tokens)
        self.proj_out = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.proj_in(self.norm(x)), approximate="tanh").chunk(2, dim=-1)
        v = self.spatial(self.gate_norm(v).transpose(-1, -2)).transpose(-1, -2)
        return x + self.proj_out(u * v)


@architecture()
def gmlp():
    return MeanTokens(12, SpatialGating(16, 12), SpatialGating(16, 12)), (real(3, 32, 32),)


class CrossCovariance(nn.Module):
    """Attention of channels with each other, by normalised queries and keys."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads, self.temperature = heads, nn.Parameter(torch.ones(heads, 1, 1))
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, p=2.0, dim=-1)
        y = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1) @ v
        return x + self.gamma * self.proj(y.permute(0, 3, 1, 2).reshape(n, length, width))


@architecture()
def xcit():
    return MeanTokens(16, CrossCovariance(16), CrossCovariance(16)), (real(3, 32, 32),)


class PoolFormerBlock(nn.Module):
    """Average pooling less the identity in place of attention."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.pool = nn.GroupNorm(1, width), nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.norm2 = nn.GroupNorm(1, width)
        self.fc1, self.fc2 = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)
        self.layer_scale_1, self.layer_scale_2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path(self.layer_scale_1.unsqueeze(-1).unsqueeze(-1) * (self.pool(y) - y))
        y = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + self.drop_path(self.layer_scale_2.view(-1, 1, 1) * y)


@architecture()
def poolformer():
    head = [nn.GroupNorm(1, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    body = [nn.Conv2d(3, 8, 7, 4, 2), PoolFormerBlock(8), nn.Conv2d(8, 16, 3, 2, 1), PoolFormerBlock(16)]
    return nn.Sequential(*body, *head), (real(3, 32, 32),)


class RelativeAttention(nn.Module):
    """Attention over all places of a feature map, with a bias by offset, as CoAtNet has it."""

    def __init__(self, width: int, size: int, heads: int = 2):
        super().__init__()
        self.heads, self.norm = heads, LayerNorm2d(width)
        self.to_qkv, self.to_out = nn.Conv2d(width, 3 * width, 1, bias=False), nn.Conv2d(width, width, 1)
        self.table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads))
        self.register_buffer("index", relative_index(size))

    def forward(self, x: Tensor) -> Tensor:
        n, width, height, columns = x.shape
        qkv = torch.chunk(self.to_qkv(self.norm(x)), 3, dim=1)
        q, k, v = (t.view(n, self.heads, width // self.heads, height * columns) for t in qkv)
        scores = torch.einsum("bhdi,bhdj->bhij", q, k) * (width // self.heads) ** -0.5
        scores = scores + self.table[self.index].permute(2, 0, 1)
        y = torch.einsum("bhij,bhdj->bhdi", scores.softmax(-1), v).reshape(n, width, height, columns)
        return x + self.to_out(y)


class DepthwiseExcite(nn.Module):
    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(n_in)
        self.expand, self.depthwise = conv_norm(n_in, 24, 1, act=nn.GELU), conv_norm(24, 24, 3, 2, 24, nn.GELU)
        self.se, self.project = SqueezeExcite(24, 4, nn.SiLU), nn.Conv2d(24, n_out, 1)
        self.pool, self.shortcut = nn.MaxPool2d(2), nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(self.pool(x)) + self.project(self.se(self.depthwise(self.expand(self.norm(x)))))


@architecture()
def coatnet():
    body = [conv_norm(3, 8, 3, 2, act=nn.GELU), DepthwiseExcite(8, 12), DepthwiseExcite(12, 16)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    return nn.Sequential(*body, RelativeAttention(16, 4), RelativeAttention(16, 4), *head), (real(3, 32, 32),)


class MobileViTBlock(nn.Module):
    """Convolutions, then attention among the places that have the same position in their 2x2 patches."""

    def __init__(self, n_in: int, width: int):
        super().__init__()
        self.conv_kxk, self.conv_1x1 = conv_norm(n_in, n_in, act=nn.SiLU), nn.Conv2d(n_in, width, 1, bias=False)
        self.transformer = nn.Sequential(TransformerBlock(width, 2), TransformerBlock(width, 2))
        self.norm = nn.LayerNorm(width)
        self.conv_proj, self.conv_fusion = (
            conv_norm(width, n_in, 1, act=nn.SiLU),
            conv_norm(2 * n_in, n_in, act=nn.SiLU),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_1x1(self.conv_kxk(x))
        n, width, height, columns = y.shape
        rows, cols = height // 2, columns // 2
        y = y.reshape(n * width * rows, 2, cols, 2).transpose(1, 2)
        y = y.reshape(n, width, rows * cols, 4).transpose(1, 3).reshape(n * 4, rows * cols, width)
        y = self.norm(self.transformer(y))
        y = y.contiguous().view(n, 4, rows * cols, width).transpose(1, 3)
        y = y.reshape(n * width * rows, cols, 2, 2).transpose(1, 2).reshape(n, width, height, columns)
        return self.conv_fusion(torch.cat((x, self.conv_proj(y)), dim=1))


@architecture()
def mobilevit():
    body = [conv_norm(3, 8, 3, 2, act=nn.SiLU), conv_norm(8, 8, 3, 2, act=nn.SiLU), MobileViTBlock(8, 12)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)), (real(3, 32, 32),)


class ReducedAttention(nn.Module):
    """Attention to a feature map that is smaller than the queries', as PVT has it."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.sr, self.norm = nn.Conv2d(width, width, 2, 2), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dwconv = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)

    def attend(self, x: Tensor, height: int, columns: int) -> Tensor:
        n, length, width = x.shape
        q = self.q(x).reshape(n, length, self.heads, width // self.heads).permute(0, 2, 1, 3)
        small = self.sr(x.permute(0, 2, 1).reshape(n, width, height, columns)).reshape(n, width, -1).permute(0, 2, 1)
        kv = self.kv(self.norm(small)).reshape(n, -1, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, kv[0], kv[1])
        return self.proj(y.transpose(1, 2).reshape(n, length, width))

    def forward(self, x: Tensor) -> Tensor:
        n, width, height, columns = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attend(self.norm1(x), height, columns)
        y = self.fc1(self.norm2(x)).transpose(1, 2).view(n, 2 * width, height, columns)
        x = x + self.fc2(F.gelu(self.dwconv(y).flatten(2).transpose(1, 2)))
        return x.reshape(n, height, columns, width).permute(0, 3, 1, 2).contiguous()


@architecture()
def pvt():
    body = [nn.Conv2d(3, 8, 7, 4, 3), ReducedAttention(8), nn.Conv2d(8, 12, 3, 2, 1), ReducedAttention(12)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)), (real(3, 32, 32),)


class ClassAttention(nn.Module):
    """Tokens of two scales, whose class tokens attend to the other scale, as CrossViT has it."""

    def __init__(self, small: int = 8, large: int = 16):
        super().__init__()
        self.patches = nn.ModuleList([PatchEmbed(small, 4), PatchEmbed(large, 8)])
        self.tokens = nn.ParameterList([torch.randn(1, 1, small), torch.randn(1, 1, large)])
        self.blocks = nn.ModuleList([Attention(small, 2), Attention(large, 2)])
        self.project, self.back = nn.Linear(small, large), nn.Linear(large, small)
        self.wq, self.wk, self.wv = (nn.Linear(large, large) for _ in range(3))
        self.heads = nn.ModuleList([nn.Linear(small, 10), nn.Linear(large, 10)])

    def forward(self, x: Tensor) -> Tensor:
        fine = F.interpolate(x, size=(24, 24), mode="bicubic", align_corners=False)
        scales = []
        for image, patch, token, block in zip((fine, x), self.patches, self.tokens, self.blocks, strict=True):
            y = torch.cat([token.expand(image.shape[0], -1, -1), patch(image)], 1)
            scales.append(y + block(y))
        query = self.project(scales[0][:, 0:1])
        tokens = torch.cat([query, scales[1][:, 1:]], 1)
        scores = self.wq(query) @ self.wk(tokens).transpose(1, 2) / 4
        crossed = scales[0][:, 0:1] + self.back(scores.softmax(-1) @ self.wv(tokens))
        logits = [head(y[:, 0]) for head, y in zip(self.heads, (crossed, scales[1]), strict=True)]
        return torch.mean(torch.stack(logits, dim=0), dim=0)


@architecture()
def crossvit():
    return ClassAttention(), (real(3, 32, 32),)
