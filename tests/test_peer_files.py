"""Files that ExecuTorch's Arm backend and Arm's model-converter wrote are read, and every executor computes what their `.tosa` says.

`peer_files/make.py` makes them, without Tosaic. The oracle is the TOSA reference model on their own `.tosa` bytes.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peer_files.make import Warp

import tosaic
from tosaic.emit.read import read_vgf
from tosaic.errors import InputError
from tosaic.execute.reference import Reference
from tosaic.execute.vulkan import available
from tosaic.tosa.graph import Graph, Value, verify
from tosaic.tosa.text import parse_graph

FILES = Path(__file__).parent / "peer_files"
SHADERS = ("shader", "warp_fp32")
NAMES = sorted(p.stem for p in FILES.glob("*.vgf") if p.stem not in SHADERS)
# largest difference to the reference model, relative to the largest value of the output; integers must be equal
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}
# operators that a .vgf has more than its .tosa: the converter folds constants; scalars and values that are
# outputs twice take an operator at the border
CHANGES = {"integers": {"IDENTITY": 1}, "floats": {"RESHAPE": 1}, "tokens_fp16": {"MUL": -2, "ADD": -2}}
INDICES = {"words_8a8w": 20}  # embedding rows: the input's values are indices


@pytest.fixture(scope="module")
def oracle() -> Iterator[Reference]:
    model = Reference()
    yield model
    model.close()


def tosa_file(name: str, folder: Path) -> Path:
    path = folder / f"{name}.tosa"
    path.write_bytes(gzip.decompress((FILES / f"{name}.tosa.gz").read_bytes()))
    return path


def inputs_of(name: str, graph: Graph, seed: int) -> list[np.ndarray]:
    """Random inputs: normal floats, integers of the whole range."""
    rng = np.random.default_rng(seed)

    def draw(value: Value) -> np.ndarray:
        if value.dtype.is_float:
            return np.asarray(rng.normal(size=value.shape)).astype(value.dtype.numpy)
        low, high = (0, INDICES[name]) if name in INDICES else (value.dtype.min, value.dtype.max + 1)
        return rng.integers(low, high, value.shape).astype(value.dtype.numpy)

    return [draw(value) for value in graph.inputs]


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(found) == len(wanted)
    for f, w in zip(found, wanted, strict=True):
        assert (f.dtype, f.shape) == (w.dtype, w.shape)
        if f.dtype.kind in "iub":
            assert np.array_equal(f, w)
        else:
            f, w, scale = f.astype(np.float64), w.astype(np.float64), TOLERANCE[str(w.dtype)]
            assert np.abs(f - w).max() <= scale * np.abs(w).max()


def changes(old: Graph, new: Graph) -> dict[str, int]:
    """How many more operators of each kind the new graph has."""
    counts = Counter(op.NAME for op in new.ops)
    counts.subtract(op.NAME for op in old.ops)
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("name", NAMES)
def test_every_executor_agrees_with_the_reference_model(name: str, tmp_path: Path, oracle: Reference) -> None:
    path = tosa_file(name, tmp_path)
    vgf, tosa = tosaic.load(FILES / f"{name}.vgf"), tosaic.load(path)
    for graph in (vgf.graph, tosa.graph):
        verify(graph)
        assert str(parse_graph(str(graph), {c.name: c.data for c in graph.constants()})) == str(graph)
    types = [[v.type for v in (*g.inputs, *g.outputs)] for g in (vgf.graph, tosa.graph)]
    assert types[0] == types[1]
    assert changes(tosa.graph, vgf.graph) == CHANGES.get(name.removesuffix("_plain").removesuffix("_debug"), {})
    outputs = tosa.graph.outputs
    for seed in range(2):
        x = inputs_of(name, tosa.graph, seed)
        wanted = oracle.run(path.read_bytes(), x, [v.dtype.numpy for v in outputs], [v.shape for v in outputs])
        assert any(np.ptp(w.astype(np.float64)) > 0 for w in wanted)
        for artifact, on in ((vgf, "simulator"), (tosa, "simulator"), (vgf, "reference")):
            assert_same(artifact.run(x, on=on, float_io=False), wanted)


# one file of each writer: building a graph takes Vulkan 50 ms an operator
@pytest.mark.skipif(available() is not None, reason=str(available()))
@pytest.mark.parametrize("name", ["integers", "words_8a8w"])
def test_vulkan_runs_the_file_as_it_is(name: str, tmp_path: Path, oracle: Reference) -> None:
    path = tosa_file(name, tmp_path)
    vgf, outputs = tosaic.load(FILES / f"{name}.vgf"), tosaic.load(path).graph.outputs
    x = inputs_of(name, vgf.graph, 3)
    wanted = oracle.run(path.read_bytes(), x, [v.dtype.numpy for v in outputs], [v.shape for v in outputs])
    assert_same(vgf.run(x, on="vulkan", float_io=False), wanted)


def test_debug_information_changes_nothing() -> None:
    plain, debug = (tosaic.load(FILES / f"{name}.vgf").graph for name in ("integers", "integers_debug"))
    assert [op.NAME for op in plain.ops] == [op.NAME for op in debug.ops]


@pytest.mark.parametrize("name", SHADERS)
def test_compute_shaders_are_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match="is a compute shader, not a TOSA graph"):
        read_vgf(FILES / f"{name}.vgf")
    artifact = tosaic.load(FILES / f"{name}.vgf")
    x = {port.name: np.zeros(port.shape, np.float32) for port in artifact.passport.inputs}
    several = {name: np.concatenate([array] * 3) for name, array in x.items()}
    for call in (lambda: artifact.run(x), lambda: artifact.run(several), lambda: artifact.run(x, on="reference"), artifact.verify):
        with pytest.raises(InputError, match=r"vgf: segment '.*' is a compute shader, not a TOSA graph\n.*--on vulkan"):
            call()
    with pytest.raises(InputError, match="is a compute shader, which is not written again"):
        artifact.save(FILES / "other.vgf")


@pytest.mark.skipif(available() is not None, reason=str(available()))
def test_vulkan_runs_graphs_and_the_shader_between_them() -> None:
    torch.manual_seed(0)
    model, x, grid = Warp().eval(), torch.randn(1, 3, 6, 6), torch.rand(1, 4, 5, 2) * 2 - 1
    [found] = tosaic.load(FILES / "warp_fp32.vgf").run([x.numpy(), grid.numpy()], on="vulkan")
    with torch.no_grad():
        np.testing.assert_allclose(found, model(x, grid).numpy(), atol=1e-6)
