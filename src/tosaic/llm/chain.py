"""The parts of a decoder in their order, how each is quantized, and the text that they are calibrated on, one after the other."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tosaic.errors import InputError
from tosaic.llm.checkpoint import Checkpoint
from tosaic.llm.decoder import End, Layer
from tosaic.llm.memory import release
from tosaic.llm.parts import Choice, Part, Shapes, Variant, end_part, layer_part, start_part
from tosaic.llm.rotation import Rotated, check_rotatable
from tosaic.llm.settings import Settings
from tosaic.llm.smoothing import INPUTS, Statistics, observed, smooth, smooth_end
from tosaic.llm.tokenizer import Tokenizer
from tosaic.quantization.schemes import SCHEMES

Progress = Callable[[str, int, int], None]  # what is being done, how much is done, and how much there is
_NOISY = 24.0  # dB at 8 bits with one scale, below which an input of a linear layer takes 16


def parts(checkpoint: Checkpoint, settings: Settings) -> Iterator[tuple[int, str, Callable[[], tuple[Part, Layer | None]]]]:
    """Number, name and maker of each part in order; nothing is loaded before a maker is called."""
    if settings.rotates(checkpoint.config):
        checkpoint = Rotated(checkpoint)
    shapes = Shapes(settings.prefill_chunk, settings.max_seq_length, settings.full_logits)
    count = checkpoint.config.layers
    yield 0, "start", lambda: (start_part(checkpoint.start(), shapes), None)
    for index in range(count):

        def make(index: int = index) -> tuple[Part, Layer]:
            layer = checkpoint.layer(index)
            return layer_part(layer, index, checkpoint.config, shapes), layer

        yield index + 1, f"layers.{index}", make
    yield count + 1, "end", lambda: (end_part(checkpoint, shapes), None)


class Streams:
    """The residual streams between the parts, in memory: of those in front of a part and behind it."""

    def __init__(self) -> None:
        self._streams: dict[int, np.ndarray] = {}

    def has(self, name: str) -> bool:
        """Whether a part is finished, and so the stream behind it."""
        return False

    def stream(self, number: int) -> np.ndarray:
        """In front of the part of that number, float32 [N,L,H]."""
        return self._streams[number]

    def new_stream(self, number: int, shape: tuple[int, ...]) -> np.ndarray:
        """To be filled while the part before is calibrated."""
        self._streams = {n: stream for n, stream in self._streams.items() if n == number - 1}
        return self._streams.setdefault(number, np.empty(shape, np.float32))


def calibrations(
    checkpoint: Checkpoint, settings: Settings, samples: np.ndarray, streams: Streams, progress: Callable[[str, int], Any] | None = None
) -> Iterator[tuple[Part, Choice, Iterator[tuple[Tensor, ...]]]]:
    """Each part that is not finished, how it is quantized, and what calibrates it, which has to be used up before the next part.

    What a part is calibrated on the float parts before it gave. Parts are large: whoever takes one drops it before asking for the next.

    Args:
        samples: token ids [N,L].
        progress: called with the name and number of each part before it is loaded.
    """
    config = checkpoint.config
    for number, name, make in parts(checkpoint, settings):
        if progress is not None:
            progress(name, number)
        if streams.has(name):
            continue
        stream = streams.stream(number) if number else samples
        behind = streams.new_stream(number + 1, (*samples.shape, config.hidden)) if number <= config.layers else None
        part, layer = make()
        yield part, prepared(part, layer, settings, checkpoint, stream), through(part.calibrated, stream, behind)
        del part, layer
        release()


def prepared(part: Part, layer: Layer | None, settings: Settings, checkpoint: Checkpoint, stream: np.ndarray) -> Choice:
    """How a part is quantized, once it is smoothed in place where `settings` want it; `stream` goes in."""
    _smoothed(part, layer, settings, stream)
    found = {}
    if settings.finds_outliers and layer is not None:
        statistics = _observed(part, layer, stream)
        noisy = [name for place, names in INPUTS.items() if statistics.signal_to_noise(place) < _NOISY for name in names]
        found = {f"{part.name}{name}": "16a8w-digits" for name in noisy}
    return _choice(settings, part.name.removesuffix("."), checkpoint, found)


def _observed(part: Part, layer: Layer, stream: np.ndarray) -> Statistics:
    with observed(layer) as statistics:
        for _ in through(part.calibrated, stream):
            pass
    return statistics


def _smoothed(part: Part, layer: Layer | None, settings: Settings, stream: np.ndarray) -> None:
    if settings.smooths and layer is not None:
        smooth(layer, _observed(part, layer, stream))
    elif settings.smooths and isinstance(end := part.calibrated.module, End):
        with torch.no_grad():
            largest = [end.norm(x).abs().amax((0, 1)) for (x,) in through(part.calibrated, stream)]
        smooth_end(end, torch.stack(largest).amax(0))


@torch.no_grad()
def through(variant: Variant, stream: np.ndarray, found: np.ndarray | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Inputs of a part: each sequence of `stream` in blocks of P, from empty caches; what the part gives goes into `found`."""
    module, example = variant.module, variant.inputs
    size = example[0].shape[1]
    for n in range(len(stream)):
        caches = example[2:]
        for at in range(0, stream.shape[1], size):
            block = torch.from_numpy(np.array(stream[n : n + 1, at : at + size]))
            inputs = (block, torch.tensor([at]), *caches) if caches else (block,)
            yield inputs
            results = module(*inputs)
            if caches:
                results, *caches = results
            if found is not None:
                found[n : n + 1, at : at + size] = results.numpy()


def _modules(checkpoint: Checkpoint) -> Iterator[str]:
    """Paths of the linear layers and embeddings, as `overrides` name them."""
    inner = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    inner += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    yield "embed_tokens"
    yield from (f"layers.{index}.{name}" for index in range(checkpoint.config.layers) for name in inner)
    yield "lm_head"


def check_fits(checkpoint: Checkpoint, settings: Settings) -> None:
    """Refuse what this checkpoint cannot be exported with; nothing is loaded.

    Raises:
        InputError: caches longer than its context, an override that names no layer, or a rotation that would change its function.
    """
    checkpoint.config.check_length(settings.max_seq_length)
    if settings.rotates(checkpoint.config):
        check_rotatable(checkpoint.config)
    for pattern, scheme in settings.overrides.items():
        if not any(_overrides(pattern, scheme, name) for name in _modules(checkpoint)):
            known = (
                "embed_tokens, lm_head, and layers.N.self_attn.q_proj, k_proj, v_proj, o_proj, layers.N.mlp.gate_proj, up_proj, down_proj"
            )
            raise InputError(f"override '{pattern}' names no layer of the model", remedy=f"known are {known}; * stands for any text")


def _overrides(pattern: str, scheme: str, module: str) -> bool:
    """Whether an override is of a module; a scheme of linear layers is none of the embedding's."""
    return fnmatch.fnmatch(module, pattern) and (module != "embed_tokens" or SCHEMES[scheme].linear is None)


def _choice(settings: Settings, name: str, checkpoint: Checkpoint, found: Mapping[str, str]) -> Choice:
    """The scheme of a part, with the overrides of its layers by their names inside it: `found` by measurement, then the user's."""
    if settings.mode is None:
        return Choice(None)
    recipe, prefix = settings.recipe, f"{name}."
    # rows of int8 have scales of their own, and a tied head has the same bytes
    overrides = {"embed_tokens": "8a8w"} if name == "start" and settings.scope == "full" else {}
    if settings.rotates(checkpoint.config) and name.startswith("layers."):
        overrides["layer.mlp.rotation.*"] = settings.sixteen_bits
    for module in _modules(checkpoint):
        inside = module.replace(prefix, "layer.", 1) if module.startswith(prefix) else module
        here = module.startswith(prefix) or (name, module) in (("start", "embed_tokens"), ("end", "lm_head"))
        for pattern, scheme in {**settings.head, **found, **settings.overrides}.items():
            if here and _overrides(pattern, scheme, module):
                overrides[inside] = scheme
    return Choice(recipe.scheme, recipe.scope, overrides)


# Text


def samples_of(settings: Settings, tokenizer: Tokenizer | None, text: str | None, vocabulary: int) -> np.ndarray:
    """Token ids [N,L] to calibrate on, spread over the text; none in float.

    Raises:
        InputError: no text or tokenizer, a text shorter than one sample, or the tokenizer of another model.
    """
    length, count = settings.calibration_seq_length, settings.calibration_limit
    if settings.mode is None:
        return np.zeros((0, length), np.int64)
    if text is None:
        raise InputError(f"{settings.mode} needs text to calibrate on", remedy="give --calibration-text FILE")
    if tokenizer is None:
        raise InputError("the checkpoint has no tokenizer, and calibration starts from text", remedy="give --tokenizer FILE")
    start = [] if tokenizer.start is None else [tokenizer.start]
    ids, wanted = tokenizer.encode(text, start=False), length - len(start)
    if len(ids) < wanted:
        raise InputError(f"the calibration text has {len(ids)} tokens; one sample takes {wanted}", remedy="give a longer text")
    if max(ids) >= vocabulary:
        raise InputError(f"the tokenizer gives id {max(ids)}; the model knows {vocabulary}", remedy="give the tokenizer of this checkpoint")
    count = min(count, len(ids) // wanted)
    offsets = [n * (len(ids) - wanted) // max(count - 1, 1) for n in range(count)]
    return np.array([start + ids[at : at + wanted] for at in offsets], np.int64)


def digest_of(samples: np.ndarray) -> str:
    """SHA-256 by which an export knows what calibrated it."""
    return hashlib.sha256(samples.tobytes()).hexdigest()
