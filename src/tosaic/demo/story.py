"""What a run gathers, and the part that each artifact goes through: compile, write, read back, run everywhere, score."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor

import tosaic
from tosaic.artifact import EXECUTORS
from tosaic.demo.data import SIZE
from tosaic.demo.prove import prove
from tosaic.demo.upscaler import Schedule, psnr
from tosaic.emit.passport import write_passport
from tosaic.quantization.ptq import Quantized
from tosaic.report.facts import ArtifactFacts, Check, Row

Outputs = Mapping[str, Tensor]  # photograph -> float32 [1,3,H,W]


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        side: of the scored pictures, in pixels; the artifacts take inputs of half.
        calibration: samples.
    """

    float_training: Schedule
    qat: Schedule
    side: int = SIZE
    calibration: int = 16


FULL = Plan(Schedule(1000, 4e-3), Schedule(250, 1e-3))
QUICK = Plan(Schedule(60, 4e-3, batch=4, size=32), Schedule(16, 1e-3, batch=4, size=32), side=64, calibration=4)


@dataclass
class Story:
    """A run so far.

    Attributes:
        low, truth: the held-out photographs, as the network's input and in full size.
        outputs: model -> what it makes of them.
        seconds: of each part.
    """

    folder: Path
    plan: Plan
    progress: Progress
    low: Outputs
    truth: Outputs
    rows: list[Row] = field(default_factory=list)
    outputs: dict[str, Outputs] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def part(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Time a part of the run and show its progress; yields what takes the number of steps done."""
        task = self.progress.add_task(what, total=total)
        begin = time.perf_counter()
        yield lambda done: self.progress.update(task, completed=done)
        self.seconds[what] = time.perf_counter() - begin
        self.progress.remove_task(task)
        say(self.progress, f"{what}: {self.seconds[what]:.1f} s")

    def score(self, model: str, outputs: Outputs, artifact: ArtifactFacts | None = None) -> None:
        """Add a row."""
        self.outputs[model] = outputs
        self.rows.append(Row(model, self.scores(outputs), artifact))

    def scores(self, outputs: Outputs) -> dict[str, float]:
        return {name: psnr(outputs[name], truth) for name, truth in self.truth.items()}

    def make(self, model: str, program: Quantized) -> None:
        """Compile a quantized program, write the file, read it back, run it everywhere, and complete its passport."""
        path = self.folder / f"upscaler_{model.replace(' ', '_').lower()}.vgf"
        with self.part(f"compiling {model}"):
            compiled = tosaic.compile(program, name=f"upscaler {model}")
            begin = time.perf_counter()
            compiled.save(path)
            timings = {**compiled.timings, "write": time.perf_counter() - begin}
        artifact = tosaic.load(path)
        arrays = {name: image.numpy() for name, image in self.low.items()}
        with self.part(f"running {model}.vgf on {', '.join(EXECUTORS)}", len(EXECUTORS) * len(arrays)) as step:
            real, checks = prove(artifact, arrays, step)
        outputs = {name: torch.from_numpy(array.copy()) for name, array in real.items()}
        passport = artifact.passport
        passport.metrics = {f"psnr_db.{name}": round(score, 4) for name, score in self.scores(outputs).items()}
        passport.verified = {"inputs": list(arrays), "executors": {c.executor: _recorded(c) for c in checks}}
        write_passport(passport, path)
        self.score(model, outputs, ArtifactFacts(path.name, path.stat().st_size, passport.model_dump(), timings, checks))


def _recorded(check: Check) -> dict[str, object]:
    return {"agrees": check.agrees, "values": check.values, "detail": check.detail}


def say(progress: Progress, text: str) -> None:
    """A line above the bars."""
    progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
