"""`tosaic demo`: one run from training to the report."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import tosaic
from tosaic.artifact import versions
from tosaic.demo import data as photographs
from tosaic.demo.data import LICENCES, Patches
from tosaic.demo.pictures import draw
from tosaic.demo.prove import prove
from tosaic.demo.upscaler import CHANNELS, SETTLED, Schedule, Upscaler, psnr, train
from tosaic.emit.files import atomic_write
from tosaic.emit.passport import write_passport
from tosaic.errors import ExecuteError, InputError
from tosaic.quantization.ptq import Quantized
from tosaic.report.facts import ArtifactFacts, Report, Row, score_table
from tosaic.report.html import to_html
from tosaic.report.json import to_json
from tosaic.report.markdown import to_markdown

SEED = 2026
THREADS = 2  # sums in another order give other weights
EPOCH = 100  # steps


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        side: of the scored pictures, in pixels; the artifacts take inputs of half.
        calibration: samples.
    """

    float_training: Schedule
    qat: Schedule
    side: int = photographs.SIZE
    calibration: int = 16


FULL = Plan(Schedule(500, 4e-3), Schedule(160, 5e-4))
QUICK = Plan(Schedule(60, 4e-3, batch=4, size=32), Schedule(16, 5e-4, batch=4, size=32), side=64, calibration=4)


@dataclass
class Story:
    """What the run has gathered so far."""

    folder: Path
    plan: Plan
    console: Console
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    outputs: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # model -> photograph -> float32 [1,3,H,W]

    @contextlib.contextmanager
    def part(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Time a part of the run and show its progress; yields what takes the number of steps done."""
        task = self.progress.add_task(what, total=total)
        begin = time.perf_counter()
        yield lambda done: self.progress.update(task, completed=done)
        self.seconds[what] = time.perf_counter() - begin
        self.progress.remove_task(task)
        self.say(f"{what}: {self.seconds[what]:.1f} s")

    def say(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def score(self, model: str, outputs: dict[str, Tensor], truth: dict[str, Tensor]) -> Row:
        """Add a row without an artifact."""
        self.outputs[model] = outputs
        self.rows.append(Row(model, {name: psnr(outputs[name], truth[name]) for name in truth}))
        return self.rows[-1]


def run_demo(output: Path, *, quick: bool = False, data: str = "auto", epochs: int | None = None) -> None:
    """Train the upscaler, quantize it three ways, write and prove the files, and report.

    Args:
        output: folder for the `.vgf` files, their passports, pictures and reports.
        quick: a few seconds of training and small pictures, to see that everything works.
        data: what to train on: "auto", "cifar10" or "photographs".
        epochs: of 100 steps, for the float training.

    Raises:
        InputError: the data is not to be had, or a number makes no sense.
        ExecuteError: executors disagree; all files are written nevertheless.
    """
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs is {epochs}", remedy="give at least 1")
    plan = QUICK if quick else FULL
    if epochs is not None:
        plan = replace(plan, float_training=replace(plan.float_training, steps=epochs * EPOCH))
    output = Path(output)
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    begin, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with Progress(*columns, console=console, transient=True) as progress, torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            story = Story(output, plan, console, progress)
            report = _tell(story, data, begin)
    finally:
        torch.set_num_threads(threads)
    _print(report, output)
    wrong = [f"{a.file}: {c.executor}: {c.detail}" for _, a in report.artifacts for c in a.checks if c.agrees is False]
    if wrong:
        raise ExecuteError("the executors disagree:\n" + "\n".join(f"  {line}" for line in wrong), remedy="report this as a bug of Tosaic")


def _tell(story: Story, choice: str, begin: float) -> Report:
    """The order of the story."""
    plan = story.plan
    dataset = photographs.training_data(choice, story.say)
    truth = photographs.held_out(plan.side)
    low = {name: photographs.downscale(image) for name, image in truth.items()}
    patches = Patches(dataset.images, SEED)
    calibration = [patches.pair(1, plan.side)[0] for _ in range(plan.calibration)]
    example = calibration[0]

    for mode in ("bilinear", "bicubic"):
        scaled = {n: F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=False).clamp(0, 1) for n, x in low.items()}
        story.score(mode, scaled, truth)

    model = Upscaler()
    with story.part(f"training FP32, {plan.float_training.steps} steps", plan.float_training.steps) as step:
        train(model.to(memory_format=torch.channels_last), patches, plan.float_training, step)
    model.eval()
    with torch.no_grad():
        story.score("FP32", {name: model(image) for name, image in low.items()}, truth)

    _make(story, "PTQ 8a8w", lambda: _ptq(story, model, example, calibration, "8a8w"), low, truth)
    session_patches = Patches(dataset.images, SEED + 1)
    _make(story, "QAT 8a8w", lambda: _qat(story, model, example, calibration, session_patches), low, truth)
    _make(story, "PTQ 16a8w", lambda: _ptq(story, model, example, calibration, "16a8w"), low, truth)

    with story.part("drawing"):
        pictures = draw(story.folder, story.outputs, truth, story.rows)
    story.seconds["everything"] = time.perf_counter() - begin
    report = Report(
        title="One network, three quantizations, one proof each",
        created=f"tosaic demo, {time.strftime('%Y-%m-%d %H:%M:%S %Z')}",
        summary=_summary(story),
        baseline="FP32",
        rows=tuple(story.rows),
        pictures=pictures,
        sections=_sections(story, dataset.described),
        seconds=story.seconds,
    )
    for name, text in (
        ("report.json", to_json(report)),
        ("report.md", to_markdown(report)),
        ("report.html", to_html(report, story.folder)),
    ):
        atomic_write(story.folder / name, text.encode())
    return report


def _ptq(story: Story, model: nn.Module, example: Tensor, calibration: list[Tensor], scheme: str) -> Quantized:
    with story.part(f"calibrating PTQ {scheme}", len(calibration)) as step:
        return tosaic.quantize(model, example, calibration, scheme, progress=step)


def _qat(story: Story, model: nn.Module, example: Tensor, calibration: list[Tensor], patches: Patches) -> Quantized:
    with story.part("preparing QAT 8a8w", len(calibration)) as step:
        session = tosaic.prepare_qat(model, example, "8a8w")
        session.calibrate(calibration, step)
    with story.part(f"training QAT 8a8w, {story.plan.qat.steps} steps", story.plan.qat.steps) as step:
        train(session.model, patches, story.plan.qat, step, settle=session.freeze_observers)
    return session.finish()


def _make(story: Story, title: str, quantized: Callable[[], Quantized], low: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """Quantize, compile, write, read back, run everywhere; add the row, and complete the passport."""
    program = quantized()
    path = story.folder / f"upscaler_{title.replace(' ', '_').lower()}.vgf"
    with story.part(f"compiling {title}"):
        begin = time.perf_counter()
        compiled = tosaic.compile(program, name=f"upscaler {title}")
        lowered = time.perf_counter()
        compiled.save(path)
        timings = {**compiled.timings, "write": time.perf_counter() - lowered}
        timings.setdefault("lower", lowered - begin)
    artifact = tosaic.load(path)
    arrays = {name: image.numpy() for name, image in low.items()}
    with story.part(f"running {title} on three executors", 3 * len(arrays)) as step:
        order = {"simulator": 0, "reference": 1, "vulkan": 2}
        outputs, checks = prove(artifact, arrays, lambda executor, done: step(order[executor] * len(arrays) + done))
    scores = {name: psnr(torch.from_numpy(outputs[name]), truth[name]) for name in truth}
    story.outputs[title] = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in outputs.items()}
    passport = artifact.passport
    passport.metrics = {f"psnr_db.{name}": round(score, 4) for name, score in scores.items()}
    passport.verified = {
        "inputs": list(arrays),
        "executors": {c.executor: {"agrees": c.agrees, "values": c.values, "detail": c.detail} for c in checks},
    }
    write_passport(passport, path)
    facts = ArtifactFacts(path.name, path.stat().st_size, passport.model_dump(), timings, checks)
    story.rows.append(Row(title, scores, facts))


def _summary(story: Story) -> tuple[str, ...]:
    names = " and ".join(story.outputs["FP32"])
    values = sum(c.values for row in story.rows if row.artifact for c in row.artifact.checks if c.executor != "simulator")
    missing = sorted({f"{c.executor} ({c.detail})" for row in story.rows if row.artifact for c in row.artifact.checks if c.agrees is None})
    differ = any(c.agrees is False for row in story.rows if row.artifact for c in row.artifact.checks)
    verdict = "THE EXECUTORS DISAGREE; see the artifacts below." if differ else f"All {values:,} stored values are equal."
    return (
        f"A small upscaler (bilinear ×2, then three 3×3 convolutions with {CHANNELS} channels) was trained in PyTorch, quantized after "
        "training (PTQ) and in training (QAT), and compiled to .vgf files for the ML extensions for Vulkan.",
        f"Each file was read back and run on photographs that were in neither training nor calibration ({names}). The scores of the "
        "quantized models are what those files compute, not estimates; PSNR is against the full-size photograph, higher is better.",
        f"Simulator, TOSA reference model and Vulkan computed every picture, and were compared value by value. {verdict}"
        + (f" Not run here: {'; '.join(missing)}." if missing else ""),
    )


def _sections(story: Story, trained_on: str) -> dict[str, dict[str, str]]:
    plan, side = story.plan, story.plan.side

    def described(s: Schedule) -> str:
        return f"{s.steps} steps of {s.batch} crops of {s.size}x{s.size}, Adam at {s.rate:g}, L1 loss"

    return {
        "Data": {
            "training": trained_on,
            "calibration": f"{plan.calibration} crops of the training images, scaled down to {side // 2}x{side // 2}",
            "held out": "; ".join(f"{name}: {LICENCES[name]}" for name in story.outputs["FP32"])
            + f"; the central square at {side}x{side}, scaled down to {side // 2}x{side // 2} for the input",
        },
        "Training": {
            "FP32": described(plan.float_training),
            "QAT 8a8w": f"{described(plan.qat)}; activation scales fixed after {SETTLED:.0%} of them",
            "seed": str(SEED),
        },
        "Versions and machine": {
            **versions(),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {THREADS} threads",
        },
    }


def _print(report: Report, folder: Path) -> None:
    """The table and where the files are, on stdout."""
    header, body = score_table(report)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    table = Table(title=report.title, title_justify="left", title_style="bold", header_style="bold")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if 0 < i < len(header) - 1 else "left")
    for cells in body:
        table.add_row(*cells, style="bold" if cells[0] == report.baseline else "")
    console.print()
    console.print(table)
    for _, artifact in report.artifacts[:1]:
        for check in artifact.checks:
            console.print(f"{check.executor}: {check.detail}", markup=False, soft_wrap=True)
    console.print(f"\nEverything took {report.seconds['everything']:.0f} s. Open {folder / 'report.html'}", markup=False, soft_wrap=True)
