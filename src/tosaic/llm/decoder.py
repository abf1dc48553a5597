"""The decoder, written for export: static shapes, caches as inputs and outputs, the position as an input.

Tensors have the names that Hugging Face checkpoints give them. P is the number of tokens in one step (1 to decode), S the length of the
caches, H the hidden size, K the number of key and value heads, D their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tosaic.llm.architecture import DecoderConfig, Rope


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [heads,P,D] by angles [P,D]."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class Attention(nn.Module):
    """Causal attention with grouped queries; the heads of a group are rows of one product, so keys and values are not repeated."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.scale, self.cap = config.attention_scale, config.attention_cap
        self.q_proj = nn.Linear(config.hidden, self.heads * self.head_dim, config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden, self.kv_heads * self.head_dim, config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden, self.kv_heads * self.head_dim, config.qkv_bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden, config.output_bias)
        self.q_norm = RmsNorm(self.head_dim, config.eps) if config.qk_norm else nn.Identity()
        self.k_norm = RmsNorm(self.head_dim, config.eps) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, rows: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend, and put the new keys and values into the caches.

        Args:
            x: float [1,P,H]. cos, sin: float [P,D]. mask: float [P,S], added to the scores. rows: int [P], where in the caches.
            keys, values: float [K,S,D].

        Returns:
            float [1,P,H], and the caches with the new rows.
        """
        tokens = x.shape[1]
        q, k, v = (
            projection(x).view(tokens, heads, self.head_dim).transpose(0, 1)
            for projection, heads in ((self.q_proj, self.heads), (self.k_proj, self.kv_heads), (self.v_proj, self.kv_heads))
        )
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        keys, values = keys.index_copy(1, rows, k), values.index_copy(1, rows, v)
        grouped = (self.kv_heads, self.heads // self.kv_heads * tokens, self.head_dim)
        scores = torch.matmul(q.reshape(grouped), keys.transpose(1, 2)) * self.scale
        if self.cap is not None:
            scores = self.cap * torch.tanh(scores / self.cap)
        scores = scores.view(self.kv_heads, -1, tokens, keys.shape[1]) + mask
        weights = torch.softmax(scores, -1).view(*grouped[:2], keys.shape[1])
        y = torch.matmul(weights, values).view(self.heads, tokens, self.head_dim).transpose(0, 1)
        return self.o_proj(y.reshape(1, tokens, -1)), keys, values


class Mlp(nn.Module):
    """down(rotation(activation(gate(x)) * up(x)))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.ffn, config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden, config.ffn, config.mlp_bias)
        self.rotation: nn.Module = nn.Identity()  # unless the decoder was rotated
        self.down_proj = nn.Linear(config.ffn, config.hidden, config.mlp_bias)
        self.silu = config.activation == "silu"

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        return self.down_proj(self.rotation((F.silu(gate) if self.silu else F.gelu(gate, approximate="tanh")) * self.up_proj(x)))


class Layer(nn.Module):
    """One layer: attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn, self.mlp, self.post_norms = Attention(config), Mlp(config), config.post_norms
        self.input_layernorm = RmsNorm(config.hidden, config.eps)
        self.post_attention_layernorm = RmsNorm(config.hidden, config.eps)
        if config.post_norms:
            self.pre_feedforward_layernorm = RmsNorm(config.hidden, config.eps)
            self.post_feedforward_layernorm = RmsNorm(config.hidden, config.eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, rows: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Attention.forward`."""
        y, keys, values = self.self_attn(self.input_layernorm(x), cos, sin, mask, rows, keys, values)
        if self.post_norms:
            x = x + self.post_attention_layernorm(y)
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))), keys, values
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class Places(nn.Module):
    """What a layer needs to know of the position: where its rows go, what they may see, and the rotary tables there."""

    def __init__(self, rope: Rope, head_dim: int, tokens: int, length: int) -> None:
        super().__init__()
        self.steps = nn.Buffer(torch.arange(tokens), persistent=False)
        self.positions = nn.Buffer(torch.arange(length), persistent=False)
        cos, sin = rope.tables(length, head_dim)
        self.cos, self.sin = nn.Buffer(cos, persistent=False), nn.Buffer(sin, persistent=False)

    def forward(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """position: int [1], of the first token -> rows int [P], mask float [P,S], cos and sin float [P,D]."""
        rows = position + self.steps
        mask = torch.where(self.positions[None] <= rows[:, None], 0.0, -torch.inf)
        return rows, mask, F.embedding(rows, self.cos), F.embedding(rows, self.sin)


class Start(nn.Module):
    """Token ids int [1,P] to the residual stream float [1,P,H]."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens, self.scale = nn.Embedding(config.vocabulary, config.hidden), config.embedding_scale

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        return x * self.scale if self.scale != 1.0 else x


class Step(nn.Module):
    """One layer, with all that it knows of the position computed inside."""

    def __init__(self, layer: Layer, rope: Rope, tokens: int, length: int) -> None:
        super().__init__()
        self.layer, self.places = layer, Places(rope, layer.self_attn.head_dim, tokens, length)

    def forward(self, x: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x float [1,P,H], position int [1], keys and values float [K,S,D] -> all but the position, after this layer."""
        rows, mask, cos, sin = self.places(position)
        return self.layer(x, cos, sin, mask, rows, keys, values)


class End(nn.Module):
    """The residual stream to logits.

    Args:
        one: logits of one position, the one that `last` names, rather than of all.
    """

    def __init__(self, config: DecoderConfig, one: bool) -> None:
        super().__init__()
        self.norm, self.cap, self.one = RmsNorm(config.hidden, config.eps), config.logit_cap, one
        self.lm_head = nn.Linear(config.hidden, config.vocabulary, bias=False)

    def forward(self, x: Tensor, last: Tensor | None = None) -> Tensor:
        """x float [1,P,H], last int [1] -> logits float [1,1,V], or [1,P,V]."""
        if self.one:
            assert last is not None
            x = x.index_select(1, last)
        logits = self.lm_head(self.norm(x))
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class Decoder(nn.Module):
    """Token ids to logits, with caches: a start, a step for each layer, an end."""

    def __init__(self, config: DecoderConfig, start: Start, steps: Iterable[Step], end: End, length: int) -> None:
        super().__init__()
        self.config, self.length = config, length
        self.start, self.steps, self.end = start, nn.ModuleList(steps), end

    def forward(self, ids: Tensor, position: Tensor, last: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """One step of P tokens.

        Args:
            ids: int [1,P]. position: int [1], of the first of them. last: int [1], the one whose logits are wanted, if not all are.
            caches: keys, then values of each layer in turn, float [K,S,D]; what lies behind the last token is not looked at.

        Returns:
            logits float [1,1,V] or [1,P,V], then the caches with this step's rows.
        """
        x, updated = self.start(ids), []
        for index, step in enumerate(self.steps):
            x, keys, values = step(x, position, *caches[2 * index : 2 * index + 2])
            updated += [keys, values]
        return self.end(x, last), *updated

    def empty_caches(self) -> Sequence[Tensor]:
        """Caches of zeros."""
        shape = (self.config.kv_heads, self.length, self.config.head_dim)
        return [torch.zeros(shape) for _ in range(2 * self.config.layers)]
