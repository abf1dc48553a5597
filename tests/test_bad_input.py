"""Models and data at the edge: each is a clear error, or a right result."""

from __future__ import annotations

import math
import re
import resource
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tosaic
from tosaic.errors import InputError, QuantizeError, SpecError, TosaicError, UnsupportedError
from tosaic.tosa.graph import Graph
from tosaic.tosa.ranges import check_ranges

Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]
NAN, INF = math.nan, math.inf
SPECS = {"8a8w": "TOSA-1.0+INT", "16a8w": "TOSA-1.0+INT+int16", "fp32": "TOSA-1.0+FP"}
SCHEMES = list(SPECS)


class Module(nn.Module):
    """A function of tensors and of buffers."""

    def __init__(self, function: Callable, **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs, *self.buffers())


def rows(*shape: int) -> Tensor:
    """Numbers in -2.1..3.3, both ends among them."""
    x = torch.linspace(-2.1, 3.3, math.prod(shape))
    return x[torch.randperm(x.numel(), generator=torch.Generator().manual_seed(1))].reshape(shape)


def build(model: nn.Module, inputs: tuple[Tensor, ...], scheme: str) -> tosaic.artifact.Artifact:
    if scheme == "fp32":
        return tosaic.compile(model, inputs)
    return tosaic.compile(tosaic.quantize(model, inputs, [inputs], scheme))


def linear(change: Callable[[nn.Linear], object], *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(8, 4, bias=bias)
    with torch.no_grad():
        change(layer)
    return layer.eval()


def batch_norm(**changes: float) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, eps=changes.pop("eps", 1e-5))
    for name, value in changes.items():
        getattr(norm, name).data[1] = value
    return nn.Sequential(nn.Conv2d(3, 3, 3), norm).eval()


X, PICTURE = rows(5, 8), rows(1, 3, 6, 6)

REFUSED: list[tuple[str, nn.Module, tuple[Tensor, ...], type[TosaicError], str]] = [
    ("NaN in a buffer", Module(torch.add, c=torch.tensor([1.0, NAN] * 4)), (X,), InputError, "'c' (8,) contains NaN"),
    ("infinite buffer", Module(torch.mul, c=torch.tensor([1.0, INF] * 4)), (X,), InputError, "'c' (8,) contains an infinite value"),
    ("NaN in a weight", linear(lambda m: m.weight[0, 0].fill_(NAN)), (X,), InputError, "'weight' (4, 8) contains NaN"),
    ("infinite weight", linear(lambda m: m.weight[0, 0].fill_(-INF)), (X,), InputError, "'weight' (4, 8) contains an infinite value"),
    ("NaN in a bias", linear(lambda m: m.bias[0].fill_(NAN)), (X,), InputError, "'bias' (4,) contains NaN"),
    ("NaN as an argument", Module(lambda x: x * NAN), (X,), UnsupportedError, "aten.mul.Tensor has NaN for an argument"),
    ("NaN as a limit", Module(lambda x: x.clamp(min=NAN)), (X,), UnsupportedError, "aten.clamp.default has NaN for an argument"),
    (
        "NaN as a choice",
        Module(lambda x: torch.where(x > 0, x, NAN)),
        (X,),
        UnsupportedError,
        "scalar_tensor.default has NaN for an argument",
    ),
    (
        "more than int32",
        Module(lambda x: x.long() + 2**40),
        (X,),
        UnsupportedError,
        "integers 1099511627776..1099511627776 are outside int32",
    ),
    ("no batch", nn.Linear(8, 4), (torch.zeros(0, 8),), UnsupportedError, "has shape [0, 8], and TOSA has no tensors without elements"),
    ("empty slice", Module(lambda x: x[:, :0]), (X,), UnsupportedError, "'slice_1' has shape [5, 0], and TOSA has"),
    ("empty constant", Module(lambda x: (x + 1, torch.zeros(2, 0))), (X,), UnsupportedError, "has shape [2, 0], and TOSA has"),
    ("empty part", Module(lambda x, y: torch.cat([x, y], 1)), (X, torch.zeros(5, 0)), UnsupportedError, "has shape [5, 0], and TOSA has"),
    (
        "batch norm by zero",
        batch_norm(eps=0.0, running_var=0.0),
        (PICTURE,),
        InputError,
        "batch norm '1.running_var' is not positive in channel 1 and eps is 0.0",
    ),
    ("random numbers", Module(lambda x: x + torch.randn(8)), (X,), UnsupportedError, "aten.randn.default draws random numbers"),
    ("random choice", Module(lambda x: F.gumbel_softmax(x)), (X,), UnsupportedError, "exponential.default draws random numbers"),
    ("no tensor", Module(lambda x: (x + 1, None)), (X,), UnsupportedError, "output 'output_1' is not a tensor but NoneType"),
]


@pytest.mark.parametrize("scheme", ["8a8w", "fp32"])
@pytest.mark.parametrize(("model", "inputs", "kind", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(model: nn.Module, inputs: tuple[Tensor, ...], kind: type[TosaicError], message: str, scheme: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        build(model.eval(), inputs, scheme)


@pytest.mark.parametrize(
    "model",
    [Module(lambda x: x + INF), Module(lambda x: x * 3e38), linear(lambda m: m.weight.mul_(1e30))],
    ids=["infinite argument", "product", "products of weights"],
)
def test_values_that_overflow_float32_in_calibration(model: nn.Module) -> None:
    inputs = (X * 1e20,)
    with pytest.raises(QuantizeError, match="is not finite during calibration"):
        build(model, inputs, "8a8w")


TOO_LARGE = {
    "view": lambda x: (x.expand(70000, 70000) + 1).sum(),
    "constant": lambda x: x + torch.zeros(70000, 70000).sum(),
    "range": lambda x: x + torch.arange(3 * 10**9)[0],
    "product": lambda x: (x.expand(70000, 1) @ x.expand(1, 70000)).mean(),
}


@pytest.mark.parametrize("function", TOO_LARGE.values(), ids=TOO_LARGE)
def test_tensors_beyond_the_level_are_refused_before_they_exist(function: Callable) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SpecError, match="bytes; level 8K allows less than 2\\^31") as error:
        tosaic.compile(Module(function).eval(), (torch.ones(1, 1),), spec="TOSA-1.0+FP")
    assert error.value.remedy == "use level none (+none) if the device allows it"
    assert "test_bad_input.py" in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


class Edges(nn.Module):
    """Pieces that do not see each other's values; each output is named after its piece."""

    def __init__(self) -> None:
        super().__init__()
        mask = torch.tensor([0.0, -INF, 0.0, 0.0, 0.0, -INF, 0.0, 0.0])
        self.pieces = nn.ModuleDict(
            {
                "mask": Module(lambda x, m: torch.softmax(x + m, -1), m=mask),
                "fill": Module(lambda x, m: torch.softmax(x.masked_fill(m, -INF), -1), m=mask < 0),
                "open_limit": Module(lambda x: x.clamp(-INF, 1.0)),
                "crossed_limits": Module(lambda x: x.clamp(2.0, -1.0) + x),
                "no_part": Module(lambda x, c: torch.cat([x, c], 1), c=torch.zeros(5, 0)),
                "tiny_weights": linear(lambda m: (m.weight.mul_(1e-30), m.bias.mul_(1e-30))),
                "tiny_weights_but_a_bias": linear(lambda m: m.weight.mul_(1e-30)),
                "tiny_factor": Module(lambda x: x * 1e-30),
                "tiny_term": Module(lambda x: x + (x + 1) * 1e-20),
                "large_weights": linear(lambda m: m.weight.mul_(1e25)),
                "large_factor": Module(lambda x: x * 1e25),
                "no_weights": linear(lambda m: m.weight.zero_()),
                "no_weights_at_all": linear(lambda m: m.weight.zero_(), bias=False),
                "no_channel": linear(lambda m: m.weight[1].zero_()),
                "large_biases": nn.Sequential(Module(lambda x: x * 1e-3), linear(lambda m: (m.weight[0].zero_(), m.bias.mul_(1e5)))),
                "never_used": nn.Sequential(Module(lambda x: x * 0), linear(lambda m: m.weight.mul_(10.0))),
                "one_weight": linear(lambda m: m.weight.zero_()[2, 3].fill_(1.0)),
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        # each piece at a scale of its own
        return {name: piece(x * (1 + 0.01 * i)) for i, (name, piece) in enumerate(self.pieces.items())}


# of the largest element; with weights, 8 bits of each channel of theirs
CLOSE = {"8a8w": 0.01, "16a8w": 0.005, "fp32": 1e-5}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_right_results(scheme: str, reference: Run) -> None:
    _compare(Edges().eval(), (X,), scheme, reference)


class Pictures(nn.Module):
    """The same for batch norms: without variance, without gamma, before and after a convolution."""

    def __init__(self) -> None:
        super().__init__()
        alone = batch_norm(running_var=0.0)[1]
        self.pieces = nn.ModuleDict(
            {
                "no_variance": batch_norm(running_var=0.0),
                "no_gamma": batch_norm(weight=0.0),
                "no_gamma_but_beta": batch_norm(weight=0.0, bias=2.0),
                "tiny_variance": batch_norm(running_var=1e-30),
                "large_variance": batch_norm(running_var=1e30),
                "alone": nn.Sequential(alone, nn.ReLU()),
                "no_channel": nn.Sequential(nn.Conv2d(3, 4, 3)),
                "never_used": nn.Sequential(Module(lambda x: x * 0), nn.Conv2d(3, 4, 3)),
            }
        )
        self.pieces["no_channel"][0].weight.data[2] = 0.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: piece(x) for name, piece in self.pieces.items()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_batch_norms(scheme: str, reference: Run) -> None:
    _compare(Pictures().eval(), (PICTURE,), scheme, reference)


def _compare(model: nn.Module, inputs: tuple[Tensor, ...], scheme: str, reference: Run) -> None:
    artifact = build(model, inputs, scheme)
    assert artifact.passport.spec == SPECS[scheme]
    assert not check_ranges(artifact.graph)
    with torch.no_grad():
        expected = model(*inputs)
    if not isinstance(expected, dict):
        expected = {f"{i}": y for i, y in enumerate(expected if isinstance(expected, tuple) else (expected,))}
    found = artifact.run(list(inputs), float_io=True)
    problems = []
    for (name, want), got in zip(expected.items(), found, strict=True):
        error = np.abs(got.astype(np.float64) - want.double().numpy()).max()
        if not error <= CLOSE[scheme] * want.double().abs().max():
            problems.append(f"{name}: off by {error}, the largest is {want.abs().max()}")
    assert not problems, "\n".join(problems)
    arrays = [
        artifact._stored(x.numpy(), p, v, True) for x, p, v in zip(inputs, artifact.passport.inputs, artifact.graph.inputs, strict=True)
    ]
    for ours, theirs in zip(artifact.run(arrays, float_io=False), reference(artifact.graph, arrays), strict=True):
        if ours.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        else:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("scale", [1e-30, 1e25], ids=str)
def test_scales_of_the_input(scheme: str, scale: float, reference: Run) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU()).eval()
    artifact, want = build(model, (X * scale,), scheme), model(X * scale).detach().double().numpy()
    got = artifact.run([X * scale], float_io=True)[0].astype(np.float64)
    assert np.abs(got - want).max() <= CLOSE[scheme] * np.abs(want).max()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_calibration_that_is_always_zero(scheme: str, reference: Run) -> None:
    model = Module(lambda x: torch.relu(x) + x * x)
    _compare(model, (torch.zeros(2, 3),), scheme, reference)


INTERFACES: dict[str, tuple[Callable, int]] = {
    "constant output": (lambda x: (x + 1, torch.ones(3) * 2.5), 1),
    "constant outputs only": (lambda x: (torch.ones(3) * 2.5, torch.arange(4)), 1),
    "input returned": (lambda x: (x, x * 2), 1),
    "input returned only": (lambda x: x, 1),
    "input returned twice": (lambda x: (x, x), 1),
    "unused input": (lambda x, y: x * 2, 2),
    "duplicate output": (lambda x: (lambda y: (y, y, y + 1))(F.relu(x)), 1),
    "scalar": (lambda x: x.sum() * 0.1, 1),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("function", "count"), INTERFACES.values(), ids=INTERFACES)
def test_interfaces(function: Callable, count: int, scheme: str, reference: Run) -> None:
    _compare(Module(function).eval(), (X, X + 1)[:count], scheme, reference)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scalar_inputs(scheme: str, reference: Run) -> None:
    _compare(Module(lambda x: x * 2 + 1).eval(), (torch.tensor(1.5),), scheme, reference)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_data_that_is_not_finite(bad: float) -> None:
    broken = X.clone()
    broken[0, 0] = bad
    with pytest.raises(InputError, match="calibration sample 0, input 0 contains NaN or infinite values"):
        tosaic.quantize(nn.Linear(8, 4).eval(), X, [broken])
    artifact = build(nn.Linear(8, 4).eval(), (X,), "8a8w")
    with pytest.raises(InputError, match="contains NaN or infinite values"):
        artifact.run([broken], float_io=True)
