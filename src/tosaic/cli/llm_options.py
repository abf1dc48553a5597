"""The flags of `tosaic llm`, spelt as ExecuTorch's are where it has them. See `options.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

# What is exported
Checkpoint = Annotated[
    Path | None,
    Option(
        "--checkpoint",
        metavar="DIR|FILE",
        help="A Hugging Face folder, FILE.safetensors beside its config.json, FILE.gguf, or a folder with Meta's params.json and .pth.",
    ),
]
Params = Annotated[Path | None, Option("--params", metavar="FILE.json", help="Meta's params.json, where it is not beside the .pth file.")]
TokenizerPath = Annotated[
    Path | None,
    Option("--tokenizer", "--tokenizer-path", metavar="PATH", help="tokenizer.json or its folder, or a .gguf; else the checkpoint's own."),
]
OutputDir = Annotated[Path | None, Option("--output-dir", "-o", metavar="DIR", help="Where the artifacts and llm.json go.")]
Resume = Annotated[
    bool | None, Option("--resume", show_default=False, help="Go on behind the last layer that an export into the same folder finished.")
]

# How
Mode = Annotated[
    str | None,
    Option("--pt2e-quantize", metavar="vgf_8a8w|vgf_16a8w", help="How to quantize, one mode; without it the model stays fp32."),
]
Scope = Annotated[
    str | None,
    Option(
        "--arm-vgf-quantize-scope",
        "--vgf-quantize-scope",
        metavar="full|linear",
        show_default="full",
        help="Quantize everything, or only nn.Linear (needs INT+FP).",
    ),
]
CompileSpec = Annotated[
    str | None,
    Option(
        "--arm-vgf-compile-spec",
        "--vgf-compile-spec",
        metavar="TOSA-1.0+INT[+FP][+int16]",
        help="What the target has, which is law; without it TOSA-1.0+INT, or TOSA-1.0+FP for fp32. vgf_16a8w needs +int16.",
    ),
]
MaxSeqLength = Annotated[
    int | None,
    Option(
        "--max-seq-length",
        metavar="N",
        show_default="512",
        help="Positions that the caches hold, prompt and answer together; a multiple of --prefill-chunk.",
    ),
]
PrefillChunk = Annotated[
    int | None, Option("--prefill-chunk", metavar="P", help="Tokens that one run of prefill takes: 128, or N where that is less.")
]
FullLogits = Annotated[
    bool | None,
    Option("--full-logits", "--generate-full-logits", show_default=False, help="Prefill gives logits of all positions, not of one."),
]
ActivationScales = Annotated[
    str | None,
    Option(
        "--activation-scales",
        metavar="static|per-token",
        help="Of what enters linear layers: calibrated, or found for each token at run time; per-token in vgf_8a8w, static in vgf_16a8w.",
    ),
]
Override = Annotated[
    list[str] | None,
    Option("--override", metavar="MODULE=SCHEME", help="Another scheme for modules, like 'lm_head=16a8w' (repeatable)."),
]
Smoothing = Annotated[
    bool | None,
    Option(
        "--smoothing/--no-smoothing",
        show_default=False,
        help="Move scale between channels so that ranges become narrower; if not given, only in vgf_8a8w.",
    ),
]
Rotation = Annotated[
    bool | None,
    Option(
        "--rotation/--no-rotation",
        show_default=False,
        help="Compute in a basis in which no channel is much larger than others; if not given, only in vgf_8a8w, and not of Gemma.",
    ),
]

# Calibration
CalibrationText = Annotated[
    Path | None, Option("--calibration-text", "--calibration-data", metavar="FILE", help="Plain text (UTF-8) like the model will meet.")
]
CalibrationLimit = Annotated[
    int | None, Option("--calibration-limit", metavar="N", show_default="8", help="Calibrate on so many samples of the text at most.")
]
CalibrationSeqLength = Annotated[
    int | None, Option("--calibration-seq-length", metavar="N", help="Tokens of a sample, in whole chunks of prefill: 256, or what fits.")
]

# What was exported
FolderArg = Annotated[Path | None, Argument(metavar="DIR", help="The --output-dir of tosaic llm export.")]
Prompt = Annotated[str | None, Option("--prompt", "-p", metavar="TEXT", help="What to answer or go on from; without it, standard input.")]
System = Annotated[str | None, Option("--system", metavar="TEXT", help="A system message in front, where the chat template takes one.")]
Raw = Annotated[bool | None, Option("--raw", show_default=False, help="Go on from the text as it is, without the chat template.")]
MaxNewTokens = Annotated[
    int | None, Option("--max-new-tokens", metavar="N", show_default="128", help="Stop after so many tokens, if the model does not before.")
]
Temperature = Annotated[
    float | None,
    Option("--temperature", metavar="T", show_default="0.0", help="How freely to draw tokens; 0 takes the likeliest."),
]
TopK = Annotated[int | None, Option("--top-k", metavar="K", help="Draw from the K likeliest tokens only.")]
TopP = Annotated[
    float | None,
    Option("--top-p", metavar="P", show_default="1.0", help="Draw from the likeliest tokens that have probability P together."),
]
Seed = Annotated[int | None, Option("--seed", metavar="N", help="The same seed draws the same text; without one it is another each time.")]
Text = Annotated[Path | None, Option("--text", metavar="FILE", help="Plain text (UTF-8) to score.")]
Against = Annotated[
    Path | None,
    Option(
        "--checkpoint",
        metavar="DIR|FILE",
        help="The float model to compare with; without it the one that was exported, if it is still there.",
    ),
]
CalibratedOn = Annotated[
    Path | None,
    Option(
        "--calibration-text",
        "--calibration-data",
        metavar="FILE",
        help="What the export was calibrated on: score the quantized model as PyTorch computes it too.",
    ),
]
Limit = Annotated[int | None, Option("--limit", metavar="TOKENS", help="Score so many tokens at most, in whole chunks.")]
Chunk = Annotated[
    int | None, Option("--chunk", metavar="N", show_default="512", help="Tokens that are scored together, each with all before it in view.")
]
AsJson = Annotated[bool | None, Option("--json", show_default=False, help="Print everything as JSON.")]
