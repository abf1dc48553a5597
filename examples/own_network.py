"""The Python API in ten lines: any module, calibration samples, a .vgf, and what that file computes."""

import sys

import torch
from torch import nn

import tosaic

model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1), nn.Sigmoid())
samples = [torch.rand(1, 3, 64, 64) for _ in range(16)]  # of your own data, in the shape to compile for

quantized = tosaic.quantize(model, samples[0], calibration=samples, scheme="8a8w")
artifact = tosaic.compile(quantized)
path = artifact.save(sys.argv[1] if len(sys.argv) > 1 else "own.vgf")

[output] = tosaic.load(path).run(samples[0], float_io=True)  # the file itself, bit for bit, on the simulator
error = (torch.as_tensor(output) - model(samples[0])).abs().max()
print(f"{path}: {artifact.passport.spec}, {len(artifact.graph.ops)} operators, largest error {error:.4f}")
