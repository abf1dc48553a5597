"""What an engine gets of a file: bindings and formats, a scenario that runs, a header that compiles and quantizes as we do."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tosaic
from tosaic.artifact import dequantize, quantize
from tosaic.emit.passport import Passport, PortRecord
from tosaic.engine import FORMAT_NAMES, header, identifier, scenario, vulkan_ports
from tosaic.errors import InputError
from tosaic.execute import vulkan
from tosaic.tosa import ops
from tosaic.tosa.container import DTYPES
from tosaic.tosa.graph import Builder
from tosaic.tosa.types import DType


class Net(nn.Module):
    """Quantized inputs of images and rows, an index, and outputs of real numbers and indices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.table = nn.Conv2d(3, 4, 3, padding=1), nn.Embedding(9, 4)

    def forward(self, image: torch.Tensor, word: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.sigmoid(self.conv(image)).mean((2, 3)) + self.table(word)
        return {"real-valued": x, "class": x.argmax(1)}


def _samples() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.rand(1, 3, 8, 8) * 2 - 0.7, torch.tensor([i])) for i in range(4)]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tosaic.Artifact:
    path = tmp_path_factory.mktemp("engine") / "my-net.vgf"
    tosaic.compile(tosaic.quantize(Net().eval(), _samples()[0], _samples()), io_layout="nhwc").save(path)
    return tosaic.load(path)


def test_ports(artifact: tosaic.Artifact) -> None:
    ports = vulkan_ports(artifact)
    assert [(p.kind, p.record.name, p.format_name) for p in ports] == [
        ("input", "image", "VK_FORMAT_R8_SINT"),
        ("input", "word", "VK_FORMAT_R32_SINT"),
        ("output", "real-valued", ports[2].format_name),
        ("output", "class", "VK_FORMAT_R32_SINT"),
    ]
    assert len({(p.set, p.binding) for p in ports}) == 4
    assert set(DTYPES) == set(FORMAT_NAMES)
    with pytest.raises(InputError, match=r"is no \.vgf, and only that has bindings"):
        vulkan_ports(tosaic.Artifact(artifact.graph, artifact.passport))


def test_the_scenario_runs_and_gives_what_the_simulator_gives(artifact: tosaic.Artifact, tmp_path: Path) -> None:
    (tmp_path / "scenarios").mkdir()
    path = tmp_path / "scenarios" / "run.json"
    path.write_text(scenario(artifact, path))
    [inputs] = artifact.samples([np.random.default_rng(0).random((1, 3, 8, 8), np.float32), np.array([5], np.int32)])
    for port, array in zip(artifact.passport.inputs, inputs, strict=True):
        np.save(path.with_name(f"{port.name}.npy"), array)
    runner = Path(sys.executable).parent / "scenario_runner"
    variables = {**os.environ, **vulkan.environment(tmp_path / "layers")}
    command = [runner, "--scenario", path, "--output", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deprecated" not in done.stdout + done.stderr
    for port, expected in zip(artifact.passport.outputs, artifact.run(inputs), strict=True):
        assert np.array_equal(np.load(tmp_path / "out" / f"{port.name}.npy"), expected)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_header_compiles_and_quantizes_as_the_artifact_does(artifact: tosaic.Artifact, tmp_path: Path) -> None:
    (tmp_path / "net.h").write_text(header(artifact))
    image, _ = artifact.passport.inputs
    output = artifact.passport.outputs[0]
    kind = {"i8": "int8_t", "i16": "int16_t", "i32": "int32_t"}[output.dtype]
    (tmp_path / "net.c").write_text(f"""
#include "net.h"
int8_t feed(float real) {{ return my_net_quantize_image(real); }}
float get({kind} stored) {{ return my_net_dequantize_real_valued(stored); }}
const tosaic_tensor *tensor(int output, int i) {{ return output ? &my_net_outputs[i] : &my_net_inputs[i]; }}
int count(void) {{ return MY_NET_INPUT_COUNT * 100 + MY_NET_OUTPUT_CLASS * 10 + MY_NET_OUTPUT_COUNT; }}
""")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "net.c", "-o", "net.so", "-lm"], cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "net.so"))
    library.feed.argtypes, library.feed.restype = [ctypes.c_float], ctypes.c_int8
    library.get.argtypes, library.get.restype = [ctypes.c_int32], ctypes.c_float
    assert library.count() == 212
    scale = image.scale or 0.0
    halves = (np.arange(-300, 300) + 0.5) * scale  # ties, and beyond both ends
    reals = np.concatenate([np.linspace(-2, 2, 2001), halves, [np.inf, -np.inf]]).astype(np.float32)
    finite = reals[np.isfinite(reals)]
    assert [library.feed(float(x)) for x in finite] == quantize(finite, image, artifact.graph.inputs[0].dtype).tolist()
    assert [library.feed(x) for x in (np.inf, -np.inf, np.nan)] == [127, -128, -128]
    stored = np.arange(-128, 128).astype(artifact.graph.outputs[0].dtype.numpy)
    assert [library.get(int(x)) for x in stored] == dequantize(stored, output).tolist()


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_the_header_is_cpp_too(artifact: tosaic.Artifact, tmp_path: Path) -> None:
    (tmp_path / "net.h").write_text(header(artifact))
    (tmp_path / "net.cpp").write_text('#include "net.h"\nint main() { return my_net_quantize_image(0.0f) * 0; }\n')
    subprocess.run(["c++", "-std=c++11", "-Wall", "-Wno-unused-variable", "-Werror", "-c", "net.cpp"], cwd=tmp_path, check=True)


def test_the_header_says_what_the_passport_says(artifact: tosaic.Artifact) -> None:
    text = header(artifact)
    image = artifact.passport.inputs[0]
    assert f'{{"image", 0, {vulkan_ports(artifact)[0].binding}, 14, 4, {{1, 8, 8, 3}}, 192, {image.scale!r}, {image.zero_point}}}' in text
    assert "/* VK_FORMAT_R8_SINT, layout nhwc */" in text and artifact.passport.sha256 in text


@pytest.mark.parametrize(("name", "word"), [("a-b.c", "a_b_c"), ("3d", "_3d"), ("", "_"), ("größe", "gr__e")])
def test_identifiers(name: str, word: str) -> None:
    assert identifier(name) == word


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_names_that_are_one_identifier_stay_apart(tmp_path: Path) -> None:
    build = Builder()
    inputs = [build.input(name, DType.INT8, (1,)) for name in ("a-b", "a_b", "A.B", "count", "a_b_1")]
    build.finish([build.emit(ops.Add(), *(build.emit(ops.Cast(DType.INT32), x) for x in inputs[:2]))])
    ports = [PortRecord(name=v.name, dtype="i8", shape=[1], scale=0.5, zero_point=i) for i, v in enumerate(inputs)]
    passport = Passport(name="n", spec="", inputs=ports, outputs=[PortRecord(name="count", dtype="i32", shape=[1])])
    tosaic.Artifact(build.graph, passport).save(tmp_path / "n.vgf")
    (tmp_path / "n.h").write_text(header(tosaic.load(tmp_path / "n.vgf")))
    (tmp_path / "n.c").write_text("""
#include "n.h"
int places[] = {N_INPUT_A_B, N_INPUT_A_B_1, N_INPUT_A_B_2, N_INPUT_COUNT_1, N_INPUT_A_B_1_1, N_INPUT_COUNT, N_OUTPUT_COUNT};
int zeros[] = {0, 0, 0, 0, 0};
void fill(void) {
    zeros[0] = n_quantize_a_b(0.0f); zeros[1] = n_quantize_a_b_1(0.0f); zeros[2] = n_quantize_A_B_2(0.0f);
    zeros[3] = n_quantize_count_1(0.0f); zeros[4] = n_quantize_a_b_1_1(0.0f);
}
""")
    flags = ["-std=c99", "-Wall", "-Wno-unused-variable", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "n.c", "-o", "n.so", "-lm"], cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "n.so"))
    library.fill()
    assert list((ctypes.c_int * 7).in_dll(library, "places")) == [0, 1, 2, 3, 4, 5, 1]
    assert list((ctypes.c_int * 5).in_dll(library, "zeros")) == [0, 1, 2, 3, 4]


def test_the_scenario_names_the_file_from_where_it_stands(artifact: tosaic.Artifact, tmp_path: Path) -> None:
    assert artifact.path is not None
    written = json.loads(scenario(artifact, artifact.path.parent / "sub" / "run.json"))
    assert written["resources"][0]["graph"]["src"] == "../my-net.vgf"
