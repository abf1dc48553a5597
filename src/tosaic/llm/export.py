"""A checkpoint to an export folder, layer by layer: one layer's weights and activations are in memory at a time.

    text -> token ids -> start -> layer 0 -> layer 1 -> ... -> end        calibrated, quantized and compiled one after the other
    all parts -> prefill.vgf, decode.vgf, llm.json, tokenizer

What is finished lies in a work folder until the export is complete: the compiled part, and the residual stream behind it.
"""

from __future__ import annotations

import hashlib
import json
import resource
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from tosaic.artifact import versions
from tosaic.assembly import assemble
from tosaic.execute.threads import torch_threads
from tosaic.llm.chain import Progress, calibrations, check_fits, digest_of, parts, samples_of
from tosaic.llm.checkpoint import Checkpoint
from tosaic.llm.manifest import CacheRecord, Manifest, ProgramRecord, write_manifest
from tosaic.llm.memory import release
from tosaic.llm.parts import PROGRAMS, compile_part
from tosaic.llm.settings import Settings
from tosaic.llm.tokenizer import Tokenizer, save_tokenizer
from tosaic.llm.work import Work
from tosaic.quantization.ptq import Stopwatch

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
        resume: go on where an export of the same checkpoint with the same settings was interrupted, on as many threads as that
            began with; the files are the same.
        progress: called with what is being done, how many parts are done, and how many there are.

    Raises:
        InputError: settings that do not fit the checkpoint, too little text, or a work folder of another export.
    """
    settings.check()
    config = checkpoint.config
    check_fits(checkpoint, settings)
    samples = samples_of(settings, tokenizer, text, config.vocabulary)
    work = Work(output / WORK, _identity(checkpoint, settings, samples), resume)
    release()  # what opening the checkpoint and the tokenizer left behind
    watch = Stopwatch()
    total = config.layers + 3

    def told(what: str, done: int) -> None:
        if progress is not None:
            progress(what, done, total)

    with torch_threads(work.threads):
        for part, choice, calibration in calibrations(checkpoint, settings, samples, work, told):
            work.keep(part.name.removesuffix("."), compile_part(part, choice, settings.spec, calibration))
            watch.lap(part.name.split(".")[0])
            del part, calibration
    told("files", total - 1)
    names = [name for _, name, _ in parts(checkpoint, settings)]
    manifest = _write(checkpoint, settings, tokenizer, samples, work, output, names)
    watch.lap("files")
    work.remove()
    return Exported(output, manifest, watch.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# Work that is finished


def _identity(checkpoint: Checkpoint, settings: Settings, samples: np.ndarray) -> str:
    """What a compiled part depends on."""
    known = {
        "checkpoint": checkpoint.digest(),
        "settings": asdict(settings),
        "samples": digest_of(samples),
        "versions": versions(),
        "processor": torch.backends.cpu.get_cpu_capability(),  # by which torch chooses its kernels
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
    quantization |= {"scheme": settings.recipe.scheme, "smoothing": settings.smooths, "rotation": settings.rotates(config)}
    calibration = {"samples": len(samples), "tokens": int(samples.size), "sha256": digest_of(samples)}
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
