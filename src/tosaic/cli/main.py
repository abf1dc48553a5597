"""The `tosaic` command: parse, call, print. Whatever is slow to import is imported by the command that needs it."""

from __future__ import annotations

import errno
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tosaic import __version__
from tosaic.cli import llm
from tosaic.cli import options as o
from tosaic.errors import TosaicError

USER_ERROR, INTERNAL_ERROR, INTERRUPTED = 2, 3, 130


class _Group(TyperGroup):
    """All commands, with errors ending in one message and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:  # people add it at the end of the line that failed
            args = ["--debug", *(a for a in args if a != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        debug = bool(ctx.params.get("debug"))
        if not debug:
            _quieten()
        try:
            return super().invoke(ctx)
        except TosaicError as error:
            _report(f"error: {error}", error, debug)
            raise typer.Exit(USER_ERROR) from None
        except Exception as error:
            ours = type(error).__module__.startswith(("typer", "click"))  # usage errors and exits
            if ours or (isinstance(error, OSError) and error.errno == errno.EPIPE):
                raise
            what = str(error).strip().splitlines()
            hint = "" if debug else "; run with --debug, and report it"
            _report(f"internal error: {type(error).__name__}: {what[0] if what else 'no message'}{hint}", error, debug)
            raise typer.Exit(INTERNAL_ERROR) from None


def _quieten() -> None:
    """Warnings of the libraries below are not for a user of the command line."""
    import warnings

    for library in ("torch", "torchao", "numpy"):
        warnings.filterwarnings("ignore", module=rf"{library}\b")


def _report(message: str, error: Exception, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    print(message, file=sys.stderr)


app = typer.Typer(cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode="rich")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tosaic {__version__}")
        raise typer.Exit


# --max_seq_length is --max-seq-length
@app.callback(context_settings={"help_option_names": ["--help", "-h"], "token_normalize_func": lambda name: name.replace("_", "-")})
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole stack when something fails.")] = False,
) -> None:
    """PyTorch models to quantized .vgf files, and proof of what they compute."""


@app.command()
def export(
    model: o.ModelArg = None,
    output: o.Output = None,
    calibration: o.Calibration = None,
    scheme: o.Scheme = None,
    scope: o.Scope = None,
    override: o.Override = None,
    between: o.Between = None,
    observer: o.Observer = None,
    bias_correction: o.BiasCorrection = None,
    spec: o.SpecText = None,
    input_shape: o.InputShape = None,
    samples: o.Samples = None,
    image_mean: o.ImageMean = None,
    image_std: o.ImageStd = None,
    io_layout: o.IoLayout = None,
    emitter: o.Emitter = None,
    debug_info: o.DebugInfo = None,
    strict: o.Strict = None,
    dump: o.Dump = None,
    name: o.Name = None,
    config: o.Config = None,
) -> None:
    """Quantize a trained model and write it as a .vgf file."""
    options = o.resolved("ExportOptions", **locals())
    from tosaic.cli import export as command

    command.export(options)


@app.command()
def qat(
    model: o.ModelArg = None,
    train: o.Train = None,
    output: o.Output = None,
    calibration: o.Calibration = None,
    scheme: o.Scheme = None,
    scope: o.Scope = None,
    override: o.Override = None,
    between: o.Between = None,
    spec: o.SpecText = None,
    input_shape: o.InputShape = None,
    samples: o.Samples = None,
    image_mean: o.ImageMean = None,
    image_std: o.ImageStd = None,
    io_layout: o.IoLayout = None,
    emitter: o.Emitter = None,
    debug_info: o.DebugInfo = None,
    strict: o.Strict = None,
    dump: o.Dump = None,
    name: o.Name = None,
    config: o.Config = None,
) -> None:
    """Train a model with its quantization, by a function of yours, and write it as a .vgf file."""
    options = o.resolved("QatOptions", **locals())
    from tosaic.cli import export as command

    command.train(options)


@app.command("run")
def run_file(
    file: o.FileArg = None,
    input: o.Inputs = None,
    on: o.On = None,
    device: o.Device = None,
    float: o.FloatIo = None,
    output: o.Result = None,
    repeat: o.Repeat = None,
    profile: o.Profile = None,
    image_mean: o.ImageMean = None,
    image_std: o.ImageStd = None,
    config: o.Config = None,
) -> None:
    """Run a file on the simulator, Arm's reference model, or Vulkan."""
    options = o.resolved("RunOptions", **locals())
    from tosaic.cli import run as command

    command.run(options)


@app.command()
def verify(
    file: o.FileArg = None,
    input: o.Inputs = None,
    ulp: o.Ulp = None,
    each: o.EachOperator = None,
    device: o.Device = None,
    against: o.Against = None,
    image_mean: o.ImageMean = None,
    image_std: o.ImageStd = None,
    config: o.Config = None,
) -> None:
    """Run a file on every executor, and name the first operator that differs; random input, if none is given. Exit code 1 if any does."""
    options = o.resolved("VerifyOptions", **locals())
    from tosaic.cli import verify as command

    if not command.verify(options):
        raise typer.Exit(1)


@app.command()
def inspect(
    file: o.FileArg = None,
    text: o.AsText = None,
    json: o.AsJson = None,
    ledger: o.Ledger = None,
    dot: o.Dot = None,
    svg: o.Svg = None,
    scenario: o.Scenario = None,
    header: o.Header = None,
    open: o.Open = None,
    config: o.Config = None,
) -> None:
    """Print what is in a file: inputs and outputs with scales and bindings, operators, arithmetic, memory; or write it for others."""
    options = o.resolved("InspectOptions", **locals())
    from tosaic.cli import show as command

    command.inspect(options)


@app.command()
def doctor() -> None:
    """Try everything that a run may need, and say how to get what is missing."""
    from tosaic.cli import show as command

    if not command.doctor():
        raise typer.Exit(1)


@app.command()
def demo(
    output: o.DemoOutput = None,
    data: o.DemoData = None,
    epochs: o.DemoEpochs = None,
    quick: o.DemoQuick = None,
    config: o.Config = None,
) -> None:
    """Train, quantize, write, run and compare a small upscaler on real images, offline."""
    options = o.resolved("DemoOptions", **locals())
    from tosaic.demo.main import run_demo

    run_demo(options.output, **options.model_dump(exclude={"output"}, exclude_none=True))


app.add_typer(llm.app, name="llm")


def run() -> None:
    """The entry point of the console script."""
    try:
        app(prog_name="tosaic")
    except KeyboardInterrupt:  # before a command began
        sys.exit(INTERRUPTED)
