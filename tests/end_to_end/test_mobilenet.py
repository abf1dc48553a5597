"""MobileNetV2 with its ImageNet weights, on photographs: the lowering loses nothing that fake quantization kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import sqnr

import tosaic
from tosaic.zoo import imagenet_images, mobilenet_v2

CALIBRATION, UNSEEN = range(0, 10), range(10, 20)


@pytest.mark.parametrize(("scheme", "bound"), [("8a8w", 19.5), ("16a8w", 27.0)])
def test_artifact_keeps_the_accuracy_of_fake_quantization(scheme: str, bound: float, tmp_path: Path) -> None:
    torch.set_num_threads(1)  # the float convolutions of fake quantization round differently with more
    model = mobilenet_v2()
    images, labels = imagenet_images()
    one = images[:1]
    quantized = tosaic.quantize(model, (one,), [(images[i : i + 1],) for i in CALIBRATION], scheme)
    artifact = tosaic.load(tosaic.compile(quantized, strict=True).save(tmp_path / "mobilenet.vgf"))
    batch = images.split(1)
    with torch.no_grad():
        exact = torch.cat([model(x) for x in batch]).numpy()
    fake = torch.cat([quantized(x) for x in batch]).numpy()
    found = np.concatenate([artifact.run(x, float_io=True)[0] for x in batch])
    assert sqnr(exact[UNSEEN], found[UNSEEN]) >= bound
    # roundings of ties decorrelate the two over 50 layers, so one image alone differs by up to 1 dB either way
    assert sqnr(exact, found) >= sqnr(exact, fake) - 0.3
    assert (found.argmax(1) == exact.argmax(1)).mean() >= 0.9
    assert (found.argmax(1) == np.array(labels)).sum() >= 17
    if scheme == "8a8w":  # int16 takes the reference model a minute
        np.testing.assert_array_equal(artifact.run(one, float_io=True)[0], artifact.run(one, on="reference", float_io=True)[0])
