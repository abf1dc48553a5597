"""GGUF checkpoints, as llama.cpp has them: config, tensors of any quantized type, and the tokenizer in one memory-mapped file."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tosaic.errors import InputError
from tosaic.llm.architecture import DecoderConfig, Rope, differences
from tosaic.llm.checkpoint import Checkpoint, interleaved_to_halves

try:
    import gguf
except ImportError:
    raise InputError("reading .gguf files needs the package gguf", remedy="pip install 'tosaic[llm]'") from None

_KINDS = {"gemma3": "gemma3_text"}  # names of GGUF that differ from Hugging Face's
_INTERLEAVED = ("llama",)  # whose queries and keys llama.cpp reorders
_GEMMA3_PATTERN = 6  # every sixth layer is global; the file does not say so


_BROKEN = (ValueError, IndexError, KeyError, OSError, OverflowError, struct.error, TypeError, MemoryError)


class Fields(Mapping[str, Any]):
    """The metadata of a file, decoded when asked for: a vocabulary takes seconds."""

    def __init__(self, path: Path, fields: Mapping[str, gguf.ReaderField]) -> None:
        self._path, self._fields = path, fields

    def __getitem__(self, name: str) -> Any:
        field = self._fields[name]
        try:
            return field.contents()
        except _BROKEN as error:
            raise InputError(f"{self._path}: {name} cannot be read: {error}", remedy="the file may be damaged") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class GgufCheckpoint(Checkpoint):
    """One .gguf file; `fields` are its metadata."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        except _BROKEN as error:
            raise InputError(f"{path} is no usable GGUF file: {error or type(error).__name__}", remedy="it may be truncated") from None
        self.fields = Fields(path, reader.fields)
        self._tensors = {t.name: t for t in reader.tensors}
        self._kind = self.fields.get("general.architecture")
        self.config = self._config()
        architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == self._kind)
        self._names = gguf.get_tensor_name_map(architecture, self.config.layers)

    def _config(self) -> DecoderConfig:
        kind = _KINDS.get(str(self._kind), str(self._kind))
        fields = differences(kind)
        try:
            hidden, heads, layers = self._field("embedding_length"), self._field("attention.head_count"), self._field("block_count")
            head_dim = self._field("attention.key_length", hidden // heads)
            if self._field("rope.dimension_count", head_dim) != head_dim:
                raise InputError("rotary embeddings of a part of each head are not supported", where=str(self.path))
            if kind.startswith("gemma"):
                fields |= {"embedding_scale": float(hidden) ** 0.5, "norm_offset": 0.0}  # llama.cpp has added it
                fields |= {"attention_cap": self._field("attn_logit_softcapping", None)}
                fields |= {"logit_cap": self._field("final_logit_softcapping", None)}
            window = self._field("attention.sliding_window", None) or None
            pattern = {"gemma2": 2, "gemma3_text": _GEMMA3_PATTERN}.get(kind)
            local = tuple(bool((i + 1) % pattern) for i in range(layers)) if window and pattern else ()
            local_theta = float(self._field("rope.freq_base_swa", 10000.0))
            return DecoderConfig(
                architecture=kind,
                vocabulary=int(self._tensors["token_embd.weight"].shape[1]),
                hidden=hidden,
                layers=layers,
                heads=heads,
                kv_heads=self._field("attention.head_count_kv", heads),
                head_dim=head_dim,
                ffn=self._field("feed_forward_length"),
                eps=float(self._field("attention.layer_norm_rms_epsilon")),
                rope=self._rope(),
                local_rope=Rope(local_theta) if kind == "gemma3_text" else None,
                tied="output.weight" not in self._tensors,
                attention_scale=head_dim**-0.5,
                max_positions=self._field("context_length"),
                window=window if local else None,
                local=local,
                **fields,
            )
        except KeyError as error:
            raise InputError(f"{self.path} has no {error}") from None

    def _field(self, name: str, *default: Any) -> Any:
        key = f"{self._kind}.{name}"
        return self.fields.get(key, *default) if default else self.fields[key]

    def _rope(self) -> Rope:
        theta = float(self._field("rope.freq_base", 10000.0))
        divisors = self._tensors.get("rope_freqs.weight")
        if divisors is not None:
            return Rope(theta, divisors=tuple(divisors.data.astype(float).tolist()))
        scaling = self._field("rope.scaling.type", "none")
        if scaling not in ("none", "linear"):
            raise InputError(f"{self.path}: rotary embedding '{scaling}' is not supported", remedy="known are none, linear")
        return Rope(theta, factor=float(self._field("rope.scaling.factor", 1.0)) if scaling == "linear" else 1.0)

    def _tensor(self, name: str) -> Any:
        return self._tensors.get(self._names.get_name(name, (".weight", ".bias")) or "")

    def shape(self, name: str) -> tuple[int, ...] | None:
        tensor = self._tensor(name)
        return None if tensor is None else tuple(int(d) for d in reversed(tensor.shape))

    def _read(self, name: str) -> Tensor:
        tensor = self._tensor(name)
        numbers = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if self._kind not in _INTERLEAVED or ("q_proj" not in name and "k_proj" not in name):
            return numbers
        return interleaved_to_halves(numbers, self.config.heads if "q_proj" in name else self.config.kv_heads)
