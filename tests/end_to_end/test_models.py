"""Whole models: the artifact is as good as the fake-quantized model, all in integers, and small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo_models
from networks import sqnr

import tosaic

SCORED = 8  # of the samples that calibration has not seen

BASE, INT16 = "TOSA-1.0+INT", "TOSA-1.0+INT+int16"


# dB that each model keeps, less one; operators that it has, and a few more: half of ExecuTorch's for encoders with the int16 extension
@pytest.mark.parametrize(
    ("name", "scheme", "spec", "bound", "operators"),
    [
        ("resnet", "8a8w", BASE, 36.0, 70),
        ("resnet", "16a8w", INT16, 40.0, 80),
        ("unet", "8a8w", BASE, 34.5, 50),
        ("upscaler", "8a8w", BASE, 39.0, 30),
        ("upscaler", "16a8w", INT16, 63.0, 30),
        ("conv_lstm", "8a8w", BASE, 32.0, 120),
        ("keywords", "8a8w", BASE, 30.0, 1350),
        ("vit", "8a8w", BASE, 30.0, 400),
        ("vit", "16a8w", INT16, 36.4, 367),
        ("outlier_bert", "8a8w", BASE, 26.5, 290),
        ("outlier_bert", "8a8w", INT16, 26.5, 267),
        ("outlier_bert", "16a8w", INT16, 41.5, 272),
        ("llama", "8a8w", BASE, 33.5, 300),
        ("minilm", "8a8w", BASE, 15.0, 545),
        ("minilm", "8a8w", INT16, 15.0, 495),
        ("minilm", "16a8w", INT16, 29.4, 514),
    ],
)
def test_model(name: str, scheme: str, spec: str, bound: float, operators: int) -> None:
    torch.set_num_threads(1)
    case = zoo_models.CASES[name]
    model, samples = case.build(), case.samples()
    unseen = samples[zoo_models.CALIBRATION :][:SCORED]
    with torch.no_grad():
        exact = np.stack([model(*x).numpy() for x in unseen])
    quantized = tosaic.quantize(model, samples[0], samples[: zoo_models.CALIBRATION], scheme)
    artifact = tosaic.compile(quantized, spec=spec, strict=True)
    assert len(artifact.graph.ops) <= operators
    assert "FP" not in artifact.passport.spec
    fake = np.stack([np.asarray(quantized(*x)) for x in unseen])
    found = np.stack([artifact.run(x, float_io=True)[0] for x in unseen])
    assert sqnr(exact, found) >= bound
    assert sqnr(exact, found) >= sqnr(exact, fake) - 0.5
