"""Sound, series and recurrent networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from architectures.layers import Attention, conv_norm
from architectures.registry import architecture, integer, real


class GatedDilation(nn.Module):
    """A causal convolution with a gate; its result goes to the next layer and, by a skip, to the end."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.filter, self.gate = (nn.Conv1d(width, width, 2, dilation=dilation) for _ in range(2))
        self.residual, self.skip = nn.Conv1d(width, width, 1), nn.Conv1d(width, 12, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (self.dilation, 0))
        z = torch.tanh(self.filter(padded)) * torch.sigmoid(self.gate(padded))
        return x + self.residual(z), self.skip(z)


class WaveNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.start = nn.Embedding(32, 8), nn.Conv1d(8, 8, 1)
        self.layers = nn.ModuleList(GatedDilation(8, 2**i) for i in range(4))
        self.end1, self.end2 = nn.Conv1d(12, 16, 1), nn.Conv1d(16, 32, 1)

    def forward(self, samples: Tensor) -> Tensor:
        x = self.start(self.embed(samples).transpose(1, 2))
        total = 0
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        return self.end2(F.relu(self.end1(F.relu(total))))


@architecture(length=(32, 45))
def wavenet():
    return WaveNet(), (integer(32, "length"),)


class TemporalBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, dilation: int):
        super().__init__()
        self.trim = 2 * dilation
        self.conv1 = weight_norm(nn.Conv1d(n_in, n_out, 3, padding=self.trim, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(n_out, n_out, 3, padding=self.trim, dilation=dilation))
        self.downsample = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x)[:, :, : -self.trim].contiguous())
        y = F.relu(self.conv2(y)[:, :, : -self.trim])
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class TemporalNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(TemporalBlock(4, 8, 1), TemporalBlock(8, 8, 2), TemporalBlock(8, 12, 4))
        self.linear = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.network(x)[:, :, -1])


@architecture(length=(24, 31))
def temporal_conv():
    return TemporalNet(), (real(4, "length"),)


@architecture()
def speech_commands():
    layers = [nn.Conv1d(1, 8, 16, 4), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(4)]
    layers += [weight_norm(nn.Conv1d(8, 12, 3)), nn.BatchNorm1d(12), nn.SELU(), nn.AvgPool1d(2)]
    head = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 10), nn.LogSoftmax(dim=-1)]
    return nn.Sequential(*layers, *head), (real(1, 256),)


class Vocoder(nn.Module):
    """Upsampling from frames to samples, as HiFi-GAN does it."""

    def __init__(self):
        super().__init__()
        self.conv_pre = weight_norm(nn.Conv1d(6, 12, 7, padding=3))
        self.ups = nn.ModuleList([weight_norm(nn.ConvTranspose1d(12 // n, 6 // n, 8, 4, 2)) for n in (1, 2)])
        self.resblocks = nn.ModuleList(
            weight_norm(nn.Conv1d(width, width, 3, dilation=d, padding=d)) for width in (6, 3) for d in (1, 3)
        )
        self.conv_post = weight_norm(nn.Conv1d(3, 1, 7, padding=3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_pre(x)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            x = sum(x + conv(F.leaky_relu(x, 0.1)) for conv in self.resblocks[2 * i : 2 * i + 2]) / 2
        return torch.tanh(self.conv_post(F.leaky_relu(x)))


@architecture(length=(10, 13))
def hifigan():
    return Vocoder(), (real(6, "length"),)


class Conformer(nn.Module):
    """Half-step perceptrons around attention and a gated depthwise convolution."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.proj = nn.Linear(8, width)
        self.ff1, self.ff2 = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 32), nn.SiLU(), nn.Linear(32, width)) for _ in range(2)
        )
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, 2)
        self.norm2, self.pointwise1 = nn.LayerNorm(width), nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.bn, self.pointwise2 = nn.BatchNorm1d(width), nn.Conv1d(width, width, 1)
        self.norm3, self.head = nn.LayerNorm(width), nn.Linear(width, 12)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.proj(frames)
        x = x + 0.5 * self.ff1(x)
        x = x + self.attn(self.norm1(x))
        y = F.glu(self.pointwise1(self.norm2(x).transpose(1, 2)), dim=1)
        x = x + self.pointwise2(F.silu(self.bn(self.depthwise(y)))).transpose(1, 2)
        return self.head(self.norm3(x + 0.5 * self.ff2(x))).log_softmax(-1)


@architecture(length=(12, 17))
def conformer():
    return Conformer(), (real("length", 8),)


class Tagger(nn.Module):
    """A class for each token, from two layers that run both ways."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 8, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.hidden2tag = nn.Linear(16, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.lstm(self.embedding(tokens))
        return F.log_softmax(self.hidden2tag(x), dim=-1)


@architecture(length=(7, 11))
def lstm_tagger():
    return Tagger(), (integer(50, "length"),)


class GruClassifier(nn.Module):
    """From the last states of both directions."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.gru = nn.GRU(8, 8, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(16, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        _, hidden = self.gru(self.embedding(tokens))
        return self.fc(torch.cat((hidden[-2], hidden[-1]), dim=1))


@architecture(length=(7, 11))
def gru_classifier():
    return GruClassifier(), (integer(50, "length"),)


class VanillaRnn(nn.Module):
    """Time comes first inside; the state starts as zeros of the batch's size."""

    def __init__(self):
        super().__init__()
        self.rnn, self.decoder = nn.RNN(4, 8, num_layers=2, nonlinearity="relu"), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.zeros(2, x.size(0), 8, device=x.device)
        y, _ = self.rnn(x.permute(1, 0, 2), start)
        return self.decoder(y).permute(1, 0, 2)


@architecture(fixed={"current": {"length"}}, length=(9, 12))
def vanilla_rnn():
    return VanillaRnn(), (real("length", 4),)


class Crnn(nn.Module):
    """Columns of a convolutional feature map as the steps of an LSTM."""

    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(conv_norm(1, 6), nn.MaxPool2d(2, 2), conv_norm(6, 8), nn.MaxPool2d((2, 1), (2, 1)))
        self.rnn, self.fc = nn.LSTM(32, 8, bidirectional=True), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cnn(x)
        n, width, height, columns = y.size()
        y, _ = self.rnn(y.view(n, width * height, columns).permute(2, 0, 1))
        return F.log_softmax(self.fc(y), dim=2).transpose(0, 1)


@architecture()
def crnn():
    return Crnn(), (real(1, 16, 24),)


class Seq2Seq(nn.Module):
    """An LSTM that reads, one that writes from the reader's state, and attention between them."""

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(40, 8), nn.Embedding(30, 8)
        self.encoder, self.decoder = nn.LSTM(8, 8, batch_first=True), nn.LSTM(8, 8, batch_first=True)
        self.attention, self.out = nn.Linear(8, 8, bias=False), nn.Linear(16, 30)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        y, _ = self.decoder(self.target(target), state)
        weights = torch.bmm(self.attention(y), memory.transpose(1, 2)).softmax(dim=2)
        return self.out(torch.cat([torch.bmm(weights, memory), y], dim=2))


@architecture()
def seq2seq():
    return Seq2Seq(), (integer(40, 6), integer(30, 5))


class ActorCritic(nn.Module):
    """One step of a recurrent cell whose state is an input and an output."""

    def __init__(self):
        super().__init__()
        self.encoder, self.cell = nn.Linear(6, 12), nn.GRUCell(12, 8)
        self.actor, self.critic = nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = self.cell(F.mish(self.encoder(observation)), state)
        return self.actor(state).softmax(-1), self.critic(state).squeeze(-1), state


@architecture()
def actor_critic():
    return ActorCritic(), (real(6), real(8))
