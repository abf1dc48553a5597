"""What running a graph takes in memory, from its shapes alone: a small file can ask for any size."""

from __future__ import annotations

from collections.abc import Callable

from tosaic.errors import ExecuteError
from tosaic.processes import GIB
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Value

SMALL = 1 << 30  # bytes below which nobody asks how many there are
_VIEWS = (ops.Reshape, ops.Transpose, ops.Slice, ops.Identity)  # their result is their operand, seen otherwise


def check(graph: Graph, free: Callable[[], int]) -> None:
    """Refuse a graph that takes more memory than there is.

    Args:
        free: bytes that there are; asked where it matters.

    Raises:
        ExecuteError: it takes more; the message names the value at whose making it does.
    """
    most, at = peak(graph)
    if at is not None and most > SMALL and most > (there := free()):
        raise ExecuteError(
            f"running {graph.name} takes {most / GIB:,.1f} GiB at %{at.name} ({at.type}), and {there / GIB:,.1f} GiB are free",
            remedy="set TOSAIC_MEMORY_LIMIT (GiB) if there is more",
        )


def peak(graph: Graph) -> tuple[int, Value | None]:
    """The most bytes of values that are alive at a time, and the value at whose making that is; constants stay in their file."""
    users, end, outputs = graph.users(), len(graph.nodes), set(graph.outputs)
    owner = {value: value for value in graph.inputs}  # whose memory a value is
    last = dict.fromkeys(graph.inputs, end)  # the caller holds them
    sizes = {value: _bytes(value) for value in graph.inputs}
    for i, node in enumerate(graph.nodes):
        for value in (owner[v] for v in node.inputs if v in owner):
            last[value] = max(last[value], i)
        for value in node.outputs:
            owner[value] = source = owner.get(node.inputs[0], value) if isinstance(node.op, _VIEWS) else value
            last[source] = max(last.get(source, i), end if value in outputs else i)
            # sums that only RESCALEs read are never stored
            readers = users.get(value, []) if isinstance(node.op, ops._Conv) and value not in outputs else []
            never = bool(readers) and all(isinstance(reader.op, ops.Rescale) for reader in readers)
            sizes.setdefault(source, 0 if never else _bytes(value))
    dying = [0] * (end + 1)
    for value, i in last.items():
        dying[i] += sizes[value]
    alive = most = sum(sizes[value] for value in graph.inputs)
    at = graph.inputs[0] if graph.inputs else None
    for i, node in enumerate(graph.nodes):
        alive += sum(sizes[v] for v in node.outputs if owner[v] is v)
        if alive > most:
            most, at = alive, node.outputs[0]
        alive -= dying[i]
    return most, at


def _bytes(value: Value) -> int:
    return value.type.size * value.dtype.numpy.itemsize
