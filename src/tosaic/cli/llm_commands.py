"""`tosaic llm export`, `generate` and `perplexity`: checks first, then the library, then what it found."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tosaic.cli.config import LlmExportOptions, LlmGenerateOptions, LlmPerplexityOptions
from tosaic.cli.console import Steps, plural, size, steps, table
from tosaic.emit.files import check_writable
from tosaic.errors import EmitError, InputError
from tosaic.llm.manifest import manifest_path
from tosaic.llm.settings import Settings

if TYPE_CHECKING:
    from tosaic.llm.checkpoint import Checkpoint
    from tosaic.llm.export import Exported
    from tosaic.llm.score import Score
    from tosaic.llm.tokenizer import Tokenizer


def export(options: LlmExportOptions) -> None:
    """Quantize and compile a checkpoint, and print what was made."""
    settings = _settings(options)
    settings.check()
    _check_export(options, settings)
    text = None if options.calibration_text is None or settings.mode is None else read_text("--calibration-text", options.calibration_text)
    with steps() as at:
        at.begin("importing torch")
        from tosaic.llm.chain import check_fits
        from tosaic.llm.checkpoint import open_checkpoint
        from tosaic.llm.export import export as run

        at.begin("loading")
        checkpoint = open_checkpoint(options.checkpoint, options.params)
        check_fits(checkpoint, settings)
        tokenizer = _tokenizer(options, settings, checkpoint)
        at.begin("exporting")
        try:
            exported = run(
                checkpoint,
                settings,
                tokenizer,
                text,
                options.output_dir,
                resume=options.resume,
                progress=lambda what, done, total: at.at(done, what, total),
            )
        except KeyboardInterrupt:
            at.end()
            typer.echo("interrupted; the same command with --resume goes on behind the last layer that is finished", err=True)
            raise
    _summary(exported, settings, at)


def _settings(options: LlmExportOptions) -> Settings:
    return Settings(
        mode=options.pt2e_quantize,
        scope=options.arm_vgf_quantize_scope,
        spec=options.arm_vgf_compile_spec or "",
        max_seq_length=options.max_seq_length,
        prefill_chunk=options.prefill_chunk or 0,
        calibration_limit=options.calibration_limit,
        calibration_seq_length=options.calibration_seq_length or 0,
        activation_scales=options.activation_scales,
        overrides=options.override,
        smoothing=options.smoothing,
        rotation=options.rotation,
        full_logits=options.full_logits,
    )


def _check_export(options: LlmExportOptions, settings: Settings) -> None:
    """What can be refused before torch is imported."""
    if not options.checkpoint.exists():
        raise InputError(f"no such checkpoint: {options.checkpoint}")
    for flag, path in (("--params", options.params), ("--tokenizer", options.tokenizer)):
        if path is not None and not path.exists():
            raise InputError(f"{flag}: no such file: {path}")
    if settings.mode is not None and options.calibration_text is None:
        raise InputError(
            f"{settings.mode} needs text to calibrate on", remedy="give --calibration-text FILE, or quantization.calibration_data"
        )
    if options.output_dir.exists() and not options.output_dir.is_dir():
        raise EmitError(f"--output-dir {options.output_dir} is a file, expected a folder")
    check_writable(options.output_dir / "llm.json")


def read_text(flag: str, path: Path) -> str:
    """A text file.

    Raises:
        InputError: there is none, or it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{flag}: {path}: {error.strerror}", remedy="name a file of plain text") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{flag}: {path} is not UTF-8 text (byte {error.start})", remedy=f"iconv -t UTF-8 {path}") from None


def _tokenizer(options: LlmExportOptions, settings: Settings, checkpoint: Checkpoint) -> Tokenizer | None:
    """The one that was named, or the checkpoint's own; a float model can do without."""
    from tosaic.llm.tokenizer import has_tokenizer, open_tokenizer

    source = options.tokenizer or checkpoint
    return None if settings.mode is None and source is checkpoint and not has_tokenizer(checkpoint) else open_tokenizer(source)


def _summary(exported: Exported, settings: Settings, at: Steps) -> None:
    manifest, folder = exported.manifest, exported.folder
    names = [manifest.prefill.file, manifest.decode.file]
    cache = manifest.caches[0]
    how = (
        "fp32"
        if settings.mode is None
        else f"{settings.mode}, scope {settings.scope}, {'per-token' if settings.per_token else 'static'} scales"
    )
    stages = {**{k: v for k, v in at.seconds.items() if k != "exporting"}, **exported.seconds}
    rows = [("model", f"{manifest.architecture}, {plural(len(manifest.caches) // 2, 'layer')}, vocabulary of {manifest.vocabulary:,}")]
    rows += [("quantization", how), ("spec", settings.spec)]
    rows += [("prefill", f"{plural(manifest.prefill.tokens, 'token')} a run, logits of {'all' if manifest.full_logits else 'one'}")]
    rows += [("caches", f"{len(manifest.caches)} of {cache.dtype}{cache.shape}, for {plural(manifest.max_seq_length, 'position')}")]
    if settings.mode is not None:
        rows += [("calibration", f"{plural(manifest.calibration['samples'], 'sample')}, {plural(manifest.calibration['tokens'], 'token')}")]
    rows += [("tokenizer", manifest.tokenizer or "none: give token ids")]
    rows += [("seconds", f"{sum(at.seconds.values()):.1f} ({', '.join(f'{k} {v:.1f}' for k, v in stages.items() if v >= 0.05)})")]
    rows += [("peak memory", size(exported.peak_memory))]
    typer.echo(f"{folder}  {', '.join(f'{name} {size((folder / name).stat().st_size)}' for name in names)}; llm.json describes them")
    table(rows)


def generate(options: LlmGenerateOptions) -> None:
    """Stream an answer to stdout; how fast it came, to stderr."""
    manifest_path(options.folder)
    prompt = _prompt(options)
    with steps() as at:
        at.begin("importing torch")
        from tosaic.llm.generate import Sampling
        from tosaic.llm.generate import generate as run
        from tosaic.llm.session import Session

        sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
        at.begin("loading")
        session = Session(options.folder, options.on)
    made = run(
        session,
        prompt,
        raw=options.raw,
        system=options.system,
        max_new_tokens=options.max_new_tokens,
        sampling=sampling,
        write=lambda piece: typer.echo(piece, nl=False),
    )
    typer.echo()
    why = {"end": "the model ended", "length": "--max-new-tokens", "cache": "the caches are full"}[made.stopped]
    typer.echo(
        f"prompt: {plural(made.prompt_tokens, 'token')}, {made.prefill_speed:.1f} per second; "
        f"answer: {plural(len(made.ids), 'token')}, {made.decode_speed:.1f} per second; {why}",
        err=True,
    )


def _prompt(options: LlmGenerateOptions) -> str:
    if options.prompt is not None:
        return options.prompt
    if sys.stdin.isatty():
        raise InputError("--prompt is missing", remedy="give it on the command line, or by standard input")
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8 text") from None


def perplexity(options: LlmPerplexityOptions) -> None:
    """Score the artifacts on a text, the float model beside them, and print the scores."""
    manifest_path(options.folder)
    text = read_text("--text", options.text)
    calibration = None if options.calibration_text is None else read_text("--calibration-text", options.calibration_text)
    if options.checkpoint is not None and not options.checkpoint.exists():
        raise InputError(f"no such checkpoint: {options.checkpoint}")
    if options.params is not None and options.checkpoint is None:
        raise InputError("--params without --checkpoint", remedy="give both, or neither")
    with steps() as at:
        at.begin("importing torch")
        from tosaic.llm.checkpoint import open_checkpoint
        from tosaic.llm.score import perplexity as run

        at.begin("loading")
        checkpoint = None if options.checkpoint is None else open_checkpoint(options.checkpoint, options.params)
        at.begin("scoring")
        scores = run(
            options.folder,
            text,
            checkpoint=checkpoint,
            calibration_text=calibration,
            chunk=options.chunk,
            limit=None if options.limit is None else max(1, options.limit // options.chunk),
            on=options.on,
            progress=lambda what, done, total: at.at(done, what, total),
        )
    if options.json_:
        # JSON has no NaN, which the error of a single token is
        known = {name: {k: None if v != v else v for k, v in asdict(score).items()} for name, score in scores.items()}
        facts = {"text": str(options.text), "chunk": options.chunk, "scores": known}
        typer.echo(json.dumps(facts, indent=1))
        return
    typer.echo(f"{options.text}  {plural(next(iter(scores.values())).tokens, 'token')} predicted, in chunks of {options.chunk}")
    table(
        [
            ("", "perplexity", "to float", "KL divergence", "same top token", "seconds"),
            *(_row(name, score) for name, score in scores.items()),
        ]
    )


def _row(name: str, score: Score) -> tuple[str, ...]:
    apart = ("", "", "")
    if score.change is not None and score.change_error is not None:
        apart = (f"{score.change:+.2%} ± {score.change_error:.2%}", f"{score.kl:.4f}", f"{score.top1:.1%}")
    return name, f"{score.perplexity:.3f} ± {score.standard_error:.3f}", *apart, f"{score.seconds:.1f}"
