"""Tiny decoders of every architecture with random weights, by `transformers`, and their checkpoints in every format."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from torch import Tensor

VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, CONTEXT = 96, 32, 2, 4, 2, 64, 64
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": FFN,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": CONTEXT}
_LAYER_TYPES = ["sliding_attention", "full_attention"]
ARCHITECTURES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": False}),
    "llama-tied": (transformers.LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama3": (transformers.LlamaConfig, {"rope_theta": 5e5, "rope_scaling": _LLAMA3}),
    "linear-rope": (transformers.LlamaConfig, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "mistral": (transformers.MistralConfig, {"sliding_window": None, "head_dim": 16}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16}),
    "gemma2": (transformers.Gemma2Config, {**_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3": (transformers.Gemma3TextConfig, {**_GEMMA, "layer_types": _LAYER_TYPES, "rope_theta": 3e4, "rope_local_base_freq": 500.0}),
}


@functools.cache
def model(name: str) -> Any:
    """A random model; its weights are larger than at initialisation, so that every part of it shows in the logits."""
    kind, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(kind(**_COMMON, **options), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def logits(name: str, ids: Tensor) -> Tensor:
    """Logits of `transformers`, float32 [1,P,V]."""
    with torch.no_grad():
        return model(name)(ids).logits


def neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows in the order for rotation of neighbours, as Meta and llama.cpp have them."""
    return torch.cat([torch.stack(head.chunk(2), 1).flatten(0, 1) for head in weight.chunk(heads)])


def save_hugging_face(name: str, folder: Path, shard: str = "5GB") -> Path:
    """As `transformers` writes it."""
    model(name).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_meta(folder: Path) -> Path:
    """The model "llama" as Meta would write it."""
    names = {
        "q_proj": "attention.wq",
        "k_proj": "attention.wk",
        "v_proj": "attention.wv",
        "o_proj": "attention.wo",
        "gate_proj": "feed_forward.w1",
        "down_proj": "feed_forward.w2",
        "up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "embed_tokens": "tok_embeddings",
        "lm_head": "output",
        "norm": "norm",
    }
    state = {}
    for name, tensor in model("llama").state_dict().items():
        *_, module, kind = name.split(".")
        prefix = f"layers.{name.split('.')[2]}." if ".layers." in name else ""
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(module)
        state[f"{prefix}{names[module]}.{kind}"] = neighbours(tensor, heads) if heads else tensor.clone()
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "consolidated.00.pth")
    config = model("llama").config
    params = {
        "dim": HIDDEN,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "n_kv_heads": KV_HEADS,
        "vocab_size": -1,
        "norm_eps": config.rms_norm_eps,
    }
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def save_gguf(file: Path, quantized: gguf.GGMLQuantizationType | None = None) -> Path:
    """The model "llama" as llama.cpp would have it; matrices in a quantized type."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    config = model("llama").config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name, tensor in model("llama").state_dict().items():
        heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else None
        data = (neighbours(tensor, heads) if heads else tensor).numpy()
        target = names.get_name(name, (".weight",))
        if quantized is None or data.ndim == 1:
            writer.add_tensor(target, np.ascontiguousarray(data))
        else:
            writer.add_tensor(target, gguf.quantize(data, quantized), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
