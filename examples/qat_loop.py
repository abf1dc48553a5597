"""Quantization-aware training in a loop of your own: prepare, train the session's model, finish, compile."""

import sys

import classifier
import torch
import torch.nn.functional as F

import tosaic

model, example = classifier.model()
session = tosaic.prepare_qat(model, example, scheme="8a8w")
session.calibrate(classifier.calibration())  # start from the scales of calibration rather than from those of one batch

images, labels = classifier.digits(512, seed=2)
optimizer = torch.optim.Adam(session.model.parameters(), 3e-4)
for step, (x, y) in enumerate(zip(images.split(32), labels.split(32), strict=True)):
    if step == 12:  # let the weights settle on fixed scales
        session.freeze_observers()
        session.freeze_batch_norm()
    optimizer.zero_grad()
    F.cross_entropy(session.model(x), y).backward()
    optimizer.step()

artifact = tosaic.compile(session.finish())
path = artifact.save(sys.argv[1] if len(sys.argv) > 1 else "qat.vgf")
print(f"float {classifier.accuracy(model):.1%}, {path} {classifier.accuracy(lambda x: artifact.run(x, float_io=True)[0]):.1%}")
