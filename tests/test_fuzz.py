"""No file can crash, hang or exhaust the readers: damaged ones at random (`mutations.py`), and some made to be costly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
import test_vgf
from tosa import DType as Kinds
from tosa import Op, TosaBasicBlock, TosaGraph, TosaOperator, TosaRegion, TosaTensor, Version

from tosaic.emit.read import read_tosa, read_vgf
from tosaic.emit.spirv_read import Module
from tosaic.emit.vgf import to_vgf
from tosaic.errors import InputError
from tosaic.tosa import container, ops
from tosaic.tosa.graph import Builder, Names
from tosaic.tosa.types import DType

FOLDER = Path(__file__).parent
MIB = 1 << 20


@contextmanager
def cheap(memory: int = 64 * MIB, seconds: float = 10.0) -> Iterator[None]:
    """What is done inside takes no more; without its guard each case here takes minutes, or gigabytes."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < seconds


def test_damaged_files() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), *filter(None, sys.path)])}
    command = [sys.executable, str(FOLDER / "mutations.py"), "7", "2000", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["problems"] == []
    assert report["outcomes"]["refused"] > 1000 and report["outcomes"]["good"] > 100


@pytest.mark.parametrize("suffix", [".vgf", ".tosa"])
def test_every_truncation(suffix: str, tmp_path: Path) -> None:
    """A shorter file is refused; where nothing is missing that is read, it is the same graph."""
    graph = test_vgf.conv()
    whole = to_vgf(graph) if suffix == ".vgf" else test_vgf.serialize(graph)
    read, path = (read_vgf if suffix == ".vgf" else read_tosa), tmp_path / f"g{suffix}"
    path.write_bytes(whole)
    text = str(read(path))
    for length in {*range(0, len(whole), 7), *range(max(0, len(whole) - 40), len(whole))}:
        path.write_bytes(whole[:length])
        try:
            assert str(read(path)) == text
        except InputError as error:
            assert str(error).startswith(f"{path}: ")


def words(*instructions: tuple[int, ...]) -> np.ndarray:
    """A SPIR-V module."""
    body = [word for code, *operands in instructions for word in (len(operands) + 1 << 16 | code, *operands)]
    return np.array([0x07230203, 0x10600, 0, 1000, 0, *body], np.uint32)


# i32 %1, numbers %2 = 1 and %3 = 2^24, shapes %5 = [1] and %6 = [2^24], tensor types %7 and %8 of these, all zeros %9
TYPES = (
    *((21, 1, 32, 0), (43, 1, 2, 1), (43, 1, 3, 1 << 24), (28, 4, 1, 2), (44, 4, 5, 2), (44, 4, 6, 3)),
    *((4163, 7, 1, 2, 5), (4163, 8, 1, 2, 6), (46, 8, 9)),
)


def test_a_small_constant_of_large_parts() -> None:
    with cheap(), pytest.raises(InputError, match=r"constant %10 has not the elements of i32\[1\]"):
        Module(words(*TYPES, (44, 7, 10, *[9] * 30)), {})


def test_constants_without_end() -> None:
    with cheap(), pytest.raises(InputError, match="constants of more than"):
        Module(words(*TYPES, *((46, 8, 10 + i) for i in range(5000))), {})


def test_a_constant_of_the_file_stated_often() -> None:
    wide = ((21, 20, 64, 0), (43, 1, 21, 1 << 20), (44, 4, 22, 21), (4163, 23, 20, 2, 22))  # int48, which is copied
    with cheap(), pytest.raises(InputError, match="an id that is not defined: 0"):
        Module(words(*TYPES, *wide, *((4181, 23, 30 + i, 0) for i in range(1000))), {0: np.zeros(6 * MIB, np.uint8)})


def test_a_large_constant_read_often(tmp_path: Path) -> None:
    b = Builder()
    x, c = b.input("x", DType.INT32, (1, MIB)), b.const(np.arange(MIB)[None], DType.INT32)
    file = container.decode(to_vgf(b.finish([b.emit(ops.Add(), x, c)])))
    code = file.modules[0].code
    assert code is not None
    at = 5
    while code[at] & 0xFFFF != 12 or code[at - 1] == 0:  # the one operator
        at += int(code[at]) >> 16
    one = code[at : at + (int(code[at]) >> 16)]
    more = np.tile(one, (2000, 1))
    more[:, 2] = np.arange(100_000, 102_000)  # results of their own
    file.modules[0].code = np.concatenate([code[:at], more.reshape(-1), code[at:]])
    (tmp_path / "g.vgf").write_bytes(container.encode(file))
    with cheap():
        assert len(read_vgf(tmp_path / "g.vgf").nodes) == 2001


def test_a_module_of_many_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = container.decode(to_vgf(test_vgf.conv()))
    file.segments *= 200
    (tmp_path / "g.vgf").write_bytes(container.encode(file))
    monkeypatch.setattr("tosaic.emit.read.MOST_WORDS", 10_000)
    with pytest.raises(InputError, match="the segments are more than 10000 words of SPIR-V together"):
        read_vgf(tmp_path / "g.vgf")


def test_many_equal_names() -> None:
    names = Names()
    with cheap(128 * MIB):
        assert [names.unique("x") for _ in range(100_000)][-1] == "x_99999"
    names.free(["x_7"])
    assert [names.unique("x") for _ in range(2)] == ["x_7", "x_100000"]


def tosa_file(fill: Callable[[flatbuffers.Builder], tuple[list[int], list[int]]]) -> bytes:
    """A TOSA flatbuffer of the operators and tensors that `fill` makes."""
    b = flatbuffers.Builder(1 << 16)
    operators, tensors = (vector(b, offsets) for offsets in fill(b))
    name = b.CreateString("main")
    TosaBasicBlock.Start(b)
    TosaBasicBlock.AddName(b, name)
    TosaBasicBlock.AddOperators(b, operators)
    TosaBasicBlock.AddTensors(b, tensors)
    blocks = vector(b, [TosaBasicBlock.End(b)])
    TosaRegion.Start(b)
    TosaRegion.AddBlocks(b, blocks)
    regions = vector(b, [TosaRegion.End(b)])
    Version.Start(b)
    Version.Add_Major(b, 1)
    version = Version.End(b)
    TosaGraph.Start(b)
    TosaGraph.AddVersion(b, version)
    TosaGraph.AddRegions(b, regions)
    b.Finish(TosaGraph.End(b), file_identifier=b"TOSA")
    return bytes(b.Output())


def vector(b: flatbuffers.Builder, offsets: list[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return b.EndVector()


def tensor(b: flatbuffers.Builder, name: int, shape: int, data: int) -> int:
    TosaTensor.Start(b)
    TosaTensor.AddName(b, name)
    TosaTensor.AddShape(b, shape)
    TosaTensor.AddType(b, Kinds.DType.INT8)
    TosaTensor.AddData(b, data)
    return TosaTensor.End(b)


def operator(b: flatbuffers.Builder, op: int, inputs: int, output: int) -> int:
    outputs = vector(b, [output])
    TosaOperator.Start(b)
    TosaOperator.AddOp(b, op)
    TosaOperator.AddInputs(b, inputs)
    TosaOperator.AddOutputs(b, outputs)
    return TosaOperator.End(b)


def shared_inputs(b: flatbuffers.Builder) -> tuple[list[int], list[int]]:
    """A thousand operators, whose operands are one vector of twenty thousand constants."""
    names = [b.CreateString(f"t{i}") for i in range(1000)]
    shape, data, none = b.CreateNumpyVector(np.ones(1, np.int32)), b.CreateNumpyVector(np.zeros(1, np.uint8)), vector(b, [])
    inputs = vector(b, [names[0]] * 20_000)
    tensors = [tensor(b, name, shape, data) for name in names]
    return [operator(b, Op.Op.CONST, none, names[0]), *(operator(b, Op.Op.CONCAT, inputs, name) for name in names[1:])], tensors


def shared_data(b: flatbuffers.Builder) -> tuple[list[int], list[int]]:
    """Thousands of constants, whose data are one vector of a megabyte."""
    names = [b.CreateString(f"t{i}") for i in range(5000)]
    shape, data, none = b.CreateNumpyVector(np.array([MIB], np.int32)), b.CreateNumpyVector(np.zeros(MIB, np.uint8)), vector(b, [])
    return [operator(b, Op.Op.CONST, none, name) for name in names], [tensor(b, name, shape, data) for name in names]


def shared_name(b: flatbuffers.Builder) -> tuple[list[int], list[int]]:
    """Thousands of tensors, whose name is one of a megabyte."""
    name, shape, data = b.CreateString("t" * MIB), b.CreateNumpyVector(np.ones(1, np.int32)), b.CreateNumpyVector(np.zeros(1, np.uint8))
    return [], [tensor(b, name, shape, data) for _ in range(20_000)]


@pytest.mark.parametrize("fill", [shared_inputs, shared_data, shared_name])
def test_bytes_read_again_and_again(fill: Callable, tmp_path: Path) -> None:
    (tmp_path / "g.tosa").write_bytes(tosa_file(fill))
    with cheap(256 * MIB, 20.0), pytest.raises(InputError, match=r"g.tosa: (the file refers to the same bytes|CONCAT)"):
        read_tosa(tmp_path / "g.tosa")
