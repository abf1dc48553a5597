"""What kinds of decoders there are, as data: one `DecoderConfig` for each checkpoint, read from the config that its format has.

All are the decoder of Llama (Touvron et al. 2023, arXiv:2302.13971) with differences that the fields name: Qwen2 has biases,
Qwen3 and Gemma 3 normalise queries and keys, Gemma has norms behind its blocks, weights of norms stored less one, and caps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tosaic.errors import InputError, check_known
from tosaic.llm.values import MAX_LAYERS, Values


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864), halves rotated against each other.

    Attributes:
        theta: base of the wavelengths.
        factor: by which all frequencies are divided (linear scaling).
        llama3: factor, low and high frequency factor, and original context of Llama 3.1's scaling.
        divisors: a divisor for each frequency, as GGUF files have them.
    """

    theta: float
    factor: float = 1.0
    llama3: tuple[float, float, float, int] | None = None
    divisors: tuple[float, ...] | None = None

    def tables(self, positions: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 [positions, head_dim]."""
        angles = torch.arange(positions).float()[:, None] * self._frequencies(head_dim)
        angles = torch.cat((angles, angles), 1)
        return angles.cos(), angles.sin()

    def _frequencies(self, head_dim: int) -> Tensor:
        frequencies = 1 / self.theta ** (torch.arange(0, head_dim, 2).float() / head_dim) / self.factor
        if self.divisors is not None:
            frequencies = frequencies / torch.tensor(self.divisors)
        if self.llama3 is None:
            return frequencies
        factor, low, high, context = self.llama3
        turns = context * frequencies / (2 * math.pi)  # within the context that the model was trained on first
        share = ((turns - low) / (high - low)).clamp(0, 1)  # 1: a high frequency, which stays
        return (1 - share) * frequencies / factor + share * frequencies


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that decides the computation of a decoder but its weights.

    Attributes:
        local: for each layer, whether it attends to the last `window` positions only and takes `local_rope`.
        norm_offset: what is added to the stored weights of norms.
        embedding_scale: by which rows of the embedding are multiplied.
        attention_scale: by which products of queries and keys are multiplied.
        attention_cap, logit_cap: c of c tanh(x / c), None: no cap.
        post_norms: whether blocks are normalised behind too, before they are added to the residual stream.
        max_positions: the context that the model was made for.
    """

    architecture: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    eps: float
    rope: Rope
    tied: bool
    attention_scale: float
    max_positions: int
    activation: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    attention_cap: float | None = None
    logit_cap: float | None = None
    window: int | None = None
    local: tuple[bool, ...] = ()
    local_rope: Rope | None = None

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise InputError(f"the checkpoint's config: {self.heads} heads of {self.head_dim}, {self.kv_heads} of keys and values")

    def check_length(self, positions: int) -> None:
        """Refuse a sequence length that this decoder cannot hold.

        Raises:
            InputError: longer than the model's context, or than the window of its local layers.
        """
        if positions > self.max_positions:
            raise InputError(f"sequences of {positions} tokens are longer than the model's context, {self.max_positions}")
        if any(self.local) and self.window is not None and positions > self.window:
            raise InputError(
                f"sequences of {positions} tokens are longer than the window of local attention, {self.window}",
                remedy=f"use --max-seq-length {self.window} or less",
            )

    def layer_rope(self, layer: int) -> Rope:
        """The rotary embedding of a layer."""
        return self.local_rope if self.local and self.local[layer] and self.local_rope else self.rope

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each tensor, named as Hugging Face checkpoints name them."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            for name, shape in self.layer_tensors():
                yield f"model.layers.{layer}.{name}", shape
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, self.hidden)

    def layer_tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each tensor of one layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        linears = {
            "self_attn.q_proj": (queries, self.hidden, self.qkv_bias),
            "self_attn.k_proj": (keys, self.hidden, self.qkv_bias),
            "self_attn.v_proj": (keys, self.hidden, self.qkv_bias),
            "self_attn.o_proj": (self.hidden, queries, self.output_bias),
            "mlp.gate_proj": (self.ffn, self.hidden, self.mlp_bias),
            "mlp.up_proj": (self.ffn, self.hidden, self.mlp_bias),
            "mlp.down_proj": (self.hidden, self.ffn, self.mlp_bias),
        }
        for name, (outputs, inputs, bias) in linears.items():
            yield f"{name}.weight", (outputs, inputs)
            if bias:
                yield f"{name}.bias", (outputs,)
        norms = ["input_layernorm", "post_attention_layernorm"]
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if self.post_norms else []
        for name in norms:
            yield f"{name}.weight", (self.hidden,)
        if self.qk_norm:
            yield "self_attn.q_norm.weight", (self.head_dim,)
            yield "self_attn.k_norm.weight", (self.head_dim,)


# model_type of Hugging Face configs -> what sets it apart from Llama
_GEMMA = {"activation": "gelu_tanh", "post_norms": True, "norm_offset": 1.0}
_KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma2": _GEMMA,
    "gemma3_text": {**_GEMMA, "qk_norm": True},
}
KINDS = tuple(_KINDS)
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def differences(kind: str) -> dict[str, Any]:
    """Fields in which an architecture differs from Llama.

    Raises:
        InputError: an architecture that is not known.
    """
    check_known("architecture", kind, _KINDS)
    return dict(_KINDS[kind])


def from_hugging_face(config: Mapping[str, Any]) -> DecoderConfig:
    """The config of a Hugging Face checkpoint (`config.json`).

    Raises:
        InputError: an unknown architecture, a key that is missing, or a value that makes no sense.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise InputError("config.json names no model_type")
    fields, values = differences(kind), Values(config, "config.json")
    if "quantization_config" in values:
        remedy = "give the checkpoint that it was made of, or a .gguf file"
        raise InputError("config.json: weights that are quantized already (quantization_config) are not supported", remedy=remedy)
    layers, hidden, heads = (
        values.whole("num_hidden_layers", largest=MAX_LAYERS),
        values.whole("hidden_size"),
        values.whole("num_attention_heads"),
    )
    head_dim = values.whole("head_dim", max(hidden // heads, 1))
    activation = str(values.get("hidden_activation", values.get("hidden_act", "silu")))
    if activation not in _ACTIVATIONS:
        raise InputError(f"config.json: activation '{activation}' is not supported", remedy=f"known are {', '.join(_ACTIVATIONS)}")
    fields["activation"] = _ACTIVATIONS[activation]
    if values.flag("attention_bias"):
        fields["qkv_bias"] = fields["output_bias"] = True
    if kind.startswith("gemma"):
        fields["embedding_scale"] = float(hidden) ** 0.5
        for field, key in (("attention_cap", "attn_logit_softcapping"), ("logit_cap", "final_logit_softcapping")):
            fields[field] = values.number(key) if key in values else None
    local = _local_layers(values, kind, layers)
    rope = _ropes(values, kind)
    return DecoderConfig(
        architecture=kind,
        vocabulary=values.whole("vocab_size"),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=values.whole("num_key_value_heads", heads),
        head_dim=head_dim,
        ffn=values.whole("intermediate_size"),
        eps=values.number("rms_norm_eps", 1e-6),
        rope=rope["full_attention"],
        local_rope=rope.get("sliding_attention"),
        tied=values.flag("tie_word_embeddings", kind.startswith("gemma")),
        attention_scale=values.number("query_pre_attn_scalar", head_dim) ** -0.5,
        max_positions=values.whole("max_position_embeddings", 2048),
        mlp_bias=values.flag("mlp_bias"),
        window=values.whole("sliding_window") if any(local) else None,
        local=local,
        **fields,
    )


def _local_layers(config: Values, kind: str, layers: int) -> tuple[bool, ...]:
    """Layers with a sliding window; empty: none has."""
    if "sliding_window" not in config or not config.flag("use_sliding_window", True):
        return ()
    if types := config.items("layer_types"):
        if len(types) != layers:
            raise InputError(f"config.json: layer_types has {len(types)} items for {layers} layers")
        return tuple(t == "sliding_attention" for t in types)
    if kind.startswith("qwen"):
        first = config.whole("max_window_layers", layers, least=0) if config.flag("use_sliding_window") else layers
        return tuple(i >= first for i in range(layers))
    if kind == "mistral":
        return (True,) * layers
    pattern = config.whole("sliding_window_pattern", 6 if kind == "gemma3_text" else 2)
    return tuple(bool((i + 1) % pattern) for i in range(layers)) if kind.startswith("gemma") else ()


def _ropes(config: Values, kind: str) -> dict[str, Rope]:
    """Rotary embeddings by layer type, of any of the ways in which they have been written."""
    given, theta = config.inner("rope_parameters"), config.number("rope_theta", 10000.0)
    if given is not None and "full_attention" in given:
        kinds = ("full_attention", "sliding_attention")
        return {name: _rope(given.inner(name), theta) for name in kinds if name in given}
    result = {"full_attention": _rope(given or config.inner("rope_scaling"), theta)}
    if kind == "gemma3_text":
        result["sliding_attention"] = Rope(config.number("rope_local_base_freq", 10000.0))
    return result


def _rope(given: Values | None, theta: float) -> Rope:
    if given is None:
        return Rope(theta)
    theta = given.number("rope_theta", theta)
    kind = given.get("rope_type", given.get("type", "default"))
    if given.number("partial_rotary_factor", 1.0) != 1.0:
        raise InputError("rotary embeddings of a part of each head are not supported")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, factor=given.number("factor"))
    if kind == "llama3":
        low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
        if low >= high:
            raise InputError(f"config.json: low_freq_factor, {low}, is not below high_freq_factor, {high}")
        return Rope(theta, llama3=(given.number("factor"), low, high, given.whole("original_max_position_embeddings")))
    raise InputError(f"rotary embedding '{kind}' is not supported", remedy="known are default, linear, llama3")
