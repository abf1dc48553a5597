"""Whole networks: PTQ and float, through the file, on all three executors."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Audio, Classifier, MobileBlock, UNet, Upscaler, sqnr
from torch import Tensor, nn

import tosaic

EXECUTORS = ("simulator", "reference", "vulkan")


def through_file(artifact: tosaic.Artifact, folder: Path) -> tosaic.Artifact:
    return tosaic.load(artifact.save(folder / "model.vgf"))


# the bounds in dB are what each network keeps with random weights, less one
@pytest.mark.parametrize(
    ("kind", "scheme", "between", "bound"),
    [
        (Upscaler, "8a8w", "int32", 30),
        (Upscaler, "8a8w", "int8", 30),
        (Upscaler, "16a8w", "int32", 34),
        (Classifier, "8a8w", "int32", 28),
        (Classifier, "8a8w", "int8", 26),
        (Classifier, "16a8w", "int16", 38),
        (MobileBlock, "8a8w", "int32", 28),
        (MobileBlock, "16a8w", "int32", 36),
        (UNet, "8a8w", "int32", 36),
        (UNet, "8a8w", "int8", 36),
        (UNet, "16a8w", "int32", 44),
        (UNet, "16a8w", "int16", 44),
        (Audio, "8a8w", "int32", 26),
        (Audio, "16a8w", "int32", 38),
    ],
)
def test_ptq(kind: type, scheme: str, between: str, bound: float, tmp_path: Path) -> None:
    model, x = networks.make(kind)
    quantized = tosaic.quantize(model, (x,), [*networks.samples(kind), (x,)], scheme, between=between)
    artifact = through_file(tosaic.compile(quantized, strict=True), tmp_path)
    outputs = {on: artifact.run(x, on=on, float_io=True)[0] for on in EXECUTORS}
    for on in EXECUTORS:
        np.testing.assert_array_equal(outputs[on], outputs["simulator"], err_msg=on)
    batch = [x, *(s for (s,) in networks.samples(kind, 100))]
    with torch.no_grad():
        exact = torch.cat([model(s) for s in batch])
    score = sqnr(exact, np.concatenate([artifact.run(s, float_io=True)[0] for s in batch]))
    assert score >= bound
    # what the fake-quantized model promises is what the artifact holds, up to where a step of int16 more or less counts
    assert score >= min(sqnr(exact, torch.cat([quantized(s) for s in batch])) - 0.3, 80)


@pytest.mark.parametrize("kind", networks.SHAPES)
def test_float(kind: type, tmp_path: Path) -> None:
    model, x = networks.make(kind)
    artifact = through_file(tosaic.compile(model, (x,), spec="TOSA-1.0+FP"), tmp_path)
    with torch.no_grad():
        exact = model(x).numpy()
    for on in EXECUTORS:
        # float32 convolutions add up in different orders
        np.testing.assert_allclose(artifact.run(x, on=on)[0], exact, rtol=1e-4, atol=2e-5, err_msg=on)


@pytest.mark.parametrize(
    ("kind", "options", "floats"),
    [
        (MobileBlock, {"scope": "linear"}, {"convolution", "hardswish", "softmax"}),
        (UNet, {"overrides": {"out": "fp32"}}, {"convolution"}),
        (Classifier, {"overrides": {"blocks.0*": "16a8w", "head": "fp32"}}, {"linear"}),
    ],
)
def test_mixed(kind: type, options: dict, floats: set[str], tmp_path: Path) -> None:
    model, x = networks.make(kind)
    quantized = tosaic.quantize(model, (x,), [*networks.samples(kind), (x,)], **options)
    artifact = through_file(tosaic.compile(quantized), tmp_path)
    assert "FP" in artifact.passport.spec and "INT" in artifact.passport.spec
    stays = {row.aten.split(".")[1].lstrip("_") for row in artifact.passport.ledger if row.precision == "fp32"}
    assert floats <= stays
    macs = {row.precision for row in artifact.passport.ledger if "convolution" in row.aten or "linear" in row.aten}
    assert "fp32" in macs and len(macs) > 1
    outputs = {on: artifact.run(x, on=on, float_io=True)[0] for on in EXECUTORS}
    want = quantized(x).numpy()
    for on in EXECUTORS:
        # a float that differs in its last bit can fall to the other side of a rounding: a step of 1/255 of the range
        np.testing.assert_allclose(outputs[on], want, atol=float(np.ptp(want)) / 50, err_msg=on)
        assert sqnr(want, outputs[on]) > 35


def test_channels_last_interface(tmp_path: Path) -> None:
    model, x = networks.make(Upscaler)
    quantized = tosaic.quantize(model, (x,), [*networks.samples(Upscaler), (x,)])
    plain, last = (tosaic.compile(quantized, io_layout=layout) for layout in ("model", "nhwc"))
    last = through_file(last, tmp_path)
    assert last.passport.inputs[0].shape == [1, 12, 10, 3] and last.passport.inputs[0].layout == "nhwc"
    assert "TRANSPOSE" not in last.passport.operators
    np.testing.assert_array_equal(plain.run(x, float_io=True)[0], last.run(x, float_io=True)[0])


def test_dump_writes_every_stage(tmp_path: Path) -> None:
    model, x = networks.make(Audio)
    quantized = tosaic.quantize(model, (x,), networks.samples(Audio), dump=tmp_path)
    tosaic.compile(quantized, dump=tmp_path).save(tmp_path / "a.vgf")
    assert [p.name for p in sorted(tmp_path.glob("0*.txt"))] == ["00_capture.txt", "01_quantized.txt", "02_lowered.txt", "03_optimized.txt"]


def test_strict_refuses_floats() -> None:
    model, x = networks.make(UNet)
    quantized = tosaic.quantize(model, (x,), networks.samples(UNet), overrides={"out": "fp32"})
    with pytest.raises(tosaic.TosaicError, match=r"convolution.*override"):
        tosaic.compile(quantized, strict=True)


class TinyGamma(nn.Module):
    """A channel whose batch norm folds to weights near zero beside a bias that is not."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.conv, self.norm, self.up = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2, groups=2)
        self.head = nn.BatchNorm2d(4)
        for norm in (self.norm, self.head):
            norm.weight.data[1], norm.bias.data[:] = gamma, torch.tensor([0.5, 0.7, -0.2, 1.5])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.norm(self.conv(x))))


class Cancels(nn.Module):
    """A sum that is much smaller than what is added, and read by arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        large = y * 1000 + x * 0.001
        return self.last(((large + y) - large) + ((y + 1000) - 1000) + y)


@pytest.mark.parametrize("scheme", ["8a8w", "16a8w"])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        *((functools.partial(TinyGamma, gamma), (1, 3, 8, 8)) for gamma in (1e-6, 1e-12, 0.0)),
        (Cancels, (1, 3, 8, 8)),
        # sums of windows of 34 x 34 values near the end of their range
        (lambda: nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(3)), (1, 3, 100, 100)),
    ],
)
def test_integers_hold_what_they_must(model: Callable[[], nn.Module], shape: tuple[int, ...], scheme: str) -> None:
    """The artifact is as near to the float model as its fake quantization is: nothing saturates or overflows inside."""
    torch.manual_seed(0)
    module = model().eval()
    batch = [(1 - 0.1 * torch.rand(shape) * (1 if shape[-1] > 8 else 20),) for _ in range(4)]
    quantized = tosaic.quantize(module, batch[0], batch, scheme)
    artifact = tosaic.compile(quantized)
    with torch.no_grad():
        exact = torch.cat([module(*s) for s in batch])
    found = np.concatenate([artifact.run(s, float_io=True)[0] for s in batch])
    assert sqnr(exact, found) >= sqnr(exact, torch.cat([quantized(*s) for s in batch])) - 0.3
    np.testing.assert_array_equal(artifact.run(batch[0])[0], artifact.run(batch[0], on="reference")[0])


def test_percentile_ranges_hold_large_values() -> None:
    model, batch = nn.Conv2d(3, 4, 3).eval(), [torch.rand(1, 3, 8, 8) * 60000 for _ in range(4)]
    quantized = tosaic.quantize(model, batch[0], batch, observer="percentile", bias_correction=False)
    with torch.no_grad():
        assert sqnr(model(batch[0]), quantized(batch[0])) > 30


def test_int16_between_needs_no_extension() -> None:
    """CLAMP on int16 is the extension's: limits of values between are set in int32."""
    model, x = networks.make(Classifier)
    quantized = tosaic.quantize(model, (x,), [*networks.samples(Classifier), (x,)], between="int16")
    artifact = tosaic.compile(quantized, spec="TOSA-1.0+INT")
    found = artifact.run(x, float_io=True)[0]
    np.testing.assert_array_equal(found, artifact.run(x, on="reference", float_io=True)[0])
    with torch.no_grad():
        assert sqnr(model(x), found) > 26


class _Moved(nn.Module):
    """Movement that lowers to CONCAT, and a larger image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * 1.5
        moved = torch.cat([torch.roll(y, (1, 2), (2, 3)), F.pad(y[..., 1:-1, 1:-1], (1, 1, 1, 1), mode="reflect")], 1)
        return self.last(F.interpolate(moved, scale_factor=2) * 0.8)


def test_int16_between_moves_without_the_extension() -> None:
    """CONCAT and RESIZE of int16 are the extension's too."""
    torch.manual_seed(0)
    model, batch = _Moved().eval(), [torch.rand(1, 3, 6, 6) for _ in range(3)]
    artifact = tosaic.compile(tosaic.quantize(model, batch[0], batch, between="int16"), spec="TOSA-1.0+INT")
    np.testing.assert_array_equal(artifact.run(batch[0])[0], artifact.run(batch[0], on="reference")[0])
    with torch.no_grad():
        assert sqnr(model(batch[0]), artifact.run(batch[0], float_io=True)[0]) > 35


def test_channels_last_cubes() -> None:
    """Where a shape does not tell the layout, real values have the model's own, stored ones the file's."""
    model, batch = nn.Conv2d(4, 4, 3, padding=1).eval(), [torch.randn(1, 4, 4, 4) for _ in range(3)]
    quantized = tosaic.quantize(model, batch[0], batch)
    plain, last = (tosaic.compile(quantized, io_layout=layout) for layout in ("model", "nhwc"))
    np.testing.assert_array_equal(plain.run(batch[0])[0], last.run(batch[0])[0])
    port = plain.passport.inputs[0]
    stored = np.rint(batch[0].numpy() / port.scale + port.zero_point).clip(-128, 127).astype(np.int8)
    [expected], [found] = plain.run(stored), last.run(stored.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(expected, found.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("pattern", "remedy"), [("haed.*", "did you mean 'head'?"), ("x.y", "known are "), ("blocks", "'blocks.*' for what is inside")]
)
def test_an_override_that_names_nothing(pattern: str, remedy: str) -> None:
    model, x = networks.make(Classifier)
    with pytest.raises(tosaic.TosaicError, match=f"override '{re.escape(pattern)}' names no module") as error:
        tosaic.quantize(model, (x,), networks.samples(Classifier), overrides={pattern: "fp32"})
    assert remedy in str(error.value)


def test_an_artifact_runs_what_it_is_though_its_file_is_replaced(tmp_path: Path) -> None:
    x = torch.rand(1, 3, 8, 8)
    first, second = (tosaic.compile(nn.Conv2d(3, 3, 1).eval(), x, name=name) for name in ("first", "second"))
    first.save(tmp_path / "model.vgf")
    second.save(tmp_path / "model.vgf")
    np.testing.assert_allclose(first.run(x, on="vulkan")[0], first.run(x)[0], rtol=1e-4, atol=1e-5)
