"""Logits of every position from an exported model, block by block.

A prefill program that gives logits of one position is cut in two where that position is picked: the body runs once for a block of
tokens, the rest (last norm, head) once for each of them, many at a time. The operators are the same, and so are the integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tosaic.artifact import dequantize
from tosaic.errors import ExecuteError, InputError
from tosaic.execute.batch import batched
from tosaic.executors import EXECUTORS, prepare
from tosaic.llm.manifest import read_manifest
from tosaic.llm.session import Caches, Program, empty_caches
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Node, Value

_TOGETHER = 32  # positions whose logits are computed at once


def artifact_model(folder: Path | str, on: str = "simulator") -> Callable[[Tensor], Iterator[Tensor]]:
    """The prefill program of an export as a model that can be scored (see `tosaic.llm.score`).

    Raises:
        InputError: no export, or an unknown executor.
        ExecuteError: the executor is not there.
    """
    if on not in EXECUTORS:
        raise InputError(f"unknown executor '{on}'", remedy=f"known are {', '.join(EXECUTORS)}")
    folder = Path(folder)
    manifest = read_manifest(folder)
    program = Program(folder, manifest, manifest.prefill)
    run = _whole(program, on) if manifest.full_logits else _in_two(program, on)

    def model(chunks: Tensor) -> Iterator[Tensor]:
        for ids in chunks.tolist():
            caches = empty_caches(manifest)
            for at in range(0, len(ids), program.tokens):
                some = ids[at : at + program.tokens]
                blocks, caches = run(some, at, caches)
                for stored in blocks:
                    yield torch.from_numpy(dequantize(stored, program.logits))

    return model


# tokens, position of the first, caches -> stored logits [n,V] of those tokens in order, and the caches behind them
_Run = Callable[[list[int], int, Caches], tuple[Iterator[np.ndarray], Caches]]


def _whole(program: Program, on: str) -> _Run:
    def run(ids: list[int], position: int, caches: Caches) -> tuple[Iterator[np.ndarray], Caches]:
        stored, caches = program.run(ids, position, caches, program.artifact.executor(on))
        return iter([stored[0, : len(ids)]]), caches

    return run


def _in_two(program: Program, on: str) -> _Run:
    graph = program.artifact.graph
    body, end = split(graph)
    run_body, run_end, together = prepare(on, body), *_many(end, on, min(_TOGETHER, program.tokens))

    def first(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return run_body([array for array, value in zip(arrays, graph.inputs, strict=True) if value.name != "last"])

    def run(ids: list[int], position: int, caches: Caches) -> tuple[Iterator[np.ndarray], Caches]:
        hidden, caches = program.run(ids, position, caches, first)
        return logits(hidden[0, : len(ids)]), caches

    def logits(rows: np.ndarray) -> Iterator[np.ndarray]:
        for at in range(0, len(rows), together):
            some = rows[at : at + together]
            full = np.concatenate((some, np.repeat(some[-1:], together - len(some), 0)))
            yield run_end(full[:, None, None])[: len(some)]

    return run


def _many(end: Graph, on: str, count: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """A function from rows [n,1,1,H] to stored logits [n,V], and n: `count` where that many can run at once."""
    if on == "simulator":
        try:
            run = prepare(on, batched(end, count))
            return lambda rows: run([rows])[0][:, 0, 0], count
        except ExecuteError:  # an operator takes one at a time
            pass
    run = prepare(on, end)
    return lambda rows: run([rows[0]])[0][0], 1


def split(graph: Graph) -> tuple[Graph, Graph]:
    """A prefill graph in two, at the GATHER that picks the position `last`.

    Returns:
        The body, which has no input `last` and gives the stream [1,P,H] that the GATHER picks from in place of the logits; and the end,
        from one row of that, [1,1,H], to the logits.

    Raises:
        InputError: the logits are not made of one row.
    """
    index = {v for v in graph.inputs if v.name == "last"}  # and what is computed from it
    picks: list[Node] = []
    end: list[Node] = []
    behind: set[Value] = set()
    for node in graph.nodes:
        if not behind.isdisjoint(node.inputs):
            end.append(node)
            behind.update(node.outputs)
        elif isinstance(node.op, ops.Gather) and node.inputs[1] in index:
            picks.append(node)
            behind.update(node.outputs)
        elif not index.isdisjoint(node.inputs):
            index.update(node.outputs)
    row = picks[0].output if len(picks) == 1 else None
    fed = {v for node in end for v in node.inputs if not v.is_const} - behind
    if row is None or fed or not behind.isdisjoint(graph.outputs[1:]) or graph.outputs[0] not in behind:
        raise InputError(f"{graph.name}: the logits of one position are not made of one row", remedy="export with --full-logits")
    others = [n for n in graph.nodes if n not in {*picks, *end} and index.isdisjoint(n.outputs)]
    inputs = [v for v in graph.inputs if v.name != "last"]
    body = Graph(graph.name, inputs, [picks[0].inputs[0], *graph.outputs[1:]], others)
    return body, Graph(f"{graph.name}_end", [row], graph.outputs[:1], end)
