"""The processes that native code runs in, and the report on what is installed. Vulkan must be present here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tosaic.cli.show import _one_operator
from tosaic.errors import ExecuteError
from tosaic.execute import devices, vulkan
from tosaic.execute.doctor import checks
from tosaic.execute.worker import Worker


def test_a_crash_of_a_worker_is_an_error_and_the_next_call_works(tmp_path: Path) -> None:
    source = """
import os, sys
from tosaic.execute.worker import serve

def function(n):
    if n == 3:
        print("it was three", flush=True)  # stdout too must not get between the answers
        os.abort()
    return [10 // n]

serve(lambda: function)
"""
    (tmp_path / "dying.py").write_text(source)
    worker = Worker("dying", "the division", {"PYTHONPATH": str(tmp_path)})
    try:
        assert worker.call(5) == [2]
        with pytest.raises(ExecuteError, match=r"the division was stopped by SIGABRT\n  it was three"):
            worker.call(3)
        with pytest.raises(ExecuteError, match="the division: integer division or modulo by zero"):
            worker.call(0)
        assert worker.call(2) == [5]
    finally:
        worker.close()


@pytest.fixture
def unknown_devices() -> Iterator[None]:
    """The devices are asked for once in a process; here they are asked for anew, before and after."""
    devices.devices.cache_clear()
    yield
    devices.devices.cache_clear()


def test_without_a_driver_vulkan_is_not_available(unknown_devices: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.setenv(variable, str(tmp_path / "absent.json"))
    reason = vulkan.available()
    assert reason is not None and "no driver is installed" in reason and "apt-get install mesa-vulkan-drivers libvulkan1" in reason
    with pytest.raises(ExecuteError, match="no driver is installed"):
        vulkan.Vulkan(tmp_path / "g.vgf")


@pytest.mark.parametrize(("module", "words"), [("scenario_runner_py", "scenario runner"), ("emulation_layer", "emulation layers")])
def test_a_missing_package_is_named_with_its_remedy(module: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = vulkan.importlib.util.find_spec
    monkeypatch.setattr(vulkan.importlib.util, "find_spec", lambda name: None if name == module else find(name))
    reason = vulkan.available()
    assert reason is not None and words in reason and "pip install 'tosaic[vulkan]'" in reason


def test_the_graph_layer_is_found_before_the_tensor_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VK_LAYER_PATH", "/own/layers")
    variables = vulkan.emulation(tmp_path)
    first, second, own = variables["VK_LAYER_PATH"].split(os.pathsep)
    assert own == "/own/layers"
    names = [json.loads(next(Path(p).iterdir()).read_text())["layer"] for p in (first, second)]
    assert [n["name"] for n in names] == ["VK_LAYER_ML_Graph_Emulation", "VK_LAYER_ML_Tensor_Emulation"]
    assert all(Path(n["library_path"]).is_absolute() and Path(n["library_path"]).is_file() for n in names)


def test_doctor_finds_everything_that_these_tests_use() -> None:
    assert vulkan.available() is None
    found = checks(_one_operator)
    assert {check.name: check.found for check in found if not check.ok} == {}
    assert {"reference model", "model-converter", "vulkan device", "vulkan run"} <= {check.name for check in found}


def test_doctor_names_a_broken_converter_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOSAIC_MODEL_CONVERTER", "/bin/false")
    broken = {check.name: check for check in checks(_one_operator) if not check.ok}
    assert set(broken) == {"model-converter"} and not broken["model-converter"].required
    assert "exit code 1" in broken["model-converter"].found
    assert broken["model-converter"].remedy == "pip install ai-ml-sdk-model-converter"
