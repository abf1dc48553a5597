"""`verify --against`: a constant that was changed and a layer that was altered are found, and named with their place."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tosaic
from tosaic.artifact import Artifact
from tosaic.cli.main import app
from tosaic.comparison import compare_artifacts
from tosaic.errors import InputError
from tosaic.layers import compare_layers
from tosaic.tosa.graph import Graph, Node, Value

HERE = Path(__file__).parent
SHAPE = (1, 8, 12, 12)


class Net(nn.Module):
    """Layers of many kinds, two branches, and a maximum, which hides small errors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 6)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(image))
        x = x + torch.sigmoid(self.second(x)) * self.third(x)
        return self.head(self.norm(x.amax((2, 3))))


def net() -> tuple[nn.Module, torch.Tensor]:
    return Net().eval(), torch.zeros(SHAPE)


def altered() -> nn.Module:
    """Without example inputs: their shapes are those of the artifact."""
    model = Net().eval()
    with torch.no_grad():
        model.third.weight[3] *= 1.1
    return model


def data(count: int = 4) -> torch.Tensor:
    return torch.rand(count, *SHAPE[1:], generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["8a8w", "nhwc"])
def artifact(request: pytest.FixtureRequest) -> Artifact:
    layout = "nhwc" if request.param == "nhwc" else "model"
    return tosaic.compile(tosaic.quantize(*net(), data().split(1)), io_layout=layout)


@pytest.fixture(scope="module")
def wide() -> Artifact:
    return tosaic.compile(tosaic.quantize(*net(), data().split(1), "16a8w"))


def samples() -> list[list[np.ndarray]]:
    return [[x.numpy()] for x in data().split(1)]


def test_each_layer_of_the_model_is_met(artifact: Artifact) -> None:
    found = compare_layers(artifact, *net(), samples())
    assert {layer.node for layer in found.layers} >= {"image", "relu", "sigmoid", "mul", "add", "amax", "layer_norm", "linear"}
    assert found.samples == 4
    for layer in found.layers:
        assert layer.own_sqnr >= layer.sqnr - 3 and layer.own_sqnr > 25, layer
    # what the output scores is what scoring says
    from tosaic.scoring import score

    [output] = score(artifact, net()[0], torch.zeros(SHAPE), data().split(1)).values()
    assert math.isclose(next(x for x in found.layers if x.value == "output").sqnr, output, abs_tol=0.01)


def test_sums_stand_apart_from_what_is_rounded_of_them(artifact: Artifact, wide: Artifact) -> None:
    for which in (artifact, wide):
        layers = compare_layers(which, *net(), samples()).layers
        for node in ("convolution", "convolution_1", "convolution_2", "linear"):
            first, *others = [layer for layer in layers if layer.node == node]
            # weights of 8 bits are all that the sums err by; the first has none but those of an exact input
            assert first.dtype in ("i32", "i48") and 40 < first.own_sqnr < 70, first
            assert all(layer.own_sqnr > 40 for layer in others)
            assert len(others) == (node != "convolution")  # of which the model's next node is a limit


def test_an_altered_layer_is_the_one_that_is_named(artifact: Artifact) -> None:
    found = compare_layers(artifact, altered(), torch.zeros(SHAPE), samples())
    weakest = found.weakest()
    assert weakest is not None and "third" in weakest.location and "test_against.py" in weakest.location and weakest.own_sqnr < 30
    others = [layer for layer in found.layers if layer.node != weakest.node]
    assert min(layer.own_sqnr for layer in others) > weakest.own_sqnr + 5


def test_a_float_artifact_is_met_exactly() -> None:
    artifact = tosaic.compile(*net())
    found = compare_layers(artifact, *net(), samples())
    assert min(layer.own_sqnr for layer in found.layers) > 110 and found.worst()[0].sqnr > 110


def test_half_precision_is_captured_as_it_was_compiled() -> None:
    artifact = tosaic.compile(*net(), scheme="fp16")
    assert compare_layers(artifact, *net(), samples(), scheme="fp16").worst()[0].sqnr > 50


def test_layers_need_a_passport(artifact: Artifact) -> None:
    bare = Artifact(artifact.graph, artifact.passport.model_copy(update={"values": {}}))
    with pytest.raises(InputError, match="no passport with the scales of its values"):
        compare_layers(bare, *net(), samples())
    with pytest.raises(InputError, match="no value of the artifact is one of the model's"):
        compare_layers(artifact, nn.Tanh(), torch.zeros(SHAPE), samples())


# Two files


def changed(artifact: Artifact, operator: str, which: int) -> tuple[Artifact, Node]:
    """A copy in which a constant of the `which`-th operator of a kind is another in one element; and that operator."""
    node = [n for n in artifact.graph.nodes if operator == n.op.NAME][which]
    constant = next(v for v in node.inputs if v.is_const and v.type.size > 1)
    assert constant.data is not None
    numbers = constant.data.copy()
    numbers.flat[5] ^= 64
    new = Value(constant.name, constant.type, numbers)
    nodes = [
        dataclasses.replace(n, inputs=tuple(new if v is constant and n is node else v for v in n.inputs)) for n in artifact.graph.nodes
    ]
    graph = Graph(artifact.graph.name, artifact.graph.inputs, artifact.graph.outputs, nodes)
    return Artifact(graph, artifact.passport.model_copy()), node


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_changed_constant_is_found_where_it_is_read(artifact: Artifact, which: int) -> None:
    other, node = changed(artifact, "CONV2D", which)
    found = compare_artifacts(artifact, other, data())
    assert not found.equal and found.samples == 4
    assert found.first is not None and found.first.name == node.output.name
    assert ("first", "second", "third")[which] in found.first.location
    assert compare_artifacts(artifact, Artifact(artifact.graph, artifact.passport)).first is None


def test_two_schemes_are_compared_by_their_scales(artifact: Artifact, wide: Artifact) -> None:
    found = compare_artifacts(artifact, wide, data())
    assert all(pair.sqnr is not None and pair.sqnr > 25 for pair in found.values if pair.signal)
    assert found.outputs[0].sqnr is not None and found.outputs[0].sqnr > 25


def test_other_interfaces_are_refused(artifact: Artifact) -> None:
    other = tosaic.compile(nn.ReLU(), torch.zeros(1, 3))
    with pytest.raises(InputError, match="the artifacts have other inputs"):
        compare_artifacts(artifact, other)


# The command line


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    artifact = tosaic.compile(tosaic.quantize(*net(), data().split(1)))
    artifact.save(folder / "net.vgf")
    changed(artifact, "CONV2D", 1)[0].save(folder / "other.vgf")
    np.save(folder / "x.npy", data().numpy())
    return folder / "net.vgf"


def cli(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_the_command_against_a_model(file: Path) -> None:
    result = cli("verify", file, "--against", f"{__file__}:altered", "--input", file.with_name("x.npy"))
    assert result.exit_code == 0
    last = result.stdout.splitlines()
    assert "on 4 samples" in last[0] and "worst first" in last[0]
    [own] = [line for line in last if line.startswith("the largest error of its own")]
    assert "third" in own and "test_against.py" in own
    verified = json.loads(file.with_name("net.json").read_text())["verified"]["against"]
    assert verified["model"].endswith("altered") and verified["sqnr_db"]["output"] > 10 and "third" in verified["weakest"]["location"]
    assert "random inputs" in cli("verify", file, "--against", f"{__file__}:net").stdout


def test_the_command_against_a_file(file: Path) -> None:
    result = cli("verify", file, "--against", file.with_name("other.vgf"), "--input", file.with_name("x.npy"))
    assert result.exit_code == 1
    found = result.stdout.partition("the first that differs:")[2]
    assert "convolution_1" in found and "second" in found and "at [" in found
    result = cli("verify", file, "--against", file)
    assert result.exit_code == 0 and "equal in all 6 values" in result.stdout and "0 differ" in result.stdout
    assert json.loads(file.with_name("net.json").read_text())["verified"]["against"]["outputs"] == "equal"


def test_the_command_against_nothing_known(file: Path) -> None:
    for text, message in (
        ("net", "--against 'net' is not of a known form"),
        ("nowhere.py:net", "--against: no such file: nowhere.py"),
        ("none.vgf", "none.vgf"),
    ):
        result = cli("verify", file, "--against", text)
        assert result.exit_code == 2 and message in result.stderr
