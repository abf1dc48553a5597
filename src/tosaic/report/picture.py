"""A graph as a picture: the text of Graphviz's `dot`, and SVG where `dot` is installed."""

from __future__ import annotations

import shutil
import subprocess

from tosaic.errors import ExecuteError
from tosaic.tosa.graph import Graph

_COLOURS = {
    "#cfe3f7": "CONV2D CONV3D DEPTHWISE_CONV2D TRANSPOSE_CONV2D MATMUL FFT2D RFFT2D",
    "#e3f2d9": "AVG_POOL2D MAX_POOL2D REDUCE_SUM REDUCE_MAX REDUCE_MIN REDUCE_ALL REDUCE_ANY REDUCE_PRODUCT ARGMAX",
    "#fbe3c8": "RESCALE CAST TABLE",
    "#eeeeee": "RESHAPE TRANSPOSE CONCAT SLICE PAD TILE REVERSE GATHER SCATTER RESIZE IDENTITY",
}
_COLOUR_OF = {name: colour for colour, names in _COLOURS.items() for name in names.split()}
_SECONDS = 120  # dot's layout is slow on graphs of thousands of nodes


def to_dot(graph: Graph) -> str:
    """The graph in the language of Graphviz; tooltips have the place in the user's model. Constants are not drawn, nor what control flow
    runs, of which the operator has the names."""
    ids = {value: f"v{i}" for i, value in enumerate(graph.inputs)}
    lines = [
        f"digraph {_quoted(graph.name)} {{",
        '  node [shape=box, style="rounded,filled", fillcolor=white, fontname=Helvetica, fontsize=10];',
    ]
    lines += ["  edge [fontname=Helvetica, fontsize=8];"]
    for value, id_ in ids.items():
        lines.append(f"  {id_} [label={_quoted(f'{value.name}{chr(10)}{value.type}')}, shape=ellipse];")
    for i, node in enumerate(graph.nodes):
        ids |= dict.fromkeys(node.outputs, f"n{i}")
        constants = "".join(f"\n{v.type}" for v in node.inputs if v.is_const) + "".join(f"\n{g.name}" for g in node.op.graphs)
        colour = _COLOUR_OF.get(node.op.NAME, "#ffffff")
        tooltip = f"%{node.outputs[0].name}" + (f"\n{node.location}" if node.location else "")
        lines.append(f"  n{i} [label={_quoted(node.op.NAME + constants)}, fillcolor={_quoted(colour)}, tooltip={_quoted(tooltip)}];")
        for value in dict.fromkeys(v for v in node.inputs if not v.is_const):
            lines.append(f"  {ids[value]} -> n{i} [label={_quoted(str(value.type))}];")
    for i, value in enumerate(graph.outputs):
        lines.append(f"  o{i} [label={_quoted(f'{value.name}{chr(10)}{value.type}')}, shape=ellipse];")
        if value in ids:
            lines.append(f"  {ids[value]} -> o{i};")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def to_svg(graph: Graph) -> bytes:
    """The picture that Graphviz lays out.

    Raises:
        ExecuteError: `dot` is not installed, failed, or took too long.
    """
    program = shutil.which("dot")
    if program is None:
        raise ExecuteError(
            "an SVG needs Graphviz's dot, which is not installed", remedy="apt-get install graphviz, or write --dot FILE.dot"
        )
    try:
        done = subprocess.run([program, "-Tsvg"], input=to_dot(graph).encode(), capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise ExecuteError(
            f"dot did not finish a graph of {len(graph.nodes)} operators in {_SECONDS} seconds", remedy="use --dot"
        ) from None
    if done.returncode:
        raise ExecuteError(f"dot failed: {done.stderr.decode(errors='replace').strip()[:500]}")
    return done.stdout
