"""What `verify` finds when something is broken on purpose: the first wrong operator must be the one that it names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tosaic
from tosaic import executors
from tosaic.artifact import Artifact
from tosaic.execute import vulkan
from tosaic.execute.worker import Worker
from tosaic.verification import random_inputs

HERE = Path(__file__).parent
Lie = Callable[..., None]


class Net(nn.Module):
    """Convolutions, a sum, a maximum over rows and a softmax: several kinds of operators, each at a place of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(image))
        x = x + self.second(x)
        return torch.softmax(x.amax(2), 2)


def data() -> list[torch.Tensor]:
    return [torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]


@pytest.fixture(scope="module")
def quantized() -> Artifact:
    return tosaic.compile(tosaic.quantize(Net().eval(), data()[0], data()))


@pytest.fixture(scope="module")
def in_float() -> Artifact:
    return tosaic.compile(Net().eval(), data()[0])


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, Path]]:
    """A process that lies, and the file that tells it what about."""
    told = tmp_path_factory.mktemp("liar") / "lie.json"
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    worker = Worker("lying_executors", "the liar", {"TOSAIC_LIE": str(told), "PYTHONPATH": path})
    yield worker, told
    worker.close()


@pytest.fixture
def lies(liar: tuple[Worker, Path], monkeypatch: pytest.MonkeyPatch) -> Lie:
    """Put the liar in the place of the executors' own processes."""
    worker, told = liar

    def lies(**lie: Any) -> None:
        told.write_text(json.dumps(lie))
        model = executors.Reference()
        model._worker = worker
        monkeypatch.setattr(executors, "_model", lambda: model)
        monkeypatch.setattr(vulkan, "_worker", lambda: worker)

    return lies


def test_all_agree(quantized: Artifact) -> None:
    found = quantized.verify()
    assert found.agrees and [c.verdict for c in found.checks] == ["equal"] * 3
    assert quantized.passport.verified == {"input": "random", "samples": 1, "reference": "equal", "vulkan": "equal"}


def test_samples_of_a_test_set_are_compared_one_by_one(quantized: Artifact) -> None:
    found = quantized.verify(torch.cat(data()), on=["reference"])
    assert found.agrees and found.inputs == "given" and len(found.results) == 4
    assert found.checks[1].outputs["output"].size == 4 * found.results[0][0].size


@pytest.mark.parametrize("executor", ["reference", "vulkan"])
@pytest.mark.parametrize("operator", ["CONV2D", "ADD", "REDUCE_MAX"])
def test_the_first_operator_that_an_executor_lies_about_is_named(executor: str, operator: str, quantized: Artifact, lies: Lie) -> None:
    artifact = Artifact(quantized.graph, quantized.passport)
    lies(operator=operator, by=100_000 if operator == "CONV2D" else 1 << 22)
    [_, check] = artifact.verify(on=[executor]).checks
    first = next(node for node in artifact.graph.nodes if operator == node.op.NAME)
    assert check.verdict == "differs" and check.first is not None and check.first.node is first and check.first.alone
    assert check.first.difference is not None and check.first.difference.count == 1
    [example] = check.first.difference.examples
    assert set(example.index) == {0} and abs(example.expected - example.found) == check.first.difference.largest
    assert artifact.passport.verified[f"{executor}_first"] == f"{operator} %{first.output.name}"
    assert "test_verify.py" in artifact.location(first)


def test_what_the_outputs_hide_is_found_operator_by_operator(quantized: Artifact, lies: Lie) -> None:
    artifact = Artifact(quantized.graph, quantized.passport)
    lies(operator="CONV2D", by=1)
    assert artifact.verify(on=["reference"]).checks[1].verdict == "equal"  # a RESCALE rounds it away
    [_, check] = artifact.verify(on=["reference"], each=True).checks
    assert check.verdict == "differs" and check.first is not None and check.first.node.op.NAME == "CONV2D"
    lies()
    assert artifact.verify(on=["reference"], each=True).agrees


def test_what_an_executor_cannot_show_is_named_with_what_reads_it(lies: Lie) -> None:
    """The reference model computes int48 accumulators, but neither gives nor takes them."""
    artifact = tosaic.compile(tosaic.quantize(Net().eval(), data()[0], data(), "16a8w"))
    assert artifact.verify(on=["reference"], each=True).agrees
    lies(operator="CONV2D", by=1 << 28)
    [_, check] = artifact.verify(on=["reference"]).checks
    first = next(node for node in artifact.graph.nodes if node.op.NAME == "CONV2D")
    assert check.first is not None and check.first.together == (first,) and check.first.operators.startswith("CONV2D+RESCALE")


def test_an_operator_that_an_executor_refuses_is_named(quantized: Artifact, lies: Lie) -> None:
    artifact = Artifact(quantized.graph, quantized.passport)
    lies(operator="REDUCE_MAX", refuses=True)
    [_, check] = artifact.verify(on=["reference"]).checks
    assert check.verdict == "failed" and "no REDUCE_MAX here" in check.detail
    assert check.first is not None and check.first.node.op.NAME == "REDUCE_MAX" and check.first.difference is None


def test_floats_are_compared_with_a_tolerance(in_float: Artifact, lies: Lie) -> None:
    artifact = Artifact(in_float.graph, in_float.passport)
    found = artifact.verify()
    assert found.agrees and "ULP" in artifact.passport.verified["tolerance"]
    assert {c.verdict for c in found.checks} <= {"equal", "within tolerance"}
    assert max(d.ulp for c in found.checks for d in c.outputs.values()) < 16
    lies(operator="EXP")
    artifact = Artifact(in_float.graph, in_float.passport)
    [_, check] = artifact.verify(on=["reference"]).checks
    assert check.verdict == "differs" and check.first is not None and check.first.node.op.NAME == "EXP"
    [_, check] = artifact.verify(on=["reference"], tolerance=1e7).checks
    assert check.verdict == "within tolerance"


def test_an_executor_that_is_wrong_only_about_the_whole(quantized: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no operator by itself is wrong, bisection names the first result that is wrong from the inputs on."""
    artifact = Artifact(quantized.graph, quantized.passport)
    wrong = artifact.graph.nodes[5].output
    prepare = executors.prepare

    def joining(on: str, graph: tosaic.tosa.graph.Graph, *others: object) -> executors.Run:
        run = prepare("simulator", graph)
        joined = on == "reference" and len(graph.outputs) == 1 and any(n.output is wrong for n in graph.nodes)
        return (lambda inputs: [x ^ 1 for x in run(inputs)]) if joined else run

    monkeypatch.setattr("tosaic.verification.prepare", joining)
    monkeypatch.setattr("tosaic.artifact.prepare", joining)
    [_, check] = artifact.verify(on=["reference"]).checks
    assert check.verdict == "differs" and check.first is not None
    assert check.first.node is artifact.graph.nodes[5] and not check.first.alone


def test_random_inputs_index_within_what_they_index() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return self.table(words)

    artifact = tosaic.compile(Lookup().eval(), torch.zeros(1, 200, dtype=torch.int64))
    words = random_inputs(artifact)["words"]
    assert set(words.ravel().tolist()) == set(range(7))
    assert artifact.verify(on=["reference"]).agrees


def test_where_vulkan_is_missing_it_says_so(quantized: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan, "available", lambda: "no driver is installed")
    found = quantized.verify(on=["vulkan"])
    assert found.agrees and found.checks[1].verdict == "not available" and "no driver" in found.checks[1].detail
    assert np.array_equal(found.results[0][0], quantized.run(random_inputs(quantized))[0])
