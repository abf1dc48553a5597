"""Whole models: the artifact is as good as the fake-quantized model, all in integers, and small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo_models
from networks import sqnr

import tosaic

SCORED = 8  # of the samples that calibration has not seen

# dB that the artifact may be below the fake-quantized model where 0.5 are not reached: what tables and products round adds up over the
# time steps of an unrolled recurrent network; ten logits are so few numbers that the rounding of ties in the layers before shows
FAR = {"keywords": 1.0, "resnet": 1.0}


# dB that each model keeps, less one; operators that it has, and a few more
@pytest.mark.parametrize(
    ("name", "scheme", "bound", "operators"),
    [
        ("resnet", "8a8w", 36.0, 70),
        ("resnet", "16a8w", 40.0, 80),
        ("unet", "8a8w", 34.5, 50),
        ("upscaler", "8a8w", 39.0, 30),
        ("upscaler", "16a8w", 63.0, 30),
        ("conv_lstm", "8a8w", 32.0, 130),
        ("keywords", "8a8w", 30.0, 1400),
        ("vit", "8a8w", 30.0, 480),
        ("outlier_bert", "8a8w", 26.5, 360),
        ("outlier_bert", "16a8w", 40.0, 370),
        ("llama", "8a8w", 22.0, 310),
        ("minilm", "8a8w", 15.0, 640),
    ],
)
def test_model(name: str, scheme: str, bound: float, operators: int) -> None:
    torch.set_num_threads(1)
    case = zoo_models.CASES[name]
    model, samples = case.build(), case.samples()
    unseen = samples[zoo_models.CALIBRATION :][:SCORED]
    with torch.no_grad():
        exact = np.stack([model(*x).numpy() for x in unseen])
    quantized = tosaic.quantize(model, samples[0], samples[: zoo_models.CALIBRATION], scheme)
    artifact = tosaic.compile(quantized, strict=True)
    assert len(artifact.graph.ops) <= operators
    assert "FP" not in artifact.passport.spec
    fake = np.stack([np.asarray(quantized(*x)) for x in unseen])
    found = np.stack([artifact.run(x, float_io=True)[0] for x in unseen])
    assert sqnr(exact, found) >= bound
    assert sqnr(exact, found) >= sqnr(exact, fake) - FAR.get(name, 0.5)
