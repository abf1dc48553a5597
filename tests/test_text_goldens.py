"""The text of small networks, compared with files: review of a change in lowering means reading a diff.

`python tests/test_text_goldens.py --regenerate` writes the files anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

import pytest
from golden_networks import Classifier, Residual, UNet, Upscaler, picture, reproducible
from ops.rows import ALL, Family
from ops.table import FAMILIES
from torch import nn

import tosaic
from tosaic.tosa.text import parse_graph, print_graph

FOLDER = Path(__file__).parent / "golden"
COMMAND = "# python tests/test_text_goldens.py --regenerate"
# file -> network, channels of its input, precision
GOLDENS: dict[str, tuple[type[nn.Module], int, str]] = {
    "classifier_8a8w": (Classifier, 3, "8a8w"),
    "residual_8a8w": (Residual, 4, "8a8w"),
    "upscaler_8a8w": (Upscaler, 3, "8a8w"),
    "upscaler_16a8w": (Upscaler, 3, "16a8w"),
    "unet_fp32": (UNet, 2, "fp32"),
}


def text(name: str) -> str:
    """The file's content: the command, then the graph without the places of its operators (they hold line numbers)."""
    network, channels, precision = GOLDENS[name]
    model, example = reproducible(network()), picture(channels, 8, 8)
    if precision == "fp32":
        artifact = tosaic.compile(model, example)
    else:
        artifact = tosaic.compile(tosaic.quantize(model, example, [example, picture(channels, 8, 8, 1.0)], precision))
    lines = [line.partition("  # ")[0] for line in str(artifact.graph).splitlines()]
    return "\n".join([COMMAND, *lines]) + "\n"


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str) -> None:
    assert text(name) == (FOLDER / f"{name}.txt").read_text(), f"if the change is meant: {COMMAND[2:]}"


def test_every_golden_file_is_tested() -> None:
    assert {p.stem for p in FOLDER.glob("*.txt")} == set(GOLDENS)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_round_trip(family: str) -> None:
    """Parsing what was printed gives the same graph, locations included."""
    for precision in ALL[::2]:
        model = Family([row for row in FAMILIES[family] if precision in row.precisions])
        if precision == "fp32":
            graph = tosaic.compile(model, model.inputs(0)).graph
        else:
            graph = tosaic.compile(tosaic.quantize(model, model.inputs(0), [model.inputs(0)], precision)).graph
        printed = print_graph(graph)
        parsed = parse_graph(printed, {v.name: v.data for v in graph.constants()})
        assert print_graph(parsed) == printed
        assert [n.op for n in parsed.nodes] == [n.op for n in graph.nodes]
        assert [n.location for n in parsed.nodes] == [n.location for n in graph.nodes]


if __name__ == "__main__":
    if sys.argv[1:] != ["--regenerate"]:
        sys.exit(__doc__)
    FOLDER.mkdir(exist_ok=True)
    for golden in GOLDENS:
        (FOLDER / f"{golden}.txt").write_text(text(golden))
