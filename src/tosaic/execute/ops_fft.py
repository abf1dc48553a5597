"""Fourier transforms (specification sections 2.2.6 and 2.2.10), computed in f64 and rounded once."""

from __future__ import annotations

import numpy as np

from tosaic.execute.handlers import Kernel, handles
from tosaic.tosa import ops
from tosaic.tosa.graph import Node

Parts = tuple[np.ndarray, np.ndarray]


@handles(ops.Fft2d)
def fft(node: Node) -> Kernel:
    """The inverse is not divided by the size."""

    def kernel(real: np.ndarray, imaginary: np.ndarray) -> Parts:
        x = real.astype(np.complex128)
        x.imag = imaginary
        return _parts(np.fft.ifft2(x, norm="forward") if node.op.inverse else np.fft.fft2(x))

    return kernel


@handles(ops.RFft2d)
def rfft(node: Node) -> Kernel:
    _, height, width = node.inputs[0].shape

    def kernel(x: np.ndarray) -> Parts:
        spectrum = np.fft.rfft2(x.astype(np.float64))
        # no sine is summed where neither axis has one: these are exactly 0
        spectrum.imag[:, :: max(1, height // 2), :: max(1, width // 2)] = 0
        return _parts(spectrum)

    return kernel


def _parts(spectrum: np.ndarray) -> Parts:
    return spectrum.real.astype(np.float32), spectrum.imag.astype(np.float32)
