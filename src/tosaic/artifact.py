"""An artifact: a TOSA graph, what its inputs and outputs mean, and the three ways to run it."""

from __future__ import annotations

import functools
import importlib.metadata
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from tosaic.emit.files import Hashed, atomic_write_all, digest
from tosaic.emit.flatbuffer import serialize
from tosaic.emit.passport import Passport, PortRecord, encode_passport, passport_path, read_passport
from tosaic.emit.read import no_graph, read_tosa, read_vgf_or_ports
from tosaic.emit.vgf import stream_vgf
from tosaic.errors import InputError
from tosaic.executors import EXECUTORS, Run, prepare
from tosaic.tosa.graph import Graph, Node, Value
from tosaic.tosa.types import DType

if TYPE_CHECKING:
    from tosaic.execute.together import Together
    from tosaic.verification import Verification

Timer = Callable[[tuple[Node, ...], float], None]
_HALVES = (DType.FP16, DType.BF16)
_HALF_TYPES = tuple(dtype.numpy for dtype in _HALVES)
_VERSIONED = ("tosaic", "torch", "torchao", "tosa-tools", "ai-ml-sdk-model-converter", "ai-ml-sdk-vgf-library")
_Arrays = list[np.ndarray]
_RunSome = Callable[[Sequence[_Arrays], Callable[[_Arrays], _Arrays], Callable[[_Arrays], _Arrays]], list[_Arrays]]


@dataclass
class Artifact:
    """What `tosaic.compile` returns and `tosaic.load` reads.

    Attributes:
        graph: the typed TOSA graph; `graph.ops` lists its operators and `str(graph)` is its text.
        passport: inputs and outputs with their scales, recipe, metrics.
        timings: seconds of each stage of the compilation.
        path: the file it was read from or last saved to.
        shaders: names of segments that are compute shaders, which Vulkan alone runs; the graph has the inputs and outputs only, then.
    """

    graph: Graph
    passport: Passport
    timings: dict[str, float] = field(default_factory=dict)
    path: Path | None = None
    shaders: tuple[str, ...] = ()
    _executors: dict[tuple[str, str], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _batches: tuple[tuple[int | None, str], Together] | None = field(default=None, init=False, repr=False, compare=False)

    def save(self, path: Path | str, *, emitter: str = "direct", debug_info: bool = True) -> Path:
        """Write the `.vgf` (or `.tosa`, by the suffix) and its passport; neither is replaced before both are written.

        Args:
            emitter: who writes a `.vgf`: "direct", or "converter" for Arm's model-converter.
            debug_info: names of values and places in the model that operators come from, in a `.vgf` that is written directly.

        Raises:
            InputError: the suffix is neither, there is no such emitter, or the artifact has compute shaders.
            EmitError: the converter or the file system failed; an old file stays as it was.
        """
        path = Path(path)
        if path.suffix not in (".vgf", ".tosa"):
            raise InputError(f"cannot write {path}: the suffix is neither .vgf nor .tosa", remedy="name it like model.vgf")
        if self.shaders:
            raise InputError(f"segment '{self.shaders[0]}' is a compute shader, which is not written again", remedy="copy the file")
        start = time.perf_counter()

        def write(file: BinaryIO) -> None:
            hashed = Hashed(file)
            if path.suffix == ".vgf":
                stream_vgf(self.graph, hashed, emitter=emitter, debug_info=debug_info)
            else:
                hashed.write(serialize(self.graph))
            self.passport.sha256 = hashed.hexdigest()

        atomic_write_all({path: write, passport_path(path): lambda file: file.write(encode_passport(self.passport))})
        self.timings["emit"] = time.perf_counter() - start
        self.path = path
        return path

    def run(
        self,
        inputs: Any,
        on: str = "simulator",
        float_io: bool | None = None,
        *,
        batch: int | None = None,
        device: str = "cpu",
        timer: Timer | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[np.ndarray]:
        """Run on one executor.

        Args:
            inputs: arrays or tensors in order, one alone, or a mapping by input name. Arrays that are longer along the first axis
                than the artifact's inputs are so many samples (one that is not serves all of them).
            on: "simulator", "reference" (Arm's TOSA reference model) or "vulkan".
            float_io: True: float inputs are quantized and outputs dequantized by the passport's scales, and float16 and bfloat16 ones
                converted from and to float32; False: stored values in and out; None: decided by whether an input is float, and not
                of the artifact's own type.
            batch: samples that the simulator computes at once, with the integers of single runs; None: as many as fit well into memory,
                and one at a time where an operator cannot take more, or is timed.
            device: that the simulator runs on: "cpu", "cuda" or "cuda:N", with the same integers; the processor unless it is asked for, so
                that floats are the same to the last bit on every machine with the same torch.
            timer: of the simulator's operators (`report.profile.Profile` adds its times up).
            progress: called with the number of samples that are done.

        Returns:
            One array for each output (bfloat16 as numpy has it from `ml_dtypes`), samples joined along the first axis.

        Raises:
            InputError: an input is missing or has another shape or type.
            ExecuteError: the executor is missing or failed; or an operator, which is named, cannot take `batch` samples at once.
        """
        if on not in EXECUTORS:
            raise InputError(f"unknown executor '{on}'", remedy=f"known are {', '.join(EXECUTORS)}")
        if timer is not None and on != "simulator":
            raise InputError(f"operators are timed on the simulator, and not on {on}", remedy="leave the timer out")
        if device != "cpu" and on != "simulator":
            raise InputError(f"the device '{device}' is for the simulator, and not for {on}", remedy="leave the device out")
        arrays = self.arrays(inputs)
        if float_io is None:
            float_io = any(is_float(a) and a.dtype != v.dtype.numpy for a, v in zip(arrays, self.graph.inputs, strict=True))
        if batch is not None and (batch < 1 or on != "simulator" or timer is not None):
            raise InputError(f"batch is {batch}: expected at least 1, on the simulator and without a timer")
        samples = self.split(arrays)
        run, size = self._runner(on, len(samples), batch, timer, device)
        found: list[_Arrays] = []

        def stored(sample: _Arrays) -> _Arrays:
            ports = zip(sample, self.passport.inputs, self.graph.inputs, strict=True)
            return [self._stored(array, port, value, float_io) for array, port, value in ports]

        def real(outputs: _Arrays) -> _Arrays:
            return [dequantize(o, p) for o, p in zip(outputs, self.passport.outputs, strict=True)] if float_io else outputs

        for start in range(0, len(samples), size):
            found += run(samples[start : start + size], stored, real)
            if progress is not None:
                progress(len(found))
        return found[0] if len(found) == 1 else [_joined(parts) for parts in zip(*found, strict=True)]

    def verify(
        self,
        inputs: Any = None,
        *,
        on: Sequence[str] = EXECUTORS[1:],
        tolerance: float | None = None,
        each: bool = False,
        device: str = "cpu",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Verification:
        """Run the same inputs through the simulator and other executors; see `tosaic.verification.verify`.

        The passport notes the result (`save`, or `write_passport` for a file that is there, writes it).
        """
        from tosaic.verification import verify

        found = verify(self, inputs, on=on, tolerance=tolerance, each=each, device=device, progress=progress)
        self.passport.verified = found.record()
        return found

    def samples(self, inputs: Any) -> Iterator[list[np.ndarray]]:
        """The stored inputs of each sample, in the types of the graph; float arrays are quantized by the passport's scales.

        Args:
            inputs: as for `run`.

        Raises:
            InputError: an input is missing or has another shape or type.
        """
        for sample in self.split(self.arrays(inputs)):
            yield [
                self._stored(a, p, v, is_float(a) and a.dtype != v.dtype.numpy)
                for a, p, v in zip(sample, self.passport.inputs, self.graph.inputs, strict=True)
            ]

    def location(self, node: Node) -> str:
        """Where an operator comes from in the user's model: aten operator, module, file and line; empty where it is not known."""
        return str(node.location or "")

    def executor(self, on: str, device: str = "cpu") -> Run:
        """The graph made ready for one executor (`device`: that the simulator runs on); it is kept."""
        self._refuse_shaders(on)
        key = on, device
        if key not in self._executors:
            self._executors[key] = prepare(on, self.graph, self._file() if on == "vulkan" else None, device)
        return self._executors[key]

    def _refuse_shaders(self, on: str) -> None:
        if self.shaders and (on != "vulkan" or self._file() is None):
            error = no_graph(self.shaders[0])
            raise InputError(f"{self.path}: {error.what}", remedy=error.remedy if on != "vulkan" else "load it again, as it has changed")

    def _runner(self, on: str, count: int, batch: int | None, timer: Timer | None, device: str) -> tuple[_RunSome, int]:
        """What runs some samples, of which it is told how to store inputs and what to make of outputs, and how many it takes at most."""
        self._refuse_shaders(on)
        if on == "simulator" and count > 1 and timer is None and batch != 1:
            together = self._together(count, batch, device)
            return together.run, together.size
        run = self.executor(on, device) if timer is None else functools.partial(self.executor(on, device), timer=timer)
        return lambda some, stored, real: [real(run(stored(sample))) for sample in some], 1

    def _together(self, count: int, batch: int | None, device: str) -> Together:
        """The simulator of so many samples at once; the last one is kept."""
        from tosaic.execute.together import Together  # late: torch

        key = batch, device
        if self._batches is None or self._batches[0] != key or not self._batches[1].serves(count):
            self._batches = None  # its weights go before those of the new one come
            self._batches = key, Together(self.graph, count, batch, device)
        return self._batches[1]

    def arrays(self, inputs: Any) -> list[np.ndarray]:
        """`inputs`, as `run` takes them, in the order of the graph's.

        Raises:
            InputError: one is missing, or there is one too many.
        """
        names = [p.name for p in self.passport.inputs]
        if isinstance(inputs, Mapping):
            missing, unknown = [n for n in names if n not in inputs], [n for n in inputs if n not in names]
            if missing or unknown:
                raise InputError(f"inputs are {', '.join(names)}; missing: {missing or 'none'}, unknown: {unknown or 'none'}")
            inputs = [inputs[n] for n in names]
        elif not isinstance(inputs, list | tuple):
            inputs = [inputs]
        if len(inputs) != len(names):
            raise InputError(f"the artifact takes {len(names)} inputs ({', '.join(names)}), found {len(inputs)}")
        return [_array(x) for x in inputs]

    def split(self, arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Samples of the artifact's own batch size, cut along the first axis; what does not fit is left to be refused.

        Raises:
            InputError: the arrays hold different numbers of samples, or a part of a batch.
        """
        counts = [_samples(a, p, v) for a, p, v in zip(arrays, self.passport.inputs, self.graph.inputs, strict=True)]
        count = max(counts, default=1)
        if any(c not in (1, count) for c in counts):
            found = ", ".join(f"{p.name} {c}" for p, c in zip(self.passport.inputs, counts, strict=True))
            raise InputError(f"the inputs hold different numbers of samples: {found}")

        def part(array: np.ndarray, own: int, i: int) -> np.ndarray:
            size = len(array) // own if own > 1 else 0
            return array[i * size : (i + 1) * size] if own > 1 else array

        return [[part(a, own, i) for a, own in zip(arrays, counts, strict=True)] for i in range(count)]

    def _stored(self, array: np.ndarray, port: PortRecord, value: Value, float_io: bool) -> np.ndarray:
        if port.layout == "nhwc" and array.ndim == 4:
            transposed = array.transpose(0, 2, 3, 1)
            # either layout is taken; where the shape does not tell, real values have the model's own, stored ones the file's
            if transposed.shape == value.shape and (float_io or array.shape != value.shape):
                array = transposed
        if array.shape != value.shape:
            raise InputError(f"input '{port.name}': expected shape {list(value.shape)}, found {list(array.shape)}")
        if float_io and port.scale is not None:
            if not is_float(array):
                raise InputError(f"input '{port.name}': expected float values to quantize, found {array.dtype}")
            return quantize(array, port, value.dtype)
        if float_io and value.dtype in _HALVES and is_float(array):
            with np.errstate(over="ignore"):  # too large for float16 is infinity
                array = array.astype(value.dtype.numpy)
        if value.dtype is DType.INT32 and array.dtype == np.int64:
            if array.size and (array.min() < value.dtype.min or array.max() > value.dtype.max):
                raise InputError(f"input '{port.name}' has values outside int32")
            return array.astype(np.int32)
        if array.dtype != value.dtype.numpy:
            hint = f"quantize with scale {port.scale}, zero point {port.zero_point}, or use float_io" if port.scale else "convert it"
            raise InputError(f"input '{port.name}': expected {value.dtype.numpy}, found {array.dtype}", remedy=hint)
        return np.ascontiguousarray(array).reshape(array.shape)  # numpy makes scalars 1-d here

    def _file(self) -> Path | None:
        """The `.vgf` that it was read from or saved to, if it is still that."""
        if self.path is None or self.path.suffix != ".vgf" or not self.path.is_file():
            return None
        return self.path if digest(self.path) == self.passport.sha256 else None


def _samples(array: np.ndarray, port: PortRecord, value: Value) -> int:
    """How many samples an array holds."""
    shape = value.shape
    rests = [shape[1:]] + ([(shape[3], *shape[1:3])] if port.layout == "nhwc" and len(shape) == 4 else [])
    if array.ndim != len(shape) or not shape or array.shape[1:] not in rests or len(array) <= shape[0]:
        return 1
    if len(array) % shape[0]:
        raise InputError(
            f"input '{port.name}' holds {len(array)} samples, which are no whole batches of {shape[0]}", remedy="cut or pad them"
        )
    return len(array) // shape[0]


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """An output of several samples, along its first axis (a new one for scalars)."""
    return np.concatenate(parts) if parts[0].ndim else np.stack(parts)


def _array(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        if str(x.dtype) == "torch.bfloat16":  # numpy has no such type; float32 holds it exactly
            return x.float().numpy().astype(DType.BF16.numpy)
        x = x.numpy()
    return np.asarray(x)


def is_float(array: np.ndarray) -> bool:
    """Whether an array is of a float type, bfloat16 among them."""
    return array.dtype.kind == "f" or array.dtype == DType.BF16.numpy


def quantize(real: np.ndarray, port: PortRecord, dtype: DType) -> np.ndarray:
    """Stored values of real ones, as PyTorch's quantize_per_tensor rounds: clamp(round(x * (1 / scale)) + zero_point)."""
    if not np.isfinite(real).all():
        raise InputError(f"input '{port.name}' contains NaN or infinite values")
    scaled = np.empty(real.shape, np.float32)
    np.rint(np.multiply(real.astype(np.float32, copy=False), np.float32(1) / np.float32(port.scale), out=scaled), out=scaled)
    exact = scaled if dtype.bits <= 16 else scaled.astype(np.float64)  # f32 holds what stays inside of 16 bits, and the bounds
    exact += port.zero_point or 0
    return np.clip(exact, dtype.min, dtype.max, out=exact).astype(dtype.numpy)


def dequantize(stored: np.ndarray, port: PortRecord) -> np.ndarray:
    """Real values (float32) of stored ones; the model's own layout is restored."""
    if port.layout == "nhwc" and stored.ndim == 4:
        stored = stored.transpose(0, 3, 1, 2)
    if port.scale is None:
        return stored.astype(np.float32) if stored.dtype in _HALF_TYPES else stored
    return ((stored.astype(np.float64) - (port.zero_point or 0)) * port.scale).astype(np.float32)


def operator_counts(graph: Graph) -> dict[str, int]:
    """TOSA operator -> how often, most frequent first."""
    return dict(Counter(op.NAME for part in graph.nested() for op in part.ops).most_common())


def versions() -> dict[str, str]:
    """Versions of what made an artifact."""
    found = {}
    for package in _VERSIONED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def load(path: Path | str) -> Artifact:
    """Read a `.vgf` or `.tosa` file, and its passport if it has one.

    The graph is decoded from the file itself, so what runs is what the file holds. Of a file with compute shaders only inputs and outputs
    are, and Vulkan runs it.

    Raises:
        InputError: no such file, a malformed file, or a passport that belongs to another file.
    """
    path = Path(path)
    if path.suffix not in (".vgf", ".tosa"):
        raise InputError(f"{path}: the suffix is neither .vgf nor .tosa")
    graph, shaders = read_vgf_or_ports(path) if path.suffix == ".vgf" else (read_tosa(path), ())
    passport, found = read_passport(path), digest(path)
    if passport is None:
        passport = Passport(name=path.stem, spec="", sha256=found, inputs=_ports(graph.inputs), outputs=_ports(graph.outputs))
    elif passport.sha256 and passport.sha256 != found:
        raise InputError(f"{passport_path(path)} belongs to another file than {path}", remedy="export again, or remove the passport")
    passport.operators = operator_counts(graph)
    return Artifact(graph, passport, path=path, shaders=shaders)


def _ports(values: Sequence[Value]) -> list[PortRecord]:
    return [PortRecord(name=v.name, dtype=v.dtype.value, shape=list(v.shape)) for v in values]
