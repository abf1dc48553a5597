"""Meta's Llama checkpoints: params.json and consolidated.00.pth."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from tosaic.errors import InputError
from tosaic.llm.architecture import DecoderConfig, Rope
from tosaic.llm.checkpoint import Checkpoint, interleaved_to_halves, read_config

_LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_REST = {"model.embed_tokens.weight": "tok_embeddings.weight", "model.norm.weight": "norm.weight", "lm_head.weight": "output.weight"}
_SCALING = (8.0, 1.0, 4.0, 8192)  # of Llama 3.1, where params.json says use_scaled_rope
_SCALING_FACTOR = 32.0  # of the small models of Llama 3.2
_ANY_LENGTH = 1 << 20  # params.json does not say what context the model was trained on


class MetaCheckpoint(Checkpoint):
    """A folder with params.json and one .pth file, which is memory-mapped and read as weights only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = sorted(path.glob("*.pth"))
        if len(files) != 1:
            raise InputError(f"{path} has {len(files)} .pth files, expected one", remedy="merge shards of model parallelism first")
        try:
            self._state: dict[str, Tensor] = torch.load(files[0], weights_only=True, mmap=True, map_location="cpu")
        except (RuntimeError, OSError, pickle.UnpicklingError, ValueError, EOFError) as error:
            raise InputError(f"{files[0]} cannot be read: {str(error).splitlines()[0]}") from None
        if not isinstance(self._state, dict) or not all(isinstance(t, Tensor) for t in self._state.values()):
            raise InputError(f"{files[0]} holds no tensors by name")
        self.config = self._config()

    def _config(self) -> DecoderConfig:
        params = read_config(self.path / "params.json")
        embedding, gate = self._state.get("tok_embeddings.weight"), self._state.get("layers.0.feed_forward.w1.weight")
        if embedding is None or gate is None:
            raise InputError(f"{self.path} holds no Llama: tok_embeddings.weight or layers.0.feed_forward.w1.weight is missing")
        try:
            hidden, heads = params["dim"], params["n_heads"]
            factor = _SCALING_FACTOR if "output.weight" not in self._state else _SCALING[0]
            scaling = (float(params.get("rope_scale_factor", factor)), *_SCALING[1:]) if params.get("use_scaled_rope") else None
            return DecoderConfig(
                architecture="llama",
                vocabulary=embedding.shape[0],
                hidden=hidden,
                layers=params["n_layers"],
                heads=heads,
                kv_heads=params.get("n_kv_heads") or heads,
                head_dim=hidden // heads,
                ffn=gate.shape[0],
                eps=float(params.get("norm_eps", 1e-5)),
                rope=Rope(float(params.get("rope_theta", 10000.0)), llama3=scaling),
                tied="output.weight" not in self._state,
                attention_scale=(hidden // heads) ** -0.5,
                max_positions=params.get("max_seq_len", _ANY_LENGTH),
            )
        except KeyError as error:
            raise InputError(f"{self.path / 'params.json'} has no {error}") from None

    def shape(self, name: str) -> tuple[int, ...] | None:
        tensor = self._state.get(_their_name(name))
        return None if tensor is None else tuple(tensor.shape)

    def _read(self, name: str) -> Tensor:
        tensor = self._state[_their_name(name)]
        if "q_proj" in name:
            return interleaved_to_halves(tensor, self.config.heads)
        return interleaved_to_halves(tensor, self.config.kv_heads) if "k_proj" in name else tensor


def _their_name(name: str) -> str:
    if name in _REST:
        return _REST[name]
    _, _, index, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"layers.{index}.{_LAYER.get(module, module)}.{kind}"
