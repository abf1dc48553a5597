"""Rows: recurrent layers, unrolled over their steps, and Fourier transforms as matrix products."""

from __future__ import annotations

import torch
from ops.rows import function, layer
from torch import Tensor, nn

LINEAR = torch.ops.aten.linear.default


class Output(nn.Module):
    """The output sequence of a recurrent layer, without its last state."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, *state: Tensor) -> Tensor:
        return self.layer(x, state if len(state) > 1 else state[0] if state else None)[0]


class Last(Output):
    """The last state."""

    def forward(self, x: Tensor, *state: Tensor) -> Tensor:
        last = self.layer(x, state if len(state) > 1 else state[0] if state else None)[1]
        return last[1] if isinstance(last, tuple) else last


class Cell(nn.Module):
    """One step of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(6, 5)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        return self.cell(x, (h, c))[0]


class Stabilised(nn.Module):
    """Exponential gates, kept finite by a running maximum, and a state that they normalise (as xLSTM has them)."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(6, 15)

    def forward(self, x: Tensor) -> Tensor:
        state = sums = top = torch.zeros(x.shape[1], 5)
        for step in x:
            new, into, keep = self.gates(step).chunk(3, -1)
            keep = nn.functional.logsigmoid(keep) + top
            top = torch.maximum(keep, into)
            into, keep = torch.exp(into - top), torch.exp(keep - top)
            state, sums = keep * state + into * torch.tanh(new), keep * sums + into
        return state / sums.clamp(min=1e-6)


# at int16 the steps of the interpolated tables (85 dB) and of 48-bit accumulators add up over the recurrence
STEPS = {"lsb_at_16": 5, "equal_at_16": 0.2}

RECURRENT = (
    layer("lstm", LINEAR, lambda: Output(nn.LSTM(6, 5, batch_first=True)), (2, 4, 6), **STEPS),
    layer("lstm_layers", LINEAR, lambda: Output(nn.LSTM(6, 5, 2, bidirectional=True)), (3, 2, 6), **STEPS),
    layer("lstm_state", LINEAR, lambda: Last(nn.LSTM(6, 5)), (4, 2, 6), (1, 2, 5), (1, 2, 5), **STEPS),
    layer("lstm_projected", LINEAR, lambda: Output(nn.LSTM(6, 5, proj_size=4, bias=False)), (4, 2, 6), **STEPS),
    layer("lstm_unbatched", LINEAR, lambda: Output(nn.LSTM(6, 5)), (4, 6), **STEPS),
    layer("lstm_cell", LINEAR, Cell, (7, 6), (7, 5), (7, 5), **STEPS),
    layer("gru", LINEAR, lambda: Output(nn.GRU(6, 5)), (4, 2, 6), **STEPS),
    layer("gru_layers", LINEAR, lambda: Last(nn.GRU(6, 5, 2, bidirectional=True, batch_first=True)), (2, 3, 6), (4, 2, 5), **STEPS),
    layer("gru_cell", LINEAR, lambda: nn.GRUCell(6, 5), (7, 6), (7, 5), **STEPS),
    layer("stabilised", LINEAR, Stabilised, (5, 2, 6), lsb_at_16=16, equal_at_16=0.08),  # and those of exp and of the quotient
    layer("rnn", LINEAR, lambda: Output(nn.RNN(6, 5)), (4, 2, 6), **STEPS),
    layer("rnn_relu", LINEAR, lambda: Last(nn.RNN(6, 5, nonlinearity="relu", bidirectional=True)), (4, 2, 6), **STEPS),
    layer("rnn_cell", LINEAR, lambda: nn.RNNCell(6, 5), (7, 6), (7, 5), **STEPS),
)


class Spectrum(nn.Module):
    """Short-time Fourier transform: its parts, or its power."""

    def __init__(self, power: bool) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        bins = torch.stft(x, 16, 8, window=self.window, return_complex=True)
        return bins.abs() ** 2 if self.power else torch.view_as_real(bins)


def filtered(x: Tensor) -> Tensor:
    """A product in the frequency domain."""
    bins = torch.fft.rfft(x)
    return torch.fft.irfft(bins * bins.conj() * 0.1, n=x.shape[-1])


# the matrix of a transform is int8 in each scheme
MATRIX = {"decibels": (("8a8w", 28.0), ("16a8w", 36.0))}
TWICE = {"decibels": (("8a8w", 25.0), ("16a8w", 34.0)), "lsb_at_16": 4}

FOURIER = (
    function("rfft", LINEAR, lambda a: torch.view_as_real(torch.fft.rfft(a)), (3, 16), **MATRIX),
    function("rfft_parts", LINEAR, lambda a: torch.fft.rfft(a, norm="ortho").real, (3, 15), **MATRIX),
    function("rfft_2d", LINEAR, lambda a: torch.view_as_real(torch.fft.rfft2(a)), (2, 6, 8), **TWICE),
    function("rfft_padded", LINEAR, lambda a: torch.view_as_real(torch.fft.rfft(a, n=12, dim=1)), (2, 9, 3), **MATRIX),
    function("fft", LINEAR, lambda a: torch.view_as_real(torch.fft.fft(a)), (3, 12), **MATRIX),
    function("ifft", LINEAR, lambda a: torch.view_as_real(torch.fft.ifft(torch.view_as_complex(a))), (3, 12, 2), **MATRIX),
    function("irfft", LINEAR, lambda a: torch.fft.irfft(torch.view_as_complex(a)), (3, 7, 2), **MATRIX),
    function("irfft_odd", LINEAR, lambda a: torch.fft.irfft(torch.view_as_complex(a), n=11), (3, 6, 2), **MATRIX),
    function("rfft_filter", LINEAR, filtered, (3, 16), **TWICE),
    function("polar", torch.ops.aten.cos.default, lambda a, b: torch.view_as_real(torch.polar(a, b)), (3, 16), (3, 16)),
    function("rfft_magnitude", LINEAR, lambda a: torch.fft.rfft(a).abs(), (3, 16), **TWICE | {"lsb_at_16": 2, "equal_at_16": 0.6}),
    layer("stft", LINEAR, lambda: Spectrum(False), (2, 64), **MATRIX),
    layer("stft_power", LINEAR, lambda: Spectrum(True), (2, 64), **TWICE),
)
