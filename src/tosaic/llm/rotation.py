"""Rotation: the residual stream and the values of each head in another basis, in which no channel is much larger than the others.

The function stays the same (Ashkboos et al. 2024, arXiv:2404.00456): the norm of a vector is that of its rotation, so a norm whose weights
are folded into the layers behind it commutes with one. What enters `down_proj` is rotated as the model runs, in blocks, by a product with
one small matrix, since the activation function before it knows its channels. Queries and keys keep their basis.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from tosaic.errors import InputError
from tosaic.llm.architecture import DecoderConfig
from tosaic.llm.checkpoint import Checkpoint
from tosaic.llm.decoder import End, Layer, RmsNorm, Start

_ROWS = 4096  # of a weight that are rotated together
_BLOCK = 64  # channels that are rotated together as the model runs


def check_rotatable(config: DecoderConfig) -> None:
    """
    Raises:
        InputError: something besides the embedding and linear layers writes into the residual stream.
    """
    if config.post_norms:
        what = f"{config.architecture} cannot be rotated: what its layers add to the residual stream is normalised channel by channel"
        raise InputError(what, remedy="leave --rotation out")


class BlockRotation(nn.Module):
    """Each block of channels times a Hadamard matrix, which int8 holds exactly, and which is its own inverse."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = math.gcd(channels, _BLOCK)
        self.hadamard = nn.Linear(size, size, bias=False)
        self.hadamard.weight.data = (_mixed(torch.eye(size, dtype=torch.float64), 1) / math.sqrt(size)).float()

    def forward(self, x: Tensor) -> Tensor:
        """x float [...,C] -> the same shape."""
        return self.hadamard(x.unflatten(-1, (-1, self.hadamard.in_features))).flatten(-2)


class Rotated(Checkpoint):
    """The decoder of another checkpoint, rotated: each part as it is loaded. Embedding and head are two tables, also where they were one.

    Raises:
        InputError: see `check_rotatable`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        check_rotatable(checkpoint.config)
        self._checkpoint, self.path, self.config = checkpoint, checkpoint.path, checkpoint.config

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._checkpoint.shape(name)

    def _read(self, name: str) -> Tensor:
        return self._checkpoint._read(name)

    def start(self) -> Start:
        start = super().start()
        _rotate_inputs(start.embed_tokens)
        return start

    def layer(self, index: int) -> Layer:
        layer = super().layer(index)
        attention, mlp = layer.self_attn, layer.mlp
        _fold(layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        _fold(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj)
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            _rotate_inputs(reader)
        for writer in (attention.o_proj, mlp.down_proj):
            _rotate_outputs(writer)
        _rotate_outputs(attention.v_proj, attention.kv_heads)
        _rotate_inputs(attention.o_proj, attention.heads)
        mlp.rotation = BlockRotation(self.config.ffn)
        with torch.no_grad():
            mlp.down_proj.weight.copy_(mlp.rotation(mlp.down_proj.weight))
        return layer

    def end(self, one: bool) -> End:
        end = super().end(one)
        _fold(end.norm, end.lm_head)
        _rotate_inputs(end.lm_head)
        return end


def rotate(x: Tensor) -> Tensor:
    """x [...,n] in another basis, float64: times an orthogonal matrix whose elements are nearly equal in magnitude.

    It is the Kronecker product of a Hadamard matrix for the powers of two in n and a Hartley matrix for the rest, behind signs that are
    random, always the same.
    """
    signs, hartley = _basis(x.shape[-1])
    step = len(hartley)
    return _mixed(((x.double() * signs).reshape(-1, step) @ hartley).view(x.shape), step)


def _mixed(x: Tensor, step: int) -> Tensor:
    """x [...,n] times the Kronecker product of a Hadamard matrix and the identity of size `step`."""
    y = x
    while step < x.shape[-1]:
        low, high = y.view(-1, 2, step).unbind(1)
        y, step = torch.stack((low + high, low - high), 1), 2 * step
    return y.view(x.shape)


@functools.cache
def _basis(size: int) -> tuple[Tensor, Tensor]:
    """Signs [size], and the Hartley matrix of the odd part of `size`, scaled so that the whole is orthogonal; float64."""
    odd = size // (size & -size)
    angles = torch.arange(odd, dtype=torch.float64)[:, None] * torch.arange(odd) * (2 * math.pi / odd)
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return signs.double(), (angles.cos() + angles.sin()) / math.sqrt(size)


@torch.no_grad()
def _fold(norm: RmsNorm, *readers: nn.Linear) -> None:
    for reader in readers:
        reader.weight.mul_(norm.weight)
    norm.weight.fill_(1.0)


@torch.no_grad()
def _rotate_inputs(reader: nn.Linear | nn.Embedding, heads: int = 1) -> None:
    """What a layer reads, and what a table gives, each head by itself."""
    for rows in reader.weight.split(_ROWS):
        rows.copy_(rotate(rows.unflatten(1, (heads, -1))).flatten(1))


@torch.no_grad()
def _rotate_outputs(writer: nn.Linear, heads: int = 1) -> None:
    for columns in writer.weight.T.split(_ROWS):
        columns.copy_(rotate(columns.unflatten(1, (heads, -1))).flatten(1))
    if writer.bias is not None:
        writer.bias.copy_(rotate(writer.bias.unflatten(0, (heads, -1))).flatten())
