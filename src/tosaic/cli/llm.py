"""`tosaic llm`: parse, call. What the commands do stands in `llm_commands.py`, which is slow to import."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from tosaic.cli import llm_options as l
from tosaic.cli import options as o

app = typer.Typer(no_args_is_help=True, help="Language models: export prefill and decode as .vgf files, generate, score.")


class _Plain(TyperCommand):
    """Help without boxes, whose columns would cut flags as long as these."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)


@app.command(cls=_Plain)
def export(
    checkpoint: l.Checkpoint = None,
    params: l.Params = None,
    tokenizer: l.TokenizerPath = None,
    output_dir: l.OutputDir = None,
    pt2e_quantize: l.Mode = None,
    arm_vgf_quantize_scope: l.Scope = None,
    arm_vgf_compile_spec: l.CompileSpec = None,
    max_seq_length: l.MaxSeqLength = None,
    prefill_chunk: l.PrefillChunk = None,
    calibration_text: l.CalibrationText = None,
    calibration_limit: l.CalibrationLimit = None,
    calibration_seq_length: l.CalibrationSeqLength = None,
    activation_scales: l.ActivationScales = None,
    override: l.Override = None,
    smoothing: l.Smoothing = None,
    rotation: l.Rotation = None,
    full_logits: l.FullLogits = None,
    resume: l.Resume = None,
    config: o.Config = None,
) -> None:
    """Quantize a decoder and write its prefill and decode artifacts, which share scales and caches, and llm.json."""
    options = o.resolved("LlmExportOptions", **locals())
    from tosaic.cli import llm_commands as command

    command.export(options)


@app.command(cls=_Plain)
def generate(
    folder: l.FolderArg = None,
    prompt: l.Prompt = None,
    system: l.System = None,
    raw: l.Raw = None,
    max_new_tokens: l.MaxNewTokens = None,
    temperature: l.Temperature = None,
    top_k: l.TopK = None,
    top_p: l.TopP = None,
    seed: l.Seed = None,
    on: o.On = None,
    config: o.Config = None,
) -> None:
    """Answer a prompt with the artifacts, as a stream of text."""
    options = o.resolved("LlmGenerateOptions", **locals())
    from tosaic.cli import llm_commands as command

    command.generate(options)


@app.command(cls=_Plain)
def perplexity(
    folder: l.FolderArg = None,
    text: l.Text = None,
    checkpoint: l.Against = None,
    params: l.Params = None,
    calibration_text: l.CalibratedOn = None,
    limit: l.Limit = None,
    chunk: l.Chunk = None,
    on: o.On = None,
    json: l.AsJson = None,
    config: o.Config = None,
) -> None:
    """Score a text with the artifacts, and with the float model beside them."""
    options = o.resolved("LlmPerplexityOptions", **locals())
    from tosaic.cli import llm_commands as command

    command.perplexity(options)
