"""Precision of inputs and outputs: parts of a larger model hand wide values on, and a cache keeps its scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Run
from torch import Tensor, nn

import tosaic
from tosaic.errors import InputError, QuantizeError


class Part(nn.Module):
    """A residual block whose stream goes on, with a cache of four rows beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, stream: Tensor, cache: Tensor, rows: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.inner(stream))
        cache = cache.index_copy(0, rows, y)
        return {"stream_out": stream + self.outer(y), "cache_out": cache, "mean": cache.mean(0)}


def sample(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 16, generator=generator), torch.rand(4, 24, generator=generator), torch.tensor([1, 3])


def compiled(**options: object) -> tuple[tosaic.Artifact, tosaic.Quantized]:
    torch.manual_seed(0)
    quantized = tosaic.quantize(Part().eval(), sample(0), [sample(i) for i in range(8)], bias_correction=False, **options)
    return tosaic.compile(quantized, strict=True), quantized


def test_wide_ports_and_caches(reference: Run) -> None:
    artifact, quantized = compiled(ports={"stream": "int32", "stream_out": "int32"})
    ports = {p.name: p for p in (*artifact.passport.inputs, *artifact.passport.outputs)}
    assert {n: p.dtype for n, p in ports.items()} == {
        **{"stream": "i32", "stream_out": "i32", "cache": "i8", "cache_out": "i8"},
        **{"rows": "i32", "mean": "i8"},
    }
    assert (ports["cache"].scale, ports["cache"].zero_point) == (ports["cache_out"].scale, ports["cache_out"].zero_point)
    inputs = sample(20)
    found = artifact.run(inputs, float_io=True)
    for name, real, fake in zip(quantized.output_names, found, quantized(*inputs).values(), strict=True):
        # 24 bits of the stream; its sum holds what int8 weights lost, which both sides have
        tolerance = 1.01 * ports[name].scale if ports[name].dtype == "i8" else 3e-3 * float(np.abs(real).max())
        np.testing.assert_allclose(real, fake.numpy(), atol=tolerance, rtol=0)
    stored = [np.arange(32, dtype=np.int32).reshape(2, 16) * 2**18, np.ones((4, 24), np.int8), np.array([0, 2], np.int32)]
    for a, b in zip(artifact.run(stored, float_io=False), reference(artifact.graph, stored), strict=True):
        np.testing.assert_array_equal(a, b)
    untouched = artifact.run(stored, float_io=False)[1][[1, 3]]
    np.testing.assert_array_equal(untouched, np.ones((2, 24)))  # rows of a cache that nobody wrote are the same bytes


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ({"steam": "int32"}, "no input or output 'steam'"),
        ({"stream": "int24"}, "unknown precision of port 'stream' 'int24'"),
        ({"stream_out": "int16"}, "output 'stream_out' cannot be int16"),
    ],
)
def test_unknown_ports(ports: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compiled(ports=ports)


def test_any_integer_at_a_wide_port_stays_within_the_specification(reference: Run) -> None:
    """The reference model stops at what the specification leaves undefined: here sums, and RESCALEs by more than 1."""

    class Mixed(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cumsum(x, -1) + y, torch.floor(x * 3) - 0.01 * y

    x, y = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    artifact = tosaic.compile(tosaic.quantize(Mixed(), (x, y), [(x, y)], ports={"x": "int32", "y": "int32"}), strict=True)
    ends = np.iinfo(np.int32)
    for row in ([ends.max] * 8, [ends.min] * 8, [ends.max, ends.min] * 4):
        stored = [np.array([row, row[::-1]], np.int32), np.array([row, row], np.int32)]
        for a, b in zip(artifact.run(stored, float_io=False), reference(artifact.graph, stored), strict=True):
            np.testing.assert_array_equal(a, b)


def test_ranges_of_another_program() -> None:
    """The same model for another number of rows has the same scales, and gives the same integers."""
    torch.manual_seed(0)
    model, options = Part().eval(), {"ports": {"stream": "int32"}, "bias_correction": False}
    full = tosaic.quantize(model, sample(0), [sample(i) for i in range(8)], **options)
    one = tosaic.quantize(model, (sample(0)[0][:1], sample(0)[1], torch.tensor([1])), full, **options)
    assert one.calibration == full.calibration
    whole, single = tosaic.compile(full), tosaic.compile(one)
    assert [(p.scale, p.zero_point) for p in whole.passport.outputs] == [(p.scale, p.zero_point) for p in single.passport.outputs]
    stream, cache, rows = sample(30)
    expected = whole.run((stream, cache, rows), float_io=True)
    np.testing.assert_array_equal(single.run((stream[:1], cache, rows[:1]), float_io=True)[0], expected[0][:1])


def test_ranges_that_another_program_does_not_have() -> None:
    narrow = tosaic.quantize(Part().eval(), sample(0), [sample(0)], bias_correction=False)
    with pytest.raises(QuantizeError, match="the program to take ranges from has none of 'stream'"):
        tosaic.quantize(Part().eval(), sample(0), narrow, ports={"stream": "int32"})
    corrected = tosaic.quantize(Part().eval(), sample(0), [sample(0), sample(1)])
    with pytest.raises(InputError, match="has corrected biases"):
        tosaic.quantize(Part().eval(), sample(0), corrected)
