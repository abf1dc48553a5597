"""Hostile files: `.tosa` and `.vgf` files of every operator, damaged at random and where their structure is.

Run as a program it reads damaged files in a process whose memory is limited: `python tests/mutations.py SEED COUNT GIB`. The last line
it prints is a report as JSON. What crashes, hangs or takes the memory ends the process.
"""

from __future__ import annotations

import faulthandler
import json
import random
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

LATE = 5.0  # seconds for one file of some kilobytes; usual are milliseconds
SPIRV = struct.pack("<I", 0x07230203)
INTERESTING = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    64,
    255,
    0x7F,
    0x80,
    0xFFFF,
    0x7FFF,
    0x8000,
    1 << 20,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0xFFFFFFF0,
)
Mutation = Callable[[random.Random, bytearray], None]


def number(rng: random.Random, old: int, size: int) -> int:
    """Another number in the place of one: near it, a border of its type, one that fits the file, or any."""
    kind = rng.randrange(5)
    if kind == 0:
        new = old + rng.choice((-64, -8, -4, -2, -1, 1, 2, 4, 8, 64))
    elif kind == 1:
        new = rng.choice(INTERESTING)
    elif kind == 2:
        new = size + rng.randrange(-16, 16)
    elif kind == 3:
        new = old ^ 1 << rng.randrange(32)
    else:
        new = rng.randrange(min(size, 4096))
    return new & 0xFFFFFFFF


def truncated(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def flipped(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def words(rng: random.Random, data: bytearray) -> None:
    """32-bit fields: offsets, lengths, shapes, numbers of operators and types."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(max(1, len(data) // 4 - 1)) * 4
        if at + 4 <= len(data):
            struct.pack_into("<I", data, at, number(rng, struct.unpack_from("<I", data, at)[0], len(data)))


def halves(rng: random.Random, data: bytearray) -> None:
    """16-bit fields: where the fields of a table stand."""
    at = rng.randrange(max(1, len(data) // 2 - 1)) * 2
    if at + 2 <= len(data):
        struct.pack_into("<H", data, at, number(rng, struct.unpack_from("<H", data, at)[0], len(data)) & 0xFFFF)


def offsets(rng: random.Random, data: bytearray) -> None:
    """A field that leads somewhere leads elsewhere: to another table, to itself, or beyond the end."""
    leading = [at for at in range(0, len(data) - 4, 4) if 4 <= struct.unpack_from("<I", data, at)[0] <= len(data) - at]
    if leading:
        at, to = rng.choice(leading), rng.choice(leading)
        target = (to + struct.unpack_from("<I", data, to)[0]) if rng.random() < 0.7 else rng.choice((at, at + 4, len(data), len(data) - 4))
        struct.pack_into("<I", data, at, (target - at) & 0xFFFFFFFF)


def lengths(rng: random.Random, data: bytearray) -> None:
    """The length of a vector or text that an offset leads to."""
    leading = [at for at in range(0, len(data) - 8, 4) if 4 <= struct.unpack_from("<I", data, at)[0] < len(data) - at - 4]
    if leading:
        at = rng.choice(leading)
        at += struct.unpack_from("<I", data, at)[0]
        struct.pack_into("<I", data, at, number(rng, struct.unpack_from("<I", data, at)[0], len(data)))


def pieces(rng: random.Random, data: bytearray) -> None:
    """A piece goes, comes twice, or stands in another place."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice((1, 4, 8, 64, 400))]
    if rng.random() < 0.5:
        del data[start : start + len(piece)]
    at = rng.randrange(len(data) + 1)
    data[at:at] = piece


def header(rng: random.Random, data: bytearray) -> None:
    """The first fields: magic, version, and the places and sizes of sections."""
    at = rng.randrange(0, min(80, len(data) - 8), 4)
    struct.pack_into("<I", data, at, number(rng, struct.unpack_from("<I", data, at)[0], len(data)))


def instructions(rng: random.Random, data: bytearray) -> None:
    """Words of SPIR-V: an operand becomes another id or number, an instruction another, or longer, or comes twice."""
    start = data.find(SPIRV)
    if start < 0:
        return words(rng, data)
    places, at = [], start + 20
    while at + 4 <= len(data) and (length := struct.unpack_from("<I", data, at)[0] >> 16) and at + 4 * length <= len(data):
        places.append((at, length))
        at += 4 * length
    if not places:
        return None
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, length = rng.choice(places)
        first = struct.unpack_from("<I", data, at)[0]
        kind = rng.randrange(4)
        if kind == 0 or length < 2:
            struct.pack_into("<I", data, at, first & 0xFFFF0000 | struct.unpack_from("<I", data, rng.choice(places)[0])[0] & 0xFFFF)
        elif kind == 1:
            struct.pack_into("<I", data, at, first & 0xFFFF | rng.choice((0, 1, length - 1, length + 1, 0xFFFF)) << 16)
        else:
            place = at + 4 * rng.randrange(1, length)
            other, span = rng.choice(places)
            same = struct.unpack_from("<I", data, other + 4 * rng.randrange(span))[0]
            struct.pack_into("<I", data, place, same if kind == 2 else number(rng, struct.unpack_from("<I", data, place)[0], 300))
    return None


MUTATIONS: tuple[Mutation, ...] = (truncated, flipped, words, halves, offsets, lengths, pieces, header, instructions)


def mutated(rng: random.Random, good: bytes) -> tuple[str, bytes]:
    """Which mutations, and the damaged file."""
    data, names = bytearray(good), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutation = rng.choice(MUTATIONS)
        if len(data) > 100:
            mutation(rng, data)
            names.append(mutation.__name__)
    return "+".join(names), bytes(data)


def corpus() -> list[tuple[str, bytes]]:
    """Good files by their suffix, one of each kind for each operator, and networks of several."""
    import test_vgf
    from tosa_files import CONTROL_FLOW

    from tosaic.emit.flatbuffer import serialize
    from tosaic.emit.vgf import to_vgf

    seen, files = set(), [(".tosa", make()[0]) for make in CONTROL_FLOW.values()]
    for row in test_vgf.ROWS:
        kind = (type(row[0]), str(row[1]).partition("[")[0] in ("i8", "f32"))
        if kind not in seen:
            seen.add(kind)
            graph = test_vgf.build(row)
            files += [(".tosa", serialize(graph)), (".vgf", to_vgf(graph))]
    return files


def read(path: Path) -> str:
    """Everything that is done with a file before it runs: `good`, or `refused` with one error and a message."""
    from tosaic.emit.read import read_tosa, read_vgf_or_ports
    from tosaic.errors import InputError
    from tosaic.report.counts import count
    from tosaic.tosa.graph import verify

    try:
        graph, shaders = read_vgf_or_ports(path) if path.suffix == ".vgf" else (read_tosa(path), ())
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and len(str(error)) < 2000, str(error)[:2000]
        return "refused"
    if shaders:
        return "good"
    verify(graph)
    count(graph)
    assert str(graph)
    return "good"


def main(seed: int, number_of_files: int, gigabytes: float) -> None:
    files = corpus()
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)
    except ImportError:
        pass
    rng, outcomes, problems, slowest = random.Random(seed), Counter[str](), [], 0.0
    faulthandler.enable()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for index in range(number_of_files):
            suffix, good = rng.choice(files)
            names, data = mutated(rng, good)
            path = Path(folder, f"f{suffix}")
            path.write_bytes(data)
            faulthandler.dump_traceback_later(20 * LATE, exit=True)
            start = time.process_time()
            try:
                outcomes[read(path)] += 1
            except Exception as error:  # whatever leaks
                where = traceback.extract_tb(error.__traceback__)[-1]
                problems.append(f"{index} {suffix} {names}: {type(error).__name__}: {str(error)[:200]} at {where.filename}:{where.lineno}")
            took = time.process_time() - start
            slowest = max(slowest, took)
            if took > LATE:
                problems.append(f"{index} {suffix} {names}: took {took:.1f} s")
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"files": number_of_files, "outcomes": outcomes, "slowest": round(slowest, 3), "problems": problems}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
