"""Meta's Llama checkpoints: params.json and consolidated.00.pth."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tosaic.errors import InputError
from tosaic.llm.architecture import DecoderConfig, Rope
from tosaic.llm.checkpoint import Checkpoint, interleaved_to_halves, read_config
from tosaic.llm.values import MAX_LAYERS, Values

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
    """One .pth file, or the folder that it lies in, and params.json; the file is memory-mapped and read as weights only.

    Args:
        params: where params.json is, if not beside the weights.
    """

    def __init__(self, path: Path, params: Path | None = None) -> None:
        self.path = path
        folder = path if path.is_dir() else path.parent
        self._params = params or folder / "params.json"
        files = sorted(path.glob("*.pth")) if path.is_dir() else [path]
        if len(files) != 1:
            remedy = (
                "merge shards of model parallelism first" if files else "params.json goes with Meta's .pth; other checkpoints do without"
            )
            raise InputError(f"{path} has {len(files)} .pth files, expected one", remedy=remedy)
        try:
            self._state: dict[str, Tensor] = torch.load(files[0], weights_only=True, mmap=True, map_location="cpu")
        except Exception as error:  # a damaged pickle ends in any of many
            raise InputError(f"{files[0]} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}") from None
        if not isinstance(self._state, dict) or not all(isinstance(t, Tensor) for t in self._state.values()):
            raise InputError(f"{files[0]} holds no tensors by name")
        for name, tensor in self._state.items():  # strides of 0 would make much out of little
            if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
                raise InputError(f"{files[0]}: tensor {name} claims more than the file holds", remedy="the file may be damaged")
        self.config = self._config()

    def _config(self) -> DecoderConfig:
        params = Values(read_config(self._params), str(self._params))
        embedding, gate = self._state.get("tok_embeddings.weight"), self._state.get("layers.0.feed_forward.w1.weight")
        if embedding is None or gate is None or embedding.ndim != 2 or gate.ndim != 2:
            raise InputError(f"{self.path} holds no Llama: tok_embeddings.weight or layers.0.feed_forward.w1.weight is missing")
        hidden, heads = params.whole("dim"), params.whole("n_heads")
        head_dim = max(hidden // heads, 1)
        factor = _SCALING_FACTOR if "output.weight" not in self._state else _SCALING[0]
        scaling = (params.number("rope_scale_factor", factor), *_SCALING[1:]) if params.flag("use_scaled_rope") else None
        return DecoderConfig(
            architecture="llama",
            vocabulary=embedding.shape[0],
            hidden=hidden,
            layers=params.whole("n_layers", largest=MAX_LAYERS),
            heads=heads,
            kv_heads=params.whole("n_kv_heads", heads),
            head_dim=head_dim,
            ffn=gate.shape[0],
            eps=params.number("norm_eps", 1e-5),
            rope=Rope(params.number("rope_theta", 10000.0), llama3=scaling),
            tied="output.weight" not in self._state,
            attention_scale=head_dim**-0.5,
            max_positions=params.whole("max_seq_len", _ANY_LENGTH),
        )

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
