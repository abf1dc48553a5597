"""The report of a run, from what the story gathered; and the table on the terminal."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tosaic.artifact import versions
from tosaic.demo.data import LICENCES, Dataset
from tosaic.demo.pictures import draw
from tosaic.demo.story import Story
from tosaic.demo.upscaler import CHANNELS, SETTLED, Schedule
from tosaic.emit.files import atomic_write
from tosaic.report.facts import Check, Report, score_table
from tosaic.report.html import to_html
from tosaic.report.json import to_json
from tosaic.report.markdown import to_markdown

BASELINE = "FP32"
SPOKEN = {"simulator": "Tosaic's simulator", "reference": "Arm's TOSA reference model", "vulkan": "Vulkan"}
WIDTH = 140  # of the table where the output is no terminal


def write_report(story: Story, dataset: Dataset, settings: dict[str, str], begin: float) -> Report:
    """Draw the pictures and write report.json, report.md and report.html.

    Args:
        settings: name -> text, beside what the plan says.
        begin: when the run began, by time.perf_counter.
    """
    with story.part("drawing"):
        pictures = draw(story.folder, story.outputs, story.truth, story.rows, BASELINE)
    report = Report(
        title="One small upscaler, quantized three ways",
        created=time.strftime("tosaic demo, %Y-%m-%d %H:%M:%S %Z"),
        summary=_summary(story),
        baseline=BASELINE,
        rows=tuple(story.rows),
        pictures=pictures,
        sections=_sections(story, dataset, settings),
        seconds={**story.seconds, "everything": time.perf_counter() - begin},
    )
    forms = {"report.json": to_json(report), "report.md": to_markdown(report), "report.html": to_html(report, story.folder)}
    for name, text in forms.items():
        atomic_write(story.folder / name, text.encode())
    return report


def print_report(report: Report, folder: Path) -> None:
    """The table, who ran, and where the files are, on stdout."""
    header, body = score_table(report)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=WIDTH)
    table = Table(title=report.title, title_justify="left", title_style="bold", header_style="bold")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if 0 < i < len(header) - 1 else "left")
    for cells in body:
        table.add_row(*cells, style="bold" if cells[0] == report.baseline else "")
    console.print()
    console.print(table)
    for check in _executors(report):
        console.print(f"{check.executor}: {'NOT RUN: ' if check.agrees is None else ''}{check.detail}", soft_wrap=True)
    console.print(f"\nEverything took {report.seconds['everything']:.0f} s. Open {folder / 'report.html'}", soft_wrap=True)


def _executors(report: Report) -> tuple[Check, ...]:
    return report.artifacts[0][1].checks


def _summary(story: Story) -> tuple[str, ...]:
    names = " and ".join(story.truth)
    checks = [check for row in story.rows if row.artifact for check in row.artifact.checks]
    ran = list(dict.fromkeys(check.executor for check in checks if check.agrees is not None))
    missing = {check.executor: check.detail for check in checks if check.agrees is None}
    compared = sum(check.values for check in checks if check.executor != "simulator")
    verdict = f"{compared:,} stored values were compared, and all are equal."
    if any(check.agrees is False for check in checks):
        verdict = "THE EXECUTORS DISAGREE; see the artifacts below."
    *most, last = (SPOKEN[executor] for executor in ran)
    who = f"{', '.join(most)} and {last}" if most else last
    return (
        f"A small upscaler (bilinear resize to twice the size, then three 3x3 convolutions of {CHANNELS} channels) was trained in PyTorch, "
        "quantized after training (PTQ) and in training (QAT), and compiled to .vgf files for the ML extensions for Vulkan.",
        f"Each file was read back and run on photographs that were in neither training nor calibration ({names}). The scores of the "
        "quantized models are what these files compute, not estimates: PSNR against the full-size photograph, higher is better.",
        f"Every picture was computed by {who}. {verdict}",
        *(f"{SPOKEN[executor]} was not run: {why}." for executor, why in missing.items()),
    )


def _sections(story: Story, dataset: Dataset, settings: dict[str, str]) -> dict[str, dict[str, str]]:
    plan, side = story.plan, story.plan.side
    held_out = "; ".join(f"{name}, {LICENCES[name]}" for name in story.truth)
    return {
        "Data": {
            "training": dataset.described,
            "calibration": f"{plan.calibration} crops of the training images, scaled down to {side // 2}x{side // 2}",
            "held out": f"{held_out}: the central square at {side}x{side}, scaled down to {side // 2}x{side // 2} for the input",
        },
        "Training": {
            "FP32": _schedule(plan.float_training),
            "QAT 8a8w": f"{_schedule(plan.qat)}; activation scales fixed after {SETTLED:.0%} of them",
            **settings,
        },
        "How to read the table": {
            "dB": "PSNR: 10 log10(1 / mean squared error) over all pixels and channels, values in [0, 1]",
            "seconds": "from the trained float network to the file; for QAT with its training",
            "operators": "TOSA operators in the file, constants not counted",
        },
        "Versions and machine": {
            **versions(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "scikit-image")},
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
        },
    }


def _schedule(schedule: Schedule) -> str:
    crops = f"{schedule.batch} crops of {schedule.size}x{schedule.size}"
    return f"{schedule.steps} steps of {crops}, Adam at {schedule.rate:g}, mean squared error"
