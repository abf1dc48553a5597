"""What `inspect` counts and writes: memory by liveness, pictures, compute shaders, Model Explorer."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vgfpy
from torch import nn
from typer.testing import CliRunner

import tosaic
from tosaic.cli.main import app
from tosaic.report.counts import count
from tosaic.report.memory import memory
from tosaic.report.picture import to_dot, to_svg
from tosaic.tosa import container, ops
from tosaic.tosa.graph import Builder, Graph
from tosaic.tosa.types import DType


def cli(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def chain() -> Graph:
    """x (1000) -> RESCALE a (4000) -> ADD a+a b (4000) -> RESCALE c (1000) -> REDUCE_SUM over c as i32... each number of bytes."""
    b = Builder()
    x = b.input("x", DType.INT8, (10, 100))
    to_wide = ops.Rescale(dtype=DType.INT32, multiplier=(1 << 30,), shift=(30,))
    a = b.emit(to_wide, x, name="a")
    y = b.emit(ops.Add(), a, a, name="y")
    z = b.emit(ops.ReduceSum(axis=1), y, name="z")
    return b.finish([z])


def test_memory_by_hand() -> None:
    graph = chain()
    plain = memory(graph)
    # a and y are alive together; then y and z
    assert (plain.peak, plain.peak_at) == (4000 + 4000, "y")
    assert plain.moved == (1000 + 4000) + (4000 + 4000) + (4000 + 40)
    fused = memory(graph, fused=True)
    # the ADD is computed with the RESCALE that it reads; the sum needs y whole
    assert (fused.peak, fused.peak_at) == (1000 + 4000, "y")
    assert fused.moved == 1000 + 4000 + 4000 + 40


def test_memory_of_branches() -> None:
    b = Builder()
    x = b.input("x", DType.INT32, (10,))
    one, other = b.emit(ops.Abs(), x), b.emit(ops.Clz(), x)
    total = b.emit(ops.Add(), one, other)
    graph = b.finish([total, one])
    assert memory(graph).peak == 120  # x, one and other; x is dead when the sum is made
    assert memory(graph).moved == 80 + 80 + 120
    # `one` is an output and stays; `other` is never stored, but x must live until the sum
    assert memory(graph, fused=True).peak == 120 and memory(graph, fused=True).moved == 80 + 40 + 80


def test_a_value_that_is_never_read_dies_at_once() -> None:
    b = Builder()
    x = b.input("x", DType.INT8, (100,))
    b.emit(ops.Abs(), b.emit(ops.Cast(DType.INT32), x))
    assert memory(b.finish([b.emit(ops.Identity(), x)])).peak == 100 + 800


def test_kinds() -> None:
    kinds = {k.name: (k.count, k.macs, k.written) for k in count(chain()).kinds}
    assert kinds == {"RESCALE": (1, 0, 4000), "ADD": (1, 0, 4000), "REDUCE_SUM": (1, 0, 40)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.conv(image))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "net.vgf"
    data = [torch.rand(1, 3, 8, 8) for _ in range(2)]
    tosaic.compile(tosaic.quantize(Net().eval(), data[0], data)).save(path)
    return path


def test_the_summary(file: Path) -> None:
    text = cli("inspect", file).stdout
    for expected in (
        "VK_FORMAT_R8_SINT, set 0 binding 0",
        "activations  at most ",
        "moved        about ",
        "1 RESCALE write 256 bytes",
        "CONV2D     1      6,912",
    ):
        assert expected in text, expected
    facts = json.loads(cli("inspect", file, "--json").stdout)
    assert facts["vulkan"][0] == {"kind": "input", "name": "image", "set": 0, "binding": 0, "format": "VK_FORMAT_R8_SINT"}
    assert facts["graph"]["fused"]["peak"] < facts["graph"]["memory"]["peak"]


def test_files_for_others(file: Path, tmp_path: Path) -> None:
    names = {"--dot": "g.dot", "--scenario": "run.json", "--header": "net.h"}
    result = cli("inspect", file, *(part for option, name in names.items() for part in (option, tmp_path / name)))
    assert result.exit_code == 0 and result.stdout.count("wrote ") == 3 and "input   image.npy   int8[1, 3, 8, 8]" in result.stdout
    assert (tmp_path / "g.dot").read_text() == to_dot(tosaic.load(file).graph)
    assert "dispatch_vgf" in (tmp_path / "run.json").read_text() and "net_quantize_image" in (tmp_path / "net.h").read_text()
    other = tosaic.load(file).save(tmp_path / "net.tosa")
    result = cli("inspect", other, "--header", tmp_path / "other.h")
    assert result.exit_code == 2 and "is no .vgf, and only that has bindings" in result.stderr and not (tmp_path / "other.h").exists()


def test_the_picture_has_every_operator_and_edge(file: Path) -> None:
    graph = tosaic.load(file).graph
    text = to_dot(graph)
    assert text.count("[label=") == 1 + len(graph.nodes) + sum(not v.is_const for n in graph.nodes for v in n.inputs) + 1
    assert "test_inspect.py" in text  # as a tooltip
    b = Builder('a "quoted" name\n')
    x = b.input("x\\", DType.INT8, (1,))
    assert to_dot(b.finish([x])).startswith('digraph "a \\"quoted\\" name\\n" {') and '"x\\\\\\ni8[1]"' in to_dot(b.graph)


def test_svg_goes_through_dot(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = cli("inspect", file, "--svg", tmp_path / "g.svg")
    assert result.exit_code == 2 and "dot, which is not installed\n  try: apt-get install graphviz" in result.stderr
    assert not (tmp_path / "g.svg").exists()
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\nread first\necho "<svg>$1 $first</svg>"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert to_svg(tosaic.load(file).graph) == b'<svg>-Tsvg digraph "net" {</svg>\n'
    program.write_text("#!/bin/sh\necho syntax error >&2\nexit 1\n")
    with pytest.raises(tosaic.TosaicError, match="dot failed: syntax error"):
        to_svg(tosaic.load(file).graph)


def test_model_explorer(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = cli("inspect", file, "--open")
    assert result.exit_code == 2
    assert "pip install ai-edge-model-explorer vgf-adapter-model-explorer" in result.stderr
    started: list[list[str]] = []
    monkeypatch.setattr("tosaic.cli.explorer.importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(subprocess, "run", lambda command, **_: started.append(command) or subprocess.CompletedProcess(command, 0))
    assert cli("inspect", file, "--open").exit_code == 0
    assert started[0][1:] == [str(file), "--extensions=vgf_adapter_model_explorer"] and started[0][0].endswith("model-explorer")


def test_compute_shaders_are_shown_and_not_run(file: Path, tmp_path: Path) -> None:
    shader = tmp_path / "shader.vgf"
    found = container.decode(file.read_bytes())
    found.modules.append(container.Module(vgfpy.ModuleType.Compute, "blur", "main", np.array([0x07230203, 0, 0, 0, 0], np.uint32)))
    output = found.segments[0].outputs
    found.segments.append(container.Segment("blur pass", len(found.modules) - 1, [(0, output)], output, output, [], [8, 8, 1], []))
    shader.write_bytes(container.encode(found))
    result = cli("inspect", shader)
    assert result.exit_code == 0
    assert "2 segments; compute shaders run on Vulkan only" in result.stdout
    [line] = [line for line in result.stdout.splitlines() if "blur pass" in line]
    assert "compute shader" in line and "8x8x1" in line and "VK_FORMAT_R8_SINT[1, 4, 8, 8]" in line
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 8), np.int8))
    result = cli("run", shader, "--input", tmp_path / "x.npy")
    assert result.exit_code == 2 and "segment 'blur pass' is a compute shader" in result.stderr
    assert "tosaic inspect lists the segments" in result.stderr
    result = cli("inspect", shader, "--text")
    assert result.exit_code == 2 and "segment 'blur pass' is a compute shader, so there is no graph to show" in result.stderr
