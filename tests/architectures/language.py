"""Transformers for tokens and frames, and networks of embeddings, written by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.layers import Mlp, RMSNorm, TransformerBlock
from architectures.registry import architecture, integer, mask, real


class CausalAttention(nn.Module):
    def __init__(self, width: int, heads: int, block_size: int = 32):
        super().__init__()
        self.heads, self.width = heads, width
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_dropout = nn.Dropout(0.1)
        self.register_buffer("bias", torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.size()
        q, k, v = self.c_attn(x).split(self.width, dim=2)
        q, k, v = (t.view(n, length, self.heads, width // self.heads).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        y = self.attn_dropout(F.softmax(scores, dim=-1)) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(n, length, width))


class GptBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), CausalAttention(width, 2)
        self.ln_2, self.mlp = nn.LayerNorm(width), Mlp(width, 4 * width, act=lambda: nn.GELU(approximate="tanh"))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    """With an output layer that is tied to the embedding."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.wte, self.wpe, self.drop = nn.Embedding(50, width), nn.Embedding(32, width), nn.Dropout(0.1)
        self.h, self.ln_f = nn.ModuleList(GptBlock(width) for _ in range(2)), nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, 50, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, idx: Tensor) -> Tensor:
        places = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device).unsqueeze(0)
        x = self.drop(self.wte(idx) + self.wpe(places))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


@architecture(length=(7, 12))
def gpt():
    return Gpt(), (integer(50, "length"),)


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


class GroupedAttention(nn.Module):
    """Rotary positions; several queries share a key and a value."""

    def __init__(self, width: int, heads: int = 4, groups: int = 2):
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))

    def share(self, x: Tensor) -> Tensor:
        n, groups, length, size = x.shape
        x = x[:, :, None, :, :].expand(n, groups, self.heads // groups, length, size)
        return x.reshape(n, self.heads, length, size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, causal: Tensor) -> Tensor:
        n, length, _ = x.shape
        q = self.q_proj(x).view(n, length, -1, self.size).transpose(1, 2)
        k = self.k_proj(x).view(n, length, -1, self.size).transpose(1, 2)
        v = self.v_proj(x).view(n, length, -1, self.size).transpose(1, 2)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        y = F.scaled_dot_product_attention(q, self.share(k), self.share(v), attn_mask=causal)
        return self.o_proj(y.transpose(1, 2).reshape(n, length, -1))


class LlamaBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(width), GroupedAttention(width)
        self.post_attention_layernorm = RMSNorm(width)
        self.gate_proj, self.up_proj = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, causal: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, causal)
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.embed_tokens, self.norm = nn.Embedding(50, width), RMSNorm(width)
        self.layers = nn.ModuleList(LlamaBlock(width) for _ in range(2))
        self.lm_head = nn.Linear(width, 50, bias=False)
        self.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(0, 4, 2).float() / 4), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        angles = torch.outer(torch.arange(length, device=input_ids.device).float(), self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        causal = torch.triu(torch.full((length, length), -1e9), diagonal=1)
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin(), causal)
        return self.lm_head(self.norm(x))


@architecture(length=(7, 12))
def llama():
    return Llama(), (integer(50, "length"),)


class BucketAttention(nn.Module):
    """Attention without scale, with a bias by the bucket of the distance."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads, self.bias = heads, nn.Embedding(16, heads)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def buckets(self, length: int) -> Tensor:
        places = torch.arange(length, dtype=torch.long)
        distance = places[None, :] - places[:, None]
        buckets = (distance > 0).to(torch.long) * 8
        distance = torch.abs(distance)
        far = 4 + (torch.log(distance.float() / 4) / math.log(32 / 4) * 4).to(torch.long)
        far = torch.min(far, torch.full_like(far, 7))
        return buckets + torch.where(distance < 4, distance, far)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        n, length = x.shape[:2]
        q, k, v = (
            p(x).view(n, -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2) for p in (self.q, self.k, self.v)
        )
        scores = torch.matmul(q, k.transpose(3, 2)) + self.bias(self.buckets(length)).permute([2, 0, 1]).unsqueeze(0)
        weights = F.softmax((scores + hidden).float(), dim=-1).type_as(scores)
        return self.o(torch.matmul(weights, v).transpose(1, 2).contiguous().view(n, -1, x.shape[-1]))


class T5Encoder(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.shared, self.final = nn.Embedding(50, width), RMSNorm(width)
        self.attention = nn.ModuleList(BucketAttention(width) for _ in range(2))
        self.dense = nn.ModuleList(Mlp(width, 32, nn.ReLU) for _ in range(2))
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(4))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.shared(input_ids)
        hidden = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for i, (attend, dense) in enumerate(zip(self.attention, self.dense, strict=True)):
            x = x + attend(self.norms[2 * i](x), hidden)
            x = x + dense(self.norms[2 * i + 1](x))
        return self.final(x)


@architecture(length=(7, 12))
def t5_encoder():
    return T5Encoder(), (integer(50, "length"), mask())


class WhisperEncoder(nn.Module):
    """Two convolutions over frames, sinusoids, and attention."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(8, width, 3, padding=1), nn.Conv1d(width, width, 3, 2, 1)
        rates = torch.exp(-math.log(10000) / (width // 2 - 1) * torch.arange(width // 2))
        times = torch.arange(12)[:, None] * rates[None, :]
        self.register_buffer("positional_embedding", torch.cat([torch.sin(times), torch.cos(times)], dim=1))
        self.blocks = nn.ModuleList(TransformerBlock(width, 2, fused=i == 1) for i in range(2))
        self.ln_post = nn.LayerNorm(width)

    def forward(self, mel: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).permute(0, 2, 1)
        x = (x + self.positional_embedding).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x)


@architecture()
def whisper_encoder():
    return WhisperEncoder(), (real(8, 24),)


class TorchEncoder(nn.Module):
    """torch's own encoder layers, with the padding hidden."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.embedding, self.places = nn.Embedding(50, width), nn.Parameter(torch.randn(32, width))
        layer = nn.TransformerEncoderLayer(width, 2, 32, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(tokens) * math.sqrt(16) + self.places[: tokens.size(1)]
        x = self.encoder(x, src_key_padding_mask=attention_mask == 0)
        weights = attention_mask.unsqueeze(-1).float()
        return self.head((x * weights).sum(1) / weights.sum(1).clamp(min=1e-9))


@architecture(fixed={"torchscript": {"length"}}, length=(7, 12))
def transformer_encoder():
    return TorchEncoder(), (integer(50, "length"), mask())


class CrossAttention(nn.Module):
    """torch's own attention to a memory, the steps first; gives the weights too."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, kdim=12, vdim=12, add_bias_kv=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        steps = memory.transpose(0, 1)
        y, weights = self.attention(query.transpose(0, 1), steps, steps, average_attn_weights=True)
        return self.norm(query + y.transpose(0, 1)), weights


@architecture()
def multihead_attention():
    return CrossAttention(), (real(5, 16), real(8, 12))


class BertLayer(nn.Module):
    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.intermediate, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm2, self.dropout = nn.LayerNorm(width, eps=1e-12), nn.Dropout(0.1)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.heads, self.size).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = self.split_heads(self.query(x)), self.split_heads(self.key(x)), self.split_heads(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.size)
        weights = self.dropout(nn.functional.softmax(scores + hidden, dim=-1))
        context = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        context = context.view(*context.size()[:-2], self.heads * self.size)
        x = self.norm1(x + self.dropout(self.output(context)))
        y = self.intermediate(x)
        y = y * 0.5 * (1.0 + torch.erf(y / math.sqrt(2.0)))
        return self.norm2(x + self.dropout(self.out(y)))


class Bert(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.words, self.places, self.types = nn.Embedding(50, width), nn.Embedding(32, width), nn.Embedding(2, width)
        self.norm, self.layers = nn.LayerNorm(width, eps=1e-12), nn.ModuleList(BertLayer(width) for _ in range(2))
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 10)
        self.register_buffer("position_ids", torch.arange(32).expand((1, -1)))

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = self.places(self.position_ids[:, : input_ids.size(1)])
        x = self.norm(self.words(input_ids) + places + self.types(token_type_ids))
        hidden = (1.0 - attention_mask.unsqueeze(1).unsqueeze(2).to(dtype=x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, hidden)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


@architecture(length=(7, 12))
def bert():
    return Bert(), (integer(50, "length"), integer(2, "length"), mask())


class Experts(nn.Module):
    """A mixture of perceptrons, of which each token takes the two that a gate prefers."""

    def __init__(self, width: int = 12, experts: int = 4):
        super().__init__()
        self.embedding, self.gate = nn.Embedding(50, width), nn.Linear(width, experts, bias=False)
        self.w1 = nn.Parameter(torch.randn(experts, width, 16) / 4)
        self.w2 = nn.Parameter(torch.randn(experts, 16, width) / 4)
        self.head = nn.Linear(width, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        scores, chosen = torch.topk(self.gate(x).softmax(-1), 2, dim=-1)
        scores = scores / scores.sum(-1, keepdim=True)
        weights = torch.zeros_like(self.gate(x)).scatter(-1, chosen, scores)
        y = torch.einsum("bld,edh->bleh", x, self.w1)
        y = torch.einsum("bleh,ehd->bled", F.relu(y).square(), self.w2)
        return self.head(x + torch.einsum("bled,ble->bld", y, weights))


@architecture(length=(7, 12))
def mixture_of_experts():
    return Experts(), (integer(50, "length"),)


class Recommender(nn.Module):
    """Embeddings of categories, summed over those of a user, and the products of all pairs of vectors."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, width), nn.ReLU())
        self.items, self.history = nn.Embedding(40, width), nn.Embedding(60, width)
        self.bias = nn.Embedding(40, 1)
        rows, columns = torch.tril_indices(3, 3, offset=-1)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.top = nn.Sequential(nn.Linear(width + 3, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: Tensor, item: Tensor, history: Tensor) -> Tensor:
        x = self.bottom(dense)
        seen = (history != 0).unsqueeze(-1)
        user = torch.where(seen, self.history(history), 0.0).sum(1) / seen.sum(1).clamp(min=1).sqrt()
        vectors = torch.stack([x, self.items(item), user], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.rows, self.columns]
        return torch.sigmoid(self.top(torch.cat([x, products], dim=1)) + self.bias(item)).squeeze(1)


@architecture(length=(6, 9))
def recommender():
    return Recommender(), (real(5), integer(40), integer(60, "length"))


class PointNet(nn.Module):
    """Points that a small network first rotates; features of the points, and their maximum."""

    def __init__(self):
        super().__init__()
        self.conv1, self.fc1 = nn.Conv1d(3, 12, 1), nn.Linear(12, 9)
        self.conv2, self.bn2, self.fc2 = nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.Linear(16, 10)
        self.segment = nn.Conv1d(32, 4, 1)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        turn = self.fc1(torch.max(F.relu(self.conv1(points)), 2, keepdim=True)[0].view(-1, 12))
        turn = turn.view(-1, 3, 3) + torch.eye(3, device=points.device)
        x = torch.bmm(points.transpose(2, 1), turn).transpose(2, 1)
        x = F.relu(self.bn2(self.conv2(x)))
        peak = x.amax(dim=2)
        spread = peak.view(-1, 16, 1).repeat(1, 1, x.size(2))
        return self.fc2(peak), self.segment(torch.cat([x, spread], 1)).transpose(2, 1)


@architecture(length=(20, 27))
def pointnet():
    return PointNet(), (real(3, "length"),)


class GraphNet(nn.Module):
    """Graph convolutions by a normalised adjacency, then attention among neighbours."""

    def __init__(self):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(6, 12, bias=False), nn.Linear(12, 8, bias=False)
        self.source, self.target = nn.Parameter(torch.randn(8, 1)), nn.Parameter(torch.randn(8, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        adjacency = (edges + edges.transpose(1, 2) > 0).float()
        adjacency = torch.maximum(adjacency, torch.eye(9))
        degree = adjacency.sum(-1).pow(-0.5)
        x = F.relu((degree.unsqueeze(-1) * adjacency * degree.unsqueeze(-2)) @ self.lin1(nodes))
        x = self.lin2(x)
        scores = F.leaky_relu(x @ self.source + (x @ self.target).transpose(1, 2), 0.2)
        weights = torch.where(adjacency > 0, scores, torch.tensor(-9e15)).softmax(-1)
        return self.head(F.elu(weights @ x))


@architecture()
def graph_network():
    return GraphNet(), (real(9, 6), integer(2, 9, 9))
