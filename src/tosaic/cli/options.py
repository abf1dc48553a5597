"""The flags of all commands; those of `tosaic llm` stand in `llm_options.py`.

Each defaults to None (not given); the defaults that the help shows are those of `config.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option


def resolved(options: str, /, config: Path | None = None, **given: Any) -> Any:
    """The options of a command, as a model of `config.py`; importing that takes longer than `--help` should."""
    from tosaic.cli import config as c
    from tosaic.cli.resolve import resolve

    return resolve(getattr(c, options), given, config)


Config = Annotated[
    Path | None, Option("--config", metavar="FILE.yaml", help="Take options from a YAML file; flags on the command line win.")
]

# What is compiled
ModelArg = Annotated[
    str | None,
    Argument(
        metavar="MODEL",
        help="file.py:callable or package.module:callable (gives a module, or a module and its example inputs), or FILE.pt2.",
    ),
]
Output = Annotated[
    Path | None, Option("--output", "-o", metavar="FILE.vgf", help="The file to write; its passport goes beside it as FILE.json.")
]
InputShape = Annotated[
    list[str] | None,
    Option("--input-shape", metavar="1,3,224,224", help="Shape of an input (repeat for each); 1,16:int64 for another type."),
]
Calibration = Annotated[
    str | None,
    Option(
        "--calibration", metavar="DATA", help="Representative inputs: .npy, .npz, .safetensors, a folder of images, or file.py:callable."
    ),
]
Samples = Annotated[int | None, Option("--samples", metavar="N", help="Calibrate on so many samples at most.")]
ImageMean = Annotated[str | None, Option("--image-mean", metavar="0.5,...", help="Subtracted from image pixels, which are in [0, 1].")]
ImageStd = Annotated[str | None, Option("--image-std", metavar="0.2,...", help="By which image pixels are divided then.")]

# How
Scheme = Annotated[
    str | None,
    Option(
        "--scheme",
        metavar="8a8w|8a8w-per-token|16a8w|16a8w-digits|16a8w-per-token|8a4w|fp32|fp16|bf16",
        show_default="8a8w",
        help="Activations and weights: int8 both, int16 and int8, int8 and int4, or float.",
    ),
]
Scope = Annotated[
    str | None, Option("--scope", metavar="full|linear", show_default="full", help="Quantize everything, or only nn.Linear (needs INT+FP).")
]
Override = Annotated[
    list[str] | None,
    Option("--override", metavar="PATTERN=SCHEME", help="Another scheme for modules or an aten operator, like 'head.*=fp32' (repeatable)."),
]
Between = Annotated[
    str | None,
    Option(
        "--between",
        metavar="int32|int16|int8",
        show_default="int32",
        help="Precision of values that arithmetic between convolutions and products reads.",
    ),
]
Observer = Annotated[
    str | None,
    Option(
        "--observer",
        metavar="minmax|tight-minmax|percentile",
        show_default="minmax",
        help="Ranges: the extremes seen (of int16 with head-room, or tight), or the 99.99th percentile.",
    ),
]
BiasCorrection = Annotated[
    bool | None,
    Option(
        "--bias-correction/--no-bias-correction",
        show_default="bias-correction",
        help="Move the mean output of each layer to the float model's, by its bias.",
    ),
]
SpecText = Annotated[
    str | None,
    Option("--spec", metavar="TOSA-1.0+INT", help="What the target has, which is law; without it the smallest that holds the scheme."),
]
IoLayout = Annotated[
    str | None, Option("--io-layout", metavar="model|nhwc", show_default="model", help="Store images channels last, as textures are.")
]
Emitter = Annotated[
    str | None,
    Option("--emitter", metavar="direct|converter", show_default="direct", help="Who writes the .vgf: Tosaic, or Arm's model-converter."),
]
DebugInfo = Annotated[
    bool | None,
    Option(
        "--debug-info/--no-debug-info",
        show_default="debug-info",
        help="Put names, and the model's file and line of each operator, into the .vgf (the converter cannot).",
    ),
]
Strict = Annotated[bool | None, Option("--strict/--no-strict", show_default="no-strict", help="Refuse operators that stay float.")]
Dump = Annotated[Path | None, Option("--dump", metavar="DIR", help="Write each stage of the compilation as text.")]
Name = Annotated[str | None, Option("--name", help="The model's name in the passport; without it that of the file.")]
Train = Annotated[
    str | None,
    Option(
        "--train", metavar="file.py:fn", help="Called with the model in train mode (and the session, if it takes two); trains it in place."
    ),
]

# Files that were made
FileArg = Annotated[Path | None, Argument(metavar="FILE", help="A .vgf or .tosa file.")]
Inputs = Annotated[
    list[str] | None,
    Option(
        "--input",
        "-i",
        metavar="[NAME=]FILE",
        help="An input: .npy, .npz, .safetensors, an image or a folder of images, for one sample or many (repeat for each input); "
        "or file.py:callable, as for --calibration, which gives all of them.",
    ),
]
On = Annotated[str | None, Option("--on", metavar="simulator|reference|vulkan", show_default="simulator", help="Where to run.")]
Device = Annotated[
    str | None,
    Option("--device", metavar="cpu|cuda|cuda:N", show_default="cpu", help="Where the simulator runs; its integers are the same."),
]
FloatIo = Annotated[
    bool | None,
    Option(
        "--float/--stored",
        show_default=False,
        help="Real values in and out, by the passport's scales, or stored ones; as the input is, if not given.",
    ),
]
Result = Annotated[
    Path | None,
    Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the outputs: .npz, .safetensors, .npy (one output), .png (one image), or a folder of images.",
    ),
]
Repeat = Annotated[
    int | None, Option("--repeat", metavar="N", show_default="1", help="Run so many times, and print the median of all but the first.")
]
Profile = Annotated[bool | None, Option("--profile", show_default=False, help="Print where the simulator's time goes, by operator.")]
Ulp = Annotated[
    float | None,
    Option(
        "--ulp", metavar="N", show_default=False, help="How far floats may be apart, in units in the last place: 64, or 4 for 16-bit types."
    ),
]
Against = Annotated[
    str | None,
    Option(
        "--against",
        metavar="FILE|MODEL",
        help="Compare with another .vgf or .tosa file instead, or layer by layer with the float model, as file.py:callable or .pt2.",
    ),
]
EachOperator = Annotated[
    bool | None, Option("--each", show_default=False, help="Compare the result of each operator too, which equal outputs may hide.")
]
AsText = Annotated[bool | None, Option("--text", show_default=False, help="Print the graph.")]
AsJson = Annotated[bool | None, Option("--json", show_default=False, help="Print everything as JSON.")]
Ledger = Annotated[bool | None, Option("--ledger", show_default=False, help="Print how each operator of the model was compiled, and why.")]
Dot = Annotated[Path | None, Option("--dot", metavar="FILE.dot", help="Write the graph as a picture, for Graphviz.")]
Svg = Annotated[Path | None, Option("--svg", metavar="FILE.svg", help="Write the graph as a picture that Graphviz has laid out.")]
Scenario = Annotated[
    Path | None,
    Option("--scenario", metavar="FILE.json", help="Write a scenario for Arm's scenario runner: inputs from .npy, outputs to .npy."),
]
Header = Annotated[
    Path | None,
    Option("--header", metavar="FILE.h", help="Write a C header: bindings, formats, shapes, scales, and functions that quantize."),
]
Open = Annotated[bool | None, Option("--open", show_default=False, help="Show the graph in Model Explorer, if it is installed.")]

# Demo
DemoOutput = Annotated[Path | None, Option("--output", "-o", metavar="DIR", show_default="demo-output", help="Where results go.")]
DemoData = Annotated[str | None, Option("--data", metavar="NAME", show_default="auto", help="The training data; auto takes what is there.")]
DemoEpochs = Annotated[int | None, Option("--epochs", metavar="N", help="Train so long.")]
DemoQuick = Annotated[bool | None, Option("--quick", show_default=False, help="A short run, to see that everything works.")]
