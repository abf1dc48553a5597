"""Linear layers of 16-bit inputs in the base profile: two int8 digits hold what one int16 would."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Run
from networks import sqnr
from torch import Tensor, nn

import tosaic
from tosaic.artifact import Artifact
from tosaic.digits import LEAST, MOST
from tosaic.errors import InputError
from tosaic.tosa import ops

TOKENS, FEATURES = 12, 48
WIDE = {"x": "int32", "output": "int32"}


class Block(nn.Module):
    """The feed-forward block of a language model."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(FEATURES, 64, bias=bias), nn.Linear(FEATURES, 64, bias=bias)
        self.down = nn.Linear(64, FEATURES, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def model(bias: bool = True) -> Block:
    torch.manual_seed(0)
    return Block(bias).eval()


def sample(seed: int) -> Tensor:
    """One token is 60 times as large as the others, in one channel; one is zero."""
    x = torch.randn(1, TOKENS, FEATURES, generator=torch.Generator().manual_seed(seed))
    x[:, 2, 5] = 60
    x[:, 3] = 0
    return x


@functools.cache
def compiled(scheme: str, bias: bool = True, down: str = "", ports: bool = True, scope: str = "full") -> tuple[Artifact, tosaic.Quantized]:
    options = {"overrides": {"down": down} if down else {}, "ports": WIDE if ports else {}, "scope": scope}
    quantized = tosaic.quantize(model(bias), sample(0), [sample(i) for i in range(8)], scheme, bias_correction=False, **options)
    return tosaic.compile(quantized), quantized


def of_ordinary_rows(scheme: str, **options: object) -> float:
    """SQNR of the artifact's rows that are no outliers against float."""
    x, rows = sample(20), [i for i in range(TOKENS) if i not in (2, 3)]
    with torch.no_grad():
        exact = model(bool(options.get("bias", True)))(x).numpy()
    return sqnr(exact[:, rows], compiled(scheme, **options)[0].run(x, float_io=True)[0][:, rows])


@pytest.mark.parametrize("bias", [True, False])
def test_an_outlier_leaves_the_other_rows_their_bits(bias: bool) -> None:
    """What int16 inputs give, where 8 bits hold next to nothing of them."""
    eight, sixteen, digits = (of_ordinary_rows(scheme, bias=bias) for scheme in ("8a8w", "16a8w", "16a8w-digits"))
    assert eight < 12
    assert digits > 42
    assert abs(digits - sixteen) < 0.2


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, 80),
        ({"bias": False}, 80),
        ({"scheme": "8a8w", "down": "16a8w-digits"}, 75),
        ({"scope": "linear"}, 120),
        ({"scheme": "8a8w", "down": "16a8w-digits", "scope": "linear"}, 120),
    ],
    ids=str,
)
def test_artifact_is_what_fake_quantization_says(options: dict[str, object], least: float) -> None:
    artifact, quantized = compiled(**{"scheme": "16a8w-digits", "ports": options.get("scope") != "linear", **options})
    assert artifact.passport.spec == ("TOSA-1.0+INT+FP" if options.get("scope") == "linear" else "TOSA-1.0+INT")
    for x in (sample(20), 8 * sample(22)):  # within what was calibrated, and far beyond
        found, fake = artifact.run(x, float_io=True)[0], np.asarray(quantized(x))
        assert sqnr(fake, found.reshape(fake.shape)) > least


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"down": "16a8w-digits", "scheme": "8a8w"}, {"ports": False}], ids=str)
def test_reference_model_agrees(options: dict[str, object], reference: Run) -> None:
    """Over any integers: random of all sizes, the limits of the type, zeros, one outlier."""
    artifact, _ = compiled(**{"scheme": "16a8w-digits", **options})
    dtype = artifact.graph.inputs[0].dtype.numpy
    assert np.dtype(dtype).itemsize == (4 if options.get("ports", True) else 2)
    limits, random = np.iinfo(dtype), np.random.default_rng(0)
    x = random.integers(limits.min, limits.max, (1, TOKENS, FEATURES), dtype, endpoint=True) >> random.integers(0, 8, (1, TOKENS, 1), dtype)
    x[0, 0], x[0, 1], x[0, 2] = limits.min, limits.max, 0
    x[0, 3], x[0, 4] = np.resize([limits.min, limits.max], FEATURES), 0
    x[0, 4, 7] = limits.max
    for stored in (x, np.zeros_like(x)):
        [expected] = reference(artifact.graph, [stored])
        np.testing.assert_array_equal(artifact.run([stored], float_io=False)[0], expected)


@pytest.mark.parametrize("port", ["int16", "int32"])
def test_every_number_of_two_digits(port: str) -> None:
    """A layer that hands on its input gives all 65,281 numbers back, and saturates beyond them."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data[:] = 1
    quantized = tosaic.quantize(
        layer,
        torch.zeros(2**16, 1),
        [torch.linspace(-MOST, MOST, 2**16)[:, None]],
        "16a8w-digits",
        observer="tight-minmax",
        bias_correction=False,
        ports={"input_1": "int32", "output": "int32"} if port == "int32" else {"output": "int32"},
    )
    artifact = tosaic.compile(quantized)
    [source], [result] = artifact.passport.inputs, artifact.passport.outputs
    stored = np.arange(-(2**15), 2**15)[:, None]
    if port == "int32":
        stored = np.rint(stored / source.scale).astype(np.int64)
    [found] = artifact.run([stored.astype(source.dtype.replace("i", "int"))], float_io=False)
    np.testing.assert_allclose(found * result.scale, np.clip(stored * source.scale, LEAST, MOST), atol=0.01, rtol=0)


def test_sums_beyond_30_bits_lose_less_than_a_step() -> None:
    """4096 terms of one sign: the products are shifted, and no data overflows."""
    layer = nn.Linear(4096, 3)
    torch.manual_seed(0)
    nn.init.uniform_(layer.weight, 0.5, 1)
    data = [torch.rand(4, 4096) for _ in range(2)]
    artifact = tosaic.compile(tosaic.quantize(layer, data[0], data, "16a8w-digits", bias_correction=False, ports={"output": "int32"}))
    [fold] = [n.op for n in artifact.graph.nodes if isinstance(n.op, ops.Mul)]
    assert fold.shift > 0
    with torch.no_grad():
        assert sqnr(layer(data[0]).numpy(), artifact.run(data[0], float_io=True)[0]) > 65


def test_digits_are_taken_once_and_weights_stored_once() -> None:
    artifact, _ = compiled("16a8w-digits", bias=False)
    count = artifact.passport.operators
    assert (count["CONCAT"], count["SUB"], count["CONV2D"], count["REDUCE_SUM"]) == (2, 2, 3, 3)  # of three layers of two inputs
    weights = [v for n in artifact.graph.nodes if isinstance(n.op, ops.Conv2d) for v in n.inputs[1:2]]
    assert sum(math.prod(v.shape) for v in weights) == 3 * 64 * FEATURES


def test_training() -> None:
    """The session trains through both digits, and the artifact is what it gives in eval mode."""
    for options in ({"scheme": "16a8w-digits"}, {"overrides": {"down": "16a8w-digits"}}):
        session = tosaic.prepare_qat(model(), sample(0), **options, ports=WIDE)
        session.calibrate([sample(i) for i in range(4)])
        optimizer = torch.optim.SGD(session.model.parameters(), 1e-4)
        session.model(sample(0)).square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in session.model.parameters())
        optimizer.step()
        session.model.eval()
        with torch.no_grad():
            trained = session.model(sample(20)).numpy()
        found = tosaic.compile(session.finish()).run(sample(20), float_io=True)[0]
        assert sqnr(trained, found) > 70


def test_what_is_no_linear_layer_is_8a8w() -> None:
    """As a scheme of the whole it leaves other operators 8 bits; as an override of nothing else it is refused."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear, self.weight = nn.Conv1d(4, 4, 1), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.linear(self.conv(x)), self.weight(x)[0])

    x = torch.randn(1, 4, 8)
    quantize = functools.partial(tosaic.quantize, Mixed(), x, [x], bias_correction=False)
    artifact = tosaic.compile(quantize("16a8w-digits"), strict=True)
    assert artifact.passport.operators["REDUCE_SUM"] == 2
    for pattern in ("conv", "convolution"):
        with pytest.raises(InputError, match=f"'{pattern}' names no linear layer with constant weights"):
            quantize("8a8w", overrides={pattern: "16a8w-digits"})
    assert tosaic.compile(quantize("8a8w", overrides={"linear": "16a8w-digits"})).passport.operators["REDUCE_SUM"] == 2
