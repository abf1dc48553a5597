"""An exported language model that runs: token ids in, logits out, the stored caches handed from call to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from tosaic.artifact import dequantize, load
from tosaic.emit.passport import PortRecord
from tosaic.errors import InputError
from tosaic.execute.threads import torch_threads
from tosaic.executors import EXECUTORS, Run
from tosaic.llm.manifest import CacheRecord, Manifest, ProgramRecord, read_manifest
from tosaic.tosa.types import DType

Caches = dict[str, np.ndarray]  # stored values by the name of the input


class Program:
    """One of the two artifacts, found to be what the manifest says.

    Attributes:
        artifact: with its graph.
        tokens: P, how many one call takes.
        logits: how they are stored.

    Raises:
        InputError: an input or output is missing, or has another type, shape or scale.
    """

    def __init__(self, folder: Path, manifest: Manifest, record: ProgramRecord) -> None:
        self.artifact, self.tokens = load(folder / record.file), record.tokens
        inputs, outputs = self.artifact.passport.inputs, self.artifact.passport.outputs
        self._inputs, self._outputs = [port.name for port in inputs], [port.name for port in outputs]
        integers = {"ids": [1, self.tokens], "position": [1]} | ({"last": [1]} if "last" in self._inputs else {})
        ports = {name: PortRecord(name=name, dtype=DType.INT32.value, shape=shape) for name, shape in integers.items()}
        _check(record.file, "input", inputs, ports | {c.input: c for c in manifest.caches})
        self.logits = next((port for port in outputs if port.name == "logits"), PortRecord(name="logits", dtype="", shape=[]))
        shape = [1, self.tokens if manifest.full_logits else 1, manifest.vocabulary]
        _check(
            record.file,
            "output",
            outputs,
            {"logits": self.logits.model_copy(update={"shape": shape})} | {c.output: c for c in manifest.caches},
        )
        self._caches = {c.output: c.input for c in manifest.caches}

    def run(self, ids: Sequence[int], position: int, caches: Caches, run: Run) -> tuple[np.ndarray, Caches]:
        """One call.

        Args:
            ids: as many as there are, at most P; the call is filled up behind them.
            position: of the first.
            caches: stored values; they are not written to.
            run: the graph, on one executor.

        Returns:
            Stored logits [1,1,V] of the last of `ids`, or [1,P,V]; and the caches with the new rows.
        """
        padded = np.zeros((1, self.tokens), np.int32)
        padded[0, : len(ids)] = ids
        given = {"ids": padded, "position": np.array([position], np.int32), "last": np.array([len(ids) - 1], np.int32), **caches}
        found = dict(zip(self._outputs, run([given[name] for name in self._inputs]), strict=True))
        return found.pop("logits"), {self._caches[name]: array for name, array in found.items()}


def _check(file: str, kind: str, found: Sequence[PortRecord], expected: Mapping[str, PortRecord | CacheRecord]) -> None:
    ports = {port.name: port for port in found}
    for name in dict.fromkeys((*expected, *ports)):
        if (is_there := _form(ports.get(name))) != (wanted := _form(expected.get(name))):
            raise InputError(f"{file}: {kind} {name}: expected {wanted}, found {is_there}", remedy="export the model again")


def _form(port: PortRecord | CacheRecord | None) -> str:
    if port is None:
        return "none"
    scale = "" if port.scale is None else f" with scale {port.scale}, zero point {port.zero_point or 0}"
    return f"{port.dtype}{port.shape}{scale}"


def empty_caches(manifest: Manifest) -> Caches:
    """Stored zeros."""
    return {c.input: np.full(c.shape, c.zero_point or 0, DType(c.dtype).numpy) for c in manifest.caches}


class Session:
    """An export folder at work: one sequence of tokens, its caches, and what comes next.

    Args:
        folder: of an export, which has the manifest.
        on: who runs the artifacts: "simulator", "reference" or "vulkan".

    Attributes:
        manifest: what the folder holds.
        position: how many tokens the caches hold.

    Raises:
        InputError: the folder holds no export, or one that is damaged.
        ExecuteError: the executor is not there.
    """

    def __init__(self, folder: Path | str, on: str = "simulator") -> None:
        if on not in EXECUTORS:
            raise InputError(f"unknown executor '{on}'", remedy=f"known are {', '.join(EXECUTORS)}")
        self.folder, self.on = Path(folder), on
        self.manifest = read_manifest(self.folder)
        self._prefill = Program(self.folder, self.manifest, self.manifest.prefill)
        self._decode = Program(self.folder, self.manifest, self.manifest.decode)
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self.position, self._caches = 0, empty_caches(self.manifest)

    @property
    def left(self) -> int:
        """How many more tokens the caches can take."""
        return self.manifest.max_seq_length - self.position

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Take tokens behind those that are there, P in each call.

        Returns:
            Logits of the last one, float32 [V].

        Raises:
            InputError: no tokens, more than the caches can take (nothing is run then), or ids that are not of the vocabulary.
        """
        self._check(ids)
        start, logits = 0, np.empty(0, np.float32)
        while start < len(ids):
            # where a whole call would reach beyond the caches, and for one token alone, decode is what fits
            whole = self._prefill.tokens <= self.left and len(ids) - start > 1
            program = self._prefill if whole else self._decode
            some = ids[start : start + program.tokens]
            logits = self._run(program, some)
            start += len(some)
        return logits

    def step(self, token: int) -> np.ndarray:
        """Take one token by the decode program; otherwise as `prefill`."""
        self._check([token])
        return self._run(self._decode, [token])

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InputError("no tokens: the text is empty")
        if len(ids) > self.left:
            there = f", of which {self.position} are taken" if self.position else ""
            raise InputError(
                f"sequence longer than the cache: {len(ids)} tokens, and there are {self.manifest.max_seq_length} positions{there}",
                remedy="give a shorter text, or export with a larger --max-seq-length",
            )
        check_ids(ids, self.manifest)

    def _run(self, program: Program, ids: Sequence[int]) -> np.ndarray:
        # products of one row are too small to share: waiting for other threads takes as long as it saves, and on a busy machine far longer
        with torch_threads(1) if program.tokens == 1 else nullcontext():
            stored, self._caches = program.run(ids, self.position, self._caches, program.artifact.executor(self.on))
        self.position += len(ids)
        return dequantize(stored[0, len(ids) - 1 if stored.shape[1] > 1 else 0], program.logits)


def check_ids(ids: Sequence[int], manifest: Manifest) -> None:
    """Refuse ids that are not of the vocabulary, which only another model's tokenizer gives.

    Raises:
        InputError: names the first.
    """
    wrong = next((i for i in ids if not 0 <= i < manifest.vocabulary), None)
    if wrong is not None:
        raise InputError(
            f"token {wrong} is not in the vocabulary of {manifest.name}, 0..{manifest.vocabulary - 1}", remedy="is it its tokenizer?"
        )
