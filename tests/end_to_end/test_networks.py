"""Whole networks: PTQ and float, through the file, on all three executors."""

from __future__ import annotations

from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from networks import Audio, Classifier, MobileBlock, UNet, Upscaler

import tosaic

EXECUTORS = ("simulator", "reference", "vulkan")


def sqnr(exact: np.ndarray | torch.Tensor, found: np.ndarray | torch.Tensor) -> float:
    """Signal to quantization noise, in dB."""
    exact, found = (np.asarray(x, dtype=np.float64) for x in (exact, found))
    return float(10 * np.log10((exact**2).sum() / max(((exact - found) ** 2).sum(), 1e-300)))


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
        (UNet, "16a8w", "int32", 44),
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
    # what the fake-quantized model promises is what the artifact holds
    assert score >= sqnr(exact, torch.cat([quantized(s) for s in batch])) - 0.3


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
