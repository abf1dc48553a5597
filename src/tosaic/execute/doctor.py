"""What `tosaic doctor` looks at: each tool that a run may need, tried and not only found."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

import numpy as np

from tosaic.converter import INSTALL as INSTALL_CONVERTER
from tosaic.converter import convert, find_converter
from tosaic.errors import ExecuteError, TosaicError
from tosaic.execute import vulkan
from tosaic.execute.devices import INSTALL as INSTALL_VULKAN
from tosaic.execute.devices import devices
from tosaic.execute.reference import Reference

_PROBE = np.array([-3, 0, 7, -(2**31) + 1], np.int32)  # and what ABS makes of it
_VULKAN_EXTRA, _LLM_EXTRA = "pip install 'tosaic[vulkan]'", "pip install 'tosaic[llm]', for language models"


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, whether it works, what was found, and what to do when it does not.

    Without what is not `required`, models are still exported, simulated and checked against the reference model.
    """

    name: str
    ok: bool
    found: str
    remedy: str | None = None
    required: bool = True


def checks(vgf: Callable[[], bytes]) -> list[Check]:
    """Try everything; native code runs in processes of its own, so that a crash is a failed check. Takes a few seconds.

    Args:
        vgf: makes a `.vgf` file that computes ABS of one i32[4].
    """
    return [_check(name, probe, remedy, vgf) for name, probe, remedy in _PROBES]


def _check(name: str, probe: Callable[..., str], remedy: str, vgf: Callable[[], bytes]) -> Check:
    required = name not in _OPTIONAL
    try:
        return Check(name, True, probe(vgf) if probe is _vulkan else probe(), required=required)
    except TosaicError as error:
        return Check(name, False, error.what, error.remedy or remedy, required)
    except Exception as error:  # a report on a broken installation must not break with it
        return Check(name, False, f"{type(error).__name__}: {error}", remedy, required)


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _torch() -> str:
    torch = import_module("torch")
    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
    usable = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU in use"
    return f"{torch.__version__}, {build}, {usable}"


def _package(distribution: str, module: str) -> Callable[[], str]:
    def probe() -> str:
        import_module(module)
        return metadata.version(distribution)

    return probe


def _one_op() -> bytes:
    """A TOSA file with one ABS on i32[4], straight from the serializer."""
    import tosa_serializer as ts

    file = ts.TosaSerializer("", targetMajor=1, targetMinor=0, targetPatch=0, targetDraft=False)
    block = file.currRegion.currBasicBlock
    for name in ("x", "y"):
        block.addTensor(name, [_PROBE.size], ts.DType.INT32, None)
    block.addInput("x")
    attribute = ts.TosaSerializerAttribute()
    attribute.AbsAttribute()
    block.addOperator(ts.Op.ABS, ["x"], ["y"], attribute, ts.TosaOpLocation())
    block.addOutput("y")
    return file.serialize()


def _compare(found: np.ndarray, who: str) -> None:
    if not np.array_equal(found, np.abs(_PROBE)):
        raise ExecuteError(f"{who} computes ABS({_PROBE.tolist()}) = {found.tolist()}")


def _reference() -> str:
    model = Reference()
    try:
        _compare(model.run(_one_op(), [_PROBE], [_PROBE.dtype], [_PROBE.shape])[0], "the reference model")
    finally:
        model.close()
    return f"tosa-tools {metadata.version('tosa-tools')}, ran one operator"


def _converter() -> str:
    path = find_converter()
    size = len(convert(_one_op(), path))
    try:
        version = metadata.version("ai-ml-sdk-model-converter")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    return f"{version}, {path}, converted one operator ({size} bytes)"


def _layers() -> str:
    with tempfile.TemporaryDirectory() as directory:
        if not vulkan.emulation(Path(directory)):
            raise ExecuteError("not installed; a driver that has the ML extensions does without")
    return metadata.version("ai-ml-emulation-layer-for-vulkan")


def _devices() -> str:
    if not (found := devices()):
        raise ExecuteError("there is a Vulkan loader, but no device")
    return "; ".join(map(str, found))


def _vulkan(vgf: Callable[[], bytes]) -> str:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "one.vgf")
        path.write_bytes(vgf())
        _compare(vulkan.Vulkan(path).run([_PROBE])[0], "Vulkan")
    return f"ran one operator, {'native' if devices()[0].native else 'emulated'}"


_OPTIONAL = ("model-converter", "scenario runner", "emulation layers", "vulkan device", "vulkan run", "tokenizers", "gguf")
_PROBES: tuple[tuple[str, Callable[..., str], str], ...] = (
    ("python", _python, "install Python 3.11 or newer"),
    ("torch", _torch, "pip install 'torch>=2.13,<2.14'"),
    ("torchao", _package("torchao", "torchao"), "pip install torchao"),
    ("tosa_serializer", _package("tosa-tools", "tosa_serializer"), "pip install tosa-tools"),
    ("reference model", _reference, "pip install tosa-tools"),
    ("model-converter", _converter, INSTALL_CONVERTER),
    ("vgf library", _package("ai-ml-sdk-vgf-library", "vgfpy"), "pip install ai-ml-sdk-vgf-library"),
    ("scenario runner", _package("ai-ml-sdk-scenario-runner", "scenario_runner_py"), _VULKAN_EXTRA),
    ("emulation layers", _layers, _VULKAN_EXTRA),
    ("vulkan device", _devices, INSTALL_VULKAN),
    ("vulkan run", _vulkan, "see the checks above"),
    ("tokenizers", _package("tokenizers", "tokenizers"), _LLM_EXTRA),
    ("gguf", _package("gguf", "gguf"), _LLM_EXTRA),
)
