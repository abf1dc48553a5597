"""Quantization-aware training: what trains is what compiles."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from networks import Classifier, UNet, Upscaler
from torch import nn

import tosaic


def train(session: tosaic.QatSession, shape: tuple[int, ...], steps: int = 12) -> list[float]:
    """A few steps towards a fixed target; returns the losses."""
    optimizer = torch.optim.Adam(session.model.parameters(), 2e-3)
    x = torch.randn(shape)
    session.model.eval()
    with torch.no_grad():
        target = session.model(x) * 0.5
    session.model.train()
    losses = []
    for _ in range(steps):
        loss = (session.model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained_and_found(kind: type, scheme: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Eval output of a trained model, output of its artifact (equal on the reference model), and the output scale."""
    model, x = networks.make(kind)
    session = tosaic.prepare_qat(model, (x,), scheme)
    session.calibrate(networks.samples(kind))
    losses = train(session, networks.SHAPES[kind])
    assert losses[-1] < losses[0]
    session.model.eval()
    with torch.no_grad():
        trained = session.model(x).numpy()
    artifact = tosaic.compile(session.finish(), strict=True)
    found = artifact.run(x, float_io=True)[0]
    np.testing.assert_array_equal(found, artifact.run(x, on="reference", float_io=True)[0])
    return trained, found, artifact.passport.outputs[0].scale


@pytest.mark.parametrize(("scheme", "apart", "equal"), [("8a8w", 1, 0.99), ("16a8w", 2, 0.75)])
def test_upscaler_eval_output_is_the_artifacts(scheme: str, apart: int, equal: float) -> None:
    """At most 1 LSB of the output scale apart (which is a float32: hence the 1.001), and rarely that.

    TOSA requantizes the 48-bit accumulators of int16 inputs by 16-bit multipliers, whose relative error of 2^-15 is a
    second LSB at full scale.
    """
    trained, found, scale = trained_and_found(Upscaler, scheme)
    steps = np.abs(found - trained) / scale
    assert steps.max() <= apart * 1.001
    assert (steps < 0.01).mean() >= equal


@pytest.mark.parametrize("kind", [Classifier, UNet])
def test_networks_keep_what_they_learned(kind: type) -> None:
    """Deep networks carry roundings of ties on, so the bound is a ratio of energies: 35 dB."""
    trained, found, _ = trained_and_found(kind, "8a8w")
    assert networks.sqnr(trained, found) > 35


def test_bias_free_convolutions_compile_whole() -> None:
    """conv(bias=False)-BN-ReLU, conv-BN-average pool and residuals: nothing stays float, nothing stays unfolded."""
    model, x = networks.make(Classifier)
    session = tosaic.prepare_qat(model, (x,))
    train(session, networks.SHAPES[Classifier], steps=2)
    artifact = tosaic.compile(session.finish(), spec="TOSA-1.0+INT", strict=True)
    assert artifact.passport.operators["CONV2D"] == 7  # six convolutions and the linear
    assert {row.aten for row in artifact.passport.ledger} & {"aten.batch_norm.default", "aten.dropout.default"} == set()


def test_frozen_observers_keep_their_scales() -> None:
    model, x = networks.make(Upscaler)
    session = tosaic.prepare_qat(model, (x,))
    session.calibrate(networks.samples(Upscaler))
    session.freeze_observers()
    observers = {n: m for n, m in session.model.named_modules() if type(m).__name__ == "Observer" and not m.memoryless}
    before = {n: (m.low.clone(), m.high.clone()) for n, m in observers.items()}
    session.model.train()
    session.model(x * 100)
    assert all(torch.equal(m.low, before[n][0]) and torch.equal(m.high, before[n][1]) for n, m in observers.items())


def test_eval_mode_does_not_observe() -> None:
    model, x = networks.make(Upscaler)
    session = tosaic.prepare_qat(model, (x,))
    session.calibrate(networks.samples(Upscaler))
    session.model.eval()
    with torch.no_grad():
        first = session.model(x)
        session.model(x * 100)
        assert torch.equal(session.model(x), first)


def test_train_mode_uses_batch_statistics_and_dropout() -> None:
    model, x = networks.make(Classifier)
    session = tosaic.prepare_qat(model, (x,))
    session.calibrate(networks.samples(Classifier))
    session.model.train()
    fold = next(m for m in session.model.modules() if hasattr(m, "running_mean"))
    mean = fold.running_mean.clone()
    a, b = session.model(x + 3), session.model(x + 3)
    assert not torch.equal(a, b)  # dropout
    assert not torch.equal(fold.running_mean, mean)
    session.freeze_batch_norm()
    mean = fold.running_mean.clone()
    session.model(x - 3)
    assert torch.equal(fold.running_mean, mean)


def test_the_users_model_is_left_alone() -> None:
    model, x = networks.make(Classifier)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    session = tosaic.prepare_qat(model, (x,))
    train(session, networks.SHAPES[Classifier], steps=2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_simulated_folding_equals_the_float_model_in_eval() -> None:
    """With fake quantization off, the prepared model is the float model."""
    model, x = networks.make(Classifier)
    session = tosaic.prepare_qat(model, (x,))
    session.calibrate(networks.samples(Classifier))
    for module in session.model.modules():
        if hasattr(module, "fake_quant_enabled"):
            module.fake_quant_enabled[0] = 0
    session.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(session.model(x), model(x), rtol=1e-4, atol=1e-4)


def test_untrained_session_is_refused() -> None:
    model, x = networks.make(Upscaler)
    session = tosaic.prepare_qat(model, (x,))
    with pytest.raises(tosaic.TosaicError, match="never calibrated"):
        session.finish()


def test_diverged_weights_are_refused() -> None:
    model, x = networks.make(Upscaler)
    session = tosaic.prepare_qat(model, (x,))
    session.calibrate(networks.samples(Upscaler))
    parameter = next(p for p in session.model.parameters() if isinstance(p, nn.Parameter))
    with torch.no_grad():
        parameter.fill_(float("nan"))
    with pytest.raises(tosaic.TosaicError, match="not finite after training"):
        session.finish()


def test_gammas_of_zero_and_momentum() -> None:
    """Residual branches start at zero; the running statistics follow the user's momentum."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=0.5))
    model[1].weight.data[:2] = 0.0
    x = torch.randn(4, 3, 6, 6)
    session = tosaic.prepare_qat(model, x[:1])
    y = session.model(x)
    y.square().mean().backward()
    [gamma] = [p for n, p in session.model.named_parameters() if n == "fold_0.weight"]
    assert torch.isfinite(y).all() and torch.isfinite(gamma.grad).all()
    model.train()
    model(x)
    found = session.model.get_submodule("fold_0").running_var
    torch.testing.assert_close(found, model[1].running_var, rtol=0.05, atol=0)
    session.finish()
