"""Every mistake of a user ends in one message that says what, where and the remedy, with exit code 2; old files stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tosaic.cli.main import app

MODELS = str(Path(__file__).parent / "cli_models.py")
OLD = b"an older file"


def model(name: str) -> str:
    return f"{MODELS}:{name}"


def line_of(text: str) -> str:
    """`file:line` of a line in cli_models.py."""
    lines = Path(MODELS).read_text().splitlines()
    return f"tests/cli_models.py:{next(i for i, line in enumerate(lines, 1) if text in line)}"


@pytest.fixture
def fails(tmp_path: Path) -> Any:
    """Run a command that must fail over an older output; gives the message."""
    out = tmp_path / "out.vgf"
    out.write_bytes(OLD)

    def run(*arguments: Any, output: Any = out) -> str:
        result = CliRunner().invoke(app, [str(a) for a in (*arguments, *(["-o", output] if output else []))], catch_exceptions=False)
        assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr)
        assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr and result.stdout == ""
        assert out.read_bytes() == OLD and not out.with_suffix(".json").exists()
        return result.stderr

    return run


# (arguments of `export`, parts of the message)
EXPORTS: dict[str, tuple[list[str], list[str]]] = {
    "no such model file": (["nowhere/net.py:net"], ["MODEL: no such file: nowhere/net.py"]),
    "no such program": (["net.pt2"], ["MODEL: no such file: net.pt2"]),
    "no such module": (["no_such_package.models:net"], ["there is no module 'no_such_package.models'", "file.py:name"]),
    "no such callable": ([model("net_and_input")], ["has no 'net_and_input'", "did you mean net_and_inputs?"]),
    "a pickle": (["net.pth"], ["MODEL 'net.pth' is not of a known form", "write a function that builds the model"]),
    "no model": ([model("no_model")], ["gives int, expected a torch.nn.Module"]),
    "a model that raises": ([model("raising")], ["failed: KeyError: 'conv.weight'", line_of('raise KeyError("conv'), "--debug"]),
    "no shapes": ([model("net")], ["the input shapes of", "--input-shape 1,3,224,224"]),
    "a shape of words": ([model("net"), "--input-shape", "1,three"], ["--input-shape 1,three is not a list of whole numbers"]),
    "a dynamic shape": ([model("net"), "--input-shape", "-1,3,8,8"], ["each dimension must be at least 1", "fixed shapes"]),
    "a shape that does not fit": ([model("wrong_forward")], ["torch.export cannot capture Net", line_of("torch.relu(self.norm")]),
    "NaN in weights": ([model("nan_weights")], ["weight 'conv.weight' (4, 3, 3, 3) contains NaN", "check the checkpoint"]),
    "control flow on data": ([model("branching")], ["torch.export cannot capture Branching", line_of("if x.sum() > 0"), "control flow"]),
    "unsupported operators": (
        [model("unsupported")],
        ["2 operators cannot be lowered", "aten._linalg_det.default", "aten.lgamma.default", line_of("torch.linalg.det"), "docs/ops.md"],
    ),
    "an unknown scheme": (
        [model("net"), "--scheme", "8w8a"],
        ["unknown scheme '8w8a'", "8a8w-per-token, 16a8w, 16a8w-digits, 16a8w-per-token, 8a4w, fp32, fp16, bf16"],
    ),
    "an unknown scope": ([model("net"), "--scope", "all"], ["unknown scope 'all'", "full, linear"]),
    "an unknown observer": ([model("net"), "--observer", "mse"], ["unknown observer 'mse'", "minmax, tight-minmax, percentile"]),
    "an unknown layout": ([model("net"), "--io-layout", "hwc"], ["--io-layout: expected 'model' or 'nhwc', found the text 'hwc'"]),
    "a bad override": ([model("net"), "--override", "head"], ["override 'head' is not of the form PATTERN=SCHEME"]),
    "an override's scheme": ([model("net"), "--override", "head=int8"], ["unknown scheme of override 'head' 'int8'", "known are 8a8w"]),
    "int16 without the extension": (
        [model("net"), "--scheme", "16a8w", "--spec", "TOSA-1.0+INT"],
        ["16a8w needs the int16 extension, which TOSA-1.0+INT does not have", "use --spec TOSA-1.0+INT+int16"],
    ),
    "linear scope without FP": ([model("net"), "--scope", "linear", "--spec", "TOSA-1.0+INT"], ["needs the FP profile", "TOSA-1.0+INT+FP"]),
    "no specification": ([model("net"), "--spec", "INT"], ["'INT' is not a TOSA specification string", "write it like TOSA-1.0+INT"]),
    "an unknown extension": ([model("net"), "--spec", "TOSA-1.0+INT+int12"], ["unknown part 'int12'", "known are INT, FP"]),
    "strict": (
        [model("net_and_inputs"), "--override", "head=fp32", "--strict"],
        ["1 operator stays float", "'linear': override", line_of("self.head(")],
    ),
}


@pytest.mark.parametrize("case", EXPORTS)
def test_export(case: str, fails: Any) -> None:
    arguments, parts = EXPORTS[case]
    message = fails("export", *arguments, "--calibration", model("samples"))
    for part in parts:
        assert part in message


# (DATA, parts of the message)
DATA: dict[str, tuple[str, list[str]]] = {
    "no such file": ("data.npy", ["--calibration: no such file or folder: data.npy"]),
    "no such callable": (model("sample"), ["has no 'sample'", "did you mean samples?"]),
    "another kind of file": (MODELS, ["--calibration: cannot read", "known are .npy"]),
    "empty": (model("empty"), ["the calibration data is empty", "give at least one sample"]),
    "wrong shape": (model("wrong_shape"), ["calibration sample 0, input 0: expected shape (1, 3, 8, 8)", "found (1, 3, 8, 9)"]),
    "wrong dtype": (model("wrong_dtype"), ["calibration sample 0, input 0: expected torch.float32, found torch.uint8", "convert"]),
    "NaN": (model("with_nan"), ["calibration sample 1, input 0 contains NaN", "repair the data"]),
    "no iterable": (model("no_model"), ["gives int, expected an iterable of input tuples"]),
    "raising": (model("raising_samples"), ["failed: OSError: disk is gone", line_of('raise OSError("disk')]),
}


@pytest.mark.parametrize("case", DATA)
def test_calibration(case: str, fails: Any) -> None:
    text, parts = DATA[case]
    message = fails("export", model("net_and_inputs"), "--calibration", text)
    for part in parts:
        assert part in message


def test_calibration_is_needed(fails: Any) -> None:
    assert "scheme 8a8w needs calibration data\n  try: give --calibration DATA" in fails("export", model("net_and_inputs"))


def test_calibration_files(fails: Any, tmp_path: Path) -> None:
    def message(name: str, of: str = "net_and_inputs") -> str:
        return fails("export", model(of), "--calibration", tmp_path / name)

    (tmp_path / "broken.npy").write_bytes(b"no array")
    assert "broken.npy is not a usable .npy file" in message("broken.npy")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    assert "broken.safetensors is not a usable .safetensors file" in message("broken.safetensors")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    assert "objects.npy is not a usable .npy file" in message("objects.npy")
    np.savez(tmp_path / "names.npz", a=np.zeros((1, 6), np.float32), left=np.zeros((1, 6), np.float32))
    assert "has no array for right; it holds a, left" in message("names.npz", "two")
    (tmp_path / "folder").mkdir()
    assert "folder holds no images" in message("folder")
    np.save(tmp_path / "none.npy", np.zeros((0, 3, 8, 8), np.float32))
    assert "the calibration data is empty" in message("none.npy")


def test_dynamic_shapes(fails: Any, tmp_path: Path) -> None:
    shapes = {"input": {0: torch.export.Dim("batch")}}
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 4),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "dynamic.pt2")
    np.save(tmp_path / "x.npy", np.zeros((2, 4), np.float32))
    message = fails("export", tmp_path / "dynamic.pt2", "--calibration", tmp_path / "x.npy")
    assert "has the dynamic shape" in message and "without dynamic_shapes" in message
    assert "does not apply to a .pt2 file" in fails("export", tmp_path / "dynamic.pt2", "--input-shape", "2,4", "--scheme", "fp32")
    (tmp_path / "broken.pt2").write_bytes(b"nothing")
    assert "is not a torch.export program" in fails("export", tmp_path / "broken.pt2", "--scheme", "fp32")


def test_the_converter(fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("export", model("net_and_inputs"), "--calibration", model("samples"), "--emitter", "converter")
    monkeypatch.setenv("TOSAIC_MODEL_CONVERTER", "/no/converter")
    message = fails(*arguments)
    assert "model-converter '/no/converter' ($TOSAIC_MODEL_CONVERTER) is not an executable file" in message and "pip install" in message
    monkeypatch.setenv("TOSAIC_MODEL_CONVERTER", "/bin/false")
    assert "model-converter failed with exit code 1" in fails(*arguments)
    monkeypatch.setenv("TOSAIC_MODEL_CONVERTER", "/bin/true")
    assert "model-converter wrote no file" in fails(*arguments)


def test_outputs(fails: Any, tmp_path: Path) -> None:
    arguments = ("export", model("net_and_inputs"), "--calibration", model("samples"))
    assert "the suffix is neither .vgf nor .tosa" in fails(*arguments, output=tmp_path / "out.pte")
    (tmp_path / "folder.vgf").mkdir()
    assert "folder.vgf: it is a folder" in fails(*arguments, output=tmp_path / "folder.vgf")
    assert "out.vgf is a file" in fails(*arguments, output=tmp_path / "out.vgf" / "in.vgf")
    assert "--output is missing" in fails(*arguments, output=None)


TRAINING: dict[str, tuple[str, list[str]]] = {
    "no such function": (model("trains"), ["has no 'trains'", "did you mean train?"]),
    "no function": (model("EXAMPLE"), ["is Tensor, expected a function of the model"]),
    "a form": ("train", ["--train 'train' is not of a known form"]),
    "raising": (model("train_wrongly"), ["failed: RuntimeError", line_of("model(torch.rand(1, 4, 8, 8))"), "--debug"]),
    "NaN": (model("train_to_nan"), ["is not finite after training", "lower the learning rate"]),
    "nothing trained": (model("train_not"), ["was never calibrated"]),
}


@pytest.mark.parametrize("case", TRAINING)
def test_training(case: str, fails: Any) -> None:
    text, parts = TRAINING[case]
    message = fails("qat", model("net_and_inputs"), "--train", text)
    for part in parts:
        assert part in message


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "net.vgf"
    arguments = ("export", model("net_and_inputs"), "--calibration", model("samples"), "-o", str(path))
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return path


def test_running(fails: Any, exported: Path, tmp_path: Path) -> None:
    for name, array in {"x": np.zeros((1, 3, 8, 8), np.float32), "small": np.zeros((1, 3, 4, 4), np.float32)}.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "i64.npy", np.zeros((1, 3, 8, 8), np.int64))
    np.save(tmp_path / "nan.npy", np.full((1, 3, 8, 8), np.nan, np.float32))

    def message(*arguments: Any) -> str:
        return fails("run", exported, *arguments, output=None)

    assert "--input is missing" in message() and "image i8[1, 3, 8, 8]" in message()
    assert "no such file: none.npy" in message("--input", "none.npy")
    assert "no such file: none.png" in message("--input", "none.png")
    assert "there is no input 'x'" in message("--input", f"x={tmp_path / 'x.npy'}") and "inputs are image" in message("--input", "x=x.npy")
    assert "input 'image' is given twice" in message("--input", tmp_path / "x.npy", "--input", tmp_path / "x.npy")
    assert "input 'image': expected shape [1, 3, 8, 8], found [1, 3, 4, 4]" in message("--input", tmp_path / "small.npy")
    assert "input 'image': expected int8, found int64" in message("--input", tmp_path / "i64.npy")
    assert "input 'image' contains NaN" in message("--input", tmp_path / "nan.npy")
    assert "cannot read" in message("--input", MODELS)
    assert "--input: " in message("--input", model("sample")) and "did you mean samples?" in message("--input", model("sample"))
    assert "gives no samples" in message("--input", model("empty"))
    assert "gives all inputs" in message("--input", model("samples"), "--input", tmp_path / "x.npy")
    assert "expected shape [1, 3, 8, 8], found [1, 3, 8, 9]" in message("--input", model("wrong_shape"))
    assert "--input: " in message("--input", model("raising_samples"))
    assert "--on: expected 'simulator', 'reference' or 'vulkan'" in message("--input", tmp_path / "x.npy", "--on", "gpu")
    assert "--repeat: expected at least 1" in message("--input", tmp_path / "x.npy", "--repeat", 0)
    assert "a .png holds real values of shape" in message("--input", tmp_path / "x.npy", "-o", tmp_path / "y.png")
    assert "the suffix is none of .npz, .npy, .safetensors, .png" in message("--input", tmp_path / "x.npy", "-o", tmp_path / "y.txt")


def test_files(fails: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.vgf"
    broken.write_bytes(b"VGF or not")
    assert "broken.vgf" in fails("inspect", broken, output=None)
    assert "the suffix is neither .vgf nor .tosa" in fails("inspect", MODELS, output=None)
    assert "No such file" in fails("verify", tmp_path / "none.vgf", output=None)
    assert "FILE is missing" in fails("inspect", output=None)
