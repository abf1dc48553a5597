"""A `.vgf` on Vulkan, through Arm's scenario runner: on a driver with the ML extensions, or on Arm's emulation layers.

It runs in a worker process: native code meets files that others wrote, and the variables that choose the layers must be
set before the first Vulkan instance is made.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tosaic.errors import ExecuteError, InputError
from tosaic.execute.devices import INSTALL, devices
from tosaic.execute.worker import Worker, serve
from tosaic.tosa import container as vgf

# the scenario runner's name of each format; unsigned ones are fed as the graph's own types, in which TOSA's integers have no sign
FORMATS: dict[int, str] = {
    1000460000: "R8BoolArm",
    14: "R8Sint",
    13: "R8Uint",
    75: "R16Sint",
    74: "R16Uint",
    99: "R32Sint",
    98: "R32Uint",
    111: "R64Sint",
    76: "R16Sfloat",
    1000460001: "R16Bfloat16Arm",
    100: "R32Sfloat",
}
SCENARIOS_KEPT = 8
_LAYERS = ("Graph", "Tensor")  # the order in which the loader must find them


class Vulkan:
    """A VGF file that is built on the device at the first run and then runs many times.

    Raises:
        InputError: not a VGF file, or with resources that are no tensors of known formats.
        ExecuteError: Vulkan is not usable here; see `available`.
    """

    def __init__(self, path: Path | str) -> None:
        if (reason := available()) is not None:
            raise ExecuteError(reason)
        self.path = Path(path).resolve()
        try:
            container = vgf.decode(vgf.map_file(self.path))
        except InputError as error:
            raise InputError(f"{path}: {error.what}", remedy=error.remedy) from None
        self._inputs = [_tensor(container, b) for b in container.inputs]
        self._outputs = [_tensor(container, b) for b in container.outputs]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for `inputs`, both in the file's order and with the file's types and shapes.

        Raises:
            InputError: an input has another type or shape than the file says.
            ExecuteError: the device refused the graph, or crashed.
        """
        if len(inputs) != len(self._inputs):
            raise InputError(f"{self.path.name} takes {len(self._inputs)} inputs, found {len(inputs)}")
        for i, (x, (_, _, format_, shape)) in enumerate(zip(inputs, self._inputs, strict=True)):
            want = vgf.DTYPES[format_].numpy
            if x.dtype != want or x.shape != shape:
                raise InputError(f"input {i} is {want}{list(shape)}, found {x.dtype}{list(x.shape)}")
        stamp = self.path.stat()
        key = (str(self.path), stamp.st_ino, stamp.st_mtime_ns, stamp.st_size)
        raw = _worker().call(key, self._inputs, self._outputs, [np.ascontiguousarray(x).tobytes() for x in inputs])
        return [
            np.frombuffer(data, vgf.DTYPES[format_].numpy).reshape(shape)
            for data, (_, _, format_, shape) in zip(raw, self._outputs, strict=True)
        ]


_Tensor = tuple[int, int, int, tuple[int, ...]]  # set, binding, format, shape
_Key = tuple[str, int, int, int]  # path, inode, modification time, size


def _tensor(container: vgf.Container, binding: vgf.Binding) -> _Tensor:
    resource = container.resources[binding.resource]
    if resource.format not in FORMATS:
        raise InputError(f"VkFormat {resource.format} of binding {binding.binding} is not known")
    sets = [index for segment in container.segments for index, bindings in segment.sets if binding in bindings]
    return (sets[0] if sets else 0, binding.binding, resource.format, resource.shape)


def available() -> str | None:
    """None when Vulkan can be used, else the reason and the remedy."""
    if importlib.util.find_spec("scenario_runner_py") is None:
        return "the scenario runner is not installed; pip install 'tosaic[vulkan]'"
    try:
        found = devices()
    except ExecuteError as error:
        return "; ".join(p for p in (error.what, error.remedy) if p)
    if not found:
        return f"there is no Vulkan device; {INSTALL}"
    if not found[0].native and _layer_directory() is None:
        return f"{found[0]} needs the emulation layers; pip install 'tosaic[vulkan]'"
    return None


def environment(directory: Path) -> dict[str, str]:
    """Variables for a process that uses Vulkan: none for a driver that has the ML extensions, else those of `emulation`."""
    found = devices()
    return {} if found and found[0].native else emulation(directory)


def emulation(directory: Path) -> dict[str, str]:
    """Variables that put the emulation layers above the driver; none when they are not installed.

    The loader stacks layers in the order in which it finds their manifests (seen with 1.3.239), and the Graph layer must
    stand above the Tensor layer; so each manifest gets a directory of its own under `directory`.
    """
    package = _layer_directory()
    if package is None:
        return {}
    places = []
    for layer in _LAYERS:
        source = next(package.rglob(f"VkLayer_{layer}.json"))
        manifest = json.loads(source.read_text())
        library = next(package.rglob(Path(manifest["layer"]["library_path"]).name))
        manifest["layer"]["library_path"] = str(library)
        place = directory / layer
        place.mkdir(parents=True)
        (place / source.name).write_text(json.dumps(manifest))
        places.append(str(place))
    names = [f"VK_LAYER_ML_{layer}_Emulation" for layer in _LAYERS]
    own = (os.environ.get("VK_LAYER_PATH"), os.environ.get("VK_INSTANCE_LAYERS"))
    return {
        "VK_LAYER_PATH": os.pathsep.join([*places, *([own[0]] if own[0] else [])]),
        "VK_INSTANCE_LAYERS": os.pathsep.join([*names, *([own[1]] if own[1] and "VK_LAYER_ML_" not in own[1] else [])]),
    }


def _layer_directory() -> Path | None:
    package = importlib.util.find_spec("emulation_layer")
    for place in (package.submodule_search_locations or ()) if package else ():
        if any(Path(place).rglob("VkLayer_Graph.json")):
            return Path(place)
    return None


class _OwnedWorker(Worker):
    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="tosaic-vulkan-")  # removed when the interpreter ends
        super().__init__("tosaic.execute.vulkan", "Vulkan", environment(Path(self._directory.name)))


@functools.cache
def _worker() -> Worker:
    return _OwnedWorker()


def _start() -> Callable[[_Key, list[_Tensor], list[_Tensor], list[bytes]], list[bytes]]:
    import scenario_runner_py as runner

    scenarios: OrderedDict[_Key, tuple[runner.Scenario, dict[int, runner.TensorId]]] = OrderedDict()

    def build(path: str, tensors: list[_Tensor]) -> tuple[runner.Scenario, dict[int, runner.TensorId]]:
        builder, source = runner.ScenarioBuilder(), runner.VgfInfo()
        source.debug_name = "graph"
        source.load_source(path)
        dispatch = runner.DispatchVgfData(builder.add_vgf(source))
        identifiers: dict[int, runner.TensorId] = {}
        bindings = []
        for set_, binding, format_, shape in tensors:
            if binding in identifiers:  # one value that is two outputs
                continue
            info = runner.TensorInfo()
            info.debug_name, info.shape, info.format = f"binding {binding}", list(shape), getattr(runner.Format, FORMATS[format_])
            identifiers[binding] = builder.add_tensor(info)
            bindings.append(runner.TypedBinding(set_, binding, identifiers[binding], runner.DescriptorType.TensorArm))
        dispatch.bindings = bindings
        builder.add_dispatch_vgf(dispatch)
        return builder.build(), identifiers

    def run(key: _Key, inputs: list[_Tensor], outputs: list[_Tensor], data: list[bytes]) -> list[bytes]:
        if key not in scenarios:
            while len(scenarios) >= SCENARIOS_KEPT:
                scenarios.popitem(last=False)
            scenarios[key] = build(key[0], inputs + outputs)
        scenarios.move_to_end(key)
        scenario, tensors = scenarios[key]
        for raw, (_, binding, format_, shape) in zip(data, inputs, strict=True):
            # as unsigned integers: only the size is checked, and bfloat16 has no buffer protocol
            scenario.upload(tensors[binding], np.frombuffer(raw, f"u{vgf.DTYPES[format_].numpy.itemsize}").reshape(shape))
        scenario.run()
        return [scenario.download(tensors[binding]).tobytes() for _, binding, _, _ in outputs]

    return run


if __name__ == "__main__":
    serve(_start)
