"""Checkpoints: a config, and tensors that are read one at a time from where they lie.

`open_checkpoint` takes a Hugging Face folder (config.json and .safetensors, sharded too), one .safetensors file beside its config.json,
a .gguf file, or Meta's params.json and consolidated.00.pth. Whatever the format, tensors go by their Hugging Face names.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tosaic.errors import InputError
from tosaic.llm.architecture import DecoderConfig
from tosaic.llm.decoder import Decoder, End, Layer, Start, Step

_SHOWN = 5  # tensors that one message names


class Checkpoint(ABC):
    """An open checkpoint.

    Attributes:
        path: the file or folder.
        config: what kind of decoder it holds.
    """

    path: Path
    config: DecoderConfig

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor; None if there is no such tensor."""

    @abstractmethod
    def _read(self, name: str) -> Tensor:
        """A tensor that `shape` knows, in the type that it is stored in, or dequantized."""

    def tensor(self, name: str) -> Tensor:
        """A tensor as float32, in memory of its own; the weights of norms are whole (see `DecoderConfig.norm_offset`).

        Raises:
            InputError: it holds NaN or infinite values, or the file is damaged.
        """
        try:
            stored = self._read(name)
            if not stored.is_floating_point():
                raise ValueError(f"it holds {stored.dtype}, expected floating-point numbers")
            tensor = stored.to(torch.float32, copy=True)
        except (ValueError, IndexError, RuntimeError, OSError, NotImplementedError) as error:
            raise InputError(f"{self.path}: tensor {name} cannot be read: {error}") from None
        if not torch.isfinite(tensor).all():
            raise InputError(f"{self.path}: tensor {name} holds NaN or infinite values")
        return tensor + self.config.norm_offset if name.endswith("norm.weight") else tensor

    def digest(self) -> str:
        """SHA-256 of the weights' names, shapes and content, and of the config."""
        known = hashlib.sha256(repr(self.config).encode())
        for name, shape in self.config.tensors():
            known.update(f"{name}{shape}".encode())
            known.update(self.tensor(name).numpy())  # type: ignore[arg-type]
        return known.hexdigest()

    def check(self) -> None:
        """Compare names and shapes with what the config asks for; nothing is loaded.

        Raises:
            InputError: names the tensors that are missing or of another shape.
        """
        wrong = []
        for name, expected in self.config.tensors():
            found = self.shape(name)
            if found != expected:
                wrong.append(f"{name}: expected {list(expected)}, found {'none' if found is None else list(found)}")
        if wrong:
            rest = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            lines = "".join(f"\n  {line}" for line in wrong[:_SHOWN])
            raise InputError(f"{self.path} does not hold the {self.config.architecture} that its config describes:{lines}{rest}")

    def start(self) -> Start:
        """The embedding with its weights, in eval mode."""
        return _loaded(Start, self.config, {"embed_tokens.weight": self.tensor("model.embed_tokens.weight")})

    def layer(self, index: int) -> Layer:
        """A layer with its weights, in eval mode."""
        state = {name: self.tensor(f"model.layers.{index}.{name}") for name, _ in self.config.layer_tensors()}
        return _loaded(Layer, self.config, state)

    def step(self, index: int, tokens: int, length: int) -> Step:
        """A layer as a step of `tokens`, P, with caches of `length`, S."""
        return Step(self.layer(index), self.config.layer_rope(index), tokens, length).eval()

    def end(self, one: bool) -> End:
        """The last norm and the head with their weights, in eval mode."""
        head = self.tensor("model.embed_tokens.weight" if self.config.tied else "lm_head.weight")
        return _loaded(End, self.config, {"norm.weight": self.tensor("model.norm.weight"), "lm_head.weight": head}, one)

    def decoder(self, tokens: int, length: int, one: bool = False) -> Decoder:
        """The whole decoder in float32, in eval mode.

        Args:
            tokens: P, how many token ids each call takes.
            length: S, how many positions the caches hold.
            one: logits of one position rather than of all.
        """
        self.config.check_length(length)
        steps = (self.step(i, tokens, length) for i in range(self.config.layers))
        return Decoder(self.config, self.start(), steps, self.end(one), length).eval()


M = TypeVar("M", bound=nn.Module)


def _loaded(kind: Callable[..., M], config: DecoderConfig, state: dict[str, Tensor], *options: bool) -> M:
    """A module that never had other weights."""
    with torch.device("meta"):
        module = kind(config, *options)
    module.load_state_dict(state, assign=True)
    return module.eval()


def open_checkpoint(path: Path | str, params: Path | None = None) -> Checkpoint:
    """Open a checkpoint and check that it is whole.

    Args:
        params: Meta's params.json, where it is not beside the .pth file.

    Raises:
        InputError: no such file, a format or an architecture that is not known, tensors missing or of other shapes.
    """
    # each format is imported when it is asked for: gguf is not needed for the others
    path = Path(path)
    if not path.exists():
        raise InputError(f"no such checkpoint: {path}")
    opened: Checkpoint
    is_meta = (path / "params.json").is_file() and not (path / "config.json").is_file()
    if path.suffix == ".pth" or params is not None or is_meta:
        from tosaic.llm.meta import MetaCheckpoint

        if path.is_file() and path.suffix != ".pth":
            raise InputError(f"params.json belongs to .pth files, and {path.name} is none", remedy="leave --params out")
        opened = MetaCheckpoint(path, params)
    elif path.suffix == ".gguf":
        from tosaic.llm.gguf_file import GgufCheckpoint

        opened = GgufCheckpoint(path)
    elif path.suffix == ".safetensors" or (path / "config.json").is_file():
        from tosaic.llm.hugging_face import HuggingFaceCheckpoint

        opened = HuggingFaceCheckpoint(path)
    else:
        found = "a folder without config.json or params.json" if path.is_dir() else f"a file with the suffix '{path.suffix}'"
        remedy = "give a Hugging Face folder, FILE.safetensors beside its config.json, FILE.gguf, or params.json and a .pth file"
        raise InputError(f"{path} is no checkpoint: {found}", remedy=remedy)
    opened.check()
    return opened


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: there is no such file, or it is not a JSON object.
    """
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object")
    return config


def interleaved_to_halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection for rotation of neighbours (Meta, llama.cpp) -> for rotation of halves (Hugging Face)."""
    rows = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return rows.transpose(1, 2).reshape(tensor.shape)
