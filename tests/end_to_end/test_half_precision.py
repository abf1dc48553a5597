"""Models in float16 and bfloat16: given so, or converted by a scheme; on the simulator and the reference model, and through files."""

from __future__ import annotations

import copy
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tosaic
from tosaic.cli.main import app
from tosaic.errors import InputError, SpecError
from tosaic.tosa.graph import verify
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SPECS = {"fp16": "TOSA-1.0+FP", "bf16": "TOSA-1.0+FP+bf16"}
NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
NAMES = {"fp16": "f16", "bf16": "bf16"}
# signal to noise against float32: 2^-11 and 2^-8 for each rounding, of which these networks have a dozen in a row
DECIBELS = {"fp16": 50.0, "bf16": 32.0}
SHAPE = (1, 3, 8, 8)


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + nn.functional.silu(self.second(x))
        return torch.softmax(self.head(x.mean((2, 3))), -1)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(self.embedding(tokens)))


class NormInFloat32(nn.Module):
    """As language models write it: a half precision model that casts to float32 inside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.weight = nn.Linear(16, 16), nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model


def decibels(want: torch.Tensor, got: np.ndarray) -> float:
    signal = want.detach().double().numpy()
    noise = np.square(signal - got.astype(np.float64)).sum()
    return float(10 * np.log10(np.square(signal).sum() / noise)) if noise else np.inf


def example(kind: type[nn.Module]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind is Transformer:
        return torch.randint(20, (2, 6), generator=generator)
    return torch.randn(SHAPE if kind is Picture else (2, 5, 16), generator=generator)


@pytest.mark.parametrize("scheme", TYPES)
@pytest.mark.parametrize("kind", [Picture, Transformer, NormInFloat32])
def test_scheme_converts_a_float32_model(kind: type[nn.Module], scheme: str) -> None:
    model, x = made(kind), example(kind)
    artifact = tosaic.compile(model, x, scheme=scheme)
    assert artifact.passport.spec == SPECS[scheme] and artifact.passport.recipe == {"scheme": scheme}
    assert artifact.passport.outputs[0].dtype == NAMES[scheme]
    assert {row.precision for row in artifact.passport.ledger} <= {scheme, "index"}
    simulated, expected = artifact.run(x, float_io=True)[0], artifact.run(x, on="reference", float_io=True)[0]
    assert simulated.dtype == np.float32 and decibels(model(x), simulated) > DECIBELS[scheme]
    assert np.allclose(simulated, expected, rtol=0, atol=2 * float(np.abs(simulated).max()) * torch.finfo(TYPES[scheme]).eps)
    assert all(p.dtype is torch.float32 for p in model.parameters())  # the model itself stays as it was


@pytest.mark.parametrize("scheme", TYPES)
@pytest.mark.parametrize("kind", [Picture, Transformer, NormInFloat32])
def test_model_given_in_half_precision(kind: type[nn.Module], scheme: str, tmp_path: Path) -> None:
    model, x = made(kind), example(kind)
    half = copy.deepcopy(model).to(TYPES[scheme])
    x = x.to(TYPES[scheme]) if x.is_floating_point() else x
    artifact = tosaic.compile(half, x)
    assert artifact.passport.spec == SPECS[scheme]
    artifact.save(tmp_path / "half.vgf")
    loaded = tosaic.load(tmp_path / "half.vgf")
    assert [p.dtype for p in loaded.passport.outputs] == [NAMES[scheme]]
    for on in ("simulator", "reference"):
        [result] = loaded.run(x, on=on, float_io=False)
        assert result.dtype == NUMPY[scheme]
        assert decibels(model(x.float() if x.is_floating_point() else x), result) > DECIBELS[scheme]
        assert decibels(half(x), result) > DECIBELS[scheme]


def test_casts_to_float32_inside_stay() -> None:
    artifact = tosaic.compile(made(NormInFloat32).half(), example(NormInFloat32).half())
    types = {node.op.NAME: node.output.dtype for node in artifact.graph.nodes}
    assert types["CONV2D"] is DType.FP16 and types["RSQRT"] is DType.FP32


def test_composites_compute_in_float32_between_casts() -> None:
    artifact = tosaic.compile(nn.LayerNorm(16), torch.randn(4, 16), scheme="fp16")
    inner = [node for node in artifact.graph.nodes if node.op.NAME in ("REDUCE_SUM", "RSQRT", "MUL", "SUB", "ADD")]
    assert inner and {node.output.dtype for node in inner} == {DType.FP32}
    assert [v.dtype for v in (*artifact.graph.inputs, *artifact.graph.outputs)] == [DType.FP16] * 2
    large = torch.full((4, 16), 300.0)
    large[:, ::2] = -300.0  # squares that float16 does not hold
    assert np.abs(np.abs(artifact.run(large)[0]) - 1).max() < 2e-3


def test_single_operators_stay_in_their_type() -> None:
    artifact = tosaic.compile(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sigmoid()), torch.randn(SHAPE), scheme="bf16")
    assert {node.output.dtype for node in artifact.graph.nodes} == {DType.BF16}


def test_inputs_of_either_type() -> None:
    x = example(Picture)
    artifact = tosaic.compile(made(Picture), x, scheme="bf16")
    assert artifact.run(x)[0].dtype == np.float32
    stored = artifact.run(x.bfloat16())[0]
    assert stored.dtype == NUMPY["bf16"] and np.array_equal(stored.astype(np.float32), artifact.run(x)[0])
    with pytest.raises(InputError, match="expected bfloat16, found float32"):
        artifact.run(x, float_io=False)


def test_constants_are_computed_before_they_are_rounded() -> None:
    class Positions(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sin(torch.arange(1000.0) * 0.37)

    x = torch.ones(1, 1000)
    [result] = tosaic.compile(Positions(), x, scheme="bf16").run(x)
    assert np.abs(result - Positions()(x).numpy()).max() <= 2**-9


def test_masks_stay_finite() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.triu(torch.full((4, 4), torch.finfo(torch.float32).min), 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x + self.mask, -1)

    x = torch.randn(4, 4)
    for scheme in TYPES:
        [result] = tosaic.compile(Masked(), x, scheme=scheme).run(x)
        assert np.abs(result - Masked()(x).numpy()).max() < 2**-8


def test_exported_programs_convert_too() -> None:
    model, x = made(Picture), example(Picture)
    artifact = tosaic.compile(torch.export.export(model, (x,)), scheme="fp16")
    verify(artifact.graph, Spec.parse("TOSA-1.0+FP"))
    assert decibels(model(x), artifact.run(x)[0]) > DECIBELS["fp16"]


def test_refusals() -> None:
    model, x = made(Picture), example(Picture)
    with pytest.raises(SpecError, match=r"bf16 needs the bf16 extension.*\n?.*--spec TOSA-1.0\+FP\+bf16"):
        tosaic.compile(model, x, "TOSA-1.0+FP", scheme="bf16")
    with pytest.raises(SpecError, match="fp16 needs the FP profile"):
        tosaic.compile(model, x, "TOSA-1.0+INT", scheme="fp16")
    with pytest.raises(SpecError, match="bf16"):
        tosaic.compile(model.bfloat16(), x.bfloat16(), "TOSA-1.0+FP")
    model = model.float()
    with pytest.raises(InputError, match=r'scheme bf16 needs no quantization(.|\n)*scheme="bf16"'):
        tosaic.quantize(model, x, [x], "bf16")
    with pytest.raises(InputError, match="fp16 for 'head': fp16 and bf16 are for whole models"):
        tosaic.quantize(model, x, [x], overrides={"head": "fp16"})
    with pytest.raises(InputError, match="bf16 with overrides"):
        tosaic.quantize(model, x, [x], "bf16", overrides={"head": "fp32"})
    with pytest.raises(InputError, match="compile takes a float scheme, found '8a8w'"):
        tosaic.compile(model, x, scheme="8a8w")
    with pytest.raises(InputError, match="scheme fp16 is for float models; this one is quantized"):
        tosaic.compile(tosaic.quantize(model, x, [x]), scheme="fp16")
    with pytest.raises(InputError, match="the model computes in float16, and quantization starts from float32"):
        tosaic.quantize(model.half(), x.half(), [x.half()])


@pytest.mark.parametrize("scheme", TYPES)
def test_command_line(scheme: str, tmp_path: Path) -> None:
    models = Path(__file__).parents[1] / "cli_models.py"
    vgf, x, y = tmp_path / "half.vgf", tmp_path / "x.npy", tmp_path / "y.npy"

    def ok(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    printed = ok("export", f"{models}:image", "--scheme", scheme, "--calibration", f"{models}:samples", "-o", vgf)
    assert SPECS[scheme] in printed and "SQNR" in printed and f"{NAMES[scheme]}[1, 3, 8, 8]" in printed
    assert "recipe" in ok("inspect", vgf) and scheme in ok("inspect", vgf)
    assert "differs" not in ok("verify", vgf)
    np.save(x, np.random.default_rng(0).random((1, 3, 8, 8), np.float32))
    ok("run", vgf, "--input", x, "--output", y)
    assert np.load(y).dtype == np.float32
    assert "reference" in ok("verify", vgf, "--input", x)
