"""`tosaic demo`: one run, from training to the report."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

import tosaic
from tosaic.demo.account import print_report, write_report
from tosaic.demo.data import Dataset, Patches, downscale, held_out, training_data
from tosaic.demo.story import FULL, QUICK, Plan, Story, say
from tosaic.demo.upscaler import Upscaler, train
from tosaic.errors import ExecuteError, InputError
from tosaic.execute.threads import torch_threads
from tosaic.quantization.ptq import Quantized
from tosaic.report.facts import Report

SEED = 2026
THREADS = 2  # a sum in another order is another sum: the same number everywhere gives nearly the same weights everywhere
EPOCH = 100  # steps


def run_demo(output: Path, *, quick: bool = False, data: str = "auto", epochs: int | None = None) -> None:
    """Train the upscaler, quantize it three ways, write and prove the files, and report.

    Args:
        output: folder for the `.vgf` files, their passports, pictures and reports.
        quick: a few seconds of training and small pictures, to see that everything works.
        data: what to train on: "auto", "cifar10" or "photographs".
        epochs: length of the float training, in hundreds of steps.

    Raises:
        InputError: the data is not to be had, or a number makes no sense.
        ExecuteError: executors disagree; all files are written nevertheless.
    """
    plan = QUICK if quick else FULL
    if epochs is not None:
        if epochs < 1:
            raise InputError(f"{epochs} epochs of training", remedy="give at least 1")
        plan = replace(plan, float_training=replace(plan.float_training, steps=epochs * EPOCH))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        torch_threads(THREADS),
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of torch and torchao, about their own future
        torch.manual_seed(SEED)
        report = _tell(Path(output), plan, data, progress)
    print_report(report, Path(output))
    wrong = [f"  {a.file}: {c.executor}: {c.detail}" for _, a in report.artifacts for c in a.checks if c.agrees is False]
    if wrong:
        raise ExecuteError("\n".join(["the executors disagree:", *wrong]), remedy="report this as a bug of Tosaic")


def _tell(folder: Path, plan: Plan, choice: str, progress: Progress) -> Report:
    """The story in its order."""
    begin = time.perf_counter()
    dataset = training_data(choice, lambda text: say(progress, text))
    truth = held_out(plan.side)
    story = Story(folder, plan, progress, {name: downscale(image) for name, image in truth.items()}, truth)
    patches = Patches(dataset.images, SEED)
    calibration = [patches.pair(1, plan.side)[0] for _ in range(plan.calibration)]

    for mode in ("bilinear", "bicubic"):
        story.score(mode, {n: F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=False) for n, x in story.low.items()})
    model = _trained(story, patches)
    with torch.no_grad():
        story.score("FP32", {name: model(image) for name, image in story.low.items()})
    story.make("PTQ 8a8w", _ptq(story, model, calibration, "8a8w"))
    story.make("QAT 8a8w", _qat(story, model, calibration, dataset))
    story.make("PTQ 16a8w", _ptq(story, model, calibration, "16a8w"))

    settings = {"seed": f"{SEED}, {THREADS} threads"}
    return write_report(story, dataset, settings, begin)


def _trained(story: Story, patches: Patches) -> Upscaler:
    schedule, model = story.plan.float_training, Upscaler()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with story.part(f"training FP32, {schedule.steps} steps", schedule.steps) as step:
        train(model, patches, schedule, step)
    return model.eval()


def _ptq(story: Story, model: Upscaler, calibration: list[Tensor], scheme: str) -> Quantized:
    with story.part(f"quantizing PTQ {scheme}", len(calibration)) as step:
        return tosaic.quantize(model, calibration[0], calibration, scheme, progress=step)


def _qat(story: Story, model: Upscaler, calibration: list[Tensor], dataset: Dataset) -> Quantized:
    schedule = story.plan.qat
    preparing, training = "preparing QAT 8a8w", f"training QAT 8a8w, {schedule.steps} steps"
    with story.part(preparing, len(calibration)) as step:
        session = tosaic.prepare_qat(model, calibration[0], "8a8w")
        session.calibrate(calibration, step)
    with story.part(training, schedule.steps) as step:
        train(session.model, Patches(dataset.images, SEED + 1), schedule, step, settle=session.freeze_observers)
    program = session.finish()
    program.timings.update(prepare=story.seconds[preparing], train=story.seconds[training])
    return program
