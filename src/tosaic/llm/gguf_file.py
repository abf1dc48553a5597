"""GGUF checkpoints, as llama.cpp has them: config, tensors of any quantized type, and the tokenizer in one memory-mapped file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tosaic.errors import InputError
from tosaic.llm.architecture import DecoderConfig, Rope, differences
from tosaic.llm.checkpoint import Checkpoint, interleaved_to_halves
from tosaic.llm.values import MAX_LAYERS, Values

try:
    import gguf
except ImportError:
    raise InputError("reading .gguf files needs the package gguf", remedy="pip install 'tosaic[llm]'") from None

_KINDS = {"gemma3": "gemma3_text"}  # names of GGUF that differ from Hugging Face's
_INTERLEAVED = ("llama",)  # whose queries and keys llama.cpp reorders
_GEMMA3_PATTERN = 6  # every sixth layer is global; the file does not say so


_BROKEN = (ValueError, IndexError, KeyError, OSError, OverflowError, TypeError, MemoryError, RecursionError)


class _Reader(gguf.GGUFReader):
    """The package's reader, which takes what lies beyond the end of the file for nothing, and counts on to what a header claims."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        offset, end = int(offset), int(offset) + np.dtype(dtype).itemsize * int(count)
        if not 0 <= offset <= end <= len(self.data):
            raise ValueError(f"it has {len(self.data)} bytes, and what it describes reaches to byte {end}")
        return super()._get(offset, dtype, int(count), override_order)


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
            reader = _Reader(path, "c")  # as if it could be written to: torch takes no other arrays
        except _BROKEN as error:
            raise InputError(f"{path} is no usable GGUF file: {error or type(error).__name__}", remedy="it may be truncated") from None
        self.fields = Fields(path, reader.fields)
        self._tensors = {t.name: t for t in reader.tensors}
        kind = self.fields.get("general.architecture")
        if not isinstance(kind, str):
            raise InputError(f"{path} names no architecture (general.architecture)")
        self._kind: str = kind
        self.config = self._config()
        architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == self._kind)
        self._names = gguf.get_tensor_name_map(architecture, self.config.layers)

    def _config(self) -> DecoderConfig:
        kind = _KINDS.get(self._kind, self._kind)
        fields = differences(kind)
        prefix = f"{self._kind}."
        values = Values(
            {key.removeprefix(prefix): self.fields[key] for key in self.fields if key.startswith(prefix)}, f"{self.path}: {self._kind}"
        )
        hidden, heads, layers = (
            values.whole("embedding_length"),
            values.whole("attention.head_count"),
            values.whole("block_count", largest=MAX_LAYERS),
        )
        head_dim = values.whole("attention.key_length", max(hidden // heads, 1))
        if values.whole("rope.dimension_count", head_dim) != head_dim:
            raise InputError("rotary embeddings of a part of each head are not supported", where=str(self.path))
        if kind.startswith("gemma"):
            fields |= {"embedding_scale": float(hidden) ** 0.5, "norm_offset": 0.0}  # llama.cpp has added it
            for field, key in (("attention_cap", "attn_logit_softcapping"), ("logit_cap", "final_logit_softcapping")):
                fields[field] = values.number(key) if key in values else None
        window = values.whole("attention.sliding_window", 0, least=0)
        pattern = {"gemma2": 2, "gemma3_text": _GEMMA3_PATTERN}.get(kind)
        local = tuple(bool((i + 1) % pattern) for i in range(layers)) if window and pattern else ()
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise InputError(f"{self.path} has no matrix token_embd.weight")
        return DecoderConfig(
            architecture=kind,
            vocabulary=int(embedding.shape[1]),
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=values.whole("attention.head_count_kv", heads),
            head_dim=head_dim,
            ffn=values.whole("feed_forward_length"),
            eps=values.number("attention.layer_norm_rms_epsilon"),
            rope=self._rope(values),
            local_rope=Rope(values.number("rope.freq_base_swa", 10000.0)) if kind == "gemma3_text" else None,
            tied="output.weight" not in self._tensors,
            attention_scale=head_dim**-0.5,
            max_positions=values.whole("context_length"),
            window=window if local else None,
            local=local,
            **fields,
        )

    def _rope(self, values: Values) -> Rope:
        theta = values.number("rope.freq_base", 10000.0)
        divisors = self._tensors.get("rope_freqs.weight")
        if divisors is not None:
            return Rope(theta, divisors=tuple(divisors.data.astype(float).tolist()))
        scaling = values.get("rope.scaling.type", "none")
        if scaling not in ("none", "linear"):
            raise InputError(f"{self.path}: rotary embedding '{scaling}' is not supported", remedy="known are none, linear")
        return Rope(theta, factor=values.number("rope.scaling.factor", 1.0) if scaling == "linear" else 1.0)

    def _tensor(self, name: str) -> Any:
        return self._tensors.get(self._names.get_name(name, (".weight", ".bias")) or "")

    def shape(self, name: str) -> tuple[int, ...] | None:
        tensor = self._tensor(name)
        return None if tensor is None else tuple(int(d) for d in reversed(tensor.shape))

    def _read(self, name: str) -> Tensor:
        tensor = self._tensor(name)
        numbers = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        if self._kind not in _INTERLEAVED or ("q_proj" not in name and "k_proj" not in name):
            return numbers
        return interleaved_to_halves(numbers, self.config.heads if "q_proj" in name else self.config.kv_heads)
