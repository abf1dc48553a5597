"""Which Vulkan devices there are, asked of the loader itself (in a process of its own: drivers crash)."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tosaic.errors import ExecuteError
from tosaic.execute.worker import Worker, serve

EXTENSIONS = frozenset({"VK_ARM_tensors", "VK_ARM_data_graph"})
_KINDS = {1: "integrated GPU", 2: "discrete GPU", 3: "virtual GPU", 4: "CPU"}
# what the scenario runner takes first
_ORDER = {2: 5, 1: 4, 3: 3, 4: 2, 0: 1}


@dataclass(frozen=True)
class Device:
    """A Vulkan device; `native` when its driver has the ML extensions itself."""

    name: str
    kind: str
    api: tuple[int, int]
    native: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, Vulkan {self.api[0]}.{self.api[1]}, {'ML extensions' if self.native else 'no ML extensions'})"


@functools.cache
def devices() -> tuple[Device, ...]:
    """The devices without any emulation, the one that the scenario runner takes first.

    Raises:
        ExecuteError: there is no loader, no driver, or it crashed.
    """
    worker = Worker("tosaic.execute.devices", "Vulkan", {"VK_INSTANCE_LAYERS": ""})
    try:
        return tuple(Device(*d) for d in worker.call())
    finally:
        worker.close()


class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int32),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    ]


class _Properties(ctypes.Structure):
    """The head of VkPhysicalDeviceProperties; the limits behind it are only made room for."""

    _fields_ = [
        ("api", ctypes.c_uint32),
        ("driver", ctypes.c_uint32),
        ("vendor", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("kind", ctypes.c_int32),
        ("name", ctypes.c_char * 256),
        ("rest", ctypes.c_uint8 * 2048),
    ]


class _Extension(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * 256), ("version", ctypes.c_uint32)]


def _loader() -> ctypes.CDLL:
    names = {"win32": ["vulkan-1.dll"], "darwin": ["libvulkan.1.dylib", "libvulkan.dylib"]}.get(sys.platform, ["libvulkan.so.1"])
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ExecuteError("the Vulkan loader is not installed", remedy=INSTALL)


INSTALL = "apt-get install mesa-vulkan-drivers libvulkan1"


def _devices() -> list[tuple[str, str, tuple[int, int], bool]]:
    vulkan = _loader()
    instance, count = ctypes.c_void_p(), ctypes.c_uint32()
    info = _InstanceCreateInfo(type=1)  # VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO
    if status := vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)):
        raise ExecuteError(f"no driver is installed (vkCreateInstance returned {status})", remedy=INSTALL)
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    handles = (ctypes.c_void_p * count.value)()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
    found = []
    for handle in handles:
        device, properties = ctypes.c_void_p(handle), _Properties()
        vulkan.vkGetPhysicalDeviceProperties(device, ctypes.byref(properties))
        vulkan.vkEnumerateDeviceExtensionProperties(device, None, ctypes.byref(count), None)
        extensions = (_Extension * count.value)()
        vulkan.vkEnumerateDeviceExtensionProperties(device, None, ctypes.byref(count), extensions)
        native = {e.name.decode(errors="replace") for e in extensions} >= EXTENSIONS
        api = (properties.api >> 22 & 0x7F, properties.api >> 12 & 0x3FF)
        entry = (properties.name.decode(errors="replace"), _KINDS.get(properties.kind, "other"), api, native)
        found.append((_ORDER.get(properties.kind, 0), entry))
    vulkan.vkDestroyInstance(instance, None)
    return [entry for _, entry in sorted(found, key=lambda f: -f[0])]


def _start() -> Callable[[], list[tuple[str, str, tuple[int, int], bool]]]:
    return _devices


if __name__ == "__main__":
    serve(_start)
