"""A checkpoint to an export folder, layer by layer: one layer's weights and activations are in memory at a time.

    text -> token ids -> start -> layer 0 -> layer 1 -> ... -> end        calibrated, quantized and compiled one after the other
    all parts -> prefill.vgf, decode.vgf, llm.json, tokenizer

What is finished lies in a work folder until the export is complete: the compiled part, and the residual stream behind it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import resource
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tosaic.artifact import versions
from tosaic.assembly import assemble
from tosaic.errors import InputError
from tosaic.llm.checkpoint import Checkpoint
from tosaic.llm.decoder import End, Layer
from tosaic.llm.manifest import CacheRecord, Manifest, ProgramRecord, write_manifest
from tosaic.llm.memory import release
from tosaic.llm.parts import PROGRAMS, Choice, Compiled, Part, Shapes, compile_part, end_part, layer_part, start_part
from tosaic.llm.settings import Settings
from tosaic.llm.smoothing import observed, smooth, smooth_end
from tosaic.llm.tokenizer import Tokenizer, save_tokenizer
from tosaic.llm.work import Work
from tosaic.quantization.ptq import Stopwatch

Progress = Callable[[str, int, int], None]
WORK = ".work"


@dataclass
class Exported:
    """What an export gave.

    Attributes:
        seconds: by stage.
        peak_memory: of the process, in bytes.
    """

    folder: Path
    manifest: Manifest
    seconds: dict[str, float]
    peak_memory: int


def export(
    checkpoint: Checkpoint,
    settings: Settings,
    tokenizer: Tokenizer | None,
    text: str | None,
    output: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Quantize and compile a language model.

    Args:
        tokenizer: goes into the folder; without one the model cannot be calibrated, and later takes token ids only.
        text: to calibrate on; not needed in float.
        resume: go on where an export of the same checkpoint with the same settings was interrupted; the files are the same.
        progress: called with what is being done, how many parts are done, and how many there are.

    Raises:
        InputError: settings that do not fit the checkpoint, too little text, or a work folder of another export.
    """
    settings.check()
    config = checkpoint.config
    config.check_length(settings.max_seq_length)
    _check_overrides(checkpoint, settings.overrides)
    samples = _samples(settings, tokenizer, text, config.vocabulary)
    shapes = Shapes(settings.prefill_chunk, settings.max_seq_length, settings.full_logits)
    work = Work(output / WORK, _identity(checkpoint, settings, samples), resume)
    release()  # what opening the checkpoint and the tokenizer left behind
    watch = Stopwatch()
    total = config.layers + 3
    for number, name, make in _parts(checkpoint, shapes):
        if progress is not None:
            progress(name, number, total)
        if work.has(name):
            continue
        stream = samples if number == 0 else work.stream(number)
        next_stream = work.new_stream(number + 1, (*samples.shape, config.hidden)) if number <= config.layers else None
        compiled = _compiled(*make(), _choice(settings, name, checkpoint), settings, shapes, stream, next_stream)
        work.keep(name, compiled, next_stream)
        del compiled
        release()
        watch.lap(name.split(".")[0])
    if progress is not None:
        progress("files", total - 1, total)
    names = [name for _, name, _ in _parts(checkpoint, shapes)]
    manifest = _write(checkpoint, settings, tokenizer, samples, work, output, names)
    watch.lap("files")
    work.remove()
    return Exported(output, manifest, watch.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# Parts


def _parts(checkpoint: Checkpoint, shapes: Shapes) -> Iterator[tuple[int, str, Callable[[], tuple[Part, Layer | None]]]]:
    """Number, name and maker of each part in order; nothing is loaded before a maker is called."""
    count = checkpoint.config.layers
    yield 0, "start", lambda: (start_part(checkpoint.start(), shapes), None)
    for index in range(count):

        def make(index: int = index) -> tuple[Part, Layer]:
            layer = checkpoint.layer(index)
            return layer_part(layer, index, checkpoint.config, shapes), layer

        yield index + 1, f"layers.{index}", make
    yield count + 1, "end", lambda: (end_part(checkpoint, shapes), None)


def _compiled(
    part: Part, layer: Layer | None, choice: Choice, settings: Settings, shapes: Shapes, stream: np.ndarray, found: np.ndarray | None
) -> Compiled:
    """A part, smoothed and compiled; `stream` goes in, and what comes out fills `found`."""
    if settings.smooths and layer is not None:
        with observed(layer) as statistics:
            for _ in _calibration(part, stream, None, shapes):
                pass
        smooth(layer, statistics)
    elif settings.smooths and isinstance(end := part.calibrated.module, End):
        with torch.no_grad():
            largest = [end.norm(x).abs().amax((0, 1)) for (x,) in _calibration(part, stream, None, shapes)]
        smooth_end(end, torch.stack(largest).amax(0))
    return compile_part(part, choice, settings.spec, _calibration(part, stream, found, shapes))[0]


@torch.no_grad()
def _calibration(part: Part, stream: np.ndarray, found: np.ndarray | None, shapes: Shapes) -> Iterator[tuple[Tensor, ...]]:
    """Inputs of what `part` calibrates: each sequence in blocks of P, from empty caches; what the part gives goes into `found`."""
    module, example = part.calibrated.module, part.calibrated.inputs
    for n in range(len(stream)):
        caches = example[2:]
        for at in range(0, stream.shape[1], shapes.tokens):
            block = torch.from_numpy(np.array(stream[n : n + 1, at : at + shapes.tokens]))
            inputs = (block, torch.tensor([at]), *caches) if caches else (block,)
            yield inputs
            results = module(*inputs)
            if caches:
                results, *caches = results
            if found is not None:
                found[n : n + 1, at : at + shapes.tokens] = results.numpy()


def _modules(checkpoint: Checkpoint) -> Iterator[str]:
    """Paths of the linear layers and embeddings, as `overrides` name them."""
    inner = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    inner += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    yield "embed_tokens"
    yield from (f"layers.{index}.{name}" for index in range(checkpoint.config.layers) for name in inner)
    yield "lm_head"


def _check_overrides(checkpoint: Checkpoint, overrides: Mapping[str, str]) -> None:
    for pattern in overrides:
        if not any(fnmatch.fnmatch(name, pattern) for name in _modules(checkpoint)):
            known = (
                "embed_tokens, lm_head, and layers.N.self_attn.q_proj, k_proj, v_proj, o_proj, layers.N.mlp.gate_proj, up_proj, down_proj"
            )
            raise InputError(f"override '{pattern}' names no layer of the model", remedy=f"known are {known}; * stands for any text")


def _choice(settings: Settings, name: str, checkpoint: Checkpoint) -> Choice:
    """The scheme of a part, with the overrides of its layers by their names inside it."""
    if settings.mode is None:
        return Choice(None)
    recipe, prefix = settings.recipe, f"{name}."
    # rows of int8 have scales of their own, and a tied head has the same bytes
    overrides = {"embed_tokens": "8a8w"} if name == "start" and settings.scope == "full" else {}
    for module in _modules(checkpoint):
        inside = module.replace(prefix, "layer.", 1) if module.startswith(prefix) else module
        here = module.startswith(prefix) or (name, module) in (("start", "embed_tokens"), ("end", "lm_head"))
        for pattern, scheme in settings.overrides.items():
            if here and fnmatch.fnmatch(module, pattern):
                overrides[inside] = scheme
    return Choice(recipe.scheme, recipe.scope, overrides)


# Text


def _samples(settings: Settings, tokenizer: Tokenizer | None, text: str | None, vocabulary: int) -> np.ndarray:
    """Token ids [N,L] to calibrate on, spread over the text; none in float."""
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


# Work that is finished


def _identity(checkpoint: Checkpoint, settings: Settings, samples: np.ndarray) -> str:
    """What a compiled part depends on."""
    known = {
        "checkpoint": checkpoint.digest(),
        "settings": asdict(settings),
        "samples": hashlib.sha256(samples.tobytes()).hexdigest(),
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


# Files


def _write(
    checkpoint: Checkpoint,
    settings: Settings,
    tokenizer: Tokenizer | None,
    samples: np.ndarray,
    work: Work,
    output: Path,
    names: list[str],
) -> Manifest:
    """Assemble the programs and write the folder; the manifest comes last."""
    config = checkpoint.config
    outputs = ["logits", *(f"{kind}_{i}_out" for i in range(config.layers) for kind in ("keys", "values"))]
    quantization = {k: v for k, v in asdict(settings).items() if k not in ("max_seq_length", "full_logits")}
    quantization |= {"scheme": settings.recipe.scheme, "smoothing": settings.smooths}
    calibration = {"samples": len(samples), "tokens": int(samples.size), "sha256": hashlib.sha256(samples.tobytes()).hexdigest()}
    records, caches = {}, []
    for program, tokens in zip(PROGRAMS, (settings.prefill_chunk, 1), strict=True):
        pieces = [work.part(name).piece(program) for name in names]
        artifact = assemble(program, pieces, outputs, settings.spec, recipe=quantization, calibration=calibration)
        artifact.save(output / f"{program}.vgf")
        records[program] = ProgramRecord(file=f"{program}.vgf", sha256=artifact.passport.sha256, tokens=tokens)
        ports = {p.name: p for p in artifact.passport.inputs}
        caches = [
            CacheRecord(input=name, output=f"{name}_out", **ports[name].model_dump(include={"dtype", "shape", "scale", "zero_point"}))
            for name in (output.removesuffix("_out") for output in outputs[1:])
        ]
        del pieces, artifact
    if tokenizer is not None:
        save_tokenizer(tokenizer, output)
    manifest = Manifest(
        name=checkpoint.path.stem,
        architecture=config.architecture,
        vocabulary=config.vocabulary,
        max_seq_length=settings.max_seq_length,
        full_logits=settings.full_logits,
        prefill=records["prefill"],
        decode=records["decode"],
        caches=caches,
        tokenizer=None if tokenizer is None else "tokenizer.json",
        end_tokens=[] if tokenizer is None else sorted(tokenizer.end),
        quantization=quantization,
        calibration=calibration if settings.mode is not None else {},
        checkpoint=str(checkpoint.path),
        versions=versions(),
    )
    write_manifest(manifest, output)
    return manifest
