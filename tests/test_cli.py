"""The commands as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cli_models
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import tosaic
from tosaic import executors
from tosaic.cli.main import app
from tosaic.execute.compare import sqnr

HERE = Path(__file__).parent
MODELS = str(HERE / "cli_models.py")
SHAPE = (1, 3, 8, 8)


def cli(*arguments: Any) -> Any:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def ok(*arguments: Any) -> str:
    """Run a command that succeeds, and return what it printed."""
    result = cli(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def model(name: str) -> str:
    return f"{MODELS}:{name}"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 image-to-image model."""
    path = tmp_path_factory.mktemp("exported") / "image.vgf"
    ok("export", model("image"), "--calibration", model("samples"), "-o", path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five small pictures of other sizes than the models take."""
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (10, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
    (place / "notes.txt").write_text("no image")
    return place


def test_help_and_version_import_nothing_slow() -> None:
    code = """
import sys
from tosaic.cli.main import app
for arguments in (["--help"], ["--version"], ["export", "--help"], ["llm", "--help"], ["llm", "export", "--help"]):
    try:
        app(arguments)
    except SystemExit as stop:
        assert stop.code == 0
slow = {"torch", "numpy", "yaml", "PIL", "numba", "tosaic.artifact"} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Quantize a trained model" in done.stdout and f"tosaic {tosaic.__version__}" in done.stdout


def test_the_console_script_is_installed_and_ends_with_2_on_errors(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "tosaic"
    done = subprocess.run([script, "inspect", tmp_path / "none.vgf"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "none.vgf" in done.stderr and "Traceback" not in done.stderr


def test_export_writes_file_and_passport_and_prints_a_summary(tmp_path: Path) -> None:
    out = tmp_path / "net.vgf"
    text = ok("export", model("net_and_inputs"), "--calibration", model("samples"), "-o", out, "--dump", tmp_path / "stages")
    for expected in (
        "TOSA-1.0+INT (the smallest that will do)",
        "image  i8[1, 3, 8, 8]  real = ",
        "CONV2D",
        "SQNR",
        "4 samples",
        "seconds",
    ):
        assert expected in text
    passport = json.loads(out.with_suffix(".json").read_text())
    assert passport["name"] == "net" and passport["metrics"]["sqnr_db"] > 20
    assert passport["calibration"]["samples"] == 4 and passport["calibration"]["data"] == model("samples")
    assert sorted(p.name for p in (tmp_path / "stages").iterdir())[0] == "00_capture.txt"
    artifact = tosaic.load(out)
    measured = artifact.passport.metrics
    assert f"SQNR {measured['sqnr_db']:.1f} dB against the float model" in text
    assert f"(its fake quantization: {measured['fake_quantized_sqnr_db']:.1f} dB), on 4 samples" in text
    net, samples = cli_models.net().eval(), list(cli_models.samples())
    quantized = tosaic.quantize(cli_models.net().eval(), samples[0], samples)
    reals = [torch.cat([f(sample) for sample in samples]).detach().numpy() for f in (net, quantized)]
    assert measured["fake_quantized_sqnr_db"] == pytest.approx(sqnr(*reals), abs=1e-3)


def test_export_of_mixed_precision_lists_what_stays_float(tmp_path: Path) -> None:
    text = ok(
        *("export", model("net"), "--input-shape", "1,3,8,8", "--calibration", model("samples"), "-o", tmp_path / "net.vgf"),
        *("--scheme", "16a8w", "--override", "head=fp32", "--name", "mine", "--io-layout", "nhwc"),
    )
    assert "TOSA-1.0+INT+FP+int16" in text and "image  i16[1, 8, 8, 3] nhwc" in text
    assert "1 operator of the model stays float:" in text and "aten.linear.default  override" in text
    assert json.loads((tmp_path / "net.json").read_text())["name"] == "mine"


def test_export_in_float_needs_no_calibration(tmp_path: Path) -> None:
    text = ok("export", model("net_and_inputs"), "--scheme", "fp32", "-o", tmp_path / "net.vgf")
    assert "TOSA-1.0+FP" in text and "not known without --calibration" in text and "stay" not in text


def test_export_of_several_inputs_and_outputs(tmp_path: Path) -> None:
    text = ok("export", model("two"), "--calibration", model("pairs"), "-o", tmp_path / "two.vgf")
    assert "total: SQNR" in text and "best: " in text and "% equal" in text
    np.savez(tmp_path / "in.npz", right=np.ones((1, 6), np.float32), left=np.zeros((1, 6), np.float32))
    ok("run", tmp_path / "two.vgf", "--input", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as results:
        assert set(results) == {"total", "best"} and np.allclose(results["total"], 1, atol=0.1)


def test_export_of_a_captured_program(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.ReLU()).eval(), (torch.zeros(SHAPE),))
    torch.export.save(program, tmp_path / "net.pt2")
    np.save(tmp_path / "data.npy", np.random.default_rng(0).random((6, *SHAPE[1:]), np.float32))
    text = ok("export", tmp_path / "net.pt2", "--calibration", tmp_path / "data.npy", "--samples", 3, "-o", tmp_path / "net.tosa")
    assert "3 samples" in text and tosaic.load(tmp_path / "net.tosa").passport.calibration["samples"] == 3


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_calibration_arrays_go_by_the_names_of_the_inputs(suffix: str, tmp_path: Path) -> None:
    arrays = {name: np.random.default_rng(i).random((4, 6), np.float32) for i, name in enumerate(("right", "left"))}
    path = tmp_path / f"data{suffix}"
    np.savez(path, **arrays) if suffix == ".npz" else save_file(arrays, path)
    ok("export", model("two"), "--calibration", path, "-o", tmp_path / "two.vgf")
    assert tosaic.load(tmp_path / "two.vgf").passport.calibration["samples"] == 4


def test_calibration_on_images_and_running_on_one(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "image.vgf"
    arguments = ("export", model("image"), "--calibration", folder, "-o", out)
    ok(*arguments, "--image-mean", "0.5", "--image-std", "0.25,0.25,0.5")
    [port] = tosaic.load(out).passport.inputs
    assert port.scale is not None and 255 * port.scale > 2  # pixels are far apart: (1 - 0.5) / 0.25 - (0 - 0.5) / 0.25 is 4
    # the passport remembers how images were normalised
    assert "wrote" in ok("run", out, "--input", folder / "0.png", "-o", tmp_path / "out.png")
    assert Image.open(tmp_path / "out.png").size == (8, 8)


def test_qat_trains_the_prepared_model(tmp_path: Path) -> None:
    text = ok(
        *("qat", model("net_and_inputs"), "--train", model("train"), "--calibration", model("samples"), "-o", tmp_path / "net.vgf"),
    )
    assert "against the trained model with its fake quantization" in text
    text = ok("qat", model("net_and_inputs"), "--train", model("train_with_session"), "-o", tmp_path / "net.vgf")
    assert "not known without --calibration" in text


def test_run_prints_and_writes(exported: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random(SHAPE, np.float32)
    np.save(tmp_path / "x.npy", x)
    text = ok("run", exported, "--input", tmp_path / "x.npy", "--repeat", 3, "-o", tmp_path / "y.npy")
    assert "output  float32[1, 3, 8, 8]" in text and "on the simulator" in text and "median of 2" in text
    y = np.load(tmp_path / "y.npy")
    assert np.array_equal(y, tosaic.load(exported).run(x, float_io=True)[0])
    [port] = tosaic.load(exported).passport.inputs
    np.save(tmp_path / "stored.npy", np.clip(np.rint(x / port.scale) + port.zero_point, -128, 127).astype(np.int8))
    assert "output  int8[1, 3, 8, 8]" in ok("run", exported, "--input", f"image={tmp_path / 'stored.npy'}")
    assert "on the reference" in ok("run", exported, "--input", tmp_path / "x.npy", "--on", "reference")


def test_run_takes_a_test_set(exported: Path, folder: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((5, *SHAPE[1:]), np.float32)
    np.save(tmp_path / "x.npy", x)
    text = ok("run", exported, "--input", tmp_path / "x.npy", "-o", tmp_path / "y.safetensors")
    assert "output  float32[5, 3, 8, 8]" in text and "for 5 samples" in text
    y = load_file(tmp_path / "y.safetensors")["output"]
    artifact = tosaic.load(exported)
    assert np.array_equal(y, np.concatenate([artifact.run(x[i : i + 1], float_io=True)[0] for i in range(5)]))
    assert "wrote" in ok("run", exported, "--input", folder, "-o", tmp_path / "pictures-out")
    assert sorted(p.name for p in (tmp_path / "pictures-out").iterdir()) == [f"{i}.png" for i in range(5)]
    assert Image.open(tmp_path / "pictures-out" / "0.png").size == (8, 8)


def test_the_users_code_gives_inputs_as_it_gives_calibration_data(exported: Path, tmp_path: Path) -> None:
    x = np.concatenate([sample.numpy() for sample in cli_models.samples()])
    text = ok("run", exported, "--input", model("samples"), "-o", tmp_path / "y.npy")
    assert f"for {len(x)} samples" in text
    assert np.array_equal(np.load(tmp_path / "y.npy"), tosaic.load(exported).run(x, float_io=True)[0])
    assert f"computed {len(x)} given samples" in ok("verify", exported, "--input", model("samples"))
    assert f"on {len(x)} samples" in ok("verify", exported, "--against", model("image"), "--input", model("samples"))
    ok("export", model("two"), "--calibration", model("pairs"), "-o", tmp_path / "two.vgf")
    assert f"for {len(cli_models.pairs())} samples" in ok("run", tmp_path / "two.vgf", "--input", model("pairs"))


def test_run_profiles_the_simulator(exported: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, *SHAPE[1:]), np.float32))
    text = ok("run", exported, "--input", tmp_path / "x.npy", "--profile", "--repeat", 2)
    kinds = text.partition("operators took")[2]
    assert "(mean of 3)" in kinds and "CONV2D+RESCALE  1 " in kinds and "TABLE" in kinds
    [line] = [line for line in kinds.splitlines() if "CONV2D+RESCALE" in line and "%" in line.split()[0]]
    assert "i8[1,8,8,3]" in line
    message = cli("run", exported, "--input", tmp_path / "x.npy", "--profile", "--on", "reference")
    assert message.exit_code == 2 and "--profile times the simulator's operators" in message.stderr


def test_verify_compares_all_executors(exported: Path) -> None:
    text = ok("verify", exported)
    assert text.count("equal in all 192 values") == 2 and "vulkan" in text and "ULP" not in text
    assert tosaic.load(exported).passport.verified == {"input": "random", "samples": 1, "reference": "equal", "vulkan": "equal"}


def test_verify_names_the_operator_that_differs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = executors.prepare

    def wrong(on: str, graph: Any, *others: object) -> Any:
        run = prepare("simulator", graph)
        tables = [i for i, value in enumerate(graph.outputs) for n in graph.nodes if n.output is value and n.op.NAME == "TABLE"]

        def lying(inputs: Any) -> Any:
            outputs = [x.copy() for x in run(inputs)]
            for i in tables or range(len(outputs)):
                outputs[i].flat[:3] ^= on == "reference"
            return outputs

        return lying

    monkeypatch.setattr("tosaic.artifact.prepare", wrong)
    monkeypatch.setattr("tosaic.verification.prepare", wrong)
    result = cli("verify", exported)
    assert result.exit_code == 1
    assert "reference  output: 3 of 192 values differ, by 1 at most" in result.stdout
    found = result.stdout.partition("the first operator whose result differs on reference:")[2]
    assert "TABLE(" in found and "at [0, 0, 0, 0]: simulator " in found


def test_inspect(exported: Path, tmp_path: Path) -> None:
    text = ok("inspect", exported)
    for expected in ("TOSA-1.0+INT", "image  i8[1, 3, 8, 8]", "CONV2D 1", "5,184 multiply-accumulates", "8a8w, scope full", "sqnr_db"):
        assert expected in text
    assert str(tosaic.load(exported).graph).strip() == ok("inspect", exported, "--text").strip()
    assert "int8  sigmoid" in ok("inspect", exported, "--ledger").replace("   ", "  ")
    facts = json.loads(ok("inspect", exported, "--json"))
    assert facts["graph"]["macs"] == 8 * 8 * 3 * 27 and facts["passport"]["spec"] == facts["graph"]["spec"] == "TOSA-1.0+INT"
    alone = tmp_path / "alone.vgf"
    alone.write_bytes(exported.read_bytes())
    assert "no passport (alone.json) beside it" in ok("inspect", alone)


def test_doctor_fails_only_for_what_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    from tosaic.cli import show
    from tosaic.execute.doctor import Check

    fine = [Check("torch", True, "2.13"), Check("vulkan run", False, "no driver", "install one", required=False)]
    monkeypatch.setattr(show, "checks", lambda vgf: fine)
    assert "optional  vulkan run  no driver" in ok("doctor") and "vulkan run: install one" in ok("doctor")
    monkeypatch.setattr(show, "checks", lambda vgf: [*fine, Check("model-converter", False, "not installed", "pip install it")])
    result = cli("doctor")
    assert result.exit_code == 1 and "missing   model-converter  not installed" in result.stdout


def test_an_unexpected_exception_is_one_line(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    monkeypatch.setattr("tosaic.cli.show.count", lambda graph: 1 // 0)
    result = cli("inspect", exported)
    assert result.exit_code == 3
    assert result.stderr == "internal error: ZeroDivisionError: integer division or modulo by zero; run with --debug, and report it\n"
    assert "Traceback" in cli("inspect", exported, "--debug").stderr


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    def interrupt(graph: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("tosaic.cli.show.count", interrupt)
    assert cli("inspect", exported).exit_code == 130


def test_a_closed_pipe_is_quiet(exported: Path) -> None:
    script = Path(sys.executable).parent / "tosaic"
    done = subprocess.run(f"{script} inspect {exported} --text | head -1", shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("graph ") and done.stderr == ""


def test_demo_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("tosaic.demo.main.run_demo", lambda output, **options: calls.append((output, options)))
    ok("demo", "--quick", "-o", tmp_path)
    ok("demo", "--epochs", 2, "--data", "photographs")
    quick, longer = {"quick": True, "data": "auto"}, {"quick": False, "data": "photographs", "epochs": 2}
    assert calls == [(tmp_path, quick), (Path("demo-output"), longer)]
